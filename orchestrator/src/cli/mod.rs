//! The commands of `ctrlable`.

/// `ctrlable doctor`.
pub mod doctor;
/// `ctrlable template`.
pub mod template;
