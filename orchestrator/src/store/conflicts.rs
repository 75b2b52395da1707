//! Who asked for a certificate in the name of a guest that he is not: kept until a person looks, or for a week.

use contract::ids::{InstanceName, Mac};
use rusqlite::params;
use serde::Serialize;

use super::{Result, Store, now, parse};

/// Seconds after which a conflict that did not come again is forgotten: a week, so that a weekend does not hide one.
const KEPT: i64 = 7 * 86_400;
/// Conflicts of one instance that are kept, the newest: an attacker with many addresses must not fill the disk.
const MOST: u32 = 16;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoredConflict {
    /// In whose name.
    pub instance: InstanceName,
    /// From where.
    pub address: String,
    /// Label of the refusal.
    pub reason: String,
    /// The MAC address that was shown.
    pub mac: Mac,
    /// When it was noted last, in seconds since 1970.
    pub at: i64,
}

impl Store {
    /// Notes a conflict; the same again only moves its time.
    pub fn note_conflict(&self, instance: &InstanceName, address: &str, reason: &str, mac: Mac) -> Result<()> {
        self.with("written", |db| {
            let transaction = db.transaction()?;
            transaction.execute(
                "INSERT INTO conflicts (instance, address, reason, mac, at) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (instance, address, reason) DO UPDATE SET mac = excluded.mac, at = excluded.at",
                params![instance.as_str(), address, reason, mac.to_string(), now()],
            )?;
            transaction.execute("DELETE FROM conflicts WHERE at < ?1", [now() - KEPT])?;
            transaction.execute(
                "DELETE FROM conflicts WHERE instance = ?1 AND rowid NOT IN
                    (SELECT rowid FROM conflicts WHERE instance = ?1 ORDER BY at DESC, rowid DESC LIMIT ?2)",
                params![instance.as_str(), MOST],
            )?;
            transaction.commit()
        })
    }

    /// Conflicts that nobody has looked at, newest first.
    pub fn conflicts(&self) -> Result<Vec<StoredConflict>> {
        type Row = (String, String, String, String, i64);
        let rows: Vec<Row> = self.with("read", |db| {
            db.prepare_cached(
                "SELECT instance, address, reason, mac, at FROM conflicts WHERE at >= ?1 ORDER BY at DESC, rowid DESC",
            )?
            .query_map([now() - KEPT], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))?
            .collect()
        })?;
        rows.into_iter()
            .map(|(instance, address, reason, mac, at)| {
                let (instance, mac) = (parse("conflicts", &instance)?, parse("conflicts", &mac)?);
                Ok(StoredConflict { instance, address, reason, mac, at })
            })
            .collect()
    }

    /// A person has looked. Returns how many there were.
    pub fn clear_conflicts(&self) -> Result<usize> {
        self.with("written", |db| db.execute("DELETE FROM conflicts", []))
    }
}
