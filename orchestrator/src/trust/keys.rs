use std::collections::BTreeMap;

use super::signature::{Forged, KeyId, Malformed, SignatureFile, VerifyingKey};

/// HQ's public keys, at least one, and how many of them must have signed what is believed.
#[derive(Debug, Clone)]
pub struct KeySet {
    keys: BTreeMap<KeyId, VerifyingKey>,
    threshold: usize,
}

/// A list of keys that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// There is none in it.
    #[error("there is no public key of HQ, so no release could ever be accepted")]
    Empty,
    /// An entry that is no key.
    #[error("entry {entry} is not a minisign public key: {cause}")]
    NotAKey {
        /// From 1, not counting comments.
        entry: usize,
        /// Why.
        cause: Malformed,
    },
    /// Two entries have one key id; a signature could not tell which it means.
    #[error("two entries have the key id {0}")]
    Duplicate(KeyId),
    /// More signatures are asked for than there are keys, or none.
    #[error("{wanted} different signatures are asked for, and there are {keys} keys")]
    Threshold {
        /// Asked for.
        wanted: u32,
        /// There are.
        keys: usize,
    },
}

impl KeySetError {
    /// Stable label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Empty => "keys-empty",
            Self::NotAKey { .. } => "key-malformed",
            Self::Duplicate(_) => "key-duplicate",
            Self::Threshold { .. } => "threshold-impossible",
        }
    }

    /// What to do.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Empty | Self::NotAKey { .. } => "give the second line of HQ's hq.pub, which begins with RW",
            Self::Duplicate(_) => "remove one of them",
            Self::Threshold { .. } => "give a threshold from 1 to the number of keys",
        }
    }
}

/// A signature that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The key that made it.
    pub key: KeyId,
    /// Covered by it.
    pub trusted_comment: String,
}

/// A signature that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The file is not one of minisign's.
    #[error("it is not a minisign signature: {0}")]
    Malformed(#[from] Malformed),
    /// Made with a key that is not in the set.
    #[error("it is made with key {key}; known are {known}")]
    UnknownKey {
        /// The key that it names.
        key: KeyId,
        /// Those in the set, in words.
        known: String,
    },
    /// The file, the signature or the trusted comment were changed after signing.
    #[error("it is not the signature of key {key} over this file and comment: one of them was changed after signing")]
    Forged {
        /// The key that it names.
        key: KeyId,
    },
}

impl KeySet {
    /// Reads public keys, any one of which is enough; each as base64 or as the content of a `.pub` file; comments and empty lines are skipped.
    pub fn parse(lines: &[String]) -> Result<Self, KeySetError> {
        let mut keys = BTreeMap::new();
        let lines = lines.iter().flat_map(|entry| entry.lines()).map(str::trim);
        let encoded = lines.filter(|line| !line.is_empty() && !line.starts_with("untrusted comment:"));
        for (entry, line) in (1..).zip(encoded) {
            let key: VerifyingKey = line.parse().map_err(|cause| KeySetError::NotAKey { entry, cause })?;
            let id = key.id();
            if keys.insert(id, key).is_some() {
                return Err(KeySetError::Duplicate(id));
            }
        }
        if keys.is_empty() { Err(KeySetError::Empty) } else { Ok(Self { keys, threshold: 1 }) }
    }

    /// The same keys, of which this many must have signed.
    pub fn with_threshold(self, wanted: u32) -> Result<Self, KeySetError> {
        let keys = self.keys.len();
        match usize::try_from(wanted) {
            Ok(threshold) if (1..=keys).contains(&threshold) => Ok(Self { threshold, ..self }),
            _ => Err(KeySetError::Threshold { wanted, keys }),
        }
    }

    /// How many different keys must have signed.
    pub fn threshold(&self) -> usize {
        self.threshold
    }

    /// The ids of the keys.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.keys.keys().copied()
    }

    /// Verifies a `.minisig` file over `content`.
    pub fn verify(&self, content: &[u8], signature_file: &[u8]) -> Result<Signed, SignatureError> {
        let signature = SignatureFile::parse(signature_file)?;
        let id = signature.key();
        let Some(key) = self.keys.get(&id) else {
            let known: Vec<String> = self.ids().map(|known| known.to_string()).collect();
            return Err(SignatureError::UnknownKey { key: id, known: known.join(", ") });
        };
        match signature.verify(key, content) {
            Ok(comment) => Ok(Signed { key: id, trusted_comment: comment.to_owned() }),
            Err(Forged) => Err(SignatureError::Forged { key: id }),
        }
    }

    /// Verifies the trusted comment of a `.minisig` file without the file that was signed.
    pub(super) fn verify_comment(&self, signature_file: &[u8]) -> Option<Signed> {
        let signature = SignatureFile::parse(signature_file).ok()?;
        let comment = signature.verify_comment(self.keys.get(&signature.key())?).ok()?;
        Some(Signed { key: signature.key(), trusted_comment: comment.to_owned() })
    }
}
