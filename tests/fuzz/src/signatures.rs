//! What proves a document.

use std::str::FromStr;
use std::sync::LazyLock;

use contract::dealers::Dealers;
use contract::document;
use orchestrator::trust::{KeySet, SignatureFile, SignedComment, SignedCommit, VerifyingKey};

/// The key behind the seed `good` of `minisign-signature`. Its secret half was thrown away.
const KEY: &str = include_str!("../corpus/minisign-key/good");
/// What that seed signs.
const SIGNED: &[u8] = b"release: \"2026.06\"\n";

pub(crate) fn key(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(key) = VerifyingKey::from_str(text) {
        assert_eq!(key.id().to_string().len(), 16);
    }
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    match KeySet::parse(&lines) {
        Ok(keys) => assert_eq!(keys.ids().count(), lines.len()),
        Err(error) => assert!(!error.reason().is_empty()),
    }
}

pub(crate) fn signature(data: &[u8]) {
    let keys = KeySet::parse(&[KEY.trim().to_owned()]).unwrap();
    // Whoever has the key could sign anything, and nobody has it.
    assert!(keys.verify(b"release: \"2026.07\"\n", data).is_err(), "a signature holds for what was never signed");
    if let Ok(signed) = keys.verify(SIGNED, data) {
        let comment = signed.trusted_comment.parse::<SignedComment>().expect("a comment that was never signed");
        assert_eq!(comment.to_string(), signed.trusted_comment);
    }
    if let Ok(file) = SignatureFile::parse(data) {
        assert_eq!(file.key().to_string().len(), 16);
    }
    if let Ok(comment) = String::from_utf8_lossy(data).parse::<SignedComment>() {
        assert_eq!(comment.to_string().parse::<SignedComment>(), Ok(comment));
    }
}

/// A list with the key behind the seed `good` of `commit`. Its secret half was thrown away.
static DEALERS: LazyLock<Dealers> =
    LazyLock::new(|| document::dealers("dealers.yaml", include_bytes!("../corpus/dealers/good")).unwrap().value);
/// What that seed signs.
const COMMIT: &[u8] = include_bytes!("../corpus/commit/unsigned");

pub(crate) fn commit(data: &[u8]) {
    let Ok(Some(commit)) = SignedCommit::parse(data) else { return };
    let mut keys = DEALERS.dealers.values().flat_map(|dealer| &dealer.keys);
    if keys.any(|key| commit.is_signed_by(key)) {
        assert_eq!(commit.content(), COMMIT, "a signature holds for what was never signed");
    }
}
