//! The journal of steps: a row before a step begins, its Proxmox task before it is awaited, its end.

use contract::ids::{InstanceName, NodeName, Vmid};
use rusqlite::params;
use serde::Serialize;

use super::{Result, Store, StoreError, now, parse};

/// Steps kept; older ones that have ended are dropped. A site of fifty guests makes some hundreds a year.
const KEPT: i64 = 50_000;

/// A step that is about to begin.
#[derive(Debug, Clone)]
pub struct JournalEntry<'a> {
    /// For whom.
    pub instance: &'a InstanceName,
    /// The action's stable word: `clone`, `start`, …
    pub action: &'a str,
    /// The guest.
    pub vmid: Vmid,
    /// Where; absent for steps that do not reach the hypervisor.
    pub node: Option<&'a NodeName>,
    /// What exactly, in a sentence.
    pub detail: &'a str,
    /// The field that asked for it and what was observed.
    pub because: &'a str,
    /// The revision that asked for it.
    pub revision: &'a str,
    /// Hash of the plan that it belongs to.
    pub plan: &'a str,
}

/// How far a step got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum JournalState {
    /// Written down, perhaps sent.
    Intended,
    /// Proxmox gave a task for it.
    Submitted,
    /// Its postcondition held.
    Done,
    /// It failed.
    Failed,
    /// The orchestrator died meanwhile; what came of it was observed afresh.
    Interrupted,
}

/// A step that has not ended as far as the journal knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenEntry {
    /// Row.
    pub id: i64,
    /// For whom.
    pub instance: InstanceName,
    /// The action's stable word.
    pub action: String,
    /// The guest.
    pub vmid: Vmid,
    /// Where.
    pub node: Option<NodeName>,
    /// Its Proxmox task, if one is known.
    pub upid: Option<String>,
    /// Seconds since 1970.
    pub started_at: i64,
}

/// A step as `why` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct JournalLine {
    /// Row.
    pub id: i64,
    /// The action's stable word.
    pub action: String,
    /// What exactly.
    pub detail: String,
    /// The field that asked for it and what was observed.
    pub because: String,
    /// The revision that asked for it.
    pub revision: String,
    /// Hash of the plan that it belongs to.
    pub plan: String,
    /// `intended`, `submitted`, `done`, `failed`, `interrupted`.
    pub state: String,
    /// Its Proxmox task.
    pub upid: Option<String>,
    /// Seconds since 1970.
    pub started_at: i64,
    /// Seconds since 1970.
    pub ended_at: Option<i64>,
    /// Stable label of what went wrong.
    pub reason: Option<String>,
    /// For a person.
    pub message: Option<String>,
}

impl Store {
    /// Writes a step down before it begins. Returns its row.
    pub fn intend(&self, entry: &JournalEntry<'_>) -> Result<i64> {
        self.with("written", |db| {
            db.execute(
                "INSERT INTO journal (instance, action, vmid, node, detail, because, revision, plan, state, started_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 'intended', ?9)",
                params![
                    entry.instance.as_str(),
                    entry.action,
                    entry.vmid.get(),
                    entry.node.map(NodeName::as_str),
                    entry.detail,
                    entry.because,
                    entry.revision,
                    entry.plan,
                    now()
                ],
            )?;
            let id = db.last_insert_rowid();
            if id % 1000 == 0 {
                db.execute("DELETE FROM journal WHERE id <= ?1 AND ended_at IS NOT NULL", [id - KEPT])?;
            }
            Ok(id)
        })
    }

    /// Writes down the task that Proxmox gave, before it is awaited.
    pub fn submitted(&self, id: i64, upid: &str) -> Result<()> {
        self.with("written", |db| {
            db.execute("UPDATE journal SET state = 'submitted', upid = ?2 WHERE id = ?1", params![id, upid]).map(drop)
        })
    }

    /// Writes down how a step ended.
    pub fn ended(&self, id: i64, state: JournalState, trouble: Option<(&str, &str)>) -> Result<()> {
        let word = match state {
            JournalState::Intended => "intended",
            JournalState::Submitted => "submitted",
            JournalState::Done => "done",
            JournalState::Failed => "failed",
            JournalState::Interrupted => "interrupted",
        };
        self.with("written", |db| {
            db.execute(
                "UPDATE journal SET state = ?2, ended_at = ?3, reason = ?4, message = ?5 WHERE id = ?1",
                params![id, word, now(), trouble.map(|(reason, _)| reason), trouble.map(|(_, message)| message)],
            )
            .map(drop)
        })
    }

    /// Steps that a dead orchestrator left open.
    pub fn open_entries(&self) -> Result<Vec<OpenEntry>> {
        type Row = (i64, String, String, u32, Option<String>, Option<String>, i64);
        let rows: Vec<Row> = self.with("read", |db| {
            db.prepare_cached(
                "SELECT id, instance, action, vmid, node, upid, started_at FROM journal
                 WHERE state IN ('intended', 'submitted') ORDER BY id",
            )?
            .query_map([], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?))
            })?
            .collect()
        })?;
        rows.into_iter()
            .map(|(id, instance, action, vmid, node, upid, started_at)| {
                Ok(OpenEntry {
                    id,
                    instance: parse("journal", &instance)?,
                    action,
                    vmid: Vmid::try_from(vmid)
                        .map_err(|error| StoreError::Damaged { table: "journal", what: error.to_string() })?,
                    node: node.map(|node| parse("journal", &node)).transpose()?,
                    upid,
                    started_at,
                })
            })
            .collect()
    }

    /// Whether nobody knows what became of an earlier step of this kind for this guest: then a guest with that number
    /// may be ours although it does not show yet.
    pub fn is_in_doubt(&self, instance: &InstanceName, action: &str, vmid: Vmid) -> Result<bool> {
        self.with("read", |db| {
            db.query_row(
                "SELECT EXISTS (SELECT 1 FROM journal
                 WHERE instance = ?1 AND action = ?2 AND vmid = ?3 AND state = 'interrupted')",
                params![instance.as_str(), action, vmid.get()],
                |row| row.get(0),
            )
        })
    }

    /// Whether this guest was backed up after `since` and has not been started after that.
    pub fn has_backup_since(&self, instance: &InstanceName, vmid: Vmid, since: i64) -> Result<bool> {
        self.with("read", |db| {
            db.query_row(
                "SELECT EXISTS (SELECT 1 FROM journal AS backup
                 WHERE instance = ?1 AND vmid = ?2 AND action = 'back-up' AND state = 'done' AND started_at > ?3
                 AND NOT EXISTS (SELECT 1 FROM journal WHERE instance = ?1 AND action = 'start' AND id > backup.id))",
                params![instance.as_str(), vmid.get(), since],
                |row| row.get(0),
            )
        })
    }

    /// The newest `limit` steps of one instance, oldest first.
    pub fn journal(&self, instance: &InstanceName, limit: u32) -> Result<Vec<JournalLine>> {
        self.with("read", |db| {
            let mut statement = db.prepare_cached(
                "SELECT id, action, detail, because, revision, plan, state, upid, started_at, ended_at, reason, message
                 FROM journal WHERE instance = ?1 ORDER BY id DESC LIMIT ?2",
            )?;
            let rows = statement.query_map(params![instance.as_str(), limit], |row| {
                Ok(JournalLine {
                    id: row.get(0)?,
                    action: row.get(1)?,
                    detail: row.get(2)?,
                    because: row.get(3)?,
                    revision: row.get(4)?,
                    plan: row.get(5)?,
                    state: row.get(6)?,
                    upid: row.get(7)?,
                    started_at: row.get(8)?,
                    ended_at: row.get(9)?,
                    reason: row.get(10)?,
                    message: row.get(11)?,
                })
            })?;
            let mut lines = rows.collect::<std::result::Result<Vec<_>, _>>()?;
            lines.reverse();
            Ok(lines)
        })
    }
}
