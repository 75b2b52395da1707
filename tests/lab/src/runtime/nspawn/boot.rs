//! Starting and ending guests.

use std::fs;
use std::time::Duration;

use super::cgroup::Group;
use super::configure;
use super::dhcp;
use super::disk::Disks;
use super::mounted::{Holder, Mounted};
use super::network::{self, Network};
use super::place::Place;
use super::tool;
use crate::runtime::{Address, Failure, GuestSpec, Vmid};

/// How long a guest's init may take until it listens to signals. It takes 100 ms; a loaded machine may take long.
const INIT_DEADLINE: Duration = Duration::from_secs(60);

/// `SIGRTMIN+4` as Linux and glibc number it: systemd(1) powers off.
const POWER_OFF: u32 = 38;

/// Bytes of the console's end that a failed start shows.
const CONSOLE_TAIL: usize = 800;

/// Boots a guest and returns once its init runs and listens to signals.
pub(super) fn start(place: &Place, disks: &Disks, network: &Network, spec: &GuestSpec) -> Result<(), Failure> {
    let group = Group::of_guest(place, spec.vmid)?;
    if group.populated() {
        return Err(format!("CT {} already running", spec.vmid));
    }
    if let Some(nic) = spec.nics.iter().find(|nic| nic.name.is_empty() || nic.name.contains(['/', '\0', '\n'])) {
        return Err(format!("`{}` is not the name of a network interface", nic.name.escape_debug()));
    }
    disks.check(spec.vmid)?;
    tidy(place, spec.vmid)?;
    boot(place, disks, network, spec, &group).inspect_err(|_| {
        let _ = group.kill().and_then(|()| tidy(place, spec.vmid));
    })
}

fn boot(place: &Place, disks: &Disks, network: &Network, spec: &GuestSpec, group: &Group) -> Result<(), Failure> {
    let join = group.limit_memory(spec.memory)?;
    let console = place.console(spec.vmid);
    fs::write(&console, "").map_err(|error| format!("{}: {error}", console.display()))?;
    let holder = Holder::Guest {
        hostname: configure::short_name(&spec.hostname),
        join: join.as_deref(),
        environment: &spec.environment,
    };
    let disk = Mounted::open(place, disks, spec.vmid, holder)?;
    configure::before_start(&disk, spec)?;
    network.attach(place, spec.vmid, &spec.nics)?;
    if spec.nics.iter().any(|nic| nic.address == Address::Dhcp) {
        dhcp::ensure(place, network)?;
    }
    disk.boot()?;
    if group.wait_for(INIT_DEADLINE, |group| group.init().is_some_and(listens)) {
        return Ok(());
    }
    let said = fs::read(&console).unwrap_or_default();
    let said = String::from_utf8_lossy(&said[said.len().saturating_sub(CONSOLE_TAIL)..]).into_owned();
    let launch = fs::read_to_string(place.guest(spec.vmid).join("launch.log")).unwrap_or_default();
    Err(format!("startup for container '{}' failed: {}", spec.vmid, format!("{launch}{said}").trim()))
}

/// Kills a guest, if it runs, and clears its network away.
pub(super) fn stop(place: &Place, vmid: Vmid) -> Result<(), Failure> {
    Group::of_guest(place, vmid)?.kill()?;
    tidy(place, vmid)
}

/// Asks a guest's init to power off and waits.
pub(super) fn shutdown(place: &Place, vmid: Vmid, timeout: Duration) -> Result<(), Failure> {
    let group = Group::of_guest(place, vmid)?;
    if let Some(init) = group.init() {
        // The shell's own: there is no safe call for a real-time signal.
        let asked = tool::run("sh", &["-c", r#"kill -"$0" "$1""#, &POWER_OFF.to_string(), &init.to_string()]);
        if let Err(error) = asked
            && group.init() == Some(init)
        {
            return Err(error);
        }
    }
    if !group.wait_empty(timeout) {
        return Err("container did not stop".to_owned());
    }
    tidy(place, vmid)
}

/// Removes what is left of a guest that does not run.
pub(super) fn tidy(place: &Place, vmid: Vmid) -> Result<(), Failure> {
    network::detach(place, vmid)?;
    Group::of_guest(place, vmid)?.remove()
}

/// Whether a process has arranged itself with the signal to power off. Before that it would be lost: the kernel
/// withholds signals without a handler from process 1 of a namespace.
fn listens(pid: u32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
        return false;
    };
    status.lines().any(|line| {
        let mask = line.strip_prefix("SigBlk:").or_else(|| line.strip_prefix("SigCgt:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .is_some_and(|mask| mask >> (POWER_OFF - 1) & 1 == 1)
    })
}
