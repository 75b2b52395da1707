//! The calls that change something. Each is sent once: whoever gets an uncertain answer reads the state again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use contract::ids::{Hostname, NodeName, PoolId, StorageId, Vmid};
use contract::manifest::GuestKind;
use serde_json::Value;

use super::client::{Client, readable};
use super::error::{Effect, Problem, ProxmoxError};
use super::form::Form;
use super::guest::{Digest, GuestRef};
use super::net::Net;
use super::tags::Tags;
use super::transport::{Call, Verb, path};
use super::upid::Upid;

/// Whether a clone has disks of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloneMode {
    /// It has; works on every storage.
    Full,
    /// It shares the template's; then the storage cannot be chosen, and not every storage can (pve-api 6).
    Linked,
}

/// What to clone to what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloneRequest {
    /// Number of the new guest.
    pub vmid: Vmid,
    /// Host name of a container, name of a virtual machine.
    pub name: Hostname,
    /// The pool that it is put into, last of all.
    pub pool: Option<PoolId>,
    /// Absent: the source's.
    pub description: Option<String>,
    /// Absent: the source's; only for a full clone.
    pub storage: Option<StorageId>,
    /// Another node; only if all volumes are on shared storage.
    pub target: Option<NodeName>,
    /// Whether it has disks of its own.
    pub mode: CloneMode,
}

/// What to change in a configuration; absent: left as it is.
#[derive(Clone, PartialEq, Default)]
pub struct ConfigChange {
    /// Host name of a container, name of a virtual machine.
    pub name: Option<Hostname>,
    /// Empty: removed.
    pub description: Option<String>,
    /// All tags; empty: removed.
    pub tags: Option<Tags>,
    /// Cores.
    pub cores: Option<u32>,
    /// MiB.
    pub memory: Option<u32>,
    /// The whole first interface. Take it from [`super::GuestConfig::net0`] and change that, so that its MAC stays.
    pub net0: Option<Net>,
    /// Whether it starts with its node.
    pub onboot: Option<bool>,
    /// Whether Proxmox refuses to destroy it.
    pub protection: Option<bool>,
    /// Other keys, such as `nameserver`, `timezone` or `ipconfig0`.
    pub others: BTreeMap<String, String>,
    /// Keys to remove.
    pub remove: BTreeSet<String>,
}

/// Values of other keys are left out: `cipassword` is one of them.
impl fmt::Debug for ConfigChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigChange")
            .field("name", &self.name)
            .field("description", &self.description)
            .field("tags", &self.tags)
            .field("cores", &self.cores)
            .field("memory", &self.memory)
            .field("net0", &self.net0)
            .field("onboot", &self.onboot)
            .field("protection", &self.protection)
            .field("others", &self.others.keys())
            .field("remove", &self.remove)
            .finish()
    }
}

impl ConfigChange {
    /// Whether nothing is to be changed; Proxmox refuses such a call.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn form(&self, kind: GuestKind, digest: Option<&Digest>) -> Form {
        let name_key = match kind {
            GuestKind::Lxc => "hostname",
            GuestKind::Vm => "name",
        };
        let mut remove = self.remove.clone();
        let mut form = Form::new().set_some(name_key, self.name.as_ref());
        // An empty list is stored as a blank (pve-api 7), so what is empty is removed.
        for (key, text) in
            [("description", self.description.clone()), ("tags", self.tags.as_ref().map(Tags::to_string))]
        {
            match text.as_deref() {
                Some("") => _ = remove.insert(key.to_owned()),
                text => form = form.set_some(key, text),
            }
        }
        form = form
            .set_some("cores", self.cores)
            .set_some("memory", self.memory)
            .set_some("net0", self.net0.as_ref())
            .set_some("onboot", self.onboot.map(u8::from))
            .set_some("protection", self.protection.map(u8::from));
        for (key, value) in &self.others {
            form = form.set(key, value);
        }
        let remove: Vec<String> = remove.into_iter().collect();
        form.set_some("delete", (!remove.is_empty()).then(|| remove.join(",")))
            .set_some("digest", digest.map(Digest::as_str))
    }
}

/// What happens to a guest that does not shut down in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterTimeout {
    /// It keeps running, and the task fails.
    KeepRunning,
    /// It is stopped hard.
    Kill,
}

/// What happens to volumes that carry the guest's number but are not in its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leftovers {
    /// They stay.
    Keep,
    /// They go too, on all storages.
    Destroy,
}

/// How a guest is backed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupMode {
    /// While it runs.
    Snapshot,
    /// It is paused for the last part.
    Suspend,
    /// It is shut down before and started after.
    Stop,
}

/// A backup to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// Where to.
    pub storage: StorageId,
    /// How.
    pub mode: BackupMode,
    /// What the list of backups shows.
    pub notes: Option<String>,
}

impl Client {
    /// Starts to clone a guest. The task's id names the **source**; the new guest can be seen by a pool-scoped token only
    /// when the task is done.
    pub async fn clone_guest(&self, source: &GuestRef, request: &CloneRequest) -> Result<Upid, ProxmoxError> {
        let name_key = match source.kind {
            GuestKind::Lxc => "hostname",
            GuestKind::Vm => "name",
        };
        let form = Form::new()
            .set("newid", request.vmid)
            .set(name_key, &request.name)
            .flag("full", request.mode == CloneMode::Full)
            .set_some("pool", request.pool.as_ref())
            .set_some("description", request.description.as_ref())
            .set_some("storage", request.storage.as_ref())
            .set_some("target", request.target.as_ref());
        let call = self.guest_call(Verb::Post, source, &["clone"]).with(form);
        self.task(&call).await.map_err(|error| match error.problem() {
            // The new guest is not there yet, so this is about a right and not about a guest.
            Problem::NotVisible { vmid, privilege } if *vmid == request.vmid => {
                let problem = Problem::MissingPrivilege {
                    path: Some(format!("/vms/{vmid}")),
                    privilege: Some(privilege.clone()),
                };
                error.with_problem(problem)
            }
            _ => error,
        })
    }

    /// Changes a configuration; with a digest only if nobody else has changed it since it was read.
    pub async fn configure(
        &self,
        guest: &GuestRef,
        change: &ConfigChange,
        digest: Option<&Digest>,
    ) -> Result<(), ProxmoxError> {
        if change.is_empty() {
            return Ok(());
        }
        let call = self.guest_call(Verb::Put, guest, &["config"]);
        let call = call.with(change.form(guest.kind, digest)).effect(Effect::ConfigWrite);
        self.data(&call).await.map(drop)
    }

    /// Starts to grow a disk to a size in GiB. Proxmox never shrinks one; of a container it also refuses an equal size.
    pub async fn resize(
        &self,
        guest: &GuestRef,
        disk: &str,
        gib: u32,
        digest: Option<&Digest>,
    ) -> Result<Upid, ProxmoxError> {
        let form = Form::new().set("disk", disk).set("size", format!("{gib}G"));
        let form = form.set_some("digest", digest.map(Digest::as_str));
        self.task(&self.guest_call(Verb::Put, guest, &["resize"]).with(form)).await
    }

    /// Starts to start a guest.
    pub async fn start(&self, guest: &GuestRef) -> Result<Upid, ProxmoxError> {
        self.task(&self.guest_call(Verb::Post, guest, &["status", "start"])).await
    }

    /// Starts to stop a guest hard.
    pub async fn stop(&self, guest: &GuestRef) -> Result<Upid, ProxmoxError> {
        self.task(&self.guest_call(Verb::Post, guest, &["status", "stop"])).await
    }

    /// Starts to shut a guest down; whole seconds count.
    pub async fn shutdown(
        &self,
        guest: &GuestRef,
        timeout: Duration,
        after: AfterTimeout,
    ) -> Result<Upid, ProxmoxError> {
        let form = Form::new().set("timeout", timeout.as_secs()).flag("forceStop", after == AfterTimeout::Kill);
        self.task(&self.guest_call(Verb::Post, guest, &["status", "shutdown"]).with(form)).await
    }

    /// Starts to destroy a stopped guest and takes it out of backup jobs, replication and HA.
    pub async fn destroy(&self, guest: &GuestRef, leftovers: Leftovers) -> Result<Upid, ProxmoxError> {
        let form = Form::new().flag("purge", true).flag("destroy-unreferenced-disks", leftovers == Leftovers::Destroy);
        self.task(&self.guest_call(Verb::Delete, guest, &[]).with(form)).await
    }

    /// Starts to convert a guest to a template. Of a container Proxmox does not name the task: then read the
    /// configuration until it says `template`, or look in [`Client::active_tasks`] for a `vztemplate`.
    pub async fn to_template(&self, guest: &GuestRef) -> Result<Option<Upid>, ProxmoxError> {
        let call = self.guest_call(Verb::Post, guest, &["template"]);
        match self.data(&call).await? {
            Value::Null => Ok(None),
            data => readable(&call, upid_in(&data)).map(Some),
        }
    }

    /// Starts to back a guest up. Older backups stay. A guest that is not on its node is not found.
    pub async fn backup(&self, guest: &GuestRef, backup: &Backup) -> Result<Upid, ProxmoxError> {
        let mode = match backup.mode {
            BackupMode::Snapshot => "snapshot",
            BackupMode::Suspend => "suspend",
            BackupMode::Stop => "stop",
        };
        let form = Form::new()
            .set("vmid", guest.vmid)
            .set("storage", &backup.storage)
            .set("mode", mode)
            .set("compress", "zstd")
            // Its default, 1, would prune older backups.
            .flag("remove", false)
            .set_some("notes-template", backup.notes.as_ref());
        let call = Call::new(Verb::Post, path(&["nodes", guest.node.as_str(), "vzdump"]), Some(&guest.node)).with(form);
        let data = self.data(&call).await?;
        if data == "OK" {
            return Err(self.fail(&call, Problem::NotFound(format!("{guest} is not there, so nothing was backed up"))));
        }
        readable(&call, upid_in(&data))
    }

    /// Ends a running task; the call takes about two seconds.
    pub async fn stop_task(&self, upid: &Upid) -> Result<(), ProxmoxError> {
        let parts = ["nodes", upid.node().as_str(), "tasks", upid.as_str()];
        self.data(&Call::new(Verb::Delete, path(&parts), Some(upid.node()))).await.map(drop)
    }

    /// A call that answers with the id of the task that it started.
    async fn task(&self, call: &Call) -> Result<Upid, ProxmoxError> {
        let data = self.data(call).await?;
        readable(call, upid_in(&data))
    }
}

fn upid_in(data: &Value) -> Result<Upid, String> {
    let text = data.as_str().ok_or("a task id was expected")?;
    text.parse().map_err(|error: super::upid::InvalidUpid| error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn empty_texts_are_removed_and_names_go_where_the_kind_has_them() {
        let change = ConfigChange {
            name: Some("ctrlable-acme-zigbee".parse().unwrap()),
            tags: Some(Tags::default()),
            description: Some(String::new()),
            onboot: Some(true),
            protection: Some(false),
            remove: BTreeSet::from(["mp0".to_owned()]),
            ..ConfigChange::default()
        };
        let lxc = change.form(GuestKind::Lxc, None).encode();
        assert_eq!(lxc, "hostname=ctrlable-acme-zigbee&onboot=1&protection=0&delete=description%2Cmp0%2Ctags");
        assert!(change.form(GuestKind::Vm, None).encode().starts_with("name=ctrlable-acme-zigbee&"));
    }

    #[test]
    fn debug_shows_no_value_of_other_keys() {
        let others = BTreeMap::from([("cipassword".to_owned(), "hunter2".to_owned())]);
        let shown = format!("{:?}", ConfigChange { others, ..ConfigChange::default() });
        assert!(shown.contains("cipassword") && !shown.contains("hunter2"));
    }
}
