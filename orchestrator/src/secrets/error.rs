/// Why secrets cannot be read or written. None of them quotes what it could not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretsError {
    /// The file itself.
    #[error("{file} cannot be read: {cause}")]
    Unreadable {
        /// Which.
        file: String,
        /// Why.
        cause: String,
    },
    /// Others may read what is in plain text.
    #[error("{file} has mode {mode:04o}, so others may read it")]
    Open {
        /// Which.
        file: String,
        /// Its permission bits.
        mode: u32,
    },
    /// Too large to be one.
    #[error("{file} is larger than {limit} KiB")]
    TooLarge {
        /// Which.
        file: String,
        /// What it may have.
        limit: usize,
    },
    /// Not a mapping of names to strings. The parser's words are left out: they may quote a secret.
    #[error("{file} is not a YAML mapping of secret names to strings{}", line.map_or(String::new(), |line| format!(" (line {line})")))]
    Form {
        /// Which.
        file: String,
        /// Where the parser stopped.
        line: Option<usize>,
    },
    /// A file of one secret holds something else, such as another secret's value.
    #[error("{file} does not hold the secret `{name}` and nothing else")]
    OtherName {
        /// Which.
        file: String,
        /// What its name says.
        name: String,
    },
    /// Not encrypted to whom it should be.
    #[error("{file} is not encrypted as it should be: {cause}")]
    WrongRecipient {
        /// Which.
        file: String,
        /// Who is missing, or too many.
        cause: String,
    },
    /// Not an age file, or changed after it was made.
    #[error("{file} is damaged: it is no age file, or it was changed or cut off after it was made")]
    Damaged {
        /// Which.
        file: String,
    },
    /// A list of recipients that is none.
    #[error("{file} {what}")]
    Recipients {
        /// Which.
        file: String,
        /// What is wrong with it.
        what: String,
    },
    /// A file of private keys that is none.
    #[error("{file} holds no age identity, a line that begins with AGE-SECRET-KEY-1")]
    Identity {
        /// Which.
        file: String,
    },
    /// The age library refused to encrypt.
    #[error("{file} cannot be encrypted: {cause}")]
    Encrypt {
        /// Which.
        file: String,
        /// Why.
        cause: String,
    },
}

impl SecretsError {
    /// Stable label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "secrets-unreadable",
            Self::Open { .. } => "secrets-open-to-others",
            Self::TooLarge { .. } => "secrets-too-large",
            Self::Form { .. } | Self::OtherName { .. } => "secrets-form",
            Self::WrongRecipient { .. } => "secrets-wrong-recipient",
            Self::Damaged { .. } => "secrets-damaged",
            Self::Recipients { .. } => "secrets-recipients-bad",
            Self::Identity { .. } => "secrets-identity-bad",
            Self::Encrypt { .. } => "secrets-not-encrypted",
        }
    }

    /// What a person can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "put it right; it is read again by itself",
            Self::Open { .. } => "make it 0600",
            Self::TooLarge { .. } => "keep documents elsewhere: secrets are passwords and keys",
            Self::Form { .. } => "write one `name: \"value\"` per line, numbers in quotation marks",
            Self::OtherName { .. } => "make it anew with `ctrlable secrets set`, which writes the name into it",
            Self::WrongRecipient { .. } => {
                "with a key that reads it: `ctrlable secrets recipients --seal --identity FILE`; else set each secret \
                 anew with `ctrlable secrets set`; then merge"
            }
            Self::Damaged { .. } => "restore it from git's history, or set the secrets anew; then merge",
            Self::Recipients { .. } => {
                "put the site's public key (`ctrlable secrets recipients` on the site) and HQ's recovery key there, \
                 one `age1…` per line"
            }
            Self::Identity { .. } => "give a file that `age-keygen` or the orchestrator made",
            Self::Encrypt { .. } => "look at the recipients",
        }
    }
}
