//! Child processes.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Where cargo put the project's programs: beside or above the running one.
pub fn program(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    here.ancestors()
        .skip(1)
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("{name} is not built: run `cargo build --workspace`"))
}

/// The static agent, as `cargo build --release --target x86_64-unknown-linux-musl -p guest-agent` makes it.
pub fn agent() -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let inside = "x86_64-unknown-linux-musl/release/ctrlable-agent";
    here.ancestors().map(|directory| directory.join(inside)).find(|candidate| candidate.is_file()).context(
        "the agent is not built: run `cargo build --release --target x86_64-unknown-linux-musl -p guest-agent`",
    )
}

/// Runs to the end; an exit code other than the ones in `fine` is an error with everything that it said.
pub fn run_expecting(command: &mut Command, fine: &[i32]) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?} cannot be run"))?;
    if !output.status.code().is_some_and(|code| fine.contains(&code)) {
        bail!(
            "{command:?} ended with {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}

/// Runs to exit code 0 and returns standard output.
pub fn run(command: &mut Command) -> Result<String> {
    let output = run_expecting(command, &[0])?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command with arguments.
pub fn command<I, S>(program: impl AsRef<OsStr>, arguments: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Asks until the answer is there. `what` is said when it does not come within `deadline`, with the last refusal.
pub fn await_for<T>(what: &str, deadline: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        let last = match ask() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if Instant::now() > end {
            return match last {
                Some(error) => Err(error.context(format!("{what}: not within {deadline:?}"))),
                None => bail!("{what}: not within {deadline:?}"),
            };
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
