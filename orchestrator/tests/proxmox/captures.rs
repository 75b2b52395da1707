//! Every recorded answer of a PVE 9.2 and an 8.4 node, through the decoder and the sorting of errors.
//!
//! The recordings lie beside the workspace, or where `CTRLABLE_CAPTURES` says; without them the tests say so and pass.

use std::collections::BTreeMap;
use std::path::PathBuf;

use contract::manifest::GuestKind;
use orchestrator::proxmox::classify::{Answer, interpret};
use orchestrator::proxmox::{
    ActiveTask, Bridge, GuestConfig, GuestRef, GuestRow, GuestStatus, Interface, NodeRow, NodeState, NodeStatus,
    Permissions, Pool, RunState, Storage, TaskEnd, TaskState, Upid, Version,
};
use serde_json::Value;

/// Files whose answer is an error, or a task that failed, with the label it gets; all others are good.
const EXPECTED: &str = include_str!("captures.txt");

struct Capture {
    release: &'static str,
    name: String,
    path: String,
    answer: Answer,
}

fn captures() -> Vec<Capture> {
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/pve-captures");
    let root = std::env::var_os("CTRLABLE_CAPTURES").map_or(beside, PathBuf::from);
    let mut captures = Vec::new();
    for release in ["9.2", "8.4"] {
        let Ok(files) = std::fs::read_dir(root.join(release)) else {
            println!("skipped: no recordings at {}", root.display());
            return Vec::new();
        };
        for file in files {
            let file = file.unwrap().path();
            let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
            if file.extension().is_none_or(|extension| extension != "json") || name == "apidoc" {
                continue;
            }
            let json: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
            let text = |pointer: &str| json.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
            let answer = Answer {
                status: json["response"]["status"].as_u64().unwrap().try_into().unwrap(),
                reason: text("/response/reason"),
                body: text("/response/body").unwrap_or_default().into_bytes(),
            };
            captures.push(Capture { release, name, path: text("/request/path").unwrap(), answer });
        }
    }
    assert!(captures.len() > 300, "the recordings are not complete");
    captures
}

/// The label of an answer, and of the task that it tells of.
fn label(capture: &Capture) -> String {
    let data = match interpret(&capture.answer) {
        Ok(data) => data,
        Err(problem) => return problem.reason().to_owned(),
    };
    if capture.path.contains("/tasks/") && capture.path.ends_with("/status") {
        let upid: Upid = data["upid"].as_str().unwrap().parse().unwrap();
        return match TaskState::decode(&data).unwrap().result(&upid) {
            None => "running".to_owned(),
            Some(Ok(TaskEnd::Ok)) => "ok".to_owned(),
            Some(Ok(TaskEnd::Warnings(_))) => "warnings".to_owned(),
            Some(Err(problem)) => problem.reason().to_owned(),
        };
    }
    "ok".to_owned()
}

#[test]
fn every_recorded_answer_has_its_label() {
    let expected: BTreeMap<&str, &str> = EXPECTED
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split_once(' ').unwrap())
        .collect();
    let mut wrong = Vec::new();
    for capture in captures() {
        let only_here = format!("{}/{}", capture.release, capture.name);
        let expected = expected.get(&*only_here).or(expected.get(&*capture.name)).unwrap_or(&"ok").trim();
        let got = label(&capture);
        if got != expected {
            wrong.push(format!("{only_here} {got} (expected {expected})"));
        }
    }
    wrong.sort();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_old_node_gives_the_same_labels_from_the_reason_phrase_alone() {
    for capture in captures() {
        let errors =
            serde_json::from_slice::<Value>(&capture.answer.body).ok().and_then(|body| body.get("errors").cloned());
        if capture.answer.status < 400 {
            continue;
        }
        // Before http-server 5.2.0 there was no `message`, and what is now plain text was only a phrase.
        let body =
            errors.map_or(r#"{"data":null}"#.to_owned(), |errors| format!(r#"{{"data":null,"errors":{errors}}}"#));
        let old = Answer { body: body.into_bytes(), ..capture.answer.clone() };
        let (new, old) = (interpret(&capture.answer).unwrap_err(), interpret(&old).unwrap_err());
        assert_eq!(new.reason(), old.reason(), "{}/{}", capture.release, capture.name);
    }
}

#[test]
fn every_recorded_answer_of_ours_can_be_read() {
    let mut read: BTreeMap<&str, usize> = BTreeMap::new();
    for capture in captures() {
        let Ok(data) = interpret(&capture.answer) else { continue };
        let name = format!("{}/{}", capture.release, capture.name);
        let parts: Vec<&str> = capture.path.trim_start_matches("/api2/json/").split(['/', '?']).collect();
        let guest = |family: &str, node: &str, vmid: &str| GuestRef {
            kind: if family == "lxc" { GuestKind::Lxc } else { GuestKind::Vm },
            node: node.parse().unwrap(),
            vmid: vmid.parse::<u32>().unwrap().try_into().unwrap(),
        };
        let kind = match parts[..] {
            ["version"] => {
                assert_eq!(Version::decode(&data).unwrap().release.to_string(), capture.release, "{name}");
                "version"
            }
            ["nodes"] => {
                assert_eq!(NodeRow::decode(data).unwrap()[0].state, NodeState::Online, "{name}");
                "nodes"
            }
            ["nodes", _, "status"] => {
                let status = NodeStatus::decode(&data);
                assert!(status.memory > status.memory_available && status.cpus == 2, "{name}");
                "node status"
            }
            ["cluster", "resources", ..] => {
                assert!(!GuestRow::decode(data, None).unwrap().is_empty(), "{name}");
                "resources"
            }
            ["nodes", node, family @ ("lxc" | "qemu")] if data.is_array() => {
                let listed = guest(family, node, "100");
                let rows = GuestRow::decode(data, Some((&listed.node, listed.kind))).unwrap();
                assert!(rows.iter().any(|row| row.template), "{name}");
                "guest list"
            }
            ["nodes", node, family @ ("lxc" | "qemu"), vmid, "config", ..] if data.is_object() => {
                let config = GuestConfig::decode(&guest(family, node, vmid), data).unwrap();
                assert!(config.digest.is_some() && config.net0().is_ok() && config.marker() == Ok(None), "{name}");
                if let Some(text) = &config.net0_text {
                    assert_eq!(&config.net0().unwrap().unwrap().to_string(), text, "{name}: as Proxmox stores it");
                }
                "config"
            }
            ["nodes", _, "lxc" | "qemu", _, "status", "current"] => {
                let expected = if name.contains("running") { RunState::Running } else { RunState::Stopped };
                assert_eq!(GuestStatus::decode(&data).unwrap().state, expected, "{name}");
                "guest status"
            }
            [.., "interfaces"] | [.., "network-get-interfaces"] => {
                let reachable = Interface::decode(&data)
                    .iter()
                    .any(|interface| interface.mac.is_some() && interface.addresses.iter().any(|a| a.is_reachable()));
                assert_eq!(reachable, !name.contains("stopped"), "{name}");
                "interfaces"
            }
            ["pools", ..] if data.is_array() => {
                assert!(!Pool::decode(data).unwrap()[0].guests.is_empty(), "{name}");
                "pool"
            }
            ["nodes", _, "storage", ..] if parts.len() == 4 => {
                let rows = Storage::decode(data).unwrap();
                assert!(
                    rows.iter().all(|row| row.active && row.available > 0 && row.content.contains("rootdir")),
                    "{name}"
                );
                "storage"
            }
            ["nodes", _, "network", ..] => {
                assert_eq!(Bridge::decode(data).unwrap()[0].name, "vmbr0", "{name}");
                "bridge"
            }
            ["access", "permissions", ..] => {
                let permissions = Permissions::decode(data).unwrap();
                let path = if name.contains("root") { "/" } else { "/pool/pvchk" };
                assert!(permissions.at(path).contains("VM.Allocate"), "{name}");
                "permissions"
            }
            ["nodes", _, "tasks", ..] if data.is_array() && parts.len() == 4 => {
                ActiveTask::decode(data).unwrap();
                "tasks"
            }
            _ => match data.as_str() {
                Some(text) if text.starts_with("UPID") => {
                    assert_eq!(text.parse::<Upid>().unwrap().as_str(), text, "{name}");
                    "upid"
                }
                _ => "not ours",
            },
        };
        *read.entry(kind).or_default() += 1;
    }
    println!("{read:?}");
    assert!(read.is_empty() || read.len() == 15, "a kind of answer was not met: {read:?}");
}
