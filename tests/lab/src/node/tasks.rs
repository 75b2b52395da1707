//! Tasks: UPIDs, workers, logs, and how a task ends.

use std::future::Future;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::{Notify, watch};

use super::{Node, Work};
use crate::auth::Caller;
use crate::clock;
use crate::faults::Effects;

/// Ends that are no error of the work itself.
pub(crate) const UNEXPECTED: &str = "unexpected status";
const OK: &str = "OK";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) upid: String,
    pub(crate) node: String,
    pub(crate) pid: u32,
    pub(crate) pstart: u64,
    pub(crate) starttime: u64,
    pub(crate) kind: String,
    pub(crate) id: String,
    /// Full identity of the owner.
    pub(crate) user: String,
    pub(crate) endtime: Option<u64>,
    /// How it ended: `OK`, `WARNINGS: n`, or the error.
    pub(crate) exit: Option<String>,
    pub(crate) log: Vec<String>,
}

/// The parts of a UPID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Upid {
    pub(crate) node: String,
    pub(crate) kind: String,
    pub(crate) id: String,
    pub(crate) user: String,
}

impl Upid {
    /// Parses `UPID:NODE:PID:PSTART:STARTTIME:TYPE:ID:USER:`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let ["UPID", node, pid, pstart, start, kind, id, user, ""] = parts.as_slice() else {
            return None;
        };
        let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
        let shape = pid.len() == 8
            && matches!(pstart.len(), 8 | 9)
            && start.len() == 8
            && [pid, pstart, start].iter().all(|part| hex(part))
            && !node.is_empty()
            && !kind.is_empty()
            && !user.is_empty();
        shape.then(|| Self {
            node: (*node).to_owned(),
            kind: (*kind).to_owned(),
            id: (*id).to_owned(),
            user: (*user).to_owned(),
        })
    }
}

impl Task {
    fn owner(&self) -> (&str, Option<&str>) {
        match self.user.split_once('!') {
            Some((user, token)) => (user, Some(token)),
            None => (&self.user, None),
        }
    }

    /// Whether somebody sees it without further rights: a token sees its own, a user theirs and their tokens'.
    pub(crate) fn belongs_to(&self, caller: &Caller) -> bool {
        match caller.token {
            Some(_) => self.user == caller.id,
            None => self.owner().0 == caller.user,
        }
    }

    fn common(&self) -> Map<String, Value> {
        let (user, token) = self.owner();
        let mut row = Map::new();
        row.insert("upid".to_owned(), json!(self.upid));
        row.insert("node".to_owned(), json!(self.node));
        row.insert("pid".to_owned(), json!(self.pid));
        row.insert("pstart".to_owned(), json!(self.pstart));
        row.insert("starttime".to_owned(), json!(self.starttime));
        row.insert("type".to_owned(), json!(self.kind));
        row.insert("id".to_owned(), json!(self.id));
        row.insert("user".to_owned(), json!(user));
        if let Some(token) = token {
            row.insert("tokenid".to_owned(), json!(token));
        }
        row
    }

    /// `GET status`.
    pub(crate) fn status_json(&self) -> Value {
        let mut row = self.common();
        match &self.exit {
            None => drop(row.insert("status".to_owned(), json!("running"))),
            Some(exit) => {
                row.insert("status".to_owned(), json!("stopped"));
                row.insert("exitstatus".to_owned(), json!(exit));
            }
        }
        Value::Object(row)
    }

    /// A row of the list.
    pub(crate) fn row(&self) -> Value {
        let mut row = self.common();
        match &self.exit {
            None => {
                row.remove("tokenid");
                row.insert("user".to_owned(), json!(self.user));
                row.insert("status".to_owned(), json!("RUNNING"));
                row.insert("saved".to_owned(), json!("0"));
            }
            Some(exit) => {
                row.insert("status".to_owned(), json!(exit));
                row.insert("endtime".to_owned(), json!(self.endtime));
            }
        }
        Value::Object(row)
    }

    /// One of ok, warning, error, unknown.
    pub(crate) fn outcome(&self) -> &'static str {
        match self.exit.as_deref() {
            Some(OK) => "ok",
            Some(exit) if exit.starts_with("WARNINGS: ") => "warning",
            Some(UNEXPECTED) | None => "unknown",
            Some(_) => "error",
        }
    }
}

/// A running task, seen from outside and from within.
#[derive(Debug)]
pub(crate) struct Handle {
    node: Arc<Node>,
    pub(crate) upid: String,
    pub(crate) effects: Effects,
    interrupt: watch::Sender<bool>,
    pub(crate) ended: Notify,
}

impl Handle {
    /// Adds a line to the log.
    pub(crate) fn log(&self, line: impl Into<String>) {
        if let Some(task) = self.node.write().task_mut(&self.upid) {
            task.log.push(line.into());
        }
    }

    /// Asks the worker to end, as TERM does.
    pub(crate) fn interrupt(&self) {
        self.interrupt.send_replace(true);
    }

    /// Runs until done or interrupted.
    pub(crate) async fn interruptible<T>(&self, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
        let mut signal = self.interrupt.subscribe();
        tokio::select! {
            done = work => done,
            _ = signal.wait_for(|asked| *asked) => Err("interrupted by signal".to_owned()),
        }
    }

    /// The middle of the work: what was recorded as its duration passes here, and faults strike here.
    pub(crate) async fn work(&self, work: Work) -> Result<(), String> {
        self.node.pace(work).await;
        if let Some(millis) = self.effects.delay_ms {
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
        match &self.effects.error {
            Some(text) => Err(text.clone()),
            None => Ok(()),
        }
    }
}

/// What a worker returns: how many warnings there were, or the error.
pub(crate) type Ended = Result<u32, String>;

impl Node {
    /// Starts a worker and returns its UPID.
    pub(crate) fn start_task<F, W>(
        self: &Arc<Self>,
        caller: &Caller,
        effects: Effects,
        (kind, id): (&str, &str),
        worker: W,
    ) -> String
    where
        W: FnOnce(Arc<Handle>) -> F,
        F: Future<Output = Ended> + Send + 'static,
    {
        let (starttime, pstart) = (clock::epoch(), clock::centiseconds());
        let mut state = self.write();
        let cluster = state.cluster_mut();
        cluster.next_pid =
            if cluster.next_pid < 1000 || cluster.next_pid > 4_000_000 { 1000 } else { cluster.next_pid + 1 };
        let pid = cluster.next_pid;
        let upid = format!("UPID:{}:{pid:08X}:{pstart:08X}:{starttime:08X}:{kind}:{id}:{}:", self.name, caller.id);
        state.insert_task(Task {
            upid: upid.clone(),
            node: self.name.clone(),
            pid,
            pstart,
            starttime,
            kind: kind.to_owned(),
            id: id.to_owned(),
            user: caller.id.clone(),
            endtime: None,
            exit: None,
            log: Vec::new(),
        });
        drop(state);
        let handle = Arc::new(Handle {
            node: Arc::clone(self),
            upid: upid.clone(),
            effects,
            interrupt: watch::Sender::new(false),
            ended: Notify::new(),
        });
        self.journal.task_started(&upid);
        self.live().insert(upid.clone(), Arc::clone(&handle));
        let work = worker(Arc::clone(&handle));
        let node = Arc::clone(self);
        tokio::spawn(async move {
            let ended = work.await;
            node.finish(&handle, ended);
        });
        upid
    }

    fn live(&self) -> std::sync::MutexGuard<'_, std::collections::HashMap<String, Arc<Handle>>> {
        self.running_tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, handle: &Handle, ended: Ended) {
        let extra = handle.effects.warnings.unwrap_or(0);
        let exit = match ended {
            Ok(0) if extra == 0 => OK.to_owned(),
            Ok(warnings) => format!("WARNINGS: {}", warnings + extra),
            Err(text) => text.lines().next().unwrap_or_default().to_owned(),
        };
        {
            let mut state = self.write();
            if let Some(task) = state.task_mut(&handle.upid) {
                task.log.extend((0..extra).map(|_| "WARN: as the lab was told".to_owned()));
                task.log.push(match exit.as_str() {
                    OK => "TASK OK".to_owned(),
                    exit if exit.starts_with("WARNINGS: ") => format!("TASK {exit}"),
                    error => format!("TASK ERROR: {error}"),
                });
                task.endtime = Some(clock::epoch());
                task.exit = Some(exit);
            }
        }
        self.journal.task_ended(&handle.upid);
        self.live().remove(&handle.upid);
        handle.ended.notify_waiters();
    }

    /// The handle of a task that still runs.
    pub(crate) fn live_task(&self, upid: &str) -> Option<Arc<Handle>> {
        self.live().get(upid).cloned()
    }

    /// Interrupts what runs and waits for it, at the end of the lab.
    pub(crate) async fn end_tasks(&self) {
        let running: Vec<Arc<Handle>> = self.live().values().cloned().collect();
        for task in running {
            task.interrupt();
        }
        // Workers that cannot be interrupted take seconds at most; a hung one must not keep the lab alive.
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while !self.live().is_empty() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Tasks that ran when the lab was killed did not end: nobody knows how they would have.
    pub(crate) fn bury_dead_tasks(&self) {
        let mut state = self.write();
        let dead: Vec<String> =
            state.tasks().values().filter(|task| task.exit.is_none()).map(|task| task.upid.clone()).collect();
        for upid in dead {
            if let Some(task) = state.task_mut(&upid) {
                task.exit = Some(UNEXPECTED.to_owned());
                task.endtime = Some(task.starttime);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upids_are_parsed_by_shape() {
        let upid = Upid::parse("UPID:pve1:000006A5:0006CE26:6B00437B:vzclone:100:chk@pve!tk:");
        assert_eq!(
            upid.map(|upid| (upid.kind, upid.id, upid.user)),
            Some(("vzclone".to_owned(), "100".to_owned(), "chk@pve!tk".to_owned()))
        );
        assert_eq!(Upid::parse("UPID:foo"), None);
        assert_eq!(Upid::parse("UPID:pve1:6A5:0006CE26:6B00437B:vzclone:100:chk@pve!tk:"), None);
        assert!(Upid::parse("UPID:pve1:000006A5:0006CE26:6B00437B:vzdump::root@pam:").is_some(), "an empty id is fine");
    }
}
