//! The locks on configuration files: short ones (flock) here, long ones as the `lock` key of a configuration.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::guests::Kind;
use crate::runtime::Vmid;

/// One lock per guest number.
#[derive(Debug, Default)]
pub(crate) struct Locks(Mutex<HashMap<Vmid, Arc<RwLock<()>>>>);

/// Holds a configuration file.
pub(crate) type Exclusive = OwnedRwLockWriteGuard<()>;

impl Locks {
    fn of(&self, vmid: Vmid) -> Arc<RwLock<()>> {
        Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(vmid).or_default())
    }

    /// Takes the file alone; the error is Proxmox's text.
    pub(crate) async fn exclusive(&self, vmid: Vmid, kind: Kind, wait: Duration) -> Result<Exclusive, String> {
        tokio::time::timeout(wait, self.of(vmid).write_owned()).await.map_err(|_| got_timeout(vmid, kind))
    }

    /// Takes the file together with other readers, as a clone of a virtual machine does with its source.
    pub(crate) async fn shared(
        &self,
        vmid: Vmid,
        kind: Kind,
        wait: Duration,
    ) -> Result<OwnedRwLockReadGuard<()>, String> {
        tokio::time::timeout(wait, self.of(vmid).read_owned()).await.map_err(|_| got_timeout(vmid, kind))
    }
}

fn got_timeout(vmid: Vmid, kind: Kind) -> String {
    match kind {
        Kind::Lxc => {
            format!("can't lock file '/run/lock/lxc/pve-config-{vmid}.lock' - got timeout")
        }
        Kind::Qemu => {
            format!("can't lock file '/var/lock/qemu-server/lock-{vmid}.conf' - got timeout")
        }
    }
}
