//! `/nodes`: the node itself, its storages and its bridges.

use serde_json::{Value, json};

use super::Permission::{Any, Authenticated};
use super::{Answer, Call, Endpoint, endpoint};
use crate::auth::privileges::Access;
use crate::http::envelope::Refusal;
use crate::node::{network, resources, storage};
use crate::schema::tables::{NETWORK, NOTHING, STORAGE_CONTENT, STORAGE_DELETE, STORAGE_LIST};

const SEE_STORAGE: &[&str] = &["Datastore.Audit", "Datastore.AllocateSpace"];

pub(super) const ENDPOINTS: &[Endpoint] = &[
    endpoint!(GET "/nodes", Authenticated, [NOTHING] => list),
    endpoint!(GET "/nodes/{node}/status", Any("/nodes/{node}", &["Sys.Audit"]), [NOTHING] => status),
    endpoint!(GET "/nodes/{node}/network", Authenticated, [NETWORK] => bridges),
    endpoint!(GET "/nodes/{node}/storage", Authenticated, [STORAGE_LIST] => storages),
    endpoint!(GET "/nodes/{node}/storage/{storage}/content", Any("/storage/{storage}", SEE_STORAGE), [STORAGE_CONTENT] => content),
    endpoint!(DELETE "/nodes/{node}/storage/{storage}/content/{volume}", Authenticated, [STORAGE_DELETE] => delete_volume),
];

async fn list(call: Call) -> Answer {
    let node = &call.node;
    let mut row = json!({
        "node": node.name, "id": format!("node/{}", node.name), "type": "node", "status": "online", "level": "",
        "ssl_fingerprint": node.fingerprint,
    });
    if call.has(&format!("/nodes/{}", node.name), "Sys.Audit") {
        let metrics = [
            ("cpu", json!(0.02)),
            ("maxcpu", json!(resources::NODE_CPUS)),
            ("mem", json!(1_202_049_024_u64)),
            ("maxmem", json!(resources::NODE_MEMORY)),
            ("disk", json!(28_312_104_960_u64)),
            ("maxdisk", json!(270_553_174_016_u64)),
            ("uptime", json!(crate::clock::uptime())),
        ];
        for (key, value) in metrics {
            row[key] = value;
        }
    }
    Ok(json!([row]).into())
}

async fn status(call: Call) -> Answer {
    let node = &call.node;
    let (version, _, repoid) = node.release.version();
    let mut memory = json!({"total": resources::NODE_MEMORY, "used": 1_202_130_944_u64, "free": 20_600_131_584_u64});
    let mut cpuinfo = json!({
        "mhz": "2300.000", "user_hz": 100, "sockets": 1, "model": "Lab", "flags": "lab", "cores": 2, "cpus": 2, "hvm": "",
    });
    if node.major() >= 9 {
        memory["available"] = json!(24_074_379_264_u64);
        cpuinfo["vendor"] = json!("GenuineIntel");
        cpuinfo["family"] = json!("6");
    }
    Ok(json!({
        "cpu": 0.19, "wait": 0.0068, "idle": 0, "uptime": crate::clock::uptime(), "loadavg": ["0.29", "0.66", "0.82"],
        "cpuinfo": cpuinfo, "memory": memory, "swap": {"total": 0, "used": 0, "free": 0},
        "rootfs": {"total": 270_553_174_016_u64, "used": 28_312_117_248_u64, "free": 242_241_056_768_u64, "avail": 69_260_632_064_u64},
        "kversion": "Linux lab", "current-kernel": {"sysname": "Linux", "machine": "x86_64", "release": "lab", "version": "lab"},
        "boot-info": {"mode": "legacy-bios"}, "ksm": {"shared": 0},
        "pveversion": format!("pve-manager/{version}/{repoid}"),
    })
    .into())
}

async fn bridges(call: Call) -> Answer {
    let wanted = call.params.text("type");
    if wanted.is_some_and(|wanted| !matches!(wanted, "bridge" | "any_bridge" | "any_local_bridge" | "include_sdn")) {
        return Ok(json!([]).into());
    }
    let rows = call.node.access(&call.caller, |access, state| {
        let sees = |name: &str| {
            let zone = format!("/sdn/zones/localnetwork/{name}");
            let below = format!("{zone}/");
            access.has_any(&zone, &["SDN.Audit", "SDN.Use"])
                || state.cluster().acl.iter().any(|entry| {
                    entry.path.starts_with(&below) && access.has_any(&entry.path, &["SDN.Audit", "SDN.Use"])
                })
        };
        let bridges = state.cluster().bridges.iter().filter(|(name, _)| sees(name));
        bridges.map(|(name, bridge)| network::bridge_row(name, bridge)).collect::<Vec<Value>>()
    });
    Ok(Value::Array(rows).into())
}

async fn storages(call: Call) -> Answer {
    let contents = call.params.items("content");
    call.node.access(&call.caller, |access, state| {
        let cluster = state.cluster();
        if let Some(name) = call.params.text("storage").filter(|name| !cluster.storages.contains_key(*name)) {
            let _ = name;
            return Err(Refusal::parameter("storage", "No such storage."));
        }
        let rows = cluster.storages.iter().filter(|(name, found)| {
            call.params.text("storage").is_none_or(|wanted| wanted == *name)
                && (contents.is_empty() || contents.iter().any(|content| found.content.contains(content)))
                && !(call.params.flag("enabled") == Some(true) && found.disabled)
                && access.has_any(&format!("/storage/{name}"), SEE_STORAGE)
        });
        Ok(Value::Array(rows.map(|(name, found)| storage::row(cluster, name, found)).collect()).into())
    })
}

async fn content(call: Call) -> Answer {
    let name = call.params.text("storage").unwrap_or_default();
    call.node.access(&call.caller, |access, state| {
        let cluster = state.cluster();
        if !cluster.storages.contains_key(name) {
            return Err(Refusal::die(format!("storage '{name}' does not exist")));
        }
        let prefix = format!("{name}:");
        let rows = cluster.volumes.iter().filter(|(volid, volume)| {
            volid.starts_with(&prefix)
                && call.params.text("content").is_none_or(|wanted| wanted == volume.content)
                && call.params.vmid("vmid").is_none_or(|wanted| volume.vmid == Some(wanted))
                && may_see(access, name, volume)
        });
        Ok(Value::Array(rows.map(|(volid, volume)| storage::content_row(volid, volume)).collect()).into())
    })
}

fn may_see(access: Access<'_>, storage: &str, volume: &crate::state::Volume) -> bool {
    let path = format!("/storage/{storage}");
    if access.has(&path, "Datastore.Allocate") {
        return true;
    }
    match volume.vmid.map(|vmid| format!("/vms/{vmid}")) {
        Some(guest) if volume.content == "backup" => {
            access.has(&path, "Datastore.AllocateSpace") && access.has(&guest, "VM.Backup")
        }
        Some(guest) => access.has(&path, "Datastore.Audit") && access.has(&guest, "VM.Config.Disk"),
        None => access.has_any(&path, SEE_STORAGE),
    }
}

async fn delete_volume(call: Call) -> Answer {
    let storage = call.params.text("storage").unwrap_or_default().to_owned();
    let sent = call.params.text("volume").unwrap_or_default();
    let volid = if sent.contains(':') { sent.to_owned() } else { format!("{storage}:{sent}") };
    call.node.access(&call.caller, |access, state| {
        let path = format!("/storage/{storage}");
        let backup_of = state
            .cluster()
            .volumes
            .get(&volid)
            .filter(|volume| volume.content == "backup")
            .and_then(|volume| volume.vmid);
        let by_backup = backup_of.is_some_and(|vmid| {
            access.has(&path, "Datastore.AllocateSpace") && access.has(&format!("/vms/{vmid}"), "VM.Backup")
        });
        if by_backup { Ok(()) } else { access.require(&path, "Datastore.Allocate") }
    })?;
    if !call.node.read().cluster().storages.contains_key(&storage) {
        return Err(Refusal::die(format!("storage '{storage}' does not exist")));
    }
    let node = std::sync::Arc::clone(&call.node);
    let id = volid.split_once(':').map_or(volid.as_str(), |(_, path)| path).replace(['/', ':'], "-");
    let upid = call.node.start_task(
        &call.caller,
        call.effects.clone(),
        ("imgdel", &format!("{id}@{storage}")),
        |task| async move {
            task.work(crate::node::Work::Destroy).await?;
            let mut state = node.write();
            if storage::has_children(state.cluster(), &volid) {
                return Err(format!("base volume '{volid}' is still in use by linked clones"));
            }
            match state.cluster_mut().volumes.remove(&volid) {
                Some(_) => Ok(0),
                None => Err(format!("volume '{volid}' does not exist")),
            }
        },
    );
    Ok(json!(upid).into())
}
