//! Everything that can go wrong, each with a stable label and what to do next.

use std::fmt;

/// Result with the agent's own error.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Something that went wrong: a stable label, and a sentence that says what, where and why.
///
/// The sentence never holds a value of an assignment, a claim or a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} [{reason}]")]
pub(crate) struct Error {
    /// What machines look at.
    pub reason: Reason,
    /// What people read.
    pub message: String,
}

impl Error {
    /// An error with its label and sentence.
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// Defines [`Reason`] with its labels and remedies.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $label:literal, $remedy:literal;)*) => {
        /// Why something failed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// Every reason there is.
            #[cfg(test)]
            pub(crate) const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable label.
            pub(crate) fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)*
                }
            }

            /// What a person can do about it.
            pub(crate) fn remedy(self) -> &'static str {
                match self {
                    $(Self::$name => $remedy,)*
                }
            }
        }
    };
}

reasons! {
    /// The command line is not understood.
    Usage = "usage", "see ctrlable-agent --help";
    /// There is no bootstrap file.
    BootstrapMissing = "bootstrap-missing",
        "put the output of `ctrlable template bootstrap` at /etc/ctrlable/bootstrap.json, owner root, mode 0600";
    /// The bootstrap file does not say what it must.
    BootstrapInvalid = "bootstrap-invalid", "write it again with `ctrlable template bootstrap`";
    /// The bootstrap file can be read by others: it holds the claim.
    BootstrapMode = "bootstrap-mode", "chown root:root and chmod 0600 /etc/ctrlable/bootstrap.json";
    /// The claim was used: this guest, or the one it was cloned from, has enrolled already.
    BootstrapClaimUsed = "bootstrap-claim-used", "write it again with `ctrlable template bootstrap`";
    /// The service would not start in a clone.
    UnitNotEnabled = "unit-not-enabled",
        "install ctrlable-agent.service and link it into /etc/systemd/system/multi-user.target.wants";
    /// The program is not where the unit looks for it.
    AgentMissing = "agent-missing", "install the agent as /usr/local/bin/ctrlable-agent, mode 0755";
    /// Nobody sealed this guest, so its identity is not the agent's to reset.
    NotSealed = "not-sealed", "run `ctrlable-agent seal` at the end of the template build";
    /// Something that makes a guest unlike others is still there.
    SealLeftover = "seal-leftover", "remove it, or stop what writes it, and seal again";
    /// A line of a sealing list is not acceptable.
    SealList = "seal-list", "name an absolute path or glob below a directory, without `..`";
    /// The state file cannot be read. It is never taken for "none".
    StateUnreadable = "state-unreadable",
        "put a fresh bootstrap file in place, run `ctrlable-agent seal` and reboot the guest";
    /// A transition that the state machine does not have.
    StateTransition = "state-transition", "this is a fault of the agent: report it with `ctrlable-agent status --json`";
    /// The journal of an interrupted wiring cannot be read.
    RollbackUnreadable = "rollback-unreadable",
        "compare the files below /var/lib/ctrlable-agent/rollback with the guest's by hand, then remove that directory";
    /// A file could not be read or written.
    FileIo = "file-io", "look at the path named: free space, read-only file system, permissions";
    /// A part of a path is a symbolic link.
    SymlinkInPath = "symlink-in-path", "name the real path";
    /// Not a regular file.
    NotRegularFile = "not-regular-file", "name a regular file";
    /// Larger than the agent reads.
    FileTooLarge = "file-too-large", "move what is wired into a smaller file";
    /// A file is not what its format says.
    FileSyntax = "file-syntax", "repair the file in the template, or name another format";
    /// A merge that its format cannot hold.
    BadMerge = "bad-merge", "correct the wiring in the release manifest";
    /// A path that wiring may not touch: the agent's own, kernel file systems, accounts and identity.
    ForbiddenPath = "forbidden-path", "name a file of the appliance in the release manifest";
    /// Permission bits that let everybody write, or set-uid.
    BadMode = "bad-mode", "name harmless permission bits in the release manifest";
    /// No such user or group in the guest.
    UnknownOwner = "unknown-owner", "name a user and group that the template has";
    /// The host name is not one DNS label in lower case.
    HostnameInvalid = "hostname-invalid", "set the host name of the guest in Proxmox";
    /// The guest has no network interface of its own.
    NoInterface = "no-interface", "give the guest a network interface";
    /// The machine-id could not be made fresh.
    MachineId = "machine-id", "look at /etc/machine-id: it must be a regular file that root may replace";
    /// SSH host keys could not be made.
    SshHostKey = "ssh-host-key", "look at /etc/ssh: root must be able to write there";
    /// A key or certificate is not one.
    Credential = "credential", "put a fresh bootstrap file in place, run `ctrlable-agent seal` and reboot the guest";
    /// This is a copy of an enrolled guest, and its network interface came up after the agent had looked.
    IdentityChanged = "identity-changed", "restart ctrlable-agent.service: it begins anew";
    /// The system bus, or a service on it, does not answer.
    BusUnavailable = "bus-unavailable", "look at dbus.service in the guest";
    /// A bus call was refused.
    BusRefused = "bus-refused", "look at the journal of the service named";
    /// The host name of the assignment could not be set.
    HostnameNotSet = "hostname-not-set", "look at systemd-hostnamed in the guest";
    /// The time zone of the assignment could not be set.
    TimezoneNotSet = "timezone-not-set", "look at systemd-timedated in the guest, and whether tzdata is installed";
    /// A unit did not come up.
    UnitFailed = "unit-failed", "look at the unit's journal in the guest";
    /// A unit was not up in time.
    UnitTimeout = "unit-timeout", "look at the unit's journal in the guest";
    /// A probe did not hold in time.
    ProbeTimeout = "probe-timeout", "look at the service behind the probe";
    /// There is no network yet.
    NoRoute = "no-route", "wait, or look at the guest's network settings";
    /// No orchestrator answers.
    OrchestratorUnreachable = "orchestrator-unreachable", "look at the orchestrator's container and the network between";
    /// The other side is not the orchestrator that the template pins.
    OrchestratorUntrusted = "orchestrator-untrusted",
        "compare the CA in the bootstrap file with the orchestrator's; nothing was sent to the other side";
    /// The orchestrator refused, with a reason of its own.
    OrchestratorRefused = "orchestrator-refused", "follow the message; `ctrlable why INSTANCE` shows the other side";
    /// An answer is not what the protocol says.
    AnswerInvalid = "answer-invalid", "compare the versions of agent and orchestrator";
    /// The orchestrator speaks another version of the protocol.
    ProtocolMismatch = "protocol-mismatch", "upgrade the older one of agent and orchestrator";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Reason;

    #[test]
    fn labels_are_distinct_and_documented() {
        let labels: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.label()).collect();
        assert_eq!(labels.len(), Reason::ALL.len());
        let guide = include_str!("../../docs/agent.md");
        for reason in Reason::ALL {
            assert!(guide.contains(&format!("`{reason}`")), "docs/agent.md does not know {reason}");
        }
    }
}
