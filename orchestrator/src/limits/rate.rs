//! How often something may be done: a bucket for each peer, kept as the one instant at which it is full again (GCRA).

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// How often something may be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// At once, after a rest.
    pub burst: u32,
    /// From then on, one in this time.
    pub every: Duration,
}

/// Peers that are remembered; some 100 bytes each. Whoever rested is forgotten when there are more.
const PEERS: usize = 8192;

/// A bucket for each peer that did something lately.
#[derive(Debug)]
pub(super) struct Buckets<K> {
    rate: Rate,
    full_at: HashMap<K, Instant>,
}

impl<K: Hash + Eq> Buckets<K> {
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, full_at: HashMap::new() }
    }

    /// Takes one from a peer's bucket, or says how long it takes until there is one.
    pub(super) fn take(&mut self, peer: K, now: Instant) -> Result<(), Duration> {
        let full_at = self.full_at.get(&peer).copied().unwrap_or(now).max(now) + self.rate.every;
        let wait = full_at.duration_since(now).saturating_sub(self.rate.every * self.rate.burst);
        if wait > Duration::ZERO {
            return Err(wait);
        }
        if self.full_at.len() >= PEERS && !self.full_at.contains_key(&peer) {
            self.full_at.retain(|_, full_at| *full_at > now);
            if self.full_at.len() >= PEERS {
                // Thousands of addresses at once are one attacker.
                return Err(self.rate.every);
            }
        }
        self.full_at.insert(peer, full_at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_let_through_and_then_one_in_its_time() {
        let every = Duration::from_millis(100);
        let mut buckets = Buckets::new(Rate { burst: 3, every });
        let start = Instant::now();
        assert_eq!([(); 4].map(|()| buckets.take("greedy", start)), [Ok(()), Ok(()), Ok(()), Err(every)]);
        assert_eq!(buckets.take("honest", start), Ok(()), "another's greed is not his");
        assert_eq!(buckets.take("greedy", start + every / 2), Err(every / 2));
        assert_eq!(buckets.take("greedy", start + every), Ok(()));
        assert_eq!(buckets.take("greedy", start + every), Err(every));
        let rested = start + every * 100;
        assert_eq!([(); 4].map(|()| buckets.take("greedy", rested)), [Ok(()), Ok(()), Ok(()), Err(every)]);
    }

    #[test]
    fn memory_is_bounded_and_who_rested_makes_room() {
        let every = Duration::from_millis(100);
        let mut buckets = Buckets::new(Rate { burst: 3, every });
        let start = Instant::now();
        for peer in 0..PEERS {
            assert_eq!(buckets.take(peer, start), Ok(()));
        }
        assert_eq!(buckets.take(PEERS, start), Err(every));
        assert_eq!(buckets.take(0, start), Ok(()), "who is known goes on");
        assert_eq!(buckets.full_at.len(), PEERS);
        assert_eq!(buckets.take(PEERS, start + every), Ok(()));
        assert_eq!(buckets.full_at.len(), 2, "all but the one that came twice had rested");
    }
}
