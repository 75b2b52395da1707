//! `/pools`.

use serde_json::{Map, Value, json};

use super::Permission::{Any, Authenticated};
use super::{Answer, Call, Endpoint, endpoint};
use crate::http::envelope::Refusal;
use crate::runtime::Vmid;
use crate::schema::tables::{POOL_CREATE, POOL_DELETE, POOL_LIST, POOL_UPDATE};
use crate::state::Pool;

const WRITE: super::Permission = Any("/pool/{poolid}", &["Pool.Allocate"]);

pub(super) const ENDPOINTS: &[Endpoint] = &[
    endpoint!(GET "/pools", Authenticated, [POOL_LIST] => list),
    endpoint!(POST "/pools", WRITE, [POOL_CREATE] => create),
    endpoint!(PUT "/pools", WRITE, [POOL_UPDATE] => update),
    endpoint!(DELETE "/pools", WRITE, [POOL_DELETE] => delete),
];

fn pool_id(call: &Call) -> String {
    call.params.text("poolid").unwrap_or_default().to_owned()
}

fn missing(pool: &str) -> String {
    format!("pool '{pool}' does not exist")
}

async fn list(call: Call) -> Answer {
    let node = &call.node;
    let pools = node.read().cluster().pools.clone();
    let Some(wanted) = call.params.text("poolid") else {
        let seen = pools.iter().filter(|(name, _)| call.has(&format!("/pool/{name}"), "Pool.Audit"));
        return Ok(Value::Array(seen.map(|(name, pool)| Value::Object(head(name, pool))).collect()).into());
    };
    call.require(&format!("/pool/{wanted}"), "Pool.Audit")?;
    let pool = pools.get(wanted).ok_or_else(|| Refusal::die(missing(wanted)))?;
    let kind = call.params.text("type");
    let mut members = Vec::new();
    for vmid in &pool.vms {
        if let Some(mut row) = node.resource_row(*vmid).await {
            row.remove("pool");
            if kind.is_none_or(|kind| row["type"] == kind) {
                members.push(Value::Object(row));
            }
        }
    }
    if kind.is_none_or(|kind| kind == "storage") {
        members.extend(pool.storages.iter().map(|name| {
            json!({"id": format!("storage/{}/{name}", node.name), "type": "storage", "storage": name, "node": node.name})
        }));
    }
    let mut row = head(wanted, pool);
    row.insert("members".to_owned(), Value::Array(members));
    Ok(json!([row]).into())
}

fn head(name: &str, pool: &Pool) -> Map<String, Value> {
    let mut row = Map::from_iter([("poolid".to_owned(), json!(name))]);
    if let Some(comment) = &pool.comment {
        row.insert("comment".to_owned(), json!(comment));
    }
    row
}

async fn create(call: Call) -> Answer {
    call.user_cfg("create pool failed: ")?;
    let pool = pool_id(&call);
    if call.node.major() >= 9 && !pool.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Err(Refusal::die(format!("create pool failed: pool name '{pool}' must start with a letter")));
    }
    let mut state = call.node.write();
    if state.cluster().pools.contains_key(&pool) {
        return Err(Refusal::die(format!("create pool failed: pool '{pool}' already exists")));
    }
    let comment = call.params.text("comment").map(str::to_owned);
    state.cluster_mut().pools.insert(pool, Pool { comment, ..Pool::default() });
    Ok(Value::Null.into())
}

async fn update(call: Call) -> Answer {
    call.user_cfg("update pools failed: ")?;
    let pool = pool_id(&call);
    let fail = |text: String| Refusal::die(format!("update pools failed: {text}"));
    let vms: Vec<Vmid> = call.params.items("vms").iter().filter_map(|id| id.parse().ok()).collect();
    let storages = call.params.items("storage");
    let removes = call.params.flag("delete") == Some(true);
    let moves = call.params.flag("allow-move") == Some(true);
    if !call.node.read().cluster().pools.contains_key(&pool) {
        return Err(fail(missing(&pool)));
    }
    call.node.access(&call.caller, |access, _| {
        let guests = vms.iter().map(|vmid| (format!("/vms/{vmid}"), &["VM.Allocate", "Permissions.Modify"]));
        let stores =
            storages.iter().map(|name| (format!("/storage/{name}"), &["Datastore.Allocate", "Permissions.Modify"]));
        guests.chain(stores).try_for_each(|(path, wanted)| access.require_any(&path, wanted))
    })?;
    let mut state = call.node.write();
    for vmid in &vms {
        let owner =
            state.cluster().pools.iter().find(|(_, pool)| pool.vms.contains(vmid)).map(|(name, _)| name.clone());
        match owner {
            Some(owner) if owner == pool && removes => {}
            _ if removes => return Err(fail(format!("VM {vmid} is not a pool member"))),
            Some(owner) if owner == pool => {
                return Err(fail(format!("VM {vmid} is already a pool member")));
            }
            Some(owner) if !moves => {
                return Err(fail(format!("VM {vmid} belongs already to pool '{owner}' and 'allow-move' is not set")));
            }
            _ => {}
        }
    }
    let cluster = state.cluster_mut();
    for vmid in &vms {
        cluster.pools.values_mut().for_each(|pool| pool.vms.retain(|member| member != vmid));
    }
    if let Some(pool) = cluster.pools.get_mut(&pool) {
        if !removes {
            pool.vms.extend(&vms);
        }
        for name in storages {
            if removes {
                pool.storages.remove(&name);
            } else {
                pool.storages.insert(name);
            }
        }
        if let Some(comment) = call.params.text("comment") {
            pool.comment = Some(comment.to_owned());
        }
    }
    Ok(Value::Null.into())
}

async fn delete(call: Call) -> Answer {
    call.user_cfg("delete pool failed: ")?;
    let pool = pool_id(&call);
    let fail = |text: String| Refusal::die(format!("delete pool failed: {text}"));
    let mut state = call.node.write();
    let Some(found) = state.cluster().pools.get(&pool) else {
        return Err(fail(missing(&pool)));
    };
    if let Some(vmid) = found.vms.first() {
        return Err(fail(format!("pool '{pool}' is not empty (contains VM {vmid})")));
    }
    if let Some(storage) = found.storages.first() {
        return Err(fail(format!("pool '{pool}' is not empty (contains storage '{storage}')")));
    }
    state.cluster_mut().pools.remove(&pool);
    Ok(Value::Null.into())
}
