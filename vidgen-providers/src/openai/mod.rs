//! OpenAI's API, at OpenAI (images and speech) and at everybody who speaks it (videos, too).
//!
//! OpenAI's own videos API was shut down on 2026-09-24, but its shape lives on: vLLM-Omni, SGLang, the
//! proxy of LiteLLM and other gateways serve it. So images and speech go to `api.openai.com` unless a
//! base URL is set, and videos need one. Facts as of 2026-11, from the official clients (PyPI `openai`
//! 3.54.0, npm `openai` 6.49.0), OpenAI's published OpenAPI document, and the servers' own source.
//!
//! ```
//! use vidgen_core::ProviderExt;
//! use vidgen_providers::openai::{Dialect, OpenAi};
//!
//! let openai = OpenAi::new("sk-proj-a1b2c3")?;
//! let image = openai.clone().model("gpt-image-2");
//! let speech = openai.model("gpt-4o-mini-tts");
//!
//! let server = OpenAi::server("http://10.0.0.5:8000/v1").with_dialect(Dialect::VllmOmni).with_id("gpu").build()?;
//! let video = server.model("Wan-AI/Wan2.2-TI2V-5B-Diffusers");
//! # Ok::<(), vidgen_core::Error>(())
//! ```
//!
//! # Models
//! OpenAI's and LiteLLM's are those of [`Dialect::known_models`] and those that are added. A server of
//! one's own has what it was started with: where models are added, there are no others. Any model that
//! is not in a table is added with [`OpenAiBuilder::with_model`]; a gateway's video model is such an one:
//!
//! ```
//! # use vidgen_providers::openai::{Dialect, OpenAi};
//! use vidgen_providers::models::ModelEntry;
//!
//! let entry = ModelEntry::from_toml(r#"
//!     id = "our-video-model"                 # as the gateway calls it
//!     kind = "video"
//!     price = { per_second = "0.10" }
//!     lengths = [4, 8, 12]
//!     resolutions = ["720p"]
//!     aspect_ratios = ["16:9", "9:16"]
//!     [fields]
//!     prompt = "prompt"
//!     image = "input_reference"
//!     size = { name = "size", form = "x" }
//!     duration = { name = "seconds", form = "text" }
//! "#)?;
//! let gateway = OpenAi::builder("sk-proj-a1b2c3").with_base_url("https://llm.example/v1").with_dialect(Dialect::LiteLlm);
//! let gateway = gateway.with_model(entry).build()?;
//! # Ok::<(), vidgen_core::Error>(())
//! ```
//!
//! # Lost answers
//! Nobody who speaks this API takes a key that would make a second submit harmless: none is ever sent.
//! Our id goes out as `X-Client-Request-Id`, which OpenAI's API overview has for its support to search
//! by, and which no answer and no list repeats. `GET /videos` lists prompts, models and times of creation, and a
//! submission knows no prompt: a run of the right model and time may as well be another job's, even
//! another tenant's. So there is no [`Provider::find`]: a video whose answer was lost is for its
//! operator to look for. Images and speech are the answer itself, and are lost with it.
//!
//! # Money
//! Nobody states a cost. Images state their tokens, which are counted in thousands as units of the
//! price; speech and videos state nothing. Whether a failed video is billed is unverified; it is taken
//! for not billed, as that of one's own server is.
//!
//! # Jobs that are gone
//! vLLM-Omni and SGLang keep jobs in memory: after a restart they know none ([`ErrorKind::NotFound`]).
//! vLLM-Omni alone can stop a job, and forgets it then. Whoever stopped it remembers that as long as the
//! process lives; afterwards such a job is one that is gone.

mod dialect;
mod image;
mod refusals;
mod speech;
mod video;
mod wire;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;
use serde_json::{Map, Value, json};
use vidgen_core::{
    Body, Callback, Capabilities, Error, ErrorKind, Handle, Lookup, Output, Provider, ProviderId, Result, Snapshot,
    Spool, StepKind, Submission, SubmitOptions, Task, TaskSpec,
};

use crate::client::{Auth, Call, Client, ClientBuilder, shared_settings};
use crate::models::{ModelEntry, ModelTable};

pub use dialect::Dialect;

const ORIGIN: &str = "openai";
const BASE_URL: &str = "https://api.openai.com/v1";
/// The clients' own helper polls every second, unless it is told otherwise.
const POLL_FLOOR: Duration = Duration::from_secs(1);
/// A picture is its submit's answer, and can take minutes to make.
const IMAGE_TIMEOUT: Duration = Duration::from_mins(5);
/// 4096 characters are five minutes of speech, which is made faster than it is spoken.
const SPEECH_TIMEOUT: Duration = Duration::from_mins(2);
/// A job is accepted at once; the first frame that goes with it may be 20 MiB.
const VIDEO_TIMEOUT: Duration = Duration::from_mins(1);
/// OpenAI keeps what it made for an hour (unverified); what a gateway keeps depends on who is behind it.
const OUTPUT_LIFE: Duration = Duration::from_hours(1);
/// So many jobs that were stopped are remembered: more than are stopped while they are followed.
const STOPPED: usize = 1024;

/// A client of OpenAI, or of a server that speaks its API.
#[derive(Clone)]
pub struct OpenAi {
    id: ProviderId,
    client: Client,
    models: ModelTable,
    dialect: Dialect,
    json: bool,
    /// The jobs that this process has stopped, for remotes that forget them then.
    stopped: Arc<Mutex<VecDeque<String>>>,
}

impl OpenAi {
    /// A client of OpenAI itself with this key (`sk-…`) and the well-known models.
    ///
    /// # Errors
    /// `Invalid` if it cannot be a key.
    pub fn new(key: impl Into<SecretString>) -> Result<Self> {
        Self::builder(key).build()
    }

    /// A client with this key, to be set up further.
    pub fn builder(key: impl Into<SecretString>) -> OpenAiBuilder {
        let mut builder = Self::server(BASE_URL);
        builder.client = builder.client.with_api_key(key.into());
        builder
    }

    /// A client of a server that wants no key, to be set up further.
    pub fn server(base_url: impl Into<String>) -> OpenAiBuilder {
        OpenAiBuilder {
            id: ProviderId::new(ORIGIN),
            client: ClientBuilder::new(ORIGIN, base_url, Auth::Bearer).with_judge(refusals::judge),
            models: ModelTable::default(),
            dialect: Dialect::default(),
            json: false,
        }
    }

    /// Uses another key from now on, in all clones: keys are rotated without a restart.
    ///
    /// # Errors
    /// `Invalid` if it cannot be a key.
    pub fn rotate_key(&self, key: impl Into<SecretString>) -> Result<()> {
        self.client.rotate(&key.into())
    }

    fn is_openai(&self) -> bool {
        self.client.own(BASE_URL).is_some()
    }

    /// The entry for a task.
    fn wanted(&self, task: &Task) -> Result<&ModelEntry> {
        self.models.wanted(ORIGIN, task).map_err(|e| match task.spec {
            TaskSpec::Video(_) if self.is_openai() => self.client.error(ErrorKind::Unsupported, NO_VIDEOS),
            _ => e,
        })
    }

    /// What a task's request says, whatever its form.
    fn fields(&self, entry: &ModelEntry, task: &Task, options: &SubmitOptions) -> Map<String, Value> {
        let mut fields = entry.mark(entry.body(&task.spec, None, &task.extra), &options.submission);
        fields.entry("model").or_insert_with(|| json!(entry.id().as_str()));
        fields
    }

    fn unsupported(&self, what: impl Into<String>) -> Error {
        self.client.error(ErrorKind::Unsupported, what)
    }
}

const NO_VIDEOS: &str = "OpenAI's own videos API ended on 2026-09-24: set the base URL of a server that has one";

/// Sends our id along: OpenAI keeps it in its logs.
fn tagged(call: Call, options: &SubmitOptions) -> Call {
    call.with_header("x-client-request-id", options.submission.as_str())
}

#[async_trait]
impl Provider for OpenAi {
    fn id(&self) -> ProviderId {
        self.id.clone()
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.client.capabilities(&self.models).with_poll_floor(POLL_FLOOR);
        if self.models.entries().iter().any(|entry| entry.model().kind != StepKind::Video) {
            capabilities = capabilities.with_spools();
        }
        if self.dialect.stops() {
            capabilities = capabilities.with_cancel();
        }
        if self.dialect.is_own_server() { capabilities } else { capabilities.with_output_life(OUTPUT_LIFE) }
    }

    async fn submit(&self, task: &Task, options: &SubmitOptions) -> Result<Handle> {
        let entry = self.wanted(task)?;
        let fields = self.fields(entry, task, options);
        match &task.spec {
            TaskSpec::Video(video) => self.submit_video(entry, fields, video.image.as_ref(), options).await,
            TaskSpec::Image(_) => self.submit_image(fields, options).await,
            TaskSpec::Speech(_) => self.submit_speech(fields, options).await,
            _ => Err(self.unsupported("it makes images, videos and speech")),
        }
    }

    async fn poll(&self, handle: &Handle) -> Result<Snapshot> {
        match handle.spooled_end() {
            Some(end) => Ok(end),
            None => self.look(&handle.remote_id).await,
        }
    }

    async fn open(&self, output: &Output) -> Result<Body> {
        self.open_video(&output.locator).await
    }

    async fn cancel(&self, handle: &Handle) -> Result<()> {
        if !self.dialect.stops() {
            return Err(self.unsupported("a run cannot be stopped"));
        }
        if handle.spooled_end().is_some() {
            return Err(self.client.error(ErrorKind::TooLate, "it was made at once"));
        }
        self.stop(&handle.remote_id).await
    }

    async fn find(&self, _: &Submission) -> Result<Lookup> {
        Err(self.unsupported("no list of its tells one submission from another"))
    }

    async fn callback(&self, _: &Callback, _: &Spool) -> Result<Handle> {
        Err(self.unsupported("it does not call back"))
    }
}

impl OpenAi {
    fn remember_stopped(&self, id: &str) {
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        if stopped.len() >= STOPPED {
            stopped.pop_front();
        }
        stopped.push_back(id.to_owned());
    }

    fn has_stopped(&self, id: &str) -> bool {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|stopped| stopped == id)
    }
}

impl fmt::Debug for OpenAi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenAi")
            .field("id", &self.id)
            .field("client", &self.client)
            .field("dialect", &self.dialect)
            .finish_non_exhaustive()
    }
}

/// Sets an [`OpenAi`] up. Only [`OpenAiBuilder::build`] fails.
#[derive(Clone, Debug)]
pub struct OpenAiBuilder {
    id: ProviderId,
    client: ClientBuilder,
    models: ModelTable,
    dialect: Dialect,
    json: bool,
}

impl OpenAiBuilder {
    shared_settings!();

    /// Says who it is that speaks the API; OpenAI's own way is spoken by default.
    #[must_use]
    pub fn with_dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// Sends videos as JSON, with the first frame as a data URL, instead of the form that the official
    /// clients send. For gateways that take nothing else; vLLM-Omni does not take it.
    #[must_use]
    pub fn with_json(mut self) -> Self {
        self.json = true;
        self
    }

    /// Builds it.
    ///
    /// # Errors
    /// `Invalid` if key, URL or proxy cannot be what they should be, if there are models for videos but
    /// no base URL of a server that makes them, or if that server takes no JSON; `Internal` if there is
    /// no TLS to be had.
    pub fn build(self) -> Result<OpenAi> {
        if self.json && self.dialect == Dialect::VllmOmni {
            return Err(Error::invalid_field("json", "vLLM-Omni takes videos as forms only"));
        }
        let known = self.dialect.known_models()?;
        let models = match self.dialect.is_own_server() && !self.models.entries().is_empty() {
            true => self.models,
            false => known.with_all(self.models),
        };
        let has = |kind| models.entries().iter().find(|entry| entry.model().kind == kind);
        let usual = match (has(StepKind::Image), has(StepKind::Speech)) {
            (Some(_), _) => IMAGE_TIMEOUT,
            (None, Some(_)) => SPEECH_TIMEOUT,
            (None, None) => VIDEO_TIMEOUT,
        };
        let openai = OpenAi {
            id: self.id,
            client: self.client.with_usual_submit_timeout(usual).build()?,
            models: models.clone(),
            dialect: self.dialect,
            json: self.json,
            stopped: Arc::default(),
        };
        match has(StepKind::Video) {
            Some(entry) if openai.is_openai() => {
                Err(Error::invalid_field("base_url", format!("{NO_VIDEOS} (for model {})", entry.id())))
            }
            _ => Ok(openai),
        }
    }
}
