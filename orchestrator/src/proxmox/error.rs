//! Why a call failed, and what to do next (pve-api 12.3 and 16).

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use contract::ids::Vmid;

use super::upid::Upid;

/// What a call may have done when its answer is lost or doubtful.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It only reads.
    Read,
    /// It starts a task or changes something else.
    Change,
    /// It writes a guest's configuration: a 500 does not prove that nothing was saved (pve-api 7).
    ConfigWrite,
}

/// What the caller should do after an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disposition {
    /// Nothing happened and the cause passes: call again, not before `after`.
    Retry {
        /// Least time to let pass. Add jitter.
        after: Duration,
    },
    /// Nothing happened, and nothing will until this does; look again in the next pass.
    Wait {
        /// What is awaited.
        for_what: &'static str,
    },
    /// It fails again until a person, the site or the release changes something.
    GiveUp,
    /// It may have happened, or the state is not what the call took for granted: read the state again, then decide.
    Uncertain,
}

/// Which lock was not got in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockScope {
    /// The guest's configuration.
    Config,
    /// A storage.
    Storage,
    /// A file of the cluster, such as the one of users and pools.
    Cluster,
}

/// What is wrong with a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageTrouble {
    /// There is none of this name.
    Missing,
    /// It is switched off.
    Disabled,
    /// Not on this node.
    NotOnNode,
    /// Its server does not answer.
    Offline,
    /// It does not take volumes of this kind.
    WrongContent,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// URL, token or CA cannot be used.
    Settings(String),
    /// No connection; nothing was sent.
    Unreachable(String),
    /// The node behind the one that was asked could not be reached (595).
    NodeUnreachable(String),
    /// The server is not the pinned one.
    TlsPin(String),
    /// The token is wrong, expired or switched off.
    TokenRefused(String),
    /// A privilege is missing. Proxmox does not always say which.
    MissingPrivilege {
        /// Where, such as `/storage/local`.
        path: Option<String>,
        /// Which; alternatives are joined by `|`.
        privilege: Option<String>,
    },
    /// The guest does not exist, or the token may not see it: Proxmox says the same of both to a pool-scoped token.
    NotVisible {
        /// The guest.
        vmid: Vmid,
        /// What would be needed if it exists.
        privilege: String,
    },
    /// Only root@pam by password may do this; no token can.
    RootOnly(String),
    /// The guest, pool or snapshot does not exist.
    NotFound(String),
    /// The cluster has no node of this name.
    UnknownNode(String),
    /// Another operation holds the guest.
    Locked {
        /// Proxmox's word for it: `clone`, `backup`, …
        lock: String,
    },
    /// Another call held a lock for too long.
    LockTimeout(LockScope),
    /// The number belongs to another guest.
    VmidTaken,
    /// No room for the volume.
    StorageFull(String),
    /// The storage cannot be used.
    Storage(StorageTrouble, String),
    /// The bridge does not exist on the node, or does not fit.
    Bridge(String),
    /// The cluster has lost its majority.
    NoQuorum,
    /// `protection` is set.
    Protected,
    /// It runs already.
    AlreadyRunning,
    /// It does not run.
    NotRunning,
    /// It runs and would have to be stopped.
    StillRunning,
    /// It is a template, or is none where one is needed.
    TemplateState(String),
    /// Linked clones or HA still need it.
    InUse(String),
    /// Somebody else changed the configuration since it was read.
    DigestMismatch,
    /// The source changed while it was cloned, or the new guest lost its lock.
    StateChanged(String),
    /// It did not shut down in time.
    ShutdownTimeout,
    /// The QEMU guest agent is off, not installed or not up yet.
    AgentUnavailable(String),
    /// Proxmox refused parameters.
    Parameter(BTreeMap<String, String>),
    /// This Proxmox does not know the call.
    NotImplemented(String),
    /// The answer of the node did not come through the relay (596 to 599).
    Relay(u16, String),
    /// The connection ended, or time ran out, after the request was sent.
    NoAnswer(String),
    /// An answer that this program cannot read.
    UnreadableAnswer(String),
    /// A task ended with an error; the inner problem is its cause.
    TaskFailed {
        /// The task.
        upid: Upid,
        /// Its exit text, sorted like any other.
        cause: Box<Problem>,
    },
    /// A task ended and nobody knows how: it crashed, or the node restarted.
    TaskOutcomeUnknown {
        /// The task.
        upid: Upid,
        /// What Proxmox says.
        text: String,
    },
    /// The time that the caller gave has passed and the task still runs.
    TaskStillRunning(Upid),
    /// The node does not know the task, or no longer.
    NoSuchTask,
    /// None of the above.
    Other {
        /// HTTP status; 0 for a task's exit text.
        status: u16,
        /// What Proxmox says.
        text: String,
    },
}

/// A call that failed. `Display` says what, where, why and what to do next; no secret is ever in it.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxmoxError(Box<Inner>);

#[derive(Clone, PartialEq, Eq)]
struct Inner {
    call: String,
    effect: Effect,
    problem: Problem,
}

impl ProxmoxError {
    /// For a call, named by verb and path.
    pub fn new(call: impl Into<String>, effect: Effect, problem: Problem) -> Self {
        Self(Box::new(Inner { call: call.into(), effect, problem }))
    }

    /// What went wrong.
    pub fn problem(&self) -> &Problem {
        &self.0.problem
    }

    /// Verb and path of the call.
    pub fn call(&self) -> &str {
        &self.0.call
    }

    /// What went wrong at the root: of a failed task its cause.
    pub fn cause(&self) -> &Problem {
        match &self.0.problem {
            Problem::TaskFailed { cause, .. } => cause,
            problem => problem,
        }
    }

    /// Stable label; of a failed task that of its cause.
    pub fn reason(&self) -> &'static str {
        self.0.problem.reason()
    }

    /// What the caller should do.
    pub fn disposition(&self) -> Disposition {
        self.0.problem.disposition(self.0.effect)
    }

    /// What a person should do.
    pub fn remedy(&self) -> &'static str {
        self.0.problem.remedy()
    }

    /// The same error with a problem that the caller knows better.
    pub(super) fn with_problem(mut self, problem: Problem) -> Self {
        self.0.problem = problem;
        self
    }
}

impl fmt::Display for ProxmoxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxmox, {}: {}; {}", self.0.call, self.0.problem, self.remedy())
    }
}

impl fmt::Debug for ProxmoxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {self}", self.reason())
    }
}

impl std::error::Error for ProxmoxError {}

impl Problem {
    /// Stable label; of a failed task that of its cause.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Settings(_) => "settings",
            Self::Unreachable(_) => "unreachable",
            Self::NodeUnreachable(_) => "node-unreachable",
            Self::TlsPin(_) => "tls-pin",
            Self::TokenRefused(_) => "token-refused",
            Self::MissingPrivilege { .. } => "missing-privilege",
            Self::NotVisible { .. } => "not-visible",
            Self::RootOnly(_) => "root-only",
            Self::NotFound(_) => "not-found",
            Self::UnknownNode(_) => "unknown-node",
            Self::Locked { .. } => "locked",
            Self::LockTimeout(_) => "lock-timeout",
            Self::VmidTaken => "vmid-taken",
            Self::StorageFull(_) => "storage-full",
            Self::Storage(..) => "storage-problem",
            Self::Bridge(_) => "bridge-problem",
            Self::NoQuorum => "no-quorum",
            Self::Protected => "protected",
            Self::AlreadyRunning => "already-running",
            Self::NotRunning => "not-running",
            Self::StillRunning => "still-running",
            Self::TemplateState(_) => "template-state",
            Self::InUse(_) => "in-use",
            Self::DigestMismatch => "digest-mismatch",
            Self::StateChanged(_) => "state-changed",
            Self::ShutdownTimeout => "shutdown-timeout",
            Self::AgentUnavailable(_) => "agent-unavailable",
            Self::Parameter(_) => "parameter",
            Self::NotImplemented(_) => "not-implemented",
            Self::Relay(..) => "relay",
            Self::NoAnswer(_) => "no-answer",
            Self::UnreadableAnswer(_) => "unreadable-answer",
            Self::TaskFailed { cause, .. } => match cause.reason() {
                "other" => "task-failed",
                reason => reason,
            },
            Self::TaskOutcomeUnknown { .. } => "task-outcome-unknown",
            Self::TaskStillRunning(_) => "task-still-running",
            Self::NoSuchTask => "no-such-task",
            Self::Other { .. } => "other",
        }
    }

    /// What the caller of a call with this effect should do.
    pub fn disposition(&self, effect: Effect) -> Disposition {
        // A 500 while a configuration is written leaves open whether it was saved, but for what Proxmox checks first.
        let saved_nothing = match effect {
            Effect::Read | Effect::Change => Disposition::GiveUp,
            Effect::ConfigWrite => Disposition::Uncertain,
        };
        match self {
            Self::Unreachable(_) | Self::NodeUnreachable(_) => retry(5),
            Self::LockTimeout(LockScope::Config) => retry(5),
            // Somebody else is being served; the lock was waited for 10 s already.
            Self::LockTimeout(LockScope::Cluster) => retry(10),
            // Work under a storage's lock may take 60 s.
            Self::LockTimeout(LockScope::Storage) => match effect {
                Effect::ConfigWrite => Disposition::Uncertain,
                _ => retry(20),
            },
            Self::Locked { .. } => Disposition::Wait { for_what: "the task that holds the guest's lock" },
            Self::NoQuorum => Disposition::Wait { for_what: "the cluster's quorum" },
            Self::AgentUnavailable(_) => Disposition::Wait { for_what: "the QEMU guest agent" },
            Self::StorageFull(_) => Disposition::Wait { for_what: "room on the storage" },
            Self::Storage(StorageTrouble::Disabled | StorageTrouble::Offline, _) => {
                Disposition::Wait { for_what: "the storage" }
            }
            Self::TaskStillRunning(_) => Disposition::Wait { for_what: "the end of the task" },
            Self::Relay(..) | Self::NoAnswer(_) => match effect {
                Effect::Read => retry(2),
                Effect::Change | Effect::ConfigWrite => Disposition::Uncertain,
            },
            Self::UnreadableAnswer(_) => match effect {
                Effect::Read => Disposition::GiveUp,
                Effect::Change | Effect::ConfigWrite => Disposition::Uncertain,
            },
            Self::VmidTaken
            | Self::AlreadyRunning
            | Self::NotRunning
            | Self::StillRunning
            | Self::DigestMismatch
            | Self::StateChanged(_)
            | Self::ShutdownTimeout
            | Self::TaskOutcomeUnknown { .. }
            | Self::NoSuchTask => Disposition::Uncertain,
            // The lock that made the task fail was gone with the task; nothing was written by it.
            Self::TaskFailed { cause, .. } => cause.disposition(Effect::Change),
            Self::Settings(_)
            | Self::TlsPin(_)
            | Self::TokenRefused(_)
            | Self::MissingPrivilege { .. }
            | Self::NotVisible { .. }
            | Self::RootOnly(_)
            | Self::NotFound(_)
            | Self::UnknownNode(_)
            | Self::Protected
            | Self::InUse(_)
            | Self::Parameter(_)
            | Self::NotImplemented(_) => Disposition::GiveUp,
            Self::Storage(..) | Self::Bridge(_) | Self::TemplateState(_) | Self::Other { .. } => saved_nothing,
        }
    }

    /// What a person should do.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Settings(_) => "correct the Proxmox part of the orchestrator's configuration",
            Self::Unreachable(_) => "check address, port 8006, firewall and that pveproxy runs",
            Self::NodeUnreachable(_) => "check that the node is up and the cluster's nodes reach each other",
            Self::TlsPin(_) => "compare with `pvenode cert info` on the node, then give the right CA or fingerprint",
            Self::TokenRefused(_) => "check token id, secret and expiry (`pveum user token list USER`)",
            Self::MissingPrivilege { .. } => "run `ctrlable doctor`; it prints what the token lacks",
            Self::NotVisible { .. } => "see whether the guest exists; if so, put it in the site's pool",
            Self::RootOnly(_) => "set it in the template as root; clones of containers inherit it",
            Self::NotFound(_) => "nothing is to be done if it was to be removed; else look where it went",
            Self::UnknownNode(_) => "name a node of this cluster in the site definition, or none",
            Self::Locked { .. } => "wait for its task; if none runs, use `pct unlock` or `qm unlock` on the host",
            Self::LockTimeout(_) => "it is tried again; many clones at once on a slow storage do this",
            Self::VmidTaken => "another number is taken; keep other guests out of the site's range",
            Self::StorageFull(_) => "free space on the storage, or name another one",
            Self::Storage(..) => "check the storage's definition, content types and state",
            Self::Bridge(_) => "name a bridge that the node has",
            Self::NoQuorum => "bring the missing nodes back; Proxmox writes nothing until then",
            Self::Protected => "clear `protection` of the guest, if it really is to go",
            Self::AlreadyRunning | Self::NotRunning | Self::StillRunning => "its state is read again",
            Self::TemplateState(_) => "check which guest is the template",
            Self::InUse(_) => "remove its linked clones, or take it out of HA, first",
            Self::DigestMismatch => "the configuration is read again",
            Self::StateChanged(_) => "leave the template stopped while it is cloned",
            Self::ShutdownTimeout => "see why the guest does not stop, or stop it hard",
            Self::AgentUnavailable(_) => "check that the guest has booted, has qemu-guest-agent and `agent: 1`",
            Self::Parameter(_) => "this is a fault of the program or of a value in the site definition; report it",
            Self::NotImplemented(_) => "use a supported Proxmox VE version (8.2 or newer)",
            Self::Relay(..) | Self::NoAnswer(_) => "the state is read again before anything else is done",
            Self::UnreadableAnswer(_) => "check that the URL leads to Proxmox; else report this",
            Self::TaskFailed { cause, .. } => match **cause {
                Self::Other { .. } => "read the task's log in Proxmox",
                ref cause => cause.remedy(),
            },
            Self::TaskOutcomeUnknown { .. } | Self::NoSuchTask => "the state is read again; see the node's log",
            Self::TaskStillRunning(_) => "see the task's log in Proxmox; it is looked at again",
            Self::Other { .. } => "see the node's log (`journalctl -u pvedaemon -u pveproxy`)",
        }
    }
}

fn retry(seconds: u64) -> Disposition {
    Disposition::Retry { after: Duration::from_secs(seconds) }
}

/// The sentence without its remedy.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settings(why) => write!(f, "the settings cannot be used: {why}"),
            Self::Unreachable(why) => write!(f, "no connection: {why}"),
            Self::NodeUnreachable(why) => write!(f, "the node cannot be reached by its cluster: {why}"),
            Self::TlsPin(why) => write!(f, "the server is not the pinned one: {why}"),
            Self::TokenRefused(why) => write!(f, "the API token is refused: {why}"),
            Self::MissingPrivilege { path: Some(path), privilege: Some(privilege) } => {
                write!(f, "the token lacks {privilege} on {path}")
            }
            Self::MissingPrivilege { .. } => f.write_str("the token lacks a privilege, Proxmox does not say which"),
            Self::NotVisible { vmid, privilege } => {
                write!(f, "guest {vmid} does not exist, or the token lacks {privilege} on it")
            }
            Self::RootOnly(text) => write!(f, "no API token may do this: {text}"),
            Self::NotFound(text) | Self::UnknownNode(text) => f.write_str(text),
            Self::Locked { lock } => write!(f, "the guest is locked ({lock})"),
            Self::LockTimeout(LockScope::Config) => f.write_str("the guest's configuration was in use for too long"),
            Self::LockTimeout(LockScope::Storage) => f.write_str("the storage was in use for too long"),
            Self::LockTimeout(LockScope::Cluster) => f.write_str("a file of the cluster was in use for too long"),
            Self::VmidTaken => f.write_str("the guest number is taken"),
            Self::StorageFull(text) => write!(f, "the storage is full: {text}"),
            Self::Storage(_, text) | Self::Bridge(text) | Self::TemplateState(text) => f.write_str(text),
            Self::NoQuorum => f.write_str("the cluster has no quorum"),
            Self::Protected => f.write_str("the guest is protected"),
            Self::AlreadyRunning => f.write_str("the guest runs already"),
            Self::NotRunning => f.write_str("the guest does not run"),
            Self::StillRunning => f.write_str("the guest is running"),
            Self::InUse(text) | Self::StateChanged(text) | Self::AgentUnavailable(text) => f.write_str(text),
            Self::DigestMismatch => f.write_str("somebody else changed the guest's configuration"),
            Self::ShutdownTimeout => f.write_str("the guest did not shut down in time"),
            Self::Parameter(errors) => {
                f.write_str("refused parameters")?;
                errors.iter().try_for_each(|(key, text)| write!(f, ", {key}: {text}"))
            }
            Self::NotImplemented(text) => write!(f, "not known to this Proxmox: {text}"),
            Self::Relay(status, text) => write!(f, "the node's answer did not come through ({status} {text})"),
            Self::NoAnswer(why) => write!(f, "no answer after the request was sent: {why}"),
            Self::UnreadableAnswer(why) => write!(f, "the answer cannot be read: {why}"),
            Self::TaskFailed { upid, cause } => write!(f, "task {upid} failed: {cause}"),
            Self::TaskOutcomeUnknown { upid, text } => write!(f, "nobody knows how task {upid} ended: {text}"),
            Self::TaskStillRunning(upid) => write!(f, "task {upid} takes longer than it was given"),
            Self::NoSuchTask => f.write_str("the node does not know the task"),
            Self::Other { status: 0, text } => f.write_str(text),
            Self::Other { status, text } => write!(f, "{status}: {text}"),
        }
    }
}
