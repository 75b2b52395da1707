use std::collections::BTreeMap;

use contract::dealers::Dealers;
use contract::document::{self, Document};
use contract::hq::{Channels, KeyList, Numbered};
use contract::ids::ReleaseId;
use contract::refusal::Refusal;
use jiff::{SignedDuration, Timestamp};

use super::TrustError;
use super::comment::{Kind, Subject};
use super::floor::{Floor, Seen};
use super::keys::KeySet;
use super::signed::{Expected, Signatures, believe};
use super::site::{DOCUMENT_LIMIT, digest};
use crate::source::Tree;

/// Lists of keys that are walked at most, one after the other. HQ that changes its keys every month gets there in ten
/// years; each costs two verifications per signer, some 100 µs.
const LISTS_LIMIT: u32 = 128;

/// What a clock may be ahead of HQ's before that makes a document expired: a site without time service is off by
/// minutes, and an expiry is meant in days.
pub const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

/// Path of the channels.
pub(super) const CHANNELS: &str = "channels.yaml";
/// Path of the dealers.
pub(super) const DEALERS: &str = "dealers.yaml";

/// What HQ says in one revision, apart from releases: verified, and not older than what was seen before.
#[derive(Debug, Clone)]
pub struct Hq {
    chain: Chain,
    channels: Option<Believed<Channels>>,
    dealers: Option<Believed<Dealers>>,
    floor: Floor,
    /// The files that prove the floor.
    evidence: BTreeMap<String, Vec<u8>>,
}

/// The lists of keys from the configured one to the newest.
#[derive(Debug, Clone)]
pub(super) struct Chain {
    /// The newest list.
    pub(super) keys: KeySet,
    /// Its number, and its digest unless it is the configuration's.
    pub(super) newest: Seen,
    /// The latest time that the lists vouch for.
    pub(super) time: Option<Timestamp>,
    /// The files that it is made of.
    pub(super) files: Vec<String>,
}

/// A document that HQ has signed.
#[derive(Debug, Clone)]
struct Believed<T> {
    value: T,
    seen: Seen,
    time: Timestamp,
    signatures: Signatures,
}

/// Whether HQ's word is still fresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// It is, or HQ has never said until when.
    Current,
    /// It was, until then: nothing new is begun on it.
    ExpiredAt(Timestamp),
}

/// Believes what HQ says in a revision, or says why not. It depends on nothing that a dealer says, so that what HQ took
/// back stays taken back even where the rest of the revision is refused.
pub fn verify_hq(tree: &dyn Tree, configured: &KeySet, before: &Floor) -> Result<Hq, TrustError> {
    let chain = walk(tree, configured, &before.keys)?;
    let of = format!("list {}", chain.newest.number);
    let channels = numbered(tree, CHANNELS, Kind::Channels, &chain.keys, &of, document::channels, &before.channels)?;
    let dealers = numbered(tree, DEALERS, Kind::Dealers, &chain.keys, &of, document::dealers, &before.dealers)?;
    let mut floor = before.clone();
    floor.keys = chain.newest.clone();
    floor.vouch(chain.time);
    let mut files = chain.files.clone();
    if let Some(channels) = &channels {
        floor.channels = channels.seen.clone();
        floor.vouch(Some(channels.time));
        // As many as are needed: the floor has to be small.
        files.extend(channels.signatures.files.iter().take(chain.keys.threshold()).cloned());
    }
    if let Some(dealers) = &dealers {
        floor.dealers = dealers.seen.clone();
        floor.vouch(Some(dealers.time));
        files.extend(dealers.signatures.files.iter().take(chain.keys.threshold()).cloned());
    }
    let mut evidence = BTreeMap::new();
    for file in files {
        if let Some(content) = tree.read(&file, DOCUMENT_LIMIT)? {
            evidence.insert(file, content);
        }
    }
    Ok(Hq { chain, channels, dealers, floor, evidence })
}

/// Walks the lists of keys: each is signed by the threshold of the one before and by its own.
pub(super) fn walk(tree: &dyn Tree, configured: &KeySet, before: &Seen) -> Result<Chain, TrustError> {
    walk_to(tree, configured, before, u32::MAX)
}

/// Whose signatures a document needs, in words, and their keys: the newest list's; of a list the one's before and its own.
pub fn keys_for(
    tree: &dyn Tree,
    configured: &KeySet,
    list: Option<&KeyList>,
) -> Result<Vec<(String, KeySet)>, TrustError> {
    let last = list.map_or(u32::MAX, |list| list.keys - 1);
    let chain = walk_to(tree, configured, &Seen::default(), last)?;
    let mut needed = vec![(format!("list {}", chain.newest.number), chain.keys)];
    if let Some(list) = list {
        needed.push((format!("list {} itself", list.keys), keys_of(list)?));
    }
    Ok(needed)
}

fn keys_of(list: &KeyList) -> Result<KeySet, TrustError> {
    let keys = KeySet::parse(&list.public_keys).and_then(|keys| keys.with_threshold(list.threshold));
    keys.map_err(|cause| TrustError::KeysUnusable { list: list.keys, cause })
}

fn walk_to(tree: &dyn Tree, configured: &KeySet, before: &Seen, last: u32) -> Result<Chain, TrustError> {
    let first = Seen { number: 1, digest: None };
    let mut chain = Chain { keys: configured.clone(), newest: first, time: None, files: Vec::new() };
    for number in 2..=LISTS_LIMIT {
        if number > last {
            return Ok(chain);
        }
        let file = format!("keys/{number}.yaml");
        let Some(content) = tree.read(&file, DOCUMENT_LIMIT)? else {
            let entries = tree.list("keys")?;
            let numbers = entries.iter().filter_map(|entry| entry.strip_suffix(".yaml")?.parse::<u32>().ok());
            return match numbers.filter(|later| *later > number).min() {
                Some(later) => Err(TrustError::KeysGap { missing: number, later }),
                None if chain.newest.number < before.number => {
                    let kind = Kind::Keys;
                    Err(TrustError::Withdrawn { file, kind, accepted: before.number })
                }
                None => Ok(chain),
            };
        };
        let expected = Expected::Subject(Subject::Numbered(Kind::Keys, number));
        let of = format!("list {}", chain.newest.number);
        let old = believe(tree, &file, &content, &expected, &chain.keys, &of)?;
        // Only now is it looked into: a parser never sees what nobody signed.
        let list = document::key_list(&file, &content).map_err(TrustError::Documents)?.value;
        let keys = keys_of(&list)?;
        let own = believe(tree, &file, &content, &expected, &keys, &format!("list {number} itself"))?;
        let seen = Seen { number, digest: Some(digest(&content)) };
        unchanged(&file, Kind::Keys, &seen, before)?;
        chain.time = chain.time.max(Some(list.issued)).max(Some(old.vouched())).max(Some(own.vouched()));
        chain.files.push(file);
        chain.files.extend(old.files.into_iter().take(chain.keys.threshold()));
        chain.files.extend(own.files.into_iter().take(keys.threshold()));
        (chain.keys, chain.newest) = (keys, seen);
    }
    Err(TrustError::KeysTooMany(LISTS_LIMIT))
}

/// A number that was seen before must mean the same bytes.
fn unchanged(file: &str, kind: Kind, found: &Seen, before: &Seen) -> Result<(), TrustError> {
    match (&before.digest, &found.digest) {
        (Some(old), Some(now)) if found.number == before.number && old != now => Err(TrustError::DocumentChanged {
            file: file.to_owned(),
            kind,
            number: found.number,
            before: old.clone(),
            now: now.clone(),
        }),
        _ => Ok(()),
    }
}

/// Reads a document of one kind.
type Parse<T> = fn(&str, &[u8]) -> Result<Document<T>, Vec<Refusal>>;

/// Reads and believes a numbered document, which is not older than what was seen before; none if there never was one.
fn numbered<T: Numbered>(
    tree: &dyn Tree,
    file: &str,
    kind: Kind,
    keys: &KeySet,
    of: &str,
    parse: Parse<T>,
    before: &Seen,
) -> Result<Option<Believed<T>>, TrustError> {
    let Some(content) = tree.read(file, DOCUMENT_LIMIT)? else {
        return match before.number {
            0 => Ok(None),
            accepted => Err(TrustError::Withdrawn { file: file.to_owned(), kind, accepted }),
        };
    };
    let signatures = believe(tree, file, &content, &Expected::Kind(kind), keys, of)?;
    let value = parse(file, &content).map_err(TrustError::Documents)?.value;
    let said = Subject::Numbered(kind, value.number());
    if said != signatures.subject {
        return Err(TrustError::DocumentMismatch { file: file.to_owned(), said, signed: signatures.subject });
    }
    let seen = Seen { number: value.number(), digest: Some(digest(&content)) };
    if seen.number < before.number {
        let (found, accepted) = (seen.number, before.number);
        return Err(TrustError::RolledBack { file: file.to_owned(), kind, found, accepted });
    }
    unchanged(file, kind, &seen, before)?;
    let time = value.issued().max(signatures.vouched());
    Ok(Some(Believed { value, seen, time, signatures }))
}

impl Hq {
    /// The keys in force.
    pub fn keys(&self) -> &KeySet {
        &self.chain.keys
    }

    /// Channels and revocations, if HQ publishes them.
    pub fn channels(&self) -> Option<&Channels> {
        self.channels.as_ref().map(|believed| &believed.value)
    }

    /// Dealers and limits, if HQ publishes them.
    pub fn dealers(&self) -> Option<&Dealers> {
        self.dealers.as_ref().map(|believed| &believed.value)
    }

    /// What nothing may go back behind any more.
    pub fn floor(&self) -> &Floor {
        &self.floor
    }

    /// The floor as files that prove it.
    pub fn evidence(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.evidence
    }

    /// Why a release is revoked, if it is.
    pub fn revoked(&self, release: &ReleaseId) -> Option<&str> {
        self.channels()?.revoked.get(release).map(String::as_str)
    }

    /// Whether HQ's word is still fresh. `now` is the system's clock, which may be wrong: what HQ has signed since is
    /// believed more when the clock is behind it, and a document of the future is none to refuse.
    pub fn freshness(&self, now: Timestamp) -> Freshness {
        match self.channels() {
            Some(channels)
                if self.floor.at_least(now)
                    > channels.expires.saturating_add(CLOCK_TOLERANCE).unwrap_or(Timestamp::MAX) =>
            {
                Freshness::ExpiredAt(channels.expires)
            }
            _ => Freshness::Current,
        }
    }
}
