//! What the binary `ctrlable` is made of. The way of the data is the layout.

/// Pulls the fleet repository.
pub mod source;
