//! Who may have a certificate: a guest that we have just started, that was cloned from the right template, once.

use contract::PROTOCOL;
use contract::enrolment::{EnrolRequest, EnrolResponse, Problem};
use contract::ids::{InstanceName, Vmid};
use subtle::ConstantTimeEq;

use super::witness::{Question, Testimony};
use super::{Agents, CaError, Peer};
use crate::store::{Conflict, Enrolment, Event, EventKind, InstanceRecord, StoreError};

/// Why a guest does not get a certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("this orchestrator speaks protocol {PROTOCOL}, the agent {0}: install the agent of this release")]
    Protocol(u32),
    #[error("the claim is not the one of release {0} at this site: the template was built for another, or is old")]
    Claim(contract::ids::ReleaseId),
    #[error("no instance of this site has the host name {0}")]
    Unknown(contract::ids::Hostname),
    #[error("the guest was cloned from {got}, the instance is to be cloned from {wanted}")]
    Template { got: String, wanted: String },
    #[error("the MAC address {got} is not the one that {instance} was given")]
    Mac { got: contract::ids::Mac, instance: contract::ids::InstanceName },
    #[error("by Proxmox's word, guest {vmid} runs without the MAC address of {instance} on its first interface")]
    MacOfGuest { vmid: Vmid, instance: InstanceName },
    #[error("guest {vmid} does not carry the marker of {instance}: it is not ours to let in")]
    NotOurs { vmid: Vmid, instance: InstanceName },
    #[error(
        "the request came from {from}, and by Proxmox's word guest {vmid} of {instance} is at {}{}; an address that is \
         translated on the way (NAT) cannot be vouched for",
        list(.at), .whose.as_ref().map_or(String::new(), |other| format!(": that address is {other}'s"))
    )]
    Address {
        from: std::net::IpAddr,
        at: Vec<std::net::IpAddr>,
        vmid: Vmid,
        instance: InstanceName,
        whose: Option<InstanceName>,
    },
    #[error("by Proxmox's word, guest {vmid} of {instance} does not run")]
    NotRunning { vmid: Vmid, instance: InstanceName },
    #[error("Proxmox cannot vouch for guest {vmid} of {instance} now: {why}")]
    Unvouched { vmid: Vmid, instance: InstanceName, why: String },
    #[error("the claim that was made for this start of {0} has been used")]
    ClaimUsed(InstanceName),
    #[error("its machine-id is still the template's: the reset of its identity did not happen")]
    NotReset,
    #[error("{0} has enrolled before; a second guest under its name is refused")]
    Already(contract::ids::InstanceName),
    #[error("the orchestrator has not just started a guest for {0}")]
    Window(contract::ids::InstanceName),
    #[error("its machine-id is also that of {0}")]
    SameMachineId(contract::ids::InstanceName),
    #[error("one of its SSH host keys is also that of {0}")]
    SameHostKey(contract::ids::InstanceName),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Refused {
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Protocol(_) => "enrol-protocol",
            Self::Claim(_) => "enrol-claim-wrong",
            Self::Unknown(_) => "enrol-unknown-host",
            Self::Template { .. } => "enrol-template-mismatch",
            Self::Mac { .. } | Self::MacOfGuest { .. } => "enrol-mac-mismatch",
            Self::NotOurs { .. } => "enrol-not-ours",
            Self::Address { .. } => "enrol-address-mismatch",
            Self::NotRunning { .. } => "enrol-not-running",
            Self::Unvouched { .. } => "enrol-vouch-unavailable",
            Self::ClaimUsed(_) => "enrol-claim-used",
            Self::NotReset => "enrol-not-reset",
            Self::Already(_) => "enrol-already",
            Self::Window(_) => "enrol-window-closed",
            Self::SameMachineId(_) => "enrol-duplicate-machine-id",
            Self::SameHostKey(_) => "enrol-duplicate-host-key",
            Self::Ca(error) => error.reason(),
            Self::Store(error) => error.reason(),
        }
    }

    /// Seconds after which trying again makes sense.
    fn retry_after(&self) -> Option<u32> {
        match self {
            // The window opens when the guest is started by us; a ledger that is busy is free again soon.
            Self::Window(_) | Self::Unknown(_) => Some(10),
            Self::Store(_) | Self::Unvouched { .. } => Some(2),
            // The lease may have changed, or the node be behind.
            Self::Address { .. } | Self::NotRunning { .. } => Some(10),
            _ => None,
        }
    }

    /// Whether somebody who has the claim asked in the name of a guest that he is not.
    fn is_conflict(&self) -> bool {
        matches!(self, Self::Already(_) | Self::ClaimUsed(_) | Self::Address { .. })
    }

    pub(super) fn problem(&self) -> Problem {
        Problem { reason: self.reason().into(), message: self.to_string(), retry_after: self.retry_after() }
    }
}

fn list(addresses: &[std::net::IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Decides one request. Both ends are recorded.
pub(super) async fn enrol(agents: &Agents, request: &EnrolRequest, peer: &Peer) -> Result<EnrolResponse, Refused> {
    let outcome = decide(agents, request, peer).await;
    let address = peer.address.ip();
    match &outcome {
        Ok(response) => agents.store.record(
            Event::new(
                EventKind::Enrolled,
                format!("{} enrolled from {address} with {}", response.instance, request.mac),
            )
            .instance(&response.instance),
        )?,
        Err(refused) => {
            let named = instance_of(agents, request).ok().flatten().map(|(name, _)| name);
            // Who is refused again and again must not push everything else out of the event log.
            if agents.is_news((address, refused.reason(), named.clone())) {
                let message = format!("{} from {address} was refused: {refused}", request.hostname);
                let event = Event::new(EventKind::EnrolmentRefused, message).reason(refused.reason());
                agents.store.record(match &named {
                    Some(name) => event.instance(name),
                    None => event,
                })?;
                if let Some(name) = named.filter(|_| refused.is_conflict()) {
                    agents.store.note_conflict(&name, &address.to_string(), refused.reason(), request.mac)?;
                }
            }
        }
    }
    outcome
}

type Found = (InstanceName, InstanceRecord);

fn instance_of(agents: &Agents, request: &EnrolRequest) -> Result<Option<Found>, StoreError> {
    Ok(agents.store.instances()?.into_iter().find(|(_, record)| record.hostname == request.hostname))
}

/// Cheap things first, and of those the claim: whoever has none learns nothing about the site and moves nobody. Proxmox
/// is asked last, about guests that are expected only.
async fn decide(agents: &Agents, request: &EnrolRequest, peer: &Peer) -> Result<EnrolResponse, Refused> {
    if request.protocol != PROTOCOL {
        return Err(Refused::Protocol(request.protocol));
    }
    let found = instance_of(agents, request)?;
    let (wanted, shown) = match found.as_ref().and_then(|(_, record)| record.claim.clone()) {
        // Made for this start alone; only its digest is kept.
        Some(digest) => (digest, super::sha256(request.claim.expose().as_bytes()).to_string()),
        None => {
            (agents.ca.claim(&agents.site, &request.release).expose().to_owned(), request.claim.expose().to_owned())
        }
    };
    if !bool::from(wanted.as_bytes().ct_eq(shown.as_bytes())) {
        return Err(Refused::Claim(request.release.clone()));
    }
    let Some((instance, record)) = found else {
        return Err(Refused::Unknown(request.hostname.clone()));
    };
    if (&request.release, &request.template) != (&record.release, &record.template) {
        return Err(Refused::Template {
            got: format!("{} of {}", request.template, request.release),
            wanted: format!("{} of {}", record.template, record.release),
        });
    }
    if request.mac != record.mac {
        return Err(Refused::Mac { got: request.mac, instance });
    }
    if request.identity.sealed_machine_id.as_ref() == Some(&request.identity.machine_id) {
        return Err(Refused::NotReset);
    }
    let signed = agents.ca.sign(&request.csr, &agents.site, &instance, agents.certificate_life)?;
    let enrolment = Enrolment {
        instance: &instance,
        certificate: &signed.fingerprint,
        public_key: &signed.public_key,
        identity: &request.identity,
        address: peer.address.ip(),
        expires_at: signed.expires_at,
        ca: signed.ca,
    };
    let window = i64::try_from(agents.window.as_secs()).unwrap_or(i64::MAX);
    agents.store.may_enrol(&enrolment, window)?.map_err(|conflict| against(conflict, &instance))?;
    vouched(agents, &instance, &record, peer).await?;
    // While Proxmox was asked, another request may have been faster.
    agents.store.enrol(&enrolment, window)?.map_err(|conflict| against(conflict, &instance))?;
    agents.store.clear_trouble(&instance)?;
    agents.wake.notify_one();
    Ok(EnrolResponse {
        certificate: signed.pem,
        ca: agents.ca.bundle(),
        site: agents.site.clone(),
        generation: record.generation,
        instance,
    })
}

fn against(conflict: Conflict, instance: &InstanceName) -> Refused {
    match conflict {
        Conflict::WindowClosed => Refused::Window(instance.clone()),
        Conflict::ClaimUsed => Refused::ClaimUsed(instance.clone()),
        Conflict::AlreadyEnrolled => Refused::Already(instance.clone()),
        Conflict::SameMachineId(other) => Refused::SameMachineId(other),
        Conflict::SameHostKey(other) => Refused::SameHostKey(other),
    }
}

/// Whether Proxmox says that the instance's guest is the one that is connected.
async fn vouched(
    agents: &Agents,
    instance: &InstanceName,
    record: &InstanceRecord,
    peer: &Peer,
) -> Result<(), Refused> {
    let (vmid, from) = (record.vmid, peer.address.ip());
    let question = Question { site: &agents.site, instance, vmid, mac: record.mac, address: from };
    let instance = instance.clone();
    Err(match agents.witness.ask(&question).await {
        Testimony::Yes => return Ok(()),
        Testimony::NotOurs => Refused::NotOurs { vmid, instance },
        Testimony::OtherMac => Refused::MacOfGuest { vmid, instance },
        Testimony::NotRunning => Refused::NotRunning { vmid, instance },
        Testimony::Silent(why) => Refused::Unvouched { vmid, instance, why },
        Testimony::ElsewhereAt(at) => {
            let others = agents.store.agents()?;
            let other = others.into_iter().find(|(_, agent)| agent.address == from.to_string());
            Refused::Address { from, at, vmid, instance, whose: other.map(|(name, _)| name) }
        }
    })
}
