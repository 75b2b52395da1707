//! The tables, as a list of steps that only ever grows. `PRAGMA user_version` counts the steps taken.

use std::path::Path;

use rusqlite::Connection;

use super::{Result, StoreError};

/// Each entry is applied once, in its own transaction, and never edited after a release.
const STEPS: &[&str] = &[
    "
    CREATE TABLE meta (
        name TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT;

    -- One row per instance that this site ever reserved a number for.
    CREATE TABLE instances (
        name TEXT PRIMARY KEY,
        vmid INTEGER NOT NULL UNIQUE,
        mac TEXT NOT NULL UNIQUE,
        hostname TEXT NOT NULL,
        release TEXT NOT NULL,
        template TEXT NOT NULL,
        reserved_at INTEGER NOT NULL,
        -- Since when this ledger knows that it made a guest under this number; absent: never.
        made_at INTEGER,
        -- Wiring: the newest generation and the keyed digest of what it holds.
        generation INTEGER NOT NULL DEFAULT 0,
        assignment TEXT,
        wired_by TEXT,
        -- Enrolment is open from the moment before we start the guest.
        window_opened_at INTEGER,
        -- The last thing that went wrong, until something goes right.
        trouble_reason TEXT,
        trouble_text TEXT,
        attempts INTEGER NOT NULL DEFAULT 0,
        retry_at INTEGER
    ) STRICT;

    -- Numbers of our range that turned out to belong to guests that we cannot see.
    CREATE TABLE taken_vmids (
        vmid INTEGER PRIMARY KEY,
        seen_at INTEGER NOT NULL
    ) STRICT;

    CREATE TABLE agents (
        instance TEXT PRIMARY KEY REFERENCES instances (name) ON DELETE CASCADE,
        certificate TEXT NOT NULL UNIQUE,   -- SHA-256 of the DER, hex
        public_key TEXT NOT NULL,           -- SHA-256 of the SubjectPublicKeyInfo, hex
        enrolled_at INTEGER NOT NULL,
        machine_id TEXT NOT NULL UNIQUE,
        ssh_host_keys TEXT NOT NULL,        -- JSON
        address TEXT NOT NULL,
        last_seen INTEGER,
        healthy_at INTEGER,
        report TEXT                         -- JSON, contract::health::HealthReport
    ) STRICT;

    -- Every step: a row before it begins, its task before it is awaited, its end.
    CREATE TABLE journal (
        id INTEGER PRIMARY KEY,
        instance TEXT NOT NULL,
        action TEXT NOT NULL,
        vmid INTEGER NOT NULL,
        node TEXT,
        detail TEXT NOT NULL,
        because TEXT NOT NULL,
        revision TEXT NOT NULL,
        plan TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('intended', 'submitted', 'done', 'failed', 'interrupted')),
        upid TEXT,
        started_at INTEGER NOT NULL,
        ended_at INTEGER,
        reason TEXT,
        message TEXT
    ) STRICT;
    CREATE INDEX journal_open ON journal (state) WHERE state IN ('intended', 'submitted');
    CREATE INDEX journal_instance ON journal (instance, id);

    CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        kind TEXT NOT NULL,
        instance TEXT,
        revision TEXT,
        reason TEXT,
        message TEXT NOT NULL
    ) STRICT;
    CREATE INDEX events_instance ON events (instance, id);

    CREATE TABLE revisions (
        id INTEGER PRIMARY KEY,
        revision TEXT NOT NULL,
        at INTEGER NOT NULL,
        verdict TEXT NOT NULL CHECK (verdict IN ('accepted', 'refused')),
        release TEXT,
        signer TEXT,
        reason TEXT,
        message TEXT
    ) STRICT;

    CREATE TABLE releases (
        id TEXT PRIMARY KEY,
        digest TEXT NOT NULL,
        seen_at INTEGER NOT NULL
    ) STRICT;
",
    "
    -- Keyed digests of the secrets in the newest assignment, as a JSON object by name.
    ALTER TABLE instances ADD COLUMN secrets TEXT;
",
    FLOOR,
    "
    -- Digest of the claim that was made for the newest start, and when it was used.
    ALTER TABLE instances ADD COLUMN claim TEXT;
    ALTER TABLE instances ADD COLUMN claim_used_at INTEGER;

    -- Who asked for a certificate in the name of a guest that he is not.
    CREATE TABLE conflicts (
        instance TEXT NOT NULL REFERENCES instances (name) ON DELETE CASCADE,
        address TEXT NOT NULL,
        reason TEXT NOT NULL,
        mac TEXT NOT NULL,
        at INTEGER NOT NULL,
        PRIMARY KEY (instance, address, reason)
    ) STRICT;

    -- Host keys are public keys instead of fingerprints; the next report brings them.
    UPDATE agents SET ssh_host_keys = '[]', report = NULL;
",
    CERTIFICATES,
];

/// The newest of HQ's documents that were accepted. No row: nobody has asked Proxmox yet what was accepted before.
const FLOOR: &str = "
    CREATE TABLE floor (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        keys INTEGER NOT NULL,
        keys_digest TEXT,
        channels INTEGER NOT NULL,
        channels_digest TEXT,
        dealers INTEGER NOT NULL,
        dealers_digest TEXT,
        vouched_at INTEGER,             -- the latest time that HQ vouches for
        evidence TEXT,                  -- JSON of files that prove it; absent: only the numbers are known
        hq_revision TEXT                -- the newest revision whose documents of HQ were accepted
    ) STRICT;
";

/// Every client certificate that is good, or revoked. Those from before it was kept were made for ten years; the first
/// report of their guests asks for new ones.
const CERTIFICATES: &str = "
    CREATE TABLE certificates (
        id INTEGER PRIMARY KEY,
        fingerprint TEXT NOT NULL UNIQUE,   -- SHA-256 of the DER, hex
        instance TEXT NOT NULL,
        ca INTEGER NOT NULL,                -- number of the CA that signed it
        issued_at INTEGER NOT NULL,
        expires_at INTEGER NOT NULL,
        used_at INTEGER,                    -- its first use; absent: the answer with it may have been lost
        revoked_at INTEGER
    ) STRICT;
    CREATE INDEX certificates_instance ON certificates (instance);
    INSERT INTO certificates (fingerprint, instance, ca, issued_at, expires_at, used_at)
        SELECT certificate, instance, 1, 0, enrolled_at + 315360000, last_seen FROM agents;
    ALTER TABLE agents ADD COLUMN revoked_at INTEGER;
    CREATE TRIGGER certificates_of_a_forgotten_agent AFTER DELETE ON agents BEGIN
        DELETE FROM certificates WHERE instance = OLD.instance AND revoked_at IS NULL;
    END;
";

/// Takes the steps that this file has not had yet.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<()> {
    let fail = |source| StoreError::Sqlite { path: path.to_owned(), doing: "brought up to date", source };
    let found = version(connection).map_err(fail)?;
    let known = STEPS.len() as u32;
    if found > known {
        return Err(StoreError::TooNew { path: path.to_owned(), found, known });
    }
    for (index, step) in STEPS.iter().enumerate().skip(found as usize) {
        let transaction = connection.transaction().map_err(fail)?;
        transaction.execute_batch(step).map_err(fail)?;
        transaction.pragma_update(None, "user_version", index as u32 + 1).map_err(fail)?;
        transaction.commit().map_err(fail)?;
    }
    Ok(())
}

/// A reader takes no steps; it only makes sure that it can read what is there.
pub(super) fn check(connection: &Connection, path: &Path) -> Result<()> {
    let fail = |source| StoreError::Sqlite { path: path.to_owned(), doing: "read", source };
    let (found, known) = (version(connection).map_err(fail)?, STEPS.len() as u32);
    if found == known { Ok(()) } else { Err(StoreError::TooNew { path: path.to_owned(), found, known }) }
}

fn version(connection: &Connection) -> std::result::Result<u32, rusqlite::Error> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn certificates_from_before_they_were_renewed_are_known_and_due() {
        let db = Connection::open_in_memory().unwrap();
        let before = STEPS.iter().position(|step| *step == CERTIFICATES).unwrap();
        STEPS[..before].iter().for_each(|step| db.execute_batch(step).unwrap());
        db.execute_batch(
            "INSERT INTO instances (name, vmid, mac, hostname, release, template, reserved_at)
                VALUES ('attic', 2000, 'm', 'h', 'r', 't', 1);
             INSERT INTO agents (instance, certificate, public_key, enrolled_at, machine_id, ssh_host_keys, address)
                VALUES ('attic', 'aa', 'bb', 1780000000, 'cc', '[]', '127.0.0.1')",
        )
        .unwrap();
        db.execute_batch(CERTIFICATES).unwrap();
        let (issued, expires): (i64, i64) = db
            .query_row("SELECT issued_at, expires_at FROM certificates WHERE fingerprint = 'aa'", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap();
        // Three quarters of the life are more than the latest time at which a renewal is due.
        assert!(issued + (expires - issued) * 3 / 4 < 1_780_000_000 && 1_780_000_000 < expires);
        db.execute_batch("PRAGMA foreign_keys = ON; DELETE FROM instances").unwrap();
        let left: i64 = db.query_row("SELECT count(*) FROM certificates", [], |row| row.get(0)).unwrap();
        assert_eq!(left, 0, "certificates of an instance that is gone");
    }
}
