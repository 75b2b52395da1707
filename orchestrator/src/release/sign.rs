use std::path::{Path, PathBuf};

use contract::ids::ReleaseId;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::manifest::parse;
use super::{Linted, ReleaseError, SigningKey, lint, read, replace};
use crate::trust::{KeyId, KeySet, ReleaseComment, SIGNATURE_FILE_LIMIT};

/// Bytes of a file that is verified at most; minisign itself reads what it signs into memory, too.
const FILE_LIMIT: usize = 64 << 20;

/// A release that was signed.
#[derive(Debug, Clone)]
pub struct SignedFile {
    /// Where the signature is.
    pub signature: PathBuf,
    /// What it says.
    pub comment: ReleaseComment,
    /// The key that made it.
    pub key: KeyId,
}

/// What a signature must be beside being right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// Any signature will do, also one that `minisign -S` made.
    AnySignature,
    /// It must be that of a release, as on a site.
    ReleaseOnly,
}

/// A signature that holds.
#[derive(Debug, Clone)]
pub struct Verification {
    /// The key that made it.
    pub key: KeyId,
    /// What it says.
    pub trusted_comment: String,
    /// The release that it says it is, which file name and content say, too; none if it is not that of a release.
    pub release: Option<ReleaseComment>,
    /// SHA-256 of the file.
    pub digest: String,
}

/// A manifest that can be signed: called after the release in it, and well-formed.
pub fn signable(file: &Path) -> Result<Linted, ReleaseError> {
    match named(file) {
        Some(_) => lint(file),
        None => Err(ReleaseError::FileName { path: file.to_owned() }),
    }
}

/// Checks a manifest and signs it. The signature goes to `out`, or beside the file as minisign has it.
pub fn sign(
    file: &Path,
    out: Option<&Path>,
    key: &SigningKey,
    signed_at: Timestamp,
) -> Result<SignedFile, ReleaseError> {
    let Linted { content, document } = signable(file)?;
    let release = document.value.release;
    let cryptography = |cause: &dyn std::fmt::Display| ReleaseError::Cryptography(cause.to_string());
    let signed_at = Timestamp::from_second(signed_at.as_second()).map_err(|cause| cryptography(&cause))?;
    let comment = ReleaseComment { release, signed_at };
    let untrusted = format!("signature from ctrlable HQ secret key {}", key.id());
    let signed = minisign::sign(
        Some(&key.public),
        &key.secret,
        content.as_slice(),
        Some(&comment.to_string()),
        Some(&untrusted),
    )
    .map_err(|cause| cryptography(&cause))?;
    let signature = out.map_or_else(|| beside(file), Path::to_owned);
    replace(&signature, &signed.to_bytes())?;
    Ok(SignedFile { signature, comment, key: key.id() })
}

/// Verifies the signature of any file; of a release also that comment, file name and content name the same one.
pub fn verify(
    file: &Path,
    signature: Option<&Path>,
    keys: &KeySet,
    strictness: Strictness,
) -> Result<Verification, ReleaseError> {
    let content = read(file, FILE_LIMIT)?;
    let signature = signature.map_or_else(|| beside(file), Path::to_owned);
    if !signature.exists() {
        return Err(ReleaseError::Unsigned { file: file.to_owned(), signature });
    }
    let signed = keys
        .verify(&content, &read(&signature, SIGNATURE_FILE_LIMIT)?)
        .map_err(|cause| ReleaseError::Signature { signature: signature.clone(), cause })?;
    let release = signed.trusted_comment.parse::<ReleaseComment>().ok();
    match &release {
        None if strictness == Strictness::ReleaseOnly => {
            return Err(ReleaseError::CommentMissing { signature, comment: signed.trusted_comment });
        }
        None => {}
        Some(comment) if named(file).as_ref() != Some(&comment.release) => {
            let named = comment.release.clone();
            return Err(ReleaseError::CommentMismatch { signature, named, file: file.to_owned() });
        }
        // The manifest's id must equal the file's name.
        Some(_) => drop(parse(file, &content)?),
    }
    let digest = hex::encode(Sha256::digest(&content));
    Ok(Verification { key: signed.key, trusted_comment: signed.trusted_comment, release, digest })
}

/// The release that a file is called after.
fn named(file: &Path) -> Option<ReleaseId> {
    file.file_name()?.to_str()?.strip_suffix(".yaml")?.parse().ok()
}

/// `FILE.minisig`, where the minisign tool looks for it.
fn beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".minisig");
    PathBuf::from(name)
}
