//! Real containers. Not part of this build.

use std::path::{Path, PathBuf};

use super::{Failure, GuestSpec, Interface, Vmid};

const MISSING: &str = "this build of the lab has no real containers; use --runtime none";

/// The runtime with real containers.
#[derive(Debug)]
pub(crate) struct NspawnRuntime;

/// Moves the process into the lab's network namespace; called before any thread exists.
pub(crate) fn enter_namespace(_state: &Path, _bridge: &str, _subnet: &str) -> Result<(), String> {
    Err(MISSING.to_owned())
}

impl NspawnRuntime {
    /// Finds what is on disk and what runs.
    pub(crate) fn open(_state: &Path, _bridge: &str, _subnet: &str) -> Result<Self, String> {
        Err(MISSING.to_owned())
    }
    pub(crate) async fn import(&self, _vmid: Vmid, _rootfs: PathBuf) -> Result<(), Failure> {
        Err(MISSING.to_owned())
    }
    pub(crate) async fn clone_disk(&self, _source: Vmid, _target: Vmid) -> Result<(), Failure> {
        Err(MISSING.to_owned())
    }
    pub(crate) async fn start(&self, _spec: &GuestSpec) -> Result<(), Failure> {
        Err(MISSING.to_owned())
    }
    pub(crate) async fn stop(&self, _vmid: Vmid) -> Result<(), Failure> {
        Err(MISSING.to_owned())
    }
    pub(crate) async fn shutdown(&self, _vmid: Vmid, _timeout: u64) -> Result<(), Failure> {
        Err(MISSING.to_owned())
    }
    pub(crate) async fn pid(&self, _vmid: Vmid) -> Option<u32> {
        None
    }
    pub(crate) async fn interfaces(&self, _vmid: Vmid) -> Vec<Interface> {
        Vec::new()
    }
    pub(crate) async fn destroy(&self, _vmid: Vmid) -> Result<(), Failure> {
        Err(MISSING.to_owned())
    }
}
