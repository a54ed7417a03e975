//! `/health` and `/ready`, for whoever restarts and balances servers.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use vidgen_core::Vidgen;

use crate::status::NO_STORE;

/// How long the queue may take to answer before it counts as away.
const PATIENCE: Duration = Duration::from_secs(2);

/// `GET /health` (200 as long as the process answers) and `GET /ready` (503 when the queue does
/// not answer within two seconds). Merge it at the root of the server.
pub fn health_router<S: Clone + Send + Sync + 'static>(vidgen: &Vidgen) -> Router<S> {
    Router::new()
        .route("/health", get(async || (NO_STORE, Json(json!({ "status": "ok" })))))
        .route("/ready", get(ready))
        .with_state(vidgen.clone())
}

async fn ready(State(vidgen): State<Vidgen>) -> impl IntoResponse {
    let answered = matches!(tokio::time::timeout(PATIENCE, vidgen.stats()).await, Ok(Ok(_)));
    let (status, word) =
        if answered { (StatusCode::OK, "ready") } else { (StatusCode::SERVICE_UNAVAILABLE, "unavailable") };
    (status, NO_STORE, Json(json!({ "status": word })))
}
