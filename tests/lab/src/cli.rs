//! The command line.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::control::client;
use crate::control::import::Import;
use crate::node::guests::Kind;
use crate::node::{Release, Timings};
use crate::runtime::nspawn;
use crate::{image, shell};

/// A Proxmox VE node in a box.
#[derive(Debug, Parser)]
#[command(version, about)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node until it gets SIGTERM.
    Serve(Serve),
    /// Make a guest from a root file system, as an administrator does at the host's shell.
    Template(Template),
    /// Add a fault: a rule in JSON, such as {"method":"PUT","path":"**","action":{"kind":"saved_but_500"}}.
    Fault(Fault),
    /// Show or clear the faults.
    Faults(Faults),
    Image(image::ImageArgs),
    Exec(shell::ExecArgs),
    Netns(shell::NetnsArgs),
    Down(shell::DownArgs),
}

/// What guests are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RuntimeKind {
    /// Records only.
    None,
    /// Real containers in a network namespace of their own.
    Nspawn,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Serve {
    /// Directory with everything the node knows; made on first use.
    #[arg(long)]
    pub(crate) state: PathBuf,
    /// Where to listen. A listener whose address is not there yet is opened inside the lab's network namespace.
    #[arg(long = "listen", default_value = "127.0.0.1:0")]
    pub(crate) listen: Vec<SocketAddr>,
    #[arg(long, default_value = "pve1")]
    pub(crate) node: String,
    /// The release that is imitated.
    #[arg(long, default_value = "9.2")]
    pub(crate) pve: Release,
    #[arg(long, default_value = "none")]
    pub(crate) runtime: RuntimeKind,
    #[arg(long, default_value = "vmbr0")]
    pub(crate) bridge: String,
    #[arg(long, default_value = "10.77.0.0/24")]
    pub(crate) subnet: String,
    #[arg(long, default_value = "instant")]
    pub(crate) timings: Timings,
    /// Pool that the orchestrator's token may use.
    #[arg(long, default_value = "ctrlable")]
    pub(crate) pool: String,
    /// File with the token to accept (`ctrlable@pve!site=UUID`) instead of a random one; read on first use only.
    #[arg(long)]
    pub(crate) token_file: Option<PathBuf>,
    /// File with a JSON list of fault rules.
    #[arg(long)]
    pub(crate) faults: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Template {
    #[arg(long)]
    state: PathBuf,
    #[arg(long)]
    vmid: u32,
    #[arg(long)]
    hostname: String,
    /// Directory with the root file system; records need none.
    #[arg(long)]
    rootfs: Option<PathBuf>,
    /// Hand the directory over: it is renamed instead of copied, and gone from where it was.
    #[arg(long, requires = "rootfs")]
    take: bool,
    #[arg(long)]
    cores: Option<u32>,
    /// MiB.
    #[arg(long)]
    memory: Option<u32>,
    /// Convert it to a template at once.
    #[arg(long)]
    template: bool,
    #[arg(long, default_value = "lxc")]
    kind: Kind,
    #[arg(long)]
    storage: Option<String>,
    /// Such as 2G.
    #[arg(long)]
    size: Option<String>,
    #[arg(long)]
    pool: Option<String>,
    /// A further key of its configuration, KEY=VALUE.
    #[arg(long = "set", value_parser = pair)]
    config: Vec<(String, String)>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("'{text}' is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

#[derive(Debug, Args)]
struct Fault {
    #[arg(long)]
    state: PathBuf,
    /// One rule or a list of them.
    rule: String,
}

#[derive(Debug, Args)]
struct Faults {
    #[arg(long)]
    state: PathBuf,
    /// Forget all rules.
    #[arg(long, conflicts_with = "list")]
    clear: bool,
    /// Show the rules (the default).
    #[arg(long)]
    list: bool,
}

impl Cli {
    /// Runs the command.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Image(args) => return image::run(&args).map(|_| ExitCode::SUCCESS).map_err(|text| anyhow!(text)),
            Command::Exec(args) => return shell::run_exec(&args).map_err(|text| anyhow!(text)),
            Command::Netns(args) => return shell::run_netns(&args).map_err(|text| anyhow!(text)),
            Command::Down(args) => return shell::run_down(&args).map_err(|text| anyhow!(text)),
            Command::Serve(options) => serve(options),
            Command::Template(options) => {
                let body = Import {
                    vmid: options.vmid,
                    kind: options.kind,
                    hostname: options.hostname,
                    rootfs: options.rootfs.map(std::path::absolute).transpose()?,
                    take: options.take,
                    cores: options.cores,
                    memory: options.memory,
                    template: options.template,
                    storage: options.storage,
                    size: options.size,
                    pool: options.pool,
                    config: options.config.into_iter().collect(),
                };
                control(&options.state, "POST", "/lab/import", Some(body.body()))
            }
            Command::Fault(options) => {
                let rule = serde_json::from_str(&options.rule).context("the rule is not JSON")?;
                control(&options.state, "POST", "/lab/faults", Some(rule))
            }
            Command::Faults(options) => {
                let method = if options.clear { "DELETE" } else { "GET" };
                control(&options.state, method, "/lab/faults", None)
            }
        }?;
        Ok(ExitCode::SUCCESS)
    }
}

fn control(state: &std::path::Path, method: &str, path: &str, body: Option<Value>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(client::call(state, method, path, body.as_ref()))?;
    println!("{}", json!(answer));
    Ok(())
}

/// Sockets keep the network namespace they were opened in: what is bound first stays reachable from outside.
fn serve(options: Serve) -> anyhow::Result<()> {
    std::fs::create_dir_all(&options.state).with_context(|| format!("create {}", options.state.display()))?;
    let mut listeners: Vec<Option<TcpListener>> = Vec::new();
    for address in &options.listen {
        match TcpListener::bind(address) {
            Ok(listener) => listeners.push(Some(listener)),
            Err(error) if error.kind() == std::io::ErrorKind::AddrNotAvailable => listeners.push(None),
            Err(error) => return Err(error).with_context(|| format!("listen on {address}")),
        }
    }
    if options.runtime == RuntimeKind::Nspawn {
        nspawn::enter_namespace(&options.state, &options.bridge, &options.subnet).map_err(|text| anyhow!(text))?;
    }
    let mut bound = Vec::new();
    for (listener, address) in listeners.into_iter().zip(&options.listen) {
        bound.push(match listener {
            Some(listener) => listener,
            None => TcpListener::bind(address).with_context(|| format!("listen on {address}"))?,
        });
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(crate::serve::serve(options, bound))
}
