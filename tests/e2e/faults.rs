//! A hypervisor that is away, refuses, fails half-way or lies: each trouble shows with its reason, the other instances
//! go on, nothing is left behind, and all is well by itself once the cause is gone.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::run::await_for;
use tests::small::{INSTANCES, SETTLES, Small, TEMPLATES, hostname, make_template};
use tests::world::Tuning;

/// A site that is ready and not begun, in a directory that goes when the guard is dropped.
fn built() -> Result<(tempfile::TempDir, Small)> {
    let dir = tempfile::tempdir()?;
    let small = Small::build(&dir.path().join("world"))?;
    Ok((dir, small))
}

/// The end that every story here has.
fn ends_well(small: &Small, told: &str, began: Instant) -> Result<()> {
    small.await_settled(&INSTANCES)?;
    small.check(&INSTANCES)?;
    println!("{told}: well after {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}

#[test]
fn a_node_that_is_away_is_waited_for() -> Result<()> {
    let (_dir, mut small) = built()?;
    let began = Instant::now();
    small.world.kill_lab()?;
    small.world.start_orchestrator()?;
    let event = small.await_event("unreachable")?;
    ensure!(event["kind"] == "proxmox-failed", "{event}");
    small.world.start_lab()?;
    ends_well(&small, "node away", began)
}

#[test]
fn a_wrong_token_and_a_wrong_ca_are_named() -> Result<()> {
    let (_dir, mut small) = built()?;
    let began = Instant::now();
    let config = fs::read_to_string(small.world.config())?;
    let facts = small.world.lab_facts()?;
    for (field, reason, content) in [
        ("token", "token-refused", "ctrlable@pve!site=00000000-0000-4000-8000-000000000000".to_owned()),
        // The site's own CA: a certificate, but not the node's.
        ("ca", "tls-pin", fs::read_to_string(small.world.dir.join("site/state/ca.pem"))?),
    ] {
        let wrong = small.world.dir.join(format!("site/wrong-{field}"));
        fs::write(&wrong, content)?;
        let right = facts[field].as_str().context("lab.json names its files")?;
        fs::write(small.world.config(), config.replace(right, &wrong.display().to_string()))?;
        small.world.start_orchestrator()?;
        let event = small.await_event(reason)?;
        let text = event["message"].as_str().unwrap_or_default();
        ensure!(event["kind"] == "proxmox-failed" && !text.contains("4000-8000"), "{event}");
        println!("{text}");
        small.world.stop_orchestrator()?;
    }
    ensure!(small.world.guests()?.is_empty(), "something was made: {:?}", small.world.guests()?);
    fs::write(small.world.config(), config)?;
    small.world.start_orchestrator()?;
    ends_well(&small, "token and CA", began)
}

#[test]
fn a_missing_privilege_is_named_per_instance() -> Result<()> {
    let (_dir, mut small) = built()?;
    let began = Instant::now();
    let turn = |small: &Small, what: &str, privilege: &str| {
        small.world.node("POST", &format!("/lab/{what}"), Some(&json!({ "privilege": privilege }))).map(drop)
    };
    // Proxmox answers a token that lacks a privilege on a guest as if there were no such guest, so the reason leaves
    // both open; the privilege is named all the same.
    let stages = [("VM.Clone", "not-visible"), ("VM.PowerMgmt", "not-visible")];
    for (privilege, _) in stages {
        turn(&small, "revoke", privilege)?;
    }
    small.world.start_orchestrator()?;
    for (privilege, reason) in stages {
        for (name, _) in INSTANCES {
            let row = small.await_cause(name, reason, privilege)?;
            ensure!(row["phase"] == "degraded", "{row}");
        }
        turn(&small, "restore", privilege)?;
    }
    ends_well(&small, "privilege", began)
}

#[test]
fn a_full_storage_is_waited_for() -> Result<()> {
    let (_dir, mut small) = built()?;
    let began = Instant::now();
    let capacity = |gib: u64| json!({ "storage": "local-lvm", "capacity": gib << 30 });
    // Room for a sensor with its 2 GiB, none for the hub with its 4.
    small.world.node("POST", "/lab/storage", Some(&capacity(4)))?;
    // And a volume that fills up while a clone is made.
    small.ask_for_trouble("POST", "/nodes/*/lxc/9002/clone", Some(1), json!({ "kind": "storage_full" }))?;
    small.world.start_orchestrator()?;
    let row = small.await_reason("hub", "storage-full")?;
    println!("{}", row["cause"].as_str().unwrap_or_default());
    for name in ["attic", "cellar"] {
        small.await_healthy(name)?;
    }
    let events = small.world.events()?;
    let of = |names: &[&str]| {
        let shown = |event: &Value| {
            event["reason"] == "storage-full" && names.contains(&event["instance"].as_str().unwrap_or_default())
        };
        events.iter().any(shown)
    };
    ensure!(of(&["hub"]) && of(&["attic", "cellar"]), "storage-full is not in the event log: {events:#?}");
    ensure!(small.world.guests()?.len() == 2, "half-made guests: {:?}", small.world.guests()?);
    small.world.node("POST", "/lab/storage", Some(&capacity(256)))?;
    ends_well(&small, "storage", began)
}

#[test]
fn a_clone_that_fails_half_way_leaves_nothing_and_is_tried_again() -> Result<()> {
    let (_dir, mut small) = built()?;
    let began = Instant::now();
    let error = json!({ "kind": "task_error", "text": "command 'rsync' failed: exit code 23" });
    // Twice, so that the first try again does not hide it.
    small.ask_for_trouble("POST", "/nodes/*/lxc/9001/clone", Some(2), error)?;
    small.world.start_orchestrator()?;
    let row = small.await_reason("hub", "task-failed")?;
    ensure!(row["phase"] == "degraded" && row["retry_at"].is_number(), "{row}");
    ensure!(row["cause"].as_str().unwrap_or_default().contains("rsync"), "{row}");
    for name in ["attic", "cellar"] {
        small.await_healthy(name)?;
    }
    ends_well(&small, "failed clone", began)?;
    ensure!(small.clones()? == 5, "{} clones were begun", small.clones()?);
    Ok(())
}

#[test]
fn answers_that_get_lost_after_the_deed_do_nothing_twice() -> Result<()> {
    let (_dir, mut small) = built()?;
    let began = Instant::now();
    let lost = || json!({ "kind": "after_success_596" });
    // Numbers are given by name: attic, cellar, hub.
    small.ask_for_trouble("POST", "/nodes/*/lxc/9002/clone", Some(2), lost())?;
    small.ask_for_trouble("POST", "/nodes/*/lxc/9001/clone", Some(1), json!({ "kind": "drop_after" }))?;
    small.ask_for_trouble("PUT", "/nodes/*/lxc/2000/config", Some(1), lost())?;
    small.ask_for_trouble("PUT", "/nodes/*/lxc/2001/config", Some(1), json!({ "kind": "saved_but_500" }))?;
    small.ask_for_trouble("PUT", "/nodes/*/lxc/2002/resize", Some(1), lost())?;
    small.ask_for_trouble("POST", "/nodes/*/lxc/2002/status/start", Some(1), lost())?;
    small.world.start_orchestrator()?;
    for reason in ["relay", "no-answer"] {
        let event = small.await_event(reason)?;
        ensure!(event["instance"].is_string(), "{event}");
    }
    ends_well(&small, "lost answers", began)?;
    let log = small.world.node("GET", "/lab/log", None)?;
    let tasks = |word: &str| {
        let of_kind = |entry: &&Value| {
            entry["what"] == "task" && entry["subject"].as_str().unwrap_or_default().contains(&format!(":{word}:"))
        };
        log.as_array().into_iter().flatten().filter(of_kind).count()
    };
    ensure!(tasks("vzclone") == 3, "{} clones ran for three instances", tasks("vzclone"));
    println!("{} clones, {} starts, {} resizes ran", tasks("vzclone"), tasks("vzstart"), tasks("resize"));
    Ok(())
}

#[test]
fn locks_of_others_are_waited_for() -> Result<()> {
    let (_dir, mut small) = built()?;
    let began = Instant::now();
    small.ask_for_trouble("POST", "/nodes/*/lxc/*/clone", Some(1), json!({ "kind": "cfs_lock_timeout" }))?;
    small.world.start_orchestrator()?;
    let event = small.await_event("lock-timeout")?;
    ensure!(event["instance"].is_string(), "{event}");
    ends_well(&small, "cluster lock", began)
}

#[test]
fn a_number_that_a_hidden_guest_has_is_left_to_it() -> Result<()> {
    let (_dir, mut small) = built()?;
    let began = Instant::now();
    let foreign = json!({ "vmid": 2000, "hostname": "somebody-else", "size": "1G" });
    small.world.node("POST", "/lab/import", Some(&foreign))?;
    let config = "/api2/json/nodes/pve1/lxc/2000/config";
    let before = small.world.node("GET", config, None)?;
    small.world.start_orchestrator()?;
    small.await_event("vmid-taken")?;
    small.await_settled(&INSTANCES)?;
    ensure!(small.world.node("GET", config, None)? == before, "the foreign guest was touched");
    let touched = small.world.changes()?;
    ensure!(
        !touched.iter().any(|call| call["subject"].as_str().unwrap_or_default().contains("/lxc/2000/")),
        "somebody tried to: {touched:?}"
    );
    // Out of the way for the check of everything else.
    small.world.node("DELETE", "/api2/json/nodes/pve1/lxc/2000", None)?;
    ends_well(&small, "hidden guest", began)
}

#[test]
fn a_guest_of_ours_that_left_the_pool_is_not_made_twice() -> Result<()> {
    let (_dir, mut small) = built()?;
    small.world.start_orchestrator()?;
    small.await_settled(&INSTANCES)?;
    let began = Instant::now();
    let vmid = small.sim.guest(&hostname("attic"))?.vmid;
    let pool = |delete: u8| json!({ "poolid": "ctrlable", "vms": vmid.to_string(), "delete": delete });
    small.world.node("PUT", "/api2/json/pools", Some(&pool(1)))?;
    let row = small.await_reason("attic", "guest-hidden")?;
    println!("{}", row["cause"].as_str().unwrap_or_default());
    ensure!(small.world.guests()?.len() == 3, "another guest was made: {:?}", small.world.guests()?);
    small.world.node("PUT", "/api2/json/pools", Some(&pool(0)))?;
    ends_well(&small, "left the pool", began)
}

#[test]
fn a_guest_destroyed_by_hand_comes_back_as_a_new_one() -> Result<()> {
    let (_dir, mut small) = built()?;
    small.world.start_orchestrator()?;
    small.await_settled(&INSTANCES)?;
    let began = Instant::now();
    let before = small.sim.guest(&hostname("attic"))?;
    let path = format!("/api2/json/nodes/pve1/lxc/{}", before.vmid);
    small.world.node("POST", &format!("{path}/status/stop"), None)?;
    await_for("the stopped guest is destroyed", SETTLES, || {
        // The orchestrator may have started it again meanwhile.
        let _ = small.world.node("POST", &format!("{path}/status/stop"), None);
        Ok(small.world.node("DELETE", &path, None).is_ok().then_some(()))
    })?;
    await_for("attic has a new agent", SETTLES, || {
        let now = small.sim.guest(&hostname("attic"))?;
        Ok((now.certificate.is_some() && now.certificate != before.certificate).then_some(()))
    })
    .with_context(|| small.world.orchestrator_log())?;
    ends_well(&small, "destroyed by hand", began)
}

#[test]
fn a_missing_template_holds_up_its_instances_only() -> Result<()> {
    let (_dir, mut small) = built()?;
    let began = Instant::now();
    let (vmid, name) = TEMPLATES[1];
    small.world.node("DELETE", &format!("/api2/json/nodes/pve1/lxc/{vmid}"), None)?;
    small.world.start_orchestrator()?;
    let row = small.await_reason("attic", "template-missing")?;
    ensure!(row["phase"] == "pending" && row["cause"].as_str().unwrap_or_default().contains("adopt"), "{row}");
    small.await_event("template-missing")?;
    small.await_healthy("hub")?;
    make_template(&small.world, vmid, name)?;
    ends_well(&small, "missing template", began)
}

#[test]
fn clones_of_one_template_never_overlap_and_those_of_two_do() -> Result<()> {
    let (_dir, mut small) = built()?;
    let more: Vec<(&str, &str)> =
        INSTANCES.iter().copied().chain([("porch", INSTANCES[1].1), ("shed", INSTANCES[1].1)]).collect();
    small.change_site(&more)?;
    small.ask_for_trouble("POST", "/nodes/*/lxc/*/clone", None, json!({ "kind": "task_delay", "ms": 300 }))?;
    small.world.start_orchestrator()?;
    small.await_settled(&more)?;
    small.check(&more)?;
    let log = small.world.node("GET", "/lab/log", None)?;
    let runs = |template: u32| -> Vec<(u64, u64)> {
        let ours = |entry: &&Value| {
            let subject = entry["subject"].as_str().unwrap_or_default();
            entry["what"] == "task" && subject.contains(&format!(":vzclone:{template}:"))
        };
        let span = |entry: &Value| Some((entry["started"].as_u64()?, entry["ended"].as_u64()?));
        log.as_array().into_iter().flatten().filter(ours).filter_map(span).collect()
    };
    let (hubs, sensors) = (runs(TEMPLATES[0].0), runs(TEMPLATES[1].0));
    let overlap = |a: &(u64, u64), b: &(u64, u64)| a.0 < b.1 && b.0 < a.1;
    ensure!((hubs.len(), sensors.len()) == (1, 4), "{hubs:?} {sensors:?}");
    for (index, one) in sensors.iter().enumerate() {
        for other in &sensors[index + 1..] {
            ensure!(!overlap(one, other), "two clones of one template ran at once: {sensors:?}");
        }
    }
    ensure!(
        sensors.iter().any(|run| overlap(run, &hubs[0])),
        "two templates waited for each other: {hubs:?} {sensors:?}"
    );
    ensure!(small.world.events()?.iter().all(|event| event["reason"] != "locked"), "somebody ran into a lock");
    println!("{} clones of one template one after the other, {} beside them", sensors.len(), hubs.len());
    Ok(())
}

#[test]
fn a_guest_that_never_enrols_is_started_again() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let tuning = Tuning { window: Some(10), ..Tuning::default() };
    let mut small = Small::build_with(&dir.path().join("world"), 1, tuning, &INSTANCES)?;
    let began = Instant::now();
    small.sim.behave(&hostname("attic"), tests::sim::Conduct::NeverEnrol);
    small.world.start_orchestrator()?;
    for name in ["hub", "cellar"] {
        small.await_healthy(name)?;
    }
    let row = small.await_reason("attic", "guest-never-enrolled")?;
    ensure!(row["phase"] == "degraded", "{row}");
    small.await_event("guest-never-enrolled")?;
    await_for("it is started again", SETTLES, || Ok((small.sim.guest(&hostname("attic"))?.starts > 1).then_some(())))?;
    let row = small.await_reason("attic", "guest-never-enrolled")?;
    println!("{}", row["cause"].as_str().unwrap_or_default());
    small.sim.behave(&hostname("attic"), tests::sim::Conduct::Well);
    ends_well(&small, "never enrolled", began)
}
