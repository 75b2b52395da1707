//! The floor: the newest of HQ's numbered documents that were accepted. Nothing goes back behind it.
//!
//! It is kept where it can get lost or be falsified (the ledger, Proxmox, guests), so it is kept more than once. Numbers
//! that we wrote to Proxmox ourselves are believed. What a guest hands out has to prove itself: it is the very files of
//! the fleet repository that say so, and is verified as they are.

use std::collections::BTreeMap;

use contract::ids::{Revision, Sha256Digest};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::TrustError;
use super::comment::{Kind, SignedComment, Subject};
use super::hq::{CHANNELS, CLOCK_TOLERANCE, DEALERS, walk};
use super::keys::KeySet;
use super::signature::SIGNATURE_FILE_LIMIT;
use super::signed::{Expected, files_of, fits};
use crate::source::{SourceError, Tree};

/// A document that was accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its number; 0: none yet.
    pub number: u32,
    /// SHA-256 of its bytes; unknown where only the number was handed down.
    pub digest: Option<Sha256Digest>,
}

/// The newest documents that were accepted, and a time before which it cannot be now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Floor {
    /// List of keys.
    pub keys: Seen,
    /// Channels.
    pub channels: Seen,
    /// Dealers.
    pub dealers: Seen,
    /// The latest time that HQ vouches for in what was accepted. Never from the system's clock: one that once ran ahead
    /// would lock the site out for as long.
    pub time: Option<Timestamp>,
}

/// The numbers of a floor, as they stand in our markers on Proxmox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbers {
    /// List of keys.
    #[serde(rename = "k")]
    pub keys: u32,
    /// Channels.
    #[serde(rename = "c")]
    pub channels: u32,
    /// Dealers.
    #[serde(rename = "d")]
    pub dealers: u32,
}

impl std::fmt::Display for Numbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "keys {}, channels {}, dealers {}", self.keys, self.channels, self.dealers)
    }
}

impl Numbers {
    /// The higher of each.
    pub fn max(self, other: Self) -> Self {
        Self {
            keys: self.keys.max(other.keys),
            channels: self.channels.max(other.channels),
            dealers: self.dealers.max(other.dealers),
        }
    }
}

impl Seen {
    fn raise(&mut self, number: u32) {
        if number > self.number {
            *self = Self { number, digest: None };
        }
    }
}

impl Floor {
    /// Its numbers.
    pub fn numbers(&self) -> Numbers {
        Numbers { keys: self.keys.number, channels: self.channels.number, dealers: self.dealers.number }
    }

    /// Moves up to these numbers where they are higher; the digests behind them are not known.
    pub fn raise(&mut self, to: Numbers) {
        self.keys.raise(to.keys);
        self.channels.raise(to.channels);
        self.dealers.raise(to.dealers);
    }

    /// Notes a time that HQ vouches for.
    pub(super) fn vouch(&mut self, time: Option<Timestamp>) {
        self.time = self.time.max(time);
    }

    /// The time, as far as it can be told: the clock's, or the floor's where the clock is behind.
    pub fn at_least(&self, now: Timestamp) -> Timestamp {
        self.time.map_or(now, |time| time.max(now))
    }

    /// How far the clock is behind what HQ vouches for, when that is more than clocks differ by.
    pub fn clock_behind(&self, now: Timestamp) -> Option<SignedDuration> {
        let behind = self.time?.duration_since(now);
        (behind > CLOCK_TOLERANCE).then_some(behind)
    }
}

/// Files that somebody handed out, read like a revision.
struct Told(BTreeMap<String, Vec<u8>>);

impl Tree for Told {
    fn revision(&self) -> Option<&Revision> {
        None
    }

    fn read(&self, path: &str, limit: usize) -> Result<Option<Vec<u8>>, SourceError> {
        match self.0.get(path) {
            Some(content) if content.len() > limit => {
                Err(SourceError::TooLarge { what: path.to_owned(), limit: format!("{limit} bytes") })
            }
            content => Ok(content.cloned()),
        }
    }

    fn list(&self, directory: &str) -> Result<Vec<String>, SourceError> {
        let inside = self.0.keys().filter_map(|path| match path.rsplit_once('/') {
            Some((parent, name)) if parent == directory => Some(name.to_owned()),
            None if directory.is_empty() => Some(path.clone()),
            _ => None,
        });
        Ok(inside.collect())
    }
}

/// The evidence of a floor as one text: a JSON object of paths and contents. None if a file is not text.
pub fn to_text(evidence: &BTreeMap<String, Vec<u8>>) -> Option<String> {
    let files: Option<BTreeMap<&str, &str>> =
        evidence.iter().map(|(path, content)| Some((path.as_str(), std::str::from_utf8(content).ok()?))).collect();
    serde_json::to_string(&files?).ok()
}

/// Believes the evidence that somebody hands out, whoever he is, or says why not.
pub fn prove(text: &str, configured: &KeySet) -> Result<Floor, TrustError> {
    let files: BTreeMap<String, String> = serde_json::from_str(text).map_err(|_| TrustError::NoEvidence)?;
    let told = Told(files.into_iter().map(|(path, content)| (path, content.into_bytes())).collect());
    let chain = walk(&told, configured, &Seen::default())?;
    let mut floor = Floor { keys: chain.newest, time: chain.time, ..Floor::default() };
    for (file, kind) in [(CHANNELS, Kind::Channels), (DEALERS, Kind::Dealers)] {
        let (mut number, mut time) = (0, None);
        let mut signed: BTreeMap<u32, BTreeMap<_, Timestamp>> = BTreeMap::new();
        for path in files_of(&told, file)? {
            let Some(signature) = told.read(&path, SIGNATURE_FILE_LIMIT)? else { continue };
            let comment =
                chain.keys.verify_comment(&signature).and_then(|signed| fits(signed, &Expected::Kind(kind)).ok());
            if let Some((key, SignedComment { subject: Subject::Numbered(_, number), signed_at })) = comment {
                signed.entry(number).or_default().insert(key, signed_at);
            }
        }
        for (found, by) in signed.into_iter().filter(|(_, by)| by.len() >= chain.keys.threshold()) {
            number = found;
            time = by.into_values().min();
        }
        let seen = if kind == Kind::Channels { &mut floor.channels } else { &mut floor.dealers };
        seen.raise(number);
        floor.vouch(time);
    }
    Ok(floor)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// The clock is believed unless HQ has signed something later, and a clock that once ran ahead leaves no trace.
    #[test]
    fn time_is_what_the_clock_and_hq_say() {
        let mut floor = Floor::default();
        let noon = at("2026-11-20T12:00:00Z");
        assert_eq!((floor.at_least(noon), floor.clock_behind(noon)), (noon, None));
        floor.vouch(Some(noon));
        floor.vouch(None);
        let morning = at("2026-11-20T08:00:00Z");
        assert_eq!(floor.at_least(morning), noon);
        assert_eq!(floor.clock_behind(morning), Some(SignedDuration::from_hours(4)));
        // Clocks differ by minutes.
        assert_eq!(floor.clock_behind(at("2026-11-20T11:56:00Z")), None);
        // Ahead for a moment, and back again.
        assert_eq!(floor.at_least(at("2099-01-01T00:00:00Z")), at("2099-01-01T00:00:00Z"));
        assert_eq!(floor.at_least(noon), noon);
    }

    #[test]
    fn numbers_only_rise_and_forget_the_digest_behind_them() {
        let digest: Sha256Digest = "0af5".repeat(16).parse().unwrap();
        let mut floor = Floor { channels: Seen { number: 17, digest: Some(digest.clone()) }, ..Floor::default() };
        floor.raise(Numbers { keys: 1, channels: 16, dealers: 0 });
        assert_eq!(floor.channels, Seen { number: 17, digest: Some(digest) });
        floor.raise(Numbers { keys: 0, channels: 18, dealers: 2 });
        assert_eq!(floor.numbers(), Numbers { keys: 1, channels: 18, dealers: 2 });
        assert_eq!(floor.channels.digest, None);
    }

    proptest::proptest! {
        /// Whatever a guest hands out, it is refused and not crashed on.
        #[test]
        fn nothing_that_is_handed_out_panics(text in ".{0,200}", path in "(keys/[0-9]|channels|dealers)[.]yaml([.]minisig)?") {
            let key = "RWTZq1lV6JEnh1wpzXnJNzPzNZhdqVCXV3slBqhW1mMyqOkzZE7zWBuS".to_owned();
            let configured = KeySet::parse(&[key]).unwrap();
            let nothing = text.trim() == "{}";
            proptest::prop_assert!(prove(&text, &configured).is_err() || nothing);
            let told = serde_json::json!({ path: text }).to_string();
            if let Ok(floor) = prove(&told, &configured) {
                proptest::prop_assert_eq!(floor.numbers(), Numbers { keys: 1, ..Numbers::default() });
            }
        }
    }
}
