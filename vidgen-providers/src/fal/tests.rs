//! The small readers of what fal says.

use vidgen_core::{MediaType, RunState};

use super::*;

#[test]
fn an_app_is_two_segments_or_three_in_a_namespace() {
    for (endpoint, path) in [
        ("fal-ai/fast-svd", "fal-ai/fast-svd"),
        ("fal-ai/kling-video/v2.6/pro/image-to-video", "fal-ai/kling-video"),
        ("workflows/acme/clip", "workflows/acme/clip"),
        ("workflows/acme/clip/more", "workflows/acme/clip"),
        ("comfy/acme/clip", "comfy/acme/clip"),
    ] {
        assert_eq!(app(endpoint).join("/"), path);
    }
}

#[test]
fn a_plain_webhook_is_kept_back_from_fal_itself() {
    let options = |url: &str| {
        let id = vidgen_core::SubmissionId::from_remote("sub_1");
        SubmitOptions::new(id).with_callback(url.parse().unwrap())
    };
    let (plain, safe) = (options("http://host.example/"), options("https://host.example/"));
    let fal = Fal::new("id:secret").unwrap();
    assert_eq!((fal.webhook(&plain), fal.webhook(&safe)), (None, safe.callback.as_ref()));
    let own = Fal::builder("id:secret").with_base_url("http://127.0.0.1:9").build().unwrap();
    assert_eq!(own.webhook(&plain), plain.callback.as_ref());
}

#[test]
fn the_parts_of_the_api_are_where_the_queue_is_unless_that_is_fals_own() {
    let places = |fal: Fal| [&fal.storage, &fal.platform].map(|client| client.base().to_string());
    let own = Fal::new("id:secret").unwrap();
    assert_eq!(places(own), ["https://rest.fal.ai/", "https://api.fal.ai/v1"]);
    let other = Fal::builder("id:secret").with_base_url("http://127.0.0.1:9/fal/");
    assert_eq!(places(other.clone().build().unwrap()), ["http://127.0.0.1:9/fal", "http://127.0.0.1:9/fal/v1"]);
    let apart = other.with_storage_url("https://s.example").with_platform_url("https://p.example").build().unwrap();
    assert_eq!(places(apart), ["https://s.example/", "https://p.example/"]);
}

#[test]
fn units_are_thousandths_rounded_up() {
    for (text, units) in [
        ("3.008", Some(3008)),
        ("1", Some(1000)),
        ("0", Some(0)),
        ("0.0001", Some(1)),
        ("2.0735", Some(2074)),
        ("1e-05", Some(1)),
        (" 8.0 ", Some(8000)),
        ("-1", None),
        ("NaN", None),
        ("inf", None),
        ("many", None),
        ("", None),
    ] {
        assert_eq!(milli(text), units, "{text}");
    }
}

#[test]
fn a_failure_is_judged_by_its_type_and_never_by_its_text() {
    let model = |kind: &str| json!({ "detail": [{ "loc": ["body", "image_url"], "msg": "canary", "type": kind }] });
    let platform = |kind: &str| json!({ "detail": "canary", "error_type": kind });
    use ErrorKind::{Invalid, Refused, Unavailable, Unsupported};
    for (code, body, kind, billed) in [
        (422, model("content_policy_violation"), Refused, true),
        (422, model("missing"), Invalid, true),
        (422, model("image_load_error"), Invalid, true),
        (422, model("face_detection_error"), Invalid, true),
        (422, model("greater_than_equal"), Invalid, true),
        (422, model("sequence_too_long"), Invalid, true),
        (422, model("some_new_word"), Invalid, true),
        (422, model("file_download_error"), Unavailable, true),
        (422, model("file_too_large"), Unsupported, true),
        (422, model("image_too_small"), Unsupported, true),
        (422, model("unsupported_audio_format"), Unsupported, true),
        (422, model("video_duration_too_long"), Unsupported, true),
        (422, model("feature_not_supported"), Unsupported, true),
        (500, model("internal_server_error"), Unavailable, false),
        (504, model("generation_timeout"), Unavailable, false),
        (400, model("downstream_service_error"), Unavailable, true),
        (500, model("downstream_service_unavailable"), Unavailable, false),
        (504, platform("request_timeout"), Unavailable, false),
        (504, platform("startup_timeout"), Unavailable, false),
        (503, platform("runner_disconnected"), Unavailable, false),
        (502, platform("runner_incomplete_response"), Unavailable, false),
        (500, platform("internal_error"), Unavailable, false),
        (499, platform("client_disconnected"), Unavailable, false),
        (400, platform("bad_request"), Invalid, true),
        (404, json!({ "detail": "Path /x not found" }), Unsupported, true),
        (422, json!({ "detail": "canary" }), Invalid, true),
        (500, json!("canary"), Unavailable, false),
        (418, json!(null), Unavailable, true),
    ] {
        let RunState::Failed(failure) = Said::default().and_body(code, &body).snapshot().state else {
            panic!("{code} {body} is no failure")
        };
        assert_eq!((failure.kind, failure.billed), (kind, billed), "{code} {body}");
        assert!(!failure.reason.contains("canary") && !failure.reason.is_empty(), "{}", failure.reason);
    }
    // The worst word of several counts.
    let body = json!({ "detail": [{ "type": "missing" }, { "type": "content_policy_violation" }] });
    assert_eq!(Said::default().and_body(422, &body).kind(), Refused);
    let canceled = Said::default().and_body(499, &platform("client_cancelled")).snapshot();
    assert!(matches!(canceled.state, RunState::Canceled));
    // A word that is none is not shown.
    let odd = json!({ "detail": [{ "type": "a canary, of two words", "loc": ["body", "what ever"] }] });
    let reason = Said::default().and_body(422, &odd).reason();
    assert_eq!(reason, "the model did not take the input (body, 422)");
}

#[test]
fn a_refusal_is_billed_if_a_machine_has_worked_at_it_or_nothing_tells() {
    let status = |seconds: Value| -> wire::Status {
        let metrics = json!({ "inference_time": seconds });
        let error = "Invalid status code: 422";
        serde_json::from_value(json!({ "status": "COMPLETED", "error": error, "metrics": metrics })).unwrap()
    };
    for (seconds, units, billed) in [
        (json!(1.5), None, true),
        (json!(0), None, false),
        (json!(null), None, true),
        (json!(1.5), Some(0), false),
        (json!(0), Some(1000), true),
    ] {
        let said = Said::by(&status(seconds.clone())).with_units(units);
        let RunState::Failed(failure) = said.snapshot().state else { panic!("{seconds} {units:?}") };
        assert_eq!(failure.billed, billed, "{seconds} {units:?}");
    }
}

fn files(body: &Value, kind: StepKind) -> Vec<Output> {
    match success(body, None, Some(kind)).state {
        RunState::Succeeded(outputs) => outputs,
        other => panic!("{other:?}"),
    }
}

#[test]
fn outputs_are_found_in_every_shape_and_the_wanted_kind_comes_first() {
    use StepKind::{Image, Speech, Video};
    let url = "https://v3.fal.media/files/a";
    let file = |name: &str| format!("{url}/{name}");
    for (body, kind, urls) in [
        (json!({ "video": { "url": file("o.mp4"), "content_type": "video/mp4" }, "seed": 1 }), Video, vec!["o.mp4"]),
        (json!({ "images": [{ "url": file("1.png") }, { "url": file("2.png") }] }), Image, vec!["1.png", "2.png"]),
        (json!({ "image": { "url": file("x") } }), Image, vec!["x"]),
        (json!({ "audio": { "url": file("o.mp3") }, "duration_ms": 1500 }), Speech, vec!["o.mp3"]),
        (json!({ "thumbnail_url": file("t.jpg"), "video_url": file("o.mp4") }), Video, vec!["o.mp4", "t.jpg"]),
        (json!({ "a_preview": { "url": file("p.mp4") }, "video": { "url": file("o") } }), Video, vec!["o", "p.mp4"]),
        (
            json!({ "audio": { "url": file("o.wav") }, "video": { "url": file("o.webm") } }),
            Speech,
            vec!["o.wav", "o.webm"],
        ),
        (json!({ "outputs": { "7": { "video": file("o.mp4") } } }), Video, vec!["o.mp4"]),
        (json!({ "prompt": file("no"), "text": file("no"), "images": [] }), Image, vec![]),
        (
            json!({ "input": { "image_url": file("in.png") }, "images": [{ "url": file("1.png") }] }),
            Image,
            vec!["1.png"],
        ),
        (json!({ "video": { "url": "file:///etc/passwd" } }), Video, vec![]),
        (json!([]), Video, vec![]),
    ] {
        let found: Vec<String> = files(&body, kind).into_iter().map(|output| output.locator).collect();
        assert_eq!(found, urls.into_iter().map(file).collect::<Vec<_>>(), "{body}");
    }
}

#[test]
fn what_is_known_of_the_content_is_told() {
    let body = json!({ "video": {
        "url": "https://v3.fal.media/o", "content_type": "video/mp4; codecs=avc1",
        "width": 1280, "height": 720, "duration": 5.5, "fps": 24,
    } });
    let output = files(&body, StepKind::Video).remove(0);
    assert_eq!(output.media_type, Some(MediaType::Mp4));
    assert_eq!((output.content.width, output.content.height), (Some(1280), Some(720)));
    assert_eq!(output.content.duration, Some(Duration::from_millis(5500)));
    let body = json!({ "audio": { "url": "https://v3.fal.media/o.mp3" }, "duration_ms": 1500 });
    let output = files(&body, StepKind::Speech).remove(0);
    assert_eq!((output.media_type, output.content.duration), (Some(MediaType::Mp3), Some(Duration::from_millis(1500))));
}

#[test]
fn a_picture_that_is_flagged_is_refused_and_billed() {
    let body =
        |flags: Value| json!({ "images": [{ "url": "https://v3.fal.media/1.png" }], "has_nsfw_concepts": flags });
    match success(&body(json!([true])), Some(1000), Some(StepKind::Image)).state {
        RunState::Failed(failure) => assert_eq!((failure.kind, failure.billed), (ErrorKind::Refused, true)),
        other => panic!("{other:?}"),
    }
    for flags in [json!([false]), json!([]), json!(null)] {
        assert_eq!(files(&body(flags), StepKind::Image).len(), 1);
    }
}
