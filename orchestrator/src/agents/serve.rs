//! The four things that a guest can ask.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use contract::enrolment::{self, EnrolRequest, Problem};
use contract::floor::Floor;
use contract::health::{self, HealthReport, HealthResponse, WiringOutcome};
use contract::ids::{Generation, InstanceName};
use contract::renewal::{self, RenewRequest};
use contract::{PROTOCOL, assignment};
use serde::Deserialize;

use super::renew::{self, Denied, Expired, holder};
use super::{Agents, Peer, ca, enrol, rotation};
use crate::floor::Offered;
use crate::store::{Event, EventKind, Healthiness, StoreError};

pub(super) fn router(agents: Arc<Agents>) -> Router {
    Router::new()
        .route(enrolment::PATH, post(enrol_guest))
        .route(renewal::PATH, post(renew_certificate))
        .route(assignment::PATH, get(assignment_for))
        .route(health::PATH, post(take_report))
        .fallback(|| async { refuse(StatusCode::NOT_FOUND, "no-such-path", "there is nothing here", None) })
        .layer(middleware::map_response(in_our_words))
        // The listener's limits are narrower.
        .layer(DefaultBodyLimit::disable())
        .with_state(agents)
}

pub(super) fn refuse(
    status: StatusCode,
    reason: &str,
    message: impl Into<String>,
    retry_after: Option<u32>,
) -> Response {
    (status, Json(Problem { reason: reason.into(), message: message.into(), retry_after })).into_response()
}

/// What the framework refuses by itself quotes what it read, and is no problem that an agent could read.
async fn in_our_words(response: Response) -> Response {
    let ours = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if response.status().is_client_error() && !ours {
        return refuse(StatusCode::BAD_REQUEST, "request-malformed", "this is no request that this path takes", None);
    }
    response
}

pub(super) fn store_trouble(error: &StoreError) -> Response {
    tracing::error!(reason = error.reason(), %error, "an agent's request failed");
    refuse(StatusCode::SERVICE_UNAVAILABLE, error.reason(), "the orchestrator's ledger cannot be used now", Some(10))
}

async fn enrol_guest(
    State(agents): State<Arc<Agents>>,
    Extension(peer): Extension<Peer>,
    Json(request): Json<EnrolRequest>,
) -> Response {
    match enrol::enrol(&agents, &request, &peer).await {
        Ok(response) => Json(response).into_response(),
        Err(refused) => (StatusCode::FORBIDDEN, Json(refused.problem())).into_response(),
    }
}

async fn renew_certificate(
    State(agents): State<Arc<Agents>>,
    Extension(peer): Extension<Peer>,
    Json(request): Json<RenewRequest>,
) -> Response {
    renew::renew(&agents, &peer, &request)
        .map_or_else(IntoResponse::into_response, |answer| Json(answer).into_response())
}

#[derive(Deserialize)]
struct Wanted {
    after: Option<u64>,
    wait: Option<u32>,
}

async fn assignment_for(
    State(agents): State<Arc<Agents>>,
    Extension(peer): Extension<Peer>,
    Query(wanted): Query<Wanted>,
) -> Response {
    let instance = match holder(&agents, &peer, Expired::Refuse) {
        Ok(holder) => holder.instance,
        Err(denied) => return denied.into_response(),
    };
    let after = Generation(wanted.after.unwrap_or(0));
    let wait = Duration::from_secs(u64::from(wanted.wait.unwrap_or(0).min(assignment::MAX_WAIT)));
    let mut changes = agents.book.watch();
    let newer = async {
        loop {
            changes.borrow_and_update();
            if let Some(found) = agents.book.get(&instance).filter(|found| found.generation > after) {
                return found;
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    // At least a moment, so that `wait=0` still sees what is there already.
    let outcome = tokio::time::timeout(wait.max(Duration::from_millis(1)), newer).await;
    // It may have been revoked while it waited.
    if let Err(denied) = holder(&agents, &peer, Expired::Refuse) {
        return denied.into_response();
    }
    match outcome {
        Ok(found) => {
            // Not `Json`: this text holds secrets, and is wiped once it is on its way.
            let text = Bytes::from_owner(contract::secret::to_json(&*found));
            ([(header::CONTENT_TYPE, "application/json")], text).into_response()
        }
        Err(_) => StatusCode::NO_CONTENT.into_response(),
    }
}

async fn take_report(
    State(agents): State<Arc<Agents>>,
    Extension(peer): Extension<Peer>,
    Json(report): Json<HealthReport>,
) -> Response {
    let holder = holder(&agents, &peer, Expired::Refuse);
    // A ledger that was lost knows no certificate, and is told all the same.
    let floor = match &holder {
        Ok(_) | Err(Denied::Unknown) => match floor_for(&agents, &report, &peer) {
            Ok(floor) => floor,
            Err(error) => return store_trouble(&error),
        },
        Err(_) => None,
    };
    let holder = match holder {
        Ok(holder) => holder,
        Err(denied) => return denied.into_response(),
    };
    if report.protocol != PROTOCOL {
        return refuse(
            StatusCode::BAD_REQUEST,
            "protocol",
            format!("this orchestrator speaks protocol {PROTOCOL}"),
            None,
        );
    }
    let generation = match note(&agents, &holder.instance, &report, &peer) {
        Ok(generation) => generation,
        Err(error) => return store_trouble(&error),
    };
    // This may have been the last agent that a rotation waited for.
    if holder.is_switched(&agents)
        && let Err(error) = rotation::turn(&agents)
    {
        tracing::error!(%error, "a step of the CA's rotation failed");
    }
    let interval = u32::try_from(agents.interval.as_secs()).unwrap_or(u32::MAX);
    let bundle = agents.ca.bundle();
    let ca = (report.ca != Some(ca::digest(bundle.as_bytes()))).then_some(bundle);
    let renew = holder.renewal(&agents);
    Json(HealthResponse { generation, interval, renew, ca, floor }).into_response()
}

/// Takes what a guest knows of the newest of HQ's documents, and says what it must keep instead, if anything. It needs a
/// certificate of our CA, but not one that the ledger knows: a ledger that was lost knows none.
fn floor_for(agents: &Agents, report: &HealthReport, peer: &Peer) -> Result<Option<Floor>, StoreError> {
    let address = peer.address.ip();
    if let Some(held) = &report.floor {
        match agents.keeper.offered(held.as_str())? {
            Offered::Newer(numbers) => {
                let message = format!("the guest at {address} knows of newer documents than the ledger: {numbers}");
                agents.store.record(Event::new(EventKind::Floor, message).reason("floor-restored"))?;
            }
            Offered::Wrong(error) if agents.is_news((address, "floor-unproved", None)) => {
                let message =
                    format!("what the guest at {address} keeps as the newest of HQ's documents is not: {error}");
                agents.store.record(Event::new(EventKind::Floor, message).reason("floor-unproved"))?;
            }
            Offered::Wrong(_) | Offered::Same | Offered::Older => {}
        }
    }
    let ours = agents.keeper.known()?.and_then(|known| known.evidence);
    let ours = ours.filter(|ours| report.floor.as_ref().is_none_or(|held| held.as_str() != ours));
    // One that is too large was never written down.
    Ok(ours.and_then(|text| Floor::new(text).ok()))
}

/// Stores a report and tells the event log what changed.
fn note(
    agents: &Agents,
    instance: &InstanceName,
    report: &HealthReport,
    peer: &Peer,
) -> Result<Generation, StoreError> {
    agents.store.lift_generation(instance, report.generation)?;
    let newest = agents.store.instance(instance)?.map_or(Generation(0), |record| record.generation);
    let problems = report.problems();
    let healthy =
        if problems.is_empty() && report.generation == newest { Healthiness::Healthy } else { Healthiness::Unhealthy };
    let was_healthy = agents.store.agent(instance)?.is_some_and(|agent| agent.healthy_at.is_some());
    let before = agents.store.note_report(instance, report, peer.address.ip(), healthy)?;
    let known = before.as_ref().map(HealthReport::problems);
    if healthy == Healthiness::Healthy && !was_healthy {
        agents.store.record(
            Event::new(EventKind::Healthy, format!("{instance} is healthy with assignment {newest}"))
                .instance(instance),
        )?;
    } else if !problems.is_empty() && known.as_ref() != Some(&problems) {
        let reason = match report.wiring.as_ref().map(|wiring| &wiring.outcome) {
            Some(WiringOutcome::PutBack { reason, .. } | WiringOutcome::Refused { reason, .. }) => reason.as_str(),
            _ => "guest-degraded",
        };
        agents.store.record(
            Event::new(EventKind::Degraded, format!("{instance}: {}", problems.join("; ")))
                .instance(instance)
                .reason(reason),
        )?;
    }
    if known.as_ref() != Some(&problems)
        || before.is_none_or(|before| before.generation != report.generation || before.wiring != report.wiring)
    {
        agents.wake.notify_one();
    }
    Ok(newest)
}
