//! One site's ledger in SQLite: reservations, journal, what agents said, events.
//!
//! One process writes (`ctrlable serve`, and the few commands that change something while it is stopped or beside it,
//! which SQLite serialises); any number read. Losing it costs a rebuild from Proxmox, not data: every guest carries
//! its own marker.

mod agents;
mod certificates;
mod conflicts;
mod events;
mod floor;
mod instances;
mod journal;
mod revisions;
mod schema;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use rusqlite::{Connection, OpenFlags};

pub use agents::{AgentRecord, Conflict, Enrolment, Healthiness};
pub use certificates::{CertificateRecord, Issue};
pub use conflicts::StoredConflict;
pub use events::{Event, EventKind, StoredEvent};
pub use floor::FloorRecord;
pub use instances::{InstanceRecord, Reservation, Trouble};
pub use journal::{JournalEntry, JournalLine, JournalState, OpenEntry};
pub use revisions::{RevisionRecord, Verdict};

/// What can go wrong with the ledger.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite said no.
    #[error("the ledger {path} cannot be {doing}: {source}. Check free space and permissions of its directory")]
    Sqlite {
        /// The database file.
        path: PathBuf,
        /// "opened", "read", "written".
        doing: &'static str,
        /// SQLite's own words.
        source: rusqlite::Error,
    },
    /// Made by a newer `ctrlable`.
    #[error(
        "the ledger {path} has schema {found}, this program knows {known}: it was written by a newer ctrlable. \
         Install that version again, or restore the ledger's backup"
    )]
    TooNew {
        /// The database file.
        path: PathBuf,
        /// Its schema version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// There is none yet.
    #[error("there is no ledger at {path}: `ctrlable serve` has not run with this state directory")]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A row that this program did not write. It is never guessed around: the loop stops, loudly.
    #[error("the ledger's table {table} holds a value that is none of ours: {what}. Restore its backup")]
    Damaged {
        /// Table.
        table: &'static str,
        /// What was found.
        what: String,
    },
}

impl StoreError {
    /// Stable label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Sqlite { .. } => "ledger-io",
            Self::TooNew { .. } => "ledger-too-new",
            Self::Missing { .. } => "ledger-missing",
            Self::Damaged { .. } => "ledger-damaged",
        }
    }
}

/// Result of a ledger operation.
pub type Result<T> = std::result::Result<T, StoreError>;

/// The ledger. Cheap to clone; calls block for well under a millisecond, so they may be made from async code.
#[derive(Debug, Clone)]
pub struct Store {
    path: Arc<Path>,
    connection: Arc<Mutex<Connection>>,
}

/// File name inside the state directory.
const FILE: &str = "ledger.db";

impl Store {
    /// Opens the ledger for writing, makes it if there is none, and brings its schema up to date.
    pub fn open(state: &Path) -> Result<Self> {
        let path = state.join(FILE);
        let fail = |source| StoreError::Sqlite { path: path.clone(), doing: "opened", source };
        let mut connection = Connection::open(&path).map_err(fail)?;
        restrict(&path);
        connection.pragma_update(None, "journal_mode", "WAL").map_err(fail)?;
        // FULL: a journalled step must survive a power cut, since Proxmox will have begun to act on it.
        connection.pragma_update(None, "synchronous", "FULL").map_err(fail)?;
        connection.pragma_update(None, "foreign_keys", "ON").map_err(fail)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(fail)?;
        schema::migrate(&mut connection, &path)?;
        Ok(Self { path: path.into(), connection: Arc::new(Mutex::new(connection)) })
    }

    /// Opens an existing ledger for reading beside a running orchestrator.
    pub fn open_read_only(state: &Path) -> Result<Self> {
        let path = state.join(FILE);
        if !path.exists() {
            return Err(StoreError::Missing { path });
        }
        let fail = |source| StoreError::Sqlite { path: path.clone(), doing: "opened", source };
        let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(fail)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(fail)?;
        schema::check(&connection, &path)?;
        Ok(Self { path: path.into(), connection: Arc::new(Mutex::new(connection)) })
    }

    /// Runs `work` on the connection and puts the file's name to what goes wrong.
    fn with<T>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&mut Connection) -> std::result::Result<T, rusqlite::Error>,
    ) -> Result<T> {
        let mut connection: MutexGuard<'_, Connection> =
            self.connection.lock().unwrap_or_else(|held| held.into_inner());
        work(&mut connection).map_err(|source| StoreError::Sqlite { path: self.path.to_path_buf(), doing, source })
    }

    /// A counter that changes whenever another connection commits: for `--watch`.
    pub fn data_version(&self) -> Result<i64> {
        self.with("read", |db| db.query_row("PRAGMA data_version", [], |row| row.get(0)))
    }

    /// A small value by name, such as a key that must survive restarts.
    pub fn meta(&self, name: &str) -> Result<Option<String>> {
        use rusqlite::OptionalExtension;
        self.with("read", |db| {
            db.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0)).optional()
        })
    }

    /// Forgets a small value.
    pub fn forget_meta(&self, name: &str) -> Result<()> {
        self.with("written", |db| db.execute("DELETE FROM meta WHERE name = ?1", [name]).map(drop))
    }

    /// Stores a small value by name.
    pub fn set_meta(&self, name: &str, value: &str) -> Result<()> {
        self.with("written", |db| {
            db.execute(
                "INSERT INTO meta (name, value) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2",
                [name, value],
            )
            .map(drop)
        })
    }
}

/// How long a command waits for the running orchestrator's transaction; those take milliseconds.
const BUSY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// The ledger holds fingerprints and health, no secrets; still nobody else's business.
fn restrict(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if let Err(error) = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)) {
        tracing::warn!(%error, path = %path.display(), "the ledger's permissions could not be restricted");
    }
}

/// Seconds since 1970, the one clock of the ledger.
pub fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Parses a text column into one of our types, or says which table is damaged.
fn parse<T: std::str::FromStr>(table: &'static str, text: &str) -> Result<T>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| StoreError::Damaged { table, what: error.to_string() })
}

#[cfg(test)]
mod tests;
