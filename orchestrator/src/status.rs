//! What an instance is in one word, and why: from the ledger and a clock, for the command line, metrics and the page.

use std::collections::BTreeMap;

use contract::ids::{Generation, InstanceName};
use serde::{Deserialize, Serialize};

use crate::store::{AgentRecord, InstanceRecord, Store, StoreError};

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
    /// Number of its guest; 0 as long as it has none.
    pub vmid: u32,
    /// Host name; empty, as are template and release, as long as nothing is reserved for it.
    pub hostname: String,
    /// What it was cloned from.
    pub template: String,
    /// The release that it was cloned from.
    pub release: String,
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
    let (Some(report), Some(seen)) = (&agent.report, agent.last_seen) else {
        return (Phase::Provisioning, "enrolled; its first report has not come yet".into(), None);
    };
    let silent = now - seen;
    if silent > interval * MISSED + 5 {
        return (Phase::Lost, format!("no report for {silent} s"), Some("guest-lost".into()));
    }
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

/// Why the newest plan can do nothing for an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InTheWay {
    /// Stable label.
    pub reason: String,
    /// What is in the way, and what to do.
    pub message: String,
    /// The number that the instance has or would get.
    pub vmid: Option<u32>,
}

/// Where the ledger keeps what is in the way.
pub(crate) const IN_THE_WAY: &str = "in-the-way";

/// What was in the way in the newest pass.
pub fn in_the_way(store: &Store) -> Result<BTreeMap<InstanceName, InTheWay>, StoreError> {
    Ok(store.meta(IN_THE_WAY)?.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
}

/// Every instance: those of the ledger, and those that something keeps from getting there.
pub fn instances(store: &Store, now: i64) -> Result<Vec<InstanceStatus>, StoreError> {
    let mut instances = known(store, now)?;
    for (instance, InTheWay { reason, message, vmid }) in in_the_way(store)? {
        match instances.iter_mut().find(|status| status.instance == instance) {
            // What went wrong in a step says more than what is in the way of the next.
            Some(status) if status.reason.is_some() => {}
            Some(status) => {
                status.phase = Phase::Degraded;
                (status.cause, status.reason) = (message, Some(reason));
            }
            None => instances.push(InstanceStatus {
                instance,
                phase: Phase::Pending,
                cause: message,
                reason: Some(reason),
                vmid: vmid.unwrap_or_default(),
                hostname: String::new(),
                template: String::new(),
                release: String::new(),
                address: None,
                generation: Generation(0),
                in_force: Generation(0),
                last_seen: None,
                retry_at: None,
            }),
        }
    }
    instances.sort_by(|a, b| a.instance.cmp(&b.instance));
    Ok(instances)
}

/// Every instance of the ledger.
fn known(store: &Store, now: i64) -> Result<Vec<InstanceStatus>, StoreError> {
    let mut agents: BTreeMap<InstanceName, AgentRecord> = store.agents()?;
    let interval = store.meta("report-interval")?.and_then(|text| text.parse().ok()).unwrap_or(30);
    Ok(store
        .instances()?
        .into_iter()
        .map(|(name, record)| {
            let agent = agents.remove(&name);
            let (phase, cause, reason) = phase(&record, agent.as_ref(), now, interval);
            InstanceStatus {
                phase,
                cause,
                reason,
                vmid: record.vmid.get(),
                hostname: record.hostname.to_string(),
                template: record.template.to_string(),
                release: record.release.to_string(),
                address: agent.as_ref().map(|agent| agent.address.clone()),
                generation: record.generation,
                in_force: agent
                    .as_ref()
                    .and_then(|agent| agent.report.as_ref())
                    .map_or(Generation(0), |report| report.generation),
                last_seen: agent.as_ref().and_then(|agent| agent.last_seen),
                retry_at: record.trouble.as_ref().map(|trouble| trouble.retry_at),
                instance: name,
            }
        })
        .collect())
}
