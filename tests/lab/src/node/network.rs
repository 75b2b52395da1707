//! Bridges and network cards.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::runtime::{Address, Nic};
use crate::schema::properties::Properties;
use crate::state::Bridge;

/// A new MAC with Proxmox's prefix.
pub(crate) fn random_mac() -> String {
    let [a, b, c] = rand::random::<[u8; 3]>();
    format!("BC:24:11:{a:02X}:{b:02X}:{c:02X}")
}

/// What the runtime gets of a `netN`; none without a bridge, as that is a card nobody plugs in.
pub(crate) fn nic(net: &Properties) -> Option<Nic> {
    let address = match net.get("ip").map(String::as_str) {
        Some("dhcp") => Address::Dhcp,
        None | Some("manual") => Address::Manual,
        Some(cidr) => {
            let (address, prefix) = cidr.split_once('/')?;
            Address::Static {
                cidr: (address.parse::<Ipv4Addr>().ok()?, prefix.parse().ok()?),
                gateway: net.get("gw").and_then(|gateway| gateway.parse().ok()),
            }
        }
    };
    Some(Nic {
        name: net.get("name")?.clone(),
        mac: net.get("hwaddr")?.clone(),
        bridge: net.get("bridge")?.clone(),
        address,
    })
}

/// A row of the network list.
pub(crate) fn bridge_row(name: &str, bridge: &Bridge) -> Value {
    let mut row = json!({
        "iface": name, "type": "bridge", "active": 1, "autostart": 1, "bridge_ports": "", "bridge_stp": "off",
        "bridge_fd": "0", "method": "manual", "method6": "manual", "priority": 3, "families": ["inet"],
    });
    if let Some((address, prefix)) = bridge.cidr.as_deref().and_then(|cidr| cidr.split_once('/')) {
        row["method"] = json!("static");
        row["cidr"] = json!(format!("{address}/{prefix}"));
        row["address"] = json!(address);
        row["netmask"] = json!(prefix);
    }
    row
}
