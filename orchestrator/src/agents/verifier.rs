//! Client certificates of any age: TLS proves who signed them; whether they are still good says the ledger.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

/// Seconds after its end in which a certificate may still be shown, for its renewal: half a year, for a guest that was
/// switched off over a winter. One that was off for longer is admitted again by a person.
const GRACE: u64 = 180 * 86_400;

/// Accepts what the verifier inside accepted at some time within the certificate's life: an expired one as of its end,
/// and one that is not valid yet, since our clock was set back, as of its beginning.
#[derive(Debug)]
pub(super) struct AnyAge(pub(super) Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for AnyAge {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.0.verify_client_cert(end_entity, intermediates, now) {
            Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }))
                if now.as_secs().saturating_sub(not_after.as_secs()) <= GRACE =>
            {
                self.0.verify_client_cert(end_entity, intermediates, not_after)
            }
            Err(Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. })) => {
                self.0.verify_client_cert(end_entity, intermediates, not_before)
            }
            verdict => verdict,
        }
    }

    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
