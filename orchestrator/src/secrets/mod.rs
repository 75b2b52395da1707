//! The site's secrets by name. They stand encrypted in the fleet repository, or in a file on the orchestrator.
//!
//! For one name, the first of these counts: `sites/<site>/secrets.d/<name>.age`, `sites/<site>/secrets.age`, the local
//! file. Each holds a YAML mapping `name: value`. Values are read when assignments are rendered and live no longer than
//! that. What cannot be read stands in the way of what comes after it: a value of old must not come back because the
//! newer one is damaged.

mod error;
mod files;
mod recipients;
mod sealed;

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use contract::ids::SecretName;
use contract::secret::Secret;
use zeroize::Zeroizing;

pub use error::SecretsError;
pub use files::{Finding, Sealed, all_file, one_file, recipients_file, recipients_of};
pub use recipients::Recipients;
pub use sealed::{Identities, Told, open, seal, told};

/// Values by name. `Debug` shows names only, because [`Secret`] hides itself.
#[derive(Debug, Default)]
pub struct Secrets {
    known: BTreeMap<SecretName, Result<Secret, SecretsError>>,
    /// What is not known may stand where nobody can read it.
    trouble: Option<SecretsError>,
}

impl Secrets {
    /// Reads everything that there is: the encrypted files of a revision, and the local file.
    pub fn gather(sealed: &Sealed, keys: &Identities, local: Option<&Path>) -> Self {
        let mut secrets = Self::default();
        for (name, secret) in sealed.open_each(keys) {
            secrets.known.insert(name.clone(), secret);
        }
        secrets.fill(sealed.open_all(keys));
        if secrets.trouble.is_none() {
            secrets.fill(local.map_or_else(|| Ok(BTreeMap::new()), load));
        }
        secrets
    }

    fn fill(&mut self, found: Result<BTreeMap<SecretName, Secret>, SecretsError>) {
        match found {
            Ok(found) => {
                for (name, secret) in found {
                    self.known.entry(name).or_insert(Ok(secret));
                }
            }
            Err(error) => self.trouble = Some(error),
        }
    }

    /// One secret; none when nothing could hold it.
    pub fn get(&self, name: &SecretName) -> Result<Option<&Secret>, &SecretsError> {
        match (self.known.get(name), &self.trouble) {
            (Some(known), _) => known.as_ref().map(Some),
            (None, Some(trouble)) => Err(trouble),
            (None, None) => Ok(None),
        }
    }

    /// All of them, for a person with a key; the first one that cannot be read is an error.
    pub fn all(self) -> Result<BTreeMap<SecretName, Secret>, SecretsError> {
        match self.trouble {
            Some(trouble) => Err(trouble),
            None => self.known.into_iter().map(|(name, secret)| secret.map(|secret| (name, secret))).collect(),
        }
    }
}

/// Reads the local file.
fn load(path: &Path) -> Result<BTreeMap<SecretName, Secret>, SecretsError> {
    let text = read_private(path, files::LIMIT as u64)?;
    parse(&path.display().to_string(), &text)
}

/// Reads a text file that only its owner may read.
fn read_private(path: &Path, limit: u64) -> Result<Zeroizing<String>, SecretsError> {
    let file = path.display().to_string();
    let fail = |cause: std::io::Error| SecretsError::Unreadable { file: file.clone(), cause: cause.to_string() };
    let opened = std::fs::File::open(path).map_err(fail)?;
    let metadata = opened.metadata().map_err(fail)?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(SecretsError::Open { file, mode });
    }
    if metadata.len() > limit {
        return Err(SecretsError::TooLarge { file, limit: (limit >> 10) as usize });
    }
    // Room for all of it from the start: a buffer that grows leaves pieces behind that nobody wipes.
    let mut text = Zeroizing::new(String::with_capacity(limit.min(metadata.len() + 1) as usize));
    opened.take(limit).read_to_string(&mut text).map_err(fail)?;
    Ok(text)
}

/// Reads `name: value` lines.
pub fn parse(file: &str, text: &str) -> Result<BTreeMap<SecretName, Secret>, SecretsError> {
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(BTreeMap::new());
    }
    serde_yaml::from_str(text)
        .map_err(|error| SecretsError::Form { file: file.to_owned(), line: error.location().map(|at| at.line()) })
}

/// Writes `name: value` lines. JSON's strings are YAML's, and need no guessing about quotation marks.
pub fn to_yaml(secrets: &BTreeMap<SecretName, Secret>) -> Zeroizing<String> {
    // The longest escape of a byte has six.
    let room = secrets.iter().map(|(name, secret)| name.as_str().len() + 6 * secret.expose().len() + 5).sum();
    let mut text = Zeroizing::new(String::with_capacity(room));
    for (name, secret) in secrets {
        text.extend([name.as_str(), ": "]);
        // Serialising a string cannot fail.
        text.push_str(&Zeroizing::new(serde_json::to_string(secret.expose()).unwrap_or_default()));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests;
