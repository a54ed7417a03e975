//! `/jobs`: the list, the whole record, and what can be done with one.

use axum::Json;
use axum::extract::{Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use vidgen_core::{
    FieldError, Job, JobFilter, JobId, JobRequest, JobState, JobStatus, MediaKey, ModelId, PlannedStep, ProviderId,
    StepId, StepRecord, StepState, Usd, Vidgen,
};

use crate::error::Problem;
use crate::generate::whole_seconds;
use crate::options::{Api, Principal};
use crate::status::{JobPath, NO_STORE};

const DEFAULT_PAGE: usize = 20;
const MAX_PAGE: usize = 100;

/// Everything is text at first, so that each bad one is named.
#[derive(Deserialize)]
pub(crate) struct ListQuery {
    state: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

#[derive(Serialize)]
struct Listed {
    jobs: Vec<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<JobId>,
}

#[derive(Serialize)]
struct Summary {
    #[serde(flatten)]
    status: JobStatus,
    prompt: String,
}

/// The caller's jobs, newest first.
pub(crate) async fn list(
    State(api): State<Api>,
    principal: Principal,
    query: Result<Query<ListQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<impl IntoResponse, Problem> {
    let Query(query) = query.map_err(|_| Problem::invalid_field("", "the query cannot be read"))?;
    let page = api.vidgen.list(&principal.tenant, &query.filter()?).await?;
    // The list is by id, so the last id is where the next page begins. It opens nothing to
    // anybody else: every page is of the caller's own jobs.
    let next_cursor = page.items.last().filter(|_| page.more).map(|job| job.id);
    let mut jobs = Vec::with_capacity(page.items.len());
    for job in page.items {
        jobs.push(Summary { status: api.vidgen.status(&job).await?, prompt: job.request.prompt });
    }
    Ok((NO_STORE, Json(Listed { jobs, next_cursor })))
}

impl ListQuery {
    fn filter(self) -> Result<JobFilter, Problem> {
        let mut filter = JobFilter { limit: DEFAULT_PAGE, ..JobFilter::default() };
        let mut bad = Vec::new();
        if let Some(state) = self.state {
            match state.parse() {
                Ok(state) => filter.state = Some(state),
                Err(e) => bad.extend(e.fields().to_vec()),
            }
        }
        if let Some(limit) = self.limit {
            match limit.parse() {
                Ok(limit) if (1..=MAX_PAGE).contains(&limit) => filter.limit = limit,
                _ => bad.push(FieldError::new("limit", format!("must be from 1 to {MAX_PAGE}"))),
            }
        }
        if let Some(cursor) = self.cursor {
            match cursor.parse() {
                Ok(id) => filter.before = Some(id),
                Err(_) => bad.push(FieldError::new("cursor", "is not a cursor of this list")),
            }
        }
        if bad.is_empty() { Ok(filter) } else { Err(Problem::invalid(bad)) }
    }
}

/// All that an owner sees of a job.
#[derive(Serialize)]
struct Record {
    #[serde(flatten)]
    status: JobStatus,
    request: Asked,
    pipeline: String,
    duration_seconds: f64,
    width: u32,
    height: u32,
    estimated_time_seconds: u64,
    attempts: u32,
    cancel_requested: bool,
    version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<Timestamp>,
    steps: Vec<Step>,
}

/// The request, with the names it came under.
#[derive(Serialize)]
struct Asked {
    #[serde(flatten)]
    request: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_seconds: Option<f64>,
}

/// A step, without what is ours: handles, submissions and where a provider keeps its output.
#[derive(Default, Serialize)]
struct Step {
    step: Option<StepId>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<ProviderId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<ModelId>,
    /// What the provider billed for all attempts, in dollars.
    cost: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    attempts: Vec<Attempt>,
}

#[derive(Serialize)]
struct Attempt {
    provider: ProviderId,
    model: ModelId,
    code: &'static str,
    reason: String,
    cost: f64,
    at: Timestamp,
}

/// The whole record of a job.
pub(crate) async fn get(
    State(api): State<Api>,
    principal: Principal,
    JobPath(id): JobPath,
) -> Result<impl IntoResponse, Problem> {
    let job = api.vidgen.get(&principal.tenant, id).await?;
    let status = api.vidgen.status(&job).await?;
    Ok((NO_STORE, Json(Record::of(job, status))))
}

impl Record {
    fn of(job: Job, status: JobStatus) -> Self {
        let steps = job.plan.steps.iter().map(|planned| Step::of(planned, job.step(planned.step))).collect();
        Self {
            status,
            steps,
            request: Asked::of(&job.request),
            estimated_time_seconds: whole_seconds(job.plan.estimated()),
            duration_seconds: job.plan.duration.as_secs_f64(),
            width: job.plan.size.width,
            height: job.plan.size.height,
            pipeline: job.plan.pipeline,
            attempts: job.attempts,
            cancel_requested: job.cancel_requested,
            version: job.version,
            started_at: job.started_at,
        }
    }
}

impl Asked {
    fn of(request: &JobRequest) -> Self {
        let mut object = match serde_json::to_value(request) {
            Ok(Value::Object(object)) => object,
            _ => Map::new(),
        };
        object.remove("duration");
        Self { request: object, duration_seconds: request.duration.map(|d| d.as_secs_f64()) }
    }
}

impl Step {
    fn of(planned: &PlannedStep, record: Option<&StepRecord>) -> Self {
        let first = planned.routes.first();
        let mut step = Self {
            step: Some(planned.step),
            state: "pending",
            provider: first.map(|r| r.provider.clone()),
            model: first.map(|r| r.model.clone()),
            ..Self::default()
        };
        let Some(record) = record else { return step };
        let mut cost: Usd = record.attempts.iter().map(|a| a.cost.amount).sum();
        match &record.state {
            StepState::Intent { submission } | StepState::Accepted { submission, .. } => {
                step.state = "processing";
                step.provider = Some(submission.provider.clone());
                step.model = Some(submission.model.clone());
            }
            StepState::InDoubt { submission } => {
                step.state = "in_doubt";
                step.provider = Some(submission.provider.clone());
                step.model = Some(submission.model.clone());
            }
            StepState::Done { provider, model, cost: last, .. } => {
                step.state = "done";
                step.provider = Some(provider.clone());
                step.model = Some(model.clone());
                cost += last.amount;
            }
            StepState::Skipped { reason } => {
                step.state = "skipped";
                step.reason = Some(reason.clone());
            }
            StepState::Failed { failure } => {
                step.state = "failed";
                step.reason = Some(failure.message.clone());
            }
            other => step.state = other.as_str(),
        }
        step.cost = cost.dollars();
        step.attempts = record
            .attempts
            .iter()
            .map(|a| Attempt {
                provider: a.provider.clone(),
                model: a.model.clone(),
                code: a.kind.code(),
                reason: a.reason.clone(),
                cost: a.cost.amount.dollars(),
                at: a.at,
            })
            .collect();
        step
    }
}

/// Cancels a live job; removes one that ended, with its media.
pub(crate) async fn delete(
    State(api): State<Api>,
    principal: Principal,
    JobPath(id): JobPath,
) -> Result<Response, Problem> {
    let job = api.vidgen.get(&principal.tenant, id).await?;
    if job.state.is_ended() {
        api.vidgen.delete(&principal.tenant, id).await?;
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    // If it ends in between, the caller is told so (409) and its video is kept: they asked to
    // stop a job, not to lose a finished one.
    let job = api.vidgen.cancel(&principal.tenant, id).await?;
    accepted(&api.vidgen, &job).await
}

/// Lets a failed or canceled job go on.
pub(crate) async fn retry(
    State(api): State<Api>,
    principal: Principal,
    JobPath(id): JobPath,
) -> Result<Response, Problem> {
    let job = api.vidgen.retry(&principal.tenant, id, principal.limits).await?;
    accepted(&api.vidgen, &job).await
}

async fn accepted(vidgen: &Vidgen, job: &Job) -> Result<Response, Problem> {
    Ok((StatusCode::ACCEPTED, NO_STORE, Json(vidgen.status(job).await?)).into_response())
}

/// Redirects to the video.
pub(crate) async fn video(
    State(api): State<Api>,
    principal: Principal,
    JobPath(id): JobPath,
) -> Result<Response, Problem> {
    let job = api.vidgen.get(&principal.tenant, id).await?;
    let key = job.output.as_ref().map(|output| &output.video.key);
    redirect(&api.vidgen, &job, key).await
}

/// Redirects to the picture out of it.
pub(crate) async fn thumbnail(
    State(api): State<Api>,
    principal: Principal,
    JobPath(id): JobPath,
) -> Result<Response, Problem> {
    let job = api.vidgen.get(&principal.tenant, id).await?;
    let key = job.output.as_ref().and_then(|output| output.thumbnail.as_ref()).map(|t| &t.key);
    redirect(&api.vidgen, &job, key).await
}

/// How long the link works: it is followed at once, but a player comes back for more of it.
const REDIRECT_LINK_LIFE: std::time::Duration = std::time::Duration::from_secs(3600);

async fn redirect(vidgen: &Vidgen, job: &Job, key: Option<&MediaKey>) -> Result<Response, Problem> {
    let Some(key) = key else {
        return Err(match job.state {
            JobState::Completed => Problem::not_found(),
            state => Problem::conflict("not_completed", format!("the job is {}", state.as_str())),
        });
    };
    let link = vidgen.link(&job.tenant, key, REDIRECT_LINK_LIFE).await?;
    let location = link.and_then(|url| HeaderValue::from_str(url.as_str()).ok()).ok_or_else(|| {
        tracing::error!("neither the store nor the router makes links: give `media_links` to the builder");
        Problem::internal()
    })?;
    Ok((StatusCode::FOUND, NO_STORE, [(header::LOCATION, location)]).into_response())
}
