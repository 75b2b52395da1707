//! What a dead orchestrator, or a call without an answer, left open.

use std::time::Duration;

use contract::ids::{InstanceName, NodeName, Vmid};
use tokio::time::Instant;

use super::{Executor, crash_point};
use crate::plan::Action;
use crate::proxmox::{Disposition, Problem, ProxmoxError, Upid};
use crate::store::{JournalState, OpenEntry, StoreError, now};

/// Longest wait for a task that an earlier process began; after it, the next pass goes on waiting.
const LEFT_OPEN: Duration = Duration::from_secs(60 * 60);
/// Time in which a call that a dead process sent has begun its task, if it ever does: pveproxy hands it on at once, and
/// our own restart has taken seconds already.
const APPEARS: Duration = Duration::from_secs(4);
/// Time between two looks at a node's tasks.
const LOOK: Duration = Duration::from_secs(2);

impl Executor {
    /// Takes up every step that the journal has open and nobody is at. Their instances are busy until it is known what
    /// became of them; everything else goes on.
    pub fn resume(&self) -> Result<usize, StoreError> {
        let open = self.0.store.open_entries()?;
        let mut taken = 0;
        for entry in open {
            // An instance that is busy has its row open because its lane is at it.
            let Some(turn) = self.enter(&entry.instance) else { continue };
            taken += 1;
            tokio::spawn(async move {
                if let Err(error) = turn.executor.take_up(&turn.instance).await {
                    tracing::error!(reason = error.reason(), %error, "the ledger cannot be used");
                }
            });
        }
        Ok(taken)
    }

    /// All open rows of one instance.
    async fn take_up(&self, instance: &InstanceName) -> Result<(), StoreError> {
        for entry in self.0.store.open_entries()?.into_iter().filter(|entry| entry.instance == *instance) {
            tracing::info!(%instance, action = entry.action, upid = entry.upid, "taking up a step that was left open");
            crash_point("resume", &entry.action);
            let ended = match entry.upid.as_deref().and_then(|upid| upid.parse::<Upid>().ok()) {
                Some(upid) => self.0.client.wait(&upid, Instant::now() + LEFT_OPEN).await.map(drop),
                None => self.settle_entry(&entry).await,
            };
            match ended {
                Err(error) if self.is_undecided(&error) => {
                    // The row stays open, and the instance untouched, until the node can be asked.
                    tracing::info!(%instance, reason = error.reason(), "what became of a step is not known yet");
                    return Ok(());
                }
                Ok(()) if entry.upid.is_some() => {
                    self.0.store.ended(entry.id, JournalState::Done, None)?;
                    match entry.action.as_str() {
                        "clone" => self.0.store.note_made(instance)?,
                        "destroy" => self.0.store.release_instance(instance)?,
                        _ => {}
                    }
                }
                Ok(()) => self.0.store.ended(entry.id, JournalState::Interrupted, None)?,
                Err(error) => {
                    let unknown = error.disposition() == Disposition::Uncertain;
                    let state = if unknown { JournalState::Interrupted } else { JournalState::Failed };
                    self.0.store.ended(entry.id, state, Some((error.reason(), &error.to_string())))?;
                }
            }
            if entry.action == "clone" {
                // If a new guest was made, the agent of the one before is gone.
                self.0.store.forget_agent_before(instance, entry.started_at)?;
            }
        }
        Ok(())
    }

    /// Whether an error leaves open what became of a task: the node could not be asked, or the task still runs.
    fn is_undecided(&self, error: &ProxmoxError) -> bool {
        matches!(
            error.cause(),
            Problem::Unreachable(_)
                | Problem::NodeUnreachable(_)
                | Problem::TlsPin(_)
                | Problem::TokenRefused(_)
                | Problem::Relay(..)
                | Problem::NoAnswer(_)
                | Problem::TaskStillRunning(_)
        )
    }

    /// Waits until nothing that we may have begun for this guest still runs. A call that had no answer may begin its
    /// task up to `patience` from now.
    pub(super) async fn settle(
        &self,
        instance: &InstanceName,
        action: &Action,
        vmid: Vmid,
        patience: Duration,
    ) -> Result<(), ProxmoxError> {
        let Some(node) = action.node() else { return Ok(()) };
        let from = match action {
            Action::Clone { from, .. } => *from,
            _ => None,
        };
        tracing::info!(%instance, action = action.word(), "finding out what became of a call");
        let concerns =
            |task: &Upid| task.id() == vmid.to_string() || from.is_some_and(|from| task.id() == from.to_string());
        self.await_tasks(node, patience, concerns).await
    }

    async fn settle_entry(&self, entry: &OpenEntry) -> Result<(), ProxmoxError> {
        let Some(node) = &entry.node else { return Ok(()) };
        let age = Duration::from_secs(u64::try_from(now() - entry.started_at).unwrap_or(0));
        // A clone's task has its template's number; which template that was is not in the row, so every clone of ours
        // on this node is awaited.
        let concerns = |task: &Upid| {
            task.id() == entry.vmid.to_string()
                || (entry.action == "clone" && matches!(task.kind(), "vzclone" | "qmclone"))
        };
        self.await_tasks(node, APPEARS.saturating_sub(age), concerns).await
    }

    /// Waits for the active tasks of ours that `concerns` picks, and for those that appear within `patience`.
    async fn await_tasks(
        &self,
        node: &NodeName,
        patience: Duration,
        concerns: impl Fn(&Upid) -> bool + Send,
    ) -> Result<(), ProxmoxError> {
        let end = Instant::now() + patience;
        let ours = self.0.client.token_id();
        loop {
            let tasks = self.0.client.active_tasks(node, None, None).await?;
            for upid in tasks.into_iter().map(|task| task.upid).filter(|upid| upid.user() == ours && concerns(upid)) {
                match self.0.client.wait(&upid, Instant::now() + LEFT_OPEN).await {
                    Ok(_) => {}
                    Err(error) if self.is_undecided(&error) => return Err(error),
                    // How it ended is for the next observation to see.
                    Err(error) => tracing::info!(upid = upid.as_str(), reason = error.reason(), "a task failed"),
                }
            }
            if Instant::now() >= end {
                return Ok(());
            }
            tokio::time::sleep_until(end.min(Instant::now() + LOOK)).await;
        }
    }
}
