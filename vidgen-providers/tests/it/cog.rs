//! cog against its lab: the rules of the kit, what exactly goes out, and what callbacks are made of.
//! (A real one is run in the tests of the whole project.)

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use vidgen_core::conformance::provider::{Scene, Signed};
use vidgen_core::memory::MemoryStore;
use vidgen_core::{
    Body, Callback, ErrorKind, Handle, Output, Provider, RunState, Snapshot, Spool, StepKind, SubmissionId,
    SubmitOptions, Task, Usage,
};
use vidgen_providers::cog::Cog;
use vidgen_providers::lab::kit::{LabFixture, Site};
use vidgen_providers::lab::{self, Class, Lab, Play, Refusal};
use vidgen_providers::models::ModelEntry;

use crate::remote::*;

const TOKEN: &str = "a-token-of-the-container";

fn all(url: &str) -> vidgen_providers::cog::CogBuilder {
    Cog::builder(url).makes(StepKind::Image).makes(StepKind::Video).makes(StepKind::Speech)
}

type Client = fn(&Site) -> Cog;

fn fixture(remote: fn() -> lab::Cog, task: Task, client: Client) -> LabFixture<Client> {
    LabFixture::new(remote, task, client)
        .with_secrets([PROMPT, TOKEN])
        .impossible(Scene::StatesCost, "it never says what a run costs, only how long it took")
        .impossible(Scene::UnknownHandle, "it cannot be asked for a run")
}

fn inline(task: Task) -> LabFixture<Client> {
    let client: Client =
        |site| all(&site.base_url).with_api_key(site.key.as_str()).with_callback_token(TOKEN).build().unwrap();
    let whole = "its files come with the callback, whole or not at all";
    [Scene::OutputExpired, Scene::TruncatedOutput, Scene::StalledOutput].into_iter().fold(
        fixture(|| lab::cog().with_webhook_token(TOKEN), task, client).signed(Signed::Sender),
        |fixture, scene| fixture.impossible(scene, whole),
    )
}

fn elsewhere(task: Task) -> LabFixture<Client> {
    let client: Client = |site| all(&site.base_url).with_api_key(site.key.as_str()).build().unwrap();
    fixture(|| lab::cog().with_files_elsewhere(), task, client).signed(Signed::No)
}

vidgen_core::provider_conformance!(cog_image, inline(task("cog", image())));
vidgen_core::provider_conformance!(cog_speech, inline(task("cog", speech(None))));
vidgen_core::provider_conformance!(cog_video, elsewhere(task("cog", video(Some(picture(300_000)), 2))));

/// A client of a lab, and what goes with it.
struct Set {
    remote: lab::Cog,
    lab: Lab,
    provider: Cog,
    store: Arc<MemoryStore>,
}

async fn set() -> Set {
    let remote = lab::cog();
    let lab = Lab::start(remote.clone()).await;
    let provider = all(&lab.base_url()).build().unwrap();
    Set { remote, lab, provider, store: Arc::default() }
}

impl Set {
    fn spool(&self, id: &SubmissionId) -> Spool {
        Spool::new(self.store.clone(), id).unwrap()
    }

    async fn submit(&self, task: &Task) -> vidgen_core::Result<Handle> {
        self.provider.submit(task, &options(&submission_id(task))).await
    }

    async fn recorded(&self, task: &Task) -> Value {
        let id = submission_id(task);
        self.provider.submit(task, &options(&id)).await.unwrap();
        let submits: Vec<_> = self.lab.requests();
        assert_eq!(submits.len(), 1, "one call and nothing before it");
        let text = request(&submits[0]).to_string().replace(id.as_str(), "SUBMISSION");
        serde_json::from_str(&text).unwrap()
    }

    /// The handle that a callback with this body tells.
    async fn told(&self, id: &SubmissionId, body: Value) -> vidgen_core::Result<Handle> {
        self.provider.callback(&call(&body), &self.spool(id)).await
    }

    /// The end that it tells.
    async fn end(&self, id: &SubmissionId, body: Value) -> Snapshot {
        let handle = self.told(id, body).await.unwrap();
        let before = self.lab.requests().len();
        let end = self.provider.poll(&handle).await.unwrap();
        assert_eq!(self.lab.requests().len(), before, "nobody is asked for what was told");
        end
    }

    async fn read(&self, id: &SubmissionId, output: &Output) -> Bytes {
        self.spool(id).open(output).await.unwrap().read(1 << 20).await.unwrap()
    }
}

fn call(body: &Value) -> Callback {
    Callback::new([("content-type", "application/json")], body.to_string(), jiff::Timestamp::UNIX_EPOCH)
}

fn recorded(input: Value) -> Value {
    json!({
        "line": "PUT /predictions/SUBMISSION",
        "headers": { "content-type": "application/json", "prefer": "respond-async" },
        "body": {
            "input": input,
            "webhook": "https://host.example/callbacks/acme?submission=SUBMISSION&signature=s1gn4ture",
            "webhook_events_filter": ["start", "completed"],
        },
    })
}

#[tokio::test]
async fn a_picture_is_asked_for_under_our_own_id() {
    let mut task = task("cog", image());
    task.extra.insert("steps".into(), json!(4));
    let input = json!({
        "prompt": format!("{PROMPT}, ink"), "negative_prompt": "rain", "width": 1280, "height": 720, "seed": 7,
        "steps": 4,
    });
    assert_eq!(set().await.recorded(&task).await, recorded(input));
}

#[tokio::test]
async fn a_video_is_asked_for_with_its_first_frame_as_a_data_url() {
    let input = json!({
        "prompt": PROMPT, "negative_prompt": "rain", "image": "data:image/png;base64,iVBORw0KGgoH", "width": 1280,
        "height": 720, "duration": 5, "fps": 24, "seed": 7,
    });
    assert_eq!(set().await.recorded(&task("cog", video(Some(picture(9)), 5))).await, recorded(input));
}

#[tokio::test]
async fn a_text_is_spoken() {
    let input = json!({ "text": PROMPT, "voice": "anna" });
    assert_eq!(set().await.recorded(&task("cog", speech(Some("anna")))).await, recorded(input));
}

#[tokio::test]
async fn a_model_has_whatever_fields_it_has() {
    let text = "id = \"mine\"\nkind = \"image\"\nprice = { per_compute_second = \"0.001\", at_most = 60 }\n\
                fields = { prompt = \"prompt\", size = { name = \"size\", form = \"x\" }, marker = \"ref\" }\n\
                defaults = { steps = 30 }";
    let lab = Lab::start(lab::cog()).await;
    let model = ModelEntry::from_toml(text).unwrap();
    let set =
        Set { remote: lab::cog(), provider: Cog::new(&lab.base_url(), model).unwrap(), lab, store: Arc::default() };
    let input = json!({ "prompt": format!("{PROMPT}, ink"), "size": "1280x720", "steps": 30, "ref": "SUBMISSION" });
    assert_eq!(set.recorded(&task("mine", image())).await, recorded(input));
}

#[tokio::test]
async fn without_a_callback_nothing_is_bought() {
    let set = set().await;
    let task = task("cog", image());
    let error = set.provider.submit(&task, &SubmitOptions::new(submission_id(&task))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("callbacks"), "{error}");
    assert_eq!(set.lab.requests().len(), 0);
}

#[tokio::test]
async fn a_container_without_a_model_or_with_an_empty_token_is_refused() {
    assert_eq!(Cog::builder("http://127.0.0.1:5000").build().unwrap_err().kind(), ErrorKind::Invalid);
    assert!(all("http://127.0.0.1:5000").with_callback_token(" ").build().is_err());
    assert!(all("gpu-1").build().is_err());
    let one = Cog::builder("http://127.0.0.1:5000").makes(StepKind::Image).makes(StepKind::Compose).build().unwrap();
    assert_eq!((one.capabilities().models.len(), one.capabilities().max_live), (1, Some(1)));
    assert_eq!(Cog::usual_models().unwrap().entries().len(), 3);
}

#[tokio::test]
async fn each_refusal_says_what_to_do_next() {
    let second = Duration::from_secs(1);
    for (refusal, kind, wait) in [
        (Refusal::Busy, ErrorKind::RateLimited, None),
        (Refusal::RateLimited(9 * second), ErrorKind::RateLimited, Some(9 * second)),
        (Refusal::Invalid("99 is greater than the maximum of 60".into()), ErrorKind::Invalid, None),
        (Refusal::NotFound, ErrorKind::NotFound, None),
        (Refusal::BadKey, ErrorKind::Unauthorized, None),
        (Refusal::NoCredit, ErrorKind::OverBudget, None),
        // A gateway's own: the container may have it all the same.
        (Refusal::Unavailable, ErrorKind::OutcomeUnknown, None),
    ] {
        let set = set().await;
        set.lab.then(None, Play::refuses_for(refusal.clone()));
        let error = set.submit(&task("cog", image())).await.unwrap_err();
        assert_eq!((error.kind(), error.retry_after()), (kind, wait), "{refusal:?}: {error}");
        assert_eq!(set.lab.posts(), 1, "{refusal:?}");
        if kind == ErrorKind::Invalid {
            assert!(error.message().ends_with("prompt: 99 is greater than the maximum of 60"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_container_that_is_not_set_up_yet_has_bought_nothing() {
    let set = set().await;
    set.remote.starts(true);
    let error = set.submit(&task("cog", image())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    set.remote.starts(false);
    set.submit(&task("cog", image())).await.unwrap();
}

#[tokio::test]
async fn a_container_that_was_started_anew_knows_of_no_run() {
    let set = set().await;
    set.lab.always(Play::runs());
    let handle = set.submit(&task("cog", image())).await.unwrap();
    assert!(matches!(set.provider.poll(&handle).await.unwrap().state, RunState::Running));
    set.lab.forget_runs();
    assert!(matches!(set.provider.poll(&handle).await.unwrap().state, RunState::Running), "nobody can tell");
    set.remote.starts(true);
    assert_eq!(set.provider.poll(&handle).await.unwrap_err().kind(), ErrorKind::NotFound);
    let looks: Vec<_> = set.lab.requests().into_iter().filter(|seen| seen.class == Class::Read).collect();
    assert_eq!(request(&looks[0]), json!({ "line": "GET /health-check", "headers": {}, "body": "" }));
}

#[tokio::test]
async fn who_hides_the_health_check_does_not_lose_the_run() {
    let set = set().await;
    set.lab.always(Play::runs().with_looks(lab::Looks::NotFound));
    let handle = set.submit(&task("cog", image())).await.unwrap();
    assert!(matches!(set.provider.poll(&handle).await.unwrap().state, RunState::Running));
}

#[tokio::test]
async fn the_same_submit_starts_nothing_while_it_runs() {
    let set = set().await;
    set.lab.capacity(1);
    set.lab.always(Play::runs());
    let task = task("cog", image());
    let id = submission_id(&task);
    let first = set.provider.submit(&task, &options(&id)).await.unwrap();
    let second = set.provider.submit(&task, &options(&id)).await.unwrap();
    assert_eq!((&first, set.lab.accepted().len()), (&second, 1));
    assert_eq!(first.remote_id, id.as_str());
    assert_eq!(set.submit(&task).await.unwrap_err().kind(), ErrorKind::RateLimited, "one slot");
}

#[tokio::test]
async fn each_answer_means_what_it_says() {
    let setup = json!({ "error": "Setup has not finished yet", "status": "failed" });
    for (status, body, kind) in [
        (202, json!({ "status": "starting" }).to_string(), None),
        (200, json!({ "id": "sub_another", "status": "starting" }).to_string(), Some(ErrorKind::OutcomeUnknown)),
        (202, json!({ "id": "sub_another" }).to_string(), Some(ErrorKind::OutcomeUnknown)),
        (202, "[]".into(), Some(ErrorKind::OutcomeUnknown)),
        (503, setup.to_string(), Some(ErrorKind::Unavailable)),
        (503, json!({ "error": "no healthy upstream" }).to_string(), Some(ErrorKind::OutcomeUnknown)),
        (500, setup.to_string(), Some(ErrorKind::OutcomeUnknown)),
        (405, String::new(), Some(ErrorKind::NotFound)),
        (400, "Failed to parse".into(), Some(ErrorKind::Invalid)),
        (422, "unknown variant `x`".into(), Some(ErrorKind::Invalid)),
        (409, "?".into(), Some(ErrorKind::RateLimited)),
    ] {
        let status = axum::http::StatusCode::from_u16(status).unwrap();
        let text = body.clone();
        let answer = axum::Router::new().fallback(move || async move { (status, text) });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let provider = all(&format!("http://{}", listener.local_addr().unwrap())).build().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, answer).await });
        let task = task("cog", image());
        let answer = provider.submit(&task, &options(&submission_id(&task))).await;
        assert_eq!(answer.err().map(|error| error.kind()), kind, "{status} {body}");
        server.abort();
    }
}

#[tokio::test]
async fn a_cancel_goes_out_once_and_is_too_late_for_what_is_unknown_or_has_ended() {
    let set = set().await;
    set.lab.always(Play::runs());
    let task = task("cog", image());
    let id = submission_id(&task);
    let handle = set.provider.submit(&task, &options(&id)).await.unwrap();
    set.provider.cancel(&handle).await.unwrap();
    let cancels: Vec<_> = set.lab.requests().into_iter().filter(|seen| seen.class == Class::Cancel).collect();
    let line = format!("POST /predictions/{id}/cancel");
    assert_eq!(cancels.iter().map(request).collect::<Vec<_>>(), [json!({ "line": line, "headers": {}, "body": "" })]);
    let callback = set.lab.callback_of(&id).unwrap();
    let told = set.provider.callback(&callback, &set.spool(&id)).await.unwrap();
    assert!(matches!(set.provider.poll(&told).await.unwrap().state, RunState::Canceled));
    let before = set.lab.cancels().len();
    for (late, calls) in [(told, 0), (handle, 1), (Handle::new("cog".into(), "sub_nobody"), 2)] {
        assert_eq!(set.provider.cancel(&late).await.unwrap_err().kind(), ErrorKind::TooLate);
        assert_eq!(set.lab.cancels().len(), before + calls, "what is known to have ended is not asked to");
    }
}

#[tokio::test]
async fn an_uploaded_file_is_found_by_its_name_in_its_own_spool_and_nowhere_else() {
    let set = set().await;
    let (id, other) = (submission_id(&task("cog", image())), submission_id(&task("cog", image())));
    set.spool(&id).put("tmp1 ä.png", Body::from(Bytes::from_static(b"mine"))).await.unwrap();
    set.spool(&other).put("secret.png", Body::from(Bytes::from_static(b"another tenant's"))).await.unwrap();
    let base = "https://video.example/api/callbacks/cog/files/t0ken";
    let told = |output: Value| json!({ "id": id.as_str(), "status": "succeeded", "output": output, "metrics": {} });
    let mine = output(set.end(&id, told(json!(format!("{base}/tmp1%20%C3%A4.png")))).await);
    assert_eq!(set.read(&id, &mine).await, "mine");
    // What the container names is looked for in the spool of the URL's submission only; else it lies
    // elsewhere, and there is fetched like anybody's.
    for foreign in [format!("{base}/secret.png"), "https://cdn.example/a/secret.png?x=1".to_owned()] {
        let output = output(set.end(&id, told(json!(foreign))).await);
        assert_eq!((output.spooled(), &output.locator), (None, &foreign));
    }
    let spooled = json!({ "locator": "", "media_type": null, "spooled": mine.spooled() });
    let end = set.end(&other, json!({ "status": "succeeded", "output": [spooled], "end": spooled })).await;
    assert!(matches!(end.state, RunState::Succeeded(outputs) if outputs.is_empty()), "no words make a spooled file");
}

#[tokio::test]
async fn a_callback_of_either_version_tells_the_end() {
    let set = set().await;
    let id = submission_id(&task("cog", image()));
    let png = "data:image/png;base64,iVBORw0KGgoH";
    let new = json!({
        "id": id.as_str(), "status": "succeeded", "output": png, "logs": "…", "metrics": { "predict_time": 1.5 },
    });
    let old = json!({
        "status": "succeeded", "output": [png], "input": { "prompt": PROMPT }, "logs": "", "error": null,
        "version": "", "created_at": "2026-01-01T00:00:00.000+00:00", "started_at": "2026-01-01T00:00:00.000+00:00",
        "completed_at": "2026-01-01T00:00:01.500+00:00", "metrics": { "predict_time": 1.5, "total_time": 2 },
    });
    for body in [new, old] {
        let end = set.end(&id, body).await;
        assert_eq!(end.usage, Some(Usage::Compute(Duration::from_millis(1500))));
        assert_eq!(set.read(&id, &output(end)).await, &b"\x89PNG\r\n\x1a\n\x07"[..]);
    }
    let least = set.end(&id, json!({ "status": "canceled" })).await;
    assert!(matches!(least.state, RunState::Canceled) && least.usage.is_none());
    for status in ["starting", "processing", "reticulating"] {
        // The outputs of an event before the end are wrapped in a list, and not the end's.
        let begun = set.told(&id, json!({ "id": id.as_str(), "status": status, "output": [png] })).await.unwrap();
        assert_eq!(begun, Handle::new("cog".into(), id.as_str()), "{status}");
    }
}

#[tokio::test]
async fn a_callback_of_another_run_or_of_nothing_is_not_understood() {
    let set = set().await;
    let (id, other) = (submission_id(&task("cog", image())), submission_id(&task("cog", image())));
    for body in [
        json!({ "id": other.as_str(), "status": "succeeded", "output": "https://x.example/a.png" }),
        json!({ "id": id.as_str() }),
        json!({ "id": id.as_str(), "status": "succeeded", "output": "data:image/png;base64,%%" }),
        json!([]),
        Value::Null,
    ] {
        assert_eq!(set.told(&id, body.clone()).await.unwrap_err().kind(), ErrorKind::Protocol, "{body}");
    }
}

#[tokio::test]
async fn each_token_that_was_given_is_believed_and_no_other() {
    let lab = Lab::start(lab::cog()).await;
    let provider = all(&lab.base_url()).with_callback_token("old-token").with_callback_token("new-token");
    let provider = provider.build().unwrap();
    let id = submission_id(&task("cog", image()));
    let spool = Spool::new(Arc::new(MemoryStore::new()), &id).unwrap();
    for (header, genuine) in [
        (Some("Bearer old-token"), true),
        (Some("Bearer new-token"), true),
        (Some("Bearer new-token2"), false),
        (Some("Bearer "), false),
        (Some("Basic old-token"), false),
        (Some("old-token"), false),
        (None, false),
    ] {
        let headers = header.map(|value| ("authorization", value));
        let callback = Callback::new(headers, json!({ "status": "canceled" }).to_string(), jiff::Timestamp::UNIX_EPOCH);
        let told = provider.callback(&callback, &spool).await.map_err(|error| error.kind());
        assert_eq!(told.is_ok(), genuine, "{header:?}");
        assert!(genuine || told == Err(ErrorKind::Unauthorized), "{header:?}");
    }
}

#[tokio::test]
async fn the_lab_says_that_a_run_begins_and_how_it_ends() {
    let (sender, mut said) = tokio::sync::mpsc::unbounded_channel::<Value>();
    let take = move |body: Bytes| async move { sender.send(serde_json::from_slice(&body).unwrap()).unwrap() };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/callbacks", listener.local_addr().unwrap());
    let hook = axum::Router::new().route("/callbacks", axum::routing::post(take));
    let server = tokio::spawn(async move { axum::serve(listener, hook).await });
    let set = set().await;
    set.lab.always(Play::runs());
    let task = task("cog", image());
    let id = submission_id(&task);
    let options = SubmitOptions::new(id.clone()).with_callback(url.parse().unwrap());
    set.provider.submit(&task, &options).await.unwrap();
    let begun = said.recv().await.unwrap();
    assert_eq!((&begun["id"], &begun["status"]), (&json!(id.as_str()), &json!("processing")));
    assert!(!set.told(&id, begun).await.unwrap().has_end());
    set.lab.finish(&id);
    let end = set.end(&id, said.recv().await.unwrap()).await;
    assert_eq!(set.read(&id, &output(end)).await.slice(..4), &b"\x89PNG"[..]);
    server.abort();
}
