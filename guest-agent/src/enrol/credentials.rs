//! Key, certificate and CA. A key is on disk before a certificate is asked for, so that a request whose answer was lost
//! can be made again with the same key; and it goes into force together with its certificate, in one file.

use contract::ids::Sha256Digest;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::error::{Error, Reason, Result};
use crate::files::Root;
use crate::layout;

/// What a client needs for mutual TLS, all PEM.
pub(crate) struct Credentials {
    /// The private key, then its certificate.
    pub client: Zeroizing<String>,
    /// The CA certificates that are believed.
    pub ca: String,
}

fn failed(what: &str, cause: impl std::fmt::Display) -> Error {
    Error::new(Reason::Credential, format!("cannot {what}: {cause}"))
}

/// The newest key, made if there is none, and a request for a certificate over it, PEM.
pub(crate) fn request(root: &Root) -> Result<(Zeroizing<String>, String)> {
    let key = match root.read_text(layout::KEY, layout::SMALL_FILE)?.map(Zeroizing::new) {
        Some(pem) => KeyPair::from_pem(&pem),
        None => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
    };
    let key = key.map_err(|cause| failed(&format!("use {}", layout::KEY), cause))?;
    let pem = Zeroizing::new(key.serialize_pem());
    root.write_own(layout::KEY, pem.as_bytes(), 0o600)?;
    let csr =
        CertificateParams::default().serialize_request(&key).map_err(|cause| failed("ask for a certificate", cause))?;
    Ok((pem, csr.pem().map_err(|cause| failed("ask for a certificate", cause))?))
}

/// As [`request`], for a certificate after the first: each has a key of its own, unless the last answer was lost.
pub(crate) fn next_request(root: &Root) -> Result<(Zeroizing<String>, String)> {
    let newest = root.read_text(layout::KEY, layout::SMALL_FILE)?.map(Zeroizing::new).unwrap_or_default();
    if Credentials::load(root)?.client.starts_with(newest.as_str()) {
        root.remove(layout::KEY)?;
    }
    request(root)
}

impl Credentials {
    /// A key with the certificate that was made for it.
    pub(crate) fn new(key: &str, certificate: &str, ca: String) -> Self {
        Self { client: Zeroizing::new(format!("{key}{certificate}")), ca }
    }

    /// Reads them; an error when one is missing.
    pub(crate) fn load(root: &Root) -> Result<Self> {
        let read = |path: &str| -> Result<String> {
            root.read_text(path, layout::SMALL_FILE)?.ok_or_else(|| failed(&format!("read {path}"), "it is missing"))
        };
        Ok(Self { client: Zeroizing::new(read(layout::CLIENT)?), ca: read(layout::CA)? })
    }

    /// Puts them in force. Of two writes either may be the last: old and new ones fit each other.
    pub(crate) fn save(&self, root: &Root) -> Result<()> {
        save_ca(root, &self.ca)?;
        root.write_own(layout::CLIENT, self.client.as_bytes(), 0o600)
    }
}

/// Puts other CA certificates in force.
pub(crate) fn save_ca(root: &Root, ca: &str) -> Result<()> {
    root.write_own(layout::CA, ca.as_bytes(), 0o600)
}

/// What the agent confirms to believe.
pub(crate) fn ca_digest(ca: &str) -> Sha256Digest {
    <[u8; 32]>::from(Sha256::digest(ca.as_bytes())).into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_key_waits_over_restarts_and_serves_for_one_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let (first, _) = request(&root).unwrap();
        assert_eq!(request(&root).unwrap().0, first, "the answer was lost, the same key asks again");
        Credentials::new(&first, "certificate\n", "ca\n".to_owned()).save(&root).unwrap();
        let in_force = || Credentials::load(&root).unwrap().client.to_string();
        assert_eq!(in_force(), format!("{}certificate\n", *first));
        let (second, _) = next_request(&root).unwrap();
        assert_ne!(second, first, "a second certificate has a key of its own");
        assert_eq!(next_request(&root).unwrap().0, second, "the answer was lost, the same key asks again");
        assert_eq!(in_force(), format!("{}certificate\n", *first), "the first is good until the second is there");
        Credentials::new(&second, "certificate 2\n", "ca\n".to_owned()).save(&root).unwrap();
        assert_ne!(next_request(&root).unwrap().0, second);
    }
}
