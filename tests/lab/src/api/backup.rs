//! `vzdump`. The archive is a small file with the configuration in it: what is in a guest stays there.

use std::sync::Arc;

use serde_json::json;

use super::Permission::Authenticated;
use super::{Answer, Call, Endpoint, endpoint};
use crate::auth::Caller;
use crate::clock;
use crate::http::envelope::Refusal;
use crate::node::guests::Kind;
use crate::node::tasks::Handle;
use crate::node::{Node, Work, storage};
use crate::runtime::Vmid;
use crate::schema::tables::VZDUMP;
use crate::state::Volume;

pub(super) const ENDPOINTS: &[Endpoint] = &[endpoint!(POST "/nodes/{node}/vzdump", Authenticated, [VZDUMP] => vzdump)];

async fn vzdump(call: Call) -> Answer {
    let params = &call.params;
    if let Some(name) = ["tmpdir", "dumpdir", "script", "job-id"].into_iter().find(|name| params.has(name)) {
        return Err(Refusal::parameter(name, "Only root may set this option."));
    }
    let target = params.text("storage").unwrap_or("local").to_owned();
    call.require(&format!("/storage/{target}"), "Datastore.AllocateSpace")?;
    if params.has("prune-backups") {
        call.require(&format!("/storage/{target}"), "Datastore.Allocate")?;
    }
    for _ in ["bwlimit", "ionice", "performance"].into_iter().filter(|name| params.has(name)) {
        call.require("/", "Sys.Modify")?;
    }
    storage::find(call.node.read().cluster(), &target, "backup").map_err(|text| {
        Refusal::die(if text.starts_with("content type") {
            format!("storage '{target}' does not support backups")
        } else {
            text
        })
    })?;
    let guests = chosen(&call)?;
    if guests.is_empty() {
        return Ok(json!("OK").into());
    }
    let id = if let [one] = guests.as_slice() { one.to_string() } else { String::new() };
    let suffix = match params.text("compress") {
        Some("zstd") => ".zst",
        Some("gzip") => ".gz",
        Some("lzo" | "1") => ".lzo",
        _ => "",
    }
    .to_owned();
    let (node, caller) = (Arc::clone(&call.node), call.caller.clone());
    let upid = call.node.start_task(&call.caller, call.effects.clone(), ("vzdump", &id), |task| async move {
        task.log(format!("INFO: starting new backup job: vzdump --storage {target} --node {}", node.name));
        let mut failed = false;
        for vmid in &guests {
            node.access(&caller, |access, _| access.require(&format!("/vms/{vmid}"), "VM.Backup"))
                .map_err(|refusal| format!("403 {}", refusal.message))?;
        }
        for vmid in guests {
            if let Err(text) = back_up(&node, &task, &caller, vmid, &target, &suffix).await {
                task.log(format!("ERROR: Backup of VM {vmid} failed - {text}"));
                failed = true;
            }
        }
        if failed { Err("job errors".to_owned()) } else { Ok(0) }
    });
    Ok(json!(upid).into())
}

/// The guests of a job, in order.
fn chosen(call: &Call) -> Result<Vec<Vmid>, Refusal> {
    let params = &call.params;
    let ids = |name: &str| params.items(name).iter().filter_map(|id| id.parse().ok()).collect::<Vec<Vmid>>();
    let excluded = ids("exclude");
    let state = call.node.read();
    let mut found = if params.flag("all") == Some(true) {
        state.guests().keys().copied().collect()
    } else if let Some(pool) = params.text("pool") {
        let pool =
            state.cluster().pools.get(pool).ok_or_else(|| Refusal::die(format!("pool '{pool}' does not exist")))?;
        pool.vms.iter().copied().collect()
    } else if params.has("vmid") {
        ids("vmid")
    } else {
        return Err(Refusal::parameter("vmid", "property is missing and it is not optional"));
    };
    found.retain(|vmid| !excluded.contains(vmid));
    Ok(found)
}

async fn back_up(
    node: &Node,
    task: &Handle,
    caller: &Caller,
    vmid: Vmid,
    target: &str,
    suffix: &str,
) -> Result<(), String> {
    let kind = node.read().guest(vmid).map(|guest| guest.kind);
    let kind = kind.ok_or_else(|| format!("unable to find VM '{vmid}'"))?;
    tracing::debug!(vmid, owner = caller.id, "backup");
    task.log(format!("INFO: Starting Backup of VM {vmid} ({})", kind.name()));
    {
        let _held = node.lock_config(kind, vmid).await?;
        let guest = node.guest(kind, vmid)?;
        guest.check_lock()?;
        node.change(kind, vmid, |guest| guest.set_lock("backup"))?;
    }
    let done = task.interruptible(task.work(Work::Backup)).await;
    node.change(kind, vmid, |guest| guest.clear_lock())?;
    done?;
    if task.effects.storage_full {
        return Err("No space left on device".to_owned());
    }
    let mut state = node.write();
    let size = match state.cluster().volumes.values().find(|volume| volume.vmid == Some(vmid)) {
        Some(volume) => volume.size / 28,
        None => 1 << 20,
    };
    let room = state.cluster().storages.get(target).map_or(0, |found| found.capacity);
    if storage::used(state.cluster(), target) + size > room {
        return Err("No space left on device".to_owned());
    }
    let now = clock::epoch();
    let [year, month, day, hour, minute, second] = clock::civil(now);
    let format = if kind == Kind::Lxc { "tar" } else { "vma" };
    let name = format!(
        "vzdump-{}-{vmid}-{year}_{month:02}_{day:02}-{hour:02}_{minute:02}_{second:02}.{format}{suffix}",
        kind.name()
    );
    let volume = Volume {
        vmid: Some(vmid),
        content: "backup".to_owned(),
        format: format!("{format}{suffix}"),
        size,
        used: size,
        ctime: now,
        base: None,
        subtype: Some(kind.name().to_owned()),
    };
    state.cluster_mut().volumes.insert(format!("{target}:backup/{name}"), volume);
    drop(state);
    task.log(format!("INFO: creating vzdump archive '/var/lib/vz/dump/{name}'"));
    task.log(format!("INFO: Finished Backup of VM {vmid} (00:00:00)"));
    Ok(())
}
