//! The small readers of what Replicate says in words.

use super::*;

fn prediction(fields: Value) -> wire::Prediction {
    serde_json::from_value(fields).unwrap()
}

#[test]
fn progress_is_the_last_one_in_the_logs() {
    for (logs, percent) in [
        ("Using seed: 1\n  3%|▎ | 1/30 [00:01]\n 57%|█████▋ | 17/30 [00:09]", Some(0.57)),
        ("100%|██████████| 30/30\ndone", Some(1.0)),
        ("7%|", Some(0.07)),
        ("300%|", None),
        ("101%|", Some(1.0)),
        ("é%|", None),
        ("loading at 50%", None),
        ("", None),
    ] {
        assert_eq!(progress(logs), percent, "{logs}");
    }
}

#[test]
fn outputs_are_found_in_any_shape() {
    let found = |output: Value, kind| -> Vec<String> {
        outputs(&output, kind).into_iter().map(|output| output.locator).collect()
    };
    assert_eq!(found(json!("https://a.example/x.mp4"), None), ["https://a.example/x.mp4"]);
    assert_eq!(found(json!(["https://a.example/1", "https://a.example/2"]), None).len(), 2);
    assert_eq!(found(json!(["some ", "text"]), None), Vec::<String>::new());
    assert_eq!(found(Value::Null, None), Vec::<String>::new());
    let mixed = json!({ "cover": "https://a.example/c.png?x=.mp4", "extra": { "video": "https://a.example/v.mp4" } });
    let video = found(mixed.clone(), Some(StepKind::Video));
    assert_eq!(video, ["https://a.example/v.mp4", "https://a.example/c.png?x=.mp4"]);
    assert_eq!(found(mixed, Some(StepKind::Image)).first().unwrap(), "https://a.example/c.png?x=.mp4");
}

#[test]
fn a_wait_is_read_out_of_the_text() {
    for (detail, wait) in [
        ("Request was throttled. Your rate limit resets in ~30s.", Some(30)),
        ("reduced to 6 requests per minute with a burst of 1. Your rate limit resets in ~9s.", Some(9)),
        ("Expected available in 12 seconds.", Some(12)),
        ("Request was throttled.", None),
        ("resets in ~s", None),
    ] {
        assert_eq!(seconds(detail), wait.map(Duration::from_secs), "{detail}");
    }
}

#[test]
fn a_failure_says_why_but_not_what_was_asked() {
    let failed = |error: Value| {
        failure(&prediction(json!({
            "id": "p", "status": "failed", "input": { "prompt": "a red fox jumps" }, "error": error,
        })))
    };
    let nsfw = failed(json!("The input or output was flagged as sensitive. Please try again. (E005)"));
    assert_eq!(nsfw.kind, ErrorKind::Refused);
    let broken = failed(json!("CUDA out of memory (E1001)"));
    assert_eq!((broken.kind, broken.reason.as_str()), (ErrorKind::Unavailable, "CUDA out of memory (E1001)"));
    let quoting = failed(json!("ValueError: 'a red fox jumps' is too long"));
    assert_eq!(quoting.reason, "ValueError: '…' is too long");
    assert_eq!(failed(Value::Null).reason, "the prediction failed");
    assert!(failed(json!({ "code": 7 })).reason.contains("code"));
}

#[test]
fn only_what_computed_is_billed() {
    let replicate = Replicate::new("r8_x").unwrap();
    let look = |status: &str, model: &str, version: &str| {
        let metrics = json!({ "predict_time": 2.5, "total_time": 9.0 });
        let fields = json!({ "id": "p", "status": status, "model": model, "version": version, "metrics": metrics });
        replicate.snapshot(&prediction(fields))
    };
    let sdxl = ("stability-ai/sdxl", "39ed52f2a78e934b3ba6e2a89f5b1c712de7dfea535525255b1aa35c5565e08b");
    let flux = ("black-forest-labs/flux-schnell", "hidden");
    let usage = Some(Usage::Compute(Duration::from_millis(2500)));
    let billed = |snapshot: &Snapshot| match &snapshot.state {
        vidgen_core::RunState::Failed(failure) => failure.billed,
        other => panic!("{other:?}"),
    };
    let failed = look("failed", sdxl.0, sdxl.1);
    assert_eq!((billed(&failed), failed.usage), (true, usage));
    assert!(!billed(&look("failed", flux.0, flux.1)));
    let aborted = look("aborted", sdxl.0, sdxl.1);
    assert_eq!((billed(&aborted), aborted.usage), (false, None));
    assert_eq!(look("canceled", sdxl.0, sdxl.1).usage, usage);
    assert_eq!(look("succeeded", sdxl.0, sdxl.1).usage, usage);
    assert_eq!(look("processing", sdxl.0, sdxl.1).usage, None);
}

#[test]
fn a_failed_run_of_a_deployment_is_billed_for_its_time() {
    let entry = |id: &str, price: &str| {
        let text = format!("id = {id:?}\nkind = \"image\"\nendpoint = \"deployment\"\nprice = {price}");
        ModelEntry::from_toml(&text).unwrap()
    };
    let replicate = Replicate::builder("r8_1")
        .with_model(entry("acme/timed", "{ per_compute_second = \"0.001\", at_most = 60 }"))
        .with_model(entry("acme/flat", "{ per_run = \"0.1\" }"))
        .build()
        .unwrap();
    let billed = |deployment: Value| {
        let failed = prediction(json!({
            "id": "p", "status": "failed", "model": "someone/model", "version": "v", "deployment": deployment,
            "metrics": { "predict_time": 30.0 },
        }));
        match replicate.snapshot(&failed).state {
            vidgen_core::RunState::Failed(failure) => failure.billed,
            other => panic!("{other:?}"),
        }
    };
    assert!(billed(json!("acme/timed")));
    assert!(!billed(json!("acme/flat")));
    // Whose it is nobody says: what is not known is not nothing.
    assert!(billed(Value::Null));
}

#[test]
fn a_time_that_no_run_takes_prices_nothing() {
    let replicate = Replicate::new("r8_1").unwrap();
    for (time, usage) in [(json!(41.5), Some(41_500)), (json!(1e12), None), (json!(-1), None), (json!("3"), None)] {
        let ended = prediction(json!({ "id": "p", "status": "succeeded", "metrics": { "predict_time": time } }));
        let expected = usage.map(|ms| Usage::Compute(Duration::from_millis(ms)));
        assert_eq!(replicate.snapshot(&ended).usage, expected, "{time}");
    }
}
