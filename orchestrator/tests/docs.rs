//! The pages in `docs/` say what the code says: labels, metrics, commands, options, fields, messages, examples.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use contract::{assignment::Assignment, bootstrap::Bootstrap, enrolment, health};
use orchestrator::cli::{CHANGES, Cli};
use orchestrator::config::Config;
use orchestrator::source::Checkout;
use orchestrator::{release, trust};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Pages by path relative to the root.
fn pages() -> BTreeMap<String, String> {
    let mut pages = BTreeMap::from([
        ("README.md".to_owned(), read("README.md")),
        ("CHANGELOG.md".to_owned(), read("CHANGELOG.md")),
    ]);
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            pages.insert(format!("docs/{name}"), read(&format!("docs/{name}")));
        }
    }
    pages
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Rust sources below a directory, tests left out, by path relative to the root.
fn sources(directory: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root().join(directory)];
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            let text = fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
            found.insert(path.strip_prefix(root()).unwrap().display().to_string(), text);
        }
    }
    found
}

/// String literals of a piece of code.
fn literals(code: &str) -> impl Iterator<Item = &str> {
    code.split('"').skip(1).step_by(2)
}

fn is_label(text: &str) -> bool {
    text.len() > 3 && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
}

/// What stands between the backticks of a page.
fn quoted(page: &str) -> BTreeSet<&str> {
    // Fenced blocks have three of them, which splits into empty pieces and keeps the parity.
    page.split('`').skip(1).step_by(2).collect()
}

/// The fenced blocks of a page in one language.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    page.split(fence.as_str()).skip(1).map(|rest| rest.split("```").next().unwrap_or_default()).collect()
}

/// Labels that the code can give: those in `fn reason`, and those given by hand.
fn labels() -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut code = sources("orchestrator/src");
    code.extend(sources("contract/src/reference.rs"));
    for (file, text) in &code {
        let mut note = |label: &str| {
            if is_label(label) {
                labels.insert(label.to_owned(), file.clone());
            }
        };
        for body in text.split("fn reason(").skip(1) {
            // To the end of the function: methods are indented by four.
            literals(body.split("\n    }\n").next().unwrap_or_default()).for_each(&mut note);
        }
        for start in [
            "reason: ",
            "reason = ",
            ".reason(",
            "blocked(",
            "refuse(",
            "NEVER_ENROLLED: &str = ",
            "DOES_NOT_STICK: &str = ",
            "Passed::Badly(",
        ] {
            for rest in text.split(start).skip(1) {
                // The label is the first argument, or the second after a status.
                let head: String = rest.chars().take(120).collect();
                let before = head.split('"').next().unwrap_or_default();
                if before.trim().is_empty() || before.trim().starts_with("StatusCode::") {
                    literals(&head).take(1).for_each(&mut note);
                }
            }
        }
        if file.ends_with("status.rs") {
            literals(text).filter(|label| label.starts_with("guest-")).for_each(&mut note);
        }
    }
    labels
}

#[test]
fn every_label_is_explained() {
    let labels = labels();
    // Should the code be written another way, the search would find little, and prove little.
    assert!(labels.len() > 140, "only {} labels were found: {labels:?}", labels.len());
    for known in ["source-auth", "guest-never-enrolled", "guest-lost", "no-backup-storage", "certificate-unknown"] {
        assert!(labels.contains_key(known), "{known} was not found");
    }
    let pages = pages();
    let explained: BTreeSet<&str> = ["docs/operator.md", "docs/refusals.md"]
        .iter()
        .filter_map(|page| pages.get(*page))
        .flat_map(|page| quoted(page))
        .collect();
    let missing: Vec<_> = labels.iter().filter(|(label, _)| !explained.contains(label.as_str())).collect();
    assert!(missing.is_empty(), "not explained in docs/operator.md: {missing:?}");
}

#[test]
fn every_label_that_is_explained_exists() {
    let labels = labels();
    let page = read("docs/operator.md");
    let table = page.split("## Reasons, and what to do").nth(1).unwrap();
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let cell = row.split('|').nth(1).unwrap();
        for label in quoted(cell) {
            assert!(labels.contains_key(label), "docs/operator.md explains {label}, which no code gives");
        }
    }
}

#[test]
fn every_metric_event_and_web_path_is_listed() {
    let page = read("docs/api.md");
    let known = quoted(&page);
    let web = sources("orchestrator/src/web.rs").into_values().next().unwrap();
    let names: Vec<&str> =
        web.split("family(").skip(1).filter_map(|rest| literals(&rest[..rest.len().min(60)]).next()).collect();
    assert!(names.len() > 4, "metrics: {names:?}");
    for name in names {
        assert!(known.contains(format!("ctrlable_{name}").as_str()), "metric {name}");
    }
    let paths: Vec<&str> = web.split(".route(").skip(1).filter_map(|rest| literals(rest).next()).collect();
    assert!(paths.len() > 3, "paths: {paths:?}");
    for path in
        paths.into_iter().chain([enrolment::PATH, contract::renewal::PATH, contract::assignment::PATH, health::PATH])
    {
        assert!(known.iter().any(|text| text.contains(path)), "path {path}");
    }
    let events = sources("orchestrator/src/store/events.rs").into_values().next().unwrap();
    let kinds = events.split("fn as_str").nth(1).and_then(|rest| rest.split("\n    }\n").next()).unwrap();
    for kind in literals(kinds) {
        assert!(known.contains(kind), "kind of event {kind}");
    }
}

#[test]
fn every_command_and_option_is_listed() {
    fn walk(command: &clap::Command, name: &str, page: &str) {
        let page_has = |text: &str| page.contains(text);
        for option in command.get_arguments().filter_map(clap::Arg::get_long) {
            assert!(
                page_has(&format!("--{option}")) || ["help", "version"].contains(&option),
                "{name} --{option} is not in docs/cli.md"
            );
        }
        let below: Vec<_> = command.get_subcommands().filter(|below| below.get_name() != "help").collect();
        assert!(!below.is_empty() || page_has(&format!("`{name}")), "{name} is not in docs/cli.md");
        below.into_iter().for_each(|below| walk(below, &format!("{name} {}", below.get_name()), page));
    }
    walk(&Cli::command(), "ctrlable", &read("docs/cli.md"));
}

/// Commands in the indented blocks of the pages, as somebody would type them.
#[test]
fn every_command_line_of_the_pages_is_understood() {
    let mut seen = 0;
    for (name, page) in pages() {
        let joined = page.replace("\\\n", " ");
        for line in joined.lines().filter_map(|line| line.strip_prefix("    ")) {
            for part in line.split("&&") {
                let part = part.split(" #").next().unwrap_or_default().split(" > ").next().unwrap_or_default();
                let words: Vec<&str> = part.trim().trim_end_matches('&').split_whitespace().collect();
                if words.first() != Some(&"ctrlable") || words.len() < 2 || part.contains(['…', '{', '[']) {
                    continue;
                }
                let parsed = Cli::command().try_get_matches_from(&words);
                assert!(parsed.is_ok(), "{name}: `{}`: {}", part.trim(), parsed.unwrap_err());
                seen += 1;
            }
        }
    }
    assert!(seen > 30, "only {seen} command lines were found");
}

#[test]
fn exit_codes_are_those_of_the_code() {
    let page = read("docs/cli.md");
    assert!(page.contains(&format!("| {CHANGES} | `plan`: there is something to do.")));
    let wrong = Cli::command().try_get_matches_from(["ctrlable", "nonsense"]).unwrap_err();
    assert_eq!(wrong.exit_code(), i32::from(CHANGES), "wrong usage has another code than the page says");
}

/// Writes a configuration and every file that it names, and loads it.
fn load(text: &str) -> Config {
    let dir = tempfile::tempdir().unwrap();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(" = ") else { continue };
        if key.ends_with("_file") {
            let path = dir.path().join("site").join(value.trim_matches('"'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "ctrlable@pve!site=00000000-0000-0000-0000-000000000000\n").unwrap();
        }
    }
    let file = dir.path().join("site/orchestrator.toml");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, text).unwrap();
    let config = Config::load(&file).unwrap_or_else(|error| panic!("{error}\n{text}"));
    trust::KeySet::parse(&config.keys).unwrap_or_else(|error| panic!("{error}\n{text}"));
    config
}

#[test]
fn every_configuration_loads() {
    let mut seen = 0;
    for (name, page) in pages() {
        for block in blocks(&page, "toml") {
            assert!(block.contains("[proxmox]"), "{name}: a part of a configuration cannot be checked");
            load(block);
            seen += 1;
        }
    }
    assert!(seen >= 2, "{seen} configurations");
}

#[test]
fn every_field_of_the_configuration_is_listed_with_its_default() {
    let page = read("docs/operator.md");
    let rows: BTreeMap<&str, &str> = page
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split('|');
            Some((cells.next()?.trim().trim_end_matches('`'), cells.next()?.trim().trim_matches('`')))
        })
        .collect();
    // The struct's name is the section, but for the file itself.
    let code = sources("orchestrator/src/config.rs").into_values().next().unwrap();
    let raw = code.split("mod raw {").nth(1).and_then(|rest| rest.split("\n}\n").next()).unwrap();
    let mut fields = 0;
    for part in raw.split("struct ").skip(1) {
        let (name, rest) = part.split_once(" {").unwrap();
        let body = rest.split("\n    }\n").next().unwrap();
        for field in body.lines().filter_map(|line| line.trim().strip_prefix("pub(super) ")?.split(':').next()) {
            let path = match name {
                "File" => field.to_owned(),
                section => format!("{}.{field}", section.to_lowercase()),
            };
            if name != "File" || ["site", "state"].contains(&field) {
                assert!(rows.contains_key(path.as_str()), "{path} is not in docs/operator.md");
                fields += 1;
            }
        }
    }
    assert!(fields > 15, "{fields} fields");
    let config = load(&format!(
        "site = \"a\"\n[source]\nurl = \"/srv/fleet.git\"\n[trust]\nkeys = [\"{}\"]\n[proxmox]\nurl = \
         \"https://192.0.2.1:8006\"\ntoken_file = \"token\"\nca_file = \"ca.pem\"\n[agents]\nadvertise = \
         [\"https://192.0.2.2:8443\"]\n",
        blocks(&page, "toml")[0].split("keys = [\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap()
    ));
    let default = |field: &str| *rows.get(field).unwrap_or_else(|| panic!("{field}"));
    assert_eq!(default("state"), config.state.display().to_string());
    assert_eq!(default("source.branch"), config.source.branch);
    assert_eq!(default("source.interval"), config.source.interval.as_secs().to_string());
    assert_eq!(default("agents.listen"), config.agents.listen.to_string());
    assert_eq!(default("agents.window"), config.agents.window.as_secs().to_string());
    assert_eq!(default("agents.interval"), config.agents.interval.as_secs().to_string());
    assert_eq!(default("agents.certificate_life"), config.agents.certificate_life.as_secs().to_string());
    assert_eq!(default("web.listen"), config.web.listen.to_string());
}

/// YAML blocks that begin with their path in a fleet repository are files of one.
#[test]
fn every_site_and_release_is_accepted() {
    let fleet = tempfile::tempdir().unwrap();
    let mut sites = Vec::new();
    fs::create_dir_all(fleet.path().join("releases")).unwrap();
    fs::copy(root().join("releases/2026.06.yaml"), fleet.path().join("releases/2026.06.yaml")).unwrap();
    for name in ["docs/dealer.md", "docs/hq.md"] {
        for block in blocks(&read(name), "yaml") {
            let path = block.lines().next().and_then(|line| line.strip_prefix("# ")).unwrap_or_default().to_owned();
            let file = fleet.path().join(&path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, block).unwrap();
            match path.split('/').collect::<Vec<_>>()[..] {
                ["sites", site, "site.yaml"] => sites.push(site.to_owned()),
                ["releases", _] => {
                    release::lint(&file).unwrap_or_else(|error| panic!("{name}: {error}"));
                }
                _ => panic!("{name}: a block without its path in the fleet repository: {path}"),
            }
        }
    }
    assert!(!sites.is_empty());
    for site in sites {
        let site = site.parse().unwrap();
        trust::check(&Checkout::new(fleet.path()), &site).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Reads a message and writes it again: a page shows every field, and none that is not there.
fn same<T: serde::Serialize + serde::de::DeserializeOwned>(example: &Value) {
    let message: T = serde_json::from_value(example.clone()).unwrap_or_else(|error| panic!("{error}\n{example:#}"));
    assert_eq!(serde_json::to_value(message).unwrap(), *example);
}

#[test]
fn every_message_is_one() {
    let page = read("docs/api.md");
    let mut seen = BTreeSet::new();
    for part in page.split("<!-- ").skip(1) {
        let (name, rest) = part.split_once(" -->").unwrap();
        let example: Value =
            serde_json::from_str(blocks(rest, "json")[0]).unwrap_or_else(|error| panic!("{name}: {error}"));
        match name {
            "Bootstrap" => same::<Bootstrap>(&example),
            "EnrolRequest" => same::<enrolment::EnrolRequest>(&example),
            "EnrolResponse" => same::<enrolment::EnrolResponse>(&example),
            "RenewRequest" => same::<contract::renewal::RenewRequest>(&example),
            "RenewResponse" => same::<contract::renewal::RenewResponse>(&example),
            "Problem" => same::<enrolment::Problem>(&example),
            "Assignment" => same::<Assignment>(&example),
            "HealthReport" => same::<health::HealthReport>(&example),
            "HealthResponse" => same::<health::HealthResponse>(&example),
            other => panic!("{other} is no message"),
        }
        seen.insert(name);
    }
    assert_eq!(seen.len(), 9, "{seen:?}");
    assert_eq!(blocks(&page, "json").len(), 9, "an example without its name");
}

#[test]
fn no_link_is_dead_and_no_test_is_invented() {
    for (name, page) in pages() {
        let folder = root().join(&name).parent().unwrap().to_owned();
        for target in page.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap_or_default();
            let outside = target.contains("://") || path.is_empty();
            assert!(outside || folder.join(path).exists(), "{name}: {target} is not there");
        }
    }
    let mut code = sources("orchestrator");
    for directory in ["contract", "guest-agent", "tests"] {
        code.extend(sources(directory));
    }
    // `sources` leaves tests out; here they are what is looked for.
    let code: String = code.keys().map(|path| read(path)).chain(test_files()).collect();
    let attacks: BTreeSet<String> = fs::read_dir(root().join("tests/data/attacks"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut unnamed = attacks.clone();
    let mut seen = 0;
    for (page, heading) in [("docs/design.md", "## Promises"), ("docs/threat-model.md", "## Controls")] {
        let text = read(page);
        let table = text.split(heading).nth(1).unwrap().split("\n## ").next().unwrap();
        for name in quoted(table) {
            let is_test = code.contains(&format!("fn {name}("));
            assert!(is_test || attacks.contains(name), "{page} names {name}, which is neither a test nor an attack");
            unnamed.remove(name);
            seen += 1;
        }
    }
    assert!(seen > 100, "{seen} tests and attacks");
    assert!(unnamed.is_empty(), "docs/threat-model.md does not say which control holds {unnamed:?}");
}

fn test_files() -> Vec<String> {
    let mut found = Vec::new();
    for directory in ["orchestrator/src", "guest-agent/src", "contract/src"] {
        let mut waiting = vec![root().join(directory)];
        while let Some(path) = waiting.pop() {
            if path.is_dir() {
                waiting.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            } else if path.ends_with("tests.rs") {
                found.push(fs::read_to_string(path).unwrap());
            }
        }
    }
    found
}

#[test]
fn every_fault_of_the_lab_is_listed() {
    let page = read("docs/lab.md");
    let known = quoted(&page);
    let code = read("tests/lab/src/faults.rs");
    let body = code.split("enum Action {").nth(1).and_then(|rest| rest.split("\n}\n").next()).unwrap();
    let mut seen = 0;
    let mut renamed = None;
    for line in body.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("#[serde(rename = \"") {
            renamed = name.split('"').next().map(str::to_owned);
        } else if line.starts_with(|first: char| first.is_ascii_uppercase()) {
            let variant: String = line.chars().take_while(char::is_ascii_alphanumeric).collect();
            let name = renamed.take().unwrap_or_else(|| snake(&variant));
            assert!(known.contains(name.as_str()), "docs/lab.md does not name the fault {name}");
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen} faults");
}

fn snake(name: &str) -> String {
    let mut out = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(letter.to_ascii_lowercase());
    }
    out
}

#[test]
fn the_watchdog_outlasts_a_pass() {
    let unit = read("systemd/ctrlable.service");
    let watchdog: u64 =
        unit.lines().find_map(|line| line.strip_prefix("WatchdogSec=")?.strip_suffix('s')?.parse().ok()).unwrap();
    let code = read("orchestrator/src/serve.rs");
    let seconds = |name: &str| -> u64 {
        let rest = code.split(&format!("const {name}: Duration = Duration::from_secs(")).nth(1).unwrap();
        rest.split(')').next().unwrap().parse().unwrap()
    };
    // The pause before a pass grows by up to a tenth, by chance.
    let longest = seconds("LONGEST_PASS") + seconds("PASS") * 11 / 10;
    assert!(watchdog > longest, "a slow pass would be killed: {watchdog} s, and a turn may take {longest} s");
}

/// End-to-end tests are called by name, each in its own way; a new one must not be forgotten.
#[test]
fn every_end_to_end_test_is_called() {
    let manifest = read("tests/Cargo.toml");
    let called = read("ci/test");
    let names = manifest.split("[[test]]\nname = \"").skip(1).filter_map(|rest| rest.split('"').next());
    let missing: Vec<&str> = names.filter(|name| !called.contains(&format!("--test {name} "))).collect();
    assert!(missing.is_empty(), "ci/test does not call {missing:?}");
}
