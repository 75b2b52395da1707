//! Commands inside a guest, as `pct exec` runs them, and inside the node's network.

use std::convert::Infallible;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus};

use super::cgroup::{Group, JOIN};
use super::mounted::PATH;
use super::place::Place;
use super::tool;
use crate::runtime::{Failure, Vmid};

/// A command that runs `argv` inside a running guest as root, for the caller to spawn as it likes.
pub(super) fn exec_command(state: &Path, vmid: Vmid, argv: &[String]) -> Result<Command, Failure> {
    let place = Place::find(state)?;
    let group = Group::of_guest(&place, vmid)?;
    let init = group
        .init()
        .ok_or_else(|| format!("container '{vmid}' of the lab in {} is not running", place.state().display()))?;
    if argv.is_empty() {
        return Err("no command given".to_owned());
    }
    let mut command = Command::new("sh");
    // The group first: what runs in a guest counts towards its memory and dies with it.
    command.current_dir("/").args(["-c", JOIN]).arg(group.leaf("exec")?);
    command.args(["nsenter", "--target", &init.to_string()]);
    // Without `--wd` the command would start in a directory out here, and what nsenter makes of init's own has no
    // name inside: so on to the guest's root from there.
    command.args([
        "--mount",
        "--uts",
        "--ipc",
        "--net",
        "--pid",
        "--cgroup",
        "--root",
        "--wd",
        "--",
        "env",
        "--ignore-environment",
        "--chdir=/",
    ]);
    command.args([&format!("PATH={PATH}"), "HOME=/root", "USER=root", "LANG=C.UTF-8", "container=lxc"]);
    if let Ok(terminal) = std::env::var("TERM") {
        command.arg(format!("TERM={terminal}"));
    }
    command.args(argv);
    Ok(command)
}

/// Runs a command inside a running guest, with our standard streams.
pub(crate) fn exec(state: &Path, vmid: Vmid, argv: &[String]) -> Result<ExitStatus, Failure> {
    exec_command(state, vmid, argv)?.status().map_err(|error| tool::not_started("nsenter", &error))
}

/// A command of this machine inside the node's network, for the caller to spawn as it likes.
pub(super) fn netns_command(state: &Path, argv: &[String]) -> Result<Command, Failure> {
    let place = Place::find(state)?;
    let namespace = Place::namespace_path(&place.namespace());
    if !namespace.exists() {
        return Err(format!("no lab is up in {}: there is no {}", place.state().display(), namespace.display()));
    }
    if argv.is_empty() {
        return Err("no command given".to_owned());
    }
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace.display())).arg("--").args(argv);
    Ok(command)
}

/// Becomes a command of this machine inside the node's network, so that its process id and signals are its own.
/// Returns only when that fails.
pub(crate) fn exec_netns(state: &Path, argv: &[String]) -> Result<Infallible, Failure> {
    Err(tool::not_started("nsenter", &netns_command(state, argv)?.exec()))
}
