//! Key, certificate and CA. The key is made once and stays, so that an enrolment whose answer was lost can be asked
//! for again with the same key.

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use zeroize::Zeroizing;

use crate::error::{Error, Reason, Result};
use crate::files::Root;
use crate::layout;

/// What a client needs for mutual TLS, all PEM.
pub(crate) struct Credentials {
    /// The private key.
    pub key: Zeroizing<String>,
    /// The client certificate.
    pub certificate: String,
    /// The site's CA.
    pub ca: String,
}

fn failed(what: &str, cause: impl std::fmt::Display) -> Error {
    Error::new(Reason::Credential, format!("cannot {what}: {cause}"))
}

/// The key on disk, made if there is none, and a request for a certificate over it, PEM.
pub(crate) fn request(root: &Root) -> Result<(Zeroizing<String>, String)> {
    let key = match root.read_text(layout::KEY, layout::SMALL_FILE)? {
        Some(pem) => KeyPair::from_pem(&Zeroizing::new(pem)),
        None => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
    };
    let key = key.map_err(|cause| failed(&format!("use {}", layout::KEY), cause))?;
    let pem = Zeroizing::new(key.serialize_pem());
    root.write_own(layout::KEY, pem.as_bytes(), 0o600)?;
    let csr =
        CertificateParams::default().serialize_request(&key).map_err(|cause| failed("ask for a certificate", cause))?;
    Ok((pem, csr.pem().map_err(|cause| failed("ask for a certificate", cause))?))
}

impl Credentials {
    /// Reads them; an error when one is missing.
    pub(crate) fn load(root: &Root) -> Result<Self> {
        let read = |path: &str| -> Result<String> {
            root.read_text(path, layout::SMALL_FILE)?.ok_or_else(|| failed(&format!("read {path}"), "it is missing"))
        };
        Ok(Self {
            key: Zeroizing::new(read(layout::KEY)?),
            certificate: read(layout::CERTIFICATE)?,
            ca: read(layout::CA)?,
        })
    }

    /// Writes certificate and CA; the key is there.
    pub(crate) fn save(&self, root: &Root) -> Result<()> {
        root.write_own(layout::CERTIFICATE, self.certificate.as_bytes(), 0o600)?;
        root.write_own(layout::CA, self.ca.as_bytes(), 0o600)
    }
}
