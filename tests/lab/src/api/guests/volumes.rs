//! Growing and moving volumes of containers.

use std::sync::Arc;

use serde_json::json;

use super::super::{Answer, Call};
use crate::http::envelope::Refusal;
use crate::node::guests::Kind;
use crate::node::storage::{self, NewVolume, Role};
use crate::node::{Work, config};
use crate::runtime::Vmid;
use crate::schema::formats;

const KIND: Kind = Kind::Lxc;

fn check_digest(call: &Call, name: &str, digest: &str) -> Result<(), Refusal> {
    match call.params.text(name).filter(|sent| !sent.is_empty() && *sent != digest) {
        Some(_) => Err(Refusal::die("detected modified configuration - file changed by other user? Try again.")),
        None => Ok(()),
    }
}

pub(crate) async fn resize(call: Call) -> Answer {
    let (node, vmid) = (Arc::clone(&call.node), call.vmid());
    let key = call.params.text("disk").unwrap_or_default().to_owned();
    let sent = call.params.text("size").unwrap_or_default();
    let guest = node.guest(KIND, vmid).map_err(Refusal::die)?;
    guest.check_lock().map_err(Refusal::die)?;
    check_digest(&call, "digest", &guest.digest())?;
    let Some((volid, Some(old))) = guest.get(&key).and_then(|value| config::volume_of(KIND, value)) else {
        let mut refusal = Refusal::die("format error");
        for name in ["mp", "volume"] {
            refusal.errors.insert(name.to_owned(), "property is missing and it is not optional".to_owned());
        }
        return Err(refusal);
    };
    let storage = volid.split(':').next().unwrap_or_default().to_owned();
    call.require(&format!("/storage/{storage}"), "Datastore.AllocateSpace")?;
    let amount = formats::parse_size(sent.trim_start_matches('+')).unwrap_or_default();
    let new = if sent.starts_with('+') { old + amount } else { amount };
    if new < old {
        return Err(Refusal::die("unable to shrink disk size"));
    }
    if new == old {
        return Err(Refusal::die("disk is already at specified size"));
    }
    let upid =
        call.node.start_task(&call.caller, call.effects.clone(), ("resize", &vmid.to_string()), |task| async move {
            let _held = node.lock_config(KIND, vmid).await?;
            task.work(Work::Snapshot).await?;
            if task.effects.storage_full {
                return Err(storage::full("lvmthin", &volid));
            }
            if let Some(volume) = node.write().cluster_mut().volumes.get_mut(&volid) {
                volume.size = new;
            }
            node.change(KIND, vmid, |guest| {
                if let Some(value) = guest.get(&key).map(str::to_owned) {
                    guest.config.insert(key.clone(), config::with_volume(KIND, &key, &value, &volid, Some(new)));
                }
            })?;
            Ok(0)
        });
    Ok(json!(upid).into())
}

pub(crate) async fn move_volume(call: Call) -> Answer {
    let key = call.params.text("volume").unwrap_or_default().to_owned();
    match (call.params.text("storage"), call.params.vmid("target-vmid")) {
        (Some(_), Some(_)) => Err(Refusal::die("either set storage or target-vmid, but not both")),
        (None, None) => {
            let text = "both 'storage' and 'target-vmid' missing, either needs to be set".to_owned();
            let names = ["storage", "target-vmid"].into_iter();
            Err(Refusal::parameters(names.map(|name| (name.to_owned(), text.clone())).collect()))
        }
        (Some(storage), None) => to_storage(call.clone(), key, storage.to_owned()).await,
        (None, Some(target)) => to_guest(call.clone(), key, target).await,
    }
}

async fn to_storage(call: Call, key: String, target: String) -> Answer {
    let (node, vmid) = (Arc::clone(&call.node), call.vmid());
    call.require(&format!("/storage/{target}"), "Datastore.AllocateSpace")?;
    let guest = node.guest(KIND, vmid).map_err(Refusal::die)?;
    guest.check_lock().map_err(Refusal::die)?;
    check_digest(&call, "digest", &guest.digest())?;
    if node.pid(vmid).await.is_some() {
        return Err(Refusal::die("cannot move volumes of a running container"));
    }
    storage::find(node.read().cluster(), &target, "rootdir").map_err(Refusal::die)?;
    let Some((old, size)) = guest.get(&key).and_then(|value| config::volume_of(KIND, value)) else {
        return Err(Refusal::die(format!("volume '{key}' does not exist")));
    };
    let keeps = call.params.flag("delete") != Some(true);
    node.change(KIND, vmid, |guest| guest.set_lock("disk")).map_err(Refusal::die)?;
    let upid = call.node.start_task(
        &call.caller,
        call.effects.clone(),
        ("move_volume", &vmid.to_string()),
        |task| async move {
            let done = task.interruptible(task.work(Work::Clone)).await;
            let mut state = node.write();
            if let Some(guest) = state.guest_mut(vmid) {
                guest.clear_lock();
            }
            done?;
            let new = NewVolume {
                storage: &target,
                kind: KIND,
                vmid,
                size: size.unwrap_or(4 << 30),
                base: None,
                role: Role::Disk,
            };
            let volid = storage::allocate(&mut state, &new)?;
            if !keeps {
                state.cluster_mut().volumes.remove(&old);
            }
            if let Some(guest) = state.guest_mut(vmid) {
                if let Some(value) = guest.get(&key).map(str::to_owned) {
                    guest.config.insert(key.clone(), config::with_volume(KIND, &key, &value, &volid, size));
                }
                let free = (0..256).map(|index| format!("unused{index}")).find(|name| !guest.config.contains_key(name));
                if let Some(free) = free.filter(|_| keeps) {
                    guest.config.insert(free, old);
                }
            }
            Ok(0)
        },
    );
    Ok(json!(upid).into())
}

async fn to_guest(call: Call, key: String, target: Vmid) -> Answer {
    let (node, vmid) = (Arc::clone(&call.node), call.vmid());
    call.require(&format!("/vms/{target}"), "VM.Config.Disk")?;
    let target_key = call.params.text("target-volume").unwrap_or(&key).to_owned();
    if key == "rootfs" || target_key == "rootfs" {
        return Err(Refusal::die("Cannot move to/from 'rootfs'"));
    }
    let source = node.guest(KIND, vmid).map_err(Refusal::die)?;
    let other = node.guest(KIND, target).map_err(Refusal::die)?;
    if source.is_template() || other.is_template() {
        return Err(Refusal::die("Can't move volumes from or to template CT"));
    }
    source.check_lock().and_then(|()| other.check_lock()).map_err(Refusal::die)?;
    check_digest(&call, "digest", &source.digest())?;
    check_digest(&call, "target-digest", &other.digest())?;
    let Some(value) = source.get(&key).map(str::to_owned) else {
        return Err(Refusal::die(format!("Mount point '{key}' for container '{vmid}' does not exist")));
    };
    if other.config.contains_key(&target_key) {
        return Err(Refusal::die(format!(
            "Target volume key '{target_key}' is already in use for container '{target}'"
        )));
    }
    let id = format!("{vmid}-{key}>{target}-{target_key}");
    let upid = call.node.start_task(&call.caller, call.effects.clone(), ("move_volume", &id), |task| async move {
        task.work(Work::Snapshot).await?;
        let mut state = node.write();
        let Some((volid, size)) = config::volume_of(KIND, &value) else {
            return Err(format!("unable to parse volume of '{key}'"));
        };
        if let Some(guest) = state.guest_mut(vmid) {
            guest.config.remove(&key);
        }
        let moved = volid.replace(&vmid.to_string(), &target.to_string());
        if let Some(mut volume) = state.cluster_mut().volumes.remove(&volid) {
            volume.vmid = Some(target);
            state.cluster_mut().volumes.insert(moved.clone(), volume);
        }
        if let Some(guest) = state.guest_mut(target) {
            guest.config.insert(target_key.clone(), config::with_volume(KIND, &target_key, &value, &moved, size));
        }
        Ok(0)
    });
    Ok(json!(upid).into())
}
