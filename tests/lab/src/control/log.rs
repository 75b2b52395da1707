//! The journal: what was asked and which tasks ran, in one order, so that a test can say what overlapped.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

/// Entries kept; the oldest go first.
const KEPT: usize = 200_000;

/// One request or one task.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Entry {
    /// `request` or `task`.
    pub(crate) what: &'static str,
    /// Position of its start in the order of everything.
    pub(crate) started: u64,
    /// Position of its end; absent while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ended: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) method: Option<String>,
    /// Path of a request, UPID of a task.
    pub(crate) subject: String,
    /// Names of the parameters; never their values, which may be secrets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) parameters: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<u16>,
}

#[derive(Debug, Default)]
struct Inner {
    clock: u64,
    entries: VecDeque<Entry>,
}

/// Everything since the lab started or the journal was emptied.
#[derive(Debug, Default)]
pub(crate) struct Journal(Mutex<Inner>);

impl Journal {
    fn open(&self, entry: Entry) -> u64 {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.clock += 1;
        let started = inner.clock;
        if inner.entries.len() >= KEPT {
            inner.entries.pop_front();
        }
        inner.entries.push_back(Entry { started, ..entry });
        started
    }

    fn close(&self, fits: impl Fn(&Entry) -> bool, finish: impl FnOnce(&mut Entry)) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.clock += 1;
        let ended = inner.clock;
        if let Some(entry) = inner.entries.iter_mut().rev().find(|entry| entry.ended.is_none() && fits(entry)) {
            entry.ended = Some(ended);
            finish(entry);
        }
    }

    pub(crate) fn request_started(&self, method: &str, path: &str) -> u64 {
        self.open(Entry {
            what: "request",
            started: 0,
            ended: None,
            method: Some(method.to_owned()),
            subject: path.to_owned(),
            parameters: Vec::new(),
            status: None,
        })
    }

    pub(crate) fn request_ended(&self, started: u64, parameters: Vec<String>, status: Option<u16>) {
        self.close(
            |entry| entry.started == started,
            |entry| {
                entry.parameters = parameters;
                entry.status = status;
            },
        );
    }

    pub(crate) fn task_started(&self, upid: &str) {
        self.open(Entry {
            what: "task",
            started: 0,
            ended: None,
            method: None,
            subject: upid.to_owned(),
            parameters: Vec::new(),
            status: None,
        });
    }

    pub(crate) fn task_ended(&self, upid: &str) {
        self.close(|entry| entry.what == "task" && entry.subject == upid, |_| {});
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entries.iter().cloned().collect()
    }

    pub(crate) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entries.clear();
    }
}
