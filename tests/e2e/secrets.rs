//! The site's secrets in git: a merge moves guests to a new value without a restart, a file for the wrong recipient stops
//! those that need it and nobody else, and no value is ever found where it does not belong.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::canary::{Canaries, leaves_no_core};
use tests::run::{await_for, command, program, run, run_expecting};
use tests::small::{SETTLES, Small, hostname};
use tests::world::{SITE, Tuning, World};

/// One template with two secrets, one without any.
const MANIFEST: &str = r#"release: "2026.06"
proxmox_min_version: "8.2"
templates:
  broker:
    kind: lxc
    builder: ctrlable/broker
    resources: { cpu: 1, ram: 256, disk: 2 }
    unprivileged: true
    wiring:
      inputs:
        mqtt: { type: mqtt, from: shared.mqtt, required: true }
        pin: { type: secret, required: true }
      files:
        - path: /etc/broker/account.env
          format: env
          merge: { PASSWORD: "${mqtt.password}", PIN: "pin-${pin}" }
      units: [broker.service]
  sensor:
    kind: lxc
    builder: ctrlable/sensor
    resources: { cpu: 1, ram: 128, disk: 2 }
    unprivileged: true
    wiring:
      inputs:
        topic: { type: string, default: "site/load" }
      files:
        - path: /etc/sensor.env
          format: env
          merge: { TOPIC: "${topic}" }
      units: [sensor.service]
"#;

const SITE_YAML: &str = r#"site: acme-hq
dealer: acme
release: "2026.06"
prune: true
proxmox: { storage: local-lvm, bridge: vmbr0, pool: ctrlable, vmids: 2000-2099 }
shared:
  mqtt: { host: 10.77.0.10, username: ctrlable, password: { secret: mqtt } }
instances:
  attic: { template: sensor, network: { ip: dhcp } }
  hub: { template: broker, network: { ip: dhcp }, wiring: { pin: { secret: pin } } }
"#;

const INSTANCES: [(&str, &str); 2] = [("attic", "sensor"), ("hub", "broker")];

/// A site whose secrets `mqtt` and `pin` are in git; the orchestrator is not started.
fn built(canaries: &Canaries) -> Result<(tempfile::TempDir, Small)> {
    let dir = tempfile::tempdir()?;
    let small = Small::build_from(&dir.path().join("world"), 1, Tuning::default(), MANIFEST, SITE_YAML)?;
    small.world.write_secrets(&[])?;
    small.world.add_recipient()?;
    let hq = run(command("age-keygen", ["-o"]).arg(small.world.dir.join("hq/recovery.key")))
        .and_then(|_| run(command("age-keygen", ["-y"]).arg(small.world.dir.join("hq/recovery.key"))))?;
    small.world.secrets(&["recipients", "--add", hq.trim(), "--comment", "HQ's recovery key"], "")?;
    for name in ["mqtt", "pin"] {
        small.world.secrets(&["set", name], canaries.value(name))?;
    }
    small.world.push("secrets")?;
    Ok((dir, small))
}

/// Generation and content of the hub's assignment, as its agent has it, and how often that began.
fn hub(small: &Small) -> Result<(u64, String, u64)> {
    let guest = small.sim.guest(&hostname("hub"))?;
    let assignment = guest.assignment.context("the hub has no assignment")?;
    let file = &assignment.files[0];
    ensure!(file.mode.as_ref().is_some_and(|mode| mode.as_str() == "0600"), "a file with a secret is not private");
    Ok((assignment.generation.0, file.merge.expose().to_string(), guest.starts))
}

/// Waits until the hub's agent has a generation.
fn await_generation(small: &Small, wanted: u64) -> Result<(u64, String, u64)> {
    await_for(&format!("the hub has generation {wanted}"), SETTLES, || {
        Ok(hub(small).ok().filter(|(generation, ..)| *generation >= wanted))
    })
    .with_context(|| small.world.orchestrator_log())
}

/// The reason of the hub's only wire step in a plan.
fn wire_reason(plan: &Value) -> Option<&str> {
    let hub = plan["plan"]["instances"].as_array()?.iter().find(|part| part["instance"] == "hub")?;
    let steps = hub["steps"].as_array()?;
    steps.iter().find(|step| step["action"] == "wire")?["because"]["observed"].as_str()
}

fn lint(world: &World) -> Result<(i32, String)> {
    let output = run_expecting(
        command(program("ctrlable")?, ["site", "lint", "--fleet"]).arg(world.checkout()).arg(SITE),
        &[0, 1],
    )?;
    Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// A file for somebody else, made with the real tool.
fn for_somebody_else(name: &str, file: &Path) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let key = dir.path().join("key");
    run(command("age-keygen", ["-o"]).arg(&key))?;
    let public = run(command("age-keygen", ["-y"]).arg(&key))?;
    let plain = dir.path().join("plain");
    fs::write(&plain, format!("{name}: \"canary of somebody else\"\n"))?;
    run(command("age", ["-r", public.trim(), "-o"]).arg(file).arg(plain)).map(drop)
}

#[test]
fn a_merged_secret_reaches_its_guest_without_a_restart_and_plan_names_it() -> Result<()> {
    let canaries = Canaries::fresh(&["mqtt", "pin", "next"])?;
    let (_dir, mut small) = built(&canaries)?;
    ensure!(lint(&small.world)?.0 == 0, "{:?}", lint(&small.world)?);
    small.world.start_orchestrator()?;
    small.await_settled(&INSTANCES)?;
    let (first, content, _) = hub(&small)?;
    ensure!(content.contains(canaries.value("mqtt")) && content.contains(canaries.value("pin")), "{content}");
    let calls = small.world.changes()?.len();
    // What a person's plan says of a merge that is not in force yet.
    small.world.stop_orchestrator()?;
    small.world.secrets(&["set", "mqtt"], canaries.value("next"))?;
    small.world.merge("another password")?;
    let plan = small.world.plan()?;
    ensure!(wire_reason(&plan) == Some("secret mqtt changed"), "{plan:#}");
    small.world.start_orchestrator()?;
    let (second, content, starts) = await_generation(&small, first + 1)?;
    ensure!(second == first + 1 && content.contains(canaries.value("next")), "{second} {content}");
    ensure!(!content.contains(canaries.value("mqtt")), "{content}");
    small.await_settled(&INSTANCES)?;
    // A value that nobody knows, while everything runs.
    small.world.secrets(&["rotate", "pin"], "")?;
    small.world.merge("rotated")?;
    let (third, content, again) = await_generation(&small, second + 1)?;
    ensure!(third == second + 1 && !content.contains(canaries.value("pin")), "{third} {content}");
    small.await_settled(&INSTANCES)?;
    let why = run(&mut small.world.ctrlable(["why", "hub", "--json"]))?;
    ensure!(why.contains("secret pin changed"), "{why}");
    ensure!(again == starts, "the agent was started again");
    ensure!(small.world.changes()?.len() == calls, "the hypervisor was asked to change something");
    Ok(())
}

#[test]
fn secrets_that_cannot_be_read_stop_those_that_need_them_and_nobody_else() -> Result<()> {
    let canaries = Canaries::fresh(&["mqtt", "pin"])?;
    let (_dir, mut small) = built(&canaries)?;
    small.world.start_orchestrator()?;
    small.await_settled(&INSTANCES)?;
    let file = small.world.checkout().join(format!("sites/{SITE}/secrets.d/mqtt.age"));
    let good = fs::read(&file)?;
    let mut topic = 0;
    type Spoil<'a> = (&'a str, &'a dyn Fn() -> Result<()>);
    let spoils: [Spoil<'_>; 4] = [
        ("secrets-wrong-recipient", &|| {
            fs::remove_file(&file)?;
            for_somebody_else("mqtt", &file)
        }),
        ("secrets-damaged", &|| Ok(fs::write(&file, &good[..good.len() / 2])?)),
        // Another secret's file under this name.
        ("secrets-form", &|| Ok(fs::copy(file.with_file_name("pin.age"), &file).map(drop)?)),
        ("secret-missing", &|| Ok(fs::remove_file(&file)?)),
    ];
    for (reason, spoil) in spoils {
        spoil()?;
        // The same merge asks something of an instance that needs no secret.
        topic += 1;
        let site = SITE_YAML.replace(
            "template: sensor, network: { ip: dhcp }",
            &format!("template: sensor, network: {{ ip: dhcp }}, wiring: {{ topic: t{topic} }}"),
        );
        small.world.write_site(&site)?;
        let (code, said) = lint(&small.world)?;
        let told = matches!(reason, "secrets-wrong-recipient" | "secrets-damaged");
        ensure!(code == i32::from(told) && said.contains(&format!("[{reason}]")) == told, "{reason}: {code} {said}");
        let revision = small.world.merge(reason)?;
        ensure!(small.world.await_verdict(&revision)?.is_none(), "the revision itself is good");
        let row = small.await_cause("hub", reason, "mqtt")?;
        ensure!(row["phase"] == "degraded", "{row}");
        await_for("the other instance goes on", SETTLES, || {
            let guest = small.sim.guest(&hostname("attic"))?;
            let files = guest.assignment.map(|known| known.files[0].merge.expose().to_string()).unwrap_or_default();
            Ok(files.contains(&format!("t{topic}")).then_some(()))
        })?;
        small.await_healthy("attic")?;
    }
    fs::write(&file, good)?;
    small.world.merge("repaired")?;
    small.await_settled(&INSTANCES)?;
    ensure!(hub(&small)?.1.contains(canaries.value("mqtt")), "{:?}", hub(&small)?);
    Ok(())
}

#[test]
fn no_secret_is_found_where_it_does_not_belong() -> Result<()> {
    let canaries = Canaries::fresh(&["mqtt", "pin", "next", "local"])?;
    let (_dir, mut small) = built(&canaries)?;
    // One more stands in the orchestrator's own file, the only place in the world that may hold any.
    small.world.write_secrets(&[("local", canaries.value("local"))])?;
    let local = SITE_YAML.replace("pin: { secret: pin } }", "pin: { secret: local } }");
    small.world.write_site(&local)?;
    small.world.push("a secret of the orchestrator's own file")?;
    small.world.start_orchestrator_with(&[("RUST_LOG", "debug")])?;
    small.await_settled(&INSTANCES)?;
    ensure!(hub(&small)?.1.contains(canaries.value("local")), "the canary never got anywhere");
    ensure!(leaves_no_core(small.world.orchestrator_pid()?)?, "the orchestrator may leave a core dump");
    nowhere(&small, &canaries, "cloned and wired")?;
    // Rotation.
    let (generation, ..) = hub(&small)?;
    small.world.secrets(&["set", "mqtt"], canaries.value("next"))?;
    small.world.write_site(SITE_YAML)?;
    small.world.merge("rotated")?;
    let (_, content, _) = await_generation(&small, generation + 1)?;
    ensure!(content.contains(canaries.value("next")) && content.contains(canaries.value("pin")), "{content}");
    small.await_settled(&INSTANCES)?;
    nowhere(&small, &canaries, "rotated")?;
    // A render that fails although some of the secrets are known.
    let file = small.world.checkout().join(format!("sites/{SITE}/secrets.d/pin.age"));
    fs::remove_file(&file)?;
    for_somebody_else("pin", &file)?;
    small.world.merge("a file for somebody else")?;
    small.await_reason("hub", "secrets-wrong-recipient")?;
    // The local file, in plain text where a list is expected.
    small.world.write_secrets(&[("local", &format!("\" {} [", canaries.value("local")))])?;
    small.world.write_site(&local)?;
    small.world.merge("a local file that is no mapping")?;
    small.await_reason("hub", "secrets-form")?;
    nowhere(&small, &canaries, "not rendered")?;
    // The end of the guest, with its backup.
    let without: String =
        SITE_YAML.lines().filter(|line| !line.starts_with("  hub:")).map(|line| format!("{line}\n")).collect();
    small.world.write_site(&without)?;
    small.world.merge("no hub")?;
    small.await_settled(&INSTANCES[..1])?;
    nowhere(&small, &canaries, "destroyed")
}

/// Looks everywhere.
fn nowhere(small: &Small, canaries: &Canaries, when: &str) -> Result<()> {
    let world = &small.world;
    let own = world.dir.join("site/secrets.yaml");
    let mut found = canaries
        .in_directory(&world.dir, &|path, metadata| path == own && tests::canary::is_private(path, metadata))?;
    found.extend(canaries.in_processes(&[world.pids(), vec![std::process::id()]].concat())?);
    for arguments in [&["plan"][..], &["status"], &["events", "--limit", "1000"], &["why", "hub"]] {
        for more in [&[][..], &["--json"]] {
            // `plan` says 2 when something is to be done, and `why` 1 for an instance that is gone.
            let output = world.ctrlable([]).args(arguments).args(more).stdin(Stdio::null()).output()?;
            let text = [output.stdout, output.stderr].concat();
            ensure!(!text.is_empty(), "{arguments:?} said nothing");
            found.extend(canaries.in_text(&format!("{arguments:?} {more:?}"), &text));
        }
    }
    for path in ["/lab/log", "/api2/json/cluster/tasks", "/api2/json/cluster/resources"] {
        found.extend(canaries.in_text(path, world.node("GET", path, None)?.to_string().as_bytes()));
    }
    for (vmid, _) in world.guests()? {
        let path = format!("/api2/json/nodes/pve1/lxc/{vmid}/config");
        found.extend(canaries.in_text(&path, world.node("GET", &path, None)?.to_string().as_bytes()));
    }
    ensure!(found.is_empty(), "{when}: {found:#?}");
    Ok(())
}
