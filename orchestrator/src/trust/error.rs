use contract::ids::{DealerName, ReleaseId, Revision, Sha256Digest, SiteName};
use contract::refusal::Refusal;
use jiff::Timestamp;

use super::comment::{Kind, Subject};
use super::keys::{KeySetError, SignatureError};
use super::signed::{SIGNATURES_LIMIT, SignatureFlaw};
use crate::source::SourceError;

/// Why a revision is not believed. The last good one stays in force.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// A file cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The branch does not continue what was accepted.
    #[error(
        "revision {candidate} does not come after {accepted}, the last one that was accepted: history was rewritten"
    )]
    HistoryRewritten {
        /// The last one accepted.
        accepted: Revision,
        /// The one at hand.
        candidate: Revision,
    },
    /// There is no such site.
    #[error("there is no sites/{site}/site.yaml; there are {available}")]
    SiteMissing {
        /// Which.
        site: SiteName,
        /// The sites there are, in words, the nearest first.
        available: String,
    },
    /// There is no such release.
    #[error("there is no releases/{release}.yaml")]
    ReleaseMissing {
        /// Which.
        release: ReleaseId,
    },
    /// Not enough signatures of a document count.
    #[error("{}", flaw.of(file))]
    Signatures {
        /// The document.
        file: String,
        /// What it is.
        kind: Kind,
        /// What is wrong with its signatures.
        flaw: Box<Flaw>,
    },
    /// The document says another number than its signatures.
    #[error("{file} says that it is {said}, but it was signed as {signed}")]
    DocumentMismatch {
        /// The document.
        file: String,
        /// What it says.
        said: Subject,
        /// What was signed.
        signed: Subject,
    },
    /// A list of keys is missing between others.
    #[error("keys/{missing}.yaml is not there, but keys/{later}.yaml is: nobody can tell who had to sign it")]
    KeysGap {
        /// The one that is missing.
        missing: u32,
        /// A later one.
        later: u32,
    },
    /// A list has a key that is none.
    #[error("keys/{list}.yaml: {cause}")]
    KeysUnusable {
        /// Which list.
        list: u32,
        /// Why.
        cause: KeySetError,
    },
    /// More lists than are looked at.
    #[error("there are more than {0} lists of keys")]
    KeysTooMany(u32),
    /// A document is older than one that was accepted.
    #[error("{file} is {kind} {found}, but {kind} {accepted} was accepted before: what HQ said since was taken away", kind = kind.word())]
    RolledBack {
        /// The document.
        file: String,
        /// What it is.
        kind: Kind,
        /// Its number.
        found: u32,
        /// The one accepted.
        accepted: u32,
    },
    /// A document that was accepted is not there any more.
    #[error("{file} is not there, but {kind} {accepted} was accepted before: what HQ said was taken away", kind = kind.word())]
    Withdrawn {
        /// The document.
        file: String,
        /// What it is.
        kind: Kind,
        /// The one accepted.
        accepted: u32,
    },
    /// A number means other bytes than before.
    #[error("{kind} {number} was accepted with digest {before}, but {file} now has {now}: a number is never used twice", kind = kind.word())]
    DocumentChanged {
        /// The document.
        file: String,
        /// What it is.
        kind: Kind,
        /// Its number.
        number: u32,
        /// What was accepted.
        before: Sha256Digest,
        /// What is there.
        now: Sha256Digest,
    },
    /// A floor that somebody handed out is none.
    #[error("what it hands out as the newest of HQ's documents cannot be read")]
    NoEvidence,
    /// The site follows a channel that HQ does not have.
    #[error("sites/{site}/site.yaml follows the channel `{channel}`; channels.yaml has {available}")]
    ChannelUnknown {
        /// Which site.
        site: SiteName,
        /// Which channel.
        channel: String,
        /// The channels there are, in words, the nearest first.
        available: String,
    },
    /// HQ's word is out of date, so nothing new is begun on it.
    #[error("channels.yaml expired at {expired}, and the site would go to release {release}: upgrades are frozen")]
    ChannelsExpired {
        /// When.
        expired: Timestamp,
        /// The release that it would go to.
        release: ReleaseId,
    },
    /// HQ has revoked the release.
    #[error("release {release} is revoked: {why}")]
    ReleaseRevoked {
        /// Which.
        release: ReleaseId,
        /// HQ's words.
        why: String,
    },
    /// A published release is not what it was.
    #[error(
        "release {release} was accepted with digest {before}, but now has {now}: a published release never changes"
    )]
    ReleaseChanged {
        /// Which.
        release: ReleaseId,
        /// What was accepted.
        before: Sha256Digest,
        /// What is there.
        now: Sha256Digest,
    },
    /// There is no list of dealers, and commits must be signed.
    #[error("there is no dealers.yaml, so nobody can sign commits")]
    DealersMissing,
    /// A commit that changed the site carries no signature.
    #[error("commit {commit} changed sites/{site} and is not signed")]
    CommitUnsigned {
        /// Which.
        commit: Revision,
        /// The site.
        site: SiteName,
    },
    /// Its signature is malformed or forged.
    #[error("the signature of commit {commit} does not hold: {cause}")]
    CommitSignatureWrong {
        /// Which.
        commit: Revision,
        /// Why.
        cause: String,
    },
    /// Its signature was made for something else.
    #[error("the signature of commit {commit} was made for `{namespace}`, not for git")]
    CommitNamespaceWrong {
        /// Which.
        commit: Revision,
        /// What for.
        namespace: String,
    },
    /// It was signed by nobody that HQ knows.
    #[error("commit {commit} is signed with the key {key}, which no dealer has in dealers.yaml")]
    CommitKeyUnknown {
        /// Which.
        commit: Revision,
        /// Fingerprint of the key.
        key: String,
    },
    /// It was signed by another dealer.
    #[error("commit {commit} changed sites/{site} and is signed by `{owner}`, but the site's dealer is `{dealer}`")]
    CommitOfAnotherDealer {
        /// Which.
        commit: Revision,
        /// The site.
        site: SiteName,
        /// Whose key it is.
        owner: DealerName,
        /// Whose it should be.
        dealer: DealerName,
    },
    /// Site or manifest are not well-formed, or do not fit together. At least one.
    #[error("{}", in_lines(.0))]
    Documents(Vec<Refusal>),
}

impl TrustError {
    /// Stable label for metrics, events and scripts; of a document the first refusal's.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Source(SourceError::TooLarge { .. }) => "too-large",
            Self::Source(cause) => cause.reason(),
            Self::HistoryRewritten { .. } => "history-rewritten",
            Self::SiteMissing { .. } => "site-missing",
            Self::ReleaseMissing { .. } => "release-missing",
            Self::Signatures { kind, flaw, .. } => flaw.reason(*kind),
            Self::DocumentMismatch { .. } => "document-comment-mismatch",
            Self::KeysGap { .. } => "keys-gap",
            Self::KeysUnusable { .. } => "keys-unusable",
            Self::KeysTooMany(_) => "keys-too-many",
            Self::RolledBack { .. } => "document-rolled-back",
            Self::Withdrawn { .. } => "document-withdrawn",
            Self::DocumentChanged { .. } => "document-changed",
            Self::NoEvidence => "floor-unreadable",
            Self::ChannelUnknown { .. } => "channel-unknown",
            Self::ChannelsExpired { .. } => "channels-expired",
            Self::ReleaseRevoked { .. } => "release-revoked",
            Self::ReleaseChanged { .. } => "release-changed",
            Self::DealersMissing => "dealers-missing",
            Self::CommitUnsigned { .. } => "commit-unsigned",
            Self::CommitSignatureWrong { .. } => "commit-signature-wrong",
            Self::CommitNamespaceWrong { .. } => "commit-namespace-wrong",
            Self::CommitKeyUnknown { .. } => "commit-key-unknown",
            Self::CommitOfAnotherDealer { .. } => "dealer-not-allowed",
            Self::Documents(refusals) => refusals.first().map_or("documents", |refusal| refusal.reason.label()),
        }
    }

    /// What a person can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Source(cause) => cause.remedy(),
            Self::HistoryRewritten { candidate, .. } => {
                format!("find out who pushed it; if it is meant: ctrlable accept-rewrite {candidate}")
            }
            Self::SiteMissing { .. } => "merge the site's definition, or correct the site's name here".to_owned(),
            Self::ReleaseMissing { .. } => "name a release that is below releases/".to_owned(),
            Self::Signatures { file, flaw, .. } => flaw.remedy(file),
            Self::DocumentMismatch { file, .. } => {
                format!("HQ: sign it again with ctrlable release sign {file}, which takes the number from it")
            }
            Self::KeysGap { missing, .. } => format!("HQ: publish keys/{missing}.yaml as it was signed"),
            Self::KeysUnusable { .. } => "HQ: make the list with ctrlable release keys".to_owned(),
            Self::KeysTooMany(_) => {
                "operator: put the newest list into trust.keys, and remove the older ones".to_owned()
            }
            Self::RolledBack { .. } | Self::Withdrawn { .. } => {
                "find out who pushed it, and restore the newer one; HQ goes back with a new number only".to_owned()
            }
            Self::DocumentChanged { .. } => {
                "HQ: restore it as it was, and publish the change under the next number".to_owned()
            }
            Self::NoEvidence => "nothing: it is given the right one".to_owned(),
            Self::ChannelUnknown { .. } => {
                "correct the channel, or name a release exactly; HQ makes channels with ctrlable release channel"
                    .to_owned()
            }
            Self::ChannelsExpired { .. } => {
                "HQ: sign channels.yaml anew with a later expiry (ctrlable release channel); operator: check the clock"
                    .to_owned()
            }
            Self::ReleaseRevoked { .. } => "name another release; HQ says in channels.yaml which to take".to_owned(),
            Self::ReleaseChanged { release, .. } => {
                format!("HQ: restore {release} as it was, and publish the change under a new id such as {release}.1")
            }
            Self::DealersMissing => {
                "HQ: publish and sign dealers.yaml; or take `trust.commits` out of orchestrator.toml".to_owned()
            }
            Self::CommitUnsigned { commit, .. }
            | Self::CommitSignatureWrong { commit, .. }
            | Self::CommitNamespaceWrong { commit, .. } => format!(
                "find out who made {commit}; if it is right, its dealer makes it again with git commit -S and                  gpg.format = ssh, on top of what was accepted"
            ),
            Self::CommitKeyUnknown { commit, .. } => {
                format!("find out who made {commit}; if it is right, HQ adds the key to dealers.yaml")
            }
            Self::CommitOfAnotherDealer { commit, dealer, .. } => {
                format!("find out who made {commit}; if it is right, `{dealer}` makes it again and signs it")
            }
            Self::Documents(_) => "correct what is named above, and merge again".to_owned(),
        }
    }

    /// What is wrong with the documents; empty where the reason is another.
    pub fn refusals(&self) -> &[Refusal] {
        match self {
            Self::Documents(refusals) => refusals,
            _ => &[],
        }
    }
}

fn in_lines(refusals: &[Refusal]) -> String {
    refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// What is wrong with the signatures of a document.
#[derive(Debug)]
pub enum Flaw {
    /// There are none.
    Unsigned,
    /// More than are looked at.
    TooMany(usize),
    /// None counts.
    Signature {
        /// The signature that says most.
        file: String,
        /// Why it does not count.
        flaw: SignatureFlaw,
        /// Whose signatures would.
        keys: String,
    },
    /// Some count, but not enough.
    TooFew {
        /// Keys whose signatures count.
        signed: Vec<String>,
        /// How many are needed.
        need: usize,
        /// Of which keys.
        keys: String,
        /// What the other signatures are.
        others: Vec<String>,
    },
}

impl Flaw {
    fn of(&self, file: &str) -> String {
        match self {
            Self::Unsigned => format!("{file} is not signed: there is no {file}.minisig"),
            Self::TooMany(count) => format!("{file} has {count} signature files; {SIGNATURES_LIMIT} are looked at"),
            Self::Signature { file, flaw, keys } => format!("{file} does not count for {keys}: {flaw}"),
            Self::TooFew { signed, need, keys, others } => {
                let others = if others.is_empty() { String::new() } else { format!(" ({})", others.join("; ")) };
                let have = signed.len();
                format!("{file} is signed by {have} of the {need} that {keys} need: {}{others}", signed.join(", "))
            }
        }
    }

    /// Releases have labels of their own, which are older than the others.
    fn reason(&self, kind: Kind) -> &'static str {
        let release = kind == Kind::Release;
        match self {
            Self::Unsigned if release => "release-unsigned",
            Self::Unsigned => "document-unsigned",
            Self::TooMany(_) => "too-many-signatures",
            Self::TooFew { .. } => "threshold-not-met",
            Self::Signature { flaw, .. } => match flaw {
                SignatureFlaw::Signature(SignatureError::UnknownKey { .. }) if release => "release-key-unknown",
                SignatureFlaw::Signature(SignatureError::UnknownKey { .. }) => "document-key-unknown",
                SignatureFlaw::Signature(_) if release => "release-signature-wrong",
                SignatureFlaw::Signature(_) => "document-signature-wrong",
                SignatureFlaw::CommentMissing { .. } if release => "release-comment-missing",
                SignatureFlaw::CommentMissing { .. } => "document-comment-missing",
                SignatureFlaw::CommentMismatch { .. } if release => "release-comment-mismatch",
                SignatureFlaw::CommentMismatch { .. } => "document-comment-mismatch",
            },
        }
    }

    fn remedy(&self, file: &str) -> String {
        match self {
            Self::Unsigned => format!("HQ: ctrlable release sign {file} --key hq.key, and push the signature with it"),
            Self::TooMany(_) => "HQ: remove the signatures of keys that are not in force".to_owned(),
            Self::TooFew { .. } => {
                format!("HQ: let others sign it, too; ctrlable release inspect {file} says whose are missing")
            }
            Self::Signature { flaw, .. } => match flaw {
                SignatureFlaw::Signature(SignatureError::UnknownKey { .. }) => {
                    "HQ: sign with a key that is in force; if the key is new, publish a list with it".to_owned()
                }
                SignatureFlaw::Signature(_) => {
                    format!("somebody changed {file} or its signature; HQ: publish both again as they were signed")
                }
                SignatureFlaw::CommentMissing { .. } => {
                    format!("HQ: sign with ctrlable release sign {file}, which writes the comment")
                }
                SignatureFlaw::CommentMismatch { .. } => {
                    format!("HQ: publish {file} with the signature that was made for it")
                }
            },
        }
    }
}
