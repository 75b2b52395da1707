//! Writing a configuration: at once, pending, or refused.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::{Answer, Call};
use super::permit::{self, Change};
use super::refuse_root_only;
use crate::auth::privileges::Access;
use crate::http::envelope::Refusal;
use crate::node::config;
use crate::node::guests::{Guest, Kind};
use crate::node::network::random_mac;
use crate::node::storage::{self, NewVolume, Role};
use crate::schema::{self, properties};
use crate::state::State;

/// Parameters that are not keys.
const CONTROL: &[&str] =
    &["node", "vmid", "digest", "delete", "revert", "force", "skiplock", "background_delay", "import-working-storage"];

/// What a write asks for.
#[derive(Debug, Clone)]
struct Wanted {
    set: Vec<(String, String)>,
    delete: Vec<String>,
    revert: Vec<String>,
    digest: Option<String>,
    /// Destroy a detached disk instead of keeping it as `unusedN`.
    destroys: bool,
}

/// `PUT`: synchronous, null.
pub(crate) async fn put(call: Call, kind: Kind) -> Answer {
    let wanted = wanted(&call, kind)?;
    match kind {
        Kind::Lxc => write_lxc(&call, wanted).await?,
        Kind::Qemu => {
            early_qemu(&call, &wanted)?;
            write_qemu(&call, wanted).await?;
        }
    }
    Ok(Value::Null.into())
}

/// `POST`, virtual machines only: the same as a task.
pub(crate) async fn post(call: Call) -> Answer {
    let wanted = wanted(&call, Kind::Qemu)?;
    early_qemu(&call, &wanted)?;
    let vmid = call.vmid();
    let worker = call.clone();
    let upid =
        call.node.start_task(&call.caller, call.effects.clone(), ("qmconfig", &vmid.to_string()), |task| async move {
            task.work(crate::node::Work::Write).await?;
            write_qemu(&worker, wanted).await.map_err(|refusal| in_task(&refusal))?;
            Ok(0)
        });
    let Some(delay) = call.params.whole("background_delay") else {
        return Ok(json!(upid).into());
    };
    if let Some(task) = call.node.live_task(&upid) {
        let _ = tokio::time::timeout(Duration::from_secs(delay.unsigned_abs()), task.ended.notified()).await;
    }
    let exit = call.node.read().tasks().get(&upid).and_then(|task| task.exit.clone());
    match exit.as_deref() {
        None => Ok(json!(upid).into()),
        Some(exit) if exit == "OK" || exit.starts_with("WARNINGS: ") => Ok(Value::Null.into()),
        Some(error) => Err(Refusal::die(format!("failed to update VM {vmid}: {error}"))),
    }
}

/// How a refusal reads as the end of a task.
fn in_task(refusal: &Refusal) -> String {
    if refusal.errors.is_empty() {
        return refusal.message.clone();
    }
    let errors: Vec<String> = refusal.errors.iter().map(|(key, text)| format!("{key}: {}", text.trim_end())).collect();
    format!("{} {} {}", refusal.status, refusal.message, errors.join(" "))
}

fn wanted(call: &Call, kind: Kind) -> Result<Wanted, Refusal> {
    refuse_root_only(call)?;
    let params = &call.params;
    let set: Vec<(String, String)> = params
        .pairs()
        .filter(|(name, _)| !CONTROL.contains(name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let wanted = Wanted {
        set,
        delete: params.items("delete"),
        revert: params.items("revert"),
        digest: params.text("digest").filter(|digest| !digest.is_empty()).map(str::to_owned),
        destroys: params.flag("force") == Some(true),
    };
    if wanted.set.is_empty() && wanted.delete.is_empty() && wanted.revert.is_empty() {
        return Err(Refusal::die("no options specified"));
    }
    for key in &wanted.delete {
        if wanted.set.iter().any(|(name, _)| name == key) {
            return Err(Refusal::parameter(
                "delete",
                format!("you can't use '-{key}' and -delete {key}' at the same time"),
            ));
        }
        if schema::find(&[kind.keys()], key, call.node.major()).is_none() {
            return Err(Refusal::parameter("delete", format!("unknown option '{key}'")));
        }
    }
    for key in &wanted.revert {
        if schema::find(&[kind.keys()], key, call.node.major()).is_none() {
            return Err(Refusal::parameter("revert", format!("unknown option '{key}'")));
        }
    }
    Ok(wanted)
}

fn permit_all(access: Access<'_>, guest: &Guest, wanted: &Wanted) -> Result<(), Refusal> {
    for (key, value) in &wanted.set {
        permit::key(access, guest, key, Change::Set(value))?;
    }
    for key in &wanted.delete {
        permit::key(access, guest, key, Change::Delete)?;
    }
    Ok(())
}

async fn write_lxc(call: &Call, wanted: Wanted) -> Result<(), Refusal> {
    let (node, vmid, kind) = (&call.node, call.vmid(), Kind::Lxc);
    let _held = node.lock_config(kind, vmid).await.map_err(Refusal::die)?;
    let guest = node.guest(kind, vmid).map_err(Refusal::die)?;
    guest.check_lock().map_err(Refusal::die)?;
    if wanted.digest.as_ref().is_some_and(|digest| *digest != guest.digest()) {
        return Err(Refusal::die("detected modified configuration - file changed by other user? Try again."));
    }
    node.access(&call.caller, |access, _| permit_all(access, &guest, &wanted))?;
    let running = node.pid(vmid).await.is_some();
    let mut changed = guest.clone();
    let mut state = node.write();

    for key in &wanted.revert {
        changed.pending.remove(key);
    }
    for key in &wanted.delete {
        if matches!(key.as_str(), "memory" | "rootfs" | "ostype") {
            return Err(Refusal::die(format!("unable to delete required option '{key}'")));
        }
        if key == "unprivileged" {
            return Err(Refusal::die("unable to delete read-only option: 'unprivileged'"));
        }
        protect(&changed, key)?;
        if !changed.config.contains_key(key) {
            changed.pending.remove(key);
        } else if running && !is_hot(&changed, key, None) {
            changed.pending.insert(key.clone(), None);
        } else {
            remove(&mut state, &mut changed, key, wanted.destroys);
        }
    }
    for (key, value) in &wanted.set {
        if key == "unprivileged" {
            return Err(Refusal::die("unable to modify read-only option: 'unprivileged'"));
        }
        protect(&changed, key)?;
        if config::base(kind, key) == "net" {
            check_mtu(&state, key, value)?;
            let bridge = config::bridge_of(kind, value).map(|(bridge, _)| bridge);
            let missing = bridge.filter(|bridge| !state.cluster().bridges.contains_key(bridge));
            if let (true, Some(bridge)) = (running, missing) {
                return Err(Refusal::parameter(
                    key,
                    format!("unable to hotplug {key}: bridge '{bridge}' does not exist\n"),
                ));
            }
        }
        let hot = !running || is_hot(&changed, key, Some(value));
        let value = stored(&mut state, &changed, key, value, call.effects.storage_full).map_err(|text| {
            if running {
                Refusal::parameter(key, format!("unable to apply pending change {key} : {text}\n"))
            } else {
                Refusal::die(text)
            }
        })?;
        if hot {
            changed.pending.remove(key);
            changed.config.insert(key.clone(), value);
        } else if changed.get(key) == Some(value.as_str()) {
            changed.pending.remove(key);
        } else {
            changed.pending.insert(key.clone(), Some(value));
        }
    }
    let rebuild = if running { Ok(()) } else { rebuild_check(&state, &changed) };
    // The file is saved before the container's own configuration is rebuilt, so a failure of that comes too late.
    state.insert_guest(changed);
    rebuild.map_err(Refusal::die)
}

/// What fails when Proxmox rebuilds a container's own configuration from the file.
pub(crate) fn rebuild_check(state: &State, guest: &Guest) -> Result<(), String> {
    if !guest.config.contains_key("arch") {
        return Err("missing 'arch' - internal error at /usr/share/perl5/PVE/LXC.pm line 657.".to_owned());
    }
    for (key, value) in &guest.config {
        if config::base(Kind::Lxc, key) == "net" {
            let bridge = config::bridge_of(Kind::Lxc, value).map(|(bridge, _)| bridge);
            if let Some(bridge) = bridge.filter(|bridge| !state.cluster().bridges.contains_key(bridge)) {
                return Err(format!("bridge '{bridge}' does not exist"));
            }
        }
    }
    Ok(())
}

fn protect(guest: &Guest, key: &str) -> Result<(), Refusal> {
    if guest.is_protected() && matches!(config::base(Kind::Lxc, key), "rootfs" | "mp") {
        let text = format!("can't update CT {} drive '{key}' - protection mode enabled", guest.vmid);
        return Err(Refusal::die(text));
    }
    Ok(())
}

fn check_mtu(state: &State, key: &str, value: &str) -> Result<(), Refusal> {
    let net = config::parse_net(Kind::Lxc, value);
    let mtu = net.get("mtu").and_then(|mtu| mtu.parse::<u32>().ok());
    let bridge = net.get("bridge").and_then(|bridge| state.cluster().bridges.get(bridge));
    match (mtu, bridge) {
        (Some(mtu), Some(bridge)) if mtu > bridge.mtu => {
            Err(Refusal::die(format!("{key}: MTU size '{mtu}' is bigger than bridge MTU '{}'", bridge.mtu)))
        }
        _ => Ok(()),
    }
}

/// Keys a running guest takes at once.
fn is_hot(guest: &Guest, key: &str, value: Option<&str>) -> bool {
    let base = config::base(guest.kind, key);
    match guest.kind {
        Kind::Lxc => {
            matches!(
                base,
                "description"
                    | "onboot"
                    | "startup"
                    | "protection"
                    | "hostname"
                    | "hookscript"
                    | "cores"
                    | "tags"
                    | "memory"
                    | "swap"
                    | "cpulimit"
                    | "cpuunits"
                    | "net"
                    | "unused"
            ) || (base == "mp" && value.is_some() && !guest.config.contains_key(key))
        }
        Kind::Qemu => matches!(
            base,
            "description"
                | "name"
                | "onboot"
                | "startup"
                | "protection"
                | "tags"
                | "net"
                | "shares"
                | "cpulimit"
                | "cpuunits"
                | "unused"
                | "ide"
                | "scsi"
                | "virtio"
                | "sata"
        ),
    }
}

/// The stored form of a value; volumes are allocated on the way.
fn stored(state: &mut State, guest: &Guest, key: &str, value: &str, full: bool) -> Result<String, String> {
    let kind = guest.kind;
    if !config::is_volume_key(kind, key) {
        return Ok(config::normalise(kind, key, value, random_mac));
    }
    let (volume, size) = config::volume_of(kind, value).ok_or_else(|| format!("unable to parse volume of '{key}'"))?;
    let Some((storage, name)) = volume.split_once(':') else {
        return Ok(value.to_owned());
    };
    if name == "cloudinit" {
        let volid = format!("{storage}:vm-{}-cloudinit", guest.vmid);
        return Ok(config::with_volume(kind, key, &format!("{value},media=cdrom"), &volid, Some(4 << 20)));
    }
    // A plain number asks for a new volume of so many GiB.
    if let Ok(gib) = name.parse::<f64>() {
        if full {
            return Err(storage::full(
                &state.cluster().storages.get(storage).map(|found| found.kind.clone()).unwrap_or_default(),
                key,
            ));
        }
        let bytes = (gib * (1_u64 << 30) as f64) as u64;
        let new = NewVolume { storage, kind, vmid: guest.vmid, size: bytes, base: None, role: Role::Disk };
        let volid = storage::allocate(state, &new)?;
        return Ok(config::with_volume(kind, key, value, &volid, Some(bytes)));
    }
    let Some(known) = state.cluster().volumes.get(&volume) else {
        return Err(format!("volume '{volume}' does not exist"));
    };
    let size = size.or(Some(known.size));
    Ok(config::with_volume(kind, key, value, &volume, size))
}

/// Takes a key away; a volume stays as `unusedN`, and an unused one is destroyed.
fn remove(state: &mut State, guest: &mut Guest, key: &str, destroys: bool) {
    let Some(value) = guest.config.remove(key) else {
        return;
    };
    guest.pending.remove(key);
    let owned = config::is_volume_key(guest.kind, key) && !value.contains("media=cdrom");
    let Some((volid, _)) = config::volume_of(guest.kind, &value).filter(|_| owned) else {
        return;
    };
    if destroys || config::base(guest.kind, key) == "unused" {
        state.cluster_mut().volumes.remove(&volid);
        return;
    }
    let free = (0..256).map(|index| format!("unused{index}")).find(|name| !guest.config.contains_key(name));
    if let Some(free) = free {
        guest.config.insert(free, volid);
    }
}

/// What a machine's write is refused for before its file is locked.
fn early_qemu(call: &Call, wanted: &Wanted) -> Result<(), Refusal> {
    let guest = call.node.guest(Kind::Qemu, call.vmid()).map_err(Refusal::die)?;
    call.node.access(&call.caller, |access, _| permit_all(access, &guest, wanted))?;
    for (key, value) in &wanted.set {
        if key == "sshkeys" && !are_ssh_keys(value) {
            return Err(Refusal::die("SSH public key validation error"));
        }
        if key == "balloon" {
            let balloon: u64 = value.parse().unwrap_or(0);
            let memory = wanted.set.iter().find(|(key, _)| key == "memory");
            let memory = memory.and_then(|(_, value)| value.parse().ok()).unwrap_or_else(|| guest.memory());
            if balloon > memory {
                return Err(Refusal::die("balloon value too large (must be smaller than assigned memory)"));
            }
        }
    }
    // Both are checked before the task is forked, so that POST answers them too.
    check_machine(&guest, wanted)
}

fn check_machine(guest: &Guest, wanted: &Wanted) -> Result<(), Refusal> {
    if wanted.digest.as_ref().is_some_and(|digest| *digest != guest.digest()) {
        return Err(Refusal::die("checksum mismatch (file change by other user?)"));
    }
    guest.check_lock().map_err(Refusal::die)
}

fn are_ssh_keys(value: &str) -> bool {
    let text = crate::http::decode::unescape(value);
    text.lines().filter(|line| !line.trim().is_empty()).all(|line| {
        let mut words = line.split(' ');
        let kind = words.next().unwrap_or_default();
        let known = kind.starts_with("ssh-") || kind.starts_with("ecdsa-sha2-") || kind.starts_with("sk-");
        known && words.next().is_some_and(|key| key.len() >= 16)
    })
}

async fn write_qemu(call: &Call, wanted: Wanted) -> Result<(), Refusal> {
    let (node, vmid, kind) = (&call.node, call.vmid(), Kind::Qemu);
    let _held = node.lock_config(kind, vmid).await.map_err(Refusal::die)?;
    let guest = node.guest(kind, vmid).map_err(Refusal::die)?;
    check_machine(&guest, &wanted)?;
    let running = guest.running.is_some();
    let mut changed = guest.clone();
    let mut state = node.write();
    for key in &wanted.revert {
        changed.pending.remove(key);
    }
    for key in &wanted.delete {
        if guest.is_protected() && config::is_volume_key(kind, key) {
            return Err(Refusal::die(format!("can't remove drive '{key}' - protection mode enabled")));
        }
        if !changed.config.contains_key(key) {
            changed.pending.remove(key);
        } else if running && !is_hot(&changed, key, None) {
            changed.pending.insert(key.clone(), None);
        } else {
            remove(&mut state, &mut changed, key, wanted.destroys);
        }
    }
    for (key, value) in &wanted.set {
        let hot = !running || is_hot(&changed, key, Some(value));
        let value = stored(&mut state, &changed, key, value, call.effects.storage_full).map_err(Refusal::die)?;
        if key == "smbios1" {
            properties::parse(schema::qemu::SMBIOS, &value).map_err(Refusal::die)?;
        }
        if hot {
            changed.pending.remove(key);
            changed.config.insert(key.clone(), value);
        } else if changed.get(key) == Some(value.as_str()) {
            changed.pending.remove(key);
        } else {
            changed.pending.insert(key.clone(), Some(value));
        }
    }
    state.insert_guest(changed);
    Ok(())
}
