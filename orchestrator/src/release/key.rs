use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use contract::secret::Secret;
use minisign::{KeyPair, PublicKey, SecretKey, SecretKeyBox};
use rand::RngCore;
use zeroize::Zeroizing;

use super::{PUBLIC_FILE, ReleaseError, create, read};
use crate::trust::{KeyId, VerifyingKey};

/// Permission bits of what only its owner may read.
const SECRET_FILE: u32 = 0o600;
const SECRET_DIRECTORY: u32 = 0o700;
/// Bytes of a key file that are read at most; one has about 300.
const KEY_FILE_LIMIT: usize = 16 << 10;
/// Bytes; minisign's own limit.
const PASSWORD_LIMIT: usize = 1024;

/// Whether a secret key lies encrypted.
pub enum KeyProtection {
    /// With this password.
    Password(Secret),
    /// In the clear, as `minisign -G -W` writes it: for places that protect the key otherwise.
    Unprotected,
}

/// A key pair that was written.
#[derive(Debug, Clone)]
pub struct KeyFiles {
    /// The secret key.
    pub secret: PathBuf,
    /// The public key.
    pub public: PathBuf,
    /// Which key it is.
    pub id: KeyId,
    /// The public key itself, as an orchestrator's list takes it.
    pub encoded: String,
}

/// HQ's secret key, open. Nothing prints it.
pub struct SigningKey {
    pub(super) secret: SecretKey,
    pub(super) public: PublicKey,
    id: KeyId,
}

/// Makes `hq.key` and `hq.pub` in `directory`. Neither is ever overwritten.
pub fn keygen(directory: &Path, protection: &KeyProtection) -> Result<KeyFiles, ReleaseError> {
    let (secret, public) = (directory.join("hq.key"), directory.join("hq.pub"));
    for path in [&secret, &public] {
        if path.symlink_metadata().is_ok() {
            return Err(ReleaseError::Exists { path: path.clone() });
        }
    }
    let pair = KeyPair::generate_unencrypted_keypair().map_err(cryptography)?;
    let encoded = pair.pk.to_base64();
    let id = encoded.parse::<VerifyingKey>().map_err(cryptography)?.id();
    let plain = Zeroizing::new(pair.sk.to_bytes());
    let (comment, stored) = match protection {
        KeyProtection::Unprotected => ("ctrlable HQ secret key, not encrypted", plain),
        KeyProtection::Password(password) => ("ctrlable HQ secret key, encrypted", seal(plain, password)?),
    };
    let stored = Zeroizing::new(format!("untrusted comment: {comment} {id}\n{}\n", STANDARD.encode(&*stored)));

    let unwritable =
        |cause: std::io::Error| ReleaseError::Write { path: directory.to_owned(), cause: cause.to_string() };
    fs::DirBuilder::new().recursive(true).mode(SECRET_DIRECTORY).create(directory).map_err(unwritable)?;
    create(&secret, stored.as_bytes(), SECRET_FILE)?;
    let published = format!("untrusted comment: ctrlable HQ public key {id}\n{encoded}\n");
    if let Err(error) = create(&public, published.as_bytes(), PUBLIC_FILE) {
        // A secret key whose public half nobody has is of no use, and would stand in the way of the next attempt.
        let _ = fs::remove_file(&secret);
        return Err(error);
    }
    Ok(KeyFiles { secret, public, id, encoded })
}

impl SigningKey {
    /// Reads a secret key of minisign's. `password` is called only if the key is encrypted.
    pub fn read(path: &Path, password: impl FnOnce() -> Result<Secret, ReleaseError>) -> Result<Self, ReleaseError> {
        let refused = |cause: &str| ReleaseError::NotASecretKey { path: path.to_owned(), cause: cause.to_owned() };
        let text = Zeroizing::new(read(path, KEY_FILE_LIMIT)?);
        let text = std::str::from_utf8(&text).map_err(|_| refused("it is not text"))?;
        let encoded = text.lines().nth(1).ok_or_else(|| refused("it has no second line"))?;
        let bytes = Zeroizing::new(STANDARD.decode(encoded.trim()).map_err(|_| refused("it is not base64"))?);
        if bytes.len() != layout::LENGTH || bytes[layout::SIGNATURE_ALGORITHM] != *b"Ed" {
            return Err(refused("it has another form"));
        }
        let sealed = SecretKeyBox::from(text.to_owned());
        let secret = match &bytes[layout::DERIVATION] {
            // `minisign -G -W` leaves the checksum empty, which the minisign crate does not take. A key that was damaged
            // then shows when signing, because each signature is verified with the public half.
            [0, 0] if bytes[layout::CHECKSUM].iter().all(|byte| *byte == 0) => {
                SecretKey::from_bytes(&bytes).map_err(|_| refused("it has another form"))?
            }
            [0, 0] => SecretKey::from_unencrypted_box(sealed).map_err(|_| refused("its checksum is wrong"))?,
            b"Sc" => SecretKey::from_box(sealed, Some(password()?.expose().to_owned())).map_err(|cause| match cause
                .kind()
            {
                minisign::ErrorKind::Verify => ReleaseError::PasswordWrong { path: path.to_owned() },
                _ => cryptography(cause),
            })?,
            _ => return Err(refused("it is encrypted in a way that minisign does not have")),
        };
        let public = PublicKey::from_secret_key(&secret).map_err(cryptography)?;
        let id = public.to_base64().parse::<VerifyingKey>().map_err(cryptography)?.id();
        Ok(Self { secret, public, id })
    }

    /// Which key it is.
    pub fn id(&self) -> KeyId {
        self.id
    }
}

impl KeyProtection {
    /// Protects with a password, if it is one that minisign could be given.
    pub fn password(password: Secret) -> Result<Self, ReleaseError> {
        match password.expose().len() {
            0 => Err(ReleaseError::PasswordUnusable("is empty")),
            length if length > PASSWORD_LIMIT => Err(ReleaseError::PasswordUnusable("is longer than 1024 bytes")),
            _ => Ok(Self::Password(password)),
        }
    }
}

/// Where the parts of a secret key lie: algorithms, salt and limits in the clear, then key id, key and checksum, which
/// are encrypted together.
mod layout {
    use std::ops::{Range, RangeFrom};

    pub(super) const SIGNATURE_ALGORITHM: Range<usize> = 0..2;
    pub(super) const DERIVATION: Range<usize> = 2..4;
    pub(super) const SALT: Range<usize> = 6..38;
    pub(super) const OPERATIONS_LIMIT: Range<usize> = 38..46;
    pub(super) const MEMORY_LIMIT: Range<usize> = 46..54;
    pub(super) const ENCRYPTED: RangeFrom<usize> = 54..;
    pub(super) const CHECKSUM: RangeFrom<usize> = 126..;
    pub(super) const ENCRYPTED_LENGTH: usize = 104;
    pub(super) const LENGTH: usize = 54 + ENCRYPTED_LENGTH;
}

/// What `minisign -G` uses, libsodium's "sensitive": 1 GiB and some seconds for each guess at the password. The minisign
/// crate would take 32 MiB, which is little for the key of a whole fleet.
const OPERATIONS: u64 = 33_554_432;
const MEMORY: u64 = 1 << 30;
/// scrypt's own parameters, as libsodium derives them from those limits: N = 2^20, r = 8, p = 1.
const SCRYPT: (u8, u32, u32) = (20, 8, 1);

/// Encrypts a secret key with a password, as minisign does: a stream made from the password is laid over it.
fn seal(mut key: Zeroizing<Vec<u8>>, password: &Secret) -> Result<Zeroizing<Vec<u8>>, ReleaseError> {
    if key.len() != layout::LENGTH {
        return Err(ReleaseError::Cryptography(format!("a new key has {} bytes", key.len())));
    }
    let mut salt = [0; 32];
    rand::rng().fill_bytes(&mut salt);
    let (log_n, r, p) = SCRYPT;
    let mut stream = Zeroizing::new([0; layout::ENCRYPTED_LENGTH]);
    let parameters = scrypt::Params::new(log_n, r, p, scrypt::Params::RECOMMENDED_LEN).map_err(cryptography)?;
    scrypt::scrypt(password.expose().as_bytes(), &salt, &parameters, &mut *stream).map_err(cryptography)?;
    key[layout::DERIVATION].copy_from_slice(b"Sc");
    key[layout::SALT].copy_from_slice(&salt);
    key[layout::OPERATIONS_LIMIT].copy_from_slice(&OPERATIONS.to_le_bytes());
    key[layout::MEMORY_LIMIT].copy_from_slice(&MEMORY.to_le_bytes());
    for (byte, mask) in key[layout::ENCRYPTED].iter_mut().zip(stream.iter()) {
        *byte ^= mask;
    }
    Ok(key)
}

fn cryptography(cause: impl std::fmt::Display) -> ReleaseError {
    ReleaseError::Cryptography(cause.to_string())
}
