use contract::ids::{ReleaseId, Revision, Sha256Digest, SiteName};
use contract::refusal::Refusal;

use super::keys::SignatureError;
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
    /// The site follows a channel.
    #[error("sites/{site}/site.yaml follows the channel `{channel}`, and channels are not supported yet")]
    ChannelNotSupported {
        /// Which site.
        site: SiteName,
        /// Which channel.
        channel: String,
    },
    /// There is no such release.
    #[error("there is no releases/{release}.yaml")]
    ReleaseMissing {
        /// Which.
        release: ReleaseId,
    },
    /// There is no signature beside the release.
    #[error("{file} is not signed: there is no {file}.minisig")]
    ReleaseUnsigned {
        /// The manifest.
        file: String,
    },
    /// The signature is malformed or forged.
    #[error("{file}.minisig does not hold: {cause}")]
    ReleaseSignatureWrong {
        /// The manifest.
        file: String,
        /// Why.
        cause: SignatureError,
    },
    /// Signed by somebody else.
    #[error("{file}.minisig does not count: {cause}")]
    ReleaseKeyUnknown {
        /// The manifest.
        file: String,
        /// Names the key and those that are known.
        cause: SignatureError,
    },
    /// Signed, but not as a release.
    #[error("{file}.minisig holds, but its trusted comment `{comment}` does not say that this is a release")]
    ReleaseCommentMissing {
        /// The manifest.
        file: String,
        /// What it says instead.
        comment: String,
    },
    /// Signed as another release.
    #[error("{file}.minisig is the signature of release {named}, not of {expected}")]
    ReleaseCommentMismatch {
        /// The manifest.
        file: String,
        /// The release that was signed.
        named: ReleaseId,
        /// The release that was asked for.
        expected: ReleaseId,
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
            Self::ChannelNotSupported { .. } => "channel-not-supported",
            Self::ReleaseMissing { .. } => "release-missing",
            Self::ReleaseUnsigned { .. } => "release-unsigned",
            Self::ReleaseSignatureWrong { .. } => "release-signature-wrong",
            Self::ReleaseKeyUnknown { .. } => "release-key-unknown",
            Self::ReleaseCommentMissing { .. } => "release-comment-missing",
            Self::ReleaseCommentMismatch { .. } => "release-comment-mismatch",
            Self::ReleaseChanged { .. } => "release-changed",
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
            Self::ChannelNotSupported { .. } => "name a release exactly: `release: \"2026.06\"`".to_owned(),
            Self::ReleaseMissing { .. } => "name a release that is below releases/".to_owned(),
            Self::ReleaseUnsigned { file } => {
                format!("HQ: ctrlable release sign {file} --key hq.key, and push the signature with it")
            }
            Self::ReleaseSignatureWrong { file, .. } => {
                format!("somebody changed {file} or its signature; HQ: publish both again as they were signed")
            }
            Self::ReleaseKeyUnknown { .. } => {
                "HQ: sign with a key that the sites know; if the key is new, add it to the orchestrator's list"
                    .to_owned()
            }
            Self::ReleaseCommentMissing { file, .. } => {
                format!("HQ: sign with ctrlable release sign {file}, which writes the comment")
            }
            Self::ReleaseCommentMismatch { expected, .. } => {
                format!("HQ: publish release {expected} with the signature that was made for it")
            }
            Self::ReleaseChanged { release, .. } => {
                format!("HQ: restore {release} as it was, and publish the change under a new id such as {release}.1")
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
