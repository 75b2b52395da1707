#![allow(clippy::unwrap_used, clippy::panic)]
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use contract::assignment::{FileFormat, TcpProbe};
use contract::ids::Generation;
use contract::secret::Redacted;
use serde_json::json;

use super::*;
use crate::dbus::fake::FakeBus;
use crate::wiring::transaction::recover;

/// Deadlines that a failing test can wait for.
const SHORT: Deadlines = Deadlines { units: Duration::from_millis(60), probes: Duration::from_millis(60) };

struct Guest {
    dir: tempfile::TempDir,
    root: Root,
}

impl Guest {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        root.write_own("/etc/app/app.conf", b"# mine\nport 1\n", 0o640).unwrap();
        root.write_own("/etc/passwd", b"root:x:0:0::/:/bin/sh\napp:x:4711:4712::/:/bin/false\n", 0o644).unwrap();
        root.write_own("/etc/group", b"root:x:0:\napp:x:4712:\nlog:x:4713:app\n", 0o644).unwrap();
        Self { dir, root }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap()
    }

    async fn apply(&self, bus: &FakeBus, assignment: &Assignment) -> WiringOutcome {
        let outcome = apply(&self.root, bus, assignment, SHORT).await;
        assert_eq!(recover(&self.root).unwrap(), None, "nothing is left open");
        outcome
    }
}

fn file(path: &str, merge: Value) -> AssignedFile {
    AssignedFile {
        path: path.parse().unwrap(),
        format: FileFormat::Conf,
        mode: None,
        owner: None,
        merge: Redacted::new(merge),
    }
}

fn assignment(files: Vec<AssignedFile>) -> Assignment {
    Assignment {
        protocol: contract::PROTOCOL,
        site: "acme-hq".parse().unwrap(),
        instance: "app".parse().unwrap(),
        generation: Generation(1),
        hostname: "ctrlable-acme-hq-app".parse().unwrap(),
        release: "2026.06".parse().unwrap(),
        template: "app".parse().unwrap(),
        timezone: None,
        files,
        units: vec!["a.service".parse().unwrap(), "b.service".parse().unwrap()],
        probes: Vec::new(),
    }
}

fn reason(outcome: WiringOutcome) -> String {
    match outcome {
        WiringOutcome::Applied { .. } => "applied".to_owned(),
        WiringOutcome::PutBack { reason, detail } => {
            assert!(!detail.contains("hunter2"), "{detail}");
            format!("put back: {reason}")
        }
        WiringOutcome::Refused { reason, detail } => {
            assert!(!detail.contains("hunter2"), "{detail}");
            format!("refused: {reason}")
        }
    }
}

#[tokio::test]
async fn applies_files_in_order_and_restarts_units_in_order() {
    let (guest, bus) = (Guest::new(), FakeBus::new(|_| "active"));
    let wanted = assignment(vec![
        file("/etc/app/app.conf", json!({ "port": 2 })),
        file("/etc/app/new/extra.conf", json!({ "a": 1 })),
        file("/etc/app/app.conf", json!({ "host": "x" })),
    ]);
    let WiringOutcome::Applied { changed } = guest.apply(&bus, &wanted).await else { panic!() };
    assert_eq!(
        changed.iter().map(GuestPath::as_str).collect::<Vec<_>>(),
        ["/etc/app/new/extra.conf", "/etc/app/app.conf"]
    );
    assert_eq!(guest.read("/etc/app/app.conf"), "# mine\nport 2\nhost x\n");
    let mode = |path: &str| guest.root.read(path, 1000).unwrap().unwrap().attributes.mode;
    assert_eq!((mode("/etc/app/app.conf"), mode("/etc/app/new/extra.conf")), (0o640, 0o600));
    assert_eq!(bus.calls(), ["restart a.service", "restart b.service"]);

    // The same again changes nothing and restarts nothing; a unit that is down is started.
    let before = std::fs::metadata(guest.path("/etc/app/app.conf")).unwrap().modified().unwrap();
    assert_eq!(guest.apply(&bus, &wanted).await, WiringOutcome::Applied { changed: vec![] });
    assert_eq!(bus.calls().len(), 2);
    bus.units.borrow_mut().insert("b.service".to_owned(), "inactive".to_owned());
    assert_eq!(guest.apply(&bus, &wanted).await, WiringOutcome::Applied { changed: vec![] });
    assert_eq!(bus.calls()[2..], ["restart b.service"]);
    assert_eq!(std::fs::metadata(guest.path("/etc/app/app.conf")).unwrap().modified().unwrap(), before);
}

#[tokio::test]
async fn puts_everything_back_when_a_unit_or_probe_does_not_come_up() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let probe = vec![Probe::Tcp(TcpProbe { port: closed })];
    for (state, probes, expected) in [
        ("failed", Vec::new(), "put back: unit-failed"),
        ("not-found", Vec::new(), "put back: unit-failed"),
        ("activating", Vec::new(), "put back: unit-timeout"),
        ("active", probe, "put back: probe-timeout"),
    ] {
        let (guest, bus) =
            (Guest::new(), FakeBus::new(move |unit| if unit.as_str() == "b.service" { state } else { "active" }));
        let files = vec![
            file("/etc/app/app.conf", json!({ "port": "hunter2" })),
            file("/opt/new/deep/x.conf", json!({ "a": "hunter2" })),
        ];
        let wanted = Assignment { probes, ..assignment(files) };
        assert_eq!(reason(guest.apply(&bus, &wanted).await), expected);
        assert_eq!(guest.read("/etc/app/app.conf"), "# mine\nport 1\n");
        assert!(!guest.path("/opt/new").exists(), "directories that were made are gone again");
        let again = ["restart a.service", "restart b.service", "restart a.service", "restart b.service"];
        assert_eq!(bus.calls(), again, "{state}");
    }
}

#[tokio::test]
async fn refuses_what_it_may_not_or_cannot_write_and_changes_nothing() {
    let guest = Guest::new();
    let outside = tempfile::tempdir().unwrap();
    symlink(outside.path(), guest.path("/etc/link")).unwrap();
    std::fs::create_dir(guest.path("/etc/folder")).unwrap();
    std::fs::write(guest.path("/etc/large"), vec![b'a'; FILE_LIMIT as usize + 1]).unwrap();
    std::fs::write(guest.path("/etc/binary"), [0xff, 0xfe]).unwrap();
    let with = |path: &str, change: fn(&mut AssignedFile)| {
        let mut file = file(path, json!({ "a": "hunter2" }));
        change(&mut file);
        file
    };
    let plain: fn(&mut AssignedFile) = |_| {};
    let cases: Vec<(AssignedFile, &str)> = vec![
        (with("/etc/link/x.conf", plain), "symlink-in-path"),
        (with("/etc/folder", plain), "not-regular-file"),
        (with("/etc/large", plain), "file-too-large"),
        (with("/etc/binary", plain), "file-syntax"),
        (with("/etc/shadow", plain), "forbidden-path"),
        (with("/etc/ctrlable/bootstrap.json", plain), "forbidden-path"),
        (with("/proc/sys/kernel/x", plain), "forbidden-path"),
        (with("/etc/x", |file| file.mode = Some("4755".parse().unwrap())), "bad-mode"),
        (with("/etc/x", |file| file.mode = Some("0666".parse().unwrap())), "bad-mode"),
        (with("/etc/x", |file| file.owner = Some("nobody-here".parse().unwrap())), "unknown-owner"),
        (with("/etc/x", |file| file.owner = Some("app:nobody".parse().unwrap())), "unknown-owner"),
        (with("/etc/x", |file| file.merge = Redacted::new(json!("hunter2"))), "bad-merge"),
        (with("/etc/x", |file| file.merge = Redacted::new(json!({ "a": { "b": "hunter2" } }))), "bad-merge"),
    ];
    for (bad, expected) in cases {
        let bus = FakeBus::new(|_| "active");
        let path = bad.path.clone();
        let wanted = assignment(vec![file("/etc/app/app.conf", json!({ "port": 2 })), bad]);
        assert_eq!(reason(guest.apply(&bus, &wanted).await), format!("refused: {expected}"), "{path}");
        assert_eq!(guest.read("/etc/app/app.conf"), "# mine\nport 1\n");
        assert!(bus.calls().is_empty());
    }
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_write_that_fails_half_way_puts_the_first_files_back() {
    let (guest, bus) = (Guest::new(), FakeBus::new(|_| "active"));
    let wanted = assignment(vec![
        file("/etc/app/app.conf", json!({ "port": 2 })),
        file("/etc/app/second.conf", json!({ "a": 1 })),
    ]);
    // Something that cannot be removed stands where the second file is to be written first.
    std::fs::create_dir(guest.path("/etc/app/.second.conf.ctrlable-new")).unwrap();
    let changes = prepare(&guest.root, &wanted.files).unwrap();
    let mut running = Transaction::new(&guest.root, Generation(1), changes, &[]).unwrap();
    assert_eq!(write(&mut running).unwrap_err().reason, Reason::FileIo);
    assert_eq!(guest.read("/etc/app/app.conf"), "# mine\nport 2\n", "the first one was written");
    std::fs::remove_dir(guest.path("/etc/app/.second.conf.ctrlable-new")).unwrap();
    drop(running);
    assert!(recover(&guest.root).unwrap().is_some());
    assert_eq!(guest.read("/etc/app/app.conf"), "# mine\nport 1\n");
    assert!(bus.calls().is_empty());
}

#[tokio::test]
async fn drop_ins_of_units_are_read_before_the_restart() {
    let (guest, bus) = (Guest::new(), FakeBus::new(|_| "active"));
    let drop_in = AssignedFile {
        format: FileFormat::Ini,
        ..file("/etc/systemd/system/a.service.d/wiring.conf", json!({ "Service": { "Nice": 5 } }))
    };
    assert_eq!(reason(guest.apply(&bus, &assignment(vec![drop_in])).await), "applied");
    assert_eq!(bus.calls(), ["reload", "restart a.service", "restart b.service"]);
}

#[test]
fn owners_are_looked_up_in_the_guests_own_files() {
    let guest = Guest::new();
    let resolve = |name: &str| resolve(&guest.root, &name.parse().unwrap());
    assert_eq!(resolve("app").unwrap(), Owner { uid: 4711, gid: 4712 });
    assert_eq!(resolve("app:log").unwrap(), Owner { uid: 4711, gid: 4713 });
    assert_eq!(resolve("root:app").unwrap(), Owner { uid: 0, gid: 4712 });
}

#[tokio::test]
async fn after_a_crash_units_are_restarted_only_if_they_saw_the_new_files() {
    for (stage, expected) in [(Stage::Writing, 0), (Stage::Restarting, 1)] {
        let bus = FakeBus::new(|_| "active");
        let units = vec!["a.service".parse().unwrap()];
        finish_recovery(&bus, &Recovered { generation: Generation(1), stage, units }).await;
        assert_eq!(bus.calls().len(), expected);
    }
}

#[tokio::test]
async fn a_service_that_only_was_forked_has_to_stay_up() {
    // It falls over some looks after it was called active.
    let falls = |bus: &FakeBus| {
        bus.units.borrow_mut().insert("b.service".to_owned(), "failed".to_owned());
    };
    for (readiness, expected) in [(Readiness::Announced, "applied"), (Readiness::Assumed, "put back: unit-failed")] {
        let (guest, bus) = (Guest::new(), FakeBus::new(|_| "active"));
        *bus.readiness.borrow_mut() = readiness;
        let wanted = assignment(vec![file("/etc/app/app.conf", json!({ "port": 2 }))]);
        let later = async {
            sleep(SETTLE / 3).await;
            falls(&bus);
            std::future::pending::<()>().await;
        };
        let outcome = tokio::select! {
            outcome = guest.apply(&bus, &wanted) => outcome,
            () = later => panic!("this never ends"),
        };
        assert_eq!(reason(outcome), expected);
    }
}
