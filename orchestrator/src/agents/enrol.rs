//! Who may have a certificate: a guest that we have just started, that was cloned from the right template, once.

use contract::PROTOCOL;
use contract::enrolment::{EnrolRequest, EnrolResponse, Problem};
use subtle::ConstantTimeEq;

use super::{Agents, CaError, Peer};
use crate::store::{Conflict, Enrolment, Event, EventKind, StoreError};

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
            Self::Mac { .. } => "enrol-mac-mismatch",
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
            Self::Store(_) => Some(2),
            _ => None,
        }
    }

    pub(super) fn problem(&self) -> Problem {
        Problem { reason: self.reason().into(), message: self.to_string(), retry_after: self.retry_after() }
    }
}

/// Decides one request. Both ends are recorded.
pub(super) fn enrol(agents: &Agents, request: &EnrolRequest, peer: &Peer) -> Result<EnrolResponse, Refused> {
    let outcome = decide(agents, request, peer);
    let event = match &outcome {
        Ok(response) => Event::new(
            EventKind::Enrolled,
            format!("{} enrolled from {} with {}", response.instance, peer.address.ip(), request.mac),
        )
        .instance(&response.instance),
        Err(refused) => {
            let event = Event::new(
                EventKind::EnrolmentRefused,
                format!("{} from {} was refused: {refused}", request.hostname, peer.address.ip()),
            )
            .reason(refused.reason());
            match instance_of(agents, request) {
                Ok(Some((name, _))) => event.instance(&name),
                _ => event,
            }
        }
    };
    // Who is refused again and again must not push everything else out of the event log.
    if outcome.is_ok() || agents.is_news(peer.address.ip(), outcome.as_ref().err().map_or("", Refused::reason)) {
        agents.store.record(event)?;
    }
    outcome
}

type Found = (contract::ids::InstanceName, crate::store::InstanceRecord);

fn instance_of(agents: &Agents, request: &EnrolRequest) -> Result<Option<Found>, StoreError> {
    Ok(agents.store.instances()?.into_iter().find(|(_, record)| record.hostname == request.hostname))
}

fn decide(agents: &Agents, request: &EnrolRequest, peer: &Peer) -> Result<EnrolResponse, Refused> {
    if request.protocol != PROTOCOL {
        return Err(Refused::Protocol(request.protocol));
    }
    // First, so that whoever has no claim learns nothing about the site.
    let claim = agents.ca.claim(&agents.site, &request.release);
    if !bool::from(claim.expose().as_bytes().ct_eq(request.claim.expose().as_bytes())) {
        return Err(Refused::Claim(request.release.clone()));
    }
    let Some((instance, record)) = instance_of(agents, request)? else {
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
    let signed = agents.ca.sign(&request.csr, &agents.site, &instance)?;
    let enrolment = Enrolment {
        instance: &instance,
        certificate: &signed.fingerprint,
        public_key: &signed.public_key,
        identity: &request.identity,
        address: peer.address.ip(),
    };
    let window = i64::try_from(agents.window.as_secs()).unwrap_or(i64::MAX);
    match agents.store.enrol(&enrolment, window)? {
        Ok(()) => {}
        Err(Conflict::WindowClosed) => return Err(Refused::Window(instance)),
        Err(Conflict::AlreadyEnrolled) => return Err(Refused::Already(instance)),
        Err(Conflict::SameMachineId(other)) => return Err(Refused::SameMachineId(other)),
        Err(Conflict::SameHostKey(other)) => return Err(Refused::SameHostKey(other)),
    }
    agents.store.clear_trouble(&instance)?;
    agents.wake.notify_one();
    Ok(EnrolResponse {
        certificate: signed.pem,
        ca: agents.ca.certificate().to_owned(),
        site: agents.site.clone(),
        generation: record.generation,
        instance,
    })
}
