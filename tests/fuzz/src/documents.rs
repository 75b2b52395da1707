//! What HQ, dealers and operators write.

use std::path::PathBuf;
use std::sync::LazyLock;

use contract::document::{self, Document};
use contract::manifest::Manifest;
use contract::refusal::Refusal;
use orchestrator::config::Config;

/// A refusal says something, and where.
fn explained(refusals: &[Refusal]) {
    assert!(!refusals.is_empty(), "refused without a reason");
    assert!(refusals.iter().all(|refusal| !refusal.to_string().is_empty()));
}

pub(crate) fn manifest(data: &[u8]) {
    if let Err(refusals) = document::manifest("releases/2026.06.yaml", data) {
        explained(&refusals);
    }
}

/// The release that sites are held against.
static RELEASE: LazyLock<Document<Manifest>> =
    LazyLock::new(|| document::manifest("releases/2026.06.yaml", include_bytes!("../corpus/manifest/good")).unwrap());

pub(crate) fn dealers(data: &[u8]) {
    match document::dealers("dealers.yaml", data) {
        Ok(dealers) => {
            let site = document::site("sites/acme-hq/site.yaml", include_bytes!("../corpus/site/good")).unwrap();
            let limits = dealers.value.limits_of(&site.value.dealer);
            // What a dealer may is never more than what all may.
            assert_eq!(limits.narrowed(&dealers.value.limits), limits);
            let refusals = document::within(&site, &RELEASE.value, &limits);
            refusals.iter().for_each(|refusal| drop(refusal.to_string()));
            drop(document::dealer_of(&site, &dealers.value).map_err(|refusal| refusal.to_string()));
        }
        Err(refusals) => explained(&refusals),
    }
}

pub(crate) fn site(data: &[u8]) {
    match document::site("sites/acme-hq/site.yaml", data) {
        Ok(site) => document::against(&site, &RELEASE.value).iter().for_each(|refusal| drop(refusal.to_string())),
        Err(refusals) => explained(&refusals),
    }
}

/// A directory with what a configuration names.
static DIRECTORY: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    for name in ["token", "ca.pem", "hook"] {
        std::fs::write(dir.path().join(name), "a@pve!b=c").unwrap();
    }
    let file = dir.path().join("orchestrator.toml");
    (dir, file)
});

pub(crate) fn orchestrator_toml(data: &[u8]) {
    // An operator may name any file of his own; a device that never ends is not what this looks for.
    if ["/dev", "/proc", "/sys"].iter().any(|place| String::from_utf8_lossy(data).contains(place)) {
        return;
    }
    let file = &DIRECTORY.1;
    std::fs::write(file, data).unwrap();
    match Config::load(file) {
        Ok(config) => drop(config.agents.names()),
        Err(error) => assert!(!error.reason().is_empty() && !error.to_string().is_empty()),
    }
}
