//! Whether a site can work: connection, rights, storage, network.
//!
//! [`gather`] asks Proxmox, [`examine`] judges what came back. The second is a pure function, so that each sentence of it
//! can be tested without a node.

/// Asks Proxmox for what [`examine`] judges.
pub mod gather;
/// Privileges that are needed, and the commands that grant them.
pub mod privileges;

use std::collections::{BTreeMap, BTreeSet};

use contract::ids::{BridgeName, NodeName, PoolId, PveVersion, StorageId, Vlan};
use contract::site::Placement;
use serde::Serialize;

use crate::proxmox::{Bridge, NodeRow, NodeState, Permissions, Pool, ProxmoxError, Storage, Templates, Version};
use privileges::Needs;

/// Oldest Proxmox VE that this program is made for.
pub const OLDEST_PVE: PveVersion = PveVersion { major: 8, minor: 2 };
/// Clocks that differ by more than this are worth a warning, in seconds: certificates made here are then not yet valid
/// there.
const SKEW_WARNING: i64 = 10;
/// Clocks that differ by more than this break enrolment, in seconds: new certificates are dated back a day.
const SKEW_FAILURE: i64 = 300;

/// Whether the site has virtual machines, which need more privileges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machines {
    /// It has, or may.
    Used,
    /// Containers only.
    Unused,
}

/// What the site counts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectation {
    /// Oldest Proxmox of the release.
    pub oldest: PveVersion,
    /// The node; absent: any.
    pub node: Option<NodeName>,
    /// For disks.
    pub storage: StorageId,
    /// For backups, when that is another one.
    pub backup_storage: Option<StorageId>,
    /// For the first interface.
    pub bridge: BridgeName,
    /// Its tag.
    pub vlan: Option<Vlan>,
    /// The pool of all guests.
    pub pool: PoolId,
    /// Whether it has virtual machines.
    pub machines: Machines,
    /// Bytes that the storage should have free.
    pub room: u64,
}

impl Expectation {
    /// What a site definition counts on. `room` is the size of its largest disk in bytes.
    pub fn of(placement: &Placement, oldest: PveVersion, machines: Machines, room: u64) -> Self {
        Self {
            oldest: oldest.max(OLDEST_PVE),
            node: placement.node.clone(),
            storage: placement.storage.clone(),
            backup_storage: None,
            bridge: placement.bridge.clone(),
            vlan: placement.vlan,
            pool: placement.pool.clone(),
            machines,
            room,
        }
    }
}

/// A question that Proxmox did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Stable label of the error.
    pub reason: &'static str,
    /// What happened.
    pub text: String,
    /// What to do.
    pub remedy: String,
}

impl From<&ProxmoxError> for Trouble {
    fn from(error: &ProxmoxError) -> Self {
        Self { reason: error.reason(), text: error.problem().to_string(), remedy: error.remedy().to_owned() }
    }
}

/// An answer, or why there is none.
pub type Fact<T> = Result<T, Trouble>;

/// What was found out.
#[derive(Debug, Clone)]
pub enum Facts {
    /// Not even the version could be asked.
    Unreached(Trouble),
    /// Proxmox answers.
    Reached(Box<SiteFacts>),
}

/// What was found out about a Proxmox that answers.
#[derive(Debug, Clone)]
pub struct SiteFacts {
    /// Of the node that answers.
    pub version: Version,
    /// Its clock minus ours, in seconds; absent when it does not tell.
    pub skew: Option<i64>,
    /// All nodes.
    pub nodes: Fact<Vec<NodeRow>>,
    /// By each online node that guests may be put on.
    pub storages: BTreeMap<NodeName, Fact<Vec<Storage>>>,
    /// By each online node that guests may be put on.
    pub bridges: BTreeMap<NodeName, Fact<Vec<Bridge>>>,
    /// The pool with its members.
    pub pool: Fact<Pool>,
    /// Privileges on each path that matters, inherited ones included.
    pub granted: BTreeMap<String, Fact<BTreeSet<String>>>,
    /// Privileges on all paths with a rule of their own.
    pub all: Fact<Permissions>,
    /// Our templates.
    pub templates: Fact<Templates>,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works; it should be better.
    Warning,
    /// The site cannot work, or not fully.
    Failure,
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable label of the check.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub text: String,
    /// What to do; none when it is fine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, text: text.into(), remedy: None }
    }

    fn warning(check: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, level: Level::Warning, text: text.into(), remedy: Some(remedy.into()) }
    }

    fn failure(check: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, level: Level::Failure, text: text.into(), remedy: Some(remedy.into()) }
    }

    fn unanswered(check: &'static str, trouble: &Trouble) -> Self {
        Self::failure(check, &*trouble.text, &*trouble.remedy)
    }
}

/// The worst level; fine when there is no finding.
pub fn worst(findings: &[Finding]) -> Level {
    findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
}

/// Judges what was found out.
pub fn examine(expected: &Expectation, facts: &Facts) -> Vec<Finding> {
    let facts = match facts {
        Facts::Unreached(trouble) => return unreached(trouble),
        Facts::Reached(facts) => facts,
    };
    let mut findings = vec![
        Finding::ok("connection", "Proxmox answers"),
        Finding::ok("tls-pin", "the server is the pinned one"),
        Finding::ok("token", "the API token is accepted"),
        version(expected, &facts.version),
        clock(facts.skew),
    ];
    findings.extend(nodes(expected, &facts.nodes));
    findings.extend(facts.storages.iter().flat_map(|(node, storages)| storage_on(expected, node, storages)));
    findings.extend(facts.bridges.iter().map(|(node, bridges)| bridge_on(expected, node, bridges)));
    findings.push(pool(expected, &facts.pool));
    findings.extend(rights(expected, facts));
    findings.extend(templates(&facts.templates));
    findings
}

fn unreached(trouble: &Trouble) -> Vec<Finding> {
    let reached = Finding::ok("connection", "something answers at the URL");
    match trouble.reason {
        "tls-pin" => vec![reached, Finding::unanswered("tls-pin", trouble)],
        "token-refused" => {
            vec![reached, Finding::ok("tls-pin", "the server is the pinned one"), Finding::unanswered("token", trouble)]
        }
        _ => vec![Finding::unanswered("connection", trouble)],
    }
}

fn version(expected: &Expectation, version: &Version) -> Finding {
    let text = format!("Proxmox VE {}", version.full);
    if version.release < expected.oldest {
        let remedy = format!("upgrade the node to {} or newer", expected.oldest);
        return Finding::failure("version", format!("{text} is older than the release needs"), remedy);
    }
    match version.release.major {
        8 | 9 => Finding::ok("version", text),
        _ => Finding::warning(
            "version",
            format!("{text} is newer than this program knows"),
            "look for a newer version of the orchestrator",
        ),
    }
}

fn clock(skew: Option<i64>) -> Finding {
    let remedy = "let both follow a time server (`chronyc tracking`)";
    match skew {
        None => Finding::warning("clock", "the node does not tell its time", remedy),
        Some(skew) if skew.abs() > SKEW_FAILURE => {
            Finding::failure("clock", format!("the node's clock differs by {skew} s: enrolment fails"), remedy)
        }
        Some(skew) if skew.abs() > SKEW_WARNING => {
            Finding::warning("clock", format!("the node's clock differs by {skew} s"), remedy)
        }
        Some(_) => Finding::ok("clock", "the node's clock agrees with ours"),
    }
}

fn nodes(expected: &Expectation, nodes: &Fact<Vec<NodeRow>>) -> Vec<Finding> {
    let nodes = match nodes {
        Ok(nodes) => nodes,
        Err(trouble) => return vec![Finding::unanswered("nodes", trouble)],
    };
    if let Some(wanted) = &expected.node {
        let found = nodes.iter().find(|row| row.node == *wanted);
        return vec![match found.map(|row| row.state) {
            Some(NodeState::Online) => Finding::ok("nodes", format!("node {wanted} is online")),
            Some(_) => {
                Finding::failure("nodes", format!("node {wanted} is not online"), "start it, or name another node")
            }
            None => {
                let names: Vec<&str> = nodes.iter().map(|row| row.node.as_str()).collect();
                let remedy = format!("name one of {}, or none, in the site definition", names.join(", "));
                Finding::failure("nodes", format!("there is no node {wanted}"), remedy)
            }
        }];
    }
    let (online, away): (Vec<_>, Vec<_>) = nodes.iter().partition(|row| row.state == NodeState::Online);
    if online.is_empty() {
        return vec![Finding::failure("nodes", "no node is online", "see `pvecm status` on a node")];
    }
    let mut findings = vec![Finding::ok("nodes", format!("{} of {} nodes online", online.len(), nodes.len()))];
    findings.extend(
        away.iter().map(|row| Finding::warning("nodes", format!("node {} is not online", row.node), "start it")),
    );
    findings
}

fn storage_on(expected: &Expectation, node: &NodeName, storages: &Fact<Vec<Storage>>) -> Vec<Finding> {
    let storages = match storages {
        Ok(storages) => storages,
        Err(trouble) => return vec![Finding::unanswered("storage", trouble)],
    };
    let mut contents = vec!["rootdir"];
    if expected.machines == Machines::Used {
        contents.push("images");
    }
    let mut findings = vec![one_storage(&expected.storage, &contents, expected.room, node, storages)];
    if let Some(backup) = &expected.backup_storage {
        findings.push(one_storage(backup, &["backup"], 0, node, storages));
    }
    findings
}

fn one_storage(id: &StorageId, contents: &[&str], room: u64, node: &NodeName, storages: &[Storage]) -> Finding {
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64);
    let failure =
        |what: String, remedy: &str| Finding::failure("storage", format!("storage {id} on {node} {what}"), remedy);
    let Some(storage) = storages.iter().find(|storage| storage.id == id.as_str()) else {
        let remedy = "create it, name another one, or grant the token Datastore.Audit on it";
        return failure("is not there, or the token may not see it".to_owned(), remedy);
    };
    if !storage.enabled {
        return failure("is switched off".to_owned(), "switch it on, or name another one");
    }
    if !storage.active {
        return failure("is not active".to_owned(), "see `pvesm status` on the node");
    }
    let missing: Vec<&str> = contents.iter().copied().filter(|content| !storage.content.contains(*content)).collect();
    if !missing.is_empty() {
        let remedy = format!("add {} to its content types, or name another storage", missing.join(" and "));
        return failure(format!("does not take {}", missing.join(" and ")), &remedy);
    }
    if storage.available < room {
        let what = format!("has {} free, the largest disk takes {}", gib(storage.available), gib(room));
        return failure(what, "free space, or name another storage");
    }
    Finding::ok("storage", format!("storage {id} on {node} is active, {} free", gib(storage.available)))
}

fn bridge_on(expected: &Expectation, node: &NodeName, bridges: &Fact<Vec<Bridge>>) -> Finding {
    let name = &expected.bridge;
    match bridges {
        Err(trouble) => Finding::unanswered("bridge", trouble),
        Ok(bridges) => match bridges.iter().find(|bridge| bridge.name == name.as_str()) {
            Some(bridge) if bridge.active => Finding::ok("bridge", format!("bridge {name} on {node} is up")),
            Some(_) => {
                Finding::failure("bridge", format!("bridge {name} on {node} is down"), "bring it up (`ifreload -a`)")
            }
            None => Finding::failure(
                "bridge",
                format!("bridge {name} is not on {node}, or the token may not see it"),
                "name a bridge of the node, or grant the token SDN.Use on it",
            ),
        },
    }
}

fn pool(expected: &Expectation, pool: &Fact<Pool>) -> Finding {
    match pool {
        Ok(pool) => Finding::ok("pool", format!("pool {} has {} guests", pool.id, pool.guests.len())),
        Err(trouble) => Finding::failure(
            "pool",
            format!("pool {} cannot be read: {}", expected.pool, trouble.text),
            format!("create it (`pveum pool add {}`), or grant the token Pool.Audit on it", expected.pool),
        ),
    }
}

fn rights(expected: &Expectation, facts: &SiteFacts) -> Vec<Finding> {
    let needs = Needs::of(expected, facts);
    let mut findings = Vec::new();
    for (path, needed) in &needs.required {
        let held = match facts.granted.get(path) {
            Some(Ok(held)) => held,
            Some(Err(trouble)) => {
                findings.push(Finding::unanswered("privileges", trouble));
                continue;
            }
            None => continue,
        };
        let missing: Vec<&str> = needed.iter().copied().filter(|privilege| !held.contains(*privilege)).collect();
        if !missing.is_empty() {
            findings.push(Finding::failure(
                "privileges",
                format!("the token lacks {} on {path}", missing.join(", ")),
                "run `ctrlable doctor --print-role` and its commands on the node; user and token need them both",
            ));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok("privileges", "the token has all that it needs"));
    }
    match &facts.all {
        Err(trouble) => findings.push(Finding::unanswered("superfluous", trouble)),
        Ok(all) => findings.extend(all.0.iter().filter_map(|(path, held)| {
            let extra: Vec<&str> =
                held.iter().map(String::as_str).filter(|privilege| !needs.allows(path, privilege)).collect();
            (!extra.is_empty()).then(|| {
                Finding::warning(
                    "superfluous",
                    format!("the token has more than it needs on {path}: {}", extra.join(", ")),
                    "take them away; a stolen token can do no more than it may",
                )
            })
        })),
    }
    findings
}

fn templates(templates: &Fact<Templates>) -> Vec<Finding> {
    let templates = match templates {
        Ok(templates) => templates,
        Err(trouble) => return vec![Finding::unanswered("templates", trouble)],
    };
    let mut findings: Vec<Finding> = templates
        .suspect
        .iter()
        .map(|suspect| {
            let text = format!("{} cannot be used as a template: {}", suspect.guest, suspect.why);
            Finding::warning("templates", text, "run `ctrlable template adopt`, or remove the tag ctrlable-template")
        })
        .collect();
    findings.push(match templates.usable.len() {
        0 => Finding::warning(
            "templates",
            "the token sees no template of ours",
            "build or adopt one; put it in the pool, or grant PVETemplateUser on it",
        ),
        count => Finding::ok("templates", format!("{count} templates are ready")),
    });
    findings
}

#[cfg(test)]
mod tests;
