#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::privileges::print_role;
use super::*;
use crate::proxmox::{GuestRef, SuspectTemplate, TemplateGuest};
use contract::manifest::GuestKind;

fn expected() -> Expectation {
    Expectation {
        oldest: "8.2".parse().unwrap(),
        node: None,
        storage: "local-lvm".parse().unwrap(),
        backup_storage: None,
        bridge: "vmbr0".parse().unwrap(),
        vlan: None,
        pool: "acme".parse().unwrap(),
        machines: Machines::Used,
        room: 8 << 30,
    }
}

/// A site on which all is well.
fn good(release: &str) -> SiteFacts {
    let node: NodeName = "pve1".parse().unwrap();
    let storage = json!([{ "storage": "local-lvm", "type": "lvmthin", "content": "images,rootdir", "enabled": 1,
        "active": 1, "total": 100u64 << 30, "avail": 50u64 << 30 }]);
    let guest = GuestRef { kind: GuestKind::Lxc, node: node.clone(), vmid: 9000.try_into().unwrap() };
    let template = TemplateGuest {
        guest,
        release: "2026.06".parse().unwrap(),
        template: "zigbee2mqtt".parse().unwrap(),
        digest: None,
    };
    let mut facts = SiteFacts {
        version: Version { release: release.parse().unwrap(), full: format!("{release}.1") },
        skew: Some(0),
        nodes: Ok(NodeRow::decode(json!([{ "node": "pve1", "status": "online" }])).unwrap()),
        storages: BTreeMap::from([(node.clone(), Ok(Storage::decode(storage).unwrap()))]),
        bridges: BTreeMap::from([(node, Ok(Bridge::decode(json!([{ "iface": "vmbr0", "active": 1 }])).unwrap()))]),
        pool: Ok(Pool::decode(json!([{ "poolid": "acme", "members": [] }])).unwrap().remove(0)),
        granted: BTreeMap::new(),
        all: Ok(Permissions::default()),
        templates: Ok(Templates { usable: vec![template], suspect: Vec::new() }),
    };
    for (path, needed) in Needs::of(&expected(), &facts).required {
        let held: BTreeSet<String> = needed.into_iter().map(str::to_owned).collect();
        if let Ok(all) = &mut facts.all {
            all.0.insert(path.clone(), held.clone());
        }
        facts.granted.insert(path, Ok(held));
    }
    facts
}

fn judge(facts: SiteFacts) -> Vec<Finding> {
    examine(&expected(), &Facts::Reached(Box::new(facts)))
}

/// What is not fine, as `check: text`.
fn complaints(facts: SiteFacts) -> Vec<String> {
    let findings = judge(facts);
    assert!(findings.iter().all(|finding| (finding.level == Level::Ok) == finding.remedy.is_none()));
    let bad = findings.into_iter().filter(|finding| finding.level != Level::Ok);
    bad.map(|finding| format!("{}: {}", finding.check, finding.text)).collect()
}

#[test]
fn a_good_site_has_no_complaints() {
    for release in ["8.4", "9.2"] {
        assert_eq!(complaints(good(release)), Vec::<String>::new());
    }
    assert_eq!(worst(&judge(good("9.2"))), Level::Ok);
    assert_eq!(complaints(good("8.1")), ["version: Proxmox VE 8.1.1 is older than the release needs"]);
}

#[test]
fn each_thing_that_can_be_wrong_is_named() {
    type Spoil = fn(&mut SiteFacts);
    let cases: &[(Spoil, &str)] = &[
        (
            |facts| facts.version.release = "10.0".parse().unwrap(),
            "version: Proxmox VE 9.2.1 is newer than this program knows",
        ),
        (|facts| facts.skew = Some(-301), "clock: the node's clock differs by -301 s: enrolment fails"),
        (|facts| facts.skew = Some(20), "clock: the node's clock differs by 20 s"),
        (|facts| facts.skew = None, "clock: the node does not tell its time"),
        (|facts| facts.nodes.as_mut().unwrap()[0].state = NodeState::Offline, "nodes: no node is online"),
        (
            |facts| storage(facts).id = "other".to_owned(),
            "storage: storage local-lvm on pve1 is not there, or the token may not see it",
        ),
        (|facts| storage(facts).enabled = false, "storage: storage local-lvm on pve1 is switched off"),
        (|facts| storage(facts).active = false, "storage: storage local-lvm on pve1 is not active"),
        (|facts| storage(facts).content.clear(), "storage: storage local-lvm on pve1 does not take rootdir and images"),
        (
            |facts| storage(facts).available = 4 << 30,
            "storage: storage local-lvm on pve1 has 4.0 GiB free, the largest disk takes 8.0 GiB",
        ),
        (
            |facts| facts.bridges.values_mut().next().unwrap().as_mut().unwrap().clear(),
            "bridge: bridge vmbr0 is not on pve1, or the token may not see it",
        ),
        (
            |facts| facts.bridges.values_mut().next().unwrap().as_mut().unwrap()[0].active = false,
            "bridge: bridge vmbr0 on pve1 is down",
        ),
        (
            |facts| facts.pool = Err(Trouble { reason: "not-found", text: "gone".to_owned(), remedy: String::new() }),
            "pool: pool acme cannot be read: gone",
        ),
        (
            |facts| held(facts, "/pool/acme").retain(|privilege| privilege != "VM.GuestAgent.Audit"),
            "privileges: the token lacks VM.GuestAgent.Audit on /pool/acme",
        ),
        (
            |facts| held(facts, "/sdn/zones/localnetwork/vmbr0").clear(),
            "privileges: the token lacks SDN.Use on /sdn/zones/localnetwork/vmbr0",
        ),
        (
            |facts| held(facts, "/vms/9000").retain(|privilege| privilege != "VM.Clone"),
            "privileges: the token lacks VM.Clone on /vms/9000",
        ),
        (
            |facts| drop(facts.all.as_mut().unwrap().0.insert("/".to_owned(), ["Sys.Modify".to_owned()].into())),
            "superfluous: the token has more than it needs on /: Sys.Modify",
        ),
        (
            |facts| drop(facts.all.as_mut().unwrap().0.insert("/vms/105".to_owned(), ["VM.Console".to_owned()].into())),
            "superfluous: the token has more than it needs on /vms/105: VM.Console",
        ),
        // A guest that is not the pool's, and another bridge whose name begins like ours.
        (
            |facts| drop(facts.all.as_mut().unwrap().0.insert("/vms/105".to_owned(), ["VM.Audit".to_owned()].into())),
            "superfluous: the token has more than it needs on /vms/105: VM.Audit",
        ),
        (
            |facts| {
                let path = "/sdn/zones/localnetwork/vmbr01".to_owned();
                facts.all.as_mut().unwrap().0.insert(path, ["SDN.Use".to_owned()].into());
            },
            "superfluous: the token has more than it needs on /sdn/zones/localnetwork/vmbr01: SDN.Use",
        ),
        (
            |facts| {
                let templates = facts.templates.as_mut().unwrap();
                let guest = templates.usable[0].guest.clone();
                templates.suspect.push(SuspectTemplate { guest, why: "no block".to_owned() });
            },
            "templates: lxc/9000 on pve1 cannot be used as a template: no block",
        ),
    ];
    for (spoil, complaint) in cases {
        let mut facts = good("9.2");
        spoil(&mut facts);
        assert_eq!(complaints(facts), [*complaint]);
    }
}

fn storage(facts: &mut SiteFacts) -> &mut Storage {
    &mut facts.storages.values_mut().next().unwrap().as_mut().unwrap()[0]
}

fn held<'a>(facts: &'a mut SiteFacts, path: &str) -> &'a mut BTreeSet<String> {
    facts.granted.get_mut(path).unwrap().as_mut().unwrap()
}

#[test]
fn a_named_node_must_be_there() {
    let expected = Expectation { node: Some("pve2".parse().unwrap()), ..expected() };
    let findings = examine(&expected, &Facts::Reached(Box::new(good("9.2"))));
    let failure = findings.iter().find(|finding| finding.check == "nodes").unwrap();
    assert_eq!((failure.level, &*failure.text), (Level::Failure, "there is no node pve2"));
    assert_eq!(failure.remedy.as_deref(), Some("name one of pve1, or none, in the site definition"));
}

#[test]
fn what_failed_first_decides_what_is_reported() {
    let unreached = |reason| {
        let trouble = Trouble { reason, text: "why".to_owned(), remedy: "do".to_owned() };
        let findings = examine(&expected(), &Facts::Unreached(trouble));
        let levels: Vec<_> = findings.iter().map(|finding| (finding.check, finding.level)).collect();
        levels
    };
    assert_eq!(unreached("unreachable"), [("connection", Level::Failure)]);
    assert_eq!(unreached("tls-pin"), [("connection", Level::Ok), ("tls-pin", Level::Failure)]);
    assert_eq!(
        unreached("token-refused"),
        [("connection", Level::Ok), ("tls-pin", Level::Ok), ("token", Level::Failure)]
    );
}

#[test]
fn the_commands_fit_the_version() {
    let nine = print_role(&expected(), 9, "ctrlable@pve", "site");
    let eight = print_role(&expected(), 8, "ctrlable@pve", "site");
    assert!(nine.contains("VM.GuestAgent.Audit") && !nine.contains("VM.Monitor"));
    assert!(eight.contains("VM.Monitor") && !eight.contains("VM.GuestAgent"));
    for line in [
        "pveum acl modify /pool/acme --tokens 'ctrlable@pve!site' --roles CtrlableSite",
        "pveum acl modify /pool/acme --users 'ctrlable@pve' --roles CtrlableSite",
        "pveum acl modify /sdn/zones/localnetwork/vmbr0 --tokens 'ctrlable@pve!site' --roles CtrlableBridge",
        "pveum acl modify /storage/local-lvm --tokens 'ctrlable@pve!site' --roles CtrlableStorage",
        "pveum acl modify /nodes --tokens 'ctrlable@pve!site' --roles CtrlableNode",
    ] {
        assert!(nine.lines().any(|printed| printed == line), "{line}\n{nine}");
    }
    let containers = print_role(&Expectation { machines: Machines::Unused, ..expected() }, 9, "a@pve", "b");
    assert!(!containers.contains("VM.GuestAgent") && !containers.contains("VM.Config.CDROM"));
}

#[test]
fn what_only_virtual_machines_need_is_too_much_without_any() {
    let expected = Expectation { machines: Machines::Unused, ..expected() };
    let findings = examine(&expected, &Facts::Reached(Box::new(good("9.2"))));
    let bad: Vec<_> = findings.iter().filter(|finding| finding.level != Level::Ok).collect();
    let text = "the token has more than it needs on /pool/acme: VM.Config.CDROM, VM.Config.Cloudinit, \
                VM.Config.HWType, VM.GuestAgent.Audit";
    assert_eq!((bad.len(), &*bad[0].text), (1, text));
}
