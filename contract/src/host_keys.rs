//! SSH host keys as a guest shows them: public keys, in the form of OpenSSH's own files.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use crate::ids::InvalidId;

/// Most keys of one guest: OpenSSH knows five algorithms, each also with a certificate, which is not shown.
pub const MOST_KEYS: usize = 8;

/// Longest key as text, in bytes: RSA of 16384 bits, the most that OpenSSH makes, takes 2800.
const LONGEST_KEY: usize = 4096;

/// One public key: algorithm and base64, without a comment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostKey(String);

impl HostKey {
    /// `ssh-ed25519`, `ecdsa-sha2-nistp256`, …
    pub fn algorithm(&self) -> &str {
        self.0.split(' ').next().unwrap_or_default()
    }

    /// `ssh-ed25519 AAAA…`, as in a known_hosts line.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for HostKey {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        let form = "`ALGORITHM BASE64`, where the key names the same algorithm, without a comment";
        let wrong = || InvalidId::new("a public SSH host key", &text, form);
        if text.len() > LONGEST_KEY {
            return Err(wrong());
        }
        let (algorithm, encoded) = text.split_once(' ').ok_or_else(wrong)?;
        let sound = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.@".contains(&byte);
        if !(1..=64).contains(&algorithm.len()) || !algorithm.bytes().all(sound) {
            return Err(wrong());
        }
        // RFC 4253, 6.6: a key begins with its algorithm's name, and the name's length before it.
        let key = BASE64_STANDARD.decode(encoded).map_err(|_| wrong())?;
        let (length, rest) = key.split_first_chunk::<4>().ok_or_else(wrong)?;
        let name = rest.get(..u32::from_be_bytes(*length) as usize).ok_or_else(wrong)?;
        if name == algorithm.as_bytes() && rest.len() > name.len() { Ok(Self(text)) } else { Err(wrong()) }
    }
}

impl From<HostKey> for String {
    fn from(key: HostKey) -> Self {
        key.0
    }
}

/// All host keys of a guest: at most [`MOST_KEYS`], one of each algorithm, sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<HostKey>", into = "Vec<HostKey>")]
pub struct HostKeys(Vec<HostKey>);

impl HostKeys {
    /// The keys.
    pub fn iter(&self) -> std::slice::Iter<'_, HostKey> {
        self.0.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the guest has none, because it has no sshd.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether both have a key in common.
    pub fn shares_with(&self, other: &Self) -> bool {
        self.0.iter().any(|key| other.0.contains(key))
    }
}

impl TryFrom<Vec<HostKey>> for HostKeys {
    type Error = InvalidId;

    fn try_from(mut keys: Vec<HostKey>) -> Result<Self, InvalidId> {
        keys.sort();
        let several = keys.windows(2).find(|pair| pair[0].algorithm() == pair[1].algorithm());
        if let Some(pair) = several {
            return Err(InvalidId::new("host keys", pair[1].algorithm(), "one key of each algorithm"));
        }
        if keys.len() > MOST_KEYS {
            return Err(InvalidId::new("host keys", &keys.len().to_string(), "at most eight keys"));
        }
        Ok(Self(keys))
    }
}

impl From<HostKeys> for Vec<HostKey> {
    fn from(keys: HostKeys) -> Self {
        keys.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key(algorithm: &str, inside: &str, rest: &[u8]) -> String {
        let mut blob = u32::try_from(inside.len()).unwrap().to_be_bytes().to_vec();
        blob.extend(inside.as_bytes());
        blob.extend(rest);
        format!("{algorithm} {}", BASE64_STANDARD.encode(blob))
    }

    fn read(keys: &[String]) -> Result<HostKeys, serde_json::Error> {
        serde_json::from_value(serde_json::json!(keys))
    }

    #[test]
    fn a_key_of_openssh_is_one() {
        // Made with `ssh-keygen -t ed25519`.
        let text = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICMfex+SilA60Qh4pg4Sj5urape5RDr7nTR14Kpqz4ue";
        let key = HostKey::try_from(text.to_owned()).unwrap();
        assert_eq!((key.algorithm(), key.as_str()), ("ssh-ed25519", text));
    }

    #[test]
    fn what_could_smuggle_something_into_a_line_of_known_hosts_is_refused() {
        let good = key("ssh-ed25519", "ssh-ed25519", b"k");
        assert!(HostKey::try_from(good.clone()).is_ok());
        for bad in [
            String::new(),
            "ssh-ed25519".to_owned(),
            "ssh-ed25519 ".to_owned(),
            format!("{good} comment"),
            format!("{good}\nssh-rsa AAAA"),
            format!("* {good}"),
            key("ssh-rsa", "ssh-ed25519", b"k"),
            key("SSH-ED25519", "SSH-ED25519", b"k"),
            key("ssh-ed25519", "ssh-ed25519", b""),
            key("ssh-rsa", "ssh-rsa", &[0; 4000]),
            "ssh-ed25519 /////w==".to_owned(),
            "ssh-ed25519 %%%%".to_owned(),
        ] {
            assert!(HostKey::try_from(bad.clone()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_guest_has_one_key_of_each_algorithm_and_not_many() {
        let (a, b) = (key("ssh-ed25519", "ssh-ed25519", b"a"), key("ssh-ed25519", "ssh-ed25519", b"b"));
        let c = key("ssh-rsa", "ssh-rsa", b"c");
        assert!(read(&[a.clone(), b.clone()]).is_err());
        let keys = read(&[c.clone(), a.clone()]).unwrap();
        assert_eq!(keys.iter().map(HostKey::algorithm).collect::<Vec<_>>(), ["ssh-ed25519", "ssh-rsa"]);
        assert!(keys.shares_with(&read(&[c]).unwrap()) && !keys.shares_with(&read(&[b]).unwrap()));
        let many: Vec<String> = (0..9).map(|index| key(&format!("x{index}"), &format!("x{index}"), b"k")).collect();
        assert!(read(&many).is_err());
    }
}
