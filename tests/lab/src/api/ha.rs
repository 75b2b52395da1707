//! `/cluster/ha`: enough to see that a guest is managed. Nothing manages it: starts and stops stay direct.

use serde_json::{Value, json};

use super::Permission::Any;
use super::{Answer, Call, Endpoint, endpoint};
use crate::http::envelope::Refusal;
use crate::node::guests::Kind;
use crate::runtime::Vmid;
use crate::schema::tables::{HA_CREATE, HA_DELETE, HA_LIST, NOTHING};
use crate::state::HaResource;

const READ: super::Permission = Any("/", &["Sys.Audit"]);
const WRITE: super::Permission = Any("/", &["Sys.Console"]);

pub(super) const ENDPOINTS: &[Endpoint] = &[
    endpoint!(GET "/cluster/ha/resources", READ, [HA_LIST] => list),
    endpoint!(POST "/cluster/ha/resources", WRITE, [HA_CREATE] => create),
    endpoint!(GET "/cluster/ha/resources/{sid}", READ, [NOTHING] => get),
    endpoint!(DELETE "/cluster/ha/resources/{sid}", WRITE, [HA_DELETE] => delete),
    endpoint!(GET "/cluster/ha/groups", READ, [NOTHING] => groups),
];

fn split(sid: &str) -> (Option<Kind>, Vmid) {
    let (kind, id) = match sid.split_once(':') {
        Some(("ct", id)) => (Some(Kind::Lxc), id),
        Some((_, id)) => (Some(Kind::Qemu), id),
        None => (None, sid),
    };
    (kind, id.parse().unwrap_or_default())
}

fn full_sid(call: &Call) -> Result<String, String> {
    let sent = call.params.text("sid").unwrap_or_default();
    let (kind, vmid) = split(sent);
    let found = call.node.read().guest(vmid).map(|guest| guest.kind);
    let name = |kind: Kind| format!("{}:{vmid}", if kind == Kind::Lxc { "ct" } else { "vm" });
    match (kind, found) {
        (Some(wanted), Some(found)) if wanted == found => Ok(name(found)),
        (None, Some(found)) => Ok(name(found)),
        (Some(wanted), _) => Err(name(wanted)),
        (None, None) => Err(name(Kind::Qemu)),
    }
}

async fn list(call: Call) -> Answer {
    let wanted = call.params.text("type");
    let state = call.node.read();
    let rows = state.cluster().ha.iter().filter(|(sid, _)| wanted.is_none_or(|kind| sid.starts_with(kind)));
    Ok(Value::Array(rows.map(|(sid, resource)| row(sid, resource)).collect()).into())
}

fn row(sid: &str, resource: &HaResource) -> Value {
    let mut row = json!({
        "sid": sid, "type": sid.split(':').next(), "state": resource.state, "digest": "0".repeat(40),
        "max_restart": 1, "max_relocate": 1,
    });
    if let Some(comment) = &resource.comment {
        row["comment"] = json!(comment);
    }
    row
}

async fn get(call: Call) -> Answer {
    let sid = full_sid(&call).unwrap_or_else(|sid| sid);
    let state = call.node.read();
    let resource = state.cluster().ha.get(&sid);
    resource.map(|resource| row(&sid, resource).into()).ok_or_else(|| Refusal::die(format!("no such resource '{sid}'")))
}

async fn create(call: Call) -> Answer {
    let sid = full_sid(&call).map_err(|sid| Refusal::die(format!("resource '{sid}' does not exist in cluster")))?;
    if call.params.has("group") && call.node.major() >= 9 {
        return Err(Refusal::die("invalid parameter 'group': ha groups have been migrated to rules"));
    }
    let mut state = call.node.write();
    if state.cluster().ha.contains_key(&sid) {
        return Err(Refusal::die(format!("create resource failed: resource ID '{sid}' already defined")));
    }
    let wanted = call.params.text("state").unwrap_or("started").to_owned();
    let comment = call.params.text("comment").map(str::to_owned);
    state.cluster_mut().ha.insert(sid, HaResource { state: wanted, comment });
    Ok(Value::Null.into())
}

async fn delete(call: Call) -> Answer {
    let sid = full_sid(&call).unwrap_or_else(|sid| sid);
    match call.node.write().cluster_mut().ha.remove(&sid) {
        Some(_) => Ok(Value::Null.into()),
        None => Err(Refusal::die(format!("cannot delete service '{sid}', not HA managed!"))),
    }
}

/// Groups became rules in release 9.
async fn groups(call: Call) -> Answer {
    if call.node.major() >= 9 {
        return Err(Refusal::die("cannot index groups: ha groups have been migrated to rules"));
    }
    Ok(json!([]).into())
}
