//! What a dead orchestrator, or a call without an answer, left open.

use std::time::Duration;

use contract::ids::{InstanceName, Vmid};
use tokio::time::Instant;

use super::{Executor, crash_point};
use crate::plan::Action;
use crate::proxmox::Upid;
use crate::store::{JournalState, OpenEntry, StoreError};

/// Longest wait for a task that an earlier process began.
const LEFT_OPEN: Duration = Duration::from_secs(60 * 60);
/// Time after which a task that Proxmox was asked for must have appeared in its list, if it was begun at all: the
/// relay's time-out of 30 s (pve-api 1) and some slack.
const APPEARS: Duration = Duration::from_secs(2);

impl Executor {
    /// Takes up every step that the journal still has open. Their instances are busy until it is known what became of
    /// them; everything else goes on.
    pub fn resume(&self) -> Result<usize, StoreError> {
        let open = self.0.store.open_entries()?;
        let count = open.len();
        for entry in open {
            if !self.enter(&entry.instance) {
                // Two open rows of one instance: a crash while the first was being resumed. The lane takes both.
                continue;
            }
            let executor = self.clone();
            tokio::spawn(async move {
                if let Err(error) = executor.take_up(&entry.instance).await {
                    tracing::error!(reason = error.reason(), %error, "the ledger cannot be used");
                }
                executor.leave(&entry.instance);
            });
        }
        Ok(count)
    }

    /// All open rows of one instance.
    async fn take_up(&self, instance: &InstanceName) -> Result<(), StoreError> {
        for entry in self.0.store.open_entries()?.into_iter().filter(|entry| entry.instance == *instance) {
            tracing::info!(%instance, action = entry.action, upid = entry.upid, "taking up a step that was left open");
            if entry.action == "clone" {
                // As after a clone whose end was seen: an agent of an earlier guest is none of the new one.
                self.0.store.forget_agent(instance)?;
            }
            let known = entry.upid.as_deref().and_then(|upid| upid.parse::<Upid>().ok());
            match known {
                Some(upid) => {
                    crash_point("resume", &entry.action);
                    match self.0.client.wait(&upid, Instant::now() + LEFT_OPEN).await {
                        Ok(_) => self.0.store.ended(entry.id, JournalState::Done, None)?,
                        Err(error) => {
                            let trouble = Some((error.reason(), error.to_string()));
                            let trouble = trouble.as_ref().map(|(reason, message)| (*reason, message.as_str()));
                            self.0.store.ended(entry.id, JournalState::Interrupted, trouble)?;
                        }
                    }
                }
                None => {
                    self.settle_entry(&entry).await;
                    self.0.store.ended(entry.id, JournalState::Interrupted, None)?;
                }
            }
        }
        Ok(())
    }

    /// Waits until nothing that we may have begun for this guest still runs.
    pub(super) async fn settle(&self, instance: &InstanceName, action: &Action, vmid: Vmid) {
        let Some(node) = action.node() else { return };
        let from = match action {
            Action::Clone { from, .. } => Some(*from),
            _ => None,
        };
        tracing::info!(%instance, action = action.word(), "finding out what became of a call");
        self.await_tasks(node, |task| {
            task.id() == vmid.to_string() || from.is_some_and(|from| task.id() == from.to_string())
        })
        .await;
    }

    async fn settle_entry(&self, entry: &OpenEntry) {
        let Some(node) = &entry.node else { return };
        // A clone's task has its template's number; which template that was is not in the row, so every clone of ours
        // on this node is awaited.
        self.await_tasks(node, |task| {
            task.id() == entry.vmid.to_string()
                || (entry.action == "clone" && matches!(task.kind(), "vzclone" | "qmclone"))
        })
        .await;
    }

    /// Waits for the active tasks of ours that `concerns` picks; a call that was sent a moment ago may show only now.
    async fn await_tasks(&self, node: &contract::ids::NodeName, concerns: impl Fn(&Upid) -> bool + Send) {
        for look in 0..2 {
            if look > 0 {
                tokio::time::sleep(APPEARS).await;
            }
            match self.0.client.active_tasks(node, None, None).await {
                Ok(tasks) => {
                    for upid in tasks.into_iter().map(|task| task.upid).filter(|upid| concerns(upid)) {
                        if let Err(error) = self.0.client.wait(&upid, Instant::now() + LEFT_OPEN).await {
                            tracing::info!(upid = upid.as_str(), reason = error.reason(), "a task ended otherwise");
                        }
                    }
                }
                Err(error) => tracing::warn!(reason = error.reason(), %error, "the node's tasks cannot be listed"),
            }
        }
    }
}
