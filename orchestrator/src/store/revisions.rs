//! Which revisions were accepted or refused, and the bytes of every release that was ever accepted.

use std::collections::BTreeMap;

use contract::ids::{ReleaseId, Revision, Sha256Digest};
use rusqlite::{OptionalExtension, params};
use serde::Serialize;

use super::{Result, Store, now, parse};

/// What became of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "verdict")]
pub enum Verdict {
    /// It is in force, or was.
    Accepted {
        /// The release that the site follows in it.
        release: ReleaseId,
        /// Key id of who signed that release.
        signer: String,
    },
    /// It never was.
    Refused {
        /// Stable label.
        reason: String,
        /// For a person.
        message: String,
    },
}

/// One revision that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RevisionRecord {
    /// Which.
    pub revision: Revision,
    /// Seconds since 1970.
    pub at: i64,
    /// What became of it.
    #[serde(flatten)]
    pub verdict: Verdict,
}

impl Store {
    /// Notes a verdict. The same verdict on the same revision again only renews its time.
    pub fn note_revision(&self, revision: &Revision, verdict: &Verdict) -> Result<()> {
        let (word, release, signer, reason, message) = match verdict {
            Verdict::Accepted { release, signer } => {
                ("accepted", Some(release.as_str()), Some(signer.as_str()), None, None)
            }
            Verdict::Refused { reason, message } => {
                ("refused", None, None, Some(reason.as_str()), Some(message.as_str()))
            }
        };
        self.with("written", |db| {
            let newest: Option<(i64, String, String, Option<String>)> = db
                .query_row("SELECT id, revision, verdict, reason FROM revisions ORDER BY id DESC LIMIT 1", [], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
                })
                .optional()?;
            match newest {
                Some((id, last, verdict, cause))
                    if last == revision.as_str() && verdict == word && cause.as_deref() == reason =>
                {
                    db.execute("UPDATE revisions SET at = ?1, message = ?2 WHERE id = ?3", params![now(), message, id])
                }
                _ => db.execute(
                    "INSERT INTO revisions (revision, at, verdict, release, signer, reason, message)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    params![revision.as_str(), now(), word, release, signer, reason, message],
                ),
            }
            .map(drop)
        })
    }

    /// The revision in force: the one accepted last.
    pub fn accepted_revision(&self) -> Result<Option<RevisionRecord>> {
        self.revision_where("verdict = 'accepted'")
    }

    /// The revision that was looked at last.
    pub fn newest_revision(&self) -> Result<Option<RevisionRecord>> {
        self.revision_where("TRUE")
    }

    fn revision_where(&self, condition: &'static str) -> Result<Option<RevisionRecord>> {
        type Row = (String, i64, String, Option<String>, Option<String>, Option<String>, Option<String>);
        let row: Option<Row> = self.with("read", |db| {
            db.query_row(
                &format!(
                    "SELECT revision, at, verdict, release, signer, reason, message FROM revisions
                     WHERE {condition} ORDER BY id DESC LIMIT 1"
                ),
                [],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?)),
            )
            .optional()
        })?;
        let Some((revision, at, verdict, release, signer, reason, message)) = row else { return Ok(None) };
        let verdict = if verdict == "accepted" {
            Verdict::Accepted {
                release: parse("revisions", release.as_deref().unwrap_or_default())?,
                signer: signer.unwrap_or_default(),
            }
        } else {
            Verdict::Refused { reason: reason.unwrap_or_default(), message: message.unwrap_or_default() }
        };
        Ok(Some(RevisionRecord { revision: parse("revisions", &revision)?, at, verdict }))
    }

    /// Remembers the bytes of an accepted release: its id must never mean others.
    pub fn note_release(&self, id: &ReleaseId, digest: &Sha256Digest) -> Result<()> {
        self.with("written", |db| {
            db.execute(
                "INSERT INTO releases (id, digest, seen_at) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
                params![id.as_str(), digest.as_str(), now()],
            )
            .map(drop)
        })
    }

    /// Digests of all releases that were ever accepted.
    pub fn releases(&self) -> Result<BTreeMap<ReleaseId, Sha256Digest>> {
        let rows: Vec<(String, String)> = self.with("read", |db| {
            db.prepare_cached("SELECT id, digest FROM releases")?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })?;
        rows.iter().map(|(id, digest)| Ok((parse("releases", id)?, parse("releases", digest)?))).collect()
    }
}
