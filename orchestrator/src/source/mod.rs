//! Pulls the fleet repository: one branch into a bare repository, files read at a commit.
//!
//! There is no work tree, so nothing is checked out, no hook runs, and a symbolic link or submodule in the repository is
//! only an entry that is refused by name. What is fetched is not believed here; that is [`crate::trust`]'s work.

/// A directory on a laptop, read like a revision.
mod checkout;
/// Why fetching or reading did not work.
mod error;
/// Which commits changed a directory.
mod history;
/// Host keys that a person has accepted.
mod known_hosts;
/// Where a repository may be fetched from.
mod remote;
/// The bare repository.
mod repository;
/// The files of one revision.
mod snapshot;

pub use checkout::Checkout;
pub use error::{ShownKey, SourceError};
pub use history::{Change, Which};
pub use known_hosts::{KnownHosts, Verdict};
pub use remote::Remote;
pub use repository::{Fetched, Limits, Repository, Settings, SshAccess};
pub use snapshot::Snapshot;

use contract::ids::Revision;

/// Files by path, of one revision or of a directory on a laptop.
pub trait Tree {
    /// The revision; none when nothing says that the files are those of a commit.
    fn revision(&self) -> Option<&Revision>;

    /// A file's content, or none where there is no such file. More than `limit` bytes are an error, and so is anything
    /// that is not a file: a directory, a symbolic link, a submodule.
    fn read(&self, path: &str, limit: usize) -> Result<Option<Vec<u8>>, SourceError>;

    /// The names in a directory, sorted; none where there is no such directory. The root has the empty path.
    fn list(&self, directory: &str) -> Result<Vec<String>, SourceError>;
}

/// The parts of a path inside a repository; an error for what is absolute, empty or climbs.
fn parts(path: &str) -> Result<Vec<&str>, SourceError> {
    let parts: Vec<&str> = path.split('/').collect();
    let climbs = |part: &&str| part.is_empty() || matches!(*part, "." | "..") || part.contains(['\\', '\0']);
    if parts.iter().any(climbs) { Err(SourceError::Path { path: path.to_owned() }) } else { Ok(parts) }
}
