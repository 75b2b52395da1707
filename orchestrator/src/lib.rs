//! `ctrlable`: pulls a signed fleet repository and makes one Proxmox site what it says.
//!
//! The modules are the way of the data:
//!
//! ```text
//! source → trust → plan → apply → proxmox
//!                   ↑       ↓
//!                observe ← store ← agents         web · cli read the store
//! ```

/// One site's ledger in SQLite.
pub mod store;

/// From wishes and observations to steps: pure.
pub mod plan;

/// The TLS listener for guests: CA, enrolment, assignments, health.
pub mod agents;

/// Durable, private files.
mod files;

/// `orchestrator.toml`.
pub mod config;

/// The site's secrets by name.
pub mod secrets;

/// From a template's wiring and a site's values to an assignment.
//pub mod wiring;

/// What an instance is in one word, and why.
pub mod status;
