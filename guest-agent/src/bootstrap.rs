//! The bootstrap file: baked into the template, read at every start, and without its claim once that was used.

use contract::bootstrap::{Bootstrap, PATH};
use contract::secret::Secret;

use crate::error::{Error, Reason, Result};
use crate::files::Root;
use crate::layout;

/// Bits of a file mode that let anybody but the owner in.
const OTHERS: u32 = 0o077;

/// Reads and checks the bootstrap file.
pub(crate) fn load(root: &Root) -> Result<Bootstrap> {
    let content = root
        .read(PATH, layout::SMALL_FILE)?
        .ok_or_else(|| Error::new(Reason::BootstrapMissing, format!("there is no {PATH}")))?;
    if content.attributes.mode & OTHERS != 0 || content.attributes.owner.uid != root.owner().uid {
        let (mode, uid) = (content.attributes.mode, content.attributes.owner.uid);
        return Err(Error::new(Reason::BootstrapMode, format!("{PATH} has mode {mode:04o} and user id {uid}")));
    }
    let bootstrap: Bootstrap = serde_json::from_slice(&content.bytes).map_err(|cause| {
        // The text of serde's error may quote a value, and one of the values is the claim.
        let (line, column) = (cause.line(), cause.column());
        Error::new(Reason::BootstrapInvalid, format!("{PATH} line {line} column {column} is not a bootstrap file"))
    })?;
    check(&bootstrap)?;
    Ok(bootstrap)
}

fn check(bootstrap: &Bootstrap) -> Result<()> {
    if bootstrap.protocol != contract::PROTOCOL {
        let (theirs, ours) = (bootstrap.protocol, contract::PROTOCOL);
        return Err(Error::new(Reason::ProtocolMismatch, format!("{PATH} speaks protocol {theirs}, the agent {ours}")));
    }
    let invalid = |what: &str| Error::new(Reason::BootstrapInvalid, format!("{PATH}: {what}"));
    if bootstrap.orchestrators.is_empty() {
        return Err(invalid("`orchestrators` is empty"));
    }
    for base in &bootstrap.orchestrators {
        match reqwest::Url::parse(base) {
            Ok(url) if url.scheme() == "https" && url.has_host() => {}
            _ => return Err(invalid(&format!("`{base}` in `orchestrators` is not an https URL"))),
        }
    }
    if crate::enrol::client::certificates(&bootstrap.ca).is_err() {
        return Err(invalid("`ca` is not a PEM certificate"));
    }
    Ok(())
}

/// Takes the claim out of the file: it has served, and a stolen disk must not hold it.
pub(crate) fn forget_claim(root: &Root, bootstrap: &mut Bootstrap) -> Result<()> {
    bootstrap.claim = Secret::new("");
    let text = serde_json::to_vec_pretty(bootstrap)
        .map_err(|cause| Error::new(Reason::BootstrapInvalid, format!("cannot write {PATH}: {cause}")))?;
    root.write_own(PATH, &text, 0o600)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A bootstrap file for `orchestrator` with a CA of its own.
    pub(crate) fn sample(orchestrator: &str) -> Bootstrap {
        let key = rcgen::KeyPair::generate().unwrap();
        let ca = rcgen::CertificateParams::default().self_signed(&key).unwrap().pem();
        Bootstrap {
            protocol: contract::PROTOCOL,
            site: "acme-hq".parse().unwrap(),
            release: "2026.06".parse().unwrap(),
            template: "mosquitto".parse().unwrap(),
            orchestrators: vec![orchestrator.to_owned()],
            ca,
            claim: Secret::new("claim-of-the-release"),
        }
    }

    fn store(bootstrap: &Bootstrap) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        root.write_own(PATH, &serde_json::to_vec(bootstrap).unwrap(), 0o600).unwrap();
        (dir, root)
    }

    #[test]
    fn a_good_file_loads_and_loses_its_claim() {
        let (_dir, root) = store(&sample("https://192.0.2.1:8443"));
        let mut bootstrap = load(&root).unwrap();
        assert_eq!(bootstrap.claim.expose(), "claim-of-the-release");
        forget_claim(&root, &mut bootstrap).unwrap();
        assert_eq!(load(&root).unwrap(), bootstrap);
        assert!(!root.read_text(PATH, 10_000).unwrap().unwrap().contains("claim-of-the-release"));
    }

    #[test]
    fn refuses_what_is_missing_open_or_wrong() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(&Root::open(dir.path()).unwrap()).unwrap_err().reason, Reason::BootstrapMissing);

        let good = sample("https://192.0.2.1:8443");
        let (_dir, root) = store(&good);
        root.write_own(PATH, &serde_json::to_vec(&good).unwrap(), 0o640).unwrap();
        assert_eq!(load(&root).unwrap_err().reason, Reason::BootstrapMode);

        root.write_own(PATH, br#"{"claim": 17, "protocol": "claim-like"}"#, 0o600).unwrap();
        let error = load(&root).unwrap_err();
        assert_eq!(error.reason, Reason::BootstrapInvalid);
        assert!(!error.message.contains("claim-like"));

        let wrong = [
            Bootstrap { orchestrators: vec![], ..good.clone() },
            Bootstrap { orchestrators: vec!["http://192.0.2.1".to_owned()], ..good.clone() },
            Bootstrap { ca: "-----BEGIN".to_owned(), ..good.clone() },
        ];
        for bootstrap in wrong {
            let (_dir, root) = store(&bootstrap);
            assert_eq!(load(&root).unwrap_err().reason, Reason::BootstrapInvalid);
        }
        let (_dir, root) = store(&Bootstrap { protocol: 99, ..good });
        assert_eq!(load(&root).unwrap_err().reason, Reason::ProtocolMismatch);
    }
}
