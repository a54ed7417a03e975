//! `POST /generate`, `POST /quote` and `GET /status/{id}`: the tutorial's own session, and what
//! is refused.

use axum::body::Body;
use axum::http::Method;
use serde_json::json;
use vidgen_core::{Limits, Usd, Window};
use vidgen_http::RouterOptions;

use crate::support::{Host, by, request, with};

#[tokio::test]
async fn the_tutorials_session_works() {
    let host = Host::new();
    let answer = host
        .post("/api/generate", r#"{"prompt": "a cat in space", "script": "This is a cat floating in space"}"#)
        .await;
    assert_eq!(answer.status, 202);
    let accepted = answer.json();
    let id = accepted["job_id"].as_str().unwrap().to_owned();
    // image, video, compose and thumbnail one after the other; speech beside them.
    assert_eq!(accepted, json!({ "job_id": id, "status": "queued", "estimated_time_seconds": 6 }));
    assert_eq!(answer.header("location"), format!("/api/status/{id}"));

    let answer = host.get(&format!("/api/status/{id}")).await;
    assert_eq!((answer.status.as_u16(), answer.header("cache-control")), (200, "no-store"));
    let queued = json!({ "job_id": id, "status": "queued", "progress": 0, "created_at": "2026-01-01T00:00:00Z" });
    assert_eq!(answer.json(), queued);

    host.complete(id.parse().unwrap()).await;
    let status = host.get(&format!("/api/status/{id}")).await.json();
    assert_eq!((&status["status"], &status["progress"]), (&json!("completed"), &json!(100)));
    assert_eq!((&status["cost"], &status["completed_at"]), (&json!(0.0), &json!("2026-01-01T00:00:00Z")));
    assert_eq!(status["output"]["duration_seconds"], json!(3.0));
    let video = status["output"]["video_url"].as_str().unwrap();
    assert!(video.starts_with(&format!("https://x.example/api/media/jobs/{id}/compose-1.mp4?tenant=")), "{video}");
    assert!(status["output"]["thumbnail_url"].as_str().unwrap().contains("thumbnail-1.jpg"));
}

#[tokio::test]
async fn a_failed_job_says_why() {
    let host = Host::new();
    let id = host.job().await;
    host.fail().await;
    let status = host.get(&format!("/api/status/{id}")).await.json();
    assert_eq!((&status["status"], &status["code"]), (&json!("failed"), &json!("content_refused")));
    assert_eq!(status["error"], "the content was refused: no cats");
}

#[tokio::test]
async fn every_bad_field_is_named_at_once_whatever_is_wrong_with_it() {
    let host = Host::new();
    let body = json!({ "prompt": "", "script": 1, "webhook_url": "nonsense", "pipeline": "best", "fps": "many",
        "duration_seconds": 61, "aspect_ratio": "2:1", "extra": true });
    let answer = host.post("/api/generate", body.to_string()).await;
    assert_eq!((answer.status.as_u16(), answer.json()["error"].as_str()), (400, Some("Invalid request")));
    let mut details = answer.details();
    details.sort();
    assert_eq!(
        details,
        [
            "aspect_ratio must be one of 16:9, 9:16, 1:1, 4:3, 3:4",
            "duration_seconds must be from 1 to 60",
            "extra is not a field of a request",
            "fps must be a whole number, at least 0",
            "pipeline must be one of default",
            "prompt must not be empty",
            "script must be a string",
            "webhook_url must be an http or https URL",
        ]
    );
}

#[tokio::test]
async fn what_is_not_a_request_is_400() {
    let host = Host::new();
    let deep = format!(r#"{{"prompt": "x", "metadata": {}1{}}}"#, r#"{"a":"#.repeat(32), "}".repeat(32));
    let table: [(Vec<u8>, &str); 14] = [
        (b"".into(), " must be a JSON object, and is empty"),
        (b"{".into(), " is not JSON (line 1, column 1)"),
        (b"[]".into(), " must be a JSON object"),
        (b"null".into(), " must be a JSON object"),
        (b"\"prompt\"".into(), " must be a JSON object"),
        (b"{\"prompt\": \"\xff\"}".into(), " must be UTF-8"),
        (deep.into(), " must be nested at most 32 deep"),
        (b"{}".into(), "prompt is required"),
        (br#"{"prompt": ""}"#.into(), "prompt must not be empty"),
        (br#"{"prompt": "  \n "}"#.into(), "prompt must not be empty"),
        (br#"{"prompt": null}"#.into(), "prompt must be a string"),
        (br#"{"prompt": "a\u0000b"}"#.into(), "prompt must not contain control characters"),
        (format!(r#"{{"prompt": "{}"}}"#, "ä".repeat(501)).into(), "prompt must be at most 500 characters"),
        (
            br#"{"prompt": "x", "duration_seconds": 11}"#.into(),
            "duration_seconds must be at most 10 for model idle/video",
        ),
    ];
    for (body, detail) in table {
        let name = String::from_utf8_lossy(&body).into_owned();
        let answer = host.post("/api/generate", body).await;
        assert_eq!((answer.status.as_u16(), answer.details()), (400, vec![detail.to_owned()]), "{name}");
        assert_eq!(answer.json()["error"], "Invalid request");
    }
}

#[tokio::test]
async fn the_longest_prompt_is_fine_in_any_script() {
    let host = Host::new();
    for letter in ["a", "ä", "猫", "🐈"] {
        let body = json!({ "prompt": letter.repeat(500), "script": letter.repeat(1000), "duration_seconds": 1.5 });
        assert_eq!(host.post("/api/generate", body.to_string()).await.status, 202, "{letter}");
    }
}

#[tokio::test]
async fn unknown_fields_are_422_and_each_is_named() {
    let host = Host::new();
    let answer = host.post("/api/generate", r#"{"prompt": "x", "promt": 1, "Script": "y"}"#).await;
    assert_eq!((answer.status.as_u16(), answer.json()["code"].as_str()), (422, Some("unknown_field")));
    assert_eq!(answer.details(), ["promt is not a field of a request", "Script is not a field of a request"]);
}

#[tokio::test]
async fn only_json_of_a_sane_size_is_read() {
    let host = Host::new();
    let post = |content_type: &str, body: String| {
        let mut request = with("content-type", content_type, request(Method::POST, "/api/generate", body));
        if content_type.is_empty() {
            request.headers_mut().remove("content-type");
        }
        host.send(request)
    };
    let fine = || r#"{"prompt": "x"}"#.to_owned();
    for (content_type, status) in [
        ("application/json", 202),
        ("Application/JSON; charset=utf-8", 202),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/jsonp", 415),
        ("", 415),
    ] {
        assert_eq!(post(content_type, fine()).await.status, status, "{content_type}");
    }
    assert_eq!(post("", String::new()).await.status, 400);
    let gzip = with("content-encoding", "gzip", request(Method::POST, "/api/generate", fine()));
    assert_eq!(host.send(gzip).await.status, 415);

    let large = format!(r#"{{"prompt": "{}"}}"#, "x".repeat(256 * 1024));
    let answer = host.post("/api/generate", large.clone()).await;
    assert_eq!((answer.status.as_u16(), answer.json()["code"].as_str()), (413, Some("payload_too_large")));
    // Without a length that gives it away.
    let chunks = futures::stream::iter([Ok::<_, std::io::Error>(large.clone()), Ok(large)]);
    assert_eq!(host.post("/api/generate", Body::from_stream(chunks)).await.status, 413);
}

#[tokio::test]
async fn a_key_makes_one_job_of_two_calls() {
    let host = Host::new();
    let keyed =
        |body: &'static str| host.send(with("idempotency-key", "k 1", request(Method::POST, "/api/generate", body)));
    let first = keyed(r#"{"prompt": "x", "seed": 1}"#).await;
    host.complete(first.json()["job_id"].as_str().unwrap().parse().unwrap()).await;
    let second = keyed(r#"{"seed": 1, "prompt": "x"}"#).await;
    assert_eq!((first.status.as_u16(), first.header("idempotent-replayed")), (202, ""));
    assert_eq!((second.status.as_u16(), second.header("idempotent-replayed")), (202, "true"));
    assert_eq!(first.body, second.body);
    assert_eq!(first.header("location"), second.header("location"));

    let other = keyed(r#"{"prompt": "y"}"#).await;
    assert_eq!((other.status.as_u16(), other.json()["code"].as_str()), (422, Some("idempotency_conflict")));
    // What was refused is not remembered.
    let refused = with("idempotency-key", "k 2", request(Method::POST, "/api/generate", r#"{"prompt": ""}"#));
    assert_eq!(host.send(refused).await.status, 400);
    let mended = with("idempotency-key", "k 2", request(Method::POST, "/api/generate", r#"{"prompt": "x"}"#));
    assert_eq!(host.send(mended).await.status, 202);
}

#[tokio::test]
async fn a_malformed_key_is_400() {
    let host = Host::new();
    let post = || request(Method::POST, "/api/generate", r#"{"prompt": "x"}"#);
    let mut twice = with("idempotency-key", "a", post());
    twice.headers_mut().append("idempotency-key", "b".parse().unwrap());
    let mut high = post();
    high.headers_mut().insert("idempotency-key", axum::http::HeaderValue::from_bytes(b"\xe4").unwrap());
    let long = with("idempotency-key", &"k".repeat(256), post());
    let empty = with("idempotency-key", "", post());
    for bad in [twice, high, long, empty, with("idempotency-key", "a\tb", post())] {
        let answer = host.send(bad).await;
        assert_eq!(answer.status, 400);
        assert_eq!(answer.details(), ["Idempotency-Key must be 1 to 255 printable ASCII characters"]);
    }
}

#[tokio::test]
async fn two_tenants_may_use_the_same_key() {
    let host = Host::new();
    let keyed = |tenant| {
        let post = request(Method::POST, "/api/generate", r#"{"prompt": "x"}"#);
        host.send(by(tenant, with("idempotency-key", "k", post)))
    };
    let (a, b) = (keyed("ada").await, keyed("bob").await);
    assert_ne!(a.json()["job_id"], b.json()["job_id"]);
    assert_eq!(b.header("idempotent-replayed"), "");
}

#[tokio::test]
async fn limits_answer_429_and_402() {
    let limits = |change: fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        Host::with(limits, RouterOptions::single_tenant())
    };
    let live = limits(|l| l.live_jobs = Some(1));
    live.job().await;
    let answer = live.post("/api/generate", r#"{"prompt": "x"}"#).await;
    assert_eq!((answer.status.as_u16(), answer.json()["code"].as_str()), (429, Some("rate_limited")));
    assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);

    let budget = limits(|l| {
        let per = std::time::Duration::from_secs(86_400);
        l.budget = Some(Window { limit: Usd::from_cents(59), per });
    });
    let answer = budget.post("/api/generate", r#"{"prompt": "x"}"#).await;
    assert_eq!((answer.status.as_u16(), answer.json()["code"].as_str()), (402, Some("over_budget")));
}

#[tokio::test]
async fn a_quote_says_what_it_costs_and_makes_no_job() {
    let host = Host::new();
    let quote = host.post("/api/quote", r#"{"prompt": "x", "script": "y"}"#).await.json();
    assert_eq!((&quote["cost"], &quote["max_cost"]), (&json!(0.65), &json!(0.65)));
    assert_eq!((&quote["estimated_time_seconds"], quote["steps"].as_array().unwrap().len()), (&json!(6), 5));
    assert_eq!(host.get("/api/jobs").await.json(), json!({ "jobs": [] }));
    assert_eq!(host.post("/api/quote", r#"{"prompt": ""}"#).await.status, 400);
}
