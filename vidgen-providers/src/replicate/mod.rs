//! Replicate: thousands of models, official ones, versions of anybody's, and deployments.
//!
//! A prediction's id is all that it takes to poll it. Outputs vanish after an hour, from
//! `replicate.delivery`, and are fetched without the key. Facts as of 2026-11, from the official
//! clients (npm `replicate` 1.4.0, PyPI `replicate` 1.0.7 and 2.0.0b4) and replicate.com's docs.
//!
//! ```
//! use vidgen_core::{ProviderExt, StepKind};
//! use vidgen_providers::replicate::Replicate;
//!
//! let replicate = Replicate::new("r8_YourToken")?;
//! let image = replicate.clone().model("black-forest-labs/flux-schnell");
//! let video = replicate.model("minimax/hailuo-02");
//! # Ok::<(), vidgen_core::Error>(())
//! ```
//!
//! # Models
//! `owner/name` is an official model, `owner/name:version` a version, and an entry with
//! `endpoint = "deployment"` a deployment. Any model that is not in the table is added with
//! [`ReplicateBuilder::with_model`].
//!
//! # Lost answers
//! Replicate takes neither a key nor a reference with a submit. Our id goes out in the query of the
//! webhook URL, if the host has callbacks ([`Callbacks`](vidgen_core::Callbacks)), so whoever lost
//! the answer is told by the callback, or finds the prediction in the account's list of that time.
//! Whether list items echo their webhook URL is unverified: where they do not, each prediction of
//! that time is looked at by itself; and where that does not tell either, or there are more than a
//! few, the answer is [`Lookup::Unknown`], never `Absent`. Without callbacks, a lost submission can
//! be found only if its model takes fields that it does not know (many versions do): then an entry
//! with `fields.marker = "…"` sends our id in that one.
//!
//! # Money
//! Replicate states no cost. It states for how long the model computed, which prices a model that
//! is billed by the second; the others are billed by the table. `aborted` (a deadline that passed
//! before it began) is not billed; a run that is canceled or fails is billed for its time.

mod callback;
mod find;
mod wire;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;
use serde_json::{Map, Value, json};
use vidgen_core::net::DownloadLimits;
use vidgen_core::{
    Body, Callback, Capabilities, ErrorKind, Handle, Lookup, MediaInput, Output, Price, Provider, ProviderId, Result,
    RunFailure, Snapshot, Spool, StepKind, Submission, SubmitOptions, Task, TaskSpec, Usage,
};

use crate::client::{
    Auth, Call, Client, ClientBuilder, Part, Refusal, Verdict, WebhookSecrets, data_url, files, image_bytes,
    predict_time, quotable, shared_settings, strings,
};
use crate::models::{ModelEntry, ModelTable};

const ORIGIN: &str = "replicate";
const BASE_URL: &str = "https://api.replicate.com/v1";
/// Up to which size the API recommends data URLs; larger files are uploaded.
const MAX_INLINE: usize = 256 * 1000;
/// For how long a link to an image has to work: until the run has begun, however cold it starts.
const LINK_LIFE: Duration = Duration::from_secs(3600);
/// Reads are limited to 3000 a minute, and the official clients poll every half second.
const POLL_FLOOR: Duration = Duration::from_secs(1);
/// After this, files and JSON of a prediction are deleted.
const OUTPUT_LIFE: Duration = Duration::from_secs(3600);
/// What to wait if a 429 does not say.
const USUAL_WAIT: Duration = Duration::from_secs(30);
/// The shortest deadline that it takes.
const SHORTEST_DEADLINE: Duration = Duration::from_secs(5);

/// A client of Replicate.
#[derive(Clone)]
pub struct Replicate {
    id: ProviderId,
    client: Client,
    models: ModelTable,
    callbacks: Arc<callback::Secrets>,
    deadline: Option<Duration>,
    plain_callbacks: bool,
}

impl Replicate {
    /// A client with this API token (`r8_…`) and the well-known models.
    ///
    /// # Errors
    /// `Invalid` if it cannot be a token.
    pub fn new(token: impl Into<SecretString>) -> Result<Self> {
        Self::builder(token).build()
    }

    /// A client to be set up further.
    pub fn builder(token: impl Into<SecretString>) -> ReplicateBuilder {
        let client = ClientBuilder::new(ORIGIN, BASE_URL, Auth::Bearer).with_api_key(token.into()).with_judge(judge);
        ReplicateBuilder {
            id: ProviderId::new(ORIGIN),
            client,
            models: ModelTable::default(),
            secrets: Vec::new(),
            deadline: None,
        }
    }

    /// The well-known models, as they are built in.
    ///
    /// # Errors
    /// Never: a test reads it.
    pub fn known_models() -> Result<ModelTable> {
        ModelTable::from_toml(include_str!("../models/replicate.toml"))
    }

    /// Uses another token from now on, in all clones: keys are rotated without a restart.
    ///
    /// # Errors
    /// `Invalid` if it cannot be a token.
    pub fn rotate_token(&self, token: impl Into<SecretString>) -> Result<()> {
        self.client.rotate(&token.into())
    }

    /// Where an image can be had: the host's own link, itself if it is small, else a file of
    /// Replicate's.
    async fn image(&self, image: &MediaInput) -> Result<String> {
        if let Some(link) = self.client.public_link(image, LINK_LIFE).await {
            return Ok(link);
        }
        let media_type = image.info.media_type;
        let bytes = image_bytes(image).await?;
        if bytes.len() <= MAX_INLINE {
            return Ok(data_url(media_type.mime(), &bytes));
        }
        let name = format!("image.{}", media_type.extension());
        let parts = [Part::file("content", name, media_type.mime(), bytes), Part::json("metadata", &json!({}))];
        let file = self.client.prepare::<wire::File>(Call::post(["files"]).with_form(parts)).await?;
        Ok(file.body.urls.get)
    }

    /// The call that buys a run of `entry`'s model.
    fn create(&self, entry: &ModelEntry, input: Map<String, Value>, options: &SubmitOptions) -> Call {
        let model = entry.id().as_str();
        let mut body = Map::from_iter([("input".to_owned(), Value::Object(input))]);
        let mut set = |name: &str, value: Value| drop(body.insert(name.to_owned(), value));
        let call = if entry.endpoint() == "deployment" {
            Call::post(["deployments"].into_iter().chain(model.split('/')).chain(["predictions"]))
        } else if model.contains(':') {
            // With owner and name, so that a hash of somebody else's is refused.
            set("version", json!(model));
            Call::post(["predictions"])
        } else {
            Call::post(["models"].into_iter().chain(model.split('/')).chain(["predictions"]))
        };
        // Only https is taken; a 422 for the whole submit would be a high price for a hint.
        let callback = options.callback.as_ref().filter(|url| url.scheme() == "https" || self.plain_callbacks);
        if let Some(url) = callback {
            set("webhook", json!(url));
            set("webhook_events_filter", json!(["completed"]));
        }
        match self.deadline {
            Some(deadline) => call.with_header("cancel-after", format!("{}s", deadline.as_secs())),
            None => call,
        }
        .with_json(body)
    }

    async fn prediction(&self, id: &str) -> Result<wire::Prediction> {
        Ok(self.client.ask(Call::get(["predictions", id])).await?.body)
    }

    /// The entry that a prediction is of, if it says so: not all of a deployment's do.
    fn entry_of(&self, prediction: &wire::Prediction) -> Option<&ModelEntry> {
        let deployed = |entry: &&ModelEntry| {
            entry.endpoint() == "deployment" && prediction.deployment.as_deref() == Some(entry.id().as_str())
        };
        if let Some(entry) = self.models.entries().iter().find(deployed) {
            return Some(entry);
        }
        let model = prediction.model.as_deref()?;
        let exact = prediction.version.as_ref().map(|version| format!("{model}:{version}"));
        self.models.entries().iter().find(|entry| {
            let id = entry.id().as_str();
            id == model || exact.as_deref() == Some(id)
        })
    }

    fn snapshot(&self, prediction: &wire::Prediction) -> Snapshot {
        let entry = self.entry_of(prediction);
        // What is not known to cost nothing is not nothing.
        let by_time = entry.is_none_or(|entry| matches!(entry.model().price, Price::PerComputeSecond { .. }));
        let usage = predict_time(prediction.metrics.as_ref()).map(Usage::Compute);
        let end = match prediction.status.as_str() {
            "succeeded" => Snapshot::succeeded(outputs(&prediction.output, entry.map(|entry| entry.model().kind))),
            "failed" => {
                let failure = failure(prediction);
                // One that is billed by what it makes has made nothing (unverified for all of them).
                Snapshot::failed(if by_time && usage.is_some() { failure.with_bill() } else { failure })
            }
            "canceled" => Snapshot::canceled(),
            "aborted" => {
                Snapshot::failed(RunFailure::new(ErrorKind::Unavailable, "its deadline passed before it began"))
            }
            _ => return Snapshot::running(prediction.logs.as_deref().and_then(progress)),
        };
        match usage {
            Some(usage) if prediction.status != "aborted" => end.with_usage(usage),
            _ => end,
        }
    }
}

#[async_trait]
impl Provider for Replicate {
    fn id(&self) -> ProviderId {
        self.id.clone()
    }

    fn capabilities(&self) -> Capabilities {
        let capabilities = self.client.capabilities(&self.models).with_find().with_cancel().with_callback();
        capabilities.with_poll_floor(POLL_FLOOR).with_output_life(OUTPUT_LIFE)
    }

    async fn submit(&self, task: &Task, options: &SubmitOptions) -> Result<Handle> {
        let entry = self.models.wanted(ORIGIN, task)?;
        let image = match &task.spec {
            TaskSpec::Video(video) if entry.takes_image() => video.image.as_ref(),
            _ => None,
        };
        let image = match image {
            Some(image) => Some(self.client.in_time(self.image(image)).await?),
            None => None,
        };
        let input = entry.mark(entry.body(&task.spec, image, &task.extra), &options.submission);
        // Without `Prefer: wait`, it answers at once; with it, outputs may come while it still runs.
        let created = self.client.submit::<wire::Created>(self.create(entry, input, options)).await?;
        Ok(Handle::new(self.id.clone(), created.body.id.0))
    }

    async fn poll(&self, handle: &Handle) -> Result<Snapshot> {
        Ok(self.snapshot(&self.prediction(&handle.remote_id).await?))
    }

    async fn open(&self, output: &Output) -> Result<Body> {
        // The pipeline holds each kind of step to limits of its own.
        self.client.open(&output.locator, DownloadLimits::VIDEO).await
    }

    async fn cancel(&self, handle: &Handle) -> Result<()> {
        let call = Call::post(["predictions", &handle.remote_id, "cancel"]);
        let prediction: wire::Prediction = self.client.ask(call).await?.body;
        match prediction.status.as_str() {
            // One that ended is answered as it is.
            "succeeded" | "failed" | "aborted" => {
                Err(self.client.error(ErrorKind::TooLate, "the prediction has already ended"))
            }
            _ => Ok(()),
        }
    }

    async fn find(&self, submission: &Submission) -> Result<Lookup> {
        self.search(submission).await
    }

    async fn callback(&self, callback: &Callback, _: &Spool) -> Result<Handle> {
        self.verify(callback).await?;
        let prediction: wire::Prediction = serde_json::from_slice(&callback.body)
            .map_err(|_| self.client.error(ErrorKind::Protocol, "the callback cannot be understood"))?;
        Ok(Handle::new(self.id.clone(), prediction.id))
    }
}

impl fmt::Debug for Replicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replicate").field("id", &self.id).field("client", &self.client).finish_non_exhaustive()
    }
}

/// Sets a [`Replicate`] up. Only [`ReplicateBuilder::build`] fails.
#[derive(Clone, Debug)]
pub struct ReplicateBuilder {
    id: ProviderId,
    client: ClientBuilder,
    models: ModelTable,
    secrets: Vec<SecretString>,
    deadline: Option<Duration>,
}

impl ReplicateBuilder {
    shared_settings!();

    /// Verifies webhooks by this secret (`whsec_…`), and by each one that was given before: two
    /// while one replaces the other. Without any, the account's secret is asked for when the first
    /// webhook comes, and again when one does not fit.
    #[must_use]
    pub fn with_webhook_secret(mut self, secret: impl Into<SecretString>) -> Self {
        self.secrets.push(secret.into());
        self
    }

    /// Lets Replicate itself end each run after so long, counted from its creation, whatever becomes
    /// of this process (`Cancel-After`). At least 5 s. One that has not begun by then is not billed.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline.max(SHORTEST_DEADLINE));
        self
    }

    /// Builds it.
    ///
    /// # Errors
    /// `Invalid` if token, URL, proxy or secret cannot be what they should be; `Internal` if there is
    /// no TLS to be had.
    pub fn build(self) -> Result<Replicate> {
        let secrets = WebhookSecrets::new(&self.secrets)?;
        let client = self.client.build()?;
        Ok(Replicate {
            id: self.id,
            plain_callbacks: client.is_plain(),
            client,
            models: Replicate::known_models()?.with_all(self.models),
            callbacks: Arc::new(callback::Secrets::new(secrets)),
            deadline: self.deadline,
        })
    }
}

/// What Replicate means by some of its refusals.
fn judge(refusal: &Refusal) -> Verdict {
    match refusal.status {
        422 if refusal.reason().is_some_and(is_moderation) => Verdict::of(ErrorKind::Refused),
        429 if refusal.header("retry-after").is_none() => {
            let wait = refusal.reason().and_then(seconds).unwrap_or(USUAL_WAIT);
            Verdict::of(ErrorKind::RateLimited).with_wait(Some(wait))
        }
        _ => Verdict::default(),
    }
}

/// `… resets in ~30s.`, or the older `Expected available in 30 seconds.`
fn seconds(detail: &str) -> Option<Duration> {
    let (_, rest) = detail.rsplit_once(" in ")?;
    let digits: String = rest.trim_start_matches('~').chars().take_while(char::is_ascii_digit).collect();
    Some(Duration::from_secs(digits.parse().ok()?))
}

/// The code of the content filters; other codes are the machine's.
fn is_moderation(reason: &str) -> bool {
    let lower = reason.to_lowercase();
    ["(e005)", "flagged as sensitive", "nsfw content"].iter().any(|word| lower.contains(word))
}

fn failure(prediction: &wire::Prediction) -> RunFailure {
    let reason = match &prediction.error {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let kind = if is_moderation(&reason) { ErrorKind::Refused } else { ErrorKind::Unavailable };
    let mut sent = Vec::new();
    strings(&prediction.input, &mut sent);
    let reason = quotable(&reason, sent.iter().map(String::as_str));
    RunFailure::new(kind, reason.as_deref().unwrap_or("the prediction failed"))
}

/// The last `NN%|…|` of the logs, as tqdm writes it. Replicate has no other word for it.
fn progress(logs: &str) -> Option<f32> {
    let (before, _) = logs.rsplit_once("%|")?;
    let start = before.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1);
    let percent: u8 = before.get(start..)?.parse().ok()?;
    Some((f32::from(percent) / 100.0).min(1.0))
}

fn outputs(output: &Value, kind: Option<StepKind>) -> Vec<Output> {
    files(output, kind).into_iter().map(Output::new).collect()
}

#[cfg(test)]
mod tests;
