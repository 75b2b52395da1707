//! What an agent makes of a guest's files. The first line of an input is what is merged, JSON; the rest is the file.

use std::collections::BTreeMap;
use std::fmt::Debug;

use contract::assignment::FileFormat::{self, Conf, Env, Ini, Json, Toml, Yaml};
use serde_json::{Map, Value};
use serde_yaml::Mapping;

/// Merges, and again: nothing changes. Returns patch, file and merged file.
fn merged(format: FileFormat, data: &[u8]) -> Option<(Map<String, Value>, &str, String)> {
    let (patch, file) = std::str::from_utf8(data).ok()?.split_once('\n')?;
    let patch: Map<String, Value> = serde_json::from_str(patch).ok()?;
    let merge = |file: &str, patch: &Map<String, Value>| {
        guest_agent::merge(format, file.as_bytes(), patch).map(|bytes| String::from_utf8(bytes).unwrap())
    };
    if let Ok(untouched) = merge(file, &Map::new()) {
        assert_eq!(untouched, file, "nothing was to be changed");
    }
    let once = merge(file, &patch).ok()?;
    assert_eq!(merge(&once, &patch).as_ref(), Ok(&once), "merged twice");
    Some((patch, file, once))
}

/// What nobody named is what it was.
fn keeps<V: PartialEq + Debug>(patch: &Map<String, Value>, before: BTreeMap<String, V>, after: &BTreeMap<String, V>) {
    for (key, value) in before.iter().filter(|(key, _)| !patch.contains_key(*key)) {
        assert_eq!(after.get(key), Some(value), "{key:?} was not to be touched");
    }
}

pub(crate) fn yaml(data: &[u8]) {
    let Some((patch, before, after)) = merged(Yaml, data) else { return };
    let read = |text: &str| serde_yaml::from_str::<Option<Mapping>>(text).map(Option::unwrap_or_default);
    let (before, after) = (read(before).unwrap(), read(&after).unwrap());
    // Keys that are no texts have no name that a merge could give.
    for (key, value) in before.iter().filter(|(key, _)| key.as_str().is_none_or(|key| !patch.contains_key(key))) {
        assert_eq!(after.get(key), Some(value), "{key:?} was not to be touched");
    }
}

pub(crate) fn json(data: &[u8]) {
    let Some((patch, before, after)) = merged(Json, data) else { return };
    let read = |text: &str| -> BTreeMap<String, Value> {
        if text.trim().is_empty() { BTreeMap::new() } else { serde_json::from_str(text).unwrap() }
    };
    keeps(&patch, read(before), &read(&after));
}

pub(crate) fn toml(data: &[u8]) {
    let Some((patch, before, after)) = merged(Toml, data) else { return };
    let read = |text: &str| -> Option<BTreeMap<String, toml::Value>> { toml::from_str(text).ok() };
    let Some(before) = read(before) else { return };
    keeps(&patch, before, &read(&after).unwrap_or_else(|| panic!("not TOML any more\n{after}")));
}

pub(crate) fn ini(data: &[u8]) {
    merged(Ini, data);
}

pub(crate) fn env(data: &[u8]) {
    merged(Env, data);
}

pub(crate) fn conf(data: &[u8]) {
    merged(Conf, data);
}
