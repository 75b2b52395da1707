//! Where a site's secrets stand in the fleet repository, and what can be said about them without a key.

use std::collections::BTreeMap;

use contract::ids::{SecretName, SiteName};
use contract::secret::Secret;

use super::recipients;
use super::{Identities, Recipients, SecretsError, Told, open, told};
use crate::source::{SourceError, Tree};

/// Largest `secrets.age`, in bytes: a thousand secrets of a kilobyte.
pub(super) const LIMIT: usize = 1 << 20;
/// Largest file of one secret, in bytes.
const ONE_LIMIT: usize = 64 << 10;
/// Most files of one secret; a site has some dozen.
const FILES: usize = 256;
/// Ending of an age file.
const ENDING: &str = ".age";

/// `sites/<site>/secrets.age`.
pub fn all_file(site: &SiteName) -> String {
    format!("sites/{site}/secrets{ENDING}")
}

/// `sites/<site>/secrets.d`.
fn directory(site: &SiteName) -> String {
    format!("sites/{site}/secrets.d")
}

/// `sites/<site>/secrets.d/<name>.age`.
pub fn one_file(site: &SiteName, name: &SecretName) -> String {
    format!("{}/{name}{ENDING}", directory(site))
}

/// `sites/<site>/recipients.txt`.
pub fn recipients_file(site: &SiteName) -> String {
    format!("sites/{site}/recipients.txt")
}

/// The encrypted secrets of a site as one tree has them. Trouble with one of the files is kept with it: secrets that
/// cannot be read do not make a revision a bad one.
#[derive(Debug, Clone, Default)]
pub struct Sealed {
    /// `secrets.age`.
    all: Option<(String, Content)>,
    /// `secrets.d`, by name.
    each: BTreeMap<SecretName, (String, Content)>,
    /// Why `secrets.d` as a whole is not what it should be.
    directory: Option<SecretsError>,
}

type Content = Result<Vec<u8>, SecretsError>;

impl Sealed {
    /// Reads a site's encrypted files.
    pub fn read(tree: &dyn Tree, site: &SiteName) -> Self {
        let mut sealed = Self::default();
        let file = all_file(site);
        sealed.all = content(tree, &file, LIMIT).transpose().map(|content| (file, content));
        match names(tree, site) {
            Ok(names) => {
                for name in names {
                    let file = one_file(site, &name);
                    if let Some(content) = content(tree, &file, ONE_LIMIT).transpose() {
                        sealed.each.insert(name, (file, content));
                    }
                }
            }
            Err(error) => sealed.directory = Some(error),
        }
        sealed
    }

    /// Whether there is nothing at all.
    pub fn is_empty(&self) -> bool {
        self.all.is_none() && self.each.is_empty() && self.directory.is_none()
    }

    /// Names that have a file of their own.
    pub fn names(&self) -> impl Iterator<Item = &SecretName> {
        self.each.keys()
    }

    /// Whether there is a `secrets.age`.
    pub fn has_all(&self) -> bool {
        self.all.is_some()
    }

    /// What is in `secrets.age`.
    pub(super) fn open_all(&self, keys: &Identities) -> Result<BTreeMap<SecretName, Secret>, SecretsError> {
        if let Some(error) = &self.directory {
            return Err(error.clone());
        }
        match &self.all {
            Some((file, content)) => open(file, content.as_ref().map_err(Clone::clone)?, keys),
            None => Ok(BTreeMap::new()),
        }
    }

    /// The secrets that have a file of their own.
    pub(super) fn open_each(
        &self,
        keys: &Identities,
    ) -> impl Iterator<Item = (&SecretName, Result<Secret, SecretsError>)> {
        self.each.iter().map(move |(name, (file, content))| (name, open_one(name, file, content, keys)))
    }

    /// Whether every file is encrypted to exactly the list, as far as that can be told without a key.
    pub fn lint(&self, tree: &dyn Tree, site: &SiteName) -> Vec<Finding> {
        let list = recipients_of(tree, site);
        let list = match list {
            Ok(Some(list)) => list,
            Ok(None) if self.is_empty() => return Vec::new(),
            Ok(None) => {
                let what = "is missing, so nobody can tell whom the secrets are for".to_owned();
                return vec![Finding::Wrong(SecretsError::Recipients { file: recipients_file(site), what })];
            }
            Err(error) => return vec![Finding::Wrong(error)],
        };
        let mut found: Vec<Finding> = self.directory.iter().cloned().map(Finding::Wrong).collect();
        for (file, content) in self.all.iter().chain(self.each.values()) {
            let told = content.as_ref().map_err(Clone::clone).and_then(|content| told(file, content, &list));
            match told {
                Ok(Told::AsListed) => {}
                Ok(Told::Unnamed) => found.push(Finding::Untold { file: file.clone() }),
                Ok(Told::Otherwise(cause)) => {
                    found.push(Finding::Wrong(SecretsError::WrongRecipient { file: file.clone(), cause }));
                }
                Err(error) => found.push(Finding::Wrong(error)),
            }
        }
        found
    }
}

/// What is to be said about a site's encrypted files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// An error.
    Wrong(SecretsError),
    /// A warning: the file was made by another tool and does not name its recipients.
    Untold {
        /// Which.
        file: String,
    },
}

impl Finding {
    /// Stable label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Wrong(error) => error.reason(),
            Self::Untold { .. } => "secrets-recipients-unknown",
        }
    }

    /// What to do.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Wrong(error) => error.remedy(),
            Self::Untold { .. } => "nothing if it was made with `age -R recipients.txt`; `ctrlable secrets` names them",
        }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Wrong(error) => error.fmt(f),
            Self::Untold { file } => {
                write!(f, "{file} has the right number of recipients, but it was not made by ctrlable and names none")
            }
        }
    }
}

/// The list of a site; none when there is no such file.
pub fn recipients_of(tree: &dyn Tree, site: &SiteName) -> Result<Option<Recipients>, SecretsError> {
    let file = recipients_file(site);
    content(tree, &file, recipients::LIMIT)?.map(|content| Recipients::parse(&file, &content)).transpose()
}

/// Names that have a file of their own. Whatever else stands there is a mistake that nobody would notice otherwise.
fn names(tree: &dyn Tree, site: &SiteName) -> Result<Vec<SecretName>, SecretsError> {
    let directory = directory(site);
    let fail = |cause: String| SecretsError::Unreadable { file: directory.clone(), cause };
    let entries = tree.list(&directory).map_err(|error| fail(error.to_string()))?;
    if entries.len() > FILES {
        return Err(fail(format!("it has {} files; {FILES} are the most", entries.len())));
    }
    let mut names = Vec::new();
    for entry in entries {
        match entry.strip_suffix(ENDING).and_then(|name| name.parse().ok()) {
            Some(name) => names.push(name),
            None => return Err(fail(format!("`{entry}` is not a secret's name and {ENDING}"))),
        }
    }
    Ok(names)
}

fn content(tree: &dyn Tree, file: &str, limit: usize) -> Result<Option<Vec<u8>>, SecretsError> {
    tree.read(file, limit).map_err(|error| match error {
        SourceError::TooLarge { .. } => SecretsError::TooLarge { file: file.to_owned(), limit: limit >> 10 },
        other => SecretsError::Unreadable { file: file.to_owned(), cause: other.to_string() },
    })
}

/// A file of one secret names it inside, too: renaming the file does not make it another's value.
fn open_one(name: &SecretName, file: &str, content: &Content, keys: &Identities) -> Result<Secret, SecretsError> {
    let mut inside = open(file, content.as_ref().map_err(Clone::clone)?, keys)?;
    match (inside.remove(name), inside.is_empty()) {
        (Some(secret), true) => Ok(secret),
        _ => Err(SecretsError::OtherName { file: file.to_owned(), name: name.to_string() }),
    }
}
