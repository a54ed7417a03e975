//! Replicate against its lab: the rules of the kit, and what exactly goes out.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use vidgen_core::conformance::provider::{Scene, Signed};
use vidgen_core::{ErrorKind, Handle, Lookup, Provider, RunState, StepKind, Task, Usage};
use vidgen_providers::lab::kit::{LabFixture, Site};
use vidgen_providers::lab::{self, Answer, Class, Lab, Play, Refusal, Seen, Setup};
use vidgen_providers::models::ModelEntry;
use vidgen_providers::replicate::Replicate;

use crate::remote::*;

const SDXL: &str = "stability-ai/sdxl:39ed52f2a78e934b3ba6e2a89f5b1c712de7dfea535525255b1aa35c5565e08b";
const FLUX: &str = "black-forest-labs/flux-schnell";
const KLING: &str = "kwaivgi/kling-v2.5-turbo-pro";
/// More than goes into a data URL.
const LARGE: usize = 300_000;

type Client = fn(&Site) -> Replicate;

fn fixture(task: Task) -> LabFixture<Client> {
    let client: Client = |site| Replicate::builder(site.key.as_str()).with_base_url(&site.base_url).build().unwrap();
    LabFixture::new(lab::replicate, task, client)
        .with_unknown_handle(Handle::new("replicate".into(), "q7xnosuchprediction0000000"))
        .with_secrets([PROMPT])
        .signed(Signed::Dated)
        .impossible(Scene::StatesCost, "it never says what a run costs, only how long it took")
}

vidgen_core::provider_conformance!(replicate_image, fixture(task(FLUX, image())));
vidgen_core::provider_conformance!(replicate_video, fixture(task(KLING, video(Some(picture(LARGE)), 5))));
vidgen_core::provider_conformance!(replicate_speech, fixture(task("minimax/speech-02-turbo", speech(None))));

/// A client of a lab, and what goes with it.
struct Set {
    lab: Lab,
    provider: Replicate,
}

async fn set() -> Set {
    set_with(lab::replicate()).await
}

async fn set_with(remote: lab::Replicate) -> Set {
    let lab = Lab::start(remote).await;
    let provider = Replicate::builder(lab.key()).with_base_url(lab.base_url()).build().unwrap();
    Set { lab, provider }
}

impl Set {
    async fn submit(&self, task: &Task) -> vidgen_core::Result<Handle> {
        self.provider.submit(task, &options(&submission_id(task))).await
    }

    fn requests(&self, class: Class) -> Vec<Seen> {
        self.lab.requests().into_iter().filter(|seen| seen.class == class).collect()
    }

    async fn recorded(&self, task: &Task) -> Value {
        let id = submission_id(task);
        self.provider.submit(task, &options(&id)).await.unwrap();
        let submits = self.requests(Class::Submit);
        let mut recorded = request(submits.last().unwrap());
        let webhook = recorded["body"]["webhook"].as_str().unwrap().replace(id.as_str(), "SUBMISSION");
        recorded["body"]["webhook"] = json!(webhook);
        recorded
    }
}

fn recorded(path: &str, body: Value) -> Value {
    let mut whole = json!({
        "webhook": "https://host.example/callbacks/acme?submission=SUBMISSION&signature=s1gn4ture",
        "webhook_events_filter": ["completed"],
    });
    whole.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
    json!({ "line": format!("POST /v1/{path}"), "headers": { "content-type": "application/json" }, "body": whole })
}

#[tokio::test]
async fn a_version_is_asked_for_a_picture() {
    let sent = set().await.recorded(&task(SDXL, image())).await;
    let input = json!({
        "prompt": format!("{PROMPT}, ink"), "negative_prompt": "rain", "width": 1280, "height": 720, "seed": 7,
        "num_outputs": 1,
    });
    assert_eq!(sent, recorded("predictions", json!({ "version": SDXL, "input": input })));
}

#[tokio::test]
async fn an_official_model_is_asked_for_a_picture() {
    let mut task = task(FLUX, image());
    task.extra.insert("go_fast".into(), json!(false));
    task.extra.insert("output_format".into(), json!("webp"));
    let input = json!({
        "prompt": format!("{PROMPT}, ink"), "aspect_ratio": "16:9", "seed": 7, "num_outputs": 1,
        "output_format": "webp", "go_fast": false,
    });
    let path = "models/black-forest-labs/flux-schnell/predictions";
    assert_eq!(set().await.recorded(&task).await, recorded(path, json!({ "input": input })));
}

#[tokio::test]
async fn a_small_picture_goes_out_with_the_submit() {
    let set = set().await;
    let sent = set.recorded(&task(KLING, video(Some(picture(9)), 5))).await;
    let input = json!({
        "prompt": PROMPT, "image": "data:image/png;base64,iVBORw0KGgoH", "aspect_ratio": "16:9", "duration": 5,
    });
    assert_eq!(sent, recorded("models/kwaivgi/kling-v2.5-turbo-pro/predictions", json!({ "input": input })));
    assert_eq!(set.lab.requests().len(), 1);
}

#[tokio::test]
async fn a_large_picture_is_uploaded_first() {
    let set = set().await;
    let sent = set.recorded(&task(KLING, video(Some(picture(LARGE)), 5))).await;
    let uploads = set.requests(Class::Upload);
    assert_eq!((uploads.len(), uploads[0].method.as_str(), uploads[0].path()), (1, "POST", "/v1/files"));
    let form: Vec<_> =
        uploads[0].form().await.into_iter().map(|f| (f.name, f.file_name, f.content_type, f.bytes)).collect();
    let file = picture(LARGE).open().await.unwrap().read(LARGE).await.unwrap();
    let (png, json) = (Some("image/png".to_owned()), Some("application/json".to_owned()));
    assert_eq!(
        form,
        [
            ("content".to_owned(), Some("image.png".to_owned()), png, file),
            ("metadata".to_owned(), None, json, Bytes::from_static(b"{}")),
        ]
    );
    let image = sent["body"]["input"]["image"].as_str().unwrap();
    assert!(image.starts_with(&format!("{}/files/", set.lab.base_url())), "{image}");
}

#[tokio::test]
async fn a_text_is_spoken_in_the_voice_that_was_asked_for() {
    let sent = set().await.recorded(&task("minimax/speech-02-hd", speech(Some("Wise_Woman")))).await;
    let input = json!({ "text": PROMPT, "voice_id": "Wise_Woman" });
    assert_eq!(sent, recorded("models/minimax/speech-02-hd/predictions", json!({ "input": input })));
}

#[tokio::test]
async fn a_deployment_is_one_by_its_entry_and_a_deadline_goes_out() {
    let text = "id = \"acme/mine\"\nkind = \"image\"\nendpoint = \"deployment\"\nprice = { per_run = \"0.01\" }\n\
                fields = { prompt = \"prompt\", marker = \"vidgen\" }";
    let lab = Lab::start(lab::replicate()).await;
    let builder = Replicate::builder(lab.key()).with_base_url(lab.base_url());
    let provider = builder
        .with_model(ModelEntry::from_toml(text).unwrap())
        .with_deadline(Duration::from_secs(90))
        .build()
        .unwrap();
    let task = task("acme/mine", image());
    let id = submission_id(&task);
    provider.submit(&task, &vidgen_core::SubmitOptions::new(id.clone())).await.unwrap();
    let body = json!({ "input": { "prompt": format!("{PROMPT}, ink"), "vidgen": id.as_str() } });
    let headers = json!({ "content-type": "application/json", "cancel-after": "90s" });
    let line = "POST /v1/deployments/acme/mine/predictions";
    assert_eq!(request(&lab.requests()[0]), json!({ "line": line, "headers": headers, "body": body }));
    // And it is found by its mark, though it has no webhook.
    let wanted = submission(&provider, &task, &id, None);
    assert!(matches!(provider.find(&wanted).await.unwrap(), Lookup::Found(_)));
}

#[tokio::test]
async fn a_cancel_goes_out_once_and_is_followed_to_its_end() {
    let set = set().await;
    set.lab.always(Play::runs().with_usage(Usage::Compute(Duration::from_millis(1500))));
    let handle = set.submit(&task(FLUX, image())).await.unwrap();
    set.provider.cancel(&handle).await.unwrap();
    let cancels = set.requests(Class::Cancel);
    let line = format!("POST /v1/predictions/{}/cancel", handle.remote_id);
    assert_eq!(cancels.iter().map(request).collect::<Vec<_>>(), [json!({ "line": line, "headers": {}, "body": "" })]);
    let end = end(&set.provider, &handle).await;
    assert!(matches!(end.state, RunState::Canceled), "{end:?}");
    assert_eq!(end.usage, Some(Usage::Compute(Duration::from_millis(1500))));
}

#[tokio::test]
async fn the_list_is_searched_around_the_intent() {
    let set = set().await;
    let at = jiff::Timestamp::from_second(set.lab.world().now().as_second()).unwrap();
    set.lab.then(None, Play::succeeds().with_answer(Answer::Resets));
    let task = task(FLUX, image());
    let id = submission_id(&task);
    let lost = set.provider.submit(&task, &options(&id)).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::OutcomeUnknown);
    let found = set.provider.find(&submission(&set.provider, &task, &id, Some(at))).await.unwrap();
    assert_eq!(found, Lookup::Found(Handle::new("replicate".into(), set.lab.accepted()[0].remote_id.clone())));
    let reads = set.requests(Class::Read);
    assert_eq!((reads.len(), reads[0].path()), (1, "/v1/predictions"));
    let query = |name| reads[0].query(name).unwrap().parse::<jiff::Timestamp>().unwrap();
    let minutes = |n| jiff::SignedDuration::from_mins(n);
    assert_eq!(query("created_after"), at - minutes(2));
    assert_eq!(query("created_before"), at + minutes(7));
    // Whoever is patient with a submit may be accepted so much later.
    let patient = Duration::from_mins(20);
    let slow = Replicate::builder(set.lab.key()).with_base_url(set.lab.base_url()).with_submit_timeout(patient);
    slow.build().unwrap().find(&submission(&set.provider, &task, &id, Some(at))).await.unwrap();
    let asked = set.requests(Class::Read).pop().unwrap();
    let before = asked.query("created_before").unwrap();
    assert!(before.parse::<jiff::Timestamp>().unwrap() >= at + minutes(22), "{before}");
    // Whoever looks at another time finds nothing, and the account's list was complete.
    let never = set.provider.find(&submission(&set.provider, &task, &id, Some(at - minutes(60)))).await.unwrap();
    assert_eq!(never, Lookup::Absent);
}

#[tokio::test]
async fn every_page_is_searched() {
    let set = set().await;
    let task = task(FLUX, image());
    let first = submission_id(&task);
    set.provider.submit(&task, &options(&first)).await.unwrap();
    for _ in 0..205 {
        set.submit(&task).await.unwrap();
    }
    let found = set.provider.find(&submission(&set.provider, &task, &first, None)).await.unwrap();
    assert_eq!(found, Lookup::Found(Handle::new("replicate".into(), set.lab.accepted()[0].remote_id.clone())));
    assert_eq!(set.requests(Class::Read).len(), 3);
}

#[tokio::test]
async fn a_list_that_names_nobody_is_looked_at_one_by_one() {
    let set = set_with(lab::replicate().without_webhooks_in_lists()).await;
    let task = task(FLUX, image());
    let (first, never) = (submission_id(&task), submission_id(&task));
    set.provider.submit(&task, &options(&first)).await.unwrap();
    set.submit(&task).await.unwrap();
    let look = |id| submission(&set.provider, &task, id, None);
    assert!(matches!(set.provider.find(&look(&first)).await.unwrap(), Lookup::Found(_)));
    assert_eq!(set.provider.find(&look(&never)).await.unwrap(), Lookup::Absent);
    // Without a webhook, one names nobody at all: it may be any.
    set.provider.submit(&task, &vidgen_core::SubmitOptions::new(submission_id(&task))).await.unwrap();
    assert_eq!(set.provider.find(&look(&never)).await.unwrap(), Lookup::Unknown);
    for _ in 0..20 {
        set.submit(&task).await.unwrap();
    }
    let before = set.requests(Class::Read).len();
    assert_eq!(set.provider.find(&look(&never)).await.unwrap(), Lookup::Unknown);
    assert_eq!(set.requests(Class::Read).len() - before, 21, "a look at each would be no end");
}

#[tokio::test]
async fn an_output_elsewhere_is_fetched_without_the_key() {
    let setup = {
        let mut setup = Setup::default();
        setup.outputs_elsewhere = true;
        setup
    };
    let lab = Lab::start_with(lab::replicate(), setup).await.unwrap();
    let builder = Replicate::builder(lab.key()).with_base_url(lab.base_url());
    let provider = builder.clone().with_allowed(lab.outputs_addr()).build().unwrap();
    let task = task(FLUX, image());
    let handle = provider.submit(&task, &options(&submission_id(&task))).await.unwrap();
    let output = output(end(&provider, &handle).await);
    let bytes = provider.open(&output).await.unwrap().read(20 << 20).await.unwrap();
    assert!(bytes.starts_with(b"\x89PNG"));
    let fetched: Vec<_> = lab.requests_with_keys().into_iter().filter(|seen| seen.class == Class::Output).collect();
    assert_eq!(fetched.len(), 1);
    assert!(!fetched[0].text().contains(&lab.key()), "the key went to another origin");
    // The same address is private to a client that was not told of it.
    let strict = builder.build().unwrap();
    assert_eq!(strict.open(&output).await.unwrap_err().kind(), ErrorKind::Protocol);
}

#[tokio::test]
async fn each_refusal_has_its_kind() {
    let set = set().await;
    for (refusal, kind) in [
        (Refusal::NoCredit, ErrorKind::OverBudget),
        (Refusal::Invalid("too long".into()), ErrorKind::Invalid),
        (Refusal::Moderated("flagged".into()), ErrorKind::Refused),
        (Refusal::BadKey, ErrorKind::Unauthorized),
        (Refusal::NotFound, ErrorKind::NotFound),
        (Refusal::Busy, ErrorKind::RateLimited),
        (Refusal::Unavailable, ErrorKind::OutcomeUnknown),
    ] {
        set.lab.then(None, Play::refuses_for(refusal.clone()));
        let error = set.submit(&task(FLUX, image())).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{refusal:?}: {error}");
    }
    assert_eq!((set.lab.accepted().len(), set.lab.posts()), (0, 7));
}

#[tokio::test]
async fn a_wait_that_only_the_text_says_is_heard() {
    let set = set_with(lab::replicate().without_retry_after()).await;
    set.lab.always(Play::rate_limits(Duration::from_secs(9)));
    let error = set.submit(&task(FLUX, image())).await.unwrap_err();
    assert_eq!((error.kind(), error.retry_after()), (ErrorKind::RateLimited, Some(Duration::from_secs(9))));
}

#[tokio::test]
async fn ends_are_told_apart() {
    let set = set().await;
    for (play, kind) in [
        (Play::fails("CUDA out of memory (E1001)"), ErrorKind::Unavailable),
        (Play::refuses_in_run(), ErrorKind::Refused),
        (Play::aborts(), ErrorKind::Unavailable),
    ] {
        set.lab.then(StepKind::Image, play);
        let handle = set.submit(&task(SDXL, image())).await.unwrap();
        match end(&set.provider, &handle).await.state {
            RunState::Failed(failure) => assert_eq!(failure.kind, kind, "{failure:?}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_rotated_key_is_used_at_once() {
    let set = set().await;
    let provider = Replicate::builder("r8_old").with_base_url(set.lab.base_url()).build().unwrap();
    let clone = provider.clone();
    let task = task(FLUX, image());
    let error = clone.submit(&task, &options(&submission_id(&task))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    provider.rotate_token(set.lab.key()).unwrap();
    clone.submit(&task, &options(&submission_id(&task))).await.unwrap();
}

#[tokio::test]
async fn the_accounts_secret_is_asked_for_once_and_a_given_one_never() {
    let set = set().await;
    let task = task(FLUX, image());
    let id = submission_id(&task);
    let handle = set.provider.submit(&task, &options(&id)).await.unwrap();
    end(&set.provider, &handle).await;
    let genuine = set.lab.callback_of(&id).unwrap();
    let spool = || {
        let store = std::sync::Arc::new(vidgen_core::memory::MemoryStore::new());
        vidgen_core::Spool::new(store, &id).unwrap()
    };
    let asked = || set.requests(Class::Read).iter().filter(|seen| seen.path().ends_with("/secret")).count();
    for _ in 0..3 {
        assert_eq!(set.provider.callback(&genuine, &spool()).await.unwrap(), handle);
    }
    assert_eq!(asked(), 1);
    // Two secrets, while one replaces the other.
    let secret = "whsec_dmlkZ2VuIGxhYiByZXBsaWNhdGUgc2VjcmV0IDAx";
    let builder = Replicate::builder(set.lab.key()).with_base_url(set.lab.base_url());
    let both = builder.clone().with_webhook_secret("whsec_b3RoZXI=").with_webhook_secret(secret).build().unwrap();
    assert_eq!(both.callback(&genuine, &spool()).await.unwrap(), handle);
    let other = builder.with_webhook_secret("whsec_b3RoZXI=").build().unwrap();
    assert_eq!(other.callback(&genuine, &spool()).await.unwrap_err().kind(), ErrorKind::Unauthorized);
    assert_eq!(asked(), 1);
}
