//! What an instance is in one word, and why: from the ledger and a clock, for the command line, metrics and the page.

use std::collections::BTreeMap;

use contract::ids::{Generation, InstanceName};
use serde::{Deserialize, Serialize};

use crate::store::{AgentRecord, InstanceRecord, Store, StoreError};
use crate::trust::{Freshness, Hq};

/// The word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Asked for; nothing has been done yet.
    Pending,
    /// On its way: being cloned, booting, enrolling or being wired.
    Provisioning,
    /// Its newest assignment is in force and everything in it holds.
    Healthy,
    /// It reports, and something does not hold; or something keeps it from getting on.
    Degraded,
    /// It has stopped reporting.
    Lost,
}

impl Phase {
    /// Every phase, in the order of a life.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Provisioning, Self::Healthy, Self::Degraded, Self::Lost];

    /// The stable word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Provisioning => "provisioning",
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Lost => "lost",
        }
    }
}

/// One instance at a glance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InstanceStatus {
    /// Its name.
    pub instance: InstanceName,
    /// The word.
    pub phase: Phase,
    /// Why it is not healthy; empty when it is.
    pub cause: String,
    /// Stable label of the cause, where there is one.
    pub reason: Option<String>,
    /// Number of its guest; absent as long as none is reserved.
    pub vmid: Option<u32>,
    /// Host name.
    pub hostname: Option<String>,
    /// What it was cloned from.
    pub template: Option<String>,
    /// The release that it was cloned from.
    pub release: Option<String>,
    /// Where it reports from.
    pub address: Option<String>,
    /// Newest generation, and the one in force.
    pub generation: Generation,
    /// Generation in force in the guest.
    pub in_force: Generation,
    /// When it reported last, in seconds since 1970.
    pub last_seen: Option<i64>,
    /// When it is tried again, in seconds since 1970.
    pub retry_at: Option<i64>,
}

/// Reports that may be missed before a guest counts as lost.
const MISSED: i64 = 3;

/// The word for one instance.
pub fn phase(
    record: &InstanceRecord,
    agent: Option<&AgentRecord>,
    now: i64,
    interval: i64,
) -> (Phase, String, Option<String>) {
    if let Some(trouble) = &record.trouble {
        return (Phase::Degraded, trouble.message.clone(), Some(trouble.reason.clone()));
    }
    let Some(agent) = agent else {
        return match record.window_opened_at {
            Some(_) => (Phase::Provisioning, "started; its agent has not enrolled yet".into(), None),
            None if record.generation > Generation(0) => {
                (Phase::Provisioning, "being cloned and configured".into(), None)
            }
            None => (Phase::Pending, "reserved".into(), None),
        };
    };
    if agent.revoked_at.is_some() {
        let cause = "an operator revoked its certificate; `ctrlable agent readmit` lets a new guest enrol".into();
        return (Phase::Degraded, cause, Some("guest-revoked".into()));
    }
    let silent = now - agent.last_seen.unwrap_or(agent.enrolled_at);
    if silent > interval * MISSED + 5 {
        return (Phase::Lost, format!("no report for {silent} s"), Some("guest-lost".into()));
    }
    let Some(report) = &agent.report else {
        return (Phase::Provisioning, "enrolled; its first report has not come yet".into(), None);
    };
    let problems = report.problems();
    if !problems.is_empty() {
        return (Phase::Degraded, problems.join("; "), Some("guest-degraded".into()));
    }
    if report.generation < record.generation {
        return (
            Phase::Provisioning,
            format!("assignment {} is in force, {} is on its way", report.generation, record.generation),
            None,
        );
    }
    (Phase::Healthy, String::new(), None)
}

/// How HQ's word stands; the ledger keeps it by name under [`STANDING`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Standing {
    /// Number of the list of keys in force.
    pub keys: u32,
    /// Serial of the channels; 0: there are none.
    pub channels: u32,
    /// Until when sites follow them.
    pub expires: Option<jiff::Timestamp>,
    /// Whether that is over, so that the site stays with the release that it has.
    pub frozen: bool,
    /// Whether the system's clock is behind what HQ has signed.
    pub clock_behind: bool,
}

/// Where the ledger keeps how HQ's word stands.
pub const STANDING: &str = "standing";

impl Standing {
    /// Of what HQ said last, by this clock.
    pub fn of(hq: &Hq, now: jiff::Timestamp) -> Self {
        let numbers = hq.floor().numbers();
        Self {
            keys: numbers.keys,
            channels: numbers.channels,
            expires: hq.channels().map(|channels| channels.expires),
            frozen: hq.freshness(now) != Freshness::Current,
            clock_behind: hq.floor().clock_behind(now).is_some(),
        }
    }

    /// What the ledger knows; none before HQ said anything.
    pub fn known(store: &Store) -> Result<Option<Self>, StoreError> {
        let damaged =
            |error: serde_json::Error| StoreError::Damaged { table: "meta", what: format!("{STANDING}: {error}") };
        store.meta(STANDING)?.map(|text| serde_json::from_str(&text).map_err(damaged)).transpose()
    }
}

/// What the last plan found in the way of one instance; the ledger keeps it by name under [`BLOCKED`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InTheWay {
    /// Stable label.
    pub reason: String,
    /// What it is.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// Where the ledger keeps what is in the way.
pub const BLOCKED: &str = "blocked";

/// Reasons that come and go by themselves, such as a backup: they do not make a healthy guest any less so.
pub const PASSING: [&str; 2] = ["guest-locked", "guest-unreadable"];

/// What is in the way, by instance.
pub fn in_the_way(store: &Store) -> Result<BTreeMap<String, InTheWay>, StoreError> {
    match store.meta(BLOCKED)? {
        None => Ok(BTreeMap::new()),
        Some(text) => serde_json::from_str(&text)
            .map_err(|error| StoreError::Damaged { table: "meta", what: format!("{BLOCKED}: {error}") }),
    }
}

/// Every instance of the ledger, and those that could not even be given a number.
pub fn instances(store: &Store, now: i64) -> Result<Vec<InstanceStatus>, StoreError> {
    let mut agents: BTreeMap<InstanceName, AgentRecord> = store.agents()?;
    let mut blocked = in_the_way(store)?;
    let interval = store.meta("report-interval")?.and_then(|text| text.parse().ok()).unwrap_or(30);
    let mut statuses = Vec::new();
    for (name, record) in store.instances()? {
        let agent = agents.remove(&name);
        let (mut phase, mut cause, mut reason) = phase(&record, agent.as_ref(), now, interval);
        if let Some(found) = blocked.remove(name.as_str())
            && !(phase == Phase::Healthy && PASSING.contains(&found.reason.as_str()))
            // What went wrong in a step, or in the guest, says more than what is in the way of the next step.
            && reason.is_none()
        {
            (phase, cause, reason) =
                (Phase::Degraded, format!("{}. {}", found.message, found.remedy), Some(found.reason));
        }
        statuses.push(InstanceStatus {
            phase,
            cause,
            reason,
            vmid: Some(record.vmid.get()),
            hostname: Some(record.hostname.to_string()),
            template: Some(record.template.to_string()),
            release: Some(record.release.to_string()),
            address: agent.as_ref().map(|agent| agent.address.clone()),
            generation: record.generation,
            in_force: agent
                .as_ref()
                .and_then(|agent| agent.report.as_ref())
                .map_or(Generation(0), |report| report.generation),
            last_seen: agent.as_ref().and_then(|agent| agent.last_seen),
            retry_at: record.trouble.as_ref().map(|trouble| trouble.retry_at),
            instance: name,
        });
    }
    for (name, found) in blocked {
        let Ok(instance) = name.parse() else { continue };
        statuses.push(InstanceStatus {
            instance,
            phase: Phase::Pending,
            cause: format!("{}. {}", found.message, found.remedy),
            reason: Some(found.reason),
            vmid: None,
            hostname: None,
            template: None,
            release: None,
            address: None,
            generation: Generation(0),
            in_force: Generation(0),
            last_seen: None,
            retry_at: None,
        });
    }
    statuses.sort_by(|a, b| a.instance.cmp(&b.instance));
    Ok(statuses)
}
