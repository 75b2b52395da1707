//! Storages and volumes: names, room, and what each type can do.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::guests::Kind;
use crate::clock;
use crate::runtime::Vmid;
use crate::state::{Cluster, State, Storage, Volume};

/// What a storage is asked to be able to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ability {
    LinkedClone,
    Snapshot,
}

impl Storage {
    pub(crate) fn can(&self, kind: Kind, ability: Ability) -> bool {
        let copy_on_write = matches!(self.kind.as_str(), "zfspool" | "lvmthin" | "rbd" | "btrfs");
        let files = matches!(self.kind.as_str(), "dir" | "nfs" | "cifs");
        match (kind, ability) {
            // A container's disk on a file storage is a raw image, which can neither be based on another nor be frozen.
            (Kind::Lxc, _) => copy_on_write,
            (Kind::Qemu, Ability::LinkedClone | Ability::Snapshot) => copy_on_write || files,
        }
    }
    /// Format of a new volume.
    pub(crate) fn format(&self, kind: Kind) -> &'static str {
        match self.kind.as_str() {
            "dir" | "nfs" | "cifs" if kind == Kind::Qemu => "qcow2",
            "zfspool" if kind == Kind::Lxc => "subvol",
            _ => "raw",
        }
    }
    fn is_files(&self) -> bool {
        matches!(self.kind.as_str(), "dir" | "nfs" | "cifs" | "btrfs")
    }
}

/// Bytes in use on a storage.
pub(crate) fn used(cluster: &Cluster, storage: &str) -> u64 {
    let prefix = format!("{storage}:");
    cluster.volumes.iter().filter(|(volid, _)| volid.starts_with(&prefix)).map(|(_, volume)| volume.used).sum()
}

/// Finds a storage that is there and holds `content`; the error is Proxmox's text.
pub(crate) fn find<'a>(cluster: &'a Cluster, storage: &str, content: &str) -> Result<&'a Storage, String> {
    let found = cluster.storages.get(storage).ok_or_else(|| format!("storage '{storage}' does not exist"))?;
    if found.disabled {
        return Err(format!("storage '{storage}' is disabled"));
    }
    if !found.content.contains(content) {
        return Err(if content == "images" {
            format!("storage '{storage}' does not support vm images")
        } else {
            format!("content type '{content}' is not available or configured on storage '{storage}'")
        });
    }
    Ok(found)
}

/// A volume to be made.
#[derive(Debug, Clone)]
pub(crate) struct NewVolume<'a> {
    pub(crate) storage: &'a str,
    pub(crate) kind: Kind,
    pub(crate) vmid: Vmid,
    pub(crate) size: u64,
    /// Volume it is a linked clone of.
    pub(crate) base: Option<&'a str>,
    pub(crate) role: Role,
}

/// What a volume is for, which its name tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Disk,
    /// A template's disk.
    Base,
    /// The drive that hands a machine its first configuration.
    CloudInit,
}

/// Makes a volume and returns its id.
pub(crate) fn allocate(state: &mut State, new: &NewVolume<'_>) -> Result<String, String> {
    let content = if new.kind == Kind::Lxc { "rootdir" } else { "images" };
    let storage = find(state.cluster(), new.storage, content)?.clone();
    let name = free_name(state.cluster(), new, &storage);
    let volid = format!("{}:{name}", new.storage);
    // Thin volumes and sparse files start nearly empty; a quarter is what a small system in its default disk uses.
    let used_bytes = if new.base.is_some() { 64 << 20 } else { new.size / 4 };
    if used(state.cluster(), new.storage) + used_bytes > storage.capacity {
        return Err(full(&storage.kind, &name));
    }
    let volume = Volume {
        vmid: Some(new.vmid),
        content: content.to_owned(),
        format: storage.format(new.kind).to_owned(),
        size: new.size,
        used: used_bytes,
        ctime: clock::epoch(),
        base: new.base.map(str::to_owned),
        subtype: None,
    };
    state.cluster_mut().volumes.insert(volid.clone(), volume);
    Ok(volid)
}

/// The text of the tool that met the end of the storage.
pub(crate) fn full(kind: &str, name: &str) -> String {
    match kind {
        "lvmthin" => format!(
            "lvcreate 'pve/{name}' error:   Cannot create new thin volume, free space in thin pool pve/data reached threshold."
        ),
        "lvm" => "not enough free space (0 < 2097152)".to_owned(),
        "zfspool" => format!("zfs error: cannot create 'rpool/data/{name}': out of space"),
        _ => format!("unable to create image: fallocate: fallocate failed: No space left on device ({name})"),
    }
}

fn free_name(cluster: &Cluster, new: &NewVolume<'_>, storage: &Storage) -> String {
    let vmid = new.vmid;
    (0_u32..)
        .map(|index| {
            let disk = match new.role {
                Role::Disk => format!("vm-{vmid}-disk-{index}"),
                Role::Base => format!("base-{vmid}-disk-{index}"),
                Role::CloudInit => format!("vm-{vmid}-cloudinit"),
            };
            if !storage.is_files() {
                return disk;
            }
            let file = format!("{vmid}/{disk}.{}", storage.format(new.kind));
            match new.base.and_then(|base| base.split_once(':')) {
                Some((_, base)) if new.kind == Kind::Qemu => format!("{base}/{file}"),
                _ => file,
            }
        })
        .find(|name| {
            new.role == Role::CloudInit || !cluster.volumes.keys().any(|volid| same_disk(volid, new.storage, name))
        })
        .unwrap_or_default()
}

/// Two names of one guest's disk collide also when one of them is a base.
fn same_disk(volid: &str, storage: &str, name: &str) -> bool {
    let tail = |text: &str| text.rsplit('/').next().unwrap_or_default().replace("base-", "vm-");
    volid.split_once(':').is_some_and(|(other, path)| other == storage && tail(path) == tail(name))
}

/// Renames a volume to a base when its guest becomes a template.
pub(crate) fn to_base(cluster: &mut Cluster, volid: &str) -> String {
    let base = match volid.rfind("vm-") {
        Some(at) => format!("{}base-{}", &volid[..at], &volid[at + 3..]),
        None => volid.to_owned(),
    };
    if let Some(volume) = cluster.volumes.remove(volid) {
        cluster.volumes.insert(base.clone(), volume);
    }
    base
}

/// Linked clones of a volume.
pub(crate) fn has_children(cluster: &Cluster, volid: &str) -> bool {
    cluster.volumes.values().any(|volume| volume.base.as_deref() == Some(volid))
}

/// A row of `nodes/N/storage`.
pub(crate) fn row(cluster: &Cluster, name: &str, storage: &Storage) -> Value {
    let used = if storage.disabled { 0 } else { used(cluster, name).min(storage.capacity) };
    let total = if storage.disabled { 0 } else { storage.capacity };
    let mut row = json!({
        "storage": name, "type": storage.kind, "content": joined(&storage.content), "shared": 0,
        "enabled": u8::from(!storage.disabled), "active": u8::from(!storage.disabled), "total": total, "used": used,
        "avail": total - used,
    });
    if total > 0 {
        row["used_fraction"] = json!(used as f64 / total as f64);
    }
    row
}

/// A row of `storage/S/content`.
pub(crate) fn content_row(volid: &str, volume: &Volume) -> Value {
    let mut row = json!({
        "volid": volid, "format": volume.format, "size": volume.size, "content": volume.content, "ctime": volume.ctime,
    });
    if let Some(vmid) = volume.vmid {
        row["vmid"] = json!(vmid);
    }
    if volume.content == "backup" {
        row["subtype"] = json!(volume.subtype);
    } else if volid.split_once(':').is_some_and(|(_, path)| path.contains('/')) {
        row["used"] = json!(volume.used);
        // Only file-like names show their base.
        row["parent"] = json!(volume.base.as_deref().and_then(|base| base.split_once(':')).map(|(_, base)| base));
    }
    row
}

pub(crate) fn joined(content: &BTreeSet<String>) -> String {
    content.iter().cloned().collect::<Vec<_>>().join(",")
}
