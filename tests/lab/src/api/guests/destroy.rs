//! Destroying a guest.

use std::sync::Arc;

use serde_json::json;

use super::super::{Answer, Call};
use super::refuse_root_only;
use crate::http::envelope::Refusal;
use crate::node::guests::{Guest, Kind};
use crate::node::{Node, Work, storage};
use crate::runtime::Vmid;

fn sid(kind: Kind, vmid: Vmid) -> String {
    format!("{}:{vmid}", if kind == Kind::Lxc { "ct" } else { "vm" })
}

/// What refuses a destruction at once.
fn early(node: &Node, guest: &Guest, running: bool, call: &Call) -> Result<(), String> {
    let (kind, vmid, label) = (guest.kind, guest.vmid, guest.kind.label());
    if guest.is_protected() {
        return Err(format!("can't remove {label} {vmid} - protection mode enabled"));
    }
    if kind == Kind::Lxc {
        guest.check_lock()?;
    }
    let managed = node.read().cluster().ha.contains_key(&sid(kind, vmid));
    if managed && call.params.flag("purge") != Some(true) {
        return Err(format!("unable to remove {label} {vmid} - used in HA resources and purge parameter not set."));
    }
    match kind {
        Kind::Lxc if running && call.params.flag("force") != Some(true) => {
            Err(format!("unable to destroy CT {vmid} - container is running"))
        }
        Kind::Qemu if running => Err(format!("VM {vmid} is running - destroy failed")),
        _ => Ok(()),
    }
}

pub(crate) async fn destroy(call: Call, kind: Kind) -> Answer {
    refuse_root_only(&call)?;
    let (node, vmid) = (Arc::clone(&call.node), call.vmid());
    let guest = node.guest(kind, vmid).map_err(Refusal::die)?;
    let running = node.pid(vmid).await.is_some();
    early(&node, &guest, running, &call).map_err(Refusal::die)?;
    let task_kind = if kind == Kind::Lxc { "vzdestroy" } else { "qmdestroy" };
    let worker = call.clone();
    let upid =
        call.node.start_task(&call.caller, call.effects.clone(), (task_kind, &vmid.to_string()), |task| async move {
            let _held = node.lock_config(kind, vmid).await?;
            let guest = node.guest(kind, vmid)?;
            guest.check_lock()?;
            let running = node.pid(vmid).await.is_some();
            early(&node, &guest, running, &worker)?;
            if let Some(volid) = guest.volume_ids().iter().find(|volid| in_use(&node, volid)) {
                let word = if kind == Kind::Lxc { "clones" } else { "cloned" };
                return Err(format!("base volume '{volid}' is still in use by linked {word}"));
            }
            if running {
                node.runtime.stop(vmid).await?;
            }
            node.change(kind, vmid, |guest| guest.set_lock("destroyed"))?;
            task.interruptible(task.work(Work::Destroy)).await?;
            if kind == Kind::Lxc {
                node.runtime.destroy(vmid).await?;
            }
            let unreferenced = worker.params.flag("destroy-unreferenced-disks") == Some(true);
            let own = guest.volume_ids();
            let mut state = node.write();
            let cluster = state.cluster_mut();
            cluster.volumes.retain(|volid, volume| {
                let stray = unreferenced && volume.vmid == Some(vmid) && volume.content != "backup";
                !(own.contains(volid) || stray)
            });
            for pool in cluster.pools.values_mut() {
                pool.vms.remove(&vmid);
            }
            cluster.acl.retain(|entry| entry.path != format!("/vms/{vmid}"));
            cluster.ha.remove(&sid(kind, vmid));
            // The file goes last; only then is the number free again.
            state.remove_guest(vmid);
            drop(state);
            node.forget_sample(vmid);
            Ok(0)
        });
    Ok(json!(upid).into())
}

/// Thin volumes and btrfs subvolumes do not know their clones, so their base goes without a word.
fn in_use(node: &Node, volid: &str) -> bool {
    let state = node.read();
    let knows = volid
        .split_once(':')
        .and_then(|(name, _)| state.cluster().storages.get(name))
        .is_some_and(|found| !matches!(found.kind.as_str(), "lvmthin" | "btrfs"));
    knows && storage::has_children(state.cluster(), volid)
}
