//! `ctrlable-agent`: runs in every guest. It makes a clone a guest of its own, enrols it, wires it, reports its health.

/// The command line.
mod cli;

/// What can go wrong, with labels and remedies.
mod error;
/// Files, read without following links and written durably.
mod files;
/// Where things lie in a guest.
mod layout;
/// Lines for systemd's journal.
mod log;
/// What systemd is told.
mod notify;

/// What the template knows about its orchestrator.
mod bootstrap;
/// The system bus.
mod dbus;
/// Requests to the orchestrator.
mod enrol;
/// An identity for a clone.
mod first_boot;
/// What is kept for the orchestrator.
mod floor;
/// What is reported.
mod health;
/// What must hold besides units.
mod probes;
/// The service.
mod run;
/// The last step of a template build.
mod seal;
/// What the agent remembers.
mod state;
/// What is shown.
mod status;
/// Values of an assignment, put into files.
mod wiring;

use contract::assignment::FileFormat;
use serde_json::{Map, Value};

pub use cli::main;

/// What wiring makes of a file: its content with the values of an assignment in it, or why there is none. For tests
/// outside of this crate; nothing in here touches a disk.
pub fn merge(format: FileFormat, current: &[u8], merge: &Map<String, Value>) -> Result<Vec<u8>, String> {
    wiring::merge(format, current, merge).map_err(|error| error.to_string())
}
