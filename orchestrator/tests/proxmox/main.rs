//! The Proxmox client against recorded answers of real nodes, and against a server that misbehaves on purpose.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod captures;
mod faults;
mod lab;
mod roles;
mod server;
