//! A whole installation in one directory: HQ's key, the bare git remote, a dealer's checkout, a lab node, the
//! orchestrator's configuration and process. Dropping it takes everything down.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::run::{await_for, command, program, run, run_expecting};

/// What guests are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// Records.
    None,
    /// Real containers.
    Nspawn,
}

/// Everything of one installation.
#[derive(Debug)]
pub struct World {
    /// Where everything lies.
    pub dir: PathBuf,
    /// What guests are made of.
    pub runtime: Runtime,
    /// Ports of the node, of the listener for guests and of the one for people, where guests are only records: they
    /// stay the same over restarts.
    pub ports: [u16; 3],
    lab: Option<Child>,
    orchestrator: Option<Child>,
}

/// What a test sets in `orchestrator.toml` besides the usual.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tuning<'a> {
    /// Seconds in which a started guest may enrol.
    pub window: Option<u32>,
    /// Seconds that a guest's certificate is good.
    pub certificate_life: Option<u32>,
    /// Secret of the git hook.
    pub webhook_secret: Option<&'a str>,
    /// Which commits must be signed: `trust.commits`.
    pub commits: Option<&'a str>,
}

/// The site of the demo and the tests.
pub const SITE: &str = "acme-hq";
/// Its release.
pub const RELEASE: &str = "2026.06";
/// The node's address on its bridge.
const NODE: &str = "10.77.0.1";

/// Time for a program to come up on a busy machine.
const COMES_UP: Duration = Duration::from_secs(180);

impl World {
    /// A fresh world; whatever an earlier one left in `dir` is taken down and removed.
    pub fn fresh(dir: &Path, runtime: Runtime) -> Result<Self> {
        if dir.join("lab").exists() {
            run(command(program("ctrlable-lab")?, ["down", "--state"]).arg(dir.join("lab")))?;
        }
        if dir.exists() {
            fs::remove_dir_all(dir).with_context(|| format!("{} cannot be emptied", dir.display()))?;
        }
        for part in ["lab", "hq", "site"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let dir = dir.canonicalize()?;
        fs::set_permissions(dir.join("site"), fs::Permissions::from_mode(0o700))?;
        let ports = match runtime {
            Runtime::None => [free_port()?, free_port()?, free_port()?],
            // Guests and node have a network of their own there.
            Runtime::Nspawn => [8006, 8443, 8080],
        };
        Ok(Self { dir, runtime, ports, lab: None, orchestrator: None })
    }

    // HQ and the dealer.

    /// HQ makes its key, the remote is made, and the fleet's checkout.
    pub fn make_fleet(&self) -> Result<()> {
        run(self.ctrlable(["release", "keygen", "--no-password", "--out"]).arg(self.dir.join("hq")))?;
        run(command("git", ["init", "--quiet", "--bare", "--initial-branch=main"]).arg(self.remote()))?;
        run(command("git", ["clone", "--quiet"]).arg(self.remote()).arg(self.checkout()))?;
        fs::create_dir_all(self.checkout().join("releases"))?;
        fs::create_dir_all(self.checkout().join("sites").join(SITE))?;
        Ok(())
    }

    /// The bare remote.
    pub fn remote(&self) -> PathBuf {
        self.dir.join("fleet.git")
    }

    /// The checkout that HQ and the dealer work in.
    pub fn checkout(&self) -> PathBuf {
        self.dir.join("fleet")
    }

    /// The release manifest in the checkout.
    pub fn manifest(&self) -> PathBuf {
        self.checkout().join(format!("releases/{RELEASE}.yaml"))
    }

    /// The site definition in the checkout.
    pub fn site_file(&self) -> PathBuf {
        self.checkout().join(format!("sites/{SITE}/site.yaml"))
    }

    /// HQ signs the manifest.
    pub fn sign(&self) -> Result<()> {
        let key = self.dir.join("hq/hq.key");
        run(self.ctrlable(["release", "sign"]).arg(self.manifest()).arg("--key").arg(key)).map(drop)
    }

    /// git in the checkout.
    pub fn git(&self, arguments: &[&str]) -> Result<String> {
        run(command("git", ["-c", "user.name=demo", "-c", "user.email=demo@example.invalid"])
            .args(arguments)
            .current_dir(self.checkout()))
    }

    /// Commits everything in the checkout and pushes it. Returns the revision.
    pub fn push(&self, message: &str) -> Result<String> {
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--message", message])?;
        self.git(&["push", "--quiet", "origin", "HEAD:main"])?;
        Ok(self.git(&["rev-parse", "HEAD"])?.trim().to_owned())
    }

    /// What a dealer does: a branch, a commit, a merge into main, a push. Returns the merged revision.
    pub fn merge(&self, message: &str) -> Result<String> {
        self.git(&["checkout", "--quiet", "-B", "change"])?;
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--message", message])?;
        self.git(&["checkout", "--quiet", "main"])?;
        self.git(&["merge", "--quiet", "--no-ff", "--message", &format!("Merge: {message}"), "change"])?;
        self.git(&["push", "--quiet", "origin", "main"])?;
        Ok(self.git(&["rev-parse", "HEAD"])?.trim().to_owned())
    }

    // The node.

    /// Brings the lab node up.
    pub fn start_lab(&mut self) -> Result<()> {
        self.start_lab_with(&[])
    }

    /// As [`Self::start_lab`], with further arguments of `ctrlable-lab serve`.
    pub fn start_lab_with(&mut self, more: &[&str]) -> Result<()> {
        let own = match self.runtime {
            Runtime::None => format!("127.0.0.1:{}", self.ports[0]),
            Runtime::Nspawn => "127.0.0.1:0".to_owned(),
        };
        let mut serve = command(program("ctrlable-lab")?, ["serve", "--listen", &own, "--state"]);
        serve.arg(self.dir.join("lab")).args(["--node", "pve1", "--runtime"]);
        match self.runtime {
            Runtime::None => serve.args(["none", "--subnet", &format!("{}0/24", self.network())]),
            // The second address is the node's own on its bridge, inside the lab's network namespace.
            Runtime::Nspawn => serve.args(["nspawn", "--listen", &format!("{NODE}:8006")]),
        };
        let _ = fs::remove_file(self.dir.join("lab/lab.json"));
        self.lab = Some(spawn(serve.args(more), &self.dir.join("lab.log"))?);
        await_for("the lab node comes up", COMES_UP, || {
            if let Some(status) = self.lab.as_mut().and_then(|lab| lab.try_wait().ok().flatten()) {
                bail!("the lab node ended with {status}:\n{}", tail(&self.dir.join("lab.log")));
            }
            Ok(self.dir.join("lab/lab.json").exists().then_some(()))
        })
    }

    /// The first three numbers, with their dots, of the guests' network. Records have theirs on loopback, where a
    /// stand-in can connect from its guest's own address; no other world on this machine has the same.
    pub fn network(&self) -> String {
        match self.runtime {
            Runtime::None => format!("127.{}.{}.", self.ports[0] >> 8, self.ports[0] & 255),
            Runtime::Nspawn => "10.77.0.".to_owned(),
        }
    }

    /// Writes the site definition into the checkout.
    pub fn write_site(&self, text: &str) -> Result<()> {
        Ok(fs::write(self.site_file(), text)?)
    }

    /// What the lab said of itself.
    pub fn lab_facts(&self) -> Result<Value> {
        Ok(serde_json::from_str(&fs::read_to_string(self.dir.join("lab/lab.json"))?)?)
    }

    /// Kills the lab node as a power cut would.
    pub fn kill_lab(&mut self) -> Result<()> {
        if let Some(mut lab) = self.lab.take() {
            lab.kill()?;
            lab.wait()?;
        }
        Ok(())
    }

    /// A call of the lab's control endpoint, or of the Proxmox API as the administrator.
    pub fn node(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let facts = self.lab_facts()?;
        let field =
            |name: &str| facts[name].as_str().map(str::to_owned).with_context(|| format!("lab.json lacks {name}"));
        let token = fs::read_to_string(field("root_token")?)?;
        let ca = fs::read(field("ca")?)?;
        let url = format!("{}{path}", field("url")?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let _ = rustls::crypto::ring::default_provider().install_default();
            let client = reqwest::Client::builder().tls_certs_only([reqwest::Certificate::from_pem(&ca)?]).build()?;
            let mut request =
                client.request(method.parse()?, &url).header("Authorization", format!("PVEAPIToken={}", token.trim()));
            if let Some(body) = body {
                request = request.json(body);
            }
            let response = request.send().await?;
            let (status, text) = (response.status(), response.text().await?);
            if !status.is_success() {
                bail!("{method} {path} answered {status}: {text}");
            }
            Ok(if text.is_empty() { Value::Null } else { serde_json::from_str(&text)? })
        })
    }

    /// Guests of the node as `(vmid, row)`, templates left out.
    pub fn guests(&self) -> Result<Vec<(u64, Value)>> {
        let rows = self.node("GET", "/api2/json/nodes/pve1/lxc", None)?;
        let rows = rows["data"].as_array().context("the list of guests is no list")?;
        let mut guests: Vec<(u64, Value)> = rows
            .iter()
            .filter(|row| row["template"] != 1)
            .filter_map(|row| Some((row["vmid"].as_u64()?, row.clone())))
            .collect();
        guests.sort_by_key(|(vmid, _)| *vmid);
        Ok(guests)
    }

    /// Calls that changed something on the node since the log was cleared last, with method, path as `subject`, status.
    pub fn changes(&self) -> Result<Vec<Value>> {
        let log = self.node("GET", "/lab/log", None)?;
        let entries = log.as_array().context("the lab's log is no list")?;
        Ok(entries.iter().filter(|entry| entry["what"] == "request" && entry["method"] != "GET").cloned().collect())
    }

    /// Runs a command in a guest and returns what it printed.
    pub fn exec(&self, vmid: u64, arguments: &[&str]) -> Result<String> {
        run(&mut self.exec_command(vmid, arguments)?)
    }

    /// A command in a guest, for the caller to run.
    pub fn exec_command(&self, vmid: u64, arguments: &[&str]) -> Result<Command> {
        let mut exec = command(program("ctrlable-lab")?, ["exec", "--state"]);
        exec.arg(self.dir.join("lab")).arg(vmid.to_string()).arg("--").args(arguments);
        Ok(exec)
    }

    // The orchestrator.

    /// Writes `orchestrator.toml` and the secrets file.
    pub fn configure(&self, secrets: &[(&str, &str)], interval: u32) -> Result<()> {
        self.configure_with(secrets, interval, Tuning::default())
    }

    /// As [`Self::configure`], with more than the usual.
    pub fn configure_with(&self, secrets: &[(&str, &str)], interval: u32, tuning: Tuning<'_>) -> Result<()> {
        let hq = fs::read_to_string(self.dir.join("hq/hq.pub"))?;
        let key = hq.lines().last().context("hq.pub is empty")?;
        let facts = self.lab_facts()?;
        let path = |name: &str| facts[name].as_str().unwrap_or_default().to_owned();
        let (proxmox, agents, web) = match self.runtime {
            Runtime::None => {
                (path("url"), format!("127.0.0.1:{}", self.ports[1]), format!("127.0.0.1:{}", self.ports[2]))
            }
            Runtime::Nspawn => (format!("https://{NODE}:8006"), format!("{NODE}:8443"), "127.0.0.1:8080".to_owned()),
        };
        let hook = match tuning.webhook_secret {
            Some(secret) => {
                fs::write(self.dir.join("site/webhook"), secret)?;
                "webhook_secret_file = \"webhook\""
            }
            None => "",
        };
        let life = tuning.certificate_life.map_or(String::new(), |life| format!("certificate_life = {life}"));
        let window = tuning.window.map_or(String::new(), |window| format!("window = {window}"));
        let commits = tuning.commits.map_or(String::new(), |commits| format!("commits = \"{commits}\""));
        let text = format!(
            r#"site = "{SITE}"
state = "state"

[source]
url = "file://{remote}"
interval = {interval}
{hook}

[trust]
keys = ["{key}"]
{commits}

[proxmox]
url = "{proxmox}"
token_file = "{token}"
ca_file = "{ca}"

[agents]
listen = "{agents}"
advertise = ["https://{agents}"]
interval = 5
{window}
{life}

[web]
listen = "{web}"

[secrets]
file = "secrets.yaml"
"#,
            remote = self.remote().display(),
            token = path("token"),
            ca = path("ca"),
        );
        fs::write(self.config(), text)?;
        fs::create_dir_all(self.dir.join("site/state"))?;
        self.write_secrets(secrets)
    }

    /// The operator changes the site's secrets.
    pub fn write_secrets(&self, secrets: &[(&str, &str)]) -> Result<()> {
        let file = self.dir.join("site/secrets.yaml");
        let text: String = secrets.iter().map(|(name, value)| format!("{name}: \"{value}\"\n")).collect();
        let fresh = self.dir.join("site/secrets.yaml.new");
        fs::write(&fresh, text)?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
        Ok(fs::rename(fresh, file)?)
    }

    /// `ctrlable secrets` in the checkout, with this on standard input.
    pub fn secrets(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut child = command(program("ctrlable")?, ["secrets"])
            .args(arguments)
            .arg("--fleet")
            .arg(self.checkout())
            .args(["--site", SITE])
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("it has a standard input")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() {
            Ok(said)
        } else {
            bail!("secrets {arguments:?} ended with {}: {said}", output.status)
        }
    }

    /// Puts the site's own key on the list of recipients in the checkout.
    pub fn add_recipient(&self) -> Result<()> {
        let key = run(&mut self.ctrlable(["secrets", "recipients"]))?;
        self.secrets(&["recipients", "--add", key.trim(), "--comment", "the site"], "").map(drop)
    }

    /// `orchestrator.toml`.
    pub fn config(&self) -> PathBuf {
        self.dir.join("site/orchestrator.toml")
    }

    /// `ctrlable`, inside the node's network where there is one.
    pub fn ctrlable<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut ctrlable = self.base_command();
        ctrlable.args(arguments);
        ctrlable
    }

    fn base_command(&self) -> Command {
        // A program that is not built is said at its first use.
        let of = |name: &str| program(name).unwrap_or_else(|_| name.into());
        let mut base = if self.runtime == Runtime::Nspawn && self.lab.is_some() {
            let mut base = command(of("ctrlable-lab"), ["netns", "--state"]);
            base.arg(self.dir.join("lab")).arg("--").arg(of("ctrlable"));
            base
        } else {
            Command::new(of("ctrlable"))
        };
        base.env("CTRLABLE_CONFIG", self.config());
        base
    }

    /// Starts `ctrlable serve`.
    pub fn start_orchestrator(&mut self) -> Result<()> {
        self.start_orchestrator_with(&[])
    }

    /// As [`Self::start_orchestrator`], with more in its environment.
    pub fn start_orchestrator_with(&mut self, environment: &[(&str, &str)]) -> Result<()> {
        let mut serve = self.ctrlable(["serve"]);
        serve.envs(environment.iter().copied());
        self.orchestrator = Some(spawn(&mut serve, &self.dir.join("orchestrator.log"))?);
        Ok(())
    }

    /// Asks the orchestrator to stop and waits for it.
    pub fn stop_orchestrator(&mut self) -> Result<()> {
        let Some(mut child) = self.orchestrator.take() else { return Ok(()) };
        signal(&child, "TERM")?;
        await_for("the orchestrator stops", COMES_UP, || Ok(child.try_wait()?))?;
        Ok(())
    }

    /// Waits until the orchestrator has ended by itself, and says how.
    pub fn await_end(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let mut child = self.orchestrator.take().context("the orchestrator was not started")?;
        let ended = await_for("the orchestrator ends", deadline, || Ok(child.try_wait()?));
        if ended.is_err() {
            self.orchestrator = Some(child);
        }
        ended.with_context(|| self.orchestrator_log())
    }

    /// Whether the orchestrator runs; reaps it when it does not.
    pub fn orchestrator_runs(&mut self) -> Result<bool> {
        match self.orchestrator.as_mut() {
            Some(child) => Ok(child.try_wait()?.is_none()),
            None => Ok(false),
        }
    }

    /// Kills the orchestrator as a power cut would.
    pub fn kill_orchestrator(&mut self) -> Result<()> {
        if let Some(mut child) = self.orchestrator.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// The processes of the node and of the orchestrator.
    pub fn pids(&self) -> Vec<u32> {
        self.lab.iter().chain(&self.orchestrator).map(Child::id).collect()
    }

    /// The orchestrator's process.
    pub fn orchestrator_pid(&self) -> Result<u32> {
        Ok(self.orchestrator.as_ref().context("the orchestrator was not started")?.id())
    }

    /// What the orchestrator logged last.
    pub fn orchestrator_log(&self) -> String {
        tail(&self.dir.join("orchestrator.log"))
    }

    /// `ctrlable status --json`.
    pub fn status(&self) -> Result<Value> {
        let text = run(&mut self.ctrlable(["status", "--json"]))?;
        serde_json::from_str(&text).context("status is no JSON")
    }

    /// `ctrlable events --json`, the newest thousand, oldest first.
    pub fn events(&self) -> Result<Vec<Value>> {
        let text = run(&mut self.ctrlable(["events", "--json", "--limit", "1000"]))?;
        text.lines().map(|line| serde_json::from_str(line).context("an event is no JSON")).collect()
    }

    /// `ctrlable plan --json`; exit codes 0 and 2 are both fine.
    pub fn plan(&self) -> Result<Value> {
        let output = run_expecting(&mut self.ctrlable(["plan", "--json"]), &[0, 2])?;
        serde_json::from_slice(&output.stdout).context("plan is no JSON")
    }

    /// Waits until `revision` is in force or refused; returns the reason when it is refused.
    pub fn await_verdict(&self, revision: &str) -> Result<Option<String>> {
        await_for("the orchestrator looks at the revision", COMES_UP, || {
            let newest = &self.status()?["newest"];
            Ok((newest["revision"] == revision).then(|| newest["reason"].as_str().map(str::to_owned)))
        })
        .with_context(|| self.orchestrator_log())
    }

    /// Waits until every instance of the ledger, at least `count`, is in this phase.
    pub fn await_phase(&self, phase: &str, count: usize, deadline: Duration) -> Result<Value> {
        let mut last = Value::Null;
        let found = await_for(&format!("{count} instances are {phase}"), deadline, || {
            last = self.status()?;
            let instances = last["instances"].as_array().map(Vec::as_slice).unwrap_or_default();
            let all = instances.iter().all(|instance| instance["phase"] == phase);
            Ok((instances.len() >= count && all).then(|| last.clone()))
        });
        found.with_context(|| format!("{last:#}\n{}", self.orchestrator_log()))
    }

    /// One instance of a status.
    pub fn instance<'a>(status: &'a Value, name: &str) -> Result<&'a Value> {
        status["instances"]
            .as_array()
            .and_then(|instances| instances.iter().find(|instance| instance["instance"] == name))
            .with_context(|| format!("{name} is not in the status"))
    }

    /// Takes everything down; the directory stays for a look.
    pub fn take_down(&mut self) -> Result<()> {
        self.kill_orchestrator()?;
        self.kill_lab()?;
        if self.runtime == Runtime::Nspawn {
            run(command(program("ctrlable-lab")?, ["down", "--state"]).arg(self.dir.join("lab")))?;
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            eprintln!("the world in {} could not be taken down: {error:#}", self.dir.display());
        }
    }
}

/// Ports that are not handed out twice by this process.
static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

/// A port on loopback that nobody listens on and that no outgoing connection gets: those begin at 32768, and one of
/// them on our port would keep the orchestrator from coming back.
fn free_port() -> Result<u16> {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    for _ in 0..COUNT {
        // Test processes that run side by side begin at different places.
        let start = (std::process::id() % u32::from(COUNT)) as u16;
        let port = FIRST + NEXT_PORT.fetch_add(7, Ordering::Relaxed).wrapping_add(start.wrapping_mul(5)) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port on loopback is free");
}

/// Starts a program in the background with its output in a file. It dies with us, however we die, so that a demo or a
/// test that was killed leaves none behind.
fn spawn(program: &mut Command, log: &Path) -> Result<Child> {
    let out = fs::OpenOptions::new().create(true).append(true).open(log)?;
    let mut bound = command("setpriv", ["--pdeathsig", "KILL"]);
    bound.arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => bound.env(name, value),
            None => bound.env_remove(name),
        };
    }
    bound
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        // A Ctrl-C at the terminal is for us; we take the others down in order.
        .process_group(0)
        .spawn()
        .with_context(|| format!("{bound:?} cannot be started"))
}

fn signal(child: &Child, name: &str) -> Result<()> {
    run(&mut command("kill", [format!("-{name}"), child.id().to_string()])).map(drop)
}

/// The last lines of a file.
fn tail(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
