use std::path::{Path, PathBuf};

use contract::document;
use contract::ids::ReleaseId;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::manifest::as_given;
use super::{ReleaseError, SigningKey, read, replace};
use crate::trust::{KeyId, KeySet, Kind, SIGNATURE_FILE_LIMIT, SignatureFile, SignedComment, Subject, kind_of};

/// Bytes of a document that are read at most: as many as `contract::document` takes, and one more so that it can say so.
pub(super) const DOCUMENT_LIMIT: usize = (1 << 20) + 1;

/// Bytes of a file that is verified at most; minisign itself reads what it signs into memory, too.
const FILE_LIMIT: usize = 64 << 20;

/// A document that was signed.
#[derive(Debug, Clone)]
pub struct SignedFile {
    /// Where the signature is.
    pub signature: PathBuf,
    /// What it says.
    pub comment: SignedComment,
    /// The key that made it.
    pub key: KeyId,
}

/// What a signature must be beside being right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// Any signature will do, also one that `minisign -S` made.
    AnySignature,
    /// It must say what it is for, as on a site.
    ReleaseOnly,
}

/// A signature that holds.
#[derive(Debug, Clone)]
pub struct Verification {
    /// The key that made it.
    pub key: KeyId,
    /// What it says.
    pub trusted_comment: String,
    /// What it says that was signed, which file name and content say, too; none if it is not HQ's.
    pub comment: Option<SignedComment>,
    /// SHA-256 of the file.
    pub digest: String,
}

/// A document that can be signed.
#[derive(Debug, Clone)]
pub struct Signable {
    /// What it is, by its own words and its path.
    pub subject: Subject,
    content: Vec<u8>,
}

/// Reads a document that HQ signs: a manifest called after the release in it, `keys/<n>.yaml`, `channels.yaml` or
/// `dealers.yaml`. It must be well-formed.
pub fn signable(file: &Path) -> Result<Signable, ReleaseError> {
    let content = read(file, DOCUMENT_LIMIT)?;
    let path = in_repository(file).ok_or_else(|| ReleaseError::FileName { path: file.to_owned() })?;
    let numbered = |kind, number| Subject::Numbered(kind, number);
    let subject = match kind_of(&path) {
        Kind::Release => document::manifest(&path, &content).map(|found| Subject::Release(found.value.release)),
        Kind::Keys => document::key_list(&path, &content).map(|found| numbered(Kind::Keys, found.value.keys)),
        Kind::Channels => document::channels(&path, &content).map(|found| numbered(Kind::Channels, found.value.serial)),
        Kind::Dealers => document::dealers(&path, &content).map(|found| numbered(Kind::Dealers, found.value.serial)),
    };
    let subject = subject.map_err(|refusals| as_given(refusals, file))?;
    Ok(Signable { subject, content })
}

/// The path that a document has in the fleet repository, by its name and that of its directory.
pub(super) fn in_repository(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let parent = file.parent().and_then(Path::file_name).and_then(|parent| parent.to_str());
    match name {
        "channels.yaml" | "dealers.yaml" => Some(name.to_owned()),
        _ if parent == Some("keys") => Some(format!("keys/{name}")),
        _ => named(file).map(|id| format!("releases/{id}.yaml")),
    }
}

/// Checks a document and signs it. The signature goes to `out`, or beside the file: to `FILE.minisig` as minisign has it,
/// or to `FILE.<key>.minisig` when somebody else has signed already.
pub fn sign(
    file: &Path,
    out: Option<&Path>,
    key: &SigningKey,
    signed_at: Timestamp,
) -> Result<SignedFile, ReleaseError> {
    let Signable { subject, content } = signable(file)?;
    let cryptography = |cause: &dyn std::fmt::Display| ReleaseError::Cryptography(cause.to_string());
    let signed_at = Timestamp::from_second(signed_at.as_second()).map_err(|cause| cryptography(&cause))?;
    let comment = SignedComment { subject, signed_at };
    let untrusted = format!("signature from ctrlable HQ secret key {}", key.id());
    let signed = minisign::sign(
        Some(&key.public),
        &key.secret,
        content.as_slice(),
        Some(&comment.to_string()),
        Some(&untrusted),
    )
    .map_err(|cause| cryptography(&cause))?;
    let signature = out.map_or_else(|| place_for(file, key.id()), Path::to_owned);
    replace(&signature, &signed.to_bytes())?;
    Ok(SignedFile { signature, comment, key: key.id() })
}

/// Where a key's signature goes: its own place if it has one, the first place if nobody else has it.
fn place_for(file: &Path, key: KeyId) -> PathBuf {
    let (first, own) = (beside(file), with_suffix(file, &format!(".{key}.minisig")));
    let holder = |path: &Path| Some(SignatureFile::parse(&read(path, SIGNATURE_FILE_LIMIT).ok()?).ok()?.key());
    if own.exists() || (first.exists() && holder(&first).is_some_and(|holder| holder != key)) { own } else { first }
}

/// Verifies one signature of any file; of HQ's documents also that comment, file name and content name the same one.
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
    let comment = signed.trusted_comment.parse::<SignedComment>().ok();
    match &comment {
        None if strictness == Strictness::ReleaseOnly => {
            return Err(ReleaseError::CommentMissing { signature, comment: signed.trusted_comment });
        }
        None => {}
        // What it says of itself must be what was signed.
        Some(comment) => {
            let mismatch = |signature| {
                let named = comment.subject.clone();
                ReleaseError::CommentMismatch { signature, named, file: file.to_owned() }
            };
            if named(file).is_some_and(|id| Subject::Release(id) != comment.subject) {
                return Err(mismatch(signature));
            }
            match signable(file) {
                Ok(found) if found.subject == comment.subject => {}
                Ok(_) | Err(ReleaseError::FileName { .. }) => return Err(mismatch(signature)),
                Err(error) => return Err(error),
            }
        }
    }
    let digest = hex::encode(Sha256::digest(&content));
    Ok(Verification { key: signed.key, trusted_comment: signed.trusted_comment, comment, digest })
}

/// The release that a file is called after.
fn named(file: &Path) -> Option<ReleaseId> {
    file.file_name()?.to_str()?.strip_suffix(".yaml")?.parse().ok()
}

/// `FILE.minisig`, where the minisign tool looks for it.
fn beside(file: &Path) -> PathBuf {
    with_suffix(file, ".minisig")
}

fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
