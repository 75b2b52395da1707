//! The story of `ci/demo`, on real containers, as a test.
#![allow(clippy::unwrap_used, clippy::panic)]

use tests::run::{agent, run};
use tests::story::{self, Narrator};
use tests::world::{Runtime, World};

/// Bytes that the static agent may have.
const AGENT_SIZE: u64 = 5_000_000;
/// kB that it may have resident in a running guest.
const AGENT_RESIDENT: u64 = 8 * 1024;

struct Log;

impl Narrator for Log {
    fn chapter(&mut self, title: &str) {
        println!("\n{title}");
    }

    fn proof(&mut self, text: &str) {
        println!("  ✓ {text}");
    }

    fn show(&mut self, text: &str) {
        text.lines().for_each(|line| println!("    {line}"));
    }
}

#[test]
fn a_signed_release_and_a_merged_site_become_healthy_guests() {
    // On a disk: overlays cannot lie on every file system that /tmp may be.
    let home = tempfile::Builder::new().prefix("ctrlable-story-").tempdir_in("/var/tmp").unwrap();
    let mut world = World::fresh(home.path(), Runtime::Nspawn).unwrap();
    story::tell(&mut world, &mut Log).unwrap_or_else(|error| panic!("{error:#}"));
    budget(&world);
    world.take_down().unwrap();
}

/// The agent's budget, in the guests that the story left behind.
fn budget(world: &World) {
    let size = std::fs::metadata(agent().unwrap()).unwrap().len();
    println!("  agent: {size} bytes on disk, budget {AGENT_SIZE}");
    assert!(size < AGENT_SIZE, "the agent has {size} bytes");
    let file = run(std::process::Command::new("file").arg(agent().unwrap())).unwrap_or_default();
    assert!(!file.contains("dynamically linked"), "{file}");
    for vmid in [2000, 2001, 2002] {
        let pid = world.exec(vmid, &["systemctl", "show", "--property=MainPID", "--value", "ctrlable-agent"]).unwrap();
        let status = world.exec(vmid, &["cat", &format!("/proc/{}/status", pid.trim())]).unwrap();
        let field = |name: &str| -> u64 {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_whitespace().nth(1).and_then(|kb| kb.parse().ok()).unwrap_or(u64::MAX)
        };
        let (now, peak) = (field("VmRSS:"), field("VmHWM:"));
        println!("  agent in {vmid}: {now} kB resident, {peak} kB at its peak, budget {AGENT_RESIDENT}");
        assert!(now < AGENT_RESIDENT, "the agent in {vmid} has {now} kB resident");
    }
}
