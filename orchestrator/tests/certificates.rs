//! Certificates over real TLS: renewed, expired, revoked, and carried over to a new CA.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use contract::PROTOCOL;
use contract::assignment::{self, Assignment};
use contract::enrolment::{Identity, Problem};
use contract::health::{self, HealthReport, HealthResponse, Usage};
use contract::host_keys::{HostKey, HostKeys};
use contract::ids::{Generation, InstanceName, SiteName};
use contract::renewal::{self, Renew, RenewRequest, RenewResponse};
use contract::secret::Secret;
use orchestrator::agents::{self, Agents, Book, InForce, SiteCa, Stage, Witness, rotation};
use orchestrator::floor::Keeper;
use orchestrator::limits::Limits;
use orchestrator::proxmox::{self, ServerTrust, Settings};
use orchestrator::store::{Conflict, Enrolment, Reservation, Store, now};
use orchestrator::trust::KeySet;
use rcgen::{CertificateParams, KeyPair};
use reqwest::Client;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use sha2::{Digest, Sha256};

const SITE: &str = "acme-hq";
/// Longer than any of these tests takes.
const LONG: Duration = Duration::from_secs(3600);

struct World {
    dir: tempfile::TempDir,
    agents: Arc<Agents>,
    address: SocketAddr,
}

/// What a guest holds.
#[derive(Clone)]
struct Guest {
    key: String,
    certificate: String,
    ca: String,
    seed: u8,
}

fn agents(dir: &std::path::Path, certificate_life: Duration) -> Arc<Agents> {
    let site: SiteName = SITE.parse().unwrap();
    let (store, ca) = (Store::open(dir).unwrap(), SiteCa::open(dir, &site).unwrap());
    // Neither HQ nor Proxmox has a part in this.
    let hq = minisign::KeyPair::generate_unencrypted_keypair().unwrap().pk.to_base64();
    let nowhere = "https://127.0.0.1:1".parse().unwrap();
    let pinned = ServerTrust::Ca(ca.bundle().into_bytes());
    let proxmox = proxmox::Client::new(Settings::new(
        nowhere,
        Secret::new("a@pve!b=00000000-0000-0000-0000-000000000000"),
        pinned,
    ))
    .unwrap();
    Arc::new(Agents {
        keeper: Arc::new(Keeper::new(store.clone(), KeySet::parse(&[hq]).unwrap())),
        witness: Witness::new(proxmox),
        store,
        ca,
        site,
        book: Arc::<Book>::default(),
        wake: Default::default(),
        window: LONG,
        interval: Duration::from_secs(30),
        certificate_life,
        turning: Default::default(),
        refused: Default::default(),
    })
}

impl World {
    async fn new(certificate_life: Duration) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let agents = agents(dir.path(), certificate_life);
        for (index, name) in ["attic", "cellar"].into_iter().enumerate() {
            let index = u8::try_from(index).unwrap();
            let name: InstanceName = name.parse().unwrap();
            let reservation = Reservation {
                instance: &name,
                vmid: (2000 + u32::from(index)).try_into().unwrap(),
                mac: mac(index).parse().unwrap(),
                hostname: &format!("ctrlable-{SITE}-{name}").parse().unwrap(),
                release: &"2026.06".parse().unwrap(),
                template: &"sensor".parse().unwrap(),
            };
            agents.store.reserve(&reservation).unwrap();
            agents.store.open_window(&name, None).unwrap();
        }
        let address = serve(&agents).await;
        Self { dir, agents, address }
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    /// Enrols, without the part that Proxmox has in it. `ca` is what the template has.
    fn enrol(&self, index: u8, key: &str, ca: &str) -> Result<Guest, Conflict> {
        let name = ["attic", "cellar"][usize::from(index)].parse().unwrap();
        let Agents { site, certificate_life, store, .. } = &*self.agents;
        let signed = self.agents.ca.sign(&csr(key), site, &name, *certificate_life).unwrap();
        let enrolment = Enrolment {
            instance: &name,
            certificate: &signed.fingerprint,
            public_key: &signed.public_key,
            identity: &identity(index),
            address: self.address.ip(),
            expires_at: signed.expires_at,
            ca: signed.ca,
        };
        store.enrol(&enrolment, 3600).unwrap()?;
        Ok(Guest { key: key.to_owned(), certificate: signed.pem, ca: ca.to_owned(), seed: index })
    }

    async fn post<T: DeserializeOwned>(&self, by: &Client, path: &str, body: &impl Serialize) -> Result<T, String> {
        answer(by.post(self.url(path)).json(body)).await
    }

    /// What comes of the newest assignment: nothing yet, or a refusal.
    async fn poll(&self, by: &Client) -> Result<(), String> {
        nothing(by.get(self.url(&format!("{}?after=9&wait=0", assignment::PATH)))).await
    }

    async fn report(&self, guest: &Guest) -> Result<HealthResponse, String> {
        let report = HealthReport {
            protocol: PROTOCOL,
            boot_id: "1".into(),
            sequence: 1,
            agent: "0.1.0".into(),
            uptime: 1,
            generation: Generation(0),
            wiring: None,
            units: Vec::new(),
            probes: Vec::new(),
            load: 0.0,
            memory: Usage::default(),
            disk: Usage::default(),
            identity: identity(guest.seed),
            first_boot: Vec::new(),
            floor: None,
            ca: Some(<[u8; 32]>::from(Sha256::digest(&guest.ca)).into()),
        };
        self.post(&guest.client(), health::PATH, &report).await
    }

    async fn renew(&self, guest: &Guest) -> Result<Guest, String> {
        let key = KeyPair::generate().unwrap().serialize_pem();
        let request = RenewRequest { protocol: PROTOCOL, csr: csr(&key) };
        let answer: RenewResponse = self.post(&guest.client(), renewal::PATH, &request).await?;
        Ok(Guest { key, certificate: answer.certificate, ca: answer.ca, seed: guest.seed })
    }

    /// Killed and started again: files and ledger are all that is left.
    async fn restart(&mut self) {
        self.agents = agents(self.dir.path(), self.agents.certificate_life);
        self.address = serve(&self.agents).await;
    }
}

impl Guest {
    fn client(&self) -> Client {
        client(&self.ca, Some(self))
    }
}

async fn serve(agents: &Arc<Agents>) -> SocketAddr {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let (address, serving) =
        agents::listen(agents.clone(), any, &["127.0.0.1".to_owned()], Limits::AGENTS).await.unwrap();
    tokio::spawn(serving);
    address
}

fn mac(index: u8) -> String {
    format!("bc:24:11:00:00:{index:02x}")
}

fn identity(index: u8) -> Identity {
    Identity {
        machine_id: format!("{index:064x}").parse().unwrap(),
        sealed_machine_id: None,
        ssh_host_keys: HostKeys::try_from(vec![
            HostKey::try_from(format!("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA{index:042}")).unwrap(),
        ])
        .unwrap(),
    }
}

fn csr(key: &str) -> String {
    let key = KeyPair::from_pem(key).unwrap();
    CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
}

fn fresh() -> String {
    KeyPair::generate().unwrap().serialize_pem()
}

fn client(ca: &str, guest: Option<&Guest>) -> Client {
    let mut builder = Client::builder()
        .tls_certs_only(reqwest::Certificate::from_pem_bundle(ca.as_bytes()).unwrap())
        .no_proxy()
        .timeout(Duration::from_secs(40));
    if let Some(Guest { key, certificate, .. }) = guest {
        builder = builder.identity(reqwest::Identity::from_pem(format!("{key}{certificate}").as_bytes()).unwrap());
    }
    builder.build().unwrap()
}

/// The label of a refusal; `handshake` where the connection itself fails.
async fn text(request: reqwest::RequestBuilder) -> Result<String, String> {
    let Ok(response) = request.send().await else { return Err("handshake".to_owned()) };
    let status = response.status();
    let Ok(text) = response.text().await else { return Err("handshake".to_owned()) };
    if status.is_success() { Ok(text) } else { Err(serde_json::from_str::<Problem>(&text).unwrap().reason) }
}

async fn answer<T: DeserializeOwned>(request: reqwest::RequestBuilder) -> Result<T, String> {
    Ok(serde_json::from_str(&text(request).await?).unwrap())
}

async fn nothing(request: reqwest::RequestBuilder) -> Result<(), String> {
    assert_eq!(text(request).await?, "");
    Ok(())
}

fn refused(reason: &str) -> Result<(), String> {
    Err(reason.to_owned())
}

#[tokio::test]
async fn an_old_certificate_is_good_until_the_new_one_is_first_used() {
    let mut world = World::new(LONG).await;
    let first = world.enrol(0, &fresh(), &world.agents.ca.bundle()).unwrap();
    assert_eq!(world.report(&first).await.unwrap().renew, Renew::NotYet);
    // The answer is lost, and the orchestrator is killed: the old one is good, for another renewal as well.
    let lost = world.renew(&first).await.unwrap();
    world.restart().await;
    let second = world.renew(&first).await.unwrap();
    assert_eq!(world.poll(&first.client()).await, Ok(()));
    // The guest was killed before it wrote the answer down: nothing has changed. Now it has, and uses it.
    assert_eq!(world.poll(&second.client()).await, Ok(()));
    for old in [&first, &lost] {
        assert_eq!(world.poll(&old.client()).await, refused("certificate-unknown"));
        assert_eq!(world.renew(old).await.map(drop), refused("certificate-unknown"));
    }
    world.restart().await;
    assert_eq!(world.poll(&second.client()).await, Ok(()));
    assert_eq!(world.agents.store.certificates().unwrap().len(), 1);
}

#[tokio::test]
async fn certificates_of_an_agent_that_asks_and_asks_do_not_pile_up() {
    let world = World::new(LONG).await;
    let guest = world.enrol(0, &fresh(), &world.agents.ca.bundle()).unwrap();
    world.report(&guest).await.unwrap();
    let mut newest = guest.clone();
    for _ in 0..20 {
        newest = world.renew(&guest).await.unwrap();
    }
    assert_eq!(world.agents.store.certificates().unwrap().len(), 9, "eight unused ones and the one in force");
    assert_eq!(world.poll(&newest.client()).await, Ok(()));
}

#[tokio::test]
async fn an_expired_certificate_is_good_for_its_renewal_and_nothing_else() {
    let world = World::new(Duration::from_secs(2)).await;
    let guest = world.enrol(0, &fresh(), &world.agents.ca.bundle()).unwrap();
    let standing = guest.client();
    assert_eq!(world.poll(&standing).await, Ok(()));
    // The ledger counts whole seconds.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.report(&guest).await.map(drop), refused("certificate-expired"));
    // On a new connection, and on one that stands.
    assert_eq!(world.poll(&guest.client()).await, refused("certificate-expired"));
    assert_eq!(world.poll(&standing).await, refused("certificate-expired"));
    let renewed = world.renew(&guest).await.unwrap();
    assert_eq!(world.poll(&renewed.client()).await, Ok(()));
    // What another CA signed stays outside, expired or not.
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.not_after = rcgen::date_time_ymd(2026, 1, 1);
    let foreign = Guest { key: key.serialize_pem(), certificate: params.self_signed(&key).unwrap().pem(), ..guest };
    assert_eq!(world.poll(&foreign.client()).await, refused("handshake"));
}

#[tokio::test]
async fn a_renewal_is_due_after_two_thirds_of_the_life() {
    let world = World::new(Duration::from_secs(6)).await;
    let guest = world.enrol(0, &fresh(), &world.agents.ca.bundle()).unwrap();
    let begin = now();
    assert_eq!(world.report(&guest).await.unwrap().renew, Renew::NotYet);
    while world.report(&guest).await.unwrap().renew == Renew::NotYet {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!((2..=5).contains(&(now() - begin)), "after {} s of 6", now() - begin);
}

#[tokio::test]
async fn a_revoked_agent_is_cut_off_in_the_middle_of_a_long_poll() {
    let world = World::new(LONG).await;
    let attic = world.enrol(0, &fresh(), &world.agents.ca.bundle()).unwrap();
    let cellar = world.enrol(1, &fresh(), &world.agents.ca.bundle()).unwrap();
    let name: InstanceName = "attic".parse().unwrap();
    let standing = attic.client();
    assert_eq!(world.poll(&standing).await, Ok(()));
    let path = world.url(&format!("{}?after=0&wait=30", assignment::PATH));
    let waiting = tokio::spawn(text(attic.client().get(path)));
    tokio::time::sleep(Duration::from_millis(500)).await;
    // As a command of another process does it.
    assert!(Store::open(world.dir.path()).unwrap().revoke_agent(&name).unwrap());
    let secret: Assignment = serde_json::from_value(json!({
        "protocol": PROTOCOL, "site": SITE, "instance": "attic", "generation": 1,
        "hostname": "ctrlable-acme-hq-attic", "release": "2026.06", "template": "sensor",
    }))
    .unwrap();
    world.agents.book.put(secret);
    assert_eq!(waiting.await.unwrap(), Err("certificate-revoked".to_owned()));
    assert_eq!(world.poll(&standing).await, refused("certificate-revoked"));
    assert_eq!(world.poll(&attic.client()).await, refused("certificate-revoked"));
    assert_eq!(world.renew(&attic).await.map(drop), refused("certificate-revoked"));
    assert_eq!(world.report(&attic).await.map(drop), refused("certificate-revoked"));
    let ca = world.agents.ca.bundle();
    assert_eq!(world.enrol(0, &attic.key, &ca).map(drop), Err(Conflict::AlreadyEnrolled));
    assert_eq!(world.poll(&cellar.client()).await, Ok(()), "its neighbour was cut off as well");

    // Admitted again, it is a new guest; what was revoked stays so.
    let store = Store::open(world.dir.path()).unwrap();
    assert!(store.readmit_agent(&name).unwrap());
    assert!(!store.readmit_agent(&name).unwrap());
    let new = world.enrol(0, &fresh(), &ca).unwrap();
    assert_eq!(world.poll(&new.client()).await, Ok(()));
    assert_eq!(world.poll(&attic.client()).await, refused("certificate-revoked"));
}

#[tokio::test]
async fn the_ca_is_replaced_while_guests_stay_connected_and_after_a_kill_at_each_stage() {
    let mut world = World::new(LONG).await;
    let template = world.agents.ca.bundle();
    let mut attic = world.enrol(0, &fresh(), &template).unwrap();
    let cellar = world.enrol(1, &fresh(), &template).unwrap();
    let standing = cellar.client();
    for guest in [&attic, &cellar] {
        let told = world.report(guest).await.unwrap();
        assert_eq!((told.renew, told.ca), (Renew::NotYet, None));
    }
    let in_force = |world: &World| {
        let InForce { number, stage } = world.agents.ca.in_force();
        (number, stage)
    };
    rotation::turn(&world.agents).unwrap();
    assert_eq!(in_force(&world), (1, Stage::Settled), "nobody asked for it");

    // A crash after the new CA's files were written, before it was put in force.
    std::fs::write(world.dir.path().join("ca-2.pem"), "half").unwrap();
    world.agents.store.set_meta(rotation::WANTED, rotation::ROTATE).unwrap();
    rotation::turn(&world.agents).unwrap();
    assert_eq!(in_force(&world), (2, Stage::Switching));
    assert_eq!(world.poll(&standing).await, Ok(()), "a connection that stood");
    assert_eq!(world.poll(&client(&template, Some(&cellar))).await, Ok(()), "the old CA alone is believed");
    let both = world.agents.ca.bundle();

    // Killed between the new CA and the end of the wish for it: it is not made twice.
    world.agents.store.set_meta(rotation::WANTED, rotation::ROTATE).unwrap();
    world.restart().await;
    rotation::turn(&world.agents).unwrap();
    assert_eq!(in_force(&world), (2, Stage::Switching));
    assert_eq!(world.agents.ca.bundle(), both);

    let told = world.report(&attic).await.unwrap();
    assert_eq!((told.renew, told.ca), (Renew::Now, Some(both.clone())));
    attic = world.renew(&attic).await.unwrap();
    assert_eq!(attic.ca, both);
    let told = world.report(&attic).await.unwrap();
    assert_eq!((told.renew, told.ca), (Renew::NotYet, None));
    let awaited = rotation::awaited(&world.agents.store, &world.agents.ca).unwrap();
    assert_eq!(awaited.keys().map(InstanceName::as_str).collect::<Vec<_>>(), ["cellar"]);
    rotation::turn(&world.agents).unwrap();
    assert_eq!(in_force(&world), (2, Stage::Switching), "cellar is awaited");
    let first = cellar.clone();
    let cellar = world.renew(&cellar).await.unwrap();
    world.restart().await;
    world.report(&cellar).await.unwrap();
    // The last report ended it.
    assert_eq!(in_force(&world), (2, Stage::Settled));
    assert!(!world.dir.path().join("ca.key").exists(), "the old key is still there");
    assert_eq!(world.poll(&client(&both, Some(&first))).await, refused("handshake"));

    // The old CA is taken away from the guests, and a template that knows it alone still makes guests.
    for guest in [&attic, &cellar] {
        let told = world.report(guest).await.unwrap();
        assert_eq!((told.renew, told.ca), (Renew::NotYet, Some(world.agents.ca.bundle())));
        let only_new = Guest { ca: world.agents.ca.bundle(), ..guest.clone() };
        assert_eq!(world.poll(&only_new.client()).await, Ok(()));
    }
    world.restart().await;
    assert_eq!(in_force(&world), (2, Stage::Settled));
    world.agents.store.forget_agent(&"attic".parse().unwrap()).unwrap();
    world.agents.store.open_window(&"attic".parse().unwrap(), None).unwrap();
    assert_eq!(world.poll(&client(&template, None)).await, refused("certificate-missing"), "a clone of the template");
    let again = world.enrol(0, &fresh(), &template).unwrap();
    assert_eq!(world.poll(&again.client()).await, Ok(()));

    // Once more: three CAs on, the first template still enrols; and nobody waits for who is away.
    world.agents.store.set_meta(rotation::WANTED, rotation::ROTATE).unwrap();
    rotation::turn(&world.agents).unwrap();
    assert_eq!(in_force(&world), (3, Stage::Switching));
    assert_eq!(world.poll(&client(&template, Some(&again))).await, Ok(()));
    let again = world.renew(&again).await.unwrap();
    world.report(&again).await.unwrap();
    world.agents.store.set_meta(rotation::WANTED, rotation::LEAVE_BEHIND).unwrap();
    rotation::turn(&world.agents).unwrap();
    assert_eq!(in_force(&world), (3, Stage::Settled));
    assert_eq!(world.poll(&cellar.client()).await, refused("handshake"), "cellar was left behind");
    assert_eq!(world.poll(&again.client()).await, Ok(()));
    let events = world.agents.store.events(Some(&"cellar".parse().unwrap()), 0, 100).unwrap();
    assert!(events.iter().any(|event| event.reason.as_deref() == Some("ca-left-behind")), "{events:?}");
    assert_eq!(world.agents.store.meta(rotation::WANTED).unwrap(), None);
}
