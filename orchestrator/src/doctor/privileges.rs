//! Privileges that a site's token needs (pve-api 3.4), and the commands that grant them.

use std::collections::{BTreeMap, BTreeSet};

use contract::ids::{NodeName, PoolId};

use super::{Expectation, Machines, SiteFacts};
use crate::proxmox::NodeState;

/// On the pool, for containers.
const POOL: &[&str] = &[
    "Pool.Audit",
    "VM.Allocate",
    "VM.Audit",
    "VM.Backup",
    "VM.Clone",
    "VM.Config.CPU",
    "VM.Config.Disk",
    "VM.Config.Memory",
    "VM.Config.Network",
    "VM.Config.Options",
    "VM.PowerMgmt",
    "VM.Snapshot",
    "VM.Snapshot.Rollback",
];
/// On the pool, for virtual machines too.
const POOL_MACHINES: &[&str] = &["VM.Config.CDROM", "VM.Config.Cloudinit", "VM.Config.HWType"];
/// On each storage.
const STORAGE: &[&str] = &["Datastore.AllocateSpace", "Datastore.Audit"];
/// On the bridge.
const BRIDGE: &[&str] = &["SDN.Use"];
/// On each node.
const NODE: &[&str] = &["Sys.Audit"];
/// On a template that is not in the pool.
const TEMPLATE: &[&str] = &["VM.Audit", "VM.Clone"];

/// To ask the QEMU guest agent for addresses: Proxmox VE 9 took the old privilege away.
fn agent_privilege(major: u16) -> &'static str {
    if major >= 9 { "VM.GuestAgent.Audit" } else { "VM.Monitor" }
}

/// What the pool's role holds for this version.
fn pool_role(major: u16, machines: Machines) -> Vec<&'static str> {
    let mut role = POOL.to_vec();
    if machines == Machines::Used {
        role.extend(POOL_MACHINES);
        role.push(agent_privilege(major));
    }
    role.sort_unstable();
    role
}

fn pool_path(pool: &PoolId) -> String {
    format!("/pool/{pool}")
}

fn bridge_path(expected: &Expectation) -> String {
    // A plain bridge counts as one of the SDN zone `localnetwork`; rules for one VLAN tag lie below it.
    let bridge = format!("/sdn/zones/localnetwork/{}", expected.bridge);
    expected.vlan.map_or(bridge.clone(), |vlan| format!("{bridge}/{vlan}"))
}

/// What is needed where.
pub struct Needs {
    /// By path.
    pub required: BTreeMap<String, Vec<&'static str>>,
    pool_role: Vec<&'static str>,
    /// Paths of the pool's guests; none when they are not known.
    members: Option<BTreeSet<String>>,
    bridge: String,
}

impl Needs {
    /// For a site on what was found out.
    pub fn of(expected: &Expectation, facts: &SiteFacts) -> Self {
        let nodes = facts.nodes.as_deref().unwrap_or_default();
        let online = nodes.iter().filter(|row| row.state == NodeState::Online).map(|row| &row.node);
        let nodes: Vec<&NodeName> = expected.node.as_ref().map_or_else(|| online.collect(), |node| vec![node]);
        let mut needs = Self::without_templates(expected, facts.version.release.major, &nodes);
        for template in facts.templates.iter().flat_map(|templates| &templates.usable) {
            needs.required.insert(format!("/vms/{}", template.guest.vmid), TEMPLATE.to_vec());
        }
        let members = facts.pool.as_ref().ok().map(|pool| &pool.guests);
        needs.members = members.map(|guests| guests.iter().map(|row| format!("/vms/{}", row.guest.vmid)).collect());
        needs
    }

    /// For a site on these nodes, templates apart.
    pub fn without_templates(expected: &Expectation, major: u16, nodes: &[&NodeName]) -> Self {
        let mut required = BTreeMap::from([
            (pool_path(&expected.pool), pool_role(major, expected.machines)),
            (format!("/storage/{}", expected.storage), STORAGE.to_vec()),
            (bridge_path(expected), BRIDGE.to_vec()),
        ]);
        if let Some(backup) = &expected.backup_storage {
            required.insert(format!("/storage/{backup}"), STORAGE.to_vec());
        }
        required.extend(nodes.iter().map(|node| (format!("/nodes/{node}"), NODE.to_vec())));
        let bridge = format!("/sdn/zones/localnetwork/{}", expected.bridge);
        Self { required, pool_role: pool_role(major, expected.machines), members: None, bridge }
    }

    /// Whether a privilege on a path is one that the site has a use for.
    pub fn allows(&self, path: &str, privilege: &str) -> bool {
        let listed = self.required.get(path).is_some_and(|needed| needed.contains(&privilege));
        // Guests of the pool show the pool's privileges as their own.
        let of_pool = (path.starts_with("/pool/") && self.required.contains_key(path))
            || self.members.as_ref().map_or(path.starts_with("/vms/"), |members| members.contains(path));
        // Rules for a VLAN tag lie below the bridge's.
        let of_bridge = path.strip_prefix(&self.bridge).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        listed
            || (of_pool && self.pool_role.contains(&privilege))
            || (of_bridge && BRIDGE.contains(&privilege))
            || (path.starts_with("/nodes") && NODE.contains(&privilege))
    }
}

/// The commands that make role, user, token and rules, to be run as root on a node.
pub fn print_role(expected: &Expectation, major: u16, user: &str, token: &str) -> String {
    let nodes: Vec<&NodeName> = expected.node.iter().collect();
    let needs = Needs::without_templates(expected, major, &nodes);
    let mut rules: Vec<(String, &str)> = needs
        .required
        .keys()
        .map(|path| {
            let role = match path.split('/').nth(1) {
                Some("pool") => "CtrlableSite",
                Some("storage") => "CtrlableStorage",
                Some("sdn") => "CtrlableBridge",
                _ => "CtrlableNode",
            };
            (path.clone(), role)
        })
        .collect();
    if expected.node.is_none() {
        rules.push(("/nodes".to_owned(), "CtrlableNode"));
    }
    let mut lines = vec![
        format!("# Proxmox VE {major}: role, user, token and rules of one site. Run as root on one node."),
        format!("pveum role add CtrlableSite --privs \"{}\"", pool_role(major, expected.machines).join(" ")),
        format!("pveum role add CtrlableStorage --privs \"{}\"", STORAGE.join(" ")),
        format!("pveum role add CtrlableBridge --privs \"{}\"", BRIDGE.join(" ")),
        format!("pveum role add CtrlableNode --privs \"{}\"", NODE.join(" ")),
        format!("pveum pool add {}", expected.pool),
        format!("pveum user add {user} --comment \"ctrlable orchestrator\""),
        "# The next line shows the token's secret, once.".to_owned(),
        format!("pveum user token add {user} {token} --privsep 1 --output-format json"),
        "# A token has what both it and its user have.".to_owned(),
    ];
    for (path, role) in rules {
        lines.push(format!("pveum acl modify {path} --users '{user}' --roles {role}"));
        lines.push(format!("pveum acl modify {path} --tokens '{user}!{token}' --roles {role}"));
    }
    lines.push(
        "# For each template that is not in the pool, the same two lines with /vms/ID and PVETemplateUser.".to_owned(),
    );
    lines.join("\n") + "\n"
}
