//! `deny.toml` holds: licences, bans and sources of everything that is compiled, read from `cargo metadata`. It is what
//! `ci/deny` has cargo-deny check, which takes minutes to compile and would find advisories as well.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde::Deserialize;
use spdx::{Expression, Licensee, ParseMode};

#[derive(Deserialize)]
struct Deny {
    graph: Graph,
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
struct Graph {
    targets: Vec<String>,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
    exceptions: Vec<Exception>,
}

#[derive(Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
    #[serde(default)]
    wrappers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
    allow_git: Vec<String>,
}

#[derive(Deserialize, Clone)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
    workspace_members: BTreeSet<String>,
}

#[derive(Deserialize, Clone)]
struct Package {
    id: String,
    name: String,
    license: Option<String>,
    source: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize, Clone)]
struct Dependency {
    name: String,
    req: String,
    path: Option<String>,
}

#[derive(Deserialize, Clone)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize, Clone)]
struct Node {
    id: String,
    dependencies: Vec<String>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn deny() -> Deny {
    toml::from_str(&std::fs::read_to_string(root().join("deny.toml")).unwrap()).unwrap()
}

fn metadata(target: &str) -> Metadata {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["metadata", "--locked", "--format-version=1", "--all-features", "--filter-platform", target]);
    let out = command.current_dir(root()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let mut found: Metadata = serde_json::from_slice(&out.stdout).unwrap();
    // Optional dependencies that nobody switches on are listed and not built.
    let built: BTreeSet<&String> = found.resolve.nodes.iter().map(|node| &node.id).collect();
    found.packages.retain(|package| built.contains(&package.id));
    found
}

/// What is wrong, a line each.
fn judge(deny: &Deny, found: &Metadata) -> Vec<String> {
    let names: BTreeMap<&str, &str> = found.packages.iter().map(|found| (&*found.id, &*found.name)).collect();
    let mut wrong = Vec::new();
    for package in &found.packages {
        let name = &package.name;
        let exceptions = deny.licenses.exceptions.iter().filter(|exception| exception.name == *name);
        let allowed = deny.licenses.allow.iter().chain(exceptions.flat_map(|exception| &exception.allow));
        let allowed: Vec<Licensee> = allowed.map(|text| Licensee::parse(text).unwrap()).collect();
        // Some crates still write a slash for "or".
        let expression = package.license.as_deref().map(|text| Expression::parse_mode(text, ParseMode::LAX));
        let fits = matches!(&expression, Some(Ok(expression))
            if expression.evaluate(|wanted| allowed.iter().any(|one| one.satisfies(wanted))));
        if !fits {
            wrong.push(format!("licence: {name} is under {:?}", package.license));
        }
        let known = match &package.source {
            None => found.workspace_members.contains(&package.id),
            Some(source) => match source.split_once('+') {
                Some(("registry", index)) => deny.sources.allow_registry.iter().any(|allowed| allowed == index),
                Some(("git", url)) => deny.sources.allow_git.iter().any(|allowed| url.starts_with(allowed.as_str())),
                _ => false,
            },
        };
        if !known {
            wrong.push(format!("source: {name} comes from {:?}", package.source));
        }
        if found.workspace_members.contains(&package.id) {
            let any =
                package.dependencies.iter().filter(|dependency| dependency.req == "*" && dependency.path.is_none());
            wrong.extend(any.map(|dependency| format!("ban: {name} takes any version of {}", dependency.name)));
        }
    }
    for node in &found.resolve.nodes {
        let user = names.get(&*node.id).copied().unwrap_or_default();
        for used in node.dependencies.iter().filter_map(|id| names.get(&**id)) {
            let ban = deny.bans.deny.iter().find(|ban| ban.name == *used);
            if let Some(ban) = ban.filter(|ban| !ban.wrappers.iter().any(|wrapper| wrapper == user)) {
                wrong.push(format!("ban: {user} uses {used}: {}", ban.reason));
            }
        }
    }
    wrong
}

#[test]
fn dependencies_are_what_deny_toml_allows() {
    let deny = deny();
    for target in &deny.graph.targets {
        let found = metadata(target);
        assert!(found.packages.len() > 200, "{} packages", found.packages.len());
        assert_eq!(judge(&deny, &found), Vec::<String>::new(), "{target}");
    }
}

/// Each rule is one that something could break.
#[test]
fn what_deny_toml_forbids_is_found() {
    type Spoil = fn(&mut Metadata);
    fn package<'a>(found: &'a mut Metadata, name: &str) -> &'a mut Package {
        found.packages.iter_mut().find(|package| package.name == name).unwrap()
    }
    let deny = deny();
    let good = metadata(&deny.graph.targets[0]);
    let cases: &[(Spoil, &str)] = &[
        (
            |found| package(found, "hex").license = Some("MIT AND GPL-3.0-only".to_owned()),
            r#"licence: hex is under Some("MIT AND GPL-3.0-only")"#,
        ),
        (|found| package(found, "hex").license = None, "licence: hex is under None"),
        (
            |found| package(found, "hex").source = Some("git+https://example.com/hex".to_owned()),
            r#"source: hex comes from Some("git+https://example.com/hex")"#,
        ),
        (|found| package(found, "hex").source = None, "source: hex comes from None"),
        (
            |found| {
                let own = package(found, "orchestrator");
                let taken = own.dependencies.iter_mut().find(|dependency| dependency.name == "hex").unwrap();
                taken.req = "*".to_owned();
            },
            "ban: orchestrator takes any version of hex",
        ),
        (
            |found| {
                let tls = package(found, "openssl-sys").id.clone();
                let own = package(found, "orchestrator").id.clone();
                found.resolve.nodes.iter_mut().find(|node| node.id == own).unwrap().dependencies.push(tls);
            },
            "ban: orchestrator uses openssl-sys: for libgit2's transports only",
        ),
    ];
    for (spoil, wrong) in cases {
        let mut found = good.clone();
        spoil(&mut found);
        assert_eq!(judge(&deny, &found), [*wrong]);
    }
}
