//! Commands for the person at the keyboard: into a guest, into the node's network, and everything down.

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus};

use clap::Args;

use crate::runtime::nspawn;
use crate::runtime::{Failure, Vmid};

/// Run a command inside a running guest, as `pct exec` does.
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// State directory of the lab.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// The guest.
    vmid: Vmid,
    /// The command and its arguments.
    #[arg(required = true, last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Run a command of this machine inside the node's network, where guests can be reached.
#[derive(Debug, Args)]
pub(crate) struct NetnsArgs {
    /// State directory of the lab.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// The command and its arguments.
    #[arg(required = true, last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Kill all guests of a lab and take its network down; disks stay.
#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    /// State directory of the lab.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
}

/// Runs `ctrlable-lab exec`.
pub(crate) fn run_exec(args: &ExecArgs) -> Result<ExitCode, Failure> {
    nspawn::exec(&args.state, args.vmid, &args.command).map(exit_code)
}

/// Runs `ctrlable-lab netns`.
pub(crate) fn run_netns(args: &NetnsArgs) -> Result<ExitCode, Failure> {
    match nspawn::exec_netns(&args.state, &args.command)? {}
}

/// Runs `ctrlable-lab down`.
pub(crate) fn run_down(args: &DownArgs) -> Result<ExitCode, Failure> {
    nspawn::tear_down(&args.state)?;
    nspawn::sweep();
    Ok(ExitCode::SUCCESS)
}

/// A command's end as our own: 128 and the signal's number if one killed it, as shells have it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
