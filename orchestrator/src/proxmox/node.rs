//! Nodes, storages, bridges, pools, permissions (pve-api 3, 4 and 13).

use std::collections::{BTreeMap, BTreeSet};

use contract::ids::{NodeName, PveVersion};
use serde::Deserialize;
use serde_json::Value;

use super::decode;
use super::guest::GuestRow;

/// What `/version` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// First two numbers.
    pub release: PveVersion,
    /// The whole version of pve-manager, such as `9.2.11`.
    pub full: String,
}

impl Version {
    /// From `data`.
    pub fn decode(data: &Value) -> Result<Self, String> {
        let text = |key: &str| data.get(key).and_then(decode::text);
        let full = text("version").ok_or("the answer has no `version`: is this Proxmox VE?")?;
        // `release` is `9.2` on a stable node; the full version may end in `~rc1` or the like.
        let numbers: String = full.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        let release = numbers.parse().or_else(|_| text("release").unwrap_or_default().parse());
        Ok(Self { release: release.map_err(|error: contract::ids::InvalidId| error.to_string())?, full })
    }
}

/// Whether a node is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    /// It is.
    Online,
    /// It is not.
    Offline,
    /// The cluster does not know.
    Unknown,
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRow {
    /// Its name.
    pub node: NodeName,
    /// Whether it is there.
    pub state: NodeState,
    /// SHA-256 fingerprint of its certificate.
    pub fingerprint: Option<String>,
    /// Bytes of memory; absent without Sys.Audit.
    pub memory: Option<u64>,
    /// Bytes of memory in use; absent without Sys.Audit.
    pub memory_used: Option<u64>,
}

#[derive(Deserialize)]
struct RawNode {
    node: String,
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    ssl_fingerprint: Option<String>,
    #[serde(default, deserialize_with = "decode::maybe_number")]
    maxmem: Option<u64>,
    #[serde(default, deserialize_with = "decode::maybe_number")]
    mem: Option<u64>,
}

impl NodeRow {
    /// From `data` of `/nodes`.
    pub fn decode(data: Value) -> Result<Vec<Self>, String> {
        let rows: Vec<RawNode> = decode::rows(data)?;
        let row = |row: RawNode| {
            Ok(Self {
                node: row.node.parse().map_err(|error: contract::ids::InvalidId| error.to_string())?,
                state: match row.status.as_deref() {
                    Some("online") => NodeState::Online,
                    Some("offline") => NodeState::Offline,
                    _ => NodeState::Unknown,
                },
                fingerprint: row.ssl_fingerprint,
                memory: row.maxmem,
                memory_used: row.mem,
            })
        };
        rows.into_iter().map(row).collect()
    }
}

/// What a node says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// Seconds since it started.
    pub uptime: u64,
    /// Processors.
    pub cpus: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of memory that guests could still have.
    pub memory_available: u64,
    /// `pve-manager/9.2.11/…`.
    pub pveversion: Option<String>,
}

impl NodeStatus {
    /// From `data`.
    pub fn decode(data: &Value) -> Self {
        let number = |path: &str| data.pointer(path).and_then(decode::number);
        Self {
            uptime: number("/uptime").unwrap_or(0),
            cpus: number("/cpuinfo/cpus").unwrap_or(0),
            memory: number("/memory/total").unwrap_or(0),
            // PVE 8 has no `available`.
            memory_available: number("/memory/available").or_else(|| number("/memory/free")).unwrap_or(0),
            pveversion: data.get("pveversion").and_then(decode::text),
        }
    }
}

/// A storage as a node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// Its id.
    pub id: String,
    /// `dir`, `lvmthin`, `zfspool`, …
    pub plugin: String,
    /// What it may hold: `rootdir`, `images`, `backup`, …
    pub content: BTreeSet<String>,
    /// Whether it is switched on.
    pub enabled: bool,
    /// Whether it can be used now.
    pub active: bool,
    /// Whether other nodes see the same volumes.
    pub shared: bool,
    /// Bytes.
    pub total: u64,
    /// Bytes that are free.
    pub available: u64,
}

#[derive(Deserialize)]
struct RawStorage {
    storage: String,
    #[serde(rename = "type", default)]
    plugin: String,
    #[serde(default)]
    content: String,
    #[serde(default, deserialize_with = "decode::any_flag")]
    enabled: bool,
    #[serde(default, deserialize_with = "decode::any_flag")]
    active: bool,
    #[serde(default, deserialize_with = "decode::any_flag")]
    shared: bool,
    #[serde(default, deserialize_with = "decode::size")]
    total: u64,
    #[serde(default, deserialize_with = "decode::size")]
    avail: u64,
}

impl Storage {
    /// From `data` of `/nodes/{node}/storage`.
    pub fn decode(data: Value) -> Result<Vec<Self>, String> {
        let rows: Vec<RawStorage> = decode::rows(data)?;
        let row = |row: RawStorage| Self {
            id: row.storage,
            plugin: row.plugin,
            content: row.content.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect(),
            enabled: row.enabled,
            active: row.active,
            shared: row.shared,
            total: row.total,
            available: row.avail,
        };
        Ok(rows.into_iter().map(row).collect())
    }
}

/// A bridge that the token may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub active: bool,
    /// Whether it separates VLANs; a plain Linux bridge takes tags too, by a bridge of its own for each.
    pub vlan_aware: bool,
}

#[derive(Deserialize)]
struct RawBridge {
    iface: String,
    #[serde(default, deserialize_with = "decode::any_flag")]
    active: bool,
    #[serde(default, deserialize_with = "decode::any_flag")]
    bridge_vlan_aware: bool,
}

impl Bridge {
    /// From `data` of `/nodes/{node}/network?type=any_bridge`.
    pub fn decode(data: Value) -> Result<Vec<Self>, String> {
        let rows: Vec<RawBridge> = decode::rows(data)?;
        let row = |row: RawBridge| Self { name: row.iface, active: row.active, vlan_aware: row.bridge_vlan_aware };
        Ok(rows.into_iter().map(row).collect())
    }
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Its id.
    pub id: String,
    /// What its owner wrote.
    pub comment: Option<String>,
    /// Guests in it; only when one pool was asked for.
    pub guests: Vec<GuestRow>,
    /// Storages in it; only when one pool was asked for.
    pub storages: BTreeSet<String>,
}

#[derive(Deserialize)]
struct RawPool {
    poolid: String,
    #[serde(default, deserialize_with = "decode::maybe_text")]
    comment: Option<String>,
    #[serde(default)]
    members: Value,
}

impl Pool {
    /// From `data` of `/pools`.
    pub fn decode(data: Value) -> Result<Vec<Self>, String> {
        let rows: Vec<RawPool> = decode::rows(data)?;
        let row = |row: RawPool| {
            let members = row.members.as_array().into_iter().flatten();
            let storages = members.filter_map(|member| member.get("storage").and_then(decode::text)).collect();
            let guests = GuestRow::decode(row.members, None)?;
            Ok(Self { id: row.poolid, comment: row.comment, guests, storages })
        };
        rows.into_iter().map(row).collect()
    }
}

/// What the token may do: privileges by path.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Permissions(pub BTreeMap<String, BTreeSet<String>>);

impl Permissions {
    /// From `data` of `/access/permissions`.
    pub fn decode(data: Value) -> Result<Self, String> {
        let paths: BTreeMap<String, BTreeMap<String, Value>> = decode::one(data)?;
        // The value says whether it reaches further down, not whether it is granted: what is listed is granted.
        Ok(Self(paths.into_iter().map(|(path, held)| (path, held.into_keys().collect())).collect()))
    }

    /// Privileges listed for exactly this path.
    pub fn at(&self, path: &str) -> BTreeSet<String> {
        self.0.get(path).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn versions_of_test_builds_are_read() {
        for (data, release) in [
            (json!({ "version": "9.2.11", "release": "9.2" }), "9.2"),
            (json!({ "version": "9.0.0~11", "release": "9.0" }), "9.0"),
            (json!({ "version": "8.4", "release": "8.4" }), "8.4"),
            (json!({ "version": "x", "release": "8.4" }), "8.4"),
        ] {
            assert_eq!(Version::decode(&data).unwrap().release.to_string(), release);
        }
        assert!(Version::decode(&json!({ "hello": 1 })).is_err());
    }

    #[test]
    fn what_is_missing_on_an_offline_storage_is_zero() {
        let rows = Storage::decode(json!([{ "storage": "nas", "type": "nfs", "content": "", "active": 0 }])).unwrap();
        assert_eq!((rows[0].active, rows[0].total, rows[0].content.len()), (false, 0, 0));
    }
}
