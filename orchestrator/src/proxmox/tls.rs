//! Which server is believed to be Proxmox: its cluster's CA, or the fingerprint of one certificate.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};

/// SHA-256 of a certificate, written as Proxmox shows it: 32 pairs of capital hex digits with colons between.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a certificate in DER.
    pub fn of(certificate: &[u8]) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

/// A text that is not a fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a SHA-256 fingerprint: 32 pairs of hex digits with colons between, as in `pvenode cert info`")]
pub struct InvalidFingerprint;

impl FromStr for Fingerprint {
    type Err = InvalidFingerprint;

    fn from_str(text: &str) -> Result<Self, InvalidFingerprint> {
        let digits: Vec<&str> = text.trim().split(':').collect();
        if digits.iter().any(|pair| pair.len() != 2) {
            return Err(InvalidFingerprint);
        }
        let bytes = hex::decode(digits.concat()).map_err(|_| InvalidFingerprint)?;
        Ok(Self(bytes.try_into().map_err(|_| InvalidFingerprint)?))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<String> = self.0.iter().map(|byte| format!("{byte:02X}")).collect();
        f.write_str(&pairs.join(":"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How the server proves itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerTrust {
    /// A certificate for the URL's host from this CA, in PEM: `/etc/pve/pve-root-ca.pem`. Survives renewals.
    Ca(Vec<u8>),
    /// This one certificate, whatever names and dates it has. Breaks when the node renews it.
    Fingerprint(Fingerprint),
}

impl ServerTrust {
    /// The TLS client that believes only this.
    pub(super) fn client_config(&self) -> Result<ClientConfig, String> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let config = match self {
            Self::Ca(pem) => {
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    let certificate = certificate.map_err(|error| format!("the CA is not readable PEM: {error}"))?;
                    roots.add(certificate).map_err(|error| format!("the CA certificate cannot be used: {error}"))?;
                }
                if roots.is_empty() {
                    return Err("the CA file holds no certificate".to_owned());
                }
                builder.with_root_certificates(roots).with_no_client_auth()
            }
            Self::Fingerprint(expected) => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Pinned { expected: *expected, provider }))
                .with_no_client_auth(),
        };
        Ok(config)
    }
}

/// Another certificate than the pinned one.
#[derive(Debug, thiserror::Error)]
#[error("its certificate has the fingerprint {got}, pinned is {expected}")]
struct PinMismatch {
    expected: Fingerprint,
    got: Fingerprint,
}

/// Takes one certificate, and checks that the server has its key.
#[derive(Debug)]
struct Pinned {
    expected: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let got = Fingerprint::of(end_entity);
        if got == self.expected {
            return Ok(ServerCertVerified::assertion());
        }
        let mismatch = PinMismatch { expected: self.expected, got };
        Err(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(mismatch)))))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The certificate problem at the root of an error, if that is one.
pub(super) fn certificate_problem(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(rustls::Error::InvalidCertificate(why)) = error.downcast_ref() {
            return Some(match why {
                CertificateError::Other(OtherError(other)) => other.to_string(),
                CertificateError::UnknownIssuer => "its certificate is not from the pinned CA".to_owned(),
                other => format!("its certificate is refused: {other}"),
            });
        }
        // An I/O error shows as its source that of what it wraps; the wrapped one itself is reached by get_ref.
        next = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_fingerprint_is_read_in_any_case_and_printed_as_proxmox_does() {
        let text = vec!["aB"; 32].join(":");
        assert_eq!(text.parse::<Fingerprint>().unwrap().to_string(), text.to_uppercase());
        for wrong in ["", "AA", "AA:BB", &"AB".repeat(32), &vec!["zz"; 32].join(":"), &vec!["AA"; 33].join(":")] {
            assert!(wrong.parse::<Fingerprint>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_ca_that_is_none_is_refused() {
        assert!(ServerTrust::Ca(b"hello".to_vec()).client_config().is_err());
    }
}
