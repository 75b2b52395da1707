//! What can be asked of a guest and done to it, containers and virtual machines side by side where they agree.

pub(crate) mod agent;
pub(crate) mod clone;
pub(crate) mod destroy;
pub(crate) mod permit;
pub(crate) mod power;
pub(crate) mod read;
pub(crate) mod snapshots;
pub(crate) mod template;
pub(crate) mod volumes;
pub(crate) mod write;

use std::time::Duration;

use super::Call;
use crate::http::envelope::Refusal;
use crate::node::Node;
use crate::node::guests::{Guest, Kind};
use crate::node::locks::Exclusive;
use crate::runtime::Vmid;

/// Text for a guest that is not there, or is of the other kind.
pub(crate) fn missing(node: &Node, kind: Kind, vmid: Vmid) -> String {
    format!("Configuration file 'nodes/{}/{}/{vmid}.conf' does not exist", node.name, kind.directory())
}

impl Node {
    /// A copy of a guest's record.
    pub(crate) fn guest(&self, kind: Kind, vmid: Vmid) -> Result<Guest, String> {
        let state = self.read();
        state.guest(vmid).filter(|guest| guest.kind == kind).cloned().ok_or_else(|| missing(self, kind, vmid))
    }

    /// Takes the configuration file of a guest, waiting as long as Proxmox does.
    pub(crate) async fn lock_config(&self, kind: Kind, vmid: Vmid) -> Result<Exclusive, String> {
        let wait = Duration::from_millis(self.read().cluster().settings.config_lock_wait_ms);
        self.locks.exclusive(vmid, kind, wait).await
    }

    /// Changes a guest's record, if it is still there.
    pub(crate) fn change<T>(&self, kind: Kind, vmid: Vmid, change: impl FnOnce(&mut Guest) -> T) -> Result<T, String> {
        let mut state = self.write();
        match state.guest_mut(vmid).filter(|guest| guest.kind == kind) {
            Some(guest) => Ok(change(guest)),
            None => Err(missing(self, kind, vmid)),
        }
    }
}

/// Options that only the literal root user has.
fn refuse_root_only(call: &Call) -> Result<(), Refusal> {
    let used = ["skiplock", "keepActive", "migratedfrom"].into_iter().find(|name| call.params.has(name));
    match used {
        Some(name) => Err(Refusal::parameter(name, "Only root may use this option.")),
        None => Ok(()),
    }
}
