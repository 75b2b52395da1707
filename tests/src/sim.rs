//! Stand-ins for guest agents, for guests that are only records: each running guest of ours enrols with a key of its
//! own, polls for assignments over mutual TLS and reports health, as the real agent does.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use contract::assignment::{self, Assignment};
use contract::bootstrap::Bootstrap;
use contract::enrolment::{self, CLAIM_PREFIX, CLAIM_VARIABLE, EnrolRequest, EnrolResponse, Identity, Problem};
use contract::floor::Floor;
use contract::health::{self, HealthReport, HealthResponse, UnitHealth, Usage, WiringOutcome, WiringReport};
use contract::host_keys::{HostKey, HostKeys};
use contract::ids::{Generation, Sha256Digest};
use contract::renewal::{self, Renew, RenewRequest, RenewResponse};
use contract::{PROTOCOL, secret::Secret};
use rcgen::{CertificateParams, KeyPair};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::run::run;
use crate::world::{RELEASE, World};

/// How a guest behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Conduct {
    /// It enrols, takes what it is given and reports that all is well.
    #[default]
    Well,
    /// It never asks for a certificate.
    NeverEnrol,
    /// It reports a unit that has failed.
    Unhealthy,
    /// It puts every new assignment back.
    PutBack,
    /// It is enrolled and does not talk to its orchestrator.
    Away,
}

/// Key and certificate of one guest.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// PEM.
    pub key: String,
    /// PEM.
    pub certificate: String,
}

/// What one guest knows and did, as long as it lives.
#[derive(Debug, Clone, Default)]
pub struct Guest {
    /// Its number.
    pub vmid: u64,
    /// Its MAC address.
    pub mac: String,
    /// Its address.
    pub address: Option<IpAddr>,
    /// The claim that its configuration carried when it was started.
    pub claim: Option<String>,
    /// The template that it was cloned from.
    pub template: String,
    /// Made at its first start.
    pub key: String,
    /// From its enrolment, or from a renewal.
    pub certificate: Option<String>,
    /// The CA certificates that it believes, if it was told other ones than its template's.
    pub ca: Option<String>,
    /// How often its certificate was renewed.
    pub renewals: u64,
    /// The assignment in force.
    pub assignment: Option<Assignment>,
    /// Labels of refused enrolments.
    pub refusals: Vec<String>,
    /// What it keeps for its orchestrator.
    pub floor: Option<Floor>,
    /// How often it was started.
    pub starts: u64,
    /// What makes it unlike every other: see [`identity`].
    pub identity: u64,
}

impl Guest {
    /// What it shows to the orchestrator.
    pub fn credentials(&self) -> Option<Credentials> {
        Some(Credentials { key: self.key.clone(), certificate: self.certificate.clone()? })
    }
}

#[derive(Debug)]
struct Shared {
    lab: PathBuf,
    bootstraps: BTreeMap<String, Bootstrap>,
    /// By host name.
    conduct: watch::Sender<BTreeMap<String, Conduct>>,
    /// By host name.
    guests: Mutex<BTreeMap<String, Guest>>,
    /// Guests ever met: each gets another identity.
    met: Mutex<u64>,
}

/// The stand-ins of one world; dropping it ends them.
#[derive(Debug)]
pub struct Sim {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// Between two looks at the node's guests.
const LOOK: Duration = Duration::from_millis(100);
/// Between two reports, and between two tries.
const REPORT: Duration = Duration::from_millis(500);
/// Seconds of one long-poll.
const POLL: u32 = 20;
/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(POLL as u64 + 15);

impl Sim {
    /// Stand-ins for clones of these templates. Reads their bootstrap files, as a template build would.
    pub fn start(world: &World, templates: &[&str]) -> Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut bootstraps = BTreeMap::new();
        for name in templates {
            let text = run(&mut world.ctrlable(["template", "bootstrap", "--release", RELEASE, "--name", name]))?;
            bootstraps.insert((*name).to_owned(), serde_json::from_str(&text).context("a bootstrap file is JSON")?);
        }
        let shared = Arc::new(Shared {
            lab: world.dir.join("lab"),
            bootstraps,
            conduct: watch::Sender::default(),
            guests: Mutex::default(),
            met: Mutex::default(),
        });
        let (stop, stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let playing = Arc::clone(&shared);
        let thread = std::thread::spawn(move || runtime.block_on(play(&playing, stopped)));
        Ok(Self { shared, stop, thread: Some(thread) })
    }

    /// How the guest of this host name behaves from now on.
    pub fn behave(&self, hostname: &str, conduct: Conduct) {
        self.shared.conduct.send_modify(|all| {
            all.insert(hostname.to_owned(), conduct);
        });
    }

    /// The guest of this host name, as it is now.
    pub fn guest(&self, hostname: &str) -> Result<Guest> {
        self.shared.guests().get(hostname).cloned().with_context(|| format!("no guest {hostname} was ever started"))
    }

    /// Somebody who owns a guest puts this where its agent keeps what it was told.
    pub fn falsify_floor(&self, hostname: &str, floor: Floor) -> Result<()> {
        let mut guests = self.shared.guests();
        let guest = guests.get_mut(hostname).with_context(|| format!("no guest {hostname} was ever started"))?;
        guest.floor = Some(floor);
        Ok(())
    }

    /// Host names of all guests that live.
    pub fn hostnames(&self) -> Vec<String> {
        self.shared.guests().keys().cloned().collect()
    }

    /// The bootstrap file of a template.
    pub fn bootstrap(&self, template: &str) -> Result<&Bootstrap> {
        self.shared.bootstraps.get(template).with_context(|| format!("there is no template {template}"))
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the stand-ins of the guests ended badly");
        }
    }
}

impl Shared {
    fn guests(&self) -> MutexGuard<'_, BTreeMap<String, Guest>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn conduct(&self, hostname: &str) -> Conduct {
        self.conduct.borrow().get(hostname).copied().unwrap_or_default()
    }
}

/// A running guest of ours as the node shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    hostname: String,
    vmid: u64,
    mac: String,
    template: String,
    pid: u64,
    address: IpAddr,
    /// As its first process sees it.
    claim: Option<String>,
}

/// Follows the node: a guest that starts gets a stand-in, one that stops loses it, one that goes is forgotten.
async fn play(shared: &Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let mut playing: BTreeMap<String, (Seen, tokio::task::JoinHandle<()>)> = BTreeMap::new();
    loop {
        // The node may be away; its guests go on meanwhile.
        if let Ok((running, there)) = look(shared).await {
            playing.retain(|hostname, (seen, task)| {
                let stays = running.get(hostname) == Some(seen);
                if !stays {
                    task.abort();
                }
                stays
            });
            shared.guests().retain(|_, guest| there.contains(&(guest.vmid, guest.mac.clone())));
            for (hostname, seen) in running {
                playing.entry(hostname).or_insert_with(|| {
                    let agent = Agent { shared: Arc::clone(shared), seen: seen.clone() };
                    (seen, tokio::spawn(agent.run()))
                });
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = stopped.changed() => return,
        }
    }
}

/// Running guests of ours by host name, and number and MAC address of every guest.
async fn look(shared: &Shared) -> Result<(BTreeMap<String, Seen>, Vec<(u64, String)>)> {
    let facts: Value = serde_json::from_slice(&std::fs::read(shared.lab.join("lab.json"))?)?;
    let fact = |name: &str| facts[name].as_str().with_context(|| format!("lab.json lacks {name}"));
    let token = std::fs::read_to_string(fact("root_token")?)?;
    let client = client(&std::fs::read_to_string(fact("ca")?)?, None, None)?;
    let url = fact("url")?;
    let base = format!("{url}/api2/json/nodes/pve1/lxc");
    let get = async |url: String| -> Result<Value> {
        let authorization = format!("PVEAPIToken={}", token.trim());
        let response = client.get(url).header("Authorization", authorization).send().await?.error_for_status()?;
        Ok(response.json::<Value>().await?)
    };
    let rows = get(base.clone()).await?["data"].take();
    let addresses = get(format!("{url}/lab/addresses")).await?;
    let (mut running, mut there) = (BTreeMap::new(), Vec::new());
    for row in rows.as_array().into_iter().flatten().filter(|row| row["template"] != 1) {
        let Some(vmid) = row["vmid"].as_u64() else { continue };
        // Gone since the list was made.
        let Ok(config) = get(format!("{base}/{vmid}/config?current=1")).await else { continue };
        let config = &config["data"];
        let net = config["net0"].as_str().unwrap_or_default();
        let mac = net.split(',').find_map(|part| part.strip_prefix("hwaddr=")).unwrap_or_default().to_ascii_lowercase();
        there.push((vmid, mac.clone()));
        let Some(template) = template_of(config["description"].as_str().unwrap_or_default()) else { continue };
        let hostname = config["hostname"].as_str().unwrap_or_default().to_owned();
        if row["status"] == "running" {
            let pid = row["pid"].as_u64().unwrap_or_default();
            let Some(address) = addresses[vmid.to_string()][0].as_str() else { continue };
            let address = address.parse()?;
            let environment = config["env"].as_str().unwrap_or_default().split('\0');
            let claim = environment.filter_map(|pair| pair.strip_prefix(CLAIM_VARIABLE)?.strip_prefix('='));
            let claim = claim.filter(|claim| claim.starts_with(CLAIM_PREFIX)).map(str::to_owned).next();
            running.insert(hostname.clone(), Seen { hostname, vmid, mac, template, pid, address, claim });
        }
    }
    Ok((running, there))
}

/// The template in our marker; `None` for guests that are not ours.
fn template_of(description: &str) -> Option<String> {
    let (object, _) = description.split_once("<!-- ctrlable ")?.1.split_once("-->")?;
    let marker: Value = serde_json::from_str(object).ok()?;
    (marker["role"] == "guest").then(|| marker["template"].as_str().map(str::to_owned))?
}

/// One guest's agent from a start to the end of that run.
struct Agent {
    shared: Arc<Shared>,
    seen: Seen,
}

impl Agent {
    async fn run(self) {
        loop {
            if let Err(error) = self.live().await {
                // The orchestrator is away, or said no: patience.
                self.note_refusal(&error);
                tokio::time::sleep(REPORT / 2).await;
            }
        }
    }

    /// Reads and changes what the guest keeps.
    fn with<T>(&self, work: impl FnOnce(&mut Guest) -> T) -> T {
        let mut guests = self.shared.guests();
        work(guests.entry(self.seen.hostname.clone()).or_default())
    }

    fn note_refusal(&self, error: &anyhow::Error) {
        if let Some(Refused(problem)) = error.downcast_ref() {
            self.with(|guest| guest.refusals.push(problem.reason.clone()));
        }
    }

    fn conduct(&self) -> Conduct {
        self.shared.conduct(&self.seen.hostname)
    }

    async fn live(&self) -> Result<()> {
        let bootstrap = self.shared.bootstraps.get(&self.seen.template).context("a template without bootstrap file")?;
        let fresh = KeyPair::generate()?.serialize_pem();
        let guest = self.with(|guest| {
            if guest.key.is_empty() {
                let mut met = self.shared.met.lock().unwrap_or_else(PoisonError::into_inner);
                *met += 1;
                *guest = Guest {
                    vmid: self.seen.vmid,
                    mac: self.seen.mac.clone(),
                    template: self.seen.template.clone(),
                    key: fresh,
                    identity: (*met << 32) | self.seen.vmid,
                    ..Guest::default()
                };
            }
            guest.starts += 1;
            guest.address = Some(self.seen.address);
            guest.claim = self.seen.claim.clone();
            guest.clone()
        });
        let base = bootstrap.orchestrators.first().context("a bootstrap file without URL")?;
        let mut conduct = self.shared.conduct.subscribe();
        while matches!(self.conduct(), Conduct::NeverEnrol | Conduct::Away) {
            conduct.changed().await?;
        }
        if guest.certificate.is_none() {
            let mut request = enrol_request(bootstrap, &self.seen.hostname, &guest.mac, &guest.key, guest.identity)?;
            if let Some(claim) = &guest.claim {
                request.claim = Secret::new(claim.as_str());
            }
            let answer = enrol(bootstrap, &request, guest.address).await?;
            self.with(|guest| {
                guest.certificate = Some(answer.certificate);
                guest.ca = Some(answer.ca);
            });
        }
        loop {
            let credentials = self.with(|guest| guest.credentials()).context("the certificate is there")?;
            let ca = self.with(|guest| guest.ca.clone()).unwrap_or_else(|| bootstrap.ca.clone());
            let client = client(&ca, Some(&credentials), guest.address)?;
            match self.serve(&client, base, &mut conduct).await {
                Err(error) if is_expired(&error) => self.renew(&client, base).await?,
                outcome => outcome?,
            }
        }
    }

    /// Asks for a new certificate, and uses it from now on.
    async fn renew(&self, client: &reqwest::Client, base: &str) -> Result<()> {
        let key = KeyPair::generate()?.serialize_pem();
        let answer = renew(client, base, &key).await?;
        self.with(|guest| {
            guest.key = key;
            guest.certificate = Some(answer.certificate);
            guest.ca = Some(answer.ca);
            guest.renewals += 1;
        });
        Ok(())
    }

    /// Polls and reports until something fails, or there is something else to show or to believe.
    async fn serve(
        &self,
        client: &reqwest::Client,
        base: &str,
        conduct: &mut watch::Receiver<BTreeMap<String, Conduct>>,
    ) -> Result<()> {
        let mut sequence = 0;
        // The newest generation that was looked at, in force or put back.
        let mut decided = self.with(|guest| guest.assignment.as_ref().map_or(Generation(0), |known| known.generation));
        let began = Instant::now();
        loop {
            let poll = poll(client, base, decided);
            tokio::pin!(poll);
            let newer = loop {
                sequence += 1;
                let report = self.report(decided, sequence, began.elapsed());
                let told: HealthResponse = answer(client.post(format!("{base}{}", health::PATH)).json(&report)).await?;
                if let Some(floor) = told.floor {
                    self.with(|guest| guest.floor = Some(floor));
                }
                if told.renew == Renew::Now {
                    return self.renew(client, base).await;
                }
                if told.ca.is_some() {
                    self.with(|guest| guest.ca = told.ca);
                    return Ok(());
                }
                tokio::select! {
                    newer = &mut poll => break newer?,
                    () = tokio::time::sleep(REPORT) => {}
                    changed = conduct.changed() => changed?,
                }
                if self.conduct() == Conduct::Away {
                    bail!("it is away");
                }
            };
            if let Some(newer) = newer {
                decided = newer.generation;
                if self.conduct() != Conduct::PutBack {
                    self.with(|guest| guest.assignment = Some(newer));
                }
            }
        }
    }

    fn report(&self, decided: Generation, sequence: u64, uptime: Duration) -> HealthReport {
        let (identity, in_force, units, floor, ca) = self.with(|guest| {
            let known = guest.assignment.as_ref();
            let units = known.map(|known| known.units.clone()).unwrap_or_default();
            (
                identity(guest.identity),
                known.map_or(Generation(0), |known| known.generation),
                units,
                guest.floor.clone(),
                guest.ca.clone(),
            )
        });
        let outcome = if in_force < decided {
            WiringOutcome::PutBack { reason: "wiring-put-back".into(), detail: "as the test wants it".into() }
        } else {
            WiringOutcome::Applied { changed: Vec::new() }
        };
        let (active, sub) = match self.conduct() {
            Conduct::Unhealthy => ("failed", "failed"),
            _ => ("active", "running"),
        };
        HealthReport {
            protocol: PROTOCOL,
            boot_id: format!("{}-{}", self.seen.vmid, self.seen.pid),
            sequence,
            agent: "stand-in".into(),
            uptime: uptime.as_secs(),
            generation: in_force,
            wiring: (decided > Generation(0)).then_some(WiringReport { generation: decided, outcome }),
            units: units.into_iter().map(|unit| UnitHealth { unit, active: active.into(), sub: sub.into() }).collect(),
            probes: Vec::new(),
            load: 0.0,
            memory: Usage { total: 1 << 28, used: 1 << 20 },
            disk: Usage { total: 2 << 30, used: 1 << 29 },
            identity,
            first_boot: Vec::new(),
            floor,
            ca: ca.map(|ca| digest(&ca)),
        }
    }
}

/// SHA-256 of a text.
pub fn digest(text: &str) -> Sha256Digest {
    <[u8; 32]>::from(Sha256::digest(text)).into()
}

/// What makes guest number `seed` unlike every other.
pub fn identity(seed: u64) -> Identity {
    Identity {
        machine_id: format!("{seed:064x}").parse().unwrap_or_else(|_| unreachable!("64 hex digits are a digest")),
        sealed_machine_id: None,
        ssh_host_keys: host_keys(seed),
    }
}

/// The form of an ed25519 key with a number in it.
fn host_keys(seed: u64) -> HostKeys {
    // Length and name of the algorithm and the key's length are the same in every key, and so is how they are encoded.
    let key = HostKey::try_from(format!("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA{seed:042}"));
    let keys = key.and_then(|key| HostKeys::try_from(vec![key]));
    keys.unwrap_or_else(|_| unreachable!("digits are base64, and 68 of them need no padding"))
}

/// A guest's request for a certificate.
pub fn enrol_request(bootstrap: &Bootstrap, hostname: &str, mac: &str, key: &str, seed: u64) -> Result<EnrolRequest> {
    let csr = CertificateParams::default().serialize_request(&KeyPair::from_pem(key)?)?.pem()?;
    Ok(EnrolRequest {
        protocol: PROTOCOL,
        claim: Secret::new(bootstrap.claim.expose()),
        release: bootstrap.release.clone(),
        template: bootstrap.template.clone(),
        hostname: hostname.parse()?,
        mac: mac.parse()?,
        csr,
        identity: identity(seed),
        agent: "stand-in".into(),
    })
}

/// A client that believes `ca` alone, shows a certificate if it has one, and connects from an address of this machine.
pub fn client(ca: &str, credentials: Option<&Credentials>, from: Option<IpAddr>) -> Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder()
        .tls_certs_only(reqwest::Certificate::from_pem_bundle(ca.as_bytes())?)
        .no_proxy()
        .local_address(from)
        .timeout(ANSWER);
    if let Some(Credentials { key, certificate }) = credentials {
        builder = builder.identity(reqwest::Identity::from_pem(format!("{key}{certificate}").as_bytes())?);
    }
    Ok(builder.build()?)
}

/// An answer of the orchestrator that is no success.
#[derive(Debug)]
pub struct Refused(pub Problem);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.0.reason, self.0.message)
    }
}

impl std::error::Error for Refused {}

async fn answer<T: DeserializeOwned>(request: reqwest::RequestBuilder) -> Result<T> {
    let response = request.send().await?;
    let (status, text) = (response.status(), response.text().await?);
    if status.is_success() {
        return Ok(serde_json::from_str(&text)?);
    }
    match serde_json::from_str(&text) {
        Ok(problem) => Err(Refused(problem).into()),
        Err(_) => bail!("{status}: {text}"),
    }
}

/// Whether an error is the refusal of an expired certificate.
fn is_expired(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(|Refused(problem)| problem.reason == renewal::EXPIRED)
}

/// Asks for a certificate over another key, as the holder of the client's.
pub async fn renew(client: &reqwest::Client, base: &str, key: &str) -> Result<RenewResponse> {
    let csr = CertificateParams::default().serialize_request(&KeyPair::from_pem(key)?)?.pem()?;
    answer(client.post(format!("{base}{}", renewal::PATH)).json(&RenewRequest { protocol: PROTOCOL, csr })).await
}

async fn poll(client: &reqwest::Client, base: &str, after: Generation) -> Result<Option<Assignment>> {
    let response = client.get(format!("{base}{}?after={after}&wait={POLL}", assignment::PATH)).send().await?;
    let (status, text) = (response.status(), response.text().await?);
    match status.as_u16() {
        204 => Ok(None),
        200 => Ok(Some(serde_json::from_str(&text)?)),
        _ => match serde_json::from_str(&text) {
            Ok(problem) => Err(Refused(problem).into()),
            Err(_) => bail!("{status}: {text}"),
        },
    }
}

/// Asks for a certificate from an address; a refusal is a [`Refused`].
pub async fn enrol(bootstrap: &Bootstrap, request: &impl Serialize, from: Option<IpAddr>) -> Result<EnrolResponse> {
    let base = bootstrap.orchestrators.first().context("a bootstrap file without URL")?;
    answer(client(&bootstrap.ca, None, from)?.post(format!("{base}{}", enrolment::PATH)).json(request)).await
}

/// Asks once for the newest assignment, with or without a certificate.
pub async fn assignment(bootstrap: &Bootstrap, query: &str, credentials: Option<&Credentials>) -> Result<Assignment> {
    let base = bootstrap.orchestrators.first().context("a bootstrap file without URL")?;
    answer(client(&bootstrap.ca, credentials, None)?.get(format!("{base}{}?{query}", assignment::PATH))).await
}
