//! What the node knows, and its home on disk: one file for the cluster, one per guest, one per task, each replaced
//! atomically before the lock on the state is given back. So a killed lab restarts with what it had answered.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::node::guests::Guest;
use crate::node::tasks::Task;
use crate::runtime::Vmid;

/// `/etc/pve/user.cfg`, `storage.cfg` and what the storages hold.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Cluster {
    pub(crate) users: BTreeMap<String, User>,
    /// Custom roles; the built-in ones are in `auth::privileges`.
    pub(crate) roles: BTreeMap<String, BTreeSet<String>>,
    pub(crate) acl: Vec<AclEntry>,
    pub(crate) pools: BTreeMap<String, Pool>,
    pub(crate) storages: BTreeMap<String, Storage>,
    pub(crate) volumes: BTreeMap<String, Volume>,
    pub(crate) bridges: BTreeMap<String, Bridge>,
    pub(crate) ha: BTreeMap<String, HaResource>,
    /// Privileges that the control endpoint took away from everybody but root.
    pub(crate) revoked: BTreeSet<String>,
    pub(crate) settings: Settings,
    /// The next process id handed to a task.
    pub(crate) next_pid: u32,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct User {
    pub(crate) comment: Option<String>,
    pub(crate) enable: bool,
    pub(crate) expire: u64,
    pub(crate) tokens: BTreeMap<String, Token>,
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Token {
    pub(crate) secret: String,
    pub(crate) privsep: bool,
    pub(crate) expire: u64,
    pub(crate) comment: Option<String>,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Token").field("privsep", &self.privsep).field("expire", &self.expire).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AclEntry {
    pub(crate) path: String,
    /// User or full token id.
    pub(crate) ugid: String,
    pub(crate) role: String,
    pub(crate) propagate: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Pool {
    pub(crate) comment: Option<String>,
    pub(crate) vms: BTreeSet<Vmid>,
    pub(crate) storages: BTreeSet<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Storage {
    pub(crate) kind: String,
    pub(crate) content: BTreeSet<String>,
    /// Bytes.
    pub(crate) capacity: u64,
    #[serde(default)]
    pub(crate) disabled: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Volume {
    pub(crate) vmid: Option<Vmid>,
    pub(crate) content: String,
    pub(crate) format: String,
    pub(crate) size: u64,
    pub(crate) used: u64,
    pub(crate) ctime: u64,
    /// Linked clones, also where the storage does not show it.
    pub(crate) base: Option<String>,
    /// `lxc` or `qemu` of a backup.
    pub(crate) subtype: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Bridge {
    pub(crate) cidr: Option<String>,
    pub(crate) mtu: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct HaResource {
    pub(crate) state: String,
    pub(crate) comment: Option<String>,
}

/// What the control endpoint can turn.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// Reads of `cluster/resources` before a change shows; used when timings are instant.
    pub(crate) resources_lag_reads: u32,
    /// How long a call waits for the lock of a configuration file.
    pub(crate) config_lock_wait_ms: u64,
    /// Lowest free id that `nextid` gives.
    pub(crate) nextid_from: Vmid,
}

impl Default for Settings {
    fn default() -> Self {
        // Proxmox waits 10 s for the lock of a configuration file; two reads are what a poller does in its first seconds.
        Self { resources_lag_reads: 2, config_lock_wait_ms: 10_000, nextid_from: 100 }
    }
}

/// The state and what of it has changed since it was written.
#[derive(Debug)]
pub(crate) struct State {
    dir: PathBuf,
    cluster: Cluster,
    guests: BTreeMap<Vmid, Guest>,
    tasks: BTreeMap<String, Task>,
    dirty_cluster: bool,
    dirty_guests: BTreeSet<Vmid>,
    dirty_tasks: BTreeSet<String>,
}

impl State {
    /// Reads what is there; an empty directory is a new node.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        for sub in ["guests", "tasks"] {
            std::fs::create_dir_all(dir.join(sub)).with_context(|| format!("create {sub} in {}", dir.display()))?;
        }
        let file = dir.join("cluster.json");
        let cluster = if file.exists() { read(&file)? } else { Cluster::default() };
        let guests = read_all::<Guest>(&dir.join("guests"))?.into_iter().map(|guest| (guest.vmid, guest)).collect();
        let tasks = read_all::<Task>(&dir.join("tasks"))?.into_iter().map(|task| (task.upid.clone(), task)).collect();
        Ok(Self {
            dir: dir.to_owned(),
            cluster,
            guests,
            tasks,
            dirty_cluster: false,
            dirty_guests: BTreeSet::new(),
            dirty_tasks: BTreeSet::new(),
        })
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }
    pub(crate) fn cluster_mut(&mut self) -> &mut Cluster {
        self.dirty_cluster = true;
        &mut self.cluster
    }
    pub(crate) fn guests(&self) -> &BTreeMap<Vmid, Guest> {
        &self.guests
    }
    pub(crate) fn guest(&self, vmid: Vmid) -> Option<&Guest> {
        self.guests.get(&vmid)
    }
    pub(crate) fn guest_mut(&mut self, vmid: Vmid) -> Option<&mut Guest> {
        self.dirty_guests.insert(vmid);
        self.guests.get_mut(&vmid)
    }
    pub(crate) fn insert_guest(&mut self, guest: Guest) {
        self.dirty_guests.insert(guest.vmid);
        self.guests.insert(guest.vmid, guest);
    }
    pub(crate) fn remove_guest(&mut self, vmid: Vmid) -> Option<Guest> {
        self.dirty_guests.insert(vmid);
        self.guests.remove(&vmid)
    }
    pub(crate) fn tasks(&self) -> &BTreeMap<String, Task> {
        &self.tasks
    }
    pub(crate) fn task_mut(&mut self, upid: &str) -> Option<&mut Task> {
        self.dirty_tasks.insert(upid.to_owned());
        self.tasks.get_mut(upid)
    }
    pub(crate) fn insert_task(&mut self, task: Task) {
        self.dirty_tasks.insert(task.upid.clone());
        self.tasks.insert(task.upid.clone(), task);
    }

    /// Writes what changed.
    pub(crate) fn flush(&mut self) -> anyhow::Result<()> {
        if std::mem::take(&mut self.dirty_cluster) {
            write(&self.dir.join("cluster.json"), &self.cluster)?;
        }
        for vmid in std::mem::take(&mut self.dirty_guests) {
            let file = self.dir.join("guests").join(format!("{vmid}.json"));
            match self.guests.get(&vmid) {
                Some(guest) => write(&file, guest)?,
                None if file.exists() => std::fs::remove_file(&file).context("remove a guest's file")?,
                None => {}
            }
        }
        for upid in std::mem::take(&mut self.dirty_tasks) {
            if let Some(task) = self.tasks.get(&upid) {
                // A UPID has characters that a file name should not; `!` and `>` are the worst of them.
                let name: String = upid.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
                write(&self.dir.join("tasks").join(format!("{name}.json")), task)?;
            }
        }
        Ok(())
    }
}

fn read<T: DeserializeOwned>(file: &Path) -> anyhow::Result<T> {
    let text = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{} is not what this lab wrote; start with an empty state directory", file.display()))
}

fn read_all<T: DeserializeOwned>(dir: &Path) -> anyhow::Result<Vec<T>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            found.push(read(&path)?);
        }
    }
    Ok(found)
}

fn write<T: Serialize>(file: &Path, value: &T) -> anyhow::Result<()> {
    write_private(file, &serde_json::to_vec(value)?)
}

/// Replaces a file atomically, readable by its owner alone.
pub(crate) fn write_private(file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    use std::io::Write as _;
    let dir = file.parent().unwrap_or(Path::new("."));
    let mut new =
        tempfile::NamedTempFile::new_in(dir).with_context(|| format!("create a file in {}", dir.display()))?;
    new.write_all(bytes)?;
    new.persist(file).with_context(|| format!("replace {}", file.display()))?;
    Ok(())
}
