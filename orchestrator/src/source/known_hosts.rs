//! `known_hosts` as sshd(8) describes it: plain, patterned and hashed host names, `@revoked`. Lines for certificate
//! authorities are skipped, because libssh2 shows us the host key only.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use hmac::{Hmac, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::SourceError;

/// Bytes of a known_hosts file that are read at most; a fleet remote needs a few lines.
const FILE_LIMIT: u64 = 1 << 20;

/// Host keys that a person has accepted.
#[derive(Debug)]
pub struct KnownHosts {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    standing: Standing,
    hosts: String,
    kind: String,
    key: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
enum Standing {
    Accepted,
    Revoked,
}

/// What the list says about a key.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is this host's.
    Known,
    /// The host has no key of this kind; perhaps some of others.
    Unknown {
        /// Kinds that are listed for the host.
        other_kinds: Vec<String>,
    },
    /// The host has another key of this kind.
    Changed {
        /// Fingerprint of the listed one.
        expected: String,
    },
    /// It must not be used any more.
    Revoked,
}

impl KnownHosts {
    pub(super) fn read(path: &Path) -> Result<Self, SourceError> {
        let refused = |cause: String| SourceError::KnownHosts { path: path.to_owned(), cause };
        let size = std::fs::metadata(path).map_err(|cause| refused(cause.to_string()))?.len();
        if size > FILE_LIMIT {
            return Err(refused(format!("it is larger than {FILE_LIMIT} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(|cause| refused(cause.to_string()))?;
        Self::parse(&text).map_err(|line| refused(format!("line {line} is not a host key")))
    }

    /// Reads the text of a list. The number of the first line that is not understood is the error.
    pub fn parse(text: &str) -> Result<Self, usize> {
        let mut entries = Vec::new();
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut fields = line.split_ascii_whitespace().peekable();
            let standing = match fields.peek() {
                Some(&"@revoked") => Standing::Revoked,
                Some(&"@cert-authority") => continue,
                _ => Standing::Accepted,
            };
            if standing == Standing::Revoked {
                fields.next();
            }
            let (Some(hosts), Some(kind), Some(key)) = (fields.next(), fields.next(), fields.next()) else {
                return Err(number);
            };
            let key = STANDARD.decode(key).map_err(|_| number)?;
            entries.push(Entry { standing, hosts: hosts.to_owned(), kind: kind.to_owned(), key });
        }
        Ok(Self { entries })
    }

    /// What the list says about `key` of `kind` shown by `host`.
    pub fn judge(&self, host: &str, port: u16, kind: &str, key: &[u8]) -> Verdict {
        let name = listed_name(host, port);
        let ours: Vec<&Entry> = self.entries.iter().filter(|entry| applies(&entry.hosts, &name)).collect();
        if ours.iter().any(|entry| entry.standing == Standing::Revoked && entry.key == key) {
            return Verdict::Revoked;
        }
        let accepted: Vec<&Entry> = ours.into_iter().filter(|entry| entry.standing == Standing::Accepted).collect();
        if accepted.iter().any(|entry| entry.key == key) {
            return Verdict::Known;
        }
        match accepted.iter().find(|entry| entry.kind == kind) {
            Some(entry) => Verdict::Changed { expected: fingerprint(&entry.key) },
            None => Verdict::Unknown { other_kinds: accepted.iter().map(|entry| entry.kind.clone()).collect() },
        }
    }
}

/// A host as known_hosts writes it: `[host]:port` where the port is not 22.
pub(super) fn listed_name(host: &str, port: u16) -> String {
    let host = host.to_ascii_lowercase();
    if port == 22 { host } else { format!("[{host}]:{port}") }
}

/// As `ssh-keygen -l` prints it.
pub(super) fn fingerprint(key: &[u8]) -> String {
    format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(key)))
}

/// The kind that a raw key says it is of: its first string (RFC 4253, section 6.6).
pub(super) fn kind_of(key: &[u8]) -> &str {
    let length = key.first_chunk::<4>().map_or(0, |length| u32::from_be_bytes(*length) as usize);
    key.get(4..4 + length.min(64)).and_then(|kind| std::str::from_utf8(kind).ok()).unwrap_or("unknown")
}

/// Whether a hosts field names `name`: a hashed name, or patterns of which none that begins with `!` matches.
fn applies(hosts: &str, name: &str) -> bool {
    if let Some(hashed) = hosts.strip_prefix("|1|") {
        return hashed.split_once('|').is_some_and(|(salt, hash)| hash_matches(salt, hash, name));
    }
    let mut named = false;
    for pattern in hosts.split(',') {
        match pattern.strip_prefix('!') {
            Some(not) if glob(not.as_bytes(), name.as_bytes()) => return false,
            Some(_) => {}
            None => named |= glob(pattern.as_bytes(), name.as_bytes()),
        }
    }
    named
}

fn hash_matches(salt: &str, hash: &str, name: &str) -> bool {
    let (Ok(salt), Ok(hash)) = (STANDARD.decode(salt), STANDARD.decode(hash)) else { return false };
    let Ok(mut mac) = Hmac::<Sha1>::new_from_slice(&salt) else { return false };
    mac.update(name.as_bytes());
    mac.verify_slice(&hash).is_ok()
}

/// `*` is any text, `?` any character, case does not matter. Iterative, so that a hostile pattern costs at most the
/// product of both lengths.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut upto) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while upto < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, upto));
                at += 1;
            }
            Some(byte) if *byte == b'?' || byte.eq_ignore_ascii_case(&name[upto]) => {
                at += 1;
                upto += 1;
            }
            _ => match star {
                Some((star_at, star_upto)) => {
                    star = Some((star_at, star_upto + 1));
                    (at, upto) = (star_at + 1, star_upto + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The public keys of two hosts, made for this test and used nowhere.
    const KEY: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";
    const OTHER: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIB8eHRwbGhkYFxYVFBMSERAPDg0MCwoJCAcGBQQDAgEA";

    fn judge(list: &str, host: &str, port: u16) -> Verdict {
        KnownHosts::parse(list).unwrap().judge(host, port, "ssh-ed25519", &STANDARD.decode(KEY).unwrap())
    }

    #[test]
    fn names_ports_and_patterns() {
        for (hosts, host, port) in [
            ("git.example", "git.example", 22),
            ("git.example", "GIT.example", 22),
            ("a.example,git.example,192.0.2.1", "git.example", 22),
            ("[git.example]:2222", "git.example", 2222),
            ("*.example", "git.example", 22),
            ("g?t.*", "git.example", 22),
            ("*,!other.example", "git.example", 22),
            // Written by `ssh-keygen -H` for git.example.
            ("|1|MDEyMzQ1Njc4OWFiY2RlZmdoaWo=|5hyQVJ8yU3Ep3fKFNgfTL2ocIfs=", "git.example", 22),
        ] {
            assert_eq!(judge(&format!("{hosts} ssh-ed25519 {KEY} note"), host, port), Verdict::Known, "{hosts}");
        }
        for (hosts, host, port) in [
            ("git.example", "git.example", 2222),
            ("[git.example]:2222", "git.example", 22),
            ("git.example", "git.example.evil", 22),
            ("*.example,!git.example", "git.example", 22),
            ("|1|MDEyMzQ1Njc4OWFiY2RlZmdoaWo=|5hyQVJ8yU3Ep3fKFNgfTL2ocIfs=", "other.example", 22),
        ] {
            let verdict = judge(&format!("{hosts} ssh-ed25519 {KEY}"), host, port);
            assert_eq!(verdict, Verdict::Unknown { other_kinds: vec![] }, "{hosts}");
        }
    }

    #[test]
    fn changed_other_kind_and_revoked() {
        let expected = fingerprint(&STANDARD.decode(OTHER).unwrap());
        assert_eq!(
            judge(&format!("git.example ssh-ed25519 {OTHER}"), "git.example", 22),
            Verdict::Changed { expected }
        );
        let other_kinds = vec!["ssh-rsa".to_owned()];
        assert_eq!(judge(&format!("git.example ssh-rsa {OTHER}"), "git.example", 22), Verdict::Unknown { other_kinds });
        let both = format!("git.example ssh-ed25519 {KEY}\n@revoked * ssh-ed25519 {KEY}");
        assert_eq!(judge(&both, "git.example", 22), Verdict::Revoked);
        let rotated = format!("# two keys\n\ngit.example ssh-ed25519 {OTHER}\ngit.example ssh-ed25519 {KEY}");
        assert_eq!(judge(&rotated, "git.example", 22), Verdict::Known);
    }

    #[test]
    fn authorities_are_not_host_keys() {
        let list = format!("@cert-authority git.example ssh-ed25519 {KEY}");
        assert_eq!(judge(&list, "git.example", 22), Verdict::Unknown { other_kinds: vec![] });
    }

    #[test]
    fn a_broken_line_is_named() {
        assert_eq!(KnownHosts::parse("\ngit.example ssh-ed25519").unwrap_err(), 2);
        assert_eq!(KnownHosts::parse("git.example ssh-ed25519 !!!").unwrap_err(), 1);
    }

    #[test]
    fn kinds_come_from_the_key_itself() {
        assert_eq!(kind_of(&STANDARD.decode(KEY).unwrap()), "ssh-ed25519");
        assert_eq!(kind_of(&[0, 0]), "unknown");
        assert_eq!(kind_of(&[255; 8]), "unknown");
    }
}
