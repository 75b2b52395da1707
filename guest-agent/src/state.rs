//! What the agent remembers: one file, replaced atomically, and never taken for "none" when it cannot be read.

use contract::assignment::Probe;
use contract::health::WiringReport;
use contract::ids::{Generation, InstanceName, Mac, Sha256Digest, SiteName, UnitName};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Reason, Result};
use crate::files::Root;
use crate::layout;

/// Where a guest is in its life. `docs/agent.md` has the picture; a test compares the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// A clone of a sealed template that nobody has started yet.
    Sealed,
    /// Making an identity.
    FirstBoot,
    /// Has an identity, wants a certificate.
    Enrolling,
    /// Has a certificate; the newest assignment is not decided yet, or there is none.
    Applying,
    /// The newest assignment is decided: in force, put back or refused.
    Reporting,
    /// Has somebody else's certificate, and is letting go of it: a copy of an enrolled guest.
    Cloned,
}

impl Phase {
    /// Every phase.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 6] =
        [Self::Sealed, Self::FirstBoot, Self::Enrolling, Self::Applying, Self::Reporting, Self::Cloned];

    /// Name as it stands in the state file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sealed => "sealed",
            Self::FirstBoot => "first-boot",
            Self::Enrolling => "enrolling",
            Self::Applying => "applying",
            Self::Reporting => "reporting",
            Self::Cloned => "cloned",
        }
    }

    /// Whether `next` may follow.
    pub(crate) fn may_become(self, next: Self) -> bool {
        use Phase::{Applying, Cloned, Enrolling, FirstBoot, Reporting, Sealed};
        matches!(
            (self, next),
            (Sealed, FirstBoot)
                | (FirstBoot, Enrolling)
                | (Enrolling, Applying)
                | (Applying, Reporting)
                | (Reporting, Applying)
                | (Applying | Reporting, Cloned)
                | (Cloned, FirstBoot)
        )
    }
}

/// Who the orchestrator says that this guest is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Enrolment {
    /// The site.
    pub site: SiteName,
    /// The instance.
    pub instance: InstanceName,
    /// The address that was enrolled; a guest without it is a copy.
    pub mac: Mac,
    /// The virtual machine's UUID at that time; one with another is a copy.
    pub uuid: Option<String>,
    /// Digest of the machine-id at that time: a copy must not keep it.
    pub machine_id: Sha256Digest,
}

/// What is watched between assignments. No values of the assignment: those stand in the wired files only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Watched {
    /// Units of the newest assignment.
    pub units: Vec<UnitName>,
    /// Probes of the newest assignment.
    pub probes: Vec<Probe>,
}

/// Whether the orchestrator has seen how the first boot went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FirstBootReport {
    /// Goes with the next reports.
    Due,
    /// An accepted report held it.
    Sent,
}

/// The state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// [`FORMAT`] of the agent that wrote it.
    pub format: u32,
    /// Where the guest is in its life.
    pub phase: Phase,
    /// After enrolment.
    pub enrolment: Option<Enrolment>,
    /// The generation whose values are in force; 0 before the first.
    pub generation: Generation,
    /// What became of the newest assignment that was decided.
    pub wiring: Option<WiringReport>,
    /// What is watched.
    pub watched: Watched,
    /// The first boot's report.
    pub first_boot: FirstBootReport,
}

/// Version of the state file. A file of another version is not read.
const FORMAT: u32 = 1;

impl State {
    /// State of a sealed guest at its first start.
    pub(crate) fn sealed() -> Self {
        Self {
            format: FORMAT,
            phase: Phase::Sealed,
            enrolment: None,
            generation: Generation(0),
            wiring: None,
            watched: Watched::default(),
            first_boot: FirstBootReport::Due,
        }
    }

    /// Reads the state file; `None` when there is none.
    pub(crate) fn load(root: &Root) -> Result<Option<Self>> {
        let unreadable = |why: String| Error::new(Reason::StateUnreadable, format!("{}: {why}", layout::STATE));
        let content = root.read(layout::STATE, layout::SMALL_FILE).map_err(|error| unreadable(error.message))?;
        let Some(content) = content else { return Ok(None) };
        let state: Self = serde_json::from_slice(&content.bytes).map_err(|cause| unreadable(cause.to_string()))?;
        if state.format != FORMAT {
            return Err(unreadable(format!("format {}, this agent reads {FORMAT}", state.format)));
        }
        Ok(Some(state))
    }

    /// Writes the state file.
    pub(crate) fn save(&self, root: &Root) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|cause| Error::new(Reason::FileIo, format!("cannot write {}: {cause}", layout::STATE)))?;
        root.write_own(layout::STATE, &text, 0o600)
    }

    /// Goes to the next phase, in memory and on disk. When only the disk fails, memory has gone on.
    pub(crate) fn become_phase(&mut self, next: Phase, root: &Root) -> Result<()> {
        if !self.phase.may_become(next) {
            let (from, to) = (self.phase.name(), next.name());
            return Err(Error::new(Reason::StateTransition, format!("the agent cannot go from {from} to {to}")));
        }
        self.phase = next;
        self.save(root)
    }

    /// A copy forgets what the original had: its next assignment is its first, whatever its number.
    pub(crate) fn begin_anew(&mut self, root: &Root) -> Result<()> {
        *self = Self { phase: self.phase, ..Self::sealed() };
        self.become_phase(Phase::FirstBoot, root)
    }

    /// The newest generation that was decided, for good or bad: only a newer one is of interest.
    pub(crate) fn decided(&self) -> Generation {
        self.wiring.as_ref().map_or(self.generation, |wiring| wiring.generation)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_picture_shows_the_transitions() {
        let picture: BTreeSet<(String, String)> = include_str!("../../docs/agent.md")
            .lines()
            .filter_map(|line| line.trim().split_once(" --> "))
            .filter(|(from, _)| *from != "[*]")
            .map(|(from, to)| (from.to_owned(), to.split(':').next().unwrap().trim().to_owned()))
            .collect();
        let mut machine = BTreeSet::new();
        for from in Phase::ALL {
            for to in Phase::ALL.into_iter().filter(|to| from.may_become(*to)) {
                machine.insert((from.name().to_owned(), to.name().to_owned()));
            }
        }
        assert_eq!(picture, machine);
    }

    #[test]
    fn names_are_those_of_the_file() {
        for phase in Phase::ALL {
            assert_eq!(serde_json::to_string(&phase).unwrap(), format!("\"{}\"", phase.name()));
        }
    }

    #[test]
    fn a_forbidden_transition_is_an_error_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let mut state = State::sealed();
        let error = state.become_phase(Phase::Reporting, &root).unwrap_err();
        assert_eq!(error.reason, Reason::StateTransition);
        assert!(error.message.contains("sealed") && error.message.contains("reporting"));
        assert_eq!(state, State::sealed());
        assert_eq!(State::load(&root).unwrap(), None);
        state.become_phase(Phase::FirstBoot, &root).unwrap();
        assert_eq!(State::load(&root).unwrap(), Some(state));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_never_none() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        State::sealed().save(&root).unwrap();
        let good = root.read_text(layout::STATE, 100_000).unwrap().unwrap();
        for bad in ["", "{", &good[..good.len() / 2], &good.replace("\"format\": 1", "\"format\": 2")] {
            root.write_own(layout::STATE, bad.as_bytes(), 0o600).unwrap();
            assert_eq!(State::load(&root).unwrap_err().reason, Reason::StateUnreadable);
        }
    }
}
