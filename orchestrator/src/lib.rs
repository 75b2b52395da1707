//! What the binary `ctrlable` is made of. The way of the data is the layout.

/// The commands.
pub mod cli;
/// HQ's tooling for releases.
pub mod release;
/// Pulls the fleet repository.
pub mod source;
/// Decides what of it is believed.
pub mod trust;
