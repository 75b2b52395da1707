//! Rotation of the site's CA. A command writes into the ledger what it wants; the running orchestrator does it, one
//! step after the other, each of which may be the last before a crash and is found again from files and ledger.
//!
//! 1. The new CA is made and signs everything from then on, the listener's certificate included. The old one vouches
//!    for it, so guests that know only the old one go on; certificates of both are accepted.
//! 2. Each agent is given both CAs, and told to renew its certificate.
//! 3. When every agent shows a certificate of the new CA and has confirmed that it believes it, or when an operator
//!    leaves the others behind, the old CA's certificates are no longer accepted, and its key is removed.

use std::collections::BTreeMap;

use contract::ids::InstanceName;

use super::ca::digest;
use super::{Agents, CaError, InForce, SiteCa, Stage};
use crate::store::{Event, EventKind, Store, StoreError};

/// Where the ledger keeps what a command wants.
pub const WANTED: &str = "ca-rotation";
/// A new CA.
pub const ROTATE: &str = "rotate";
/// The end of the rotation, without the agents that are still awaited.
pub const LEAVE_BEHIND: &str = "leave-behind";

/// What keeps a step of a rotation from being done.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// The CA's files.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The ledger.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Who still keeps a rotation from its end, and why.
pub fn awaited(store: &Store, ca: &SiteCa) -> Result<BTreeMap<InstanceName, &'static str>, StoreError> {
    let InForce { number, stage } = ca.in_force();
    if stage == Stage::Settled {
        return Ok(BTreeMap::new());
    }
    let bundle = digest(ca.bundle().as_bytes());
    let switched: Vec<InstanceName> = store
        .certificates()?
        .into_iter()
        .filter(|certificate| certificate.ca == number && certificate.used_at.is_some())
        .map(|certificate| certificate.instance)
        .collect();
    let reason = |name: &InstanceName, confirmed: bool| {
        if !switched.contains(name) {
            Some("has not used a certificate of the new CA yet")
        } else if !confirmed {
            Some("has not confirmed the new CA yet")
        } else {
            None
        }
    };
    Ok(store
        .agents()?
        .into_iter()
        .filter(|(_, agent)| agent.revoked_at.is_none())
        .filter_map(|(name, agent)| {
            let confirmed = agent.report.is_some_and(|report| report.ca.as_ref() == Some(&bundle));
            reason(&name, confirmed).map(|why| (name, why))
        })
        .collect())
}

/// Takes the step that is due, if one is.
pub fn turn(agents: &Agents) -> Result<(), RotationError> {
    let Agents { store, ca, .. } = agents;
    // Two requests at once must not both take it.
    let _turn = agents.turning.lock().unwrap_or_else(|held| held.into_inner());
    let wanted = store.meta(WANTED)?;
    match (ca.in_force(), wanted.as_deref()) {
        (InForce { stage: Stage::Settled, number }, Some(ROTATE)) => {
            ca.rotate()?;
            store.forget_meta(WANTED)?;
            let text =
                format!("CA {} signs from now on; CA {number} is accepted until every agent has changed", number + 1);
            store.record(Event::new(EventKind::CaRotation, text))?;
        }
        (InForce { stage: Stage::Switching, number }, wanted) => {
            // A crash may have come between the new CA and the end of the wish for it.
            if wanted == Some(ROTATE) {
                store.forget_meta(WANTED)?;
            }
            if wanted == Some(LEAVE_BEHIND) || awaited(store, ca)?.is_empty() {
                ca.settle()?;
                let text = format!("CA {} is no longer accepted; CA {number} alone is in force", number - 1);
                store.record(Event::new(EventKind::CaRotation, text))?;
            }
        }
        _ => {}
    }
    if let InForce { stage: Stage::Settled, number } = ca.in_force() {
        for name in store.forget_certificates_before(number)? {
            let text = format!("{name} was left behind: its certificate is of an older CA than {number}");
            store.record(Event::new(EventKind::CaRotation, text).instance(&name).reason("ca-left-behind"))?;
        }
        if wanted.as_deref() == Some(LEAVE_BEHIND) {
            store.forget_meta(WANTED)?;
        }
    }
    Ok(())
}
