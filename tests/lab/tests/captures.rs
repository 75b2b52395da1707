//! Replays what was recorded on real nodes and compares: status, reason, errors, and which keys an answer has.
//!
//! The recordings are found by `CTRLABLE_CAPTURES`, or beside the workspace in `shared/pve-captures`. Without them
//! the test says so and passes.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use common::{Lab, until};
use serde_json::Value;

const SCENARIO: &str = include_str!("captures/scenario.txt");

/// Recordings that are not replayed, and why.
const SKIPPED: &[(u32, &str)] = &[
    (116, "on 9.2 this start failed inside LXC, which records have not"),
    (196, "nobody has a password in the lab, so nobody can log in"),
    (304, "containers are made by import, not by POST lxc"),
    (305, "containers are made by import, not by POST lxc"),
    (306, "containers are made by import, not by POST lxc"),
    (408, "containers are made by import, not by POST lxc"),
    (409, "containers are made by import, not by POST lxc"),
];

struct Replay<'a> {
    lab: &'a Lab,
    release: &'a str,
    node: &'a str,
    captures: BTreeMap<u32, PathBuf>,
    chk: String,
    compared: BTreeSet<u32>,
    wrong: Vec<String>,
}

fn directory() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/pve-captures");
    let dir = std::env::var_os("CTRLABLE_CAPTURES").map_or(beside, PathBuf::from);
    dir.is_dir().then_some(dir)
}

fn replay(release: &str, node: &str) -> usize {
    let Some(dir) = directory().map(|dir| dir.join(release)).filter(|dir| dir.is_dir()) else {
        println!("no captures of {release} here: nothing replayed");
        return usize::MAX;
    };
    let mut captures = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if let Some(number) = name.get(..3).and_then(|digits| digits.parse().ok()).filter(|_| name.ends_with(".json")) {
            captures.insert(number, path);
        }
    }
    let state = tempfile::tempdir().unwrap();
    let lab = Lab::start(state.path(), &["--pve", release, "--node", node]);
    let mut replay =
        Replay { lab: &lab, release, node, captures, chk: String::new(), compared: BTreeSet::new(), wrong: Vec::new() };
    for line in SCENARIO.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        replay.step(line);
    }
    let reasons: BTreeMap<u32, &str> = SKIPPED.iter().copied().collect();
    println!("{release}: {} of {} captures compared", replay.compared.len(), replay.captures.len());
    for number in replay.captures.keys().filter(|number| !replay.compared.contains(number)) {
        println!("{release}: {number} skipped: {}", reasons.get(number).unwrap_or(&"its state is not reproduced"));
    }
    assert!(replay.wrong.is_empty(), "{} differences, listed above", replay.wrong.len());
    replay.compared.len()
}

impl Replay<'_> {
    fn step(&mut self, line: &str) {
        let line = line.replace("{node}", self.node);
        let (verb, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match verb {
            "=" => rest.split(' ').for_each(|number| self.compare(number.parse().unwrap())),
            "9.2" | "8.4" if verb == self.release => self.step(rest),
            "9.2" | "8.4" => {}
            "unless" => {
                let (number, call) = rest.split_once(' ').unwrap();
                if !self.captures.contains_key(&number.parse().unwrap()) {
                    self.step(call);
                }
            }
            "lab" => {
                let (path, body) = rest.split_once(' ').unwrap();
                self.lab.control("POST", path, &serde_json::from_str(body).unwrap());
            }
            "wait" => self.lab.settle(self.node),
            "seen" => (0..4).for_each(|_| drop(self.lab.admin("GET", "/cluster/resources?type=vm", ""))),
            "poll" => until(|| {
                let path = format!("/nodes/{}/lxc/900/interfaces", self.node);
                self.lab.admin("GET", &path, "").data()[1]["inet"].as_str().map(drop)
            }),
            who => self.call(who, rest),
        }
    }

    /// Said at once, as a later step may not come to pass because of it.
    fn note(&mut self, difference: String) {
        println!("{}: {difference}", self.release);
        self.wrong.push(difference);
    }

    fn call(&mut self, who: &str, rest: &str) {
        let token = if who.ends_with("root") { self.lab.root.clone() } else { self.chk.clone() };
        let mut words = rest.splitn(3, ' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let answer = self.lab.call(&token, method, &format!("/api2/json{path}"), words.next().unwrap_or_default());
        if !who.starts_with('?') && answer.status != 200 {
            self.note(format!("step {who} {rest}: {} {} {}", answer.status, answer.reason, answer.body));
        }
    }

    /// The path of a recording, with the UPID of the same kind of task here.
    fn path(&self, recorded: &str) -> String {
        let Some(upid) = recorded
            .split('/')
            .find(|part| part.starts_with("UPID:") && part.len() > 20 && !part.contains(":00000001:"))
        else {
            return recorded.to_owned();
        };
        let parts: Vec<&str> = upid.split(':').collect();
        let rows = self.lab.admin("GET", &format!("/nodes/{}/tasks?source=all&limit=500", self.node), "").data();
        let same = rows.as_array().unwrap().iter().find(|row| row["type"] == parts[5] && row["id"] == parts[6]);
        same.map_or(recorded.to_owned(), |row| recorded.replace(upid, row["upid"].as_str().unwrap()))
    }

    fn compare(&mut self, number: u32) {
        let Some(file) = self.captures.get(&number) else {
            return;
        };
        let capture: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let (request, response) = (&capture["request"], &capture["response"]);
        let method = request["method"].as_str().unwrap();
        let path = self.path(request["path"].as_str().unwrap());
        let body = request["body"].as_str().unwrap_or_default();
        let body = body
            .replace("<SSH-PUBLIC-KEY-BASE64>", "AAAAC3NzaC1lZDI1NTE5AAAAIGJhc2U")
            .replace("<PASSWORD>", "secret-enough");
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: lab\r\n");
        for (name, value) in request["headers"].as_object().unwrap() {
            let value = match value.as_str().unwrap() {
                _ if name != "Authorization" => value.as_str().unwrap().to_owned(),
                chk if chk.contains("chk@pve") => format!("PVEAPIToken={}", self.chk),
                root if root.contains("root@pam") && number != 22 => {
                    format!("PVEAPIToken={}", self.lab.root)
                }
                other => other.to_owned(),
            };
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        let chunked = request["headers"].get("Transfer-Encoding").is_some();
        if !chunked && !request["body"].is_null() {
            text.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        // The recorded connections were kept alive; reading to their end would take the idle time-out.
        let wants_close = response["headers"]["Connection"] != "close";
        text.push_str(if wants_close { "Connection: close\r\n\r\n" } else { "\r\n" });
        let answer = self.lab.raw(format!("{text}{body}").as_bytes()).expect("an answer");

        let mut differences = Vec::new();
        let reason =
            response["reason"].as_str().unwrap().replace("<SSH-PUBLIC-KEY-BASE64>", "AAAAC3NzaC1lZDI1NTE5AAAAIGJhc2U");
        if response["status"] != answer.status || reason != answer.reason {
            differences.push(format!("{} {reason} != {} {}", response["status"], answer.status, answer.reason));
        }
        for name in ["Content-Type", "Connection"] {
            let wanted = response["headers"][name].as_str();
            let got = answer.headers.get(name).map(String::as_str);
            if wanted != got && !(name == "Connection" && wants_close) {
                differences.push(format!("{name}: {wanted:?} != {got:?}"));
            }
        }
        if response["headers"].get("Content-Length").is_some() != answer.headers.contains_key("Content-Length") {
            differences.push("one has a Content-Length, the other has not".to_owned());
        }
        let recorded =
            response["body"].as_str().unwrap().replace("<SSH-PUBLIC-KEY-BASE64>", "AAAAC3NzaC1lZDI1NTE5AAAAIGJhc2U");
        match serde_json::from_str::<Value>(&recorded) {
            Ok(recorded) => compare_json("", &recorded, &answer.json(), &mut differences),
            Err(_) if recorded != answer.body => differences.push(format!("{recorded:?} != {:?}", answer.body)),
            Err(_) => {}
        }
        if let (216 | 232, Some(secret)) = (number, answer.data()["value"].as_str()) {
            self.chk = format!("chk@pve!tk={secret}");
        }
        self.compared.insert(number);
        if !differences.is_empty() {
            let name = file.file_stem().unwrap().to_string_lossy().into_owned();
            self.note(format!("{name}:\n    {}", differences.join("\n    ")));
        }
    }
}

/// Keys of a row that come and go with what else is on the node.
fn keys(value: &Value) -> BTreeSet<&str> {
    match value {
        Value::Object(fields) => fields.keys().map(String::as_str).collect(),
        Value::Array(rows) => rows.iter().flat_map(keys).collect(),
        _ => BTreeSet::new(),
    }
}

fn compare_json(at: &str, recorded: &Value, got: &Value, differences: &mut Vec<String>) {
    match (recorded, got) {
        (Value::Object(_), Value::Object(_)) | (Value::Array(_), Value::Array(_)) => {
            let (wanted, found) = (keys(recorded), keys(got));
            let missing: Vec<&&str> = wanted.difference(&found).collect();
            let extra: Vec<&&str> = found.difference(&wanted).collect();
            if !missing.is_empty() || !extra.is_empty() {
                differences.push(format!("{at}: lacks {missing:?}, has besides {extra:?}"));
            }
            if let (Value::Object(recorded), Value::Object(got)) = (recorded, got) {
                for (key, value) in recorded {
                    if let Some(other) = got.get(key) {
                        compare_json(&format!("{at}/{key}"), value, other, differences);
                    }
                }
            }
        }
        // Texts of errors are compared to the letter; other values only by their type.
        (Value::String(recorded), Value::String(got))
            if (at.starts_with("/errors") || at.starts_with("/message") || at.ends_with("/exitstatus"))
                && recorded != got =>
        {
            differences.push(format!("{at}: {recorded:?} != {got:?}"));
        }
        (recorded, got) if std::mem::discriminant(recorded) != std::mem::discriminant(got) => {
            differences.push(format!("{at}: {recorded} != {got}"));
        }
        _ => {}
    }
}

#[test]
fn release_9_2_answers_as_recorded() {
    assert!(replay("9.2", "pve1") > 100, "too few captures were compared");
}

#[test]
fn release_8_4_answers_as_recorded() {
    assert!(replay("8.4", "pve8") > 100, "too few captures were compared");
}
