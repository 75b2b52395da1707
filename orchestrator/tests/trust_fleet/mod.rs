//! A fleet repository with a signed release and a site, and whoever attacks it.
#![allow(clippy::unwrap_used, clippy::panic, dead_code, unreachable_pub)]

use std::path::PathBuf;

use contract::ids::{Revision, SiteName};
use jiff::Timestamp;
use orchestrator::release::{KeyProtection, SigningKey, keygen, sign};
use orchestrator::source::Repository;
use orchestrator::trust::{CommitRule, HistoryRule, KeySet, Memory, TrustError, VerifiedSite, verify, verify_hq};

use crate::source_remote::Remote;

/// The release that the site names.
pub const MANIFEST: &str = "\
release: \"2026.06\"
community_scripts_ref: \"v2026.05.3\"
proxmox_min_version: \"8.2\"
templates:
  zigbee2mqtt:
    kind: lxc
    builder: ct/zigbee2mqtt.sh
    resources: { cpu: 2, ram: 2048, disk: 8 }
";

/// The site that is looked at.
pub const SITE: &str = "\
site: acme-hq
dealer: acme
release: \"2026.06\"
proxmox:
  storage: local-lvm
  bridge: vmbr0
  pool: ctrlable
  vmids: 2000-2099
instances:
  zigbee:
    template: zigbee2mqtt
    network: { ip: dhcp }
";

/// Its path.
pub const SITE_FILE: &str = "sites/acme-hq/site.yaml";

/// A remote, an orchestrator's copy of it, the keys that the orchestrator trusts and what it remembers.
pub struct Fleet {
    pub remote: Remote,
    pub repository: Repository,
    pub keys: KeySet,
    pub memory: Memory,
    pub commits: CommitRule,
}

impl Fleet {
    /// Release and site are written, signed and committed, but not pushed.
    pub fn new() -> Self {
        let remote = Remote::new();
        let keys = KeySet::parse(&[make_key(&remote, "hq")]).unwrap();
        let repository = remote.open();
        let fleet = Self { remote, repository, keys, memory: Memory::default(), commits: CommitRule::Off };
        fleet.remote.write("releases/2026.06.yaml", MANIFEST).write(SITE_FILE, SITE);
        fleet.sign("2026.06", "hq");
        fleet.remote.commit("release 2026.06 and site acme-hq");
        fleet
    }

    /// Signs a release of the clone with a key of that name, as HQ does.
    pub fn sign(&self, id: &str, key: &str) {
        let key = SigningKey::read(&self.remote.path().join(key).join("hq.key"), || panic!("no password")).unwrap();
        // In the first place, whoever has signed before.
        let (file, out) = (format!("releases/{id}.yaml"), format!("releases/{id}.yaml.minisig"));
        sign(&self.file(&file), Some(&self.file(&out)), &key, Timestamp::now()).unwrap();
    }

    /// Signs a release of the clone with HQ's key, but with this trusted comment, as `minisign -S -t` does.
    pub fn sign_saying(&self, id: &str, comment: &str) {
        self.sign_file(&format!("releases/{id}.yaml"), comment);
    }

    /// Signs any file of the clone with HQ's key and this trusted comment.
    pub fn sign_file(&self, path: &str, comment: &str) {
        let text = std::fs::read_to_string(self.remote.path().join("hq/hq.key")).unwrap();
        let secret = minisign::SecretKeyBox::from(text).into_unencrypted_secret_key().unwrap();
        let content = std::fs::read(self.file(path)).unwrap();
        let signed = minisign::sign(None, &secret, content.as_slice(), Some(comment), None).unwrap();
        self.remote.write(&format!("{path}.minisig"), signed.to_bytes());
    }

    /// A file of the clone.
    pub fn file(&self, path: &str) -> PathBuf {
        self.remote.path().join("work").join(path)
    }

    /// Changes a text file of the clone.
    pub fn change(&self, path: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.file(path)).unwrap();
        assert!(text.contains(from), "{path} has no {from}");
        self.remote.write(path, text.replacen(from, to, 1));
    }

    /// Commits everything, pushes, fetches, and asks whether the head is believed.
    pub fn publish(&mut self) -> Result<VerifiedSite, TrustError> {
        self.remote.publish("change");
        self.judge(None)
    }

    /// Publishes what must be believed, and remembers it.
    pub fn accept(&mut self) -> Revision {
        let verified = self.publish().unwrap();
        verified.remember(&mut self.memory);
        verified.revision().clone()
    }

    /// Fetches and asks whether the head is believed, perhaps with a rewrite that an operator has named.
    pub fn judge(&mut self, rewrite: Option<&Revision>) -> Result<VerifiedSite, TrustError> {
        let head = self.repository.fetch().unwrap().head;
        let rule = match rewrite {
            None => HistoryRule::FastForward(&self.repository),
            Some(named) => HistoryRule::AcceptRewrite(&self.repository, named),
        };
        let snapshot = self.repository.at(&head).unwrap();
        let hq = verify_hq(&snapshot, &self.keys, &self.memory.floor)?;
        verify(&snapshot, rule, self.commits, &site("acme-hq"), &hq, &self.memory, Timestamp::now())
    }

    /// Publishes what must be refused for this reason, and returns what is said about it.
    pub fn refused(&mut self, reason: &str) -> String {
        let before = self.memory.clone();
        let error = match self.publish() {
            Ok(_) => panic!("accepted"),
            Err(error) => error,
        };
        assert_eq!(error.reason(), reason, "{error}");
        assert!(!error.remedy().is_empty());
        assert_eq!(self.memory, before);
        format!("{error}\n{}", error.remedy())
    }
}

/// Makes a key pair and returns its public half.
pub fn make_key(remote: &Remote, name: &str) -> String {
    keygen(&remote.path().join(name), &KeyProtection::Unprotected).unwrap().encoded
}

pub fn site(name: &str) -> SiteName {
    name.parse().unwrap()
}
