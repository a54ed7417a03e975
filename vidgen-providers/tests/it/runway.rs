//! Runway against its lab: the rules of the kit, and what exactly goes out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use serde_json::{Value, json};
use vidgen_core::conformance::provider::Scene;
use vidgen_core::memory::{MemoryQueue, MemoryStore};
use vidgen_core::{
    AspectRatio, ErrorKind, Handle, JobRequest, Lengths, Pipeline, Provider, ProviderExt, Result, RunState, StepKind,
    SubmitOptions, Task, TaskSpec, Usage, Usd, VideoTask, Vidgen,
};
use vidgen_providers::lab::kit::{LabFixture, Site};
use vidgen_providers::lab::{self, Class, Lab, OnCancel, Play, Refusal, Seen, Serving, Setup};
use vidgen_providers::runway::Runway;

use crate::answers::answering;
use crate::remote::*;

const GEN: &str = "gen4.5";
/// More than goes into a data URI.
const LARGE: usize = 4_000_000;

type Client = fn(&Site) -> Runway;

fn fixture(remote: fn() -> lab::Runway, task: Task) -> LabFixture<Client> {
    let client: Client = |site| Runway::builder(site.key.as_str()).with_base_url(&site.base_url).build().unwrap();
    LabFixture::new(remote, task, client)
        .with_unknown_handle(Handle::new("runway".into(), "0f3c6a52-no-such-task"))
        .with_secrets([PROMPT])
        // Content is refused when the task has begun.
        .with_play(|scene, play| if scene == Scene::Refuses { Play::refuses_in_run() } else { play })
        .impossible(Scene::StatesCost, "it states credits, which the table prices")
}

macro_rules! conformance {
    ($name:ident, $remote:expr, $task:expr) => {
        vidgen_core::provider_conformance!($name, fixture($remote, $task), except: [
            ("p12", "it takes neither key nor reference, and does not call back"),
        ]);
    };
}
conformance!(runway_from_text, lab::runway, task(GEN, video(None, 5)));
conformance!(runway_from_an_upload, lab::runway, task("gen4_turbo", video(Some(picture(LARGE)), 5)));
conformance!(runway_image, lab::runway, task("gen4_image", image()));
conformance!(runway_that_forgets, || lab::runway().forgetting_canceled(), task("veo3.1", video(None, 4)));

/// A client of a lab, and what goes with it.
struct Set {
    lab: Lab,
    provider: Runway,
}

async fn set() -> Set {
    set_with(lab::runway()).await
}

async fn set_with(remote: lab::Runway) -> Set {
    let lab = Lab::start(remote).await;
    let provider = Runway::builder(lab.key()).with_base_url(lab.base_url()).build().unwrap();
    Set { lab, provider }
}

async fn submit(provider: &Runway, task: &Task) -> Result<Handle> {
    provider.submit(task, &SubmitOptions::new(submission_id(task))).await
}

impl Set {
    async fn submit(&self, task: &Task) -> Result<Handle> {
        submit(&self.provider, task).await
    }

    fn requests(&self, class: Class) -> Vec<Seen> {
        self.lab.requests().into_iter().filter(|seen| seen.class == class).collect()
    }

    async fn recorded(&self, task: &Task) -> Value {
        self.submit(task).await.unwrap();
        request(self.requests(Class::Submit).last().unwrap())
    }
}

fn recorded(path: &str, body: Value) -> Value {
    let headers = json!({ "content-type": "application/json", "x-runway-version": "2024-11-06" });
    json!({ "line": format!("POST /v1/{path}"), "headers": headers, "body": body })
}

#[tokio::test]
async fn a_text_becomes_a_video() {
    let body = json!({ "model": "gen4.5", "promptText": PROMPT, "ratio": "1280:720", "duration": 5, "seed": 7 });
    assert_eq!(set().await.recorded(&task(GEN, video(None, 5))).await, recorded("text_to_video", body));
}

#[tokio::test]
async fn a_small_picture_goes_out_with_the_submit_and_extra_fields_do_too() {
    let set = set().await;
    let mut task = task(GEN, video(Some(picture(9)), 5));
    task.extra.insert("contentModeration".into(), json!({ "publicFigureThreshold": "low" }));
    let body = json!({
        "model": "gen4.5", "promptText": PROMPT, "promptImage": "data:image/png;base64,iVBORw0KGgoH",
        "ratio": "1280:720", "duration": 5, "seed": 7, "contentModeration": { "publicFigureThreshold": "low" },
    });
    assert_eq!(set.recorded(&task).await, recorded("image_to_video", body));
    assert_eq!(set.lab.requests().len(), 1);
}

#[tokio::test]
async fn sound_and_what_shall_not_be_seen_go_to_a_model_that_has_words_for_them() {
    let body = json!({
        "model": "veo3.1_fast", "promptText": PROMPT, "negativePrompt": "rain", "ratio": "1280:720", "duration": 6,
        "seed": 7, "audio": true,
    });
    assert_eq!(set().await.recorded(&task("veo3.1_fast", video(None, 6))).await, recorded("text_to_video", body));
}

#[tokio::test]
async fn a_text_becomes_a_picture() {
    let body = json!({ "model": "gen4_image", "promptText": format!("{PROMPT}, ink"), "ratio": "1280:720", "seed": 7 });
    assert_eq!(set().await.recorded(&task("gen4_image", image())).await, recorded("text_to_image", body));
}

#[tokio::test]
async fn a_large_picture_is_uploaded_first_and_storage_never_sees_the_key() {
    for elsewhere in [false, true] {
        let setup = {
            let mut setup = Setup::default();
            setup.outputs_elsewhere = elsewhere;
            setup
        };
        let lab = Lab::start_with(lab::runway(), setup).await.unwrap();
        let builder = Runway::builder(lab.key()).with_base_url(lab.base_url());
        let provider = builder.clone().with_allowed(lab.outputs_addr()).build().unwrap();
        let task = task(GEN, video(Some(picture(LARGE)), 5));
        let handle = submit(&provider, &task).await.unwrap();
        let seen = lab.requests();
        let begin = json!({ "filename": "image.png", "type": "ephemeral" });
        assert_eq!(request(&seen[0]), recorded("uploads", begin));
        let form: Vec<_> = seen[1].form().await.into_iter().map(|f| (f.name, f.file_name, f.content_type)).collect();
        let field = |name: &str| (name.to_owned(), None, None);
        let file = ("file".to_owned(), Some("image.png".to_owned()), Some("image/png".to_owned()));
        assert_eq!(form, [field("key"), field("policy"), field("x-amz-signature"), file]);
        assert_eq!(seen[1].method, "POST");
        assert!(seen[1].path().starts_with("/bucket/"));
        for header in ["authorization", "x-runway-version"] {
            assert!(lab.requests_with_keys()[1].header(header).is_none(), "{header} went to storage");
        }
        let bytes = picture(LARGE).open().await.unwrap().read(LARGE).await.unwrap();
        assert_eq!(lab.uploads()[0].bytes, bytes);
        assert_eq!(seen[2].json()["promptImage"], format!("runway://uploads/{}", lab.uploads()[0].id));
        assert!(matches!(end(&provider, &handle).await.state, RunState::Succeeded(_)));
        if elsewhere {
            // The same address is private to a client that was not told of it: nothing is bought.
            let strict = builder.build().unwrap();
            assert_eq!(submit(&strict, &task).await.unwrap_err().kind(), ErrorKind::Unavailable);
            assert_eq!(lab.posts(), 1);
        }
    }
}

#[tokio::test]
async fn what_waits_for_its_turn_is_running() {
    let set = set().await;
    set.lab.always(Play::succeeds().after_looks(2));
    let handle = set.submit(&task(GEN, video(None, 5))).await.unwrap();
    let throttled = set.provider.poll(&handle).await.unwrap();
    assert!(matches!((throttled.state, throttled.progress), (RunState::Running, None)));
    let running = set.provider.poll(&handle).await.unwrap();
    assert!(matches!((running.state, running.progress), (RunState::Running, Some(done)) if done > 0.5));
    let end = set.provider.poll(&handle).await.unwrap();
    assert!(matches!(end.state, RunState::Succeeded(_)));
    assert_eq!((end.usage, end.cost), (Some(Usage::MilliUnits(60_000)), None));
    let looks = set.requests(Class::Read);
    let line = format!("GET /v1/tasks/{}", handle.remote_id);
    let look = json!({ "line": line, "headers": { "x-runway-version": "2024-11-06" }, "body": "" });
    assert_eq!(looks.iter().map(request).collect::<Vec<_>>(), [look.clone(), look.clone(), look]);
    assert_eq!(set.provider.capabilities().poll_floor, Duration::from_secs(5));
}

#[tokio::test]
async fn an_output_that_expired_is_signed_anew_by_another_look() {
    let set = set().await;
    set.lab.always(Play::succeeds().with_serving_for(1, Serving::Expired));
    let handle = set.submit(&task(GEN, video(None, 5))).await.unwrap();
    let first = output(end(&set.provider, &handle).await);
    assert_eq!(set.provider.open(&first).await.unwrap_err().kind(), ErrorKind::NotFound);
    let second = output(end(&set.provider, &handle).await);
    assert_ne!(first.locator, second.locator);
    assert!(set.provider.open(&second).await.unwrap().read(usize::MAX).await.is_ok());
}

#[tokio::test]
async fn a_live_task_is_looked_at_and_then_canceled() {
    for (remote, used) in [(lab::runway(), Some(60_000)), (lab::runway().forgetting_canceled(), None)] {
        let set = set_with(remote).await;
        set.lab.always(Play::runs());
        let handle = set.submit(&task(GEN, video(None, 5))).await.unwrap();
        set.provider.cancel(&handle).await.unwrap();
        let seen: Vec<_> = set.lab.requests().iter().skip(1).map(request).collect();
        let call = |method: &str| {
            let line = format!("{method} /v1/tasks/{}", handle.remote_id);
            json!({ "line": line, "headers": { "x-runway-version": "2024-11-06" }, "body": "" })
        };
        assert_eq!(seen, [call("GET"), call("DELETE")]);
        let end = end(&set.provider, &handle).await;
        assert!(matches!(end.state, RunState::Canceled), "{end:?}");
        // Where nobody says what it took, nobody says that it took nothing.
        assert_eq!(end.usage, used.map(Usage::MilliUnits));
        // Again: it is not deleted for that.
        if used.is_some() {
            set.provider.cancel(&handle).await.unwrap();
            assert_eq!(set.lab.cancels().len(), 1);
        }
    }
}

#[tokio::test]
async fn a_task_that_ended_is_not_deleted() {
    let set = set().await;
    for play in [Play::succeeds().after_looks(0), Play::fails("no GPU").after_looks(0)] {
        set.lab.then(None, play);
        let handle = set.submit(&task(GEN, video(None, 5))).await.unwrap();
        assert_eq!(set.provider.cancel(&handle).await.unwrap_err().kind(), ErrorKind::TooLate);
        assert!(set.lab.cancels().is_empty());
        end(&set.provider, &handle).await;
    }
}

#[tokio::test]
async fn a_canceled_task_that_goes_on_is_followed_to_its_end() {
    let set = set().await;
    set.lab.always(Play::succeeds().after_looks(3).with_on_cancel(OnCancel::GoesOn));
    let handle = set.submit(&task(GEN, video(None, 5))).await.unwrap();
    set.provider.cancel(&handle).await.unwrap();
    let end = end(&set.provider, &handle).await;
    assert!(matches!(end.state, RunState::Succeeded(_)));
    assert_eq!(end.usage, Some(Usage::MilliUnits(60_000)));
}

#[tokio::test]
async fn a_cancel_whose_first_answer_was_lost_has_worked() {
    let deleted = Arc::new(AtomicUsize::new(0));
    let (looks, deletes) = (deleted.clone(), deleted.clone());
    let look = move || async move {
        match looks.load(Ordering::SeqCst) {
            0 => (StatusCode::OK, r#"{"id":"t","status":"RUNNING","progress":0.5}"#),
            _ => (StatusCode::NOT_FOUND, r#"{"error":"gone"}"#),
        }
    };
    let delete = move || async move {
        if deletes.fetch_add(1, Ordering::SeqCst) == 0 { StatusCode::BAD_GATEWAY } else { StatusCode::NOT_FOUND }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let routes = Router::new().route("/tasks/t", get(look).delete(delete));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    let provider = Runway::builder("k").with_base_url(url).build().unwrap();
    let handle = Handle::new("runway".into(), "t");
    provider.cancel(&handle).await.unwrap();
    assert_eq!(deleted.load(Ordering::SeqCst), 2);
    assert!(matches!(provider.poll(&handle).await.unwrap().state, RunState::Canceled));
    // Another process does not know that it was canceled.
    assert_eq!(provider.cancel(&handle).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn each_refusal_has_its_kind() {
    let set = set_with(lab::runway().without_retry_after()).await;
    let (day, wait) = (Some(Duration::from_secs(600)), Duration::from_secs(9));
    for (refusal, kind, expected) in [
        (Refusal::NoCredit, ErrorKind::OverBudget, None),
        (Refusal::BadKey, ErrorKind::Unauthorized, None),
        (Refusal::Invalid("too long".into()), ErrorKind::Invalid, None),
        (Refusal::NotFound, ErrorKind::NotFound, None),
        (Refusal::RateLimited(wait), ErrorKind::RateLimited, day),
        (Refusal::Busy, ErrorKind::RateLimited, day),
        (Refusal::Unavailable, ErrorKind::OutcomeUnknown, None),
    ] {
        set.lab.then(None, Play::refuses_for(refusal.clone()));
        let error = set.submit(&task(GEN, video(None, 5))).await.unwrap_err();
        assert_eq!((error.kind(), error.retry_after()), (kind, expected), "{refusal:?}: {error}");
    }
    assert_eq!((set.lab.accepted().len(), set.lab.posts()), (0, 7));
    let said = set_with(lab::runway()).await;
    said.lab.always(Play::rate_limits(wait));
    assert_eq!(said.submit(&task(GEN, video(None, 5))).await.unwrap_err().retry_after(), Some(wait));
}

#[tokio::test]
async fn each_status_of_a_refused_submit_has_its_kind() {
    for (status, kind) in [
        (400, ErrorKind::Invalid),
        (401, ErrorKind::Unauthorized),
        (404, ErrorKind::NotFound),
        (405, ErrorKind::OutcomeUnknown),
        (429, ErrorKind::RateLimited),
        (502, ErrorKind::OutcomeUnknown),
        (503, ErrorKind::OutcomeUnknown),
        (504, ErrorKind::OutcomeUnknown),
    ] {
        let url = answering(status, &[], r#"{"error":"no"}"#).await;
        let provider = Runway::builder("k").with_base_url(url).build().unwrap();
        let error = submit(&provider, &task(GEN, video(None, 5))).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{status}: {error}");
    }
}

#[tokio::test]
async fn each_end_is_what_its_code_says_and_billed_as_it_says() {
    let failed = |code: &str| json!({ "status": "FAILED", "failure": "Try again.", "failureCode": code });
    let with = |mut end: Value, credits: Value| {
        end["cost"] = json!({ "credits": credits });
        end
    };
    let milli = |n| Some(Usage::MilliUnits(n));
    for (body, kind, billed, usage) in [
        (with(failed("SAFETY.INPUT.TEXT"), json!(0)), ErrorKind::Refused, false, milli(0)),
        (with(failed("SAFETY.OUTPUT.VIDEO"), json!(60)), ErrorKind::Refused, true, milli(60_000)),
        (with(failed("INPUT_PREPROCESSING.SAFETY.TEXT"), json!(0)), ErrorKind::Refused, false, milli(0)),
        (with(failed("INPUT_PREPROCESSING.INTERNAL"), json!(0)), ErrorKind::Unavailable, false, milli(0)),
        (with(failed("INTERNAL.BAD_OUTPUT.CODE01"), json!(0)), ErrorKind::Unavailable, false, milli(0)),
        (with(failed("ASSET.INVALID"), json!(0.5)), ErrorKind::Invalid, true, milli(500)),
        (with(json!({ "status": "FAILED" }), json!(-1)), ErrorKind::Unavailable, true, None),
        (failed("INTERNAL"), ErrorKind::Unavailable, true, None),
    ] {
        let url = answering(200, &[], &body.to_string()).await;
        let provider = Runway::builder("k").with_base_url(url).build().unwrap();
        let end = provider.poll(&Handle::new("runway".into(), "t")).await.unwrap();
        assert_eq!(end.usage, usage, "{body}");
        match end.state {
            RunState::Failed(failure) => {
                assert_eq!((failure.kind, failure.billed), (kind, billed), "{body}: {failure:?}");
                assert!(!failure.reason.contains("SAFETY"), "a guess at the culprit is not for users");
            }
            other => panic!("{body}: {other:?}"),
        }
    }
    for (body, usage) in [
        (json!({ "status": "CANCELLED", "cost": { "credits": 60 } }), milli(60_000)),
        (json!({ "status": "SUCCEEDED", "output": null }), None),
    ] {
        let url = answering(200, &[], &body.to_string()).await;
        let provider = Runway::builder("k").with_base_url(url).build().unwrap();
        assert_eq!(provider.poll(&Handle::new("runway".into(), "t")).await.unwrap().usage, usage, "{body}");
    }
}

#[tokio::test]
async fn each_model_of_the_table_has_every_shape_and_length_that_it_says() {
    let set = set().await;
    let mut shapes = 0;
    for entry in Runway::known_models().unwrap().entries() {
        let model = entry.model();
        let lengths = match &model.lengths {
            Lengths::OneOf(all) => all.clone(),
            _ => vec![Duration::from_secs(1)],
        };
        for (ratio, resolution) in
            model.aspect_ratios.iter().flat_map(|ratio| model.resolutions.iter().map(|r| (*ratio, *r)))
        {
            for (n, duration) in lengths.iter().enumerate() {
                let with_image = model.needs_image || n % 2 == 0;
                let spec = match (model.kind, video(with_image.then(|| picture(9)), 5), image()) {
                    (StepKind::Image, _, TaskSpec::Image(mut task)) => {
                        task.size = ratio.size(resolution);
                        TaskSpec::Image(task)
                    }
                    (_, TaskSpec::Video(task), _) => {
                        TaskSpec::Video(VideoTask { size: ratio.size(resolution), duration: *duration, ..task })
                    }
                    _ => unreachable!(),
                };
                let sent = set.submit(&task(entry.id().as_str(), spec)).await;
                sent.unwrap_or_else(|e| panic!("{} {ratio} {resolution} {duration:?}: {e}", entry.id()));
                shapes += 1;
            }
        }
    }
    assert_eq!((set.lab.accepted().len(), shapes), (shapes, 54 + 135 + 135 + 12 + 12 + 10));
}

#[tokio::test]
async fn a_text_is_counted_as_runway_counts_it() {
    let set = set().await;
    let task = |prompt: &str, style: Option<String>| match image() {
        TaskSpec::Image(mut image) => {
            (image.prompt, image.style) = (prompt.to_owned(), style);
            task("gen4_image", TaskSpec::Image(image))
        }
        _ => unreachable!(),
    };
    // Two code units each.
    let error = set.submit(&task(&"🦊".repeat(501), None)).await.unwrap_err();
    assert_eq!((error.kind(), error.fields()[0].field.as_str()), (ErrorKind::Invalid, "prompt"));
    assert_eq!(set.lab.requests().len(), 0);
    let long = "🦊".repeat(400);
    let sent =
        |set: &Set| set.requests(Class::Submit).last().unwrap().json()["promptText"].as_str().unwrap().to_owned();
    set.submit(&task(&long, Some("🎨".repeat(99)))).await.unwrap();
    assert_eq!(sent(&set).encode_utf16().count(), 800 + 2 + 198);
    set.submit(&task(&long, Some("🎨".repeat(100)))).await.unwrap();
    assert_eq!(sent(&set), long, "the style does not fit, and the prompt does");
}

#[tokio::test]
async fn what_a_model_cannot_is_refused_before_anything_is_bought() {
    let vidgen = |model: &str| {
        let route = Runway::new("k").unwrap().model(model);
        let pipeline = Pipeline::named("default").video(route);
        Vidgen::builder().queue(MemoryQueue::new()).store(MemoryStore::new()).pipeline(pipeline).build().unwrap()
    };
    let fields = |model: &str, request: &JobRequest| {
        vidgen(model).problems(request).into_iter().map(|problem| problem.field).collect::<Vec<_>>()
    };
    let square = {
        let mut request = JobRequest::new("a cat").with_duration(Duration::from_secs(4));
        request.aspect_ratio = AspectRatio::Square;
        request
    };
    assert_eq!(fields(GEN, &square), ["aspect_ratio"]);
    assert_eq!(fields("gen4_turbo", &square), ["image"]);
    let odd = JobRequest::new("a cat").with_duration(Duration::from_millis(2500));
    assert_eq!(fields(GEN, &odd), ["duration_seconds"]);
    assert_eq!(fields("veo3.1", &JobRequest::new("a cat").with_duration(Duration::from_secs(5))), ["duration_seconds"]);
    // What is held follows the length: 4 s at 12 credits.
    let four = JobRequest::new("a cat").with_duration(Duration::from_secs(4));
    assert_eq!(vidgen(GEN).quote(&four).await.unwrap().expected, Usd::from_cents(48));
}

#[tokio::test]
async fn a_rotated_key_is_used_at_once() {
    let set = set().await;
    let provider = Runway::builder("key_old").with_base_url(set.lab.base_url()).build().unwrap();
    let (clone, task) = (provider.clone(), task(GEN, video(None, 5)));
    assert_eq!(submit(&clone, &task).await.unwrap_err().kind(), ErrorKind::Unauthorized);
    provider.rotate_key(set.lab.key()).unwrap();
    submit(&clone, &task).await.unwrap();
}

#[tokio::test]
async fn what_is_paid_for_is_there_whatever_is_said_beside_it() {
    for (cost, progress) in [
        (json!({}), json!("100%")),
        (json!({ "credits": null }), json!(null)),
        (json!("60"), json!({})),
        (json!({ "credits": 1e300 }), json!(1e300)),
    ] {
        let body = json!({ "id": "t", "status": "SUCCEEDED", "output": ["https://o.example/1"], "cost": cost,
            "progress": progress, "failure": { "a": 1 } });
        let url = answering(200, &[], &body.to_string()).await;
        let provider = Runway::builder("k").with_base_url(url).build().unwrap();
        let end = provider.poll(&Handle::new("runway".into(), "t")).await.unwrap();
        assert!(matches!(&end.state, RunState::Succeeded(outputs) if outputs.len() == 1), "{body}");
        assert_eq!(end.usage, None, "{body}");
    }
}

#[tokio::test]
async fn an_answer_without_an_id_that_can_be_asked_for_leaves_the_outcome_unknown() {
    for id in ["", ".", ".."] {
        let url = answering(200, &[], &json!({ "id": id }).to_string()).await;
        let provider = Runway::builder("k").with_base_url(url).build().unwrap();
        let error = submit(&provider, &task(GEN, video(None, 5))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{id:?}");
    }
}
