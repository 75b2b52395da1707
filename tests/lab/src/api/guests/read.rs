//! Lists, states and configurations.

use serde_json::{Map, Value, json};

use super::super::{Answer, Call};
use crate::http::envelope::Refusal;
use crate::node::config;
use crate::node::guests::{Guest, Kind};
use crate::node::storage::Ability;
use crate::runtime::Vmid;
use crate::state::State;

pub(crate) async fn list(call: Call, kind: Kind) -> Answer {
    let ids: Vec<Vmid> = {
        let state = call.node.read();
        state.guests().values().filter(|guest| guest.kind == kind).map(|guest| guest.vmid).collect()
    };
    let mut rows = Vec::new();
    for vmid in ids {
        if call.has(&format!("/vms/{vmid}"), "VM.Audit") {
            let pid = call.node.pid(vmid).await;
            if let Ok(guest) = call.node.guest(kind, vmid) {
                rows.push(Value::Object(guest.row(pid, call.node.major())));
            }
        }
    }
    Ok(Value::Array(rows).into())
}

pub(crate) async fn status(call: Call, kind: Kind) -> Answer {
    let vmid = call.vmid();
    let pid = call.node.pid(vmid).await;
    let guest = call.node.guest(kind, vmid).map_err(Refusal::die)?;
    let mut row = guest.row(pid, call.node.major());
    row.insert("ha".to_owned(), ha(&call, kind, vmid));
    if kind == Kind::Qemu {
        let status = row["status"].clone();
        row.insert("qmpstatus".to_owned(), status);
        row.insert("clipboard".to_owned(), Value::Null);
        if has_agent(&guest) {
            row.insert("agent".to_owned(), json!(1));
        }
        if pid.is_some() {
            let nics = guest.config.keys().filter(|key| config::base(kind, key) == "net");
            let nics: Map<String, Value> =
                nics.map(|key| (format!("tap{vmid}i{}", &key[3..]), json!({"netin": 110, "netout": 0}))).collect();
            row.insert("nics".to_owned(), Value::Object(nics));
        }
    }
    Ok(Value::Object(row).into())
}

fn ha(call: &Call, kind: Kind, vmid: Vmid) -> Value {
    let sid = format!("{}:{vmid}", if kind == Kind::Lxc { "ct" } else { "vm" });
    match call.node.read().cluster().ha.get(&sid) {
        Some(resource) => json!({"managed": 1, "state": resource.state}),
        None => json!({"managed": 0}),
    }
}

pub(crate) fn has_agent(guest: &Guest) -> bool {
    guest.get("agent").is_some_and(|agent| agent.split(',').any(|part| part == "1" || part == "enabled=1"))
}

pub(crate) async fn config(call: Call, kind: Kind) -> Answer {
    let guest = call.node.guest(kind, call.vmid()).map_err(Refusal::die)?;
    let current = call.params.flag("current") == Some(true);
    match call.params.text("snapshot") {
        Some(_) if current => {
            let text = "cannot use 'snapshot' parameter with 'current'";
            Err(Refusal::parameters([("snapshot".to_owned(), text.to_owned())].into()))
        }
        Some(name) => {
            let snapshot = guest.snapshots.iter().find(|snapshot| snapshot.name == name);
            let snapshot = snapshot.ok_or_else(|| Refusal::die(format!("snapshot '{name}' does not exist")))?;
            let mut shown = guest.values_json(&snapshot.config);
            shown.insert("digest".to_owned(), json!(guest.digest()));
            shown.insert("snaptime".to_owned(), json!(snapshot.time));
            Ok(Value::Object(shown).into())
        }
        None => Ok(guest.config_json(current).into()),
    }
}

pub(crate) async fn pending(call: Call, kind: Kind) -> Answer {
    Ok(call.node.guest(kind, call.vmid()).map_err(Refusal::die)?.pending_json().into())
}

/// Whether every volume of a guest lies where `ability` exists.
pub(crate) fn all_volumes_can(state: &State, guest: &Guest, ability: Ability) -> bool {
    guest.volume_ids().iter().all(|volid| {
        volid
            .split_once(':')
            .and_then(|(storage, _)| state.cluster().storages.get(storage))
            .is_some_and(|storage| storage.can(guest.kind, ability))
    })
}

pub(crate) async fn feature(call: Call, kind: Kind) -> Answer {
    let guest = call.node.guest(kind, call.vmid()).map_err(Refusal::die)?;
    if let Some(name) =
        call.params.text("snapname").filter(|name| !guest.snapshots.iter().any(|snapshot| snapshot.name == *name))
    {
        return Err(Refusal::die(format!("snapshot '{name}' does not exist")));
    }
    let state = call.node.read();
    let has = match call.params.text("feature") {
        Some("snapshot") => !guest.is_template() && all_volumes_can(&state, &guest, Ability::Snapshot),
        Some("clone") => guest.is_template() && all_volumes_can(&state, &guest, Ability::LinkedClone),
        _ => true,
    };
    let mut answer = json!({"hasFeature": u8::from(has)});
    if kind == Kind::Qemu {
        answer["nodes"] = if has { json!([call.node.name]) } else { json!([]) };
    }
    Ok(answer.into())
}

/// Interfaces of a container, sampled now; null when it does not run or is not there.
pub(crate) async fn interfaces(call: Call) -> Answer {
    let vmid = call.vmid();
    if call.node.guest(Kind::Lxc, vmid).is_err() || call.node.pid(vmid).await.is_none() {
        return Ok(Value::Null.into());
    }
    let with_all = call.node.release.has_ip_addresses();
    let rows = call.node.runtime.interfaces(vmid).await.into_iter().map(|interface| {
        let mut row = json!({"name": interface.name, "hwaddr": interface.mac});
        // The last address of a family is the one that shows.
        if let Some((address, prefix)) = interface.inet.last() {
            row["inet"] = json!(format!("{address}/{prefix}"));
        }
        if let Some((address, prefix)) = interface.inet6.last() {
            row["inet6"] = json!(format!("{address}/{prefix}"));
        }
        if with_all {
            let address = |kind: &str, (address, prefix): &(String, u8)| {
                json!({"ip-address": address, "ip-address-type": kind, "prefix": prefix.to_string()})
            };
            let four = interface.inet.iter().map(|found| address("inet", found));
            let six = interface.inet6.iter().map(|found| address("inet6", found));
            row["hardware-address"] = json!(interface.mac);
            row["ip-addresses"] = Value::Array(four.chain(six).collect());
        }
        row
    });
    Ok(Value::Array(rows.collect()).into())
}
