//! A private system bus with systemd1, hostname1 and timedate1 on it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use zbus::object_server::SignalEmitter;
use zbus::{OwnedObjectPath, fdo, interface};

type AfterRestart = Box<dyn Fn(&str) -> &'static str + Send>;

/// What happened on the bus, and how units behave.
#[derive(Default)]
pub struct Machine {
    /// Calls as text, in order.
    pub calls: Vec<String>,
    /// Active state by unit.
    pub units: BTreeMap<String, String>,
    /// Decides how a unit is after its restart; `active` when there is nothing.
    pub after_restart: Option<AfterRestart>,
}

pub struct Bus {
    pub address: String,
    pub machine: Arc<Mutex<Machine>>,
    daemon: Child,
    _connection: zbus::Connection,
}

/// Whether this machine can play a system bus.
pub fn available() -> bool {
    Command::new("dbus-daemon").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

impl Bus {
    pub async fn start(dir: &Path) -> Self {
        let config = dir.join("bus.conf");
        let text = format!(
            r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path={}/bus</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_type="method_call"/><allow send_destination="*"/>
<allow receive_sender="*"/></policy></busconfig>"#,
            dir.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut daemon = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--print-address=1"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut address = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut address).unwrap();
        let address = address.trim().to_owned();
        let machine = Arc::new(Mutex::new(Machine::default()));
        let connection = zbus::connection::Builder::address(address.as_str())
            .name("org.freedesktop.systemd1")
            .name("org.freedesktop.hostname1")
            .name("org.freedesktop.timedate1")
            .serve_at("/org/freedesktop/systemd1", Manager { machine: Arc::clone(&machine), jobs: 0 })
            .serve_at(UNIT, Service)
            .serve_at("/org/freedesktop/hostname1", Hostname1(Arc::clone(&machine)))
            .serve_at("/org/freedesktop/timedate1", Timedate1(Arc::clone(&machine)))
            .build()
            .await
            .unwrap();
        Self { address, machine, daemon, _connection: connection }
    }

    pub fn calls(&self) -> Vec<String> {
        self.machine.lock().unwrap().calls.clone()
    }

    pub fn set(&self, unit: &str, state: &str) {
        self.machine.lock().unwrap().units.insert(unit.to_owned(), state.to_owned());
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// All units are one object: of its properties only `Type` is asked for.
const UNIT: &str = "/org/freedesktop/systemd1/unit/any";

struct Service;

#[interface(name = "org.freedesktop.systemd1.Service")]
impl Service {
    #[zbus(property, name = "Type")]
    fn kind(&self) -> String {
        "notify".to_owned()
    }
}

struct Manager {
    machine: Arc<Mutex<Machine>>,
    jobs: u32,
}

type Row = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

fn path(text: &str) -> OwnedObjectPath {
    OwnedObjectPath::try_from(text.to_owned()).unwrap()
}

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    fn subscribe(&self) {
        self.machine.lock().unwrap().calls.push("subscribe".to_owned());
    }

    fn reload(&self) {
        self.machine.lock().unwrap().calls.push("reload".to_owned());
    }

    fn reset_failed_unit(&self, name: &str) -> fdo::Result<()> {
        Err(fdo::Error::Failed(format!("{name} is not loaded")))
    }

    fn load_unit(&self, _name: &str) -> OwnedObjectPath {
        path(UNIT)
    }

    async fn restart_unit(
        &mut self,
        name: &str,
        mode: &str,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> fdo::Result<OwnedObjectPath> {
        self.jobs += 1;
        let job = path(&format!("/org/freedesktop/systemd1/job/{}", self.jobs));
        let state = {
            let mut machine = self.machine.lock().unwrap();
            let state = machine.after_restart.as_ref().map_or("active", |decide| decide(name));
            machine.calls.push(format!("restart {name} {mode}"));
            machine.units.insert(name.to_owned(), state.to_owned());
            state
        };
        // Another job's end comes first, and ours even before the answer to the call: both happen.
        emitter.job_removed(999, path("/org/freedesktop/systemd1/job/999"), "other.service", "failed").await?;
        emitter.job_removed(self.jobs, job.clone(), name, if state == "active" { "done" } else { "failed" }).await?;
        Ok(job)
    }

    fn list_units_by_names(&self, names: Vec<String>) -> Vec<Row> {
        let machine = self.machine.lock().unwrap();
        let row = |name: String| {
            let known = machine.units.get(&name).cloned();
            let load = if known.is_some() { "loaded" } else { "not-found" };
            let sub = if known.as_deref() == Some("active") { "running" } else { "dead" };
            let active = known.unwrap_or_else(|| "inactive".to_owned());
            let unit = path(UNIT);
            (name, String::new(), load.into(), active, sub.into(), String::new(), unit, 0, String::new(), path("/"))
        };
        names.into_iter().map(row).collect()
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;
}

struct Hostname1(Arc<Mutex<Machine>>);

#[interface(name = "org.freedesktop.hostname1")]
impl Hostname1 {
    fn set_static_hostname(&self, hostname: &str, _interactive: bool) {
        self.0.lock().unwrap().calls.push(format!("hostname {hostname}"));
    }
}

struct Timedate1(Arc<Mutex<Machine>>);

#[interface(name = "org.freedesktop.timedate1")]
impl Timedate1 {
    fn set_timezone(&self, timezone: &str, _interactive: bool) -> fdo::Result<()> {
        self.0.lock().unwrap().calls.push(format!("timezone {timezone}"));
        Err(fdo::Error::Failed("no such zone".to_owned()))
    }
}
