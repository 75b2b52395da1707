//! Guests' disks: stacks of layers, joined by overlayfs while a guest runs.
//!
//!     nspawn/layers/<id>/fs      one layer's files; only the topmost of a guest is ever written
//!     nspawn/layers/<id>/work    overlayfs' scratch space for it
//!     nspawn/guests/<vmid>/layers    the guest's layers, topmost first, one id per line
//!
//! A clone freezes the source by giving it a new, empty top, and shares everything below: no copying, whatever the
//! source was, and both are as independent as full copies. A layer goes when the last guest that uses it does.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rand::Rng as _;

use super::place::{Place, private_directory};
use super::tool;
use crate::runtime::{Failure, Vmid};

/// Longest list of lower layers that still fits into one page of mount options, with 20 bytes for each.
const MOST_LAYERS: usize = 128;

/// The disks of one lab.
#[derive(Debug)]
pub(super) struct Disks {
    place: Place,
    /// Held while lists of layers are read and changed, so that none is collected while it is being handed on.
    lists: Mutex<()>,
}

impl Disks {
    /// Finds the disks of a lab and clears away what an interrupted import or destroy left.
    pub(super) fn open(place: &Place) -> Result<Self, Failure> {
        let disks = Self { place: place.clone(), lists: Mutex::new(()) };
        for directory in [disks.layers(), disks.guests()] {
            private_directory(&directory)?;
            for entry in fs::read_dir(&directory).map_err(|error| at(&directory, &error))?.flatten() {
                if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                    remove(&entry.path())?;
                }
            }
        }
        disks.collect(&disks.lock())?;
        Ok(disks)
    }

    /// Takes a directory as the disk of a new guest. A finished image is shared by hard links, since nobody writes
    /// to either; anything else is copied, since its owner may go on changing it.
    pub(super) fn import(&self, vmid: Vmid, rootfs: &Path) -> Result<(), Failure> {
        self.add(vmid, rootfs, |rootfs, files| {
            if crate::image::is_finished(rootfs) && copy(rootfs, files, "--link").is_ok() {
                return Ok(());
            }
            remove(files).and_then(|()| copy(rootfs, files, "--reflink=auto"))
        })
    }

    /// Makes a directory the disk of a new guest: renamed where that can be, so that nothing is copied.
    pub(super) fn take(&self, vmid: Vmid, rootfs: &Path) -> Result<(), Failure> {
        if crate::image::is_finished(rootfs) {
            return Err(format!("{} is an image that others use: it can be copied, not taken", rootfs.display()));
        }
        self.add(vmid, rootfs, |rootfs, files| match fs::rename(rootfs, files) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                copy(rootfs, files, "--reflink=auto").and_then(|()| remove(rootfs))
            }
            renamed => renamed.map_err(|error| at(rootfs, &error)),
        })
    }

    /// A new guest whose disk `bring` puts in place: from the root file system to the directory of a layer.
    fn add(
        &self,
        vmid: Vmid,
        rootfs: &Path,
        bring: impl FnOnce(&Path, &Path) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let rootfs = rootfs.canonicalize().map_err(|error| at(rootfs, &error))?;
        if !rootfs.join("etc").is_dir() {
            return Err(format!("{} is not a root file system: it has no /etc", rootfs.display()));
        }
        let id = new_id();
        let unfinished = self.layers().join(format!("{UNFINISHED}{id}"));
        private_directory(&unfinished)?;
        bring(&rootfs, &unfinished.join("fs")).inspect_err(|_| drop(remove(&unfinished)))?;
        let _lists = self.lock();
        fs::rename(&unfinished, self.layers().join(&id)).map_err(|error| at(&unfinished, &error))?;
        self.create(vmid, vec![self.new_layer()?, id])
    }

    /// Whether a guest has a disk that can be used; the error says why not.
    pub(super) fn check(&self, vmid: Vmid) -> Result<(), Failure> {
        self.read(vmid).map(drop)
    }

    /// Makes the target's disk one that starts as the source's is now. The source must not run.
    pub(super) fn clone_disk(&self, source: Vmid, target: Vmid) -> Result<(), Failure> {
        let _lists = self.lock();
        let mut layers = self.read(source)?;
        let top = self.layers().join(&layers[0]).join("fs");
        let written = fs::read_dir(&top).map_err(|error| at(&top, &error))?.next().is_some();
        let frozen = if written {
            let frozen = layers.clone();
            layers.insert(0, self.new_layer()?);
            if layers.len() > MOST_LAYERS {
                return Err(format!(
                    "the disk of {source} is a clone of a clone, {MOST_LAYERS} deep: the lab stops there"
                ));
            }
            self.write(source, &layers)?;
            frozen
        } else {
            layers.split_off(1)
        };
        let mut cloned = vec![self.new_layer()?];
        cloned.extend(frozen);
        self.create(target, cloned)
    }

    /// Frees a guest's disk, if it has one.
    pub(super) fn destroy(&self, vmid: Vmid) -> Result<(), Failure> {
        let lists = self.lock();
        let guest = self.place.guest(vmid);
        let doomed = self.guests().join(format!("{UNFINISHED}{}", new_id()));
        match fs::rename(&guest, &doomed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            done => done.map_err(|error| at(&guest, &error))?,
        }
        remove(&doomed)?;
        self.collect(&lists)
    }

    /// The options that join a guest's layers for overlayfs, relative to the runtime's root directory: short, and
    /// indifferent to colons and commas in the state directory's path. Empties the scratch space first.
    pub(super) fn mount_options(&self, vmid: Vmid) -> Result<String, Failure> {
        let layers = self.read(vmid)?;
        let (top, lower) = layers.split_first().ok_or_else(|| format!("the disk of {vmid} has no layer"))?;
        let work = self.layers().join(top).join("work");
        remove(&work)?;
        private_directory(&work)?;
        let lower = lower.iter().map(|id| format!("layers/{id}/fs")).collect::<Vec<_>>().join(":");
        // `volatile`: a power cut may cost the guest's last writes, a kill never does; package installations and
        // databases in guests do not wait for the disk.
        Ok(format!(
            "lowerdir={lower},upperdir=layers/{top}/fs,workdir=layers/{top}/work,index=off,metacopy=off,volatile"
        ))
    }

    fn layers(&self) -> PathBuf {
        self.place.root().join("layers")
    }

    fn guests(&self) -> PathBuf {
        self.place.root().join("guests")
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new_layer(&self) -> Result<String, Failure> {
        let id = new_id();
        let files = self.layers().join(&id).join("fs");
        fs::create_dir_all(&files)
            // The merged root directory takes its mode from the topmost layer.
            .and_then(|()| fs::set_permissions(&files, fs::Permissions::from_mode(0o755)))
            .map_err(|error| at(&files, &error))?;
        Ok(id)
    }

    fn create(&self, vmid: Vmid, layers: Vec<String>) -> Result<(), Failure> {
        let guest = self.place.guest(vmid);
        if guest.join("layers").exists() {
            return Err(format!("{} already holds the disk of a guest", guest.display()));
        }
        private_directory(&guest)?;
        fs::create_dir_all(guest.join("root")).map_err(|error| at(&guest, &error))?;
        self.write(vmid, &layers)
    }

    fn read(&self, vmid: Vmid) -> Result<Vec<String>, Failure> {
        let file = self.place.guest(vmid).join("layers");
        let text =
            fs::read_to_string(&file).map_err(|error| format!("guest {vmid} has no disk: {}", at(&file, &error)))?;
        let layers: Vec<String> = text.lines().map(str::to_owned).collect();
        if layers.len() < 2 {
            return Err(format!("{} names fewer than two layers; destroy the guest", file.display()));
        }
        Ok(layers)
    }

    fn write(&self, vmid: Vmid, layers: &[String]) -> Result<(), Failure> {
        let file = self.place.guest(vmid).join("layers");
        let next = file.with_extension("next");
        fs::write(&next, layers.join("\n") + "\n")
            .and_then(|()| fs::rename(&next, &file))
            .map_err(|error| at(&file, &error))
    }

    /// Removes layers that no guest uses.
    fn collect(&self, _lists: &MutexGuard<'_, ()>) -> Result<(), Failure> {
        let mut used = HashSet::new();
        for entry in fs::read_dir(self.guests()).map_err(|error| at(&self.guests(), &error))?.flatten() {
            let list = entry.path().join("layers");
            match fs::read_to_string(&list) {
                Ok(text) => used.extend(text.lines().map(str::to_owned)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // Not knowing who uses what, nothing may go.
                Err(error) => return Err(at(&list, &error)),
            }
        }
        for entry in fs::read_dir(self.layers()).map_err(|error| at(&self.layers(), &error))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !used.contains(&name) && !name.starts_with(UNFINISHED) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// How names of directories begin that are being made or deleted.
const UNFINISHED: &str = ".unfinished-";

fn new_id() -> String {
    hex::encode(rand::rng().random::<[u8; 4]>())
}

fn at(path: &Path, error: &io::Error) -> Failure {
    format!("{}: {error}", path.display())
}

fn copy(from: &Path, to: &Path, how: &str) -> Result<(), Failure> {
    let mut command = Command::new("cp");
    command.args(["--archive", how, "--no-target-directory", "--"]).args([from, to]);
    tool::finish(&mut command, "cp").map(drop)
}

fn remove(path: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path, &error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    struct Lab {
        disks: Disks,
        _state: tempfile::TempDir,
    }

    fn lab() -> Lab {
        let state = tempfile::tempdir().unwrap();
        let disks = Disks::open(&Place::find(state.path()).unwrap()).unwrap();
        fs::create_dir_all(state.path().join("image/etc")).unwrap();
        fs::write(state.path().join("image/etc/motd"), "one").unwrap();
        disks.import(100, &state.path().join("image")).unwrap();
        Lab { disks, _state: state }
    }

    fn top(disks: &Disks, vmid: Vmid) -> PathBuf {
        disks.layers().join(&disks.read(vmid).unwrap()[0]).join("fs")
    }

    fn count(disks: &Disks) -> usize {
        fs::read_dir(disks.layers()).unwrap().count()
    }

    #[test]
    fn an_import_is_a_copy() {
        let Lab { disks, _state: state } = lab();
        fs::write(state.path().join("image/etc/motd"), "two").unwrap();
        let lower = disks.layers().join(&disks.read(100).unwrap()[1]);
        assert_eq!(fs::read_to_string(lower.join("fs/etc/motd")).unwrap(), "one");
        let refused = disks.import(100, &state.path().join("image")).unwrap_err();
        assert!(refused.contains("already holds"), "{refused}");
        assert!(disks.import(101, &state.path().join("image/etc")).unwrap_err().contains("not a root file system"));
    }

    #[test]
    fn what_is_taken_is_gone_from_where_it_was() {
        let Lab { disks, _state: state } = lab();
        disks.take(101, &state.path().join("image")).unwrap();
        assert!(!state.path().join("image").exists());
        let lower = disks.layers().join(&disks.read(101).unwrap()[1]);
        assert!(lower.join("fs/etc/motd").exists());
    }

    #[test]
    fn a_clone_of_what_was_never_written_shares_its_layers() {
        let Lab { disks, _state } = lab();
        disks.clone_disk(100, 101).unwrap();
        assert_eq!(disks.read(101).unwrap()[1..], disks.read(100).unwrap()[1..]);
        assert_ne!(top(&disks, 100), top(&disks, 101));
    }

    #[test]
    fn a_clone_freezes_what_was_written() {
        let Lab { disks, _state } = lab();
        let before = top(&disks, 100);
        fs::write(before.join("file"), "x").unwrap();
        disks.clone_disk(100, 101).unwrap();
        assert_ne!(top(&disks, 100), before, "the source goes on in a new layer");
        for vmid in [100, 101] {
            assert_eq!(disks.layers().join(&disks.read(vmid).unwrap()[1]).join("fs"), before);
            assert!(fs::read_dir(top(&disks, vmid)).unwrap().next().is_none());
        }
    }

    #[test]
    fn layers_go_with_their_last_guest() {
        let Lab { disks, _state } = lab();
        disks.clone_disk(100, 101).unwrap();
        assert_eq!(count(&disks), 3);
        disks.destroy(100).unwrap();
        assert_eq!(count(&disks), 2, "the clone keeps what it shares");
        assert!(disks.mount_options(101).is_ok());
        disks.destroy(101).unwrap();
        disks.destroy(101).unwrap();
        assert_eq!(count(&disks), 0);
        assert!(disks.clone_disk(101, 102).unwrap_err().contains("guest 101 has no disk"));
    }

    #[test]
    fn leftovers_of_a_crash_are_cleared() {
        let Lab { disks, _state } = lab();
        let expected = disks.read(100).unwrap();
        fs::create_dir_all(disks.layers().join(".unfinished-00000000/fs")).unwrap();
        fs::create_dir_all(disks.layers().join("deadbeef/fs")).unwrap();
        fs::create_dir_all(disks.guests().join(".unfinished-11111111")).unwrap();
        let disks = Disks::open(&disks.place).unwrap();
        assert_eq!(count(&disks), 2);
        assert_eq!(fs::read_dir(disks.guests()).unwrap().count(), 1);
        assert_eq!(disks.read(100).unwrap(), expected);
    }
}
