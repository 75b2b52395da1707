//! `ctrlable agent`: who has a certificate, and who shall have none any more. Written beside the running orchestrator,
//! which looks at the ledger with each request.

use std::process::ExitCode;

use contract::ids::InstanceName;
use serde_json::json;

use super::Format;
use super::look::{StateArg, time};
use crate::store::{Event, EventKind, now};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Show every enrolled agent and its certificate.
    ///
    /// Example: ctrlable agent list
    List {
        #[command(flatten)]
        state: StateArg,
    },
    /// Cut an agent off at once and for good: its guest keeps running, and gets nothing any more.
    ///
    /// Example: ctrlable agent revoke zigbee
    Revoke {
        #[command(flatten)]
        state: StateArg,
        /// Which.
        instance: InstanceName,
    },
    /// Let a new guest enrol in place of a revoked one.
    ///
    /// Example: ctrlable agent readmit zigbee
    Readmit {
        #[command(flatten)]
        state: StateArg,
        /// Which.
        instance: InstanceName,
    },
}

pub(crate) fn run(command: &Command, format: Format) -> anyhow::Result<ExitCode> {
    match command {
        Command::List { state } => list(state, format),
        Command::Revoke { state, instance } => {
            let store = state.open_for_writing()?;
            if !store.revoke_agent(instance)? {
                anyhow::bail!("no agent of {instance} is enrolled; `ctrlable agent list` shows them");
            }
            let text = format!("{instance} was cut off by command; its certificates are revoked");
            store.record(Event::new(EventKind::Revoked, text).instance(instance).reason("guest-revoked"))?;
            eprintln!(
                "{instance} is cut off. `ctrlable agent readmit {instance}` lets a new guest enrol in its place."
            );
            Ok(ExitCode::SUCCESS)
        }
        Command::Readmit { state, instance } => {
            let store = state.open_for_writing()?;
            if !store.readmit_agent(instance)? {
                anyhow::bail!("{instance} is not revoked; `ctrlable agent list` shows who is");
            }
            let text = format!("a new guest may enrol in place of {instance}, which was revoked");
            store.record(Event::new(EventKind::Operator, text).instance(instance))?;
            eprintln!("The window is open: a guest of {instance} with a fresh identity may enrol now.");
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn list(state: &StateArg, format: Format) -> anyhow::Result<ExitCode> {
    let store = state.open()?;
    let certificates = store.certificates()?;
    for (name, agent) in store.agents()? {
        // The newest that was used is the one in force; before the first use, the newest.
        let mut own = certificates.iter().filter(|certificate| certificate.instance == name).rev();
        let newest = own.clone().next();
        let certificate = own.find(|certificate| certificate.used_at.is_some()).or(newest);
        if format == Format::Json {
            let line = json!({
                "instance": name,
                "enrolled_at": agent.enrolled_at,
                "last_seen": agent.last_seen,
                "address": agent.address,
                "revoked_at": agent.revoked_at,
                "certificate": certificate,
            });
            println!("{line}");
            continue;
        }
        let standing = match (agent.revoked_at, certificate) {
            (Some(at), _) => format!("revoked {}", time(at)),
            (None, Some(found)) if found.expires_at < now() => format!("expired {}", time(found.expires_at)),
            (None, Some(found)) => format!("good until {}, of CA {}", time(found.expires_at), found.ca),
            (None, None) => "no certificate is accepted any more".to_owned(),
        };
        println!("{name:24} enrolled {}  {standing}", time(agent.enrolled_at));
    }
    Ok(ExitCode::SUCCESS)
}
