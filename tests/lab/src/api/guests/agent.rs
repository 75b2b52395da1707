//! The guest agent of a virtual machine. As VMs are records, it answers only where the control endpoint said so.

use serde_json::{Value, json};

use super::super::{Answer, Call};
use super::read::has_agent;
use crate::http::envelope::Refusal;
use crate::node::config;
use crate::node::guests::{Agent, Guest, Kind};

fn reach(call: &Call) -> Result<Guest, Refusal> {
    let vmid = call.vmid();
    let guest = call.node.guest(Kind::Qemu, vmid).map_err(Refusal::die)?;
    if guest.running.is_none() {
        return Err(Refusal::die(format!("VM {vmid} is not running")));
    }
    if !has_agent(&guest) {
        return Err(Refusal::die("No QEMU guest agent configured"));
    }
    if guest.agent == Agent::Absent {
        return Err(Refusal::die("QEMU guest agent is not running"));
    }
    Ok(guest)
}

pub(crate) async fn ping(call: Call) -> Answer {
    reach(&call)?;
    Ok(json!({"result": {}}).into())
}

pub(crate) async fn interfaces(call: Call) -> Answer {
    let guest = reach(&call)?;
    let statistics = || {
        json!({"rx-errs": 0, "tx-bytes": 0, "tx-packets": 0, "rx-dropped": 0, "rx-packets": 0, "tx-dropped": 0,
               "rx-bytes": 0, "tx-errs": 0})
    };
    let mut rows = vec![json!({
        "name": "lo", "hardware-address": "00:00:00:00:00:00", "statistics": statistics(),
        "ip-addresses": [{"ip-address": "127.0.0.1", "ip-address-type": "ipv4", "prefix": 8},
                         {"ip-address": "::1", "ip-address-type": "ipv6", "prefix": 128}],
    })];
    for index in 0..32 {
        let Some(net) = guest.get(&format!("net{index}")) else {
            continue;
        };
        let mac = config::parse_net(Kind::Qemu, net).get("macaddr").map(|mac| mac.to_ascii_lowercase());
        let address = guest
            .get(&format!("ipconfig{index}"))
            .and_then(|value| value.split(',').find_map(|part| part.strip_prefix("ip=")))
            .and_then(|cidr| cidr.split_once('/'))
            .and_then(|(address, prefix)| Some((address.to_owned(), prefix.parse::<u8>().ok()?)));
        let addresses: Vec<Value> = address
            .into_iter()
            .map(|(address, prefix)| json!({"ip-address": address, "ip-address-type": "ipv4", "prefix": prefix}))
            .collect();
        rows.push(json!({
            "name": format!("eth{index}"), "hardware-address": mac, "ip-addresses": addresses, "statistics": statistics(),
        }));
    }
    Ok(json!({"result": rows}).into())
}
