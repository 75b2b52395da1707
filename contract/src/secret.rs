//! Secrets as types: [`Secret`] for one string, [`Redacted`] for a document that contains some.

use std::{fmt, io};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use zeroize::{Zeroize, Zeroizing};

/// A secret string. `Debug` and `Display` never show it; the memory is wiped when it is dropped.
///
/// It serialises as a plain string, because it has to cross the wire inside TLS; nothing else may serialise it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes ownership of a secret.
    pub fn new(value: impl Into<String>) -> Self {
        Self(Zeroizing::new(value.into()))
    }

    /// The secret itself. Every call site is a place to look at in a review.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// A JSON document with secrets somewhere inside. `Debug` shows only that there is one; its strings are wiped when it is
/// dropped.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Redacted(Value);

impl Redacted {
    /// Wraps a document.
    pub fn new(value: Value) -> Self {
        Self(value)
    }

    /// The document with its secrets.
    pub fn expose(&self) -> &Value {
        &self.0
    }
}

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted document]")
    }
}

impl Drop for Redacted {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// Overwrites every string of a document. Keys are no secrets, and numbers are not kept where they could be.
pub fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(items) => items.iter_mut().for_each(wipe),
        Value::Object(fields) => fields.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// JSON of a value with secrets inside, in a buffer that is wiped. The buffer has its size from the start: one that
/// grows leaves pieces behind that nobody wipes.
pub fn to_json(value: &impl Serialize) -> Zeroizing<Vec<u8>> {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
            self.0 += piece.len();
            Ok(piece.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut size = Count(0);
    // Neither counting nor a vector fails, and no type of this crate has what JSON cannot say.
    let _ = serde_json::to_writer(&mut size, value);
    let mut text = Zeroizing::new(Vec::with_capacity(size.0));
    let _ = serde_json::to_writer(&mut *text, value);
    debug_assert_eq!(text.len(), size.0);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_and_display_hide_the_value() {
        let secret = Secret::new("hunter2");
        assert!(!format!("{secret:?} {secret}").contains("hunter2"));
        let document = Redacted::new(serde_json::json!({ "password": "hunter2" }));
        assert!(!format!("{document:?}").contains("hunter2"));
    }

    #[test]
    fn every_string_of_a_document_is_wiped_and_the_rest_stays() {
        let mut value = serde_json::json!({ "a": "hunter2", "b": [1, true, { "c": "hunter3" }], "d": null });
        wipe(&mut value);
        assert_eq!(value, serde_json::json!({ "a": "", "b": [1, true, { "c": "" }], "d": null }));
    }

    #[test]
    fn json_has_room_from_the_start() {
        let document = Redacted::new(serde_json::json!({ "password": "hunter\"2ü" }));
        let text = to_json(&document);
        assert_eq!(text.as_slice(), serde_json::to_vec(&document).expect("it is JSON").as_slice());
        assert_eq!(text.capacity(), text.len());
    }
}
