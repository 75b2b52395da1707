#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use super::*;
use contract::ids::InstanceName;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

fn reserve(store: &Store, name: &str, vmid: u32) -> InstanceName {
    let instance: InstanceName = name.parse().unwrap();
    store
        .reserve(&Reservation {
            instance: &instance,
            vmid: vmid.try_into().unwrap(),
            mac: contract::ids::Mac::new([0xBC, 0x24, 0x11, 0, 0, vmid as u8]).unwrap(),
            hostname: &format!("ctrlable-s-{name}").parse().unwrap(),
            release: &"2026.06".parse().unwrap(),
            template: &"zigbee2mqtt".parse().unwrap(),
        })
        .unwrap();
    instance
}

#[test]
fn a_reservation_survives_reopening() {
    let (dir, store) = store();
    let name = reserve(&store, "zigbee", 2000);
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.instance(&name).unwrap().unwrap().vmid.get(), 2000);
    assert_eq!(Store::open_read_only(dir.path()).unwrap().instances().unwrap().len(), 1);
}

#[test]
fn one_number_belongs_to_one_instance() {
    let (_dir, store) = store();
    reserve(&store, "zigbee", 2000);
    let other: InstanceName = "frigate".parse().unwrap();
    let clash = store.reserve(&Reservation {
        instance: &other,
        vmid: 2000.try_into().unwrap(),
        mac: "BC:24:11:00:00:99".parse().unwrap(),
        hostname: &"ctrlable-s-frigate".parse().unwrap(),
        release: &"2026.06".parse().unwrap(),
        template: &"frigate".parse().unwrap(),
    });
    assert_eq!(clash.unwrap_err().reason(), "ledger-io");
}

#[test]
fn a_generation_grows_only_when_the_content_changes() {
    let (_dir, store) = store();
    let name = reserve(&store, "zigbee", 2000);
    let secrets = |digest: &str| BTreeMap::from([("mqtt".parse().unwrap(), digest.to_owned())]);
    assert_eq!(store.wire(&name, "a", &secrets("1"), "r1").unwrap().0, 1);
    assert_eq!(store.wire(&name, "a", &secrets("1"), "r2").unwrap().0, 1);
    assert_eq!(store.wire(&name, "b", &secrets("2"), "r2").unwrap().0, 2);
    assert_eq!(store.instance(&name).unwrap().unwrap().secrets, secrets("2"));
}

#[test]
fn trouble_waits_longer_each_time_and_ends_when_something_goes_right() {
    let (_dir, store) = store();
    let name = reserve(&store, "zigbee", 2000);
    let wait = |store: &Store| store.instance(&name).unwrap().unwrap().trouble.unwrap().retry_at - now();
    store.note_trouble(&name, "storage-full", "no space").unwrap();
    let first = wait(&store);
    store.note_trouble(&name, "storage-full", "no space").unwrap();
    store.note_trouble(&name, "storage-full", "no space").unwrap();
    assert!(wait(&store) > first);
    for _ in 0..40 {
        store.note_trouble(&name, "storage-full", "no space").unwrap();
    }
    assert!(wait(&store) <= 300);
    store.clear_trouble(&name).unwrap();
    assert_eq!(store.instance(&name).unwrap().unwrap().trouble, None);
}

#[test]
fn an_open_step_is_found_after_a_restart_with_its_task() {
    let (dir, store) = store();
    let name = reserve(&store, "zigbee", 2000);
    let id = store
        .intend(&JournalEntry {
            instance: &name,
            action: "clone",
            vmid: 2000.try_into().unwrap(),
            node: Some(&"pve1".parse().unwrap()),
            detail: "clone",
            because: "instances.zigbee",
            revision: "r",
            plan: "p",
        })
        .unwrap();
    store.submitted(id, "UPID:pve1:…").unwrap();
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.open_entries().unwrap()[0].upid.as_deref(), Some("UPID:pve1:…"));
    store.ended(id, JournalState::Done, None).unwrap();
    assert!(store.open_entries().unwrap().is_empty());
    let vmid = 2000.try_into().unwrap();
    assert!(!store.is_in_doubt(&name, "clone", vmid).unwrap());
    store.ended(id, JournalState::Interrupted, None).unwrap();
    assert!(store.is_in_doubt(&name, "clone", vmid).unwrap());
}

#[test]
fn a_newer_schema_is_refused_not_guessed() {
    let (dir, store) = store();
    store.with("written", |db| db.pragma_update(None, "user_version", 99)).unwrap();
    drop(store);
    assert_eq!(Store::open(dir.path()).unwrap_err().reason(), "ledger-too-new");
    assert_eq!(Store::open_read_only(dir.path()).unwrap_err().reason(), "ledger-too-new");
}

/// A key that nobody can use, but that reads as one.
fn host_keys(seed: &str) -> contract::host_keys::HostKeys {
    use base64::Engine;
    let blob = [b"\0\0\0\x0bssh-ed25519", seed.as_bytes()].concat();
    let text = format!("ssh-ed25519 {}", base64::prelude::BASE64_STANDARD.encode(blob));
    vec![contract::host_keys::HostKey::try_from(text).unwrap()].try_into().unwrap()
}

#[test]
fn a_claim_works_once_and_for_its_window() {
    let (_dir, store) = store();
    let one = reserve(&store, "one", 2000);
    let digest = |byte: &str| byte.repeat(32).parse().unwrap();
    let enrol = |key: &str, machine: &str| {
        let identity = contract::enrolment::Identity {
            machine_id: digest(machine),
            sealed_machine_id: None,
            ssh_host_keys: host_keys(machine),
        };
        let (certificate, public_key) = (digest(machine), digest(key));
        let enrolment = Enrolment {
            instance: &one,
            certificate: &certificate,
            public_key: &public_key,
            identity: &identity,
            address: [127, 0, 0, 1].into(),
            expires_at: now() + 1000,
            ca: 1,
        };
        let asked = store.may_enrol(&enrolment, 900).unwrap();
        let done = store.enrol(&enrolment, 900).unwrap();
        assert_eq!(asked, done, "what may enrol is what does");
        done
    };
    assert_eq!(enrol("a1", "01"), Err(Conflict::WindowClosed));
    store.open_window(&one, Some("digest")).unwrap();
    assert_eq!(enrol("a1", "01"), Ok(()));
    assert_eq!(enrol("a2", "02"), Err(Conflict::ClaimUsed));
    // The answer was lost, says the same guest with the same key.
    assert_eq!(enrol("a1", "01"), Ok(()));
    store.forget_agent(&one).unwrap();
    assert_eq!(enrol("a2", "02"), Err(Conflict::ClaimUsed));
    store.open_window(&one, Some("another")).unwrap();
    assert_eq!(enrol("a2", "02"), Ok(()));
}

#[test]
fn conflicts_stay_until_somebody_looks_and_are_bounded() {
    let (_dir, store) = store();
    let one = reserve(&store, "one", 2000);
    let mac = "02:00:00:00:00:09".parse().unwrap();
    for last in 0..40 {
        store.note_conflict(&one, &format!("192.0.2.{last}"), "enrol-already", mac).unwrap();
        store.note_conflict(&one, &format!("192.0.2.{last}"), "enrol-already", mac).unwrap();
    }
    let found = store.conflicts().unwrap();
    assert_eq!((found.len(), found[0].address.as_str()), (16, "192.0.2.39"));
    store.with("written", |db| db.execute("UPDATE conflicts SET at = 1 WHERE address = '192.0.2.39'", [])).unwrap();
    assert_eq!(store.conflicts().unwrap().len(), 15);
    assert_eq!(store.clear_conflicts().unwrap(), 16);
    assert!(store.conflicts().unwrap().is_empty());
}

#[test]
fn identities_are_unique_across_the_site() {
    let (_dir, store) = store();
    let one = reserve(&store, "one", 2000);
    let two = reserve(&store, "two", 2001);
    let digest = |byte: &str| byte.repeat(32).parse().unwrap();
    let identity = |machine: &str, key: &str| contract::enrolment::Identity {
        machine_id: digest(machine),
        sealed_machine_id: None,
        ssh_host_keys: host_keys(key),
    };
    let enrol = |name: &InstanceName, certificate: &str, identity: contract::enrolment::Identity| {
        store
            .enrol(
                &Enrolment {
                    instance: name,
                    certificate: &digest(certificate),
                    public_key: &digest(certificate),
                    expires_at: now() + 1000,
                    ca: 1,
                    identity: &identity,
                    address: [127, 0, 0, 1].into(),
                },
                900,
            )
            .unwrap()
    };
    assert_eq!(enrol(&one, "a9", identity("01", "k1")), Err(Conflict::WindowClosed));
    store.open_window(&one, None).unwrap();
    store.open_window(&two, None).unwrap();
    assert_eq!(enrol(&one, "aa", identity("01", "k1")), Ok(()));
    assert_eq!(enrol(&one, "ab", identity("09", "k9")), Err(Conflict::AlreadyEnrolled));
    assert_eq!(enrol(&two, "ac", identity("01", "k2")), Err(Conflict::SameMachineId(one.clone())));
    assert_eq!(enrol(&two, "ad", identity("02", "k1")), Err(Conflict::SameHostKey(one.clone())));
    assert_eq!(enrol(&two, "ae", identity("02", "k2")), Ok(()));
    assert_eq!(store.certificate(&digest("ae")).unwrap().map(|record| record.instance), Some(two));
}

#[test]
fn a_ledger_that_was_told_no_floor_says_so() {
    use crate::trust::Numbers;
    let (dir, store) = store();
    assert_eq!(store.floor().unwrap(), None);
    assert!(!store.raise_floor(Numbers::default()).unwrap(), "nothing moved");
    assert_eq!(store.floor().unwrap(), Some(FloorRecord::default()));
    let numbers = Numbers { keys: 2, channels: 17, dealers: 3 };
    assert!(store.raise_floor(numbers).unwrap());
    assert!(!store.raise_floor(Numbers { channels: 16, ..numbers }).unwrap());
    let mut record = store.floor().unwrap().unwrap();
    record.floor.time = Some("2026-11-20T12:00:00Z".parse().unwrap());
    record.floor.keys.digest = Some("0af5".repeat(16).parse().unwrap());
    record.evidence = Some("{}".into());
    record.revision = Some("4f".repeat(20).parse().unwrap());
    store.set_floor(&record).unwrap();
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.floor().unwrap(), Some(record));
}
