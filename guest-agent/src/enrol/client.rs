//! Requests to the orchestrator: TLS with the pinned CA and no other, no proxy, no redirects, bounded answers.

use std::cell::Cell;
use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use contract::assignment::{self, Assignment};
use contract::enrolment::{self, EnrolRequest, EnrolResponse, Problem};
use contract::health::{self, HealthReport, HealthResponse};
use contract::ids::Generation;
use contract::renewal::{self, RenewRequest, RenewResponse};
use reqwest::{RequestBuilder, Response, StatusCode};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::credentials::Credentials;
use crate::error::{Error, Reason, Result};

/// Longest wait for a connection: the orchestrator is on the same site.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest wait for an answer, beyond what a long-poll asks for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Largest answer, in bytes. An assignment of fifty files of settings is far below.
const ANSWER_LIMIT: usize = 4 * 1024 * 1024;

/// A request that did not succeed.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// What to show.
    pub error: Error,
    /// When to try again.
    pub retry: Retry,
}

/// When a failed request is worth another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// The guest has no network yet: at once, because nothing reached anybody.
    Soon,
    /// With growing pauses.
    BackOff,
    /// After so many seconds, says the orchestrator.
    After(u32),
    /// With growing pauses, and with a new certificate: this one has expired.
    Renewed,
    /// Waiting alone does not help, but somebody may: slowly.
    Slowly,
}

/// A client of the orchestrator.
pub(crate) struct Client {
    http: reqwest::Client,
    orchestrators: Vec<String>,
    /// The one that answered last is asked first.
    preferred: Cell<usize>,
}

/// Certificates in a PEM text; an error when there is none.
pub(crate) fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    let invalid = |what: &str| Error::new(Reason::Credential, format!("not a PEM certificate: {what}"));
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(invalid("there is none")),
        Err(cause) => Err(invalid(&cause.to_string())),
    }
}

fn tls(ca: &str, credentials: Option<&Credentials>) -> Result<ClientConfig> {
    let failed = |cause: &dyn std::fmt::Display| Error::new(Reason::Credential, format!("cannot set up TLS: {cause}"));
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate).map_err(|cause| failed(&cause))?;
    }
    // Both ends are ours, so there is no reason to speak anything older than TLS 1.3.
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|cause| failed(&cause))?
        .with_root_certificates(roots);
    match credentials {
        None => Ok(config.with_no_client_auth()),
        Some(Credentials { client, .. }) => {
            let key = PrivateKeyDer::from_pem_slice(client.as_bytes()).map_err(|cause| failed(&cause))?;
            config.with_client_auth_cert(certificates(client)?, key).map_err(|cause| failed(&cause))
        }
    }
}

impl Client {
    /// A client that believes `ca` only, and shows `credentials` if it has them.
    pub(crate) fn new(orchestrators: &[String], ca: &str, credentials: Option<&Credentials>) -> Result<Self> {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls(ca, credentials)?)
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("ctrlable-agent/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|cause| Error::new(Reason::Credential, format!("cannot set up TLS: {}", chain(&cause))))?;
        Ok(Self { http, orchestrators: orchestrators.to_vec(), preferred: Cell::new(0) })
    }

    /// Asks for a certificate.
    pub(crate) async fn enrol(&self, request: &EnrolRequest) -> std::result::Result<EnrolResponse, Failure> {
        let response = self.post(enrolment::PATH, request).await?;
        read_json(response).await
    }

    /// Asks for a certificate in place of the one that it shows.
    pub(crate) async fn renew(&self, request: &RenewRequest) -> std::result::Result<RenewResponse, Failure> {
        let response = self.post(renewal::PATH, request).await?;
        read_json(response).await
    }

    /// Waits up to `wait` seconds for an assignment newer than `after`; `None` when there was none.
    pub(crate) async fn assignment(
        &self,
        after: Generation,
        wait: u32,
    ) -> std::result::Result<Option<Assignment>, Failure> {
        let path = format!("{}?after={after}&wait={wait}", assignment::PATH);
        let timeout = Duration::from_secs(wait.into()) + ANSWER_TIMEOUT;
        let response = self.send(|base| self.http.get(format!("{base}{path}")).timeout(timeout)).await?;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        let assignment: Assignment = read_json(response).await?;
        if assignment.protocol != contract::PROTOCOL {
            let (theirs, ours) = (assignment.protocol, contract::PROTOCOL);
            let message = format!("the orchestrator speaks protocol {theirs}, the agent {ours}");
            return Err(Failure { error: Error::new(Reason::ProtocolMismatch, message), retry: Retry::Slowly });
        }
        Ok(Some(assignment))
    }

    /// Reports health.
    pub(crate) async fn report(&self, report: &HealthReport) -> std::result::Result<HealthResponse, Failure> {
        let response = self.post(health::PATH, report).await?;
        read_json(response).await
    }

    async fn post(&self, path: &str, body: &impl Serialize) -> std::result::Result<Response, Failure> {
        self.send(|base| self.http.post(format!("{base}{path}")).json(body).timeout(ANSWER_TIMEOUT)).await
    }

    /// Sends to one orchestrator after the other until one answers. A refusal is an answer.
    async fn send(&self, request: impl Fn(&str) -> RequestBuilder) -> std::result::Result<Response, Failure> {
        let count = self.orchestrators.len();
        let mut failure = None;
        for offset in 0..count {
            let index = (self.preferred.get() + offset) % count;
            let base = self.orchestrators[index].trim_end_matches('/');
            match request(base).send().await {
                Ok(response) => {
                    self.preferred.set(index);
                    return if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) };
                }
                Err(cause) => failure = Some(unreachable(base, &cause)),
            }
        }
        Err(failure.unwrap_or_else(|| Failure {
            error: Error::new(Reason::BootstrapInvalid, "the bootstrap file names no orchestrator"),
            retry: Retry::Slowly,
        }))
    }
}

/// The causes of an error in one line, outermost first.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

/// Whether `found` holds for an error or one of its causes. An I/O error hides the error inside it from `source`.
fn any_cause(error: &(dyn std::error::Error + 'static), found: fn(&(dyn std::error::Error + 'static)) -> bool) -> bool {
    let inside = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    found(error)
        || inside.is_some_and(|inside| any_cause(inside, found))
        || error.source().is_some_and(|source| any_cause(source, found))
}

fn unreachable(base: &str, error: &reqwest::Error) -> Failure {
    use std::io::ErrorKind::{AddrNotAvailable, NetworkDown, NetworkUnreachable};
    let no_route = any_cause(error, |cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        io.is_some_and(|io| matches!(io.kind(), NetworkUnreachable | NetworkDown | AddrNotAvailable))
    });
    let (reason, retry) = match (no_route, any_cause(error, |cause| cause.is::<rustls::Error>())) {
        (true, _) => (Reason::NoRoute, Retry::Soon),
        (_, true) => (Reason::OrchestratorUntrusted, Retry::BackOff),
        _ => (Reason::OrchestratorUnreachable, Retry::BackOff),
    };
    Failure { error: Error::new(reason, format!("{base}: {}", chain(error))), retry }
}

async fn refusal(response: Response) -> Failure {
    let status = response.status();
    let problem: Option<Problem> = match read_bytes(response).await {
        Ok(bytes) => serde_json::from_slice(&bytes).ok(),
        Err(failure) => return failure,
    };
    let Some(Problem { reason, message, retry_after }) = problem else {
        let error = Error::new(Reason::AnswerInvalid, format!("the orchestrator answered {status} without a reason"));
        return Failure { error, retry: Retry::BackOff };
    };
    let expired = reason == renewal::EXPIRED;
    let error = Error::new(Reason::OrchestratorRefused, format!("{reason}: {message}"));
    let retry = match (retry_after, status.is_server_error()) {
        _ if expired => Retry::Renewed,
        (Some(seconds), _) => Retry::After(seconds),
        (None, true) => Retry::BackOff,
        (None, false) => Retry::Slowly,
    };
    Failure { error, retry }
}

async fn read_bytes(mut response: Response) -> std::result::Result<Zeroizing<Vec<u8>>, Failure> {
    let invalid =
        |message: String| Failure { error: Error::new(Reason::AnswerInvalid, message), retry: Retry::BackOff };
    // Room for all of it from the start: a buffer that grows leaves pieces behind that nobody wipes.
    let size = response.content_length().and_then(|size| usize::try_from(size).ok()).unwrap_or(0);
    let mut bytes = Zeroizing::new(Vec::with_capacity(size.min(ANSWER_LIMIT)));
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if bytes.len() + chunk.len() <= ANSWER_LIMIT => bytes.extend_from_slice(&chunk),
            Ok(Some(_)) => return Err(invalid(format!("the answer is larger than {ANSWER_LIMIT} bytes"))),
            Ok(None) => return Ok(bytes),
            Err(cause) => return Err(invalid(format!("the answer broke off: {}", chain(&cause)))),
        }
    }
}

async fn read_json<T: DeserializeOwned>(response: Response) -> std::result::Result<T, Failure> {
    let bytes = read_bytes(response).await?;
    serde_json::from_slice(&bytes).map_err(|cause| {
        // The text of serde's error may quote a value, and values may be secret.
        let message = format!("the answer is not what the protocol says, at column {}", cause.column());
        Failure { error: Error::new(Reason::AnswerInvalid, message), retry: Retry::Slowly }
    })
}
