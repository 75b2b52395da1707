//! The command line. Data goes to standard output, talk to standard error; `--json` everywhere.
//!
//! Exit codes: 0 done, or nothing to do; 1 refused or failed; 2 a plan with something to do; 64 wrong usage.

mod agent;
mod ca;
mod doctor;
mod editor;
mod guests;
mod hq;
mod look;
mod plan;
pub mod release;
mod secrets;
mod site;
mod template;
mod why;

pub(crate) use look::ACCEPTED_REWRITE;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{Config, ConfigError, DEFAULT_PATH};

/// Exit code of a plan with something to do.
pub const CHANGES: u8 = 2;
/// Exit code of a command line that is not understood: `EX_USAGE` of sysexits(3).
pub const USAGE: u8 = 64;

/// Pulls a signed fleet repository and makes one Proxmox site what it says.
#[derive(Debug, Parser)]
#[command(name = "ctrlable", version, propagate_version = true)]
pub struct Cli {
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// For machines: one object, or one per line.
    Json,
}

/// What every command that needs the site's own configuration takes.
#[derive(Debug, clap::Args)]
pub(crate) struct ConfigArg {
    /// The orchestrator's configuration.
    #[arg(long, value_name = "FILE", env = "CTRLABLE_CONFIG", default_value = DEFAULT_PATH)]
    config: PathBuf,
}

impl ConfigArg {
    pub(crate) fn load(&self) -> Result<Config, ConfigError> {
        Config::load(&self.config)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the orchestrator of a site.
    ///
    /// Example: ctrlable serve --config /etc/ctrlable/orchestrator.toml
    Serve(#[command(flatten)] ConfigArg),
    /// Show what would be done; exit 0: nothing, 2: something, 1: an error.
    ///
    /// Example: ctrlable plan --fleet . --site acme-hq     (on a laptop, from a checkout)
    /// Example: ctrlable plan                              (on a site, against what is there)
    #[command(verbatim_doc_comment)]
    Plan(plan::Args),
    /// Show every instance and how it is.
    ///
    /// Example: ctrlable status --watch
    Status(look::StatusArgs),
    /// Show what happened, with the revision that asked for it.
    ///
    /// Example: ctrlable events --instance zigbee --limit 20
    Events(look::EventsArgs),
    /// Show the chain revision, field, step, task, observation for one instance.
    ///
    /// Example: ctrlable why zigbee
    Why(why::Args),
    /// Print the SSH host keys of guests as lines of a known_hosts file.
    ///
    /// Example: ctrlable known-hosts > ~/.ssh/known_hosts.acme
    KnownHosts(guests::KnownHostsArgs),
    /// Show who asked for a certificate in the name of a guest that he is not.
    ///
    /// Example: ctrlable conflicts --clear
    Conflicts(guests::ConflictsArgs),
    /// Who has a certificate, and who shall have none any more.
    ///
    /// Example: ctrlable agent revoke zigbee
    #[command(subcommand)]
    Agent(agent::Command),
    /// The site's own certificate authority.
    ///
    /// Example: ctrlable ca rotate
    #[command(subcommand)]
    Ca(ca::Command),
    /// HQ's tools for releases.
    ///
    /// Example: ctrlable release sign releases/2026.06.yaml --key hq.key
    Release(release::ReleaseArgs),
    /// A dealer's tools for site definitions.
    ///
    /// Example: ctrlable site lint
    #[command(subcommand)]
    Site(site::Command),
    /// A site's secrets, encrypted in the fleet repository.
    ///
    /// Example: ctrlable secrets set mqtt --site acme-hq
    #[command(subcommand)]
    Secrets(secrets::Command),
    /// Make and mark templates by hand.
    ///
    /// Example: ctrlable template adopt 9000 --release 2026.06 --name zigbee2mqtt
    #[command(subcommand)]
    Template(template::Command),
    /// Check connection, version, storage, bridge, pool and privileges.
    ///
    /// Example: ctrlable doctor
    /// Example: ctrlable doctor --print-role --pve 9
    #[command(verbatim_doc_comment)]
    Doctor(doctor::Args),
    /// Accept a revision that does not follow from the last accepted one, after a person looked at it.
    ///
    /// Example: ctrlable accept-rewrite 4f9c…
    AcceptRewrite(look::AcceptArgs),
    /// Print the completion script of a shell.
    ///
    /// Example: ctrlable completions bash > /etc/bash_completion.d/ctrlable
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Runs a command; prints what goes wrong with its causes.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, and are no error. A closed pipe is nobody's loss.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    if let Err(error) = leave_no_core() {
        anstream::eprintln!("ctrlable: this process could not be kept from leaving a core dump: {error}");
    }
    crate::tls::install_provider();
    let format = if cli.json { Format::Json } else { Format::Text };
    let result = match cli.command {
        Command::Serve(args) => args.load().map_err(Into::into).and_then(crate::serve::run),
        Command::Plan(args) => plan::run(&args, format),
        Command::Status(args) => look::status(&args, format),
        Command::Events(args) => look::events(&args, format),
        Command::Why(args) => why::run(&args, format),
        Command::KnownHosts(args) => guests::known_hosts(&args, format),
        Command::Conflicts(args) => guests::conflicts(&args, format),
        Command::Agent(command) => agent::run(&command, format),
        Command::Ca(command) => ca::run(&command, format),
        Command::Release(args) => return release::run(args, format),
        Command::Site(command) => site::run(&command, format),
        Command::Secrets(command) => secrets::run(&command, format),
        Command::Template(command) => template::run(&command, format),
        Command::Doctor(args) => doctor::run(&args, format),
        Command::AcceptRewrite(args) => look::accept(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "ctrlable", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| {
        anstream::eprintln!("ctrlable: {}", chain(&error));
        ExitCode::FAILURE
    })
}

/// Keys and secrets are in memory: no core dump holds them, and no other process of this user reads them there.
fn leave_no_core() -> rustix::io::Result<()> {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
}

/// An error with its causes; a cause that its consequence quotes already is not said twice.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            text = if text.is_empty() { cause } else { format!("{text}: {cause}") };
        }
    }
    text
}

/// Runs one asynchronous call of a command that is otherwise none.
fn block_on<T>(call: impl Future<Output = T>) -> std::io::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(call))
}
