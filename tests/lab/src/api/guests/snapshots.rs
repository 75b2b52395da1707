//! Snapshots. They are records: a rollback brings the configuration back, not the files.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::{Answer, Call};
use super::{power, read};
use crate::clock;
use crate::http::envelope::Refusal;
use crate::node::guests::{Kind, Snapshot};
use crate::node::network::random_mac;
use crate::node::storage::Ability;
use crate::node::{Work, config};

fn task_kind(kind: Kind, what: &str) -> String {
    format!("{}{what}", if kind == Kind::Lxc { "vz" } else { "qm" })
}

pub(crate) async fn list(call: Call, kind: Kind) -> Answer {
    let guest = call.node.guest(kind, call.vmid()).map_err(Refusal::die)?;
    let running = call.node.pid(call.vmid()).await.is_some();
    let mut rows: Vec<Value> = Vec::new();
    for snapshot in &guest.snapshots {
        let mut row = json!({"name": snapshot.name, "description": snapshot.description, "snaptime": snapshot.time});
        if let Some(parent) = &snapshot.parent {
            row["parent"] = json!(parent);
        }
        if kind == Kind::Qemu {
            row["vmstate"] = json!(0);
        }
        rows.push(row);
    }
    let mut current = json!({
        "name": "current", "description": "You are here!", "digest": guest.digest(), "running": u8::from(running),
    });
    if let Some(parent) = &guest.parent {
        current["parent"] = json!(parent);
    }
    rows.push(current);
    Ok(Value::Array(rows).into())
}

pub(crate) async fn create(call: Call, kind: Kind) -> Answer {
    let (node, vmid) = (Arc::clone(&call.node), call.vmid());
    let name = call.params.text("snapname").unwrap_or_default().to_owned();
    let reserved: &[&str] = if kind == Kind::Lxc { &["current", "vzdump"] } else { &["current", "pending"] };
    if reserved.contains(&name.as_str()) {
        return Err(Refusal::die(format!("unable to use snapshot name '{name}' (reserved name)")));
    }
    let description = call.params.text("description").unwrap_or_default();
    let description = config::normalise(kind, "description", description, random_mac);
    let upid = call.node.start_task(
        &call.caller,
        call.effects.clone(),
        (&task_kind(kind, "snapshot"), &vmid.to_string()),
        |task| async move {
            let _held = node.lock_config(kind, vmid).await?;
            let guest = node.guest(kind, vmid)?;
            if guest.is_template() {
                return Err("you can't take a snapshot if it's a template".to_owned());
            }
            guest.check_lock()?;
            if guest.snapshots.iter().any(|snapshot| snapshot.name == name) {
                return Err(format!("snapshot name '{name}' already used"));
            }
            if !read::all_volumes_can(&node.read(), &guest, Ability::Snapshot) {
                return Err("snapshot feature is not available".to_owned());
            }
            node.change(kind, vmid, |guest| guest.set_lock("snapshot"))?;
            let done = task.interruptible(task.work(Work::Snapshot)).await;
            node.change(kind, vmid, |guest| {
                guest.clear_lock();
                if done.is_ok() {
                    let parent = guest.parent.replace(name.clone());
                    let config = guest.config.clone();
                    guest.snapshots.push(Snapshot { name, description, time: clock::epoch(), parent, config });
                }
            })?;
            done.map(|()| 0)
        },
    );
    Ok(json!(upid).into())
}

pub(crate) async fn delete(call: Call, kind: Kind) -> Answer {
    let (node, vmid) = (Arc::clone(&call.node), call.vmid());
    let name = call.params.text("snapname").unwrap_or_default().to_owned();
    let upid = call.node.start_task(
        &call.caller,
        call.effects.clone(),
        (&task_kind(kind, "delsnapshot"), &vmid.to_string()),
        |task| async move {
            let _held = node.lock_config(kind, vmid).await?;
            let guest = node.guest(kind, vmid)?;
            guest.check_lock()?;
            let Some(found) = guest.snapshots.iter().find(|snapshot| snapshot.name == name).cloned() else {
                return Err(format!("snapshot '{name}' does not exist"));
            };
            task.work(Work::Snapshot).await?;
            node.change(kind, vmid, |guest| {
                guest.snapshots.retain(|snapshot| snapshot.name != name);
                let children = guest.snapshots.iter_mut().map(|snapshot| &mut snapshot.parent);
                for parent in children.chain(std::iter::once(&mut guest.parent)) {
                    if parent.as_deref() == Some(name.as_str()) {
                        parent.clone_from(&found.parent);
                    }
                }
            })?;
            Ok(0)
        },
    );
    Ok(json!(upid).into())
}

pub(crate) async fn rollback(call: Call, kind: Kind) -> Answer {
    let (node, vmid) = (Arc::clone(&call.node), call.vmid());
    let name = call.params.text("snapname").unwrap_or_default().to_owned();
    let starts = call.params.flag("start") == Some(true);
    let upid = call.node.start_task(
        &call.caller,
        call.effects.clone(),
        (&task_kind(kind, "rollback"), &vmid.to_string()),
        |task| async move {
            let _held = node.lock_config(kind, vmid).await?;
            let guest = node.guest(kind, vmid)?;
            if guest.is_template() {
                return Err("unable to rollback to snapshot of template".to_owned());
            }
            guest.check_lock()?;
            let Some(found) = guest.snapshots.iter().find(|snapshot| snapshot.name == name).cloned() else {
                return Err(format!("snapshot '{name}' does not exist"));
            };
            if kind == Kind::Lxc {
                node.runtime.stop(vmid).await?;
            }
            task.work(Work::Snapshot).await?;
            node.change(kind, vmid, |guest| {
                guest.running = None;
                guest.pending.clear();
                guest.config = found.config;
                guest.parent = Some(name);
            })?;
            if starts && kind == Kind::Lxc {
                return power::start(&node, &task, vmid).await;
            }
            Ok(0)
        },
    );
    Ok(json!(upid).into())
}
