//! The site's own certificate authority: made on first start, believed by this site's guests and by nobody else.

use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use contract::ids::{InstanceName, ReleaseId, SecretName, Sha256Digest, SiteName};
use contract::secret::Secret;
use hmac::{Hmac, Mac};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};

/// What can go wrong with the CA.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file cannot be read or written.
    #[error("{path} cannot be {doing}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// "read" or "written".
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
    /// One of the pair is there without the other. Making a new one would cut every guest off, so nobody does.
    #[error("{present} is there but {absent} is not: restore it from a backup; a new CA would cut every guest off")]
    Half {
        /// What is there.
        present: PathBuf,
        /// What is not.
        absent: PathBuf,
    },
    /// A certificate or key cannot be made or read.
    #[error("the site's CA: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A guest's request cannot be signed.
    #[error("the certificate request is not acceptable: {0}")]
    Request(String),
}

impl CaError {
    /// Stable label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::File { .. } => "ca-file",
            Self::Half { .. } => "ca-incomplete",
            Self::Certificate(_) => "ca-certificate",
            Self::Request(_) => "enrol-request-bad",
        }
    }
}

/// The site's CA and the key that claims and digests hang on.
pub struct SiteCa {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
    site_key: Secret,
}

impl std::fmt::Debug for SiteCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SiteCa")
    }
}

/// A certificate that was just signed.
#[derive(Debug, Clone)]
pub struct Signed {
    /// PEM.
    pub pem: String,
    /// SHA-256 of its DER form.
    pub fingerprint: Sha256Digest,
    /// SHA-256 of the guest's public key.
    pub public_key: Sha256Digest,
}

/// Years that the CA is valid. Rotation with guests connected comes before this matters.
const CA_YEARS: i32 = 20;
/// Years that a guest's certificate is valid, as long as agents do not renew theirs.
const CLIENT_YEARS: i32 = 10;
/// Years that the listener's certificate is valid; a new one is made at every start.
const SERVER_YEARS: i32 = 2;

impl SiteCa {
    /// Reads the CA from the state directory, or makes it on the first start.
    pub fn open(state: &Path, site: &SiteName) -> Result<Self, CaError> {
        let (certificate, key) = (state.join("ca.pem"), state.join("ca.key"));
        let (certificate_pem, key_pem) = match (read(&certificate)?, read(&key)?) {
            (Some(certificate), Some(key)) => (certificate, Secret::new(key)),
            (None, None) => make(&certificate, &key, site)?,
            // The key is written first: a crash between the two leaves a key without certificate, and no guest. Once
            // the site's key is there too, guests may believe in this CA.
            (None, Some(_)) if !state.join("site.key").exists() => make(&certificate, &key, site)?,
            (None, Some(_)) => return Err(CaError::Half { present: key, absent: certificate }),
            (Some(_), None) => return Err(CaError::Half { present: certificate, absent: key }),
        };
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, KeyPair::from_pem(key_pem.expose())?)?;
        let site_key = state.join("site.key");
        let site_key = match read(&site_key)? {
            Some(text) => Secret::new(text.trim()),
            None => {
                let fresh = hex::encode(rand::random::<[u8; 32]>());
                write(&site_key, &fresh)?;
                Secret::new(fresh)
            }
        };
        Ok(Self { certificate: certificate_pem, issuer, site_key })
    }

    /// The CA's certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// What the guests of a release prove at enrolment: made per site and release, never stored.
    pub fn claim(&self, site: &SiteName, release: &ReleaseId) -> Secret {
        claim(&self.site_key, site, release)
    }

    /// A digest that tells nobody what it is of: secrets of low entropy stand behind some of them.
    pub fn keyed_digest(&self, content: &[u8]) -> String {
        hex::encode(keyed(&self.site_key, &[b"ctrlable digest 1\n", content]))
    }

    /// A digest of one secret, to tell that it changed.
    pub fn secret_digest(&self, name: &SecretName, secret: &Secret) -> String {
        let parts: [&[u8]; 4] = [b"ctrlable secret 1\n", name.as_str().as_bytes(), b"\n", secret.expose().as_bytes()];
        hex::encode(keyed(&self.site_key, &parts))
    }

    /// Signs a guest's request. Only its public key is taken from it.
    pub fn sign(&self, csr: &str, site: &SiteName, instance: &InstanceName) -> Result<Signed, CaError> {
        // Reading the request checks its signature: the guest holds the key.
        let request =
            CertificateSigningRequestParams::from_pem(csr).map_err(|error| CaError::Request(error.to_string()))?;
        let public_key = digest(&request.public_key.subject_public_key_info());
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&format!("{instance}.{site}"));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        validity(&mut params, CLIENT_YEARS);
        let certificate = params.signed_by(&request.public_key, &self.issuer)?;
        Ok(Signed { pem: certificate.pem(), fingerprint: digest(certificate.der()), public_key })
    }

    /// A certificate and key for the listener, for these names and addresses.
    pub fn server(&self, names: &[String]) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CaError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name("ctrlable orchestrator");
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.parse() {
                Ok(address) => Ok(SanType::IpAddress(address)),
                Err(_) => Ok(SanType::DnsName(name.as_str().try_into()?)),
            })
            .collect::<Result<_, rcgen::Error>>()?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        validity(&mut params, SERVER_YEARS);
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok((vec![certificate.der().clone()], key))
    }
}

/// SHA-256 of a document.
pub(crate) fn digest(der: &[u8]) -> Sha256Digest {
    <[u8; 32]>::from(Sha256::digest(der)).into()
}

/// See [`SiteCa::claim`].
pub fn claim(site_key: &Secret, site: &SiteName, release: &ReleaseId) -> Secret {
    let text = format!("ctrlable claim 1\n{site}\n{release}\n");
    Secret::new(BASE64_URL_SAFE_NO_PAD.encode(keyed(site_key, &[text.as_bytes()])))
}

fn keyed(key: &Secret, parts: &[&[u8]]) -> [u8; 32] {
    // HMAC takes keys of any length.
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(key.expose().as_bytes())
        .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

fn make(certificate: &Path, key: &Path, site: &SiteName) -> Result<(String, Secret), CaError> {
    let pair = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = name(&format!("ctrlable site {site}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, CA_YEARS);
    let pem = params.self_signed(&pair)?.pem();
    let key_pem = Secret::new(pair.serialize_pem());
    write(key, key_pem.expose())?;
    write(certificate, &pem)?;
    Ok((pem, key_pem))
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

/// From a day ago, for guests whose clock is behind, for so many years.
fn validity(params: &mut CertificateParams, years: i32) {
    let now = jiff::Zoned::now().with_time_zone(jiff::tz::TimeZone::UTC);
    let from = now.checked_sub(jiff::Span::new().days(1)).unwrap_or_else(|_| now.clone());
    params.not_before = rcgen::date_time_ymd(i32::from(from.year()), from.month() as u8, from.day() as u8);
    // The first of the month: a day that every month has.
    params.not_after = rcgen::date_time_ymd(i32::from(now.year()) + years, now.month() as u8, 1);
}

fn read(path: &Path) -> Result<Option<String>, CaError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CaError::File { path: path.to_owned(), doing: "read", source }),
    }
}

fn write(path: &Path, text: &str) -> Result<(), CaError> {
    crate::files::write_private(path, text.as_bytes()).map_err(|source| CaError::File {
        path: path.to_owned(),
        doing: "written",
        source,
    })
}
