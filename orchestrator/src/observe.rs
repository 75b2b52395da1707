//! What is there: one look at the hypervisor and the ledger, as `plan` wants it.

use std::collections::BTreeSet;

use contract::health::WiringOutcome;
use contract::ids::{Generation, InstanceName, SiteName, VmidRange};

use futures_util::StreamExt;

use crate::plan::{
    Ledger, Made, Observed, ObservedAgent, ObservedGuest, ObservedNet, ObservedStorage, ObservedTemplate, Owner, Power,
    Reservation, Settings, Window, WiringDigest,
};
use crate::proxmox::{Client, GuestConfig, GuestRef, GuestRow, Marker, NodeState, ProxmoxError, RunState, claim};
use crate::store::{AgentRecord, Store, StoreError, now};
use crate::trust::Numbers;

/// What one look brings.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// The hypervisor and the agents.
    pub observed: Observed,
    /// The ledger's promises.
    pub ledger: Ledger,
    /// What the markers of our guests say about the newest of HQ's documents.
    pub floors: Vec<ToldFloor>,
}

/// What one marker of ours says about the floor.
#[derive(Debug, Clone)]
pub struct ToldFloor {
    /// Whose marker.
    pub guest: GuestRef,
    /// Whose guest.
    pub site: SiteName,
    /// Which.
    pub instance: InstanceName,
    /// What it says; none if it is older than floors are.
    pub numbers: Option<Numbers>,
}

/// Reads the ledger and what the agents said.
pub fn ledger(store: &Store, window: i64) -> Result<View, StoreError> {
    let mut view = View::default();
    // Instances first: an enrolment in between then shows as enrolled, never as a closed window without agent.
    let instances = store.instances()?;
    let mut agents = store.agents()?;
    for (name, record) in instances {
        let agent = agents.remove(&name);
        let open = record.window_is_open(now(), window);
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
                wiring: record.assignment.map(|content| WiringDigest { content, secrets: record.secrets }),
                guest: if record.made_at.is_some() { Made::ByUs } else { Made::NotYet },
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
/// tags that it is ours. One guest or storage that cannot be read is noted and does not stop the others.
pub async fn hypervisor(client: &Client, range: VmidRange, mut view: View) -> Result<View, ProxmoxError> {
    view.observed.version = Some(client.version().await?.release);
    let mut online = BTreeSet::new();
    let mut offline = BTreeSet::new();
    for node in client.nodes().await? {
        if node.state == NodeState::Online {
            online.insert(node.node)
        } else {
            offline.insert(node.node)
        };
    }
    let mut interesting = Vec::new();
    for row in client.guests().await? {
        let ours_by_tag = row.tags.has("ctrlable") || row.tags.has("ctrlable-template");
        let known = view.ledger.reservations.values().any(|reservation| reservation.vmid == row.guest.vmid);
        if !(ours_by_tag || known || range.contains(row.guest.vmid)) {
            view.observed.guests.insert(row.guest.vmid, unread(&row, Owner::Foreign));
        } else if offline.contains(&row.guest.node) {
            view.observed.guests.insert(row.guest.vmid, unread(&row, Owner::Unknown));
        } else {
            interesting.push(row);
        }
    }
    let looks = futures_util::stream::iter(interesting.iter().map(|row| look(client, row))).buffered(AT_ONCE);
    for (row, seen) in interesting.iter().zip(looks.collect::<Vec<_>>().await) {
        match seen {
            Ok(Seen { guest, template, floor }) => {
                view.floors.extend(floor);
                view.observed.guests.insert(row.guest.vmid, guest);
                view.observed.templates.extend(template);
            }
            Err(error) => {
                // Gone since the list was read, without its pool, or on a node in trouble: the next look will tell.
                tracing::info!(vmid = row.guest.vmid.get(), reason = error.reason(), "a guest cannot be read now");
                view.observed.guests.insert(row.guest.vmid, unread(row, Owner::Unknown));
            }
        }
    }
    for node in online {
        match client.storages(&node).await {
            Ok(storages) => view.observed.storages.extend(storages.into_iter().filter_map(|storage| {
                Some(ObservedStorage {
                    node: node.clone(),
                    // A name that could never be written into a site is none that we could use.
                    storage: storage.id.parse().ok()?,
                    active: storage.active && storage.enabled,
                    content: storage.content,
                    available: storage.available,
                })
            })),
            Err(error) => {
                tracing::warn!(%node, reason = error.reason(), %error, "the storages of a node cannot be listed");
                view.observed.unreadable_nodes.insert(node);
            }
        }
    }
    Ok(view)
}

/// Guests that are read at once: as many as a node has workers for (pve-api 1).
const AT_ONCE: usize = 3;

/// A guest of which only the list's row is known.
fn unread(row: &GuestRow, owner: Owner) -> ObservedGuest {
    ObservedGuest {
        kind: row.guest.kind,
        node: row.guest.node.clone(),
        power: Power::Stopped,
        lock: row.lock.clone(),
        owner,
        settings: None,
    }
}

/// What one guest turned out to be.
struct Seen {
    guest: ObservedGuest,
    template: Option<ObservedTemplate>,
    floor: Option<ToldFloor>,
}

/// The highest floor that the markers of a site's guests say, wherever those are. All of them have to be read: the one
/// that cannot be is perhaps the one that knows.
pub async fn floor(client: &Client, of: &SiteName) -> Result<Numbers, ProxmoxError> {
    let rows = client.guests().await?;
    let ours = rows.iter().filter(|row| row.tags.has("ctrlable"));
    let looks = futures_util::stream::iter(ours.map(|row| client.guest_config(&row.guest))).buffered(AT_ONCE);
    let mut numbers = Numbers::default();
    for config in looks.collect::<Vec<_>>().await {
        if let Ok(Some(Marker::Guest { site, floor: Some(told), .. })) = config?.marker()
            && site == *of
        {
            numbers = numbers.max(told);
        }
    }
    Ok(numbers)
}

/// One guest: its settings, its marker, whether it runs. The list lags by some ten seconds (pve-api 16), so power comes
/// from the guest itself.
async fn look(client: &Client, row: &GuestRow) -> Result<Seen, ProxmoxError> {
    let guest = &row.guest;
    let config = client.guest_config(guest).await?;
    let marker = config.marker().unwrap_or_else(|error| {
        tracing::warn!(vmid = guest.vmid.get(), reason = error.reason(), %error, "a marker cannot be read");
        None
    });
    let (mut template, mut floor) = (None, None);
    let owner = match marker {
        Some(Marker::Template { release, template: name, .. }) if config.template => {
            template = Some(ObservedTemplate {
                vmid: guest.vmid,
                node: guest.node.clone(),
                kind: guest.kind,
                release,
                template: name,
                disk: gib(&config),
            });
            Owner::Foreign
        }
        Some(Marker::Guest { site, instance, release, template, floor: numbers }) if !config.template => {
            let (guest, site_of, whose) = (guest.clone(), site.clone(), instance.clone());
            floor = Some(ToldFloor { guest, site: site_of, instance: whose, numbers });
            Owner::Ours { site, instance, release, template }
        }
        _ => Owner::Foreign,
    };
    let power = match owner {
        Owner::Ours { .. } if client.guest_status(guest).await?.state == RunState::Running => Power::Running,
        _ => Power::Stopped,
    };
    let lock = config.lock.clone();
    let mut settings = settings(&config);
    if settings.claim {
        // Of a running guest it goes with the next start; then there is nothing left to do.
        settings.claim = claim::is_in(&client.next_config(guest).await?);
    }
    let settings = Some(settings);
    Ok(Seen {
        guest: ObservedGuest { kind: guest.kind, node: guest.node.clone(), power, lock, owner, settings },
        template,
        floor,
    })
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
        claim: claim::is_in(config),
    }
}

/// The root disk in whole GiB.
fn gib(config: &GuestConfig) -> Option<u32> {
    u32::try_from(config.root_size? >> 30).ok()
}
