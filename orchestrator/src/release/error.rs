use std::path::PathBuf;

use contract::refusal::Refusal;

use crate::trust::{KeySetError, SignatureError, Subject, TrustError};

/// Why a command for releases did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// Nothing is overwritten.
    #[error("{} exists already", path.display())]
    Exists {
        /// What.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("{} cannot be read: {cause}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// A file cannot be written.
    #[error("{} cannot be written: {cause}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// A file is larger than its kind may be.
    #[error("{} is larger than {limit} bytes", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// Bytes.
        limit: usize,
    },
    /// Not a secret key of minisign.
    #[error("{} is not a minisign secret key: {cause}", path.display())]
    NotASecretKey {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// The password does not open the key.
    #[error("this is not the password of {}", path.display())]
    PasswordWrong {
        /// Which key.
        path: PathBuf,
    },
    /// The two passwords typed are not the same.
    #[error("the two passwords are not the same")]
    PasswordMismatch,
    /// A password that protects nothing, or that minisign would not take.
    #[error("the password {0}")]
    PasswordUnusable(&'static str),
    /// There is nobody to ask.
    #[error("the password cannot be asked for: {cause}")]
    NoTerminal {
        /// Why.
        cause: String,
    },
    /// A public key that is none.
    #[error("{given}: {cause}")]
    PublicKey {
        /// As given: a file or a key.
        given: String,
        /// Why.
        cause: KeySetError,
    },
    /// The file is none that HQ signs.
    #[error("{} is none that HQ signs: <release id>.yaml, keys/<n>.yaml, channels.yaml", path.display())]
    FileName {
        /// Which.
        path: PathBuf,
    },
    /// The manifest is not well-formed. At least one.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Documents(Vec<Refusal>),
    /// There is no signature.
    #[error("{} is not signed: there is no {}", file.display(), signature.display())]
    Unsigned {
        /// What should be signed.
        file: PathBuf,
        /// Where the signature should be.
        signature: PathBuf,
    },
    /// The signature does not hold.
    #[error("{}: {cause}", signature.display())]
    Signature {
        /// Where it is.
        signature: PathBuf,
        /// Why.
        cause: SignatureError,
    },
    /// It holds, but is not that of a release.
    #[error("{} holds, but its trusted comment `{comment}` does not say what was signed", signature.display())]
    CommentMissing {
        /// Where it is.
        signature: PathBuf,
        /// What it says.
        comment: String,
    },
    /// It is that of another release.
    #[error("{} is the signature of {named}, but the file is {}", signature.display(), file.display())]
    CommentMismatch {
        /// Where it is.
        signature: PathBuf,
        /// The release that was signed.
        named: Subject,
        /// What it lies beside.
        file: PathBuf,
    },
    /// What lies there does not hold, or cannot be changed as it was asked.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// It was asked for something that cannot be.
    #[error("{what}")]
    Impossible {
        /// What, and why not.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The system has no randomness, or memory for the password derivation.
    #[error("the cryptography failed: {0}")]
    Cryptography(String),
}

impl ReleaseError {
    /// Stable label; the same as a site's where both refuse for the same reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Exists { .. } => "file-exists",
            Self::Read { .. } => "file-unreadable",
            Self::Write { .. } => "file-unwritable",
            Self::TooLarge { .. } => "too-large",
            Self::NotASecretKey { .. } => "secret-key-malformed",
            Self::PasswordWrong { .. } => "password-wrong",
            Self::PasswordMismatch => "password-mismatch",
            Self::PasswordUnusable(_) => "password-unusable",
            Self::NoTerminal { .. } => "password-no-terminal",
            Self::PublicKey { cause, .. } => cause.reason(),
            Self::FileName { .. } => "release-file-name",
            Self::Documents(refusals) => refusals.first().map_or("documents", |refusal| refusal.reason.label()),
            Self::Unsigned { .. } => "release-unsigned",
            Self::Signature { cause: SignatureError::UnknownKey { .. }, .. } => "release-key-unknown",
            Self::Signature { .. } => "release-signature-wrong",
            Self::CommentMissing { .. } => "release-comment-missing",
            Self::CommentMismatch { .. } => "release-comment-mismatch",
            Self::Trust(cause) => cause.reason(),
            Self::Impossible { .. } => "release-impossible",
            Self::Cryptography(_) => "cryptography",
        }
    }

    /// What to do.
    pub fn remedy(&self) -> String {
        match self {
            Self::Exists { .. } => "choose another place, or move it away first".to_owned(),
            Self::Read { .. } | Self::Write { .. } => "check the path and its permissions".to_owned(),
            Self::TooLarge { .. } => "check that this is the file you mean".to_owned(),
            Self::NotASecretKey { .. } => "give the hq.key of ctrlable release keygen, or minisign's .key".to_owned(),
            Self::PasswordWrong { .. } | Self::PasswordMismatch => "try again".to_owned(),
            Self::PasswordUnusable(_) => {
                "give one of 1 to 1024 bytes, or --no-password if the place protects the key".to_owned()
            }
            Self::NoTerminal { .. } => "run it in a terminal, or give --password-file".to_owned(),
            Self::PublicKey { cause, .. } => cause.remedy().to_owned(),
            Self::FileName { .. } => "call it after what is in it, such as 2026.06.yaml".to_owned(),
            Self::Documents(_) => "correct what is named above".to_owned(),
            Self::Unsigned { file, .. } => format!("ctrlable release sign {} --key hq.key", file.display()),
            Self::Signature { cause: SignatureError::UnknownKey { .. }, .. } => {
                "give the public key of the one who signed, if you trust it".to_owned()
            }
            Self::Signature { .. } => "get file and signature again from where they were published".to_owned(),
            Self::CommentMissing { .. } => "sign it with ctrlable release sign".to_owned(),
            Self::CommentMismatch { .. } => "put the signature beside the file that it was made for".to_owned(),
            Self::Trust(cause) => cause.remedy(),
            Self::Impossible { remedy, .. } => (*remedy).to_owned(),
            Self::Cryptography(_) => "check the machine's memory and try again".to_owned(),
        }
    }

    /// What is wrong with the documents; empty where the reason is another.
    pub fn refusals(&self) -> &[Refusal] {
        match self {
            Self::Documents(refusals) => refusals,
            Self::Trust(cause) => cause.refusals(),
            _ => &[],
        }
    }
}
