//! What an agent keeps for its orchestrator and does not understand: how new HQ's documents were at least, in a text
//! that proves itself. A lost ledger is raised again from the guests; a guest that lies only wastes a little memory.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

/// Largest floor in bytes: three small signed documents with a handful of signatures each are below 20 KiB.
pub const MAX_BYTES: usize = 32 * 1024;

/// An opaque text of at most [`MAX_BYTES`].
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Floor(String);

/// A floor that is too large to be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a floor of {0} bytes; at most {MAX_BYTES} are kept")]
pub struct FloorTooLarge(usize);

impl Floor {
    /// Takes a text that is not too large.
    pub fn new(text: impl Into<String>) -> Result<Self, FloorTooLarge> {
        let text = text.into();
        if text.len() > MAX_BYTES { Err(FloorTooLarge(text.len())) } else { Ok(Self(text)) }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Floor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Floor({} bytes)", self.0.len())
    }
}

impl<'de> Deserialize<'de> for Floor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn is_kept_up_to_its_size_and_not_printed() {
        let largest = "f".repeat(MAX_BYTES);
        let floor: Floor = serde_json::from_str(&format!("\"{largest}\"")).unwrap();
        assert_eq!(floor.as_str(), largest);
        assert_eq!(format!("{floor:?}"), "Floor(32768 bytes)");
        let error = serde_json::from_str::<Floor>(&format!("\"{largest}f\"")).unwrap_err();
        assert!(error.to_string().contains("32769 bytes"), "{error}");
    }
}
