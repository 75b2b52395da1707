//! `ctrlable`: pulls a signed fleet repository and makes one Proxmox site what it says.

/// The command line.
pub mod cli;
/// HQ's tools for releases.
pub mod release;
/// Git: a bare copy of one branch, read at a revision; or a checkout on a laptop.
pub mod source;
/// From bytes to verified types: signatures, history, documents.
pub mod trust;
/// From wishes and observations to steps: pure.
pub mod plan;
/// One site's ledger in SQLite.
pub mod store;
/// The TLS listener for guests: CA, enrolment, assignments, health.
pub mod agents;
/// Durable, private files.
mod files;
