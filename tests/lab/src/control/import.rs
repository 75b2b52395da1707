//! A guest from nothing, as an administrator makes one at the shell.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Outcome;
use crate::node::Node;
use crate::node::config;
use crate::node::guests::{Guest, Kind};
use crate::node::network::random_mac;
use crate::node::storage::{self, NewVolume, Role};
use crate::runtime::{RootFs, Runtime, Vmid};
use crate::schema::formats;

/// What the guest shall be.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Import {
    pub(crate) vmid: Vmid,
    #[serde(default = "lxc")]
    pub(crate) kind: Kind,
    pub(crate) hostname: String,
    /// Directory with a root file system; records need none.
    #[serde(default)]
    pub(crate) rootfs: Option<PathBuf>,
    /// Whether the directory is handed over: renamed instead of copied.
    #[serde(default)]
    pub(crate) take: bool,
    #[serde(default)]
    pub(crate) cores: Option<u32>,
    /// MiB.
    #[serde(default)]
    pub(crate) memory: Option<u32>,
    #[serde(default)]
    pub(crate) template: bool,
    #[serde(default)]
    pub(crate) storage: Option<String>,
    /// Such as `2G`.
    #[serde(default)]
    pub(crate) size: Option<String>,
    #[serde(default)]
    pub(crate) pool: Option<String>,
    /// Any further keys as they stand in a configuration file; an empty value takes a default away.
    #[serde(default)]
    pub(crate) config: BTreeMap<String, String>,
}

fn lxc() -> Kind {
    Kind::Lxc
}

/// Size of a disk when nobody says.
const SIZE: u64 = 2 << 30;

pub(super) async fn import(node: &Arc<Node>, request: Import) -> Outcome {
    let wrong = |text: String| (400_u16, text);
    let (vmid, kind) = (request.vmid, request.kind);
    if !formats::is_vmid(&vmid.to_string()) {
        return Err(wrong(format!("{vmid} is no guest number: 100 to 999999999")));
    }
    formats::dns_name(&request.hostname).map_err(wrong)?;
    if node.read().guest(vmid).is_some() {
        return Err((409, format!("guest {vmid} is already there")));
    }
    let size = match &request.size {
        Some(size) => formats::parse_size(size).ok_or_else(|| wrong(format!("'{size}' is no size such as 2G")))?,
        None => SIZE,
    };
    if kind == Kind::Lxc {
        match (&node.runtime, request.rootfs.clone()) {
            (Runtime::Nspawn(_), None) => {
                return Err(wrong("a real container needs --rootfs".to_owned()));
            }
            (_, Some(rootfs)) => {
                let rootfs = if request.take { RootFs::Take(rootfs) } else { RootFs::Copy(rootfs) };
                node.runtime.import(vmid, rootfs).await.map_err(|text| (500, text))?;
            }
            (Runtime::None(_), None) => {}
        }
    }
    let mut guest = Guest::new(vmid, kind, defaults(&request));
    for (key, value) in &request.config {
        if value.is_empty() {
            guest.config.remove(key);
        } else {
            guest.config.insert(key.clone(), config::normalise(kind, key, value, random_mac));
        }
    }
    let volid = record(node, &request, guest, size).map_err(wrong)?;
    node.sample().await;
    Ok(json!({"vmid": vmid, "volume": volid}))
}

/// Enters the guest with its disk.
fn record(node: &Node, request: &Import, mut guest: Guest, size: u64) -> Result<String, String> {
    let (vmid, kind) = (request.vmid, request.kind);
    let mut state = node.write();
    let storage = request.storage.as_deref().unwrap_or("local-lvm");
    if let Some(pool) = request.pool.as_ref().filter(|pool| !state.cluster().pools.contains_key(*pool)) {
        return Err(format!("there is no pool '{pool}'"));
    }
    let new = NewVolume {
        storage,
        kind,
        vmid,
        size,
        base: None,
        role: if request.template { Role::Base } else { Role::Disk },
    };
    let volid = storage::allocate(&mut state, &new)?;
    let disk = if kind == Kind::Lxc { "rootfs" } else { "scsi0" };
    guest.config.insert(disk.to_owned(), config::with_volume(kind, disk, &volid, &volid, Some(size)));
    if request.template {
        guest.config.insert("template".to_owned(), "1".to_owned());
    }
    state.insert_guest(guest);
    if let Some(pool) = request.pool.as_ref().and_then(|pool| state.cluster_mut().pools.get_mut(pool)) {
        pool.vms.insert(vmid);
    }
    Ok(volid)
}

fn defaults(request: &Import) -> config::Config {
    let memory = request.memory.unwrap_or(512).to_string();
    let cores = request.cores.map(|cores| cores.to_string());
    let net = match request.kind {
        Kind::Lxc => format!("name=eth0,bridge=vmbr0,hwaddr={},ip=dhcp,type=veth", random_mac()),
        Kind::Qemu => format!("virtio={},bridge=vmbr0", random_mac()),
    };
    let mut pairs = match request.kind {
        Kind::Lxc => vec![
            ("hostname", request.hostname.clone()),
            ("arch", "amd64".to_owned()),
            ("ostype", "debian".to_owned()),
            ("swap", "512".to_owned()),
            ("unprivileged", "1".to_owned()),
            ("features", "nesting=1".to_owned()),
        ],
        Kind::Qemu => vec![
            ("name", request.hostname.clone()),
            ("ostype", "l26".to_owned()),
            ("scsihw", "virtio-scsi-single".to_owned()),
            ("boot", "order=scsi0".to_owned()),
            ("smbios1", format!("uuid={}", crate::api::access::new_secret())),
        ],
    };
    pairs.extend([("memory", memory), ("net0", net)]);
    pairs.extend(cores.map(|cores| ("cores", cores)));
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Sent by the command line.
impl Import {
    pub(crate) fn body(&self) -> Value {
        json!(self)
    }
}
