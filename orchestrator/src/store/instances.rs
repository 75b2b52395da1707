//! Reservations: which number and MAC address belong to which instance, its wiring's generation, its trouble.

use std::collections::{BTreeMap, BTreeSet};

use contract::ids::{Generation, Hostname, InstanceName, Mac, ReleaseId, SecretName, TemplateName, Vmid};
use rusqlite::{Row, params};
use serde::Serialize;

use super::{Result, Store, StoreError, now, parse};

/// What the ledger knows of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InstanceRecord {
    /// Its number, for good.
    pub vmid: Vmid,
    /// Its MAC address, for good.
    pub mac: Mac,
    /// Its host name.
    pub hostname: Hostname,
    /// The release that its guest was, or will be, cloned from.
    pub release: ReleaseId,
    /// The template that its guest was, or will be, cloned from.
    pub template: TemplateName,
    /// Since when this ledger knows that it made a guest under this number, in seconds since 1970.
    pub made_at: Option<i64>,
    /// Newest generation of its wiring; 0 before the first.
    pub generation: Generation,
    /// Keyed digest of that generation's content.
    pub assignment: Option<String>,
    /// Keyed digests of the secrets in it.
    pub secrets: BTreeMap<SecretName, String>,
    /// Since when a guest may enrol under its name; absent: it may not.
    pub window_opened_at: Option<i64>,
    /// Digest of the claim that was made for its newest start; absent: the release's claim counts.
    #[serde(skip)]
    pub claim: Option<String>,
    /// What went wrong last, until something goes right.
    pub trouble: Option<Trouble>,
}

impl InstanceRecord {
    /// Whether a guest may enrol: we started it, at most `window` seconds ago. A start in the future is a clock that
    /// was set back, and counts as closed.
    pub fn window_is_open(&self, now: i64, window: i64) -> bool {
        self.window_opened_at.is_some_and(|opened| (0..=window).contains(&(now - opened)))
    }
}

impl Trouble {
    /// Whether its next try is still ahead. One further ahead than any back-off is a clock that was set back.
    pub fn is_resting(&self, now: i64) -> bool {
        (1..=LONGEST_REST).contains(&(self.retry_at - now))
    }
}

/// Longest back-off, in seconds.
const LONGEST_REST: i64 = 300;

/// What keeps an instance from getting on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// Stable label.
    pub reason: String,
    /// For a person.
    pub message: String,
    /// How often it happened in a row.
    pub attempts: u32,
    /// When it is tried again, in seconds since 1970.
    pub retry_at: i64,
}

const COLUMNS: &str = "name, vmid, mac, hostname, release, template, generation, assignment, window_opened_at,
    trouble_reason, trouble_text, attempts, retry_at, made_at, secrets, claim";

/// A row before its texts became types.
struct Raw {
    name: String,
    vmid: u32,
    mac: String,
    hostname: String,
    release: String,
    template: String,
    generation: i64,
    assignment: Option<String>,
    window_opened_at: Option<i64>,
    trouble_reason: Option<String>,
    trouble_text: Option<String>,
    attempts: u32,
    retry_at: Option<i64>,
    made_at: Option<i64>,
    secrets: Option<String>,
    claim: Option<String>,
}

impl Raw {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            name: row.get(0)?,
            vmid: row.get(1)?,
            mac: row.get(2)?,
            hostname: row.get(3)?,
            release: row.get(4)?,
            template: row.get(5)?,
            generation: row.get(6)?,
            assignment: row.get(7)?,
            window_opened_at: row.get(8)?,
            trouble_reason: row.get(9)?,
            trouble_text: row.get(10)?,
            attempts: row.get(11)?,
            retry_at: row.get(12)?,
            made_at: row.get(13)?,
            secrets: row.get(14)?,
            claim: row.get(15)?,
        })
    }

    fn check(self) -> Result<(InstanceName, InstanceRecord)> {
        const TABLE: &str = "instances";
        let trouble = self.trouble_reason.map(|reason| Trouble {
            reason,
            message: self.trouble_text.unwrap_or_default(),
            attempts: self.attempts,
            retry_at: self.retry_at.unwrap_or_default(),
        });
        let vmid =
            Vmid::try_from(self.vmid).map_err(|error| StoreError::Damaged { table: TABLE, what: error.to_string() })?;
        let secrets = match &self.secrets {
            Some(text) => serde_json::from_str(text)
                .map_err(|error| StoreError::Damaged { table: TABLE, what: error.to_string() })?,
            None => BTreeMap::new(),
        };
        let record = InstanceRecord {
            vmid,
            mac: parse(TABLE, &self.mac)?,
            hostname: parse(TABLE, &self.hostname)?,
            release: parse(TABLE, &self.release)?,
            template: parse(TABLE, &self.template)?,
            made_at: self.made_at,
            generation: Generation(self.generation.unsigned_abs()),
            assignment: self.assignment,
            secrets,
            window_opened_at: self.window_opened_at,
            claim: self.claim,
            trouble,
        };
        Ok((parse(TABLE, &self.name)?, record))
    }
}

/// What a reservation binds.
#[derive(Debug, Clone)]
pub struct Reservation<'a> {
    /// Whose.
    pub instance: &'a InstanceName,
    /// Its number.
    pub vmid: Vmid,
    /// Its MAC address.
    pub mac: Mac,
    /// Its host name.
    pub hostname: &'a Hostname,
    /// What it is cloned from.
    pub release: &'a ReleaseId,
    /// What it is cloned from.
    pub template: &'a TemplateName,
}

impl Store {
    /// All instances that have a reservation.
    pub fn instances(&self) -> Result<BTreeMap<InstanceName, InstanceRecord>> {
        let rows: Vec<Raw> = self.with("read", |db| {
            db.prepare_cached(&format!("SELECT {COLUMNS} FROM instances ORDER BY name"))?
                .query_map([], Raw::read)?
                .collect()
        })?;
        rows.into_iter().map(Raw::check).collect()
    }

    /// One instance's reservation.
    pub fn instance(&self, name: &InstanceName) -> Result<Option<InstanceRecord>> {
        use rusqlite::OptionalExtension;
        let row = self.with("read", |db| {
            db.prepare_cached(&format!("SELECT {COLUMNS} FROM instances WHERE name = ?1"))?
                .query_row([name.as_str()], Raw::read)
                .optional()
        })?;
        Ok(row.map(Raw::check).transpose()?.map(|(_, record)| record))
    }

    /// Binds a number and a MAC address to an instance. A reservation that is there already is replaced: `plan` only
    /// asks for another number when the old one turned out to belong to somebody else.
    pub fn reserve(&self, reservation: &Reservation<'_>) -> Result<()> {
        self.with("written", |db| {
            db.execute(
                "INSERT INTO instances (name, vmid, mac, hostname, release, template, reserved_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (name) DO UPDATE SET
                    made_at = CASE WHEN vmid = excluded.vmid THEN made_at ELSE NULL END,
                    vmid = excluded.vmid, mac = excluded.mac,
                    hostname = excluded.hostname, release = excluded.release, template = excluded.template",
                params![
                    reservation.instance.as_str(),
                    reservation.vmid.get(),
                    reservation.mac.to_string(),
                    reservation.hostname.as_str(),
                    reservation.release.as_str(),
                    reservation.template.as_str(),
                    now(),
                ],
            )
            .map(drop)
        })
    }

    /// Notes that this ledger made the guest: its number is never given up silently from now on.
    pub fn note_made(&self, name: &InstanceName) -> Result<()> {
        self.with("written", |db| {
            db.execute("UPDATE instances SET made_at = ?2 WHERE name = ?1", params![name.as_str(), now()]).map(drop)
        })
    }

    /// A guest that knows a newer generation than the ledger, which was restored from a backup: the ledger follows, so
    /// that its next assignment is newer still.
    pub fn lift_generation(&self, name: &InstanceName, reported: Generation) -> Result<()> {
        let reported = i64::try_from(reported.0).unwrap_or(i64::MAX);
        self.with("written", |db| {
            db.execute(
                "UPDATE instances SET generation = ?2, assignment = NULL WHERE name = ?1 AND generation < ?2",
                params![name.as_str(), reported],
            )
            .map(drop)
        })
    }

    /// Forgets an instance whose guest was destroyed, with its agent.
    pub fn release_instance(&self, name: &InstanceName) -> Result<()> {
        self.with("written", |db| db.execute("DELETE FROM instances WHERE name = ?1", [name.as_str()]).map(drop))
    }

    /// Numbers a new generation with this digest, unless the newest already has it. Returns the newest.
    pub fn wire(
        &self,
        name: &InstanceName,
        digest: &str,
        secrets: &BTreeMap<SecretName, String>,
        by: &str,
    ) -> Result<Generation> {
        // Serialising strings cannot fail.
        let secrets = serde_json::to_string(secrets).unwrap_or_default();
        let generation: i64 = self.with("written", |db| {
            let transaction = db.transaction()?;
            transaction.execute(
                "UPDATE instances SET generation = generation + 1, assignment = ?2, wired_by = ?3, secrets = ?4
                 WHERE name = ?1 AND assignment IS NOT ?2",
                params![name.as_str(), digest, by, secrets],
            )?;
            let generation =
                transaction
                    .query_row("SELECT generation FROM instances WHERE name = ?1", [name.as_str()], |row| row.get(0))?;
            transaction.commit()?;
            Ok(generation)
        })?;
        Ok(Generation(generation.unsigned_abs()))
    }

    /// Opens the window in which a guest may enrol under this name, with the claim of this digest or, without one, the
    /// release's. Called before the guest is started.
    pub fn open_window(&self, name: &InstanceName, claim: Option<&str>) -> Result<()> {
        self.with("written", |db| {
            db.execute(
                "UPDATE instances SET window_opened_at = ?2, claim = ?3, claim_used_at = NULL WHERE name = ?1",
                params![name.as_str(), now(), claim],
            )
            .map(drop)
        })
    }

    /// Closes the window in which a guest may enrol under this name.
    pub fn close_window(&self, name: &InstanceName) -> Result<()> {
        self.with("written", |db| {
            db.execute("UPDATE instances SET window_opened_at = NULL WHERE name = ?1", [name.as_str()]).map(drop)
        })
    }

    /// Notes what went wrong; each time in a row waits longer, up to five minutes. `false`: the ledger has no such
    /// instance.
    pub fn note_trouble(&self, name: &InstanceName, reason: &str, message: &str) -> Result<bool> {
        self.with("written", |db| {
            db.execute(
                "UPDATE instances SET trouble_reason = ?2, trouble_text = ?3, attempts = attempts + 1,
                    retry_at = ?4 + min(300, 2 << min(attempts, 8)) WHERE name = ?1",
                params![name.as_str(), reason, message, now()],
            )
            .map(|rows| rows > 0)
        })
    }

    /// Something went right.
    pub fn clear_trouble(&self, name: &InstanceName) -> Result<()> {
        self.with("written", |db| {
            db.execute(
                "UPDATE instances SET trouble_reason = NULL, trouble_text = NULL, attempts = 0, retry_at = NULL
                 WHERE name = ?1 AND trouble_reason IS NOT NULL",
                [name.as_str()],
            )
            .map(drop)
        })
    }

    /// Remembers that a number of our range is used by a guest that we cannot see.
    pub fn note_taken(&self, vmid: Vmid) -> Result<()> {
        self.with("written", |db| {
            db.execute(
                "INSERT INTO taken_vmids (vmid, seen_at) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET seen_at = ?2",
                params![vmid.get(), now()],
            )
            .map(drop)
        })
    }

    /// Numbers that [`Self::note_taken`] remembers from the last day; after that they are tried again.
    pub fn taken_vmids(&self) -> Result<BTreeSet<Vmid>> {
        let rows: Vec<u32> = self.with("read", |db| {
            db.prepare_cached("SELECT vmid FROM taken_vmids WHERE seen_at > ?1")?
                .query_map([now() - 86_400], |row| row.get(0))?
                .collect()
        })?;
        rows.into_iter()
            .map(|number| {
                Vmid::try_from(number)
                    .map_err(|error| StoreError::Damaged { table: "taken_vmids", what: error.to_string() })
            })
            .collect()
    }
}
