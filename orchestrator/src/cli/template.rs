//! `ctrlable template`: guests that become templates of a release.

use std::io::{self, Write};

use clap::{Args, Subcommand};
use contract::ids::{ReleaseId, Sha256Digest, TemplateName, Vmid};
use contract::manifest::Template;

use crate::proxmox::{Client, Templates};
use crate::template::{AdoptError, Adopted, Adoption, InheritedFlags, Outcome, adopt};

/// What to do with templates.
#[derive(Debug, Clone, Subcommand)]
pub enum TemplateCommand {
    /// Check a guest that was made by hand, and mark it as a template of a release
    Adopt(AdoptArgs),
    /// Show the templates on Proxmox
    List(ListArgs),
}

/// `ctrlable template adopt`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  ctrlable template adopt 9000 --release 2026.06 --name zigbee2mqtt")]
pub struct AdoptArgs {
    /// Number of the guest
    pub vmid: Vmid,

    /// Release that it belongs to
    #[arg(long)]
    pub release: ReleaseId,

    /// Its name in the release
    #[arg(long)]
    pub name: TemplateName,

    /// SHA-256 of the release manifest, to be written into the description
    #[arg(long, value_name = "SHA256")]
    pub manifest_digest: Option<Sha256Digest>,

    /// Clear `onboot` and `protection`, which clones would inherit
    #[arg(long)]
    pub clear_flags: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `ctrlable template list`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  ctrlable template list --json")]
pub struct ListArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A command that failed.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The guest was not adopted.
    #[error(transparent)]
    Adopt(#[from] AdoptError),
    /// Proxmox could not be asked.
    #[error(transparent)]
    Proxmox(#[from] crate::proxmox::ProxmoxError),
    /// The output is closed.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

/// Adopts a guest and says what was done. `entry` is the manifest's, when the release is at hand.
pub async fn run_adopt(
    args: &AdoptArgs,
    entry: Option<Template>,
    client: &Client,
    out: &mut impl Write,
) -> Result<Adopted, TemplateError> {
    let request = Adoption {
        vmid: args.vmid,
        release: args.release.clone(),
        template: args.name.clone(),
        digest: args.manifest_digest.clone(),
        entry,
        flags: if args.clear_flags { InheritedFlags::Clear } else { InheritedFlags::Warn },
    };
    let adopted = adopt(client, &request).await?;
    let Adopted { guest, outcome, warnings } = &adopted;
    if args.json {
        let changed = *outcome == Outcome::Marked;
        writeln!(out, "{}", serde_json::json!({ "guest": guest, "changed": changed, "warnings": warnings }))?;
        return Ok(adopted);
    }
    match outcome {
        Outcome::Marked => writeln!(out, "{guest} is now template {} of release {}", args.name, args.release)?,
        Outcome::NothingToDo => {
            writeln!(out, "nothing to do: {guest} is template {} of release {}", args.name, args.release)?;
        }
    }
    warnings.iter().try_for_each(|warning| writeln!(out, "warning: {warning}"))?;
    Ok(adopted)
}

/// Shows the templates on Proxmox.
pub async fn run_list(args: &ListArgs, client: &Client, out: &mut impl Write) -> Result<(), TemplateError> {
    let Templates { usable, suspect } = client.templates().await?;
    if args.json {
        let usable: Vec<_> = usable
            .iter()
            .map(|found| {
                serde_json::json!({ "guest": found.guest, "release": found.release, "template": found.template,
                    "digest": found.digest })
            })
            .collect();
        let suspect: Vec<_> =
            suspect.iter().map(|found| serde_json::json!({ "guest": found.guest, "why": found.why })).collect();
        writeln!(out, "{}", serde_json::json!({ "usable": usable, "suspect": suspect }))?;
        return Ok(());
    }
    for found in usable {
        writeln!(out, "{:<10} {:<24} {}", found.release, found.template, found.guest)?;
    }
    suspect.into_iter().try_for_each(|found| writeln!(out, "unusable   {}: {}", found.guest, found.why))?;
    Ok(())
}
