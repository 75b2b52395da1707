//! HQ's tooling for releases: keys, new manifests, checking, signing and verifying. Everything is a file that the
//! `minisign` tool reads as well, and what that tool writes is read here.

/// Why a command did not do what it was asked.
mod error;
/// Lists of keys, channels, and who signed what.
mod hq;
/// Making and reading HQ's key pair.
mod key;
/// Manifests: new ones, and whether they are well-formed.
mod manifest;
/// Signing and verifying.
mod sign;

pub use error::ReleaseError;
pub use hq::{ChannelChange, Inspected, Inspection, KeyChange, inspect, next_channels, next_keys};
pub use key::{KeyFiles, KeyProtection, SigningKey, keygen};
pub use manifest::{Linted, Origin, lint, scaffold};
pub use sign::{Signable, SignedFile, Strictness, Verification, sign, signable, verify};

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Permission bits of files that everybody may read.
const PUBLIC_FILE: u32 = 0o644;

/// Reads a file of at most `limit` bytes.
fn read(path: &Path, limit: usize) -> Result<Vec<u8>, ReleaseError> {
    let unreadable = |cause: std::io::Error| ReleaseError::Read { path: path.to_owned(), cause: cause.to_string() };
    let mut content = Vec::new();
    File::open(path).and_then(|file| file.take(limit as u64 + 1).read_to_end(&mut content)).map_err(unreadable)?;
    if content.len() > limit {
        return Err(ReleaseError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(content)
}

/// Writes a file that must not exist, with these permission bits from its first moment on.
fn create(path: &Path, content: &[u8], mode: u32) -> Result<(), ReleaseError> {
    let failed = |cause: std::io::Error| match cause.kind() {
        std::io::ErrorKind::AlreadyExists => ReleaseError::Exists { path: path.to_owned() },
        _ => ReleaseError::Write { path: path.to_owned(), cause: cause.to_string() },
    };
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(failed)
}

/// Writes a file as a whole or not at all, whether or not it exists.
fn replace(path: &Path, content: &[u8]) -> Result<(), ReleaseError> {
    let failed = |cause: std::io::Error| ReleaseError::Write { path: path.to_owned(), cause: cause.to_string() };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
    file.write_all(content).map_err(failed)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(PUBLIC_FILE)).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}
