//! The small readers of what cog says in words.

use super::*;

fn failed(fields: Value) -> RunFailure {
    let mut whole = json!({ "status": "failed" });
    whole.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    failure(&serde_json::from_value(whole).unwrap())
}

#[test]
fn a_failure_says_why_but_not_what_was_asked() {
    let twice = "Prediction failed: Prediction failed: ";
    for (text, reason) in [
        (format!("{twice}ValueError: a red fox jumps: too long"), "the model raised ValueError"),
        (format!("{twice}torch.cuda.OutOfMemoryError: CUDA"), "the model raised torch.cuda.OutOfMemoryError"),
        ("KeyboardInterrupt".into(), "the model raised KeyboardInterrupt"),
        ("Worker crashed".into(), "Worker crashed"),
        ("Failed to upload output: upload returned status 503 for https://x/?t=1".into(), "Failed to upload output"),
        ("a red fox jumps".into(), "the model failed"),
        (format!("{twice}a red fox: Error"), "the model failed"),
        (String::new(), "the model failed"),
    ] {
        let failure = failed(json!({ "error": text }));
        assert_eq!((failure.kind, failure.reason.as_str()), (ErrorKind::Unavailable, reason), "{text}");
    }
    assert_eq!(failed(json!({ "error": { "code": 7 } })).reason, "the model failed");
    let input = json!({ "prompt": "a red fox jumps" });
    let old = |text: &str| failed(json!({ "error": text, "input": input.clone() })).reason;
    assert_eq!(old("no module named 'torch'"), "no module named 'torch'");
    assert_eq!(old("ValueError: 'a red fox jumps' is too long"), "ValueError: '…' is too long");
    let fetch = failed(json!({ "error": "Input validation error: HTTPConnectionPool(host='x', …?signature=abc)" }));
    assert_eq!((fetch.kind, fetch.reason.contains("abc")), (ErrorKind::Unsupported, false));
}

#[test]
fn a_refused_input_is_named() {
    let fault = |place: &str, message: &str| json!({ "loc": ["body", "input", place], "msg": message, "type": "x" });
    let two =
        json!({ "detail": [fault("seconds", "99 is greater than the maximum of 60"), fault("p", "Field required")] });
    assert_eq!(faults(&two).unwrap(), "seconds: 99 is greater than the maximum of 60; p: Field required");
    for odd in [json!({ "detail": [] }), json!({ "detail": "no" }), json!({ "detail": [{ "loc": [7] }] }), json!("x")] {
        assert_eq!(faults(&odd), None, "{odd}");
    }
}

#[tokio::test]
async fn only_what_is_billed_by_time_is_billed_for_a_failure() {
    let store: std::sync::Arc<dyn vidgen_core::Store> = std::sync::Arc::new(vidgen_core::memory::MemoryStore::new());
    let id = vidgen_core::SubmissionId::from_remote("sub_01890a5d1f2e7c3b8d4e5f6071829304_image_1");
    let spool = Spool::new(store, &id).unwrap();
    for (price, metrics, billed) in [
        ("{ free = true }", json!({ "predict_time": 2 }), true),
        ("{ per_compute_second = \"0.001\", at_most = 60 }", json!({ "predict_time": 2 }), true),
        ("{ per_compute_second = \"0.001\", at_most = 60 }", json!({}), false),
        ("{ per_run = \"0.01\" }", json!({ "predict_time": 2 }), false),
    ] {
        let text = format!("id = \"m\"\nkind = \"image\"\nprice = {price}\nfields = {{ prompt = \"prompt\" }}");
        let cog = Cog::new("http://127.0.0.1:5000", ModelEntry::from_toml(&text).unwrap()).unwrap();
        let prediction = json!({ "status": "failed", "error": "ValueError: x", "metrics": metrics });
        let told = cog.told(serde_json::from_value(prediction).unwrap(), &spool).await.unwrap();
        let end = told.end().unwrap().state;
        assert!(matches!(end, vidgen_core::RunState::Failed(failure) if failure.billed == billed), "{price}");
    }
}
