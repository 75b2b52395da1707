//! `ctrlable`: see `ctrlable --help`, or `orchestrator/src/lib.rs` for the table of contents.

fn main() -> std::process::ExitCode {
    orchestrator::cli::main()
}
