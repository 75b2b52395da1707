//! age files: <https://age-encryption.org/v1>. `age` reads what is made here, and the other way round.
//!
//! An age header does not say to whom a file is encrypted, on purpose. Here that is no secret: the list stands beside it
//! in `recipients.txt`. So a file that is made here also holds one stanza [`TO`] per recipient, which every reader
//! ignores, as the format demands. They are covered by the header's MAC, which only a recipient can check: on a laptop
//! they tell honest mistakes, on the site the key itself tells.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::{Read, Write};
use std::path::Path;

use age::armor::{ArmoredReader, ArmoredWriter, Format};
use age::secrecy::ExposeSecret;
use age::{DecryptError, Decryptor, EncryptError, Encryptor, x25519};
use age_core::format::{FileKey, Stanza};
use contract::ids::SecretName;
use contract::secret::Secret;
use zeroize::Zeroizing;

use super::{Recipients, SecretsError, parse};

/// Tag of the stanza that names a recipient: `-> ctrlable-to age1…`, with an empty body.
const TO: &str = "ctrlable-to";
/// Tag of the stanza that is one recipient's.
const X25519: &str = "X25519";
/// File name of the site's own key in the state directory.
const KEY_FILE: &str = "age.key";
/// Largest file of private keys, in bytes: some dozen of them with comments.
const IDENTITY_LIMIT: u64 = 16 << 10;

/// Private keys that read age files. They are wiped when they are dropped.
#[derive(Default)]
pub struct Identities(Vec<x25519::Identity>);

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.public()).finish()
    }
}

impl Identities {
    /// The site's own key; made on the first start, in the format of `age-keygen`.
    pub fn of_site(state: &Path) -> Result<Self, SecretsError> {
        let path = state.join(KEY_FILE);
        if !path.exists() {
            let key = x25519::Identity::generate();
            let text = Zeroizing::new(format!(
                "# made by ctrlable: what reads this site's secrets in git\n# public key: {}\n{}\n",
                key.to_public(),
                key.to_string().expose_secret()
            ));
            crate::files::write_private(&path, text.as_bytes()).map_err(|error| SecretsError::Unreadable {
                file: path.display().to_string(),
                cause: error.to_string(),
            })?;
        }
        Self::load(&path)
    }

    /// Reads a file as `age-keygen` makes it; others may not read it.
    pub fn load(path: &Path) -> Result<Self, SecretsError> {
        let text = super::read_private(path, IDENTITY_LIMIT)?;
        let keys: Option<Vec<x25519::Identity>> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| line.parse().ok())
            .collect();
        match keys {
            Some(keys) if !keys.is_empty() => Ok(Self(keys)),
            _ => Err(SecretsError::Identity { file: path.display().to_string() }),
        }
    }

    /// Their public keys.
    pub fn public(&self) -> Vec<String> {
        self.0.iter().map(|key| key.to_public().to_string()).collect()
    }

    fn as_dyn(&self) -> impl Iterator<Item = &dyn age::Identity> {
        self.0.iter().map(|key| key as &dyn age::Identity)
    }
}

/// Encrypts secrets to everybody on the list. The result is text, so that it survives web forms and line ends.
pub fn seal(
    file: &str,
    secrets: &BTreeMap<SecretName, Secret>,
    recipients: &Recipients,
) -> Result<Vec<u8>, SecretsError> {
    let fail = |cause: String| SecretsError::Encrypt { file: file.to_owned(), cause };
    let text = super::to_yaml(secrets);
    if parse(file, &text)? != *secrets {
        return Err(fail("YAML cannot say one of the values; take one without control characters".to_owned()));
    }
    let named: Vec<Named> = recipients.keys().iter().cloned().map(Named).collect();
    let encryptor = Encryptor::with_recipients(named.iter().map(|to| to as &dyn age::Recipient))
        .map_err(|error| fail(error.to_string()))?;
    let write = || -> std::io::Result<Vec<u8>> {
        let armor = ArmoredWriter::wrap_output(Vec::new(), Format::AsciiArmor)?;
        let mut writer = encryptor.wrap_output(armor)?;
        writer.write_all(text.as_bytes())?;
        writer.finish()?.finish()
    };
    write().map_err(|error| fail(error.to_string()))
}

/// Decrypts a file of secrets.
pub fn open(file: &str, content: &[u8], identities: &Identities) -> Result<BTreeMap<SecretName, Secret>, SecretsError> {
    let damaged = || SecretsError::Damaged { file: file.to_owned() };
    let mut reader = match decryptor(content).and_then(|opened| opened.decrypt(identities.as_dyn())) {
        Ok(reader) => reader,
        Err(DecryptError::NoMatchingKeys) => {
            let cause = format!("{} does not read it", identities.public().join(" or "));
            return Err(SecretsError::WrongRecipient { file: file.to_owned(), cause });
        }
        Err(_) => return Err(damaged()),
    };
    // Room for all of it from the start: a buffer that grows leaves pieces behind that nobody wipes.
    let mut plain = Zeroizing::new(Vec::with_capacity(content.len()));
    reader.read_to_end(&mut plain).map_err(|_| damaged())?;
    match std::str::from_utf8(&plain) {
        Ok(text) => parse(file, text),
        Err(_) => Err(SecretsError::Form { file: file.to_owned(), line: None }),
    }
}

/// Whom a file is encrypted to, as far as can be told without a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Exactly the list.
    AsListed,
    /// The right number of recipients, but the file does not name them: it was made by another tool.
    Unnamed,
    /// Not the list; why, in words.
    Otherwise(String),
}

/// Compares a file's header with the list.
pub fn told(file: &str, content: &[u8], recipients: &Recipients) -> Result<Told, SecretsError> {
    let damaged = || SecretsError::Damaged { file: file.to_owned() };
    let decryptor = decryptor(content).map_err(|_| damaged())?;
    if decryptor.is_scrypt() {
        return Ok(Told::Otherwise("it is encrypted with a password".to_owned()));
    }
    let peek = Peek::default();
    // Nobody's key: it only looks at the stanzas.
    let _ = decryptor.decrypt(std::iter::once(&peek as &dyn age::Identity));
    let Peek { named, count } = peek;
    let (named, count, wanted) = (named.into_inner(), *count.borrow(), recipients.names());
    let list = |keys: BTreeSet<&String>| keys.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let (missing, foreign): (BTreeSet<_>, BTreeSet<_>) =
        (wanted.difference(&named).collect(), named.difference(&wanted).collect());
    Ok(if count != wanted.len() {
        Told::Otherwise(format!("it has {count} recipients, the list has {}", wanted.len()))
    } else if named.is_empty() {
        Told::Unnamed
    } else if !missing.is_empty() {
        Told::Otherwise(format!("{} is on the list and not among its recipients", list(missing)))
    } else if !foreign.is_empty() {
        Told::Otherwise(format!("{} is among its recipients and not on the list", list(foreign)))
    } else {
        Told::AsListed
    })
}

fn decryptor(content: &[u8]) -> Result<Decryptor<ArmoredReader<std::io::BufReader<&[u8]>>>, DecryptError> {
    Decryptor::new(ArmoredReader::new(content))
}

/// A recipient that is also named in the header.
struct Named(x25519::Recipient);

impl age::Recipient for Named {
    fn wrap_file_key(&self, file_key: &FileKey) -> Result<(Vec<Stanza>, HashSet<String>), EncryptError> {
        let (mut stanzas, labels) = self.0.wrap_file_key(file_key)?;
        stanzas.push(Stanza { tag: TO.to_owned(), args: vec![self.0.to_string()], body: Vec::new() });
        Ok((stanzas, labels))
    }
}

/// Sees the stanzas of a header and opens none.
#[derive(Default)]
struct Peek {
    named: RefCell<BTreeSet<String>>,
    count: RefCell<usize>,
}

impl age::Identity for Peek {
    fn unwrap_stanza(&self, stanza: &Stanza) -> Option<Result<FileKey, DecryptError>> {
        match (stanza.tag.as_str(), stanza.args.as_slice()) {
            (TO, [key]) => drop(self.named.borrow_mut().insert(key.clone())),
            (X25519, _) => *self.count.borrow_mut() += 1,
            _ => {}
        }
        None
    }
}
