//! `KEY=value` files as systemd reads them: systemd.exec(5), EnvironmentFile=.

use super::lines::{Lines, check_key, scalar};
use super::{Merge, bad_merge};
use crate::error::{Error, Reason, Result};

/// Merges flat pairs. An assignment may run over several lines, inside quotes or behind a backslash.
pub(crate) fn merge(text: &str, patch: &Merge) -> Result<String> {
    let mut lines = Lines::new(text);
    lines.lines = logical(lines.lines);
    if lines.lines.last().is_some_and(|line| is_open(line)) {
        return Err(Error::new(
            Reason::FileSyntax,
            "a quote or a backslash at the end of the file leaves a value open",
        ));
    }
    for (key, wanted) in patch {
        check_key(key, &['=', ' ', '\t', '"', '\'', '\\', '$'])?;
        let found: Vec<usize> = (0..lines.lines.len())
            .filter(|index| read(&lines.lines[*index]).is_some_and(|(found, _)| found == key))
            .collect();
        if wanted.is_null() {
            for index in found.iter().rev() {
                lines.lines.remove(*index);
            }
            continue;
        }
        let value = scalar(key, wanted)?;
        let line = format!("{key}={}", quote(key, &value)?);
        // systemd takes the last one, so that is the one to keep.
        match found.split_last() {
            Some((last, surplus)) => {
                if read(&lines.lines[*last]).is_none_or(|(_, current)| current != value) {
                    lines.replace(*last, &line);
                }
                for index in surplus.iter().rev() {
                    lines.lines.remove(*index);
                }
            }
            None => lines.insert(lines.lines.len(), &line),
        }
    }
    Ok(lines.text())
}

/// Joins the physical lines that belong to one assignment.
fn logical(physical: Vec<String>) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut open = false;
    for line in physical {
        match lines.last_mut() {
            Some(last) if open => last.push_str(&line),
            _ => lines.push(line),
        }
        open = lines.last().is_some_and(|line| is_open(line));
    }
    lines
}

/// Whether a value goes on in the next line.
fn is_open(line: &str) -> bool {
    let trimmed = line.trim_start();
    if trimmed.starts_with(['#', ';']) {
        return false;
    }
    trimmed.split_once('=').is_some_and(|(_, value)| unquote(value.trim_start()).is_none())
}

/// Key and value of an assignment; `None` for anything else.
fn read(line: &str) -> Option<(&str, String)> {
    let trimmed = line.trim_start();
    if trimmed.starts_with(['#', ';']) {
        return None;
    }
    let (key, value) = trimmed.split_once('=')?;
    Some((key.trim_end(), unquote(value.trim_start()).unwrap_or_default()))
}

/// Where in a value the reader is, as systemd's own `parse_env_file_internal` has it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before the value, or behind a closing quote: only here a quote opens.
    Before,
    Plain,
    Single,
    Double,
}

/// The value behind `=`; `None` when a quote or a backslash leaves it open at the end.
fn unquote(text: &str) -> Option<String> {
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    let mut value = String::new();
    // Length up to which blanks count: those at the end of a plain value do not.
    let mut kept = 0;
    let mut place = Place::Before;
    let mut letters = text.chars();
    // A backslash that ends the text hides the line break that was cut off.
    while let Some(letter) = letters.next() {
        match (place, letter) {
            (Place::Before, '"') => place = Place::Double,
            (Place::Before, '\'') => place = Place::Single,
            (Place::Before, blank) if blank.is_ascii_whitespace() => continue,
            (Place::Double, '"') | (Place::Single, '\'') => place = Place::Before,
            (Place::Double, '\\') => match letters.next()? {
                escaped @ ('"' | '\\' | '`' | '$') => value.push(escaped),
                '\n' => {}
                other => value.extend(['\\', other]),
            },
            (Place::Before | Place::Plain, '\\') => {
                place = Place::Plain;
                match letters.next()? {
                    '\n' => {}
                    escaped => value.push(escaped),
                }
            }
            (Place::Before, _) => {
                place = Place::Plain;
                value.push(letter);
            }
            (Place::Plain, blank) if blank.is_ascii_whitespace() => {
                value.push(blank);
                continue;
            }
            (Place::Plain | Place::Single | Place::Double, _) => value.push(letter),
        }
        kept = value.len();
    }
    if matches!(place, Place::Single | Place::Double) {
        return None;
    }
    value.truncate(kept);
    Some(value)
}

fn quote(key: &str, value: &str) -> Result<String> {
    if value.contains('\t') {
        return Err(bad_merge(format!("`{key}` holds a tabulator")));
    }
    let plain = |letter: char| letter.is_alphanumeric() || "_./:@%+,=-".contains(letter);
    if value.chars().all(plain) {
        return Ok(value.to_owned());
    }
    let mut quoted = String::from("\"");
    for letter in value.chars() {
        if matches!(letter, '"' | '\\' | '`' | '$') {
            quoted.push('\\');
        }
        quoted.push(letter);
    }
    quoted.push('"');
    Ok(quoted)
}

/// For the tests: what systemd would read.
#[cfg(test)]
pub(crate) fn parse(text: &str) -> std::collections::BTreeMap<String, String> {
    let lines = logical(Lines::new(text).lines);
    lines.iter().filter_map(|line| read(line)).map(|(key, value)| (key.to_owned(), value)).collect()
}
