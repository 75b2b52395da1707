//! Turns bytes of the fleet repository into types that say how far they can be believed.
//!
//! - [`CheckedSite`]: site and release are well-formed and fit together. Nobody vouched for them. It is what a laptop
//!   makes of a checkout ([`check`]), and all that `plan` needs.
//! - [`Hq`]: what HQ says beside releases, signed by as many as it takes, and not older than what was seen. It is
//!   judged first and by itself ([`verify_hq`]), so that what HQ took back stays taken back whatever else a revision is.
//! - [`VerifiedSite`]: a [`CheckedSite`] of one revision whose release HQ has signed and not revoked, within HQ's
//!   limits, changed by its dealer only where that is demanded, and which does not go back behind what was seen before.
//!   Only [`verify`] makes one, and `apply` takes nothing else.
//!
//! What was seen before is [`Memory`]. It moves only by what was verified, so a bad revision cannot move it.

/// What a signature is for.
mod comment;
/// Signatures of dealers on commits.
mod commits;
/// Why a revision is not believed.
mod error;
/// The newest of HQ's documents, and who says so.
mod floor;
/// Key lists, channels and dealers of a revision.
mod hq;
/// HQ's public keys.
mod keys;
/// minisign's files.
mod signature;
/// Documents that several people sign.
mod signed;
/// From a tree of files to a verified site.
mod site;

pub use comment::{Kind, SignedComment, Subject};
pub use commits::{CommitRule, SignedCommit};
pub use error::{Flaw, TrustError};
pub use floor::{Floor, Numbers, Seen, prove, to_text};
pub use hq::{CLOCK_TOLERANCE, Freshness, Hq, keys_for, verify_hq};
pub use keys::{KeySet, KeySetError, SignatureError, Signed};
pub use signature::{Forged, KeyId, Malformed, SIGNATURE_FILE_LIMIT, SignatureFile, VerifyingKey};
pub use signed::{Examined, Expected, SIGNATURES_LIMIT, SignatureFlaw, Signatures, examine, kind_of};
pub use site::{
    CheckedRelease, CheckedSite, HistoryRule, Memory, VerifiedRelease, VerifiedSite, check, verify, verify_release,
};
