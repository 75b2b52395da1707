//! The orchestrator of one site: pulls a signed fleet repository and makes a Proxmox site what it says.

/// The only code that knows the Proxmox API.
pub mod proxmox;
