//! Control groups: what a guest's processes are found, limited and killed by.
//!
//! Each guest and the DHCP server live in `ctrlable-lab/<lab>/<vmid>` of the version 2 hierarchy, below its root.
//! A group outlives the lab process, cannot be left by a guest, and is never reused by a stranger the way a process
//! id is: whether a guest runs is whether its group has processes. Below its group systemd-nspawn makes `payload`
//! (handed to the guest) and `supervisor`; ours are `launch` and `exec`, since inner groups hold no processes.
//!
//! The groups are made directly, not by asking systemd for a scope: that needs no bus, is the same on a machine
//! without systemd, and leaves guests alone when the unit or session that started the lab is stopped.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::place::{GROUPS, Place};
use crate::runtime::{Failure, Vmid};

/// How long killed processes may take to go: they may sit in the kernel, flushing to a slow disk.
const KILL_DEADLINE: Duration = Duration::from_secs(20);

/// How often a group is looked at while something is awaited; short, because a boot takes 300 ms.
const POLL: Duration = Duration::from_millis(10);

/// For `sh -c`: joins the control group whose file is `$0`, then becomes the rest of the arguments.
pub(super) const JOIN: &str = r#"echo 0 > "$0" && exec "$@""#;

/// A control group.
#[derive(Debug, Clone)]
pub(super) struct Group {
    /// Path below the root of the hierarchy.
    relative: PathBuf,
    path: PathBuf,
    /// The same group in a version 1 memory hierarchy, where the machine still has one.
    memory_v1: Option<PathBuf>,
}

impl Group {
    /// The group that holds everything of one lab.
    pub(super) fn of_lab(place: &Place) -> Result<Self, Failure> {
        Self::at(Path::new(GROUPS).join(&place.id))
    }

    /// One guest's group.
    pub(super) fn of_guest(place: &Place, vmid: Vmid) -> Result<Self, Failure> {
        Self::at(Path::new(GROUPS).join(&place.id).join(vmid.to_string()))
    }

    /// The DHCP server's group.
    pub(super) fn of_dhcp(place: &Place) -> Result<Self, Failure> {
        Self::at(Path::new(GROUPS).join(&place.id).join("dhcp"))
    }

    fn at(relative: PathBuf) -> Result<Self, Failure> {
        let mounts =
            fs::read_to_string("/proc/self/mountinfo").map_err(|error| format!("/proc/self/mountinfo: {error}"))?;
        let hierarchy = mount_point(&mounts, |kind, _| kind == "cgroup2").ok_or(
            "no version 2 control group hierarchy is mounted on this machine; mount one with: \
             mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        )?;
        let memory_v1 =
            mount_point(&mounts, |kind, options| kind == "cgroup" && options.split(',').any(|o| o == "memory"));
        Ok(Self { path: hierarchy.join(&relative), memory_v1: memory_v1.map(|root| root.join(&relative)), relative })
    }

    /// Path below the root of the hierarchy.
    pub(super) fn relative(&self) -> &Path {
        &self.relative
    }

    /// Makes a group below this one and returns the file that a process joins it by.
    pub(super) fn leaf(&self, name: &str) -> Result<PathBuf, Failure> {
        let leaf = self.path.join(name);
        fs::create_dir_all(&leaf).map_err(|error| format!("control group {}: {error}", leaf.display()))?;
        Ok(leaf.join("cgroup.procs"))
    }

    /// Limits the group's memory as far as the machine can, before any process joins it. Returns the file of the
    /// version 1 hierarchy that the first process must join by, if that is where the limit is.
    pub(super) fn limit_memory(&self, mebibytes: u64) -> Result<Option<PathBuf>, Failure> {
        let bytes = mebibytes.saturating_mul(1 << 20).to_string();
        if let Some(v1) = &self.memory_v1 {
            fs::create_dir_all(v1)
                .and_then(|()| fs::write(v1.join("memory.limit_in_bytes"), &bytes))
                .map_err(|error| format!("memory limit in {}: {error}", v1.display()))?;
            return Ok(Some(v1.join("cgroup.procs")));
        }
        fs::create_dir_all(&self.path).map_err(|error| format!("control group {}: {error}", self.path.display()))?;
        // From the root of the hierarchy downwards. Refused where the root itself has processes, as in a container:
        // such a machine has no memory controller to give, and the guest runs without a limit.
        let depth = self.relative.components().count();
        for ancestor in self.path.ancestors().skip(1).take(depth).collect::<Vec<_>>().into_iter().rev() {
            let _ = fs::write(ancestor.join("cgroup.subtree_control"), "+memory");
        }
        let file = self.path.join("memory.max");
        if file.exists() {
            fs::write(&file, &bytes).map_err(|error| format!("memory limit in {}: {error}", file.display()))?;
        } else {
            tracing::debug!(group = %self.path.display(), "no memory controller here: the guest runs without a limit");
        }
        Ok(None)
    }

    /// Whether any process lives in the group or below it. Zombies do not count.
    pub(super) fn populated(&self) -> bool {
        fs::read_to_string(self.path.join("cgroup.events"))
            .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
    }

    /// The host-side process id of a guest's init: in the group's payload, process 1 of a process namespace directly
    /// below ours.
    pub(super) fn init(&self) -> Option<u32> {
        let depth = process_ids("self")?.len();
        processes(&self.path.join("payload")).into_iter().find(|pid| {
            process_ids(&pid.to_string())
                .is_some_and(|ids| ids.len() == depth + 1 && ids.last().is_some_and(|id| id == "1"))
        })
    }

    /// Kills every process in the group and below, and waits until they are gone.
    pub(super) fn kill(&self) -> Result<(), Failure> {
        let begin = Instant::now();
        while self.populated() {
            let file = self.path.join("cgroup.kill");
            fs::write(&file, "1").map_err(|error| format!("{}: {error}", file.display()))?;
            if begin.elapsed() > KILL_DEADLINE {
                return Err(format!("processes {:?} of {} do not die", processes(&self.path), self.path.display()));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Waits until the last process has left, or the time is over. `true` when the group is empty.
    pub(super) fn wait_empty(&self, timeout: Duration) -> bool {
        let begin = Instant::now();
        while self.populated() {
            if begin.elapsed() >= timeout {
                return false;
            }
            thread::sleep(POLL);
        }
        true
    }

    /// Waits until `ready` holds; gives up when the group has become empty or the time is over.
    pub(super) fn wait_for(&self, timeout: Duration, ready: impl Fn(&Self) -> bool) -> bool {
        let begin = Instant::now();
        loop {
            if ready(self) {
                return true;
            }
            if begin.elapsed() >= timeout || !self.populated() {
                return false;
            }
            thread::sleep(POLL);
        }
    }

    /// Removes the empty group and everything below it.
    pub(super) fn remove(&self) -> Result<(), Failure> {
        for path in [Some(&self.path), self.memory_v1.as_ref()].into_iter().flatten() {
            remove_tree(path).map_err(|error| format!("control group {}: {error}", path.display()))?;
        }
        Ok(())
    }
}

/// Where the hierarchy that `wanted(type, super options)` describes is mounted; the shortest path if several times.
fn mount_point(mountinfo: &str, wanted: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (front, back) = line.split_once(" - ")?;
            let mut back = back.split(' ');
            let (kind, options) = (back.next()?, back.nth(1)?);
            wanted(kind, options).then(|| front.split(' ').nth(4)).flatten()
        })
        .min_by_key(|path| path.len())
        .map(PathBuf::from)
}

/// Every process in a group and below it.
fn processes(path: &Path) -> Vec<u32> {
    let mut found: Vec<u32> = fs::read_to_string(path.join("cgroup.procs"))
        .map(|pids| pids.lines().filter_map(|pid| pid.parse().ok()).collect())
        .unwrap_or_default();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(processes(&entry.path()));
        }
    }
    found
}

/// A process's ids, from our process namespace inwards.
fn process_ids(pid: &str) -> Option<Vec<String>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    Some(ids.split_whitespace().map(str::to_owned).collect())
}

fn remove_tree(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
39 31 0:36 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
";

    #[test]
    fn finds_the_hierarchies_of_a_hybrid_machine() {
        let unified = mount_point(HYBRID, |kind, _| kind == "cgroup2").unwrap();
        assert_eq!(unified, Path::new("/sys/fs/cgroup/unified"));
        let memory = mount_point(HYBRID, |kind, options| kind == "cgroup" && options.contains("memory")).unwrap();
        assert_eq!(memory, Path::new("/sys/fs/cgroup/memory"));
    }

    #[test]
    fn a_unified_machine_has_no_version_1_memory() {
        let mounts =
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
        assert!(mount_point(mounts, |kind, _| kind == "cgroup").is_none());
        assert_eq!(mount_point(mounts, |kind, _| kind == "cgroup2").unwrap(), Path::new("/sys/fs/cgroup"));
    }

    #[test]
    fn knows_its_own_process_ids() {
        let ids = process_ids("self").unwrap();
        assert_eq!(ids.last().unwrap(), &std::process::id().to_string());
    }
}
