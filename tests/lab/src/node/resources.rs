//! `cluster/resources`: some of it live, the rest from a cache that the real node fills every ten seconds.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value, json};

use super::guests::Kind;
use super::{Node, Timings};
use crate::runtime::Vmid;

/// Processors of the node.
pub(crate) const NODE_CPUS: u64 = 2;
/// Bytes of the node's memory.
pub(crate) const NODE_MEMORY: u64 = 25_276_510_208;

/// How often pvestatd looks.
pub(crate) const SAMPLE_EVERY: std::time::Duration = std::time::Duration::from_secs(10);

/// What was seen of each guest, and how often it was shown since it changed.
#[derive(Debug, Default)]
pub(crate) struct Cache(Mutex<BTreeMap<Vmid, Seen>>);

#[derive(Debug, Default)]
struct Seen {
    row: Option<Map<String, Value>>,
    stale_reads: u32,
}

impl Node {
    async fn fresh_row(&self, vmid: Vmid) -> Option<Map<String, Value>> {
        let pid = self.pid(vmid).await;
        let state = self.read();
        let guest = state.guest(vmid)?;
        let full = guest.row(pid, self.major());
        let mut row = Map::new();
        for key in ["name", "status", "uptime", "cpu", "maxmem", "mem", "maxdisk", "disk", "netin", "netout"] {
            row.insert(key.to_owned(), full[key].clone());
        }
        row.insert("maxcpu".to_owned(), full["cpus"].clone());
        row.insert("template".to_owned(), json!(u8::from(guest.is_template())));
        row.insert("diskread".to_owned(), json!(0));
        row.insert("diskwrite".to_owned(), json!(0));
        if self.major() >= 9 {
            row.insert("memhost".to_owned(), json!(0));
        }
        Some(row)
    }

    /// Looks at every guest, as pvestatd does.
    pub(crate) async fn sample(&self) {
        let ids: Vec<Vmid> = self.read().guests().keys().copied().collect();
        for vmid in ids {
            let row = self.fresh_row(vmid).await;
            let mut cache = self.cache.0.lock().unwrap_or_else(PoisonError::into_inner);
            *cache.entry(vmid).or_default() = Seen { row, stale_reads: 0 };
        }
    }

    /// The row of a guest as a reader sees it now.
    pub(crate) async fn resource_row(&self, vmid: Vmid) -> Option<Map<String, Value>> {
        let fresh = self.fresh_row(vmid).await?;
        let lag = self.read().cluster().settings.resources_lag_reads;
        let cached = {
            let mut cache = self.cache.0.lock().unwrap_or_else(PoisonError::into_inner);
            let seen = cache.entry(vmid).or_default();
            let same = seen.row.as_ref().is_some_and(|row| without_uptime(row) == without_uptime(&fresh));
            if self.timings == Timings::Instant && !same {
                if seen.stale_reads >= lag {
                    *seen = Seen { row: Some(fresh), stale_reads: 0 };
                } else {
                    seen.stale_reads += 1;
                }
            }
            seen.row.clone()
        };
        let state = self.read();
        let guest = state.guest(vmid)?;
        let mut row = cached.unwrap_or_else(|| Map::from_iter([("status".to_owned(), json!("unknown"))]));
        row.insert("id".to_owned(), json!(format!("{}/{vmid}", guest.kind.name())));
        row.insert("type".to_owned(), json!(guest.kind.name()));
        row.insert("vmid".to_owned(), json!(vmid));
        row.insert("node".to_owned(), json!(self.name));
        for key in ["lock", "tags"] {
            if let Some(value) = guest.get(key) {
                row.insert(key.to_owned(), json!(value));
            }
        }
        if let Some((pool, _)) = state.cluster().pools.iter().find(|(_, pool)| pool.vms.contains(&vmid)) {
            row.insert("pool".to_owned(), json!(pool));
        }
        let sid = format!("{}:{vmid}", if guest.kind == Kind::Lxc { "ct" } else { "vm" });
        if let Some(resource) = state.cluster().ha.get(&sid) {
            row.insert("hastate".to_owned(), json!(resource.state));
        }
        Some(row)
    }

    /// Forgets a guest that is gone.
    pub(crate) fn forget_sample(&self, vmid: Vmid) {
        self.cache.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&vmid);
    }
}

fn without_uptime(row: &Map<String, Value>) -> Map<String, Value> {
    row.iter().filter(|(key, _)| *key != "uptime").map(|(key, value)| (key.clone(), value.clone())).collect()
}
