//! The commands of `ctrlable`.

/// `ctrlable release …`.
pub mod release;
