//! A guest's first words, and the certificate that answers them.
//!
//! `POST /v1/enrol` over TLS without a client certificate. Everything after it is mutual TLS.

use serde::{Deserialize, Serialize};

use crate::host_keys::HostKeys;
use crate::ids::{Generation, Hostname, InstanceName, Mac, ReleaseId, Sha256Digest, SiteName, TemplateName};
use crate::secret::Secret;

/// Path of the request.
pub const PATH: &str = "/v1/enrol";

/// How the claim begins that is made for one start of one guest. It stands in [`CLAIM_VARIABLE`] of a container's first
/// process, or in a virtual machine's SMBIOS serial number, where other texts may stand too.
pub const CLAIM_PREFIX: &str = "ctrlable-claim-";

/// The environment variable of a container that may hold such a claim.
pub const CLAIM_VARIABLE: &str = "CTRLABLE_CLAIM";

/// What makes a guest unlike every other. Reported at enrolment and with each health report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// SHA-256 of `/etc/machine-id` without its newline: the id itself is confidential (machine-id(5)).
    pub machine_id: Sha256Digest,
    /// SHA-256 of the machine-id that the template had before it was sealed, if the seal recorded one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_machine_id: Option<Sha256Digest>,
    /// The public SSH host keys.
    pub ssh_host_keys: HostKeys,
}

/// Asks for a client certificate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolRequest {
    /// [`crate::PROTOCOL`] of the agent.
    pub protocol: u32,
    /// What the hypervisor carries for this guest alone ([`CLAIM_PREFIX`]), else what stands in the bootstrap file.
    pub claim: Secret,
    /// From the bootstrap file.
    pub release: ReleaseId,
    /// From the bootstrap file.
    pub template: TemplateName,
    /// The host name that Proxmox gave the guest.
    pub hostname: Hostname,
    /// The MAC address of the guest's first interface.
    pub mac: Mac,
    /// PKCS#10 request, PEM, for a key made in the guest (ECDSA P-256). Its subject is ignored.
    pub csr: String,
    /// After the reset.
    pub identity: Identity,
    /// Version of the agent.
    pub agent: String,
}

/// The answer to an accepted [`EnrolRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolResponse {
    /// Client certificate, PEM.
    pub certificate: String,
    /// The site's CA at this time, PEM; it may hold more than one certificate.
    pub ca: String,
    /// The site.
    pub site: SiteName,
    /// Which instance the guest is.
    pub instance: InstanceName,
    /// Generation of the assignment that waits for it.
    pub generation: Generation,
}

/// The body of every answer that is not a success, on every path of the agents' listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Stable label, such as `enrol-claim-wrong`.
    pub reason: String,
    /// For a person: what, why, what to do.
    pub message: String,
    /// Seconds after which trying again makes sense; absent when it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u32>,
}
