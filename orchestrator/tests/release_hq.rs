//! HQ's lists of keys and channels, made, signed by several people and looked at with the program itself.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn release(dir: &Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ctrlable"));
    command.current_dir(dir).arg("--json").arg("release").args(line.split(' ')).output().unwrap()
}

fn fine(dir: &Path, line: &str) -> Value {
    let output = release(dir, line);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{line}: {text} {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&text).unwrap()
}

fn refused(dir: &Path, line: &str) -> Value {
    let output = release(dir, line);
    assert!(!output.status.success(), "{line} is accepted");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A checkout with one release, and three people with a key each.
fn desk() -> (tempfile::TempDir, [String; 3]) {
    let dir = tempfile::tempdir().unwrap();
    let keys = ["anna", "ben", "cleo"].map(|name| {
        let made = fine(dir.path(), &format!("keygen --no-password --out {name}"));
        made["key"].as_str().unwrap().to_owned()
    });
    fine(dir.path(), "new 2026.06 --scripts-ref v2026.05.3 --dir .");
    fs::create_dir(dir.path().join("releases")).unwrap();
    fs::rename(dir.path().join("2026.06.yaml"), dir.path().join("releases/2026.06.yaml")).unwrap();
    (dir, keys)
}

#[test]
fn keys_change_hands_by_a_list_that_old_and_new_ones_sign() {
    let (dir, [anna, ben, cleo]) = desk();
    let dir = dir.path();
    assert_eq!(refused(dir, "keys --add ben/hq.pub")["reason"], "release-impossible");
    let list = "keys --pubkey anna/hq.pub --add ben/hq.pub cleo/hq.pub --threshold 2";
    assert_eq!(fine(dir, list)["keys"], 2);
    let inspect = "inspect keys/2.yaml --pubkey anna/hq.pub";
    assert_eq!(refused(dir, inspect)["met"], false);
    fine(dir, "sign keys/2.yaml --key anna/hq.key");
    let seen = refused(dir, inspect);
    assert_eq!(seen["lists"][0]["met"], true, "{seen:#}");
    assert_eq!(seen["lists"][1]["met"], false, "{seen:#}");
    // The second signature lies beside the first; a person who signs again takes the place of his own.
    let second = fine(dir, "sign keys/2.yaml --key ben/hq.key");
    assert_eq!(second["signature"], format!("keys/2.yaml.{ben}.minisig"));
    assert_eq!(fine(dir, "sign keys/2.yaml --key anna/hq.key")["signature"], "keys/2.yaml.minisig");
    let seen = fine(dir, inspect);
    assert_eq!(seen["lists"][1]["missing"], serde_json::json!([cleo]), "{seen:#}");

    // From now on it takes two of three.
    fine(dir, "sign releases/2026.06.yaml --key anna/hq.key");
    let inspect = "inspect releases/2026.06.yaml --pubkey anna/hq.pub";
    assert_eq!(refused(dir, inspect)["lists"][0]["of"], "list 2");
    fine(dir, "sign releases/2026.06.yaml --key cleo/hq.key");
    assert_eq!(fine(dir, inspect)["subject"], "release 2026.06");
    // Anna goes; what she signs counts for nothing any more.
    assert_eq!(fine(dir, &format!("keys --remove {anna}"))["keys"], 3);
    fine(dir, "sign keys/3.yaml --key ben/hq.key");
    fine(dir, "sign keys/3.yaml --key cleo/hq.key");
    let seen = refused(dir, inspect);
    assert_eq!(seen["lists"][0]["signed"].as_array().unwrap().len(), 1, "{seen:#}");
    assert!(seen["lists"][0]["void"][0]["why"].as_str().unwrap().contains(&anna), "{seen:#}");
    assert_eq!(refused(dir, "keys --remove 0000000000000000")["reason"], "release-impossible");
}

#[test]
fn channels_lead_to_a_release_and_take_it_back() {
    let (dir, _) = desk();
    let dir = dir.path();
    assert_eq!(fine(dir, "channel stable 2026.06 --expires 30d")["serial"], 1);
    fine(dir, "sign channels.yaml --key anna/hq.key");
    let inspect = "inspect channels.yaml --pubkey anna/hq.pub";
    let seen = fine(dir, inspect);
    assert_eq!(seen["subject"], "channels 1");
    assert!(seen["expires"].is_string(), "{seen:#}");
    // A channel must not lead to what is revoked; nothing is written then.
    assert_eq!(refused(dir, "revoke 2026.06 --why broken")["reason"], "channel-revoked");
    fine(dir, inspect);
    // What was signed is another document: the signatures go.
    assert_eq!(fine(dir, "channel stable 2026.07")["serial"], 2);
    assert!(!dir.join("channels.yaml.minisig").exists());
    assert_eq!(refused(dir, inspect)["met"], false);
    assert_eq!(fine(dir, "revoke 2026.06 --why broken")["serial"], 3);
    let text = fs::read_to_string(dir.join("channels.yaml")).unwrap();
    assert!(text.contains("stable: \"2026.07\"") && text.contains("\"2026.06\": \"broken\""), "{text}");
    // Renewing changes nothing else.
    assert_eq!(fine(dir, "channel")["serial"], 4);
    let renewed = fs::read_to_string(dir.join("channels.yaml")).unwrap();
    assert_eq!(text.lines().skip(3).collect::<Vec<_>>(), renewed.lines().skip(3).collect::<Vec<_>>());
    assert!(!release(dir, "channel --expires soon").status.success());
}
