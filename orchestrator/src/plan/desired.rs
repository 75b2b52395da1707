//! What is wanted, as `plan` sees it: made from a verified site, and from nothing else.

use std::collections::BTreeMap;

use contract::document::Outline;
use contract::ids::{
    Hostname, InstanceName, InvalidId, NodeName, PoolId, PveVersion, ReleaseId, SecretName, SiteName, StorageId,
    TemplateName, VmidRange,
};
use contract::ids::{Ipv4Cidr, Mac, Vlan, Vmid};
use contract::manifest::{GuestKind, Manifest};
use contract::site::{Address, Instance, Onboot, Protection, Prune, Site};

use crate::trust::CheckedSite;

/// Digests of an assignment, keyed with the site's own key, because it may hold secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WiringDigest {
    /// Of its content without its generation.
    pub content: String,
    /// Of each secret in it: tells that one changed, not what it is.
    pub secrets: BTreeMap<SecretName, String>,
}

impl WiringDigest {
    /// What changed since `before`, as a short clause; nothing when the content is the same.
    pub(super) fn since(&self, before: &Self) -> Option<String> {
        if self.content == before.content {
            return None;
        }
        let changed = |name: &&SecretName| before.secrets.get(*name).is_some_and(|old| *old != self.secrets[*name]);
        let names: Vec<&str> = self.secrets.keys().filter(changed).map(SecretName::as_str).collect();
        Some(match names.as_slice() {
            [] => "the assignment's content changed".to_owned(),
            [name] => format!("secret {name} changed"),
            several => format!("secrets {} changed", several.join(", ")),
        })
    }
}

/// A site's wishes.
#[derive(Debug, Clone)]
pub struct Desired {
    pub(super) site: SiteName,
    pub(super) revision: String,
    pub(super) release: ReleaseId,
    pub(super) min_version: PveVersion,
    pub(super) node: Option<NodeName>,
    pub(super) storage: StorageId,
    pub(super) bridge: String,
    pub(super) pool: PoolId,
    pub(super) vmids: VmidRange,
    pub(super) prune: Prune,
    pub(super) instances: BTreeMap<InstanceName, DesiredInstance>,
    /// Why HQ has revoked the release, if it has: what was cloned from it stays, nothing new is.
    pub(super) revoked: Option<String>,
    /// File and line of each field, for causes.
    pub(super) outline: Option<Outline>,
}

/// One instance's wishes.
#[derive(Debug, Clone, PartialEq)]
pub struct DesiredInstance {
    pub(super) template: TemplateName,
    pub(super) kind: GuestKind,
    pub(super) hostname: Hostname,
    pub(super) vmid: Option<Vmid>,
    pub(super) mac: Option<Mac>,
    pub(super) cores: Option<u32>,
    pub(super) memory: Option<u32>,
    pub(super) disk: Option<u32>,
    pub(super) vlan: Option<Vlan>,
    pub(super) ip: Option<Ipv4Cidr>,
    pub(super) gateway: Option<std::net::Ipv4Addr>,
    pub(super) onboot: Onboot,
    pub(super) protect: Protection,
    /// Absent on a laptop, where secrets are not known.
    pub(super) wiring: Wished,
}

/// What is known of an instance's assignment when a plan is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wished {
    /// It can be rendered, and this is its digest.
    Digest(WiringDigest),
    /// It cannot: a secret is missing, and the instance cannot go on without.
    Missing {
        /// Stable label.
        reason: &'static str,
        /// What is missing.
        message: String,
        /// What to do.
        remedy: String,
    },
    /// Nobody tried: a laptop has no secrets.
    Unknown,
}

impl Desired {
    /// From a site that was checked together with its release. `wiring` says what is known of each assignment.
    ///
    /// A laptop may plan with a site that nobody vouched for; `apply` only ever sees plans of verified ones, because
    /// the loop has no others.
    pub fn of(checked: &CheckedSite, wiring: impl FnMut(&InstanceName) -> Wished) -> Result<Self, InvalidId> {
        let revision = checked.revision().map_or("checkout", |revision| revision.as_str());
        let outline = Some(checked.outline().clone());
        Self::from_parts(checked.site(), checked.release().manifest(), revision, outline, wiring)
    }

    /// The same, of a release that HQ has revoked.
    #[must_use]
    pub fn revoked(self, why: &str) -> Self {
        Self { revoked: Some(why.to_owned()), ..self }
    }

    pub(super) fn from_parts(
        site: &Site,
        manifest: &Manifest,
        revision: &str,
        outline: Option<Outline>,
        mut wiring: impl FnMut(&InstanceName) -> Wished,
    ) -> Result<Self, InvalidId> {
        let mut instances = BTreeMap::new();
        for (name, instance) in &site.instances {
            // A site that passed `document::against` names only templates of its release.
            let Some(template) = manifest.templates.get(&instance.template) else { continue };
            let (ip, gateway) = match instance.network.address {
                Address::Dhcp => (None, None),
                Address::Static { cidr, gateway } => (Some(cidr), gateway),
            };
            let base = template.resources;
            let Instance { resources, network, .. } = instance;
            instances.insert(
                name.clone(),
                DesiredInstance {
                    template: instance.template.clone(),
                    kind: template.kind,
                    hostname: Hostname::of(&site.site, name)?,
                    vmid: instance.vmid,
                    mac: network.mac,
                    cores: resources.cpu.or(base.map(|base| base.cpu)),
                    memory: resources.ram.or(base.map(|base| base.ram)),
                    disk: resources.disk.or(base.map(|base| base.disk)),
                    vlan: network.vlan.or(site.proxmox.vlan),
                    ip,
                    gateway,
                    onboot: instance.onboot,
                    protect: instance.protect,
                    wiring: wiring(name),
                },
            );
        }
        Ok(Self {
            site: site.site.clone(),
            revision: revision.to_owned(),
            release: manifest.release.clone(),
            min_version: manifest.proxmox_min_version,
            node: site.proxmox.node.clone(),
            storage: site.proxmox.storage.clone(),
            bridge: site.proxmox.bridge.as_str().to_owned(),
            pool: site.proxmox.pool.clone(),
            vmids: site.proxmox.vmids,
            prune: site.prune,
            instances,
            revoked: None,
            outline,
        })
    }

    /// The place of a field: `sites/acme-hq/site.yaml:12: instances.zigbee.template`.
    pub(super) fn place(&self, field: &str) -> String {
        self.outline.as_ref().map_or_else(|| field.to_owned(), |outline| outline.place(field).to_string())
    }

    /// Its instances by name.
    pub fn names(&self) -> impl Iterator<Item = &InstanceName> {
        self.instances.keys()
    }
}
