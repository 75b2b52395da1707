//! Where a new guest goes: its number and MAC address, its template, its storage.

use contract::ids::{InstanceName, Mac, NodeName, Vmid};
use contract::manifest::GuestKind;

use super::Blocked;
use super::decide::Planner;
use super::desired::DesiredInstance;
use super::identity::{lowest_free, mac_for};
use super::observed::{Made, ObservedTemplate, Owner, Reservation};

/// Bytes in a GiB.
const GIB: u64 = 1 << 30;

impl<'a> Planner<'a> {
    /// The number and MAC address that a new guest gets: what was reserved, if it is still free.
    pub(super) fn reserve(&mut self, name: &InstanceName, wish: &DesiredInstance) -> Result<(Vmid, Mac), Blocked> {
        let held = self.ledger.reservations.get(name);
        if let Some(held) = held {
            self.still_ours(name, held)?;
        }
        let others = || self.ledger.reservations.iter().filter(|(other, _)| *other != name).map(|(_, held)| held);
        let occupied = |vmid: &Vmid| self.observed.guests.contains_key(vmid) || self.ledger.taken.contains(vmid);
        let vmid = match wish.vmid {
            Some(vmid) if occupied(&vmid) || others().any(|other| other.vmid == vmid) => {
                return Err(Blocked {
                    reason: "vmid-taken",
                    message: format!("the site asks for number {vmid}, which another guest has"),
                    remedy: format!("choose another `instances.{name}.vmid`, or leave it out"),
                });
            }
            Some(vmid) => Some(vmid),
            None => held
                .map(|held| held.vmid)
                .filter(|vmid| !occupied(vmid) && self.desired.vmids.contains(*vmid))
                .or_else(|| lowest_free(self.desired.vmids, &self.numbers)),
        };
        let Some(vmid) = vmid else {
            return Err(Blocked {
                reason: "vmids-exhausted",
                message: format!("no number of {} is free", self.desired.vmids),
                remedy: "widen `proxmox.vmids`, or remove guests that are no longer needed".into(),
            });
        };
        self.numbers.insert(vmid);
        if let Some(mac) = wish.mac
            && (others().any(|other| other.mac == mac) || self.observed_macs().any(|seen| seen == mac))
        {
            return Err(Blocked {
                reason: "mac-taken",
                message: format!("the site asks for MAC address {mac}, which another guest has"),
                remedy: format!("choose another `instances.{name}.network.mac`, or leave it out"),
            });
        }
        let mac = wish.mac.or(held.map(|held| held.mac)).or_else(|| mac_for(&self.desired.site, name, &self.macs));
        let Some(mac) = mac else {
            return Err(Blocked {
                reason: "macs-exhausted",
                message: "no MAC address of our range is free".into(),
                remedy: format!("give `instances.{name}.network.mac`"),
            });
        };
        self.macs.insert(mac);
        Ok((vmid, mac))
    }

    /// A guest that we made and that does not show as ours is not replaced: its twin would have its address.
    fn still_ours(&self, name: &InstanceName, held: &Reservation) -> Result<(), Blocked> {
        let vmid = held.vmid;
        match self.observed.guests.get(&vmid).map(|guest| &guest.owner) {
            Some(Owner::Unknown) => Err(Blocked {
                reason: "guest-unreadable",
                message: format!("the settings of guest {vmid} cannot be read"),
                remedy: "it is tried again by itself; `ctrlable doctor` says whether the token may read the pool"
                    .into(),
            }),
            Some(_) if held.guest == Made::ByUs => Err(Blocked {
                reason: "guest-disowned",
                message: format!("guest {vmid} was made for {name} and does not carry its marker any more"),
                remedy: format!(
                    "put the `ctrlable` block back into its description (`ctrlable why {name}` shows its clone), or destroy it"
                ),
            }),
            _ => Ok(()),
        }
    }

    /// MAC addresses of guests that are there.
    fn observed_macs(&self) -> impl Iterator<Item = Mac> {
        self.observed.guests.values().filter_map(|guest| guest.settings.as_ref()?.net0.as_ref()?.mac)
    }

    /// The template to clone; `None` on a laptop.
    pub(super) fn template(&self, wish: &DesiredInstance) -> Result<Option<&'a ObservedTemplate>, Blocked> {
        let Some(version) = self.observed.version else { return Ok(None) };
        let release = &self.desired.release;
        if version < self.desired.min_version {
            return Err(Blocked {
                reason: "node-too-old",
                message: format!(
                    "release {release} needs Proxmox VE {}, the node has {version}",
                    self.desired.min_version
                ),
                remedy: "upgrade the node, or stay on an older release".into(),
            });
        }
        let matching: Vec<&ObservedTemplate> = self
            .observed
            .templates
            .iter()
            .filter(|template| template.release == *release && template.template == wish.template)
            .filter(|template| self.desired.node.as_ref().is_none_or(|node| template.node == *node))
            .collect();
        let place = self.desired.node.as_ref().map_or(String::new(), |node| format!(" on node {node}"));
        match matching.as_slice() {
            [template] if template.kind == wish.kind => Ok(Some(template)),
            [template] => Err(Blocked {
                reason: "template-kind",
                message: format!(
                    "template {} is a {:?}, the release says {:?}",
                    template.vmid, template.kind, wish.kind
                ),
                remedy: format!("remove the tags of {} and adopt the right guest", template.vmid),
            }),
            [] => Err(Blocked {
                reason: "template-missing",
                message: format!("there is no template {} of release {release}{place}", wish.template),
                remedy: format!(
                    "build it (docs/template.md) and mark it with `ctrlable template adopt VMID --release {release} \
                     --name {}`",
                    wish.template
                ),
            }),
            several => {
                let mut numbers: Vec<String> = several.iter().map(|template| template.vmid.to_string()).collect();
                numbers.sort();
                Err(Blocked {
                    reason: "template-ambiguous",
                    message: format!(
                        "templates {} are all {} of release {release}{place}",
                        numbers.join(" and "),
                        wish.template
                    ),
                    remedy: "remove all but one, or say `proxmox.node`".into(),
                })
            }
        }
    }

    pub(super) fn storage_trouble(
        &self,
        node: &NodeName,
        wish: &DesiredInstance,
        template_disk: Option<u32>,
    ) -> Option<Blocked> {
        self.observed.version?;
        let name = &self.desired.storage;
        if self.observed.unreadable_nodes.contains(node) {
            return Some(Blocked {
                reason: "storage-unreadable",
                message: format!("the storages of node {node} cannot be listed"),
                remedy: "a hanging network storage is the usual cause; it is tried again by itself".into(),
            });
        }
        let at = self.desired.place("proxmox.storage");
        let Some(storage) =
            self.observed.storages.iter().find(|storage| storage.node == *node && storage.storage == *name)
        else {
            return Some(Blocked {
                reason: "storage-missing",
                message: format!("node {node} has no storage {name}, or the token may not see it"),
                remedy: format!("correct {at}, or grant Datastore.AllocateSpace on /storage/{name}"),
            });
        };
        let content = match wish.kind {
            GuestKind::Lxc => "rootdir",
            GuestKind::Vm => "images",
        };
        if !storage.active {
            return Some(Blocked {
                reason: "storage-inactive",
                message: format!("storage {name} on {node} is not active"),
                remedy: "bring it back on the node".into(),
            });
        }
        if !storage.content.contains(content) {
            return Some(Blocked {
                reason: "storage-content",
                message: format!("storage {name} does not take {content}"),
                remedy: format!("correct {at}, or allow it in the storage's content types"),
            });
        }
        let need = u64::from(wish.disk.into_iter().chain(template_disk).max().unwrap_or(1)) * GIB;
        if storage.available < need {
            return Some(Blocked {
                reason: "storage-full",
                message: format!(
                    "storage {name} has {:.1} GiB free, the guest needs {} GiB",
                    storage.available as f64 / GIB as f64,
                    need / GIB
                ),
                remedy: "free space, or ask for less disk; it is tried again by itself".into(),
            });
        }
        None
    }
}
