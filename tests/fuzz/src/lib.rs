//! One function for each kind of bytes that come from somebody else. It must not panic, whatever they are, and it checks
//! what holds for all of them: what was read and printed is read again as the same, a merge done twice is done once.
//!
//! libFuzzer calls these functions ([`TARGETS`] by name, `ci/fuzz`), and a test replays `corpus/` through them. A new
//! target is a function, a line in the table, and a directory of seeds.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is what a fuzzer looks for")]

mod documents;
mod messages;
mod signatures;
mod texts;
mod wiring;

/// What is done with one input.
pub type Target = fn(&[u8]);

/// All targets by name. Each has a directory of seeds, `corpus/<name>/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("assignment", messages::assignment),
    ("bootstrap", messages::bootstrap),
    ("commit", signatures::commit),
    ("conf", wiring::conf),
    ("dealers", documents::dealers),
    ("enrolment", messages::enrolment),
    ("env", wiring::env),
    ("health", messages::health),
    ("ini", wiring::ini),
    ("json", wiring::json),
    ("known-hosts", texts::known_hosts),
    ("manifest", documents::manifest),
    ("marker", texts::marker),
    ("minisign-key", signatures::key),
    ("minisign-signature", signatures::signature),
    ("net", texts::net),
    ("orchestrator-toml", documents::orchestrator_toml),
    ("site", documents::site),
    ("tags", texts::tags),
    ("toml", wiring::toml),
    ("upid", texts::upid),
    ("yaml", wiring::yaml),
];
