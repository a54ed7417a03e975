//! `/health` and `/ready`, for whoever restarts and balances servers.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use vidgen_core::{ProviderProblem, Vidgen};

use crate::status::NO_STORE;

/// How long the queue may take to answer before it counts as away.
const PATIENCE: Duration = Duration::from_secs(2);

/// `GET /health` (200 as long as the process answers) and `GET /ready` (503 when the queue does
/// not answer within two seconds). Merge it at the root of the server.
///
/// `/ready` also names the providers that refuse the host's key or account, as far as workers of
/// this process found out: with them the server is `degraded`, and still takes calls.
pub fn health_router<S: Clone + Send + Sync + 'static>(vidgen: &Vidgen) -> Router<S> {
    Router::new()
        .route("/health", get(async || (NO_STORE, Json(json!({ "status": "ok" })))))
        .route("/ready", get(ready))
        .with_state(vidgen.clone())
}

async fn ready(State(vidgen): State<Vidgen>) -> impl IntoResponse {
    let answered = matches!(tokio::time::timeout(PATIENCE, vidgen.stats()).await, Ok(Ok(_)));
    if !answered {
        return (StatusCode::SERVICE_UNAVAILABLE, NO_STORE, Json(json!({ "status": "unavailable" })));
    }
    let problems = vidgen.provider_problems();
    if problems.is_empty() {
        return (StatusCode::OK, NO_STORE, Json(json!({ "status": "ready" })));
    }
    let told = |p: ProviderProblem| json!({ "provider": p.provider, "problem": p.kind.code(), "since": p.since });
    let providers: Vec<_> = problems.into_iter().map(told).collect();
    (StatusCode::OK, NO_STORE, Json(json!({ "status": "degraded", "providers": providers })))
}
