//! `ctrlable-lab`: a Proxmox VE node in a box. It has Proxmox's semantics and is never kinder than Proxmox.

/// What a client may ask, by area of the API.
mod api;
/// Tokens, roles and the ACL walk.
mod auth;
/// The cluster's CA and the node's certificate.
mod certificates;
/// The command line.
mod cli;
/// Time as records, UPIDs and headers have it.
mod clock;
/// The lab's own endpoint, for administrators and tests.
mod control;
/// What goes wrong on request.
mod faults;
/// HTTP/1.1 the way pveproxy speaks it.
mod http;
/// Root file systems for guests.
mod image;
/// Guests, locks, tasks, storages.
mod node;
/// What guests are made of.
mod runtime;
/// What parameters may be.
mod schema;
/// Bringing the node up and down.
mod serve;
/// Into a guest, into the node's network, everything down.
mod shell;
/// What is known, and its home on disk.
mod state;

use std::io::IsTerminal as _;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;

fn main() -> anyhow::Result<std::process::ExitCode> {
    let filter = EnvFilter::try_from_env("LAB_LOG").unwrap_or_else(|_| EnvFilter::new("warn,ctrlable_lab=info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    // Fails only when a provider is already there, and then there is one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    cli::Cli::parse().run()
}
