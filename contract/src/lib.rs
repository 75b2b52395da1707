//! What crosses a boundary between HQ, dealer, orchestrator and guest, and nothing else: data and its validation.
//!
//! Nothing in here does I/O, knows a clock or is asynchronous. The orchestrator reads [`manifest`] and [`site`] from
//! git; it and the guest agent exchange [`bootstrap`], [`enrolment`], [`assignment`] and [`health`].

/// Names, numbers and addresses as types that cannot hold anything else.
pub mod ids;
/// Strings that are never printed and are wiped after use.
pub mod secret;

/// What an agent must make true inside its guest.
pub mod assignment;
/// What is baked into a template so that its clones find their orchestrator.
pub mod bootstrap;
/// A guest's first words, and the certificate that answers them.
pub mod enrolment;
/// What an agent keeps for its orchestrator.
pub mod floor;
/// What an agent reports about its guest.
pub mod health;
/// A new client certificate for an agent that has one.
pub mod renewal;

/// Which dealer may change which sites, and how much any site may ask for.
#[cfg(feature = "documents")]
pub mod dealers;
/// From YAML text to [`manifest`], [`site`] and [`dealers`], with the line of every mistake.
#[cfg(feature = "documents")]
pub mod document;
/// SSH host keys as a guest shows them.
pub mod host_keys;
/// What HQ says beside releases: key lists and channels.
#[cfg(feature = "documents")]
pub mod hq;
/// What a release says: templates, their pins and wiring.
pub mod manifest;
/// The `${…}` references of a template's wiring.
pub mod reference;
/// Why a document or a part of it is not accepted: label, place, reason, remedy.
pub mod refusal;
/// What a dealer says about one customer location.
pub mod site;

/// Version of the messages between agent and orchestrator. A peer with another major version is refused by name.
pub const PROTOCOL: u32 = 1;
