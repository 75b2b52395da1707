//! `/version` and `/cluster`.

use serde_json::{Value, json};

use super::Permission::{Any, Authenticated};
use super::{Answer, Call, Endpoint, endpoint};
use crate::http::envelope::Refusal;
use crate::node::{resources, storage};
use crate::schema::tables::{NEXTID, NOTHING, RESOURCES};

pub(super) const ENDPOINTS: &[Endpoint] = &[
    endpoint!(GET "/version", Authenticated, [NOTHING] => version),
    endpoint!(GET "/cluster/resources", Authenticated, [RESOURCES] => all_resources),
    endpoint!(GET "/cluster/nextid", Authenticated, [NEXTID] => nextid),
    endpoint!(GET "/cluster/status", Any("/", &["Sys.Audit"]), [NOTHING] => status),
];

async fn version(call: Call) -> Answer {
    let (version, release, repoid) = call.node.release.version();
    Ok(json!({"version": version, "release": release, "repoid": repoid}).into())
}

async fn status(call: Call) -> Answer {
    let name = &call.node.name;
    Ok(json!([{
        "type": "node", "id": format!("node/{name}"), "name": name, "online": 1, "local": 1, "ip": "127.0.0.1",
        "nodeid": 0, "level": "",
    }])
    .into())
}

async fn nextid(call: Call) -> Answer {
    let state = call.node.read();
    if let Some(vmid) = call.params.vmid("vmid") {
        return match state.guest(vmid) {
            Some(_) => Err(Refusal::parameter("vmid", format!("VM {vmid} already exists"))),
            None => Ok(json!(vmid.to_string()).into()),
        };
    }
    let from = state.cluster().settings.nextid_from;
    match (from..1_000_000).find(|vmid| state.guest(*vmid).is_none()) {
        Some(free) => Ok(json!(free.to_string()).into()),
        None => Err(Refusal::die(format!("unable to get any free VMID in range [{from}, 999999]"))),
    }
}

async fn all_resources(call: Call) -> Answer {
    let wanted = call.params.text("type");
    let wants = |kind: &str| wanted.is_none_or(|wanted| wanted == kind);
    let node = &call.node;
    let mut rows: Vec<Value> = Vec::new();
    if wanted.is_none() {
        let pools: Vec<String> = node.read().cluster().pools.keys().cloned().collect();
        for pool in pools.iter().filter(|pool| call.has(&format!("/pool/{pool}"), "Pool.Audit")) {
            rows.push(json!({"id": format!("/pool/{pool}"), "type": "pool", "pool": pool}));
        }
    }
    if wants("vm") {
        let ids: Vec<_> = node.read().guests().keys().copied().collect();
        for vmid in ids {
            if call.has(&format!("/vms/{vmid}"), "VM.Audit") {
                rows.extend(node.resource_row(vmid).await.map(Value::Object));
            }
        }
    }
    if wants("node") {
        let mut row = json!({
            "id": format!("node/{}", node.name), "type": "node", "node": node.name, "status": "online", "level": "",
        });
        if call.has(&format!("/nodes/{}", node.name), "Sys.Audit") {
            let metrics = [
                ("cpu", json!(0.04)),
                ("maxcpu", json!(resources::NODE_CPUS)),
                ("mem", json!(1_265_860_608_u64)),
                ("maxmem", json!(resources::NODE_MEMORY)),
                ("disk", json!(28_122_566_656_u64)),
                ("maxdisk", json!(270_553_174_016_u64)),
                ("uptime", json!(crate::clock::uptime())),
                ("cgroup-mode", json!(2)),
            ];
            for (key, value) in metrics {
                row[key] = value;
            }
        }
        rows.push(row);
    }
    if wants("storage") {
        let state = node.read();
        for (name, found) in &state.cluster().storages {
            let path = format!("/storage/{name}");
            let access =
                crate::auth::privileges::Access { cluster: state.cluster(), caller: &call.caller, major: node.major() };
            if access.has(&path, "Datastore.Audit") {
                rows.push(json!({
                    "id": format!("storage/{}/{name}", node.name), "type": "storage", "storage": name, "node": node.name,
                    "plugintype": found.kind, "content": storage::joined(&found.content), "shared": 0,
                    "status": if found.disabled { "unknown" } else { "available" },
                    "disk": storage::used(state.cluster(), name), "maxdisk": found.capacity,
                }));
            }
        }
    }
    let sdn = call.has("/sdn/zones/localnetwork", "SDN.Audit") && (wanted.is_none() || wanted == Some("sdn"));
    if sdn && (node.major() < 9 || wanted.is_none()) {
        let id = format!("{}/localnetwork", node.name);
        rows.push(if node.major() >= 9 {
            json!({"id": format!("network/{}/zone/localnetwork", node.name), "type": "network", "network": "localnetwork",
                   "network-type": "zone", "node": node.name, "status": "ok"})
        } else {
            json!({"id": format!("sdn/{id}"), "type": "sdn", "sdn": "localnetwork", "node": node.name, "status": "ok"})
        });
    }
    Ok(Value::Array(rows).into())
}
