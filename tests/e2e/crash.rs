//! The orchestrator is killed at every journalled instant, at random ones, and together with the node. Each time it
//! must come to the same end: every instance once, nothing orphaned, nothing lost.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::{Rng, SeedableRng};
use serde_json::json;
use tests::run::await_for;
use tests::small::{INSTANCES, SETTLES, Small};

/// Where `apply` can be told to die while the site is made. Every word and instant of its `crash_point` calls stands
/// here or below; one that is renamed is never reached, and its case fails.
const MAKING: [&str; 21] = [
    "clone:intended",
    "clone:submitted",
    "clone:performed",
    "clone:done",
    "configure:intended",
    "configure:performed",
    "configure:done",
    "grow:intended",
    "grow:submitted",
    "grow:performed",
    "grow:done",
    "wire:intended",
    "wire:submitted",
    "wire:performed",
    "wire:done",
    "start:intended",
    "start:window",
    "start:submitted",
    "start:performed",
    "start:done",
    // Twice: first with the task begun, then while that is taken up.
    "clone:submitted,resume:clone",
];
const MAKING_AGAIN: [&str; 2] = ["grow:submitted,resume:grow", "start:submitted,resume:start"];
/// The same while an instance that is no longer asked for is removed.
const REMOVING: [&str; 15] = [
    "back-up:intended",
    "back-up:submitted",
    "back-up:performed",
    "back-up:done",
    "stop:intended",
    "stop:submitted",
    "stop:performed",
    "stop:done",
    "destroy:intended",
    "destroy:submitted",
    "destroy:performed",
    "destroy:done",
    "back-up:submitted,resume:back-up",
    "stop:submitted,resume:stop",
    "destroy:submitted,resume:destroy",
];
/// SIGKILL.
const KILL: i32 = 9;
/// Worlds at once: each mostly waits.
const SIDE_BY_SIDE: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Making,
    Removing,
}

/// Runs with each of these crash points in turn until the process has died there, then without any.
fn die_and_return(small: &mut Small, points: &str) -> Result<()> {
    for point in points.split(',') {
        small.world.start_orchestrator_with(&[("CTRLABLE_CRASH_AT", point)])?;
        let status = small.world.await_end(SETTLES).with_context(|| format!("{point} was never reached"))?;
        ensure!(status.signal() == Some(KILL), "at {point} it ended with {status}\n{}", small.world.orchestrator_log());
    }
    small.world.start_orchestrator()
}

fn crash(points: &str, phase: Phase) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut small = Small::build(&dir.path().join("world"))?;
    let before = INSTANCES.len();
    match phase {
        Phase::Making => {
            die_and_return(&mut small, points)?;
            small.await_settled(&INSTANCES)?;
            small.check(&INSTANCES)?;
        }
        Phase::Removing => {
            small.world.start_orchestrator()?;
            small.await_settled(&INSTANCES)?;
            small.world.kill_orchestrator()?;
            let keep = &INSTANCES[..before - 1];
            small.change_site(keep)?;
            die_and_return(&mut small, points)?;
            small.await_settled(keep)?;
            small.check(keep)?;
            let backups =
                small.world.node("GET", "/api2/json/nodes/pve1/storage/local/content?content=backup", None)?;
            ensure!(
                backups["data"].as_array().is_some_and(|found| !found.is_empty()),
                "it was destroyed without a backup: {backups:#}"
            );
        }
    }
    let clones = small.clones()?;
    ensure!(clones == before, "the node was asked for {clones} clones for {before} instances");
    Ok(())
}

#[test]
fn killed_at_every_journalled_instant_it_comes_to_the_same_end() {
    let making = MAKING.iter().chain(&MAKING_AGAIN).map(|points| (*points, Phase::Making));
    let cases: Vec<(&str, Phase)> = making.chain(REMOVING.map(|points| (points, Phase::Removing))).collect();
    let next = AtomicUsize::new(0);
    let began = Instant::now();
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let work = || {
            let mut wrong = Vec::new();
            while let Some((points, phase)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                let began = Instant::now();
                match crash(points, *phase) {
                    Ok(()) => println!("{points:36} {:5.1} s", began.elapsed().as_secs_f64()),
                    Err(error) => wrong.push(format!("{points}: {error:?}")),
                }
            }
            wrong
        };
        let workers: Vec<_> = (0..SIDE_BY_SIDE).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    println!("{} instants, {:.1} s", cases.len(), began.elapsed().as_secs_f64());
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n\n"));
}

/// The instants that the code knows are the ones that are tested.
#[test]
fn every_crash_point_of_the_code_is_tested() {
    let code = concat!(
        include_str!("../../orchestrator/src/apply/lane.rs"),
        include_str!("../../orchestrator/src/apply/resume.rs"),
        include_str!("../../orchestrator/src/apply/mod.rs")
    );
    let calls: Vec<&str> =
        code.split("crash_point(").skip(1).filter_map(|rest| rest.split_once(')')).map(|(call, _)| call).collect();
    // `word` and `&entry.action` stand for every action; the definition itself is among them.
    let known = [
        "word, \"intended\"",
        "word, \"performed\"",
        "word, \"done\"",
        "word, \"submitted\"",
        "\"wire\", \"submitted\"",
        "\"start\", \"window\"",
        "\"resume\", &entry.action",
        "action: &str, instant: &str",
    ];
    for call in &calls {
        assert!(known.contains(call), "crash_point({call}) is new: add its instants to this test");
    }
    let actions = ["clone", "configure", "grow", "wire", "start", "back-up", "stop", "destroy"];
    let all: Vec<&str> = MAKING.iter().chain(&MAKING_AGAIN).chain(&REMOVING).copied().collect();
    for action in actions {
        for instant in ["intended", "performed", "done"] {
            assert!(all.contains(&format!("{action}:{instant}").as_str()), "{action}:{instant} is not tested");
        }
    }
    println!("{} calls of crash_point", calls.len() - 1);
}

#[test]
fn killed_at_random_instants_it_comes_to_the_same_end() -> Result<()> {
    let seed = std::env::var("CTRLABLE_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    println!("CTRLABLE_TEST_SEED={seed}");
    let mut chance = rand::rngs::StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir()?;
    let mut small = Small::build(&dir.path().join("world"))?;
    // Tasks that take a moment, so that a kill meets them half-way.
    let slow =
        json!({ "method": "*", "path": "/nodes/**", "times": null, "action": { "kind": "task_delay", "ms": 150 } });
    small.world.node("POST", "/lab/faults", Some(&slow))?;
    for round in 1..=5 {
        small.world.start_orchestrator()?;
        let pause = Duration::from_millis(chance.random_range(50..3000));
        std::thread::sleep(pause);
        small.world.kill_orchestrator()?;
        println!("kill {round} after {pause:?}: {} guests", small.world.guests()?.len());
    }
    small.world.start_orchestrator()?;
    small.await_settled(&INSTANCES)?;
    small.check(&INSTANCES)?;
    // And the way down.
    let keep = &INSTANCES[..1];
    small.change_site(keep)?;
    for round in 1..=5 {
        let pause = Duration::from_millis(chance.random_range(50..3000));
        std::thread::sleep(pause);
        small.world.kill_orchestrator()?;
        println!("kill {round} after {pause:?}: {} guests", small.world.guests()?.len());
        small.world.start_orchestrator()?;
    }
    small.await_settled(keep)?;
    small.check(keep)?;
    ensure!(small.clones()? == INSTANCES.len(), "{} clones were made", small.clones()?);
    Ok(())
}

#[test]
fn node_and_orchestrator_killed_in_mid_clone_converge_once_the_stale_locks_are_gone() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut small = Small::build(&dir.path().join("world"))?;
    let slow = json!({
        "method": "POST", "path": "/nodes/*/lxc/*/clone", "times": null, "action": { "kind": "task_delay", "ms": 600_000 }
    });
    small.world.node("POST", "/lab/faults", Some(&slow))?;
    small.world.start_orchestrator()?;
    let locked = |small: &Small| -> Result<Vec<u64>> {
        let mut found = Vec::new();
        let rows = small.world.node("GET", "/api2/json/nodes/pve1/lxc", None)?;
        for row in rows["data"].as_array().into_iter().flatten() {
            let vmid = row["vmid"].as_u64().unwrap_or_default();
            let config = small.world.node("GET", &format!("/api2/json/nodes/pve1/lxc/{vmid}/config"), None)?;
            if !config["data"]["lock"].is_null() {
                found.push(vmid);
            }
        }
        Ok(found)
    };
    // One clone of each template runs: two locked templates, two locked targets.
    await_for("two clones run", SETTLES, || Ok((locked(&small)?.len() == 4).then_some(())))?;
    small.world.kill_lab()?;
    small.world.kill_orchestrator()?;
    small.world.start_lab()?;
    small.world.start_orchestrator()?;
    let stale = locked(&small)?;
    ensure!(stale.len() == 4, "stale locks after the restart: {stale:?}");
    // What is in the way is shown with its remedy, and nothing is touched.
    for said in ["pct unlock", "half-made clone"] {
        await_for(&format!("`{said}` is in the event log"), SETTLES, || {
            let events = small.world.events()?;
            Ok(events.iter().any(|event| event["message"].as_str().unwrap_or_default().contains(said)).then_some(()))
        })
        .with_context(|| small.world.orchestrator_log())?;
    }
    ensure!(locked(&small)? == stale, "somebody else removed a lock: {:?}", locked(&small)?);
    // As an administrator would: unlock, and destroy the halves, which never got into the pool.
    for vmid in &stale {
        small.world.node("POST", "/lab/unlock", Some(&json!({ "vmid": vmid })))?;
        if *vmid < 9000 {
            small.world.node("DELETE", &format!("/api2/json/nodes/pve1/lxc/{vmid}"), None)?;
        }
    }
    small.await_settled(&INSTANCES)?;
    small.check(&INSTANCES)?;
    println!("stale locks on {stale:?}");
    Ok(())
}
