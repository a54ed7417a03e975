//! One error shape, whoever refuses: a golden body for each code.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::{Value, json};
use vidgen_core::{Error, ErrorKind, Limits, MediaKey, Pipeline, Store, Usd, Vidgen, Window};
use vidgen_http::RouterOptions;

use crate::support::{Host, Idle, request, with};

fn golden(status: u16, error: &str, code: &str, instance: &str, detail: Option<&str>, details: Value) -> Value {
    let mut body = json!({
        "type": format!("urn:vidgen:problem:{code}"), "title": error, "status": status, "instance": instance,
        "error": error, "code": code, "details": details, "request_id": "r-1",
    });
    if let Some(detail) = detail {
        body["detail"] = detail.into();
    }
    body
}

async fn check(host: &Host, request: Request<Body>, expected: Value) {
    let answer = host.send(with("x-request-id", "r-1", request)).await;
    assert_eq!(answer.json(), expected);
    assert_eq!(u64::from(answer.status.as_u16()), expected["status"].as_u64().unwrap());
    assert_eq!(answer.header("content-type"), "application/problem+json");
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(answer.header("x-request-id"), "r-1");
}

fn create(body: &'static str) -> Request<Body> {
    request(Method::POST, "/api/generate", body)
}

#[tokio::test]
async fn refusals_of_a_request() {
    let host = Host::new();
    let prompt = json!([{ "field": "prompt", "message": "must not be empty" }]);
    let expected = golden(400, "Invalid request", "invalid_request", "/api/generate", None, prompt);
    check(&host, create(r#"{"prompt": ""}"#), expected).await;

    let unknown = json!([{ "field": "x", "message": "is not a field of a request" }]);
    let expected = golden(422, "Invalid request", "unknown_field", "/api/generate", None, unknown);
    check(&host, create(r#"{"prompt": "p", "x": 1}"#), expected).await;

    let detail = Some("send JSON as application/json");
    let expected = golden(415, "Unsupported media type", "unsupported_media_type", "/api/generate", detail, json!([]));
    check(&host, with("content-type", "text/plain", create("{}")), expected).await;

    let detail = Some("the body may have 256 KiB");
    let expected = golden(413, "Payload too large", "payload_too_large", "/api/generate", detail, json!([]));
    check(&host, request(Method::POST, "/api/generate", vec![b' '; 256 * 1024 + 1]), expected).await;

    host.send(with("idempotency-key", "k", create(r#"{"prompt": "a"}"#))).await;
    let detail = Some("this Idempotency-Key was used for another request");
    let expected = golden(422, "Idempotency key reused", "idempotency_conflict", "/api/generate", detail, json!([]));
    check(&host, with("idempotency-key", "k", create(r#"{"prompt": "b"}"#)), expected).await;
}

#[tokio::test]
async fn refusals_by_path_and_method() {
    let host = Host::new();
    let get = |path: &str| request(Method::GET, path, Body::empty());
    let expected = golden(404, "Job not found", "not_found", "/api/status/1234", None, json!([]));
    check(&host, get("/api/status/1234"), expected).await;
    for path in ["/api/nowhere", "/api/status", "/api/jobs/a/b", "/api/generate/"] {
        check(&host, get(path), golden(404, "Not found", "not_found", path, None, json!([]))).await;
    }
    let expected = golden(405, "Method not allowed", "method_not_allowed", "/api/generate", None, json!([]));
    check(&host, get("/api/generate"), expected).await;
    assert_eq!(host.get("/api/generate").await.header("allow"), "POST");

    let detail = Some("this link was not made here, or was changed");
    let expected = golden(403, "Forbidden", "link_invalid", "/api/media/a.mp4", detail, json!([]));
    check(&host, get("/api/media/a.mp4?sig=secret"), expected).await;
}

#[tokio::test]
async fn refusals_by_limits_and_sign_in() {
    let host = Host::with(Limits::default(), RouterOptions::authenticated());
    let expected = golden(401, "Unauthorized", "unauthorized", "/api/generate", None, json!([]));
    check(&host, create(r#"{"prompt": "x"}"#), expected).await;

    let budget = Window { limit: Usd::ZERO, per: Duration::from_secs(3600) };
    let limits = Limits { budget: Some(budget), ..Limits::default() };
    let host = Host::with(limits, RouterOptions::single_tenant());
    let answer = host.send(with("x-request-id", "r-1", create(r#"{"prompt": "x"}"#))).await.json();
    let detail = answer["detail"].as_str();
    assert!(detail.is_some());
    assert_eq!(answer, golden(402, "Budget exceeded", "over_budget", "/api/generate", detail, json!([])));

    let creates = Window { limit: 0, per: Duration::from_secs(3600) };
    let limits = Limits { creates: Some(creates), ..Limits::default() };
    let host = Host::with(limits, RouterOptions::single_tenant());
    let answer = host.send(with("x-request-id", "r-1", create(r#"{"prompt": "x"}"#))).await;
    assert_eq!(answer.header("retry-after"), "3600");
    let json = answer.json();
    assert_eq!(
        json,
        golden(429, "Too many requests", "rate_limited", "/api/generate", json["detail"].as_str(), json!([]))
    );
}

#[tokio::test]
async fn a_job_that_ended_meanwhile_is_409() {
    let host = Host::new();
    let id = host.job().await;
    let path = format!("/api/jobs/{id}/retry");
    let answer = host.send(with("x-request-id", "r-1", request(Method::POST, &path, Body::empty()))).await.json();
    assert_eq!(answer, golden(409, "Conflict", "conflict", &path, answer["detail"].as_str(), json!([])));
}

/// A store of which every link is a fault of one kind, or a panic.
#[derive(Debug)]
struct Broken(Option<ErrorKind>);

#[async_trait::async_trait]
impl Store for Broken {
    async fn put(&self, _: &MediaKey, _: vidgen_core::Body) -> vidgen_core::Result<u64> {
        Ok(0)
    }
    async fn get(&self, _: &MediaKey, _: Option<vidgen_core::ByteRange>) -> vidgen_core::Result<vidgen_core::Media> {
        Err(Error::internal("broken", "as it should"))
    }
    async fn head(&self, _: &MediaKey) -> vidgen_core::Result<vidgen_core::MediaHead> {
        Err(Error::internal("broken", "as it should"))
    }
    async fn link(&self, _: &MediaKey, _: Duration) -> vidgen_core::Result<Option<url::Url>> {
        match self.0 {
            Some(kind) => Err(Error::new(kind, "broken", "a secret cause")),
            None => panic!("a secret cause"),
        }
    }
    async fn delete(&self, _: &MediaKey) -> vidgen_core::Result<()> {
        Ok(())
    }
    async fn delete_prefix(&self, _: &str) -> vidgen_core::Result<u64> {
        Ok(0)
    }
}

/// A completed job whose status cannot be told, since its links cannot be made.
async fn broken(fault: Option<ErrorKind>) -> (Host, String) {
    let mut host = Host::new();
    let id = host.job().await;
    host.complete(id).await;
    let vidgen = Vidgen::builder()
        .queue(host.queue.clone())
        .store(Broken(fault))
        .pipeline(Pipeline::named("default").video(Idle))
        .build()
        .unwrap();
    let api = vidgen_http::router(&vidgen, RouterOptions::single_tenant());
    host.router = axum::Router::new().nest("/api", api);
    (host, format!("/api/status/{id}"))
}

#[tokio::test]
async fn faults_of_ours_say_an_id_and_nothing_else() {
    for fault in [Some(ErrorKind::Internal), Some(ErrorKind::Protocol), Some(ErrorKind::Unauthorized), None] {
        let (host, path) = broken(fault).await;
        let expected = golden(500, "Internal server error", "internal", &path, None, json!([]));
        check(&host, request(Method::GET, &path, Body::empty()), expected).await;
    }
    let (host, path) = broken(Some(ErrorKind::Unavailable)).await;
    let expected = golden(503, "Service unavailable", "unavailable", &path, None, json!([]));
    check(&host, request(Method::GET, &path, Body::empty()), expected).await;
    assert_eq!(host.get(&path).await.header("retry-after"), "5");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_408() {
    let host = Host::new();
    let body = Body::from_stream(futures::stream::pending::<Result<bytes::Bytes, std::io::Error>>());
    let expected = golden(408, "Request timeout", "request_timeout", "/api/generate", None, json!([]));
    check(&host, request(Method::POST, "/api/generate", body), expected).await;
}

#[tokio::test]
async fn a_request_id_is_taken_over_if_it_is_sane() {
    let host = Host::new();
    for sane in ["a", "0af7651916cd43dd8448eb211c80319c", "A.b_c-1"] {
        let answer = host.send(with("x-request-id", sane, request(Method::GET, "/api/jobs", Body::empty()))).await;
        assert_eq!(answer.header("x-request-id"), sane);
    }
    for odd in ["", "a b", "a\tb", "<script>", &"x".repeat(129)] {
        let answer = host.send(with("x-request-id", odd, request(Method::GET, "/api/x", Body::empty()))).await;
        assert!(answer.header("x-request-id").starts_with("req_"), "{odd}");
        assert_eq!(answer.json()["request_id"], answer.header("x-request-id"));
    }
}

#[tokio::test]
async fn an_answer_to_head_has_no_body() {
    let host = Host::new();
    let answer = host.send(request(Method::HEAD, "/api/nowhere", Body::empty())).await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (404, 0));
}
