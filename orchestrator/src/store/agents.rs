//! What agents said: who enrolled with which identity, when each was last seen, its newest report.

use std::collections::BTreeMap;
use std::net::IpAddr;

use contract::enrolment::Identity;
use contract::health::HealthReport;
use contract::ids::{InstanceName, Sha256Digest};
use rusqlite::{OptionalExtension, params};

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
}

/// What the ledger knows of one agent.
#[derive(Debug, Clone)]
pub struct AgentRecord {
    /// SHA-256 of the client certificate's DER form.
    pub certificate: Sha256Digest,
    /// SHA-256 of its public key.
    pub public_key: Sha256Digest,
    /// Seconds since 1970.
    pub enrolled_at: i64,
    /// SHA-256 of its machine-id.
    pub machine_id: Sha256Digest,
    /// Fingerprints by algorithm.
    pub ssh_host_keys: BTreeMap<String, String>,
    /// Where it connected from last.
    pub address: String,
    /// Seconds since 1970; absent before its first report.
    pub last_seen: Option<i64>,
    /// When it last turned healthy, in seconds since 1970; absent while it is not.
    pub healthy_at: Option<i64>,
    /// Its newest report.
    pub report: Option<HealthReport>,
}

/// Why an enrolment cannot be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conflict {
    /// This instance has enrolled before.
    AlreadyEnrolled,
    /// Another instance has this machine-id.
    SameMachineId(InstanceName),
    /// Another instance has this SSH host key.
    SameHostKey(InstanceName),
}

impl Store {
    /// Stores an enrolment, closes the window, all or nothing. `Err(Conflict)` inside means that nothing was stored.
    ///
    /// The same guest with the same key may ask again until its first report: the answer may have been lost with us.
    pub fn enrol(&self, enrolment: &Enrolment<'_>) -> Result<std::result::Result<(), Conflict>> {
        let others = self.agents()?;
        if let Some(earlier) = others.get(enrolment.instance) {
            let same =
                earlier.public_key == *enrolment.public_key && earlier.machine_id == enrolment.identity.machine_id;
            if !same || earlier.last_seen.is_some() {
                return Ok(Err(Conflict::AlreadyEnrolled));
            }
        }
        for (name, other) in others.iter().filter(|(name, _)| *name != enrolment.instance) {
            if other.machine_id == enrolment.identity.machine_id {
                return Ok(Err(Conflict::SameMachineId(name.clone())));
            }
            if other.ssh_host_keys.values().any(|key| enrolment.identity.ssh_host_keys.values().any(|ours| ours == key))
            {
                return Ok(Err(Conflict::SameHostKey(name.clone())));
            }
        }
        let keys = serde_json::to_string(&enrolment.identity.ssh_host_keys).unwrap_or_default();
        self.with("written", |db| {
            let transaction = db.transaction()?;
            transaction.execute(
                "INSERT INTO agents (instance, certificate, enrolled_at, machine_id, ssh_host_keys, address, public_key)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (instance) DO UPDATE SET certificate = excluded.certificate",
                params![
                    enrolment.instance.as_str(),
                    enrolment.certificate.as_str(),
                    now(),
                    enrolment.identity.machine_id.as_str(),
                    keys,
                    enrolment.address.to_string(),
                    enrolment.public_key.as_str(),
                ],
            )?;
            transaction.execute(
                "UPDATE instances SET window_opened_at = NULL WHERE name = ?1",
                [enrolment.instance.as_str()],
            )?;
            transaction.commit()
        })?;
        Ok(Ok(()))
    }

    /// Whose certificate this is.
    pub fn holder(&self, certificate: &Sha256Digest) -> Result<Option<InstanceName>> {
        let name: Option<String> = self.with("read", |db| {
            db.prepare_cached("SELECT instance FROM agents WHERE certificate = ?1")?
                .query_row([certificate.as_str()], |row| row.get(0))
                .optional()
        })?;
        name.map(|name| parse("agents", &name)).transpose()
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
        let text = serde_json::to_string(report).unwrap_or_default();
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
        type Row = (String, String, i64, String, String, String, Option<i64>, Option<i64>, Option<String>, String);
        let rows: Vec<Row> = self.with("read", |db| {
            db.prepare_cached(
                "SELECT instance, certificate, enrolled_at, machine_id, ssh_host_keys, address, last_seen, healthy_at,
                    report, public_key FROM agents WHERE ?1 IS NULL OR instance = ?1",
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
                ))
            })?
            .collect()
        })?;
        const TABLE: &str = "agents";
        let damaged = |error: serde_json::Error| StoreError::Damaged { table: TABLE, what: error.to_string() };
        rows.into_iter()
            .map(|(name, certificate, enrolled_at, machine_id, keys, address, last_seen, healthy_at, report, key)| {
                let record = AgentRecord {
                    certificate: parse(TABLE, &certificate)?,
                    public_key: parse(TABLE, &key)?,
                    enrolled_at,
                    machine_id: parse(TABLE, &machine_id)?,
                    ssh_host_keys: serde_json::from_str(&keys).map_err(damaged)?,
                    address,
                    last_seen,
                    healthy_at,
                    report: report.map(|text| serde_json::from_str(&text)).transpose().map_err(damaged)?,
                };
                Ok((parse(TABLE, &name)?, record))
            })
            .collect()
    }
}

/// Whether a report says that all is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Healthiness {
    /// It does.
    Healthy,
    /// It does not.
    Unhealthy,
}
