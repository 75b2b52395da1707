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
