//! Where a lab keeps its things, and how they are named.
//!
//! Everything outside the state directory (namespaces, control groups, the record below `/run`) carries a short hash
//! of the directory's path, so that two labs never meet and everything of one lab is found without asking it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::runtime::{Failure, Vmid};

/// One file per lab, named by its id, that holds the state directory's path: what a sweep goes by after a state
/// directory was deleted by hand. On a tmpfs, since nothing it speaks of outlives a reboot.
const RECORDS: &str = "/run/ctrlable-lab";

/// Where `ip netns` keeps its namespaces.
pub(super) const NAMESPACES: &str = "/run/netns";

/// The first path element of every control group of every lab.
pub(super) const GROUPS: &str = "ctrlable-lab";

/// A lab, known by its state directory.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Eight hex digits of the SHA-256 of the state directory's canonical path.
    pub(super) id: String,
    state: PathBuf,
}

impl Place {
    /// The lab of a state directory, which is made if need be.
    pub(super) fn create(state: &Path) -> Result<Self, Failure> {
        let say = |error: io::Error| format!("state directory {}: {error}", state.display());
        fs::create_dir_all(state).map_err(say)?;
        let place = Self::of_path(state.canonicalize().map_err(say)?);
        // Disks of guests hold private keys and setuid programs.
        private_directory(&place.root())?;
        fs::create_dir_all(RECORDS)
            .and_then(|()| fs::write(place.record(), place.state.as_os_str().as_encoded_bytes()))
            .map_err(|error| format!("record {}: {error}", place.record().display()))?;
        Ok(place)
    }

    /// The lab of a state directory that may no longer exist.
    pub(super) fn find(state: &Path) -> Result<Self, Failure> {
        let path = state
            .canonicalize()
            .or_else(|_| std::path::absolute(state))
            .map_err(|error| format!("state directory {}: {error}", state.display()))?;
        Ok(Self::of_path(path))
    }

    /// Every lab that left a record since the last reboot.
    pub(super) fn recorded() -> Vec<Self> {
        let Ok(entries) = fs::read_dir(RECORDS) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| {
                let state = PathBuf::from(fs::read_to_string(entry.path()).ok()?);
                let place = Self::of_path(state);
                (entry.file_name().to_str() == Some(&place.id)).then_some(place)
            })
            .collect()
    }

    fn of_path(state: PathBuf) -> Self {
        let digest = Sha256::digest(state.as_os_str().as_encoded_bytes());
        Self { id: hex::encode(&digest[..4]), state }
    }

    /// The state directory as the user named it, made canonical.
    pub(super) fn state(&self) -> &Path {
        &self.state
    }

    /// The part of the state directory that belongs to this runtime.
    pub(super) fn root(&self) -> PathBuf {
        self.state.join("nspawn")
    }

    /// What is kept of one guest.
    pub(super) fn guest(&self, vmid: Vmid) -> PathBuf {
        self.root().join("guests").join(vmid.to_string())
    }

    /// What the guest printed on its console since it was last started.
    pub(super) fn console(&self, vmid: Vmid) -> PathBuf {
        self.guest(vmid).join("console.log")
    }

    /// Name of the network namespace that stands for the node.
    pub(super) fn namespace(&self) -> String {
        format!("ctl-{}", self.id)
    }

    /// Name of one guest's network namespace; also its machine name.
    pub(super) fn guest_namespace(&self, vmid: Vmid) -> String {
        format!("ctl-{}-{vmid}", self.id)
    }

    /// The namespace as a file.
    pub(super) fn namespace_path(name: &str) -> PathBuf {
        Path::new(NAMESPACES).join(name)
    }

    /// The file below `/run` that says that this lab exists.
    pub(super) fn record(&self) -> PathBuf {
        Path::new(RECORDS).join(&self.id)
    }
}

/// Makes a directory that only root may enter.
pub(super) fn private_directory(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o700)))
        .map_err(|error| format!("{}: {error}", path.display()))
}
