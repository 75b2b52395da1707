//! Running the system's own tools, with errors that name the tool and what to install.

use std::io;
use std::process::{Command, Output};

use crate::runtime::Failure;

/// Runs a tool to its end and returns what it printed.
pub(super) fn run(program: &str, args: &[&str]) -> Result<String, Failure> {
    finish(Command::new(program).args(args).current_dir("/"), program)
}

/// Runs a prepared command to its end; `name` is what errors call it.
pub(super) fn finish(command: &mut Command, name: &str) -> Result<String, Failure> {
    let Output { status, stdout, stderr } = command.output().map_err(|error| not_started(name, &error))?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&stderr);
    let line = command.get_args().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ");
    Err(format!("`{name} {line}` failed ({status}): {}", said.trim()))
}

/// The error of a tool that could not even be started.
pub(crate) fn not_started(program: &str, error: &io::Error) -> Failure {
    if error.kind() != io::ErrorKind::NotFound {
        return format!("cannot run {program}: {error}");
    }
    let package = match program {
        "ip" => "iproute2",
        "dnsmasq" => "dnsmasq-base",
        "systemd-nspawn" => "systemd-container",
        "nsenter" | "unshare" | "setsid" | "setpriv" | "mount" => "util-linux",
        other => other,
    };
    format!("cannot run {program}: it is not installed; install it with: apt-get install {package}")
}
