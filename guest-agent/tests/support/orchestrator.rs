//! An orchestrator's listener for agents: real TLS, a real CA, scripted decisions.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use contract::assignment::Assignment;
use contract::enrolment::{EnrolRequest, EnrolResponse, Problem};
use contract::floor::Floor;
use contract::health::{HealthReport, HealthResponse};
use contract::ids::{Generation, Sha256Digest};
use contract::renewal::{Renew, RenewRequest, RenewResponse};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// A site's CA.
pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
    der: rustls::pki_types::CertificateDer<'static>,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), der: certificate.der().clone(), issuer: Issuer::new(params, key) }
    }

    fn server_config(&self) -> rustls::ServerConfig {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .unwrap();
        rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap()
    }
}

/// What the orchestrator saw and what it will answer.
#[derive(Default)]
pub struct Book {
    /// Every enrolment request.
    pub enrolments: Vec<EnrolRequest>,
    /// Refusals for the next enrolments, in order; after those it accepts.
    pub refusals: VecDeque<(StatusCode, Problem)>,
    /// Every health report.
    pub reports: Vec<HealthReport>,
    /// Every certificate that a report or poll came with.
    pub shown: Vec<Vec<u8>>,
    /// Every renewal, with the certificate that asked for it.
    pub renewals: Vec<(RenewRequest, Vec<u8>)>,
    /// Answers to renewals that get lost, before one arrives.
    pub lost: usize,
    /// Whether the next report is answered with a request to renew.
    pub renew: Renew,
    /// Reasons by which the next requests with a certificate are refused.
    pub refuse: VecDeque<String>,
    /// What agents are to believe.
    pub ca: Option<String>,
    /// What agents are to keep.
    pub floor: Option<Floor>,
    /// Requests that came without the right certificate.
    pub strangers: usize,
}

#[derive(Clone)]
struct Shared {
    book: Arc<Mutex<Book>>,
    authority: Arc<Authority>,
    assignment: watch::Receiver<Option<Assignment>>,
    /// DER of the client certificate, if there is one.
    certificate: Option<Vec<u8>>,
}

/// A running listener.
pub struct Orchestrator {
    pub url: String,
    pub ca: String,
    pub book: Arc<Mutex<Book>>,
    assignment: watch::Sender<Option<Assignment>>,
    listener: tokio::task::JoinHandle<()>,
}

impl Orchestrator {
    pub async fn start(authority: Authority) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = socket.local_addr().unwrap();
        let (assignment, receiver) = watch::channel(None);
        let book = Arc::new(Mutex::new(Book::default()));
        let ca = authority.pem.clone();
        let acceptor = TlsAcceptor::from(Arc::new(authority.server_config()));
        let shared =
            Shared { book: Arc::clone(&book), authority: Arc::new(authority), assignment: receiver, certificate: None };
        let listener = tokio::spawn(async move {
            while let Ok((stream, _)) = socket.accept().await {
                let (acceptor, shared) = (acceptor.clone(), shared.clone());
                // Without it a small answer waits 40 ms for the acknowledgement of its own head.
                stream.set_nodelay(true).unwrap();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let certificate = stream.get_ref().1.peer_certificates().map(|chain| chain[0].to_vec());
                    let router = Router::new()
                        .route("/v1/enrol", post(enrol))
                        .route("/v1/assignment", get(assignment_after))
                        .route("/v1/health", post(health))
                        .route("/v1/renew", post(renew))
                        .with_state(Shared { certificate, ..shared });
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
                        .await;
                });
            }
        });
        Self { url: format!("https://{address}"), ca, book, assignment, listener }
    }

    /// Makes an assignment the newest.
    pub fn assign(&self, assignment: Assignment) {
        self.assignment.send_replace(Some(assignment));
    }

    pub fn last_report(&self) -> Option<HealthReport> {
        self.book.lock().unwrap().reports.last().cloned()
    }
}

impl Drop for Orchestrator {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

async fn enrol(State(shared): State<Shared>, Json(request): Json<EnrolRequest>) -> Response {
    let mut book = shared.book.lock().unwrap();
    let csr = CertificateSigningRequestParams::from_pem(&request.csr).unwrap();
    book.enrolments.push(request);
    if let Some((status, problem)) = book.refusals.pop_front() {
        return (status, Json(problem)).into_response();
    }
    let certificate = csr.signed_by(&shared.authority.issuer).unwrap().pem();
    Json(EnrolResponse {
        certificate,
        ca: shared.authority.pem.clone(),
        site: "acme-hq".parse().unwrap(),
        instance: "mqtt".parse().unwrap(),
        generation: Generation(1),
    })
    .into_response()
}

async fn renew(State(shared): State<Shared>, Json(request): Json<RenewRequest>) -> Response {
    let mut book = shared.book.lock().unwrap();
    let csr = CertificateSigningRequestParams::from_pem(&request.csr).unwrap();
    book.renewals.push((request, shared.certificate.unwrap()));
    if book.lost > 0 {
        book.lost -= 1;
        return StatusCode::BAD_GATEWAY.into_response();
    }
    let certificate = csr.signed_by(&shared.authority.issuer).unwrap().pem();
    Json(RenewResponse { certificate, ca: book.ca.clone().unwrap_or_else(|| shared.authority.pem.clone()) })
        .into_response()
}

/// SHA-256 of a text.
pub fn digest(text: &str) -> Sha256Digest {
    use sha2::Digest;
    <[u8; 32]>::from(sha2::Sha256::digest(text)).into()
}

#[derive(serde::Deserialize)]
struct Wait {
    after: u64,
}

fn stranger(shared: &Shared) -> Option<Response> {
    if let Some(certificate) = &shared.certificate {
        let mut book = shared.book.lock().unwrap();
        book.shown.push(certificate.clone());
        let reason = book.refuse.pop_front()?;
        let problem = Problem { reason, message: "as the test wants it".into(), retry_after: None };
        return Some((StatusCode::FORBIDDEN, Json(problem)).into_response());
    }
    shared.book.lock().unwrap().strangers += 1;
    let problem = Problem { reason: "certificate-missing".into(), message: "enrol first".into(), retry_after: None };
    Some((StatusCode::UNAUTHORIZED, Json(problem)).into_response())
}

async fn assignment_after(State(mut shared): State<Shared>, Query(wait): Query<Wait>) -> Response {
    if let Some(refusal) = stranger(&shared) {
        return refusal;
    }
    let newer = |assignment: &Option<Assignment>| assignment.as_ref().is_some_and(|a| a.generation.0 > wait.after);
    match shared.assignment.wait_for(newer).await {
        Ok(assignment) => Json(assignment.clone()).into_response(),
        Err(_) => StatusCode::NO_CONTENT.into_response(),
    }
}

async fn health(State(shared): State<Shared>, Json(report): Json<HealthReport>) -> Response {
    if let Some(refusal) = stranger(&shared) {
        return refusal;
    }
    let generation = report.generation;
    let mut book = shared.book.lock().unwrap();
    let floor = book.floor.clone().filter(|floor| report.floor.as_ref() != Some(floor));
    let ca = book.ca.clone().filter(|ca| report.ca != Some(digest(ca)));
    let renew = std::mem::take(&mut book.renew);
    book.reports.push(report);
    Json(HealthResponse { generation, interval: 1, renew, ca, floor }).into_response()
}
