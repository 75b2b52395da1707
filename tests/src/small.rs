//! A small site on records: two templates, three instances, stand-ins for the agents. It is up in about a second, so
//! that a test can have dozens of them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::run::{await_for, command, program, run};
use crate::sim::Sim;
use crate::world::{RELEASE, Runtime, SITE, Tuning, World};

/// Templates: number and name.
pub const TEMPLATES: [(u32, &str); 2] = [(9001, "broker"), (9002, "sensor")];

/// The release: small containers with a little wiring.
pub const MANIFEST: &str = r#"release: "2026.06"
proxmox_min_version: "8.2"
templates:
  broker:
    kind: lxc
    builder: ctrlable/broker
    resources: { cpu: 1, ram: 256, disk: 2 }
    unprivileged: true
    wiring:
      inputs:
        mqtt: { type: mqtt, from: shared.mqtt, required: true }
      files:
        - path: /etc/broker/account.env
          format: env
          mode: "0600"
          merge: { USERNAME: "${mqtt.username}", PASSWORD: "${mqtt.password}" }
      units: [broker.service]
  sensor:
    kind: lxc
    builder: ctrlable/sensor
    resources: { cpu: 1, ram: 128, disk: 2 }
    unprivileged: true
    wiring:
      inputs:
        mqtt: { type: mqtt, from: shared.mqtt, required: true }
        topic: { type: string, default: "site/load" }
      files:
        - path: /etc/sensor.env
          format: env
          merge: { TOPIC: "${topic}/${instance.name}" }
      units: [sensor.service]
"#;

const HEAD: &str = r#"site: acme-hq
dealer: acme
release: "2026.06"
prune: true
proxmox:
  storage: local-lvm
  bridge: vmbr0
  pool: ctrlable
  vmids: 2000-2099
shared:
  mqtt: { host: 10.77.0.10, username: ctrlable, password: { secret: mqtt } }
instances:
"#;

/// The instances of the small site: one with a larger disk, two of one template. The story on real
/// containers has one with a static address: records must have theirs on loopback, which no site may ask for.
pub const INSTANCES: [(&str, &str); 3] = [
    ("hub", "{ template: broker, resources: { cpu: 2, ram: 384, disk: 4 }, network: { ip: dhcp } }"),
    ("attic", "{ template: sensor, network: { ip: dhcp } }"),
    ("cellar", "{ template: sensor, network: { ip: dhcp }, wiring: { topic: cellar/load } }"),
];

/// `site.yaml` with these instances.
pub fn site(instances: &[(&str, &str)]) -> String {
    instances.iter().fold(HEAD.to_owned(), |text, (name, wish)| text + &format!("  {name}: {wish}\n"))
}

/// Host name of an instance.
pub fn hostname(instance: &str) -> String {
    format!("ctrlable-{SITE}-{instance}")
}

/// Time for everything to become right on a machine that is busy with other things. Alone, the slowest story takes 110 s:
/// three answers that get lost one after the other, each looked into for half a minute.
pub const SETTLES: Duration = Duration::from_secs(300);

/// A small site; the orchestrator is not started yet.
#[derive(Debug)]
pub struct Small {
    /// Ends before the world does.
    pub sim: Sim,
    /// Everything else.
    pub world: World,
}

impl Small {
    /// Key, remote, node, templates, configuration, the release and the site pushed.
    pub fn build(dir: &Path) -> Result<Self> {
        Self::build_with(dir, 1, Tuning::default(), &INSTANCES)
    }

    /// As [`Self::build`], with seconds between two looks at the remote, more configuration, and other instances.
    pub fn build_with(dir: &Path, interval: u32, tuning: Tuning<'_>, instances: &[(&str, &str)]) -> Result<Self> {
        Self::build_from(dir, interval, tuning, MANIFEST, &site(instances))
    }

    /// As [`Self::build_with`], with another release and site of the same two templates.
    pub fn build_from(dir: &Path, interval: u32, tuning: Tuning<'_>, manifest: &str, site: &str) -> Result<Self> {
        let mut world = World::fresh(dir, Runtime::None)?;
        world.make_fleet()?;
        fs::write(world.manifest(), manifest)?;
        world.sign()?;
        world.write_site(site)?;
        world.push("release 2026.06, and the site")?;
        world.start_lab()?;
        world.configure_with(&[("mqtt", "rain-kettle-41")], interval, tuning)?;
        for (vmid, name) in TEMPLATES {
            make_template(&world, vmid, name)?;
        }
        let sim = Sim::start(&world, &TEMPLATES.map(|(_, name)| name))?;
        Ok(Self { sim, world })
    }

    /// The dealer replaces the site and pushes it. Returns the revision.
    pub fn change_site(&self, instances: &[(&str, &str)]) -> Result<String> {
        self.world.write_site(&site(instances))?;
        self.world.push("a change of the site")
    }

    /// Waits until exactly these instances are healthy and there is nothing to do.
    pub fn await_settled(&self, instances: &[(&str, &str)]) -> Result<()> {
        let wanted: Vec<&str> = {
            let mut names: Vec<&str> = instances.iter().map(|(name, _)| *name).collect();
            names.sort_unstable();
            names
        };
        let mut last = Value::Null;
        await_for(&format!("{wanted:?} are healthy and nothing else is there"), SETTLES, || {
            last = self.world.status()?;
            let rows = last["instances"].as_array().map(Vec::as_slice).unwrap_or_default();
            let names: Vec<&str> = rows.iter().filter_map(|row| row["instance"].as_str()).collect();
            Ok((names == wanted && rows.iter().all(|row| row["phase"] == "healthy")).then_some(()))
        })
        .with_context(|| format!("{last:#}\n{}", self.world.orchestrator_log()))?;
        await_for("nothing is left to do", SETTLES, || {
            last = self.world.plan()?;
            Ok((last["settled"] == true).then_some(()))
        })
        .with_context(|| format!("{last:#}\n{}", self.world.orchestrator_log()))
    }

    /// Checks node, ledger and agents against the wishes: no orphan, no duplicate, nothing lost, nothing half-made.
    pub fn check(&self, instances: &[(&str, &str)]) -> Result<()> {
        let world = &self.world;
        let guests = world.guests()?;
        ensure!(
            guests.len() == instances.len(),
            "{} guests for {} instances: {guests:?}",
            guests.len(),
            instances.len()
        );
        let mut macs = Vec::new();
        for (name, _) in instances {
            let hostname = hostname(name);
            let (vmid, row) = guests
                .iter()
                .find(|(_, row)| row["name"] == hostname.as_str())
                .with_context(|| format!("{name} has no guest: {guests:?}"))?;
            ensure!((2000..2100).contains(vmid), "{name} has number {vmid}");
            ensure!(row["status"] == "running", "{name} does not run: {row}");
            let config = world.node("GET", &format!("/api2/json/nodes/pve1/lxc/{vmid}/config"), None)?;
            macs.push(check_config(name, &config["data"]).with_context(|| format!("{name}: {config:#}"))?);
            // The agent that lives in this guest, and no other, is the one that the ledger knows.
            let guest = self.sim.guest(&hostname)?;
            ensure!(guest.vmid == *vmid && guest.certificate.is_some(), "{name} has no agent: {guest:?}");
            let assignment = guest.assignment.with_context(|| format!("{name} has no assignment"))?;
            ensure!(assignment.instance.as_str() == *name, "{name} holds the assignment of {}", assignment.instance);
        }
        macs.sort();
        macs.dedup();
        ensure!(macs.len() == instances.len(), "MAC addresses are shared: {macs:?}");
        // A stand-in learns from its next look at the node that its guest is gone.
        await_for("every guest that is gone has lost its agent", SETTLES, || {
            Ok((self.sim.hostnames().len() == instances.len()).then_some(()))
        })
        .with_context(|| format!("agents: {:?}", self.sim.hostnames()))?;
        let pool = world.node("GET", "/api2/json/pools?poolid=ctrlable", None)?;
        let members = pool["data"][0]["members"].as_array().map(Vec::len).unwrap_or_default();
        ensure!(members == instances.len() + TEMPLATES.len(), "the pool holds something else: {pool:#}");
        for (vmid, _) in TEMPLATES {
            let config = world.node("GET", &format!("/api2/json/nodes/pve1/lxc/{vmid}/config"), None)?;
            ensure!(config["data"]["lock"].is_null(), "template {vmid} is locked: {config}");
        }
        self.check_volumes(instances.len())?;
        self.check_ledger(instances.len())
    }

    /// One disk for each guest and template, and none besides.
    fn check_volumes(&self, count: usize) -> Result<()> {
        let content = self.world.node("GET", "/api2/json/nodes/pve1/storage/local-lvm/content", None)?;
        let disks = content["data"].as_array().map(Vec::len).unwrap_or_default();
        ensure!(disks == count + TEMPLATES.len(), "disks are left behind or lost: {content:#}");
        Ok(())
    }

    /// No open row, one reservation and one agent for each instance.
    fn check_ledger(&self, count: usize) -> Result<()> {
        let db = rusqlite::Connection::open_with_flags(
            self.world.dir.join("site/state/ledger.db"),
            rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY,
        )?;
        let number = |sql: &str| db.query_row(sql, [], |row| row.get::<_, u32>(0));
        // A call without an answer is being looked into for some seconds although everything is as it should be.
        await_for("no step is open in the journal", SETTLES, || {
            let open = number("SELECT count(*) FROM journal WHERE state IN ('intended', 'submitted')")?;
            Ok((open == 0).then_some(()))
        })?;
        let instances = number("SELECT count(*) FROM instances")?;
        let agents = number("SELECT count(*) FROM agents WHERE last_seen IS NOT NULL")?;
        let wanted = u32::try_from(count)?;
        ensure!((instances, agents) == (wanted, wanted), "{instances} reservations, {agents} agents for {count}");
        Ok(())
    }

    /// Asks the node for trouble: what happens to so many calls of this method and path; `None` means all.
    pub fn ask_for_trouble(&self, method: &str, path: &str, times: Option<u32>, action: Value) -> Result<()> {
        let rule = json!({ "method": method, "path": path, "times": times, "action": action });
        self.world.node("POST", "/lab/faults", Some(&rule)).map(drop)
    }

    /// Waits until `status` shows this reason for an instance; returns its row.
    pub fn await_reason(&self, instance: &str, reason: &str) -> Result<Value> {
        self.await_cause(instance, reason, "")
    }

    /// As [`Self::await_reason`], with words that the cause has.
    pub fn await_cause(&self, instance: &str, reason: &str, words: &str) -> Result<Value> {
        let mut last = Value::Null;
        await_for(&format!("status shows {reason} {words} for {instance}"), SETTLES, || {
            last = self.world.status()?;
            let row = World::instance(&last, instance)?;
            let said = row["cause"].as_str().unwrap_or_default().contains(words);
            Ok((row["reason"] == reason && said).then(|| row.clone()))
        })
        .with_context(|| format!("{last:#}\n{}", self.world.orchestrator_log()))
    }

    /// Waits until the event log has this reason; returns the event.
    pub fn await_event(&self, reason: &str) -> Result<Value> {
        await_for(&format!("the event log has {reason}"), SETTLES, || {
            Ok(self.world.events()?.into_iter().find(|event| event["reason"] == reason))
        })
        .with_context(|| self.world.orchestrator_log())
    }

    /// Waits until one instance is healthy.
    pub fn await_healthy(&self, instance: &str) -> Result<()> {
        let mut last = Value::Null;
        await_for(&format!("{instance} is healthy"), SETTLES, || {
            last = self.world.status()?;
            Ok((World::instance(&last, instance)?["phase"] == "healthy").then_some(()))
        })
        .with_context(|| format!("{last:#}\n{}", self.world.orchestrator_log()))
    }

    /// Clones that the node accepted since its log was emptied or it was started.
    pub fn clones(&self) -> Result<usize> {
        let accepted = |call: &&Value| {
            call["subject"].as_str().is_some_and(|path| path.ends_with("/clone")) && call["status"] == 200
        };
        Ok(self.world.changes()?.iter().filter(accepted).count())
    }
}

/// What every guest of the small site must have. Returns its MAC address.
fn check_config(name: &str, config: &Value) -> Result<String> {
    let (template, cores, memory, disk) = match name {
        "hub" => ("broker", 2, 384, "4G"),
        _ => ("sensor", 1, 128, "2G"),
    };
    let text = |key: &str| config[key].as_str().unwrap_or_default().to_owned();
    ensure!(config["lock"].is_null(), "it is locked");
    ensure!(text("hostname") == hostname(name), "host name");
    ensure!((&config["cores"], &config["memory"]) == (&json!(cores), &json!(memory)), "cores or memory");
    ensure!(text("rootfs").contains(&format!("size={disk}")), "disk");
    let net = text("net0");
    for part in ["bridge=vmbr0", "ip=dhcp"] {
        ensure!(net.split(',').any(|found| found == part), "net0 lacks {part}");
    }
    let mut tags: Vec<String> = text("tags").split(';').map(str::to_owned).collect();
    tags.sort();
    ensure!(tags == ["ctrlable".to_owned(), format!("instance-{name}"), format!("site-{SITE}")], "tags");
    let marker = [
        format!("\"instance\":\"{name}\""),
        format!("\"site\":\"{SITE}\""),
        format!("\"template\":\"{template}\""),
        format!("\"release\":\"{RELEASE}\""),
    ];
    ensure!(marker.iter().all(|part| text("description").contains(part)), "marker");
    ensure!(config["onboot"] == json!(1), "onboot");
    ensure!(
        !text("env").contains("ctrlable-claim-") || text("env").is_empty(),
        "a claim was left in its configuration"
    );
    net.split(',').find_map(|part| part.strip_prefix("hwaddr=")).map(str::to_owned).context("net0 has no MAC address")
}

/// A guest made by hand and adopted as a template.
pub fn make_template(world: &World, vmid: u32, name: &str) -> Result<()> {
    let mut import = command(program("ctrlable-lab")?, ["template", "--template", "--state"]);
    import.arg(world.dir.join("lab")).args(["--vmid", &vmid.to_string(), "--hostname", name]);
    import.args(["--storage", "local-lvm", "--size", "2G", "--pool", "ctrlable", "--memory", "256"]);
    import.args(["--set", "net0=name=eth0,bridge=vmbr0,ip=dhcp,type=veth"]);
    // Sensors start with a claim of their own, brokers with their release's.
    if name == "sensor" {
        import.args(["--set", "env=CTRLABLE_CLAIM=none"]);
    }
    run(&mut import)?;
    let mut adopt = world.ctrlable(["template", "adopt", "--release", RELEASE, "--name", name]);
    run(adopt.arg(vmid.to_string()).arg("--manifest").arg(world.manifest())).map(drop)
}
