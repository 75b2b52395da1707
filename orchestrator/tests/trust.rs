//! Which revisions of a fleet repository are believed. Each refusal is one test named after the attack; what it does just
//! before or after is the same without the flaw, and is accepted.
#![allow(clippy::unwrap_used, clippy::panic)]

mod source_remote;
mod trust_fleet;

use std::fs;

use orchestrator::source::{Checkout, Limits, Repository, Settings};
use orchestrator::trust::{CommitRule, HistoryRule, KeySet, Memory, check, verify, verify_hq, verify_release};
use sha2::{Digest, Sha256};
use source_remote::Remote;
use trust_fleet::{Fleet, MANIFEST, SITE, SITE_FILE, make_key, site};

#[test]
fn signed_release_and_fitting_site() {
    let mut fleet = Fleet::new();
    let verified = fleet.publish().unwrap();
    assert_eq!(verified.revision().as_str(), fleet.remote.git(&["rev-parse", "HEAD"]));
    assert_eq!(verified.site().site.as_str(), "acme-hq");
    assert_eq!(verified.release().id().as_str(), "2026.06");
    assert_eq!(verified.release().digest().as_str(), hex::encode(Sha256::digest(MANIFEST)));
    assert_eq!(verified.release().manifest().templates.len(), 1);
    assert_eq!(verified.release().place("templates.zigbee2mqtt.builder").line, 7);
    assert_eq!(verified.place("instances.zigbee.network.ip").line, 12);
    assert_eq!(verified.place("instances.zigbee.network.ip").file, SITE_FILE);
    assert!(fleet.keys.ids().eq(verified.signatures().by.keys().copied()));
    assert!(verified.signatures().vouched() <= jiff::Timestamp::now());

    verified.remember(&mut fleet.memory);
    assert_eq!(fleet.memory.accepted.as_ref(), Some(verified.revision()));
    assert_eq!(fleet.memory.releases.get(verified.release().id()), Some(verified.release().digest()));
}

#[test]
fn unsigned() {
    let mut fleet = Fleet::new();
    fleet.remote.remove("releases/2026.06.yaml.minisig");
    let said = fleet.refused("release-unsigned");
    assert!(said.contains("there is no releases/2026.06.yaml.minisig"), "{said}");
    fleet.sign("2026.06", "hq");
    fleet.accept();
}

#[test]
fn tampered_manifest() {
    let mut fleet = Fleet::new();
    fleet.change("releases/2026.06.yaml", "v2026.05.3", "v2026.05.4");
    fleet.refused("release-signature-wrong");
    fleet.change("releases/2026.06.yaml", "v2026.05.4", "v2026.05.3");
    fleet.accept();
}

/// Not even a parser sees what nobody signed.
#[test]
fn tampered_into_nonsense() {
    let mut fleet = Fleet::new();
    fleet.remote.write("releases/2026.06.yaml", [0xff, 0xfe, 0x00]);
    fleet.refused("release-signature-wrong");
}

#[test]
fn tampered_signature() {
    let mut fleet = Fleet::new();
    let good = fs::read_to_string(fleet.file("releases/2026.06.yaml.minisig")).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    for bad in [
        String::new(),
        "signed, honestly\n".to_owned(),
        [lines[0], &lines[1].replace(&lines[1][40..41], "!"), lines[2], lines[3]].join("\n"),
        [lines[0], lines[1], lines[2], &lines[3][..40]].join("\n"),
        [lines[0], lines[1], lines[2]].join("\n"),
    ] {
        fleet.remote.write("releases/2026.06.yaml.minisig", bad);
        fleet.refused("release-signature-wrong");
    }
    // The first line is protected by nothing and means nothing.
    fleet.remote.write("releases/2026.06.yaml.minisig", good.replacen("HQ", "nobody", 1));
    fleet.accept();
}

#[test]
fn tampered_trusted_comment() {
    let mut fleet = Fleet::new();
    fleet.change("releases/2026.06.yaml.minisig", "ctrlable release 2026.06", "ctrlable release 2026.07");
    fleet.refused("release-signature-wrong");
    fleet.change("releases/2026.06.yaml.minisig", "ctrlable release 2026.07", "ctrlable release 2026.06");
    fleet.accept();
}

#[test]
fn signature_larger_than_any() {
    let mut fleet = Fleet::new();
    let good = fs::read_to_string(fleet.file("releases/2026.06.yaml.minisig")).unwrap();
    let padded = |bytes| good.replacen("HQ", &"x".repeat(bytes), 1);
    fleet.remote.write("releases/2026.06.yaml.minisig", padded(16 << 10));
    fleet.refused("too-large");
    fleet.remote.write("releases/2026.06.yaml.minisig", padded(8 << 10));
    fleet.accept();
}

#[test]
fn signed_with_an_unknown_key() {
    let mut fleet = Fleet::new();
    let stranger = make_key(&fleet.remote, "stranger");
    fleet.sign("2026.06", "stranger");
    let said = fleet.refused("release-key-unknown");
    let known = fleet.keys.ids().next().unwrap().to_string();
    let stranger = KeySet::parse(&[stranger]).unwrap();
    assert!(said.contains(&known) && said.contains(&stranger.ids().next().unwrap().to_string()), "{said}");
    // The same bytes are accepted where that key is trusted.
    fleet.keys = stranger;
    fleet.accept();
}

/// The stranger's signature, carrying the id of HQ's key.
#[test]
fn signed_under_the_name_of_another_key() {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    let mut fleet = Fleet::new();
    make_key(&fleet.remote, "stranger");
    let path = "releases/2026.06.yaml.minisig";
    let hq = fs::read_to_string(fleet.file(path)).unwrap();
    fleet.sign("2026.06", "stranger");
    let text = fs::read_to_string(fleet.file(path)).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut signature = STANDARD.decode(&lines[1]).unwrap();
    signature[2..10].copy_from_slice(&STANDARD.decode(hq.lines().nth(1).unwrap()).unwrap()[2..10]);
    lines[1] = STANDARD.encode(signature);
    fleet.remote.write(path, lines.join("\n"));
    fleet.refused("release-signature-wrong");
    fleet.remote.write(path, hq);
    fleet.accept();
}

#[test]
fn signed_but_not_as_a_release() {
    let mut fleet = Fleet::new();
    fleet.sign_saying("2026.06", "timestamp:1700000000\tfile:2026.06.yaml\thashed");
    fleet.refused("release-comment-missing");
    fleet.sign_saying("2026.06", "ctrlable release 2026.06 signed 2026-11-20T12:00:00Z");
    fleet.accept();
}

/// The manifest of an old release with its good signature, put in place of the one that is asked for.
#[test]
fn another_release_in_its_place() {
    let mut fleet = Fleet::new();
    let path = |id: &str| format!("releases/{id}.yaml");
    let older = MANIFEST.replace("2026.06", "2026.05");
    fleet.remote.write(&path("2026.05"), &older);
    fleet.sign("2026.05", "hq");
    let signature = fs::read(fleet.file("releases/2026.05.yaml.minisig")).unwrap();
    fleet.remote.write(&path("2026.06"), &older).write("releases/2026.06.yaml.minisig", signature);
    let said = fleet.refused("release-comment-mismatch");
    assert!(said.contains("is the signature of release 2026.05, not of release 2026.06"), "{said}");
    // The older one itself is there for a site that names it.
    fleet.change(SITE_FILE, "2026.06", "2026.05");
    fleet.accept();
}

/// HQ itself signs a manifest that says another id than its file and its signature.
#[test]
fn manifest_that_says_another_id() {
    let mut fleet = Fleet::new();
    fleet.change("releases/2026.06.yaml", "\"2026.06\"", "\"2026.07\"");
    fleet.sign_saying("2026.06", "ctrlable release 2026.06 signed 2026-11-20T12:00:00Z");
    let said = fleet.refused("name-mismatch");
    assert!(said.contains("releases/2026.06.yaml:1"), "{said}");
    fleet.change("releases/2026.06.yaml", "\"2026.07\"", "\"2026.06\"");
    fleet.sign_saying("2026.06", "ctrlable release 2026.06 signed 2026-11-20T12:00:00Z");
    fleet.accept();
}

/// Even HQ cannot change what was published.
#[test]
fn published_release_that_changed() {
    let mut fleet = Fleet::new();
    fleet.accept();
    fleet.change("releases/2026.06.yaml", "ram: 2048", "ram: 4096");
    fleet.sign("2026.06", "hq");
    let said = fleet.refused("release-changed");
    assert!(said.contains(&hex::encode(Sha256::digest(MANIFEST))) && said.contains("2026.06.1"), "{said}");
    // A site that never saw the first one takes it, and one that did takes it under a new id.
    let memory = std::mem::take(&mut fleet.memory);
    fleet.publish().unwrap();
    fleet.memory = memory;
    let repaired = fs::read_to_string(fleet.file("releases/2026.06.yaml")).unwrap();
    fleet.remote.write("releases/2026.06.1.yaml", repaired.replace("\"2026.06\"", "\"2026.06.1\""));
    fleet.sign("2026.06.1", "hq");
    fleet.change(SITE_FILE, "\"2026.06\"", "\"2026.06.1\"");
    fleet.accept();
    // Both are remembered.
    assert_eq!(fleet.memory.releases.len(), 2);
}

/// A new signature over the same bytes is the same release.
#[test]
fn signed_again() {
    let mut fleet = Fleet::new();
    fleet.accept();
    fleet.sign("2026.06", "hq");
    fleet.accept();
}

#[test]
fn signed_manifest_that_is_not_well_formed() {
    let mut fleet = Fleet::new();
    fleet.change("releases/2026.06.yaml", "kind: lxc", "kind: pod");
    fleet.sign_saying("2026.06", "ctrlable release 2026.06 signed 2026-11-20T12:00:00Z");
    fleet.refused("bad-kind");
}

#[test]
fn site_names_a_release_that_is_not_there() {
    let mut fleet = Fleet::new();
    fleet.change(SITE_FILE, "2026.06", "2026.07");
    let said = fleet.refused("unknown-release");
    assert!(said.contains(&format!("{SITE_FILE}:3")) && said.contains("2026.06"), "{said}");
    fleet.change(SITE_FILE, "2026.07", "2026.06");
    fleet.accept();
}

#[test]
fn site_that_is_not_there() {
    let mut fleet = Fleet::new();
    fleet.remote.write("sites/acme-lab/site.yaml", "x").write("sites/zeta/site.yaml", "x").remove(SITE_FILE);
    let said = fleet.refused("site-missing");
    assert!(said.contains("there are acme-lab, zeta"), "{said}");
    fleet.remote.write(SITE_FILE, SITE);
    fleet.accept();
}

#[test]
fn site_of_another_name() {
    let mut fleet = Fleet::new();
    fleet.change(SITE_FILE, "site: acme-hq", "site: acme-lab");
    fleet.refused("name-mismatch");
    fleet.change(SITE_FILE, "site: acme-lab", "site: acme-hq");
    fleet.accept();
}

#[test]
fn site_that_is_not_well_formed() {
    let mut fleet = Fleet::new();
    fleet.change(SITE_FILE, "network:", "netwrok:");
    let said = fleet.refused("unknown-field");
    assert!(said.contains(&format!("{SITE_FILE}:12")) && said.contains("did you mean `network`?"), "{said}");
    fleet.change(SITE_FILE, "netwrok:", "network:");
    fleet.accept();
}

#[test]
fn site_that_does_not_fit_its_release() {
    let mut fleet = Fleet::new();
    fleet.change(SITE_FILE, "template: zigbee2mqtt", "template: zigbeemqtt");
    let said = fleet.refused("unknown-template");
    assert!(said.contains(&format!("{SITE_FILE}:11")) && said.contains("zigbee2mqtt"), "{said}");
    fleet.change(SITE_FILE, "template: zigbeemqtt", "template: zigbee2mqtt");
    fleet.accept();
}

/// 64 MiB of blanks travel as some kilobytes.
#[test]
fn site_that_unpacks_to_a_bomb() {
    let mut fleet = Fleet::new();
    fleet.remote.write(SITE_FILE, vec![b' '; 64 << 20]);
    fleet.refused("too-large");
    fleet.remote.write(SITE_FILE, format!("{SITE}{}", " ".repeat(100_000)));
    fleet.accept();
}

#[test]
fn site_beyond_the_limit_of_a_site() {
    let mut fleet = Fleet::new();
    fleet.remote.write(SITE_FILE, format!("{SITE}#{}\n", " ".repeat(512 << 10)));
    fleet.refused("too-large");
}

#[test]
fn site_behind_a_symbolic_link() {
    let mut fleet = Fleet::new();
    fleet.remote.git(&["rm", "--quiet", "--cached", SITE_FILE]);
    fleet.remote.stage("120000", "../../releases/2026.06.yaml", SITE_FILE);
    fleet.remote.commit_index("link");
    fleet.remote.push();
    let error = fleet.judge(None).unwrap_err();
    assert_eq!(error.reason(), "source-wrong-entry");
    assert!(error.to_string().contains("is a symbolic link"), "{error}");
}

#[test]
fn signature_behind_a_symbolic_link() {
    let mut fleet = Fleet::new();
    let signature = "releases/2026.06.yaml.minisig";
    fleet.remote.git(&["rm", "--quiet", "--cached", signature]);
    fleet.remote.stage("120000", "/etc/hostname", signature);
    fleet.remote.commit_index("link");
    fleet.remote.push();
    assert_eq!(fleet.judge(None).unwrap_err().reason(), "source-wrong-entry");
}

#[test]
fn rewritten_history() {
    let mut fleet = Fleet::new();
    let root = fleet.remote.git(&["rev-parse", "HEAD"]);
    //  root ── a ── b     accepted: a, then b
    //   └───── c          force-pushed: as good as a and b, but they are gone
    fleet.change(SITE_FILE, "ip: dhcp", "ip: dhcp, vlan: 20");
    fleet.accept();
    fleet.change(SITE_FILE, "vlan: 20", "vlan: 30");
    let b = fleet.accept();
    fleet.remote.git(&["reset", "--quiet", "--hard", &root]);
    fleet.change(SITE_FILE, "ip: dhcp", "ip: dhcp, vlan: 40");
    let said = fleet.refused("history-rewritten");
    let c = fleet.remote.git(&["rev-parse", "HEAD"]);
    assert!(said.contains(b.as_str()) && said.contains(&format!("ctrlable accept-rewrite {c}")), "{said}");
    // It stays refused, however often it is fetched.
    assert_eq!(fleet.judge(None).unwrap_err().reason(), "history-rewritten");

    //  root ── c ── d     an operator names c, but d is there by now
    fleet.change(SITE_FILE, "vlan: 40", "vlan: 50");
    let d = fleet.remote.publish("d");
    let c = c.parse().unwrap();
    assert_eq!(fleet.judge(Some(&c)).unwrap_err().reason(), "history-rewritten");
    let verified = fleet.judge(Some(&d)).unwrap();
    verified.remember(&mut fleet.memory);
    assert_eq!(fleet.judge(None).unwrap().revision(), &d);
}

#[test]
fn rewound_history() {
    let mut fleet = Fleet::new();
    //  a ── b     accepted: b. Then main is set back to a, which was good once.
    let a = fleet.accept();
    fleet.change(SITE_FILE, "ip: dhcp", "ip: dhcp, vlan: 20");
    let b = fleet.accept();
    fleet.remote.git(&["reset", "--quiet", "--hard", a.as_str()]);
    fleet.remote.push();
    assert_eq!(fleet.judge(None).unwrap_err().reason(), "history-rewritten");
    fleet.remote.git(&["reset", "--quiet", "--hard", b.as_str()]);
    fleet.remote.push();
    fleet.judge(None).unwrap();
}

/// The memory outlives the copy, so losing the copy is no way around it.
#[test]
fn rewound_history_with_the_copy_lost() {
    let mut fleet = Fleet::new();
    let a = fleet.accept();
    fleet.change(SITE_FILE, "ip: dhcp", "ip: dhcp, vlan: 20");
    let b = fleet.accept();
    fs::remove_dir_all(fleet.remote.state()).unwrap();
    fleet.remote.git(&["reset", "--quiet", "--hard", a.as_str()]);
    fleet.remote.push();
    fleet.repository = fleet.remote.open();
    assert_eq!(fleet.judge(None).unwrap_err().reason(), "history-rewritten");
    fleet.remote.git(&["reset", "--quiet", "--hard", b.as_str()]);
    fleet.remote.push();
    fleet.judge(None).unwrap();
}

/// A refused revision in between does not stand in the way of the good one after it, and does not become the past that
/// later ones are measured by.
#[test]
fn refused_revision_in_between() {
    let mut fleet = Fleet::new();
    //  a ── x ── b     x is tampered with
    let a = fleet.accept();
    fleet.change("releases/2026.06.yaml", "ram: 2048", "ram: 1024");
    fleet.refused("release-signature-wrong");
    assert_eq!(fleet.memory.accepted, Some(a.clone()));
    fleet.change("releases/2026.06.yaml", "ram: 1024", "ram: 2048");
    fleet.accept();

    //  a ── x' ── …    x' was force-pushed and fetched, but never accepted
    //   └── b          so b is measured by a
    let mut fleet = Fleet::new();
    let a = fleet.accept();
    fleet.remote.remove("releases/2026.06.yaml.minisig");
    fleet.refused("release-unsigned");
    fleet.remote.git(&["reset", "--quiet", "--hard", a.as_str()]);
    fleet.change(SITE_FILE, "ip: dhcp", "ip: dhcp, vlan: 20");
    fleet.accept();
}

/// An operator's word covers history only.
#[test]
fn accepted_rewrite_of_an_unsigned_release() {
    let mut fleet = Fleet::new();
    let root = fleet.remote.git(&["rev-parse", "HEAD"]);
    fleet.change(SITE_FILE, "ip: dhcp", "ip: dhcp, vlan: 20");
    fleet.accept();
    fleet.remote.git(&["reset", "--quiet", "--hard", &root]);
    fleet.remote.remove("releases/2026.06.yaml.minisig");
    let rewritten = fleet.remote.publish("rewritten");
    assert_eq!(fleet.judge(Some(&rewritten)).unwrap_err().reason(), "release-unsigned");
    fleet.remote.git(&["reset", "--quiet", "--hard", &root]);
    let rewritten = fleet.remote.publish("rewritten");
    fleet.judge(Some(&rewritten)).unwrap();
}

#[test]
fn a_release_alone() {
    let mut fleet = Fleet::new();
    let head = fleet.accept();
    let snapshot = fleet.repository.at(&head).unwrap();
    let hq = verify_hq(&snapshot, &fleet.keys, &fleet.memory.floor).unwrap();
    let ask = |id: &str| verify_release(&snapshot, &id.parse().unwrap(), &hq, &fleet.memory);
    let verified = ask("2026.06").unwrap();
    assert_eq!(verified.id().as_str(), "2026.06");
    assert!(fleet.keys.ids().eq(verified.signatures().by.keys().copied()));
    assert_eq!(ask("2026.07").unwrap_err().reason(), "release-missing");
}

#[test]
fn a_laptop_checks_all_but_signature_and_history() {
    let fleet = Fleet::new();
    fleet.remote.remove("releases/2026.06.yaml.minisig");
    let checkout = Checkout::new(fleet.file(""));
    let checked = check(&checkout, &site("acme-hq")).unwrap();
    assert_eq!(checked.revision(), None);
    assert_eq!(checked.release().id().as_str(), "2026.06");
    for (from, to, reason) in [
        ("template: zigbee2mqtt", "template: zigbee", "unknown-template"),
        ("network:", "netwrok:", "unknown-field"),
        ("\"2026.06\"", "\"2026.07\"", "unknown-release"),
        ("release: \"2026.06\"", "channel: stable", "channel-unknown"),
    ] {
        fleet.remote.write(SITE_FILE, SITE.replacen(from, to, 1));
        assert_eq!(check(&checkout, &site("acme-hq")).unwrap_err().reason(), reason);
    }
    assert_eq!(check(&checkout, &site("nobody")).unwrap_err().reason(), "site-missing");
}

#[test]
fn a_fetched_revision_is_checked_without_keys_too() {
    let mut fleet = Fleet::new();
    let head = fleet.remote.publish("a");
    fleet.repository.fetch().unwrap();
    let checked = check(&fleet.repository.at(&head).unwrap(), &site("acme-hq")).unwrap();
    assert_eq!(checked.revision(), Some(&head));
}

#[test]
fn lists_of_keys() {
    let remote = Remote::new();
    let (one, two) = (make_key(&remote, "one"), make_key(&remote, "two"));
    let file = fs::read_to_string(remote.path().join("one/hq.pub")).unwrap();
    let reason = |lines: &[&str]| {
        let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
        KeySet::parse(&lines).map(|keys| keys.ids().count()).map_err(|error| error.reason())
    };
    assert_eq!(reason(&[&one, &two]), Ok(2));
    assert_eq!(reason(&[&file, &two]), Ok(2));
    assert_eq!(reason(&["untrusted comment: HQ", &one, "", &format!("  {two}\n")]), Ok(2));
    assert_eq!(reason(&[]), Err("keys-empty"));
    assert_eq!(reason(&["untrusted comment: HQ", ""]), Err("keys-empty"));
    assert_eq!(reason(&[&one, &file]), Err("key-duplicate"));
    for bad in ["RW", "not a key", &one[1..], &format!("{one}A"), &one.replacen("RW", "RX", 1)] {
        assert_eq!(reason(&[bad]), Err("key-malformed"), "{bad}");
    }
}

/// The limit of the repository counts even where a document may be larger.
#[test]
fn repository_with_a_closer_limit() {
    let mut fleet = Fleet::new();
    let head = fleet.remote.publish("a");
    fleet.repository.fetch().unwrap();
    let limits = Limits { blob_bytes: 150, ..Limits::default() };
    let repository = Repository::open(&fleet.remote.state(), Settings { limits, ..fleet.remote.settings() }).unwrap();
    let memory = Memory::default();
    let judge = |repository: &Repository| {
        let rule = HistoryRule::FastForward(repository);
        let snapshot = repository.at(&head).unwrap();
        let hq = verify_hq(&snapshot, &fleet.keys, &memory.floor)?;
        verify(&snapshot, rule, CommitRule::Off, &site("acme-hq"), &hq, &memory, jiff::Timestamp::now()).map(drop)
    };
    assert_eq!(judge(&repository).unwrap_err().reason(), "too-large");
    judge(&fleet.repository).unwrap();
}
