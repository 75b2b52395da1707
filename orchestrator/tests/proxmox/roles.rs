//! The role that doctor prints, made in the lab as an administrator would: it is enough, nothing in it is too much, and
//! each privilege that is taken from it or added to it is named, and no other.

use std::collections::BTreeSet;

use contract::secret::Secret;
use orchestrator::doctor::gather::gather;
use orchestrator::doctor::privileges::print_role;
use orchestrator::doctor::{Expectation, Finding, Level, Machines, examine};
use orchestrator::proxmox::{Client, Settings};
use orchestrator::template::adopt;
use reqwest::Method;
use serde_json::{Value, json};

use crate::lab::{Lab, adoption, expectation};

/// A node, its administrator, and the site's token as doctor wants it.
struct Installed {
    admin: reqwest::Client,
    base: String,
    secret: String,
    site: Client,
    expected: Expectation,
    _lab: Lab,
}

const USER: &str = "orchestrator@pve";
const TOKEN: &str = "site";

impl Installed {
    async fn new(pve: &str, machines: Machines) -> Option<Self> {
        let lab = Lab::start(pve).await?;
        lab.template("9000", "lxc").await;
        adopt(&lab.client(), &adoption(9000)).await.unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ca = reqwest::Certificate::from_pem(lab.read("ca").as_bytes()).unwrap();
        let admin = reqwest::Client::builder().tls_certs_only([ca]).build().unwrap();
        let base = lab.ready["url"].as_str().unwrap().trim_end_matches('/').to_owned();
        let secret = lab.read("root_token").trim().to_owned();
        let expected = Expectation { machines, ..expectation() };
        let site = lab.client();
        let mut installed = Self { admin, base, secret, site, expected, _lab: lab };
        let major = pve.split('.').next().unwrap().parse().unwrap();
        let commands = print_role(&installed.expected, major, USER, TOKEN);
        for command in commands.lines().filter(|line| !line.starts_with('#')) {
            installed.run(command).await;
        }
        Some(installed)
    }

    async fn call(&self, method: Method, path: &str, body: &Value) -> Value {
        let request = self.admin.request(method, format!("{}{path}", self.base));
        // Proxmox refuses a question with a body.
        let request = if body.is_null() { request } else { request.json(body) };
        let response = request.header("authorization", format!("PVEAPIToken={}", self.secret)).send().await.unwrap();
        let (status, text) = (response.status(), response.text().await.unwrap());
        assert!(status.is_success(), "{path} {body}: {status} {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    async fn api(&self, method: Method, path: &str, body: Value) -> Value {
        self.call(method, &format!("/api2/json{path}"), &body).await["data"].take()
    }

    /// What `pveum` would do.
    async fn run(&mut self, command: &str) {
        let words: Vec<String> = words(command);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            ["pveum", "role", "add", role, "--privs", privileges] => {
                let known = self.api(Method::GET, "/access/roles", Value::Null).await;
                let known = known.as_array().unwrap().iter().any(|row| row["roleid"] == role);
                let method = if known { Method::PUT } else { Method::POST };
                let path = if known { format!("/access/roles/{role}") } else { "/access/roles".to_owned() };
                let mut body = json!({ "privs": privileges.replace(' ', ",") });
                if !known {
                    body["roleid"] = role.into();
                }
                self.api(method, &path, body).await;
            }
            // The lab has made it, and the template is in it.
            ["pveum", "pool", "add", "ctrlable"] => {}
            ["pveum", "user", "add", user, "--comment", comment] => {
                self.api(Method::POST, "/access/users", json!({ "userid": user, "comment": comment })).await;
            }
            ["pveum", "user", "token", "add", user, token, "--privsep", "1", ..] => {
                let path = format!("/access/users/{user}/token/{token}");
                let made = self.api(Method::POST, &path, json!({ "privsep": 1 })).await;
                let secret = Secret::new(format!("{user}!{token}={}", made["value"].as_str().unwrap()));
                self.site = Client::new(Settings { token: secret, ..self._lab.settings() }).unwrap();
            }
            ["pveum", "acl", "modify", path, whom, id, "--roles", role] => {
                let mut body = json!({ "path": path, "roles": role });
                body[whom.trim_start_matches('-')] = id.into();
                self.api(Method::PUT, "/access/acl", body).await;
            }
            _ => panic!("not a command that the lab knows: {command}"),
        }
    }

    async fn findings(&self) -> Vec<Finding> {
        examine(&self.expected, &gather(&self.site, &self.expected).await)
    }

    /// Privileges that the findings of one check name.
    async fn named(&self, check: &str) -> BTreeSet<String> {
        let findings = self.findings().await;
        let texts = findings.iter().filter(|finding| finding.check == check && finding.level != Level::Ok);
        texts
            .flat_map(|finding| finding.text.split([' ', ',', ':']))
            .filter(|word| word.contains('.') && word.starts_with(|first: char| first.is_ascii_uppercase()))
            .map(str::to_owned)
            .collect()
    }
}

/// The words of a command line, quotes taken off.
fn words(command: &str) -> Vec<String> {
    let (mut words, mut quote) = (vec![String::new()], None);
    for letter in command.chars() {
        match (letter, quote) {
            ('"' | '\'', None) => quote = Some(letter),
            (letter, Some(open)) if letter == open => quote = None,
            (' ', None) => words.push(String::new()),
            (letter, _) => words.last_mut().unwrap().push(letter),
        }
    }
    words
}

/// Privileges of the printed roles.
fn printed(expected: &Expectation, pve: &str) -> BTreeSet<String> {
    let commands = print_role(expected, pve.split('.').next().unwrap().parse().unwrap(), USER, TOKEN);
    let roles = commands.lines().filter_map(|line| line.split_once("--privs \"")?.1.strip_suffix('"'));
    roles.flat_map(|list| list.split(' ')).map(str::to_owned).collect()
}

fn only(privilege: &str) -> BTreeSet<String> {
    BTreeSet::from([privilege.to_owned()])
}

#[tokio::test]
async fn the_printed_role_is_enough_and_each_privilege_taken_from_it_is_missed_by_name() {
    for (pve, machines) in [("9.2", Machines::Used), ("9.2", Machines::Unused), ("8.4", Machines::Used)] {
        let Some(node) = Installed::new(pve, machines).await else { return };
        let bad: Vec<_> = node.findings().await.into_iter().filter(|finding| finding.level != Level::Ok).collect();
        assert!(bad.is_empty(), "{pve} {machines:?}: {bad:#?}");
        let privileges = printed(&node.expected, pve);
        assert!(privileges.len() >= 17, "{privileges:?}");
        for privilege in &privileges {
            let body = json!({ "privilege": privilege });
            node.call(Method::POST, "/lab/revoke", &body).await;
            assert_eq!(node.named("privileges").await, only(privilege), "{pve} {machines:?} without {privilege}");
            assert_eq!(node.named("superfluous").await, BTreeSet::new(), "{pve} {machines:?} without {privilege}");
            node.call(Method::POST, "/lab/restore", &body).await;
        }
        assert_eq!(node.named("privileges").await, BTreeSet::new(), "all were given back");
        println!("{pve}, {machines:?}: {} privileges, each missed by its name", privileges.len());
    }
}

#[tokio::test]
async fn each_privilege_added_to_the_printed_role_is_named_as_superfluous() {
    for (pve, machines) in [("9.2", Machines::Unused), ("8.4", Machines::Used)] {
        let Some(node) = Installed::new(pve, machines).await else { return };
        let roles = node.api(Method::GET, "/access/roles", Value::Null).await;
        let role = |wanted: &str| -> BTreeSet<String> {
            let row = roles.as_array().unwrap().iter().find(|row| row["roleid"] == wanted).unwrap();
            row["privs"].as_str().unwrap().split(',').map(str::to_owned).collect()
        };
        let (all, own) = (role("Administrator"), role("CtrlableSite"));
        let mut added = 0;
        for privilege in all.difference(&own) {
            let wider = own.iter().chain([privilege]).cloned().collect::<Vec<_>>().join(",");
            node.api(Method::PUT, "/access/roles/CtrlableSite", json!({ "privs": wider })).await;
            assert_eq!(node.named("superfluous").await, only(privilege), "{pve} with {privilege}");
            assert_eq!(node.named("privileges").await, BTreeSet::new(), "{pve} with {privilege}");
            added += 1;
        }
        let own = own.into_iter().collect::<Vec<_>>().join(",");
        node.api(Method::PUT, "/access/roles/CtrlableSite", json!({ "privs": own })).await;
        // On a path where the site has no business at all, nothing is right.
        let rule = |delete| json!({ "path": "/vms/105", "roles": "CtrlableSite", "users": USER, "delete": delete });
        let of_token = |delete| {
            let mut rule = rule(delete);
            rule.as_object_mut().unwrap().remove("users");
            rule["tokens"] = format!("{USER}!{TOKEN}").into();
            rule
        };
        node.api(Method::PUT, "/access/acl", rule(0)).await;
        node.api(Method::PUT, "/access/acl", of_token(0)).await;
        assert_eq!(node.named("superfluous").await, role("CtrlableSite"), "{pve} on a guest of somebody else");
        node.api(Method::PUT, "/access/acl", rule(1)).await;
        assert_eq!(node.named("superfluous").await, BTreeSet::new());
        println!("{pve}, {machines:?}: {added} privileges, each named as superfluous");
    }
}
