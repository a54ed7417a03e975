//! The handle a host holds.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest;
use serde_json::json;
use url::Url;

use crate::builder::VidgenBuilder;
use crate::callbacks::Callbacks;
use crate::clock::{Clock, later};
use crate::error::{Error, ErrorKind, FieldError, Result};
use crate::job::{Job, JobFilter, JobId, JobOutput, JobState, Page, StepKind};
use crate::media::{MediaInfo, MediaKey};
use crate::money::{Quote, UsageFilter, UsageReport};
use crate::notifier::{DeliveryFilter, DeliveryRecord, EventId, NewEvent, Notifier};
use crate::pipeline::places::Places;
use crate::pipeline::plan::plan;
use crate::pipeline::route::{Breakers, ProviderProblem};

use crate::pipeline::{Pipeline, Plan, Route, Timing};
use crate::provider::{ImageUrls, ModelId, Provider, ProviderId};
use crate::queue::{DEFAULT_PRIORITY, Enqueued, Idempotency, NewJob, Queue, QueueStats, Retention, Verdict};
use crate::request::{JobRequest, RequestRules};
use crate::status::{JobStatus, MediaLinks, StatusOutput};
use crate::store::Store;
use crate::tenant::{Limits, TenantId};

/// How long a link in a status answer works.
const STATUS_LINK_LIFE: Duration = Duration::from_secs(3600);
/// How long a link in a webhook works: its delivery may take days. The longest that S3 signs.
const EVENT_LINK_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Everything a host does with vidgen. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Vidgen {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) queue: Arc<dyn Queue>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) notifier: Option<Arc<dyn Notifier>>,
    pub(crate) links: Option<Arc<dyn MediaLinks>>,
    pub(crate) images: Option<Arc<dyn ImageUrls>>,
    pub(crate) pipelines: Vec<Pipeline>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) rules: RequestRules,
    pub(crate) limits: Limits,
    pub(crate) retention: Retention,
    pub(crate) timing: Timing,
    pub(crate) breakers: Breakers,
    pub(crate) callbacks: Option<Callbacks>,
    /// The places for live runs of each credential that has a limit.
    pub(crate) places: Mutex<HashMap<ProviderId, Arc<Places>>>,
}

/// What goes with a create beside the request.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CreateOptions {
    /// A caller's key, so that a repeated create makes one job.
    pub idempotency_key: Option<String>,
    /// What the tenant may use; the builder's limits if absent.
    pub limits: Option<Limits>,
    /// 0 first, 7 last.
    pub priority: Option<u8>,
    /// Not before so long from now.
    pub delay: Duration,
}

impl CreateOptions {
    /// Under a caller's idempotency key.
    #[must_use]
    pub fn with_idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// Under these limits instead of the builder's.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = Some(limits);
        self
    }

    /// With another priority: 0 first, 7 last.
    #[must_use]
    pub fn with_priority(mut self, priority: u8) -> Self {
        self.priority = Some(priority);
        self
    }

    /// Not before so long from now.
    #[must_use]
    pub fn with_delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }
}

impl Vidgen {
    /// Begins to put one together.
    #[must_use]
    pub fn builder() -> VidgenBuilder {
        VidgenBuilder::default()
    }

    /// Creates a job: validated, planned, priced, its hold reserved and itself queued in one step.
    ///
    /// # Errors
    /// `Invalid` naming each bad field; `RateLimited`, `OverBudget` by the tenant's limits;
    /// `Conflict` if the idempotency key was used for another request.
    pub async fn create(&self, tenant: &TenantId, request: JobRequest, options: CreateOptions) -> Result<Enqueued> {
        let plan = self.plan(&request).await?;
        self.accepts(&request)?;
        let idempotency = options
            .idempotency_key
            .map(|key| {
                if key.is_empty() || key.len() > 255 || !key.bytes().all(|b| (0x20..0x7f).contains(&b)) {
                    return Err(Error::invalid_field("Idempotency-Key", "must be 1 to 255 printable ASCII characters"));
                }
                Ok(Idempotency { key, hash: hash_of(&request)? })
            })
            .transpose()?;
        let new = NewJob {
            id: JobId::new(),
            tenant: tenant.clone(),
            request,
            plan,
            limits: options.limits.unwrap_or_else(|| self.inner.limits.clone()),
            idempotency,
            priority: options.priority.unwrap_or(DEFAULT_PRIORITY).min(7),
            delay: options.delay,
        };
        let enqueued = self.inner.queue.enqueue(new).await?;
        tracing::info!(job = %enqueued.job.id, tenant = %tenant, replayed = enqueued.replayed, "job created");
        Ok(enqueued)
    }

    /// What a request would cost and take, without running it.
    ///
    /// # Errors
    /// `Invalid`, as [`Vidgen::create`].
    pub async fn quote(&self, request: &JobRequest) -> Result<Quote> {
        Ok(self.plan(request).await?.quote())
    }

    /// Every bad field of a request: by the rules, and where no pipeline or notifier of this host
    /// can meet it. A create may still find that the image it brings is not in the store.
    #[must_use]
    pub fn problems(&self, request: &JobRequest) -> Vec<FieldError> {
        let mut bad = request.problems(&self.inner.rules);
        let mut also = Vec::new();
        match self.pipeline(request) {
            Err(e) => also.extend_from_slice(e.fields()),
            Ok(_) if request.image.is_some() => {}
            Ok(pipeline) => also.extend(plan(request, &pipeline, None).err().iter().flat_map(Error::fields).cloned()),
        }
        also.extend(self.accepts(request).err().iter().flat_map(Error::fields).cloned());
        also.retain(|problem| !bad.iter().any(|b| b.field == problem.field));
        bad.extend(also);
        bad
    }

    fn accepts(&self, request: &JobRequest) -> Result<()> {
        let Some(endpoint) = &request.webhook_url else { return Ok(()) };
        match &self.inner.notifier {
            Some(notifier) => notifier.accepts(endpoint).map_err(|e| renamed(&e, "webhook_url")),
            None => Err(Error::invalid_field("webhook_url", "webhooks are not configured here")),
        }
    }

    async fn plan(&self, request: &JobRequest) -> Result<Plan> {
        request.validate(&self.inner.rules)?;
        let pipeline = self.pipeline(request)?;
        let image = match &request.image {
            None => None,
            Some(key) => {
                let head = self.inner.store.head(key).await.map_err(|e| match e.kind() {
                    ErrorKind::NotFound => Error::invalid_field("image", "is not in the store"),
                    _ => e,
                })?;
                if !head.media_type.is_image() {
                    return Err(Error::invalid_field("image", "must be a PNG, JPEG or WebP image"));
                }
                Some(MediaInfo {
                    key: key.clone(),
                    media_type: head.media_type,
                    length: head.length,
                    content: Default::default(),
                })
            }
        };
        plan(request, &pipeline, image)
    }

    /// The provider of that name in any pipeline.
    pub(crate) fn provider(&self, id: &ProviderId) -> Result<&Arc<dyn Provider>> {
        let found = self.inner.pipelines.iter().flat_map(Pipeline::providers).find(|p| p.id() == *id);
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, "vidgen", format!("there is no provider {id}")))
    }

    /// What stands between providers and the jobs that need them, as this process found out: keys
    /// that are refused, accounts that are empty. Empty if nothing is known to be wrong.
    #[must_use]
    pub fn provider_problems(&self) -> Vec<ProviderProblem> {
        self.inner.breakers.problems()
    }

    fn pipeline(&self, request: &JobRequest) -> Result<Cow<'_, Pipeline>> {
        let found = match request.pipeline.as_deref() {
            None => self.inner.pipelines.first(),
            Some(name) => self.inner.pipelines.iter().find(|p| p.name() == name),
        };
        let pipeline = found.ok_or_else(|| {
            let names: Vec<&str> = self.inner.pipelines.iter().map(Pipeline::name).collect();
            Error::invalid_field("pipeline", format!("must be one of {}", names.join(", ")))
        })?;
        let Some(url) = &request.image_url else { return Ok(Cow::Borrowed(pipeline)) };
        let none = || Error::invalid_field("image_url", "images cannot be fetched here");
        let images = self.inner.images.as_ref().ok_or_else(none)?;
        images.accepts(url).map_err(|e| renamed(&e, "image_url"))?;
        Ok(Cow::Owned(pipeline.with_images_from(images)))
    }

    /// One job.
    ///
    /// # Errors
    /// `NotFound` if there is none of that id, or it is another tenant's.
    pub async fn get(&self, tenant: &TenantId, id: JobId) -> Result<Job> {
        self.inner.queue.get(tenant, id).await
    }

    /// Jobs, newest first.
    ///
    /// # Errors
    /// What the queue raises.
    pub async fn list(&self, tenant: &TenantId, filter: &JobFilter) -> Result<Page<Job>> {
        self.inner.queue.list(tenant, filter).await
    }

    /// Ends a job: at once if it is queued; a running one is asked to stop, also at the provider.
    ///
    /// # Errors
    /// `NotFound`; `TooLate` if it ended before.
    pub async fn cancel(&self, tenant: &TenantId, id: JobId) -> Result<Job> {
        let job = self.get(tenant, id).await?;
        let mut canceled = job.clone();
        canceled.state = JobState::Canceled;
        canceled.ended_at = Some(self.inner.clock.now());
        let event = self.inner.event(&canceled).await?;
        self.inner.queue.cancel(tenant, id, event).await
    }

    /// Lets a failed or canceled job go on from its last good step.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` if it is live, completed or in doubt (see [`Vidgen::resolve`]); the
    /// tenant's limits, as [`Vidgen::create`].
    pub async fn retry(&self, tenant: &TenantId, id: JobId, limits: Option<Limits>) -> Result<Job> {
        let job = self.get(tenant, id).await?;
        let done = |step| job.step(step).is_some_and(|r| matches!(r.state, crate::StepState::Done { .. }));
        let ahead: crate::Usd = job.plan.steps.iter().filter(|s| !done(s.step)).map(|s| s.hold()).sum();
        // What was bought already and not charged yet is charged if the job completes.
        let hold = ahead + job.cost - job.charge();
        self.inner.queue.retry(tenant, id, hold, &limits.unwrap_or_else(|| self.inner.limits.clone())).await
    }

    /// Decides a job whose outcome is unknown, after the operator looked at the provider.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` if nothing is in doubt.
    pub async fn resolve(&self, tenant: &TenantId, id: JobId, verdict: Verdict) -> Result<Job> {
        self.inner.queue.resolve(tenant, id, verdict).await
    }

    /// Removes a job that ended, and its media.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` if it is live or has a step in doubt.
    pub async fn delete(&self, tenant: &TenantId, id: JobId) -> Result<()> {
        let job = self.get(tenant, id).await?;
        // Where the queue will refuse, the media stay: the record goes on naming them.
        if job.state.is_ended() && job.held == crate::Usd::ZERO {
            self.inner.store.delete_prefix(&media_prefix(id)).await?;
        }
        self.inner.queue.delete(tenant, id).await
    }

    /// Answers the job when its version is greater than `after`, or as it is after `patience`.
    ///
    /// # Errors
    /// `NotFound`, also if it is deleted meanwhile.
    pub async fn watch(&self, tenant: &TenantId, id: JobId, after: u64, patience: Duration) -> Result<Job> {
        self.inner.queue.watch(tenant, id, after, patience).await
    }

    /// Adds up what a tenant used.
    ///
    /// # Errors
    /// What the queue raises.
    pub async fn usage(&self, tenant: &TenantId, filter: &UsageFilter) -> Result<UsageReport> {
        self.inner.queue.usage(tenant, filter).await
    }

    /// Counts of what is live, over all tenants.
    ///
    /// # Errors
    /// What the queue raises.
    pub async fn stats(&self) -> Result<QueueStats> {
        self.inner.queue.stats().await
    }

    /// Stops or resumes handing out jobs, for all processes.
    ///
    /// # Errors
    /// What the queue raises.
    pub async fn pause(&self, paused: bool) -> Result<()> {
        self.inner.queue.pause(paused).await
    }

    /// How a tenant's events were delivered, newest first.
    ///
    /// # Errors
    /// What the queue raises.
    pub async fn deliveries(&self, tenant: &TenantId, filter: &DeliveryFilter) -> Result<Page<DeliveryRecord>> {
        self.inner.queue.deliveries(tenant, filter).await
    }

    /// Delivers an event once more.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn redeliver(&self, tenant: &TenantId, event: &EventId) -> Result<()> {
        self.inner.queue.redeliver(tenant, event).await
    }

    /// What a user is shown of a job, with links that work for an hour.
    ///
    /// # Errors
    /// What the store raises while it signs links.
    pub async fn status(&self, job: &Job) -> Result<JobStatus> {
        self.inner.status(job, STATUS_LINK_LIFE).await
    }

    /// A link to media of a tenant's job that works for `life`, if there is any way to make one.
    ///
    /// # Errors
    /// What the store raises.
    pub async fn link(&self, tenant: &TenantId, key: &MediaKey, life: Duration) -> Result<Option<Url>> {
        self.inner.link(tenant, key, life).await
    }

    /// The store, for hosts that bring images or serve media themselves.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.inner.store
    }

    /// The clock that everything here goes by.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.clock
    }

    /// The names of the pipelines; the first one is the default.
    pub fn pipelines(&self) -> impl Iterator<Item = &str> {
        self.inner.pipelines.iter().map(Pipeline::name)
    }
}

impl Inner {
    /// The places for live runs at a provider, if its credential has a limit. Of this process:
    /// several of them share an account by dividing the limit.
    pub(crate) fn places(&self, provider: &dyn Provider) -> Option<Arc<Places>> {
        let limit = provider.capabilities().max_live?;
        let mut all = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        Some(all.entry(provider.id()).or_insert_with(|| Places::new(limit)).clone())
    }

    /// The route that a job's plan names, if this host still has it.
    pub(crate) fn route(&self, job: &Job, step: StepKind, provider: &ProviderId, model: &ModelId) -> Option<Route> {
        if let (StepKind::Image, Some(_), Some(images)) = (step, &job.request.image_url, &self.images) {
            return Some(Route::new(images.clone())).filter(|_| images.id() == *provider);
        }
        let pipeline = self.pipelines.iter().find(|p| p.name() == job.plan.pipeline)?;
        pipeline.route(step, provider, model).cloned()
    }

    async fn link(&self, tenant: &TenantId, key: &MediaKey, life: Duration) -> Result<Option<Url>> {
        if let Some(url) = self.store.link(key, life).await? {
            return Ok(Some(url));
        }
        Ok(self.links.as_ref().map(|links| links.link(tenant, key, later(self.clock.now(), life))))
    }

    async fn status(&self, job: &Job, life: Duration) -> Result<JobStatus> {
        let output = match &job.output {
            None => None,
            Some(JobOutput { video, thumbnail, duration }) => {
                let text = |url: Option<Url>, key: &MediaKey| url.map_or_else(|| key.to_string(), String::from);
                let video_url = text(self.link(&job.tenant, &video.key, life).await?, &video.key);
                let thumbnail_url = match thumbnail {
                    None => None,
                    Some(t) => Some(text(self.link(&job.tenant, &t.key, life).await?, &t.key)),
                };
                Some(StatusOutput { video_url, thumbnail_url, duration_seconds: duration.as_secs_f64() })
            }
        };
        Ok(JobStatus::of(job, output))
    }

    /// The event that tells of the end of `job`, if its request names an endpoint. Beside the
    /// Standard Webhooks members it has the tutorial's own at the top, so receivers of either
    /// shape work.
    pub(crate) async fn event(&self, job: &Job) -> Result<Option<NewEvent>> {
        let Some(endpoint) = job.request.webhook_url.clone().filter(|_| self.notifier.is_some()) else {
            return Ok(None);
        };
        let status = self.status(job, EVENT_LINK_LIFE).await?;
        let kind = format!("job.{}", job.state.as_str());
        let mut data = serde_json::to_value(&status).map_err(|e| Error::internal("event", "no JSON").with_source(e))?;
        if let Some(object) = data.as_object_mut() {
            object.insert("sequence".into(), job.version.saturating_add(1).into());
            if !job.request.metadata.is_empty() {
                object.insert("metadata".into(), job.request.metadata.clone().into());
            }
        }
        let mut body = json!({
            "type": kind,
            "timestamp": self.clock.now(),
            "job_id": status.job_id,
            "status": status.status,
            "data": data,
        });
        if let Some(object) = body.as_object_mut() {
            for member in ["output", "error"] {
                if let Some(value) = object.get("data").and_then(|d| d.get(member)).cloned() {
                    object.insert(member.into(), value);
                }
            }
        }
        Ok(Some(NewEvent { id: EventId::new(), kind, endpoint, body: body.to_string() }))
    }
}

/// Where all media of a job lie.
#[must_use]
pub(crate) fn media_prefix(job: JobId) -> String {
    format!("jobs/{job}")
}

/// SHA-256 of a value's JSON, hex.
pub(crate) fn hash_of<T: serde::Serialize>(value: &T) -> Result<String> {
    let json = serde_json::to_vec(value).map_err(|e| Error::internal("hash", "no JSON").with_source(e))?;
    Ok(hex::encode(digest::digest(&digest::SHA256, &json)))
}

fn renamed(error: &Error, field: &str) -> Error {
    let message = error.fields().first().map_or_else(|| error.message().to_owned(), |f| f.message.clone());
    Error::invalid_field(field, message)
}
