//! From HQ's documents as they were written to valid ones.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::problems::{Checked, Path, Problems};
use super::raw::{self, Given};
use crate::hq::{Channels, KeyList};
use crate::ids::{ReleaseId, SiteName};
use crate::refusal::Reason;

/// Largest number of a document. Far more than HQ ever signs, and a number that a person can still read.
pub const MOST: u32 = 999_999_999;
/// Keys in one list. More people than can be asked to sign, and few enough to verify in no time.
const MOST_KEYS: usize = 32;
/// Characters of minisign's public key: 42 bytes in base64.
const KEY_LENGTH: usize = 56;
/// Characters of the reason for which a release is revoked.
const MOST_WHY: usize = 200;

/// Checks everything that a key list alone can tell. Whether a key is one, only who verifies with it finds out.
pub(super) fn key_list(problems: &Problems<'_>, raw: raw::KeyList) -> Checked<KeyList> {
    let root = Path::Root;
    let at = root.key("keys");
    // The first list is the configuration's.
    let keys = number(problems, &at, raw.keys, 2);
    if let Ok(keys) = keys
        && problems.file() != format!("keys/{keys}.yaml")
    {
        let message = format!("this is list {keys}, but the file is {}", problems.file().escape_debug());
        let remedy = format!("move the file to keys/{keys}.yaml, or correct the number");
        problems.refuse(Reason::NameMismatch, &at, message, remedy);
    }
    let issued = time(problems, &root.key("issued"), raw.issued);
    let at = root.key("public_keys");
    let public_keys = problems.need(&at, raw.public_keys).and_then(|raw| public_keys(problems, &at, raw));
    let at = root.key("threshold");
    let threshold = problems.need(&at, raw.threshold).and_then(|threshold| {
        let most = public_keys.as_ref().map_or(MOST_KEYS, Vec::len);
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        problems.number(&at, Reason::BadThreshold, threshold, 1..=most, "a threshold of this list")
    });
    Ok(KeyList { keys: keys?, threshold: threshold?, issued: issued?, public_keys: public_keys? })
}

fn public_keys(problems: &Problems<'_>, at: &Path<'_>, raw: Vec<Given<String>>) -> Checked<Vec<String>> {
    if raw.is_empty() || raw.len() > MOST_KEYS {
        let message = format!("the list has {} keys", raw.len());
        return Err(problems.refuse(Reason::BadPublicKey, at, message, format!("give 1 to {MOST_KEYS}")));
    }
    let (mut keys, mut seen, mut refused) = (Vec::new(), BTreeSet::new(), None);
    for (index, raw) in raw.into_iter().enumerate() {
        let at = at.index(index);
        let key = problems.need(&at, raw).and_then(|key| {
            let of_base64 = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
            if key.len() != KEY_LENGTH || !key.starts_with("RW") || !key.bytes().all(of_base64) {
                let message = "this is not a minisign public key";
                let remedy = "give the second line of a .pub file, which begins with RW";
                Err(problems.refuse(Reason::BadPublicKey, &at, message, remedy))
            } else if !seen.insert(key.clone()) {
                let message = "this key stands in the list already";
                Err(problems.refuse(Reason::DuplicatePublicKey, &at, message, "a person counts once: remove one"))
            } else {
                Ok(key)
            }
        });
        match key {
            Ok(key) => keys.push(key),
            Err(reported) => refused = Some(reported),
        }
    }
    refused.map_or(Ok(keys), Err)
}

/// Checks everything that `channels.yaml` alone can tell.
pub(super) fn channels(problems: &Problems<'_>, raw: raw::Channels) -> Checked<Channels> {
    let root = Path::Root;
    let serial = number(problems, &root.key("serial"), raw.serial, 1);
    let issued = time(problems, &root.key("issued"), raw.issued);
    let at = root.key("expires");
    let expires = time(problems, &at, raw.expires);
    if let (Ok(issued), Ok(expires)) = (issued, expires)
        && expires <= issued
    {
        let message = format!("{expires} is not after {issued}, when it was issued");
        problems.refuse(Reason::BadExpiry, &at, message, "give the time until which sites may follow it");
    }
    let mut refused = None;
    let revoked_at = root.key("revoked");
    let mut revoked = BTreeMap::new();
    for (id, why) in raw.revoked.0.unwrap_or_default() {
        let at = revoked_at.key(&id);
        let release = problems.parse::<ReleaseId>(&at, Reason::BadReleaseId, &id);
        let why = problems.need(&at, why).and_then(|why| {
            if (1..=MOST_WHY).contains(&why.chars().count()) && !why.contains(char::is_control) {
                return Ok(why);
            }
            let remedy = format!("write one line of 1 to {MOST_WHY} characters that tells a dealer why");
            Err(problems.refuse(Reason::BadRevocation, &at, "this does not say why", remedy))
        });
        match (release, why) {
            (Ok(release), Ok(why)) => drop(revoked.insert(release, why)),
            (Err(reported), _) | (_, Err(reported)) => refused = Some(reported),
        }
    }
    let at = root.key("channels");
    let mut channels = BTreeMap::new();
    for (name, id) in problems.need(&at, raw.channels)? {
        let at = at.key(&name);
        // A channel name has the form of a site name, as in a site.
        let name = problems.parse::<SiteName>(&at, Reason::BadName, &name);
        let release = problems.need_parsed::<ReleaseId>(&at, Reason::BadReleaseId, id);
        match (name, release) {
            (Ok(_), Ok(release)) if revoked.contains_key(&release) => {
                let message = format!("release {release} is revoked in this very document");
                let remedy = "let the channel give another release, or take the channel out";
                refused = Some(problems.refuse(Reason::ChannelRevoked, &at, message, remedy));
            }
            (Ok(name), Ok(release)) => drop(channels.insert(name.to_string(), release)),
            (Err(reported), _) | (_, Err(reported)) => refused = Some(reported),
        }
    }
    refused.map_or(Ok(()), Err)?;
    Ok(Channels { serial: serial?, issued: issued?, expires: expires?, channels, revoked })
}

/// The number of a document.
pub(super) fn number(problems: &Problems<'_>, at: &Path<'_>, given: Given<i64>, least: i64) -> Checked<u32> {
    let number = problems.need(at, given)?;
    problems.number(at, Reason::BadSerial, number, least..=i64::from(MOST), "the number of such a document")
}

/// A point in time, in the one spelling that there is for it.
pub(super) fn time(problems: &Problems<'_>, at: &Path<'_>, given: Given<String>) -> Checked<Timestamp> {
    let text = problems.need(at, given)?;
    match text.parse::<Timestamp>() {
        Ok(time) if time.to_string() == text && time.subsec_nanosecond() == 0 => Ok(time),
        _ => {
            let message = format!("`{}` is not a time in UTC with whole seconds", text.escape_debug());
            Err(problems.refuse(Reason::BadTime, at, message, "write it like 2026-11-20T12:00:00Z"))
        }
    }
}
