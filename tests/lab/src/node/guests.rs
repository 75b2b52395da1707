//! A guest: its configuration with what is pending, its snapshots, and what the API shows of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::config::{self, Config};
use super::network;
use crate::runtime::{GuestSpec, Vmid};
use crate::schema::{self, properties};

/// Container or virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Lxc,
    Qemu,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lxc => "lxc",
            Self::Qemu => "qemu",
        }
    }
    /// How messages call it.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Lxc => "CT",
            Self::Qemu => "VM",
        }
    }
    /// Directory of its configuration files under `nodes/N`.
    pub(crate) fn directory(self) -> &'static str {
        match self {
            Self::Lxc => "lxc",
            Self::Qemu => "qemu-server",
        }
    }
    pub(crate) fn keys(self) -> &'static [schema::Param] {
        match self {
            Self::Lxc => schema::lxc::CONFIG,
            Self::Qemu => schema::qemu::CONFIG,
        }
    }
}

/// A snapshot: the configuration as it was.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) time: u64,
    pub(crate) parent: Option<String>,
    pub(crate) config: Config,
}

/// A running virtual machine, which is only a record.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) pid: u32,
    pub(crate) since: u64,
}

/// What the agent of a virtual machine does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Agent {
    /// Configured or not, nobody answers.
    #[default]
    Absent,
    Responding,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Guest {
    pub(crate) vmid: Vmid,
    pub(crate) kind: Kind,
    pub(crate) config: Config,
    /// Changes that wait for the next start; `None` deletes the key.
    pub(crate) pending: BTreeMap<String, Option<String>>,
    pub(crate) snapshots: Vec<Snapshot>,
    /// Snapshot the present state descends from.
    pub(crate) parent: Option<String>,
    pub(crate) running: Option<Running>,
    #[serde(default)]
    pub(crate) agent: Agent,
    /// When it was last started, for the uptime.
    pub(crate) started: Option<u64>,
}

impl Guest {
    pub(crate) fn new(vmid: Vmid, kind: Kind, config: Config) -> Self {
        Self {
            vmid,
            kind,
            config,
            pending: BTreeMap::new(),
            snapshots: Vec::new(),
            parent: None,
            running: None,
            agent: Agent::Absent,
            started: None,
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.config.get(key).map(String::as_str)
    }
    pub(crate) fn lock(&self) -> Option<&str> {
        self.get("lock")
    }
    pub(crate) fn set_lock(&mut self, lock: &str) {
        self.config.insert("lock".to_owned(), lock.to_owned());
    }
    pub(crate) fn clear_lock(&mut self) {
        self.config.remove("lock");
    }
    pub(crate) fn is_template(&self) -> bool {
        self.get("template") == Some("1")
    }
    pub(crate) fn is_protected(&self) -> bool {
        self.get("protection") == Some("1")
    }
    pub(crate) fn name(&self) -> String {
        let key = if self.kind == Kind::Lxc { "hostname" } else { "name" };
        match self.get(key) {
            Some(name) => name.to_owned(),
            None if self.kind == Kind::Lxc => format!("CT{}", self.vmid),
            None => format!("VM {}", self.vmid),
        }
    }
    /// `CT is locked (disk)`.
    pub(crate) fn check_lock(&self) -> Result<(), String> {
        match self.lock() {
            Some(lock) => Err(format!("{} is locked ({lock})", self.kind.label())),
            None => Ok(()),
        }
    }

    fn number(&self, key: &str, default: u64) -> u64 {
        self.get(key).and_then(|value| value.split([',', '=']).next_back()?.parse().ok()).unwrap_or(default)
    }
    /// MiB.
    pub(crate) fn memory(&self) -> u64 {
        self.number("memory", 512)
    }
    fn cpus(&self) -> u64 {
        match self.kind {
            Kind::Lxc => self.number("cores", super::resources::NODE_CPUS),
            Kind::Qemu => self.number("cores", 1) * self.number("sockets", 1),
        }
    }
    /// Bytes of the disk that lists show.
    pub(crate) fn max_disk(&self) -> u64 {
        let shown = match self.kind {
            Kind::Lxc => self.get("rootfs"),
            Kind::Qemu => {
                self.volumes().into_iter().find(|(_, value)| !value.contains("media=cdrom")).map(|(_, value)| value)
            }
        };
        // Without a root file system yet, a container's list row says 4 GiB.
        let missing = if self.kind == Kind::Lxc { 4 << 30 } else { 0 };
        shown.and_then(|value| config::volume_of(self.kind, value)).and_then(|(_, size)| size).unwrap_or(missing)
    }

    /// Keys that hold a volume, with their values.
    pub(crate) fn volumes(&self) -> Vec<(&str, &str)> {
        self.config
            .iter()
            .filter(|(key, _)| config::is_volume_key(self.kind, key))
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect()
    }

    /// Ids of the volumes this guest owns.
    pub(crate) fn volume_ids(&self) -> Vec<String> {
        self.volumes()
            .into_iter()
            .filter_map(|(_, value)| config::volume_of(self.kind, value))
            .map(|(volid, _)| volid)
            .filter(|volid| volid.contains(':') && !volid.ends_with(":cloudinit"))
            .collect()
    }

    /// SHA-1 in form, but not in fact: any stable digest of the file's text does, and it is 40 hex digits long.
    pub(crate) fn digest(&self) -> String {
        let mut text = section(&self.config);
        if !self.pending.is_empty() {
            text.push_str("\n[pve:pending]\n");
            for (key, value) in &self.pending {
                match value {
                    Some(value) => text.push_str(&format!("{key}: {value}\n")),
                    None => text.push_str(&format!("delete: {key}\n")),
                }
            }
        }
        if let Some(parent) = &self.parent {
            text.push_str(&format!("parent: {parent}\n"));
        }
        for snapshot in &self.snapshots {
            text.push_str(&format!("\n[{}]\n#{}\nsnaptime: {}\n", snapshot.name, snapshot.description, snapshot.time));
            text.push_str(&section(&snapshot.config));
        }
        hex::encode(&Sha256::digest(text.as_bytes())[..20])
    }

    /// `GET config`.
    pub(crate) fn config_json(&self, current: bool) -> Value {
        let mut shown = self.config.clone();
        if !current {
            for (key, value) in &self.pending {
                match value {
                    Some(value) => drop(shown.insert(key.clone(), value.clone())),
                    None => drop(shown.remove(key)),
                }
            }
        }
        let mut out = self.values_json(&shown);
        out.insert("digest".to_owned(), json!(self.digest()));
        if let Some(parent) = &self.parent {
            out.insert("parent".to_owned(), json!(parent));
        }
        Value::Object(out)
    }

    pub(crate) fn values_json(&self, config: &Config) -> Map<String, Value> {
        config.iter().map(|(key, value)| (key.clone(), config::value_json(self.kind, key, value))).collect()
    }

    /// `GET pending`.
    pub(crate) fn pending_json(&self) -> Value {
        let mut rows = Vec::new();
        for (key, value) in &self.config {
            let mut row = Map::new();
            row.insert("key".to_owned(), json!(key));
            row.insert("value".to_owned(), config::value_json(self.kind, key, value));
            match self.pending.get(key) {
                Some(Some(pending)) => {
                    row.insert("pending".to_owned(), config::value_json(self.kind, key, pending));
                }
                Some(None) => {
                    row.insert("delete".to_owned(), json!(1));
                }
                None => {}
            }
            rows.push(Value::Object(row));
        }
        for (key, value) in self.pending.iter().filter(|(key, _)| !self.config.contains_key(*key)) {
            if let Some(value) = value {
                rows.push(json!({"key": key, "pending": config::value_json(self.kind, key, value)}));
            }
        }
        rows.push(json!({"key": "digest", "value": self.digest()}));
        Value::Array(rows)
    }

    /// Applies what waited for a start.
    pub(crate) fn apply_pending(&mut self) {
        for (key, value) in std::mem::take(&mut self.pending) {
            match value {
                Some(value) => drop(self.config.insert(key, value)),
                None => drop(self.config.remove(&key)),
            }
        }
    }

    /// A row of the guest list; `status/current` adds to it.
    pub(crate) fn row(&self, pid: Option<u32>, major: u8) -> Map<String, Value> {
        let on = pid.is_some();
        let now = crate::clock::epoch();
        let since = self.running.map(|running| running.since).or(self.started).unwrap_or(now);
        let max_disk = self.max_disk();
        let max_mem = self.memory() << 20;
        let mut row = Map::new();
        let mut put = |key: &str, value: Value| drop(row.insert(key.to_owned(), value));
        put("vmid", json!(self.vmid));
        put("name", json!(self.name()));
        put("status", json!(if on { "running" } else { "stopped" }));
        put("cpus", json!(self.cpus()));
        put("cpu", json!(0));
        put("maxmem", json!(max_mem));
        put("maxdisk", json!(max_disk));
        put("uptime", json!(if on { now.saturating_sub(since) } else { 0 }));
        put("netin", json!(if on { 110 } else { 0 }));
        put("netout", json!(if on { 180 } else { 0 }));
        // A real container of the template's kind uses about 8 MB right after its start.
        put("mem", json!(if on && self.kind == Kind::Lxc { 7_909_376 } else { 0 }));
        put("disk", json!(if on && self.kind == Kind::Lxc { max_disk / 8 } else { 0 }));
        match self.kind {
            Kind::Lxc => {
                put("type", json!("lxc"));
                put("swap", json!(0));
                put("maxswap", json!(self.number("swap", 512) << 20));
                put("diskread", json!(0));
                put("diskwrite", json!(0));
            }
            Kind::Qemu => {
                if major >= 9 {
                    put("memhost", json!(0));
                }
                if self.config.contains_key("serial0") {
                    put("serial", json!(1));
                }
            }
        }
        if major >= 9 && on {
            for what in ["cpu", "io", "memory"] {
                for share in ["some", "full"] {
                    let zero = if self.kind == Kind::Lxc { json!("0.00") } else { json!(0) };
                    put(&format!("pressure{what}{share}"), zero);
                }
            }
        }
        if let Some(pid) = pid {
            put("pid", json!(pid));
        }
        if self.is_template() {
            put("template", json!(1));
        }
        for key in ["lock", "tags"] {
            if let Some(value) = self.get(key) {
                put(key, json!(value));
            }
        }
        row
    }

    /// What the runtime needs to boot a container.
    pub(crate) fn spec(&self) -> GuestSpec {
        let nics = self
            .config
            .iter()
            .filter(|(key, _)| schema::find(&[self.kind.keys()], key, 9).is_some_and(|param| param.name == "net"))
            .filter_map(|(_, value)| network::nic(&properties::parse(schema::lxc::NET, value).ok()?))
            .collect();
        let variables = self.get("env").unwrap_or_default().split('\0').filter(|pair| !pair.is_empty());
        let environment = variables.map(str::to_owned).collect();
        GuestSpec { vmid: self.vmid, hostname: self.name(), nics, memory: self.memory(), environment }
    }

    /// Whether systemd in it would miss nesting: a container of release 9 then ends its start with a warning.
    pub(crate) fn lacks_nesting(&self) -> bool {
        let features = self.get("features").and_then(|value| properties::parse(schema::lxc::FEATURES, value).ok());
        let nesting = features.is_some_and(|features| features.get("nesting").is_some_and(|value| value == "1"));
        self.get("unprivileged") == Some("1") && !nesting
    }
}

fn section(config: &Config) -> String {
    config.iter().map(|(key, value)| format!("{key}: {}\n", value.escape_default())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> Guest {
        let config = [("hostname", "a"), ("memory", "512"), ("cpulimit", "0.5")];
        let config = config.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Guest::new(100, Kind::Lxc, config)
    }

    #[test]
    fn the_digest_follows_the_content_and_comes_back_with_it() {
        let mut guest = guest();
        let before = guest.digest();
        assert_eq!(before.len(), 40);
        guest.set_lock("disk");
        assert_ne!(guest.digest(), before);
        guest.clear_lock();
        assert_eq!(guest.digest(), before);
    }

    #[test]
    fn numbers_are_numbers_except_limits() {
        let shown = guest().config_json(true);
        assert_eq!(shown["memory"], 512);
        assert_eq!(shown["cpulimit"], "0.5");
    }
}
