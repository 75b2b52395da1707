#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};

use contract::ids::{Generation, InstanceName, Mac, ReleaseId, Vmid};
use contract::manifest::{GuestKind, Manifest, Privilege, Resources, Template, Wiring};
use contract::site::{
    Address, Instance, Network, Onboot, Placement, Protection, Prune, ReleaseChoice, ResourceOverride, Shared, Site,
};
use proptest::prelude::*;

use super::desired::Wished;
use super::observed::{ObservedNet, Settings};
use super::*;

const TEMPLATES: [&str; 3] = ["mqtt-broker", "zigbee2mqtt", "sensor"];

fn manifest() -> Manifest {
    let template = |disk| Template {
        kind: GuestKind::Lxc,
        builder: "ctrlable/x".into(),
        app_version: None,
        os: None,
        resources: Some(Resources { cpu: 1, ram: 512, disk }),
        privilege: Privilege::Unprivileged,
        portainer: false,
        haos_version: None,
        rebrand: false,
        base_backup: None,
        vmid_base: None,
        wiring: Wiring::default(),
        probes: vec![],
        artifact: None,
    };
    Manifest {
        release: "2026.06".parse().unwrap(),
        community_scripts_ref: None,
        proxmox_min_version: "8.2".parse().unwrap(),
        templates: TEMPLATES
            .iter()
            .enumerate()
            .map(|(n, name)| (name.parse().unwrap(), template(2 + n as u32)))
            .collect(),
    }
}

fn instance(template: &str) -> Instance {
    Instance {
        template: template.parse().unwrap(),
        vmid: None,
        resources: ResourceOverride::default(),
        network: Network::default(),
        wiring: BTreeMap::new(),
        onboot: Onboot::Start,
        protect: Protection::Unprotected,
    }
}

fn site(instances: impl IntoIterator<Item = (&'static str, Instance)>) -> Site {
    Site {
        site: "acme-hq".parse().unwrap(),
        dealer: "acme".parse().unwrap(),
        release: ReleaseChoice::Exact("2026.06".parse().unwrap()),
        timezone: None,
        proxmox: Placement {
            node: None,
            storage: "local-lvm".parse().unwrap(),
            bridge: "vmbr0".parse().unwrap(),
            vlan: None,
            pool: "ctrlable".parse().unwrap(),
            vmids: "2000-2009".parse().unwrap(),
        },
        shared: Shared::default(),
        prune: Prune::Refuse,
        instances: instances.into_iter().map(|(name, instance)| (name.parse().unwrap(), instance)).collect(),
    }
}

fn digest(content: &str) -> WiringDigest {
    WiringDigest { content: content.to_owned(), secrets: BTreeMap::new() }
}

fn desired_with(site: &Site, wiring: &str) -> Desired {
    let manifest = manifest();
    Desired::from_parts(site, &manifest, "r1", None, |name| Wished::Digest(digest(&format!("{wiring} {name}"))))
        .unwrap()
}

fn desired(site: &Site) -> Desired {
    desired_with(site, "w1")
}

fn node() -> Observed {
    Observed {
        version: Some("9.2".parse().unwrap()),
        guests: BTreeMap::new(),
        templates: TEMPLATES
            .iter()
            .enumerate()
            .map(|(n, name)| ObservedTemplate {
                vmid: Vmid::try_from(9000 + n as u32).unwrap(),
                node: "pve1".parse().unwrap(),
                kind: GuestKind::Lxc,
                release: "2026.06".parse().unwrap(),
                template: name.parse().unwrap(),
                disk: Some(2),
            })
            .collect(),
        storages: vec![
            ObservedStorage {
                node: "pve1".parse().unwrap(),
                storage: "local-lvm".parse().unwrap(),
                active: true,
                content: ["rootdir".to_owned()].into(),
                available: 1 << 40,
            },
            ObservedStorage {
                node: "pve1".parse().unwrap(),
                storage: "local".parse().unwrap(),
                active: true,
                content: ["backup".to_owned()].into(),
                available: 1 << 40,
            },
        ],
        unreadable_nodes: BTreeSet::new(),
        agents: BTreeMap::new(),
    }
}

/// What a hypervisor and well-behaved guests make of a plan.
fn apply(plan: &Plan, desired: &Desired, observed: &mut Observed, ledger: &mut Ledger) {
    for part in &plan.instances {
        let (Some(vmid), name) = (part.vmid, &part.instance) else { continue };
        for step in &part.steps {
            match &step.action {
                Action::Clone { from, node, kind, template, .. } => {
                    assert!(!observed.guests.contains_key(&vmid), "{vmid} is taken");
                    let disk = observed.templates.iter().find(|template| Some(template.vmid) == *from).unwrap().disk;
                    observed.guests.insert(
                        vmid,
                        ObservedGuest {
                            kind: *kind,
                            node: node.clone(),
                            power: Power::Stopped,
                            lock: None,
                            owner: Owner::Ours {
                                site: desired.site.clone(),
                                instance: name.clone(),
                                release: plan.release.clone(),
                                template: template.clone(),
                            },
                            settings: Some(Settings {
                                hostname: "template".into(),
                                cores: None,
                                memory: None,
                                disk,
                                net0: None,
                                onboot: false,
                                protection: false,
                                tags: ["ctrlable-template".to_owned(), "release-2026.06".to_owned()].into(),
                                claim: false,
                            }),
                        },
                    );
                    ledger.reservations.entry(name.clone()).or_insert(Reservation {
                        vmid,
                        mac: part.mac.unwrap(),
                        generation: Generation(0),
                        wiring: None,
                        guest: Made::NotYet,
                    });
                    ledger.reservations.get_mut(name).unwrap().guest = Made::ByUs;
                }
                Action::Configure { changes, .. } => {
                    let settings = observed.guests.get_mut(&vmid).unwrap().settings.as_mut().unwrap();
                    for change in changes {
                        match change.to.clone() {
                            Setting::Hostname(hostname) => settings.hostname = hostname.to_string(),
                            Setting::Cores(cores) => settings.cores = Some(cores),
                            Setting::Memory(memory) => settings.memory = Some(memory),
                            Setting::Net0(net) => {
                                settings.net0 = Some(ObservedNet {
                                    bridge: net.bridge,
                                    tag: net.tag,
                                    mac: net.mac,
                                    ip: Some(net.ip.map_or("dhcp".into(), |ip| ip.to_string())),
                                    gateway: net.gateway.map(|gateway| gateway.to_string()),
                                });
                            }
                            Setting::Onboot(on) => settings.onboot = on,
                            Setting::Protection(on) => settings.protection = on,
                            Setting::Tags(tags) => settings.tags = tags.into_iter().collect(),
                            Setting::NoClaim => settings.claim = false,
                        }
                    }
                }
                Action::Grow { to, .. } => {
                    observed.guests.get_mut(&vmid).unwrap().settings.as_mut().unwrap().disk = Some(*to);
                }
                Action::Wire => {
                    let reservation = ledger.reservations.get_mut(name).unwrap();
                    let Wished::Digest(digest) = &desired.instances[name].wiring else { panic!("nothing to wire") };
                    reservation.generation.0 += 1;
                    reservation.wiring = Some(digest.clone());
                }
                Action::Start { .. } => {
                    observed.guests.get_mut(&vmid).unwrap().power = Power::Running;
                    observed.agents.entry(name.clone()).or_default().window = Window::Open;
                }
                Action::Stop { .. } => observed.guests.get_mut(&vmid).unwrap().power = Power::Stopped,
                Action::AwaitEnrolment => observed.agents.entry(name.clone()).or_default().enrolled = true,
                Action::AwaitHealthy => {
                    observed.agents.entry(name.clone()).or_default().decided = ledger.reservations[name].generation;
                }
                Action::BackUp { .. } => {}
                Action::Destroy { .. } => {
                    let gone = observed.guests.remove(&vmid).unwrap();
                    assert_eq!(gone.power, Power::Stopped, "{vmid} was destroyed while it ran");
                    ledger.reservations.remove(name);
                    observed.agents.remove(name);
                }
            }
        }
    }
}

fn words(plan: &Plan, name: &str) -> Vec<&'static str> {
    plan.instance(&name.parse().unwrap()).unwrap().steps.iter().map(|step| step.action.word()).collect()
}

fn reason(plan: &Plan, name: &str) -> Option<&'static str> {
    Some(plan.instance(&name.parse().unwrap()).unwrap().blocked.as_ref()?.reason)
}

#[test]
fn a_new_instance_goes_from_clone_to_health() {
    let plan = plan(&desired(&site([("broker", instance("mqtt-broker"))])), &node(), &Ledger::default());
    assert_eq!(words(&plan, "broker"), ["clone", "configure", "wire", "start", "await-enrolment", "await-healthy"]);
    assert_eq!(plan.instances[0].vmid.unwrap().get(), 2000);
}

#[test]
fn a_running_guest_is_rewired_without_a_restart_and_the_others_are_left_alone() {
    let site = site([("broker", instance("mqtt-broker")), ("sensor", instance("sensor"))]);
    let (mut observed, mut ledger) = (node(), Ledger::default());
    let before = desired(&site);
    apply(&plan(&before, &observed, &ledger), &before, &mut observed, &mut ledger);
    assert!(plan(&before, &observed, &ledger).is_settled());
    let manifest = manifest();
    let after = Desired::from_parts(&site, &manifest, "r2", None, |name| {
        Wished::Digest(digest(&if name.as_str() == "sensor" { "w2".to_owned() } else { format!("w1 {name}") }))
    })
    .unwrap();
    let plan = plan(&after, &observed, &ledger);
    assert_eq!(words(&plan, "sensor"), ["wire", "await-healthy"]);
    assert!(words(&plan, "broker").is_empty());
}

#[test]
fn a_wire_step_names_the_secrets_that_changed() {
    let site = site([("sensor", instance("sensor"))]);
    let (mut observed, mut ledger) = (node(), Ledger::default());
    let wish = |content: &str, secrets: &[(&str, &str)]| {
        let secrets = secrets.iter().map(|(name, digest)| (name.parse().unwrap(), (*digest).to_owned())).collect();
        let digest = WiringDigest { content: content.into(), secrets };
        Desired::from_parts(&site, &manifest(), "r2", None, |_| Wished::Digest(digest.clone())).unwrap()
    };
    let before = wish("w1", &[("mqtt", "1"), ("pin", "1")]);
    apply(&plan(&before, &observed, &ledger), &before, &mut observed, &mut ledger);
    for (after, said) in [
        (wish("w2", &[("mqtt", "2"), ("pin", "1")]), "secret mqtt changed"),
        (wish("w2", &[("mqtt", "2"), ("pin", "2")]), "secrets mqtt, pin changed"),
        // Another secret under another name is another content, not a changed secret.
        (wish("w2", &[("mqtt", "1"), ("other", "3")]), "the assignment's content changed"),
    ] {
        let plan = plan(&after, &observed, &ledger);
        assert_eq!(words(&plan, "sensor"), ["wire", "await-healthy"]);
        assert_eq!(plan.instances[0].steps[0].because.observed, said);
    }
    // A ledger from before secrets were told apart.
    let known = ledger.reservations.values_mut().next().unwrap().wiring.as_mut().unwrap();
    known.secrets.clear();
    assert!(plan(&before, &observed, &ledger).is_settled());
}

#[test]
fn a_guest_that_is_not_ours_is_never_touched_and_its_number_never_taken() {
    let site = site([("broker", instance("mqtt-broker"))]);
    let mut observed = node();
    let foreign = ObservedGuest {
        kind: GuestKind::Lxc,
        node: "pve1".parse().unwrap(),
        power: Power::Running,
        lock: None,
        owner: Owner::Foreign,
        settings: None,
    };
    observed.guests.insert(Vmid::try_from(2000).unwrap(), foreign);
    let plan = plan(&desired(&site), &observed, &Ledger::default());
    assert_eq!(plan.instances.len(), 1);
    assert_eq!(plan.instances[0].vmid.unwrap().get(), 2001);
}

#[test]
fn a_fixed_number_that_is_taken_blocks() {
    let mut broker = instance("mqtt-broker");
    broker.vmid = Some(Vmid::try_from(2003).unwrap());
    let ledger = Ledger { taken: [Vmid::try_from(2003).unwrap()].into(), ..Ledger::default() };
    let plan = plan(&desired(&site([("broker", broker)])), &node(), &ledger);
    assert_eq!(reason(&plan, "broker"), Some("vmid-taken"));
}

#[test]
fn what_is_no_longer_asked_for_is_kept_unless_prune_is_on() {
    let both = site([("broker", instance("mqtt-broker")), ("sensor", instance("sensor"))]);
    let (mut observed, mut ledger) = (node(), Ledger::default());
    apply(&plan(&desired(&both), &observed, &ledger), &desired(&both), &mut observed, &mut ledger);
    let mut fewer = site([("broker", instance("mqtt-broker"))]);
    assert!(words(&plan(&desired(&fewer), &observed, &ledger), "sensor").is_empty());
    fewer.prune = Prune::Allow;
    assert_eq!(words(&plan(&desired(&fewer), &observed, &ledger), "sensor"), ["back-up", "stop", "destroy"]);
    for guest in observed.guests.values_mut() {
        guest.settings.as_mut().unwrap().protection = true;
    }
    assert_eq!(reason(&plan(&desired(&fewer), &observed, &ledger), "sensor"), Some("protected"));
    fewer.instances.clear();
    assert_eq!(reason(&plan(&desired(&fewer), &observed, &ledger), "sensor"), Some("prune-everything"));
}

#[test]
fn nothing_is_destroyed_without_a_place_for_its_backup() {
    let both = site([("broker", instance("mqtt-broker")), ("sensor", instance("sensor"))]);
    let (mut observed, mut ledger) = (node(), Ledger::default());
    apply(&plan(&desired(&both), &observed, &ledger), &desired(&both), &mut observed, &mut ledger);
    observed.storages.retain(|storage| !storage.content.contains("backup"));
    let mut fewer = site([("broker", instance("mqtt-broker"))]);
    fewer.prune = Prune::Allow;
    assert_eq!(reason(&plan(&desired(&fewer), &observed, &ledger), "sensor"), Some("no-backup-storage"));
}

#[test]
fn two_guests_with_one_marker_are_left_to_a_person() {
    let site = site([("broker", instance("mqtt-broker"))]);
    let (mut observed, mut ledger) = (node(), Ledger::default());
    apply(&plan(&desired(&site), &observed, &ledger), &desired(&site), &mut observed, &mut ledger);
    let twin = observed.guests.values().next().unwrap().clone();
    observed.guests.insert(Vmid::try_from(2005).unwrap(), twin);
    let plan = plan(&desired(&site), &observed, &ledger);
    assert_eq!(reason(&plan, "broker"), Some("duplicate-guest"));
    assert!(words(&plan, "broker").is_empty());
}

#[test]
fn a_node_without_the_template_blocks_that_instance_only() {
    let mut observed = node();
    observed.templates.remove(0);
    let site = site([("broker", instance("mqtt-broker")), ("sensor", instance("sensor"))]);
    let plan = plan(&desired(&site), &observed, &Ledger::default());
    assert_eq!(reason(&plan, "broker"), Some("template-missing"));
    assert_eq!(words(&plan, "sensor")[0], "clone");
}

#[test]
fn storage_trouble_blocks_with_its_name() {
    let site = site([("broker", instance("mqtt-broker"))]);
    let with = |change: &dyn Fn(&mut ObservedStorage)| {
        let mut observed = node();
        change(&mut observed.storages[0]);
        reason(&plan(&desired(&site), &observed, &Ledger::default()), "broker")
    };
    assert_eq!(with(&|storage| storage.available = 1), Some("storage-full"));
    assert_eq!(with(&|storage| storage.active = false), Some("storage-inactive"));
    assert_eq!(with(&|storage| storage.content.clear()), Some("storage-content"));
    assert_eq!(with(&|storage| storage.storage = "other".parse().unwrap()), Some("storage-missing"));
    assert_eq!(with(&|_| {}), None);
}

#[test]
fn an_old_node_and_a_locked_guest_block() {
    let site = site([("broker", instance("mqtt-broker"))]);
    let (mut observed, mut ledger) = (node(), Ledger::default());
    observed.version = Some("8.1".parse().unwrap());
    assert_eq!(reason(&plan(&desired(&site), &observed, &ledger), "broker"), Some("node-too-old"));
    observed.version = Some("8.2".parse().unwrap());
    apply(&plan(&desired(&site), &observed, &ledger), &desired(&site), &mut observed, &mut ledger);
    observed.guests.values_mut().next().unwrap().lock = Some("backup".into());
    assert_eq!(reason(&plan(&desired(&site), &observed, &ledger), "broker"), Some("guest-locked"));
}

#[test]
fn a_guest_that_never_enrolled_is_started_again_before_it_may() {
    let site = site([("broker", instance("mqtt-broker"))]);
    let (mut observed, mut ledger) = (node(), Ledger::default());
    apply(&plan(&desired(&site), &observed, &ledger), &desired(&site), &mut observed, &mut ledger);
    observed.agents.clear();
    let plan = plan(&desired(&site), &observed, &ledger);
    assert_eq!(words(&plan, "broker"), ["stop", "start", "await-enrolment", "await-healthy"]);
}

#[test]
fn a_lost_ledger_is_rebuilt_from_the_markers() {
    let site = site([("broker", instance("mqtt-broker")), ("sensor", instance("sensor"))]);
    let (mut observed, mut ledger) = (node(), Ledger::default());
    apply(&plan(&desired(&site), &observed, &ledger), &desired(&site), &mut observed, &mut ledger);
    let plan = plan(&desired(&site), &observed, &Ledger::default());
    for (part, vmid) in plan.instances.iter().zip([2000, 2001]) {
        assert_eq!(part.vmid.unwrap().get(), vmid);
        assert!(part.steps.iter().all(|step| step.action.word() != "clone" && step.action.word() != "configure"));
    }
}

#[test]
fn a_guest_that_a_lost_ledger_does_not_know_is_never_stopped() {
    let site = site([("broker", instance("mqtt-broker"))]);
    let (mut observed, mut ledger) = (node(), Ledger::default());
    apply(&plan(&desired(&site), &observed, &ledger), &desired(&site), &mut observed, &mut ledger);
    observed.agents.clear();
    assert_eq!(reason(&plan(&desired(&site), &observed, &Ledger::default()), "broker"), Some("agent-unknown"));
}

#[test]
fn a_guest_of_ours_that_cannot_be_recognised_gets_no_twin() {
    let site = site([("broker", instance("mqtt-broker"))]);
    let (mut observed, mut ledger) = (node(), Ledger::default());
    apply(&plan(&desired(&site), &observed, &ledger), &desired(&site), &mut observed, &mut ledger);
    let mut with = |owner: Owner| {
        observed.guests.values_mut().for_each(|guest| guest.owner = owner.clone());
        reason(&plan(&desired(&site), &observed, &ledger), "broker")
    };
    assert_eq!(with(Owner::Foreign), Some("guest-disowned"), "somebody edited its description");
    assert_eq!(with(Owner::Unknown), Some("guest-unreadable"), "it is being migrated");
}

#[test]
fn a_mac_address_that_another_guest_has_blocks() {
    let site_one = site([("broker", instance("mqtt-broker"))]);
    let (mut observed, mut ledger) = (node(), Ledger::default());
    apply(&plan(&desired(&site_one), &observed, &ledger), &desired(&site_one), &mut observed, &mut ledger);
    let mut sensor = instance("sensor");
    sensor.network.mac = Some(ledger.reservations.values().next().unwrap().mac);
    let both = site([("broker", instance("mqtt-broker")), ("sensor", sensor)]);
    assert_eq!(reason(&plan(&desired(&both), &observed, &ledger), "sensor"), Some("mac-taken"));
}

#[test]
fn a_copy_of_an_unwanted_guest_keeps_both() {
    let both = site([("broker", instance("mqtt-broker")), ("sensor", instance("sensor"))]);
    let (mut observed, mut ledger) = (node(), Ledger::default());
    apply(&plan(&desired(&both), &observed, &ledger), &desired(&both), &mut observed, &mut ledger);
    let copy = observed.guests[&Vmid::try_from(2001).unwrap()].clone();
    observed.guests.insert(Vmid::try_from(300).unwrap(), copy);
    let mut fewer = site([("broker", instance("mqtt-broker"))]);
    fewer.prune = Prune::Allow;
    let plan = plan(&desired(&fewer), &observed, &ledger);
    assert!(plan.instances.iter().all(|part| part.steps.is_empty()), "{plan:?}");
}

#[test]
fn tags_of_others_stay_and_those_of_the_template_go() {
    let site = site([("broker", instance("mqtt-broker"))]);
    let (mut observed, mut ledger) = (node(), Ledger::default());
    apply(&plan(&desired(&site), &observed, &ledger), &desired(&site), &mut observed, &mut ledger);
    let tags = &mut observed.guests.values_mut().next().unwrap().settings.as_mut().unwrap().tags;
    tags.extend(["site-berlin".to_owned(), "template-mqtt-broker".to_owned()]);
    let plan = plan(&desired(&site), &observed, &ledger);
    let Action::Configure { changes, .. } = &plan.instances[0].steps[0].action else { panic!("{plan:?}") };
    let Setting::Tags(tags) = &changes[0].to else { panic!("{changes:?}") };
    assert_eq!(tags.join(";"), "ctrlable;instance-broker;site-acme-hq;site-berlin");
}

#[test]
fn a_missing_secret_blocks_its_instance_only() {
    let site = site([("broker", instance("mqtt-broker")), ("sensor", instance("sensor"))]);
    let manifest = manifest();
    let desired = Desired::from_parts(&site, &manifest, "r", None, |name| {
        if name.as_str() == "sensor" {
            Wished::Missing { reason: "secret-missing", message: "m".into(), remedy: "r".into() }
        } else {
            Wished::Digest(digest("w"))
        }
    })
    .unwrap();
    let plan = plan(&desired, &node(), &Ledger::default());
    assert_eq!(reason(&plan, "sensor"), Some("secret-missing"));
    assert_eq!(words(&plan, "broker")[0], "clone");
}

#[test]
fn a_mac_address_is_the_same_every_time_and_avoids_what_is_taken() {
    let (site, name) = ("acme-hq".parse().unwrap(), "broker".parse().unwrap());
    let first = mac_for(&site, &name, &BTreeSet::new()).unwrap();
    assert_eq!(mac_for(&site, &name, &BTreeSet::new()), Some(first));
    let second = mac_for(&site, &name, &[first].into()).unwrap();
    assert_ne!(first, second);
    assert!(first.to_string().starts_with("BC:24:11:"));
}

#[test]
fn the_text_names_step_field_and_hash() {
    let plan = plan(&desired(&site([("broker", instance("mqtt-broker"))])), &node(), &Ledger::default());
    let text = anstream::adapter::strip_str(&render(&plan, &Palette::default())).to_string();
    assert!(text.contains("+ clone mqtt-broker (9000) on pve1 to local-lvm, pool ctrlable"), "{text}");
    assert!(text.contains("instances.broker"), "{text}");
    assert!(text.contains(&plan.hash()[..12]), "{text}");
}

/// Sites over a small world, so that names, numbers and addresses collide often.
fn sites() -> impl Strategy<Value = Site> {
    let names = ["a", "b", "c", "d", "e"];
    let one = (
        prop::sample::select(TEMPLATES.to_vec()),
        prop::option::of(1u32..4),
        prop::option::of(2u32..6),
        prop::option::of(10u8..14),
        any::<bool>(),
        prop::option::of(2000u32..2010),
    )
        .prop_map(|(template, cpu, disk, host, protect, vmid)| {
            let mut wished = instance(template);
            wished.resources = ResourceOverride { cpu, ram: None, disk };
            if let Some(host) = host {
                let cidr = format!("192.168.20.{host}/24").parse().unwrap();
                wished.network.address = Address::Static { cidr, gateway: None };
            }
            wished.protect = if protect { Protection::Protected } else { Protection::Unprotected };
            wished.vmid = vmid.map(|vmid| Vmid::try_from(vmid).unwrap());
            wished
        });
    (prop::collection::btree_map(prop::sample::select(names.to_vec()), one, 0..5), any::<bool>()).prop_map(
        |(instances, prune)| {
            let mut site = site(instances);
            // What `document::site` guarantees: no number twice.
            let mut seen = BTreeSet::new();
            for wished in site.instances.values_mut() {
                if wished.vmid.is_some_and(|vmid| !seen.insert(vmid)) {
                    wished.vmid = None;
                }
            }
            site.prune = if prune { Prune::Allow } else { Prune::Refuse };
            site
        },
    )
}

/// A node after some earlier sites were applied to it.
fn history(earlier: &[Site]) -> (Observed, Ledger) {
    let (mut observed, mut ledger) = (node(), Ledger::default());
    for site in earlier {
        let desired = desired(site);
        let plan = plan(&desired, &observed, &ledger);
        apply(&plan, &desired, &mut observed, &mut ledger);
    }
    (observed, ledger)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn planning_twice_gives_the_same(earlier in prop::collection::vec(sites(), 0..3), site in sites()) {
        let (observed, ledger) = history(&earlier);
        let desired = desired(&site);
        let (one, two) = (plan(&desired, &observed, &ledger), plan(&desired, &observed, &ledger));
        prop_assert_eq!(one.hash(), two.hash());
        prop_assert_eq!(one, two);
    }

    #[test]
    fn applying_and_planning_again_leaves_nothing_to_do(
        earlier in prop::collection::vec(sites(), 0..3), site in sites(), wiring in "w[12]"
    ) {
        let (mut observed, mut ledger) = history(&earlier);
        let desired = desired_with(&site, &wiring);
        // The second round is for a number that only became free in the first.
        for _ in 0..2 {
            let next = plan(&desired, &observed, &ledger);
            apply(&next, &desired, &mut observed, &mut ledger);
        }
        let last = plan(&desired, &observed, &ledger);
        for part in &last.instances {
            prop_assert!(part.steps.is_empty(), "{} still has {:?}", part.instance, part.steps);
        }
    }

    #[test]
    fn the_order_of_what_was_observed_is_immaterial(
        earlier in prop::collection::vec(sites(), 0..3), site in sites(), seed in any::<u64>()
    ) {
        let (observed, ledger) = history(&earlier);
        let mut shuffled = observed.clone();
        let turn = |len: usize| (seed as usize) % len.max(1);
        let (templates, storages) = (turn(shuffled.templates.len()), turn(shuffled.storages.len()));
        shuffled.templates.rotate_left(templates);
        shuffled.storages.rotate_left(storages);
        let desired = desired(&site);
        prop_assert_eq!(plan(&desired, &observed, &ledger).hash(), plan(&desired, &shuffled, &ledger).hash());
    }

    #[test]
    fn no_two_guests_share_a_number_or_a_mac_address(
        earlier in prop::collection::vec(sites(), 0..3), site in sites()
    ) {
        let (mut observed, mut ledger) = history(&earlier);
        let desired = desired(&site);
        let plan = plan(&desired, &observed, &ledger);
        apply(&plan, &desired, &mut observed, &mut ledger);
        let macs: Vec<Mac> = observed.guests.values()
            .filter_map(|guest| guest.settings.as_ref()?.net0.as_ref()?.mac).collect();
        prop_assert_eq!(macs.iter().collect::<BTreeSet<_>>().len(), macs.len());
        let owners: Vec<(InstanceName, ReleaseId)> = observed.guests.values().filter_map(|guest| match &guest.owner {
            Owner::Ours { instance, release, .. } => Some((instance.clone(), release.clone())),
            Owner::Foreign | Owner::Unknown => None,
        }).collect();
        prop_assert_eq!(owners.iter().collect::<BTreeSet<_>>().len(), owners.len());
    }

    #[test]
    fn what_is_protected_is_never_destroyed(earlier in prop::collection::vec(sites(), 1..3), site in sites()) {
        let (observed, ledger) = history(&earlier);
        let plan = plan(&desired(&site), &observed, &ledger);
        for part in plan.instances.iter().filter(|part| part.steps.iter().any(|step| step.action.word() == "destroy")) {
            let guest = &observed.guests[&part.vmid.unwrap()];
            prop_assert!(!guest.settings.as_ref().unwrap().protection);
        }
    }
}
