//! Tasks: state, log, waiting (pve-api 12.1). A stored task id is enough to go on after a restart.

use std::time::Duration;

use contract::ids::{NodeName, Vmid};
use serde_json::Value;
use tokio::time::Instant;

use super::classify::of_text;
use super::client::{Client, readable};
use super::decode;
use super::error::{Disposition, Effect, Problem, ProxmoxError};
use super::form::Form;
use super::transport::{Call, Verb, jittered, path};
use super::upid::Upid;

/// First pause between two looks at a task: most are done in under a second.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between two looks.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Longest exit text or log line that is kept, in characters.
const LINE_LIMIT: usize = 500;

/// How a task ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskEnd {
    /// It did what it was asked.
    Ok,
    /// It did, and warned so many times; its log says of what.
    Warnings(u32),
}

/// What a task is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskState {
    /// It runs.
    Running,
    /// It ended well.
    Ended(TaskEnd),
    /// It ended with this error.
    Failed(String),
    /// It ended and nobody knows how.
    Unknown(String),
}

impl TaskState {
    /// From `data` of `…/tasks/{upid}/status`.
    pub fn decode(data: &Value) -> Result<Self, String> {
        match data.get("status").and_then(Value::as_str) {
            Some("running") => Ok(Self::Running),
            Some("stopped") => Ok(match data.get("exitstatus").and_then(decode::text) {
                Some(text) => Self::of_exit(&text),
                None => Self::Unknown("no exit text".to_owned()),
            }),
            _ => Err("a task is `running` or `stopped`".to_owned()),
        }
    }

    /// From the exit text of a stopped task.
    pub fn of_exit(text: &str) -> Self {
        let text: String = text.trim().chars().take(LINE_LIMIT).collect();
        if text == "OK" {
            return Self::Ended(TaskEnd::Ok);
        }
        if let Some(count) = text.strip_prefix("WARNINGS:").and_then(|count| count.trim().parse().ok()) {
            return Self::Ended(TaskEnd::Warnings(count));
        }
        if text.is_empty() || text.starts_with("unexpected status") || text.starts_with("unable to get last line") {
            return Self::Unknown(text);
        }
        Self::Failed(text)
    }

    /// Its end; an error when it failed or nobody knows, nothing while it runs.
    pub fn result(self, upid: &Upid) -> Option<Result<TaskEnd, Problem>> {
        match self {
            Self::Running => None,
            Self::Ended(end) => Some(Ok(end)),
            Self::Failed(text) => {
                Some(Err(Problem::TaskFailed { upid: upid.clone(), cause: Box::new(of_text(0, &text)) }))
            }
            Self::Unknown(text) => Some(Err(Problem::TaskOutcomeUnknown { upid: upid.clone(), text })),
        }
    }
}

/// A task that runs now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActiveTask {
    /// Its id, which tells type, guest, user and start.
    pub upid: Upid,
}

impl ActiveTask {
    /// From `data` of `…/tasks?source=active`. Rows that have ended meanwhile are left out.
    pub fn decode(data: Value) -> Result<Vec<Self>, String> {
        let rows: Vec<Value> = decode::rows(data)?;
        let running = rows.iter().filter(|row| row.get("endtime").is_none());
        running
            .map(|row| {
                let upid = row.get("upid").and_then(Value::as_str).ok_or("a task row has no `upid`")?;
                Ok(Self { upid: upid.parse().map_err(|error: super::upid::InvalidUpid| error.to_string())? })
            })
            .collect()
    }
}

impl Client {
    /// What a task is doing.
    pub async fn task_status(&self, upid: &Upid) -> Result<TaskState, ProxmoxError> {
        let call = task_call(upid, "status");
        readable(&call, TaskState::decode(&self.data(&call).await?))
    }

    /// The last lines of a task's log.
    pub async fn task_log_tail(&self, upid: &Upid, lines: usize) -> Result<Vec<String>, ProxmoxError> {
        // The answer does not hold the total where we see it, and a log grows while it is read: all lines, then the last.
        let call = task_call(upid, "log").with(Form::new().set("start", 0).set("limit", 0));
        let data = self.data(&call).await?;
        let rows = data.as_array().into_iter().flatten();
        let mut rows: Vec<(u64, String)> = rows
            .filter_map(|row| {
                let text = row.get("t").and_then(Value::as_str)?.chars().take(LINE_LIMIT).collect();
                Some((row.get("n").and_then(decode::number)?, text))
            })
            .collect();
        // Order of rows is not promised.
        rows.sort();
        let skipped = rows.len().saturating_sub(lines);
        Ok(rows.into_iter().skip(skipped).map(|(_, text)| text).collect())
    }

    /// Tasks that run now on a node, of one type or on one guest if given. Of a clone the guest is the source.
    pub async fn active_tasks(
        &self,
        node: &NodeName,
        kind: Option<&str>,
        vmid: Option<Vmid>,
    ) -> Result<Vec<ActiveTask>, ProxmoxError> {
        let form = Form::new().set("source", "active").set_some("typefilter", kind).set_some("vmid", vmid);
        let call = Call::new(Verb::Get, path(&["nodes", node.as_str(), "tasks"]), Some(node)).with(form);
        readable(&call, ActiveTask::decode(self.data(&call).await?))
    }

    /// Waits for the end of a task. That the node cannot be asked for a while is borne until the deadline.
    pub async fn wait(&self, upid: &Upid, deadline: Instant) -> Result<TaskEnd, ProxmoxError> {
        self.wait_with(upid, deadline, || ()).await
    }

    /// Waits, and tells after each look that the task still runs.
    pub async fn wait_with(
        &self,
        upid: &Upid,
        deadline: Instant,
        mut still_running: impl FnMut(),
    ) -> Result<TaskEnd, ProxmoxError> {
        let mut pause = FIRST_PAUSE;
        let error =
            |problem| ProxmoxError::new(format!("task {} of {}", upid.kind(), upid.id()), Effect::Change, problem);
        loop {
            match self.task_status(upid).await {
                Ok(state) => match state.result(upid) {
                    Some(Ok(end)) => return Ok(end),
                    Some(Err(problem)) => return Err(error(problem)),
                    None => still_running(),
                },
                Err(failed) if !matches!(failed.disposition(), Disposition::Retry { .. }) => return Err(failed),
                Err(failed) if Instant::now() >= deadline => return Err(failed),
                Err(_) => {}
            }
            if Instant::now() >= deadline {
                return Err(error(Problem::TaskStillRunning(upid.clone())));
            }
            tokio::time::sleep_until(deadline.min(Instant::now() + jittered(pause))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

fn task_call(upid: &Upid, what: &str) -> Call {
    Call::new(Verb::Get, path(&["nodes", upid.node().as_str(), "tasks", upid.as_str(), what]), Some(upid.node()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn exit_texts() {
        assert_eq!(TaskState::of_exit("OK"), TaskState::Ended(TaskEnd::Ok));
        assert_eq!(TaskState::of_exit("WARNINGS: 3"), TaskState::Ended(TaskEnd::Warnings(3)));
        assert!(matches!(TaskState::of_exit("unexpected status"), TaskState::Unknown(_)));
        assert!(matches!(TaskState::of_exit("unable to get last line from task log - x"), TaskState::Unknown(_)));
        assert!(matches!(TaskState::of_exit("OKAY"), TaskState::Failed(_)));
    }

    #[test]
    fn a_failed_task_has_the_label_of_its_cause() {
        let upid: Upid = "UPID:pve1:000006A5:0006CE26:6B00437B:vzclone:100:chk@pve!tk:".parse().unwrap();
        let end = |text: &str| TaskState::of_exit(text).result(&upid).unwrap().unwrap_err();
        assert_eq!(end("CT is locked (backup)").reason(), "locked");
        assert_eq!(end("clone failed: something new").reason(), "task-failed");
        assert_eq!(end("unexpected status").reason(), "task-outcome-unknown");
        assert_eq!(end("unexpected status").disposition(Effect::Change), Disposition::Uncertain);
    }
}
