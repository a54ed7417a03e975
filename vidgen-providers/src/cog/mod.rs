//! cog: a model of one's own in a container of [cog](https://github.com/replicate/cog), on one's own
//! machine. One container is one model.
//!
//! It answers no question about a run: there is no GET. What is heard of one are its callbacks, so the
//! host needs a [`Callbacks`](vidgen_core::Callbacks) whose base URL the container can reach; and files
//! come by upload, if the container is started for it, or as text in the callback (up to 4 MiB):
//!
//! ```text
//! python -m cog.server.http --upload-url https://video.example/api/callbacks/cog/files/<token>/
//! ```
//!
//! That URL is [`Callbacks::files_url`](vidgen_core::Callbacks::files_url) of this provider's id.
//! Facts as of 2026-11, seen on cog 0.23.1 and in its source, and on 0.16 where that is said.
//!
//! ```
//! use vidgen_core::{ProviderExt, StepKind};
//! use vidgen_providers::cog::Cog;
//! use vidgen_providers::models::ModelEntry;
//!
//! // Fields of the usual names, free of charge; or whatever the model takes and costs:
//! let image = Cog::builder("http://gpu-1:5000").makes(StepKind::Image).build()?.model("cog");
//! let video = Cog::builder("http://gpu-2:5000")
//!     .with_id("cog-video")
//!     .with_model(ModelEntry::from_toml(r#"
//!         id = "wan"
//!         kind = "video"
//!         price = { per_compute_second = "0.0012", at_most = 300 }
//!         lengths = [5]
//!         fields = { prompt = "prompt", image = "first_frame", size = { name = "size", form = "*" } }
//!     "#)?)
//!     .build()?
//!     .model("wan");
//! # Ok::<(), vidgen_core::Error>(())
//! ```
//!
//! # Once
//! A submit is `PUT /predictions/{our id}`. While that id runs, the same PUT starts nothing; after its
//! end it would run again, so it is never repeated: [`Resubmit::Never`](vidgen_core::Resubmit). Where its
//! answer is lost, the callback of its beginning tells within a moment that it runs. The container has
//! no queue: with all slots taken it says 409, and is asked again later, less and less often. Tell how
//! many slots it has by [`CogBuilder::with_max_live`] (one, unless the predictor is async and
//! `COG_MAX_CONCURRENCY` says more).
//!
//! # What may be lost
//! The callback of an end is repeated for some seven minutes. Who was away for longer, and whose
//! container was killed in a run, hears no more of it: once the container is seen starting, or the
//! step's deadline has passed and a cancel found nothing to end, a free run is run again and a paid one
//! counted as billed. For that, `GET /health-check` is asked now and then while a run is waited for. (So
//! containers behind one URL must not take calls before they are set up.)
//!
//! A file is uploaded once: if our store is away just then, cog counts the run as failed. And once its
//! worker has crashed (out of memory, say), a container says 409 until somebody starts it anew: have
//! its `UNHEALTHY` noticed by whatever runs it.

mod wire;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use url::Url;
use vidgen_core::net::DownloadLimits;
use vidgen_core::{
    Body, Callback, Capabilities, Error, ErrorKind, Handle, Lookup, Output, Price, Provider, ProviderId, Result,
    RunFailure, Snapshot, Spool, StepKind, Submission, SubmitOptions, Task, TaskSpec, Usage, uploaded_name,
};

use crate::client::{
    Auth, Call, Client, ClientBuilder, Refusal, Verdict, data_url, files, image_bytes, quotable, shared_settings,
    strings,
};
use crate::models::{ModelEntry, ModelTable};

const ORIGIN: &str = "cog";
/// It runs next door, and answers out of its memory.
const POLL_FLOOR: Duration = Duration::from_secs(1);
/// What a container runs at once if nobody says otherwise.
const SLOTS: usize = 1;
/// What the server itself says of a run that failed, as far as nothing of the model's can stand in it.
const OWN_FAULTS: [&str; 2] = ["Worker crashed", "Failed to upload output"];
/// So many faults of an input are named.
const MAX_FAULTS: usize = 3;

/// A client of one container.
#[derive(Clone)]
pub struct Cog {
    id: ProviderId,
    client: Client,
    models: ModelTable,
    tokens: Vec<SecretString>,
}

impl Cog {
    /// A client of the container at `url` that runs this model.
    ///
    /// # Errors
    /// `Invalid` if it is no URL of a server.
    pub fn new(url: &str, model: ModelEntry) -> Result<Self> {
        Self::builder(url).with_model(model).build()
    }

    /// A client of the container at `url`, such as `http://gpu-1:5000`, to be set up further.
    #[must_use]
    pub fn builder(url: &str) -> CogBuilder {
        CogBuilder {
            id: ProviderId::new(ORIGIN),
            client: ClientBuilder::new(ORIGIN, url, Auth::Bearer).with_max_live(SLOTS).with_judge(judge),
            models: ModelTable::default(),
            tokens: Vec::new(),
        }
    }

    /// Models of the usual names of fields, one of a kind.
    ///
    /// # Errors
    /// Never: a test reads them.
    pub fn usual_models() -> Result<ModelTable> {
        ModelTable::from_toml(include_str!("../models/cog.toml"))
    }

    fn verify(&self, callback: &Callback) -> Result<()> {
        let sent = callback.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let is = |token: &SecretString| {
            let token = token.expose_secret().as_bytes();
            sent.is_some_and(|sent| verify_slices_are_equal(sent.as_bytes(), token).is_ok())
        };
        if self.tokens.is_empty() || self.tokens.iter().any(is) {
            return Ok(());
        }
        Err(self.client.error(ErrorKind::Unauthorized, "the callback has another token"))
    }

    /// The handle of the run that a callback tells of, with its end if it has ended.
    async fn told(&self, prediction: wire::Prediction, spool: &Spool) -> Result<Handle> {
        let ours = spool.submission().as_str();
        if prediction.id.as_deref().is_some_and(|id| id != ours) {
            return Err(self.client.error(ErrorKind::Protocol, "the callback is of another run than its URL"));
        }
        let handle = Handle::new(self.id.clone(), ours);
        let usage = prediction.predict_time().map(Usage::Compute);
        let end = match prediction.status.as_str() {
            "succeeded" => Snapshot::succeeded(self.outputs(&prediction.output, spool).await?),
            "failed" => {
                let failure = failure(&prediction);
                // One that is billed by what it makes has made nothing.
                let by_time = |entry: &ModelEntry| {
                    matches!(entry.model().price, Price::Free | Price::PerComputeSecond { .. } | Price::PerUnit { .. })
                };
                let billed = usage.is_some() && self.models.entries().iter().all(by_time);
                Snapshot::failed(if billed { failure.with_bill() } else { failure })
            }
            "canceled" => Snapshot::canceled(),
            _ => return Ok(handle),
        };
        Ok(handle.with_end(&match usage {
            Some(usage) => end.with_usage(usage),
            None => end,
        }))
    }

    /// The files of an output: those that were uploaded to us, those that are in it as text, which are
    /// kept now, and those that lie elsewhere.
    async fn outputs(&self, output: &Value, spool: &Spool) -> Result<Vec<Output>> {
        let mut outputs = Vec::new();
        for (n, file) in files(output, self.kind()).into_iter().enumerate() {
            if file.starts_with("data:") {
                let body = self.client.open(&file, DownloadLimits::VIDEO).await?;
                outputs.push(spool.put(&format!("inline {n}"), body).await?);
                continue;
            }
            // It is known by its name and not by its place: whatever stands before the last part is the
            // container's word.
            let uploaded = match Url::parse(&file).ok().and_then(|url| uploaded_name(&url)) {
                Some(name) => spool.find(&name).await?,
                None => None,
            };
            outputs.push(uploaded.unwrap_or_else(|| Output::new(file)));
        }
        Ok(outputs)
    }

    /// The kind of what the container makes, if it is one.
    fn kind(&self) -> Option<StepKind> {
        let mut kinds = self.models.entries().iter().map(|entry| entry.model().kind);
        let first = kinds.next()?;
        kinds.all(|kind| kind == first).then_some(first)
    }
}

#[async_trait]
impl Provider for Cog {
    fn id(&self) -> ProviderId {
        self.id.clone()
    }

    fn capabilities(&self) -> Capabilities {
        self.client.capabilities(&self.models).with_cancel().with_only_callback().with_poll_floor(POLL_FLOOR)
    }

    async fn submit(&self, task: &Task, options: &SubmitOptions) -> Result<Handle> {
        let entry = self.models.wanted(ORIGIN, task)?;
        let Some(callback) = &options.callback else {
            // Not `Internal`, which would leave open whether something was bought.
            let message = "it can only be heard of by callbacks, and the host has configured none";
            return Err(self.client.error(ErrorKind::Unsupported, message));
        };
        let image = match &task.spec {
            TaskSpec::Video(video) if entry.takes_image() => video.image.as_ref(),
            _ => None,
        };
        let image = match image {
            Some(image) => {
                let bytes = self.client.in_time(image_bytes(image)).await?;
                Some(data_url(image.info.media_type.mime(), &bytes))
            }
            None => None,
        };
        let id = options.submission.as_str();
        let input = entry.mark(entry.body(&task.spec, image, &task.extra), &options.submission);
        let body = json!({ "input": input, "webhook": callback, "webhook_events_filter": ["start", "completed"] });
        // Any other spelling of it would hold the connection for the whole run, and cancel the run when
        // that breaks.
        let call = Call::put(["predictions", id]).with_header("prefer", "respond-async").with_json(body);
        let accepted = self.client.submit::<wire::Accepted>(call).await?.body;
        if accepted.id.is_some_and(|other| other != id) {
            return Err(self.client.lost("the answer is of another run"));
        }
        Ok(Handle::new(self.id.clone(), id))
    }

    async fn poll(&self, handle: &Handle) -> Result<Snapshot> {
        if let Some(end) = handle.end() {
            return Ok(end);
        }
        match self.client.ask::<wire::Health>(Call::get(["health-check"])).await {
            // It has been started since, and knows of no run.
            Ok(health) if health.body.status == "STARTING" => {
                Err(self.client.error(ErrorKind::NotFound, "the container was started anew, and its runs are gone"))
            }
            // Whoever hides this route says nothing of the run.
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(Snapshot::running(None)),
        }
    }

    async fn open(&self, output: &Output) -> Result<Body> {
        // The pipeline holds each kind of step to limits of its own.
        self.client.open(&output.locator, DownloadLimits::VIDEO).await
    }

    async fn cancel(&self, handle: &Handle) -> Result<()> {
        let late = || self.client.error(ErrorKind::TooLate, "there is no such run any more");
        if handle.has_end() {
            return Err(late());
        }
        let call = Call::post(["predictions", &handle.remote_id, "cancel"]);
        match self.client.tell(call).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(late()),
            Err(error) => Err(error),
        }
    }

    async fn find(&self, _: &Submission) -> Result<Lookup> {
        Err(self.client.error(ErrorKind::Unsupported, "nobody can be asked for a run"))
    }

    async fn callback(&self, callback: &Callback, spool: &Spool) -> Result<Handle> {
        self.verify(callback)?;
        let prediction = serde_json::from_slice(&callback.body)
            .map_err(|_| self.client.error(ErrorKind::Protocol, "the callback cannot be understood"))?;
        self.told(prediction, spool).await
    }
}

impl fmt::Debug for Cog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cog").field("id", &self.id).field("client", &self.client).finish_non_exhaustive()
    }
}

/// Sets a [`Cog`] up. Only [`CogBuilder::build`] fails.
#[derive(Clone, Debug)]
pub struct CogBuilder {
    id: ProviderId,
    client: ClientBuilder,
    models: ModelTable,
    tokens: Vec<SecretString>,
}

impl CogBuilder {
    shared_settings!();

    /// Says that it makes images, videos or speech, for free, by a model of the name `cog` that has
    /// fields of the usual names: `prompt`, `negative_prompt`, `image`, `width`, `height`, `duration`,
    /// `fps`, `seed`; `text`, `voice`. Those that the model does not have, the container leaves out.
    #[must_use]
    pub fn makes(mut self, kind: StepKind) -> Self {
        let usual = Cog::usual_models().unwrap_or_default();
        if let Some(entry) = usual.entries().iter().find(|entry| entry.model().kind == kind) {
            self.models = self.models.with(entry.clone());
        }
        self
    }

    /// Sends this key as a bearer token, for a proxy that stands before the container: cog itself
    /// asks nobody who he is.
    #[must_use]
    pub fn with_api_key(mut self, key: impl Into<SecretString>) -> Self {
        self.client = self.client.with_api_key(key.into());
        self
    }

    /// Believes callbacks with this token only (`WEBHOOK_AUTH_TOKEN` of the container), or with one
    /// that was given before: two while one replaces the other. Without any, the signature in the
    /// callback's URL is what is believed.
    #[must_use]
    pub fn with_callback_token(mut self, token: impl Into<SecretString>) -> Self {
        self.tokens.push(token.into());
        self
    }

    /// Builds it.
    ///
    /// # Errors
    /// `Invalid` if URL, proxy, key or token cannot be what they should be, or there is no model;
    /// `Internal` if there is no TLS to be had.
    pub fn build(self) -> Result<Cog> {
        if self.models.entries().is_empty() {
            return Err(Error::invalid_field("models", "must say what the container makes"));
        }
        if self.tokens.iter().any(|token| token.expose_secret().trim().is_empty()) {
            return Err(Error::invalid_field("callback_token", "must not be empty"));
        }
        Ok(Cog { id: self.id, client: self.client.build()?, models: self.models, tokens: self.tokens })
    }
}

/// What cog means by some of its refusals.
fn judge(refusal: &Refusal) -> Verdict {
    // A gateway has other words for its 503, and may have passed the request on.
    let own = refusal.text(&["status"]) == Some("failed") && refusal.text(&["error"]).is_some();
    match refusal.status {
        // Every slot is taken. For how long is not said, so that the pipeline waits longer each time.
        409 => Verdict::of(ErrorKind::RateLimited),
        // Its setup goes on, or has failed.
        503 if own => Verdict::of(ErrorKind::Unavailable),
        // Whoever answers that has no such route, and starts nothing.
        405 => Verdict::of(ErrorKind::NotFound),
        422 => faults(&refusal.body).map_or_else(Verdict::default, |faults| Verdict::default().with_reason(faults)),
        _ => Verdict::default(),
    }
}

/// `seconds: 99 is greater than the maximum of 60`, by the inputs' own names.
fn faults(body: &Value) -> Option<String> {
    let faults: Vec<String> = body.get("detail")?.as_array()?.iter().take(MAX_FAULTS).filter_map(fault).collect();
    Some(faults.join("; ")).filter(|faults| !faults.is_empty())
}

fn fault(fault: &Value) -> Option<String> {
    let place = fault.get("loc")?.as_array()?.last()?.as_str()?;
    Some(format!("{place}: {}", fault.get("msg")?.as_str()?))
}

/// Why a run failed. Its text is a Python exception's, which may hold the prompt; only the older form
/// tells what was asked, and so what must not be shown. Else the exception's name has to do.
fn failure(prediction: &wire::Prediction) -> RunFailure {
    let text = prediction.error.as_str().unwrap_or_default();
    if text.starts_with("Input validation error") {
        return RunFailure::new(ErrorKind::Unsupported, "the model does not take this input");
    }
    let mut text = text.trim();
    while let Some(rest) = text.strip_prefix("Prediction failed:") {
        text = rest.trim_start();
    }
    if let Some(reason) = OWN_FAULTS.iter().find(|fault| text.starts_with(*fault)) {
        return RunFailure::new(ErrorKind::Unavailable, reason);
    }
    let mut sent = Vec::new();
    strings(&prediction.input, &mut sent);
    let known = !sent.is_empty() && !text.is_empty();
    let reason = match known.then(|| quotable(text, sent.iter().map(String::as_str))).flatten() {
        Some(reason) => reason,
        None => match exception(text) {
            Some(name) => format!("the model raised {name}"),
            None => "the model failed".to_owned(),
        },
    };
    RunFailure::new(ErrorKind::Unavailable, &reason)
}

/// `torch.cuda.OutOfMemoryError: CUDA …` → its name.
fn exception(text: &str) -> Option<&str> {
    let name = text.split(':').next()?;
    let word = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.');
    let is = ["Error", "Exception", "Interrupt", "Exit", "Warning"].iter().any(|end| name.ends_with(end));
    (word && is).then_some(name)
}

#[cfg(test)]
mod tests;
