//! `ctrlable-agent`: see `ctrlable-agent --help`, or `guest-agent/src/lib.rs` for the table of contents.

fn main() -> std::process::ExitCode {
    guest_agent::main(std::env::args_os().skip(1))
}
