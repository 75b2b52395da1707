//! What is there, and what was promised before, as `plan` sees it.

use std::collections::{BTreeMap, BTreeSet};

use contract::ids::{
    Generation, InstanceName, Mac, NodeName, PveVersion, ReleaseId, SiteName, StorageId, TemplateName, Vmid,
};
use contract::manifest::GuestKind;
use serde::{Deserialize, Serialize};

use super::desired::WiringDigest;

/// Everything that was observed in one pass.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observed {
    /// Version of the node; absent on a laptop.
    pub version: Option<PveVersion>,
    /// Every guest that can be seen, ours or not.
    pub guests: BTreeMap<Vmid, ObservedGuest>,
    /// Templates of ours, from any release.
    pub templates: Vec<ObservedTemplate>,
    /// Storages of the nodes; empty on a laptop.
    pub storages: Vec<ObservedStorage>,
    /// Nodes whose storages could not be read.
    pub unreadable_nodes: BTreeSet<NodeName>,
    /// Agents by instance.
    pub agents: BTreeMap<InstanceName, ObservedAgent>,
}

/// A guest on the hypervisor.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedGuest {
    /// Container or virtual machine.
    pub kind: GuestKind,
    /// Where it lives.
    pub node: NodeName,
    /// Whether it runs.
    pub power: Power,
    /// Proxmox's lock, if it holds one.
    pub lock: Option<String>,
    /// Whose it is.
    pub owner: Owner,
    /// Its settings; absent when they cannot be read now.
    pub settings: Option<Settings>,
}

/// Whether a guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Power {
    /// It does.
    Running,
    /// It does not.
    Stopped,
}

/// Whose a guest is, by the marker in its description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// This orchestrator's project; `site` may be another site's.
    Ours {
        /// Whose.
        site: SiteName,
        /// Which.
        instance: InstanceName,
        /// What it was cloned from.
        release: ReleaseId,
        /// What it was cloned from.
        template: TemplateName,
    },
    /// Somebody else's: never touched.
    Foreign,
    /// It cannot be read now: never touched either, and nobody takes its place.
    Unknown,
}

/// The settings of a guest that a site decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Host name; the name of a VM.
    pub hostname: String,
    /// Cores.
    pub cores: Option<u32>,
    /// MiB.
    pub memory: Option<u32>,
    /// GiB of the root disk, rounded down.
    pub disk: Option<u32>,
    /// First interface: bridge, tag, MAC, `ip=`, `gw=` as they stand.
    pub net0: Option<ObservedNet>,
    /// With the node.
    pub onboot: bool,
    /// Against destruction.
    pub protection: bool,
    /// Lower-case.
    pub tags: BTreeSet<String>,
    /// Whether a claim for enrolment would still stand in it after its next start.
    pub claim: bool,
}

/// The first interface as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedNet {
    /// Bridge.
    pub bridge: String,
    /// VLAN tag.
    pub tag: Option<u16>,
    /// MAC address.
    pub mac: Option<Mac>,
    /// `dhcp`, `manual`, a CIDR, or absent.
    pub ip: Option<String>,
    /// Gateway.
    pub gateway: Option<String>,
}

/// A template of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedTemplate {
    /// Its number.
    pub vmid: Vmid,
    /// Where it lives.
    pub node: NodeName,
    /// Container or virtual machine.
    pub kind: GuestKind,
    /// The release that it was built from.
    pub release: ReleaseId,
    /// Its name in that release.
    pub template: TemplateName,
    /// GiB of its root disk.
    pub disk: Option<u32>,
}

/// A storage of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedStorage {
    /// Where.
    pub node: NodeName,
    /// Its name.
    pub storage: StorageId,
    /// Whether it can be used now.
    pub active: bool,
    /// What it may hold: `rootdir`, `images`, `backup`, …
    pub content: BTreeSet<String>,
    /// Bytes.
    pub available: u64,
}

/// What the ledger knows of an instance's agent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedAgent {
    /// Whether it has a certificate.
    pub enrolled: bool,
    /// Generation in force in the guest, or put back: what it last decided about.
    pub decided: Generation,
    /// Whether enrolment is open.
    pub window: Window,
}

/// Whether a guest may enrol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Window {
    /// We have not started it, or its time is over.
    #[default]
    Closed,
    /// We have just started it.
    Open,
}

/// What was promised before.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ledger {
    /// Numbers and MAC addresses by instance.
    pub reservations: BTreeMap<InstanceName, Reservation>,
    /// Numbers that turned out to belong to guests that we cannot see.
    pub taken: BTreeSet<Vmid>,
}

/// What one instance was promised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// Number.
    pub vmid: Vmid,
    /// MAC address.
    pub mac: Mac,
    /// Newest generation of its wiring; 0 before the first.
    pub generation: Generation,
    /// Digest of that generation.
    pub wiring: Option<WiringDigest>,
    /// Whether this ledger knows that it made the guest.
    pub guest: Made,
}

/// Whether a guest was ever made under a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Made {
    /// Not as far as this ledger knows.
    #[default]
    NotYet,
    /// It was.
    ByUs,
}
