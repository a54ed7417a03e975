//! Runway: its own models and other makers', behind one task API.
//!
//! A task's id is all that it takes to poll it. Output URLs die after a day, and each look at the
//! task signs fresh ones. Facts as of 2026-11, from the official clients (PyPI `runwayml` 5.24.0, npm
//! `@runwayml/sdk` 4.20.1) and docs.dev.runwayml.com.
//!
//! ```
//! use vidgen_core::ProviderExt;
//! use vidgen_providers::models::ModelEntry;
//! use vidgen_providers::runway::Runway;
//!
//! let kling = ModelEntry::from_toml(r#"
//!     id = "kling3.0_standard"
//!     kind = "video"
//!     price = { per_unit = "0.01", units_per_second = 20 }
//!     lengths = [5, 10]
//!     aspect_ratios = ["16:9", "9:16"]
//!     resolutions = ["720p"]
//!     fields = { prompt = "promptText", image = "promptImage", size = { name = "ratio", form = ":" }, duration = "duration" }
//! "#)?;
//! let runway = Runway::builder("key_0123").with_model(kling).build()?;
//! let route = runway.model("kling3.0_standard");
//! # Ok::<(), vidgen_core::Error>(())
//! ```
//!
//! # Lost answers
//! Runway takes neither a key nor a reference with a submit, has no list of tasks, and does not call
//! back: where the answer to a submit is lost, nobody can tell whether a task was bought, and the step
//! is in doubt. Its own usage page shows tasks, for people.
//!
//! # Canceling
//! The call that cancels a live task deletes one that has ended, with its output. So it is looked at
//! first, and what has ended is left alone. Between that look and the call (or a repetition of it,
//! where its answer was lost) a task may still end: its output is then gone, and its price stays. That
//! is what whoever cancels asked for; the output was not wanted. Whether a task can be looked at after
//! it was canceled is unverified (the documentation says both): if not, this process remembers that it
//! was, and another one takes it for lost, at the price of the table.
//!
//! # Money
//! The end of a task states the credits that it took, failed or not; those price it. A task that waits
//! for its turn (`THROTTLED`) is accepted, and starts by itself.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;
use serde_json::json;
use vidgen_core::net::DownloadLimits;
use vidgen_core::{
    Body, Callback, Capabilities, Error, ErrorKind, Handle, Lookup, MediaInput, Output, Provider, ProviderId, Result,
    RunFailure, Snapshot, Spool, StepKind, Submission, SubmitOptions, Task, TaskSpec, Usage,
};

use crate::client::{
    Auth, Call, Client, ClientBuilder, Part, Refusal, Verdict, data_url, image_bytes, milli, quotable, shared_settings,
};
use crate::models::{ModelEntry, ModelTable};

const ORIGIN: &str = "runway";
const BASE_URL: &str = "https://api.dev.runwayml.com/v1";
/// The version of the API that this file speaks.
const VERSION: &str = "2024-11-06";
/// The longest data URI that it takes.
const MAX_INLINE: usize = 5 * 1000 * 1000;
/// For how long a link to an image has to work: a task may wait for its turn.
const LINK_LIFE: Duration = Duration::from_secs(24 * 3600);
/// As its documentation asks.
const POLL_FLOOR: Duration = Duration::from_secs(5);
/// Outputs die after 24 to 48 hours.
const OUTPUT_LIFE: Duration = Duration::from_secs(24 * 3600);
/// What to wait if a submit is refused for a limit: what is too much at once is accepted and waits,
/// so it is the day's (24 hours, rolling) that is reached.
const DAILY_WAIT: Duration = Duration::from_secs(600);
/// So many canceled tasks are remembered: more are not live in one process.
const REMEMBERED: usize = 4096;

/// A client of Runway.
#[derive(Clone)]
pub struct Runway {
    id: ProviderId,
    client: Client,
    models: ModelTable,
    /// Tasks that were canceled by this process, the oldest first.
    canceled: Arc<Mutex<VecDeque<String>>>,
}

impl Runway {
    /// A client with this API key (`key_…`) and the well-known models.
    ///
    /// # Errors
    /// `Invalid` if it cannot be a key.
    pub fn new(key: impl Into<SecretString>) -> Result<Self> {
        Self::builder(key).build()
    }

    /// A client to be set up further.
    pub fn builder(key: impl Into<SecretString>) -> RunwayBuilder {
        let client = ClientBuilder::new(ORIGIN, BASE_URL, Auth::Bearer)
            .with_api_key(key.into())
            .with_header("x-runway-version", VERSION)
            .with_judge(judge);
        RunwayBuilder { id: ProviderId::new(ORIGIN), client, models: ModelTable::default() }
    }

    /// The well-known models, as they are built in.
    ///
    /// # Errors
    /// Never: a test reads it.
    pub fn known_models() -> Result<ModelTable> {
        ModelTable::from_toml(include_str!("models/runway.toml"))
    }

    /// Uses another key from now on, in all clones: keys are rotated without a restart.
    ///
    /// # Errors
    /// `Invalid` if it cannot be a key.
    pub fn rotate_key(&self, key: impl Into<SecretString>) -> Result<()> {
        self.client.rotate(&key.into())
    }

    /// Where an image can be had: the host's own link, itself if it is small, else an upload of
    /// Runway's, which vanishes by itself.
    async fn image(&self, image: &MediaInput) -> Result<String> {
        if let Some(link) = self.client.public_link(image, LINK_LIFE).await {
            return Ok(link);
        }
        let media_type = image.info.media_type;
        let bytes = image_bytes(image).await?;
        // Four characters for three bytes, and the type before them.
        if bytes.len() / 3 * 4 + 64 <= MAX_INLINE {
            return Ok(data_url(media_type.mime(), &bytes));
        }
        let name = format!("image.{}", media_type.extension());
        let begin = Call::post(["uploads"]).with_json(json!({ "filename": name, "type": "ephemeral" }));
        let upload: wire::Upload = self.client.prepare(begin).await?.body;
        // As S3 wants it: its policy first, the file last, and no key of ours.
        let fields = upload.fields.into_iter().map(|(name, value)| Part::text(name, value));
        let form = fields.chain([Part::file("file", name, media_type.mime(), bytes)]);
        self.client.upload(Call::link(upload.upload_url).with_method(reqwest::Method::POST).with_form(form)).await?;
        Ok(upload.runway_uri)
    }

    async fn task(&self, id: &str) -> Result<wire::Task> {
        Ok(self.client.ask(Call::get(["tasks", id])).await?.body)
    }

    fn canceled(&self) -> std::sync::MutexGuard<'_, VecDeque<String>> {
        self.canceled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember_canceled(&self, id: &str) {
        let mut canceled = self.canceled();
        if canceled.len() >= REMEMBERED {
            canceled.pop_front();
        }
        canceled.push_back(id.to_owned());
    }

    fn unsupported(&self, what: &str) -> Error {
        self.client.error(ErrorKind::Unsupported, what)
    }
}

#[async_trait]
impl Provider for Runway {
    fn id(&self) -> ProviderId {
        self.id.clone()
    }

    fn capabilities(&self) -> Capabilities {
        let capabilities = self.client.capabilities(&self.models).with_cancel();
        capabilities.with_poll_floor(POLL_FLOOR).with_output_life(OUTPUT_LIFE)
    }

    async fn submit(&self, task: &Task, options: &SubmitOptions) -> Result<Handle> {
        // Nothing of the submission goes out: there is no place for it.
        let _ = options;
        let entry = self.models.wanted(ORIGIN, task)?;
        let spec = fitting(entry, &task.spec)?;
        let image = match &spec {
            TaskSpec::Video(video) if entry.takes_image() => video.image.as_ref(),
            _ => None,
        };
        let path = match (entry.endpoint(), spec.kind()) {
            ("", StepKind::Image) => "text_to_image",
            ("", StepKind::Speech) => "text_to_speech",
            ("", _) if image.is_some() => "image_to_video",
            ("", _) => "text_to_video",
            (endpoint, _) => endpoint,
        };
        let image = match image {
            Some(image) => Some(self.client.in_time(self.image(image)).await?),
            None => None,
        };
        let mut body = entry.body(&spec, image, &task.extra);
        body.entry("model").or_insert_with(|| json!(entry.id()));
        let created = self.client.submit::<wire::Created>(Call::post([path]).with_json(body)).await;
        let created = created.map_err(|error| match (error.kind(), error.retry_after()) {
            (ErrorKind::RateLimited, None) => error.with_retry_after(DAILY_WAIT),
            _ => error,
        })?;
        Ok(Handle::new(self.id.clone(), created.body.id.0))
    }

    async fn poll(&self, handle: &Handle) -> Result<Snapshot> {
        match self.task(&handle.remote_id).await {
            Ok(task) => Ok(snapshot(task)),
            // What was canceled may not be shown any more.
            Err(error) if error.kind() == ErrorKind::NotFound && self.canceled().contains(&handle.remote_id) => {
                Ok(Snapshot::canceled())
            }
            Err(error) => Err(error),
        }
    }

    async fn open(&self, output: &Output) -> Result<Body> {
        // The pipeline holds each kind of step to limits of its own.
        self.client.open(&output.locator, DownloadLimits::VIDEO).await
    }

    async fn cancel(&self, handle: &Handle) -> Result<()> {
        let id = handle.remote_id.as_str();
        match self.task(id).await?.status.as_str() {
            // The same call would delete it, with what was paid for.
            "SUCCEEDED" | "FAILED" => {
                return Err(self.client.error(ErrorKind::TooLate, "the task has already ended"));
            }
            "CANCELLED" => return Ok(()),
            _ => {}
        }
        match self.client.tell(Call::delete(["tasks", id])).await {
            // It was there a moment ago: a first try whose answer was lost has done it.
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => self.remember_canceled(id),
        }
        Ok(())
    }

    async fn find(&self, _: &Submission) -> Result<Lookup> {
        Err(self.unsupported("it has no list of tasks"))
    }

    async fn callback(&self, _: &Callback, _: &Spool) -> Result<Handle> {
        Err(self.unsupported("it does not call back"))
    }
}

impl fmt::Debug for Runway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runway").field("id", &self.id).field("client", &self.client).finish_non_exhaustive()
    }
}

/// Sets a [`Runway`] up. Only [`RunwayBuilder::build`] fails.
#[derive(Clone, Debug)]
pub struct RunwayBuilder {
    id: ProviderId,
    client: ClientBuilder,
    models: ModelTable,
}

impl RunwayBuilder {
    shared_settings!();

    /// Builds it.
    ///
    /// # Errors
    /// `Invalid` if key, URL or proxy cannot be what they should be; `Internal` if there is no TLS to
    /// be had.
    pub fn build(self) -> Result<Runway> {
        Ok(Runway {
            id: self.id,
            client: self.client.build()?,
            models: Runway::known_models()?.with_all(self.models),
            canceled: Arc::default(),
        })
    }
}

/// The task in a text that the model takes, which counts it in UTF-16 code units: where it is too
/// long, without its style.
fn fitting(entry: &ModelEntry, spec: &TaskSpec) -> Result<TaskSpec> {
    let Some(max) = entry.model().max_text else { return Ok(spec.clone()) };
    let mut plain = spec.clone();
    let (prompt, style) = match &mut plain {
        TaskSpec::Image(task) => (&task.prompt, &mut task.style),
        TaskSpec::Video(task) => (&task.prompt, &mut task.style),
        _ => return Ok(plain),
    };
    let units = |text: &str| text.encode_utf16().count();
    let length = units(prompt);
    if length > max {
        let message = format!("must be at most {max} UTF-16 code units for model {}", entry.id());
        return Err(Error::invalid_field("prompt", message));
    }
    // With what stands between them.
    let with_style = style.as_deref().map_or(0, |style| length + 2 + units(style));
    if with_style > max {
        *style = None;
    }
    Ok(plain)
}

fn snapshot(task: wire::Task) -> Snapshot {
    let credits = task.cost.and_then(|cost| milli(cost.credits));
    let end = match task.status.as_str() {
        "SUCCEEDED" => Snapshot::succeeded(task.output.unwrap_or_default().into_iter().map(Output::new).collect()),
        "FAILED" => {
            let failure = failure(task.failure_code.as_deref().unwrap_or_default(), task.failure.as_deref());
            // Fully refunded tasks report 0. What is not said is never zero.
            Snapshot::failed(if credits == Some(0) { failure } else { failure.with_bill() })
        }
        "CANCELLED" => Snapshot::canceled(),
        // PENDING, THROTTLED (accepted, and starts by itself), RUNNING, and what is yet to come.
        _ => return Snapshot::running(task.progress.map(|done| done.clamp(0.0, 1.0))),
    };
    match credits {
        Some(credits) => end.with_usage(Usage::MilliUnits(credits)),
        None => end,
    }
}

fn failure(code: &str, reason: Option<&str>) -> RunFailure {
    let kind = if code.starts_with("SAFETY.") || code.contains(".SAFETY.") {
        // What comes after it is a guess of Runway's at the culprit, and not for users.
        return RunFailure::new(ErrorKind::Refused, "the content was refused");
    } else if code.starts_with("ASSET.INVALID") {
        ErrorKind::Invalid
    } else {
        // Of INTERNAL.BAD_OUTPUT it says itself that another try is worth it; of the rest, nothing.
        ErrorKind::Unavailable
    };
    match reason.and_then(|reason| quotable(reason, [])) {
        Some(reason) => RunFailure::new(kind, &format!("the task failed: {reason}")),
        None => RunFailure::new(kind, "the task failed"),
    }
}

/// What Runway means by some of its refusals.
fn judge(refusal: &Refusal) -> Verdict {
    match refusal.status {
        // Unverified, and from memory: an empty account is a bad request.
        400 if refusal.reason().is_some_and(|reason| reason.to_lowercase().contains("enough credits")) => {
            Verdict::of(ErrorKind::OverBudget)
        }
        _ => Verdict::default(),
    }
}

/// What it sends; only the fields that are read.
mod wire {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use crate::client::{RunId, if_fits};

    /// What a create answers: an id, or nobody knows what was bought.
    #[derive(Deserialize)]
    pub(super) struct Created {
        pub(super) id: RunId,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct Task {
        pub(super) status: String,
        #[serde(default, deserialize_with = "if_fits")]
        pub(super) progress: Option<f32>,
        #[serde(default)]
        pub(super) output: Option<Vec<String>>,
        #[serde(default, deserialize_with = "if_fits")]
        pub(super) failure: Option<String>,
        #[serde(default, deserialize_with = "if_fits")]
        pub(super) failure_code: Option<String>,
        #[serde(default, deserialize_with = "if_fits")]
        pub(super) cost: Option<Cost>,
    }

    #[derive(Deserialize)]
    pub(super) struct Cost {
        pub(super) credits: f64,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct Upload {
        pub(super) upload_url: String,
        pub(super) fields: BTreeMap<String, String>,
        pub(super) runway_uri: String,
    }
}
