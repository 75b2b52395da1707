//! `ctrlable`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use orchestrator::cli::release::{self, Format, ReleaseArgs};

/// Ctrlable Provisioner.
#[derive(Parser)]
#[command(name = "ctrlable", version)]
struct Arguments {
    /// Print one JSON object instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Release(ReleaseArgs),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let format = if arguments.json { Format::Json } else { Format::Text };
    match arguments.command {
        Command::Release(args) => release::run(args, format),
    }
}
