//! `ctrlable-lab`: a Proxmox node in a box.
#![allow(dead_code)]

mod image;
mod runtime;
mod shell;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
enum Cli {
    Image(image::ImageArgs),
    Exec(shell::ExecArgs),
    Netns(shell::NetnsArgs),
    Down(shell::DownArgs),
}

fn main() -> ExitCode {
    let done = match Cli::parse() {
        Cli::Image(args) => image::run(&args).map(|_| ExitCode::SUCCESS),
        Cli::Exec(args) => shell::run_exec(&args),
        Cli::Netns(args) => shell::run_netns(&args),
        Cli::Down(args) => shell::run_down(&args),
    };
    done.unwrap_or_else(|failure| {
        eprintln!("ctrlable-lab: {failure}");
        ExitCode::FAILURE
    })
}
