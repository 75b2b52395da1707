//! The way to the orchestrator: a key made in the guest, a certificate for it, and every request after that.

/// Waiting between attempts.
pub(crate) mod backoff;
/// The claim that the hypervisor carries for this guest alone.
pub(crate) mod claim;
/// Requests to the orchestrator.
pub(crate) mod client;
/// Key, certificate and CA on disk.
pub(crate) mod credentials;
/// What the guest says about itself.
pub(crate) mod identity;
