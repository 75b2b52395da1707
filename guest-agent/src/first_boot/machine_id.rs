//! The guest's id: machine-id(5). systemd makes one at boot when it finds the file empty; this makes sure of it.

use contract::ids::Sha256Digest;
use sha2::{Digest, Sha256};

use crate::error::{Error, Reason, Result};
use crate::files::{Attributes, Root};
use crate::layout;
use crate::log;

/// Mode of the file, as systemd sets it.
pub(crate) const MODE: u32 = 0o444;

/// SHA-256 of an id: the id itself is confidential.
pub(crate) fn digest(id: &str) -> Result<Sha256Digest> {
    format!("{:x}", Sha256::digest(id.as_bytes()))
        .parse()
        .map_err(|cause| Error::new(Reason::MachineId, format!("cannot digest the machine-id: {cause}")))
}

/// The id in the file; `None` when there is none that counts (`uninitialized`, empty, malformed, all zeros).
pub(crate) fn read(root: &Root) -> Result<Option<String>> {
    let Some(content) = root.read(layout::MACHINE_ID, layout::SMALL_FILE)? else { return Ok(None) };
    Ok(std::str::from_utf8(&content.bytes)
        .ok()
        .map(|text| text.trim_end_matches('\n').to_owned())
        .filter(|id| valid(id)))
}

fn valid(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) && id.bytes().any(|b| b != b'0')
}

/// Keeps the id that systemd made for this boot, or makes one where there is none, or another guest's.
pub(crate) fn ensure_fresh(root: &Root, others: Option<&Sha256Digest>) -> Result<()> {
    let why = match read(root)? {
        None => "none was there",
        Some(id) if Some(&digest(&id)?) == others => "it was another guest's",
        Some(_) => return Ok(()),
    };
    let attributes = Attributes { mode: MODE, owner: root.owner() };
    root.write(layout::MACHINE_ID, format!("{}\n", random()?).as_bytes(), attributes)
        .map_err(|error| Error::new(Reason::MachineId, error.message))?;
    log::info(format_args!("made a new machine-id, because {why}"));
    Ok(())
}

/// A random id, formed as a UUID of version 4 without hyphens, as systemd forms its own.
fn random() -> Result<String> {
    let mut bytes = [0u8; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| Error::new(Reason::MachineId, format!("the kernel gives no random bytes: {errno}")))?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TEMPLATE: &str = "0123456789abcdef0123456789abcdef";

    fn after(before: Option<&str>) -> String {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        if let Some(text) = before {
            root.write_own(layout::MACHINE_ID, text.as_bytes(), 0o444).unwrap();
        }
        ensure_fresh(&root, Some(&digest(TEMPLATE).unwrap())).unwrap();
        assert_eq!(root.read(layout::MACHINE_ID, 100).unwrap().unwrap().attributes.mode, 0o444);
        read(&root).unwrap().unwrap()
    }

    #[test]
    fn replaces_what_is_not_an_id_of_its_own() {
        let long = "a".repeat(33);
        let zeros = "0".repeat(32);
        let bad = [
            None,
            Some(""),
            Some("\n"),
            Some("uninitialized\n"),
            Some(&long),
            Some(&zeros),
            Some("ABCDEF"),
            Some(TEMPLATE),
        ];
        let mut made: Vec<String> = bad.into_iter().map(after).collect();
        made.sort();
        made.dedup();
        assert_eq!(made.len(), bad.len(), "every one is different");
        assert!(made.iter().all(|id| valid(id) && id != TEMPLATE && id.as_bytes()[12] == b'4'));
    }

    #[test]
    fn keeps_what_systemd_made() {
        let made = "11112222333344445555666677778888";
        assert_eq!(after(Some(&format!("{made}\n"))), made);
    }
}
