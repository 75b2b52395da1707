//! Converting a guest to a template.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::{Answer, Call};
use crate::http::envelope::Refusal;
use crate::node::config;
use crate::node::guests::{Guest, Kind};
use crate::node::{Node, Work, storage};
use crate::runtime::Vmid;

fn check(guest: &Guest, running: bool) -> Result<(), String> {
    let label = guest.kind.label();
    if !guest.snapshots.is_empty() {
        return Err(format!("unable to create template, because {label} contains snapshots"));
    }
    if guest.is_template() {
        return Err("you can't convert a template to a template".to_owned());
    }
    if running {
        return Err(format!("you can't convert a {label} to template if the {label} is running"));
    }
    guest.check_lock()
}

/// Answers null while its task still runs.
pub(crate) async fn lxc(call: Call) -> Answer {
    let (node, vmid) = (Arc::clone(&call.node), call.vmid());
    let held = node.lock_config(Kind::Lxc, vmid).await.map_err(Refusal::die)?;
    let guest = node.guest(Kind::Lxc, vmid).map_err(Refusal::die)?;
    let running = node.pid(vmid).await.is_some();
    check(&guest, running).map_err(Refusal::die)?;
    call.node.start_task(&call.caller, call.effects.clone(), ("vztemplate", &vmid.to_string()), |task| async move {
        let _held = held;
        task.work(Work::Template).await?;
        convert(&node, Kind::Lxc, vmid)?;
        node.change(Kind::Lxc, vmid, set_flag)?;
        Ok(0)
    });
    Ok(Value::Null.into())
}

pub(crate) async fn qemu(call: Call) -> Answer {
    let (node, vmid) = (Arc::clone(&call.node), call.vmid());
    let held = node.lock_config(Kind::Qemu, vmid).await.map_err(Refusal::die)?;
    let guest = node.guest(Kind::Qemu, vmid).map_err(Refusal::die)?;
    check(&guest, guest.running.is_some()).map_err(Refusal::die)?;
    let upid = call.node.start_task(
        &call.caller,
        call.effects.clone(),
        ("qmtemplate", &vmid.to_string()),
        |task| async move {
            let _held = held;
            // The flag is set before the disks are converted.
            node.change(Kind::Qemu, vmid, set_flag)?;
            task.work(Work::Template).await?;
            convert(&node, Kind::Qemu, vmid)?;
            Ok(0)
        },
    );
    Ok(json!(upid).into())
}

fn set_flag(guest: &mut Guest) {
    guest.config.insert("template".to_owned(), "1".to_owned());
}

/// Renames the disks to bases.
pub(crate) fn convert(node: &Node, kind: Kind, vmid: Vmid) -> Result<(), String> {
    let mut state = node.write();
    let Some(guest) = state.guest(vmid).cloned() else {
        return Err(super::missing(node, kind, vmid));
    };
    let mut renamed = guest.config.clone();
    for (key, value) in guest.volumes() {
        let Some((volid, size)) = config::volume_of(kind, value) else {
            continue;
        };
        if value.contains("media=cdrom") || config::base(kind, key) == "unused" {
            continue;
        }
        let thick = volid
            .split_once(':')
            .and_then(|(name, _)| state.cluster().storages.get(name))
            .is_none_or(|found| found.kind == "lvm");
        if thick {
            return Err(format!("Template feature is not available for '{volid}'"));
        }
        let base = storage::to_base(state.cluster_mut(), &volid);
        renamed.insert(key.to_owned(), config::with_volume(kind, key, value, &base, size));
    }
    if let Some(guest) = state.guest_mut(vmid) {
        guest.config = renamed;
    }
    Ok(())
}
