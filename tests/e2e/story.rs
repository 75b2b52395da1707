//! The story of `ci/demo`, on real containers, as a test.
#![allow(clippy::unwrap_used, clippy::panic)]

use tests::run::agent;
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
    assert!(is_static(&std::fs::read(agent().unwrap()).unwrap()), "the agent asks for a dynamic loader");
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
        let steps = world.exec(vmid, &["cat", "/var/lib/ctrlable-agent/first-boot.jsonl"]).unwrap();
        println!("  first boot of {vmid}: {}", steps.split_whitespace().collect::<Vec<_>>().join(" "));
    }
}

/// Whether a 64-bit little-endian ELF program names no loader: none of its program headers is PT_INTERP (elf(5)).
fn is_static(elf: &[u8]) -> bool {
    assert_eq!(&elf[..6], b"\x7fELF\x02\x01");
    let half = |at: usize| usize::from(u16::from_le_bytes(elf[at..at + 2].try_into().unwrap()));
    let headers = u64::from_le_bytes(elf[32..40].try_into().unwrap()) as usize;
    let (size, count) = (half(54), half(56));
    assert!(count > 0, "no program headers");
    (0..count).all(|index| elf[headers + index * size..][..4] != 3u32.to_le_bytes())
}

#[test]
fn a_program_with_a_loader_is_not_taken_for_static() {
    // The test itself is an ordinary program of this machine.
    assert!(!is_static(&std::fs::read(std::env::current_exe().unwrap()).unwrap()));
}
