//! What a listener grants anybody who connects: places, time, bytes and requests. Both listeners stand behind it.
//!
//! Strangers and guests hold places of two kinds, so that no number of strangers keeps a guest out. Whoever is over a
//! limit is refused alone, at once, and with a label where there is somebody to read it.

mod places;
mod rate;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use contract::enrolment::Problem;
use contract::ids::Sha256Digest;
use http_body_util::LengthLimitError;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_io_timeout::TimeoutStream;

use places::Places;
use rate::Buckets;
pub use rate::Rate;

/// What one listener grants.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections of guests at once.
    pub guests: usize,
    /// Connections without certificate at once, those in their handshake among them. One more takes the place of the
    /// oldest of the address that holds most.
    pub strangers: usize,
    /// Connections at once of one address without certificate, or of one certificate.
    pub each: usize,
    /// New connections of one address.
    pub connects: Rate,
    /// Requests of one address without certificate, or of one certificate.
    pub requests: Rate,
    /// Whole life of a connection without certificate, its handshake included.
    pub stranger: Duration,
    /// Until a request's head is there, counted from the connection's start or from the answer before: silence between
    /// two requests is no longer either.
    pub head: Duration,
    /// Until a request's body is there.
    pub body: Duration,
    /// Without one byte of an answer being taken.
    pub unread: Duration,
    /// Bytes of a request's path and query.
    pub uri_bytes: usize,
    /// Bytes of a request's header fields, names and values.
    pub header_bytes: usize,
    /// Header fields of a request.
    pub headers: usize,
    /// Bytes of a request's body.
    pub body_bytes: usize,
}

/// Bytes of a head that are read at all: what is larger is answered 431 by the HTTP library, without words. What is
/// larger than [`Limits`] grants and still smaller than this is refused with a label.
const HEAD_BYTES: usize = 32 * 1024;
/// Header fields that are read at all, as above.
const HEAD_FIELDS: usize = 128;

impl Limits {
    /// For guests: each holds two connections, reports every half minute and after a change, and a site has at most
    /// some hundreds of them.
    pub const AGENTS: Self = Self {
        guests: 2048,
        strangers: 256,
        each: 16,
        // A handshake costs a third of a millisecond: one address can take some 2 % of a core with them.
        connects: Rate { burst: 200, every: Duration::from_millis(20) },
        requests: Rate { burst: 50, every: Duration::from_millis(100) },
        // One enrolment takes a second.
        stranger: Duration::from_secs(30),
        // Heads and bodies come in a packet or two, answers leave in as many.
        head: Duration::from_secs(10),
        body: Duration::from_secs(10),
        unread: Duration::from_secs(10),
        // The longest path is 40 bytes, an agent's header fields are 200.
        uri_bytes: 1024,
        header_bytes: 8 * 1024,
        headers: 32,
        // An enrolment or a health report with some 200 units is below 64 KiB, and a floor in JSON as well.
        body_bytes: 128 * 1024,
    };

    /// For people's machines: a metrics collector, a forge's hook, a proxy. All may come from one address.
    pub const PEOPLE: Self = Self {
        guests: 0,
        strangers: 256,
        each: 256,
        connects: Rate { burst: 1000, every: Duration::from_millis(1) },
        requests: Rate { burst: 200, every: Duration::from_millis(10) },
        // Collectors keep their connection.
        stranger: Duration::from_secs(3600),
        // Proxies add their own.
        header_bytes: 16 * 1024,
        headers: 64,
        // Forges send the list of commits, never files.
        body_bytes: 1 << 20,
        ..Self::AGENTS
    };
}

/// Who is on the other end, as far as limits go.
#[derive(Debug, Clone)]
enum Who {
    /// Nobody that we know.
    Stranger(IpAddr),
    /// A holder of a certificate that our CA signed.
    Guest(Sha256Digest),
}

/// Keeps one listener's limits.
#[derive(Debug)]
pub struct Gate {
    limits: Limits,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    places: Places,
    connects: Buckets<IpAddr>,
    /// Apart, so that strangers' addresses, however many, do not fill the guests'.
    strangers: Buckets<IpAddr>,
    guests: Buckets<Sha256Digest>,
}

impl Gate {
    /// Nobody is in yet.
    pub fn new(limits: Limits) -> Arc<Self> {
        let held = Held {
            places: Places::default(),
            connects: Buckets::new(limits.connects),
            strangers: Buckets::new(limits.requests),
            guests: Buckets::new(limits.requests),
        };
        Arc::new(Self { limits, held: Mutex::new(held) })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(|held| held.into_inner())
    }

    /// A place for a new connection, if its address may have one.
    fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        // The same machine in both of a socket's notations is one.
        let address = address.to_canonical();
        let mut held = self.held();
        held.connects.take(address, Instant::now()).ok()?;
        let (id, displaced) = held.places.add_stranger(address, &self.limits)?;
        let standing = Standing::Stranger { address, id, displaced };
        let ends = tokio::time::Instant::now() + self.limits.stranger;
        Some(Place { gate: self.clone(), standing, ends })
    }
}

#[derive(Debug)]
enum Standing {
    Stranger { address: IpAddr, id: u64, displaced: tokio::sync::oneshot::Receiver<()> },
    Guest(Sha256Digest),
}

/// The right to one connection; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    gate: Arc<Gate>,
    standing: Standing,
    ends: tokio::time::Instant,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.gate.held();
        match &self.standing {
            Standing::Stranger { id, .. } => held.places.remove_stranger(*id),
            Standing::Guest(certificate) => held.places.remove_guest(certificate),
        }
    }
}

impl Place {
    /// The connection turned out to be a guest's: a stranger's place becomes free, and a guest's is taken.
    pub(crate) fn prove(mut self, certificate: Sha256Digest) -> Option<Self> {
        let gate = self.gate.clone();
        let mut held = gate.held();
        if let Standing::Stranger { id, .. } = self.standing
            && held.places.add_guest(&certificate, &gate.limits)
        {
            held.places.remove_stranger(id);
            self.standing = Standing::Guest(certificate);
            return Some(self);
        }
        // Dropping `self` needs the lock.
        drop(held);
        None
    }

    /// Works for as long as the place is held: a stranger's ends, or is given to another.
    pub(crate) async fn hold<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        match &mut self.standing {
            Standing::Guest(_) => Some(work.await),
            Standing::Stranger { displaced, .. } => tokio::select! {
                done = work => Some(done),
                _ = displaced => None,
                () = tokio::time::sleep_until(self.ends) => None,
            },
        }
    }

    fn who(&self) -> Who {
        match self.standing {
            Standing::Stranger { address, .. } => Who::Stranger(address),
            Standing::Guest(ref certificate) => Who::Guest(certificate.clone()),
        }
    }

    /// Speaks HTTP until the peer ends, breaks a limit, or loses its place.
    pub(crate) async fn serve(mut self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) {
        let guard = Guard { gate: self.gate.clone(), who: self.who() };
        let service = TowerToHyperService::new(router.layer(middleware::from_fn_with_state(guard, pass)));
        let mut server = http1::Builder::new();
        server
            .timer(TokioTimer::new())
            .header_read_timeout(self.gate.limits.head)
            .max_header_size(HEAD_BYTES)
            .max_headers(HEAD_FIELDS);
        let who = self.who();
        match self.hold(server.serve_connection(TokioIo::new(stream), service)).await {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::debug!(?who, %error, "a connection ended early"),
            None => tracing::debug!(?who, "a connection without certificate lost its place"),
        }
    }
}

/// A connection whose peer must take what is sent to it.
pub(crate) type Socket = std::pin::Pin<Box<TimeoutStream<TcpStream>>>;

/// Accepts for ever. Whoever is over a limit is let go at once: nothing that one peer does keeps the next one waiting.
pub(crate) async fn accept<F>(
    listener: TcpListener,
    gate: Arc<Gate>,
    mut serve: impl FnMut(Socket, SocketAddr, Place) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                let Some(place) = gate.admit(address.ip()) else {
                    tracing::debug!(%address, "a connection over the limit was closed");
                    continue;
                };
                // Answers are small and awaited; Nagle's algorithm would hold each back for some 40 ms.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%address, %error, "a connection ended early");
                }
                let mut stream = TimeoutStream::new(stream);
                stream.set_write_timeout(Some(gate.limits.unread));
                tokio::spawn(serve(Box::pin(stream), address, place));
            }
            Err(error) => {
                // Out of file descriptors, most likely: others must end first.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Guard {
    gate: Arc<Gate>,
    who: Who,
}

/// Hands a request on once all of it is there and within the limits, so that no handler waits for a slow peer.
async fn pass(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    match guard.check(request).await {
        Ok(request) => next.run(request).await,
        Err(refused) => {
            tracing::debug!(who = ?guard.who, reason = refused.reason(), "a request was refused");
            refused.into_response()
        }
    }
}

impl Guard {
    async fn check(&self, request: Request) -> Result<Request, TooMuch> {
        let limits = &self.gate.limits;
        let taken = {
            let (mut held, now) = (self.gate.held(), Instant::now());
            match &self.who {
                Who::Stranger(address) => held.strangers.take(*address, now),
                Who::Guest(certificate) => held.guests.take(certificate.clone(), now),
            }
        };
        taken.map_err(TooMuch::Requests)?;
        if request.uri().path_and_query().map_or(0, |uri| uri.as_str().len()) > limits.uri_bytes {
            return Err(TooMuch::Uri(limits.uri_bytes));
        }
        let bytes: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        if request.headers().len() > limits.headers || bytes > limits.header_bytes {
            return Err(TooMuch::Headers(limits.headers, limits.header_bytes));
        }
        let (parts, body) = request.into_parts();
        // What is said to be too large is not waited for.
        if body.size_hint().lower() > limits.body_bytes as u64 {
            return Err(TooMuch::Body(limits.body_bytes));
        }
        match tokio::time::timeout(limits.body, axum::body::to_bytes(body, limits.body_bytes)).await {
            Ok(Ok(bytes)) => Ok(Request::from_parts(parts, Body::from(bytes))),
            Ok(Err(error)) if is_length(&error) => Err(TooMuch::Body(limits.body_bytes)),
            Ok(Err(error)) => Err(TooMuch::Broken(error.to_string())),
            Err(_) => Err(TooMuch::Time(limits.body)),
        }
    }
}

fn is_length(error: &(dyn std::error::Error + 'static)) -> bool {
    error.is::<LengthLimitError>() || error.source().is_some_and(is_length)
}

/// What a request was refused for.
#[derive(Debug, thiserror::Error)]
enum TooMuch {
    #[error("too many requests: try again later")]
    Requests(Duration),
    #[error("path and query are longer than {0} bytes")]
    Uri(usize),
    #[error("more than {0} header fields, or than {1} bytes of them")]
    Headers(usize, usize),
    #[error("the body is larger than {0} bytes")]
    Body(usize),
    #[error("the body took longer than {} ms", .0.as_millis())]
    Time(Duration),
    #[error("the body cannot be read: {0}")]
    Broken(String),
}

impl TooMuch {
    fn reason(&self) -> &'static str {
        match self {
            Self::Requests(_) => "too-many-requests",
            Self::Uri(_) => "uri-too-long",
            Self::Headers(..) => "headers-too-large",
            Self::Body(_) => "body-too-large",
            Self::Time(_) => "body-too-slow",
            Self::Broken(_) => "body-broken",
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Requests(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Uri(_) => StatusCode::URI_TOO_LONG,
            Self::Headers(..) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Body(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Time(_) => StatusCode::REQUEST_TIMEOUT,
            Self::Broken(_) => StatusCode::BAD_REQUEST,
        }
    }
}

impl IntoResponse for TooMuch {
    fn into_response(self) -> Response {
        let retry_after = match self {
            // At least a second: the next request would have to wait for its turn anyway.
            Self::Requests(wait) => Some(u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1)),
            _ => None,
        };
        let problem = Problem { reason: self.reason().to_owned(), message: self.to_string(), retry_after };
        let mut response = (self.status(), axum::Json(problem)).into_response();
        // Whoever is over a limit begins anew; new connections have a limit of their own.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

#[cfg(test)]
mod tests;
