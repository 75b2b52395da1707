//! A fleet whose dealers sign their commits, with the git and ssh-keygen commands.
#![allow(clippy::unwrap_used, clippy::panic, dead_code, unreachable_pub)]

use std::fs;
use std::process::Command;

use contract::ids::Revision;
use orchestrator::trust::CommitRule;

use crate::signed_commit::{signature, write_commit};
use crate::trust_fleet::{Fleet, SITE, SITE_FILE};

/// A fleet with the dealers acme, whose site is acme-hq, and beta; each has a key of its own name.
pub struct Dealing {
    pub fleet: Fleet,
}

impl Dealing {
    /// Revision A is acme's and signed, and every commit after it has to be. Not pushed.
    pub fn new() -> Self {
        let mut fleet = Fleet::new();
        fleet.commits = CommitRule::Every;
        let dealing = Self { fleet };
        dealing.make_key("acme", &["-t", "ed25519"]);
        dealing.make_key("beta", &["-t", "ed25519"]);
        dealing.publish_dealers(1, &["acme"], "");
        dealing.git(&["add", "--all"]);
        dealing.git_as(Some("acme"), &["commit", "--quiet", "--amend", "--no-edit"]);
        dealing
    }

    /// As above, with revision A accepted.
    pub fn accepted() -> Self {
        let mut dealing = Self::new();
        dealing.held();
        dealing
    }

    /// Makes a key pair with ssh-keygen.
    pub fn make_key(&self, name: &str, kind: &[&str]) {
        let file = self.fleet.remote.path().join(name);
        let made = Command::new("ssh-keygen").args(["-q", "-N", "", "-C", name, "-f"]).arg(file).args(kind).status();
        assert!(made.unwrap().success());
    }

    /// The public half of a key.
    pub fn public(&self, name: &str) -> String {
        fs::read_to_string(self.fleet.remote.path().join(name).with_extension("pub")).unwrap().trim().to_owned()
    }

    /// HQ writes `dealers.yaml` with these keys and limits of acme, and signs it.
    pub fn publish_dealers(&self, serial: u64, keys: &[&str], limits: &str) {
        let keys: String = keys.iter().map(|key| format!("      - {}\n", self.public(key))).collect();
        let keys = if keys.is_empty() { "    keys: []\n".to_owned() } else { format!("    keys:\n{keys}") };
        let text = format!(
            "serial: {serial}\nissued: 2026-11-20T12:00:00Z\ndealers:\n  acme:\n    sites: [acme-hq, \"acme-lab*\"]\n\
             {keys}{limits}  beta:\n    sites: [\"beta*\"]\n    keys:\n      - {}\n",
            self.public("beta")
        );
        self.fleet.remote.write("dealers.yaml", text);
        self.fleet.sign_file("dealers.yaml", &format!("ctrlable dealers {serial} signed 2026-11-20T12:00:00Z"));
    }

    /// Writes the site with another tag; each is another state.
    pub fn wish(&self, vlan: u16) -> &Self {
        self.fleet.remote.write(SITE_FILE, SITE.replace("ip: dhcp", &format!("ip: dhcp, vlan: {vlan}")));
        self
    }

    /// Changes the site far from where [`Self::wish`] does.
    pub fn storage(&self, name: &str) -> &Self {
        let text = fs::read_to_string(self.fleet.file(SITE_FILE)).unwrap();
        let line = text.lines().find(|line| line.contains("storage:")).unwrap();
        self.fleet.remote.write(SITE_FILE, text.replace(line, &format!("  storage: {name}")));
        self
    }

    /// Writes a file that is no site's.
    pub fn note(&self, name: &str) -> &Self {
        self.fleet.remote.write(name, name);
        self
    }

    /// Commits everything, signed with the key of that name.
    pub fn commit(&self, key: Option<&str>) -> String {
        self.git(&["add", "--all"]);
        self.git_as(key, &["commit", "--quiet", "--allow-empty", "--message", "change"]);
        self.head()
    }

    /// Merges branches into the one that is checked out.
    pub fn merge(&self, key: Option<&str>, arguments: &[&str]) -> String {
        let all = [&["merge", "--quiet", "--no-ff", "--no-edit"], arguments].concat();
        self.git_as(key, &all);
        self.head()
    }

    pub fn head(&self) -> String {
        self.git(&["rev-parse", "HEAD"])
    }

    pub fn git(&self, arguments: &[&str]) -> String {
        self.fleet.remote.git(arguments)
    }

    /// Runs git with a key to sign with; `commit` and `merge` then sign.
    pub fn git_as(&self, key: Option<&str>, arguments: &[&str]) -> String {
        let Some(key) = key else { return self.git(arguments) };
        let file = self.fleet.remote.path().join(key).display().to_string();
        let signing = ["-c", "gpg.format=ssh", "-c", "commit.gpgSign=true", "-c", &format!("user.signingKey={file}")];
        self.git(&[&signing, arguments].concat())
    }

    /// Takes the head's object, changes it, and makes the result the head.
    pub fn forge(&self, change: impl Fn(String) -> String) -> String {
        let object = self.git(&["cat-file", "commit", "HEAD"]) + "\n";
        self.write_commit(&change(object))
    }

    /// Makes any bytes a commit, and the head.
    pub fn write_commit(&self, object: &str) -> String {
        write_commit(&self.fleet.remote, object)
    }

    /// The header that a signature over `content` makes.
    pub fn signature(&self, key: &str, namespace: &str, content: &str) -> String {
        signature(&self.fleet.remote.path().join(key), namespace, content)
    }

    /// Pushes what must be believed, and remembers it.
    pub fn held(&mut self) -> Revision {
        self.fleet.remote.push();
        let verified = self.fleet.judge(None).unwrap_or_else(|error| panic!("{error} [{}]", error.reason()));
        verified.remember(&mut self.fleet.memory);
        verified.revision().clone()
    }

    /// Pushes what must be refused for this reason, and returns what is said about it.
    pub fn refused(&mut self, reason: &str) -> String {
        self.fleet.remote.push();
        match self.fleet.judge(None) {
            Ok(verified) => panic!("{} was accepted instead of refused as {reason}", verified.revision()),
            Err(error) => {
                assert_eq!(error.reason(), reason, "{error}");
                assert!(!error.remedy().is_empty());
                format!("{error}\n{}", error.remedy())
            }
        }
    }

    /// Goes back to a revision, as if nothing had come after it.
    pub fn back_to(&self, revision: &str) {
        self.git(&["reset", "--quiet", "--hard", revision]);
    }
}
