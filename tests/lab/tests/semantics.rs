//! What a client of Proxmox has to live with: locks, late permissions, faults, power losses.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Lab, until};
use serde_json::{Value, json};

const CLONE: &str = "/nodes/pve1/lxc/100/clone";

fn slow_clone(lab: &Lab, ms: u64) {
    let action = json!({"kind": "task_delay", "ms": ms});
    lab.control("POST", "/faults", &json!({"method": "POST", "path": "**/clone", "action": action}));
}

fn clone(lab: &Lab, newid: u32) -> Value {
    let answer = lab.api("POST", CLONE, &format!("newid={newid}&full=1&pool=ctrlable&hostname=guest"));
    assert_eq!(answer.status, 200, "{}", answer.reason);
    answer.data()
}

fn net0(lab: &Lab, vmid: u32) -> String {
    let config = lab.api("GET", &format!("/nodes/pve1/lxc/{vmid}/config?current=1"), "").data();
    config["net0"].as_str().unwrap().to_owned()
}

#[test]
fn clones_of_one_template_are_serial_and_hidden_until_they_join_their_pool() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(dir.path(), &[]);
    lab.template(100);
    slow_clone(&lab, 700);
    let first = clone(&lab, 200);
    let second = lab.api("POST", CLONE, "newid=201&full=1&pool=ctrlable");
    assert_eq!((second.status, second.reason.as_str()), (500, "CT is locked (disk)"));
    let hidden = lab.api("GET", "/nodes/pve1/lxc/200/config", "");
    assert_eq!((hidden.status, hidden.reason.as_str()), (403, "Permission check failed (/vms/200, VM.Audit)"));
    let seen = lab.admin("GET", "/nodes/pve1/lxc/200/config", "").data();
    assert_eq!(seen["lock"], "create");
    assert!(seen["rootfs"].is_null(), "it has no disk yet");
    assert_eq!(lab.wait(&first), "OK");
    let done = lab.api("GET", "/nodes/pve1/lxc/200/config", "").data();
    assert!(done["lock"].is_null() && done["rootfs"].is_string());
    let third = clone(&lab, 201);
    assert_eq!(lab.wait(&third), "OK");
    assert_ne!(net0(&lab, 200), net0(&lab, 201), "every clone has a MAC of its own");

    let journal = lab.control("GET", "/log", &Value::Null);
    let mut clones: Vec<(u64, u64)> = journal
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["what"] == "task" && entry["subject"].as_str().unwrap().contains(":vzclone:"))
        .map(|entry| (entry["started"].as_u64().unwrap(), entry["ended"].as_u64().unwrap()))
        .collect();
    clones.sort_unstable();
    assert_eq!(clones.len(), 2);
    assert!(clones.windows(2).all(|pair| pair[0].1 < pair[1].0), "no two overlapped");
}

#[test]
fn a_power_loss_in_mid_clone_leaves_both_locks_and_only_the_host_can_clear_them() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(dir.path(), &[]);
    lab.template(100);
    let kept = clone(&lab, 200);
    assert_eq!(lab.wait(&kept), "OK");
    let before = lab.api("GET", "/nodes/pve1/lxc/200/config", "").data();
    slow_clone(&lab, 60_000);
    let task = clone(&lab, 201);
    let token = lab.token.clone();

    let lab = lab.kill_and_restart();
    assert_eq!(lab.token, token, "credentials survive");
    assert_eq!(lab.wait(&task), "unexpected status");
    assert_eq!(lab.api("GET", "/nodes/pve1/lxc/200/config", "").data(), before, "so do guests, digest included");
    assert_eq!(lab.admin("GET", "/nodes/pve1/lxc/100/config", "").data()["lock"], "disk");
    let gone = lab.admin("DELETE", "/nodes/pve1/lxc/201?force=1&purge=1", "");
    assert_eq!(gone.reason, "CT is locked (create)");
    assert_eq!(lab.api("POST", CLONE, "newid=202&full=1&pool=ctrlable").reason, "CT is locked (disk)");
    lab.control("POST", "/unlock", &json!({"vmid": 100}));
    assert_eq!(lab.wait(&clone(&lab, 202)), "OK");
}

#[test]
fn a_running_guest_survives_a_restart_and_reports_its_addresses_after_a_moment() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(dir.path(), &[]);
    lab.template(100);
    lab.wait(&clone(&lab, 200));
    let net = "net0=name%3Deth0%2Cbridge%3Dvmbr0%2Cip%3D10.77.0.20%2F24%2Cgw%3D10.77.0.1";
    assert_eq!(lab.api("PUT", "/nodes/pve1/lxc/200/config", net).status, 200);
    assert_eq!(lab.api("GET", "/nodes/pve1/lxc/200/interfaces", "").body, r#"{"data":null}"#);
    let start = lab.api("POST", "/nodes/pve1/lxc/200/status/start", "").data();
    assert_eq!(lab.wait(&start), "OK");
    let address = |lab: &Lab| {
        let rows = lab.api("GET", "/nodes/pve1/lxc/200/interfaces", "").data();
        rows[1]["ip-addresses"][0]["ip-address"].as_str().map(str::to_owned)
    };
    assert_eq!(until(|| address(&lab)), "10.77.0.20");
    let lab = lab.kill_and_restart();
    assert_eq!(until(|| address(&lab)), "10.77.0.20");
    assert_eq!(lab.api("POST", "/nodes/pve1/lxc/200/status/start", "").reason, "CT 200 already running");
}

#[test]
fn an_interrupted_clone_cleans_up_after_itself() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(dir.path(), &[]);
    lab.template(100);
    slow_clone(&lab, 60_000);
    let task = clone(&lab, 200);
    let path = format!("/nodes/pve1/tasks/{}", task.as_str().unwrap());
    assert_eq!(lab.api("DELETE", &path, "").status, 200);
    assert_eq!(lab.wait(&task), "clone failed: interrupted by signal");
    let missing = lab.admin("GET", "/nodes/pve1/lxc/200/config", "");
    assert_eq!(missing.reason, "Configuration file 'nodes/pve1/lxc/200.conf' does not exist");
    assert_eq!(lab.wait(&clone(&lab, 200)), "OK");
}

#[test]
fn a_polite_end_interrupts_clones_cleanly() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(dir.path(), &[]);
    lab.template(100);
    slow_clone(&lab, 60_000);
    let task = clone(&lab, 200);
    let lab = lab.end_and_restart();
    assert_eq!(lab.wait(&task), "clone failed: interrupted by signal");
    assert_eq!(lab.wait(&clone(&lab, 200)), "OK");
}

#[test]
fn recorded_timings_take_their_time_and_the_task_shows_it() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(dir.path(), &["--timings", "recorded"]);
    lab.template(100);
    let task = clone(&lab, 200);
    let path = format!("/nodes/pve1/tasks/{}/status", task.as_str().unwrap());
    assert_eq!(lab.api("GET", &path, "").data()["status"], "running");
    assert_eq!(lab.wait(&task), "OK");
}

#[test]
fn faults_strike_as_told() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(dir.path(), &[]);
    lab.template(100);
    let rule = |method: &str, path: &str, action: Value| {
        lab.control("POST", "/faults", &json!({"method": method, "path": path, "action": action}));
    };
    rule("POST", "**/clone", json!({"kind": "after_success_596"}));
    let slow = lab.api("POST", CLONE, "newid=200&full=1&pool=ctrlable");
    assert_eq!((slow.status, slow.reason.as_str(), slow.body.as_str()), (596, "Connection timed out", ""));
    lab.settle("pve1");
    assert_eq!(lab.api("GET", "/nodes/pve1/lxc/200/config", "").status, 200, "it was done all the same");

    rule("PUT", "**/config", json!({"kind": "saved_but_500"}));
    assert_eq!(lab.api("PUT", "/nodes/pve1/lxc/200/config", "cores=2").status, 500);
    assert_eq!(lab.api("GET", "/nodes/pve1/lxc/200/config", "").data()["cores"], 2);

    rule("GET", "/version", json!({"kind": "drop"}));
    assert!(lab.try_call(&lab.token, "GET", "/api2/json/version", "").is_none());
    rule("GET", "/version", json!({"kind": "error", "status": 503, "message": "busy"}));
    assert_eq!(lab.api("GET", "/version", "").status, 503);
    assert_eq!(lab.api("GET", "/version", "").status, 200, "each rule is spent");

    rule("POST", "**/clone", json!({"kind": "cfs_lock_timeout"}));
    let end = lab.wait(&clone(&lab, 201));
    assert!(end.starts_with("clone failed: can't add VM 201 to pool 'ctrlable': cfs-lock"), "{end}");
    rule("POST", "**/clone", json!({"kind": "storage_full"}));
    let end = lab.wait(&clone(&lab, 201));
    assert!(end.starts_with("clone failed: lvcreate 'pve/vm-201-disk-0' error:"), "{end}");
    rule("POST", "**/start", json!({"kind": "task_warnings", "count": 2}));
    let start = lab.api("POST", "/nodes/pve1/lxc/200/status/start", "").data();
    assert_eq!(lab.wait(&start), "WARNINGS: 2");
    rule("PUT", "/nodes/pve1/lxc/200/config", json!({"kind": "stale_lock", "lock": "backup"}));
    assert_eq!(lab.api("PUT", "/nodes/pve1/lxc/200/config", "cores=1").reason, "CT is locked (backup)");
    assert_eq!(lab.api("PUT", "/nodes/pve1/lxc/200/config", "cores=1").reason, "CT is locked (backup)");
    assert_eq!(lab.control("GET", "/faults", &Value::Null), json!([]));
}

#[test]
fn a_full_storage_fails_the_clone_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(dir.path(), &[]);
    lab.template(100);
    lab.control("POST", "/storage", &json!({"storage": "local-lvm", "capacity": 600_u64 << 20}));
    let end = lab.wait(&clone(&lab, 200));
    assert!(end.contains("lvcreate"), "{end}");
    let rows = lab.admin("GET", "/nodes/pve1/storage/local-lvm/content", "").data();
    assert_eq!(rows.as_array().unwrap().len(), 1, "the template's disk alone");
    assert!(lab.admin("GET", "/nodes/pve1/lxc/100/config", "").data()["lock"].is_null());
}

#[test]
fn an_older_node_tells_only_in_the_reason_phrase() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(dir.path(), &["--pve", "8.2"]);
    let answer = lab.admin("GET", "/nodes/pve1/lxc/100/config", "");
    assert_eq!(answer.reason, "Configuration file 'nodes/pve1/lxc/100.conf' does not exist");
    assert_eq!(answer.body, r#"{"data":null}"#);
}

#[test]
fn the_resource_view_lags_and_status_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(dir.path(), &[]);
    lab.template(100);
    lab.wait(&clone(&lab, 200));
    let row = || {
        let rows = lab.api("GET", "/cluster/resources?type=vm", "").data();
        rows.as_array().unwrap().iter().find(|row| row["vmid"] == 200).cloned().unwrap()
    };
    let first = row();
    assert_eq!(first["status"], "unknown");
    assert!(first["name"].is_null());
    assert_eq!(first["pool"], "ctrlable", "some columns are live");
    assert_eq!(lab.api("GET", "/nodes/pve1/lxc/200/status/current", "").data()["status"], "stopped");
    row();
    assert_eq!(row()["status"], "stopped", "the third look is the cache's");
}

#[test]
fn one_privilege_can_be_taken_away_and_the_control_endpoint_is_for_root() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(dir.path(), &[]);
    lab.template(100);
    lab.control("POST", "/revoke", &json!({"privilege": "Datastore.AllocateSpace"}));
    let refused = lab.api("POST", CLONE, "newid=200&full=1&pool=ctrlable");
    assert_eq!(refused.reason, "Permission check failed (/storage/local-lvm, Datastore.AllocateSpace)");
    lab.control("POST", "/restore", &json!({"privilege": "Datastore.AllocateSpace"}));
    assert_eq!(lab.wait(&clone(&lab, 200)), "OK");
    assert_eq!(lab.call(&lab.token, "GET", "/lab/log", "").status, 403);
    assert_eq!(lab.call("root@pam!lab=guess", "GET", "/lab/log", "").status, 403);
}

#[test]
fn plain_http_is_redirected_and_too_much_is_refused() {
    use std::io::{Read, Write};
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(dir.path(), &[]);
    let announced: Value = serde_json::from_slice(&std::fs::read(dir.path().join("lab.json")).unwrap()).unwrap();
    let address = announced["url"].as_str().unwrap().trim_start_matches("https://").to_owned();
    let mut socket = std::net::TcpStream::connect(address).unwrap();
    socket.write_all(b"GET /x HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 301 "), "{answer}");
    let token = &lab.token;
    let big = format!(
        "POST /api2/json/pools HTTP/1.1\r\nAuthorization: PVEAPIToken={token}\r\nContent-Length: 600000\r\n\r\n"
    );
    assert_eq!(lab.raw(big.as_bytes()).unwrap().reason, "for data too large");
}

#[tokio::test]
async fn an_ordinary_client_keeps_its_connection_and_trusts_the_ca() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(dir.path(), &[]);
    let ca = std::fs::read(dir.path().join("pve-root-ca.pem")).unwrap();
    let client =
        reqwest::Client::builder().tls_certs_only([reqwest::Certificate::from_pem(&ca).unwrap()]).build().unwrap();
    let announced: Value = serde_json::from_slice(&std::fs::read(dir.path().join("lab.json")).unwrap()).unwrap();
    let url = format!("{}/api2/json/version", announced["url"].as_str().unwrap());
    for _ in 0..3 {
        let request = client.get(&url).header("Authorization", format!("PVEAPIToken={}", lab.token));
        let version: Value = request.send().await.unwrap().json().await.unwrap();
        assert_eq!(version["data"]["release"], "9.2");
    }
    let refused = client.get(&url).send().await.unwrap();
    assert_eq!(refused.status(), 401);
    assert_eq!(refused.headers()["connection"], "close");
    assert!(refused.headers().get("content-length").is_none());
}
