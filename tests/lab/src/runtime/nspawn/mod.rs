//! Guests that are real: Debian containers with systemd, D-Bus and sshd, on a bridge in a network namespace.
//!
//! Needs root, and of Debian 12 or later (apt-get install):
//!
//!     systemd-container iproute2 dnsmasq-base mmdebstrap openssh-server util-linux
//!
//! The machine may have systemd as its first process or not, and control groups of version 2, alone or beside
//! version 1. What runs is found by control group, what is stored by file: a lab that was killed finds everything
//! again, and [`tear_down`] needs no lab.
//!
//! Not as on Proxmox: containers are privileged (no user namespace); only images with systemd-networkd are configured;
//! `/etc/resolv.conf` is left alone, since there is no name server; `/proc/meminfo` shows the machine's memory, though
//! the limit holds; and a guest that powers itself off leaves its port on the bridge until it is next touched.

mod boot;
mod cgroup;
mod configure;
mod dhcp;
mod disk;
mod exec;
mod mounted;
mod network;
mod place;
mod teardown;
#[cfg(test)]
mod tests;
pub(crate) mod tool;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use self::cgroup::Group;
use self::disk::Disks;
use self::mounted::{Holder, Mounted};
use self::network::Network;
use self::place::Place;
use super::{Failure, GuestSpec, Interface, RootFs, Vmid};

pub(crate) use self::exec::{exec, exec_netns};
pub(crate) use self::teardown::{sweep, tear_down};

/// Makes the node's network namespace and bridge, or finds them again, and moves the calling thread into it. Call it
/// before any other thread exists: threads inherit the namespace of the one that starts them.
pub(crate) fn enter_namespace(state: &Path, bridge: &str, subnet: &str) -> Result<(), Failure> {
    let network = Network::new(bridge, subnet)?;
    require_root()?;
    sweep();
    let place = Place::create(state)?;
    network.ensure(&place)?;
    network::enter(&place)
}

/// The runtime over one state directory.
#[derive(Debug, Clone)]
pub(crate) struct NspawnRuntime {
    lab: Arc<Lab>,
}

#[derive(Debug)]
struct Lab {
    place: Place,
    network: Network,
    disks: Disks,
}

impl NspawnRuntime {
    /// Opens a state directory: makes the network if need be, starts the DHCP server unless it runs. Guests that run
    /// go on running.
    pub(crate) fn open(state: &Path, bridge: &str, subnet: &str) -> Result<Self, Failure> {
        let network = Network::new(bridge, subnet)?;
        require_root()?;
        let place = Place::create(state)?;
        raise_inotify_limit()?;
        network.ensure(&place)?;
        dhcp::ensure(&place, &network)?;
        let disks = Disks::open(&place)?;
        Ok(Self { lab: Arc::new(Lab { place, network, disks }) })
    }

    /// See [`super::Runtime::import`].
    pub(crate) async fn import(&self, vmid: Vmid, rootfs: RootFs) -> Result<(), Failure> {
        self.run(move |lab| match rootfs {
            RootFs::Copy(rootfs) => lab.disks.import(vmid, &rootfs),
            RootFs::Take(rootfs) => lab.disks.take(vmid, &rootfs),
        })
        .await
    }

    /// See [`super::Runtime::clone_disk`].
    pub(crate) async fn clone_disk(&self, source: Vmid, target: Vmid) -> Result<(), Failure> {
        self.run(move |lab| {
            if Group::of_guest(&lab.place, source)?.populated() {
                return Err("Cannot do full clones on a running container without snapshots".to_owned());
            }
            lab.disks.clone_disk(source, target)?;
            let cleared = Mounted::open(&lab.place, &lab.disks, target, Holder::Passing)
                .and_then(|disk| configure::after_clone(&disk))
                .and_then(|()| boot::tidy(&lab.place, target));
            cleared.inspect_err(|_| drop(lab.disks.destroy(target)))
        })
        .await
    }

    /// See [`super::Runtime::start`].
    pub(crate) async fn start(&self, spec: &GuestSpec) -> Result<(), Failure> {
        let spec = spec.clone();
        self.run(move |lab| boot::start(&lab.place, &lab.disks, &lab.network, &spec)).await
    }

    /// See [`super::Runtime::stop`].
    pub(crate) async fn stop(&self, vmid: Vmid) -> Result<(), Failure> {
        self.run(move |lab| boot::stop(&lab.place, vmid)).await
    }

    /// See [`super::Runtime::shutdown`].
    pub(crate) async fn shutdown(&self, vmid: Vmid, timeout: u64) -> Result<(), Failure> {
        self.run(move |lab| boot::shutdown(&lab.place, vmid, Duration::from_secs(timeout))).await
    }

    /// See [`super::Runtime::pid`].
    pub(crate) async fn pid(&self, vmid: Vmid) -> Option<u32> {
        self.run(move |lab| Ok(Group::of_guest(&lab.place, vmid)?.init())).await.unwrap_or_else(|failure| {
            tracing::warn!(vmid, failure, "cannot look for the guest's init");
            None
        })
    }

    /// See [`super::Runtime::interfaces`].
    pub(crate) async fn interfaces(&self, vmid: Vmid) -> Vec<Interface> {
        let sampled = self.run(move |lab| match Group::of_guest(&lab.place, vmid)?.init() {
            Some(_) => network::sample(&lab.place, vmid),
            None => Ok(Vec::new()),
        });
        sampled.await.unwrap_or_else(|failure| {
            tracing::warn!(vmid, failure, "cannot look at the guest's interfaces");
            Vec::new()
        })
    }

    /// See [`super::Runtime::destroy`].
    pub(crate) async fn destroy(&self, vmid: Vmid) -> Result<(), Failure> {
        self.run(move |lab| {
            if Group::of_guest(&lab.place, vmid)?.populated() {
                return Err(format!("unable to destroy CT {vmid} - container is running"));
            }
            boot::tidy(&lab.place, vmid)?;
            lab.disks.destroy(vmid)
        })
        .await
    }

    /// Everything here waits for tools and the kernel, so it is done where waiting is allowed.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Lab) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let lab = Arc::clone(&self.lab);
        match tokio::task::spawn_blocking(move || work(&lab)).await {
            Ok(done) => done,
            Err(error) => Err(format!("the runtime broke off: {error}")),
        }
    }
}

/// Inotify instances that root may have. Each systemd takes about six, and the kernel allows 128 for all of them: from
/// some twenty guests on, units fail. Proxmox VE sets 65536 on its nodes.
const INOTIFY_INSTANCES: u32 = 65_536;

/// Raises the one limit of the machine that guests run into. It stays raised until the next reboot: it costs nothing,
/// and putting it back would take it from others.
fn raise_inotify_limit() -> Result<(), Failure> {
    let file = Path::new("/proc/sys/fs/inotify/max_user_instances");
    let say = |error: std::io::Error| format!("{}: {error}", file.display());
    let present = fs::read_to_string(file).map_err(say)?;
    if present.trim().parse().is_ok_and(|present: u32| present >= INOTIFY_INSTANCES) {
        return Ok(());
    }
    match fs::write(file, INOTIFY_INSTANCES.to_string()) {
        Ok(()) => {
            tracing::info!(from = present.trim(), to = INOTIFY_INSTANCES, "raised {}", file.display());
        }
        // In a container; a few guests can be had all the same.
        Err(error) => {
            tracing::warn!(limit = present.trim(), %error, "cannot raise {}: few guests will fit", file.display());
        }
    }
    Ok(())
}

fn require_root() -> Result<(), Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err("real guests need root: start the lab with sudo, or choose the runtime `none`".to_owned())
}
