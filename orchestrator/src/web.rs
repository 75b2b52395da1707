//! The listener for people and their machines, on loopback unless said otherwise: health, metrics, the git hook.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use contract::secret::Secret;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::limits::{self, Gate, Limits};
use crate::status::{self, Phase};
use crate::store::{Store, now};

/// Seconds without a turn of the loop after which the process counts as stuck.
const STUCK: i64 = 300;

/// What the loop tells the page.
#[derive(Debug, Default)]
pub struct Pulse {
    /// When the loop last turned, in seconds since 1970.
    turned_at: AtomicI64,
    /// Whether the last pass could read everything it needed.
    ready: AtomicBool,
}

impl Pulse {
    /// The loop turned; `ready` says whether it could read the hypervisor and had a revision to follow.
    pub fn beat(&self, ready: bool) {
        self.turned_at.store(now(), Ordering::Relaxed);
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// Whether the loop still turns.
    pub fn is_alive(&self) -> bool {
        now() - self.turned_at.load(Ordering::Relaxed) < STUCK
    }

    /// Whether the last pass went through.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }
}

/// Everything that the handlers share.
#[derive(Debug)]
pub struct Web {
    /// The ledger.
    pub store: Store,
    /// The loop's pulse.
    pub pulse: Arc<Pulse>,
    /// Wakes the source.
    pub fetch: Arc<Notify>,
    /// Secret of the git hook; absent: it is off.
    pub hook: Option<Secret>,
}

/// The routes.
pub fn router(web: Arc<Web>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/hooks/git", post(git_hook))
        // The listener's limits hold.
        .layer(DefaultBodyLimit::disable())
        .with_state(web)
}

/// Serves the routes. Returns the bound address and the serving future.
pub async fn listen(
    web: Arc<Web>,
    address: SocketAddr,
    limits: Limits,
) -> std::io::Result<(SocketAddr, impl Future<Output = ()> + use<>)> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let router = router(web);
    let serving =
        limits::accept(listener, Gate::new(limits), move |socket, _, place| place.serve(socket, router.clone()));
    Ok((bound, serving))
}

async fn healthz(State(web): State<Arc<Web>>) -> Response {
    if web.pulse.is_alive() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the loop has not turned for five minutes\n").into_response()
    }
}

async fn readyz(State(web): State<Arc<Web>>) -> Response {
    if web.pulse.is_ready() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no revision in force, or the hypervisor cannot be read\n").into_response()
    }
}

async fn metrics(State(web): State<Arc<Web>>) -> Response {
    match exposition(&web) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => {
            tracing::error!(reason = error.reason(), %error, "metrics cannot be read");
            (StatusCode::SERVICE_UNAVAILABLE, "the ledger cannot be read\n").into_response()
        }
    }
}

/// Prometheus' text format.
fn exposition(web: &Web) -> Result<String, crate::store::StoreError> {
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, rows: &[(String, f64)]| {
        let _ = writeln!(out, "# HELP ctrlable_{name} {help}\n# TYPE ctrlable_{name} {kind}");
        for (labels, value) in rows {
            let _ = writeln!(out, "ctrlable_{name}{labels} {value}");
        }
    };
    let statuses = status::instances(&web.store, now())?;
    let phases: Vec<(String, f64)> = Phase::ALL
        .iter()
        .map(|phase| {
            let count = statuses.iter().filter(|status| status.phase == *phase).count();
            (format!("{{phase=\"{}\"}}", phase.word()), count as f64)
        })
        .collect();
    family("instances", "gauge", "Instances by phase.", &phases);
    let one = |name: &str, value: f64| vec![(format!("{{instance=\"{name}\"}}"), value)];
    let mut healthy = Vec::new();
    let mut seen = Vec::new();
    for status in &statuses {
        let name = status.instance.as_str();
        healthy.extend(one(name, f64::from(u8::from(status.phase == Phase::Healthy))));
        seen.extend(status.last_seen.map(|at| one(name, at as f64)).into_iter().flatten());
    }
    family("instance_healthy", "gauge", "Whether an instance is healthy.", &healthy);
    family("instance_last_seen_seconds", "gauge", "When an instance reported last, Unix time.", &seen);
    let conflicts: Vec<(String, f64)> = web
        .store
        .conflicts()?
        .into_iter()
        .map(|found| {
            let labels = format!(
                "{{instance=\"{}\",address=\"{}\",reason=\"{}\"}}",
                found.instance, found.address, found.reason
            );
            (labels, found.at as f64)
        })
        .collect();
    family(
        "conflict_seconds",
        "gauge",
        "When somebody asked in the name of an instance that he is not, Unix time.",
        &conflicts,
    );
    if let Some(newest) = web.store.newest_revision()? {
        let (accepted, label) = match &newest.verdict {
            crate::store::Verdict::Accepted { .. } => (1.0, String::new()),
            crate::store::Verdict::Refused { reason, .. } => (0.0, format!(",reason=\"{reason}\"")),
        };
        let labels = format!("{{revision=\"{}\"{label}}}", newest.revision);
        family("revision_accepted", "gauge", "Whether the newest revision was accepted.", &[(labels, accepted)]);
    }
    if let Some(standing) = status::Standing::known(&web.store)? {
        let one = |value: f64| [(String::new(), value)];
        let truth = |value: bool| one(f64::from(u8::from(value)));
        if let Some(expires) = standing.expires {
            family(
                "channels_expire_seconds",
                "gauge",
                "When channels.yaml expires, Unix time.",
                &one(expires.as_second() as f64),
            );
        }
        family(
            "frozen",
            "gauge",
            "Whether channels.yaml has expired, so that no upgrade is begun.",
            &truth(standing.frozen),
        );
        family(
            "clock_behind",
            "gauge",
            "Whether the clock is behind what HQ has signed.",
            &truth(standing.clock_behind),
        );
    }
    let counts: Vec<(String, f64)> = web
        .store
        .event_counts()?
        .into_iter()
        .map(|(kind, reason, count)| (format!("{{kind=\"{kind}\",reason=\"{reason}\"}}"), count as f64))
        .collect();
    family("events", "gauge", "Events in the log by kind and reason.", &counts);
    family(
        "ready",
        "gauge",
        "Whether the last pass went through.",
        &[(String::new(), f64::from(u8::from(web.pulse.is_ready())))],
    );
    Ok(out)
}

/// `POST /hooks/git`: `X-Hub-Signature-256: sha256=<HMAC of the body>`, as GitHub, Gitea and Forgejo send it. What the
/// body says is ignored: a hook says when to look, never what to believe.
async fn git_hook(State(web): State<Arc<Web>>, headers: HeaderMap, body: Bytes) -> Response {
    let Some(secret) = &web.hook else {
        return (StatusCode::NOT_FOUND, "the hook is off: set source.webhook_secret_file\n").into_response();
    };
    let signature = headers
        .get("x-hub-signature-256")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("sha256="))
        .and_then(|value| hex::decode(value).ok());
    let genuine = signature.is_some_and(|signature| {
        <Hmac<Sha256> as Mac>::new_from_slice(secret.expose().as_bytes())
            // `verify_slice` compares in constant time.
            .is_ok_and(|mac| mac.chain_update(&body).verify_slice(&signature).is_ok())
    });
    if !genuine {
        tracing::warn!(reason = "hook-signature-wrong", "a git hook with a wrong signature was refused");
        return (StatusCode::FORBIDDEN, "wrong signature\n").into_response();
    }
    web.fetch.notify_one();
    (StatusCode::ACCEPTED, "looking\n").into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use axum::body::Body;
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;

    fn web(dir: &std::path::Path) -> Arc<Web> {
        Arc::new(Web {
            store: Store::open(dir).unwrap(),
            pulse: Arc::default(),
            fetch: Arc::default(),
            hook: Some(Secret::new("topsecret")),
        })
    }

    async fn hook(web: &Arc<Web>, signature: &str) -> StatusCode {
        let request = Request::post("/hooks/git").header("x-hub-signature-256", signature).body(Body::from("{}"));
        router(web.clone()).oneshot(request.unwrap()).await.unwrap().status()
    }

    #[tokio::test]
    async fn a_hook_wakes_the_source_only_with_the_right_signature() {
        let dir = tempfile::tempdir().unwrap();
        let web = web(dir.path());
        assert_eq!(hook(&web, "sha256=00").await, StatusCode::FORBIDDEN);
        assert_eq!(hook(&web, "nonsense").await, StatusCode::FORBIDDEN);
        let mac = <Hmac<Sha256> as Mac>::new_from_slice(b"topsecret").unwrap().chain_update(b"{}");
        let right = format!("sha256={}", hex::encode(mac.finalize().into_bytes()));
        assert_eq!(hook(&web, &right).await, StatusCode::ACCEPTED);
        web.fetch.notified().await;
    }

    #[tokio::test]
    async fn readiness_and_metrics_follow_the_loop() {
        let dir = tempfile::tempdir().unwrap();
        let web = web(dir.path());
        let get = async |path: &str| {
            let request = Request::get(path).body(Body::empty()).unwrap();
            let response = router(web.clone()).oneshot(request).await.unwrap();
            let status = response.status();
            let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
            (status, String::from_utf8(body.to_vec()).unwrap())
        };
        assert_eq!(get("/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
        web.pulse.beat(true);
        assert_eq!(get("/readyz").await.0, StatusCode::OK);
        assert_eq!(get("/healthz").await.0, StatusCode::OK);
        let (status, text) = get("/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(text.contains("ctrlable_instances{phase=\"healthy\"} 0"), "{text}");
    }
}
