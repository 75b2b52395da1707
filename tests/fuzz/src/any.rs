//! The fuzzer's program for all targets: `CTRLABLE_FUZZ` names the one. See `ci/fuzz`.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<fuzz::Target> = OnceLock::new();

fuzz_target!(|data: &[u8]| {
    let run = TARGET.get_or_init(|| {
        let name = std::env::var("CTRLABLE_FUZZ").unwrap_or_default();
        let known = fuzz::TARGETS.iter().find(|(target, _)| *target == name);
        #[allow(clippy::panic, reason = "there is nobody else to tell")]
        known.unwrap_or_else(|| panic!("CTRLABLE_FUZZ={name} is not a target")).1
    });
    run(data);
});
