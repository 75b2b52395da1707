//! The event log: everything the orchestrator does or refuses, with the revision that asked for it.

use contract::ids::{InstanceName, Revision};
use rusqlite::params;
use serde::Serialize;

use super::{Result, Store, now};

/// What kind of thing happened. The text form is stable: it is what `ctrlable events --json` and metrics show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// The orchestrator started.
    Started,
    /// A revision was accepted.
    RevisionAccepted,
    /// A revision was refused; the last good one stays in force.
    RevisionRefused,
    /// The newest of HQ's documents that nothing goes back behind: it moved, was lost, was repaired, or somebody lies
    /// about it.
    Floor,
    /// HQ's word, or the clock, went out of date or is fine again.
    Freshness,
    /// The remote could not be read.
    SourceFailed,
    /// A plan with something to do.
    Planned,
    /// Something is in the way of an instance.
    Blocked,
    /// A number that nothing needs any more was given up.
    Released,
    /// A step began.
    StepStarted,
    /// A step ended well.
    StepDone,
    /// A step failed.
    StepFailed,
    /// A guest proved to be ours and got its certificate.
    Enrolled,
    /// A guest got a new certificate in place of its own.
    Renewed,
    /// An operator cut a guest off.
    Revoked,
    /// The site's CA is being replaced, or was.
    CaRotation,
    /// A guest asked for a certificate and did not get one.
    EnrolmentRefused,
    /// A new assignment was made.
    Wired,
    /// An instance turned healthy.
    Healthy,
    /// An instance turned degraded.
    Degraded,
    /// An instance stopped reporting.
    Lost,
    /// The hypervisor could not be asked.
    ProxmoxFailed,
    /// An operator did something by command.
    Operator,
}

impl EventKind {
    /// The stable text form.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::RevisionAccepted => "revision-accepted",
            Self::RevisionRefused => "revision-refused",
            Self::Floor => "floor",
            Self::Freshness => "freshness",
            Self::SourceFailed => "source-failed",
            Self::Planned => "planned",
            Self::Blocked => "blocked",
            Self::Released => "released",
            Self::StepStarted => "step-started",
            Self::StepDone => "step-done",
            Self::StepFailed => "step-failed",
            Self::Enrolled => "enrolled",
            Self::Renewed => "renewed",
            Self::Revoked => "revoked",
            Self::CaRotation => "ca-rotation",
            Self::EnrolmentRefused => "enrolment-refused",
            Self::Wired => "wired",
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Lost => "lost",
            Self::ProxmoxFailed => "proxmox-failed",
            Self::Operator => "operator",
        }
    }
}

/// One thing that happened.
#[derive(Debug, Clone)]
pub struct Event {
    kind: EventKind,
    instance: Option<InstanceName>,
    revision: Option<Revision>,
    reason: Option<String>,
    message: String,
}

impl Event {
    /// What happened, in a sentence.
    pub fn new(kind: EventKind, message: impl Into<String>) -> Self {
        Self { kind, instance: None, revision: None, reason: None, message: message.into() }
    }

    /// To whom.
    pub fn instance(mut self, instance: &InstanceName) -> Self {
        self.instance = Some(instance.clone());
        self
    }

    /// Who asked for it.
    pub fn revision(mut self, revision: &Revision) -> Self {
        self.revision = Some(revision.clone());
        self
    }

    /// The stable label of what went wrong.
    pub fn reason(mut self, reason: &str) -> Self {
        self.reason = Some(reason.to_owned());
        self
    }
}

/// An event as it was stored.
#[derive(Debug, Clone, Serialize)]
pub struct StoredEvent {
    /// Ascending.
    pub id: i64,
    /// Seconds since 1970.
    pub at: i64,
    /// See [`EventKind`].
    pub kind: String,
    /// To whom.
    pub instance: Option<String>,
    /// Who asked for it.
    pub revision: Option<String>,
    /// Stable label of what went wrong.
    pub reason: Option<String>,
    /// A sentence.
    pub message: String,
}

/// Events kept; older ones are dropped. 200,000 of some 200 bytes are 40 MB.
const KEPT: i64 = 200_000;

impl Store {
    /// Writes an event to the log, and to the journal of the service.
    pub fn record(&self, event: Event) -> Result<()> {
        let instance = event.instance.as_ref().map(InstanceName::as_str);
        let revision = event.revision.as_ref().map(Revision::as_str);
        match event.kind {
            EventKind::RevisionRefused
            | EventKind::SourceFailed
            | EventKind::Blocked
            | EventKind::StepFailed
            | EventKind::Revoked
            | EventKind::EnrolmentRefused
            | EventKind::Degraded
            | EventKind::Lost
            | EventKind::ProxmoxFailed => tracing::warn!(
                kind = event.kind.as_str(),
                instance,
                revision,
                reason = event.reason,
                "{}",
                event.message
            ),
            _ => tracing::info!(kind = event.kind.as_str(), instance, revision, "{}", event.message),
        }
        self.with("written", |db| {
            db.prepare_cached(
                "INSERT INTO events (at, kind, instance, revision, reason, message) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                now(),
                event.kind.as_str(),
                instance,
                revision,
                event.reason,
                event.message
            ])?;
            let id = db.last_insert_rowid();
            if id % 1000 == 0 {
                db.execute("DELETE FROM events WHERE id <= ?1", [id - KEPT])?;
            }
            Ok(())
        })
    }

    /// The newest `limit` events, oldest first, of one instance or of all, with an id above `after`.
    pub fn events(&self, instance: Option<&InstanceName>, after: i64, limit: u32) -> Result<Vec<StoredEvent>> {
        self.with("read", |db| {
            let mut statement = db.prepare_cached(
                "SELECT id, at, kind, instance, revision, reason, message FROM events
                 WHERE id > ?1 AND (?2 IS NULL OR instance = ?2) ORDER BY id DESC LIMIT ?3",
            )?;
            let rows = statement.query_map(params![after, instance.map(InstanceName::as_str), limit], |row| {
                Ok(StoredEvent {
                    id: row.get(0)?,
                    at: row.get(1)?,
                    kind: row.get(2)?,
                    instance: row.get(3)?,
                    revision: row.get(4)?,
                    reason: row.get(5)?,
                    message: row.get(6)?,
                })
            })?;
            let mut events = rows.collect::<std::result::Result<Vec<_>, _>>()?;
            events.reverse();
            Ok(events)
        })
    }

    /// How often each kind of event with each reason occurred, for metrics.
    pub fn event_counts(&self) -> Result<Vec<(String, String, i64)>> {
        self.with("read", |db| {
            let mut statement = db.prepare_cached(
                "SELECT kind, COALESCE(reason, ''), COUNT(*) FROM events GROUP BY 1, 2 ORDER BY 1, 2",
            )?;
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
        })
    }
}
