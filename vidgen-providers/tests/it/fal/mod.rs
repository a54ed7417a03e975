//! fal against its lab: the rules of the kit, what exactly goes out, and what its answers mean.

mod answers;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use vidgen_core::conformance::provider::{Scene, Signed};
use vidgen_core::memory::MemoryStore;
use vidgen_core::{Callback, ErrorKind, Handle, Price, Provider, RunState, Spool, StepKind, Task, Usage, VideoTask};
use vidgen_core::{TaskSpec, Usd};
use vidgen_providers::fal::Fal;
use vidgen_providers::lab::kit::{LabFixture, Site};
use vidgen_providers::lab::{self, Answer, Class, Lab, OnCancel, Play, Refusal, Seen, Setup};
use vidgen_providers::models::ModelEntry;

use crate::remote::*;

const FLUX: &str = "fal-ai/flux/schnell";
const WAN: &str = "fal-ai/wan/v2.7/image-to-video";
const KLING: &str = "fal-ai/kling-video/v2.6/pro/image-to-video";
/// More than goes into a data URL.
const LARGE: usize = 300_000;

type Client = fn(&Site) -> Fal;

fn fixture(task: Task) -> LabFixture<Client> {
    let client: Client = |site| Fal::builder(site.key.as_str()).with_base_url(&site.base_url).build().unwrap();
    let unknown = Handle::new("fal".into(), "00000000-0000-4000-8000-000000000000");
    LabFixture::new(lab::fal, task, client)
        .with_unknown_handle(unknown.with_detail(json!({ "endpoint": FLUX })))
        .with_secrets([PROMPT])
        .signed(Signed::Dated)
        .impossible(Scene::StatesCost, "it states units of its own, and no money")
}

/// Half of it is more than the 4 KiB by which the guard tells a file's type before it hands it on.
fn large_image() -> Task {
    let mut task = task(FLUX, image());
    task.extra.insert("image_size".into(), json!({ "width": 2560, "height": 1440 }));
    task
}

vidgen_core::provider_conformance!(fal_image, fixture(large_image()));
vidgen_core::provider_conformance!(fal_video, fixture(task(WAN, video(Some(picture(LARGE)), 5))));
vidgen_core::provider_conformance!(fal_speech, fixture(task("fal-ai/minimax/speech-2.8-hd", speech(None))));

/// A client of a lab, and what goes with it.
struct Set {
    lab: Lab,
    provider: Fal,
}

async fn set() -> Set {
    set_with(lab::fal()).await
}

async fn set_with(remote: lab::Fal) -> Set {
    let lab = Lab::start(remote).await;
    let provider = Fal::builder(lab.key()).with_base_url(lab.base_url()).build().unwrap();
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
        let mut recorded = request(self.requests(Class::Submit).last().unwrap());
        recorded["line"] = json!(recorded["line"].as_str().unwrap().replace(id.as_str(), "SUBMISSION"));
        recorded
    }
}

fn recorded(endpoint: &str, body: Value) -> Value {
    let webhook = "https%3A%2F%2Fhost.example%2Fcallbacks%2Facme%3Fsubmission%3DSUBMISSION%26signature%3Ds1gn4ture";
    let line = format!("POST /{endpoint}?fal_webhook={webhook}");
    json!({ "line": line, "headers": { "content-type": "application/json" }, "body": body })
}

fn spool(task: &Task) -> Spool {
    Spool::new(Arc::new(MemoryStore::new()), &submission_id(task)).unwrap()
}

fn endpoint(handle: &Handle) -> &str {
    handle.detail["endpoint"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_picture_is_asked_for() {
    let body = json!({
        "prompt": format!("{PROMPT}, ink"), "image_size": { "width": 1280, "height": 720 }, "seed": 7,
        "num_images": 1, "num_inference_steps": 4, "output_format": "png",
    });
    assert_eq!(set().await.recorded(&task(FLUX, image())).await, recorded(FLUX, body));
}

#[tokio::test]
async fn a_small_picture_goes_out_with_the_submit_of_a_video() {
    let set = set().await;
    let body = json!({
        "prompt": PROMPT, "negative_prompt": "rain", "start_image_url": "data:image/png;base64,iVBORw0KGgoH",
        "duration": "5", "generate_audio": true,
    });
    assert_eq!(set.recorded(&task(KLING, video(Some(picture(9)), 5))).await, recorded(KLING, body));
    assert_eq!(set.lab.requests().len(), 1);
}

#[tokio::test]
async fn a_video_is_asked_for_in_its_makers_form() {
    let body = json!({
        "prompt": PROMPT, "negative_prompt": "rain", "aspect_ratio": "16:9", "resolution": "720p", "duration": "8s",
        "seed": 7, "generate_audio": true,
    });
    let sent = set().await.recorded(&task("fal-ai/veo3.1", video(None, 8))).await;
    assert_eq!(sent, recorded("fal-ai/veo3.1", body));
}

#[tokio::test]
async fn the_tutorials_picture_is_set_in_motion() {
    for model in ["fal-ai/fast-svd", "fal-ai/fast-svd-lcm"] {
        let body = json!({
            "image_url": "data:image/png;base64,iVBORw0KGgoH", "motion_bucket_id": 127, "fps": 6, "seed": 7,
        });
        let sent = set().await.recorded(&task(model, video(Some(picture(9)), 4))).await;
        assert_eq!(sent, recorded(model, body));
    }
}

#[tokio::test]
async fn a_text_is_spoken_in_the_voice_that_was_asked_for() {
    let set = set().await;
    let sent = set.recorded(&task("fal-ai/elevenlabs/tts/multilingual-v2", speech(Some("Rachel")))).await;
    let body = json!({ "text": PROMPT, "voice": "Rachel" });
    assert_eq!(sent, recorded("fal-ai/elevenlabs/tts/multilingual-v2", body));
    let sent = set.recorded(&task("fal-ai/minimax/speech-2.8-hd", speech(Some("Wise_Woman")))).await;
    let body = json!({ "prompt": PROMPT, "voice_setting": { "voice_id": "Wise_Woman" }, "output_format": "url" });
    assert_eq!(sent, recorded("fal-ai/minimax/speech-2.8-hd", body));
}

#[tokio::test]
async fn a_large_picture_is_uploaded_first_and_put_without_the_key() {
    let set = set().await;
    let sent = set.recorded(&task(WAN, video(Some(picture(LARGE)), 5))).await;
    let uploads = set.requests(Class::Upload);
    assert_eq!(uploads.len(), 2);
    let initiate = json!({
        "line": "POST /storage/upload/initiate?storage_type=fal-cdn-v3",
        "headers": {
            "content-type": "application/json", "x-fal-object-lifecycle": "{\"expiration_duration_seconds\":86400}",
        },
        "body": { "content_type": "image/png", "file_name": "image.png" },
    });
    assert_eq!(request(&uploads[0]), initiate);
    assert!(uploads[1].header("authorization").is_none(), "the key went to a link");
    assert_eq!((uploads[1].method.as_str(), uploads[1].header("content-type")), ("PUT", Some("image/png")));
    assert_eq!(uploads[1].body, picture(LARGE).open().await.unwrap().read(LARGE).await.unwrap());
    let image = sent["body"]["image_url"].as_str().unwrap();
    assert!(image.starts_with(&format!("{}/files/lab/", set.lab.base_url())), "{image}");
}

#[tokio::test]
async fn every_known_model_makes_a_request_that_its_maker_takes() {
    let set = set().await;
    let mut kinds = [0; 3];
    for entry in Fal::known_models().unwrap().entries() {
        let model = entry.model();
        let (id, n) = (model.id.as_str(), model.kind);
        let spec = match model.kind {
            StepKind::Image => image(),
            StepKind::Speech => speech(None),
            _ => {
                let TaskSpec::Video(video) = video((!model.no_image).then(|| picture(9)), 5) else { unreachable!() };
                TaskSpec::Video(VideoTask { duration: model.lengths.nearest(Duration::from_secs(5)), ..video })
            }
        };
        kinds[match n {
            StepKind::Image => 0,
            StepKind::Speech => 1,
            _ => 2,
        }] += 1;
        let handle = set.submit(&task(id, spec)).await.unwrap_or_else(|e| panic!("{id}: {e}"));
        assert_eq!(endpoint(&handle), id);
        output(end(&set.provider, &handle).await);
        assert!(model.price != Price::Free, "{id} is free");
    }
    assert!(kinds[0] >= 2 && kinds[1] >= 5 && kinds[2] >= 15, "{kinds:?}");
}

#[tokio::test]
async fn any_endpoint_is_run_and_its_links_are_kept() {
    let text = "id = \"workflows/acme/clip\"\nkind = \"video\"\nprice = { per_run = \"1\" }\nlengths = [5]\n\
                fields = { prompt = \"prompt\", marker = \"vidgen\" }";
    let lab = Lab::start(lab::fal()).await;
    let builder = Fal::builder(lab.key()).with_base_url(lab.base_url()).with_start_timeout(Duration::from_secs(90));
    let provider = builder.with_model(ModelEntry::from_toml(text).unwrap()).build().unwrap();
    let task = task("workflows/acme/clip", video(None, 5));
    let id = submission_id(&task);
    let handle = provider.submit(&task, &vidgen_core::SubmitOptions::new(id.clone())).await.unwrap();
    let headers = json!({ "content-type": "application/json", "x-fal-request-timeout": "90" });
    let body = json!({ "prompt": PROMPT, "vidgen": id.as_str() });
    let sent = request(&lab.requests()[0]);
    assert_eq!(sent, json!({ "line": "POST /workflows/acme/clip", "headers": headers, "body": body }));
    let place = format!("{}/workflows/acme/clip/requests/{}", lab.base_url(), handle.remote_id);
    let detail = json!({
        "endpoint": "workflows/acme/clip", "response_url": place, "status_url": format!("{place}/status"),
        "cancel_url": format!("{place}/cancel"),
    });
    assert_eq!(handle.detail, detail);
    output(end(&provider, &handle).await);
    // And without the links, by the documented path.
    let bare = Handle { detail: json!({ "endpoint": "workflows/acme/clip" }), ..handle };
    output(end(&provider, &bare).await);
    assert!(!lab.requests().iter().any(|seen| seen.path().starts_with("/v1/")), "it was looked up in the history");
}

#[tokio::test]
async fn a_result_is_fetched_once_when_it_is_complete_with_what_was_used() {
    let set = set().await;
    set.lab.then(None, Play::succeeds().after_looks(2).with_usage(Usage::MilliUnits(3008)));
    let handle = set.submit(&task(FLUX, image())).await.unwrap();
    let snapshot = end(&set.provider, &handle).await;
    assert_eq!((snapshot.usage, snapshot.cost), (Some(Usage::MilliUnits(3008)), None));
    let paths: Vec<String> = set.requests(Class::Read).iter().map(|seen| seen.path().to_owned()).collect();
    let place = format!("/fal-ai/flux/requests/{}", handle.remote_id);
    let status = format!("{place}/status");
    assert_eq!(paths, [status.clone(), status.clone(), status, place]);
    let price = set.provider.capabilities().model(StepKind::Image, None).unwrap().price;
    assert_eq!(price.of_usage(Usage::MilliUnits(3008)), Some(Usd::from_micros(9024)));
    let output = output(snapshot);
    assert_eq!((output.content.width, output.content.height), (Some(1280), Some(720)));
}

#[tokio::test]
async fn an_output_is_fetched_without_the_key_wherever_it_lies() {
    for elsewhere in [false, true] {
        let mut setup = Setup::default();
        setup.outputs_elsewhere = elsewhere;
        let lab = Lab::start_with(lab::fal(), setup).await.unwrap();
        let builder = Fal::builder(lab.key()).with_base_url(lab.base_url());
        let provider = builder.clone().with_allowed(lab.outputs_addr()).build().unwrap();
        let task = task(FLUX, image());
        let handle = provider.submit(&task, &options(&submission_id(&task))).await.unwrap();
        let output = output(end(&provider, &handle).await);
        let bytes = provider.open(&output).await.unwrap().read(20 << 20).await.unwrap();
        assert!(bytes.starts_with(b"\x89PNG"));
        let fetched: Vec<_> = lab.requests_with_keys().into_iter().filter(|seen| seen.class == Class::Output).collect();
        assert_eq!(fetched.len(), 1);
        assert!(!fetched[0].text().contains(&lab.key()), "the key went out with a download");
        if elsewhere {
            // The same address is private to a client that was not told of it.
            let strict = builder.build().unwrap();
            assert_eq!(strict.open(&output).await.unwrap_err().kind(), ErrorKind::Protocol);
        }
    }
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
        let waits = kind == ErrorKind::RateLimited;
        assert_eq!(error.retry_after().is_some(), waits, "{refusal:?}: {error:?}");
    }
    assert_eq!((set.lab.accepted().len(), set.lab.posts()), (0, 7));
}

#[tokio::test]
async fn complete_is_no_success() {
    let set = set().await;
    for (play, kind, billed) in [
        (Play::refuses_in_run(), ErrorKind::Refused, true),
        (Play::aborts(), ErrorKind::Unavailable, false),
        (Play::fails("out of memory"), ErrorKind::Unavailable, false),
        (Play::fails_as("missing", "Field required"), ErrorKind::Invalid, true),
        (Play::fails_as("generation_timeout", "slow"), ErrorKind::Unavailable, false),
        (Play::fails_as("feature_not_supported", "no"), ErrorKind::Unsupported, true),
        (Play::fails_as("runner_disconnected", "gone"), ErrorKind::Unavailable, false),
        (Play::fails_as("request_timeout", "not started in time"), ErrorKind::Unavailable, false),
        (Play::fails_as("internal_error", "ours"), ErrorKind::Unavailable, false),
    ] {
        set.lab.then(StepKind::Image, play.clone());
        let handle = set.submit(&task(FLUX, image())).await.unwrap();
        match end(&set.provider, &handle).await.state {
            RunState::Failed(failure) => assert_eq!((failure.kind, failure.billed), (kind, billed), "{play:?}"),
            other => panic!("{play:?}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_cancel_goes_out_once_and_is_followed_to_its_end() {
    let set = set().await;
    // In the queue (200), and at work (202).
    for looks in [0, 3] {
        set.lab.then(None, Play::runs());
        let handle = set.submit(&task(FLUX, image())).await.unwrap();
        for _ in 0..looks {
            set.provider.poll(&handle).await.unwrap();
        }
        let before = set.requests(Class::Cancel).len();
        set.provider.cancel(&handle).await.unwrap();
        let cancels = set.requests(Class::Cancel).split_off(before);
        let line = format!("PUT /fal-ai/flux/requests/{}/cancel", handle.remote_id);
        assert_eq!(
            cancels.iter().map(request).collect::<Vec<_>>(),
            [json!({ "line": line, "headers": {}, "body": "" })]
        );
        assert!(matches!(end(&set.provider, &handle).await.state, RunState::Canceled));
    }
    // It may go on all the same, and is then paid for.
    set.lab.then(None, Play::succeeds().after_looks(2).with_on_cancel(OnCancel::GoesOn));
    let handle = set.submit(&task(FLUX, image())).await.unwrap();
    set.provider.cancel(&handle).await.unwrap();
    output(end(&set.provider, &handle).await);
    assert_eq!(set.provider.cancel(&handle).await.unwrap_err().kind(), ErrorKind::TooLate);
}

#[tokio::test]
async fn a_lost_submit_is_found_by_its_webhook_whatever_its_endpoint() {
    let set = set().await;
    for (model, spec) in
        [(FLUX, image()), ("fal-ai/kokoro/american-english", speech(None)), (KLING, video(Some(picture(9)), 5))]
    {
        set.lab.then(None, Play::succeeds().with_answer(Answer::Resets));
        let task = task(model, spec);
        let id = submission_id(&task);
        let lost = set.provider.submit(&task, &options(&id)).await.unwrap_err();
        assert_eq!(lost.kind(), ErrorKind::OutcomeUnknown);
        let accepted = set.lab.accepted().last().unwrap().remote_id.clone();
        assert!(set.lab.finish(&id));
        let webhook = set.lab.callback_of(&id).unwrap();
        let handle = set.provider.callback(&webhook, &spool(&task)).await.unwrap();
        assert_eq!(handle, Handle::new("fal".into(), accepted));
        let before = set.requests(Class::Read).len();
        output(end(&set.provider, &handle).await);
        assert!(set.requests(Class::Read).len() - before < 16, "each app is asked once");
        assert_eq!(set.provider.cancel(&handle).await.unwrap_err().kind(), ErrorKind::TooLate);
    }
    // And what nobody knows is not found.
    let unknown = Handle::new("fal".into(), "00000000-0000-4000-8000-000000000000");
    assert_eq!(set.provider.poll(&unknown).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(set.provider.cancel(&unknown).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn the_published_keys_are_asked_for_once_and_without_ours() {
    let remote = lab::fal();
    let set = set_with(remote.clone()).await;
    let task = task(FLUX, image());
    let id = submission_id(&task);
    let handle = set.provider.submit(&task, &options(&id)).await.unwrap();
    end(&set.provider, &handle).await;
    let asked = || set.requests(Class::Read).iter().filter(|seen| seen.path().ends_with("/jwks.json")).count();
    let told = |provider: Fal, callback: Callback| {
        let spool = spool(&task);
        async move { provider.callback(&callback, &spool).await.map(|handle| handle.remote_id).map_err(|e| e.kind()) }
    };
    let genuine = set.lab.callback_of(&id).unwrap();
    for _ in 0..3 {
        assert_eq!(told(set.provider.clone(), genuine.clone()).await, Ok(handle.remote_id.clone()));
    }
    assert_eq!(asked(), 1);
    let keyless = |seen: &Arc<Seen>| !seen.path().ends_with("/jwks.json") || seen.header("authorization").is_none();
    assert!(set.lab.requests_with_keys().iter().all(keyless), "our key went out for theirs");
    // Forged ones make nobody ask again so soon, and neither does a key that came after them.
    remote.rotate_keys();
    let by_the_new_key = set.lab.callback_of(&id).unwrap();
    for _ in 0..3 {
        assert_eq!(told(set.provider.clone(), by_the_new_key.clone()).await, Err(ErrorKind::Unauthorized));
    }
    assert_eq!(asked(), 1);
    let fresh = Fal::builder(set.lab.key()).with_base_url(set.lab.base_url()).build().unwrap();
    assert_eq!(told(fresh.clone(), by_the_new_key.clone()).await, Ok(handle.remote_id.clone()));
    assert_eq!(told(fresh, genuine.clone()).await, Err(ErrorKind::Unauthorized));
    assert_eq!(asked(), 2);
    // Keys that cannot be had say nothing of the webhook: it comes again.
    let nowhere = Fal::builder(set.lab.key()).with_base_url(set.lab.base_url());
    let nowhere = nowhere.with_jwks_url(format!("{}/no/requests/such", set.lab.base_url())).build().unwrap();
    assert_eq!(told(nowhere, genuine).await, Err(ErrorKind::Unavailable));
}

#[tokio::test]
async fn a_rotated_key_is_used_at_once() {
    let set = set().await;
    let provider = Fal::builder("old:key").with_base_url(set.lab.base_url()).build().unwrap();
    let clone = provider.clone();
    let task = task(WAN, video(Some(picture(LARGE)), 5));
    let error = clone.submit(&task, &options(&submission_id(&task))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    provider.rotate_key(set.lab.key()).unwrap();
    clone.submit(&task, &options(&submission_id(&task))).await.unwrap();
}
