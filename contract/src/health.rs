//! What an agent reports about its guest: `POST /v1/health` over mutual TLS, at once after a change and then regularly.

use serde::{Deserialize, Serialize};

use crate::enrolment::Identity;
use crate::floor::Floor;
use crate::ids::{Generation, GuestPath, Sha256Digest, UnitName};
use crate::renewal::Renew;

/// Path of the request.
pub const PATH: &str = "/v1/health";

/// One report. Newer reports (higher `sequence` within a `boot_id`) replace older ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthReport {
    /// [`crate::PROTOCOL`] of the agent.
    pub protocol: u32,
    /// `/proc/sys/kernel/random/boot_id`, or the container's own start stamp.
    pub boot_id: String,
    /// Counts the reports since the agent started.
    pub sequence: u64,
    /// Version of the agent.
    pub agent: String,
    /// Seconds since the guest booted.
    pub uptime: u64,
    /// The newest generation whose values are in force; 0 before the first.
    pub generation: Generation,
    /// What became of the newest assignment that the agent saw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wiring: Option<WiringReport>,
    /// Units of the assignment.
    #[serde(default)]
    pub units: Vec<UnitHealth>,
    /// Probes of the assignment, in its order.
    #[serde(default)]
    pub probes: Vec<ProbeHealth>,
    /// One-minute load average.
    pub load: f64,
    /// Memory in bytes.
    pub memory: Usage,
    /// The root file system in bytes.
    pub disk: Usage,
    /// As it is now.
    pub identity: Identity,
    /// The steps of the first boot, once; empty in later reports.
    #[serde(default)]
    pub first_boot: Vec<FirstBootStep>,
    /// What the agent keeps for its orchestrator; absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<Floor>,
    /// SHA-256 of the text of CA certificates that the agent believes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<Sha256Digest>,
}

/// What became of one generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WiringReport {
    /// Which one.
    pub generation: Generation,
    /// How it went.
    pub outcome: WiringOutcome,
}

/// How applying an assignment went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WiringOutcome {
    /// In force.
    Applied {
        /// Files whose content, owner or mode changed.
        changed: Vec<GuestPath>,
    },
    /// Units or probes did not come up; everything was put back as it was.
    PutBack {
        /// Stable label.
        reason: String,
        /// For a person. Never a value from the assignment.
        detail: String,
    },
    /// It could not be applied at all; nothing was changed.
    Refused {
        /// Stable label.
        reason: String,
        /// For a person. Never a value from the assignment.
        detail: String,
    },
}

/// State of one unit, in systemd's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitHealth {
    /// Which.
    pub unit: UnitName,
    /// `ActiveState`: active, reloading, inactive, failed, activating, deactivating; or `not-found`.
    pub active: String,
    /// `SubState`: running, dead, auto-restart, …
    pub sub: String,
}

/// Result of one probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeHealth {
    /// The probe as text: `tcp 1883`.
    pub probe: String,
    /// Why it does not hold; absent when it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// An amount and what of it is used, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// All of it.
    pub total: u64,
    /// What is used.
    pub used: u64,
}

/// One line of the first-boot journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirstBootStep {
    /// Name of the step, such as `machine-id`.
    pub step: String,
    /// Milliseconds that it took.
    pub millis: u64,
    /// Why it failed; absent when it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// The answer to an accepted report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthResponse {
    /// Newest generation that the orchestrator has for this guest.
    pub generation: Generation,
    /// Seconds until the next regular report.
    pub interval: u32,
    /// Whether the agent is to renew its certificate.
    #[serde(default, skip_serializing_if = "Renew::is_not_yet")]
    pub renew: Renew,
    /// The CA certificates to believe from now on, PEM; present only when they are others than was reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// What the agent is to keep from now on; present only when it is something else than was reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<Floor>,
}

impl HealthReport {
    /// Everything that keeps this guest from being healthy, as short sentences; empty when it is.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        match &self.wiring {
            Some(WiringReport { generation, outcome: WiringOutcome::PutBack { reason, detail } }) => {
                problems.push(format!("wiring {generation} was put back ({reason}): {detail}"));
            }
            Some(WiringReport { generation, outcome: WiringOutcome::Refused { reason, detail } }) => {
                problems.push(format!("wiring {generation} was refused ({reason}): {detail}"));
            }
            Some(WiringReport { outcome: WiringOutcome::Applied { .. }, .. }) | None => {}
        }
        for unit in self.units.iter().filter(|unit| unit.active != "active") {
            problems.push(format!("{} is {} ({})", unit.unit, unit.active, unit.sub));
        }
        // A unit that is also probed is said once.
        let said = |probe: &str| self.units.iter().any(|unit| probe.strip_prefix("unit ") == Some(unit.unit.as_str()));
        for probe in self.probes.iter().filter(|probe| !said(&probe.probe)) {
            if let Some(failure) = &probe.failure {
                problems.push(format!("{}: {failure}", probe.probe));
            }
        }
        problems
    }
}
