//! INI files: `[section]` and `key = value`. Comments and everything not named stay as they are.

use serde_json::Value;

use super::lines::{Lines, check_key, scalar};
use super::{Merge, bad_merge};
use crate::error::Result;

/// Merges `{ section: { key: value } }`; scalars at the top stand before the first section.
pub(crate) fn merge(text: &str, patch: &Merge) -> Result<String> {
    let mut lines = Lines::new(text);
    for (name, wanted) in patch {
        match wanted {
            Value::Object(keys) => {
                check_section(name)?;
                for (key, value) in keys {
                    set(&mut lines, Some(name), key, value)?;
                }
            }
            // A null says nothing about which it removes: a section if there is one of that name, else a key.
            Value::Null if remove_section(&mut lines, name) => {}
            value => set(&mut lines, None, name, value)?,
        }
    }
    Ok(lines.text())
}

fn check_section(name: &str) -> Result<()> {
    if name.is_empty() || name.trim() != name || name.chars().any(|letter| letter.is_control() || letter == ']') {
        return Err(bad_merge(format!("`{}` cannot be a section", name.escape_debug())));
    }
    Ok(())
}

/// What a line is.
enum Line<'a> {
    Section(&'a str),
    Pair { key: &'a str, before_value: &'a str, value: &'a str },
    Other,
}

fn read(line: &str) -> Line<'_> {
    let line = line.trim_end();
    let trimmed = line.trim_start();
    if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
        return Line::Other;
    }
    if let Some(rest) = trimmed.strip_prefix('[') {
        return rest.split_once(']').map_or(Line::Other, |(name, _)| Line::Section(name.trim()));
    }
    let Some(at) = line.find(['=', ':']) else { return Line::Other };
    let value = line[at + 1..].trim_start();
    Line::Pair { key: line[..at].trim(), before_value: &line[..line.len() - value.len()], value }
}

/// Indices of the lines of `section`, its headers left out; a section may stand in several places.
fn body(lines: &Lines, section: Option<&str>) -> Vec<usize> {
    let mut current = None;
    let mut body = Vec::new();
    for (index, line) in lines.lines.iter().enumerate() {
        if let Line::Section(name) = read(line) {
            current = Some(name);
        } else if current == section {
            body.push(index);
        }
    }
    body
}

fn remove_section(lines: &mut Lines, section: &str) -> bool {
    let before = lines.lines.len();
    let mut inside = false;
    lines.lines.retain(|line| {
        if let Line::Section(name) = read(line) {
            inside = name == section;
        }
        !inside
    });
    lines.lines.len() != before
}

fn set(lines: &mut Lines, section: Option<&str>, key: &str, value: &Value) -> Result<()> {
    check_key(key, &['=', ':'])?;
    let is_key = |index: &usize| matches!(read(&lines.lines[*index]), Line::Pair { key: found, .. } if found == key);
    let found: Vec<usize> = body(lines, section).into_iter().filter(is_key).collect();
    let mut surplus = found.as_slice();
    if !value.is_null() {
        let text = scalar(key, value)?;
        if text.trim() != text {
            return Err(bad_merge(format!("`{key}` begins or ends with a blank, which this format loses")));
        }
        match found.split_first() {
            Some((first, rest)) => {
                surplus = rest;
                if let Line::Pair { before_value, value, .. } = read(&lines.lines[*first])
                    && value != text
                {
                    let line = format!("{before_value}{text}");
                    lines.replace(*first, &line);
                }
            }
            None => insert(lines, section, &format!("{key}{}{text}", separator(lines))),
        }
    }
    for index in surplus.iter().rev() {
        lines.lines.remove(*index);
    }
    Ok(())
}

/// ` = `, or `=` where the file writes its pairs so, as systemd's units do.
fn separator(lines: &Lines) -> &'static str {
    let first = lines.lines.iter().find_map(|line| match read(line) {
        Line::Pair { before_value, .. } if before_value.contains('=') => Some(before_value.ends_with(' ')),
        _ => None,
    });
    if first == Some(false) { "=" } else { " = " }
}

fn insert(lines: &mut Lines, section: Option<&str>, line: &str) {
    let is_blank = |line: &String| line.trim().is_empty();
    let end = match (body(lines, section).last(), section) {
        (Some(last), _) => last + 1,
        (None, None) => 0,
        (None, Some(name)) => {
            let header =
                lines.lines.iter().position(|line| matches!(read(line), Line::Section(found) if found == name));
            match header {
                Some(header) => header + 1,
                None => {
                    let end = lines.lines.len();
                    if lines.lines.last().is_some_and(|last| !is_blank(last)) {
                        lines.insert(end, "");
                    }
                    let end = lines.lines.len();
                    lines.insert(end, &format!("[{name}]"));
                    end + 1
                }
            }
        }
    };
    // Behind the last line that says something, before the blank ones that part sections.
    let mut index = end;
    while index > 0 && is_blank(&lines.lines[index - 1]) {
        index -= 1;
    }
    lines.insert(index, line);
}
