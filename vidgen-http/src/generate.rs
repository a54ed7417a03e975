//! `POST /generate` and `POST /quote`.

use std::time::Duration;

use axum::Json;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use vidgen_core::{CreateOptions, ErrorKind, JobId, JobState, ModelId, ProviderId, StepId};

use crate::body::Asked;
use crate::error::Problem;
use crate::options::{Api, Principal};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

#[derive(Serialize)]
struct Accepted {
    job_id: JobId,
    status: JobState,
    estimated_time_seconds: u64,
}

/// Creates a job.
pub(crate) async fn generate(
    State(api): State<Api>,
    principal: Principal,
    uri: OriginalUri,
    headers: HeaderMap,
    Asked(request): Asked,
) -> Result<Response, Problem> {
    let mut options = CreateOptions::default();
    options.limits = principal.limits;
    options.idempotency_key = idempotency_key(&headers)?;
    let keyed = options.idempotency_key.is_some();
    let enqueued = api.vidgen.create(&principal.tenant, request, options).await.map_err(|e| match e.kind() {
        ErrorKind::Conflict if keyed => Problem::idempotency_conflict(),
        _ => e.into(),
    })?;
    // A replay has the bytes of the first answer, whatever became of the job meanwhile.
    let accepted = Accepted {
        job_id: enqueued.job.id,
        status: JobState::Queued,
        estimated_time_seconds: whole_seconds(enqueued.job.plan.estimated()),
    };
    let mut response = (StatusCode::ACCEPTED, Json(accepted)).into_response();
    let mount = uri.path().strip_suffix("/generate").unwrap_or_default();
    if let Ok(location) = HeaderValue::from_str(&format!("{mount}/status/{}", enqueued.job.id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    if enqueued.replayed {
        response.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// Core judges the key; here only that it is one, and text.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(key) = keys.next() else { return Ok(None) };
    match (key.to_str(), keys.next()) {
        (Ok(key), None) => Ok(Some(key.to_owned())),
        _ => Err(Problem::invalid_field("Idempotency-Key", "must be 1 to 255 printable ASCII characters")),
    }
}

#[derive(Serialize)]
struct QuoteAnswer {
    /// In dollars, as all amounts.
    cost: f64,
    max_cost: f64,
    estimated_time_seconds: u64,
    steps: Vec<QuotedStep>,
}

#[derive(Serialize)]
struct QuotedStep {
    step: StepId,
    provider: ProviderId,
    model: ModelId,
    cost: f64,
    max_cost: f64,
    estimated_time_seconds: f64,
}

/// What a request would cost and take, without running it.
pub(crate) async fn quote(
    State(api): State<Api>,
    _: Principal,
    Asked(request): Asked,
) -> Result<impl IntoResponse, Problem> {
    let quote = api.vidgen.quote(&request).await?;
    let steps = quote.steps.into_iter().map(|s| QuotedStep {
        step: s.step,
        provider: s.provider,
        model: s.model,
        cost: s.expected.dollars(),
        max_cost: s.hold.dollars(),
        estimated_time_seconds: s.estimated.as_secs_f64(),
    });
    Ok(Json(QuoteAnswer {
        cost: quote.expected.dollars(),
        max_cost: quote.hold.dollars(),
        estimated_time_seconds: whole_seconds(quote.estimated),
        steps: steps.collect(),
    }))
}

/// Rounded up, and at least 1: nobody is told that a video takes no time.
pub(crate) fn whole_seconds(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}
