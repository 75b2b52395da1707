//! The newest of HQ's documents that were accepted.

use contract::ids::{Revision, Sha256Digest};
use jiff::Timestamp;
use rusqlite::{OptionalExtension, params};

use super::{Result, Store, StoreError, parse};
use crate::trust::{Floor, Numbers, Seen};

/// What the ledger knows of the floor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FloorRecord {
    /// What nothing may go back behind.
    pub floor: Floor,
    /// Files that prove it, as one text, if we have them. They may prove less than the numbers say.
    pub evidence: Option<String>,
    /// The newest revision whose documents of HQ were accepted.
    pub revision: Option<Revision>,
}

impl Store {
    /// The floor; none in a ledger that was never told one, be it new or lost.
    pub fn floor(&self) -> Result<Option<FloorRecord>> {
        type Part = (u32, Option<String>);
        type Row = ([Part; 3], Option<i64>, Option<String>, Option<String>);
        let row: Option<Row> = self.with("read", |db| {
            db.query_row(
                "SELECT keys, keys_digest, channels, channels_digest, dealers, dealers_digest, vouched_at, evidence,
                        hq_revision FROM floor",
                [],
                |row| {
                    let parts = [(row.get(0)?, row.get(1)?), (row.get(2)?, row.get(3)?), (row.get(4)?, row.get(5)?)];
                    Ok((parts, row.get(6)?, row.get(7)?, row.get(8)?))
                },
            )
            .optional()
        })?;
        let Some((parts, vouched_at, evidence, revision)) = row else { return Ok(None) };
        let seen = |(number, digest): &Part| -> Result<Seen> {
            let digest = digest.as_deref().map(|text| parse::<Sha256Digest>("floor", text)).transpose()?;
            Ok(Seen { number: *number, digest })
        };
        let [keys, channels, dealers] = &parts;
        let time = vouched_at.map(Timestamp::from_second).transpose();
        let floor = Floor {
            keys: seen(keys)?,
            channels: seen(channels)?,
            dealers: seen(dealers)?,
            time: time.map_err(|error| StoreError::Damaged { table: "floor", what: error.to_string() })?,
        };
        let revision = revision.as_deref().map(|text| parse("floor", text)).transpose()?;
        Ok(Some(FloorRecord { floor, evidence, revision }))
    }

    /// Writes the floor down.
    pub fn set_floor(&self, record: &FloorRecord) -> Result<()> {
        let Floor { keys, channels, dealers, time } = &record.floor;
        let digest = |seen: &Seen| seen.digest.as_ref().map(|digest| digest.as_str().to_owned());
        self.with("written", |db| {
            db.execute(
                "INSERT INTO floor VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT DO UPDATE SET
                     keys = ?1, keys_digest = ?2, channels = ?3, channels_digest = ?4, dealers = ?5,
                     dealers_digest = ?6, vouched_at = ?7, evidence = ?8, hq_revision = ?9",
                params![
                    keys.number,
                    digest(keys),
                    channels.number,
                    digest(channels),
                    dealers.number,
                    digest(dealers),
                    time.map(Timestamp::as_second),
                    record.evidence,
                    record.revision.as_ref().map(Revision::as_str),
                ],
            )
            .map(drop)
        })
    }

    /// Moves the floor up to what our markers on Proxmox say. From then on it is known. Says whether it moved.
    pub fn raise_floor(&self, numbers: Numbers) -> Result<bool> {
        let known = self.floor()?;
        let is_new = known.is_none();
        let before = known.unwrap_or_default();
        let mut record = before.clone();
        record.floor.raise(numbers);
        let moved = record != before;
        if moved || is_new {
            self.set_floor(&record)?;
        }
        Ok(moved)
    }
}
