//! The orchestrator of one site: pulls a signed fleet repository and makes a Proxmox site what it says.

/// The commands of `ctrlable`.
pub mod cli;
/// Whether this site can work: connection, rights, storage, network.
pub mod doctor;
/// The only code that knows the Proxmox API.
pub mod proxmox;
/// Guests that become templates of a release.
pub mod template;
