//! What a seal leaves behind: what it cleared, and how to recognise the template's identity without holding it.

use std::collections::BTreeMap;

use contract::ids::{ReleaseId, Sha256Digest, TemplateName};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Reason, Result};
use crate::files::Root;
use crate::layout;

/// The file `seal.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SealRecord {
    /// Version of the agent that sealed.
    pub agent: String,
    /// From the bootstrap file.
    pub release: ReleaseId,
    /// From the bootstrap file.
    pub template: TemplateName,
    /// SHA-256 of the machine-id that the template had; absent when it never had one.
    pub machine_id: Option<Sha256Digest>,
    /// Fingerprints of the SSH host keys that the template had, by algorithm.
    pub ssh_host_keys: BTreeMap<String, String>,
    /// Every path that was cleared.
    pub cleared: Vec<String>,
}

impl SealRecord {
    /// Reads the record; `None` when the guest was never sealed.
    pub(crate) fn load(root: &Root) -> Result<Option<Self>> {
        let Some(content) = root.read(layout::SEAL, layout::SMALL_FILE)? else { return Ok(None) };
        serde_json::from_slice(&content.bytes)
            .map(Some)
            .map_err(|cause| Error::new(Reason::NotSealed, format!("{} cannot be read: {cause}", layout::SEAL)))
    }

    /// Writes the record.
    pub(crate) fn save(&self, root: &Root) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|cause| Error::new(Reason::FileIo, format!("cannot write {}: {cause}", layout::SEAL)))?;
        root.write_own(layout::SEAL, &text, 0o600)
    }
}
