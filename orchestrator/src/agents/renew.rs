//! Whose a request is, by its client certificate, and a new certificate for an agent whose own grows old.
//!
//! TLS proves that one of our CAs signed the certificate and that the guest holds its key. Everything else stands in
//! the ledger and is looked up with each request, so that a revocation holds at once, also on connections that stand.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use contract::PROTOCOL;
use contract::ids::{InstanceName, Sha256Digest};
use contract::renewal::{Renew, RenewRequest, RenewResponse};

use super::serve::{refuse, store_trouble};
use super::{Agents, CaError, Peer, Stage};
use crate::store::{CertificateRecord, Event, EventKind, Issue, StoreError, now};

/// What an expired certificate is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expired {
    /// For a new one.
    Accept,
    /// For nothing.
    Refuse,
}

/// Who asks, with the certificate that proves it.
pub(super) struct Holder<'a> {
    /// The instance.
    pub(super) instance: InstanceName,
    fingerprint: &'a Sha256Digest,
    record: CertificateRecord,
}

/// Why a client certificate opens nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Denied {
    #[error("this path needs the certificate from enrolment")]
    Missing,
    #[error("this certificate is not, or no longer, that of a guest of this site")]
    Unknown,
    #[error("an operator has revoked this certificate")]
    Revoked,
    #[error("this certificate has expired; it is good for its own renewal only")]
    Expired,
    #[error("this orchestrator speaks protocol {PROTOCOL}")]
    Protocol,
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Denied {
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "certificate-missing",
            Self::Unknown => "certificate-unknown",
            Self::Revoked => "certificate-revoked",
            Self::Expired => "certificate-expired",
            Self::Protocol => "protocol",
            Self::Ca(error) => error.reason(),
            Self::Store(error) => error.reason(),
        }
    }
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Missing => StatusCode::UNAUTHORIZED,
            Self::Unknown | Self::Revoked | Self::Expired => StatusCode::FORBIDDEN,
            Self::Protocol | Self::Ca(CaError::Request(_)) => StatusCode::BAD_REQUEST,
            Self::Store(error) => return store_trouble(error),
            Self::Ca(error) => {
                tracing::error!(reason = error.reason(), %error, "a certificate could not be made");
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        refuse(status, self.reason(), self.to_string(), None)
    }
}

/// The instance behind a client certificate, or why there is none.
pub(super) fn holder<'a>(agents: &Agents, peer: &'a Peer, expired: Expired) -> Result<Holder<'a>, Denied> {
    let fingerprint = peer.certificate.as_ref().ok_or(Denied::Missing)?;
    let record = agents.store.certificate(fingerprint)?.ok_or(Denied::Unknown)?;
    if record.revoked_at.is_some() {
        return Err(Denied::Revoked);
    }
    if record.expires_at < now() && expired == Expired::Refuse {
        return Err(Denied::Expired);
    }
    if record.used_at.is_none() {
        agents.store.note_use(fingerprint)?;
    }
    Ok(Holder { instance: record.instance.clone(), fingerprint, record })
}

impl Holder<'_> {
    /// Whether it is time for a new certificate: after two thirds of its life, give or take a fifteenth by chance, so
    /// that guests that were made together do not come together; and when another CA signs now.
    pub(super) fn renewal(&self, agents: &Agents) -> Renew {
        let CertificateRecord { issued_at, expires_at, ca, .. } = self.record;
        // The first byte of a digest is a number by chance that stays the same for this certificate.
        let chance = i64::from(u8::from_str_radix(&self.fingerprint.as_str()[..2], 16).unwrap_or(0));
        let due = issued_at + (expires_at - issued_at) * (600 + chance * 134 / 256) / 1000;
        if now() >= due || ca != agents.ca.in_force().number { Renew::Now } else { Renew::NotYet }
    }

    /// Whether its certificate is of the CA in force.
    pub(super) fn is_switched(&self, agents: &Agents) -> bool {
        let in_force = agents.ca.in_force();
        in_force.stage == Stage::Switching && self.record.ca == in_force.number
    }
}

/// Hands out a new certificate.
pub(super) fn renew(agents: &Agents, peer: &Peer, request: &RenewRequest) -> Result<RenewResponse, Denied> {
    let holder = holder(agents, peer, Expired::Accept)?;
    if request.protocol != PROTOCOL {
        return Err(Denied::Protocol);
    }
    let signed = agents.ca.sign(&request.csr, &agents.site, &holder.instance, agents.certificate_life)?;
    let issue = Issue {
        instance: &holder.instance,
        fingerprint: &signed.fingerprint,
        expires_at: signed.expires_at,
        ca: signed.ca,
    };
    if !agents.store.renew(holder.fingerprint, &issue)? {
        // It was replaced or revoked in this very moment.
        return Err(Denied::Unknown);
    }
    let event = Event::new(EventKind::Renewed, format!("{} got a new certificate", holder.instance));
    agents.store.record(event.instance(&holder.instance))?;
    Ok(RenewResponse { certificate: signed.pem, ca: agents.ca.bundle() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_know_the_label_that_makes_them_renew() {
        assert_eq!(Denied::Expired.reason(), contract::renewal::EXPIRED);
    }
}
