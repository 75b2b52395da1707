#![allow(clippy::unwrap_used, clippy::panic)]

use std::convert::Infallible;
use std::net::Ipv4Addr;

use axum::body::Bytes;
use axum::routing::{get, post};
use contract::secret::Secret;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;

use super::*;
use crate::agents::{self, Agents, SiteCa, Witness};
use crate::floor::Keeper;
use crate::proxmox::{Client, ServerTrust, Settings};
use crate::store::Store;
use crate::trust::KeySet;
use crate::web::{self, Web};

/// What is awaited here takes milliseconds, on a busy machine seconds.
const DEADLINE: Duration = Duration::from_secs(60);
/// A limit that a test waits for.
const SHORT: Duration = Duration::from_millis(100);
/// A limit that a test does not reach.
const LONG: Duration = Duration::from_secs(600);

/// Limits in time that no test reaches, but for the one that it is about.
fn patient() -> Limits {
    Limits { stranger: LONG, head: LONG, body: LONG, unread: LONG, ..Limits::AGENTS }
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

/// Something that answers behind the gate.
async fn plain(limits: Limits, router: Router) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(accept(listener, Gate::new(limits), move |socket, _, place| place.serve(socket, router.clone())));
    address
}

fn echo() -> Router {
    Router::new()
        .route("/", get(|| async { "well" }))
        .route("/", post(|body: Bytes| async move { body.len().to_string() }))
}

/// Connects from 127.0.0.`host`.
async fn from(host: u8, address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    // Hundreds of sockets come and go, and those that went keep their ports for a while.
    socket.set_reuseaddr(true).unwrap();
    socket.bind((Ipv4Addr::new(127, 0, 0, host), 0).into()).unwrap();
    socket.connect(address).await.unwrap()
}

/// Reads one answer.
async fn answer(stream: &mut (impl AsyncRead + Unpin)) -> (u16, String) {
    let mut seen = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&seen).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or("0", |text| text);
            if body.len() >= length.parse().unwrap() {
                return (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned());
            }
        }
        let mut more = [0; 4096];
        let count = stream.read(&mut more).await.unwrap();
        assert!(count > 0, "the answer broke off: {text}");
        seen.extend_from_slice(&more[..count]);
    }
}

async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str) -> (u16, String) {
    stream.write_all(request.as_bytes()).await.unwrap();
    within("an answer", answer(stream)).await
}

fn label(body: &str) -> String {
    let problem: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("not a problem: {body}"));
    problem["reason"].as_str().unwrap().to_owned()
}

/// The peer ended: orderly, or by a reset because it left something unread.
async fn ended(stream: &mut (impl AsyncRead + Unpin)) {
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
}

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test]
async fn who_is_slow_with_a_head_or_silent_after_an_answer_is_let_go() {
    let address = plain(Limits { head: SHORT, ..patient() }, echo()).await;
    let mut slow = from(1, address).await;
    slow.write_all(b"GET / HTTP/1.1\r\nhost:").await.unwrap();
    within("the end of a slow head", ended(&mut slow)).await;
    let mut silent = from(1, address).await;
    assert_eq!(ask(&mut silent, GET).await, (200, "well".to_owned()));
    within("the end of a silent connection", ended(&mut silent)).await;
}

#[tokio::test]
async fn who_is_slow_with_a_body_is_told_and_let_go() {
    let address = plain(Limits { body: SHORT, ..patient() }, echo()).await;
    let mut slow = from(1, address).await;
    let (status, body) = ask(&mut slow, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nslow").await;
    assert_eq!((status, label(&body).as_str()), (408, "body-too-slow"));
    within("the end of a slow body", ended(&mut slow)).await;
    let whole = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nnine byte";
    assert_eq!(ask(&mut from(1, address).await, whole).await, (200, "9".to_owned()));
}

#[tokio::test]
async fn who_does_not_take_the_answer_is_let_go() {
    /// Tells that the answer is no longer being sent.
    struct Sent(Arc<Notify>);
    impl Drop for Sent {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let dropped = Arc::new(Notify::new());
    let told = dropped.clone();
    let endless = move || {
        let sent = Sent(told.clone());
        let stream = futures_util::stream::repeat_with(move || {
            let _kept = &sent;
            Ok::<_, Infallible>(Bytes::from_static(&[0; 65536]))
        });
        async move { Body::from_stream(stream) }
    };
    let router = Router::new().route("/", get(endless));
    let address = plain(Limits { unread: SHORT, ..patient() }, router).await;
    let mut deaf = from(1, address).await;
    deaf.write_all(GET.as_bytes()).await.unwrap();
    within("the end of an answer that nobody takes", dropped.notified()).await;
}

#[tokio::test]
async fn what_is_too_large_is_refused_with_its_label() {
    let limits = patient();
    let address = plain(limits.clone(), echo()).await;
    let long = "a".repeat(limits.uri_bytes);
    let wide = "a".repeat(limits.header_bytes);
    let many: String = (0..limits.headers).map(|count| format!("x-{count}: a\r\n")).collect();
    let chunk = format!("{:x}\r\n{}\r\n", limits.body_bytes + 1, "a".repeat(limits.body_bytes + 1));
    let host = "host: a\r\n";
    for (request, status, reason) in [
        (format!("GET /{long} HTTP/1.1\r\n{host}\r\n"), 414, "uri-too-long"),
        (format!("GET /?{long} HTTP/1.1\r\n{host}\r\n"), 414, "uri-too-long"),
        (format!("GET / HTTP/1.1\r\n{host}x: {wide}\r\n\r\n"), 431, "headers-too-large"),
        (format!("GET / HTTP/1.1\r\n{host}{many}\r\n"), 431, "headers-too-large"),
        // Refused by what it says, before a byte of it has come.
        (format!("POST / HTTP/1.1\r\n{host}content-length: {}\r\n\r\n", limits.body_bytes + 1), 413, "body-too-large"),
        (format!("POST / HTTP/1.1\r\n{host}transfer-encoding: chunked\r\n\r\n{chunk}"), 413, "body-too-large"),
        (format!("POST / HTTP/1.1\r\n{host}transfer-encoding: chunked\r\n\r\nno number\r\n"), 400, "body-broken"),
    ] {
        let (got, body) = ask(&mut from(1, address).await, &request).await;
        assert_eq!((got, label(&body).as_str()), (status, reason), "{body}");
    }
    // What the HTTP library refuses by itself, without words.
    let huge = "a".repeat(HEAD_BYTES);
    let (status, _) = ask(&mut from(1, address).await, &format!("GET / HTTP/1.1\r\n{host}x: {huge}\r\n\r\n")).await;
    assert_eq!(status, 431);
    let (status, _) = ask(&mut from(1, address).await, &format!("GET /{huge} HTTP/1.1\r\n{host}\r\n")).await;
    assert_eq!(status, 431);
    // The honest twins: exactly what is granted.
    let long = "a".repeat(limits.uri_bytes - 2);
    let (status, _) = ask(&mut from(1, address).await, &format!("GET /?{long} HTTP/1.1\r\n{host}\r\n")).await;
    assert_eq!(status, 200);
    let body = "a".repeat(limits.body_bytes);
    let request = format!("POST / HTTP/1.1\r\n{host}content-length: {}\r\n\r\n{body}", body.len());
    assert_eq!(ask(&mut from(1, address).await, &request).await, (200, body.len().to_string()));
}

#[tokio::test]
async fn one_address_takes_its_share_of_places_and_gets_it_back() {
    let address = plain(Limits { each: 2, ..patient() }, echo()).await;
    let (mut first, mut second) = (from(1, address).await, from(1, address).await);
    assert_eq!(ask(&mut first, GET).await.0, 200);
    assert_eq!(ask(&mut second, GET).await.0, 200);
    within("the end of a third connection", ended(&mut from(1, address).await)).await;
    assert_eq!(ask(&mut from(2, address).await, GET).await.0, 200, "another address is another matter");
    drop(first);
    within("a place that is free again", async {
        loop {
            let mut third = from(1, address).await;
            let _ = third.write_all(GET.as_bytes()).await;
            if third.read(&mut [0; 64]).await.is_ok_and(|count| count > 0) {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn one_address_connects_so_often_and_no_oftener() {
    let address = plain(Limits { connects: Rate { burst: 3, every: LONG }, ..patient() }, echo()).await;
    for _ in 0..3 {
        assert_eq!(ask(&mut from(1, address).await, GET).await.0, 200);
    }
    within("the end of a fourth connection", ended(&mut from(1, address).await)).await;
    assert_eq!(ask(&mut from(2, address).await, GET).await.0, 200);
}

#[tokio::test]
async fn a_strangers_life_is_short_however_busy_it_is() {
    let requests = Rate { burst: 1, every: Duration::ZERO };
    let address = plain(Limits { stranger: SHORT, requests, ..patient() }, echo()).await;
    let mut busy = from(1, address).await;
    within("the end of a stranger", async {
        let mut some = [0; 4096];
        while busy.write_all(GET.as_bytes()).await.is_ok() && busy.read(&mut some).await.is_ok_and(|count| count > 0) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// The listener for guests, and what a guest of it holds.
struct Site {
    _dir: tempfile::TempDir,
    agents: Arc<Agents>,
    address: SocketAddr,
}

impl Site {
    async fn new(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let site = "acme-hq".parse().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let ca = SiteCa::open(dir.path(), &site).unwrap();
        // Neither HQ nor Proxmox has a part in this.
        let hq = minisign::KeyPair::generate_unencrypted_keypair().unwrap().pk.to_base64();
        let nowhere = "https://127.0.0.1:1".parse().unwrap();
        let pinned = ServerTrust::Ca(ca.bundle().into_bytes());
        let proxmox =
            Client::new(Settings::new(nowhere, Secret::new("a@pve!b=00000000-0000-0000-0000-000000000000"), pinned))
                .unwrap();
        let agents = Arc::new(Agents {
            keeper: Arc::new(Keeper::new(store.clone(), KeySet::parse(&[hq]).unwrap())),
            witness: Witness::new(proxmox),
            store,
            ca,
            site,
            book: Arc::default(),
            wake: Arc::default(),
            window: LONG,
            interval: LONG,
            certificate_life: LONG,
            turning: Mutex::default(),
            refused: Mutex::default(),
        });
        let any = (Ipv4Addr::LOCALHOST, 0).into();
        let (address, serving) = agents::listen(agents.clone(), any, &["127.0.0.1".into()], limits).await.unwrap();
        tokio::spawn(serving);
        Self { _dir: dir, agents, address }
    }

    /// A connection of somebody who holds a certificate of the site's CA.
    fn guest(&self, name: &str) -> TlsConnector {
        let key = KeyPair::generate().unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let signed = self.agents.ca.sign(&request, &self.agents.site, &name.parse().unwrap(), LONG).unwrap();
        let chain = CertificateDer::pem_slice_iter(signed.pem.as_bytes()).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let tls = self.trusting().with_client_auth_cert(chain, key).unwrap();
        TlsConnector::from(Arc::new(tls))
    }

    fn stranger(&self) -> TlsConnector {
        TlsConnector::from(Arc::new(self.trusting().with_no_client_auth()))
    }

    fn trusting(&self) -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.agents.ca.bundle().as_bytes()).unwrap()).unwrap();
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
    }

    async fn connect(&self, who: &TlsConnector, host: u8) -> tokio_rustls::client::TlsStream<TcpStream> {
        let name = "127.0.0.1".try_into().unwrap();
        within("a handshake", who.connect(name, from(host, self.address).await)).await.unwrap()
    }
}

/// A path that needs a certificate. These guests never enrolled, so the ledger refuses them: they got past the gate.
const ASSIGNMENT: &str = "GET /v1/assignment HTTP/1.1\r\nhost: a\r\n\r\n";

async fn reason(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> String {
    label(&ask(stream, ASSIGNMENT).await.1)
}

#[tokio::test]
async fn idle_strangers_however_many_keep_no_guest_out() {
    let site = Site::new(Limits { strangers: 32, each: 8, ..patient() }).await;
    let hub = site.guest("hub");
    let mut before = site.connect(&hub, 1).await;
    assert_eq!(reason(&mut before).await, "certificate-unknown");
    let mut idle = Vec::new();
    for host in 2..42 {
        for _ in 0..8 {
            idle.push(from(host, site.address).await);
        }
    }
    assert_eq!(idle.len(), 320);
    let mut after = site.connect(&hub, 1).await;
    assert_eq!(reason(&mut after).await, "certificate-unknown", "a guest that comes during the flood is served");
    assert_eq!(reason(&mut before).await, "certificate-unknown", "and so is one that was there");
    // All but 32 were let go.
    let mut ends: FuturesUnordered<_> = idle.iter_mut().map(ended).collect();
    for _ in 0..(320 - 32) {
        within("the end of an idle stranger", ends.next()).await.unwrap();
    }
}

#[tokio::test]
async fn a_greedy_guest_starves_nobody_else() {
    let requests = Rate { burst: 5, every: LONG };
    let site = Site::new(Limits { each: 2, requests, ..patient() }).await;
    let (greedy, honest) = (site.guest("greedy"), site.guest("honest"));
    let mut first = site.connect(&greedy, 1).await;
    for _ in 0..5 {
        assert_eq!(reason(&mut first).await, "certificate-unknown");
    }
    let (status, body) = ask(&mut first, ASSIGNMENT).await;
    assert_eq!((status, label(&body).as_str()), (429, "too-many-requests"));
    let problem: Problem = serde_json::from_str(&body).unwrap();
    assert!(problem.retry_after.is_some_and(|seconds| seconds > 1), "{problem:?}");
    within("the end of a greedy connection", ended(&mut first)).await;
    // From the same address, as if it had taken the honest one's: certificates count, addresses do not.
    let mut second = site.connect(&honest, 1).await;
    assert_eq!(reason(&mut second).await, "certificate-unknown");
    // A stranger's requests are counted by its address.
    let mut stranger = site.connect(&site.stranger(), 1).await;
    for _ in 0..5 {
        assert_eq!(reason(&mut stranger).await, "certificate-missing");
    }
    assert_eq!(reason(&mut stranger).await, "too-many-requests");
    assert_eq!(reason(&mut site.connect(&site.stranger(), 2).await).await, "certificate-missing");
    // More connections than a guest may hold: the handshake is the last that it sees.
    let _third = site.connect(&honest, 1).await;
    let mut fourth = site.connect(&honest, 1).await;
    within("the end of a connection too many", ended(&mut fourth)).await;
}

#[tokio::test]
async fn what_is_no_request_is_refused_in_our_words() {
    let site = Site::new(patient()).await;
    let mut stranger = site.connect(&site.stranger(), 1).await;
    let json = "content-type: application/json\r\n";
    for (method, path, more, body) in [
        ("POST", "/v1/enrol", json, r#"{"claim": 5, "hunter2": 1}"#),
        ("POST", "/v1/enrol", json, "hunter2"),
        ("POST", "/v1/enrol", "", "{}"),
        ("GET", "/v1/assignment?after=hunter2", "", ""),
        ("DELETE", "/v1/health", "", ""),
    ] {
        let length = body.len();
        let request = format!("{method} {path} HTTP/1.1\r\nhost: a\r\n{more}content-length: {length}\r\n\r\n{body}");
        let (status, answer) = ask(&mut stranger, &request).await;
        assert!(status == 400 && !answer.contains("hunter2"), "{status} {answer}");
        assert_eq!(label(&answer), "request-malformed", "{method} {path}");
    }
}

#[tokio::test]
async fn the_listener_for_people_keeps_its_limits() {
    let dir = tempfile::tempdir().unwrap();
    let hook = Some(contract::secret::Secret::new("topsecret"));
    let store = Store::open(dir.path()).unwrap();
    let web = Arc::new(Web { store, pulse: Arc::default(), fetch: Arc::default(), hook });
    let limits = Limits { body: SHORT, ..Limits::PEOPLE };
    let (address, serving) = web::listen(web, (Ipv4Addr::LOCALHOST, 0).into(), limits.clone()).await.unwrap();
    tokio::spawn(serving);
    let hook = |length: usize, body: &str| {
        format!("POST /hooks/git HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n{body}")
    };
    let (status, body) = ask(&mut from(1, address).await, &hook(limits.body_bytes + 1, "")).await;
    assert_eq!((status, label(&body).as_str()), (413, "body-too-large"));
    let (status, body) = ask(&mut from(1, address).await, &hook(9, "slow")).await;
    assert_eq!((status, label(&body).as_str()), (408, "body-too-slow"));
    // As large as it may be, and unsigned: it got past the gate.
    let body = "a".repeat(limits.body_bytes);
    assert_eq!(ask(&mut from(1, address).await, &hook(body.len(), &body)).await.0, 403);
}
