//! `ctrlable`: pulls a signed fleet repository and makes one Proxmox site what it says.
//!
//! The modules are the way of the data:
//!
//! ```text
//! source → trust → plan → apply → proxmox
//!                   ↑       ↓
//!                observe ← store ← agents         web · cli read the store
//! ```

/// The TLS listener for guests: CA, enrolment, assignments, health.
pub mod agents;
/// Executes plans, journalled, one lane per instance.
pub mod apply;
/// The newest of HQ's documents, kept where it cannot get lost.
pub mod floor;
/// One look at the hypervisor and the ledger.
pub mod observe;
/// From wishes and observations to steps: pure.
pub mod plan;
/// The only code that knows the Proxmox API.
pub mod proxmox;
/// The site in force, and what it wishes.
pub mod site;
/// Git: a bare copy of one branch, read at a revision; or a checkout on a laptop.
pub mod source;
/// One site's ledger in SQLite.
pub mod store;
/// From bytes to verified types: signatures, history, documents.
pub mod trust;
/// From a template's wiring and a site's values to an assignment.
pub mod wiring;

/// The command line.
pub mod cli;
/// What listeners grant: places, time, bytes, requests.
pub mod limits;
/// `ctrlable serve`: the loop.
pub mod serve;
/// What an instance is in one word, and why.
pub mod status;
/// Health, metrics and the git hook, on loopback.
pub mod web;

/// Whether a site can work: connection, version, storage, bridge, pool, privileges.
pub mod doctor;
/// HQ's tools for releases.
pub mod release;
/// Marks guests as templates of a release.
pub mod template;

/// `orchestrator.toml`.
pub mod config;
/// Durable, private files.
mod files;
/// The site's secrets by name.
pub mod secrets;
/// One TLS stack for everything.
mod tls;
