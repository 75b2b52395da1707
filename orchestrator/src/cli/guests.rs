//! `known-hosts` and `conflicts`: who guests are, and who says to be one.

use std::process::ExitCode;

use anyhow::bail;
use contract::ids::InstanceName;
use serde_json::json;

use super::Format;
use super::look::{StateArg, time};
use crate::store::{Event, EventKind, StoredConflict};

#[derive(Debug, clap::Args)]
pub(crate) struct KnownHostsArgs {
    #[command(flatten)]
    state: StateArg,
    /// Only this one.
    instance: Option<InstanceName>,
}

/// Lines as in sshd(8), SSH_KNOWN_HOSTS FILE FORMAT: host name and address, algorithm, key.
pub(crate) fn known_hosts(args: &KnownHostsArgs, format: Format) -> anyhow::Result<ExitCode> {
    let store = args.state.open()?;
    let instances = store.instances()?;
    let mut agents = store.agents()?;
    if let Some(only) = &args.instance {
        agents.retain(|name, _| name == only);
        if agents.is_empty() {
            bail!("{only} has not enrolled: its keys are not known");
        }
    }
    for (name, agent) in agents {
        let Some(record) = instances.get(&name) else { continue };
        // Keys may be made anew in a guest; its certificate says that it is still the one that reports them.
        let keys = agent.report.map_or(agent.ssh_host_keys, |report| report.identity.ssh_host_keys);
        if format == Format::Json {
            let hosts = [record.hostname.as_str(), &agent.address];
            println!("{}", json!({ "instance": name, "hosts": hosts, "keys": keys }));
            continue;
        }
        for key in keys.iter() {
            println!("{},{} {key}", record.hostname, agent.address);
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, clap::Args)]
pub(crate) struct ConflictsArgs {
    #[command(flatten)]
    state: StateArg,
    /// Forget them: you have looked.
    #[arg(long)]
    clear: bool,
}

pub(crate) fn conflicts(args: &ConflictsArgs, format: Format) -> anyhow::Result<ExitCode> {
    let store = if args.clear { args.state.open_for_writing()? } else { args.state.open()? };
    for conflict in store.conflicts()? {
        match format {
            Format::Json => println!("{}", serde_json::to_string(&conflict)?),
            Format::Text => show(&conflict),
        }
    }
    if args.clear {
        let count = store.clear_conflicts()?;
        store.record(Event::new(EventKind::Operator, format!("{count} conflicts were looked at")))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One line.
pub(super) fn show(conflict: &StoredConflict) {
    let StoredConflict { instance, address, reason, mac, at } = conflict;
    anstream::println!("{} {instance}: {address} with {mac} [{reason}]", time(*at));
}
