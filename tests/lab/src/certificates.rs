//! The cluster's CA and the node's certificate.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use sha2::{Digest as _, Sha256};

use crate::state::write_private;

/// What the listener needs.
pub(crate) struct Identity {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
    /// SHA-256, upper case, with colons.
    pub(crate) fingerprint: String,
}

/// Reads the certificates of a state directory; makes them on first use.
pub(crate) fn open(dir: &Path, node: &str, address: Option<Ipv4Addr>) -> anyhow::Result<Identity> {
    let (ca, leaf, key) = (dir.join("pve-root-ca.pem"), dir.join("pve-ssl.pem"), dir.join("pve-ssl.key"));
    if !(ca.exists() && leaf.exists() && key.exists()) {
        make(dir, node, address)?;
    }
    let certificate = CertificateDer::from_pem_file(&leaf).with_context(|| format!("read {}", leaf.display()))?;
    let key = PrivateKeyDer::from_pem_file(&key).with_context(|| format!("read {}", key.display()))?;
    let pairs: Vec<String> = Sha256::digest(&certificate).iter().map(|byte| format!("{byte:02X}")).collect();
    Ok(Identity { certificate, key, fingerprint: pairs.join(":") })
}

fn make(dir: &Path, node: &str, address: Option<Ipv4Addr>) -> anyhow::Result<()> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::default();
    ca.distinguished_name.push(DnType::CommonName, "Proxmox Virtual Environment");
    ca.distinguished_name.push(DnType::OrganizationName, "PVE Cluster Manager CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_certificate = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, &ca_key);

    let key = KeyPair::generate()?;
    let mut leaf = CertificateParams::new(vec!["localhost".to_owned(), node.to_owned()])?;
    leaf.subject_alt_names.push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
    leaf.subject_alt_names.push(SanType::IpAddress(std::net::Ipv6Addr::LOCALHOST.into()));
    // The node's own address, as Proxmox has it.
    leaf.subject_alt_names.extend(address.map(|address| SanType::IpAddress(address.into())));
    leaf.distinguished_name.push(DnType::CommonName, node);
    leaf.use_authority_key_identifier_extension = true;
    let certificate = leaf.signed_by(&key, &issuer)?;

    write_private(&dir.join("pve-ssl.key"), key.serialize_pem().as_bytes())?;
    write_private(&dir.join("pve-ssl.pem"), certificate.pem().as_bytes())?;
    write_private(&dir.join("pve-root-ca.pem"), ca_certificate.pem().as_bytes())
}
