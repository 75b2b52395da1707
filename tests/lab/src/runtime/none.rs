//! Guests that are records only.

use std::path::PathBuf;

use super::{Failure, GuestSpec, Interface, Vmid};

/// Guests that are records only.
#[derive(Debug)]
pub(crate) struct NoneRuntime;

impl NoneRuntime {
    pub(crate) async fn import(&self, _vmid: Vmid, _rootfs: PathBuf) -> Result<(), Failure> {
        Ok(())
    }
    pub(crate) async fn clone_disk(&self, _source: Vmid, _target: Vmid) -> Result<(), Failure> {
        Ok(())
    }
    pub(crate) async fn start(&self, _spec: &GuestSpec) -> Result<(), Failure> {
        Ok(())
    }
    pub(crate) async fn stop(&self, _vmid: Vmid) -> Result<(), Failure> {
        Ok(())
    }
    pub(crate) async fn shutdown(&self, _vmid: Vmid, _timeout: u64) -> Result<(), Failure> {
        Ok(())
    }
    pub(crate) async fn pid(&self, _vmid: Vmid) -> Option<u32> {
        None
    }
    pub(crate) async fn interfaces(&self, _vmid: Vmid) -> Vec<Interface> {
        Vec::new()
    }
    pub(crate) async fn destroy(&self, _vmid: Vmid) -> Result<(), Failure> {
        Ok(())
    }
}
