//! What INI, env and conf files share: lines that are kept as they are, and scalars as their text.

use serde_json::Value;

use super::bad_merge;
use crate::error::Result;

/// Lines of a file, each with its line ending.
pub(crate) struct Lines {
    /// The lines; every one but the last ends with a newline.
    pub lines: Vec<String>,
    /// `\n`, or `\r\n` when the first line ends so.
    pub ending: &'static str,
}

impl Lines {
    /// Takes a text apart.
    pub(crate) fn new(text: &str) -> Self {
        let ending =
            if text.split_inclusive('\n').next().is_some_and(|line| line.ends_with("\r\n")) { "\r\n" } else { "\n" };
        Self { lines: text.split_inclusive('\n').map(str::to_owned).collect(), ending }
    }

    /// Puts a new line at `index`, and ends the line before it when that has no ending.
    pub(crate) fn insert(&mut self, index: usize, line: &str) {
        if let Some(previous) = index.checked_sub(1).and_then(|previous| self.lines.get_mut(previous))
            && !previous.ends_with('\n')
        {
            previous.push_str(self.ending);
        }
        self.lines.insert(index, format!("{line}{}", self.ending));
    }

    /// Replaces the line at `index` and keeps its ending.
    pub(crate) fn replace(&mut self, index: usize, line: &str) {
        let ending = if self.lines[index].ends_with('\n') { self.ending } else { "" };
        self.lines[index] = format!("{line}{ending}");
    }

    /// The text again.
    pub(crate) fn text(&self) -> String {
        self.lines.concat()
    }
}

/// A key as it may stand in a line: nothing that would end it or start something else.
pub(crate) fn check_key(key: &str, forbidden: &[char]) -> Result<()> {
    let fine = !key.is_empty()
        && key.trim() == key
        && !key.starts_with(['#', ';', '['])
        && !key.chars().any(|letter| letter.is_control() || forbidden.contains(&letter));
    if fine { Ok(()) } else { Err(bad_merge(format!("`{}` cannot be a key of this format", key.escape_debug()))) }
}

/// The text of a scalar. A line break in it would start a line of its own, which nobody assigned.
pub(crate) fn scalar(key: &str, value: &Value) -> Result<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        Value::Null | Value::Array(_) | Value::Object(_) => {
            return Err(bad_merge(format!("`{key}` is not a text, number or boolean, and this format holds no other")));
        }
    };
    if text.chars().any(|letter| letter.is_control() && letter != '\t') {
        return Err(bad_merge(format!("`{key}` holds a line break or another control character")));
    }
    Ok(text)
}
