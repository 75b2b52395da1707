//! The whole way of a guest, and what doctor and adoption say, against the lab: a Proxmox node in a box.
//!
//! The lab is `ctrlable-lab` beside the test programs, or where `CTRLABLE_LAB` says; without it the tests say so and pass.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use contract::ids::{Mac, Vmid};
use contract::manifest::GuestKind;
use contract::secret::Secret;
use orchestrator::doctor::gather::gather;
use orchestrator::doctor::{Expectation, Level, Machines, OLDEST_PVE, examine, worst};
use orchestrator::proxmox::{
    Addressing, AfterTimeout, Backup, BackupMode, Client, CloneMode, CloneRequest, ConfigChange, Disposition, GuestRef,
    Leftovers, Marker, RunState, ServerTrust, Settings, Tags, TaskEnd,
};
use orchestrator::template::{Adoption, InheritedFlags, Outcome, adopt};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::server::SECRET;

pub(super) struct Lab {
    program: PathBuf,
    state: tempfile::TempDir,
    pub(super) ready: Value,
    _server: Child,
}

impl Lab {
    pub(super) async fn start(pve: &str) -> Option<Self> {
        let beside = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("ctrlable-lab");
        let program = std::env::var_os("CTRLABLE_LAB").map_or(beside, PathBuf::from);
        if !program.exists() {
            println!("skipped: no lab at {}", program.display());
            return None;
        }
        let state = tempfile::tempdir().unwrap();
        let mut server = Command::new(&program)
            .args(["serve", "--runtime", "none", "--pve", pve, "--state"])
            .arg(state.path())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let line = BufReader::new(server.stdout.take().unwrap()).lines().next_line().await.unwrap();
        let Some(Ok(ready)) = line.map(|line| serde_json::from_str::<Value>(&line)) else {
            // A lab that is not finished yet says nothing.
            println!("skipped: the lab at {} does not start", program.display());
            return None;
        };
        Some(Self { program, state, ready, _server: server })
    }

    pub(super) fn read(&self, key: &str) -> String {
        std::fs::read_to_string(self.ready[key].as_str().unwrap()).unwrap()
    }

    pub(super) fn settings(&self) -> Settings {
        let url = self.ready["url"].as_str().unwrap().parse().unwrap();
        Settings::new(url, Secret::new(self.read("token").trim()), ServerTrust::Ca(self.read("ca").into_bytes()))
    }

    pub(super) fn client(&self) -> Client {
        Client::new(self.settings()).unwrap()
    }

    async fn command(&self, args: &[&str]) {
        let (verb, rest) = args.split_first().unwrap();
        let mut command = Command::new(&self.program);
        let done = command.arg(verb).arg("--state").arg(self.state.path()).args(rest).output().await.unwrap();
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    pub(super) async fn template(&self, vmid: &str, kind: &str) {
        let common = ["template", "--vmid", vmid, "--hostname", "base", "--template", "--storage", "local-lvm"];
        self.command(&[&common[..], &["--pool", "ctrlable", "--kind", kind, "--size", "2G"]].concat()).await;
    }
}

pub(super) fn expectation() -> Expectation {
    Expectation {
        oldest: OLDEST_PVE,
        node: None,
        storage: "local-lvm".parse().unwrap(),
        backup_storage: Some("local".parse().unwrap()),
        bridge: "vmbr0".parse().unwrap(),
        vlan: None,
        pool: "ctrlable".parse().unwrap(),
        machines: Machines::Unused,
        room: 1 << 30,
    }
}

pub(super) fn adoption(vmid: u32) -> Adoption {
    Adoption {
        vmid: vmid.try_into().unwrap(),
        release: "2026.06".parse().unwrap(),
        template: "zigbee2mqtt".parse().unwrap(),
        digest: None,
        entry: None,
        flags: InheritedFlags::Clear,
    }
}

fn request(vmid: u32) -> CloneRequest {
    CloneRequest {
        vmid: vmid.try_into().unwrap(),
        name: "ctrlable-acme-zigbee".parse().unwrap(),
        pool: Some("ctrlable".parse().unwrap()),
        description: None,
        storage: Some("local-lvm".parse().unwrap()),
        target: None,
        mode: CloneMode::Full,
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(120)
}

async fn find(client: &Client, vmid: u32) -> GuestRef {
    client.find(Vmid::try_from(vmid).unwrap()).await.unwrap().unwrap().guest
}

#[tokio::test]
async fn a_guest_from_template_to_grave() {
    for (pve, kind) in [("9.2", GuestKind::Lxc), ("8.4", GuestKind::Lxc), ("9.2", GuestKind::Vm)] {
        let Some(lab) = Lab::start(pve).await else { return };
        let client = lab.client();
        assert_eq!(client.version().await.unwrap().release.to_string(), pve);
        lab.template("9000", if kind == GuestKind::Lxc { "lxc" } else { "qemu" }).await;

        // Adopted once; the second time there is nothing to do.
        assert_eq!(adopt(&client, &adoption(9000)).await.unwrap().outcome, Outcome::Marked);
        assert_eq!(adopt(&client, &adoption(9000)).await.unwrap().outcome, Outcome::NothingToDo);
        let templates = client.templates().await.unwrap();
        assert!(templates.suspect.is_empty(), "{templates:?}");
        let template = templates.usable[0].guest.clone();

        let upid = client.clone_guest(&template, &request(2001)).await.unwrap();
        assert_eq!(upid.id(), "9000");
        client.wait(&upid, soon()).await.unwrap();
        assert!(client.task_log_tail(&upid, 1).await.unwrap()[0].contains("TASK OK"));
        let guest = find(&client, 2001).await;
        assert_eq!(guest.kind, kind);

        // Taken numbers are told at once or in the task.
        let taken = match client.clone_guest(&template, &request(2001)).await {
            Ok(upid) => client.wait(&upid, soon()).await.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(taken.reason(), "vmid-taken", "{taken}");

        // Read, change, write: the MAC that the clone got stays.
        let before = client.guest_config(&guest).await.unwrap();
        let net = before.net0().unwrap().unwrap();
        let mac: Mac = net.mac().unwrap();
        let marker = Marker::Guest {
            site: "acme".parse().unwrap(),
            instance: "zigbee".parse().unwrap(),
            release: "2026.06".parse().unwrap(),
            template: "zigbee2mqtt".parse().unwrap(),
            floor: None,
        };
        let fixed = Addressing::Static { address: "10.77.0.50/24".parse().unwrap(), gateway: None };
        let change = ConfigChange {
            tags: Some(before.tags.with_ours(&Tags::of_guest(&"acme".parse().unwrap(), &"zigbee".parse().unwrap()))),
            description: Some(marker.render("").unwrap()),
            cores: Some(1),
            memory: Some(512),
            net0: Some(net.clone().with_vlan(Some(20.try_into().unwrap())).with_addressing(fixed)),
            onboot: Some(true),
            protection: Some(true),
            ..ConfigChange::default()
        };
        // The new MAC in net0 needs SDN.Use on the VLAN below the bridge, which is inherited.
        client.configure(&guest, &change, before.digest.as_ref()).await.unwrap();
        let stale = client.configure(&guest, &change, before.digest.as_ref()).await.unwrap_err();
        assert_eq!((stale.reason(), stale.disposition()), ("digest-mismatch", Disposition::Uncertain));
        let after = client.guest_config(&guest).await.unwrap();
        assert_eq!(after.net0().unwrap().unwrap(), change.net0.clone().unwrap());
        assert_eq!(after.net0().unwrap().unwrap().mac(), Some(mac));
        assert_eq!(after.marker().unwrap(), Some(marker));
        assert_eq!(after.tags.to_string(), "ctrlable;instance-zigbee;site-acme");
        assert_eq!((after.cores, after.memory, after.onboot, after.protection), (Some(1), Some(512), true, true));

        // The lab has no resize for virtual machines.
        if let Some(disk) = after.root_disk_key().filter(|_| kind == GuestKind::Lxc) {
            let upid = client.resize(&guest, &disk, 3, after.digest.as_ref()).await.unwrap();
            client.wait(&upid, soon()).await.unwrap();
            assert_eq!(client.guest_config(&guest).await.unwrap().root_size, Some(3 << 30));
        }

        let upid = client.start(&guest).await.unwrap();
        assert!(matches!(client.wait(&upid, soon()).await.unwrap(), TaskEnd::Ok | TaskEnd::Warnings(_)));
        assert_eq!(client.guest_status(&guest).await.unwrap().state, RunState::Running);
        if kind == GuestKind::Lxc {
            assert_eq!(client.start(&guest).await.unwrap_err().reason(), "already-running");
            let deadline = soon();
            loop {
                let seen = client.interfaces(&guest).await.unwrap().unwrap_or_default();
                let ours = seen.iter().find(|interface| interface.mac == Some(mac));
                if ours.is_some_and(|interface| interface.addresses.iter().any(|address| address.is_reachable())) {
                    break;
                }
                assert!(Instant::now() < deadline, "no address: {seen:?}");
            }
        }
        let upid = client.shutdown(&guest, Duration::from_secs(30), AfterTimeout::Kill).await.unwrap();
        client.wait(&upid, soon()).await.unwrap();

        let protected = client.destroy(&guest, Leftovers::Keep).await.unwrap_err();
        assert_eq!(protected.reason(), "protected");
        let unprotect = ConfigChange { protection: Some(false), ..ConfigChange::default() };
        client.configure(&guest, &unprotect, None).await.unwrap();
        let backup = Backup { storage: "local".parse().unwrap(), mode: BackupMode::Stop, notes: None };
        let upid = client.backup(&guest, &backup).await.unwrap();
        client.wait(&upid, soon()).await.unwrap();
        let upid = client.destroy(&guest, Leftovers::Destroy).await.unwrap();
        client.wait(&upid, soon()).await.unwrap();
        assert!(client.find(guest.vmid).await.unwrap().is_none());
        // To a pool-scoped token a guest that is gone is one that it may not see.
        assert_eq!(client.guest_config(&guest).await.unwrap_err().reason(), "not-visible");
        assert!(client.active_tasks(&guest.node, None, None).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_lost_answer_is_uncertain_and_the_state_tells() {
    let Some(lab) = Lab::start("9.2").await else { return };
    let client = lab.client();
    lab.template("9000", "lxc").await;
    let template = find(&client, 9000).await;
    for (kind, reason) in [("after_success_596", "relay"), ("drop_after", "no-answer")] {
        let rule = format!(r#"{{"method":"POST","path":"/nodes/*/lxc/9000/clone","action":{{"kind":"{kind}"}}}}"#);
        lab.command(&["fault", &rule]).await;
        let vmid = if kind == "drop_after" { 2003 } else { 2002 };
        let lost = client.clone_guest(&template, &request(vmid)).await.unwrap_err();
        assert_eq!((lost.reason(), lost.disposition()), (reason, Disposition::Uncertain));
        // It happened all the same.
        let deadline = soon();
        while client.find(vmid.try_into().unwrap()).await.unwrap().is_none_or(|row| row.lock.is_some()) {
            assert!(Instant::now() < deadline);
        }
        find(&client, vmid).await;
    }
    let full = r#"{"method":"POST","path":"/nodes/*/lxc/9000/clone","action":{"kind":"storage_full"}}"#;
    lab.command(&["fault", full]).await;
    let upid = match client.clone_guest(&template, &request(2004)).await {
        Ok(upid) => client.wait(&upid, soon()).await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(upid.reason(), "storage-full", "{upid}");
}

#[tokio::test]
async fn the_doctor_finds_a_fresh_node_in_order() {
    for pve in ["9.2", "8.4"] {
        let Some(lab) = Lab::start(pve).await else { return };
        // The lab's own token is made for a site with virtual machines.
        let expected = Expectation { machines: Machines::Used, ..expectation() };
        let client = lab.client();
        lab.template("9000", "lxc").await;
        adopt(&client, &adoption(9000)).await.unwrap();
        let findings = examine(&expected, &gather(&client, &expected).await);
        let bad: Vec<_> = findings.iter().filter(|finding| finding.level != Level::Ok).collect();
        assert!(bad.is_empty(), "{bad:#?}");

        let elsewhere = Expectation { pool: "other".parse().unwrap(), bridge: "vmbr9".parse().unwrap(), ..expected };
        let findings = examine(&elsewhere, &gather(&client, &elsewhere).await);
        let failed: Vec<_> =
            findings.iter().filter(|finding| finding.level == Level::Failure).map(|finding| finding.check).collect();
        assert_eq!(failed, ["bridge", "pool", "privileges", "privileges"]);
        assert_eq!(worst(&findings), Level::Failure);
    }
}

#[tokio::test]
async fn the_doctor_says_what_is_wrong_with_the_token() {
    let Some(lab) = Lab::start("9.2").await else { return };
    let token = Secret::new(format!("ctrlable@pve!site={SECRET}"));
    let client = Client::new(Settings { token, ..lab.settings() }).unwrap();
    let findings = examine(&expectation(), &gather(&client, &expectation()).await);
    let last = findings.last().unwrap();
    assert_eq!((last.check, last.level, findings.len()), ("token", Level::Failure, 3), "{findings:?}");

    // An administrator's token works, and is far too much.
    let root = Client::new(Settings { token: Secret::new(lab.read("root_token").trim()), ..lab.settings() }).unwrap();
    let findings = examine(&expectation(), &gather(&root, &expectation()).await);
    assert!(findings.iter().any(|finding| finding.check == "superfluous"), "{findings:?}");
    assert_eq!(worst(&findings), Level::Warning);
}
