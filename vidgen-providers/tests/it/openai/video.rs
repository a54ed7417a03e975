//! Videos: what goes out in each dialect, and what is made of the answers.

use std::time::Duration;

use vidgen_core::{Error, ErrorKind, Output, RunState, StepKind};
use vidgen_providers::lab::{OnCancel, Play, Serving, Setup};

use super::*;

const VIDEOS: &str = "POST /v1/videos";
const FORM: &str = "multipart/form-data";

#[tokio::test]
async fn a_video_is_a_form_with_its_first_frame_as_a_file() {
    let set = set(lab::openai(), Dialect::OpenAi).await;
    let mut task = task("acme-video", video(Some(picture(9)), 8));
    task.extra.insert("input_reference[file_id]".into(), Value::Null);
    let (_, seen) = set.recorded(&task).await;
    let body = json!([
        part("model", "acme-video"),
        part("prompt", PROMPT),
        part("seconds", "8"),
        part("size", "1280x720"),
        ["input_reference", "image.png", "image/png", "\u{fffd}PNG\r\n\u{1a}\n\u{7}"],
    ]);
    assert_eq!(seen, sent(VIDEOS, FORM, body));
}

#[tokio::test]
async fn text_alone_is_a_form_too() {
    let set = set(lab::openai(), Dialect::OpenAi).await;
    let (_, seen) = set.recorded(&task("acme-video", video(None, 4))).await;
    let body =
        json!([part("model", "acme-video"), part("prompt", PROMPT), part("seconds", "4"), part("size", "1280x720")]);
    assert_eq!(seen, sent(VIDEOS, FORM, body));
}

#[tokio::test]
async fn what_is_nested_has_brackets_in_a_form() {
    let set = set(lab::litellm(), Dialect::LiteLlm).await;
    let mut task = task("acme-video", video(None, 4));
    task.extra.insert("watermark".into(), json!(false));
    task.extra.insert("options".into(), json!({ "steps": 20, "tags": ["a", "b"], "none": null }));
    let (_, seen) = set.recorded(&task).await;
    let names: Vec<_> = seen["body"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| (part[0].as_str().unwrap(), part[3].as_str().unwrap()))
        .collect();
    assert_eq!(
        names,
        [
            ("model", "acme-video"),
            ("options[steps]", "20"),
            ("options[tags][]", "a"),
            ("options[tags][]", "b"),
            ("prompt", PROMPT),
            ("seconds", "4"),
            ("size", "1280x720"),
            ("watermark", "false"),
        ]
    );
}

#[tokio::test]
async fn vllm_omni_gets_fields_of_its_own_and_json_in_them() {
    let set = set(lab::vllm_omni(), Dialect::VllmOmni).await;
    let mut task = task(WAN_I2V, video(Some(picture(9)), 5));
    task.extra.insert("lora".into(), json!({ "name": "ink", "scale": 0.5 }));
    task.extra.insert("guidance_scale".into(), json!(3.5));
    let (handle, seen) = set.recorded(&task).await;
    let body = json!([
        part("fps", "24"),
        part("guidance_scale", "3.5"),
        part("lora", r#"{"name":"ink","scale":0.5}"#),
        part("model", WAN_I2V),
        part("negative_prompt", "rain"),
        part("prompt", PROMPT),
        part("seconds", "5"),
        part("seed", "7"),
        part("size", "1280x720"),
        ["input_reference", "image.png", "image/png", "\u{fffd}PNG\r\n\u{1a}\n\u{7}"],
    ]);
    assert_eq!(seen, sent(VIDEOS, FORM, body));
    assert!(handle.remote_id.starts_with("video_gen_"));
}

#[tokio::test]
async fn sglang_gets_json_for_text_and_a_form_for_a_picture() {
    let set = set(lab::sglang(), Dialect::SgLang).await;
    let (_, seen) = set.recorded(&task(WAN_T2V, video(None, 5))).await;
    let body = json!({
        "model": WAN_T2V, "prompt": PROMPT, "negative_prompt": "rain", "size": "1280x720", "seconds": 5, "fps": 24,
        "seed": 7,
    });
    assert_eq!(seen, sent(VIDEOS, "application/json", body));
    let set = super::set(lab::sglang(), Dialect::SgLang).await;
    let (_, seen) = set.recorded(&task(WAN_I2V, video(Some(picture(9)), 5))).await;
    assert_eq!(seen["headers"]["content-type"], FORM);
    assert_eq!(seen["body"][7][0], "input_reference");
}

#[tokio::test]
async fn json_has_the_picture_in_it_where_a_gateway_wants_that() {
    let lab = Lab::start(lab::openai()).await;
    let builder = builder(&lab.key(), &lab.base_url(), Dialect::OpenAi).with_json();
    let set = Set { provider: builder.build().unwrap(), lab, store: Arc::default() };
    let long = task("acme-video", video(Some(picture(16 << 20)), 8));
    let error = set.submit(&long).await.unwrap_err();
    assert_eq!((error.kind(), set.lab.requests().len()), (ErrorKind::Unsupported, 0));
    let id = submission_id(&long);
    let task = task("acme-video", video(Some(picture(9)), 8));
    // What OpenAI had for it; the lab takes the fields of forms.
    drop(set.provider.submit(&task, &set.options(&id)).await);
    let body = json!({
        "model": "acme-video", "prompt": PROMPT, "seconds": "8", "size": "1280x720",
        "input_reference": { "image_url": "data:image/png;base64,iVBORw0KGgoH" },
    });
    assert_eq!(normal(&set.lab.requests()[0], &id).await, sent(VIDEOS, "application/json", body));
    let omni = OpenAi::server("http://127.0.0.1:1/v1").with_dialect(Dialect::VllmOmni).with_json().build();
    assert_eq!(omni.unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn an_id_may_hold_anything_and_stays_in_its_segment() {
    let set = set(lab::litellm(), Dialect::LiteLlm).await;
    let (handle, _) = set.recorded(&task("acme-video", video(None, 4))).await;
    assert!(handle.remote_id.ends_with("+/ü==") && handle.remote_id.len() > 120, "{handle:?}");
    let output = output(end(&set.provider, &handle).await);
    let bytes = set.provider.open(&output).await.unwrap().read(20 << 20).await.unwrap();
    assert_eq!(&bytes[4..8], b"ftyp");
    let reads = set.requests(Class::Read);
    assert!(reads[0].path().starts_with("/v1/videos/video_") && reads[0].path().ends_with("%2B%2F%C3%BC%3D%3D"));
    assert_eq!(request(&reads[0])["headers"], json!({}));
    let content = &set.requests(Class::Output)[0];
    assert!(content.path().ends_with("%2B%2F%C3%BC%3D%3D/content") && content.uri.query().is_none());
}

#[tokio::test]
async fn a_remote_says_when_to_ask_again() {
    let set = set(lab::openai(), Dialect::OpenAi).await;
    set.lab.always(Play::runs());
    let handle = set.submit(&task("acme-video", video(None, 4))).await.unwrap();
    let snapshot = set.provider.poll(&handle).await.unwrap();
    assert_eq!((snapshot.poll_after, snapshot.progress), (Some(Duration::from_millis(2500)), Some(0.5)));
    assert!(matches!(snapshot.state, RunState::Running));
}

#[tokio::test]
async fn ends_are_told_apart() {
    for (remote, dialect, model) in [
        (lab::openai(), Dialect::OpenAi, "acme-video"),
        (lab::vllm_omni(), Dialect::VllmOmni, WAN),
        (lab::sglang(), Dialect::SgLang, WAN_T2V),
    ] {
        let set = set(remote, dialect).await;
        for (play, kind) in [
            (Play::fails("CUDA out of memory"), Some(ErrorKind::Unavailable)),
            (Play::fails_as("insufficient_quota", "no more"), Some(ErrorKind::OverBudget)),
            (Play::refuses_in_run(), Some(ErrorKind::Refused)),
            (Play::aborts(), Some(ErrorKind::Unavailable)),
            (Play::fails_as("cancelled", "stopped"), None),
        ] {
            set.lab.then(StepKind::Video, play);
            let handle = set.submit(&task(model, video(None, 4))).await.unwrap();
            match (end(&set.provider, &handle).await.state, kind) {
                (RunState::Failed(failure), Some(kind)) => {
                    assert_eq!((failure.kind, failure.billed), (kind, false), "{failure:?}");
                }
                (RunState::Canceled, None) => {}
                (other, _) => panic!("{dialect:?}: {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_content_that_is_elsewhere_is_fetched_without_the_key() {
    let setup = {
        let mut setup = Setup::default();
        setup.outputs_elsewhere = true;
        setup
    };
    let lab = Lab::start_with(lab::openai().redirecting(), setup).await.unwrap();
    let builder = builder(&lab.key(), &lab.base_url(), Dialect::OpenAi);
    let provider = builder.clone().with_allowed(lab.outputs_addr()).build().unwrap();
    let task = task("acme-video", video(None, 4));
    let handle = provider.submit(&task, &options(&submission_id(&task))).await.unwrap();
    let output = output(end(&provider, &handle).await);
    let bytes = provider.open(&output).await.unwrap().read(20 << 20).await.unwrap();
    assert_eq!(&bytes[4..8], b"ftyp");
    let fetched: Vec<_> = lab.requests_with_keys().into_iter().filter(|seen| seen.class == Class::Output).collect();
    assert_eq!(fetched.len(), 2);
    assert!(fetched[0].path().ends_with("/content") && fetched[0].text().contains(&lab.key()));
    assert!(fetched[1].path().starts_with("/outputs/") && !fetched[1].text().contains(&lab.key()));
    // The same address is private to a client that was not told of it.
    let strict = builder.build().unwrap();
    assert_eq!(strict.open(&output).await.unwrap_err().kind(), ErrorKind::Protocol);
}

#[tokio::test]
async fn a_content_that_is_not_there_says_why() {
    let opened = async |set: &Set, play: Play, looks: usize| -> Error {
        set.lab.then(None, play);
        let handle = set.submit(&task(WAN, video(None, 4))).await.unwrap();
        for _ in 0..looks {
            set.provider.poll(&handle).await.unwrap();
        }
        set.provider.open(&Output::new(&handle.remote_id)).await.map(|_| ()).unwrap_err()
    };
    let set = set(lab::vllm_omni(), Dialect::VllmOmni).await;
    // 404 while it runs, 422 when it has failed, 404 when it is gone.
    assert_eq!(opened(&set, Play::runs(), 1).await.kind(), ErrorKind::NotFound);
    let failed = opened(&set, Play::fails("oops"), 2).await;
    assert_eq!(failed.kind(), ErrorKind::NotFound, "{failed:?}");
    assert!(failed.message().contains("failed"), "{failed}");
    let gone = opened(&set, Play::succeeds().with_serving(Serving::Expired), 2).await;
    assert_eq!(gone.kind(), ErrorKind::NotFound, "{gone:?}");
}

#[tokio::test]
async fn a_job_that_a_restart_forgot_is_not_found() {
    for (remote, dialect, model) in
        [(lab::vllm_omni(), Dialect::VllmOmni, WAN), (lab::sglang(), Dialect::SgLang, WAN_T2V)]
    {
        let set = set(remote, dialect).await;
        let handle = set.submit(&task(model, video(None, 4))).await.unwrap();
        set.lab.forget_runs();
        assert_eq!(set.provider.poll(&handle).await.unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[tokio::test]
async fn a_cancel_looks_first_and_deletes_what_runs() {
    let set = set(lab::vllm_omni(), Dialect::VllmOmni).await;
    set.lab.always(Play::runs());
    let handle = set.submit(&task(WAN, video(None, 4))).await.unwrap();
    set.provider.clone().cancel(&handle).await.unwrap();
    let calls: Vec<_> = set.lab.requests().iter().skip(1).map(|seen| format!("{} {}", seen.method, seen.uri)).collect();
    let path = format!("/v1/videos/{}", handle.remote_id);
    assert_eq!(calls, [format!("GET {path}"), format!("DELETE {path}")]);
    assert!(matches!(set.provider.poll(&handle).await.unwrap().state, RunState::Canceled));
    // Another process knows no more than the server, which has forgotten it.
    let other = builder(&set.lab.key(), &set.lab.base_url(), Dialect::VllmOmni).build().unwrap();
    assert_eq!(other.poll(&handle).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_cancel_never_deletes_what_was_made() {
    let set = set(lab::vllm_omni(), Dialect::VllmOmni).await;
    let handle = set.submit(&task(WAN, video(None, 4))).await.unwrap();
    let output = output(end(&set.provider, &handle).await);
    assert_eq!(set.provider.cancel(&handle).await.unwrap_err().kind(), ErrorKind::TooLate);
    assert_eq!(set.requests(Class::Cancel).len(), 0);
    set.provider.open(&output).await.unwrap().read(20 << 20).await.unwrap();
}

#[tokio::test]
async fn a_cancel_that_takes_long_was_heard_all_the_same() {
    let set = set(lab::vllm_omni(), Dialect::VllmOmni).await;
    set.lab.always(Play::runs().with_on_cancel(OnCancel::GoesOn));
    let handle = set.submit(&task(WAN, video(None, 4))).await.unwrap();
    set.provider.cancel(&handle).await.unwrap();
    // It is not gone, and so it is as it says.
    assert!(matches!(set.provider.poll(&handle).await.unwrap().state, RunState::Running));
}

#[tokio::test]
async fn only_vllm_omni_is_asked_to_stop() {
    for (remote, dialect, model) in [
        (lab::openai(), Dialect::OpenAi, "acme-video"),
        (lab::sglang(), Dialect::SgLang, WAN_T2V),
        (lab::litellm(), Dialect::LiteLlm, "acme-video"),
    ] {
        let set = set(remote, dialect).await;
        let handle = set.submit(&task(model, video(None, 4))).await.unwrap();
        assert!(!set.provider.capabilities().cancel);
        assert_eq!(set.provider.cancel(&handle).await.unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(set.requests(Class::Cancel).len(), 0);
    }
}

#[test]
fn videos_need_a_server_that_makes_them() {
    let entry = || ModelEntry::from_toml(CLIP).unwrap();
    let refused = [
        OpenAi::builder("sk-x").with_model(entry()),
        OpenAi::builder("sk-x").with_base_url("https://api.openai.com/v1/").with_model(entry()),
        OpenAi::builder("sk-x").with_dialect(Dialect::VllmOmni),
    ];
    for builder in refused {
        let error = builder.build().unwrap_err();
        assert_eq!((error.kind(), error.fields()[0].field.as_str()), (ErrorKind::Invalid, "base_url"));
        assert!(error.fields()[0].message.contains("2026-09-24"), "{error:?}");
    }
    OpenAi::builder("sk-x").with_base_url("https://llm.example/v1").with_model(entry()).build().unwrap();
}

#[tokio::test]
async fn openai_itself_is_not_asked_for_a_video() {
    let provider = OpenAi::new("sk-x").unwrap();
    let task = task("sora-2", video(None, 4));
    let error = provider.submit(&task, &options(&submission_id(&task))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("base URL"), "{error}");
}

#[tokio::test]
async fn a_server_of_ones_own_may_want_no_key() {
    let lab = Lab::start(lab::vllm_omni().without_key()).await;
    let provider = OpenAi::server(lab.base_url()).with_dialect(Dialect::VllmOmni).build().unwrap();
    let task = task(WAN, video(None, 4));
    let handle = provider.submit(&task, &options(&submission_id(&task))).await.unwrap();
    provider.open(&output(end(&provider, &handle).await)).await.unwrap();
    assert!(lab.requests().iter().all(|seen| seen.header("authorization").is_none()));
}

#[tokio::test]
async fn every_known_model_is_asked_in_a_way_that_is_understood() {
    for (remote, dialect) in [(lab::vllm_omni(), Dialect::VllmOmni), (lab::sglang(), Dialect::SgLang)] {
        let set = set(remote, dialect).await;
        let models = set.provider.capabilities().models;
        assert!(!models.is_empty());
        for model in models {
            let image = (!model.no_image).then(|| picture(99));
            set.submit(&task(model.id.as_str(), video(image, 5))).await.unwrap_or_else(|e| panic!("{}: {e}", model.id));
        }
    }
}

#[test]
fn a_server_of_ones_own_has_what_it_was_started_with() {
    let models = |dialect| {
        let builder = OpenAi::server("http://127.0.0.1:1/v1").with_dialect(dialect);
        let built = builder.with_model(ModelEntry::from_toml(CLIP).unwrap()).build().unwrap();
        built.capabilities().models.len()
    };
    assert_eq!((models(Dialect::VllmOmni), models(Dialect::SgLang)), (1, 1));
    assert_eq!((models(Dialect::OpenAi), models(Dialect::LiteLlm)), (8, 8));
}

#[tokio::test]
async fn a_job_is_followed_whatever_is_said_beside_its_id_and_its_status() {
    let body = json!({ "id": "v", "status": "completed", "progress": "100%", "prompt": ["a"], "task_id": 7 });
    let url = crate::answers::answering(200, &[], &body.to_string()).await;
    let provider = builder("k", &url, Dialect::OpenAi).build().unwrap();
    let task = task("acme-video", video(None, 8));
    let handle = provider.submit(&task, &options(&submission_id(&task))).await.unwrap();
    assert_eq!(handle.remote_id, "v");
    assert!(matches!(provider.poll(&handle).await.unwrap().state, vidgen_core::RunState::Succeeded(_)));
}
