//! Which privilege a configuration key needs.

use crate::auth::privileges::Access;
use crate::http::envelope::Refusal;
use crate::node::config;
use crate::node::guests::{Guest, Kind};
use crate::schema::properties;

/// What is done to a key.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change<'a> {
    Set(&'a str),
    Delete,
}

/// Checks one key; `guest` is as it was before.
pub(crate) fn key(access: Access<'_>, guest: &Guest, key: &str, change: Change<'_>) -> Result<(), Refusal> {
    match guest.kind {
        Kind::Lxc => lxc(access, guest, key, change),
        Kind::Qemu => qemu(access, guest, key, change),
    }
}

fn lxc(access: Access<'_>, guest: &Guest, key: &str, change: Change<'_>) -> Result<(), Refusal> {
    let path = format!("/vms/{}", guest.vmid);
    match config::base(Kind::Lxc, key) {
        "cores" | "cpulimit" | "cpuunits" => access.require(&path, "VM.Config.CPU"),
        "memory" | "swap" => access.require(&path, "VM.Config.Memory"),
        "nameserver" | "searchdomain" | "hostname" => access.require(&path, "VM.Config.Network"),
        "net" => {
            access.require(&path, "VM.Config.Network")?;
            bridges(access, guest, key, change)
        }
        "rootfs" | "mp" | "unused" => {
            access.require(&path, "VM.Config.Disk")?;
            if let Change::Set(value) = change {
                let (volume, _) = config::volume_of(Kind::Lxc, value).unwrap_or_default();
                if volume.starts_with('/') {
                    let kind = if volume.starts_with("/dev/") { "device" } else { "bind" };
                    return Err(Refusal::forbidden(&format!("mount point type {kind} is only allowed for root@pam")));
                }
                space(access, guest, key, &volume)?;
            }
            Ok(())
        }
        "dev" => Err(Refusal::forbidden("configuring device passthrough is only allowed for root@pam")),
        "hookscript" => Err(Refusal::forbidden("changing the hookscript is only allowed for root@pam")),
        "features" => features(access, guest, &path, change),
        _ => access.require(&path, "VM.Config.Options"),
    }
}

/// Only the nesting bit of an unprivileged container may differ.
fn features(access: Access<'_>, guest: &Guest, path: &str, change: Change<'_>) -> Result<(), Refusal> {
    let parsed = |value: Option<&str>| {
        let mut found = properties::parse(crate::schema::lxc::FEATURES, value.unwrap_or_default()).unwrap_or_default();
        found.retain(|_, value| value != "0");
        found
    };
    let mut before = parsed(guest.get("features"));
    let mut after = match change {
        Change::Set(value) => parsed(Some(value)),
        Change::Delete => properties::Properties::new(),
    };
    if before == after {
        return Ok(());
    }
    before.remove("nesting");
    after.remove("nesting");
    if before != after {
        return Err(Refusal::forbidden("changing feature flags (except nesting) is only allowed for root@pam"));
    }
    if guest.get("unprivileged") != Some("1") {
        return Err(Refusal::forbidden("changing feature flags for privileged container is only allowed for root@pam"));
    }
    access.require(path, "VM.Allocate")
}

fn bridges(access: Access<'_>, guest: &Guest, key: &str, change: Change<'_>) -> Result<(), Refusal> {
    let old = guest.get(key);
    let new = match change {
        Change::Set(value) => Some(value),
        Change::Delete => None,
    };
    for value in old.into_iter().chain(new) {
        use_bridge(access, guest.kind, value)?;
    }
    Ok(())
}

/// `SDN.Use` on the bridge of a net, or on its VLANs.
pub(crate) fn use_bridge(access: Access<'_>, kind: Kind, net: &str) -> Result<(), Refusal> {
    let found = config::parse_net(kind, net);
    let Some(bridge) = found.get("bridge") else {
        return Ok(());
    };
    let zone = format!("/sdn/zones/localnetwork/{bridge}");
    match (found.get("tag"), found.get("trunks")) {
        (None, None) => access.require(&zone, "SDN.Use"),
        (tag, trunks) => {
            let ids = tag.map(String::as_str).into_iter().chain(trunks.into_iter().flat_map(|ids| ids.split(';')));
            ids.into_iter().try_for_each(|id| access.require(&format!("{zone}/{id}"), "SDN.Use"))
        }
    }
}

fn space(access: Access<'_>, guest: &Guest, key: &str, volume: &str) -> Result<(), Refusal> {
    let same =
        guest.get(key).and_then(|value| config::volume_of(guest.kind, value)).is_some_and(|(old, _)| old == volume);
    match volume.split_once(':') {
        Some((storage, _)) if !same => access.require(&format!("/storage/{storage}"), "Datastore.AllocateSpace"),
        _ => Ok(()),
    }
}

fn qemu(access: Access<'_>, guest: &Guest, key: &str, change: Change<'_>) -> Result<(), Refusal> {
    let path = format!("/vms/{}", guest.vmid);
    let root_only = |what: &str| Err(Refusal::die(format!("only root can set '{key}' config{what}")));
    match config::base(Kind::Qemu, key) {
        "args" | "hookscript" | "lock" | "arch" | "affinity" | "vmgenid" | "hugepages" | "keephugepages"
        | "ivshmem" | "spice_enhancements" | "amd-sev" | "intel-tdx" | "parallel" => root_only(""),
        "usb" => match change {
            Change::Set(value) if value.contains("spice") => access.require(&path, "VM.Config.HWType"),
            _ => root_only(" for real devices"),
        },
        "hostpci" => root_only(" for non-mapped devices"),
        "serial" => match change {
            Change::Set(value) if value != "socket" => {
                Err(Refusal::die(format!("only root can modify '{key}' config for real devices")))
            }
            _ => access.require(&path, "VM.Config.HWType"),
        },
        "cores" | "sockets" | "vcpus" | "cpulimit" | "cpuunits" | "cpu" | "numa" => {
            access.require(&path, "VM.Config.CPU")
        }
        "memory" | "balloon" => access.require(&path, "VM.Config.Memory"),
        "net" => {
            access.require(&path, "VM.Config.Network")?;
            bridges(access, guest, key, change)
        }
        "ciuser" | "cipassword" | "citype" | "ciupgrade" | "cicustom" | "ipconfig" | "nameserver" | "searchdomain"
        | "sshkeys" => access.require_any(&path, &["VM.Config.Cloudinit", "VM.Config.Network"]),
        "machine" | "scsihw" | "vga" | "smbios1" | "hotplug" | "tablet" | "acpi" | "kvm" | "rng0" | "watchdog"
        | "efidisk0" | "tpmstate0" => access.require(&path, "VM.Config.HWType"),
        "boot" => access.require(&path, "VM.Config.Disk"),
        "ide" | "sata" | "scsi" | "virtio" | "unused" => {
            let value = match change {
                Change::Set(value) => value,
                Change::Delete => guest.get(key).unwrap_or_default(),
            };
            let (volume, _) = config::volume_of(Kind::Qemu, value).unwrap_or_default();
            if volume.ends_with(":cloudinit") || volume.contains("-cloudinit") {
                access.require(&path, "VM.Config.Cloudinit")?;
                return access.require(&path, "VM.Config.CDROM");
            }
            if value.contains("media=cdrom") {
                return access.require(&path, "VM.Config.CDROM");
            }
            access.require(&path, "VM.Config.Disk")?;
            match change {
                Change::Set(_) => space(access, guest, key, &volume),
                Change::Delete => Ok(()),
            }
        }
        "startup" => {
            access.require(&path, "VM.Config.Options")?;
            access.require("/", "Sys.Modify")
        }
        _ => access.require(&path, "VM.Config.Options"),
    }
}
