//! What agents said: who enrolled with which identity, when each was last seen, its newest report.

use std::collections::BTreeMap;
use std::net::IpAddr;

use contract::enrolment::Identity;
use contract::health::HealthReport;
use contract::host_keys::HostKeys;
use contract::ids::{InstanceName, Sha256Digest};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use super::certificates::{self, Issue};
use super::{Result, Store, StoreError, now, parse};

/// An enrolment that is about to be accepted.
#[derive(Debug, Clone)]
pub struct Enrolment<'a> {
    /// Who.
    pub instance: &'a InstanceName,
    /// SHA-256 of the client certificate's DER form.
    pub certificate: &'a Sha256Digest,
    /// SHA-256 of the guest's public key.
    pub public_key: &'a Sha256Digest,
    /// What makes the guest unlike every other.
    pub identity: &'a Identity,
    /// Where it connected from.
    pub address: IpAddr,
    /// The certificate's end, in seconds since 1970.
    pub expires_at: i64,
    /// Number of the CA that signed it.
    pub ca: u32,
}

/// What the ledger knows of one agent.
#[derive(Debug, Clone)]
pub struct AgentRecord {
    /// SHA-256 of the DER form of the client certificate from its enrolment.
    pub certificate: Sha256Digest,
    /// SHA-256 of that certificate's public key.
    pub public_key: Sha256Digest,
    /// Seconds since 1970.
    pub enrolled_at: i64,
    /// SHA-256 of its machine-id.
    pub machine_id: Sha256Digest,
    /// As it showed them when it enrolled.
    pub ssh_host_keys: HostKeys,
    /// Where it connected from last.
    pub address: String,
    /// Seconds since 1970; absent before its first report.
    pub last_seen: Option<i64>,
    /// When it last turned healthy, in seconds since 1970; absent while it is not.
    pub healthy_at: Option<i64>,
    /// Its newest report.
    pub report: Option<HealthReport>,
    /// When an operator cut it off, in seconds since 1970.
    pub revoked_at: Option<i64>,
}

/// Why an enrolment cannot be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conflict {
    /// The claim of this start was used before.
    ClaimUsed,
    /// This instance has enrolled before.
    AlreadyEnrolled,
    /// We have not just started a guest for this instance.
    WindowClosed,
    /// Another instance has this machine-id.
    SameMachineId(InstanceName),
    /// Another instance has this SSH host key.
    SameHostKey(InstanceName),
}

impl Store {
    /// Stores an enrolment and closes the window, all or nothing and one at a time. `Err(Conflict)` inside means that
    /// nothing was stored. `window` is how many seconds a started guest may enrol.
    ///
    /// The same guest with the same key may ask again until its first report: the answer may have been lost with us.
    pub fn enrol(&self, enrolment: &Enrolment<'_>, window: i64) -> Result<std::result::Result<(), Conflict>> {
        let records = self.with("written", |db| {
            let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let conflict = against(&transaction, enrolment, window)?;
            if conflict.is_none() {
                transaction.execute(
                    "INSERT INTO agents (instance, certificate, enrolled_at, machine_id, ssh_host_keys, address, public_key)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                     ON CONFLICT (instance) DO UPDATE SET certificate = excluded.certificate",
                    params![
                        enrolment.instance.as_str(),
                        enrolment.certificate.as_str(),
                        now(),
                        enrolment.identity.machine_id.as_str(),
                        // Serialising a map of strings cannot fail.
                        serde_json::to_string(&enrolment.identity.ssh_host_keys).unwrap_or_default(),
                        enrolment.address.to_string(),
                        enrolment.public_key.as_str(),
                    ],
                )?;
                let issue = Issue {
                    instance: enrolment.instance,
                    fingerprint: enrolment.certificate,
                    expires_at: enrolment.expires_at,
                    ca: enrolment.ca,
                };
                certificates::issue(&transaction, &issue)?;
                transaction.execute(
                    "UPDATE instances SET window_opened_at = NULL,
                        claim_used_at = CASE WHEN claim IS NULL THEN NULL ELSE ?2 END WHERE name = ?1",
                    params![enrolment.instance.as_str(), now()],
                )?;
                transaction.commit()?;
            }
            Ok(conflict)
        })?;
        Ok(records.map_or(Ok(()), Err))
    }

    /// What [`Self::enrol`] would say now; nothing is stored.
    pub fn may_enrol(&self, enrolment: &Enrolment<'_>, window: i64) -> Result<std::result::Result<(), Conflict>> {
        Ok(self.with("read", |db| against(db, enrolment, window))?.map_or(Ok(()), Err))
    }

    /// Forgets an agent that enrolled before `at`: its guest was replaced by a new clone.
    pub fn forget_agent_before(&self, instance: &InstanceName, at: i64) -> Result<()> {
        self.with("written", |db| {
            db.execute("DELETE FROM agents WHERE instance = ?1 AND enrolled_at < ?2", params![instance.as_str(), at])
                .map(drop)
        })
    }

    /// Forgets an agent, so that the guest may enrol again once a window is opened.
    pub fn forget_agent(&self, instance: &InstanceName) -> Result<bool> {
        self.with("written", |db| {
            db.execute("DELETE FROM agents WHERE instance = ?1", [instance.as_str()]).map(|rows| rows > 0)
        })
    }

    /// Stores a report. Returns the one before it.
    pub fn note_report(
        &self,
        instance: &InstanceName,
        report: &HealthReport,
        address: IpAddr,
        healthy: Healthiness,
    ) -> Result<Option<HealthReport>> {
        let before = self.agent(instance)?.and_then(|agent| agent.report);
        // The floor is no part of a guest's health, and large.
        let text = serde_json::to_string(&HealthReport { floor: None, ..report.clone() }).unwrap_or_default();
        self.with("written", |db| {
            db.prepare_cached(
                "UPDATE agents SET report = ?2, last_seen = ?3, address = ?4,
                    healthy_at = CASE ?5 WHEN 1 THEN COALESCE(healthy_at, ?3) ELSE NULL END
                 WHERE instance = ?1",
            )?
            .execute(params![
                instance.as_str(),
                text,
                now(),
                address.to_string(),
                i64::from(healthy == Healthiness::Healthy)
            ])
            .map(drop)
        })?;
        Ok(before)
    }

    /// One agent.
    pub fn agent(&self, instance: &InstanceName) -> Result<Option<AgentRecord>> {
        Ok(self.agents_where(Some(instance))?.into_values().next())
    }

    /// All agents.
    pub fn agents(&self) -> Result<BTreeMap<InstanceName, AgentRecord>> {
        self.agents_where(None)
    }

    fn agents_where(&self, instance: Option<&InstanceName>) -> Result<BTreeMap<InstanceName, AgentRecord>> {
        let rows = self.with("read", |db| read(db, instance))?;
        const TABLE: &str = "agents";
        let damaged = |error: serde_json::Error| StoreError::Damaged { table: TABLE, what: error.to_string() };
        rows.into_iter()
            .map(
                |(
                    name,
                    certificate,
                    enrolled_at,
                    machine_id,
                    keys,
                    address,
                    last_seen,
                    healthy_at,
                    report,
                    key,
                    revoked_at,
                )| {
                    let record = AgentRecord {
                        certificate: parse(TABLE, &certificate)?,
                        public_key: parse(TABLE, &key)?,
                        enrolled_at,
                        machine_id: parse(TABLE, &machine_id)?,
                        ssh_host_keys: serde_json::from_str(&keys).map_err(damaged)?,
                        address,
                        last_seen,
                        healthy_at,
                        revoked_at,
                        report: report.map(|text| serde_json::from_str(&text)).transpose().map_err(damaged)?,
                    };
                    Ok((parse(TABLE, &name)?, record))
                },
            )
            .collect()
    }
}

/// Columns of one agent as SQLite has them.
type Row = (String, String, i64, String, String, String, Option<i64>, Option<i64>, Option<String>, String, Option<i64>);

/// Agents, of one instance or of all.
fn read(db: &Connection, instance: Option<&InstanceName>) -> rusqlite::Result<Vec<Row>> {
    db.prepare_cached(
        "SELECT instance, certificate, enrolled_at, machine_id, ssh_host_keys, address, last_seen, healthy_at,
            report, public_key, revoked_at FROM agents WHERE ?1 IS NULL OR instance = ?1",
    )?
    .query_map([instance.map(InstanceName::as_str)], |row| {
        Ok((
            row.get(0)?,
            row.get(1)?,
            row.get(2)?,
            row.get(3)?,
            row.get(4)?,
            row.get(5)?,
            row.get(6)?,
            row.get(7)?,
            row.get(8)?,
            row.get(9)?,
            row.get(10)?,
        ))
    })?
    .collect()
}

/// What speaks against an enrolment.
fn against(db: &Connection, enrolment: &Enrolment<'_>, window: i64) -> rusqlite::Result<Option<Conflict>> {
    let others = read(db, None)?;
    let (opened, used): (Option<i64>, Option<i64>) = db
        .query_row(
            "SELECT window_opened_at, claim_used_at FROM instances WHERE name = ?1",
            [enrolment.instance.as_str()],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?
        .unwrap_or_default();
    let open = opened.is_some_and(|opened| (0..=window).contains(&(now() - opened)));
    let ours = others.iter().find(|(name, ..)| name == enrolment.instance.as_str());
    let same_guest = ours.is_some_and(|(_, _, _, machine_id, _, _, last_seen, _, _, public_key, revoked_at)| {
        machine_id == enrolment.identity.machine_id.as_str()
            && public_key == enrolment.public_key.as_str()
            && last_seen.is_none()
            && revoked_at.is_none()
    });
    if !same_guest && used.is_some() {
        return Ok(Some(Conflict::ClaimUsed));
    }
    if !same_guest && ours.is_some() {
        return Ok(Some(Conflict::AlreadyEnrolled));
    }
    for (name, _, _, machine_id, keys, ..) in others.iter().filter(|(name, ..)| name != enrolment.instance.as_str()) {
        let Ok(other) = name.parse() else { continue };
        if machine_id == enrolment.identity.machine_id.as_str() {
            return Ok(Some(Conflict::SameMachineId(other)));
        }
        let keys: HostKeys = serde_json::from_str(keys).unwrap_or_default();
        if keys.shares_with(&enrolment.identity.ssh_host_keys) {
            return Ok(Some(Conflict::SameHostKey(other)));
        }
    }
    Ok((!same_guest && !open).then_some(Conflict::WindowClosed))
}

/// Whether a report says that all is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Healthiness {
    /// It does.
    Healthy,
    /// It does not.
    Unhealthy,
}
