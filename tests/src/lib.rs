//! End-to-end tests: real git, real signatures, the real programs; the lab is the hypervisor.

/// Secrets that cannot be mistaken, and a search for them.
pub mod canary;
/// Runs programs and says what they said when they fail.
pub mod run;
/// Stand-ins for guest agents where guests are only records.
pub mod sim;
/// A small site on records, up in a second.
pub mod small;
/// The story that `ci/demo` tells and a test repeats.
pub mod story;
/// A whole installation in one directory: HQ, dealer, node, orchestrator.
pub mod world;
