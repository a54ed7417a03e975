//! What the tests of the pipeline share: worlds with callbacks, a provider that is watched, what
//! was logged.

use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::{DefaultGuard, Interest};
use tracing::{Event, Metadata, Subscriber};
use vidgen_core::memory::ScriptedProvider;
use vidgen_core::*;

use crate::pipeline::{World, world_with};

pub(crate) fn callbacks() -> Callbacks {
    Callbacks::new("https://video.example", &"a secret of enough bytes".to_owned().into()).unwrap()
}

/// A world whose providers are given URLs to call.
pub(crate) fn calling(pipeline: Pipeline) -> World {
    world_with(pipeline, |builder| builder.callbacks(callbacks()))
}

/// A provider that calls back and cannot look up what was lost.
pub(crate) fn caller() -> ScriptedProvider {
    ScriptedProvider::new("caller").without_find().with_callback().with_poll_floor(Duration::from_secs(1))
}

/// The submissions of a kind that the remote accepted.
pub(crate) fn accepted(provider: &ScriptedProvider, kind: StepKind) -> Vec<SubmissionId> {
    provider.accepted().into_iter().filter(|s| s.as_str().contains(kind.as_str())).collect()
}

/// The first submission of a kind that the remote accepts, as soon as it does.
pub(crate) async fn bought(provider: &ScriptedProvider, kind: StepKind) -> SubmissionId {
    for _ in 0..100_000 {
        if let Some(first) = accepted(provider, kind).first() {
            return first.clone();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("nothing was accepted for step {kind}")
}

/// Waits for what must come; a day on the virtual clock at most.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..864_000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it never came to this: {what}");
}

pub(crate) fn elapsed(since: tokio::time::Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

impl World {
    /// Sends what the remote would say now of one of its runs.
    pub(crate) async fn call(&self, provider: &ScriptedProvider, submission: &SubmissionId) -> Result<()> {
        let (url, callback) = provider.callback_of(submission, self.vidgen.clock().now()).expect("there is such a run");
        self.send(&provider.id(), &url, callback).await
    }

    pub(crate) async fn send(&self, provider: &ProviderId, url: &url::Url, callback: Callback) -> Result<()> {
        let value = |name: &str| url.query_pairs().find(|(n, _)| n == name).map(|(_, v)| v.into_owned()).unwrap();
        self.vidgen.callback(provider, &value("submission"), &value("signature"), callback).await
    }

    /// Creates a job of the video alone, in the pipeline of that name.
    pub(crate) async fn create_in(&self, pipeline: &str) -> JobId {
        let mut request = JobRequest::new("a cat in space");
        request.pipeline = Some(pipeline.into());
        self.vidgen.create(&self.tenant, request, CreateOptions::default()).await.unwrap().job.id
    }

    pub(crate) async fn create_many(&self, count: usize) -> Vec<JobId> {
        let mut ids = vec![];
        for _ in 0..count {
            ids.push(self.create_in("default").await);
        }
        ids
    }

    pub(crate) async fn completed(&self, ids: &[JobId]) -> Vec<Job> {
        let mut jobs = vec![];
        for id in ids {
            let job = self.ended(*id).await;
            assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
            jobs.push(job);
        }
        jobs
    }
}

/// What a provider was asked, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Submit,
    Poll,
    Cancel,
    Find,
}

/// A provider of which every call is noted; its answers may take time, and the next looks may be
/// answered with errors. Clones share it all.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    pub(crate) inner: ScriptedProvider,
    submit_takes: Duration,
    poll_takes: Duration,
    began: tokio::time::Instant,
    calls: Arc<Mutex<Vec<(Call, Duration)>>>,
    errors: Arc<Mutex<Vec<Error>>>,
}

impl Watched {
    pub(crate) fn new(inner: &ScriptedProvider) -> Self {
        Self {
            inner: inner.clone(),
            submit_takes: Duration::ZERO,
            poll_takes: Duration::ZERO,
            began: tokio::time::Instant::now(),
            calls: Arc::default(),
            errors: Arc::default(),
        }
    }

    pub(crate) fn with_slow_polls(mut self, takes: Duration) -> Self {
        self.poll_takes = takes;
        self
    }

    pub(crate) fn with_slow_submits(mut self, takes: Duration) -> Self {
        self.submit_takes = takes;
        self
    }

    /// Answers the next look with this.
    pub(crate) fn answer_look(&self, error: Error) {
        self.errors.lock().unwrap().push(error);
    }

    /// When it was asked that, since this began.
    pub(crate) fn times(&self, call: Call) -> Vec<Duration> {
        self.calls.lock().unwrap().iter().filter(|(c, _)| *c == call).map(|(_, at)| *at).collect()
    }

    /// When it was asked anything.
    pub(crate) fn all(&self) -> Vec<Duration> {
        self.calls.lock().unwrap().iter().map(|(_, at)| *at).collect()
    }

    fn note(&self, call: Call) {
        self.calls.lock().unwrap().push((call, self.began.elapsed()));
    }
}

#[async_trait]
impl Provider for Watched {
    fn id(&self) -> ProviderId {
        self.inner.id()
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn submit(&self, task: &Task, options: &SubmitOptions) -> Result<Handle> {
        self.note(Call::Submit);
        tokio::time::sleep(self.submit_takes).await;
        self.inner.submit(task, options).await
    }
    async fn poll(&self, handle: &Handle) -> Result<Snapshot> {
        self.note(Call::Poll);
        // What it answers is how the run was when it was asked.
        let answer = self.inner.poll(handle).await;
        tokio::time::sleep(self.poll_takes).await;
        let error = self.errors.lock().unwrap().pop();
        error.map_or(answer, Err)
    }
    async fn open(&self, output: &Output) -> Result<Body> {
        self.inner.open(output).await
    }
    async fn cancel(&self, handle: &Handle) -> Result<()> {
        self.note(Call::Cancel);
        self.inner.cancel(handle).await
    }
    async fn find(&self, submission: &Submission) -> Result<Lookup> {
        self.note(Call::Find);
        self.inner.find(submission).await
    }
    async fn callback(&self, callback: &Callback, spool: &Spool) -> Result<Handle> {
        self.inner.callback(callback, spool).await
    }
}

/// Everything that this thread logs while it lives.
#[derive(Debug)]
pub(crate) struct Logs {
    lines: Arc<Mutex<Vec<String>>>,
    _guard: DefaultGuard,
}

impl Logs {
    pub(crate) fn capture() -> Self {
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let guard = tracing::subscriber::set_default(Collector { lines: lines.clone() });
        Self { lines, _guard: guard }
    }

    pub(crate) fn lines(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap()
    }

    /// How many lines hold `text`.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.lines().iter().filter(|line| line.contains(text)).count()
    }
}

struct Collector {
    lines: Arc<Mutex<Vec<String>>>,
}

impl Subscriber for Collector {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::always()
    }
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut line = Line(format!("{} ", event.metadata().level()));
        event.record(&mut line);
        self.lines.lock().unwrap().push(line.0);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = write!(self.0, "{}={value:?} ", field.name());
    }
}
