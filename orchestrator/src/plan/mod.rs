//! What would have to be done: a pure function of what is wanted, what is there, and what was promised before.
//!
//! No clock, no network, no database: [`plan`] called twice with the same arguments gives the same answer, byte for
//! byte. The same [`Plan`] is printed by the command line, drawn by the page and executed by `apply`.

mod compare;
mod decide;
mod desired;
mod identity;
mod observed;
mod place;
mod remove;
mod text;

use contract::ids::{
    InstanceName, Ipv4Cidr, Mac, NodeName, PoolId, ReleaseId, SiteName, StorageId, TemplateName, Vmid,
};
use contract::manifest::GuestKind;
use serde::Serialize;
use sha2::{Digest, Sha256};

pub use decide::plan;
pub use desired::{Desired, DesiredInstance, WiringDigest, Wished};
pub use identity::mac_for;
pub use observed::{
    Ledger, Made, Observed, ObservedAgent, ObservedGuest, ObservedNet, ObservedStorage, ObservedTemplate, Owner, Power,
    Reservation, Settings, Window,
};
pub use text::{Palette, describe, render};

/// Everything that one pass would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The site.
    pub site: SiteName,
    /// The revision that asks for it, or `checkout` for files that are not in git.
    pub revision: String,
    /// The release that it follows.
    pub release: ReleaseId,
    /// One entry per instance, wanted or not, by name.
    pub instances: Vec<InstancePlan>,
}

/// What one instance needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InstancePlan {
    /// The instance.
    pub instance: InstanceName,
    /// Its number: reserved, or the one that it would get.
    pub vmid: Option<Vmid>,
    /// Its MAC address.
    pub mac: Option<Mac>,
    /// What to do, in order; empty when nothing is to be done, or when nothing can be.
    pub steps: Vec<Step>,
    /// Why nothing can be done although something should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked: Option<Blocked>,
    /// What a person should know about it although nothing is to be done.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// One thing to do, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What.
    #[serde(flatten)]
    pub action: Action,
    /// Why.
    pub because: Cause,
}

/// The field that asks for a step, and what was observed instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// `sites/acme-hq/site.yaml:23 instances.zigbee.network.ip`.
    pub field: String,
    /// What was observed, as a short clause.
    pub observed: String,
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}; {}", self.field, self.observed)
    }
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "action")]
pub enum Action {
    /// Copies a template into a new guest.
    Clone {
        /// The template.
        template: TemplateName,
        /// Its number; absent in a rehearsal, which has no node to look at.
        from: Option<Vmid>,
        /// Where it lives.
        node: NodeName,
        /// Container or virtual machine.
        kind: GuestKind,
        /// Where the disk goes.
        storage: StorageId,
        /// The new guest's pool.
        pool: PoolId,
    },
    /// Sets what differs in the guest's configuration.
    Configure {
        /// Where it lives.
        node: NodeName,
        /// Container or virtual machine.
        kind: GuestKind,
        /// What differs.
        changes: Vec<Change>,
    },
    /// Makes the root disk larger.
    Grow {
        /// Where it lives.
        node: NodeName,
        /// Container or virtual machine.
        kind: GuestKind,
        /// GiB.
        to: u32,
    },
    /// Numbers a new assignment; the agent fetches it at once.
    Wire,
    /// Backs the guest up.
    BackUp {
        /// Where it lives.
        node: NodeName,
        /// Where the archive goes.
        storage: StorageId,
    },
    /// Stops the guest.
    Stop {
        /// Where it lives.
        node: NodeName,
        /// Container or virtual machine.
        kind: GuestKind,
    },
    /// Starts the guest and lets it enrol if it has not.
    Start {
        /// Where it lives.
        node: NodeName,
        /// Container or virtual machine.
        kind: GuestKind,
    },
    /// Waits until the guest's agent has its certificate.
    AwaitEnrolment,
    /// Waits until the newest assignment is in force and the guest healthy.
    AwaitHealthy,
    /// Removes the guest and its disks.
    Destroy {
        /// Where it lives.
        node: NodeName,
        /// Container or virtual machine.
        kind: GuestKind,
    },
}

impl Action {
    /// The stable word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Clone { .. } => "clone",
            Self::Configure { .. } => "configure",
            Self::Grow { .. } => "grow",
            Self::Wire => "wire",
            Self::BackUp { .. } => "back-up",
            Self::Stop { .. } => "stop",
            Self::Start { .. } => "start",
            Self::AwaitEnrolment => "await-enrolment",
            Self::AwaitHealthy => "await-healthy",
            Self::Destroy { .. } => "destroy",
        }
    }

    /// Where it is done, for steps that reach the hypervisor.
    pub fn node(&self) -> Option<&NodeName> {
        match self {
            Self::Clone { node, .. }
            | Self::Configure { node, .. }
            | Self::Grow { node, .. }
            | Self::BackUp { node, .. }
            | Self::Stop { node, .. }
            | Self::Start { node, .. }
            | Self::Destroy { node, .. } => Some(node),
            Self::Wire | Self::AwaitEnrolment | Self::AwaitHealthy => None,
        }
    }

    /// Whether the guest does it, not we.
    pub fn is_wait(&self) -> bool {
        matches!(self, Self::AwaitEnrolment | Self::AwaitHealthy)
    }
}

/// One setting of a guest that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// What it should be.
    #[serde(flatten)]
    pub to: Setting,
    /// What it is.
    pub from: String,
    /// The field that says so.
    pub field: String,
}

/// One setting of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "setting", content = "to")]
pub enum Setting {
    /// Host name; the name of a VM.
    Hostname(contract::ids::Hostname),
    /// Cores.
    Cores(u32),
    /// MiB.
    Memory(u32),
    /// The first interface; what it does not name (firewall, rate, MTU) stays.
    Net0(Net0),
    /// With the node.
    Onboot(bool),
    /// Against destruction.
    Protection(bool),
    /// Tags; those of others stay.
    Tags(Vec<String>),
    /// No claim for enrolment: it was used, or its time is over.
    NoClaim,
}

impl Setting {
    /// The stable word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Hostname(_) => "hostname",
            Self::Cores(_) => "cores",
            Self::Memory(_) => "memory",
            Self::Net0(_) => "net0",
            Self::Onboot(_) => "onboot",
            Self::Protection(_) => "protection",
            Self::Tags(_) => "tags",
            Self::NoClaim => "claim",
        }
    }
}

/// The part of the first interface that a site decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Net0 {
    /// Bridge.
    pub bridge: String,
    /// VLAN tag.
    pub tag: Option<u16>,
    /// MAC address.
    pub mac: Option<Mac>,
    /// Address; absent: DHCP. A VM's address is its own matter.
    pub ip: Option<Ipv4Cidr>,
    /// Default route.
    pub gateway: Option<std::net::Ipv4Addr>,
}

impl std::fmt::Display for Net0 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.bridge)?;
        if let Some(tag) = self.tag {
            write!(f, " vlan {tag}")?;
        }
        match self.ip {
            Some(ip) => write!(f, ", {ip}")?,
            None => f.write_str(", dhcp")?,
        }
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        match self.mac {
            Some(mac) => write!(f, ", {mac}"),
            None => Ok(()),
        }
    }
}

/// Why nothing can be done for an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Blocked {
    /// Stable label.
    pub reason: &'static str,
    /// What is in the way.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

impl Plan {
    /// Whether there is nothing to do and nothing in the way.
    pub fn is_settled(&self) -> bool {
        self.instances.iter().all(|instance| instance.steps.is_empty() && instance.blocked.is_none())
    }

    /// A hash of everything in it, 64 hex digits: two plans with one hash do the same.
    pub fn hash(&self) -> String {
        // Serialising these types cannot fail: no maps with foreign keys, no floats.
        hex::encode(Sha256::digest(serde_json::to_vec(self).unwrap_or_default()))
    }

    /// One instance's part.
    pub fn instance(&self, name: &InstanceName) -> Option<&InstancePlan> {
        self.instances.iter().find(|instance| &instance.instance == name)
    }
}

#[cfg(test)]
mod tests;
