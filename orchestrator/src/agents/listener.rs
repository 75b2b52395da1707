//! TLS: accepts connections, finds out who is on the other end, hands requests to the handlers.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::{Agents, CaError, Peer, ca, serve};

/// Connections at once. Each guest holds one or two; a site has at most some hundreds.
const CONNECTIONS: usize = 2048;
/// A handshake takes a few round trips on a LAN; who needs longer is broken or hostile.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Headers come in one packet.
const HEADERS: Duration = Duration::from_secs(10);

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
) -> Result<(SocketAddr, impl Future<Output = ()> + use<>), ListenError> {
    let acceptor = TlsAcceptor::from(Arc::new(tls(&agents, names)?));
    let listener = TcpListener::bind(address).await.map_err(|source| ListenError::Bind { address, source })?;
    let bound = listener.local_addr().map_err(|source| ListenError::Bind { address, source })?;
    let router = serve::router(agents);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let serving = async move {
        loop {
            // Waiting for a place before accepting leaves the rest in the kernel's queue.
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, address)) => {
                    let (acceptor, router) = (acceptor.clone(), router.clone());
                    tokio::spawn(async move {
                        connection(stream, address, acceptor, router).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    // Out of file descriptors, most likely: others must end first.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    Ok((bound, serving))
}

fn tls(agents: &Agents, names: &[String]) -> Result<ServerConfig, ListenError> {
    let wrong = |error: &dyn std::fmt::Display| ListenError::Tls(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    let pem = agents.ca.certificate().as_bytes();
    for certificate in <rustls::pki_types::CertificateDer<'_> as rustls::pki_types::pem::PemObject>::pem_slice_iter(pem)
    {
        roots.add(certificate.map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        // Enrolment comes before a guest has a certificate.
        .allow_unauthenticated()
        .build()
        .map_err(|error| wrong(&error))?;
    let (chain, key) = agents.ca.server(names)?;
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| wrong(&error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| wrong(&error))
}

async fn connection(stream: TcpStream, address: SocketAddr, acceptor: TlsAcceptor, router: axum::Router) {
    // Answers are small and awaited; Nagle's algorithm would hold each back for some 40 ms.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%address, %error, "a connection ended early");
    }
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "a TLS handshake failed");
            return;
        }
        Err(_) => {
            tracing::debug!(%address, "a TLS handshake took too long");
            return;
        }
    };
    let certificate =
        stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(|leaf| ca::digest(leaf));
    let service = TowerToHyperService::new(router.layer(Extension(Peer { address, certificate })));
    let mut server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%address, %error, "a connection ended early");
    }
}
