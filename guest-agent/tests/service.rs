//! The real binary in a guest of make-believe: sealed, started, enrolled over real TLS, wired over a real bus.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use axum::http::StatusCode;
use contract::assignment::{AssignedFile, Assignment, FileFormat, Probe, TcpProbe};
use contract::enrolment::Problem;
use contract::floor::Floor;
use contract::health::WiringOutcome;
use contract::ids::Generation;
use contract::renewal::Renew;
use contract::secret::Redacted;
use serde_json::{Value, json};
use support::bus::{self, Bus};
use support::eventually;
use support::guest::{CLAIM, Guest, MACHINE_ID, OTHER_AGENT};
use support::orchestrator::{Authority, Orchestrator, digest};

const CONF: &str = "/etc/mosquitto/conf.d/wiring.conf";

fn assignment(generation: u64, merge: Value) -> Assignment {
    Assignment {
        protocol: contract::PROTOCOL,
        site: "acme-hq".parse().unwrap(),
        instance: "mqtt".parse().unwrap(),
        generation: Generation(generation),
        hostname: "ctrlable-acme-hq-mqtt".parse().unwrap(),
        release: "2026.06".parse().unwrap(),
        template: "mosquitto".parse().unwrap(),
        timezone: None,
        files: vec![AssignedFile {
            path: CONF.parse().unwrap(),
            format: FileFormat::Conf,
            mode: None,
            owner: None,
            merge: Redacted::new(merge),
        }],
        units: vec!["mosquitto.service".parse().unwrap()],
        probes: vec![Probe::Unit("mosquitto.service".parse().unwrap())],
    }
}

struct World {
    orchestrator: Orchestrator,
    bus: Bus,
    guest: Guest,
}

/// `None`, with the reason on stderr, where there is no dbus-daemon.
async fn world() -> Option<World> {
    if !bus::available() {
        eprintln!("skipped: dbus-daemon is not installed");
        return None;
    }
    let orchestrator = Orchestrator::start(Authority::new()).await;
    let guest = Guest::sealed(&orchestrator.url, &orchestrator.ca);
    let bus = Bus::start(guest.dir.path()).await;
    Some(World { orchestrator, bus, guest })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_clone_becomes_a_healthy_guest() {
    let Some(World { orchestrator, bus, guest }) = world().await else { return };
    orchestrator.assign(assignment(1, json!({ "listener": 1883, "password": "hunter2" })));
    let running = guest.start(&bus.address);
    let report = eventually("a report of generation 1", || {
        orchestrator.last_report().filter(|report| report.generation == Generation(1))
    })
    .await;

    // Identity: new, not the template's, and the same in what was enrolled and what is reported.
    let enrolment = orchestrator.book.lock().unwrap().enrolments[0].clone();
    assert_eq!(report.identity, enrolment.identity);
    assert_ne!(report.identity.sealed_machine_id.as_ref(), Some(&report.identity.machine_id));
    assert_ne!(guest.read("etc/machine-id").unwrap().trim(), MACHINE_ID);
    assert_eq!(report.identity.ssh_host_keys.len(), 2);
    assert!(guest.read("etc/ssh/ssh_host_rsa_key").is_none());
    assert_eq!(enrolment.claim.expose(), CLAIM);
    assert_eq!(enrolment.mac.to_string(), "BC:24:11:00:00:01");

    // Wiring.
    let conf = guest.read(CONF).unwrap();
    assert_eq!(conf, "listener 1883\npassword hunter2\n");
    let changed = vec![CONF.parse().unwrap()];
    assert_eq!(report.wiring.as_ref().unwrap().outcome, WiringOutcome::Applied { changed });
    assert_eq!(bus.calls(), ["subscribe", "restart mosquitto.service replace"]);
    assert!(report.problems().is_empty(), "{:?}", report.problems());
    let steps: Vec<_> = report.first_boot.iter().filter(|step| step.failure.is_none()).map(|step| &step.step).collect();
    assert_eq!(steps, ["machine-id", "ssh-host-keys", "enrol", "assignment", "wiring"]);

    // Secrets: the claim is gone from the disk, and nothing secret is in the log or in files of the agent.
    assert!(guest.files_with(CLAIM).is_empty(), "{:?}", guest.files_with(CLAIM));
    assert_eq!(guest.files_with("hunter2"), [guest.path(CONF)]);
    assert!(guest.log().contains("enrolled as acme-hq/mqtt"));

    // systemd: ready before the certificate was asked for, and a sentence.
    let told = guest.notifications();
    assert_eq!(told[0], "READY=1");
    assert!(told.iter().any(|line| line.starts_with("STATUS=acme-hq/mqtt: ")), "{told:?}");
    eventually("a sign of life", || guest.notifications().contains(&"WATCHDOG=1".to_owned()).then_some(())).await;

    // A broken unit is reported without being asked for, and so is its repair; the first boot is told only once.
    bus.set("mosquitto.service", "failed");
    let broken = eventually("a report of the broken unit", || {
        orchestrator.last_report().filter(|report| !report.problems().is_empty())
    })
    .await;
    assert_eq!(broken.units[0].active, "failed");
    assert!(broken.first_boot.is_empty() && broken.sequence > report.sequence);
    bus.set("mosquitto.service", "active");
    eventually("a report of the repair", || orchestrator.last_report().filter(|r| r.problems().is_empty())).await;

    // A newer generation comes by itself.
    orchestrator.assign(assignment(2, json!({ "password": "hunter3" })));
    eventually("generation 2", || orchestrator.last_report().filter(|r| r.generation == Generation(2))).await;
    assert_eq!(guest.read(CONF).unwrap(), "listener 1883\npassword hunter3\n");
    assert_eq!(orchestrator.book.lock().unwrap().strangers, 0);
    // Room for the last word.
    guest.notifications();
    assert_eq!(running.terminate(), Some(0));
    assert!(guest.notifications().contains(&"STOPPING=1".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiring_that_does_not_come_up_is_put_back_and_not_tried_again() {
    let Some(World { orchestrator, bus, guest }) = world().await else { return };
    guest.file(CONF, "# by hand\nlistener 1\n", 0o640);
    let watched = guest.path(CONF);
    bus.machine.lock().unwrap().after_restart = Some(Box::new(move |_| {
        if std::fs::read_to_string(&watched).unwrap().contains("nonsense") { "failed" } else { "active" }
    }));
    orchestrator.assign(assignment(1, json!({ "nonsense": "hunter2" })));
    let running = guest.start(&bus.address);
    let report = eventually("a report", || orchestrator.last_report().filter(|report| report.wiring.is_some())).await;
    let WiringOutcome::PutBack { reason, detail } = report.wiring.unwrap().outcome else { panic!("it was applied") };
    assert_eq!(reason, "unit-failed");
    assert!(!detail.contains("hunter2"), "{detail}");
    assert_eq!(guest.read(CONF).unwrap(), "# by hand\nlistener 1\n");
    assert_eq!(report.generation, Generation(0));
    let restarts = ["subscribe", "restart mosquitto.service replace", "restart mosquitto.service replace"];
    assert_eq!(bus.calls(), restarts);
    running.kill();

    // A restart of the agent remembers.
    let before = orchestrator.book.lock().unwrap().reports.len();
    let _running = guest.start(&bus.address);
    eventually("a report after the restart", || {
        (orchestrator.book.lock().unwrap().reports.len() > before).then_some(())
    })
    .await;
    assert_eq!(bus.calls().iter().filter(|call| call.starts_with("restart")).count(), 2);
    orchestrator.assign(assignment(2, json!({ "listener": 2 })));
    eventually("generation 2", || orchestrator.last_report().filter(|r| r.generation == Generation(2))).await;
    assert_eq!(guest.read(CONF).unwrap(), "# by hand\nlistener 2\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orchestrator_with_another_ca_learns_nothing() {
    let (ours, theirs) = (Authority::new(), Orchestrator::start(Authority::new()).await);
    let guest = Guest::sealed(&theirs.url, &ours.pem);
    let _running = guest.start("unix:path=/nonexistent");
    eventually("the refusal in the status", || guest.problems().contains("orchestrator-untrusted").then_some(())).await;
    assert!(theirs.book.lock().unwrap().enrolments.is_empty());
    assert_eq!(guest.phase().as_deref(), Some("enrolling"));
    assert!(!guest.log().contains(CLAIM));
    let shown = guest.command("status").output().unwrap();
    assert_eq!(shown.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&shown.stdout).contains("orchestrator-untrusted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_shown_and_enrolment_goes_on_with_the_same_key() {
    let orchestrator = Orchestrator::start(Authority::new()).await;
    let guest = Guest::sealed(&orchestrator.url, &orchestrator.ca);
    let problem = |retry_after| Problem {
        reason: "enrol-refused-not-started".to_owned(),
        message: "the orchestrator has not started this guest".to_owned(),
        retry_after,
    };
    orchestrator.book.lock().unwrap().refusals.extend([
        (StatusCode::SERVICE_UNAVAILABLE, problem(Some(0))),
        (StatusCode::FORBIDDEN, problem(Some(0))),
        (StatusCode::FORBIDDEN, problem(None)),
    ]);
    let running = guest.start("unix:path=/nonexistent");
    eventually("three attempts", || (orchestrator.book.lock().unwrap().enrolments.len() == 3).then_some(())).await;
    eventually("the reason", || guest.problems().contains("enrol-refused-not-started").then_some(())).await;
    running.kill();

    // Somebody set it right, and the agent was restarted: same key, so the same guest.
    let _running = guest.start("unix:path=/nonexistent");
    eventually("the certificate", || (guest.phase().as_deref() == Some("applying")).then_some(())).await;
    let book = orchestrator.book.lock().unwrap();
    let keys: Vec<Vec<u8>> = book.enrolments.iter().map(|request| public_key(&request.csr)).collect();
    assert_eq!(keys.len(), 4);
    assert!(keys.iter().all(|key| *key == keys[0]));
}

fn public_key(csr: &str) -> Vec<u8> {
    use rcgen::PublicKeyData;
    rcgen::CertificateSigningRequestParams::from_pem(csr).unwrap().public_key.der_bytes().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_of_a_wiring_is_put_back_at_the_next_start() {
    let Some(World { orchestrator, bus, guest }) = world().await else { return };
    guest.file(CONF, "listener 1\n", 0o640);
    bus.set("mosquitto.service", "active");
    // The probe does not hold for as long as the agent lives, so it is killed while it waits.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let waiting =
        Assignment { probes: vec![Probe::Tcp(TcpProbe { port: closed })], ..assignment(1, json!({ "listener": 2 })) };
    orchestrator.assign(waiting);
    let running = guest.start(&bus.address);
    eventually("the new file and the restart", || {
        (guest.read(CONF)? == "listener 2\n" && bus.calls().len() >= 2).then_some(())
    })
    .await;
    running.kill();
    orchestrator.assign(assignment(2, json!({ "listener": 3 })));
    guest.notifications();
    let _running = guest.start(&bus.address);
    eventually("READY", || guest.notifications().contains(&"READY=1".to_owned()).then_some(())).await;
    let report =
        eventually("generation 2", || orchestrator.last_report().filter(|r| r.generation == Generation(2))).await;
    assert!(report.problems().is_empty());
    assert!(guest.log().contains("put back what was left open of generation 1"), "{}", guest.log());
    assert_eq!(guest.read(CONF).unwrap(), "listener 3\n");
    // Restarted for generation 1, again with what was put back, and for generation 2.
    assert_eq!(bus.calls().iter().filter(|call| call.starts_with("restart")).count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_an_enrolled_guest_becomes_a_guest_of_its_own() {
    let Some(World { orchestrator, bus, guest }) = world().await else { return };
    orchestrator.assign(assignment(1, json!({ "listener": 1883 })));
    let running = guest.start(&bus.address);
    eventually("generation 1", || orchestrator.last_report().filter(|r| r.generation == Generation(1))).await;
    running.kill();
    let first = orchestrator.book.lock().unwrap().enrolments[0].clone();
    let reports = orchestrator.book.lock().unwrap().reports.len();
    let key = guest.read("var/lib/ctrlable-agent/key.pem").unwrap();

    // The disk as it was, under another address; the hypervisor carries a claim for this start.
    guest.file("sys/class/net/eth0/address", "bc:24:11:00:00:02", 0o644);
    guest.file("sys/class/dmi/id/product_serial", "ctrlable-claim-of-the-second-start\n", 0o400);
    let _copy = guest.start(&bus.address);
    eventually("an enrolment of its own", || (orchestrator.book.lock().unwrap().enrolments.len() > 1).then_some(()))
        .await;
    eventually("a report of its own", || (orchestrator.book.lock().unwrap().reports.len() > reports).then_some(()))
        .await;
    let book = orchestrator.book.lock().unwrap();
    let second = &book.enrolments[1];
    assert_eq!(second.claim.expose(), "ctrlable-claim-of-the-second-start");
    assert_eq!(second.mac.to_string(), "BC:24:11:00:00:02");
    assert_ne!(second.identity.machine_id, first.identity.machine_id);
    assert!(!second.identity.ssh_host_keys.shares_with(&first.identity.ssh_host_keys));
    assert_ne!(public_key(&second.csr), public_key(&first.csr));
    // Nothing was said in the original's name, and its key is gone.
    assert!(book.reports[reports..].iter().all(|report| report.identity == second.identity));
    assert!(guest.files_with(key.trim()).is_empty());
    assert!(guest.files_with("ctrlable-claim-of-the-second-start").iter().all(|file| file.ends_with("product_serial")));
    assert!(!guest.log().contains("ctrlable-claim-of"), "{}", guest.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_floor_is_kept_and_reported_also_after_a_restart() {
    let Some(World { orchestrator, bus, guest }) = world().await else { return };
    orchestrator.assign(assignment(1, json!({ "listener": 1883 })));
    let floor = Floor::new("keys 2, channels 17").unwrap();
    orchestrator.book.lock().unwrap().floor = Some(floor.clone());
    let running = guest.start(&bus.address);
    let reported = || orchestrator.last_report().filter(|report| report.floor.as_ref() == Some(&floor));
    eventually("a report with the floor", reported).await;
    running.kill();
    let reports = {
        let mut book = orchestrator.book.lock().unwrap();
        book.floor = None;
        book.reports.len()
    };
    let _running = guest.start(&bus.address);
    let next = || orchestrator.book.lock().unwrap().reports.get(reports).cloned();
    assert_eq!(eventually("a report after the restart", next).await.floor, Some(floor));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_when_the_orchestrator_says_so_and_the_old_one_serves_until_then() {
    let Some(World { orchestrator, bus, guest }) = world().await else { return };
    orchestrator.assign(assignment(1, json!({ "listener": 1883 })));
    let running = guest.start(&bus.address);
    eventually("generation 1", || orchestrator.last_report().filter(|r| r.generation == Generation(1))).await;
    let first = orchestrator.book.lock().unwrap().shown[0].clone();
    {
        let mut book = orchestrator.book.lock().unwrap();
        (book.renew, book.lost) = (Renew::Now, 1);
    }
    let lost = || (orchestrator.book.lock().unwrap().renewals.len() == 1).then_some(());
    eventually("a renewal whose answer gets lost", lost).await;
    let reports = orchestrator.book.lock().unwrap().reports.len();
    let more = || (orchestrator.book.lock().unwrap().reports.len() > reports).then_some(());
    eventually("a report with the old certificate", more).await;
    assert!(orchestrator.book.lock().unwrap().shown.iter().all(|shown| *shown == first));
    // Killed after the answer was lost, it asks again with the key that was made for the first request.
    running.kill();
    let _running = guest.start(&bus.address);
    eventually("a report after the restart", || {
        let book = orchestrator.book.lock().unwrap();
        (book.reports.len() > reports + 1).then_some(())
    })
    .await;
    orchestrator.book.lock().unwrap().renew = Renew::Now;
    let other = || orchestrator.book.lock().unwrap().shown.iter().find(|shown| **shown != first).cloned();
    eventually("another certificate", other).await;
    let renewals = orchestrator.book.lock().unwrap().renewals.clone();
    let keys: Vec<_> = renewals.iter().map(|(request, _)| public_key(&request.csr)).collect();
    let enrolled = public_key(&orchestrator.book.lock().unwrap().enrolments[0].csr);
    assert!(keys.len() == 2 && keys[0] == keys[1] && keys[0] != enrolled, "{} renewals", keys.len());
    assert!(renewals.iter().all(|(_, shown)| *shown == first));
    // The long-poll goes on with it as well.
    orchestrator.assign(assignment(2, json!({ "listener": 1884 })));
    eventually("generation 2", || orchestrator.last_report().filter(|r| r.generation == Generation(2))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_renewed_without_being_told() {
    let Some(World { orchestrator, bus, guest }) = world().await else { return };
    orchestrator.assign(assignment(1, json!({ "listener": 1883 })));
    let _running = guest.start(&bus.address);
    eventually("generation 1", || orchestrator.last_report().filter(|r| r.generation == Generation(1))).await;
    orchestrator.book.lock().unwrap().refuse.push_back("certificate-expired".to_owned());
    let renewed = || (orchestrator.book.lock().unwrap().renewals.len() == 1).then_some(());
    eventually("a renewal", renewed).await;
    let reports = orchestrator.book.lock().unwrap().reports.len();
    eventually("a report", || (orchestrator.book.lock().unwrap().reports.len() > reports).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_ca_is_believed_and_confirmed_also_after_a_restart() {
    let Some(World { orchestrator, bus, guest }) = world().await else { return };
    orchestrator.assign(assignment(1, json!({ "listener": 1883 })));
    let running = guest.start(&bus.address);
    let first = orchestrator.ca.clone();
    let confirms = |ca: String| {
        let orchestrator = &orchestrator;
        move || orchestrator.last_report().filter(|report| report.ca == Some(digest(&ca)))
    };
    eventually("the first CA", confirms(first.clone())).await;
    let both = format!("{}{first}", Authority::new().pem);
    orchestrator.book.lock().unwrap().ca = Some(both.clone());
    eventually("both CAs", confirms(both.clone())).await;
    assert_eq!(guest.read("var/lib/ctrlable-agent/ca.pem"), Some(both.clone()));
    running.kill();
    let _running = guest.start(&bus.address);
    let reports = orchestrator.book.lock().unwrap().reports.len();
    let next = || orchestrator.book.lock().unwrap().reports.get(reports).cloned();
    assert_eq!(eventually("a report after the restart", next).await.ca, Some(digest(&both)));
    // What is no CA is not believed.
    orchestrator.book.lock().unwrap().ca = Some("nonsense".to_owned());
    eventually("the problem", || guest.problems().contains("credential").then_some(())).await;
    assert_eq!(guest.read("var/lib/ctrlable-agent/ca.pem"), Some(both));
}

#[tokio::test]
async fn a_state_that_cannot_be_read_stops_the_agent_with_a_code_of_its_own() {
    let guest = Guest::sealed("https://127.0.0.1:1", &Authority::new().pem);
    guest.file("var/lib/ctrlable-agent/state.json", "{", 0o600);
    let ended = guest.command("run").output().unwrap();
    assert_eq!(ended.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("state-unreadable"));
    assert_eq!(guest.read("etc/machine-id").unwrap(), "", "nothing was done on a guess");
}

#[tokio::test]
async fn a_guest_that_nobody_sealed_keeps_its_identity() {
    let guest = Guest::sealed("https://127.0.0.1:1", &Authority::new().pem);
    std::fs::remove_file(guest.path("var/lib/ctrlable-agent/seal.json")).unwrap();
    guest.file("etc/machine-id", MACHINE_ID, 0o444);
    let ended = guest.command("run").output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("not-sealed"));
    assert_eq!(guest.read("etc/machine-id").unwrap(), MACHINE_ID);
}

#[tokio::test(flavor = "multi_thread")]
async fn host_name_and_time_zone_go_over_the_bus_and_a_failure_is_only_shown() {
    let Some(World { orchestrator, bus, guest }) = world().await else { return };
    let wanted = Assignment {
        hostname: "ctrlable-acme-hq-broker".parse().unwrap(),
        timezone: Some("Europe/Berlin".parse().unwrap()),
        ..assignment(1, json!({ "listener": 1883 }))
    };
    orchestrator.assign(wanted);
    let _running = guest.start(&bus.address);
    eventually("generation 1", || orchestrator.last_report().filter(|r| r.generation == Generation(1))).await;
    let calls = bus.calls();
    assert!(calls.contains(&"hostname ctrlable-acme-hq-broker".to_owned()), "{calls:?}");
    assert!(calls.contains(&"timezone Europe/Berlin".to_owned()), "{calls:?}");
    eventually("the problem", || guest.problems().contains("timezone-not-set").then_some(())).await;
}

/// Most memory that an agent at work may hold, in kB.
const RESIDENT_BUDGET: u64 = 8 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_at_work_stays_small() {
    let Some(World { orchestrator, bus, guest }) = world().await else { return };
    orchestrator.assign(assignment(1, json!({ "listener": 1883 })));
    let begin = std::time::Instant::now();
    let running = guest.start(&bus.address);
    let asked = async {
        while orchestrator.book.lock().unwrap().enrolments.is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        begin.elapsed()
    };
    let asked = tokio::time::timeout(support::PATIENCE, asked).await.unwrap();
    let reported =
        eventually("generation 1", || orchestrator.last_report().filter(|r| r.generation == Generation(1))).await;
    let wired = begin.elapsed();
    eventually("three more reports", || {
        orchestrator.last_report().filter(|report| report.sequence >= reported.sequence + 3)
    })
    .await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.0.id())).unwrap();
    let kilobytes = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
    };
    let (resident, peak) = (kilobytes("VmRSS"), kilobytes("VmHWM"));
    println!("resident {resident} kB, peak {peak} kB; start to enrolment request {asked:?}, to report {wired:?}");
    for step in &reported.first_boot {
        println!("  {} {} ms {}", step.step, step.millis, step.failure.as_deref().unwrap_or_default());
    }
    // A debug build is not what runs in guests.
    if std::env::var_os(OTHER_AGENT).is_some() {
        assert!(resident < RESIDENT_BUDGET && peak < RESIDENT_BUDGET, "resident {resident} kB, peak {peak} kB");
    }
}
