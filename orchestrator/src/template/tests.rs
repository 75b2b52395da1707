#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;
use crate::proxmox::TemplateGuest;
use contract::manifest::Wiring;

fn entry() -> Template {
    Template {
        kind: GuestKind::Lxc,
        builder: "ct/zigbee2mqtt.sh".to_owned(),
        app_version: None,
        os: None,
        resources: None,
        privilege: Privilege::Unprivileged,
        portainer: false,
        haos_version: None,
        rebrand: false,
        base_backup: None,
        vmid_base: None,
        wiring: Wiring::default(),
        probes: Vec::new(),
        artifact: None,
    }
}

fn request() -> Adoption {
    Adoption {
        vmid: 9000.try_into().unwrap(),
        release: "2026.06".parse().unwrap(),
        template: "zigbee2mqtt".parse().unwrap(),
        digest: None,
        entry: Some(entry()),
        flags: InheritedFlags::Warn,
    }
}

fn guest(vmid: u32) -> GuestRef {
    GuestRef { kind: GuestKind::Lxc, node: "pve1".parse().unwrap(), vmid: vmid.try_into().unwrap() }
}

/// A template that can be adopted, with some keys changed; null takes one away.
fn config(changes: Value) -> GuestConfig {
    let mut keys = json!({ "template": 1, "unprivileged": 1, "digest": "d", "tags": "daily", "hostname": "z",
        "net0": "name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:01,ip=dhcp,type=veth", "description": "by hand\n" });
    keys.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    GuestConfig::decode(&guest(9000), keys).unwrap()
}

fn refusals(config: &GuestConfig) -> Vec<&'static str> {
    let obstacles = examine(&request(), config, &Templates::default()).unwrap_err();
    obstacles.iter().map(Obstacle::reason).collect()
}

#[test]
fn a_guest_is_marked_once() {
    let verdict = examine(&request(), &config(json!({})), &Templates::default()).unwrap();
    let tags = verdict.change.tags.as_ref().unwrap().to_string();
    assert_eq!(tags, "ctrlable-template;daily;release-2026.06;template-zigbee2mqtt");
    let description = verdict.change.description.as_ref().unwrap();
    assert!(description.starts_with("by hand\n<!-- ctrlable {\"v\":1,\"role\":\"template\""));
    assert!(verdict.warnings.is_empty() && verdict.change.onboot.is_none());

    let marked = config(json!({ "tags": tags, "description": format!("{description}\n") }));
    let again = examine(&request(), &marked, &Templates::default()).unwrap();
    assert!(again.change.is_empty(), "{again:?}");
    // Its own row is no duplicate.
    let own = TemplateGuest::recognise(&marked).unwrap();
    let listed = Templates { usable: vec![own], suspect: Vec::new() };
    assert!(examine(&request(), &marked, &listed).is_ok());
}

#[test]
fn a_new_digest_is_written_and_an_old_one_stays() {
    let digest: Sha256Digest = "ab".repeat(32).parse().unwrap();
    let with = Adoption { digest: Some(digest.clone()), ..request() };
    let first = examine(&with, &config(json!({})), &Templates::default()).unwrap();
    let marked =
        config(json!({ "tags": first.change.tags.unwrap().to_string(), "description": first.change.description }));
    assert!(examine(&request(), &marked, &Templates::default()).unwrap().change.is_empty());
    let newer = Adoption { digest: Some("cd".repeat(32).parse().unwrap()), ..request() };
    let change = examine(&newer, &marked, &Templates::default()).unwrap().change;
    assert!(change.description.unwrap().contains(&"cd".repeat(32)) && change.tags.is_none());
}

#[test]
fn each_obstacle_has_its_label() {
    let other = r#"<!-- ctrlable {"v":1,"role":"template","release":"2026.05","template":"zigbee2mqtt"} -->"#;
    let instance =
        r#"<!-- ctrlable {"v":1,"role":"guest","site":"a","instance":"b","release":"2026.05","template":"c"} -->"#;
    for (changes, reason) in [
        (json!({ "template": 0 }), "not-a-template"),
        (json!({ "lock": "backup" }), "locked"),
        (json!({ "unprivileged": null }), "wrong-privilege"),
        (json!({ "net0": null }), "no-interface"),
        (json!({ "net0": "bridge=vmbr0" }), "no-interface"),
        (json!({ "net0": "name=eth0,bridge=vmbr0,ip=10.0.0.5/24" }), "static-address"),
        (json!({ "description": other }), "already-ours"),
        (json!({ "description": instance }), "already-ours"),
        (json!({ "description": "<!-- ctrlable {" }), "marker-unterminated"),
        (json!({ "description": "x".repeat(8100) }), "marker-too-long"),
    ] {
        assert_eq!(refusals(&config(changes)), [reason]);
    }
    let all = refusals(&config(json!({ "template": 0, "net0": "name=eth0,ip=10.0.0.5/24" })));
    assert_eq!(all, ["not-a-template", "static-address"], "all are told at once");
}

#[test]
fn kind_must_be_the_manifests() {
    let machine = Adoption { entry: Some(Template { kind: GuestKind::Vm, ..entry() }), ..request() };
    let obstacles = examine(&machine, &config(json!({})), &Templates::default()).unwrap_err();
    assert_eq!(obstacles, [Obstacle::WrongKind(guest(9000))]);
    let unknown = Adoption { entry: None, ..request() };
    assert!(examine(&unknown, &config(json!({ "unprivileged": 0 })), &Templates::default()).is_ok());
}

#[test]
fn two_of_the_same_on_one_node_are_refused() {
    let twin = |vmid, node: &str| TemplateGuest {
        guest: GuestRef { node: node.parse().unwrap(), ..guest(vmid) },
        release: "2026.06".parse().unwrap(),
        template: "zigbee2mqtt".parse().unwrap(),
        digest: None,
    };
    let listed = |twin| Templates { usable: vec![twin], suspect: Vec::new() };
    let obstacles = examine(&request(), &config(json!({})), &listed(twin(9001, "pve1"))).unwrap_err();
    assert_eq!(obstacles[0].reason(), "duplicate-template");
    assert!(examine(&request(), &config(json!({})), &listed(twin(9001, "pve2"))).is_ok());
}

#[test]
fn flags_that_clones_inherit_are_told_or_cleared() {
    let flagged = config(json!({ "onboot": 1, "protection": 1 }));
    assert_eq!(examine(&request(), &flagged, &Templates::default()).unwrap().warnings.len(), 2);
    let clearing = Adoption { flags: InheritedFlags::Clear, ..request() };
    let verdict = examine(&clearing, &flagged, &Templates::default()).unwrap();
    assert_eq!((verdict.change.onboot, verdict.change.protection), (Some(false), Some(false)));
    assert!(verdict.warnings.is_empty());
}
