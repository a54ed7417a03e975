//! ComfyUI, the engine that people run on their own GPU: images and videos from workflows of the
//! user's own. Facts as of 2026-11: v0.3.64 was run, the source of 2026 was read; older ones were
//! not looked at.
//!
//! Each [`Workflow`] is a model. The first of a kind is the default for that kind.
//!
//! # What is known of a run
//! The server lets the caller choose a run's id. Ours follows from the submission, so that one whose
//! answer was lost is looked for under its own name: in the queue, then in the history, which the
//! server changes in one step. So [`find`](Provider::find) tells exactly. But the server knows no
//! duplicates: the same id sent twice runs twice. Hence
//! [`Resubmit::Never`](vidgen_core::Resubmit::Never): a lost submission is looked for, and sent again
//! only when it is not there, rather than run twice on a GPU that has better things to do. Where
//! nobody can tell, a workflow that is free of charge is run again, as
//! [`OnUnknown`](vidgen_core::OnUnknown) has it.
//!
//! Queue and history live in the server's memory. After it restarts, or its history is cleared by
//! hand, it knows nothing: a run that had not ended is gone, so sending it again is safe.
//! Few runs are therefore handed over at once ([`ComfyUiBuilder::with_max_live`]); the others wait
//! in our own queue, which is durable.
//!
//! # Privacy
//! ComfyUI writes the whole workflow, with the user's prompt in it, into the PNG, MP4 and WEBM files
//! that it saves. Start it with `--disable-metadata`. Files of users' stay in its `input` and
//! `output` folders, since it has no call to delete them: clear them by age (ours are `sub_…` in
//! `input` and in `output/vidgen`).
//!
//! # Access
//! ComfyUI itself has neither keys nor TLS, and whoever reaches it can do anything with it. Behind a
//! proxy that asks for a key, give that with [`ComfyUiBuilder::with_header`].

mod progress;
mod wire;
mod workflow;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use reqwest::header::{HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use tokio::time::sleep;
use url::form_urlencoded;
use uuid::Builder;
use vidgen_core::net::DownloadLimits;
use vidgen_core::{
    Body, Callback, Capabilities, Error, ErrorKind, Handle, Lookup, MediaInput, MediaType, Output, Provider,
    ProviderId, Result, RunState, Snapshot, Spool, Submission, SubmissionId, SubmitOptions, Task, TaskSpec,
};

use crate::client::{Auth, Call, Client, ClientBuilder, Part, Refusal, Verdict, image_bytes};
use progress::Progress;
use workflow::{Given, Template};

pub use workflow::Workflow;

const ORIGIN: &str = "comfyui";
/// The server's own address, unless it was told otherwise.
const BASE: &str = "http://127.0.0.1:8188";
/// One runs, and one waits, so that the GPU does not. What waits there is lost in a restart.
const MAX_LIVE: usize = 2;
/// A look is two calls, to a server that computes meanwhile.
const POLL_FLOOR: Duration = Duration::from_secs(1);
/// A run that is neither in the queue nor in the history may be on its way from the one to the
/// other, as fast as a lock can be taken; it is looked for again after these pauses.
const LOOK_AGAIN: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(150)];
/// A queue has the whole workflow of everything that waits in it, whosever it is.
const MAX_QUEUE: usize = 64 * 1024 * 1024;
/// A run that leaves the queue before it begins leaves no trace: so many are remembered here.
const MAX_CANCELED: usize = 1024;
/// How often a cancel follows a run that moves from one place to the next.
const MOVES: usize = 3;

/// A ComfyUI server.
#[derive(Clone)]
pub struct ComfyUi(Arc<Inner>);

struct Inner {
    id: ProviderId,
    client: Client,
    workflows: Vec<Template>,
    progress: Option<Progress>,
    canceled: Mutex<VecDeque<String>>,
}

/// Puts a [`ComfyUi`] together. Only [`ComfyUiBuilder::build`] fails.
#[derive(Clone)]
pub struct ComfyUiBuilder {
    id: ProviderId,
    client: ClientBuilder,
    headers: Vec<(String, SecretString)>,
    workflows: Vec<Workflow>,
    progress: bool,
}

impl ComfyUi {
    /// Begins with the server's URL, such as `http://127.0.0.1:8188`.
    pub fn builder(base_url: impl Into<String>) -> ComfyUiBuilder {
        ComfyUiBuilder {
            id: ProviderId::from(ORIGIN),
            client: ClientBuilder::new(ORIGIN, BASE, Auth::None)
                .with_base_url(base_url)
                .with_http1()
                .with_max_live(MAX_LIVE)
                .with_judge(judge),
            headers: Vec::new(),
            workflows: Vec::new(),
            progress: true,
        }
    }
}

impl ComfyUiBuilder {
    /// Adds a workflow, or replaces the one of that name. The first of a kind is the default for it.
    #[must_use]
    pub fn with_workflow(mut self, workflow: Workflow) -> Self {
        self.workflows.retain(|w| !w.is(&workflow));
        self.workflows.push(workflow);
        self
    }

    /// Another name in pipelines, for a second server beside the first. Handles carry it: it must
    /// stay the same while jobs live.
    #[must_use]
    pub fn with_id(mut self, id: &str) -> Self {
        self.id = ProviderId::new(id);
        self
    }

    /// Calls another server.
    #[must_use]
    pub fn with_base_url(mut self, url: impl Into<String>) -> Self {
        self.client = self.client.with_base_url(url);
        self
    }

    /// Sends a header with every call, for a server behind a proxy that wants a key:
    /// `("authorization", "Bearer …")`. Several may be set.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: SecretString) -> Self {
        self.headers.push((name.into(), value));
        self
    }

    /// Calls the server through a proxy. The environment is not read.
    #[must_use]
    pub fn with_proxy(mut self, url: impl Into<String>) -> Self {
        self.client = self.client.with_proxy(url);
        self
    }

    /// Sets how many runs are handed over at once: 2, unless it is said. The server runs one at a
    /// time, and forgets those that wait when it restarts.
    #[must_use]
    pub fn with_max_live(mut self, runs: usize) -> Self {
        self.client = self.client.with_max_live(runs);
        self
    }

    /// Opens no WebSocket, so that runs have no progress.
    #[must_use]
    pub fn without_progress(mut self) -> Self {
        self.progress = false;
        self
    }

    /// Sets how long the answer to a submit is waited for. Checking a workflow takes the server a
    /// moment, more so while it loads a model.
    #[must_use]
    pub fn with_submit_timeout(mut self, timeout: Duration) -> Self {
        self.client = self.client.with_submit_timeout(timeout);
        self
    }

    /// Sets how long the answer to anything else is waited for.
    #[must_use]
    pub fn with_read_timeout(mut self, timeout: Duration) -> Self {
        self.client = self.client.with_read_timeout(timeout);
        self
    }

    /// Builds it.
    ///
    /// # Errors
    /// `Invalid` if the URL, a header or a workflow cannot be what it should be; where it is a
    /// workflow, the message names the node and the input.
    pub fn build(self) -> Result<ComfyUi> {
        let mut client = self.client;
        for (name, value) in self.headers {
            let bad = || Error::invalid_field("header", "must be a header's name and value");
            let value = HeaderValue::from_str(value.expose_secret().trim()).map_err(|_| bad())?;
            client = client.with_secret_header(name.parse::<HeaderName>().map_err(|_| bad())?, value);
        }
        let client = client.build()?;
        let workflows = self.workflows.into_iter().map(Workflow::checked).collect::<Result<_>>()?;
        let progress = self.progress.then(|| Progress::new(client.clone()));
        Ok(ComfyUi(Arc::new(Inner { id: self.id, client, workflows, progress, canceled: Mutex::default() })))
    }
}

/// Without the headers.
impl fmt::Debug for ComfyUiBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ComfyUiBuilder")
            .field("id", &self.id)
            .field("workflows", &self.workflows)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ComfyUi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ComfyUi").field("id", &self.0.id).field("client", &self.0.client).finish_non_exhaustive()
    }
}

/// A workflow that the server does not take is named by its nodes and inputs, and not by what
/// stands in these.
fn judge(refusal: &Refusal) -> Verdict {
    let nodes = refusal.body.get("node_errors").and_then(wire::node_errors);
    let reason = match (nodes, refusal.text(&["error", "type"])) {
        (Some(nodes), _) => nodes,
        (None, Some(kind)) => kind.to_owned(),
        (None, None) => return Verdict::default(),
    };
    Verdict::default().with_reason(reason)
}

/// The id of the run of a submission: a UUID as the server insists on, made from the submission's
/// (version 8: RFC 9562, 5.8), so that whoever knows the one knows the other.
fn prompt_id(submission: &SubmissionId) -> String {
    let digest = digest(&SHA256, format!("vidgen comfyui {submission}").as_bytes());
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(digest.as_ref()).for_each(|(byte, from)| *byte = *from);
    Builder::from_custom_bytes(bytes).into_uuid().hyphenated().to_string()
}

/// Where a run is.
enum Place {
    Pending,
    Running,
    Ended(Box<wire::Entry>),
    Nowhere,
}

impl ComfyUi {
    fn error(&self, kind: ErrorKind, message: impl Into<String>) -> Error {
        self.0.client.error(kind, message)
    }

    fn template(&self, task: &Task) -> Result<&Template> {
        let kind = task.spec.kind();
        let wanted = |t: &&Template| t.model.kind == kind && t.model.id == task.model;
        let unknown = || self.error(ErrorKind::Unsupported, format!("there is no workflow {} for {kind}", task.model));
        self.0.workflows.iter().find(wanted).ok_or_else(unknown)
    }

    fn handle(&self, template: &Template, id: String) -> Handle {
        let detail = wire::Wanted { kind: template.model.kind, output: template.output.clone() };
        Handle::new(self.0.id.clone(), id).with_detail(json!(detail))
    }

    /// Hands the first frame over; answers the name by which a workflow finds it.
    async fn upload(&self, image: &MediaInput, submission: &SubmissionId) -> Result<String> {
        let (bytes, media_type) = (image_bytes(image).await?, image.info.media_type);
        let name = format!("{submission}.{}", media_type.extension());
        let file = Part::file("image", name, media_type.mime(), bytes);
        // Not overwriting: the same file again has the same name, and another one a new name.
        let call = Call::post(["upload", "image"]).with_form([file, Part::text("type", "input")]);
        let uploaded: wire::Uploaded = self.0.client.prepare(call).await?.body;
        Ok(uploaded.path())
    }

    /// Where a run is: ended is asked before waiting, so that one that moves on is met.
    async fn place(&self, id: &str) -> Result<Place> {
        let mut pauses = LOOK_AGAIN.iter();
        loop {
            if let Some(entry) = self.history(id).await? {
                return Ok(Place::Ended(Box::new(entry)));
            }
            let queue: wire::Queue = self.read(Call::get(["queue"]).with_max_answer(MAX_QUEUE)).await?;
            if queue.running(id) {
                return Ok(Place::Running);
            }
            if queue.pending(id) {
                return Ok(Place::Pending);
            }
            match pauses.next() {
                Some(pause) => sleep(*pause).await,
                None => return Ok(Place::Nowhere),
            }
        }
    }

    async fn history(&self, id: &str) -> Result<Option<wire::Entry>> {
        let mut entries: wire::History = self.read(Call::get(["history", id])).await?;
        Ok(entries.remove(id))
    }

    /// What is always there: a 404 says that this is no ComfyUI, and nothing of the run.
    async fn read<T: serde::de::DeserializeOwned>(&self, call: Call) -> Result<T> {
        match self.0.client.ask(call).await {
            Ok(answer) => Ok(answer.body),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                Err(self.error(ErrorKind::Unavailable, "there is no ComfyUI at the base URL").with_source(e))
            }
            Err(e) => Err(e),
        }
    }

    /// Stops a run by what every version can: takes it out of the queue, or interrupts it. Never
    /// without saying which: that would stop somebody else's.
    async fn stop(&self, id: &str) -> Result<()> {
        let mut taken_out = false;
        for _ in 0..MOVES {
            match self.place(id).await? {
                Place::Pending => {
                    let call = Call::post(["queue"]).with_json(json!({ "delete": [id] }));
                    self.0.client.tell(call).await?;
                    taken_out = true;
                }
                Place::Running => {
                    let call = Call::post(["interrupt"]).with_json(json!({ "prompt_id": id }));
                    return self.0.client.tell(call).await.map(|_| ());
                }
                Place::Nowhere if taken_out => {
                    self.remember_canceled(id);
                    return Ok(());
                }
                Place::Ended(_) => return Err(self.error(ErrorKind::TooLate, "it ended")),
                Place::Nowhere if self.was_canceled(id) => {
                    return Err(self.error(ErrorKind::TooLate, "it was canceled"));
                }
                Place::Nowhere => return Err(self.unknown()),
            }
        }
        Err(self.error(ErrorKind::Unavailable, "the run stays in the queue"))
    }

    fn unknown(&self) -> Error {
        self.error(ErrorKind::NotFound, "the server knows no such run; it may have been restarted")
    }

    fn remember_canceled(&self, id: &str) {
        let mut canceled = self.0.canceled.lock().unwrap_or_else(PoisonError::into_inner);
        if canceled.len() >= MAX_CANCELED {
            canceled.pop_front();
        }
        canceled.push_back(id.to_owned());
    }

    fn was_canceled(&self, id: &str) -> bool {
        self.0.canceled.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|known| known == id)
    }

    fn forget(&self, id: &str) {
        if let Some(progress) = &self.0.progress {
            progress.forget(id);
        }
    }

    /// Takes back a workflow of which the server dropped a part and would run the rest.
    async fn take_back(&self, id: &str, reason: &str) -> Error {
        match self.stop(id).await {
            Ok(()) => {}
            // Whatever it was that took it out.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            // It runs, or has run: what it made is to be found under its name.
            Err(error) => {
                return self.0.client.lost("a workflow that is partly wrong cannot be taken back").with_source(error);
            }
        }
        self.error(ErrorKind::Invalid, format!("the server does not take all of the workflow: {reason}"))
    }
}

#[async_trait]
impl Provider for ComfyUi {
    fn id(&self) -> ProviderId {
        self.0.id.clone()
    }

    fn capabilities(&self) -> Capabilities {
        let models = self.0.workflows.iter().map(|workflow| workflow.model.clone()).collect();
        self.0.client.capabilities_of(models).with_find().with_cancel().with_poll_floor(POLL_FLOOR)
    }

    async fn submit(&self, task: &Task, options: &SubmitOptions) -> Result<Handle> {
        let (template, submission) = (self.template(task)?, &options.submission);
        let unfit = |what: &str| self.error(ErrorKind::Invalid, format!("workflow {} {what}", task.model));
        let mut given = Given::new(template, task, submission).ok_or_else(|| unfit("makes images and videos only"))?;
        if let TaskSpec::Video(video) = &task.spec {
            given.image = match (&video.image, template.takes_image) {
                (Some(image), true) => Some(self.0.client.in_time(self.upload(image, submission)).await?),
                (None, true) => return Err(unfit("needs an image to start from")),
                (Some(_), false) => return Err(unfit("cannot start from an image")),
                (None, false) => None,
            };
        }
        let id = prompt_id(submission);
        let mut body = json!({
            "prompt": template.filled(&given)?,
            "prompt_id": id,
            "extra_data": { "vidgen": { "submission": submission } },
        });
        if let (Some(progress), Some(body)) = (&self.0.progress, body.as_object_mut()) {
            body.insert("client_id".to_owned(), json!(progress.client_id()));
        }
        let accepted: wire::Accepted = self.0.client.submit(Call::post(["prompt"]).with_json(body)).await?.body;
        let id = accepted.prompt_id.0;
        if let Some(reason) = wire::node_errors(&accepted.node_errors) {
            return Err(self.take_back(&id, &reason).await);
        }
        if let Some(progress) = &self.0.progress {
            progress.watch(&id, template.len());
        }
        Ok(self.handle(template, id))
    }

    async fn poll(&self, handle: &Handle) -> Result<Snapshot> {
        let id = handle.remote_id.as_str();
        match self.place(id).await? {
            Place::Pending => Ok(Snapshot::running(None)),
            Place::Running => Ok(Snapshot::running(self.0.progress.as_ref().and_then(|progress| progress.of(id)))),
            Place::Ended(entry) => {
                let wanted: wire::Wanted = serde_json::from_value(handle.detail.clone())
                    .map_err(|e| self.error(ErrorKind::Internal, "the handle is none of ours").with_source(e))?;
                let snapshot = entry.snapshot(&wanted);
                if !matches!(snapshot.state, RunState::Running) {
                    self.forget(id);
                }
                Ok(snapshot)
            }
            Place::Nowhere => {
                self.forget(id);
                if self.was_canceled(id) { Ok(Snapshot::canceled()) } else { Err(self.unknown()) }
            }
        }
    }

    async fn open(&self, output: &Output) -> Result<Body> {
        let query = output.locator.strip_prefix(wire::VIEW);
        let query = query.ok_or_else(|| self.error(ErrorKind::NotFound, "the output is none of this server's"))?;
        let mut call = Call::get(["view"]);
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let Some(name) = wire::VIEWED.iter().find(|known| **known == name) else { continue };
            call = call.with_query(name, value);
        }
        let limits = match output.media_type {
            Some(MediaType::Png | MediaType::Jpeg | MediaType::Webp) => DownloadLimits::IMAGE,
            _ => DownloadLimits::VIDEO,
        };
        self.0.client.open_call(call, limits).await
    }

    async fn cancel(&self, handle: &Handle) -> Result<()> {
        let id = handle.remote_id.as_str();
        // Newer servers do it in one step; older ones have no such route.
        let call = Call::post(["api", "jobs", id, "cancel"]);
        let stopped = match self.0.client.ask_any(call).await? {
            Ok(answer) => answer.body.get("cancelled").and_then(serde_json::Value::as_bool).unwrap_or_default(),
            Err(_) => false,
        };
        if stopped {
            self.remember_canceled(id);
            return Ok(());
        }
        // It says no more than that it did nothing; or it cannot.
        self.stop(id).await
    }

    async fn find(&self, submission: &Submission) -> Result<Lookup> {
        let id = prompt_id(&submission.id);
        if matches!(self.place(&id).await?, Place::Nowhere) {
            return Ok(Lookup::Absent);
        }
        // Of a workflow that is configured no more nobody knows what it was to make.
        let workflow = self.0.workflows.iter().find(|workflow| workflow.model.id == submission.model);
        Ok(workflow.map_or(Lookup::Unknown, |workflow| Lookup::Found(self.handle(workflow, id))))
    }

    async fn callback(&self, _: &Callback, _: &Spool) -> Result<Handle> {
        Err(self.error(ErrorKind::Unsupported, "ComfyUI does not call back"))
    }
}
