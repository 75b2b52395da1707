//! Wiring: the values of an assignment become part of the guest's files, all of them or none.

/// From an assignment to a decided outcome.
pub(crate) mod apply;
/// Files, replaced together and put back together.
pub(crate) mod transaction;

/// `key value` lines.
pub(crate) mod conf;
/// `KEY=value` lines.
pub(crate) mod env;
/// Sections of `key = value` lines.
pub(crate) mod ini;
/// JSON.
pub(crate) mod json;
/// What the line formats share.
pub(crate) mod lines;
/// TOML.
pub(crate) mod toml;
/// YAML.
pub(crate) mod yaml;
/// Edits in the text of a YAML file.
mod yaml_edit;

use contract::assignment::FileFormat;
use serde_json::{Map, Value};

use crate::error::{Error, Reason, Result};

/// What an assignment wants in one file.
pub(crate) type Merge = Map<String, Value>;

/// The content of a file with `merge` in it. What `merge` does not name stays; when nothing changes, the result is
/// byte for byte what was given. Errors name lines and keys, never values.
pub(crate) fn merge(format: FileFormat, current: &[u8], merge: &Merge) -> Result<Vec<u8>> {
    let text = std::str::from_utf8(current).map_err(|cause| {
        Error::new(Reason::FileSyntax, format!("not UTF-8 text after byte {}", cause.valid_up_to()))
    })?;
    let merged = match format {
        FileFormat::Yaml => yaml::merge(text, merge),
        FileFormat::Json => json::merge(text, merge),
        FileFormat::Toml => toml::merge(text, merge),
        FileFormat::Ini => ini::merge(text, merge),
        FileFormat::Env => env::merge(text, merge),
        FileFormat::Conf => conf::merge(text, merge),
    }?;
    Ok(merged.into_bytes())
}

/// A merge that its format cannot hold.
fn bad_merge(message: impl Into<String>) -> Error {
    Error::new(Reason::BadMerge, message)
}

/// Merges `patch` into `target` as RFC 7396 says: objects key by key, `null` removes, everything else replaces.
/// Returns whether anything changed.
fn merge_json(target: &mut Map<String, Value>, patch: &Merge) -> bool {
    let mut changed = false;
    for (key, wanted) in patch {
        changed |= match (target.get_mut(key), wanted) {
            (Some(_), Value::Null) => target.shift_remove(key).is_some(),
            (None, Value::Null) => false,
            (Some(Value::Object(inner)), Value::Object(wanted)) => merge_json(inner, wanted),
            (Some(current), wanted) => {
                let wanted = without_nulls(wanted);
                let differs = *current != wanted;
                *current = wanted;
                differs
            }
            (None, wanted) => {
                target.insert(key.clone(), without_nulls(wanted));
                true
            }
        };
    }
    changed
}

/// A value as it is set where nothing was: an object's `null`s have nothing to remove.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(object) => Value::Object(
            object
                .iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| (key.clone(), without_nulls(value)))
                .collect(),
        ),
        other => other.clone(),
    }
}

#[cfg(test)]
mod format_tests;
