//! What each error of each envelope means.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::Response;
use vidgen_core::ErrorKind;
use vidgen_providers::lab::{Play, Refusal};

use super::*;

type Script = Arc<Mutex<VecDeque<(u16, Vec<(&'static str, &'static str)>, Value)>>>;

/// A server that answers what it is told, in turn.
async fn scripted(script: Script) -> String {
    let answer = async |State(script): State<Script>| {
        let (status, headers, body) = script.lock().unwrap().pop_front().unwrap();
        let headers = headers.into_iter().fold(Response::builder().status(status), |r, (k, v)| r.header(k, v));
        headers.body(Body::from(body.to_string())).unwrap()
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/v1", listener.local_addr().unwrap());
    let app = Router::new().fallback(answer).with_state(script);
    tokio::spawn(async move { axum::serve(listener, app).await });
    base
}

fn error(message: &str, kind: &str, code: Value) -> Value {
    json!({ "error": { "message": message, "type": kind, "param": null, "code": code } })
}

#[tokio::test]
async fn each_error_of_a_submit_has_its_kind() {
    let invalid = "invalid_request_error";
    let cases = [
        (400, error("bad size", invalid, Value::Null), ErrorKind::Invalid),
        (400, error("blocked", "image_generation_user_error", json!("moderation_blocked")), ErrorKind::Refused),
        (400, error("blocked", invalid, json!("content_policy_violation")), ErrorKind::Refused),
        (400, error("blocked", invalid, json!("content_filter")), ErrorKind::Refused),
        (403, error("blocked", invalid, json!("moderation_blocked")), ErrorKind::Refused),
        (400, error("litellm.ContentPolicyViolationError: x", "None", json!("400")), ErrorKind::Refused),
        (400, error("limit", invalid, json!("billing_hard_limit_reached")), ErrorKind::OverBudget),
        (400, error("spent", "budget_exceeded", json!("400")), ErrorKind::OverBudget),
        (401, error("bad key", invalid, json!("invalid_api_key")), ErrorKind::Unauthorized),
        (402, error("pay", "billing", Value::Null), ErrorKind::OverBudget),
        (
            403,
            error("country", "request_forbidden", json!("unsupported_country_region_territory")),
            ErrorKind::Unauthorized,
        ),
        (404, error("no model", invalid, json!("model_not_found")), ErrorKind::NotFound),
        (400, error("no model", invalid, json!("model_not_found")), ErrorKind::NotFound),
        (413, error("too large", invalid, Value::Null), ErrorKind::Invalid),
        (
            422,
            json!({ "detail": [{ "loc": ["body", "seconds"], "msg": "bad", "type": "value_error" }] }),
            ErrorKind::Invalid,
        ),
        (400, json!({ "detail": "input_reference is required" }), ErrorKind::Invalid),
        (404, json!({ "detail": "Not Found" }), ErrorKind::NotFound),
        (429, error("slow down", "requests", json!("rate_limit_exceeded")), ErrorKind::RateLimited),
        (429, error("quota", "insufficient_quota", json!("insufficient_quota")), ErrorKind::OverBudget),
        (429, error("quota", "insufficient_quota", Value::Null), ErrorKind::OverBudget),
        (429, json!({ "detail": "queue is full" }), ErrorKind::RateLimited),
        // Anything else may have bought something.
        (408, error("late", "timeout", Value::Null), ErrorKind::OutcomeUnknown),
        (409, error("conflict", invalid, Value::Null), ErrorKind::OutcomeUnknown),
        (302, json!({}), ErrorKind::OutcomeUnknown),
        (500, error("blocked", "server_error", json!("moderation_blocked")), ErrorKind::OutcomeUnknown),
        (503, error("overloaded", "server_error", Value::Null), ErrorKind::OutcomeUnknown),
        (504, json!("gateway"), ErrorKind::OutcomeUnknown),
        // And so may an answer that says nothing of it.
        (200, json!({}), ErrorKind::OutcomeUnknown),
        (200, json!({ "id": "" }), ErrorKind::OutcomeUnknown),
        (200, error("oops", "server_error", Value::Null), ErrorKind::OutcomeUnknown),
        (200, json!({ "data": [] }), ErrorKind::OutcomeUnknown),
        (200, json!({ "data": [{}] }), ErrorKind::OutcomeUnknown),
        (200, json!({ "data": [{ "b64_json": "not base64!" }] }), ErrorKind::OutcomeUnknown),
    ];
    let script = Script::default();
    let base = scripted(script.clone()).await;
    let provider = builder("sk-x", &base, Dialect::OpenAi).build().unwrap();
    let store: Arc<MemoryStore> = Arc::default();
    for (status, body, kind) in cases {
        for task in [task("acme-video", video(None, 4)), task("gpt-image-1", image()), task("tts-1", speech(None))] {
            let json = vec![("content-type", "application/json")];
            script.lock().unwrap().push_back((status, json, body.clone()));
            let id = submission_id(&task);
            let options = SubmitOptions::new(id.clone()).with_spool(Spool::new(store.clone(), &id).unwrap());
            let error = provider.submit(&task, &options).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{status} {body}: {error:?}");
            assert!(script.lock().unwrap().is_empty(), "one request, and no more");
        }
    }
}

#[tokio::test]
async fn what_is_wrong_is_said_without_what_was_asked() {
    let script = Script::default();
    let base = scripted(script.clone()).await;
    let provider = builder("sk-x", &base, Dialect::OpenAi).build().unwrap();
    let problem =
        |message: &str| json!({ "detail": [{ "loc": ["body", "seconds"], "msg": message, "input": PROMPT }] });
    for (body, said) in [
        (problem("must be a number"), "the remote answered 422: seconds: must be a number".to_owned()),
        (problem(&format!("not a number: {PROMPT}")), "the remote answered 422: seconds: not a number: …".to_owned()),
        (problem(&PROMPT[..20]), "the remote answered 422".to_owned()),
        (error("No.", "invalid_request_error", Value::Null), "the remote answered 422: No.".to_owned()),
    ] {
        script.lock().unwrap().push_back((422, vec![], body));
        let task = task("acme-video", video(None, 4));
        let error = provider.submit(&task, &options(&submission_id(&task))).await.unwrap_err();
        assert_eq!(error.message(), said);
    }
}

#[tokio::test]
async fn an_image_that_is_too_long_is_not_read_to_its_end() {
    let script = Script::default();
    let base = scripted(script.clone()).await;
    let provider = builder("sk-x", &base, Dialect::OpenAi).build().unwrap();
    let task = task("gpt-image-1", image());
    let id = submission_id(&task);
    let spool = Spool::new(Arc::<MemoryStore>::default(), &id).unwrap();
    let body = json!({ "data": [{ "b64_json": "A".repeat(30 << 20) }] });
    script.lock().unwrap().push_back((200, vec![], body));
    let error = provider.submit(&task, &SubmitOptions::new(id).with_spool(spool.clone())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    assert!(error.message().contains("too long"), "{error}");
    assert!(spool.kept().await.unwrap().is_none());
}

#[tokio::test]
async fn a_wait_is_read_wherever_it_stands() {
    let seconds = Duration::from_secs;
    let cases = [
        (vec![("retry-after", "7")], Some(seconds(7))),
        (vec![("retry-after-ms", "250"), ("retry-after", "7")], Some(Duration::from_millis(250))),
        (vec![("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-reset-requests", "6m0s")], Some(seconds(360))),
        (
            vec![
                ("x-ratelimit-remaining-requests", "0"),
                ("x-ratelimit-reset-requests", "12ms"),
                ("x-ratelimit-remaining-tokens", "0"),
                ("x-ratelimit-reset-tokens", "1h2m3s"),
            ],
            Some(seconds(3723)),
        ),
        (vec![("x-ratelimit-remaining-requests", "3"), ("x-ratelimit-reset-requests", "6m0s")], None),
        (vec![("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-reset-requests", "soon")], None),
        (vec![], None),
    ];
    let script = Script::default();
    let base = scripted(script.clone()).await;
    let provider = builder("sk-x", &base, Dialect::OpenAi).build().unwrap();
    for (headers, wait) in cases {
        let body = error("slow down", "requests", json!("rate_limit_exceeded"));
        script.lock().unwrap().push_back((429, headers.clone(), body));
        let error = provider.poll(&Handle::new("openai".into(), "v")).await.unwrap_err();
        assert_eq!((error.kind(), error.retry_after()), (ErrorKind::RateLimited, wait), "{headers:?}");
    }
}

#[tokio::test]
async fn every_word_for_a_state_is_understood() {
    use vidgen_core::RunState;
    let script = Script::default();
    let base = scripted(script.clone()).await;
    let provider = builder("sk-x", &base, Dialect::OpenAi).build().unwrap();
    let name = |state: &RunState| match state {
        RunState::Running => "running",
        RunState::Succeeded(_) => "succeeded",
        RunState::Failed(_) => "failed",
        RunState::Canceled => "canceled",
        _ => "other",
    };
    for (status, expected) in [
        ("queued", "running"),
        ("in_progress", "running"),
        ("pending", "running"),
        ("processing", "running"),
        ("deleted", "running"),
        ("anything", "running"),
        ("completed", "succeeded"),
        ("SUCCEEDED", "succeeded"),
        ("success", "succeeded"),
        ("failed", "failed"),
        ("expired", "failed"),
        ("cancelled", "canceled"),
        ("canceled", "canceled"),
    ] {
        for error in [Value::Null, json!("text")] {
            let body = json!({ "id": "v", "status": status, "progress": 140.5, "error": error });
            script.lock().unwrap().push_back((200, vec![("openai-poll-after-ms", "99999999")], body));
            let snapshot = provider.poll(&Handle::new("openai".into(), "v")).await.unwrap();
            assert_eq!(name(&snapshot.state), expected, "{status}");
            let sane = expected != "running" || snapshot.poll_after == Some(Duration::from_secs(300));
            assert!(sane && snapshot.progress.is_none_or(|p| p <= 1.0), "{snapshot:?}");
        }
    }
    // Without a state it says nothing.
    script.lock().unwrap().push_back((200, vec![], json!({ "id": "v" })));
    let error = provider.poll(&Handle::new("openai".into(), "v")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol);
}

#[tokio::test]
async fn a_gateways_own_name_for_an_id_is_taken() {
    let script = Script::default();
    let base = scripted(script.clone()).await;
    let provider = builder("sk-x", &base, Dialect::OpenAi).build().unwrap();
    let task = task("acme-video", video(None, 4));
    for (status, body) in [
        (202, json!({ "task_id": "t1", "status": "pending" })),
        (201, json!({ "id": "t1", "task_id": "other" })),
        (200, json!({ "id": "t1", "status": "failed", "error": { "code": "moderation_blocked" } })),
    ] {
        script.lock().unwrap().push_back((status, vec![], body));
        let handle = provider.submit(&task, &options(&submission_id(&task))).await.unwrap();
        assert_eq!(handle, Handle::new("openai".into(), "t1"));
    }
}

#[tokio::test]
async fn a_content_that_is_asked_for_too_early_or_in_vain_says_so() {
    let script = Script::default();
    let base = scripted(script.clone()).await;
    let provider = builder("sk-x", &base, Dialect::OpenAi).build().unwrap();
    let output = vidgen_core::Output::new("v");
    for (refusal, status, kind) in [
        (409, "in_progress", ErrorKind::Unavailable),
        (400, "in_progress", ErrorKind::Unavailable),
        (422, "failed", ErrorKind::NotFound),
        (400, "failed", ErrorKind::NotFound),
        (422, "completed", ErrorKind::Protocol),
    ] {
        script.lock().unwrap().push_back((refusal, vec![], json!({ "detail": "no" })));
        script.lock().unwrap().push_back((200, vec![], json!({ "id": "v", "status": status })));
        let error = provider.open(&output).await.map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), kind, "{refusal} {status}: {error:?}");
    }
    for (refusal, kind) in [(404, ErrorKind::NotFound), (410, ErrorKind::NotFound), (401, ErrorKind::Unauthorized)] {
        script.lock().unwrap().push_back((refusal, vec![], json!({ "detail": "no" })));
        assert_eq!(provider.open(&output).await.map(|_| ()).unwrap_err().kind(), kind, "{refusal}");
    }
}

#[tokio::test]
async fn each_refusal_of_the_lab_has_its_kind() {
    let set = set(lab::openai(), Dialect::OpenAi).await;
    for (refusal, kind) in [
        (Refusal::NoCredit, ErrorKind::OverBudget),
        (Refusal::Invalid("too long".into()), ErrorKind::Invalid),
        (Refusal::Moderated("flagged".into()), ErrorKind::Refused),
        (Refusal::BadKey, ErrorKind::Unauthorized),
        (Refusal::NotFound, ErrorKind::NotFound),
        (Refusal::Busy, ErrorKind::RateLimited),
        (Refusal::Unavailable, ErrorKind::OutcomeUnknown),
    ] {
        for task in [task("acme-video", video(None, 4)), task("gpt-image-1", image()), task("tts-1", speech(None))] {
            set.lab.then(None, Play::refuses_for(refusal.clone()));
            let error = set.submit(&task).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{refusal:?}: {error}");
        }
    }
    assert_eq!((set.lab.accepted().len(), set.lab.posts()), (0, 21));
    let set = super::set(lab::openai().with_reset_headers(), Dialect::OpenAi).await;
    set.lab.always(Play::rate_limits(Duration::from_secs(9)));
    let error = set.submit(&task("tts-1", speech(None))).await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(9)));
}

#[tokio::test]
async fn a_rotated_key_is_used_at_once() {
    let set = set(lab::openai(), Dialect::OpenAi).await;
    let provider = builder("sk-old", &set.lab.base_url(), Dialect::OpenAi).build().unwrap();
    let clone = provider.clone();
    let task = task("acme-video", video(None, 4));
    let submit = async || clone.submit(&task, &options(&submission_id(&task))).await;
    assert_eq!(submit().await.unwrap_err().kind(), ErrorKind::Unauthorized);
    provider.rotate_key(set.lab.key()).unwrap();
    submit().await.unwrap();
}

#[tokio::test]
async fn there_is_no_search_and_no_callback() {
    let set = set(lab::openai(), Dialect::OpenAi).await;
    let task = task("acme-video", video(None, 4));
    let id = submission_id(&task);
    let capabilities = set.provider.capabilities();
    assert!(!capabilities.find && !capabilities.callback && capabilities.resubmit == vidgen_core::Resubmit::Never);
    let error = set.provider.find(&submission(&set.provider, &task, &id, None)).await.unwrap_err();
    assert_eq!((error.kind(), set.lab.requests().len()), (ErrorKind::Unsupported, 0));
}
