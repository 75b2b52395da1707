//! HQ's numbered documents: the next list of keys, the next channels, and who has signed what.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use contract::document;
use contract::hq::{Channels, KeyList};
use contract::ids::ReleaseId;
use jiff::{SignedDuration, Timestamp};

use super::manifest::as_given;
use super::sign::{DOCUMENT_LIMIT, in_repository};
use super::{PUBLIC_FILE, ReleaseError, create, read, replace, signable};
use crate::source::Checkout;
use crate::trust::{Examined, Expected, KeyId, KeySet, Kind, Subject, VerifyingKey, examine, keys_for, kind_of};

/// What the next list of keys differs in.
#[derive(Debug, Clone, Default)]
pub struct KeyChange {
    /// Keys of the configured list; needed as long as there is no file.
    pub first: Vec<String>,
    /// Keys that come.
    pub add: Vec<String>,
    /// Keys that go.
    pub remove: Vec<KeyId>,
    /// How many must sign; absent: as before.
    pub threshold: Option<u32>,
}

/// Writes the next list of keys, unsigned, and returns its path and number.
pub fn next_keys(dir: &Path, change: &KeyChange, now: Timestamp) -> Result<(PathBuf, u32), ReleaseError> {
    let (last, before) = newest_list(dir)?;
    let (mut keys, threshold) = match before {
        Some(list) => (list.public_keys, list.threshold),
        None if change.first.is_empty() => {
            return Err(ReleaseError::Impossible {
                what: "there is no list in keys/ yet, and the first is the orchestrators' configuration".to_owned(),
                remedy: "give its keys with --pubkey",
            });
        }
        None => (change.first.clone(), 1),
    };
    for id in &change.remove {
        let before = keys.len();
        keys.retain(|key| id_of(key) != Some(*id));
        if keys.len() == before {
            return Err(ReleaseError::Impossible {
                what: format!("key {id} is not in list {last}"),
                remedy: "ctrlable release inspect shows the ids of the keys in force",
            });
        }
    }
    keys.extend(change.add.iter().cloned());
    let (number, threshold) = (last + 1, change.threshold.unwrap_or(threshold));
    let mut text = format!("keys: {number}\nthreshold: {threshold}\nissued: {}\npublic_keys:\n", seconds(now));
    for key in &keys {
        let _ = writeln!(text, "  - {key}");
    }
    let path = dir.join("keys").join(format!("{number}.yaml"));
    document::key_list(&format!("keys/{number}.yaml"), text.as_bytes()).map_err(|found| as_given(found, &path))?;
    fs::create_dir_all(dir.join("keys"))
        .map_err(|cause| ReleaseError::Write { path: dir.join("keys"), cause: cause.to_string() })?;
    create(&path, text.as_bytes(), PUBLIC_FILE)?;
    Ok((path, number))
}

fn newest_list(dir: &Path) -> Result<(u32, Option<KeyList>), ReleaseError> {
    let mut newest = (1, None);
    loop {
        let path = dir.join("keys").join(format!("{}.yaml", newest.0 + 1));
        if !path.exists() {
            return Ok(newest);
        }
        let list = document::key_list(&format!("keys/{}.yaml", newest.0 + 1), &read(&path, DOCUMENT_LIMIT)?);
        newest = (newest.0 + 1, Some(list.map_err(|found| as_given(found, &path))?.value));
    }
}

fn id_of(key: &str) -> Option<KeyId> {
    Some(key.parse::<VerifyingKey>().ok()?.id())
}

/// What the next channels differ in.
#[derive(Debug, Clone)]
pub enum ChannelChange {
    /// They only stay fresh for longer.
    Renew,
    /// A channel gives another release.
    Give(String, ReleaseId),
    /// A release is taken back, with the reason.
    Revoke(ReleaseId, String),
}

/// Writes the next `channels.yaml`, unsigned: signatures of the one before are removed, since they hold no more.
pub fn next_channels(
    dir: &Path,
    change: ChannelChange,
    lasts: SignedDuration,
    now: Timestamp,
) -> Result<(PathBuf, Channels), ReleaseError> {
    let path = dir.join("channels.yaml");
    let before = match path.exists() {
        true => {
            let found = document::channels("channels.yaml", &read(&path, DOCUMENT_LIMIT)?);
            Some(found.map_err(|refusals| as_given(refusals, &path))?.value)
        }
        false => None,
    };
    let serial = before.as_ref().map_or(1, |before| before.serial + 1);
    let (mut channels, mut revoked) = before.map_or_else(Default::default, |before| (before.channels, before.revoked));
    match change {
        ChannelChange::Renew => {}
        ChannelChange::Give(name, release) => drop(channels.insert(name, release)),
        ChannelChange::Revoke(release, why) => drop(revoked.insert(release, why)),
    }
    let expires = now.saturating_add(lasts).unwrap_or(Timestamp::MAX);
    let mut text = format!("serial: {serial}\nissued: {}\nexpires: {}\n", seconds(now), seconds(expires));
    let mut section = |name: &str, rows: Vec<(String, String)>| {
        let _ = writeln!(text, "{name}:{}", if rows.is_empty() { " {}" } else { "" });
        for (key, value) in rows {
            // A JSON string is a YAML string, whatever is in it.
            let _ = writeln!(text, "  {key}: {}", serde_json::Value::from(value));
        }
    };
    section("channels", channels.iter().map(|(name, release)| (name.clone(), release.to_string())).collect());
    section("revoked", revoked.iter().map(|(id, why)| (format!("\"{id}\""), why.clone())).collect());
    let value = document::channels("channels.yaml", text.as_bytes()).map_err(|found| as_given(found, &path))?.value;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("channels.yaml.") && name.ends_with(".minisig") {
            fs::remove_file(entry.path())
                .map_err(|cause| ReleaseError::Write { path: entry.path(), cause: cause.to_string() })?;
        }
    }
    replace(&path, text.as_bytes())?;
    Ok((path, value))
}

fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Who has signed a document, and who has not.
#[derive(Debug)]
pub struct Inspection {
    /// What it is.
    pub subject: Subject,
    /// Until when it is followed, if it says so.
    pub expires: Option<Timestamp>,
    /// What each list of keys that has to have signed it finds.
    pub lists: Vec<Inspected>,
}

/// A document before one list of keys.
#[derive(Debug)]
pub struct Inspected {
    /// Whose keys these are.
    pub of: String,
    /// How many must sign.
    pub threshold: usize,
    /// Who has, and when.
    pub signed: BTreeMap<KeyId, Timestamp>,
    /// Whose signatures would count, too.
    pub missing: Vec<KeyId>,
    /// Signature files that do not count, and why.
    pub void: Vec<(String, String)>,
}

impl Inspected {
    /// Whether enough have signed.
    pub fn is_met(&self) -> bool {
        self.signed.len() >= self.threshold
    }
}

/// Looks at every signature of a document in a checkout. `configured` is the orchestrators' own list of keys.
pub fn inspect(file: &Path, configured: &KeySet) -> Result<Inspection, ReleaseError> {
    let subject = signable(file)?.subject;
    let misplaced = || ReleaseError::FileName { path: file.to_owned() };
    let path = in_repository(file).ok_or_else(misplaced)?;
    let place =
        file.canonicalize().map_err(|cause| ReleaseError::Read { path: file.to_owned(), cause: cause.to_string() })?;
    let root = place.ancestors().nth(path.split('/').count()).filter(|root| root.join(&path) == place);
    let checkout = Checkout::new(root.ok_or_else(misplaced)?);
    let content = read(file, DOCUMENT_LIMIT)?;
    let (mut list, mut expires) = (None, None);
    match kind_of(&path) {
        Kind::Keys => list = document::key_list(&path, &content).ok().map(|found| found.value),
        Kind::Channels => expires = document::channels(&path, &content).ok().map(|found| found.value.expires),
        Kind::Release | Kind::Dealers => {}
    }
    let mut lists = Vec::new();
    for (of, keys) in keys_for(&checkout, configured, list.as_ref())? {
        let expected = Expected::Subject(subject.clone());
        let (mut signed, mut void) = (BTreeMap::new(), Vec::new());
        for Examined { file, outcome } in examine(&checkout, &path, &content, &expected, &keys)? {
            match outcome {
                Ok((key, comment)) => drop(signed.insert(key, comment.signed_at)),
                Err(flaw) => void.push((file, flaw.to_string())),
            }
        }
        let missing = keys.ids().filter(|id| !signed.contains_key(id)).collect();
        lists.push(Inspected { of, threshold: keys.threshold(), signed, missing, void });
    }
    Ok(Inspection { subject, expires, lists })
}
