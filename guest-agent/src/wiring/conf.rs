//! `key value` files as mosquitto, sshd and chrony read them. A key may stand several times.

use serde_json::Value;

use super::lines::{Lines, check_key, scalar};
use super::{Merge, bad_merge};
use crate::error::Result;

/// sshd reads everything behind this key as part of a block, so new keys go before it.
const BLOCK: &str = "match";

/// Merges flat keys; a list gives one line per element.
pub(crate) fn merge(text: &str, patch: &Merge) -> Result<String> {
    let mut lines = Lines::new(text);
    for (key, wanted) in patch {
        check_key(key, &[' ', '\t'])?;
        let values = match wanted {
            Value::Null => Vec::new(),
            Value::Array(list) => list.iter().map(|value| text_of(key, value)).collect::<Result<_>>()?,
            value => vec![text_of(key, value)?],
        };
        set(&mut lines, key, &values);
    }
    Ok(lines.text())
}

fn text_of(key: &str, value: &Value) -> Result<String> {
    let text = scalar(key, value)?;
    if text.trim() != text || text.is_empty() {
        return Err(bad_merge(format!("`{key}` is empty, or begins or ends with a blank, which this format loses")));
    }
    Ok(text)
}

fn read(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    Some(line.split_once(char::is_whitespace).map_or((line, ""), |(key, value)| (key, value.trim_start())))
}

fn set(lines: &mut Lines, key: &str, values: &[String]) {
    let block = lines.lines.iter().position(|line| read(line).is_some_and(|(key, _)| key.eq_ignore_ascii_case(BLOCK)));
    let end = block.unwrap_or(lines.lines.len());
    let found: Vec<usize> =
        (0..end).filter(|index| read(&lines.lines[*index]).is_some_and(|(found, _)| found == key)).collect();
    let current: Vec<&str> =
        found.iter().filter_map(|index| read(&lines.lines[*index])).map(|(_, value)| value).collect();
    if current == values {
        return;
    }
    // The new lines stand where the old ones did, one for one; further ones follow the last.
    for (index, value) in found.iter().zip(values) {
        lines.replace(*index, &format!("{key} {value}"));
    }
    let behind = found.last().map_or(end, |last| last + 1);
    for (at, value) in (behind..).zip(values.iter().skip(found.len())) {
        lines.insert(at, &format!("{key} {value}"));
    }
    for index in found.iter().skip(values.len()).rev() {
        lines.lines.remove(*index);
    }
}
