//! What a guest is made of: real containers (`nspawn`) or nothing but records (`none`).
//!
//! The node (`crate::node`) owns configuration, tasks and locks; a runtime owns what Proxmox would keep on a storage
//! and run in a namespace. Every method may be called again after the lab was killed and restarted: a runtime finds
//! its guests by what is on disk and what is running, never by what it remembers.

use std::net::Ipv4Addr;
use std::path::PathBuf;

/// A guest's number, as Proxmox has it: 100 to 999999999.
pub(crate) type Vmid = u32;

/// How an interface gets its IPv4 address (the `ip=` of `netN`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// From the DHCP server on the bridge.
    Dhcp,
    /// Written into the guest before it starts, as Proxmox does for containers.
    Static {
        /// Address with its prefix length.
        cidr: (Ipv4Addr, u8),
        /// Default gateway (`gw=`).
        gateway: Option<Ipv4Addr>,
    },
    /// `manual`, or no `ip=` at all: the guest is left alone.
    Manual,
}

/// One `netN` of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Nic {
    /// Name inside the guest, such as `eth0`.
    pub(crate) name: String,
    /// Six colon-separated hex pairs.
    pub(crate) mac: String,
    /// Bridge on the node, such as `vmbr0`.
    pub(crate) bridge: String,
    /// Addressing.
    pub(crate) address: Address,
}

/// What a guest is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GuestSpec {
    /// The guest.
    pub(crate) vmid: Vmid,
    /// Host name that Proxmox writes into `/etc/hostname` and `/etc/hosts` before the start.
    pub(crate) hostname: String,
    /// Network interfaces.
    pub(crate) nics: Vec<Nic>,
    /// Memory limit in MiB.
    pub(crate) memory: u64,
    /// Variables of its first process: `env`, already split.
    pub(crate) environment: Vec<String>,
}

/// One interface as the node sees it from outside, sampled at call time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    /// Name inside the guest; `lo` included.
    pub(crate) name: String,
    /// Lower-case MAC.
    pub(crate) mac: String,
    /// IPv4 addresses with prefix length.
    pub(crate) inet: Vec<(String, u8)>,
    /// IPv6 addresses with prefix length.
    pub(crate) inet6: Vec<(String, u8)>,
}

/// A root file system for a new guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RootFs {
    /// Its owner may go on changing it.
    Copy(PathBuf),
    /// It is handed over, and gone from where it was.
    Take(PathBuf),
}

/// Why a runtime could not do it: the text that ends up as the task's error.
pub(crate) type Failure = String;

/// The two runtimes. An enum, because the lab chooses once at its start and there will be no third party.
#[derive(Debug)]
pub(crate) enum Runtime {
    /// Guests are records: they "run" and have the addresses their configuration says.
    None(none::NoneRuntime),
    /// Guests are Debian containers with systemd on a bridge in a network namespace.
    Nspawn(nspawn::NspawnRuntime),
}

impl Runtime {
    /// Takes a root file system (a directory) as the disk of a new, stopped guest.
    pub(crate) async fn import(&self, vmid: Vmid, rootfs: RootFs) -> Result<(), Failure> {
        match self {
            Self::None(runtime) => runtime.import(vmid, rootfs).await,
            Self::Nspawn(runtime) => runtime.import(vmid, rootfs).await,
        }
    }

    /// Makes `target`'s disk a full copy of `source`'s. Like Proxmox it then empties `/etc/machine-id` and leaves
    /// everything else, SSH host keys included.
    pub(crate) async fn clone_disk(&self, source: Vmid, target: Vmid) -> Result<(), Failure> {
        match self {
            Self::None(runtime) => runtime.clone_disk(source, target).await,
            Self::Nspawn(runtime) => runtime.clone_disk(source, target).await,
        }
    }

    /// Boots a guest; returns once its init runs.
    pub(crate) async fn start(&self, spec: &GuestSpec) -> Result<(), Failure> {
        match self {
            Self::None(runtime) => runtime.start(spec).await,
            Self::Nspawn(runtime) => runtime.start(spec).await,
        }
    }

    /// Kills a guest hard; no error if it does not run.
    pub(crate) async fn stop(&self, vmid: Vmid) -> Result<(), Failure> {
        match self {
            Self::None(runtime) => runtime.stop(vmid).await,
            Self::Nspawn(runtime) => runtime.stop(vmid).await,
        }
    }

    /// Asks the guest's init to power off and waits up to `timeout` seconds.
    pub(crate) async fn shutdown(&self, vmid: Vmid, timeout: u64) -> Result<(), Failure> {
        match self {
            Self::None(runtime) => runtime.shutdown(vmid, timeout).await,
            Self::Nspawn(runtime) => runtime.shutdown(vmid, timeout).await,
        }
    }

    /// The host-side process id of the guest's init while it runs.
    pub(crate) async fn pid(&self, vmid: Vmid) -> Option<u32> {
        match self {
            Self::None(runtime) => runtime.pid(vmid).await,
            Self::Nspawn(runtime) => runtime.pid(vmid).await,
        }
    }

    /// Interfaces of a running guest, `lo` first; empty when it does not run.
    pub(crate) async fn interfaces(&self, vmid: Vmid) -> Vec<Interface> {
        match self {
            Self::None(runtime) => runtime.interfaces(vmid).await,
            Self::Nspawn(runtime) => runtime.interfaces(vmid).await,
        }
    }

    /// Lets the interfaces of a record show this instead of its own addresses; `None` undoes it.
    pub(crate) fn pretend(&self, vmid: Vmid, shown: Option<Vec<(Ipv4Addr, u8)>>) -> Result<(), Failure> {
        match self {
            Self::None(runtime) => runtime.pretend(vmid, shown),
            Self::Nspawn(_) => Err("a real guest has the addresses that it has".to_owned()),
        }
    }

    /// Addresses of records as the guests themselves know them, from the first instant; empty for real guests.
    pub(crate) fn own_addresses(&self) -> std::collections::BTreeMap<Vmid, Vec<Ipv4Addr>> {
        match self {
            Self::None(runtime) => runtime.own_addresses(),
            Self::Nspawn(_) => Default::default(),
        }
    }

    /// Frees the disk of a stopped guest; no error if there is none.
    pub(crate) async fn destroy(&self, vmid: Vmid) -> Result<(), Failure> {
        match self {
            Self::None(runtime) => runtime.destroy(vmid).await,
            Self::Nspawn(runtime) => runtime.destroy(vmid).await,
        }
    }
}

pub(crate) mod none;
pub(crate) mod nspawn;
