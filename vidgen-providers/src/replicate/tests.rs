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
