//! A host on the in-memory backends, and a client that speaks to its router.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use bytes::Bytes;
use serde_json::Value;
use tower::ServiceExt;
use vidgen_core::clock::ManualClock;
use vidgen_core::memory::{MemoryNotifier, MemoryQueue, MemoryStore};
use vidgen_core::{
    Callback, Capabilities, Error, ErrorKind, Failure, Handle, JobEnd, JobId, JobOutput, Limits, Lookup, MediaInfo,
    MediaKey, MediaType, Model, Output, Pipeline, Price, Provider, ProviderId, Queue, Result, Settlement, Snapshot,
    Spool, StepKind, Store, Submission, SubmitOptions, Task, TenantId, Usd, Vidgen,
};
use vidgen_http::{Principal, RouterOptions, SignedLinks};

pub(crate) const VIDEO: &[u8] = b"0123456789 not really a video";
const SECRET: &str = "a secret that is long enough";

/// Says what it could do and does nothing: no test here runs a worker.
#[derive(Clone, Debug)]
pub(crate) struct Idle;

fn idle<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, "idle", "does nothing"))
}

#[async_trait]
impl Provider for Idle {
    fn id(&self) -> ProviderId {
        ProviderId::new("idle")
    }
    fn capabilities(&self) -> Capabilities {
        let model = |name: &str, kind, cents| {
            Model::new(name, kind, Price::PerRun(Usd::from_cents(cents))).with_typical(Duration::from_millis(1500))
        };
        Capabilities::new(vec![
            model("idle/image", StepKind::Image, 10),
            model("idle/video", StepKind::Video, 50).with_max_duration(Duration::from_secs(10)),
            model("idle/speech", StepKind::Speech, 5),
            model("idle/compose", StepKind::Compose, 0),
            model("idle/thumbnail", StepKind::Thumbnail, 0),
        ])
    }
    async fn submit(&self, _: &Task, _: &SubmitOptions) -> Result<Handle> {
        idle()
    }
    async fn poll(&self, _: &Handle) -> Result<Snapshot> {
        idle()
    }
    async fn open(&self, _: &Output) -> Result<vidgen_core::Body> {
        idle()
    }
    async fn cancel(&self, _: &Handle) -> Result<()> {
        idle()
    }
    async fn find(&self, _: &Submission) -> Result<Lookup> {
        idle()
    }

    async fn callback(&self, _: &Callback, _: &Spool) -> Result<Handle> {
        Err(Error::new(ErrorKind::Unsupported, "idle", "does not call back"))
    }
}

pub(crate) struct Host {
    pub(crate) vidgen: Vidgen,
    pub(crate) queue: Arc<MemoryQueue>,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) links: SignedLinks,
    pub(crate) clock: ManualClock,
    pub(crate) router: Router,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self::with(Limits::default(), RouterOptions::single_tenant())
    }

    pub(crate) fn with(limits: Limits, options: RouterOptions) -> Self {
        let clock = ManualClock::starting_at("2026-01-01T00:00:00Z".parse().unwrap());
        let queue = Arc::new(MemoryQueue::with_clock(clock.clone()));
        let store = Arc::new(MemoryStore::new());
        let links = SignedLinks::new("https://x.example/api", SECRET).unwrap().with_clock(clock.clone());
        let pipeline = Pipeline::named("default").image(Idle).video(Idle).speech(Idle).compose(Idle).thumbnail(Idle);
        let vidgen = Vidgen::builder()
            .queue(queue.clone())
            .store(store.clone())
            .notifier(MemoryNotifier::new())
            .media_links(links.clone())
            .clock(clock.clone())
            .limits(limits)
            .pipeline(pipeline)
            .build()
            .unwrap();
        let router = Router::new().nest("/api", vidgen_http::router(&vidgen, options.with_links(links.clone())));
        Self { vidgen, queue, store, links, clock, router }
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, 1 << 20).await.unwrap();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(request(Method::GET, path, Body::empty())).await
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<Body>) -> Answer {
        self.send(request(Method::POST, path, body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(request(Method::DELETE, path, Body::empty())).await
    }

    /// A new job's id.
    pub(crate) async fn job(&self) -> JobId {
        let answer = self.post("/api/generate", r#"{"prompt": "a cat in space"}"#).await;
        answer.json()["job_id"].as_str().unwrap().parse().unwrap()
    }

    /// Ends the oldest queued job as a worker would.
    pub(crate) async fn settle(&self, end: JobEnd) {
        let worker = self.queue.register("test").await.unwrap();
        let claimed = self.queue.claim(worker, 1).await.unwrap().jobs.remove(0);
        let settlement = Settlement { claim: claimed.claim, end, keep_hold: Usd::ZERO, events: vec![] };
        self.queue.settle(settlement).await.unwrap();
    }

    /// Completes the oldest queued job, which is `id`, with media in the store.
    pub(crate) async fn complete(&self, id: JobId) {
        let video = self.put(&format!("jobs/{id}/compose-1.mp4"), MediaType::Mp4).await;
        let thumbnail = self.put(&format!("jobs/{id}/thumbnail-1.jpg"), MediaType::Jpeg).await;
        let output = JobOutput { video, thumbnail: Some(thumbnail), duration: Duration::from_secs(3) };
        self.settle(JobEnd::Completed(output)).await;
    }

    pub(crate) async fn fail(&self) {
        self.settle(JobEnd::Failed(Failure::new(ErrorKind::Refused, "the content was refused: no cats"))).await;
    }

    async fn put(&self, key: &str, media_type: MediaType) -> MediaInfo {
        let key = MediaKey::new(key).unwrap();
        self.store.put(&key, Bytes::from_static(VIDEO).into()).await.unwrap();
        MediaInfo { key, media_type, length: VIDEO.len() as u64, content: Default::default() }
    }
}

pub(crate) fn request(method: Method, path: &str, body: impl Into<Body>) -> Request<Body> {
    let mut request = Request::builder().method(method.clone()).uri(path);
    if method == Method::POST {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    request.body(body.into()).unwrap()
}

/// As the host's own authentication leaves it.
pub(crate) fn by(tenant: &str, mut request: Request<Body>) -> Request<Body> {
    request.extensions_mut().insert(Principal::new(TenantId::new(tenant).unwrap()));
    request
}

pub(crate) fn with(name: &'static str, value: &str, mut request: Request<Body>) -> Request<Body> {
    request.headers_mut().insert(name, value.parse().unwrap());
    request
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    /// `field message` of each detail.
    pub(crate) fn details(&self) -> Vec<String> {
        let json = self.json();
        let details = json["details"].as_array().unwrap_or_else(|| panic!("{json}"));
        details.iter().map(|d| format!("{} {}", d["field"].as_str().unwrap(), d["message"].as_str().unwrap())).collect()
    }
}
