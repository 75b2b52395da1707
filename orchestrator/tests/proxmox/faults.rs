//! What a slow, old, broken or false Proxmox does, and what the client makes of it.

use std::time::Duration;

use contract::ids::Vlan;
use contract::manifest::GuestKind;
use orchestrator::proxmox::{
    Addressing, Backup, BackupMode, Client, CloneMode, CloneRequest, ConfigChange, Disposition, GuestRef, Leftovers,
    Net, Problem, ProxmoxError, ServerTrust, Settings, TaskEnd, Upid,
};
use tokio::time::Instant;

use crate::server::{Act, SECRET, Server, data, error};

const UPID: &str = "UPID:pve1:000006A5:0006CE26:6B00437B:vzclone:100:ctrlable@pve!site:";

fn guest() -> GuestRef {
    GuestRef { kind: GuestKind::Lxc, node: "pve1".parse().unwrap(), vmid: 900.try_into().unwrap() }
}

fn machine() -> GuestRef {
    GuestRef { kind: GuestKind::Vm, ..guest() }
}

fn clone_request() -> CloneRequest {
    CloneRequest {
        vmid: 901.try_into().unwrap(),
        name: "ctrlable-acme-zigbee".parse().unwrap(),
        pool: Some("site/acme".parse().unwrap()),
        description: Some("a=b;c&d\n".to_owned()),
        storage: Some("local-lvm".parse().unwrap()),
        target: None,
        mode: CloneMode::Full,
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(120)
}

fn check(error: &ProxmoxError, reason: &str) {
    assert_eq!(error.reason(), reason, "{error}");
    assert!(!format!("{error} {error:?}").contains(SECRET));
}

#[tokio::test]
async fn a_call_is_sent_as_proxmox_wants_it() {
    let upid = format!("\"{UPID}\"");
    let server = Server::start(vec![data(&upid), data(&upid), data(&upid), data("null"), data(&upid)]).await;
    let client = server.client();
    assert_eq!(client.clone_guest(&guest(), &clone_request()).await.unwrap().as_str(), UPID);
    client.destroy(&guest(), Leftovers::Keep).await.unwrap();
    client.start(&machine()).await.unwrap();
    let net = Net::container(&"vmbr0".parse().unwrap())
        .with_vlan(Some(Vlan::try_from(20).unwrap()))
        .with_addressing(Addressing::Dhcp)
        .with_mac("BC:24:11:00:00:01".parse().unwrap());
    let change = ConfigChange { net0: Some(net), memory: Some(512), ..ConfigChange::default() };
    client.configure(&guest(), &change, None).await.unwrap();
    client.resize(&guest(), "rootfs", 8, None).await.unwrap();

    let seen = server.script.seen();
    assert_eq!(seen[0].line(), "POST /api2/json/nodes/pve1/lxc/900/clone HTTP/1.1");
    assert_eq!(
        seen[0].body,
        "newid=901&hostname=ctrlable-acme-zigbee&full=1&pool=site%2Facme&description=a%3Db%3Bc%26d%0A&storage=local-lvm"
    );
    assert!(seen[0].head.contains(&format!("authorization: PVEAPIToken=ctrlable@pve!site={SECRET}\r\n")));
    assert!(seen[0].head.contains("content-type: application/x-www-form-urlencoded\r\n"));
    // Options of DELETE go into the query, without a body.
    assert_eq!(seen[1].line(), "DELETE /api2/json/nodes/pve1/lxc/900?purge=1&destroy-unreferenced-disks=0 HTTP/1.1");
    assert!(seen[1].body.is_empty());
    // An empty body has a length; chunked is refused by Proxmox.
    assert_eq!(seen[2].line(), "POST /api2/json/nodes/pve1/qemu/900/status/start HTTP/1.1");
    assert!(seen[2].head.contains("content-length: 0\r\n"), "{}", seen[2].head);
    assert_eq!(seen[3].line(), "PUT /api2/json/nodes/pve1/lxc/900/config HTTP/1.1");
    assert_eq!(
        seen[3].body,
        "memory=512&net0=name%3Deth0%2Cbridge%3Dvmbr0%2Chwaddr%3DBC%3A24%3A11%3A00%3A00%3A01%2Cip%3Ddhcp%2Ctag%3D20"
    );
    assert_eq!(seen[4].body, "disk=rootfs&size=8G");
    assert!(seen.iter().all(|request| !request.head.contains("transfer-encoding")));
    // Kept alive between good answers.
    assert_eq!(server.script.connections(), 1);
}

#[tokio::test]
async fn a_change_is_never_sent_twice_and_its_outcome_is_uncertain() {
    let torn = Act::SendAndClose("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"data\":".to_owned());
    for (act, reason) in [
        (error(596, "Connection timed out", ""), "relay"),
        (error(597, "Broken pipe", ""), "relay"),
        (error(502, "Bad Gateway", "<html>"), "relay"),
        (Act::Drop, "no-answer"),
        (Act::Hang, "no-answer"),
        (torn, "no-answer"),
        (data("\"not a task\""), "unreadable-answer"),
        (Act::Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi".to_owned()), "unreadable-answer"),
    ] {
        let server = Server::start(vec![act]).await;
        let failed = server.hasty_client().clone_guest(&guest(), &clone_request()).await.unwrap_err();
        check(&failed, reason);
        assert_eq!(failed.disposition(), Disposition::Uncertain, "{failed}");
        assert_eq!(server.script.seen().len(), 1, "{failed}");
    }
}

#[tokio::test]
async fn a_relay_that_found_no_node_did_nothing() {
    let server = Server::start(vec![error(595, "No route to host", "")]).await;
    let failed = server.client().start(&guest()).await.unwrap_err();
    check(&failed, "node-unreachable");
    assert!(matches!(failed.disposition(), Disposition::Retry { .. }));
}

#[tokio::test]
async fn a_failed_config_write_may_have_been_saved() {
    let body = r#"{"data":null,"message":"bridge 'vmbr77' does not exist\n"}"#;
    let server = Server::start(vec![error(500, "bridge 'vmbr77' does not exist", body)]).await;
    let change = ConfigChange { cores: Some(1), ..ConfigChange::default() };
    let failed = server.client().configure(&guest(), &change, None).await.unwrap_err();
    check(&failed, "bridge-problem");
    assert_eq!(failed.disposition(), Disposition::Uncertain);
}

#[tokio::test]
async fn a_read_is_repeated_a_few_times() {
    let server = Server::start(vec![
        error(596, "Broken pipe", ""),
        Act::Drop,
        data(r#"{"release":"8.4","version":"8.4.21","repoid":"x"}"#),
    ])
    .await;
    assert_eq!(server.client().version().await.unwrap().release.to_string(), "8.4");

    let server = Server::start(vec![Act::Drop; 10]).await;
    check(&server.client().version().await.unwrap_err(), "no-answer");
    assert_eq!(server.script.seen().len(), 3);
}

#[tokio::test]
async fn an_answer_in_pieces_is_put_together() {
    let body = "10\r\n{\"data\":{\"releas\r\n1c\r\ne\":\"9.2\",\"version\":\"9.2.1\"}}\r\n0\r\n\r\n";
    let server =
        Server::start(vec![Act::Send(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}"))]).await;
    assert_eq!(server.client().version().await.unwrap().full, "9.2.1");
}

#[tokio::test]
async fn what_will_not_pass_is_not_repeated() {
    for (act, reason) in [
        (error(401, "Authentication failed!", ""), "token-refused"),
        // Closed without a length, as Proxmox does here, and perhaps without TLS's good-bye.
        (Act::SendAndVanish("HTTP/1.1 401 No ticket\r\nConnection: close\r\n\r\n".to_owned()), "token-refused"),
        (Act::SendAndClose("HTTP/1.1 401 No ticket\r\nConnection: close\r\n\r\n".to_owned()), "token-refused"),
        (error(403, "Permission check failed (/nodes/pve1, Sys.Audit)", "{\"data\":null}"), "missing-privilege"),
        (error(301, "Moved", ""), "unreadable-answer"),
        (error(501, "Method 'GET /x' not implemented", ""), "not-implemented"),
    ] {
        let server = Server::start(vec![act]).await;
        let failed = server.client().version().await.unwrap_err();
        check(&failed, reason);
        assert_eq!(server.script.seen().len(), 1);
    }
}

#[tokio::test]
async fn an_old_node_says_it_only_in_the_reason_phrase() {
    for (status, phrase, body, reason) in [
        (500, "CT is locked (disk)", r#"{"data":null}"#, "locked"),
        (500, "CT is locked (disk)", "", "locked"),
        (500, "storage 'nosuch' does not exist", r#"{"data":null}"#, "storage-problem"),
        (403, "Permission check failed (/vms/900, VM.Audit)", r#"{"data":null}"#, "not-visible"),
        (400, "Parameter verification failed.", r#"{"data":null,"errors":{"newid":"x"}}"#, "parameter"),
        (500, "can't lock file '/run/lock/lxc/pve-config-900.lock' - got timeout", r#"{"data":null}"#, "lock-timeout"),
    ] {
        let server = Server::start(vec![error(status, phrase, body)]).await;
        check(&server.client().clone_guest(&guest(), &clone_request()).await.unwrap_err(), reason);
    }
}

#[tokio::test]
async fn connections_are_made_anew_after_an_error_closed_them() {
    let version = data(r#"{"release":"9.2","version":"9.2.11"}"#);
    let server = Server::start(vec![error(500, "CT is locked (disk)", ""), version.clone(), version]).await;
    let client = server.client();
    check(&client.start(&guest()).await.unwrap_err(), "locked");
    client.version().await.unwrap();
    client.version().await.unwrap();
    assert_eq!(server.script.connections(), 2);
}

#[tokio::test]
async fn a_new_guest_that_cannot_be_made_is_a_missing_right() {
    let refused = error(403, "Permission check failed (/vms/901, VM.Allocate)", "");
    let server = Server::start(vec![refused.clone(), refused]).await;
    let client = server.client();
    let failed = client.clone_guest(&guest(), &clone_request()).await.unwrap_err();
    let expected =
        Problem::MissingPrivilege { path: Some("/vms/901".to_owned()), privilege: Some("VM.Allocate".to_owned()) };
    assert_eq!(*failed.problem(), expected);
    // The same words about a guest that should be there leave open whether it is.
    check(&client.start(&guest()).await.unwrap_err(), "not-visible");
}

#[tokio::test]
async fn a_server_that_repeats_the_token_does_not_get_it_into_errors() {
    let body = format!("{{\"data\":null,\"message\":\"bad header {SECRET}\"}}");
    let server = Server::start(vec![error(500, &format!("bad {SECRET}"), &body), error(500, SECRET, "")]).await;
    for _ in 0..2 {
        let failed = server.client().start(&guest()).await.unwrap_err();
        check(&failed, "other");
        assert!(failed.to_string().contains("[secret]"));
    }
    assert!(!format!("{:?} {:?}", server.client(), server.settings()).contains(SECRET));
}

#[tokio::test]
async fn only_the_pinned_server_is_believed() {
    let version = data(r#"{"release":"9.2","version":"9.2.11"}"#);
    let server = Server::start(vec![version.clone(), version.clone()]).await;
    let other = Server::start(Vec::new()).await;
    let with = |trust: ServerTrust, url: &str| {
        Client::new(Settings { server: trust, url: url.parse().unwrap(), ..server.settings() }).unwrap()
    };
    let pinned = with(ServerTrust::Fingerprint(server.fingerprint), &server.url);
    pinned.version().await.unwrap();
    server.client().version().await.unwrap();

    let wrong_ca = with(ServerTrust::Ca(other.ca.clone().into_bytes()), &server.url).version().await.unwrap_err();
    check(&wrong_ca, "tls-pin");
    let wrong_pin = with(ServerTrust::Fingerprint(other.fingerprint), &server.url).version().await.unwrap_err();
    check(&wrong_pin, "tls-pin");
    assert!(wrong_pin.to_string().contains(&server.fingerprint.to_string()), "names what it saw: {wrong_pin}");
    assert_eq!(wrong_pin.disposition(), Disposition::GiveUp);
    // The CA is right, the name is not in the certificate.
    let wrong_name = with(server.settings().server, &server.url.replace("127.0.0.1", "localhost")).version().await;
    check(&wrong_name.unwrap_err(), "tls-pin");
    assert_eq!(server.script.seen().len(), 2, "nothing was sent to a server that is not believed");
}

#[tokio::test]
async fn nobody_there_is_unreachable_and_may_be_tried_again() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let server = Server::start(Vec::new()).await;
    let settings = Settings { url: format!("https://127.0.0.1:{port}").parse().unwrap(), ..server.settings() };
    let failed = Client::new(settings).unwrap().start(&guest()).await.unwrap_err();
    check(&failed, "unreachable");
    assert!(
        matches!(failed.disposition(), Disposition::Retry { .. }),
        "nothing was sent, so a change may be tried again"
    );
}

#[tokio::test]
async fn a_node_is_asked_three_things_at_once_at_most() {
    let server = Server::start(vec![data(r#"{"uptime":1}"#); 12]).await;
    let client = server.client();
    let calls: Vec<_> = (0..12)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.node_status(&"pve1".parse().unwrap()).await.unwrap() })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    assert!(server.script.most_at_once() <= 3, "{}", server.script.most_at_once());
}

#[tokio::test]
async fn a_task_is_followed_through_trouble_to_its_end() {
    let upid: Upid = UPID.parse().unwrap();
    let running = data(r#"{"status":"running"}"#);
    let ended = |text: &str| data(&format!(r#"{{"status":"stopped","exitstatus":"{text}"}}"#));
    let server =
        Server::start(vec![running.clone(), Act::Drop, Act::Drop, Act::Drop, running.clone(), ended("WARNINGS: 1")])
            .await;
    let mut looks = 0;
    let end = server.client().wait_with(&upid, soon(), || looks += 1).await.unwrap();
    assert_eq!((end, looks), (TaskEnd::Warnings(1), 2));
    assert!(server.script.seen()[0].line().contains(&format!("/nodes/pve1/tasks/{UPID}/status ")));

    for (text, reason, disposition) in [
        ("CT is locked (backup)", "locked", Disposition::Wait { for_what: "the task that holds the guest's lock" }),
        ("clone failed: interrupted by signal", "state-changed", Disposition::Uncertain),
        ("unexpected status", "task-outcome-unknown", Disposition::Uncertain),
        ("something new", "task-failed", Disposition::GiveUp),
    ] {
        let server = Server::start(vec![ended(text)]).await;
        let failed = server.client().wait(&upid, soon()).await.unwrap_err();
        check(&failed, reason);
        assert_eq!(failed.disposition(), disposition);
    }

    let server = Server::start(vec![running; 50]).await;
    let failed = server.client().wait(&upid, Instant::now()).await.unwrap_err();
    check(&failed, "task-still-running");
}

#[tokio::test]
async fn a_backup_of_a_guest_that_is_not_there_is_not_taken_for_one() {
    let server = Server::start(vec![data("\"OK\"")]).await;
    let backup = Backup { storage: "local".parse().unwrap(), mode: BackupMode::Snapshot, notes: None };
    check(&server.client().backup(&guest(), &backup).await.unwrap_err(), "not-found");
    assert_eq!(server.script.seen()[0].body, "vmid=900&storage=local&mode=snapshot&compress=zstd&remove=0");
}

#[tokio::test]
async fn a_container_becomes_a_template_without_a_task_id() {
    let server = Server::start(vec![data("null"), data(&format!("\"{UPID}\""))]).await;
    let client = server.client();
    assert_eq!(client.to_template(&guest()).await.unwrap(), None);
    assert_eq!(client.to_template(&machine()).await.unwrap().unwrap().as_str(), UPID);
}
