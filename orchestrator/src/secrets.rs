//! The site's secrets: a YAML file of `name: value` on the orchestrator, readable by nobody else.
//!
//! A site refers to them by name, so a merge can move a guest to a new password that is on the site already, and git
//! never sees it. Values are read when assignments are rendered and live no longer than that.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use contract::ids::SecretName;
use contract::secret::Secret;

/// Largest file: a thousand secrets of a kilobyte.
const LIMIT: u64 = 1 << 20;

/// Why the secrets cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// The file itself.
    #[error("the secrets file {path} cannot be read: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others may read it.
    #[error("the secrets file {path} has mode {mode:04o}; make it 0600")]
    Open {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Too large to be one.
    #[error("the secrets file {path} is larger than 1 MiB")]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// Not a mapping of names to strings. The parser's words are left out: they may quote a secret.
    #[error("the secrets file {path} is not a YAML mapping of secret names to strings{}", line.map_or(String::new(), |line| format!(" (line {line})")))]
    Form {
        /// Which.
        path: PathBuf,
        /// Where the parser stopped.
        line: Option<usize>,
    },
}

impl SecretsError {
    /// Stable label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::File { .. } => "secrets-unreadable",
            Self::Open { .. } => "secrets-open-to-others",
            Self::TooLarge { .. } => "secrets-too-large",
            Self::Form { .. } => "secrets-form",
        }
    }
}

/// Values by name. `Debug` shows names only, because [`Secret`] hides itself.
#[derive(Debug, Default)]
pub struct Secrets(BTreeMap<SecretName, Secret>);

impl Secrets {
    /// Reads the file; no file configured means no secrets.
    pub fn load(path: Option<&Path>) -> Result<Self, SecretsError> {
        let Some(path) = path else { return Ok(Self::default()) };
        let fail = |source| SecretsError::File { path: path.to_owned(), source };
        let metadata = std::fs::metadata(path).map_err(fail)?;
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(SecretsError::Open { path: path.to_owned(), mode });
        }
        if metadata.len() > LIMIT {
            return Err(SecretsError::TooLarge { path: path.to_owned() });
        }
        let text = zeroize::Zeroizing::new(std::fs::read_to_string(path).map_err(fail)?);
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_yaml::from_str(&text)
            .map(Self)
            .map_err(|error| SecretsError::Form { path: path.to_owned(), line: error.location().map(|at| at.line()) })
    }

    /// One secret.
    pub fn get(&self, name: &SecretName) -> Option<&Secret> {
        self.0.get(name)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn a_private_file_is_read_and_never_shown() {
        let file = file("mqtt: hunter2\n", 0o600);
        let secrets = Secrets::load(Some(file.path())).unwrap();
        assert_eq!(secrets.get(&"mqtt".parse().unwrap()).unwrap().expose(), "hunter2");
        assert!(!format!("{secrets:?}").contains("hunter2"));
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let file = file("mqtt: hunter2\n", 0o640);
        assert_eq!(Secrets::load(Some(file.path())).unwrap_err().reason(), "secrets-open-to-others");
    }

    #[test]
    fn an_error_does_not_quote_the_file() {
        let file = file("mqtt: [hunter2\n", 0o600);
        let error = Secrets::load(Some(file.path())).unwrap_err();
        assert_eq!(error.reason(), "secrets-form");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}
