//! Guests as Proxmox shows them (pve-api 4 and 5).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use contract::ids::{Mac, NodeName, Vmid};
use contract::manifest::GuestKind;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::decode;
use super::marker::{InvalidMarker, Marker};
use super::net::{InvalidNet, Net};
use super::tags::Tags;

/// Which guest, and where it is now.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GuestRef {
    /// Container or virtual machine.
    pub kind: GuestKind,
    /// The node that has it; a migration changes this.
    pub node: NodeName,
    /// Its number.
    pub vmid: Vmid,
}

impl GuestRef {
    /// `lxc` or `qemu`, as in paths and rows.
    pub fn family(&self) -> &'static str {
        match self.kind {
            GuestKind::Lxc => "lxc",
            GuestKind::Vm => "qemu",
        }
    }
}

impl fmt::Display for GuestRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} on {}", self.family(), self.vmid, self.node)
    }
}

/// Whether a guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// It does; a paused virtual machine too.
    Running,
    /// It does not.
    Stopped,
    /// Proxmox does not know yet: a new guest, or its node is away.
    Unknown,
}

impl RunState {
    fn of(text: Option<&str>) -> Self {
        match text {
            Some("running") => Self::Running,
            Some("stopped") => Self::Stopped,
            _ => Self::Unknown,
        }
    }
}

/// A row of the cluster's resources. Lock, tags and pool are live; state, name and template may be 10 s old.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestRow {
    /// Which guest.
    pub guest: GuestRef,
    /// Its name, once Proxmox has seen it.
    pub name: Option<String>,
    /// Whether it ran when last looked at.
    pub state: RunState,
    /// Whether it was a template when last looked at.
    pub template: bool,
    /// Its tags.
    pub tags: Tags,
    /// The pool that it is in, if the token may see that.
    pub pool: Option<String>,
    /// The operation that holds it.
    pub lock: Option<String>,
}

/// The wire form of [`GuestRow`]; rows of other types have no number.
#[derive(Deserialize)]
struct RawRow {
    #[serde(rename = "type", default)]
    family: Option<String>,
    #[serde(default, deserialize_with = "decode::maybe_number")]
    vmid: Option<u64>,
    #[serde(default)]
    node: Option<String>,
    #[serde(default, deserialize_with = "decode::maybe_text")]
    name: Option<String>,
    #[serde(default)]
    status: Option<String>,
    #[serde(default, deserialize_with = "decode::any_flag")]
    template: bool,
    #[serde(default, deserialize_with = "decode::maybe_text")]
    tags: Option<String>,
    #[serde(default, deserialize_with = "decode::maybe_text")]
    pool: Option<String>,
    #[serde(default, deserialize_with = "decode::maybe_text")]
    lock: Option<String>,
}

impl GuestRow {
    /// Guests among rows of `/cluster/resources`, a node's guest list (which names neither node nor always the type) or a
    /// pool's members.
    pub fn decode(data: Value, listed: Option<(&NodeName, GuestKind)>) -> Result<Vec<Self>, String> {
        let rows: Vec<RawRow> = decode::rows(data)?;
        rows.into_iter().filter_map(|row| row.into_guest(listed).transpose()).collect()
    }
}

impl RawRow {
    fn into_guest(self, listed: Option<(&NodeName, GuestKind)>) -> Result<Option<GuestRow>, String> {
        let kind = match (self.family.as_deref(), listed) {
            (_, Some((_, kind))) => kind,
            (Some("lxc"), None) => GuestKind::Lxc,
            (Some("qemu"), None) => GuestKind::Vm,
            _ => return Ok(None),
        };
        let vmid = self.vmid.and_then(|vmid| u32::try_from(vmid).ok()).ok_or("a guest row has no number")?;
        let vmid = Vmid::try_from(vmid).map_err(|error| error.to_string())?;
        let node = match (self.node, listed) {
            (Some(node), _) => node.parse().map_err(|error: contract::ids::InvalidId| error.to_string())?,
            (None, Some((node, _))) => node.clone(),
            (None, None) => return Err(format!("the row of guest {vmid} has no node")),
        };
        Ok(Some(GuestRow {
            guest: GuestRef { kind, node, vmid },
            name: self.name,
            state: RunState::of(self.status.as_deref()),
            template: self.template,
            tags: Tags::parse(self.tags.as_deref().unwrap_or_default()),
            pool: self.pool,
            lock: self.lock,
        }))
    }
}

/// Digest of a configuration: a write with an old one is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(String);

impl Digest {
    /// The 40 hex digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The live configuration of a guest.
#[derive(Debug, Clone, PartialEq)]
pub struct GuestConfig {
    /// Which guest.
    pub guest: GuestRef,
    /// Host name of a container, name of a virtual machine.
    pub name: Option<String>,
    /// Without the newlines that Proxmox adds at the end.
    pub description: String,
    /// Its tags.
    pub tags: Tags,
    /// First interface as Proxmox stores it; see [`GuestConfig::net0`].
    pub net0_text: Option<String>,
    /// Cores; absent on a container: all of the node.
    pub cores: Option<u64>,
    /// MiB.
    pub memory: Option<u64>,
    /// Size of the root disk in bytes, where Proxmox tells it.
    pub root_size: Option<u64>,
    /// Whether it starts with its node.
    pub onboot: bool,
    /// Whether Proxmox refuses to destroy it.
    pub protection: bool,
    /// Whether it is a template.
    pub template: bool,
    /// Whether root in a container is not root on the host.
    pub unprivileged: bool,
    /// The operation that holds it.
    pub lock: Option<String>,
    /// For the next write.
    pub digest: Option<Digest>,
    /// All keys as Proxmox gives them, but `lxc` and `digest`.
    pub raw: Keys,
}

/// A configuration's keys. A claim may stand in one of them, so only their names are printed.
#[derive(Clone, PartialEq)]
pub struct Keys(BTreeMap<String, String>);

impl std::ops::Deref for Keys {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

impl GuestConfig {
    /// From `data` of `…/config?current=1`.
    pub fn decode(guest: &GuestRef, data: Value) -> Result<Self, String> {
        let Value::Object(keys) = data else { return Err("a configuration is an object".to_owned()) };
        let text = |key: &str| keys.get(key).and_then(decode::text);
        let number = |key: &str| keys.get(key).and_then(decode::number);
        let name_key = match guest.kind {
            GuestKind::Lxc => "hostname",
            GuestKind::Vm => "name",
        };
        // A virtual machine's memory may be `current=512`.
        let memory = text("memory").and_then(|memory| memory.trim_start_matches("current=").parse().ok());
        Ok(Self {
            guest: guest.clone(),
            name: text(name_key),
            description: text("description").unwrap_or_default().trim_end().to_owned(),
            tags: Tags::parse(&text("tags").unwrap_or_default()),
            net0_text: text("net0"),
            cores: number("cores"),
            memory,
            root_size: root_disk(guest.kind, &keys).as_deref().and_then(size_in),
            onboot: decode::flag(keys.get("onboot")),
            protection: decode::flag(keys.get("protection")),
            template: decode::flag(keys.get("template")),
            unprivileged: decode::flag(keys.get("unprivileged")),
            lock: text("lock"),
            digest: text("digest").map(Digest),
            raw: Keys(
                keys.iter()
                    .filter(|(key, _)| key.as_str() != "digest")
                    .filter_map(|(key, value)| Some((key.clone(), decode::text(value)?)))
                    .collect(),
            ),
        })
    }

    /// The first interface, if there is one.
    pub fn net0(&self) -> Result<Option<Net>, InvalidNet> {
        self.net0_text.as_deref().map(|text| Net::parse(self.guest.kind, text)).transpose()
    }

    /// What the description says that this guest is.
    pub fn marker(&self) -> Result<Option<Marker>, InvalidMarker> {
        Marker::parse(&self.description)
    }

    /// Key of the root disk, for a resize: `rootfs`, or the first disk that a virtual machine boots from.
    pub fn root_disk_key(&self) -> Option<String> {
        match self.guest.kind {
            GuestKind::Lxc => Some("rootfs".to_owned()),
            GuestKind::Vm => boot_disk(|key| self.raw.get(key).cloned()),
        }
    }
}

fn root_disk(kind: GuestKind, keys: &Map<String, Value>) -> Option<String> {
    let text = |key: &str| keys.get(key).and_then(decode::text);
    match kind {
        GuestKind::Lxc => text("rootfs"),
        GuestKind::Vm => text(&boot_disk(text)?),
    }
}

/// The first disk in `boot: order=…`, else the usual first ones; CD drives do not count.
fn boot_disk(text: impl Fn(&str) -> Option<String>) -> Option<String> {
    let boot = text("boot").unwrap_or_default();
    let order = boot.split(',').find_map(|part| part.strip_prefix("order=")).unwrap_or_default();
    let usual = ["scsi0", "virtio0", "sata0", "ide0"];
    order
        .split(';')
        .chain(usual)
        .find(|key| {
            let is_disk = ["scsi", "virtio", "sata", "ide"].iter().any(|bus| key.starts_with(bus));
            is_disk && text(key).is_some_and(|disk| !disk.contains("media=cdrom"))
        })
        .map(str::to_owned)
}

/// Bytes of `size=…` in a volume's property string; units are 1024-based.
fn size_in(volume: &str) -> Option<u64> {
    let size = volume.split(',').find_map(|part| part.strip_prefix("size="))?;
    let (digits, unit) = match size.char_indices().last()? {
        (at, 'K') => (&size[..at], 1u64 << 10),
        (at, 'M') => (&size[..at], 1 << 20),
        (at, 'G') => (&size[..at], 1 << 30),
        (at, 'T') => (&size[..at], 1 << 40),
        _ => (size, 1),
    };
    let number: f64 = digits.parse().ok().filter(|number| *number >= 0.0)?;
    Some((number * unit as f64) as u64)
}

/// What `…/status/current` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestStatus {
    /// Whether it runs.
    pub state: RunState,
    /// Finer state of a virtual machine: `running`, `paused`, `prelaunch`, …
    pub machine_state: Option<String>,
    /// The operation that holds it.
    pub lock: Option<String>,
    /// Seconds since it started.
    pub uptime: u64,
    /// Whether it is a template.
    pub template: bool,
    /// Whether HA starts and stops it, so that our own start only asks.
    pub ha_managed: bool,
}

impl GuestStatus {
    /// From `data`.
    pub fn decode(data: &Value) -> Result<Self, String> {
        let text = |key: &str| data.get(key).and_then(decode::text);
        let state = text("status").ok_or("the status has no `status`")?;
        Ok(Self {
            state: RunState::of(Some(&state)),
            machine_state: text("qmpstatus"),
            lock: text("lock"),
            uptime: data.get("uptime").and_then(decode::number).unwrap_or(0),
            template: decode::flag(data.get("template")),
            ha_managed: decode::flag(data.get("ha").and_then(|ha| ha.get("managed"))),
        })
    }
}

/// An address with its prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Network bits.
    pub prefix: u8,
}

impl Address {
    /// Whether others can reach it: neither loopback nor link-local.
    pub fn is_reachable(&self) -> bool {
        match self.ip {
            IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified(),
            IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local() && !ip.is_unspecified(),
        }
    }
}

/// A network interface inside a running guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name there.
    pub name: String,
    /// Its MAC.
    pub mac: Option<Mac>,
    /// Its addresses; empty until DHCP is done.
    pub addresses: Vec<Address>,
}

impl Interface {
    /// From `data` of a container's `interfaces` (null: it does not run) or of the guest agent of a virtual machine.
    pub fn decode(data: &Value) -> Vec<Self> {
        let rows = data.get("result").unwrap_or(data).as_array();
        rows.into_iter().flatten().filter_map(Self::of_row).collect()
    }

    fn of_row(row: &Value) -> Option<Self> {
        let text = |key: &str| row.get(key).and_then(Value::as_str);
        let mac = text("hwaddr").or_else(|| text("hardware-address"));
        let listed = row.get("ip-addresses").and_then(Value::as_array);
        let mut addresses: Vec<Address> = listed
            .into_iter()
            .flatten()
            .filter_map(|address| {
                let ip = address.get("ip-address")?.as_str()?.parse().ok()?;
                let prefix = u8::try_from(decode::number(address.get("prefix")?)?).ok()?;
                Some(Address { ip, prefix })
            })
            .collect();
        // Before pve-container 5.2.6 there is only one address of each family.
        if listed.is_none() {
            addresses = ["inet", "inet6"]
                .into_iter()
                .filter_map(|key| {
                    let (ip, prefix) = text(key)?.split_once('/')?;
                    Some(Address { ip: ip.parse().ok()?, prefix: prefix.parse().ok()? })
                })
                .collect();
        }
        Some(Self { name: text("name")?.to_owned(), mac: mac.and_then(|mac| mac.parse().ok()), addresses })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn guest(kind: GuestKind) -> GuestRef {
        GuestRef { kind, node: "pve1".parse().unwrap(), vmid: 900.try_into().unwrap() }
    }

    #[test]
    fn sizes() {
        for (volume, size) in [
            ("local:900/vm-900-disk-0.raw,size=2G", Some(2 << 30)),
            ("local:x,size=512M", Some(512 << 20)),
            ("local:x,size=1.5K", Some(1536)),
            ("local:x,size=10", Some(10)),
            ("local:x", None),
            ("local:x,size=", None),
            ("local:x,size=ä", None),
        ] {
            assert_eq!(size_in(volume), size, "{volume}");
        }
    }

    #[test]
    fn a_machine_boots_from_the_first_disk_in_its_order() {
        let data = json!({ "boot": "order=ide2;scsi1;net0", "ide2": "none,media=cdrom", "scsi0": "l:a,size=1G",
            "scsi1": "l:b,size=3G", "memory": "current=640", "digest": "d" });
        let config = GuestConfig::decode(&guest(GuestKind::Vm), data).unwrap();
        assert_eq!(config.root_disk_key().as_deref(), Some("scsi1"));
        assert_eq!((config.root_size, config.memory), (Some(3 << 30), Some(640)));
    }

    #[test]
    fn addresses_of_an_old_node() {
        let data = json!([{ "name": "eth0", "hwaddr": "bc:24:11:56:13:d3", "inet": "10.0.0.5/24" }]);
        let interface = &Interface::decode(&data)[0];
        assert_eq!(interface.addresses, [Address { ip: "10.0.0.5".parse().unwrap(), prefix: 24 }]);
        assert!(Interface::decode(&Value::Null).is_empty());
    }
}
