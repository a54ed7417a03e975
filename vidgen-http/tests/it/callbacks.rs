//! `/callbacks/{provider}`: a genuine call saves a lost submission, a forged one does nothing, and
//! uploads land in the spool.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode};
use serde_json::Value;
use tower::ServiceExt;
use vidgen_core::clock::VirtualClock;
use vidgen_core::memory::{MemoryQueue, MemoryStore, Scene, ScriptedProvider};
use vidgen_core::*;
use vidgen_http::RouterOptions;

struct World {
    vidgen: Vidgen,
    studio: ScriptedProvider,
    store: Arc<MemoryStore>,
    callbacks: Callbacks,
    router: Router,
}

fn world() -> World {
    let clock = VirtualClock::starting_at("2026-01-01T00:00:00Z".parse().unwrap());
    let studio = ScriptedProvider::new("studio").with_callback().without_find();
    let callbacks = Callbacks::new("https://x.example/api", &"0123456789abcdef".to_owned().into()).unwrap();
    let store = Arc::new(MemoryStore::new());
    let vidgen = Vidgen::builder()
        .queue(MemoryQueue::with_clock(Arc::new(clock)))
        .store(store.clone())
        .clock(clock)
        .callbacks(callbacks.clone())
        .pipeline(Pipeline::named("default").video(studio.clone()))
        .build()
        .unwrap();
    let api = vidgen_http::router(&vidgen, RouterOptions::authenticated());
    let router = Router::new().nest("/api", api).merge(vidgen_http::health_router(&vidgen));
    World { vidgen, studio, store, callbacks, router }
}

impl World {
    async fn create(&self) -> Job {
        self.vidgen.create(&TenantId::single(), JobRequest::new("a cat"), CreateOptions::default()).await.unwrap().job
    }

    async fn ended(&self, mut job: Job) -> Job {
        while !job.state.is_ended() {
            job = self.vidgen.watch(&job.tenant, job.id, job.version, Duration::from_secs(5)).await.unwrap();
        }
        job
    }

    async fn send(
        &self,
        method: Method,
        uri: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> (StatusCode, String) {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let location = response.headers().get("location").map(|v| v.to_str().unwrap().to_owned());
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, location.unwrap_or_else(|| String::from_utf8(body.to_vec()).unwrap()))
    }
}

fn local(url: &url::Url) -> String {
    format!("{}?{}", url.path(), url.query().unwrap_or_default())
}

#[tokio::test(start_paused = true)]
async fn a_genuine_callback_saves_a_lost_submission_and_a_forged_one_does_not() {
    let world = world();
    world.studio.then(StepKind::Video, Scene::LosesAnswer);
    let job = world.create().await;
    let worker = world.vidgen.worker().spawn();
    while world.studio.accepted().is_empty() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let submission = world.studio.accepted().remove(0);
    let (url, call) = world.studio.callback_of(&submission, world.vidgen.clock().now()).unwrap();
    let genuine = local(&url);
    let signed: &[(&str, &str)] = &[("scripted-signature", world.studio.secret())];
    let body = || call.body.clone();
    for (uri, headers, expected) in [
        (genuine.replace("signature=", "signature=0"), signed, StatusCode::UNAUTHORIZED),
        (genuine.replace("callbacks/studio", "callbacks/other"), signed, StatusCode::UNAUTHORIZED),
        (genuine.replace(submission.as_str(), "sub_x"), signed, StatusCode::UNAUTHORIZED),
        ("/api/callbacks/studio".into(), signed, StatusCode::UNAUTHORIZED),
        (genuine.clone(), &[], StatusCode::UNAUTHORIZED),
    ] {
        assert_eq!(world.send(Method::POST, &uri, headers, body()).await.0, expected, "{uri}");
    }
    let (status, _) = world.send(Method::POST, &genuine, signed, vec![0xff]).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let (status, _) = world.send(Method::POST, &genuine, signed, vec![b'x'; 5 << 20]).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    let before = world.vidgen.get(&job.tenant, job.id).await.unwrap();
    assert!(before.witnesses.is_empty(), "a call that was refused left something");

    assert_eq!(world.send(Method::POST, &genuine, signed, body()).await.0, StatusCode::NO_CONTENT);
    let job = world.ended(job).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
    assert_eq!(world.studio.accepted().len(), 1);
    // Again, and late: nothing moves.
    assert_eq!(world.send(Method::POST, &genuine, signed, body()).await.0, StatusCode::NO_CONTENT);
    let mut after = world.vidgen.get(&job.tenant, job.id).await.unwrap();
    after.witnesses.clone_from(&job.witnesses);
    assert_eq!(after, job);
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn an_upload_lands_in_its_submissions_spool_and_nowhere_else() {
    let world = world();
    let job = world.create().await;
    let submission = submission_id(job.id, StepKind::Video, 1);
    let files = world.callbacks.files_url(&"studio".into());
    let put = |path: String, id: String| {
        let world = &world;
        async move { world.send(Method::PUT, &path, &[("x-prediction-id", &id)], "bytes").await }
    };
    let (status, location) = put(format!("{}tmp1.png", files.path()), submission.to_string()).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(location, format!("{files}tmp1.png"));
    let spool = Spool::new(world.store.clone(), &submission).unwrap();
    let output = spool.output("tmp1.png").unwrap();
    assert_eq!(spool.open(&output).await.unwrap().read(99).await.unwrap(), "bytes");

    let wrong = files.path().replace("/files/", "/files/0");
    assert_eq!(put(format!("{wrong}tmp1.png"), submission.to_string()).await.0, StatusCode::UNAUTHORIZED);
    for id in ["", "../../etc", "sub_x_video_1"] {
        assert_eq!(put(format!("{}a.png", files.path()), id.into()).await.0, StatusCode::BAD_REQUEST, "{id}");
    }
    let (status, _) = put(format!("{}..%2f..%2fetc", files.path()), submission.to_string()).await;
    assert_eq!(status, StatusCode::CREATED, "a name is hashed, whatever it is");
}

#[tokio::test(start_paused = true)]
async fn ready_names_a_provider_that_refuses_our_key_without_the_key() {
    let world = world();
    let ready = || async {
        let (status, body) = world.send(Method::GET, "/ready", &[], "").await;
        (status, serde_json::from_str::<Value>(&body).unwrap())
    };
    assert_eq!(ready().await.1["status"], "ready");
    world.studio.revoke_key();
    let worker = world.vidgen.worker().spawn();
    world.create().await;
    while world.vidgen.provider_problems().is_empty() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let (status, body) = ready().await;
    assert_eq!((status, &body["status"]), (StatusCode::OK, &"degraded".into()));
    assert_eq!(
        (&body["providers"][0]["provider"], &body["providers"][0]["problem"]),
        (&"studio".into(), &"unauthorized".into())
    );
    worker.shutdown().await;
}
