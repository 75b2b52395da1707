//! Client certificates: whose they are, until when, and which are revoked. An instance may have several for a while:
//! an old one stays good until a newer one was used, since the answer that carried the newer may have been lost.

use contract::ids::{InstanceName, Sha256Digest};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use serde::Serialize;

use super::{Result, Store, now, parse};

/// A certificate that is about to be handed out.
#[derive(Debug, Clone)]
pub struct Issue<'a> {
    /// To whom.
    pub instance: &'a InstanceName,
    /// SHA-256 of its DER form.
    pub fingerprint: &'a Sha256Digest,
    /// Its end, in seconds since 1970.
    pub expires_at: i64,
    /// Number of the CA that signed it.
    pub ca: u32,
}

/// What the ledger knows of one certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CertificateRecord {
    /// Whose it is, or was.
    pub instance: InstanceName,
    /// Seconds since 1970.
    pub issued_at: i64,
    /// Seconds since 1970.
    pub expires_at: i64,
    /// Number of the CA that signed it.
    pub ca: u32,
    /// When it was used first.
    pub used_at: Option<i64>,
    /// When it was revoked.
    pub revoked_at: Option<i64>,
}

/// Unused certificates that one instance may have. More are made only by an agent that asks again and again without
/// using what it gets; the oldest are forgotten.
const UNUSED: u32 = 8;

const COLUMNS: &str = "instance, issued_at, expires_at, ca, used_at, revoked_at";

type Row = (String, i64, i64, u32, Option<i64>, Option<i64>);

fn columns(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?))
}

fn check((instance, issued_at, expires_at, ca, used_at, revoked_at): Row) -> Result<CertificateRecord> {
    Ok(CertificateRecord {
        instance: parse("certificates", &instance)?,
        issued_at,
        expires_at,
        ca,
        used_at,
        revoked_at,
    })
}

/// Notes a certificate within the caller's transaction.
pub(super) fn issue(db: &Connection, issue: &Issue<'_>) -> rusqlite::Result<()> {
    db.execute(
        "INSERT INTO certificates (fingerprint, instance, ca, issued_at, expires_at) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (fingerprint) DO NOTHING",
        params![issue.fingerprint.as_str(), issue.instance.as_str(), issue.ca, now(), issue.expires_at],
    )?;
    db.execute(
        "DELETE FROM certificates WHERE instance = ?1 AND used_at IS NULL AND revoked_at IS NULL AND id NOT IN
            (SELECT id FROM certificates WHERE instance = ?1 AND used_at IS NULL AND revoked_at IS NULL
             ORDER BY id DESC LIMIT ?2)",
        params![issue.instance.as_str(), UNUSED],
    )
    .map(drop)
}

impl Store {
    /// Notes a certificate before it is handed out, in place of `old`. `false`: `old` was revoked, forgotten or
    /// replaced meanwhile, and nothing was noted.
    pub fn renew(&self, old: &Sha256Digest, new: &Issue<'_>) -> Result<bool> {
        self.with("written", |db| {
            let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let good = "SELECT 1 FROM certificates WHERE fingerprint = ?1 AND instance = ?2 AND revoked_at IS NULL";
            let good =
                transaction.query_row(good, [old.as_str(), new.instance.as_str()], |_| Ok(())).optional()?.is_some();
            if good {
                issue(&transaction, new)?;
                transaction.commit()?;
            }
            Ok(good)
        })
    }

    /// What is known of a certificate.
    pub fn certificate(&self, fingerprint: &Sha256Digest) -> Result<Option<CertificateRecord>> {
        let row = self.with("read", |db| {
            db.prepare_cached(&format!("SELECT {COLUMNS} FROM certificates WHERE fingerprint = ?1"))?
                .query_row([fingerprint.as_str()], columns)
                .optional()
        })?;
        row.map(check).transpose()
    }

    /// All certificates that are not revoked, oldest first.
    pub fn certificates(&self) -> Result<Vec<CertificateRecord>> {
        let rows: Vec<Row> = self.with("read", |db| {
            db.prepare_cached(&format!("SELECT {COLUMNS} FROM certificates WHERE revoked_at IS NULL ORDER BY id"))?
                .query_map([], columns)?
                .collect()
        })?;
        rows.into_iter().map(check).collect()
    }

    /// Notes the first use of a certificate: the answer with it has arrived, and older ones are forgotten.
    pub fn note_use(&self, fingerprint: &Sha256Digest) -> Result<()> {
        self.with("written", |db| {
            let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute(
                "UPDATE certificates SET used_at = ?2 WHERE fingerprint = ?1 AND used_at IS NULL",
                params![fingerprint.as_str(), now()],
            )?;
            transaction.execute(
                "DELETE FROM certificates WHERE revoked_at IS NULL
                    AND instance = (SELECT instance FROM certificates WHERE fingerprint = ?1)
                    AND id < (SELECT id FROM certificates WHERE fingerprint = ?1)",
                [fingerprint.as_str()],
            )?;
            transaction.commit()
        })
    }

    /// Forgets what CAs before number `ca` have signed. Returns whose newest certificate that was.
    pub fn forget_certificates_before(&self, ca: u32) -> Result<Vec<InstanceName>> {
        let names: Vec<String> = self.with("written", |db| {
            let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let names = transaction
                .prepare(
                    "SELECT instance FROM certificates WHERE revoked_at IS NULL
                     GROUP BY instance HAVING max(ca) < ?1 ORDER BY instance",
                )?
                .query_map([ca], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            transaction.execute("DELETE FROM certificates WHERE revoked_at IS NULL AND ca < ?1", [ca])?;
            transaction.commit()?;
            Ok(names)
        })?;
        names.iter().map(|name| parse("certificates", name)).collect()
    }

    /// Revokes every certificate of an agent, for good. `false`: there is no such agent.
    pub fn revoke_agent(&self, instance: &InstanceName) -> Result<bool> {
        self.with("written", |db| {
            let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let found = mark_revoked(&transaction, instance)?;
            transaction.commit()?;
            Ok(found)
        })
    }

    /// Forgets a revoked agent and opens the window for a new guest under its name, with the release's claim, since no
    /// start of ours has made another; its certificates stay revoked. `false`: it is not revoked.
    pub fn readmit_agent(&self, instance: &InstanceName) -> Result<bool> {
        self.with("written", |db| {
            let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let found = transaction
                .execute("DELETE FROM agents WHERE instance = ?1 AND revoked_at IS NOT NULL", [instance.as_str()])?;
            if found > 0 {
                transaction.execute(
                    "UPDATE instances SET window_opened_at = ?2, claim = NULL, claim_used_at = NULL WHERE name = ?1",
                    params![instance.as_str(), now()],
                )?;
            }
            transaction.commit()?;
            Ok(found > 0)
        })
    }
}

fn mark_revoked(transaction: &Transaction<'_>, instance: &InstanceName) -> rusqlite::Result<bool> {
    let found = transaction.execute(
        "UPDATE agents SET revoked_at = COALESCE(revoked_at, ?2) WHERE instance = ?1",
        params![instance.as_str(), now()],
    )?;
    transaction.execute(
        "UPDATE certificates SET revoked_at = COALESCE(revoked_at, ?2) WHERE instance = ?1",
        params![instance.as_str(), now()],
    )?;
    Ok(found > 0)
}
