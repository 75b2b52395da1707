//! What is true now: for `ctrlable-agent status`, and as a sentence for `systemctl status`.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use contract::health::{FirstBootStep, WiringOutcome, WiringReport};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::Root;
use crate::first_boot::journal;
use crate::layout;
use crate::state::{Phase, State};

/// Something that is wrong now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Problem {
    /// Stable label.
    pub reason: String,
    /// For a person.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

impl From<&Error> for Problem {
    fn from(error: &Error) -> Self {
        Self {
            reason: error.reason.label().to_owned(),
            message: error.message.clone(),
            remedy: error.reason.remedy().to_owned(),
        }
    }
}

/// What a problem is about; each has one problem at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Subject {
    /// Talking to the orchestrator.
    Contact,
    /// Being who the guest was enrolled as.
    Identity,
    /// The host name.
    Hostname,
    /// The time zone.
    Timezone,
    /// Remembering things on disk.
    Disk,
}

/// The file `/run/ctrlable-agent/status.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// When the orchestrator last answered, in seconds since 1970.
    pub last_contact: Option<u64>,
    /// What is wrong now.
    pub problems: BTreeMap<Subject, Problem>,
}

impl Status {
    /// Notes an answer of the orchestrator.
    pub(crate) fn contact(&mut self) {
        self.last_contact = Some(now());
        self.problems.remove(&Subject::Contact);
    }

    /// Writes the file.
    pub(crate) fn save(&self, root: &Root) -> Result<()> {
        let text = serde_json::to_vec(self).unwrap_or_default();
        root.write_note(layout::STATUS, &text, 0o644)
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// One sentence about the guest.
pub(crate) fn sentence(state: &State, status: &Status) -> String {
    let who = match &state.enrolment {
        Some(enrolment) => format!("{}/{}", enrolment.site, enrolment.instance),
        None => "not enrolled".to_owned(),
    };
    let what = match (state.phase, &state.wiring) {
        (Phase::Sealed | Phase::FirstBoot, _) => "making an identity".to_owned(),
        (Phase::Enrolling, _) => "asking for a certificate".to_owned(),
        (Phase::Applying, _) => format!("generation {} in force, waiting for or applying the next", state.generation),
        (Phase::Cloned, _) => "a copy of an enrolled guest, talks to nobody".to_owned(),
        (Phase::Reporting, Some(WiringReport { generation, outcome: WiringOutcome::Applied { .. } })) => {
            format!("generation {generation} in force")
        }
        (Phase::Reporting, Some(WiringReport { generation, outcome: WiringOutcome::PutBack { reason, .. } })) => {
            format!("generation {generation} put back ({reason}), {} in force", state.generation)
        }
        (Phase::Reporting, Some(WiringReport { generation, outcome: WiringOutcome::Refused { reason, .. } })) => {
            format!("generation {generation} refused ({reason}), {} in force", state.generation)
        }
        (Phase::Reporting, None) => "nothing applied yet".to_owned(),
    };
    let trouble: Vec<String> = status.problems.values().map(|problem| problem.reason.clone()).collect();
    if trouble.is_empty() { format!("{who}: {what}") } else { format!("{who}: {what}; {}", trouble.join(", ")) }
}

/// Everything that `ctrlable-agent status` shows.
#[derive(Debug, Serialize)]
pub(crate) struct Overview {
    /// The sentence.
    pub summary: String,
    /// The state file.
    pub state: State,
    /// Steps of the first boot.
    pub first_boot: Vec<FirstBootStep>,
    /// What is true now; empty when the agent does not run.
    pub now: Status,
}

/// Reads everything; `None` when the guest has no state yet.
pub(crate) fn overview(root: &Root) -> Result<Option<Overview>> {
    let Some(state) = State::load(root)? else { return Ok(None) };
    let content = root.read(layout::STATUS, layout::SMALL_FILE)?;
    // A file from another version informs of nothing; the state file is what counts.
    let now: Status = content.and_then(|content| serde_json::from_slice(&content.bytes).ok()).unwrap_or_default();
    Ok(Some(Overview { summary: sentence(&state, &now), first_boot: journal::read(root)?, now, state }))
}

impl std::fmt::Display for Overview {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", self.summary)?;
        writeln!(f, "state         {}", self.state.phase.name())?;
        writeln!(f, "generation    {} in force, {} decided", self.state.generation, self.state.decided())?;
        match self.now.last_contact {
            Some(then) => writeln!(f, "last contact  {} s ago", now().saturating_sub(then))?,
            None => writeln!(f, "last contact  none since the agent started")?,
        }
        if let Some(WiringReport {
            generation,
            outcome: WiringOutcome::PutBack { reason, detail } | WiringOutcome::Refused { reason, detail },
        }) = &self.state.wiring
        {
            writeln!(f, "wiring        generation {generation}: {detail} [{reason}]")?;
        }
        writeln!(f, "first boot")?;
        for FirstBootStep { step, millis, failure } in &self.first_boot {
            writeln!(f, "  {step:<16}{millis:>7} ms  {}", failure.as_deref().unwrap_or("done"))?;
        }
        for Problem { reason, message, remedy } in self.now.problems.values() {
            writeln!(f, "problem       {message} [{reason}]\n              {remedy}")?;
        }
        Ok(())
    }
}
