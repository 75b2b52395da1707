//! Waiting between attempts: longer each time, never in step with other guests, and as long as the other side asks.

use std::time::Duration;

use ssh_key::rand_core::{OsRng, RngCore};

/// First wait.
const FIRST: Duration = Duration::from_millis(200);

/// Longest wait: a guest is back within a minute of its orchestrator.
const LAST: Duration = Duration::from_secs(60);

/// Longest wait that the other side can ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(600);

/// Counts failures in a row.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// After a success.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// After a failure: how long to wait. Half of it is chance.
    pub(crate) fn next(&mut self) -> Duration {
        let full = FIRST.saturating_mul(2u32.saturating_pow(self.failures)).min(LAST);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(0.5 + chance() / 2.0)
    }
}

/// A wait that the other side asked for, in seconds, and up to a quarter more.
pub(crate) fn asked(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into()).min(LONGEST_ASKED).mul_f64(1.0 + chance() / 4.0)
}

/// The wait after a refusal that waiting does not cure; somebody may cure it meanwhile.
pub(crate) fn slow() -> Duration {
    LAST.mul_f64(0.75 + chance() / 2.0)
}

/// A number from 0 to 1.
fn chance() -> f64 {
    f64::from(OsRng.next_u32()) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_a_minute_with_chance_in_it() {
        let mut backoff = Backoff::default();
        for round in 0..100u32 {
            let full = 0.2 * 2f64.powi(i32::try_from(round.min(20)).unwrap_or(20));
            let wait = backoff.next().as_secs_f64();
            assert!(wait >= full.min(60.0) / 2.0 - 0.001 && wait <= full.min(60.0) + 0.001, "{round}: {wait}");
        }
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }

    #[test]
    fn what_is_asked_for_is_kept_within_reason() {
        assert!((30.0..=37.5).contains(&asked(30).as_secs_f64()));
        assert!(asked(u32::MAX) <= LONGEST_ASKED * 5 / 4);
        assert!((45.0..=75.0).contains(&slow().as_secs_f64()));
    }
}
