//! `ctrlable template`: guests that become templates of a release, by hand, as docs/template.md says.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use contract::PROTOCOL;
use contract::bootstrap::Bootstrap;
use contract::ids::{ReleaseId, Sha256Digest, TemplateName, Vmid};
use contract::manifest::{Manifest, Template};
use serde_json::json;

use super::{ConfigArg, Format, block_on};
use crate::agents::SiteCa;
use crate::config::Config;
use crate::proxmox::{Client, Templates};
use crate::site::Follower;
use crate::source::Checkout;
use crate::store::Store;
use crate::template::{Adopted, Adoption, InheritedFlags, Outcome, adopt};
use crate::trust::{self, Memory};

/// What to do with templates.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print the bootstrap file of a template: where its clones find this orchestrator, and their claim. Keep it 0600.
    ///
    /// Example: ctrlable template bootstrap --release 2026.06 --name zigbee2mqtt --out bootstrap.json
    #[command(verbatim_doc_comment)]
    Bootstrap(BootstrapArgs),
    /// Check a guest that was made by hand, and mark it as a template of a release.
    ///
    /// Example: ctrlable template adopt 9000 --release 2026.06 --name zigbee2mqtt
    #[command(verbatim_doc_comment)]
    Adopt(AdoptArgs),
    /// Show the templates on Proxmox.
    ///
    /// Example: ctrlable template list
    #[command(verbatim_doc_comment)]
    List(#[command(flatten)] ConfigArg),
}

/// `ctrlable template bootstrap`.
#[derive(Debug, Args)]
pub(crate) struct BootstrapArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// The release that the template is built from.
    #[arg(long)]
    release: ReleaseId,
    /// Its name in that release.
    #[arg(long)]
    name: TemplateName,
    /// Write it there, readable by nobody else, instead of printing it.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// `ctrlable template adopt`.
#[derive(Debug, Args)]
pub(crate) struct AdoptArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// Number of the guest.
    vmid: Vmid,
    /// Release that it belongs to.
    #[arg(long)]
    release: ReleaseId,
    /// Its name in the release.
    #[arg(long)]
    name: TemplateName,
    /// The release manifest, its signature beside it; otherwise that of the fleet repository.
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Clear `onboot` and `protection`, which clones would inherit.
    #[arg(long)]
    clear_flags: bool,
}

pub(crate) fn run(command: &Command, format: Format) -> anyhow::Result<ExitCode> {
    match command {
        Command::Bootstrap(args) => bootstrap(args),
        Command::Adopt(args) => run_adopt(args, format),
        Command::List(args) => list(args, format),
    }
}

fn bootstrap(args: &BootstrapArgs) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    std::fs::create_dir_all(&config.state)?;
    let ca = SiteCa::open(&config.state, &config.site)?;
    let bootstrap = Bootstrap {
        protocol: PROTOCOL,
        release: args.release.clone(),
        template: args.name.clone(),
        orchestrators: config.agents.advertise,
        ca: ca.bundle(),
        claim: ca.claim(&config.site, &args.release),
        site: config.site,
    };
    let text = serde_json::to_string_pretty(&bootstrap)? + "\n";
    match &args.out {
        Some(file) => crate::files::write_private(file, text.as_bytes())
            .map_err(|error| anyhow::anyhow!("{} cannot be written: {error}", file.display()))?,
        None => print!("{text}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// What the signed release says about a template, and the digest of its manifest.
fn entry(config: &Config, args: &AdoptArgs) -> anyhow::Result<(Template, Sha256Digest)> {
    let (manifest, digest) = match &args.manifest {
        Some(file) => verified_file(config, &args.release, file)?,
        None => {
            let follower = Follower::new(config, Store::open(&config.state)?)?;
            let release = follower.release(&args.release)?;
            (release.manifest().clone(), release.digest().clone())
        }
    };
    if manifest.release != args.release {
        anyhow::bail!("the manifest is that of release {}, not {}", manifest.release, args.release);
    }
    match manifest.templates.get(&args.name) {
        Some(template) => Ok((template.clone(), digest)),
        None => {
            let names: Vec<&str> = manifest.templates.keys().map(TemplateName::as_str).collect();
            anyhow::bail!("release {} has no template {}; it has {}", args.release, args.name, names.join(", "))
        }
    }
}

/// A manifest of a checkout, judged with the lists of keys that lie beside it and with what this site has seen.
fn verified_file(config: &Config, id: &ReleaseId, file: &Path) -> anyhow::Result<(Manifest, Sha256Digest)> {
    let place = file.canonicalize()?;
    let root = place.ancestors().nth(2).filter(|root| root.join(format!("releases/{id}.yaml")) == place);
    let Some(root) = root else { anyhow::bail!("give the manifest as releases/{id}.yaml of a checkout") };
    let (checkout, configured) = (Checkout::new(root), config.trusted()?);
    let floor = Store::open(&config.state)?.floor()?.unwrap_or_default().floor;
    let release = trust::verify_hq(&checkout, &configured, &floor)
        .and_then(|hq| trust::verify_release(&checkout, id, &hq, &Memory::default()))
        .map_err(|error| anyhow::anyhow!("{error}. To do: {} [{}]", error.remedy(), error.reason()))?;
    Ok((release.manifest().clone(), release.digest().clone()))
}

fn run_adopt(args: &AdoptArgs, format: Format) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    std::fs::create_dir_all(&config.state)?;
    let (entry, digest) = entry(&config, args)?;
    let client = Client::new(config.proxmox)?;
    let request = Adoption {
        vmid: args.vmid,
        release: args.release.clone(),
        template: args.name.clone(),
        digest: Some(digest),
        entry: Some(entry),
        flags: if args.clear_flags { InheritedFlags::Clear } else { InheritedFlags::Warn },
    };
    let Adopted { guest, outcome, warnings } = block_on(adopt(&client, &request))??;
    if format == Format::Json {
        println!("{}", json!({ "guest": guest, "changed": outcome == Outcome::Marked, "warnings": warnings }));
        return Ok(ExitCode::SUCCESS);
    }
    match outcome {
        Outcome::Marked => println!("{guest} is now template {} of release {}", args.name, args.release),
        Outcome::NothingToDo => {
            println!("nothing to do: {guest} is template {} of release {}", args.name, args.release);
        }
    }
    warnings.iter().for_each(|warning| anstream::eprintln!("warning: {warning}"));
    Ok(ExitCode::SUCCESS)
}

fn list(args: &ConfigArg, format: Format) -> anyhow::Result<ExitCode> {
    let client = Client::new(args.load()?.proxmox)?;
    let Templates { usable, suspect } = block_on(client.templates())??;
    if format == Format::Json {
        let usable: Vec<_> = usable
            .iter()
            .map(|found| {
                json!({ "guest": found.guest, "release": found.release, "template": found.template,
                    "digest": found.digest })
            })
            .collect();
        let suspect: Vec<_> = suspect.iter().map(|found| json!({ "guest": found.guest, "why": found.why })).collect();
        println!("{}", json!({ "usable": usable, "suspect": suspect }));
        return Ok(ExitCode::SUCCESS);
    }
    for found in usable {
        println!("{:<10} {:<24} {}", found.release, found.template, found.guest);
    }
    for found in suspect {
        println!("unusable   {}: {}", found.guest, found.why);
    }
    Ok(ExitCode::SUCCESS)
}
