//! A guest's disk while it is mounted but the guest does not run: the moment in which Proxmox writes into it.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::cgroup::Group;
use super::disk::Disks;
use super::place::Place;
use super::tool;
use crate::runtime::{Failure, Vmid};

/// Mounts, waits, boots; its comments say how.
const LAUNCH: &str = include_str!("launch.sh");

/// What becomes of the process that holds the mount.
pub(super) enum Holder<'a> {
    /// It ends with the [`Mounted`].
    Passing,
    /// It becomes a session of its own, and the guest's supervisor once it is told to boot.
    Guest {
        /// Host name.
        hostname: &'a str,
        /// Group file to join first (a memory limit in a version 1 hierarchy).
        join: Option<&'a Path>,
        /// `NAME=value` for its first process.
        environment: &'a [String],
    },
}

/// A mounted disk.
pub(super) struct Mounted {
    child: Child,
    orders: Option<ChildStdin>,
    root: OwnedFd,
}

impl Mounted {
    /// Mounts a guest's disk where only the holder sees it.
    pub(super) fn open(place: &Place, disks: &Disks, vmid: Vmid, holder: Holder<'_>) -> Result<Self, Failure> {
        let options = disks.mount_options(vmid)?;
        let group = Group::of_guest(place, vmid)?;
        group.leaf("launch")?;
        let (program, hostname, join, environment) = match holder {
            Holder::Passing => ("unshare", "", None, &[][..]),
            Holder::Guest { hostname, join, environment } => ("setsid", hostname, join, environment),
        };
        let mut command = Command::new(program);
        if program == "setsid" {
            command.args(["--fork", "unshare"]);
        }
        // `slave`: what is unmounted outside is unmounted here too, above all namespaces of other guests.
        command.args(["--mount", "--propagation", "slave", "sh", "-c", LAUNCH, "launch.sh"]);
        command.arg(vmid.to_string()).arg(options).arg(group.relative()).arg(join.unwrap_or(Path::new("")));
        let machine = place.guest_namespace(vmid);
        command.arg(Place::namespace_path(&machine)).arg(&machine).arg(hostname);
        let log = place.guest(vmid).join("launch.log");
        let log_file = fs::File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        // Only what the tools need: whatever else stands in the environment is none of the guest's business.
        command.env_clear().env("PATH", PATH).current_dir(place.root());
        // Handed on by name, so that no value stands in a command line.
        for (name, value) in
            environment.iter().filter_map(|pair| pair.split_once('=')).filter(|(name, _)| *name != "PATH")
        {
            command.env(name, value).arg(format!("--setenv={name}"));
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log_file);
        let mut child = command.spawn().map_err(|error| tool::not_started(program, &error))?;
        let orders = child.stdin.take();
        let mut answer = String::new();
        if let Some(stdout) = child.stdout.take() {
            // A process id and a line feed; anything longer is not ours.
            let _ = BufReader::new(stdout.take(32)).read_line(&mut answer);
        }
        let Ok(pid) = answer.trim().parse::<u32>() else {
            drop(orders);
            let _ = child.wait();
            let said = fs::read_to_string(&log).unwrap_or_default();
            return Err(format!("cannot mount the disk of guest {vmid}: {}{}", said.trim(), hint(&said)));
        };
        let path = format!("/proc/{pid}/cwd/guests/{vmid}/root");
        match rustix::fs::open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(root) => Ok(Self { child, orders, root }),
            Err(error) => Err(format!("{path}: {error}")),
        }
    }

    /// Reads a file of the guest; `None` if it is not there.
    pub(super) fn read(&self, path: &str) -> Result<Option<String>, Failure> {
        match self.file(path, OFlags::RDONLY) {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
            Err(error) => Err(format!("the guest's {path}: {error}")),
            Ok(file) => {
                let mut text = Vec::new();
                fs::File::from(file)
                    .take(FILE_LIMIT)
                    .read_to_end(&mut text)
                    .map_err(|error| format!("the guest's {path}: {error}"))?;
                Ok(Some(String::from_utf8_lossy(&text).into_owned()))
            }
        }
    }

    /// Writes a file of the guest; its directory must exist, or be made by [`Self::directory`].
    pub(super) fn write(&self, path: &str, text: &str) -> Result<(), Failure> {
        let file = self
            .file(path, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)
            .map_err(|error| format!("the guest's {path}: {error}"))?;
        fs::File::from(file).write_all(text.as_bytes()).map_err(|error| format!("the guest's {path}: {error}"))
    }

    /// Makes a directory of the guest, parents included.
    pub(super) fn directory(&self, path: &str) -> Result<(), Failure> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if !parent.is_empty() {
            self.directory(parent)?;
        }
        let say = |error: rustix::io::Errno| format!("the guest's {path}: {error}");
        let parent =
            self.file(if parent.is_empty() { "." } else { parent }, OFlags::PATH | OFlags::DIRECTORY).map_err(say)?;
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(error) => Err(say(error)),
        }
    }

    /// Deletes a file of the guest, if it is there.
    pub(super) fn delete(&self, path: &str) -> Result<(), Failure> {
        use rustix::io::Errno;
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
        let gone = self
            .file(parent, OFlags::PATH | OFlags::DIRECTORY)
            .and_then(|parent| rustix::fs::unlinkat(&parent, name, rustix::fs::AtFlags::empty()));
        match gone {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            Err(error) => Err(format!("the guest's {path}: {error}")),
        }
    }

    /// Boots the guest.
    pub(super) fn boot(mut self) -> Result<(), Failure> {
        let told = self.orders.take().map(|mut orders| orders.write_all(b"boot\n"));
        match told {
            Some(Ok(())) => Ok(()),
            _ => Err("the process that held the guest's disk is gone".to_owned()),
        }
    }

    /// Opens what a path means to the guest: symbolic links, absolute ones included, never lead out of it.
    fn file(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let mode = if flags.contains(OFlags::CREATE) { Mode::from_raw_mode(0o644) } else { Mode::empty() };
        // NONBLOCK: a named pipe planted by the guest must not hold up the node.
        let flags =
            flags | OFlags::CLOEXEC | if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NONBLOCK };
        rustix::fs::openat2(&self.root, path, flags, mode, ResolveFlags::IN_ROOT)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // The end of the pipe ends a holder that was not told to boot. Waiting for the one of a session of its own
        // returns at once; for a passing one it means that the disk is unmounted.
        drop(self.orders.take());
        let _ = self.child.wait();
    }
}

/// Debian's, for root: where all the tools are, whoever started the lab.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Bytes read of a guest's file: /etc/hosts with room to spare, and no way for a guest to fill the node's memory.
const FILE_LIMIT: u64 = 1 << 20;

/// What to do about the usual reason for overlayfs to refuse.
fn hint(said: &str) -> &'static str {
    if said.contains("overlay") {
        "; the state directory must lie on a file system that overlayfs can write to (ext4, xfs, btrfs, tmpfs), not on \
         another overlay"
    } else {
        ""
    }
}
