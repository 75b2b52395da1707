//! What an agent must make true inside its guest: values, never a template language.
//!
//! `GET /v1/assignment?after=G&wait=S` answers 200 with the newest assignment as soon as its generation is above `G`,
//! or 204 after `S` seconds (at most [`MAX_WAIT`]).

use serde::{Deserialize, Serialize};

use crate::ids::{
    FileMode, FileOwner, Generation, GuestPath, Hostname, InstanceName, ReleaseId, SiteName, TemplateName, Timezone,
    UnitName,
};
use crate::secret::Redacted;

/// Path of the request.
pub const PATH: &str = "/v1/assignment";

/// Longest long-poll, in seconds: below the 60 s after which middle boxes tend to cut idle connections.
pub const MAX_WAIT: u32 = 50;

/// One numbered assignment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// [`crate::PROTOCOL`] of the orchestrator.
    pub protocol: u32,
    /// The site.
    pub site: SiteName,
    /// The instance.
    pub instance: InstanceName,
    /// Higher is newer.
    pub generation: Generation,
    /// The guest's host name.
    pub hostname: Hostname,
    /// The release that the instance follows.
    pub release: ReleaseId,
    /// The template of that release.
    pub template: TemplateName,
    /// Time zone to set over D-Bus; absent: left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<Timezone>,
    /// Files to merge values into, in this order.
    #[serde(default)]
    pub files: Vec<AssignedFile>,
    /// Units to restart when a file changed, in this order, and to watch always.
    #[serde(default)]
    pub units: Vec<UnitName>,
    /// What must hold for the guest to be healthy, besides its units.
    #[serde(default)]
    pub probes: Vec<Probe>,
}

/// One file and the values that must be in it. What the merge does not name stays as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AssignedFile {
    /// Where.
    pub path: GuestPath,
    /// How it is read and written.
    pub format: FileFormat,
    /// Permission bits. Absent: kept, or 0600 for a new file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<FileMode>,
    /// Owner. Absent: kept, or root for a new file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<FileOwner>,
    /// An object. Objects merge key by key, `null` removes a key, everything else replaces. It may hold secrets.
    pub merge: Redacted,
}

/// File formats with a structured merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "documents", derive(schemars::JsonSchema))]
pub enum FileFormat {
    /// YAML, nested.
    Yaml,
    /// JSON, nested.
    Json,
    /// TOML, nested; comments are kept.
    Toml,
    /// `[section]` and `key = value`; the merge is `{ section: { key: value } }`, top-level scalars stand before the
    /// first section. Comments are kept.
    Ini,
    /// `KEY=value` lines as systemd's `EnvironmentFile=` reads them; flat. Comments are kept.
    Env,
    /// `key value` lines as mosquitto, sshd and chrony read them; flat, a list gives one line per element. Comments
    /// are kept.
    Conf,
}

/// Something that must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Probe {
    /// The unit is active.
    Unit(UnitName),
    /// A GET on this URL, which names the guest itself, answers 200 to 399.
    Http(HttpProbe),
    /// A TCP connection to this port of the guest itself is accepted.
    Tcp(TcpProbe),
}

/// See [`Probe::Http`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpProbe {
    /// `http://127.0.0.1:PORT/PATH`.
    pub url: String,
}

/// See [`Probe::Tcp`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpProbe {
    /// Port on 127.0.0.1.
    pub port: u16,
}

impl std::fmt::Display for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unit(unit) => write!(f, "unit {unit}"),
            Self::Http(probe) => write!(f, "http {}", probe.url),
            Self::Tcp(probe) => write!(f, "tcp {}", probe.port),
        }
    }
}
