//! Where a test puts its lab, and what it asks it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use super::super::cgroup::Group;
use super::super::exec::exec_command;
use super::super::{NspawnRuntime, Place, mounted, network, require_root, tear_down};
use super::{BRIDGE, SUBNET, until};
use crate::image;
use crate::runtime::Vmid;

/// A state directory that is taken down however the test ends.
pub(super) struct Bench {
    pub(super) directory: TempDir,
}

impl Bench {
    /// `None`, with the reason printed, where no guest can be booted.
    pub(super) fn new() -> Option<Self> {
        let tools = ["systemd-nspawn", "ip", "dnsmasq", "mmdebstrap", "nsenter", "unshare", "setsid", "setpriv"];
        let found = |tool: &&str| mounted::PATH.split(':').any(|directory| Path::new(directory).join(tool).exists());
        if let Some(missing) = tools.iter().find(|tool| !found(tool)) {
            eprintln!("skipped: {missing} is not installed");
            return None;
        }
        if let Err(reason) = require_root() {
            eprintln!("skipped: {reason}");
            return None;
        }
        Some(Self { directory: tempfile::Builder::new().prefix("lab with, odd: name ").tempdir().unwrap() })
    }

    pub(super) fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub(super) fn open(&self) -> NspawnRuntime {
        NspawnRuntime::open(&self.state(), BRIDGE, SUBNET).unwrap()
    }

    /// The one image that all tests share.
    pub(super) fn image(&self) -> PathBuf {
        let out = self.directory.path().join("images");
        image::run(&image::ImageArgs { out, name: "base".into(), ..Default::default() }).unwrap()
    }

    pub(super) fn exec(&self, vmid: Vmid, command: &str) -> Output {
        let argv = ["sh", "-c", command].map(str::to_owned);
        exec_command(&self.state(), vmid, &argv).unwrap().output().unwrap()
    }

    /// What a command in a guest prints; it must succeed.
    pub(super) fn says(&self, vmid: Vmid, command: &str) -> String {
        let output = self.exec(vmid, command);
        assert!(output.status.success(), "`{command}` in {vmid}: {output:?}\n{}", self.console(vmid));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub(super) fn console(&self, vmid: Vmid) -> String {
        fs::read_to_string(self.place().console(vmid)).unwrap_or_default()
    }

    /// Waits until systemd has started all it wants to.
    pub(super) fn settled(&self, vmid: Vmid) {
        let state = until("systemd to settle", || {
            let state = String::from_utf8(self.exec(vmid, "systemctl is-system-running").stdout).unwrap();
            ["running", "degraded"].contains(&state.trim()).then_some(state)
        });
        let failed = self.says(vmid, "systemctl --failed --no-legend --plain");
        assert_eq!((state.trim(), failed.as_str()), ("running", ""), "{}", self.console(vmid));
    }

    pub(super) fn place(&self) -> Place {
        Place::find(&self.state()).unwrap()
    }

    /// Traces of one guest outside its files.
    pub(super) fn traces(&self, vmid: Vmid) -> Vec<String> {
        let place = self.place();
        let ports = Command::new("ip").args(["-n", &place.namespace(), "-o", "link", "show"]).output().unwrap().stdout;
        let port = format!("veth{vmid}i");
        let mut found: Vec<String> =
            String::from_utf8(ports).unwrap().lines().filter(|line| line.contains(&port)).map(str::to_owned).collect();
        found.extend(network::namespaces(&place).into_iter().filter(|name| *name == place.guest_namespace(vmid)));
        let group = Group::of_guest(&place, vmid).unwrap();
        found.extend(group.populated().then(|| format!("processes in {}", group.relative().display())));
        found.extend(self.mounts());
        found
    }

    /// Mounts below the state directory that anybody but a guest sees.
    pub(super) fn mounts(&self) -> Vec<String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let name = self.directory.path().file_name().unwrap().to_str().unwrap().replace(' ', "\\040");
        mounts.lines().filter(|line| line.contains(&name)).map(str::to_owned).collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        tear_down(&self.state()).unwrap();
        let place = self.place();
        let hierarchy =
            Command::new("find").args(["/sys/fs/cgroup", "-type", "d", "-name", &place.id]).output().unwrap();
        let left = (
            network::namespaces(&place),
            self.mounts(),
            String::from_utf8(hierarchy.stdout).unwrap(),
            place.record().exists(),
        );
        // A second panic would hide the first.
        if !std::thread::panicking() {
            assert_eq!(left, (vec![], vec![], String::new(), false), "a lab that is down has left something");
            tear_down(&self.state()).unwrap();
        }
    }
}
