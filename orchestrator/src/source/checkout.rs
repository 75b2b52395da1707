use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use contract::ids::Revision;

use super::{SourceError, Tree, parts};

/// A directory with the fleet repository's files, on the laptop of somebody who writes them. It has no revision, because
/// nothing says that the files are those of a commit, and so it can be planned with but never applied.
#[derive(Debug)]
pub struct Checkout {
    root: PathBuf,
}

impl Checkout {
    /// Takes `root` for the repository's root directory.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Follows `path` from the root, refusing symbolic links as a revision does; none where a part is missing.
    fn find(&self, path: &str, wanted: &'static str) -> Result<Option<(PathBuf, fs::FileType)>, SourceError> {
        let mut at = self.root.clone();
        let mut walked = String::new();
        let mut kind = fs::metadata(&at).map_err(|cause| self.broken(&cause))?.file_type();
        for part in parts(path)? {
            if !kind.is_dir() {
                return Err(wrong_entry(&walked, kind, "a directory"));
            }
            at.push(part);
            if !walked.is_empty() {
                walked.push('/');
            }
            walked.push_str(part);
            kind = match fs::symlink_metadata(&at) {
                Ok(metadata) => metadata.file_type(),
                Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(None),
                Err(cause) => return Err(self.broken(&cause)),
            };
            if kind.is_symlink() {
                return Err(wrong_entry(&walked, kind, wanted));
            }
        }
        Ok(Some((at, kind)))
    }

    fn broken(&self, cause: &io::Error) -> SourceError {
        SourceError::Checkout { path: self.root.clone(), cause: cause.to_string() }
    }
}

impl Tree for Checkout {
    fn revision(&self) -> Option<&Revision> {
        None
    }

    fn read(&self, path: &str, limit: usize) -> Result<Option<Vec<u8>>, SourceError> {
        let Some((file, kind)) = self.find(path, "a file")? else { return Ok(None) };
        if !kind.is_file() {
            return Err(wrong_entry(path, kind, "a file"));
        }
        let mut content = Vec::new();
        File::open(&file)
            .and_then(|opened| opened.take(limit as u64 + 1).read_to_end(&mut content))
            .map_err(|cause| self.broken(&cause))?;
        if content.len() > limit {
            return Err(SourceError::TooLarge { what: path.to_owned(), limit: format!("{limit} bytes") });
        }
        Ok(Some(content))
    }

    fn list(&self, directory: &str) -> Result<Vec<String>, SourceError> {
        let found = if directory.is_empty() {
            let kind = fs::metadata(&self.root).map_err(|cause| self.broken(&cause))?.file_type();
            Some((self.root.clone(), kind))
        } else {
            self.find(directory, "a directory")?
        };
        let Some((path, kind)) = found else { return Ok(Vec::new()) };
        if !kind.is_dir() {
            return Err(wrong_entry(directory, kind, "a directory"));
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(path).map_err(|cause| self.broken(&cause))? {
            names.push(entry.map_err(|cause| self.broken(&cause))?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }
}

fn wrong_entry(path: &str, kind: fs::FileType, wanted: &'static str) -> SourceError {
    let found = if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_file() {
        "a file"
    } else {
        "a special file"
    };
    SourceError::WrongEntry { path: path.to_owned(), found, wanted }
}
