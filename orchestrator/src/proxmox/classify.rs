//! Answers to data or problems, by status and by the texts that Proxmox uses (pve-api 2.2, 3.2, 12.3).
//!
//! Texts are matched by part: their wording has changed between releases, and outer calls put words before inner ones.

use std::collections::BTreeMap;

use serde_json::Value;

use super::error::{LockScope, Problem, StorageTrouble};

/// An answer as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status; also Proxmox's own 595 to 599.
    pub status: u16,
    /// The reason phrase, when it is not the usual one of the status. Old nodes put the error only there.
    pub reason: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

/// Longest text of a server that goes into an error, in characters; a page of a foreign web server is longer.
const TEXT_LIMIT: usize = 500;

/// The `data` of a good answer, or the problem that it tells of.
pub fn interpret(answer: &Answer) -> Result<Value, Problem> {
    let body: Option<Value> = serde_json::from_slice(&answer.body).ok();
    if (200..300).contains(&answer.status) {
        return match body {
            Some(Value::Object(mut envelope)) if envelope.contains_key("data") => {
                Ok(envelope.remove("data").unwrap_or(Value::Null))
            }
            _ => Err(Problem::UnreadableAnswer("a good status, but no JSON object with `data`".to_owned())),
        };
    }
    let text = text_of(answer, body.as_ref());
    Err(match answer.status {
        400 => of_parameters(errors_of(body.as_ref()), text),
        401 => Problem::TokenRefused(text),
        403 => of_refusal(&text),
        501 | 505 | 506 => Problem::NotImplemented(text),
        595 => Problem::NodeUnreachable(text),
        // 502 to 504 are those of a reverse proxy in front of Proxmox: the call may have arrived.
        502..=504 | 596..=599 => Problem::Relay(answer.status, text),
        300..=399 => Problem::UnreadableAnswer(format!("a redirect ({}): is the URL right?", answer.status)),
        status => of_text(status, &text),
    })
}

/// What the server says, from wherever this version of Proxmox puts it.
fn text_of(answer: &Answer, body: Option<&Value>) -> String {
    let message = body.and_then(|body| body.get("message")).and_then(Value::as_str);
    let reason = answer.reason.as_deref().map(str::trim).filter(|reason| !reason.is_empty());
    let plain = match body {
        None => std::str::from_utf8(&answer.body).ok(),
        Some(_) => None,
    };
    let text = message.or(reason).or(plain).unwrap_or_default().trim();
    match text {
        "" => "Proxmox gave no text".to_owned(),
        text => text.chars().take(TEXT_LIMIT).collect(),
    }
}

fn errors_of(body: Option<&Value>) -> BTreeMap<String, String> {
    let errors = body.and_then(|body| body.get("errors")).and_then(Value::as_object);
    let short = |text: &str| text.trim().chars().take(TEXT_LIMIT).collect();
    errors
        .into_iter()
        .flatten()
        .map(|(key, text)| (key.clone(), text.as_str().map_or_else(|| text.to_string(), short)))
        .collect()
}

/// A 400: mostly faults of the caller, but some state hides in there too.
fn of_parameters(errors: BTreeMap<String, String>, text: String) -> Problem {
    for (key, text) in &errors {
        let known = match key.as_str() {
            "vmid" | "newid" if text.contains("already exists") => Some(Problem::VmidTaken),
            "upid" => Some(Problem::NoSuchTask),
            "storage" if text.contains("No such storage") => {
                Some(Problem::Storage(StorageTrouble::Missing, text.clone()))
            }
            "storage" if text.contains("does not support") => {
                Some(Problem::Storage(StorageTrouble::WrongContent, text.clone()))
            }
            _ if text.contains("Only root may use this option") => Some(Problem::RootOnly(format!("{key}: {text}"))),
            // What failed while it was applied to a running guest carries the text of its cause.
            _ if text.contains("unable to hotplug") || text.contains("unable to apply pending change") => {
                Some(of_text(400, text)).filter(|problem| !matches!(problem, Problem::Other { .. }))
            }
            _ => None,
        };
        if let Some(problem) = known {
            return problem;
        }
    }
    if errors.is_empty() { of_text(400, &text) } else { Problem::Parameter(errors) }
}

/// A 403.
fn of_refusal(text: &str) -> Problem {
    if text.contains("root@pam") || text.contains("not available with API token") {
        return Problem::RootOnly(text.to_owned());
    }
    let inner = text.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')')).map(|(inner, _)| inner.trim());
    if let Some(inner) = inner.filter(|inner| inner.contains("does not exist")) {
        return Problem::NotFound(inner.to_owned());
    }
    let named = inner.and_then(|inner| inner.split_once(", ")).filter(|(path, _)| path.starts_with('/'));
    let Some((path, privilege)) = named else {
        return Problem::MissingPrivilege { path: None, privilege: None };
    };
    let privilege = privilege.split_whitespace().next().unwrap_or(privilege).to_owned();
    let vmid = path.strip_prefix("/vms/").and_then(|vmid| vmid.parse().ok());
    match vmid {
        Some(vmid) => Problem::NotVisible { vmid, privilege },
        None => Problem::MissingPrivilege { path: Some(path.to_owned()), privilege: Some(privilege) },
    }
}

/// The text of a 500, or the exit text of a task (status 0).
pub fn of_text(status: u16, text: &str) -> Problem {
    let text = text.trim();
    let says = |part: &str| text.contains(part);
    let owned = || text.chars().take(TEXT_LIMIT).collect::<String>();
    let storage = |trouble| Problem::Storage(trouble, owned());
    match () {
        // Rights, as they come out of tasks.
        () if says("Permission check failed") => of_refusal(text),
        () if says("only root can ") || says("Only root may ") => Problem::RootOnly(owned()),

        // Locks, the narrow before the wide.
        () if says("no quorum") => Problem::NoQuorum,
        () if says("cfs-lock 'storage-") && says("got lock request timeout") => {
            Problem::LockTimeout(LockScope::Storage)
        }
        () if says("-locked command timed out") => Problem::LockTimeout(LockScope::Storage),
        () if says("got lock request timeout") => Problem::LockTimeout(LockScope::Cluster),
        () if says("can't lock file") && says("pve-storage-") => Problem::LockTimeout(LockScope::Storage),
        () if says("can't lock file") => Problem::LockTimeout(LockScope::Config),
        () if says("unable to create VM") && says("config file already exists") => Problem::VmidTaken,
        () if says("atomic file") && says("File exists") => Problem::VmidTaken,
        () if says("already exists on node") => Problem::VmidTaken,
        () if says("Lost '") && says("config lock") => Problem::StateChanged(owned()),
        () if says("is locked (") => Problem::Locked { lock: between(text, "is locked (", ")") },
        () if says("replication running") => Problem::Locked { lock: "migration".to_owned() },

        // Space and storages.
        () if says("not enough free space") || says("No space left on device") || says("out of space") => {
            Problem::StorageFull(owned())
        }
        () if says("free space in thin pool") => Problem::StorageFull(owned()),
        () if says("insufficient free space") || says("insufficient free extents") || says("Disk quota exceeded") => {
            Problem::StorageFull(owned())
        }
        () if says("storage '") && says("does not exist") => storage(StorageTrouble::Missing),
        () if says("storage '") && says("is disabled") => storage(StorageTrouble::Disabled),
        () if says("storage '") && says("is not available on node") => storage(StorageTrouble::NotOnNode),
        () if says("storage '") && says("is not online") => storage(StorageTrouble::Offline),
        () if says("content type '") && says("is not available") => storage(StorageTrouble::WrongContent),

        // Network.
        () if says("bridge '") && says("does not exist") => Problem::Bridge(owned()),
        () if says("bigger than bridge MTU") => Problem::Bridge(owned()),

        // What is not there.
        () if says("hostname lookup '") || says("no such cluster node") => Problem::UnknownNode(owned()),
        () if says("Configuration file '") && says("does not exist") => Problem::NotFound(owned()),
        () if says("unable to find configuration file for") => Problem::NotFound(owned()),
        () if (says("pool '") || says("snapshot '") || says("resource '")) && says("does not exist") => {
            Problem::NotFound(owned())
        }

        // The guest's state.
        () if says("guest agent is not running") || says("No QEMU guest agent") => Problem::AgentUnavailable(owned()),
        () if says("command 'guest-") && says("got timeout") => Problem::AgentUnavailable(owned()),
        () if says("detected modified configuration") || says("checksum mismatch") => Problem::DigestMismatch,
        () if says("protection mode enabled") => Problem::Protected,
        () if says("already running") => Problem::AlreadyRunning,
        () if says("container did not stop") || says("powerdown failed - got timeout") => Problem::ShutdownTimeout,
        () if says("still in use by linked clone") || says("used in HA resources") => Problem::InUse(owned()),
        () if says("unexpected state change") || says("interrupted by signal") => Problem::StateChanged(owned()),
        () if says("if it's a template") || says("convert a template") || says("unable to create template") => {
            Problem::TemplateState(owned())
        }
        () if says("container is running") || says("is running - destroy failed") => Problem::StillRunning,
        () if says("a running container") || says("CT is running") => Problem::StillRunning,
        () if says(" not running") => Problem::NotRunning,

        () if text.starts_with("400 Parameter verification failed") => {
            Problem::Parameter(BTreeMap::from([("task".to_owned(), owned())]))
        }
        () => Problem::Other { status, text: owned() },
    }
}

/// The part of `text` between two others; empty if they are not there.
fn between(text: &str, before: &str, after: &str) -> String {
    let rest = text.split_once(before).map_or("", |(_, rest)| rest);
    rest.split_once(after).map_or("", |(inner, _)| inner).to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::error::{Disposition, Effect};
    use super::*;

    fn answer(status: u16, reason: &str, body: &str) -> Answer {
        let reason = (!reason.is_empty()).then(|| reason.to_owned());
        Answer { status, reason, body: body.as_bytes().to_vec() }
    }

    fn reason_of(status: u16, reason: &str, body: &str) -> &'static str {
        interpret(&answer(status, reason, body)).unwrap_err().reason()
    }

    #[test]
    fn the_three_places_of_an_error_text() {
        assert_eq!(reason_of(500, "CT is locked (disk)", r#"{"data":null}"#), "locked");
        assert_eq!(reason_of(500, "", r#"{"data":null,"message":"CT is locked (disk)\n"}"#), "locked");
        assert_eq!(reason_of(501, "", "chunked transfer encoding not supported"), "not-implemented");
        assert_eq!(reason_of(500, "", ""), "other");
    }

    #[test]
    fn texts_that_no_recorded_node_gave() {
        for (text, reason) in [
            ("clone failed: cfs-lock 'storage-nfs' error: got lock request timeout", "lock-timeout"),
            ("can't add VM 105 to pool 'p': cfs-lock 'file-user_cfg' error: got lock request timeout", "lock-timeout"),
            ("can't lock file '/var/lock/pve-manager/pve-storage-local' - got timeout", "lock-timeout"),
            ("'storage-nfs'-locked command timed out - aborting", "lock-timeout"),
            ("cfs-lock 'file-user_cfg' error: no quorum!", "no-quorum"),
            ("cluster not ready - no quorum?", "no-quorum"),
            ("clone failed: zfs error: cannot create 'rpool/x': out of space", "storage-full"),
            ("clone failed: write failed: No space left on device", "storage-full"),
            ("not enough free space (100 < 200)", "storage-full"),
            ("storage 'nas' is not online", "storage-problem"),
            ("content type 'rootdir' is not available or configured on storage 'nas'", "storage-problem"),
            ("close (rename) atomic file '/etc/pve/nodes/n/qemu-server/105.conf' failed: File exists", "vmid-taken"),
            ("unable to find configuration file for VM 5000 on node 'pve1'", "not-found"),
            ("unexpected state change", "state-changed"),
            ("Lost 'create' config lock, aborting.", "state-changed"),
            ("container did not stop", "shutdown-timeout"),
            ("VM quit/powerdown failed - got timeout", "shutdown-timeout"),
            ("you can't start a CT if it's a template", "template-state"),
            ("403 Permission check failed (/vms/900, VM.Backup)", "not-visible"),
            ("QEMU guest agent is not running", "agent-unavailable"),
            ("VM 105 is not running", "not-running"),
            ("job errors", "other"),
        ] {
            assert_eq!(of_text(0, text).reason(), reason, "{text}");
        }
    }

    #[test]
    fn refusals_name_what_is_missing() {
        let problem = |text: &str| of_refusal(text);
        assert_eq!(
            problem("Permission check failed (/storage/local, Datastore.AllocateSpace)"),
            Problem::MissingPrivilege {
                path: Some("/storage/local".to_owned()),
                privilege: Some("Datastore.AllocateSpace".to_owned())
            }
        );
        assert_eq!(
            problem("Permission check failed (/vms/900, VM.Audit)"),
            Problem::NotVisible { vmid: 900.try_into().unwrap(), privilege: "VM.Audit".to_owned() }
        );
        assert_eq!(problem("Permission check failed"), Problem::MissingPrivilege { path: None, privilege: None });
        assert_eq!(
            problem("Permission check failed (/, Sys.Modify for modifying tag 'x')"),
            Problem::MissingPrivilege { path: Some("/".to_owned()), privilege: Some("Sys.Modify".to_owned()) }
        );
        assert_eq!(problem("Permission check failed (pool 'x' does not exist)").reason(), "not-found");
        assert_eq!(problem("Permission check failed (user != root@pam)").reason(), "root-only");
    }

    #[test]
    fn what_to_do_depends_on_what_the_call_may_have_done() {
        let relay = interpret(&answer(596, "Connection timed out", "")).unwrap_err();
        assert!(matches!(relay.disposition(Effect::Read), Disposition::Retry { .. }));
        assert_eq!(relay.disposition(Effect::Change), Disposition::Uncertain);
        let bridge = of_text(500, "bridge 'vmbr77' does not exist");
        assert_eq!(bridge.disposition(Effect::ConfigWrite), Disposition::Uncertain);
        assert_eq!(bridge.disposition(Effect::Change), Disposition::GiveUp);
        let lock = of_text(500, "can't lock file '/run/lock/lxc/pve-config-940.lock' - got timeout");
        assert!(matches!(lock.disposition(Effect::ConfigWrite), Disposition::Retry { .. }));
    }

    #[test]
    fn a_storage_lock_inside_a_400_is_not_a_fault_of_the_caller() {
        let body = r#"{"data":null,"message":"Parameter verification failed.\n","errors":{"mp0":
            "unable to apply pending change mp0 : can't lock file '/var/lock/pve-manager/pve-storage-x' - got timeout\n"}}"#;
        let problem = interpret(&answer(400, "Parameter verification failed.", body)).unwrap_err();
        assert_eq!(problem, Problem::LockTimeout(LockScope::Storage));
        assert_eq!(problem.disposition(Effect::ConfigWrite), Disposition::Uncertain);
    }
}
