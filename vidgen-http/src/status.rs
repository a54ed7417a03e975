//! `GET /status/{job_id}`, and the id in every path that has one.

use axum::Json;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::header;
use axum::http::request::Parts;
use axum::response::IntoResponse;
use vidgen_core::JobId;

use crate::error::Problem;
use crate::options::{Api, Principal};

/// Job states change by themselves, so no answer that holds one may be kept.
pub(crate) const NO_STORE: [(header::HeaderName, &str); 1] = [(header::CACHE_CONTROL, "no-store")];

/// What a user is shown of a job.
pub(crate) async fn status(
    State(api): State<Api>,
    principal: Principal,
    JobPath(id): JobPath,
) -> Result<impl IntoResponse, Problem> {
    let job = api.vidgen.get(&principal.tenant, id).await?;
    Ok((NO_STORE, Json(api.vidgen.status(&job).await?)))
}

/// The job id of the path; whatever is not one is no job.
pub(crate) struct JobPath(pub(crate) JobId);

impl<S: Send + Sync> FromRequestParts<S> for JobPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let id = Path::<String>::from_request_parts(parts, state).await.map_err(|_| Problem::job_not_found())?;
        id.0.parse().map(Self).map_err(|_| Problem::job_not_found())
    }
}
