//! From an assignment to a decided outcome: files, units, probes; and back, if those do not come up.

use std::time::Duration;

use contract::assignment::{AssignedFile, Assignment, Probe};
use contract::health::{UnitHealth, WiringOutcome};
use contract::ids::{FileOwner, GuestPath, UnitName};
use serde_json::Value;
use tokio::time::{Instant, sleep};
use zeroize::Zeroizing;

use super::transaction::{Change, FILE_LIMIT, Progress, Recovered, Stage, Transaction};
use crate::dbus::{Readiness, SystemBus};
use crate::error::{Error, Reason, Result};
use crate::files::{Attributes, FileContent, Owner, Root};
use crate::{layout, log, probes};

/// How long units, and then probes, may take to come up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadlines {
    /// For all units to be active.
    pub units: Duration,
    /// For all probes to hold.
    pub probes: Duration,
}

impl Default for Deadlines {
    /// A minute each: the slowest appliance of the first release is up in half of that on a small node.
    fn default() -> Self {
        Self { units: Duration::from_secs(60), probes: Duration::from_secs(60) }
    }
}

/// First pause between two looks at units or probes; it doubles up to [`LAST_PAUSE`]. Most services are up at once.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// Longest pause between two looks.
const LAST_PAUSE: Duration = Duration::from_millis(500);

/// A service that is active because it was forked ([`Readiness::Assumed`]) may still fall over its settings. Where no
/// probe of a port or page would notice, it has to stay up this long.
const SETTLE: Duration = Duration::from_millis(300);

/// Mode of a file that neither the assignment nor the guest has one for.
const NEW_FILE_MODE: u32 = 0o600;

/// Set-uid, set-gid and sticky bits, and the right of everybody to write.
const HARMFUL_BITS: u32 = 0o7002;

/// Paths that wiring may not touch, themselves and below: what the agent stands on, the kernel's, and who may log in.
const FORBIDDEN: &[&str] = &[
    "/dev",
    "/proc",
    "/sys",
    "/etc/ctrlable",
    layout::STATE_DIR,
    "/run/ctrlable-agent",
    layout::MACHINE_ID,
    "/usr/local/bin/ctrlable-agent",
    "/etc/systemd/system/ctrlable-agent.service",
    "/etc/passwd",
    "/etc/shadow",
    "/etc/group",
    "/etc/gshadow",
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/pam.d",
    "/root/.ssh",
];

/// Makes `assignment` true in the guest, or leaves the guest as it was.
pub(crate) async fn apply<B: SystemBus>(
    root: &Root,
    bus: &B,
    assignment: &Assignment,
    deadlines: Deadlines,
) -> WiringOutcome {
    let changes = match prepare(root, &assignment.files) {
        Ok(changes) => changes,
        Err(error) => return refused(&error),
    };
    let changed: Vec<GuestPath> = changes.iter().map(|change| change.path.clone()).collect();
    if changes.is_empty() {
        return match bring_up(bus, assignment, Restart::IfDown, deadlines).await {
            Ok(()) => WiringOutcome::Applied { changed },
            Err(error) => put_back(&error),
        };
    }
    let mut transaction = match Transaction::new(root, assignment.generation, changes, &assignment.units) {
        Ok(transaction) => transaction,
        Err(error) => return refused(&error),
    };
    if let Err(error) = write(&mut transaction) {
        return match transaction.put_back() {
            Ok(()) => refused(&error),
            Err(worse) => refused(&worse),
        };
    }
    let failure = match transaction.restarting() {
        Ok(()) => restart_and_wait(bus, assignment, &changed, deadlines).await.err(),
        Err(error) => Some(error),
    };
    let Some(error) = failure else {
        return match transaction.commit() {
            Ok(()) => WiringOutcome::Applied { changed },
            Err(error) => put_back(&error),
        };
    };
    log::warn(&error);
    let restored = transaction.put_back();
    restart_again(bus, &assignment.units, &changed).await;
    put_back(&restored.err().unwrap_or(error))
}

/// After a crash in the middle: the files are back already, the units may still run with the new ones.
pub(crate) async fn finish_recovery<B: SystemBus>(bus: &B, recovered: &Recovered) {
    if recovered.stage == Stage::Restarting {
        restart_again(bus, &recovered.units, &[]).await;
    }
}

fn refused(error: &Error) -> WiringOutcome {
    WiringOutcome::Refused { reason: error.reason.label().to_owned(), detail: error.message.clone() }
}

fn put_back(error: &Error) -> WiringOutcome {
    WiringOutcome::PutBack { reason: error.reason.label().to_owned(), detail: error.message.clone() }
}

/// Reads every file and merges into it, in memory. The files that come out different are the changes.
fn prepare(root: &Root, files: &[AssignedFile]) -> Result<Vec<Change>> {
    let mut changes: Vec<Change> = Vec::new();
    for file in files {
        let at = |error: Error| Error::new(error.reason, format!("{}: {}", file.path, error.message));
        let path = file.path.as_str();
        if FORBIDDEN
            .iter()
            .any(|kept| path == *kept || path.strip_prefix(kept).is_some_and(|rest| rest.starts_with('/')))
        {
            return Err(Error::new(Reason::ForbiddenPath, format!("{path} is not for wiring to change")));
        }
        let Value::Object(wanted) = file.merge.expose() else {
            return Err(at(Error::new(Reason::BadMerge, "the merge is not an object")));
        };
        // A file may be named twice; the second merge then goes into the result of the first.
        let earlier = changes.iter().position(|change| change.path == file.path);
        let (before, current) = match earlier.map(|index| changes.remove(index)) {
            Some(change) => (change.before, Some(change.after)),
            None => {
                let before = root.read(path, FILE_LIMIT)?;
                (before.clone(), before)
            }
        };
        let fresh = Attributes { mode: NEW_FILE_MODE, owner: root.owner() };
        let current = current.unwrap_or(FileContent { bytes: Zeroizing::default(), attributes: fresh });
        let mode = file.mode.as_ref().map_or(current.attributes.mode, |mode| mode.bits());
        if file.mode.is_some() && mode & HARMFUL_BITS != 0 {
            return Err(at(Error::new(Reason::BadMode, format!("mode {mode:04o} is not acceptable"))));
        }
        let owner = match &file.owner {
            Some(name) => resolve(root, name).map_err(at)?,
            None => current.attributes.owner,
        };
        let bytes = super::merge(file.format, &current.bytes, wanted).map(Zeroizing::new).map_err(at)?;
        if bytes.len() as u64 > FILE_LIMIT {
            return Err(at(Error::new(Reason::FileTooLarge, format!("would be larger than {FILE_LIMIT} bytes"))));
        }
        let after = FileContent { bytes, attributes: Attributes { mode, owner } };
        if before.as_ref() != Some(&after) {
            changes.push(Change { path: file.path.clone(), before, after });
        }
    }
    Ok(changes)
}

/// Ids of a user and a group by the guest's own files; without a group, the user's own one.
fn resolve(root: &Root, name: &FileOwner) -> Result<Owner> {
    let (user, group) = match name.as_str().split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (name.as_str(), None),
    };
    let unknown =
        |what: &str, name: &str| Error::new(Reason::UnknownOwner, format!("the guest has no {what} `{name}`"));
    let lookup = |path: &str, name: &str| -> Result<Option<Vec<u32>>> {
        let text = root.read_text(path, layout::SMALL_FILE)?.unwrap_or_default();
        let line = text.lines().find(|line| line.split(':').next() == Some(name));
        Ok(line.map(|line| line.split(':').skip(2).take(2).filter_map(|id| id.parse().ok()).collect()))
    };
    // passwd(5): name:password:uid:gid:…; group(5): name:password:gid:members.
    let ids = lookup("/etc/passwd", user)?.ok_or_else(|| unknown("user", user))?;
    let (Some(uid), Some(own)) = (ids.first().copied(), ids.get(1).copied()) else { return Err(unknown("user", user)) };
    let gid = match group {
        None => own,
        Some(group) => {
            let ids = lookup("/etc/group", group)?;
            ids.and_then(|ids| ids.first().copied()).ok_or_else(|| unknown("group", group))?
        }
    };
    Ok(Owner { uid, gid })
}

fn write(transaction: &mut Transaction<'_>) -> Result<()> {
    while transaction.step()? == Progress::More {}
    Ok(())
}

/// Which units to restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Restart {
    /// All: their files changed.
    Always,
    /// Those that are not active.
    IfDown,
}

async fn restart_and_wait<B: SystemBus>(
    bus: &B,
    assignment: &Assignment,
    changed: &[GuestPath],
    deadlines: Deadlines,
) -> Result<()> {
    reload_if_units_changed(bus, changed).await?;
    bring_up(bus, assignment, Restart::Always, deadlines).await
}

async fn reload_if_units_changed<B: SystemBus>(bus: &B, changed: &[GuestPath]) -> Result<()> {
    if changed.iter().any(|path| path.as_str().starts_with("/etc/systemd/system/")) {
        bus.reload_manager().await?;
    }
    Ok(())
}

/// Restarts units in order, and waits until all of them are active and all probes hold.
async fn bring_up<B: SystemBus>(
    bus: &B,
    assignment: &Assignment,
    restart: Restart,
    deadlines: Deadlines,
) -> Result<()> {
    let before = match restart {
        Restart::Always => Vec::new(),
        Restart::IfDown => bus.unit_states(&assignment.units).await?,
    };
    let was_active = |unit: &&UnitName| before.iter().any(|state| state.unit == **unit && state.active == "active");
    let restarted: Vec<&UnitName> = assignment.units.iter().filter(|unit| !was_active(unit)).collect();
    for unit in &restarted {
        bus.restart_unit(unit).await?;
    }
    wait_for_units(bus, &assignment.units, deadlines.units).await?;
    let told_by_probe = assignment.probes.iter().any(|probe| matches!(probe, Probe::Http(_) | Probe::Tcp(_)));
    if !told_by_probe && any_assumed(bus, &restarted).await? {
        sleep(SETTLE).await;
        wait_for_units(bus, &assignment.units, deadlines.units).await?;
    }
    wait_for_probes(bus, &assignment.probes, deadlines.probes).await
}

async fn any_assumed<B: SystemBus>(bus: &B, units: &[&UnitName]) -> Result<bool> {
    for unit in units {
        if bus.readiness(unit).await? == Readiness::Assumed {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn wait_for_units<B: SystemBus>(bus: &B, units: &[UnitName], deadline: Duration) -> Result<()> {
    let end = Instant::now() + deadline;
    let mut pause = FIRST_PAUSE;
    loop {
        let states = bus.unit_states(units).await?;
        let down = |state: &&UnitHealth| state.active != "active";
        let Some(state) = states.iter().find(down) else { return Ok(()) };
        let UnitHealth { unit, active, sub } = state;
        // `failed` is final: systemd has given up. Everything else may still turn out well.
        if active == "failed" || active == "not-found" {
            return Err(Error::new(Reason::UnitFailed, format!("{unit} is {active} ({sub})")));
        }
        if Instant::now() >= end {
            let seconds = deadline.as_secs();
            let message = format!("{unit} is still {active} ({sub}) after {seconds} s");
            return Err(Error::new(Reason::UnitTimeout, message));
        }
        sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

async fn wait_for_probes<B: SystemBus>(bus: &B, wanted: &[Probe], deadline: Duration) -> Result<()> {
    let end = Instant::now() + deadline;
    let mut pause = FIRST_PAUSE;
    loop {
        let results = probes::run(bus, wanted).await;
        let failing = results.iter().find_map(|probe| Some((&probe.probe, probe.failure.as_ref()?)));
        let Some((probe, failure)) = failing else { return Ok(()) };
        if Instant::now() >= end {
            let message = format!("{probe} does not hold after {} s: {failure}", deadline.as_secs());
            return Err(Error::new(Reason::ProbeTimeout, message));
        }
        sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// Units run with the old files again, as far as they did before.
async fn restart_again<B: SystemBus>(bus: &B, units: &[UnitName], changed: &[GuestPath]) {
    if let Err(error) = reload_if_units_changed(bus, changed).await {
        log::warn(&error);
    }
    for unit in units {
        if let Err(error) = bus.restart_unit(unit).await {
            log::warn(&error);
        }
    }
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
