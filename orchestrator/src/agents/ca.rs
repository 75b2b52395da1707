//! The site's own certificate authority: made on first start, believed by this site's guests and by nobody else, and
//! replaced by its successor without anybody losing its connection.
//!
//! CAs are numbered. The first lies in `ca.pem` and `ca.key`, number N in `ca-N.pem` and `ca-N.key`; `ca-N-cross.pem`
//! is number N as vouched for by the one before it, so that a guest that believes only that one believes its listener.
//! `ca.json` says which is in force. Files of a number are written before `ca.json` names it and never change after,
//! so each step of a rotation is the replacement of one file.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use contract::ids::{InstanceName, ReleaseId, SecretName, Sha256Digest, SiteName};
use contract::secret::Secret;
use hmac::{Hmac, Mac};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::store::now;

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
    /// `ca.json` is not what this program writes.
    #[error("{path} does not say which CA is in force: {message}. Restore it from a backup")]
    Stage {
        /// Which.
        path: PathBuf,
        /// Why.
        message: String,
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
            Self::Stage { .. } => "ca-stage",
            Self::Certificate(_) => "ca-certificate",
            Self::Request(_) => "enrol-request-bad",
        }
    }
}

/// How far a rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// One CA is in force.
    Settled,
    /// A new one signs everything; certificates of the one before it are still accepted.
    Switching,
}

/// `ca.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InForce {
    /// Number of the CA that signs.
    pub number: u32,
    /// How far its rotation is.
    pub stage: Stage,
}

/// One CA with all that hangs on it; replaced as a whole.
struct Authority {
    in_force: InForce,
    certificate: String,
    /// The one before it, as long as its certificates are accepted.
    previous: Option<String>,
    issuer: Issuer<'static, KeyPair>,
    /// Its certificates from its predecessors, newest first.
    cross: Vec<CertificateDer<'static>>,
}

/// The site's CA and the key that claims and digests hang on.
pub struct SiteCa {
    state: PathBuf,
    site: SiteName,
    site_key: Secret,
    authority: RwLock<Arc<Authority>>,
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
    /// Its end, in seconds since 1970.
    pub expires_at: i64,
    /// Number of the CA that signed it.
    pub ca: u32,
}

/// Seconds of a day.
const DAY: u64 = 86_400;
/// Seconds that a CA is valid: twenty years. Rotation with guests connected comes before this matters.
const CA_LIFE: u64 = 20 * 365 * DAY;
/// Seconds that the listener's certificate is valid: two years; a new one is made at every start.
const SERVER_LIFE: u64 = 2 * 365 * DAY;
/// Predecessors that still vouch for the CA in force: templates older than so many rotations must be made again. Each
/// is a certificate more in every handshake.
const CHAIN: u8 = 3;

impl SiteCa {
    /// Reads the CA from the state directory, or makes it on the first start.
    pub fn open(state: &Path, site: &SiteName) -> Result<Self, CaError> {
        let file = state.join("site.key");
        let in_force = in_force(state)?;
        if in_force.is_none() {
            first(state, site, file.exists())?;
        }
        let authority = read_authority(state, in_force.unwrap_or(FIRST))?;
        let site_key = match read(&file)? {
            Some(text) => Secret::new(text.trim()),
            None => {
                let fresh = hex::encode(rand::random::<[u8; 32]>());
                write(&file, &fresh)?;
                Secret::new(fresh)
            }
        };
        let authority = RwLock::new(Arc::new(authority));
        let ca = Self { state: state.to_owned(), site: site.clone(), site_key, authority };
        ca.forget_old_key()?;
        Ok(ca)
    }

    fn authority(&self) -> Arc<Authority> {
        self.authority.read().unwrap_or_else(|held| held.into_inner()).clone()
    }

    /// Which CA signs, and how far its rotation is.
    pub fn in_force(&self) -> InForce {
        self.authority().in_force
    }

    /// What guests are to believe, PEM: the CA in force, and while it is new also the one before it, in case that the
    /// orchestrator is put back to a backup.
    pub fn bundle(&self) -> String {
        let authority = self.authority();
        format!("{}{}", authority.certificate, authority.previous.as_deref().unwrap_or_default())
    }

    /// Makes a new CA and puts it in force; the one before it stays accepted until [`Self::settle`].
    pub fn rotate(&self) -> Result<(), CaError> {
        let before = self.authority();
        let next = InForce { number: before.in_force.number + 1, stage: Stage::Switching };
        // What lies there of this number was never named by `ca.json`, so nobody has seen it.
        let files = Files::of(&self.state, next.number);
        let (pair, params) = (KeyPair::generate()?, params(&self.site, next.number));
        write(&files.key, Secret::new(pair.serialize_pem()).expose())?;
        write(&files.certificate, &params.self_signed(&pair)?.pem())?;
        write(&files.cross, &params.signed_by(&pair, &before.issuer)?.pem())?;
        self.put_in_force(next)
    }

    /// Ends a rotation: certificates of the CA before are no longer accepted.
    pub fn settle(&self) -> Result<(), CaError> {
        self.put_in_force(InForce { stage: Stage::Settled, ..self.in_force() })?;
        self.forget_old_key()
    }

    fn put_in_force(&self, next: InForce) -> Result<(), CaError> {
        let authority = read_authority(&self.state, next)?;
        // Two fields of plain types are always JSON.
        write(&self.state.join(STAGE), &serde_json::to_string(&next).unwrap_or_default())?;
        *self.authority.write().unwrap_or_else(|held| held.into_inner()) = Arc::new(authority);
        Ok(())
    }

    /// A key that nothing needs any more is one that can be stolen.
    fn forget_old_key(&self) -> Result<(), CaError> {
        let InForce { number, stage } = self.in_force();
        if stage == Stage::Settled && number > FIRST.number {
            let path = Files::of(&self.state, number - 1).key;
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(CaError::File { path, doing: "removed", source: error });
                }
                _ => {}
            }
        }
        Ok(())
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

    /// Signs a guest's request for so long. Only its public key is taken from it.
    pub fn sign(&self, csr: &str, site: &SiteName, instance: &InstanceName, life: Duration) -> Result<Signed, CaError> {
        // Reading the request checks its signature: the guest holds the key.
        let request =
            CertificateSigningRequestParams::from_pem(csr).map_err(|error| CaError::Request(error.to_string()))?;
        let public_key = digest(&request.public_key.subject_public_key_info());
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&format!("{instance}.{site}"));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let expires_at = validity(&mut params, life.as_secs());
        let authority = self.authority();
        let certificate = params.signed_by(&request.public_key, &authority.issuer)?;
        Ok(Signed {
            pem: certificate.pem(),
            fingerprint: digest(certificate.der()),
            public_key,
            expires_at,
            ca: authority.in_force.number,
        })
    }

    /// A certificate with its chain, and its key, for the listener, for these names and addresses.
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
        validity(&mut params, SERVER_LIFE);
        let authority = self.authority();
        let certificate = params.signed_by(&key, &authority.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut chain = vec![certificate.der().clone()];
        chain.extend(authority.cross.iter().cloned());
        Ok((chain, key))
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

/// Name of the file that says which CA is in force; absent: the first.
const STAGE: &str = "ca.json";
/// Before the first rotation.
const FIRST: InForce = InForce { number: 1, stage: Stage::Settled };

/// Where a CA lies.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    cross: PathBuf,
}

impl Files {
    fn of(state: &Path, number: u32) -> Self {
        let stem = if number == FIRST.number { "ca".to_owned() } else { format!("ca-{number}") };
        Self {
            certificate: state.join(format!("{stem}.pem")),
            key: state.join(format!("{stem}.key")),
            cross: state.join(format!("{stem}-cross.pem")),
        }
    }
}

fn in_force(state: &Path) -> Result<Option<InForce>, CaError> {
    let path = state.join(STAGE);
    let Some(text) = read(&path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| CaError::Stage { path, message: error.to_string() })
}

/// Makes the first CA, unless it is there.
fn first(state: &Path, site: &SiteName, site_key_is_there: bool) -> Result<(), CaError> {
    let files = Files::of(state, FIRST.number);
    match (files.certificate.exists(), files.key.exists()) {
        (true, true) => Ok(()),
        (true, false) => Err(CaError::Half { present: files.certificate, absent: files.key }),
        // The key is written first: a crash between the two leaves a key without certificate, and no guest. Once the
        // site's key is there too, guests may believe in this CA.
        (false, true) if site_key_is_there => Err(CaError::Half { present: files.key, absent: files.certificate }),
        (false, _) => {
            let pair = KeyPair::generate()?;
            write(&files.key, Secret::new(pair.serialize_pem()).expose())?;
            write(&files.certificate, &params(site, FIRST.number).self_signed(&pair)?.pem())
        }
    }
}

fn read_authority(state: &Path, in_force: InForce) -> Result<Authority, CaError> {
    let files = Files::of(state, in_force.number);
    let certificate = read_or_fail(&files.certificate)?;
    let key = Secret::new(read_or_fail(&files.key)?);
    let issuer = Issuer::from_ca_cert_pem(&certificate, KeyPair::from_pem(key.expose())?)?;
    let previous = match in_force.stage {
        Stage::Switching => Some(read_or_fail(&Files::of(state, in_force.number.saturating_sub(1)).certificate)?),
        Stage::Settled => None,
    };
    let mut cross = Vec::new();
    for number in (2..=in_force.number).rev().take(CHAIN.into()) {
        let path = Files::of(state, number).cross;
        let pem = read_or_fail(&path)?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| CaError::Stage { path, message: error.to_string() })?;
        cross.push(der);
    }
    Ok(Authority { in_force, certificate, previous, issuer, cross })
}

fn params(site: &SiteName, number: u32) -> CertificateParams {
    let mut params = CertificateParams::default();
    // The names differ, so that a verifier is never led to the wrong one.
    params.distinguished_name = name(&match number {
        1 => format!("ctrlable site {site}"),
        number => format!("ctrlable site {site} {number}"),
    });
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(CHAIN));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, CA_LIFE);
    params
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

/// From a day ago, for guests whose clock is behind, for so many seconds from now. Returns the end.
fn validity(params: &mut CertificateParams, seconds: u64) -> i64 {
    let now = u64::try_from(now()).unwrap_or(0);
    let at = |seconds: u64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    params.not_before = at(now.saturating_sub(DAY));
    params.not_after = at(now.saturating_add(seconds));
    i64::try_from(now.saturating_add(seconds)).unwrap_or(i64::MAX)
}

fn read(path: &Path) -> Result<Option<String>, CaError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CaError::File { path: path.to_owned(), doing: "read", source }),
    }
}

fn read_or_fail(path: &Path) -> Result<String, CaError> {
    let missing = || CaError::File { path: path.to_owned(), doing: "read", source: io::ErrorKind::NotFound.into() };
    read(path)?.ok_or_else(missing)
}

fn write(path: &Path, text: &str) -> Result<(), CaError> {
    crate::files::write_private(path, text.as_bytes()).map_err(|source| CaError::File {
        path: path.to_owned(),
        doing: "written",
        source,
    })
}
