//! Attacks as data: `tests/data/attacks/*/attack.yaml` of family `enrolment`. Each is refused with its own label, and its
//! twin, which differs in nothing but the flaw, is accepted.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use contract::enrolment::EnrolRequest;
use contract::secret::Secret;
use rcgen::{CertificateParams, Issuer, KeyPair};
use serde::Deserialize;
use serde_json::{Value, json};
use tests::run::await_for;
use tests::sim::{self, Conduct, Credentials, Guest, Refused};
use tests::small::{SETTLES, Small, hostname};

/// One fixture.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Attack {
    what: String,
    attacker: String,
    reason: String,
    twin: String,
    family: String,
    /// What the instance is cloned from; `sensor` starts with a claim of its own.
    template: String,
    /// What was before: `enrolled`, `not-started`, `too-late`.
    before: String,
    /// `guessed`, `release`, `other-release`, `neighbour`.
    claim: String,
    /// Address: `neighbour`, `nobody`.
    from: String,
    /// What Proxmox shows on its interface: `nothing`, `another`.
    shows: String,
    /// `away`.
    node: String,
    /// `stopped`.
    power: String,
    /// `neighbour`.
    mac: String,
    /// `neighbour`, `template`, `same` as before, `fresh`.
    machine_id: String,
    /// `neighbour`, `same` as before.
    host_key: String,
    /// `unknown`.
    hostname: String,
    /// `another-template`.
    says: String,
    /// For an assignment instead of a certificate: `none`, `forged`, `other-ca`.
    certificate: String,
}

const NEIGHBOUR: &str = "neighbour";

fn attacks() -> Result<BTreeMap<String, Attack>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("data/attacks"))? {
        let path: PathBuf = entry?.path();
        let name = path.file_name().context("a name")?.to_string_lossy().into_owned();
        let text = fs::read_to_string(path.join("attack.yaml")).with_context(|| format!("{name}/attack.yaml"))?;
        let family: Value = serde_yaml::from_str(&text).with_context(|| name.clone())?;
        if family["family"] != "enrolment" {
            continue;
        }
        let attack: Attack = serde_yaml::from_str(&text).with_context(|| name.clone())?;
        let known = ["git-server", "network", "guest", "disk", "dealer", "hq"].contains(&attack.attacker.as_str());
        ensure!(known && !attack.what.is_empty() && !attack.twin.is_empty(), "{name}: what, attacker or twin");
        found.insert(name, attack);
    }
    Ok(found)
}

fn block<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// The label of a refusal, or what else went wrong; `None` when it was accepted.
fn label<T>(outcome: Result<T>) -> Option<String> {
    let error = outcome.err()?;
    Some(match error.downcast::<Refused>() {
        Ok(Refused(problem)) => problem.reason,
        // The other side ends the connection, and says no more.
        Err(error) if format!("{error:?}").contains("received fatal alert") => "tls-handshake".to_owned(),
        Err(error) => format!("{error:?}"),
    })
}

struct Stage {
    small: Small,
    neighbour: Guest,
}

/// One attack's guest: started, and waiting for what the attack does in its place.
struct Target<'a> {
    stage: &'a Stage,
    instance: String,
    seed: u64,
}

impl Target<'_> {
    fn guest(&self) -> Result<Guest> {
        await_for(&format!("{} was started", self.instance), SETTLES, || {
            Ok(self.stage.small.sim.guest(&hostname(&self.instance)).ok().filter(|guest| guest.address.is_some()))
        })
    }

    /// The honest request with this key.
    fn request(&self, guest: &Guest, key: &str, seed: u64) -> Result<EnrolRequest> {
        let bootstrap = self.stage.small.sim.bootstrap(&guest.template)?;
        let mut request = sim::enrol_request(bootstrap, &hostname(&self.instance), &guest.mac, key, seed)?;
        if let Some(claim) = &guest.claim {
            request.claim = Secret::new(claim.as_str());
        }
        Ok(request)
    }

    fn ask(&self, guest: &Guest, request: &EnrolRequest, from: IpAddr) -> Result<contract::enrolment::EnrolResponse> {
        let bootstrap = self.stage.small.sim.bootstrap(&guest.template)?;
        block(sim::enrol(bootstrap, request, Some(from)))
    }

    /// The honest guest enrols; what may pass by itself is waited for, as an agent does.
    fn honest(&self) -> Result<Credentials> {
        let key = KeyPair::generate()?.serialize_pem();
        let mut last = String::new();
        await_for(&format!("{} enrols", self.instance), SETTLES, || {
            let guest = self.guest()?;
            let from = guest.address.context("an address")?;
            match self.ask(&guest, &self.request(&guest, &key, self.seed)?, from) {
                Ok(answer) => Ok(Some(Credentials { key: key.clone(), certificate: answer.certificate })),
                Err(error) => {
                    last = format!("{error:#}");
                    Ok(None)
                }
            }
        })
        .with_context(|| format!("the twin is not accepted: {last}\n{}", self.stage.small.world.orchestrator_log()))
    }

    /// What the attacker sends, and what he hears.
    fn attack(&self, attack: &Attack) -> Result<Option<String>> {
        let Stage { small, neighbour } = self.stage;
        let guest = self.guest()?;
        let again = attack.before == "enrolled";
        let seed = if again && attack.machine_id != "same" { self.seed + 1000 } else { self.seed };
        let mut request = self.request(&guest, &KeyPair::generate()?.serialize_pem(), seed)?;
        let release = small.sim.bootstrap(&guest.template)?;
        match attack.claim.as_str() {
            "" => {}
            "guessed" => request.claim = Secret::new("ctrlable-claim-guessed"),
            "release" => request.claim = Secret::new(release.claim.expose()),
            "neighbour" => request.claim = Secret::new(neighbour.claim.clone().context("the neighbour has a claim")?),
            "other-release" => request.release = "2026.05".parse()?,
            other => bail!("claim: {other}"),
        }
        match attack.mac.as_str() {
            "" => {}
            "neighbour" => request.mac = neighbour.mac.parse()?,
            other => bail!("mac: {other}"),
        }
        match attack.machine_id.as_str() {
            "" | "same" | "fresh" => {}
            "template" => request.identity.sealed_machine_id = Some(request.identity.machine_id.clone()),
            "neighbour" => request.identity.machine_id = sim::identity(neighbour.identity).machine_id,
            other => bail!("machine_id: {other}"),
        }
        match attack.host_key.as_str() {
            "" | "same" => {}
            "neighbour" => request.identity.ssh_host_keys = sim::identity(neighbour.identity).ssh_host_keys,
            other => bail!("host_key: {other}"),
        }
        match attack.hostname.as_str() {
            "" => {}
            "unknown" => request.hostname = hostname("stranger").parse()?,
            other => bail!("hostname: {other}"),
        }
        match attack.says.as_str() {
            "" => {}
            "another-template" => request.template = "sensor".parse()?,
            other => bail!("says: {other}"),
        }
        let from = match attack.from.as_str() {
            "" => guest.address.context("an address")?,
            "neighbour" => neighbour.address.context("an address")?,
            "nobody" => format!("{}3", small.world.network()).parse()?,
            other => bail!("from: {other}"),
        };
        Ok(label(self.ask(&guest, &request, from)))
    }

    /// Brings the node or the ledger to where the attack begins.
    fn prepare(&self, attack: &Attack) -> Result<()> {
        let Stage { small, .. } = self.stage;
        let world = &small.world;
        let vmid = self.guest()?.vmid;
        match attack.shows.as_str() {
            "" => {}
            "nothing" => drop(world.node("POST", "/lab/interface", Some(&json!({ "vmid": vmid, "shows": [] })))?),
            "another" => {
                let other = format!("{}4/24", world.network());
                world.node("POST", "/lab/interface", Some(&json!({ "vmid": vmid, "shows": [other] })))?;
            }
            other => bail!("shows: {other}"),
        }
        match attack.node.as_str() {
            "" => {}
            "away" => {
                let gone = json!({ "kind": "error", "status": 595, "message": "No route to host" });
                small.ask_for_trouble("GET", &format!("/nodes/pve1/lxc/{vmid}/interfaces"), None, gone)?;
            }
            other => bail!("node: {other}"),
        }
        match attack.power.as_str() {
            "" => {}
            "stopped" => {
                world.node("POST", &format!("/api2/json/nodes/pve1/lxc/{vmid}/status/stop"), Some(&json!({})))?;
                await_for("the guest stops", SETTLES, || {
                    let status =
                        world.node("GET", &format!("/api2/json/nodes/pve1/lxc/{vmid}/status/current"), None)?;
                    Ok((status["data"]["status"] == "stopped").then_some(()))
                })?;
            }
            other => bail!("power: {other}"),
        }
        let opened = match attack.before.as_str() {
            "" | "enrolled" => return Ok(()),
            "not-started" => "NULL",
            "too-late" => "window_opened_at - 100000",
            other => bail!("before: {other}"),
        };
        let db = rusqlite::Connection::open(world.dir.join("site/state/ledger.db"))?;
        db.busy_timeout(Duration::from_secs(10))?;
        let sql = format!("UPDATE instances SET window_opened_at = {opened} WHERE name = ?1");
        ensure!(db.execute(&sql, [&self.instance])? == 1, "{} is not in the ledger", self.instance);
        Ok(())
    }

    fn put_right(&self) -> Result<()> {
        let world = &self.stage.small.world;
        let vmid = self.guest()?.vmid;
        world.node("POST", "/lab/interface", Some(&json!({ "vmid": vmid, "shows": null })))?;
        world.node("DELETE", "/lab/faults", None).map(drop)
    }

    /// Asks for an assignment with what the attacker has.
    fn read(&self, certificate: &str) -> Result<Option<String>> {
        let Stage { small, .. } = self.stage;
        let state = small.world.dir.join("site/state");
        let key = KeyPair::generate()?;
        let params = || CertificateParams::new(vec![format!("{}.acme-hq", self.instance)]);
        let shown = match certificate {
            "none" => None,
            "forged" => {
                let ca = fs::read_to_string(state.join("ca.pem"))?;
                let issuer =
                    Issuer::from_ca_cert_pem(&ca, KeyPair::from_pem(&fs::read_to_string(state.join("ca.key"))?)?)?;
                Some(params()?.signed_by(&key, &issuer)?)
            }
            "other-ca" => Some(params()?.self_signed(&key)?),
            other => bail!("certificate: {other}"),
        };
        let shown = shown.map(|shown| Credentials { key: key.serialize_pem(), certificate: shown.pem() });
        Ok(label(block(sim::assignment(small.sim.bootstrap("sensor")?, "after=0", shown.as_ref()))))
    }

    /// Attack and twin; for what must have happened before, the twin comes first.
    fn run(&self, attack: &Attack) -> Result<()> {
        let bootstrap = self.stage.small.sim.bootstrap("sensor")?;
        let before = (attack.before == "enrolled").then(|| self.honest()).transpose()?;
        self.prepare(attack)?;
        let said = match attack.certificate.as_str() {
            "" => self.attack(attack)?,
            certificate => self.read(certificate)?,
        };
        ensure!(said.as_deref() == Some(&attack.reason), "{:?} instead of {}", said, attack.reason);
        match before {
            Some(credentials) => {
                let own = block(sim::assignment(bootstrap, "after=0", Some(&credentials)));
                let own = own.context("the guest that had enrolled was cut off")?;
                ensure!(own.instance.as_str() == self.instance, "it got the assignment of {}", own.instance);
            }
            None => {
                self.put_right()?;
                self.honest()?;
            }
        }
        Ok(())
    }
}

#[test]
fn every_attack_on_enrolment_is_refused_with_its_label_and_its_twin_is_accepted() -> Result<()> {
    let attacks = attacks()?;
    ensure!(attacks.len() >= 14, "only {} attacks", attacks.len());
    let names: Vec<(String, &Attack)> =
        attacks.values().enumerate().map(|(index, attack)| (format!("t{index}"), attack)).collect();
    let wish = |template: &str| format!("{{ template: {template}, network: {{ ip: dhcp }} }}");
    let mut instances = vec![(NEIGHBOUR.to_owned(), wish("sensor"))];
    for (name, attack) in &names {
        let template = if attack.template.is_empty() { "sensor" } else { &attack.template };
        instances.push((name.clone(), wish(template)));
    }
    let instances: Vec<(&str, &str)> = instances.iter().map(|(name, wish)| (name.as_str(), wish.as_str())).collect();

    let dir = tempfile::tempdir()?;
    let mut small = Small::build_with(&dir.path().join("world"), 1, Default::default(), &instances)?;
    names.iter().for_each(|(name, _)| small.sim.behave(&hostname(name), Conduct::NeverEnrol));
    small.world.start_orchestrator()?;
    small.await_healthy(NEIGHBOUR)?;
    let neighbour = small.sim.guest(&hostname(NEIGHBOUR))?;
    let stage = Stage { small, neighbour };

    let mut failures = Vec::new();
    for (index, ((instance, attack), name)) in names.iter().zip(attacks.keys()).enumerate() {
        let target = Target { stage: &stage, instance: instance.clone(), seed: 9000 + index as u64 };
        let began = std::time::Instant::now();
        match target.run(attack) {
            Ok(()) => println!("{name}: {} ({} ms)", attack.reason, began.elapsed().as_millis()),
            Err(error) => failures.push(format!("{name}: {error:#}")),
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n\n"));

    // Who asked in another's name stands in the status, until somebody has looked.
    let world = &stage.small.world;
    let conflicts = world.status()?["conflicts"].as_array().cloned().unwrap_or_default();
    for reason in ["enrol-already", "enrol-claim-used", "enrol-address-mismatch"] {
        let found = conflicts.iter().find(|conflict| conflict["reason"] == reason);
        let found = found.with_context(|| format!("{reason} is not among the conflicts: {conflicts:?}"))?;
        ensure!(found["at"].as_i64().is_some_and(|at| at > 0) && found["address"].is_string(), "{found}");
    }
    tests::run::run(&mut world.ctrlable(["conflicts", "--clear"]))?;
    ensure!(world.status()?["conflicts"] == json!([]), "conflicts are still there");
    Ok(())
}

#[test]
fn ssh_finds_a_guest_in_the_known_hosts_that_are_printed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let instances = [("attic", "{ template: sensor, network: { ip: dhcp } }")];
    let mut small = Small::build_with(&dir.path().join("world"), 1, Default::default(), &instances)?;
    small.world.start_orchestrator()?;
    small.await_settled(&instances)?;
    let guest = small.sim.guest(&hostname("attic"))?;
    let lines = tests::run::run(&mut small.world.ctrlable(["known-hosts", "attic"]))?;
    let file = dir.path().join("known_hosts");
    fs::write(&file, &lines)?;
    for host in [hostname("attic"), guest.address.context("an address")?.to_string()] {
        let found = tests::run::run(tests::run::command("ssh-keygen", ["-F", host.as_str(), "-f"]).arg(&file))?;
        let key = sim::identity(guest.identity).ssh_host_keys;
        let key = key.iter().next().context("a key")?.as_str().to_owned();
        ensure!(found.contains(&key), "{host}: {found}");
    }
    let shown = tests::run::run(tests::run::command("ssh-keygen", ["-l", "-f"]).arg(&file))?;
    ensure!(shown.contains("SHA256:") && shown.contains("ED25519"), "{shown}");
    let unknown = small.world.ctrlable(["known-hosts", "garage"]).output()?;
    ensure!(unknown.status.code() == Some(1), "an unknown instance is no error");
    Ok(())
}
