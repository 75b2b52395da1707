//! minisign's files, read strictly.
//!
//! The format is that of <https://jedisct1.github.io/minisign/>: four lines, of which the second signs the file and the
//! fourth signs the second together with the trusted comment. Only the untrusted comment is protected by nothing.

use std::fmt;
use std::io::Cursor;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minisign::{PublicKey, SignatureBox};

/// Bytes of a signature file that are read at most. minisign's own limit for a comment is 8 KiB, base64 adds little.
pub const SIGNATURE_FILE_LIMIT: usize = 16 << 10;

const UNTRUSTED: &str = "untrusted comment: ";
const TRUSTED: &str = "trusted comment: ";
/// Bytes: algorithm 2, key id 8, then the key itself 32 or the signature 64.
const PUBLIC_KEY_BYTES: usize = 42;
const SIGNATURE_BYTES: usize = 74;
const GLOBAL_SIGNATURE_BYTES: usize = 64;
/// Signs the file itself: minisign before 0.10, or with `-l`.
const ALGORITHM_LEGACY: &[u8] = b"Ed";
/// Signs the file's BLAKE2b hash: what minisign makes today.
const ALGORITHM_PREHASHED: &[u8] = b"ED";

/// Names a minisign key: 16 hex digits, as minisign prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", u64::from_le_bytes(self.0))
    }
}

impl FromStr for KeyId {
    type Err = Malformed;

    /// Takes exactly what `Display` prints.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let id = u64::from_str_radix(text, 16).map(|id| Self(id.to_le_bytes()));
        let id = id.ok().filter(|id| id.to_string() == text);
        id.ok_or(Malformed("it is not a key id: 16 hex digits, in upper case"))
    }
}

/// One public key of HQ.
#[derive(Debug, Clone)]
pub struct VerifyingKey {
    id: KeyId,
    key: PublicKey,
    /// The Ed25519 key itself.
    bytes: [u8; 32],
}

impl VerifyingKey {
    /// Which.
    pub fn id(&self) -> KeyId {
        self.id
    }
}

impl FromStr for VerifyingKey {
    type Err = Malformed;

    /// The base64 line of a `.pub` file, as `minisign -P` takes it.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let bytes: [u8; PUBLIC_KEY_BYTES] = decode(text)?;
        if bytes[..2] != *ALGORITHM_LEGACY {
            return Err(Malformed("it is of a kind that minisign does not have"));
        }
        let key = PublicKey::from_bytes(&bytes).map_err(|_| Malformed("it is not a minisign public key"))?;
        let mut ed25519 = [0; 32];
        ed25519.copy_from_slice(&bytes[10..]);
        Ok(Self { id: key_id(&bytes), key, bytes: ed25519 })
    }
}

/// A signature file, taken apart but not yet verified.
#[derive(Clone)]
pub struct SignatureFile {
    key: KeyId,
    trusted_comment: String,
    signature: SignatureBox,
    /// The signature over the file, and the one over that and the comment.
    raw: [[u8; GLOBAL_SIGNATURE_BYTES]; 2],
}

/// Text that is not what minisign writes; says what is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub(crate) &'static str);

/// The signature is not that of this key over this file and comment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forged;

impl SignatureFile {
    /// Reads a `.minisig` file. There is one spelling of every signature: a file with any byte changed outside the
    /// untrusted comment is another signature or none.
    pub fn parse(content: &[u8]) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(content).map_err(|_| Malformed("it is not text"))?;
        let mut lines =
            text.strip_suffix('\n').unwrap_or(text).split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
        let mut next = || lines.next().ok_or(Malformed("it has fewer than four lines"));
        let (untrusted, signature, trusted, global) = (next()?, next()?, next()?, next()?);
        if lines.next().is_some() {
            return Err(Malformed("it has more than four lines"));
        }
        if !untrusted.starts_with(UNTRUSTED) {
            return Err(Malformed("its first line is not an untrusted comment"));
        }
        let Some(trusted_comment) = trusted.strip_prefix(TRUSTED) else {
            return Err(Malformed("its third line is not a trusted comment"));
        };
        // The minisign crate trims the comment that it verifies, so that a blank at its end would not be covered.
        if trusted_comment.trim() != trusted_comment || trusted_comment.contains(unprintable) {
            return Err(Malformed(
                "its trusted comment has blanks around it, or control characters other than tabs in it",
            ));
        }
        let bytes: [u8; SIGNATURE_BYTES] = decode(signature)?;
        // The minisign crate would panic on a shorter one.
        let global_bytes: [u8; GLOBAL_SIGNATURE_BYTES] = decode(global)?;
        if bytes[..2] != *ALGORITHM_LEGACY && bytes[..2] != *ALGORITHM_PREHASHED {
            return Err(Malformed("it is of a kind that minisign does not have"));
        }
        let signature = SignatureBox::from_string(&[UNTRUSTED, signature, trusted, global].join("\n"))
            .map_err(|_| Malformed("it is not a minisign signature"))?;
        let mut own = [0; GLOBAL_SIGNATURE_BYTES];
        own.copy_from_slice(&bytes[10..]);
        let trusted_comment = trusted_comment.to_owned();
        Ok(Self { key: key_id(&bytes), trusted_comment, signature, raw: [own, global_bytes] })
    }

    /// The key that it claims to be made with.
    pub fn key(&self) -> KeyId {
        self.key
    }

    /// Verifies both signatures, and only then gives the trusted comment away.
    pub fn verify(&self, key: &VerifyingKey, content: &[u8]) -> Result<&str, Forged> {
        let (quiet, copy_to_stdout, allow_legacy) = (true, false, true);
        minisign::verify(&key.key, &self.signature, Cursor::new(content), quiet, copy_to_stdout, allow_legacy)
            .map_err(|_| Forged)?;
        Ok(&self.trusted_comment)
    }

    /// Verifies the second signature alone, which covers the trusted comment: proof that the holder of the key signed
    /// *some* file with this comment, without that file.
    pub fn verify_comment(&self, key: &VerifyingKey) -> Result<&str, Forged> {
        let [own, global] = &self.raw;
        let covered = [own.as_slice(), self.trusted_comment.as_bytes()].concat();
        let key = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, key.bytes);
        key.verify(&covered, global).map_err(|_| Forged)?;
        Ok(&self.trusted_comment)
    }
}

/// minisign's own comments have tabs in them; nothing else may play with a terminal.
fn unprintable(character: char) -> bool {
    character.is_control() && character != '\t'
}

fn key_id(bytes: &[u8]) -> KeyId {
    let mut id = [0; 8];
    id.copy_from_slice(&bytes[2..10]);
    KeyId(id)
}

/// Canonical base64 of exactly `N` bytes.
fn decode<const N: usize>(text: &str) -> Result<[u8; N], Malformed> {
    let bytes = STANDARD.decode(text).map_err(|_| Malformed("it is not base64"))?;
    bytes.try_into().map_err(|_| Malformed("it has another length than minisign's"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_no_signature_file() {
        let signature = STANDARD.encode([b"ED".as_slice(), &[0; 72]].concat());
        let global = STANDARD.encode([0; 64]);
        let file =
            |lines: &[&str]| SignatureFile::parse(lines.join("\n").as_bytes()).map(|file| file.key().to_string());
        let (untrusted, trusted) = ("untrusted comment: x", "trusted comment: y");
        assert_eq!(file(&[untrusted, &signature, trusted, &global]).unwrap(), "0000000000000000");
        assert_eq!(file(&[untrusted, &signature, trusted, &global, ""]).unwrap(), "0000000000000000");
        for lines in [
            [untrusted, &signature, trusted, ""],
            [untrusted, &signature, trusted, "AAAA"],
            [untrusted, "AAAA", trusted, &global],
            [untrusted, &signature[..99], trusted, &global],
            [untrusted, &STANDARD.encode([7; 74]), trusted, &global],
            ["comment: x", &signature, trusted, &global],
            [untrusted, &signature, "comment: y", &global],
            [untrusted, &signature, "trusted comment: y ", &global],
            [untrusted, &signature, "trusted comment: y\u{b}", &global],
        ] {
            assert!(file(&lines).is_err(), "{lines:?}");
        }
        assert!(file(&[untrusted, &signature, trusted]).is_err());
        assert!(file(&[untrusted, &signature, trusted, &global, "", ""]).is_err());
        assert!(SignatureFile::parse(&[0xff]).is_err());
        assert!(SignatureFile::parse(b"").is_err());
    }

    proptest::proptest! {
        /// Whatever a repository holds, it is refused and not crashed on.
        #[test]
        fn nothing_that_is_read_panics(
            signature in proptest::collection::vec(proptest::num::u8::ANY, 0..120),
            global in proptest::collection::vec(proptest::num::u8::ANY, 60..68),
            comment in ".{0,40}",
            content in proptest::collection::vec(proptest::num::u8::ANY, 0..40),
            noise in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
        ) {
            let key: VerifyingKey = STANDARD.encode([b"Ed".as_slice(), &[9; 40]].concat()).parse().unwrap();
            let mut signature = signature;
            signature.resize(SIGNATURE_BYTES, 0);
            signature[..2].copy_from_slice(ALGORITHM_PREHASHED);
            let (signature, global) = (STANDARD.encode(signature), STANDARD.encode(global));
            let file = format!("{UNTRUSTED}x\n{signature}\n{TRUSTED}{comment}\n{global}\n");
            if let Ok(file) = SignatureFile::parse(file.as_bytes()) {
                proptest::prop_assert!(file.verify(&key, &content).is_err());
            }
            proptest::prop_assert!(SignatureFile::parse(&noise).is_err());
        }
    }
}
