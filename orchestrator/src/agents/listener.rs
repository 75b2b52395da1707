//! TLS: accepts connections, finds out who is on the other end, hands requests to the handlers.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{Agents, CaError, InForce, Peer, SiteCa, ca, serve, verifier};
use crate::limits::{self, Gate, Limits, Place, Socket};

/// A handshake takes a few round trips on a LAN; who needs longer is broken or hostile.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Why the listener does not stand.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is taken or not ours.
    #[error("agents cannot be served on {address}: {source}. Correct `agents.listen` in orchestrator.toml")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Our own certificate.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// TLS itself.
    #[error("TLS for agents cannot be set up: {0}")]
    Tls(String),
}

impl ListenError {
    /// Stable label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Bind { .. } => "agents-bind",
            Self::Ca(error) => error.reason(),
            Self::Tls(_) => "agents-tls",
        }
    }
}

/// Serves guests on `address` with a certificate for `names`. Returns the bound address and the serving task's future.
pub async fn listen(
    agents: Arc<Agents>,
    address: SocketAddr,
    names: &[String],
    limits: Limits,
) -> Result<(SocketAddr, impl Future<Output = ()> + use<>), ListenError> {
    let mut tls = Tls::new(&agents.ca, names.to_vec())?;
    let listener = TcpListener::bind(address).await.map_err(|source| ListenError::Bind { address, source })?;
    let bound = listener.local_addr().map_err(|source| ListenError::Bind { address, source })?;
    let router = serve::router(agents.clone());
    let serving = limits::accept(listener, Gate::new(limits), move |socket, address, place| {
        let acceptor = tls.for_now(&agents.ca).clone();
        connection(socket, address, place, acceptor, router.clone())
    });
    Ok((bound, serving))
}

/// What new connections are met with. A rotation of the CA concerns those only; the ones that stand go on.
struct Tls {
    names: Vec<String>,
    shown: InForce,
    acceptor: TlsAcceptor,
}

impl Tls {
    fn new(ca: &SiteCa, names: Vec<String>) -> Result<Self, ListenError> {
        let shown = ca.in_force();
        let acceptor = TlsAcceptor::from(Arc::new(tls(ca, &names)?));
        Ok(Self { names, shown, acceptor })
    }

    fn for_now(&mut self, ca: &SiteCa) -> &TlsAcceptor {
        if self.shown != ca.in_force() {
            match Self::new(ca, self.names.clone()) {
                Ok(fresh) => *self = fresh,
                Err(error) => tracing::error!(reason = error.reason(), %error, "the CA in force cannot be used"),
            }
        }
        &self.acceptor
    }
}

fn tls(ca: &SiteCa, names: &[String]) -> Result<ServerConfig, ListenError> {
    let wrong = |error: &dyn std::fmt::Display| ListenError::Tls(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.bundle().as_bytes()) {
        roots.add(certificate.map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        // Enrolment comes before a guest has a certificate.
        .allow_unauthenticated()
        .build()
        .map_err(|error| wrong(&error))?;
    let (chain, key) = ca.server(names)?;
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| wrong(&error))?
        .with_client_cert_verifier(Arc::new(verifier::AnyAge(verifier)))
        .with_single_cert(chain, key)
        .map_err(|error| wrong(&error))
}

async fn connection(
    socket: Socket,
    address: SocketAddr,
    mut place: Place,
    acceptor: TlsAcceptor,
    router: axum::Router,
) {
    let stream = match place.hold(tokio::time::timeout(HANDSHAKE, acceptor.accept(socket))).await {
        Some(Ok(Ok(stream))) => stream,
        Some(Ok(Err(error))) => {
            tracing::debug!(%address, %error, "a TLS handshake failed");
            return;
        }
        Some(Err(_)) | None => {
            tracing::debug!(%address, "a TLS handshake took too long, or lost its place");
            return;
        }
    };
    let certificate =
        stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(|leaf| ca::digest(leaf));
    let place = match &certificate {
        Some(certificate) => place.prove(certificate.clone()),
        None => Some(place),
    };
    let Some(place) = place else {
        tracing::debug!(%address, "a guest holds all the connections that it may");
        return;
    };
    // A listener on `::` sees IPv4 peers as IPv6 addresses.
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    place.serve(stream, router.layer(Extension(Peer { address, certificate }))).await;
}
