//! The floor that the agent keeps for its orchestrator: a text that it stores, reports and does not understand.

use contract::floor::Floor;

use crate::error::{Error, Reason, Result};
use crate::files::Root;
use crate::{layout, log};

/// The floor on disk. One that cannot be read is none: the orchestrator sends it again.
pub(crate) fn load(root: &Root) -> Option<Floor> {
    let unusable = |why: String| {
        log::warn(&Error::new(Reason::FileSyntax, format!("{} is not used: {why}", layout::FLOOR)));
        None
    };
    match root.read_text(layout::FLOOR, layout::SMALL_FILE) {
        Ok(None) => None,
        Ok(Some(text)) => Floor::new(text).map_or_else(|error| unusable(error.to_string()), Some),
        Err(error) => unusable(error.message),
    }
}

/// Writes the floor.
pub(crate) fn save(root: &Root, floor: &Floor) -> Result<()> {
    root.write_own(layout::FLOOR, floor.as_str().as_bytes(), 0o600)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn is_found_again_and_a_damaged_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        assert_eq!(load(&root), None);
        let floor = Floor::new("keys 2, channels 17").unwrap();
        save(&root, &floor).unwrap();
        assert_eq!(load(&root), Some(floor));
        assert_eq!(root.read(layout::FLOOR, 100).unwrap().unwrap().attributes.mode & 0o7777, 0o600);
        for bad in [&b"\xff\xfe"[..], &vec![b'f'; contract::floor::MAX_BYTES + 1]] {
            root.write_own(layout::FLOOR, bad, 0o600).unwrap();
            assert_eq!(load(&root), None);
        }
    }
}
