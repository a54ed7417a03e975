//! A provider whose remote lives in another process, so that its ledger outlives a killed worker.
//!
//! [`RemoteStudio`] is the client; [`serve`] puts a [`ScriptedProvider`] behind a loopback port. A
//! witness may look at the queue at the moment a submit arrives: the intent must be durable by
//! then (promise M2).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use url::Url;
use vidgen_core::memory::{MemoryStore, ScriptedProvider};
use vidgen_core::*;

#[derive(Debug, Serialize, Deserialize)]
struct Submit {
    submission: SubmissionId,
    kind: StepKind,
    model: ModelId,
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Handle(Handle),
    Running(Option<f32>),
    Succeeded(Vec<Output>),
    Ended(String),
    Found(Handle),
    Absent,
    Unknown,
    Bytes(Vec<u8>),
    Done,
    Error(ErrorKind, String),
}

/// Looks whether the submission that just arrived was written down before.
pub type Witness = Arc<dyn Fn(SubmissionId) -> BoxFuture<'static, bool> + Send + Sync>;

#[derive(Clone)]
struct Remote {
    studio: ScriptedProvider,
    witness: Option<Witness>,
}

/// Serves `studio` on a free loopback port for as long as the runtime lives.
///
/// # Panics
/// If there is no port to be had.
pub async fn serve(studio: ScriptedProvider, witness: Option<Witness>) -> Url {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let router = Router::new()
        .route("/submit", post(submit))
        .route("/poll", post(poll))
        .route("/open", post(open))
        .route("/cancel", post(cancel))
        .route("/find", post(find))
        .with_state(Remote { studio, witness });
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

fn failed(error: &Error) -> Answer {
    Answer::Error(error.kind(), error.message().to_owned())
}

async fn submit(State(remote): State<Remote>, Json(call): Json<Submit>) -> Json<Answer> {
    if let Some(witness) = &remote.witness {
        assert!(witness(call.submission.clone()).await, "a submit without a durable intent: {}", call.submission);
    }
    let task = Task { model: call.model, spec: spec(call.kind), extra: Default::default() };
    let options = SubmitOptions::new(call.submission);
    Json(remote.studio.submit(&task, &options).await.map_or_else(|e| failed(&e), Answer::Handle))
}

async fn poll(State(remote): State<Remote>, Json(handle): Json<Handle>) -> Json<Answer> {
    Json(match remote.studio.poll(&handle).await {
        Err(error) => failed(&error),
        Ok(snapshot) => match snapshot.state {
            RunState::Succeeded(outputs) => Answer::Succeeded(outputs),
            RunState::Failed(failure) => Answer::Ended(failure.reason),
            RunState::Canceled => Answer::Ended("canceled".into()),
            _ => Answer::Running(snapshot.progress),
        },
    })
}

async fn open(State(remote): State<Remote>, Json(output): Json<Output>) -> Json<Answer> {
    let bytes = match remote.studio.open(&output).await {
        Ok(body) => body.read(1 << 20).await,
        Err(error) => Err(error),
    };
    Json(bytes.map_or_else(|e| failed(&e), |b| Answer::Bytes(b.to_vec())))
}

async fn cancel(State(remote): State<Remote>, Json(handle): Json<Handle>) -> Json<Answer> {
    Json(remote.studio.cancel(&handle).await.map_or_else(|e| failed(&e), |()| Answer::Done))
}

async fn find(State(remote): State<Remote>, Json(submission): Json<Submission>) -> Json<Answer> {
    Json(match remote.studio.find(&submission).await {
        Ok(Lookup::Found(handle)) => Answer::Found(handle),
        Ok(Lookup::Absent) => Answer::Absent,
        Ok(Lookup::Unknown) => Answer::Unknown,
        Err(error) => failed(&error),
    })
}

/// The remote's own tasks: all it looks at is their kind.
fn spec(kind: StepKind) -> TaskSpec {
    let size = Size { width: 2, height: 2 };
    let key = MediaKey::new("none.mp4").unwrap();
    let info = MediaInfo { key, media_type: MediaType::Mp4, length: 0, content: ContentInfo::default() };
    let input = MediaInput::new(info, Arc::new(MemoryStore::new()));
    let duration = Duration::from_secs(1);
    match kind {
        StepKind::Image => {
            TaskSpec::Image(ImageTask { prompt: String::new(), negative_prompt: None, style: None, size, seed: None })
        }
        StepKind::Video => TaskSpec::Video(VideoTask {
            prompt: String::new(),
            negative_prompt: None,
            style: None,
            image: None,
            size,
            duration,
            fps: None,
            seed: None,
        }),
        StepKind::Speech => TaskSpec::Speech(SpeechTask { text: String::new(), voice: None }),
        StepKind::Compose => TaskSpec::Compose(ComposeTask { video: input, speech: None, size, duration, fps: None }),
        StepKind::Thumbnail => TaskSpec::Thumbnail(ThumbnailTask { video: input, at: Duration::ZERO, max_side: 2 }),
    }
}

/// The patience of a machine whose remote answers within milliseconds: so that a test need not
/// wait two minutes before "absent" is believed.
#[must_use]
pub fn timing() -> Timing {
    let mut timing = Timing::default();
    timing.post_within = Duration::from_millis(300);
    timing.settle = Duration::from_millis(50);
    timing
}

/// The client: paid, can look up, cannot deduplicate.
#[derive(Clone, Debug)]
pub struct RemoteStudio {
    base: Url,
    http: reqwest::Client,
    capabilities: Capabilities,
}

impl RemoteStudio {
    /// A client of the remote at `base`.
    ///
    /// # Panics
    /// If there is no HTTP client to be had.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "a test's own loopback server")]
    pub fn new(base: Url) -> Self {
        let capabilities =
            ScriptedProvider::new("studio").capabilities().with_submit_timeout(Duration::from_millis(300));
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { base, http, capabilities }
    }

    async fn call(&self, path: &str, body: &impl Serialize) -> Result<Answer> {
        let away = |e: reqwest::Error| {
            let kind = if e.is_connect() { ErrorKind::NotSent } else { ErrorKind::OutcomeUnknown };
            Error::new(kind, "studio", "the remote does not answer").with_source(e.without_url())
        };
        let answer = self.http.post(self.base.join(path).unwrap()).json(body).send().await.map_err(away)?;
        match answer.json().await.map_err(away)? {
            Answer::Error(kind, message) => Err(Error::new(kind, "studio", message)),
            answer => Ok(answer),
        }
    }
}

fn garbled<T>(_: Answer) -> Result<T> {
    Err(Error::new(ErrorKind::Protocol, "studio", "an answer to another question"))
}

#[async_trait]
impl Provider for RemoteStudio {
    fn id(&self) -> ProviderId {
        ProviderId::from("studio")
    }
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }
    async fn submit(&self, task: &Task, options: &SubmitOptions) -> Result<Handle> {
        let (submission, kind) = (options.submission.clone(), task.spec.kind());
        match self.call("submit", &Submit { submission, kind, model: task.model.clone() }).await? {
            Answer::Handle(handle) => Ok(handle),
            other => garbled(other),
        }
    }
    async fn poll(&self, handle: &Handle) -> Result<Snapshot> {
        match self.call("poll", handle).await? {
            Answer::Running(progress) => Ok(Snapshot::running(progress)),
            Answer::Succeeded(outputs) => Ok(Snapshot::succeeded(outputs)),
            Answer::Ended(reason) if reason == "canceled" => Ok(Snapshot::canceled()),
            Answer::Ended(reason) => Ok(Snapshot::failed(RunFailure::new(ErrorKind::Unavailable, &reason))),
            other => garbled(other),
        }
    }
    async fn open(&self, output: &Output) -> Result<Body> {
        match self.call("open", output).await? {
            Answer::Bytes(bytes) => Ok(bytes::Bytes::from(bytes).into()),
            other => garbled(other),
        }
    }
    async fn cancel(&self, handle: &Handle) -> Result<()> {
        self.call("cancel", handle).await.map(|_| ())
    }
    async fn find(&self, submission: &Submission) -> Result<Lookup> {
        match self.call("find", submission).await? {
            Answer::Found(handle) => Ok(Lookup::Found(handle)),
            Answer::Absent => Ok(Lookup::Absent),
            Answer::Unknown => Ok(Lookup::Unknown),
            other => garbled(other),
        }
    }

    async fn callback(&self, _: &Callback, _: &Spool) -> Result<Handle> {
        Err(Error::new(ErrorKind::Unsupported, "remotestudio", "does not call back"))
    }
}
