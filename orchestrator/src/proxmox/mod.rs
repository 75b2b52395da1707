//! The only code that knows the Proxmox API: a typed client for the part of it that we use, on Proxmox VE 8 and 9.
//!
//! The way of a call: [`client`] (reads), [`change`] (writes) and [`task`] build a request of typed values, [`transport`]
//! sends it through [`tls`] and [`form`], [`classify`] turns the answer into data or a [`ProxmoxError`], [`decode`] and
//! the types below turn data into something that cannot be misread.
//!
//! Nothing here repeats a call that changes something. Whoever gets [`Disposition::Uncertain`] reads the state again.

/// What a configuration call changes, and the calls that change something.
pub mod change;
/// The claim that a guest's configuration can carry.
pub mod claim;
/// Answers to data or errors, by the texts that Proxmox uses.
pub mod classify;
/// The client and its reading calls.
pub mod client;
/// Decoders that take numbers as strings and flags in every form that Proxmox has for them.
pub mod decode;
/// Why a call failed, and what to do next.
pub mod error;
/// Query strings and form bodies.
pub mod form;
/// Guests as Proxmox shows them.
pub mod guest;
/// The machine-readable block in a guest's description.
pub mod marker;
/// `netN` property strings.
pub mod net;
/// Nodes, storages, bridges, pools, permissions.
pub mod node;
/// Tag lists.
pub mod tags;
/// Tasks: state, log, waiting.
pub mod task;
/// Our templates among the guests.
pub mod templates;
/// Which server is believed to be Proxmox.
pub mod tls;
/// HTTP, with Proxmox's habits.
pub mod transport;
/// Task ids.
pub mod upid;

pub use change::{AfterTimeout, Backup, BackupMode, CloneMode, CloneRequest, ConfigChange, Leftovers};
pub use client::{Client, Settings};
pub use error::{Disposition, Problem, ProxmoxError};
pub use guest::{Address, Digest, GuestConfig, GuestRef, GuestRow, GuestStatus, Interface, RunState};
pub use marker::Marker;
pub use net::{Addressing, Net};
pub use node::{Bridge, NodeRow, NodeState, NodeStatus, Permissions, Pool, Storage, Version};
pub use tags::Tags;
pub use task::{ActiveTask, TaskEnd, TaskState};
pub use templates::{SuspectTemplate, TemplateGuest, Templates};
pub use tls::{Fingerprint, ServerTrust};
pub use transport::BaseUrl;
pub use upid::Upid;
