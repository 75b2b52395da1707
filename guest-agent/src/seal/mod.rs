//! Sealing: a template's last step. It clears what makes the guest unlike others, records what it cleared, looks
//! again, and refuses to call a guest sealed that is not.

/// What is cleared.
pub(crate) mod list;
/// What is written down.
pub(crate) mod record;

use std::collections::BTreeSet;

use contract::bootstrap::Bootstrap;
use rustix::fs::FileType;

use crate::bootstrap;
use crate::error::{Error, Reason, Result};
use crate::files::{Attributes, Missing, Root, kind_of};
use crate::first_boot::{machine_id, ssh_keys};
use crate::layout;
use list::{Entry, Weight};
use record::SealRecord;

/// D-Bus's copy of the machine-id; on Debian a link to the original, which is kept.
const DBUS_MACHINE_ID: &str = "/var/lib/dbus/machine-id";

/// Where the unit looks for the agent.
const AGENT: &str = "/usr/local/bin/ctrlable-agent";

/// Where systemd looks for the unit, in its order of precedence.
const UNITS: [&str; 3] = [
    "/etc/systemd/system/ctrlable-agent.service",
    "/usr/lib/systemd/system/ctrlable-agent.service",
    "/lib/systemd/system/ctrlable-agent.service",
];

/// The link that `systemctl enable` makes.
const ENABLED: &str = "/etc/systemd/system/multi-user.target.wants/ctrlable-agent.service";

/// Seals the guest below `root`. The errors are everything that keeps it from being sealed.
pub(crate) fn seal(root: &Root) -> std::result::Result<SealRecord, Vec<Error>> {
    // First whether it can be sealed at all: a refusal for a missing file must not have cleared anything.
    let bootstrap = preconditions(root)?;
    let entries = list::entries(root).map_err(|error| vec![error])?;
    let record = clear(root, &bootstrap, &entries).map_err(|error| vec![error])?;
    let leftovers = leftovers(root, &entries);
    if leftovers.is_empty() { Ok(record) } else { Err(leftovers) }
}

/// Everything that keeps the guest below `root` from being a sealed template; empty when it is one.
pub(crate) fn check(root: &Root) -> Vec<Error> {
    let mut problems = preconditions(root).err().unwrap_or_default();
    match SealRecord::load(root) {
        Ok(Some(_)) => {}
        Ok(None) => problems.push(Error::new(Reason::NotSealed, format!("there is no {}", layout::SEAL))),
        Err(error) => problems.push(error),
    }
    match list::entries(root) {
        Ok(entries) => problems.extend(leftovers(root, &entries)),
        Err(error) => problems.push(error),
    }
    problems
}

fn preconditions(root: &Root) -> std::result::Result<Bootstrap, Vec<Error>> {
    let mut problems = Vec::new();
    let bootstrap = match bootstrap::load(root) {
        Ok(bootstrap) => {
            if bootstrap.claim.expose().is_empty() {
                let message = format!("{} has no claim any more", contract::bootstrap::PATH);
                problems.push(Error::new(Reason::BootstrapClaimUsed, message));
            }
            Some(bootstrap)
        }
        Err(error) => {
            problems.push(error);
            None
        }
    };
    let is = |path: &str, kind: FileType| root.stat(path).ok().flatten().is_some_and(|stat| kind_of(&stat) == kind);
    // Links are looked at, not followed: whether the target is sound is for the unit's own path to say.
    if !is(ENABLED, FileType::Symlink) {
        problems.push(Error::new(Reason::UnitNotEnabled, format!("there is no link {ENABLED}")));
    }
    // On a merged-/usr system `/lib` is a link, which counts as absent here; `/usr/lib` is then the same place.
    if !UNITS.iter().any(|unit| is(unit, FileType::RegularFile)) {
        problems.push(Error::new(Reason::UnitNotEnabled, format!("there is no {}", UNITS.join(" nor "))));
    }
    let executable = root.stat(AGENT).ok().flatten();
    if !executable.is_some_and(|stat| kind_of(&stat) == FileType::RegularFile && stat.st_mode & 0o111 != 0) {
        problems.push(Error::new(Reason::AgentMissing, format!("{AGENT} is not an executable file")));
    }
    match bootstrap {
        Some(bootstrap) if problems.is_empty() => Ok(bootstrap),
        _ => Err(problems),
    }
}

fn clear(root: &Root, bootstrap: &Bootstrap, entries: &[Entry]) -> Result<SealRecord> {
    // Sealed again, the ids are gone already: the first record still knows them.
    let earlier = SealRecord::load(root).ok().flatten();
    let machine_id = match machine_id::read(root)? {
        Some(id) => Some(machine_id::digest(&id)?),
        None => earlier.as_ref().and_then(|earlier| earlier.machine_id.clone()),
    };
    let mut ssh_host_keys = ssh_keys::fingerprints(root)?;
    if ssh_host_keys.is_empty() {
        ssh_host_keys = earlier.map(|earlier| earlier.ssh_host_keys).unwrap_or_default();
    }

    let mut cleared = BTreeSet::new();
    let Some(top) = root.directory("/", Missing::Accept)? else {
        return Err(Error::new(Reason::FileIo, "the root directory vanished"));
    };
    let remove = |path: &str| -> Result<()> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        match root.directory(parent, Missing::Accept)? {
            Some(dir) => dir.remove_tree(name),
            None => top.remove_tree(name),
        }
    };
    for entry in entries {
        let paths = match list::find(root, &entry.pattern) {
            // Logs that lie elsewhere are not worth a refusal.
            Err(_) if entry.weight == Weight::Tidy => continue,
            paths => paths?,
        };
        for path in paths {
            remove(&path)?;
            cleared.insert(path);
        }
    }
    for path in [DBUS_MACHINE_ID, layout::STATUS] {
        if root.stat(path)?.is_some_and(|stat| kind_of(&stat) != FileType::Symlink) {
            remove(path)?;
            cleared.insert(path.to_owned());
        }
    }
    if let Some(state) = root.directory(layout::STATE_DIR, Missing::Accept)? {
        for name in state.names()?.into_iter().map(|name| format!("{}/{name}", layout::STATE_DIR)) {
            if name != layout::SEAL {
                remove(&name)?;
                cleared.insert(name);
            }
        }
    }
    if root.read(layout::MACHINE_ID, layout::SMALL_FILE)?.is_none_or(|content| !content.bytes.is_empty()) {
        cleared.insert(layout::MACHINE_ID.to_owned());
    }
    root.write(layout::MACHINE_ID, b"", Attributes { mode: machine_id::MODE, owner: root.owner() })?;

    let record = SealRecord {
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        release: bootstrap.release.clone(),
        template: bootstrap.template.clone(),
        machine_id,
        ssh_host_keys,
        cleared: cleared.into_iter().collect(),
    };
    record.save(root)?;
    Ok(record)
}

/// What is still there after clearing.
fn leftovers(root: &Root, entries: &[Entry]) -> Vec<Error> {
    let mut found = Vec::new();
    let leftover = |path: &str, what: &str| Error::new(Reason::SealLeftover, format!("{path} {what}"));
    for entry in entries.iter().filter(|entry| entry.weight == Weight::Identity) {
        match list::find(root, &entry.pattern) {
            Ok(paths) => found.extend(paths.iter().map(|path| leftover(path, "is still there"))),
            Err(error) => found.push(error),
        }
    }
    match root.read(layout::MACHINE_ID, layout::SMALL_FILE) {
        Ok(Some(content)) if content.bytes.is_empty() && content.attributes.mode == machine_id::MODE => {}
        Ok(Some(_)) => found.push(leftover(layout::MACHINE_ID, "is not an empty file of mode 0444")),
        Ok(None) => found.push(leftover(layout::MACHINE_ID, "is missing: systemd would ask for a first-boot set-up")),
        Err(error) => found.push(error),
    }
    match root.stat(DBUS_MACHINE_ID) {
        Ok(Some(stat)) if kind_of(&stat) != FileType::Symlink => {
            found.push(leftover(DBUS_MACHINE_ID, "is still there"));
        }
        Ok(_) => {}
        Err(error) => found.push(error),
    }
    match root
        .directory(layout::STATE_DIR, Missing::Accept)
        .and_then(|dir| dir.map_or(Ok(Vec::new()), |dir| dir.names()))
    {
        Ok(names) => {
            let names =
                names.iter().map(|name| format!("{}/{name}", layout::STATE_DIR)).filter(|name| name != layout::SEAL);
            found.extend(names.map(|name| leftover(&name, "is still there")));
        }
        Err(error) => found.push(error),
    }
    found
}

#[cfg(test)]
mod tests;
