//! The command line as a dealer uses it: every bad document is refused with its own label, file and line, offline and
//! without any configuration; help, completions and exit codes are what the documentation says.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tests::run::program;

fn documents() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/documents")
}

/// `ctrlable` that finds no configuration, no home and no network.
fn ctrlable(arguments: &[&str]) -> Command {
    let nowhere = "/nonexistent/orchestrator.toml";
    let mut command = Command::new(program("ctrlable").unwrap());
    command.args(arguments).env("CTRLABLE_CONFIG", nowhere).env("HOME", "/nonexistent").env_remove("CTRLABLE_STATE");
    for proxy in ["http_proxy", "https_proxy", "all_proxy"] {
        command.env(proxy, "http://127.0.0.1:1");
    }
    command
}

fn run(arguments: &[&str]) -> Output {
    ctrlable(arguments).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The directories below a directory, sorted.
fn directories(below: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(below) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    found.sort();
    found
}

/// Sites of a fleet by the names of their directories.
fn sites(fleet: &Path) -> Vec<String> {
    directories(&fleet.join("sites"))
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect()
}

/// What one case came to: the lines of `expected` that are missing from what was said.
fn missing(expected: &str, said: &str) -> Vec<String> {
    expected
        .lines()
        .filter(|line| {
            let mut words = line.split(' ');
            // Line 0 is the file as a whole.
            let (label, place) = (words.next().unwrap(), words.next().unwrap().trim_end_matches(":0"));
            !(said.contains(&format!("[{label}]")) && said.contains(place))
        })
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_bad_case_is_refused_by_lint_and_plan_with_its_own_label() {
    let (mut linted, mut planned, mut labels, mut wrong) = (0, 0, BTreeSet::new(), Vec::new());
    for fleet in directories(&documents()) {
        let Ok(expected) = fs::read_to_string(fleet.join("expected")) else { continue };
        let dir = fleet.to_str().unwrap();
        let name = fleet.file_name().unwrap().to_str().unwrap();
        let sites = sites(&fleet);
        if sites.is_empty() {
            // A release alone: that is for HQ's own command.
            continue;
        }
        let output = run(&["site", "lint", "--fleet", dir]);
        let gone = missing(&expected, &text(&output));
        if code(&output) != 1 || !gone.is_empty() {
            wrong.push(format!("lint {name}: exit {}, without {gone:?}:\n{}", code(&output), text(&output)));
        }
        linted += 1;
        labels.extend(expected.lines().map(|line| line.split(' ').next().unwrap().to_owned()));
        let output = run(&["site", "lint", "--json", "--fleet", dir]);
        let json: Result<Vec<Value>, _> =
            String::from_utf8_lossy(&output.stdout).lines().map(serde_json::from_str).collect();
        if code(&output) != 1 || json.as_ref().is_ok_and(Vec::is_empty) || json.is_err() {
            wrong.push(format!("lint --json {name}: exit {}: {json:?}", code(&output)));
        }
        for site in sites {
            let output = run(&["plan", "--fleet", dir, "--site", &site]);
            let said = text(&output);
            // What is wrong elsewhere in the fleet does not concern this site.
            let its: String =
                expected.lines().filter(|line| sites_line(line, &site)).map(|l| format!("{l}\n")).collect();
            let gone = missing(&its, &said);
            if code(&output) != 1 || !gone.is_empty() {
                wrong.push(format!("plan {name} {site}: exit {}, without {gone:?}:\n{said}", code(&output)));
            }
            planned += 1;
        }
    }
    println!("{linted} bad fleets linted, {planned} planned, {} labels", labels.len());
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(linted > 30, "only {linted} cases");
}

fn sites_line(line: &str, site: &str) -> bool {
    !line.contains(" sites/") || line.contains(&format!(" sites/{site}/"))
}

#[test]
fn the_good_fleet_passes_offline() {
    let fleet = documents().join("good");
    let dir = fleet.to_str().unwrap();
    let output = run(&["site", "lint", "--fleet", dir]);
    assert_eq!(code(&output), 0, "{}", text(&output));
    for site in sites(&fleet) {
        let output = run(&["plan", "--fleet", dir, "--site", &site]);
        assert_eq!(code(&output), 2, "{}", text(&output));
        let output = run(&["plan", "--json", "--fleet", dir, "--site", &site]);
        assert_eq!(code(&output), 2, "{}", text(&output));
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(plan["settled"], false);
        assert_eq!(plan["hash"].as_str().unwrap().len(), 64);
        let instances = plan["plan"]["instances"].as_array().unwrap().len();
        let again: Value =
            serde_json::from_slice(&run(&["plan", "--json", "--fleet", dir, "--site", &site]).stdout).unwrap();
        assert_eq!(plan, again, "planning twice gives two plans");
        println!("{site}: {instances} instances planned offline");
    }
}

/// Every command below these words.
fn commands(words: &[String], found: &mut Vec<Vec<String>>) {
    let mut arguments: Vec<&str> = words.iter().map(String::as_str).collect();
    arguments.push("--help");
    let output = run(&arguments);
    assert_eq!(code(&output), 0, "{words:?}");
    let help = text(&output);
    let mut listed = false;
    let mut below = Vec::new();
    for line in help.lines() {
        if line.trim_end().ends_with("Commands:") {
            listed = true;
        } else if listed && line.starts_with("  ") && !line.starts_with("    ") {
            below.extend(line.split_whitespace().next().filter(|word| *word != "help").map(str::to_owned));
        } else if listed && !line.is_empty() && !line.starts_with(' ') {
            listed = false;
        }
    }
    if below.is_empty() {
        assert!(help.contains("Example"), "`{}` has no example:\n{help}", words.join(" "));
        found.push(words.to_vec());
    }
    for word in below {
        commands(&[words, &[word]].concat(), found);
    }
}

#[test]
fn every_command_has_an_example() {
    let mut found = Vec::new();
    commands(&[], &mut found);
    assert!(found.len() >= 15, "only {} commands: {found:?}", found.len());
    println!("{} commands with an example each", found.len());
}

#[test]
fn completions_are_there_for_the_usual_shells() {
    for (shell, sign) in [("bash", "complete "), ("zsh", "#compdef ctrlable"), ("fish", "complete -c ctrlable")] {
        let output = run(&["completions", shell]);
        assert_eq!(code(&output), 0, "{shell}");
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(script.contains(sign) && script.contains("accept-rewrite"), "{shell}: {script}");
        println!("{shell}: {} bytes", script.len());
    }
}

#[test]
fn exit_codes_and_errors_are_as_documented() {
    // Wrong usage is 64: 2 is a plan with something to do, and nothing else.
    for wrong in [&["no-such-command"][..], &["plan", "--fleet", "."], &["why"], &["site", "lint", "--colour"]] {
        assert_eq!(code(&run(wrong)), 64, "{wrong:?}");
    }
    // What cannot be done is 1, and says what is missing.
    for (wrong, said) in [
        (&["plan"][..], "/nonexistent/orchestrator.toml"),
        (&["status"], "/nonexistent/orchestrator.toml"),
        (&["serve"], "/nonexistent/orchestrator.toml"),
        (&["status", "--state", "/nonexistent"], "ledger"),
        (&["site", "lint", "--fleet", "/nonexistent"], "/nonexistent"),
        (&["plan", "--fleet", "/nonexistent", "--site", "acme-hq"], "/nonexistent"),
        (&["release", "verify", "/nonexistent.yaml", "--pubkey", "/nonexistent.pub"], "/nonexistent"),
    ] {
        let output = run(wrong);
        let told = text(&output);
        assert_eq!(code(&output), 1, "{wrong:?}: {told}");
        assert!(told.contains(said), "{wrong:?} does not name {said}: {told}");
        assert!(output.stdout.is_empty(), "{wrong:?}: an error stands on standard output: {told}");
    }
    assert_eq!(code(&run(&["--version"])), 0);
}
