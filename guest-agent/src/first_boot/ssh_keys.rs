//! SSH host keys, made in-process. New ones are written beside the old and renamed, so sshd never finds none.
//!
//! ed25519 and ECDSA P-256 take a few milliseconds together. RSA is left out: finding primes takes most of a second
//! on these machines, needs a large dependency, and no client since OpenSSH 5.7 (2011) wants it.

use std::collections::BTreeMap;

use contract::host_keys::{HostKey, HostKeys, MOST_KEYS};
use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, EcdsaCurve, HashAlg, LineEnding, PrivateKey, PublicKey};
use zeroize::Zeroizing;

use crate::error::{Error, Reason, Result};
use crate::files::{Attributes, Flush, Missing, Root};
use crate::layout;

/// Algorithms and the names of their files (sshd_config(5), HostKey).
const KEYS: [(Algorithm, &str); 2] = [
    (Algorithm::Ed25519, "ssh_host_ed25519_key"),
    (Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }, "ssh_host_ecdsa_key"),
];

/// Files with host keys begin so.
pub(crate) const PREFIX: &str = "ssh_host_";

/// Makes new host keys and removes those of other algorithms, which would be the template's. Returns the algorithms.
pub(crate) fn replace(root: &Root) -> Result<Vec<String>> {
    let Some(ssh) = root.directory(layout::SSH_DIR, Missing::Accept)? else { return Ok(Vec::new()) };
    let comment = root.read_text(layout::HOSTNAME, layout::SMALL_FILE)?.unwrap_or_default();
    let mut made = Vec::new();
    let mut files: Vec<(String, Zeroizing<String>, u32)> = Vec::new();
    for (algorithm, name) in KEYS {
        let fail = |cause: ssh_key::Error| Error::new(Reason::SshHostKey, format!("cannot make {name}: {cause}"));
        let mut key = PrivateKey::random(&mut OsRng, algorithm.clone()).map_err(fail)?;
        key.set_comment(format!("root@{}", comment.trim()));
        let public = key.public_key().to_openssh().map_err(fail)? + "\n";
        files.push((name.to_owned(), key.to_openssh(LineEnding::LF).map_err(fail)?, 0o600));
        files.push((format!("{name}.pub"), Zeroizing::new(public), 0o644));
        made.push(algorithm.as_str().to_owned());
    }
    let owner = root.owner();
    let files: Vec<(&str, &[u8], Attributes)> = files
        .iter()
        .map(|(name, text, mode)| (name.as_str(), text.as_bytes(), Attributes { mode: *mode, owner }))
        .collect();
    ssh.replace_all(&files, Flush::Now)?;
    for name in ssh.names()? {
        let ours = KEYS.iter().any(|(_, ours)| name == *ours || name.strip_suffix(".pub") == Some(ours));
        if name.starts_with(PREFIX) && !ours {
            ssh.remove(&name)?;
        }
    }
    Ok(made)
}

/// Public host keys that are there. A file that is no key is left out; sshd does not show it either.
fn public_keys(root: &Root) -> Result<Vec<PublicKey>> {
    let Some(ssh) = root.directory(layout::SSH_DIR, Missing::Accept)? else { return Ok(Vec::new()) };
    let mut keys = Vec::new();
    for name in ssh.names()?.iter().filter(|name| name.starts_with(PREFIX) && name.ends_with(".pub")) {
        let Some(content) = ssh.read(name, layout::SMALL_FILE)? else { continue };
        keys.extend(PublicKey::from_openssh(String::from_utf8_lossy(&content.bytes).trim()));
    }
    Ok(keys)
}

/// The host keys as the orchestrator takes them: the first of each algorithm, without the comment.
pub(crate) fn shown(root: &Root) -> Result<HostKeys> {
    let mut keys: Vec<HostKey> = Vec::new();
    for mut key in public_keys(root)? {
        key.set_comment("");
        let fail = |cause: &dyn std::fmt::Display| Error::new(Reason::SshHostKey, format!("a host key: {cause}"));
        let key = HostKey::try_from(key.to_openssh().map_err(|cause| fail(&cause))?.trim().to_owned());
        let key = key.map_err(|cause| fail(&cause))?;
        if keys.iter().all(|known| known.algorithm() != key.algorithm()) && keys.len() < MOST_KEYS {
            keys.push(key);
        }
    }
    HostKeys::try_from(keys).map_err(|cause| Error::new(Reason::SshHostKey, cause.to_string()))
}

/// Fingerprints of the host keys that are there, by algorithm, as `ssh-keygen -l` prints them.
pub(crate) fn fingerprints(root: &Root) -> Result<BTreeMap<String, String>> {
    let print = |key: PublicKey| (key.algorithm().as_str().to_owned(), key.fingerprint(HashAlg::Sha256).to_string());
    Ok(public_keys(root)?.into_iter().map(print).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn makes_keys_that_sshd_accepts_and_removes_the_templates() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        root.write_own("/etc/hostname", b"ctrlable-acme-hq-mqtt\n", 0o644).unwrap();
        for name in ["ssh_host_rsa_key", "ssh_host_rsa_key.pub", "sshd_config"] {
            root.write_own(&format!("/etc/ssh/{name}"), b"template", 0o600).unwrap();
        }
        assert_eq!(replace(&root).unwrap(), ["ssh-ed25519", "ecdsa-sha2-nistp256"]);
        let first = fingerprints(&root).unwrap();
        assert_eq!(first.keys().collect::<Vec<_>>(), ["ecdsa-sha2-nistp256", "ssh-ed25519"]);
        assert!(first.values().all(|print| print.starts_with("SHA256:") && print.len() == 50));

        let names = root.directory("/etc/ssh", Missing::Accept).unwrap().unwrap().names().unwrap();
        let expected = [
            "ssh_host_ecdsa_key",
            "ssh_host_ecdsa_key.pub",
            "ssh_host_ed25519_key",
            "ssh_host_ed25519_key.pub",
            "sshd_config",
        ];
        assert_eq!(names, expected);
        for (name, mode) in expected.iter().zip([0o600, 0o644, 0o600, 0o644]) {
            assert_eq!(root.read(&format!("/etc/ssh/{name}"), 10_000).unwrap().unwrap().attributes.mode, mode);
        }
        let private = root.read_text("/etc/ssh/ssh_host_ecdsa_key", 10_000).unwrap().unwrap();
        let private = PrivateKey::from_openssh(private).unwrap();
        assert_eq!(private.fingerprint(HashAlg::Sha256).to_string(), first["ecdsa-sha2-nistp256"]);
        assert_eq!(private.comment(), "root@ctrlable-acme-hq-mqtt");

        let keys: Vec<String> = shown(&root).unwrap().iter().map(ToString::to_string).collect();
        let files = ["ecdsa", "ed25519"].map(|name| {
            let file = root.read_text(&format!("/etc/ssh/ssh_host_{name}_key.pub"), 10_000).unwrap().unwrap();
            file.trim_end_matches(" root@ctrlable-acme-hq-mqtt\n").to_owned()
        });
        assert_eq!(keys, files);

        replace(&root).unwrap();
        let second = fingerprints(&root).unwrap();
        assert!(first.iter().all(|(algorithm, print)| second[algorithm] != *print));
    }

    #[test]
    fn a_guest_without_sshd_gets_no_keys() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        assert!(replace(&root).unwrap().is_empty());
        assert!(fingerprints(&root).unwrap().is_empty() && shown(&root).unwrap().is_empty());
    }
}
