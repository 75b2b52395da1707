//! JSON files.

use serde::Serialize;
use serde_json::ser::PrettyFormatter;
use serde_json::{Serializer, Value};

use super::{Merge, bad_merge, merge_json};
use crate::error::{Error, Reason, Result};

/// Merges into a JSON object. Key order, indentation and a missing last newline are kept.
pub(crate) fn merge(text: &str, patch: &Merge) -> Result<String> {
    let mut document = if text.trim().is_empty() {
        Value::Object(serde_json::Map::new())
    } else {
        // The text of serde's error may quote the file.
        serde_json::from_str(text)
            .map_err(|cause| Error::new(Reason::FileSyntax, format!("line {} is not JSON", cause.line())))?
    };
    let Value::Object(object) = &mut document else { return Err(bad_merge("the file is not a JSON object")) };
    if !merge_json(object, patch) {
        return Ok(text.to_owned());
    }
    let mut bytes = Vec::new();
    let written = match indentation(text) {
        Some(indent) => document
            .serialize(&mut Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(indent.as_bytes()))),
        None => document.serialize(&mut Serializer::new(&mut bytes)),
    };
    written.map_err(|cause| bad_merge(format!("cannot be written as JSON: {cause}")))?;
    if text.is_empty() || text.ends_with('\n') {
        bytes.push(b'\n');
    }
    String::from_utf8(bytes).map_err(|_| bad_merge("cannot be written as JSON"))
}

/// What the first nested line is indented with; `None` when the document stands on one line.
fn indentation(text: &str) -> Option<&str> {
    let Some((_, rest)) = text.trim().split_once('\n') else {
        // A file of our own gets two spaces; what somebody wrote on one line stays on one line.
        return text.trim().is_empty().then_some("  ");
    };
    let line = rest.split('\n').next().unwrap_or_default();
    let indent = &line[..line.len() - line.trim_start_matches([' ', '\t']).len()];
    Some(if indent.is_empty() { "  " } else { indent })
}
