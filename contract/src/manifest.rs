//! What a release says, after validation. `contract::document` makes these from YAML.
//!
//! Every type here holds only values that were checked; there is no other way to make them than from a document that
//! passed.

use std::collections::BTreeMap;

use crate::assignment::{FileFormat, Probe};
use crate::ids::{FileMode, FileOwner, GuestPath, PveVersion, ReleaseId, Sha256Digest, TemplateName, UnitName, Vmid};

/// A release: templates that were validated together.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// Its id; equal to the file's name.
    pub release: ReleaseId,
    /// Tag or commit of the builder scripts. Never a branch.
    pub community_scripts_ref: Option<String>,
    /// Oldest Proxmox that these templates were validated on.
    pub proxmox_min_version: PveVersion,
    /// By name.
    pub templates: BTreeMap<TemplateName, Template>,
}

/// One catalogue entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    /// Container or virtual machine.
    pub kind: GuestKind,
    /// Builder script below the pinned reference, such as `ct/zigbee2mqtt.sh`.
    pub builder: String,
    /// Version of the application.
    pub app_version: Option<String>,
    /// Operating system.
    pub os: Option<Os>,
    /// What an instance gets unless its site says otherwise.
    pub resources: Option<Resources>,
    /// Whether the container is unprivileged. Absent: yes.
    pub privilege: Privilege,
    /// Install Portainer beside Docker.
    pub portainer: bool,
    /// Version of the Home Assistant operating system.
    pub haos_version: Option<String>,
    /// Whether the appliance is rebranded.
    pub rebrand: bool,
    /// Base backup to restore.
    pub base_backup: Option<String>,
    /// Lowest number that a build may give the template.
    pub vmid_base: Option<Vmid>,
    /// How its services are pointed at others.
    pub wiring: Wiring,
    /// What must hold for an instance to be healthy.
    pub probes: Vec<Probe>,
    /// A prebuilt archive to import instead of building.
    pub artifact: Option<Artifact>,
}

/// What Proxmox runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "documents", derive(schemars::JsonSchema))]
pub enum GuestKind {
    /// A container.
    Lxc,
    /// A virtual machine.
    Vm,
}

/// Whether root in a container is root on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// Mapped to an ordinary user of the host.
    Unprivileged,
    /// Not mapped.
    Privileged,
}

/// Operating system of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Os {
    /// `debian`, `ubuntu`, …
    pub distro: String,
    /// Its version, such as `12`.
    pub version: String,
}

/// Processor, memory and disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Resources {
    /// Cores.
    pub cpu: u32,
    /// MiB.
    pub ram: u32,
    /// GiB.
    pub disk: u32,
}

/// A prebuilt template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Where it lies; any web server, because only the digest is believed.
    pub url: String,
    /// Of the whole file.
    pub sha256: Sha256Digest,
}

/// Inputs, and the files and units that they go to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Wiring {
    /// What an instance is given, by name (`[a-z][a-z0-9_]*`).
    pub inputs: BTreeMap<String, Input>,
    /// Files to merge into, in order; `merge` holds `${…}` references to inputs.
    pub files: Vec<WiredFile>,
    /// Units to restart when a file changed, and to watch.
    pub units: Vec<UnitName>,
}

/// One input of a template.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// What it holds.
    pub kind: InputKind,
    /// Whether an instance must have it.
    pub need: Need,
    /// What it is when neither the instance nor `from` gives one.
    pub default: Option<serde_json::Value>,
    /// For the dealer.
    pub help: Option<String>,
}

/// Whether an input may be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// An instance without it is refused.
    Required,
    /// Without it the keys that refer to it are left out of the merge.
    Optional,
}

/// What an input holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputKind {
    /// The site's MQTT service (`from: shared.mqtt`); referred to by part: `${mqtt.host}`.
    Mqtt,
    /// A URL with one of these schemes; empty: any.
    Url {
        /// Lower-case.
        schemes: Vec<String>,
    },
    /// Any text.
    String,
    /// A whole number.
    Integer,
    /// `true` or `false`.
    Boolean,
    /// `{ secret: name }`.
    Secret,
}

/// One file of a template's wiring.
#[derive(Debug, Clone, PartialEq)]
pub struct WiredFile {
    /// Where.
    pub path: GuestPath,
    /// How it is merged.
    pub format: FileFormat,
    /// Permission bits.
    pub mode: Option<FileMode>,
    /// Owner.
    pub owner: Option<FileOwner>,
    /// An object with `${…}` references in its strings.
    pub merge: serde_json::Value,
}
