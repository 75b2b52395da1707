//! The corpus goes through the same functions as the fuzzer's inputs: whole, and cut off at every length.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use fuzz::{TARGETS, Target};

/// Longest seed. They are read thousands of times.
const LONGEST: usize = 16 * 1024;
/// Cuts of one seed at most: large ones are cut at as many places, evenly.
const CUTS: usize = 256;

fn corpus() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus"))
}

/// Runs one input, and says which it was if it fails.
fn run(target: Target, what: &str, data: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| target(data))).is_err() {
        panic!("{what}: {}", data.escape_ascii());
    }
}

#[test]
fn the_corpus_is_read_without_a_crash() {
    let mut inputs = 0;
    for (name, target) in TARGETS {
        let mut seeds: Vec<_> = fs::read_dir(corpus().join(name))
            .unwrap_or_else(|error| panic!("corpus/{name}: {error}"))
            .map(|entry| entry.unwrap().path())
            .collect();
        seeds.sort();
        assert!(seeds.len() > 1, "corpus/{name} has {} seeds", seeds.len());
        for seed in seeds {
            let (what, data) = (seed.display().to_string(), fs::read(&seed).unwrap());
            assert!(data.len() <= LONGEST, "{what} has {} bytes", data.len());
            run(*target, &what, &data);
            for cut in (0..data.len()).step_by(data.len().div_ceil(CUTS).max(1)) {
                run(*target, &format!("{what}, the first {cut} bytes"), &data[..cut]);
                inputs += 1;
            }
        }
    }
    println!("{inputs} inputs");
}

#[test]
fn every_directory_of_seeds_is_a_targets() {
    let targets: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let found: BTreeSet<_> =
        fs::read_dir(corpus()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(found, targets);
}
