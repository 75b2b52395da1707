//! Clones: LXC ones lock their source, machines do not.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::super::{Answer, Call};
use super::permit;
use crate::api::access::new_secret;
use crate::faults::CFS_LOCK;
use crate::http::envelope::Refusal;
use crate::node::config::{self, Config};
use crate::node::guests::{Guest, Kind};
use crate::node::network::random_mac;
use crate::node::storage::{self, Ability, NewVolume, Role};
use crate::node::tasks::Handle;
use crate::node::{Node, Release, Work};
use crate::runtime::Vmid;

/// What is to be cloned into what.
#[derive(Debug, Clone)]
struct Plan {
    kind: Kind,
    source: Vmid,
    target: Vmid,
    full: bool,
    storage: Option<String>,
    pool: Option<String>,
    /// The target's configuration without its volumes.
    config: Config,
    /// The source's volumes by key.
    volumes: Vec<(String, String)>,
}

pub(crate) async fn lxc(call: Call) -> Answer {
    let (node, source, kind) = (Arc::clone(&call.node), call.vmid(), Kind::Lxc);
    let target = call.params.vmid("newid").unwrap_or_default();
    check_target_node(&call)?;
    taken(&node, target)?;
    let held = node.lock_config(kind, source).await.map_err(Refusal::die)?;
    let guest = node.guest(kind, source).map_err(Refusal::die)?;
    guest.check_lock().map_err(Refusal::die)?;
    let running = node.pid(source).await.is_some();
    let plan = plan(&call, &guest, target, running)?;

    let mut clone = Guest::new(target, kind, plan.config.clone());
    clone.set_lock("create");
    {
        let mut state = node.write();
        if state.guest(target).is_some() {
            return Err(Refusal::die(format!("CT {target} already exists on node '{}'", node.name)));
        }
        state.insert_guest(clone);
        if let Some(guest) = state.guest_mut(source) {
            guest.set_lock("disk");
        }
    }
    // From here on the two lock keys protect what the file lock did.
    drop(held);
    let upid = node.clone().start_task(
        &call.caller,
        call.effects.clone(),
        ("vzclone", &source.to_string()),
        |task| async move {
            if node.major() >= 9 {
                task.log(format!("creating a clone of container {source} with ID {target}"));
            }
            let done = run_lxc(&node, &task, &plan).await;
            if done.is_err() {
                undo(&node, target).await;
            }
            let mut state = node.write();
            for vmid in [source, target] {
                if let Some(guest) = state.guest_mut(vmid) {
                    guest.clear_lock();
                }
            }
            done.map(|()| 0).map_err(|text| format!("clone failed: {text}"))
        },
    );
    Ok(json!(upid).into())
}

async fn run_lxc(node: &Arc<Node>, task: &Handle, plan: &Plan) -> Result<(), String> {
    for (key, value) in &plan.volumes {
        let (volid, _) = config::volume_of(plan.kind, value).unwrap_or_default();
        let (how, what) = if plan.full { ("full", key.as_str()) } else { ("linked", key.as_str()) };
        task.log(format!("create {how} clone of mountpoint {what} ({volid})"));
    }
    task.interruptible(task.work(Work::Clone)).await?;
    copy_volumes(node, task, plan)?;
    task.interruptible(node.runtime.clone_disk(plan.source, plan.target)).await?;
    join_pool(node, task, plan)
}

/// Gives the target its volumes.
fn copy_volumes(node: &Node, task: &Handle, plan: &Plan) -> Result<(), String> {
    let mut state = node.write();
    for (key, value) in &plan.volumes {
        let Some((volid, size)) = config::volume_of(plan.kind, value) else {
            continue;
        };
        let Some((own, _)) = volid.split_once(':') else {
            continue;
        };
        let storage = plan.storage.as_deref().filter(|_| plan.full).unwrap_or(own);
        let kind = state.cluster().storages.get(storage).map(|found| found.kind.clone()).unwrap_or_default();
        if task.effects.storage_full {
            return Err(storage::full(&kind, &format!("vm-{}-disk-0", plan.target)));
        }
        let size = size.or_else(|| state.cluster().volumes.get(&volid).map(|volume| volume.size)).unwrap_or(4 << 30);
        // A cloud-init drive is made anew, never linked.
        let based = !plan.full && !volid.contains("-cloudinit");
        let new = NewVolume {
            storage,
            kind: plan.kind,
            vmid: plan.target,
            size,
            base: based.then_some(volid.as_str()),
            role: if volid.contains("-cloudinit") { Role::CloudInit } else { Role::Disk },
        };
        let copy = storage::allocate(&mut state, &new)?;
        let value = config::with_volume(plan.kind, key, value, &copy, Some(size));
        if let Some(guest) = state.guest_mut(plan.target) {
            guest.config.insert(key.clone(), value);
        }
    }
    Ok(())
}

fn join_pool(node: &Node, task: &Handle, plan: &Plan) -> Result<(), String> {
    let Some(pool) = &plan.pool else {
        return Ok(());
    };
    if task.effects.cfs_lock_timeout {
        return Err(format!("can't add VM {} to pool '{pool}': {CFS_LOCK}", plan.target));
    }
    match node.write().cluster_mut().pools.get_mut(pool) {
        Some(found) => {
            found.vms.insert(plan.target);
            Ok(())
        }
        None => Err(format!("can't add VM {} to pool '{pool}': pool '{pool}' does not exist", plan.target)),
    }
}

async fn undo(node: &Node, target: Vmid) {
    if let Err(text) = node.runtime.destroy(target).await {
        tracing::warn!(target, "the disk of a failed clone stays behind: {text}");
    }
    let mut state = node.write();
    state.remove_guest(target);
    let cluster = state.cluster_mut();
    cluster.volumes.retain(|_, volume| volume.vmid != Some(target) || volume.content == "backup");
    for pool in cluster.pools.values_mut() {
        pool.vms.remove(&target);
    }
}

pub(crate) async fn qemu(call: Call) -> Answer {
    let (node, source, kind) = (Arc::clone(&call.node), call.vmid(), Kind::Qemu);
    let target = call.params.vmid("newid").unwrap_or_default();
    check_target_node(&call)?;
    if node.guest(kind, target).is_ok() {
        return Err(Refusal::die(format!("unable to create VM {target}: config file already exists")));
    }
    // One second is what Proxmox waits for the source's file; other clones share it.
    let held = node.locks.shared(source, kind, Duration::from_secs(1)).await.map_err(Refusal::die)?;
    let guest = node.guest(kind, source).map_err(|_| Refusal::die(no_machine(&node, source)))?;
    guest.check_lock().map_err(Refusal::die)?;
    let plan = plan(&call, &guest, target, guest.running.is_some())?;
    let upid = node.clone().start_task(
        &call.caller,
        call.effects.clone(),
        ("qmclone", &source.to_string()),
        |task| async move {
            let _held = held;
            {
                let mut state = node.write();
                if state.guest(target).is_some() {
                    let file = format!("/etc/pve/nodes/{}/qemu-server/{target}.conf", node.name);
                    return Err(format!("close (rename) atomic file '{file}' failed: File exists"));
                }
                let mut clone = Guest::new(target, kind, Config::new());
                clone.set_lock("clone");
                clone.config.insert("description".to_owned(), " qmclone temporary file".to_owned());
                state.insert_guest(clone);
            }
            let done = run_qemu(&node, &task, &plan).await;
            if done.is_err() {
                undo(&node, target).await;
            }
            done.map(|()| 0).map_err(|text| format!("clone failed: {text}"))
        },
    );
    Ok(json!(upid).into())
}

async fn run_qemu(node: &Arc<Node>, task: &Handle, plan: &Plan) -> Result<(), String> {
    for (key, value) in &plan.volumes {
        let (volid, _) = config::volume_of(plan.kind, value).unwrap_or_default();
        task.log(format!("create {} clone of drive {key} ({volid})", if plan.full { "full" } else { "linked" }));
    }
    task.interruptible(task.work(Work::Clone)).await?;
    copy_volumes(node, task, plan)?;
    node.change(plan.kind, plan.target, |guest| {
        let volumes = std::mem::take(&mut guest.config);
        guest.config = plan.config.clone();
        guest.config.extend(volumes.into_iter().filter(|(key, _)| config::is_volume_key(plan.kind, key)));
    })?;
    join_pool(node, task, plan)
}

/// Some calls look for the machine on all nodes, and say so.
pub(crate) fn no_machine(node: &Node, vmid: Vmid) -> String {
    format!("unable to find configuration file for VM {vmid} on node '{}'", node.name)
}

fn check_target_node(call: &Call) -> Result<(), Refusal> {
    match call.params.text("target").filter(|target| *target != call.node.name && *target != "localhost") {
        Some(other) => Err(Refusal::die(format!("no such cluster node '{other}'"))),
        None => Ok(()),
    }
}

fn taken(node: &Node, vmid: Vmid) -> Result<(), Refusal> {
    match node.read().guest(vmid) {
        Some(guest) => {
            Err(Refusal::die(format!("{} {vmid} already exists on node '{}'", guest.kind.label(), node.name)))
        }
        None => Ok(()),
    }
}

/// Checks what was asked and works out the target's configuration.
fn plan(call: &Call, guest: &Guest, target: Vmid, running: bool) -> Result<Plan, Refusal> {
    let (node, params, kind) = (&call.node, &call.params, guest.kind);
    let full = params.flag("full").unwrap_or(!guest.is_template());
    let storage = params.text("storage").map(str::to_owned);
    let only_full = ["storage", "format"].into_iter().find(|name| params.has(name));
    if let Some(name) = only_full.filter(|_| !full) {
        let text = format!("parameter '{name}' not allowed for linked clones");
        return Err(Refusal::die(text));
    }
    let snapshot = match params.text("snapname") {
        None => None,
        Some(name) => {
            let found = guest.snapshots.iter().find(|snapshot| snapshot.name == name);
            Some(found.ok_or_else(|| Refusal::die(format!("snapshot '{name}' does not exist")))?)
        }
    };
    if kind == Kind::Lxc && full && running && snapshot.is_none() {
        return Err(Refusal::die(match node.release {
            Release::V9_2 => "Full clone of a running container is only possible from a snapshot",
            _ => "Cannot do full clones on a running container without snapshots",
        }));
    }
    let from = snapshot.map_or(&guest.config, |snapshot| &snapshot.config);
    let (volumes, mut config): (Vec<_>, Config) = {
        let kept = from.iter().filter(|(key, _)| config::base(kind, key) != "unused");
        let (volumes, rest): (Vec<_>, Vec<_>) = kept.partition(|(key, _)| config::is_volume_key(kind, key));
        let own = |(key, value): (&String, &String)| (key.clone(), value.clone());
        (volumes.into_iter().map(own).collect(), rest.into_iter().map(own).collect())
    };
    for key in ["template", "lock", "parent"] {
        config.remove(key);
    }
    let macs: Vec<(String, String)> = config
        .iter()
        .filter(|(key, _)| config::base(kind, key) == "net")
        .map(|(key, value)| (key.clone(), config::with_mac(kind, value, random_mac())))
        .collect();
    config.extend(macs);
    rename(call, guest, &mut config);
    if let Some(description) = params.text("description") {
        config.insert("description".to_owned(), config::normalise(kind, "description", description, random_mac));
    }

    node.access(&call.caller, |access, state| {
        for (_, net) in config.iter().filter(|(key, _)| config::base(kind, key) == "net") {
            permit::use_bridge(access, kind, net)?;
        }
        let content = if kind == Kind::Lxc { "rootdir" } else { "images" };
        for (key, value) in &volumes {
            let Some((volid, _)) = config::volume_of(kind, value) else {
                continue;
            };
            let Some((own, _)) = volid.split_once(':') else {
                continue;
            };
            let target = storage.as_deref().unwrap_or(own);
            access.require(&format!("/storage/{target}"), "Datastore.AllocateSpace")?;
            let found = storage::find(state.cluster(), target, content).map_err(Refusal::die)?;
            let based = guest.is_template() || snapshot.is_some();
            let linkable = based && found.can(kind, Ability::LinkedClone);
            if !(full || linkable || value.contains("cloudinit")) {
                return Err(Refusal::die(match kind {
                    Kind::Lxc => format!("Linked clone feature for '{volid}' is not available"),
                    Kind::Qemu => {
                        format!("Linked clone feature is not supported for '{volid}' ({key})")
                    }
                }));
            }
        }
        Ok(())
    })?;
    let pool = params.text("pool").map(str::to_owned);
    Ok(Plan { kind, source: guest.vmid, target, full, storage, pool, config, volumes })
}

fn rename(call: &Call, guest: &Guest, config: &mut Config) {
    match guest.kind {
        Kind::Lxc => {
            if let Some(hostname) = call.params.text("hostname") {
                config.insert("hostname".to_owned(), hostname.to_owned());
            }
        }
        Kind::Qemu => {
            let copy =
                || format!("Copy-of-VM-{}", guest.get("name").map_or_else(|| guest.vmid.to_string(), str::to_owned));
            config.insert("name".to_owned(), call.params.text("name").map_or_else(copy, str::to_owned));
            let rest: Vec<&str> = guest
                .get("smbios1")
                .into_iter()
                .flat_map(|value| value.split(','))
                .filter(|part| !part.starts_with("uuid="))
                .collect();
            let uuid = format!("uuid={}", new_secret());
            config
                .insert("smbios1".to_owned(), std::iter::once(uuid.as_str()).chain(rest).collect::<Vec<_>>().join(","));
            if config.contains_key("vmgenid") {
                config.insert("vmgenid".to_owned(), new_secret());
            }
        }
    }
}
