//! The steps of the first boot, one JSON line each, appended as they end: readable when the network never comes.

use std::time::Instant;

use contract::health::FirstBootStep;

use crate::error::Result;
use crate::files::Root;
use crate::layout;

/// Failures of one step that are kept: a guest may wait for its network for days.
const FAILURES_PER_STEP: usize = 3;

/// Writes steps.
pub(crate) struct Journal<'a> {
    root: &'a Root,
}

impl<'a> Journal<'a> {
    /// A journal below `root`.
    pub(crate) fn new(root: &'a Root) -> Self {
        Self { root }
    }

    /// Forgets the journal of another guest.
    pub(crate) fn clear(root: &Root) -> Result<()> {
        root.remove(layout::FIRST_BOOT)
    }

    /// Runs a step and writes how it went.
    pub(crate) fn step<T>(&self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let begin = Instant::now();
        let outcome = work();
        self.record(name, begin, outcome.as_ref().err().map(ToString::to_string))?;
        outcome
    }

    /// Writes how a step went that began at `begin`.
    pub(crate) fn record(&self, name: &str, begin: Instant, failure: Option<String>) -> Result<()> {
        let mut steps = read(self.root)?;
        let failures = steps.iter().filter(|step| step.step == name && step.failure.is_some()).count();
        if failure.is_some() && failures >= FAILURES_PER_STEP {
            return Ok(());
        }
        let millis = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        steps.push(FirstBootStep { step: name.to_owned(), millis, failure });
        let lines: Vec<String> = steps.iter().filter_map(|step| serde_json::to_string(step).ok()).collect();
        self.root.write_note(layout::FIRST_BOOT, (lines.join("\n") + "\n").as_bytes(), 0o600)
    }
}

/// The steps so far. A line that is not one is skipped: the journal informs, nothing depends on it.
pub(crate) fn read(root: &Root) -> Result<Vec<FirstBootStep>> {
    let text = root.read_text(layout::FIRST_BOOT, layout::SMALL_FILE)?.unwrap_or_default();
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::error::{Error, Reason};

    #[test]
    fn keeps_steps_in_order_and_a_few_failures() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let journal = Journal::new(&root);
        journal.step("machine-id", || Ok(())).unwrap();
        for _ in 0..10 {
            journal.step("enrol", || Err::<(), _>(Error::new(Reason::NoRoute, "no network"))).unwrap_err();
        }
        journal.step("enrol", || Ok(())).unwrap();
        let steps = read(&root).unwrap();
        let names: Vec<_> = steps.iter().map(|step| (step.step.as_str(), step.failure.is_some())).collect();
        assert_eq!(names, [("machine-id", false), ("enrol", true), ("enrol", true), ("enrol", true), ("enrol", false)]);
    }
}
