//! What is there: one look at the hypervisor and the ledger, as `plan` wants it.

use std::collections::BTreeSet;

use contract::health::WiringOutcome;
use contract::ids::{Generation, VmidRange};

use crate::plan::{
    Ledger, Observed, ObservedAgent, ObservedGuest, ObservedNet, ObservedStorage, ObservedTemplate, Owner, Power,
    Reservation, Settings, Window, WiringDigest,
};
use crate::proxmox::{Client, GuestConfig, GuestRow, Marker, NodeState, Problem, ProxmoxError, RunState};
use crate::store::{AgentRecord, Store, StoreError, now};

/// What one look brings.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// The hypervisor and the agents.
    pub observed: Observed,
    /// The ledger's promises.
    pub ledger: Ledger,
}

/// Reads the ledger and what the agents said.
pub fn ledger(store: &Store, window: i64) -> Result<View, StoreError> {
    let mut view = View::default();
    let mut agents = store.agents()?;
    for (name, record) in store.instances()? {
        let agent = agents.remove(&name);
        let open = record.window_opened_at.is_some_and(|opened| now() - opened <= window);
        view.observed.agents.insert(
            name.clone(),
            ObservedAgent {
                enrolled: agent.is_some(),
                decided: agent.as_ref().map_or(Generation(0), decided),
                window: if open { Window::Open } else { Window::Closed },
            },
        );
        view.ledger.reservations.insert(
            name,
            Reservation {
                vmid: record.vmid,
                mac: record.mac,
                generation: record.generation,
                wiring: record.assignment.map(WiringDigest),
            },
        );
    }
    view.ledger.taken = store.taken_vmids()?;
    Ok(view)
}

/// The newest generation that a guest has decided about: in force, put back or refused.
fn decided(agent: &AgentRecord) -> Generation {
    agent.report.as_ref().map_or(Generation(0), |report| {
        let told = match &report.wiring {
            Some(wiring) => match wiring.outcome {
                WiringOutcome::Applied { .. } | WiringOutcome::PutBack { .. } | WiringOutcome::Refused { .. } => {
                    wiring.generation
                }
            },
            None => Generation(0),
        };
        told.max(report.generation)
    })
}

/// Reads the hypervisor. `range` is where guests of ours may be; what lies outside is only read when it says by its
/// tags that it is ours.
pub async fn hypervisor(client: &Client, range: VmidRange, mut view: View) -> Result<View, ProxmoxError> {
    let version = client.version().await?;
    view.observed.version = Some(version.release);
    let mut nodes = BTreeSet::new();
    for row in client.guests().await? {
        nodes.insert(row.guest.node.clone());
        let ours_by_tag = row.tags.has("ctrlable") || row.tags.has("ctrlable-template");
        let known = view.ledger.reservations.values().any(|reservation| reservation.vmid == row.guest.vmid);
        if row.template && !ours_by_tag {
            view.observed.guests.insert(row.guest.vmid, foreign(&row));
        } else if ours_by_tag || known || range.contains(row.guest.vmid) {
            read(client, &row, &mut view.observed).await?;
        } else {
            view.observed.guests.insert(row.guest.vmid, foreign(&row));
        }
    }
    for node in client.nodes().await?.into_iter().filter(|node| node.state == NodeState::Online) {
        nodes.insert(node.node);
    }
    for node in nodes {
        for storage in client.storages(&node).await? {
            // A name that we could never write into a site is none that we could use.
            let Ok(name) = storage.id.parse() else { continue };
            view.observed.storages.push(ObservedStorage {
                node: node.clone(),
                storage: name,
                active: storage.active && storage.enabled,
                content: storage.content,
                available: storage.available,
            });
        }
    }
    Ok(view)
}

fn foreign(row: &GuestRow) -> ObservedGuest {
    ObservedGuest {
        kind: row.guest.kind,
        node: row.guest.node.clone(),
        power: Power::Stopped,
        lock: row.lock.clone(),
        owner: Owner::Foreign,
        settings: None,
    }
}

/// One guest: its settings, its marker, whether it runs. The list lags by some ten seconds (pve-api 16), so power comes
/// from the guest itself.
async fn read(client: &Client, row: &GuestRow, observed: &mut Observed) -> Result<(), ProxmoxError> {
    let guest = &row.guest;
    let config = match client.guest_config(guest).await {
        Ok(config) => config,
        // Gone since the list was read, or still without its pool: what is there will show in the next look.
        Err(error) if matches!(error.cause(), Problem::NotFound(_) | Problem::NotVisible { .. }) => {
            observed.guests.insert(row.guest.vmid, ObservedGuest { lock: Some("unreadable".into()), ..foreign(row) });
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let marker = Marker::parse(&config.description).unwrap_or_else(|error| {
        tracing::warn!(vmid = row.guest.vmid.get(), reason = error.reason(), %error, "a marker cannot be read");
        None
    });
    let (owner, lock) = match marker {
        Some(Marker::Template { release, template, .. }) if config.template => {
            observed.templates.push(ObservedTemplate {
                vmid: row.guest.vmid,
                node: row.guest.node.clone(),
                kind: row.guest.kind,
                release,
                template,
                disk: gib(&config),
            });
            (Owner::Foreign, config.lock.clone())
        }
        Some(Marker::Guest { site, instance, release, template }) if !config.template => {
            (Owner::Ours { site, instance, release, template }, config.lock.clone())
        }
        _ => (Owner::Foreign, config.lock.clone()),
    };
    let power = match owner {
        Owner::Ours { .. } if client.guest_status(guest).await?.state == RunState::Running => Power::Running,
        _ => Power::Stopped,
    };
    observed.guests.insert(
        row.guest.vmid,
        ObservedGuest {
            kind: row.guest.kind,
            node: row.guest.node.clone(),
            power,
            lock,
            owner,
            settings: Some(settings(&config)),
        },
    );
    Ok(())
}

fn settings(config: &GuestConfig) -> Settings {
    Settings {
        hostname: config.name.clone().unwrap_or_default(),
        cores: config.cores.and_then(|cores| u32::try_from(cores).ok()),
        memory: config.memory.and_then(|memory| u32::try_from(memory).ok()),
        disk: gib(config),
        // An interface that cannot be read counts as none, so that the plan puts ours in its place.
        net0: config.net0().ok().flatten().map(|net| ObservedNet {
            bridge: net.bridge().unwrap_or_default().to_owned(),
            tag: net.vlan().map(|vlan| vlan.get()),
            mac: net.mac(),
            ip: net.option("ip").map(str::to_owned),
            gateway: net.option("gw").map(str::to_owned),
        }),
        onboot: config.onboot,
        protection: config.protection,
        tags: config.tags.iter().map(str::to_owned).collect(),
    }
}

/// The root disk in whole GiB.
fn gib(config: &GuestConfig) -> Option<u32> {
    u32::try_from(config.root_size? >> 30).ok()
}
