//! Who is connected.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use contract::ids::Sha256Digest;
use tokio::sync::oneshot;

use super::Limits;

/// Connections that stand.
#[derive(Debug, Default)]
pub(super) struct Places {
    next: u64,
    /// By number: the first is the oldest.
    strangers: BTreeMap<u64, Stranger>,
    guests: HashMap<Sha256Digest, usize>,
    guest_count: usize,
}

#[derive(Debug)]
struct Stranger {
    address: IpAddr,
    /// Dropped to tell the connection that its place is another's.
    _displace: oneshot::Sender<()>,
}

impl Places {
    /// A stranger's place: its number, and what ends when somebody else gets it. `None` when its address holds all that
    /// one may.
    pub(super) fn add_stranger(&mut self, address: IpAddr, limits: &Limits) -> Option<(u64, oneshot::Receiver<()>)> {
        if self.strangers.values().filter(|stranger| stranger.address == address).count() >= limits.each {
            return None;
        }
        if self.strangers.len() >= limits.strangers {
            let crowded = self.crowded()?;
            self.strangers.remove(&crowded);
        }
        let (displace, displaced) = oneshot::channel();
        self.next += 1;
        self.strangers.insert(self.next, Stranger { address, _displace: displace });
        Some((self.next, displaced))
    }

    /// The oldest of the address that holds most. A guest needs its place for one handshake, some milliseconds; who
    /// comes to stay is older than that.
    fn crowded(&self) -> Option<u64> {
        let mut held: HashMap<IpAddr, usize> = HashMap::new();
        for stranger in self.strangers.values() {
            *held.entry(stranger.address).or_default() += 1;
        }
        let most = held.values().copied().max()?;
        self.strangers.iter().find(|(_, stranger)| held.get(&stranger.address) == Some(&most)).map(|(id, _)| *id)
    }

    pub(super) fn remove_stranger(&mut self, id: u64) {
        // Absent when it was displaced.
        self.strangers.remove(&id);
    }

    /// A guest's place, if there is one for it.
    pub(super) fn add_guest(&mut self, certificate: &Sha256Digest, limits: &Limits) -> bool {
        let own = self.guests.get(certificate).copied().unwrap_or(0);
        if own >= limits.each || self.guest_count >= limits.guests {
            return false;
        }
        self.guests.insert(certificate.clone(), own + 1);
        self.guest_count += 1;
        true
    }

    pub(super) fn remove_guest(&mut self, certificate: &Sha256Digest) {
        let Some(own) = self.guests.get_mut(certificate) else { return };
        *own -= 1;
        self.guest_count -= 1;
        if *own == 0 {
            self.guests.remove(certificate);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn limits() -> Limits {
        Limits { strangers: 4, each: 3, guests: 5, ..Limits::AGENTS }
    }

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn certificate(letter: char) -> Sha256Digest {
        letter.to_string().repeat(64).parse().unwrap()
    }

    #[test]
    fn one_address_holds_its_share_and_no_more() {
        let (mut places, limits) = (Places::default(), limits());
        let held: Vec<_> = (0..3).map(|_| places.add_stranger(address(1), &limits).unwrap()).collect();
        assert!(places.add_stranger(address(1), &limits).is_none());
        assert!(places.add_stranger(address(2), &limits).is_some());
        places.remove_stranger(held[0].0);
        assert!(places.add_stranger(address(1), &limits).is_some());
    }

    #[test]
    fn a_full_house_gives_up_the_oldest_of_the_greediest() {
        let (mut places, limits) = (Places::default(), limits());
        let (_, mut patient) = places.add_stranger(address(1), &limits).unwrap();
        let mut greedy: Vec<_> = (0..3).map(|_| places.add_stranger(address(2), &limits).unwrap().1).collect();
        let gone = |receiver: &mut oneshot::Receiver<()>| {
            matches!(receiver.try_recv(), Err(oneshot::error::TryRecvError::Closed))
        };
        let (_, mut newest) = places.add_stranger(address(3), &limits).unwrap();
        assert!(gone(&mut greedy[0]) && !gone(&mut greedy[1]) && !gone(&mut greedy[2]));
        let (_, mut last) = places.add_stranger(address(4), &limits).unwrap();
        assert!(gone(&mut greedy[1]) && !gone(&mut greedy[2]));
        // All hold one: now the oldest goes.
        let _fifth = places.add_stranger(address(5), &limits).unwrap();
        assert!(gone(&mut patient) && !gone(&mut greedy[2]) && !gone(&mut newest) && !gone(&mut last));
        assert_eq!(places.strangers.len(), 4);
    }

    #[test]
    fn guests_have_places_of_their_own() {
        let (mut places, limits) = (Places::default(), limits());
        for last in 0..200 {
            let _ = places.add_stranger(address(last), &limits);
        }
        let taken: Vec<bool> =
            "aaaabbb".chars().map(|letter| places.add_guest(&certificate(letter), &limits)).collect();
        assert_eq!(taken, [true, true, true, false, true, true, false]);
        places.remove_guest(&certificate('a'));
        assert!(places.add_guest(&certificate('c'), &limits));
        for letter in ['a', 'a', 'b', 'b', 'c'] {
            places.remove_guest(&certificate(letter));
        }
        assert_eq!((places.guest_count, places.guests.len()), (0, 0));
    }
}
