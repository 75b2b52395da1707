//! What the guest reports: units, probes, load, memory, disk, identity.

use contract::health::{ProbeHealth, UnitHealth, Usage};

use crate::dbus::SystemBus;
use crate::files::Root;
use crate::probes;
use crate::state::Watched;

/// Clock ticks per second in `/proc/*/stat`; the kernel's interface fixes them at 100 (`USER_HZ`, time(7)).
const TICKS_PER_SECOND: u64 = 100;

/// Position of `starttime` in `/proc/PID/stat`, counted behind the command's closing bracket: field 22 of proc(5).
const START_TIME: usize = 22 - 3;

/// Units and probes at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Observation {
    /// Units of the assignment.
    pub units: Vec<UnitHealth>,
    /// Probes of the assignment.
    pub probes: Vec<ProbeHealth>,
}

/// Looks at everything watched.
pub(crate) async fn observe<B: SystemBus>(bus: &B, watched: &Watched) -> Observation {
    let units = match bus.unit_states(&watched.units).await {
        Ok(units) => units,
        Err(error) => {
            let unknown = |unit: &contract::ids::UnitName| UnitHealth {
                unit: unit.clone(),
                active: "unknown".to_owned(),
                sub: error.reason.label().to_owned(),
            };
            watched.units.iter().map(unknown).collect()
        }
    };
    Observation { units, probes: probes::run(bus, &watched.probes).await }
}

/// When this guest started, in ticks since its host did. In a container that is the start of its PID 1.
fn start_ticks(root: &Root) -> u64 {
    let stat = root.read_kernel_file("/proc/1/stat").unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    fields.split_ascii_whitespace().nth(START_TIME).and_then(|field| field.parse().ok()).unwrap_or(0)
}

/// Names this boot. The kernel's own `boot_id` is the host's in a container, so the start of PID 1 goes with it.
pub(crate) fn boot_id(root: &Root) -> String {
    let kernel = root.read_kernel_file("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    format!("{kernel}-{}", start_ticks(root))
}

/// Seconds since the guest booted.
pub(crate) fn uptime(root: &Root) -> u64 {
    let host = rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec;
    u64::try_from(host).unwrap_or(0).saturating_sub(start_ticks(root) / TICKS_PER_SECOND)
}

/// One-minute load average.
pub(crate) fn load(root: &Root) -> f64 {
    let text = root.read_kernel_file("/proc/loadavg").unwrap_or_default();
    text.split_ascii_whitespace().next().and_then(|field| field.parse().ok()).unwrap_or(0.0)
}

/// Memory: all of it, and what is not available to programs.
pub(crate) fn memory(root: &Root) -> Usage {
    let text = root.read_kernel_file("/proc/meminfo").unwrap_or_default();
    let bytes = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kilobytes = line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok());
        kilobytes.unwrap_or(0).saturating_mul(1024)
    };
    let total = bytes("MemTotal");
    Usage { total, used: total.saturating_sub(bytes("MemAvailable")) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn guest(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        for (path, text) in files {
            root.write_own(path, text.as_bytes(), 0o644).unwrap();
        }
        (dir, root)
    }

    #[test]
    fn two_containers_of_one_host_have_different_boot_ids() {
        let id = |start: &str| {
            let stat = format!("1 (a ) b) S 0 1 1 0 -1 4194560 9 9 9 9 1 2 3 4 20 0 1 0 {start} 1 2 3");
            let (_dir, root) = guest(&[("/proc/1/stat", &stat), ("/proc/sys/kernel/random/boot_id", "0f1e\n")]);
            boot_id(&root)
        };
        assert_eq!(id("4711"), "0f1e-4711");
        assert_ne!(id("4711"), id("4712"));
    }

    #[test]
    fn reads_load_and_memory_as_the_kernel_writes_them() {
        let (_dir, root) = guest(&[
            ("/proc/loadavg", "0.52 0.58 0.59 1/467 12345\n"),
            ("/proc/meminfo", "MemTotal:        1000 kB\nMemFree:          1 kB\nMemAvailable:     600 kB\n"),
        ]);
        assert!((load(&root) - 0.52).abs() < f64::EPSILON);
        assert_eq!(memory(&root), Usage { total: 1_024_000, used: 409_600 });
    }

    #[test]
    fn a_guest_without_proc_reports_zeros() {
        let (_dir, root) = guest(&[]);
        assert_eq!((boot_id(&root).as_str(), load(&root), memory(&root)), ("-0", 0.0, Usage::default()));
    }
}
