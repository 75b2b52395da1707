//! `ctrlable doctor`: each check with its label, a sentence and a remedy.

use std::io::{self, Write};
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use contract::ids::{NodeName, StorageId};
use contract::manifest::GuestKind;
use contract::site::Prune;

use super::{ConfigArg, Format, block_on};
use crate::config::Config;
use crate::doctor::gather::gather;
use crate::doctor::privileges::print_role;
use crate::doctor::{Expectation, Finding, Level, Machines, examine, worst};
use crate::proxmox::{Client, NodeState, ProxmoxError};
use crate::site::Follower;
use crate::store::Store;
use crate::trust::CheckedSite;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// Print the commands that make role, user, token and rules, instead of checking.
    #[arg(long)]
    print_role: bool,
    /// Proxmox VE version that --print-role is for; asked of the node when absent.
    #[arg(long, value_name = "MAJOR", requires = "print_role", value_parser = clap::value_parser!(u16).range(8..=9))]
    pve: Option<u16>,
    /// User that --print-role makes.
    #[arg(long, default_value = "ctrlable@pve", requires = "print_role", value_parser = plain)]
    user: String,
    /// Token id that --print-role makes.
    #[arg(long, default_value = "site", requires = "print_role", value_parser = plain)]
    token: String,
}

/// A name that can stand in a printed command as it is.
fn plain(text: &str) -> Result<String, String> {
    match text.chars().all(|letter| letter.is_ascii_alphanumeric() || "@._-".contains(letter)) && !text.is_empty() {
        true => Ok(text.to_owned()),
        false => Err("letters, digits, `@`, `.`, `_` and `-` only".to_owned()),
    }
}

/// Exit code 0 when nothing fails, 1 otherwise. Warnings do not count.
pub(crate) fn run(args: &Args, format: Format) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    let (mut expected, prune) = expectation(&config)?;
    let client = Client::new(config.proxmox)?;
    if prune == Prune::Allow {
        // Without a node to ask, the role is printed without it; the checks say what is missing.
        expected.backup_storage = block_on(backup_storage(&client, expected.node.as_ref()))?.unwrap_or_default();
    }
    let mut out = anstream::stdout();
    if args.print_role {
        let major = match args.pve {
            Some(major) => major,
            None => block_on(client.version())??.release.major,
        };
        out.write_all(print_role(&expected, major, &args.user, &args.token).as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let findings = examine(&expected, &block_on(gather(&client, &expected))?);
    let ok = worst(&findings) < Level::Failure;
    if format == Format::Json {
        println!("{}", serde_json::json!({ "ok": ok, "findings": findings }));
    } else {
        findings.iter().try_for_each(|finding| print(finding, &mut out))?;
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the site counts on: the newest revision of the fleet repository says it.
fn expectation(config: &Config) -> anyhow::Result<(Expectation, Prune)> {
    std::fs::create_dir_all(&config.state)?;
    let follower = Follower::new(config, Store::open(&config.state)?)?;
    let verified = follower.preview()?;
    let checked: &CheckedSite = &verified;
    let (site, manifest) = (checked.site(), checked.release().manifest());
    let wanted = || site.instances.values().filter_map(|wish| Some((wish, manifest.templates.get(&wish.template)?)));
    let machines =
        if wanted().any(|(_, template)| template.kind == GuestKind::Vm) { Machines::Used } else { Machines::Unused };
    let largest = wanted()
        .filter_map(|(wish, template)| wish.resources.disk.or(template.resources.map(|base| base.disk)))
        .max()
        .unwrap_or(0);
    let expected = Expectation::of(&site.proxmox, manifest.proxmox_min_version, machines, u64::from(largest) << 30);
    Ok((expected, site.prune))
}

/// Where a guest is backed up before it is destroyed: the first storage for backups by name, as `plan` chooses it.
async fn backup_storage(client: &Client, node: Option<&NodeName>) -> Result<Option<StorageId>, ProxmoxError> {
    let mut names = Vec::new();
    for row in client.nodes().await? {
        if row.state == NodeState::Online && node.is_none_or(|node| row.node == *node) {
            let storages = client.storages(&row.node).await?;
            names.extend(storages.into_iter().filter(|found| found.content.contains("backup")).map(|found| found.id));
        }
    }
    names.sort();
    Ok(names.first().and_then(|name| name.parse().ok()))
}

fn print(finding: &Finding, out: &mut impl Write) -> io::Result<()> {
    let (word, color) = match finding.level {
        Level::Ok => ("ok  ", AnsiColor::Green),
        Level::Warning => ("warn", AnsiColor::Yellow),
        Level::Failure => ("FAIL", AnsiColor::Red),
    };
    let style = Style::new().fg_color(Some(color.into()));
    writeln!(out, "{style}{word}{style:#}  {:<12} {}", finding.check, finding.text)?;
    match &finding.remedy {
        Some(remedy) => writeln!(out, "      {:<12} → {remedy}", ""),
        None => Ok(()),
    }
}
