//! `orchestrator.toml`: as written, then as valid. Only [`Config`] leaves this module.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use contract::ids::{InvalidId, SiteName};
use contract::secret::Secret;
use serde::Deserialize;

use crate::proxmox::{self, ServerTrust};
use crate::trust::{CommitRule, KeySet, KeySetError};

/// Where `ctrlable` looks when it is not told.
pub const DEFAULT_PATH: &str = "/etc/ctrlable/orchestrator.toml";

/// A configuration that can be used.
#[derive(Debug)]
pub struct Config {
    /// The site that this orchestrator serves.
    pub site: SiteName,
    /// Ledger, CA, bare repository.
    pub state: PathBuf,
    /// The fleet repository.
    pub source: Source,
    /// HQ's public keys, as minisign prints them: the first list.
    pub keys: Vec<String>,
    /// How many different ones of them must have signed what HQ publishes.
    pub threshold: u32,
    /// Which commits that change the site must be signed by its dealer.
    pub commits: CommitRule,
    /// The hypervisor.
    pub proxmox: proxmox::Settings,
    /// The listener for guests.
    pub agents: Agents,
    /// The listener for people.
    pub web: Web,
    /// The site's secrets.
    pub secrets: Option<PathBuf>,
}

/// See [`Config::source`].
#[derive(Debug)]
pub struct Source {
    /// `https://`, `ssh://`, `file://`.
    pub url: String,
    /// Branch.
    pub branch: String,
    /// Time between two fetches; up to a tenth is added by chance, so that a fleet does not fetch in step.
    pub interval: Duration,
    /// Private key for `ssh://`.
    pub ssh_key: Option<PathBuf>,
    /// Host keys for `ssh://`.
    pub known_hosts: Option<PathBuf>,
    /// CA for `https://` instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Secret of `POST /hooks/git`; absent: the hook is off.
    pub webhook_secret: Option<Secret>,
}

/// See [`Config::agents`].
#[derive(Debug)]
pub struct Agents {
    /// Where guests connect.
    pub listen: SocketAddr,
    /// Base URLs that templates carry; the listener's certificate is made for their hosts.
    pub advertise: Vec<String>,
    /// How long a started guest may enrol.
    pub window: Duration,
    /// How often a guest reports when nothing changes.
    pub interval: Duration,
    /// How long a guest's certificate is good.
    pub certificate_life: Duration,
}

/// See [`Config::web`].
#[derive(Debug)]
pub struct Web {
    /// `/healthz`, `/readyz`, `/metrics`, `/hooks/git`. Loopback unless said otherwise.
    pub listen: SocketAddr,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file, or one that it names.
    #[error("{path} cannot be read: {source}{}", if named_by.is_empty() { String::new() } else { format!(" (named by `{named_by}`)") })]
    File {
        /// Which.
        path: PathBuf,
        /// The field that names it; empty for the file itself.
        named_by: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, or not these fields.
    #[error("{path}:{line}: {message}")]
    Form {
        /// Which.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// Why, and the nearest known field.
        message: String,
    },
    /// A field's value.
    #[error("{path}: {field}: {message}")]
    Value {
        /// Which.
        path: PathBuf,
        /// Which field.
        field: &'static str,
        /// Why, and what to do.
        message: String,
    },
}

impl ConfigError {
    /// Stable label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::File { .. } => "config-unreadable",
            Self::Form { .. } => "config-form",
            Self::Value { .. } => "config-value",
        }
    }
}

/// The file as written.
mod raw {
    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct File {
        pub(super) site: String,
        #[serde(default = "state")]
        pub(super) state: PathBuf,
        pub(super) source: Source,
        pub(super) trust: Trust,
        pub(super) proxmox: Proxmox,
        pub(super) agents: Agents,
        #[serde(default)]
        pub(super) web: Web,
        #[serde(default)]
        pub(super) secrets: Secrets,
    }

    fn state() -> PathBuf {
        "/var/lib/ctrlable".into()
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Source {
        pub(super) url: String,
        #[serde(default = "branch")]
        pub(super) branch: String,
        #[serde(default = "interval")]
        pub(super) interval: u64,
        pub(super) ssh_key: Option<PathBuf>,
        pub(super) known_hosts: Option<PathBuf>,
        pub(super) ca_file: Option<PathBuf>,
        pub(super) webhook_secret_file: Option<PathBuf>,
    }

    fn branch() -> String {
        "main".into()
    }

    /// A minute: a merge is seen soon, and a thousand sites are 17 requests a second for a forge.
    fn interval() -> u64 {
        60
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Trust {
        pub(super) keys: Vec<String>,
        #[serde(default = "threshold")]
        pub(super) threshold: u32,
        #[serde(default)]
        pub(super) commits: CommitRule,
    }

    /// One person, as long as HQ says nothing else.
    fn threshold() -> u32 {
        1
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Proxmox {
        pub(super) url: String,
        pub(super) token_file: PathBuf,
        pub(super) ca_file: Option<PathBuf>,
        pub(super) fingerprint: Option<String>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Agents {
        #[serde(default = "listen")]
        pub(super) listen: SocketAddr,
        pub(super) advertise: Vec<String>,
        #[serde(default = "window")]
        pub(super) window: u64,
        #[serde(default = "report")]
        pub(super) interval: u64,
        #[serde(default = "certificate_life")]
        pub(super) certificate_life: u64,
    }

    fn listen() -> SocketAddr {
        SocketAddr::from(([0, 0, 0, 0], 8443))
    }

    /// Fifteen minutes: a slow first boot on a busy node, with DHCP trouble on top.
    fn window() -> u64 {
        900
    }

    /// Half a minute: lost after two missed reports is noticed before somebody calls.
    fn report() -> u64 {
        30
    }

    /// Two weeks: renewed after nine days or so, which leaves five for an orchestrator that is away.
    fn certificate_life() -> u64 {
        14 * 86_400
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Web {
        #[serde(default = "loopback")]
        pub(super) listen: SocketAddr,
    }

    impl Default for Web {
        fn default() -> Self {
            Self { listen: loopback() }
        }
    }

    fn loopback() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 8080))
    }

    #[derive(Deserialize, Default)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Secrets {
        pub(super) file: Option<PathBuf>,
    }
}

impl Config {
    /// Reads and checks a file. Paths in it are relative to its directory.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path, "")?;
        let text = String::from_utf8_lossy(&text);
        let raw: raw::File = toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            ConfigError::Form { path: path.to_owned(), line, message: error.message().to_owned() }
        })?;
        Self::check(path, raw)
    }

    fn check(path: &Path, raw: raw::File) -> Result<Self, ConfigError> {
        let base = path.parent().unwrap_or(Path::new("."));
        let at = |relative: PathBuf| base.join(relative);
        let value = |field, message: String| ConfigError::Value { path: path.to_owned(), field, message };
        let id = |field| {
            move |error: InvalidId| ConfigError::Value { path: path.to_owned(), field, message: error.to_string() }
        };
        let server = match (raw.proxmox.ca_file, raw.proxmox.fingerprint) {
            (Some(file), None) => ServerTrust::Ca(read(&at(file), "proxmox.ca_file")?),
            (None, Some(fingerprint)) => ServerTrust::Fingerprint(
                fingerprint.parse().map_err(|error| value("proxmox.fingerprint", format!("{error}")))?,
            ),
            _ => {
                return Err(value(
                    "proxmox",
                    "give either `ca_file` (the node's /etc/pve/pve-root-ca.pem) or `fingerprint`".into(),
                ));
            }
        };
        if raw.agents.advertise.is_empty() {
            return Err(value(
                "agents.advertise",
                "give at least one URL under which guests reach this program".into(),
            ));
        }
        for url in &raw.agents.advertise {
            if host_of(url).is_none() {
                return Err(value("agents.advertise", format!("`{url}` is not https://HOST:PORT")));
            }
        }
        if raw.trust.keys.is_empty() {
            return Err(value("trust.keys", "without a key of HQ nothing is ever accepted; give at least one".into()));
        }
        let keys = raw.trust.keys.len();
        if !usize::try_from(raw.trust.threshold).is_ok_and(|threshold| (1..=keys).contains(&threshold)) {
            return Err(value("trust.threshold", format!("give 1 to {keys}: one for each of `trust.keys` at most")));
        }
        if !(1..=86_400).contains(&raw.source.interval) {
            return Err(value("source.interval", "give 1 to 86400 seconds".into()));
        }
        if !(10..=86_400).contains(&raw.agents.window) {
            return Err(value("agents.window", "give 10 to 86400 seconds".into()));
        }
        if !(1..=3_600).contains(&raw.agents.interval) {
            return Err(value("agents.interval", "give 1 to 3600 seconds".into()));
        }
        // An agent is told to renew with the answer to a report, after two thirds of the life.
        if !(4 * raw.agents.interval..=31_536_000).contains(&raw.agents.certificate_life) {
            let message = "give four times `agents.interval` to 31536000 seconds (a year)".into();
            return Err(value("agents.certificate_life", message));
        }
        Ok(Self {
            site: raw.site.parse().map_err(id("site"))?,
            state: at(raw.state),
            source: Source {
                url: raw.source.url,
                branch: raw.source.branch,
                interval: Duration::from_secs(raw.source.interval),
                ssh_key: raw.source.ssh_key.map(at),
                known_hosts: raw.source.known_hosts.map(at),
                ca_file: raw.source.ca_file.map(at),
                webhook_secret: raw
                    .source
                    .webhook_secret_file
                    .map(|file| secret(&at(file), "source.webhook_secret_file"))
                    .transpose()?,
            },
            keys: raw.trust.keys,
            threshold: raw.trust.threshold,
            commits: raw.trust.commits,
            proxmox: proxmox::Settings::new(
                raw.proxmox.url.parse().map_err(|error| value("proxmox.url", format!("{error}")))?,
                secret(&at(raw.proxmox.token_file), "proxmox.token_file")?,
                server,
            ),
            agents: Agents {
                listen: raw.agents.listen,
                advertise: raw.agents.advertise,
                window: Duration::from_secs(raw.agents.window),
                interval: Duration::from_secs(raw.agents.interval),
                certificate_life: Duration::from_secs(raw.agents.certificate_life),
            },
            web: Web { listen: raw.web.listen },
            secrets: raw.secrets.file.map(at),
        })
    }
}

impl Config {
    /// HQ's first list of keys.
    pub fn trusted(&self) -> Result<KeySet, KeySetError> {
        KeySet::parse(&self.keys)?.with_threshold(self.threshold)
    }
}

impl Agents {
    /// Hosts of the advertised URLs: what the listener's certificate is made for.
    pub fn names(&self) -> Vec<String> {
        self.advertise.iter().filter_map(|url| host_of(url)).collect()
    }
}

/// Host of an `https` URL with nothing but an optional port behind it.
fn host_of(url: &str) -> Option<String> {
    let parsed = reqwest::Url::parse(url).ok()?;
    let plain = parsed.scheme() == "https"
        && parsed.path() == "/"
        && parsed.query().is_none()
        && parsed.username().is_empty()
        && parsed.password().is_none();
    let host = parsed.host_str().filter(|_| plain)?;
    Some(host.trim_start_matches('[').trim_end_matches(']').to_owned())
}

fn read(path: &Path, named_by: &'static str) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|source| ConfigError::File { path: path.to_owned(), named_by, source })
}

fn secret(path: &Path, named_by: &'static str) -> Result<Secret, ConfigError> {
    let text = zeroize::Zeroizing::new(read(path, named_by)?);
    Ok(Secret::new(String::from_utf8_lossy(&text).trim()))
}
