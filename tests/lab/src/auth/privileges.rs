//! Roles, the ACL walk, and the texts of refusals.

use std::collections::{BTreeMap, BTreeSet};

use super::Caller;
use crate::http::envelope::Refusal;
use crate::runtime::Vmid;
use crate::state::Cluster;

/// Privileges that both releases know.
const COMMON: &[&str] = &[
    "Datastore.Allocate",
    "Datastore.AllocateSpace",
    "Datastore.AllocateTemplate",
    "Datastore.Audit",
    "Group.Allocate",
    "Mapping.Audit",
    "Mapping.Modify",
    "Mapping.Use",
    "Permissions.Modify",
    "Pool.Allocate",
    "Pool.Audit",
    "Realm.Allocate",
    "Realm.AllocateUser",
    "SDN.Allocate",
    "SDN.Audit",
    "SDN.Use",
    "Sys.AccessNetwork",
    "Sys.Audit",
    "Sys.Console",
    "Sys.Incoming",
    "Sys.Modify",
    "Sys.PowerMgmt",
    "Sys.Syslog",
    "User.Modify",
    "VM.Allocate",
    "VM.Audit",
    "VM.Backup",
    "VM.Clone",
    "VM.Config.CDROM",
    "VM.Config.CPU",
    "VM.Config.Cloudinit",
    "VM.Config.Disk",
    "VM.Config.HWType",
    "VM.Config.Memory",
    "VM.Config.Network",
    "VM.Config.Options",
    "VM.Console",
    "VM.Migrate",
    "VM.PowerMgmt",
    "VM.Snapshot",
    "VM.Snapshot.Rollback",
];
const ONLY_8: &[&str] = &["VM.Monitor"];
const ONLY_9: &[&str] = &[
    "VM.GuestAgent.Audit",
    "VM.GuestAgent.FileRead",
    "VM.GuestAgent.FileSystemMgmt",
    "VM.GuestAgent.FileWrite",
    "VM.GuestAgent.Unrestricted",
    "VM.Replicate",
];

/// Privileges of a path with their propagate flag.
pub(crate) type Privileges = BTreeMap<String, bool>;

/// Every privilege a release knows.
pub(crate) fn all(major: u8) -> BTreeSet<String> {
    let special = if major >= 9 { ONLY_9 } else { ONLY_8 };
    COMMON.iter().chain(special).map(|name| (*name).to_owned()).collect()
}

/// Built-in roles.
pub(crate) fn built_in(major: u8) -> BTreeMap<String, BTreeSet<String>> {
    let all = all(major);
    let pick = |fits: &dyn Fn(&str) -> bool| all.iter().filter(|name| fits(name)).cloned().collect::<BTreeSet<_>>();
    let is_admin_only = |name: &str| {
        matches!(
            name,
            "Permissions.Modify"
                | "Sys.PowerMgmt"
                | "Sys.AccessNetwork"
                | "Sys.Incoming"
                | "Sys.Modify"
                | "Realm.Allocate"
        )
    };
    let guest = |name: &str| name.starts_with("VM.");
    let user = |name: &str| {
        matches!(
            name,
            "VM.Audit" | "VM.Backup" | "VM.Config.CDROM" | "VM.Config.Cloudinit" | "VM.Console" | "VM.PowerMgmt"
        ) || name.starts_with("VM.GuestAgent.")
    };
    BTreeMap::from([
        ("Administrator".to_owned(), all.clone()),
        ("NoAccess".to_owned(), BTreeSet::new()),
        ("PVEAdmin".to_owned(), pick(&|name| !is_admin_only(name))),
        ("PVEAuditor".to_owned(), pick(&|name| name.ends_with(".Audit"))),
        ("PVEDatastoreAdmin".to_owned(), pick(&|name| name.starts_with("Datastore."))),
        ("PVEDatastoreUser".to_owned(), pick(&|name| matches!(name, "Datastore.AllocateSpace" | "Datastore.Audit"))),
        ("PVEMappingAdmin".to_owned(), pick(&|name| name.starts_with("Mapping."))),
        ("PVEMappingAuditor".to_owned(), pick(&|name| name == "Mapping.Audit")),
        ("PVEMappingUser".to_owned(), pick(&|name| matches!(name, "Mapping.Audit" | "Mapping.Use"))),
        ("PVEPoolAdmin".to_owned(), pick(&|name| name.starts_with("Pool."))),
        ("PVEPoolUser".to_owned(), pick(&|name| name == "Pool.Audit")),
        ("PVESDNAdmin".to_owned(), pick(&|name| name.starts_with("SDN."))),
        ("PVESDNUser".to_owned(), pick(&|name| matches!(name, "SDN.Audit" | "SDN.Use"))),
        ("PVESysAdmin".to_owned(), pick(&|name| matches!(name, "Sys.Audit" | "Sys.Console" | "Sys.Syslog"))),
        ("PVETemplateUser".to_owned(), pick(&|name| matches!(name, "VM.Audit" | "VM.Clone"))),
        (
            "PVEUserAdmin".to_owned(),
            pick(&|name| matches!(name, "Group.Allocate" | "Realm.AllocateUser" | "User.Modify")),
        ),
        ("PVEVMAdmin".to_owned(), pick(&guest)),
        ("PVEVMUser".to_owned(), pick(&user)),
    ])
}

/// The access rules as one call sees them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) caller: &'a Caller,
    pub(crate) major: u8,
}

impl Access<'_> {
    /// Effective privileges on a path: a token with privilege separation has those it shares with its owner.
    pub(crate) fn privileges(&self, path: &str) -> Privileges {
        let owner = self.of(&self.caller.user, path);
        let mut effective = match self.caller.token {
            Some(_) if self.caller.privsep => {
                let own = self.of(&self.caller.id, path);
                own.into_iter()
                    .filter_map(|(name, mine)| owner.get(&name).map(|theirs| (name, mine && *theirs)))
                    .collect()
            }
            _ => owner,
        };
        if self.caller.user != "root@pam" {
            effective.retain(|name, _| !self.cluster.revoked.contains(name));
        }
        effective
    }

    fn of(&self, ugid: &str, path: &str) -> Privileges {
        if ugid == "root@pam" {
            return all(self.major).into_iter().map(|name| (name, true)).collect();
        }
        let mut roles = self.roles(ugid, path);
        for pool in self.pools_of(path) {
            roles.extend(self.roles(ugid, &format!("/pool/{pool}")));
        }
        if roles.contains_key("NoAccess") {
            return Privileges::new();
        }
        let mut privileges = Privileges::new();
        for (role, propagate) in roles {
            for name in self.role(&role) {
                *privileges.entry(name).or_insert(false) |= propagate;
            }
        }
        privileges
    }

    /// Walks from `/` down; an entry at a deeper path replaces what was inherited.
    fn roles(&self, ugid: &str, path: &str) -> BTreeMap<String, bool> {
        let mut roles = BTreeMap::new();
        for prefix in prefixes(path) {
            let here: BTreeMap<String, bool> = self
                .cluster
                .acl
                .iter()
                .filter(|entry| entry.ugid == ugid && entry.path == prefix && (entry.propagate || prefix == path))
                .map(|entry| (entry.role.clone(), entry.propagate))
                .collect();
            if !here.is_empty() {
                roles = here;
            }
        }
        roles
    }

    fn pools_of(&self, path: &str) -> Vec<&String> {
        let guest = path.strip_prefix("/vms/").and_then(|id| id.parse::<Vmid>().ok());
        let storage = path.strip_prefix("/storage/");
        let member = |pool: &crate::state::Pool| {
            guest.is_some_and(|vmid| pool.vms.contains(&vmid)) || storage.is_some_and(|id| pool.storages.contains(id))
        };
        self.cluster.pools.iter().filter(|(_, pool)| member(pool)).map(|(name, _)| name).collect()
    }

    fn role(&self, role: &str) -> BTreeSet<String> {
        match self.cluster.roles.get(role) {
            Some(privileges) => privileges.clone(),
            None => built_in(self.major).remove(role).unwrap_or_default(),
        }
    }

    pub(crate) fn has(&self, path: &str, privilege: &str) -> bool {
        self.privileges(path).contains_key(privilege)
    }

    pub(crate) fn has_any(&self, path: &str, wanted: &[&str]) -> bool {
        let privileges = self.privileges(path);
        wanted.iter().any(|name| privileges.contains_key(*name))
    }

    /// Refuses with the path and the privileges of which one would have done.
    pub(crate) fn require_any(&self, path: &str, wanted: &[&str]) -> Result<(), Refusal> {
        if self.has_any(path, wanted) {
            Ok(())
        } else {
            Err(Refusal::forbidden(&format!("{path}, {}", wanted.join("|"))))
        }
    }

    pub(crate) fn require(&self, path: &str, privilege: &str) -> Result<(), Refusal> {
        self.require_any(path, &[privilege])
    }

    /// All paths on which the caller has anything.
    pub(crate) fn dump(&self) -> BTreeMap<String, Privileges> {
        let mut paths: BTreeSet<String> =
            ["/", "/access", "/access/groups", "/nodes", "/pool", "/sdn", "/storage", "/vms"]
                .iter()
                .map(|path| (*path).to_owned())
                .collect();
        paths.extend(self.cluster.acl.iter().map(|entry| entry.path.clone()));
        for pool in self.cluster.pools.values() {
            paths.extend(pool.vms.iter().map(|vmid| format!("/vms/{vmid}")));
            paths.extend(pool.storages.iter().map(|storage| format!("/storage/{storage}")));
        }
        paths
            .into_iter()
            .map(|path| (path.clone(), self.privileges(&path)))
            .filter(|(_, privileges)| !privileges.is_empty())
            .collect()
    }
}

fn prefixes(path: &str) -> Vec<String> {
    let mut found = vec!["/".to_owned()];
    let mut prefix = String::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        prefix.push('/');
        prefix.push_str(part);
        found.push(prefix.clone());
    }
    found
}

/// Whether an ACL may stand at a path.
pub(crate) fn is_acl_path(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match parts.as_slice() {
        [] => true,
        ["access" | "nodes" | "pool" | "sdn" | "storage" | "vms" | "mapping"] => true,
        ["access", "groups" | "realm", ..] => parts.len() <= 3,
        ["nodes" | "storage", _] => true,
        ["vms", id] => crate::schema::formats::is_vmid(id),
        ["pool", ..] => parts.len() <= 4,
        ["sdn", "zones", ..] => parts.len() <= 5,
        ["mapping", "pci" | "usb" | "dir" | "cpu", ..] => parts.len() <= 3,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{AclEntry, Pool};

    fn caller() -> Caller {
        Caller { id: "a@pve!t".to_owned(), user: "a@pve".to_owned(), token: Some("t".to_owned()), privsep: true }
    }

    fn grant(cluster: &mut Cluster, path: &str, role: &str) {
        for ugid in ["a@pve", "a@pve!t"] {
            cluster.acl.push(AclEntry {
                path: path.to_owned(),
                ugid: ugid.to_owned(),
                role: role.to_owned(),
                propagate: true,
            });
        }
    }

    #[test]
    fn a_deeper_entry_replaces_and_a_pool_reaches_its_members_only() {
        let mut cluster = Cluster::default();
        grant(&mut cluster, "/vms", "PVEVMAdmin");
        grant(&mut cluster, "/vms/100", "PVETemplateUser");
        grant(&mut cluster, "/pool/p", "PVEVMAdmin");
        cluster.pools.insert("p".to_owned(), Pool { vms: BTreeSet::from([100]), ..Pool::default() });
        let caller = caller();
        let access = Access { cluster: &cluster, caller: &caller, major: 9 };
        assert!(access.has("/vms/101", "VM.Allocate"));
        assert!(access.has("/vms/100", "VM.Allocate"), "by the pool");
        cluster.pools.clear();
        let access = Access { cluster: &cluster, caller: &caller, major: 9 };
        assert!(!access.has("/vms/100", "VM.Allocate"), "replaced by the template role");
    }

    #[test]
    fn a_separated_token_needs_its_owner_too() {
        let mut cluster = Cluster::default();
        grant(&mut cluster, "/", "Administrator");
        cluster.acl.retain(|entry| entry.ugid == "a@pve!t");
        let caller = caller();
        let access = Access { cluster: &cluster, caller: &caller, major: 9 };
        assert!(access.privileges("/").is_empty());
    }
}
