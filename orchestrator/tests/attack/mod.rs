//! Histories of a fleet repository as data, played against real git, real signatures and the real verification.
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use orchestrator::release::{KeyProtection, SigningKey, keygen, sign};
use orchestrator::source::Repository;
use orchestrator::trust::{
    CommitRule, Floor, HistoryRule, KeySet, Memory, TrustError, VerifiedSite, prove, to_text, verify, verify_hq,
};
use serde::Deserialize;

use crate::signed_commit::{apart, signature, with_header, write_commit};
use crate::source_remote::Remote;

/// The manifest of a release, but for its id.
const MANIFEST: &str = "\
community_scripts_ref: \"v2026.05.3\"
proxmox_min_version: \"8.2\"
templates:
  zigbee2mqtt:
    kind: lxc
    builder: ct/zigbee2mqtt.sh
    resources: { cpu: 2, ram: 2048, disk: 8 }
";

/// The site, but for its release.
const SITE: &str = "\
site: acme-hq
dealer: acme
proxmox: { storage: local-lvm, bridge: vmbr0, pool: ctrlable, vmids: 2000-2099 }
instances:
  zigbee: { template: zigbee2mqtt }
";

/// `attack.yaml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attack {
    /// What the attacker does.
    pub what: String,
    /// Who he is.
    pub attacker: Attacker,
    /// The label that it is refused with.
    pub reason: String,
    /// What the honest twin does instead.
    pub twin: String,
    /// Which runner plays it.
    pub family: String,
    /// Names of the keys in the configuration.
    #[serde(default = "hq")]
    pub trust: Vec<String>,
    /// Threshold in the configuration.
    #[serde(default = "one")]
    pub threshold: u32,
    /// Which commits must be signed, as in the configuration.
    #[serde(default)]
    pub commits: CommitRule,
    /// What happened before.
    pub story: Vec<Step>,
    /// What the attacker does then; published and refused.
    pub flaw: Vec<Step>,
    /// What is done instead; published and accepted.
    pub honest: Vec<Step>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attacker {
    GitServer,
    Network,
    Guest,
    Disk,
    Dealer,
    Hq,
}

fn hq() -> Vec<String> {
    vec!["hq".into()]
}

fn one() -> u32 {
    1
}

/// One thing that somebody does.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Step {
    /// Writes files. `$key(NAME)` is a public key, `$time(+90d)` a time from now.
    Write(BTreeMap<String, String>),
    /// Removes files.
    Remove(Vec<String>),
    /// Copies a file over another.
    Copy { from: String, to: String },
    /// Changes a text in a file.
    Replace { file: String, from: String, to: String },
    /// Signs a file as HQ does, with these keys; or saying something of one's own.
    Sign { file: String, by: Vec<String>, saying: Option<String> },
    /// Puts the key id of somebody else into a signature.
    PassOff { signature: String, as_key: String },
    /// Writes and signs a release.
    Release { id: String, by: Vec<String> },
    /// Writes and signs a list of keys.
    Keys { number: u32, threshold: u32, list: Vec<String>, by: Vec<String> },
    /// Writes and signs the channels.
    Channels(Channels),
    /// Writes and signs the dealers: acme with the site acme-hq, and beta.
    Dealers(Dealers),
    /// Writes the site: the line that names its release, such as `channel: stable`.
    Site(String),
    /// Commits what was changed.
    Commit(Commit),
    /// Makes a branch here and goes there.
    Branch(String),
    /// Goes to a branch.
    Switch(String),
    /// Merges a branch into this one.
    Merge(String),
    /// The same, but leaves the commit to be made, so that something else can be put into it.
    BeginMerge(String),
    /// Puts a signature into the last commit, made with this SSH key for this namespace.
    SignCommit { ssh: String, namespace: String },
    /// Puts the signature of another commit into the last one.
    PasteSignature { of: String },
    /// Goes back some commits, as somebody who pushes with force.
    Rewind(u32),
    /// Publishes, and the site must accept it.
    Accept,
    /// Publishes, and the site must refuse it for this reason.
    Refuse(String),
    /// The site's clock says this, as in `+100d` or `-3d`, from now on.
    Clock(String),
    /// The ledger is lost; this is what still tells of it.
    LoseLedger(Told),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Channels {
    serial: u32,
    #[serde(default = "soon")]
    issued: String,
    #[serde(default = "later")]
    expires: String,
    #[serde(default = "stable")]
    stable: String,
    #[serde(default)]
    revoked: BTreeMap<String, String>,
    #[serde(default = "hq")]
    by: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dealers {
    serial: u32,
    /// SSH keys of acme, by name.
    #[serde(default = "acme")]
    keys: Vec<String>,
    /// Limits for all, as in the file.
    #[serde(default = "no_limits")]
    limits: String,
    #[serde(default = "hq")]
    by: Vec<String>,
}

fn acme() -> Vec<String> {
    vec!["acme".into()]
}

fn no_limits() -> String {
    "{}".into()
}

fn soon() -> String {
    "-1h".into()
}

fn later() -> String {
    "+90d".into()
}

fn stable() -> String {
    "2026.06".into()
}

/// A commit by somebody, perhaps signed with his SSH key.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Commit {
    message: Option<String>,
    author: Option<String>,
    ssh: Option<String>,
}

/// Who still knows what was accepted.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Told {
    /// The markers of the guests on Proxmox.
    Markers,
    /// A guest, with evidence.
    Agent,
}

/// A remote, and an orchestrator that follows it.
pub struct World {
    remote: Remote,
    repository: Repository,
    configured: KeySet,
    memory: Memory,
    commits: CommitRule,
    evidence: String,
    ahead: SignedDuration,
}

impl World {
    /// Release 2026.06 and a site that names it, signed by the configured keys; nothing is published yet.
    pub fn new(attack: &Attack) -> Self {
        let remote = Remote::new();
        let repository = remote.open();
        let public: Vec<String> = attack.trust.iter().map(|name| public_key(&remote, name)).collect();
        let configured = KeySet::parse(&public).unwrap().with_threshold(attack.threshold).unwrap();
        let (memory, evidence, ahead) = (Memory::default(), String::new(), SignedDuration::ZERO);
        let mut world = Self { remote, repository, configured, memory, commits: attack.commits, evidence, ahead };
        world.play(&Step::Release { id: "2026.06".into(), by: attack.trust.clone() });
        world.play(&Step::Site("release: \"2026.06\"".into()));
        world
    }

    /// Plays one step.
    pub fn play(&mut self, step: &Step) {
        match step {
            Step::Write(files) => {
                for (path, text) in files {
                    self.write(path, text);
                }
            }
            Step::Remove(files) => {
                for path in files {
                    self.remote.remove(path);
                }
            }
            Step::Copy { from, to } => {
                self.remote.write(to, fs::read(self.file(from)).unwrap());
            }
            Step::Replace { file, from, to } => {
                let text = fs::read_to_string(self.file(file)).unwrap();
                assert!(text.contains(from.as_str()), "{file} has no {from}");
                self.write(file, &text.replacen(from.as_str(), to, 1));
            }
            Step::Sign { file, by, saying } => by.iter().for_each(|name| self.sign(file, name, saying.as_deref())),
            Step::PassOff { signature, as_key } => {
                let text = fs::read_to_string(self.file(signature)).unwrap();
                let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
                let mut bytes = STANDARD.decode(&lines[1]).unwrap();
                bytes[2..10].copy_from_slice(&STANDARD.decode(public_key(&self.remote, as_key)).unwrap()[2..10]);
                lines[1] = STANDARD.encode(bytes);
                self.remote.write(signature, lines.join("\n"));
            }
            Step::Release { id, by } => {
                let file = format!("releases/{id}.yaml");
                self.write(&file, &format!("release: \"{id}\"\n{MANIFEST}"));
                self.sign_anew(&file, by);
            }
            Step::Keys { number, threshold, list, by } => {
                let file = format!("keys/{number}.yaml");
                let keys: String = list.iter().map(|name| format!("  - $key({name})\n")).collect();
                let head = format!("keys: {number}\nthreshold: {threshold}\nissued: $time(-1h)\npublic_keys:\n{keys}");
                self.write(&file, &head);
                self.sign_anew(&file, by);
            }
            Step::Channels(Channels { serial, issued, expires, stable, revoked, by }) => {
                let revoked: String = revoked.iter().map(|(id, why)| format!("  \"{id}\": \"{why}\"\n")).collect();
                let revoked = if revoked.is_empty() { String::new() } else { format!("revoked:\n{revoked}") };
                let text = format!(
                    "serial: {serial}\nissued: $time({issued})\nexpires: $time({expires})\nchannels:\n  stable: \
                     \"{stable}\"\n{revoked}"
                );
                self.write("channels.yaml", &text);
                self.sign_anew("channels.yaml", by);
            }
            Step::Dealers(Dealers { serial, keys, limits, by }) => {
                let keys: Vec<String> = keys.iter().map(|name| format!("$ssh({name})")).collect();
                let text = format!(
                    "serial: {serial}\nissued: $time(-1h)\nlimits: {limits}\ndealers:\n  acme: {{ sites: [acme-hq], \
                     keys: [{}] }}\n  beta: {{ sites: [\"beta-*\"], keys: [$ssh(beta)] }}\n",
                    keys.join(", ")
                );
                self.write("dealers.yaml", &text);
                self.sign_anew("dealers.yaml", by);
            }
            Step::Site(line) => {
                self.write("sites/acme-hq/site.yaml", &format!("{line}\n{SITE}"));
            }
            Step::Commit(commit) => self.commit(commit),
            Step::Branch(name) => drop(self.remote.git(&["checkout", "--quiet", "-b", name])),
            Step::Switch(name) => drop(self.remote.git(&["checkout", "--quiet", name])),
            Step::Merge(name) => drop(self.remote.git(&["merge", "--quiet", "--no-ff", "--no-edit", name])),
            Step::BeginMerge(name) => {
                self.remote.git(&["merge", "--quiet", "--no-ff", "--no-commit", name]);
            }
            Step::SignCommit { ssh, namespace } => {
                let content = self.remote.git(&["cat-file", "commit", "HEAD"]) + "\n";
                let header = signature(&self.ssh_key(ssh), namespace, &content);
                write_commit(&self.remote, &with_header(&content, &header));
            }
            Step::PasteSignature { of } => {
                let (_, header) = apart(&self.remote.git(&["cat-file", "commit", of]));
                let content = self.remote.git(&["cat-file", "commit", "HEAD"]) + "\n";
                write_commit(&self.remote, &with_header(&content, &header));
            }
            Step::Rewind(count) => {
                self.remote.git(&["reset", "--quiet", "--hard", &format!("HEAD~{count}")]);
            }
            Step::Accept => drop(self.publish().unwrap_or_else(|error| panic!("{}: {error}", error.reason()))),
            Step::Refuse(reason) => {
                let error = self.publish().err().unwrap_or_else(|| panic!("accepted instead of {reason}"));
                assert_eq!(error.reason(), reason, "{error}");
            }
            Step::Clock(text) => self.ahead = duration(text),
            Step::LoseLedger(told) => {
                let lost = std::mem::take(&mut self.memory);
                self.memory.floor = match told {
                    Told::Markers => {
                        let mut floor = Floor::default();
                        floor.raise(lost.floor.numbers());
                        floor
                    }
                    Told::Agent => prove(&self.evidence, &self.configured).unwrap(),
                };
            }
        }
    }

    /// Commits everything, pushes, fetches and judges, as the orchestrator does: HQ's word counts whatever the site is.
    pub fn publish(&mut self) -> Result<VerifiedSite, TrustError> {
        self.remote.publish("change");
        let head = self.repository.fetch().unwrap().head;
        let snapshot = self.repository.at(&head).unwrap();
        let hq = verify_hq(&snapshot, &self.configured, &self.memory.floor)?;
        self.memory.floor = hq.floor().clone();
        self.evidence = to_text(hq.evidence()).unwrap();
        let rule = HistoryRule::FastForward(&self.repository);
        let now = Timestamp::now() + self.ahead;
        let site = verify(&snapshot, rule, self.commits, &"acme-hq".parse().unwrap(), &hq, &self.memory, now)?;
        site.remember(&mut self.memory);
        Ok(site)
    }

    fn file(&self, path: &str) -> PathBuf {
        self.remote.path().join("work").join(path)
    }

    fn write(&self, path: &str, text: &str) -> &Remote {
        let text = fill(text, "$key(", |name| public_key(&self.remote, name));
        let text = fill(&text, "$ssh(", |name| {
            let file = self.ssh_key(name).with_extension("ssh.pub");
            fs::read_to_string(file).unwrap().trim().to_owned()
        });
        let text = fill(&text, "$time(", |offset| {
            let time = Timestamp::now() + duration(offset);
            Timestamp::from_second(time.as_second()).unwrap().to_string()
        });
        self.remote.write(path, text)
    }

    /// Signs a file that has no other signatures.
    fn sign_anew(&self, file: &str, by: &[String]) {
        let (directory, name) = file.rsplit_once('/').unwrap_or((".", file));
        for entry in fs::read_dir(self.file(directory)).unwrap() {
            let entry = entry.unwrap();
            let found = entry.file_name().into_string().unwrap();
            if found.starts_with(&format!("{name}.")) && found.ends_with(".minisig") {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        by.iter().for_each(|name| self.sign(file, name, None));
    }

    fn sign(&self, file: &str, name: &str, saying: Option<&str>) {
        public_key(&self.remote, name);
        let secret = self.remote.path().join("keys").join(name).join("hq.key");
        let Some(saying) = saying else {
            let key = SigningKey::read(&secret, || panic!("no password")).unwrap();
            sign(&self.file(file), None, &key, Timestamp::now()).unwrap();
            return;
        };
        // As `minisign -S -t` does.
        let secret = minisign::SecretKeyBox::from(fs::read_to_string(secret).unwrap());
        let secret = secret.into_unencrypted_secret_key().unwrap();
        let content = fs::read(self.file(file)).unwrap();
        let signed = minisign::sign(None, &secret, content.as_slice(), Some(saying), None).unwrap();
        self.remote.write(&format!("{file}.minisig"), signed.to_bytes());
    }

    fn commit(&self, commit: &Commit) {
        let author = commit.author.as_deref().unwrap_or("t");
        let (name, email) = (format!("user.name={author}"), format!("user.email={author}@example.invalid"));
        let mut arguments = vec!["-c", &name, "-c", &email];
        let key = commit.ssh.as_deref().map(|name| format!("user.signingkey={}", self.ssh_key(name).display()));
        if let Some(key) = &key {
            arguments.extend(["-c", "gpg.format=ssh", "-c", key]);
        }
        arguments.extend(["commit", "--quiet", "--allow-empty"]);
        let by = format!("--author={author} <{author}@example.invalid>");
        arguments.extend([by.as_str(), "--message", commit.message.as_deref().unwrap_or("change")]);
        if key.is_some() {
            arguments.push("-S");
        }
        self.remote.git(&["add", "--all"]);
        self.remote.git(&arguments);
    }

    /// Somebody's SSH key, made when he is first named.
    fn ssh_key(&self, name: &str) -> PathBuf {
        let path = self.remote.path().join(format!("{name}.ssh"));
        if !path.exists() {
            let mut command = Command::new("ssh-keygen");
            let made = command.args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(&path).status().unwrap();
            assert!(made.success());
        }
        path
    }
}

/// Somebody's public key; the pair is made when he is first named.
fn public_key(remote: &Remote, name: &str) -> String {
    let directory = remote.path().join("keys").join(name);
    match fs::read_to_string(directory.join("hq.pub")) {
        Ok(text) => text.lines().nth(1).unwrap().to_owned(),
        Err(_) => keygen(&directory, &KeyProtection::Unprotected).unwrap().encoded,
    }
}

/// `+90d`, `-1h`, `+4m`.
fn duration(text: &str) -> SignedDuration {
    let (number, unit) = text.split_at(text.len() - 1);
    let number: i64 = number.parse().unwrap();
    match unit {
        "d" => SignedDuration::from_hours(24 * number),
        "h" => SignedDuration::from_hours(number),
        "m" => SignedDuration::from_mins(number),
        _ => panic!("{text} is not a duration"),
    }
}

/// Replaces `START…)`.
fn fill(text: &str, start: &str, with: impl Fn(&str) -> String) -> String {
    let mut parts = text.split(start);
    let mut filled = parts.next().unwrap().to_owned();
    for part in parts {
        let (name, rest) = part.split_once(')').unwrap();
        filled += &with(name);
        filled += rest;
    }
    filled
}

/// Every attack of a family, by the name of its directory.
pub fn attacks(family: &str) -> BTreeMap<String, Attack> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/attacks");
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(data).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let text = fs::read_to_string(entry.path().join("attack.yaml")).unwrap();
        let value: serde_json::Value =
            serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{name}/attack.yaml: {error}"));
        if value["family"] == family {
            let attack = serde_json::from_value(value).unwrap_or_else(|error| panic!("{name}/attack.yaml: {error}"));
            found.insert(name, attack);
        }
    }
    found
}
