//! Documents that several people sign: `FILE.minisig`, `FILE.<KEYID>.minisig` …, each a plain signature file of
//! minisign's. A document holds when as many *different* keys as the threshold asks for signed it as what it is.
//! Signatures by others neither count nor hurt.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::comment::{Kind, SignedComment, Subject};
use super::keys::{KeySet, SignatureError, Signed};
use super::signature::{KeyId, SIGNATURE_FILE_LIMIT};
use super::{Flaw, TrustError};
use crate::source::Tree;

/// Signature files of one document that are looked at. More are refused: each costs a verification.
pub const SIGNATURES_LIMIT: usize = 16;

/// What is expected of a signature's comment.
#[derive(Debug, Clone)]
pub enum Expected {
    /// Exactly this.
    Subject(Subject),
    /// This kind, with whatever number; the document must then say the same one.
    Kind(Kind),
}

/// The signatures of a document that count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signatures {
    /// What was signed.
    pub subject: Subject,
    /// Who signed it, and when by his own clock.
    pub by: BTreeMap<KeyId, Timestamp>,
    /// The files that say so.
    pub(super) files: Vec<String>,
    threshold: usize,
}

impl Signatures {
    /// The latest time that enough signers vouch for: one of them alone, whose clock is wrong, cannot move it.
    pub fn vouched(&self) -> Timestamp {
        let mut times: Vec<Timestamp> = self.by.values().copied().collect();
        times.sort_unstable_by(|a, b| b.cmp(a));
        times.get(self.threshold.saturating_sub(1)).copied().unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

/// What became of one signature file.
#[derive(Debug, Clone)]
pub struct Examined {
    /// Its path.
    pub file: String,
    /// The signature, or why it does not count.
    pub outcome: Result<(KeyId, SignedComment), SignatureFlaw>,
}

/// Why a signature file does not count.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SignatureFlaw {
    /// It does not hold.
    #[error("{0}")]
    Signature(#[from] SignatureError),
    /// It holds, but does not say what for.
    #[error("its trusted comment `{comment}` does not say what was signed")]
    CommentMissing {
        /// What it says instead.
        comment: String,
    },
    /// It holds for something else.
    #[error("it is the signature of {named}, not of {expected}")]
    CommentMismatch {
        /// What was signed.
        named: Subject,
        /// What was asked for.
        expected: String,
    },
}

/// The signature files beside a document.
pub(super) fn files_of(tree: &dyn Tree, file: &str) -> Result<Vec<String>, TrustError> {
    let (directory, name) = file.rsplit_once('/').unwrap_or(("", file));
    let belongs = |entry: &String| {
        let middle = entry.strip_prefix(name).and_then(|rest| rest.strip_suffix(".minisig"));
        middle.is_some_and(|id| id.is_empty() || id.strip_prefix('.').is_some_and(is_key_id))
    };
    let entries = tree.list(directory)?.into_iter().filter(belongs);
    let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
    let files: Vec<String> = entries.map(|entry| format!("{prefix}{entry}")).collect();
    match files.len() {
        count if count > SIGNATURES_LIMIT => Err(TrustError::Signatures {
            file: file.to_owned(),
            kind: kind_of(file),
            flaw: Box::new(Flaw::TooMany(count)),
        }),
        _ => Ok(files),
    }
}

fn is_key_id(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte))
}

/// What kind of document lies at a path.
pub fn kind_of(file: &str) -> Kind {
    match file.split('/').next() {
        Some("keys") => Kind::Keys,
        Some("channels.yaml") => Kind::Channels,
        Some("dealers.yaml") => Kind::Dealers,
        _ => Kind::Release,
    }
}

/// Looks at every signature of a document.
pub fn examine(
    tree: &dyn Tree,
    file: &str,
    content: &[u8],
    expected: &Expected,
    keys: &KeySet,
) -> Result<Vec<Examined>, TrustError> {
    let mut found = Vec::new();
    for path in files_of(tree, file)? {
        // It was listed a moment ago; a tree does not change.
        let Some(signature) = tree.read(&path, SIGNATURE_FILE_LIMIT)? else { continue };
        let outcome = keys.verify(content, &signature).map_err(Into::into).and_then(|signed| fits(signed, expected));
        found.push(Examined { file: path, outcome });
    }
    Ok(found)
}

/// Whether a signature that holds is one of what is expected.
pub(super) fn fits(signed: Signed, expected: &Expected) -> Result<(KeyId, SignedComment), SignatureFlaw> {
    let Ok(comment) = signed.trusted_comment.parse::<SignedComment>() else {
        return Err(SignatureFlaw::CommentMissing { comment: signed.trusted_comment });
    };
    let wanted = match expected {
        Expected::Subject(subject) if *subject != comment.subject => subject.to_string(),
        Expected::Kind(kind) if *kind != comment.subject.kind() => kind.word().to_owned(),
        Expected::Subject(_) | Expected::Kind(_) => return Ok((signed.key, comment)),
    };
    Err(SignatureFlaw::CommentMismatch { named: comment.subject, expected: wanted })
}

/// Believes a document's bytes, or says why not. `of` says whose keys these are.
pub(super) fn believe(
    tree: &dyn Tree,
    file: &str,
    content: &[u8],
    expected: &Expected,
    keys: &KeySet,
    of: &str,
) -> Result<Signatures, TrustError> {
    let refuse = |flaw| {
        let (file, kind, flaw) = (file.to_owned(), kind_of(file), Box::new(flaw));
        Err(TrustError::Signatures { file, kind, flaw })
    };
    let examined = examine(tree, file, content, expected, keys)?;
    if examined.is_empty() {
        return refuse(Flaw::Unsigned);
    }
    let mut by_subject: BTreeMap<Subject, (BTreeMap<KeyId, Timestamp>, Vec<String>)> = BTreeMap::new();
    let mut flaws = Vec::new();
    for Examined { file, outcome } in examined {
        match outcome {
            Ok((key, comment)) => {
                let (by, files) = by_subject.entry(comment.subject).or_default();
                // The same person twice counts once.
                if by.insert(key, comment.signed_at).is_none() {
                    files.push(file);
                }
            }
            Err(flaw) => flaws.push((file, flaw)),
        }
    }
    // Signers who do not agree on the number did not sign one document.
    let most = by_subject.into_iter().max_by_key(|(_, (by, _))| by.len());
    match most {
        Some((subject, (by, files))) if by.len() >= keys.threshold() => {
            Ok(Signatures { subject, by, files, threshold: keys.threshold() })
        }
        Some((_, (by, _))) => {
            let signed: BTreeSet<String> = by.keys().map(ToString::to_string).collect();
            let others = flaws.into_iter().map(|(file, flaw)| format!("{file}: {flaw}")).collect();
            let (need, keys) = (keys.threshold(), of.to_owned());
            refuse(Flaw::TooFew { signed: signed.into_iter().collect(), need, keys, others })
        }
        None => {
            // What somebody of HQ signed for something else says more than what a stranger signed.
            let worst = flaws.into_iter().max_by_key(|(_, flaw)| match flaw {
                SignatureFlaw::CommentMismatch { .. } => 3,
                SignatureFlaw::CommentMissing { .. } => 2,
                SignatureFlaw::Signature(SignatureError::UnknownKey { .. }) => 0,
                SignatureFlaw::Signature(_) => 1,
            });
            refuse(worst.map_or(Flaw::Unsigned, |(file, flaw)| Flaw::Signature { file, flaw, keys: of.to_owned() }))
        }
    }
}
