//! A TLS server that plays a script: each request meets the next act, whatever it asks.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use contract::secret::Secret;
use orchestrator::proxmox::{Client, Fingerprint, ServerTrust, Settings};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

pub(crate) const SECRET: &str = "01234567-89ab-cdef-0123-456789abcdef";

/// What the server does with one request.
#[derive(Clone)]
pub(crate) enum Act {
    /// Sends these bytes and keeps the connection.
    Send(String),
    /// Sends these bytes and closes, as Proxmox does after each error.
    SendAndClose(String),
    /// Sends these bytes and ends the connection without TLS's good-bye.
    SendAndVanish(String),
    /// Closes without a word.
    Drop,
    /// Never answers.
    Hang,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn line(&self) -> &str {
        self.head.lines().next().unwrap()
    }
}

pub(crate) struct Script {
    acts: Mutex<VecDeque<Act>>,
    seen: Mutex<Vec<Request>>,
    connections: AtomicUsize,
    open: AtomicUsize,
    most_open: AtomicUsize,
}

impl Script {
    pub(crate) fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Most requests that were being served at once.
    pub(crate) fn most_at_once(&self) -> usize {
        self.most_open.load(Ordering::SeqCst)
    }
}

pub(crate) struct Server {
    pub(crate) script: Arc<Script>,
    pub(crate) url: String,
    pub(crate) ca: String,
    pub(crate) fingerprint: Fingerprint,
}

/// A good answer.
pub(crate) fn data(data: &str) -> Act {
    let body = format!("{{\"data\":{data}}}");
    Act::Send(format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json;charset=UTF-8\r\nDate: Fri, 20 Nov 2026 12:51:34 GMT\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    ))
}

/// An answer with this status line, as Proxmox sends errors.
pub(crate) fn error(status: u16, reason: &str, body: &str) -> Act {
    let length = body.len();
    Act::SendAndClose(format!(
        "HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    ))
}

impl Server {
    /// Listens on loopback, with a certificate from a CA of its own.
    pub(crate) async fn start(acts: Vec<Act>) -> Self {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key).unwrap();
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf =
            rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://127.0.0.1:{}", listener.local_addr().unwrap().port());
        let script = Arc::new(Script {
            acts: Mutex::new(acts.into()),
            seen: Mutex::default(),
            connections: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            most_open: AtomicUsize::new(0),
        });
        let shared = script.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, script) = (acceptor.clone(), shared.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        script.connections.fetch_add(1, Ordering::SeqCst);
                        serve(stream, &script).await;
                    }
                });
            }
        });
        Self { script, url, ca: ca_certificate.pem(), fingerprint: Fingerprint::of(leaf.der()) }
    }

    pub(crate) fn settings(&self) -> Settings {
        let token = Secret::new(format!("ctrlable@pve!site={SECRET}"));
        Settings::new(self.url.parse().unwrap(), token, ServerTrust::Ca(self.ca.clone().into_bytes()))
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.settings()).unwrap()
    }

    /// A client that does not wait long for an answer that never comes.
    pub(crate) fn hasty_client(&self) -> Client {
        Client::new(Settings { call_timeout: Duration::from_millis(300), ..self.settings() }).unwrap()
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, script: &Script) {
    while let Some(request) = read_request(&mut stream).await {
        script.seen.lock().unwrap().push(request);
        let open = script.open.fetch_add(1, Ordering::SeqCst) + 1;
        script.most_open.fetch_max(open, Ordering::SeqCst);
        // Gives other requests the time to arrive, so that too many at once would be seen.
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        let act = script.acts.lock().unwrap().pop_front();
        let keep = match &act {
            Some(Act::Send(bytes)) => stream.write_all(bytes.as_bytes()).await.is_ok(),
            Some(Act::SendAndClose(bytes)) => {
                let _ = stream.write_all(bytes.as_bytes()).await;
                false
            }
            Some(Act::SendAndVanish(bytes)) => {
                stream.write_all(bytes.as_bytes()).await.unwrap();
                stream.flush().await.unwrap();
                return;
            }
            Some(Act::Drop) => false,
            Some(Act::Hang) => std::future::pending().await,
            None => panic!("the script has no act left"),
        };
        script.open.fetch_sub(1, Ordering::SeqCst);
        if !keep {
            let _ = stream.shutdown().await;
            return;
        }
    }
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<Request> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).await.ok()? == 0 {
            return None;
        }
        bytes.push(byte[0]);
    }
    let head = String::from_utf8(bytes).unwrap();
    let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.ok()?;
    Some(Request { head, body: String::from_utf8(body).unwrap() })
}
