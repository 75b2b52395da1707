//! Taking a lab down, whatever state it is in.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

use super::cgroup::Group;
use super::network;
use super::place::Place;
use crate::runtime::Failure;

/// Kills all guests and the DHCP server of a lab, unmounts what is mounted below its state directory and deletes its
/// namespaces. Disks stay. May be called at any time, any number of times, also after the directory was deleted.
pub(crate) fn tear_down(state: &Path) -> Result<(), Failure> {
    tear_down_place(&Place::find(state)?)
}

/// Takes down every lab whose state directory is gone.
pub(crate) fn sweep() {
    for place in Place::recorded() {
        if !place.state().exists()
            && let Err(failure) = tear_down_place(&place)
        {
            tracing::warn!(state = %place.state().display(), failure, "a lab without its state directory cannot be taken down");
        }
    }
}

fn tear_down_place(place: &Place) -> Result<(), Failure> {
    // Each step is tried whatever became of the one before; the first failure is what is told.
    let mut failures = Vec::new();
    let mut attempt = |done: Result<(), Failure>| failures.extend(done.err());
    attempt(Group::of_lab(place).and_then(|group| group.kill().and_then(|()| group.remove())));
    for mount in mounts_below(place.state()) {
        attempt(
            unmount(&mount, UnmountFlags::DETACH)
                .map_err(|error| format!("cannot unmount {}: {error}", mount.display())),
        );
    }
    for namespace in network::namespaces(place) {
        attempt(network::delete_namespace(&namespace));
    }
    match failures.into_iter().next() {
        Some(failure) => Err(failure),
        None => match fs::remove_file(place.record()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(format!("{}: {error}", place.record().display()))
            }
            _ => Ok(()),
        },
    }
}

/// Mount points below a directory, the last mounted first.
fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut below: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4).map(unescape))
        .filter(|path| path.starts_with(directory) && path != directory)
        .collect();
    below.reverse();
    below
}

/// Undoes mountinfo's octal escapes of blank, tab, line feed and backslash.
fn unescape(text: &str) -> PathBuf {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    PathBuf::from(escapes.iter().fold(text.to_owned(), |text, (code, meaning)| text.replace(code, meaning)))
}
