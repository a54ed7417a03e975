//! What fal's answers mean, said by a server whose every answer a test chooses.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use vidgen_core::{ErrorKind, Handle, Provider, RunState, Snapshot, Usage};
use vidgen_providers::fal::Fal;

use super::{FLUX, LARGE, WAN};
use crate::remote::*;

/// What is asked by a method and a path.
type Answers = dyn Fn(&str, &str) -> Response + Send + Sync;
/// A line, and the key that came with it.
type Line = (String, Option<String>);

/// A server whose every answer a test says, and what it was asked.
#[derive(Clone)]
struct Said {
    answers: Arc<Answers>,
    seen: Arc<Mutex<Vec<Line>>>,
}

struct Server {
    url: String,
    addr: std::net::SocketAddr,
    said: Said,
}

impl Server {
    /// `answers` is asked by method and path.
    async fn start(answers: impl Fn(&str, &str) -> Response + Send + Sync + 'static) -> Self {
        async fn answer(State(said): State<Said>, request: Request<axum::body::Body>) -> Response {
            let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
            let key = request.headers().get("authorization").and_then(|key| key.to_str().ok()).map(str::to_owned);
            drop(axum::body::to_bytes(request.into_body(), 1 << 20).await);
            said.seen.lock().unwrap().push((format!("{method} {path}"), key));
            (said.answers)(&method, &path)
        }
        let said = Said { answers: Arc::new(answers), seen: Arc::default() };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(said.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url: format!("http://{addr}"), addr, said }
    }

    fn lines(&self) -> Vec<String> {
        self.said.seen.lock().unwrap().iter().map(|(line, _)| line.clone()).collect()
    }

    fn keys(&self) -> usize {
        self.said.seen.lock().unwrap().iter().filter(|(_, key)| key.is_some()).count()
    }

    fn client(&self) -> Fal {
        Fal::builder("id:secret").with_base_url(&self.url).build().unwrap()
    }
}

fn json_of(status: u16, headers: &[(&'static str, &'static str)], body: &Value) -> Response {
    let mut response = (StatusCode::from_u16(status).unwrap(), body.to_string()).into_response();
    for (name, value) in headers {
        response.headers_mut().insert(*name, value.parse().unwrap());
    }
    response
}

fn handle() -> Handle {
    Handle::new("fal".into(), "r1").with_detail(json!({ "endpoint": FLUX }))
}

/// The end of a run whose status and result are these.
async fn ended(
    status: Value,
    result: (u16, &'static [(&'static str, &'static str)], Value),
) -> vidgen_core::Result<Snapshot> {
    let server = Server::start(move |_, path| match path {
        "/fal-ai/flux/requests/r1/status" => json_of(200, &[], &status),
        "/fal-ai/flux/requests/r1" => json_of(result.0, result.1, &result.2),
        _ => json_of(404, &[], &json!({ "status": "NOT_FOUND" })),
    });
    server.await.client().poll(&handle()).await
}

#[tokio::test]
async fn what_the_queue_replays_is_told_from_what_a_gateway_says() {
    let complete = || json!({ "status": "COMPLETED" });
    let failed = |error: &str| json!({ "status": "COMPLETED", "error": error });
    let ours = &[("x-fal-request-id", "r1")];
    let images = json!({ "images": [{ "url": "https://v3.fal.media/o.png" }] });
    let failure = |snapshot: vidgen_core::Result<Snapshot>| match snapshot.unwrap().state {
        RunState::Failed(failure) => (failure.kind, failure.billed),
        other => panic!("{other:?}"),
    };
    // A page of a gateway's is nobody's failure; the run is paid for, and is there.
    for status in [500, 502, 503, 504, 408] {
        let error = ended(complete(), (status, &[], json!("nginx"))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{status}");
    }
    // The same from the model is one, with or without JSON.
    assert_eq!(failure(ended(complete(), (500, ours, json!("boom"))).await), (ErrorKind::Unavailable, false));
    let user = &[("x-fal-request-timeout-type", "user"), ("x-fal-needs-retry", "false")];
    let late = json!({ "detail": "Request timed out", "error_type": "request_timeout" });
    assert_eq!(failure(ended(complete(), (504, user, late)).await), (ErrorKind::Unavailable, false));
    // Whether a model's fault lasts is in a header.
    let fault = || json!({ "detail": [{ "type": "downstream_service_error", "msg": "x", "loc": ["body"] }] });
    for headers in [&[("x-fal-retryable", "false")], &[("x-fal-needs-retry", "0")]] {
        assert_eq!(failure(ended(complete(), (500, headers, fault())).await), (ErrorKind::Unsupported, false));
    }
    assert_eq!(
        failure(ended(complete(), (500, &[("x-fal-retryable", "true")], fault())).await).0,
        ErrorKind::Unavailable
    );
    // A success with an error beside it is none, and a model's own 403 is not about our key.
    let said = failed("Invalid status code: 422");
    assert_eq!(
        failure(ended(said, (200, &[("x-fal-billable-units", "0")], images.clone())).await),
        (ErrorKind::Invalid, false)
    );
    let said = failed("Invalid status code: 403");
    assert_eq!(failure(ended(said, (403, ours, json!({ "detail": "Forbidden" }))).await).0, ErrorKind::Unavailable);
    let error = ended(complete(), (403, &[], json!({ "detail": "Forbidden" }))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    // A failure whose result is gone is a failure still.
    let said = json!({ "status": "COMPLETED", "error": "gone", "error_type": "runner_disconnected" });
    assert_eq!(
        failure(ended(said, (404, &[], json!({ "status": "NOT_FOUND" }))).await),
        (ErrorKind::Unavailable, false)
    );
    let said = json!({ "status": "COMPLETED", "error": "canceled", "error_type": "client_cancelled" });
    let result = (499, &[("x-fal-billable-units", "0.5")][..], json!({ "detail": "canceled" }));
    let canceled = ended(said, (result.0, &[("x-fal-billable-units", "0.5")], result.2)).await.unwrap();
    assert!(matches!(canceled.state, RunState::Canceled));
    assert_eq!(canceled.usage, Some(Usage::MilliUnits(500)));
    output(
        ended(json!({ "status": "COMPLETED", "error": null, "error_type": null }), (200, &[], images)).await.unwrap(),
    );
}

#[tokio::test]
async fn an_expired_result_is_looked_up_in_the_history_before_it_is_lost() {
    let item = |more: Value| {
        let mut item = json!({ "request_id": "r1", "endpoint_id": FLUX, "ended_at": "2026-11-25T00:00:00Z" });
        item.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "items": [item], "has_more": false })
    };
    let images = json!({ "images": [{ "url": "https://v3.fal.media/o.png" }] });
    let policy = json!({ "detail": [{ "type": "content_policy_violation", "loc": [], "msg": "" }] });
    // Whether the status is there still, or nothing is.
    for status_is_gone in [false, true] {
        let poll = async |history: (u16, Value)| {
            let server = Server::start(move |_, path| match path {
                "/fal-ai/flux/requests/r1/status" if !status_is_gone => {
                    json_of(200, &[], &json!({ "status": "COMPLETED" }))
                }
                "/v1/models/requests/by-endpoint" => json_of(history.0, &[], &history.1),
                _ => json_of(404, &[], &json!({ "status": "NOT_FOUND" })),
            });
            let server = server.await;
            let answer = server.client().poll(&handle()).await.map(|snapshot| snapshot.state);
            assert!(server.lines().contains(&"GET /v1/models/requests/by-endpoint".to_owned()));
            answer
        };
        let kind = async |history| poll(history).await.unwrap_err().kind();
        let stored = item(json!({ "status_code": 200, "json_output": images }));
        match poll((200, stored)).await.unwrap() {
            RunState::Succeeded(outputs) => assert_eq!(outputs[0].locator, "https://v3.fal.media/o.png"),
            other => panic!("{other:?}"),
        }
        match poll((200, item(json!({ "status_code": 422, "json_output": policy })))).await.unwrap() {
            RunState::Failed(failure) => assert_eq!(failure.kind, ErrorKind::Refused),
            other => panic!("{other:?}"),
        }
        let unfinished = item(json!({ "status_code": null, "ended_at": null }));
        assert!(matches!(poll((200, unfinished)).await.unwrap(), RunState::Running));
        // Not stored, not there, not ours to ask: lost, and said so.
        assert_eq!(kind((200, item(json!({ "status_code": 200 })))).await, ErrorKind::NotFound);
        assert_eq!(kind((200, json!({ "items": [] }))).await, ErrorKind::NotFound);
        let other = json!({ "items": [{ "request_id": "r2", "status_code": 200, "json_output": images }] });
        assert_eq!(kind((200, other)).await, ErrorKind::NotFound);
        for status in [401, 403, 404, 422] {
            assert_eq!(kind((status, json!({ "detail": "no" }))).await, ErrorKind::NotFound, "{status}");
        }
        // Nobody can tell now: it is not lost yet.
        assert_eq!(kind((503, json!("nginx"))).await, ErrorKind::Unavailable);
        assert_eq!(kind((429, json!({ "detail": "slow down" }))).await, ErrorKind::RateLimited);
    }
}

#[tokio::test]
async fn a_run_that_only_its_webhook_told_of_is_in_the_history_under_one_of_its_apps_endpoints() {
    let images = json!({ "images": [{ "url": "https://v3.fal.media/o.png" }] });
    let item = json!({ "request_id": "r1", "ended_at": "", "status_code": 200, "json_output": images });
    for app in ["flux", "none"] {
        let item = item.clone();
        let server = Server::start(move |_, path| match path {
            "/v1/models/requests/by-endpoint" => json_of(200, &[], &json!({ "items": [item] })),
            path if path == format!("/fal-ai/{app}/requests/r1/status") => {
                json_of(200, &[], &json!({ "status": "COMPLETED" }))
            }
            // Another app's way to say that it knows nothing of it.
            path if path.starts_with("/fal-ai/veo3/") => json_of(405, &[], &json!({ "detail": "Method Not Allowed" })),
            _ => json_of(404, &[], &json!({ "status": "NOT_FOUND" })),
        });
        let server = server.await;
        let polled = server.client().poll(&Handle::new("fal".into(), "r1")).await;
        match app {
            "flux" => drop(output(polled.unwrap())),
            // Nowhere a clear yes, and somewhere no clear no: not lost yet.
            _ => assert_eq!(polled.unwrap_err().kind(), ErrorKind::Protocol),
        }
    }
}

#[tokio::test]
async fn a_link_that_leads_elsewhere_is_never_called() {
    let elsewhere = Server::start(|_, _| json_of(200, &[], &json!({ "status": "COMPLETED" }))).await;
    let url = elsewhere.url.clone();
    let server = Server::start(move |method, path| match (method, path) {
        ("POST", _) => json_of(
            200,
            &[],
            &json!({
                "request_id": "r1", "status_url": format!("{url}/s"), "response_url": format!("{url}/r"),
                "cancel_url": format!("{url}/c"),
            }),
        ),
        ("PUT", "/fal-ai/flux/requests/r1/cancel") => json_of(202, &[], &json!({ "status": "CANCELLATION_REQUESTED" })),
        ("GET", "/fal-ai/flux/requests/r1/status") => json_of(200, &[], &json!({ "status": "COMPLETED" })),
        ("GET", "/fal-ai/flux/requests/r1") => json_of(200, &[], &json!({ "images": [] })),
        _ => json_of(404, &[], &json!({})),
    });
    let server = server.await;
    let provider = Fal::builder("id:secret").with_base_url(&server.url).with_allowed(elsewhere.addr).build().unwrap();
    let handle = provider.submit(&task(FLUX, image()), &options(&submission_id(&task(FLUX, image())))).await.unwrap();
    assert_eq!(handle.detail, json!({ "endpoint": FLUX }));
    provider.cancel(&handle).await.unwrap();
    assert!(matches!(provider.poll(&handle).await.unwrap().state, RunState::Succeeded(_)));
    // Not even if somebody wrote them into the handle, or they hold what may be a secret.
    for link in [format!("{}/s", elsewhere.url), format!("{}/s?token=1", server.url)] {
        let detail = json!({ "endpoint": FLUX, "status_url": link, "response_url": link, "cancel_url": link });
        let altered = Handle::new("fal".into(), "r1").with_detail(detail);
        provider.poll(&altered).await.unwrap();
        provider.cancel(&altered).await.unwrap();
    }
    assert_eq!(elsewhere.lines(), Vec::<String>::new());
    assert_eq!(server.keys(), server.lines().len());
}

#[tokio::test]
async fn a_picture_is_put_on_another_host_through_the_guard_and_without_the_key() {
    let cdn = Server::start(|_, _| json_of(200, &[], &json!({}))).await;
    let url = cdn.url.clone();
    let server = Server::start(move |_, path| match path {
        "/storage/upload/initiate" => {
            json_of(200, &[], &json!({ "upload_url": format!("{url}/put?s=1"), "file_url": format!("{url}/file") }))
        }
        _ => json_of(200, &[], &json!({ "request_id": "r1" })),
    });
    let server = server.await;
    let task = task(WAN, video(Some(picture(LARGE)), 5));
    let builder = Fal::builder("id:secret").with_base_url(&server.url);
    // A private address that nobody allowed: nothing is bought, and nobody is called.
    let error = builder.clone().build().unwrap().submit(&task, &options(&submission_id(&task))).await.unwrap_err();
    assert_ne!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    assert_eq!((cdn.lines().len(), server.lines().len()), (0, 1));
    let provider = builder.with_allowed(cdn.addr).build().unwrap();
    provider.submit(&task, &options(&submission_id(&task))).await.unwrap();
    assert_eq!((cdn.lines(), cdn.keys()), (vec!["PUT /put".to_owned()], 0));
}

#[tokio::test]
async fn an_upload_that_fails_has_bought_nothing() {
    for (status, kinds) in [
        (401, [ErrorKind::Unauthorized; 2]),
        (403, [ErrorKind::Unauthorized; 2]),
        (500, [ErrorKind::Unavailable; 2]),
        (422, [ErrorKind::Invalid; 2]),
    ] {
        let server = Server::start(move |_, _| json_of(status, &[], &json!({ "detail": "no" }))).await;
        let task = task(WAN, video(Some(picture(LARGE)), 5));
        let error = server.client().submit(&task, &options(&submission_id(&task))).await.unwrap_err();
        assert!(kinds.contains(&error.kind()), "{status}: {error}");
        assert!(server.lines().iter().all(|line| line == "POST /storage/upload/initiate"), "{:?}", server.lines());
    }
}

#[tokio::test]
async fn an_answer_without_an_id_says_nothing_of_what_was_bought() {
    for body in [json!({}), json!({ "request_id": "" }), json!({ "request_id": 7 }), json!([])] {
        let server = Server::start(move |_, _| json_of(200, &[], &body)).await;
        let task = task(FLUX, image());
        let error = server.client().submit(&task, &options(&submission_id(&task))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
        assert_eq!(server.lines().len(), 1);
    }
}
