use std::path::Path;

use contract::ids::Revision;
use git2::{ErrorCode, ObjectType, Oid};

use super::{SourceError, Tree, parts};

/// File modes of git's tree entries: S_IFMT bits as git itself writes them.
pub(super) mod mode {
    pub(in crate::source) const TYPE: i32 = 0o170_000;
    pub(in crate::source) const DIRECTORY: i32 = 0o040_000;
    pub(in crate::source) const FILE: i32 = 0o100_000;
    pub(in crate::source) const LINK: i32 = 0o120_000;
    pub(in crate::source) const SUBMODULE: i32 = 0o160_000;
}

/// The files of one revision. Nothing is written anywhere to read them.
pub struct Snapshot<'repo> {
    git: &'repo git2::Repository,
    directory: &'repo Path,
    revision: Revision,
    root: Oid,
    limit: usize,
}

/// What stands at a path.
struct Found {
    id: Oid,
    mode: i32,
}

impl<'repo> Snapshot<'repo> {
    pub(super) fn new(
        git: &'repo git2::Repository,
        directory: &'repo Path,
        revision: Revision,
        root: Oid,
        limit: usize,
    ) -> Self {
        Self { git, directory, revision, root, limit }
    }

    /// The revision.
    pub fn id(&self) -> &Revision {
        &self.revision
    }

    /// Follows `path` from the root; none where a part is missing.
    fn find(&self, path: &str) -> Result<Option<Found>, SourceError> {
        let mut at = Found { id: self.root, mode: mode::DIRECTORY };
        let mut walked = String::new();
        for part in parts(path)? {
            if at.mode & mode::TYPE != mode::DIRECTORY {
                return Err(wrong_entry(&walked, at.mode, "a directory"));
            }
            let tree = self.tree(at.id, &walked)?;
            let Some(entry) = tree.get_name(part) else { return Ok(None) };
            at = Found { id: entry.id(), mode: entry.filemode_raw() };
            if !walked.is_empty() {
                walked.push('/');
            }
            walked.push_str(part);
        }
        Ok(Some(at))
    }

    fn tree(&self, id: Oid, path: &str) -> Result<git2::Tree<'repo>, SourceError> {
        self.check_size(id, ObjectType::Tree, path, self.limit)?;
        self.git.find_tree(id).map_err(|cause| self.broken(&cause))
    }

    /// Looks at the object's header, so that what is too large is never inflated.
    fn check_size(&self, id: Oid, wanted: ObjectType, path: &str, limit: usize) -> Result<(), SourceError> {
        let (size, kind) = self.git.odb().and_then(|odb| odb.read_header(id)).map_err(|cause| self.broken(&cause))?;
        if kind != wanted {
            let cause = format!("{path} is a {} where its directory says {}", kind.str(), wanted.str());
            return Err(SourceError::Store { path: self.directory.to_owned(), cause });
        }
        if size > limit {
            let what = if path.is_empty() { "the repository's root directory" } else { path };
            return Err(SourceError::TooLarge { what: what.to_owned(), limit: format!("{limit} bytes") });
        }
        Ok(())
    }

    fn broken(&self, cause: &git2::Error) -> SourceError {
        let missing = if cause.code() == ErrorCode::NotFound { "an object is missing: " } else { "" };
        SourceError::Store { path: self.directory.to_owned(), cause: format!("{missing}{}", cause.message()) }
    }
}

impl Tree for Snapshot<'_> {
    fn revision(&self) -> Option<&Revision> {
        Some(&self.revision)
    }

    fn read(&self, path: &str, limit: usize) -> Result<Option<Vec<u8>>, SourceError> {
        let Some(found) = self.find(path)? else { return Ok(None) };
        if found.mode & mode::TYPE != mode::FILE {
            return Err(wrong_entry(path, found.mode, "a file"));
        }
        self.check_size(found.id, ObjectType::Blob, path, limit.min(self.limit))?;
        let blob = self.git.find_blob(found.id).map_err(|cause| self.broken(&cause))?;
        Ok(Some(blob.content().to_vec()))
    }

    fn list(&self, directory: &str) -> Result<Vec<String>, SourceError> {
        let root = Found { id: self.root, mode: mode::DIRECTORY };
        let found = if directory.is_empty() { Some(root) } else { self.find(directory)? };
        let Some(found) = found else { return Ok(Vec::new()) };
        if found.mode & mode::TYPE != mode::DIRECTORY {
            return Err(wrong_entry(directory, found.mode, "a directory"));
        }
        let tree = self.tree(found.id, directory)?;
        let mut names: Vec<String> =
            tree.iter().map(|entry| String::from_utf8_lossy(entry.name_bytes()).into_owned()).collect();
        names.sort();
        Ok(names)
    }
}

fn wrong_entry(path: &str, mode: i32, wanted: &'static str) -> SourceError {
    let found = match mode & mode::TYPE {
        mode::DIRECTORY => "a directory",
        mode::FILE => "a file",
        mode::LINK => "a symbolic link",
        mode::SUBMODULE => "a submodule",
        _ => "an entry of an unknown kind",
    };
    SourceError::WrongEntry { path: path.to_owned(), found, wanted }
}
