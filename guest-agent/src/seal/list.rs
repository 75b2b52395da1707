//! What a seal clears, as absolute paths with `*` and `?`, and how those are found without following a link.

use rustix::fs::FileType;

use crate::error::{Error, Reason, Result};
use crate::files::{Dir, Missing, Root, kind_of};
use crate::layout;

/// How much it matters that a path is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weight {
    /// Two clones with it could be taken for one another, or it is a secret: a leftover refuses the seal.
    Identity,
    /// Of no use to a clone. A running guest writes it again at once (its own journal), so a leftover is accepted.
    Tidy,
}

/// One thing to clear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Path or glob.
    pub pattern: String,
    /// How much it matters.
    pub weight: Weight,
}

/// Removed from every template, besides the machine-id and the state of the agent itself.
const ALWAYS: &[(&str, Weight)] = &[
    // SSH host keys.
    ("/etc/ssh/ssh_host_*", Weight::Identity),
    // DHCP: leases and the DUIDs that servers recognise a client by.
    ("/var/lib/dhcp/*", Weight::Identity),
    ("/var/lib/dhcpcd/*", Weight::Identity),
    ("/var/lib/NetworkManager/*lease*", Weight::Identity),
    ("/var/lib/NetworkManager/secret_key", Weight::Identity),
    ("/var/lib/NetworkManager/seen-bssids", Weight::Identity),
    ("/var/lib/NetworkManager/timestamps", Weight::Identity),
    ("/var/lib/systemd/network/*", Weight::Identity),
    ("/run/systemd/netif/leases/*", Weight::Tidy),
    // Names of interfaces by the template's MAC address.
    ("/etc/udev/rules.d/70-persistent-net.rules", Weight::Identity),
    // Seeds and the key that encrypts service credentials.
    ("/var/lib/systemd/random-seed", Weight::Identity),
    ("/var/lib/urandom/random-seed", Weight::Identity),
    ("/var/lib/systemd/credential.secret", Weight::Identity),
    // Histories: builders type secrets.
    ("/root/.*_history", Weight::Identity),
    ("/root/.*hist", Weight::Identity),
    ("/root/.lesshst", Weight::Identity),
    ("/root/.viminfo", Weight::Identity),
    ("/home/*/.*_history", Weight::Identity),
    ("/home/*/.*hist", Weight::Identity),
    ("/home/*/.lesshst", Weight::Identity),
    ("/home/*/.viminfo", Weight::Identity),
    // Logs of the build, and what apt can fetch again.
    ("/var/log/journal/*", Weight::Tidy),
    ("/var/log/*.gz", Weight::Tidy),
    ("/var/log/*.[0-9]", Weight::Tidy),
    ("/var/log/wtmp", Weight::Tidy),
    ("/var/log/btmp", Weight::Tidy),
    ("/var/log/lastlog", Weight::Tidy),
    ("/var/log/auth.log", Weight::Tidy),
    ("/var/log/syslog", Weight::Tidy),
    ("/var/log/dpkg.log", Weight::Tidy),
    ("/var/log/apt/*", Weight::Tidy),
    ("/var/cache/apt/archives/*.deb", Weight::Tidy),
    ("/var/cache/apt/*.bin", Weight::Tidy),
];

/// What a sealing list may not name: without these a clone does not boot or does not find its orchestrator.
const UNTOUCHABLE: &[&str] = &["/etc/ctrlable", "/usr/local/bin", "/var/lib/ctrlable-agent", "/etc/systemd/system"];

/// Directories whose children are too much for one line of a list.
const TOO_BROAD: &[&str] =
    &["/etc", "/usr", "/var", "/var/lib", "/opt", "/home", "/root", "/bin", "/lib", "/sbin", "/srv"];

/// Everything that a seal of this guest clears: ours, then the lists of the template in order of their names.
pub(crate) fn entries(root: &Root) -> Result<Vec<Entry>> {
    let ours = ALWAYS.iter().map(|(pattern, weight)| Entry { pattern: (*pattern).to_owned(), weight: *weight });
    let mut entries: Vec<Entry> = ours.collect();
    let Some(dir) = root.directory(layout::SEAL_LISTS, Missing::Accept)? else { return Ok(entries) };
    for name in dir.names()?.into_iter().filter(|name| name.ends_with(".list")) {
        let path = format!("{}/{name}", layout::SEAL_LISTS);
        let text = root.read_text(&path, layout::SMALL_FILE)?.unwrap_or_default();
        for (index, line) in text.lines().enumerate() {
            let pattern = line.trim();
            if pattern.is_empty() || pattern.starts_with('#') {
                continue;
            }
            check(pattern)
                .map_err(|why| Error::new(Reason::SealList, format!("{path}:{}: `{pattern}` {why}", index + 1)))?;
            entries.push(Entry { pattern: pattern.to_owned(), weight: Weight::Identity });
        }
    }
    Ok(entries)
}

fn check(pattern: &str) -> std::result::Result<(), &'static str> {
    let Some(relative) = pattern.strip_prefix('/') else { return Err("is not absolute") };
    if relative.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err("has an empty part, `.` or `..`");
    }
    if let Some((parent, _)) = pattern.rsplit_once('/') {
        let wild = relative.rsplit('/').next().is_some_and(|last| last.starts_with('*') && last.len() == 1);
        if parent.is_empty() || TOO_BROAD.contains(&pattern) || wild && TOO_BROAD.contains(&parent) {
            return Err("is too broad");
        }
    }
    let covers = |kept: &str| {
        let (parts, kept): (Vec<_>, Vec<_>) = (relative.split('/').collect(), kept[1..].split('/').collect());
        parts.iter().zip(&kept).all(|(part, kept)| matches(part, kept))
    };
    if UNTOUCHABLE.iter().any(|kept| covers(kept)) { Err("would remove what the agent needs") } else { Ok(()) }
}

/// What a pattern names at present. A link on the way is an error, because what lies behind it would stay.
pub(crate) fn find(root: &Root, pattern: &str) -> Result<Vec<String>> {
    let Some(top) = root.directory("/", Missing::Accept)? else { return Ok(Vec::new()) };
    let parts: Vec<&str> = pattern.split('/').filter(|part| !part.is_empty()).collect();
    let mut found = Vec::new();
    descend(&top, "", &parts, &mut found)?;
    Ok(found)
}

fn descend(dir: &Dir, path: &str, parts: &[&str], found: &mut Vec<String>) -> Result<()> {
    let Some((part, rest)) = parts.split_first() else { return Ok(()) };
    let literal = !part.contains(['*', '?', '[']);
    let names = if literal { vec![(*part).to_owned()] } else { dir.names()? };
    for name in names.into_iter().filter(|name| literal || matches(part, name)) {
        let here = format!("{path}/{name}");
        let Some(stat) = dir.stat(&name)? else { continue };
        if rest.is_empty() {
            found.push(here);
        } else if kind_of(&stat) == FileType::Directory || literal {
            // `child` refuses a link by name; a wildcard merely does not match one.
            match dir.child(&name) {
                Ok(Some(child)) => descend(&child, &here, rest, found)?,
                Ok(None) => {}
                Err(error) if error.reason == Reason::SymlinkInPath => return Err(error),
                Err(_) => {}
            }
        }
    }
    Ok(())
}

/// Whether a file name matches a pattern of `*`, `?` and `[0-9]`-like ranges, as a shell does, dots included.
fn matches(pattern: &str, name: &str) -> bool {
    fn inner(pattern: &[char], name: &[char]) -> bool {
        match (pattern.first(), name.first()) {
            (None, None) => true,
            (Some('*'), _) => inner(&pattern[1..], name) || !name.is_empty() && inner(pattern, &name[1..]),
            (Some('?'), Some(_)) => inner(&pattern[1..], &name[1..]),
            (Some('['), Some(got)) => match pattern {
                ['[', low, '-', high, ']', rest @ ..] => (low..=high).contains(&got) && inner(rest, &name[1..]),
                _ => *got == '[' && inner(&pattern[1..], &name[1..]),
            },
            (Some(wanted), Some(got)) => wanted == got && inner(&pattern[1..], &name[1..]),
            _ => false,
        }
    }
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    inner(&pattern, &name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn globs_match_as_a_shell_does() {
        for (pattern, name) in [("ssh_host_*", "ssh_host_rsa_key"), (".*_history", ".bash_history"), ("*.[0-9]", "a.1")]
        {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("a?", "a"), ("*.deb", "deb"), ("*.[0-9]", "a.x"), ("", "a"), ("a", "")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn a_list_cannot_name_too_much_or_what_the_agent_needs() {
        for bad in [
            "relative",
            "/",
            "/etc",
            "/*",
            "/etc/*",
            "/var/lib/*",
            "/opt/../etc/shadow",
            "/etc//x",
            "/etc/ctrlable",
            "/etc/ctrl*/bootstrap.json",
            "/usr/local/bin/ctrlable-agent",
            "/var/lib/ctrlable-agent/seal.json",
            "/home",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
        for good in ["/opt/zigbee2mqtt/data/coordinator_backup.json", "/var/lib/mosquitto/*.db", "/etc/app/*"] {
            assert!(check(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn every_entry_of_ours_is_acceptable() {
        for (pattern, _) in ALWAYS {
            assert!(check(pattern).is_ok(), "{pattern}");
        }
    }
}
