//! Turns bytes of the fleet repository into types that say how far they can be believed.
//!
//! - [`CheckedSite`]: site and release are well-formed and fit together. Nobody vouched for them. It is what a laptop
//!   makes of a checkout ([`check`]), and all that `plan` needs.
//! - [`VerifiedSite`]: a [`CheckedSite`] of one revision whose release HQ has signed, and which does not go back behind
//!   what was seen before. Only [`verify`] makes one, and `apply` takes nothing else.
//!
//! What was seen before is [`Memory`]. It moves only by a [`VerifiedSite`], so a bad revision cannot move it.

/// Why a revision is not believed.
mod error;
/// HQ's public keys.
mod keys;
/// minisign's files.
mod signature;
/// From a tree of files to a verified site.
mod site;

pub use error::TrustError;
pub use keys::{KeySet, KeySetError, SignatureError, Signed};
pub use signature::{Forged, KeyId, Malformed, ReleaseComment, SIGNATURE_FILE_LIMIT, SignatureFile, VerifyingKey};
pub use site::{
    CheckedRelease, CheckedSite, HistoryRule, Memory, ReleaseSignature, VerifiedRelease, VerifiedSite, check, verify,
    verify_release,
};
