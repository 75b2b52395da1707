//! A new client certificate for an agent that has one: `POST /v1/renew` over mutual TLS.
//!
//! An agent never judges dates: its clock may be wrong. The orchestrator says when, with the answer to a health report
//! ([`Renew::Now`]), or by refusing a request as [`EXPIRED`]. An expired certificate is good for this request only.

use serde::{Deserialize, Serialize};

/// Path of the request.
pub const PATH: &str = "/v1/renew";

/// The reason by which every other path refuses a certificate that has expired.
pub const EXPIRED: &str = "certificate-expired";

/// Asks for a certificate in place of the one that the connection shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// [`crate::PROTOCOL`] of the agent.
    pub protocol: u32,
    /// PKCS#10 request, PEM, for a key newly made in the guest (ECDSA P-256). Its subject is ignored.
    pub csr: String,
}

/// The answer. The old certificate stays good until the new one is first used: the answer may be lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewResponse {
    /// Client certificate, PEM.
    pub certificate: String,
    /// What to believe from now on, PEM; it may hold more than one certificate.
    pub ca: String,
}

/// Whether an agent is to renew its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Renew {
    /// It is good for a while.
    #[default]
    NotYet,
    /// At once.
    Now,
}

impl Renew {
    /// For messages, which leave it out then.
    pub fn is_not_yet(&self) -> bool {
        *self == Self::NotYet
    }
}
