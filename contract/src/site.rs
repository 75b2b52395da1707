//! What a dealer says about one customer location, after validation. `contract::document` makes these from YAML.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::ids::{
    BridgeName, DealerName, InstanceName, Ipv4Cidr, Mac, NodeName, PoolId, ReleaseId, SecretName, SiteName, StorageId,
    TemplateName, Timezone, Vlan, Vmid, VmidRange,
};

/// A site definition.
#[derive(Debug, Clone, PartialEq)]
pub struct Site {
    /// Its name; equal to the directory's.
    pub site: SiteName,
    /// Who looks after it.
    pub dealer: DealerName,
    /// Which release its instances follow.
    pub release: ReleaseChoice,
    /// Set in every guest; absent: left alone.
    pub timezone: Option<Timezone>,
    /// Where its guests live.
    pub proxmox: Placement,
    /// Services that its instances share.
    pub shared: Shared,
    /// Whether guests of ours that the site no longer asks for are destroyed.
    pub prune: Prune,
    /// By name.
    pub instances: BTreeMap<InstanceName, Instance>,
}

/// How a site names its release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReleaseChoice {
    /// This one.
    Exact(ReleaseId),
    /// The one that HQ's signed `channels.yaml` gives for this name.
    Channel(String),
}

/// Where guests live on Proxmox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The node; absent: the one that has the template.
    pub node: Option<NodeName>,
    /// For disks.
    pub storage: StorageId,
    /// For the first interface.
    pub bridge: BridgeName,
    /// Tag of the first interface.
    pub vlan: Option<Vlan>,
    /// Every guest is a member; the token's rights hang on it.
    pub pool: PoolId,
    /// Numbers that guests of this site may have.
    pub vmids: VmidRange,
}

/// Services that several instances use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shared {
    /// The message broker.
    pub mqtt: Option<Mqtt>,
}

/// An MQTT broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mqtt {
    /// Name or address.
    pub host: String,
    /// Default 1883.
    pub port: u16,
    /// Absent: anonymous.
    pub username: Option<String>,
    /// Never the password itself.
    pub password: Option<SecretRef>,
}

/// `{ secret: name }`: a secret of the site by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRef {
    /// Its name.
    pub secret: SecretName,
}

/// Whether what is no longer asked for may be destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prune {
    /// It stays, and is shown.
    #[default]
    Refuse,
    /// It is stopped and destroyed, unless protected.
    Allow,
}

/// Whether an instance may ever be destroyed by `prune`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protection {
    /// It may.
    #[default]
    Unprotected,
    /// It may not; Proxmox refuses it too.
    Protected,
}

/// Whether a guest starts with its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Onboot {
    /// It does. The default: an appliance comes back after a power cut.
    #[default]
    Start,
    /// It stays off.
    Stay,
}

/// One guest that a site asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// What it is cloned from.
    pub template: TemplateName,
    /// A fixed number; absent: the lowest free one of the range.
    pub vmid: Option<Vmid>,
    /// What differs from the template's resources.
    pub resources: ResourceOverride,
    /// Its first interface.
    pub network: Network,
    /// Values for the template's inputs.
    pub wiring: BTreeMap<String, InputValue>,
    /// With the node.
    pub onboot: Onboot,
    /// Against destruction.
    pub protect: Protection,
}

/// Resources that an instance asks for instead of its template's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResourceOverride {
    /// Cores.
    pub cpu: Option<u32>,
    /// MiB.
    pub ram: Option<u32>,
    /// GiB; never less than the template's.
    pub disk: Option<u32>,
}

/// The first interface of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Network {
    /// How it gets its address.
    pub address: Address,
    /// Instead of the site's.
    pub vlan: Option<Vlan>,
    /// A fixed MAC; absent: one derived from site and instance.
    pub mac: Option<Mac>,
}

/// How an interface gets its IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Address {
    /// `ip: dhcp`.
    #[default]
    Dhcp,
    /// `ip: 192.168.20.10/24`.
    Static {
        /// Address and network.
        cidr: Ipv4Cidr,
        /// Default route.
        gateway: Option<Ipv4Addr>,
    },
}

/// What an instance gives for one input.
#[derive(Debug, Clone, PartialEq)]
pub enum InputValue {
    /// A string, number or truth value.
    Plain(serde_json::Value),
    /// `{ secret: name }`.
    Secret(SecretRef),
}
