//! End-to-end tests: real git, real signatures, the real programs; the lab is the hypervisor.

/// Runs programs and says what they said when they fail.
pub mod run;
/// The story that `ci/demo` tells and a test repeats.
pub mod story;
/// A whole installation in one directory: HQ, dealer, node, orchestrator.
pub mod world;
