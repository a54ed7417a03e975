//! What the remotes' protocols look like from the outside.

use std::time::Duration;

use aws_lc_rs::{digest, signature};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use vidgen_core::{Callback, StepKind, SubmissionId, Usage};
use vidgen_providers::lab::{self, *};

use super::http;

async fn answer(request: RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let bytes = response.bytes().await.unwrap();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

struct Fal {
    lab: Lab,
    http: Client,
    auth: String,
}

impl Fal {
    async fn start() -> Self {
        let lab = Lab::start(lab::fal()).await;
        let auth = format!("Key {}", lab.key());
        Self { lab, http: http(), auth }
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let url = format!("{}/{path}", self.lab.base_url());
        answer(self.http.post(url).header("authorization", &self.auth).body(body.to_string())).await
    }

    async fn get(&self, url: &Value) -> (u16, Value) {
        answer(self.http.get(url.as_str().unwrap()).header("authorization", &self.auth)).await
    }

    async fn cancel(&self, run: &Value) -> (u16, Value) {
        answer(self.http.put(run["cancel_url"].as_str().unwrap()).header("authorization", &self.auth)).await
    }
}

#[tokio::test]
async fn fal_queues_completes_and_states_its_units() {
    let fal = Fal::start().await;
    fal.lab.then(StepKind::Video, Play::succeeds().after_looks(2).with_usage(Usage::MilliUnits(3008)));
    let input = json!({ "prompt": "a tram", "image_url": "data:,", "duration": "4s" });
    let (status, run) = fal.post("fal-ai/veo3.1/image-to-video", input).await;
    assert_eq!((status, &run["status"]), (200, &json!("IN_QUEUE")));
    let id = run["request_id"].as_str().unwrap();
    // Found by the first two segments of the endpoint, and by no more.
    assert_eq!(run["status_url"], format!("{}/fal-ai/veo3.1/requests/{id}/status", fal.lab.base_url()));
    let longer = format!("{}/fal-ai/veo3.1/image-to-video/requests/{id}/status", fal.lab.base_url());
    assert_eq!(fal.get(&json!(longer)).await, (404, json!({ "status": "NOT_FOUND" })));
    assert_eq!(fal.get(&run["response_url"]).await.0, 400);
    for expected in ["IN_PROGRESS", "COMPLETED"] {
        let (status, shown) = fal.get(&run["status_url"]).await;
        assert_eq!((status == 200, &shown["status"]), (expected == "COMPLETED", &json!(expected)));
    }
    let url = run["response_url"].as_str().unwrap();
    let response = fal.http.get(url).header("authorization", &fal.auth).send().await.unwrap();
    assert_eq!(response.headers()["x-fal-billable-units"], "3.008");
    let result: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    let file = fal.http.get(result["video"]["url"].as_str().unwrap()).send().await.unwrap();
    assert_eq!(file.content_length(), result["video"]["file_size"].as_u64());
    assert_eq!(fal.cancel(&run).await, (400, json!({ "status": "ALREADY_COMPLETED" })));
}

#[tokio::test]
async fn fal_fails_in_its_result_and_cancels_by_two_codes() {
    let fal = Fal::start().await;
    let image = || fal.post("fal-ai/flux/schnell", json!({ "prompt": "a tram" }));
    fal.lab.then(None, Play::refuses_in_run().after_looks(0));
    let (_, run) = image().await;
    let (status, shown) = fal.get(&run["status_url"]).await;
    assert_eq!(
        (status, &shown["status"], &shown["error"]),
        (200, &json!("COMPLETED"), &json!("Invalid status code: 422"))
    );
    let (status, result) = fal.get(&run["response_url"]).await;
    assert_eq!((status, &result["detail"][0]["type"]), (422, &json!("content_policy_violation")));

    fal.lab.then(None, Play::fails_as("runner_disconnected", "gone").after_looks(0));
    let (_, run) = image().await;
    assert_eq!(fal.get(&run["status_url"]).await.1["error_type"], "runner_disconnected");
    assert_eq!(fal.get(&run["response_url"]).await.0, 503);

    // A form of the field that another family has.
    let (status, run) = fal.post("fal-ai/veo3", json!({ "prompt": "a tram", "duration": "8" })).await;
    assert_eq!(status, 200);
    while fal.get(&run["status_url"]).await.0 == 202 {}
    assert_eq!(fal.get(&run["response_url"]).await.0, 422);

    fal.lab.always(Play::runs());
    let (_, queued) = image().await;
    let (_, running) = image().await;
    for _ in 0..2 {
        fal.get(&running["status_url"]).await;
    }
    assert_eq!(fal.cancel(&queued).await, (200, json!({ "status": "OK" })));
    assert_eq!(fal.cancel(&running).await, (202, json!({ "status": "CANCELLATION_REQUESTED" })));
    assert_eq!(fal.get(&running["status_url"]).await.1["error_type"], "client_cancelled");
    assert_eq!(fal.get(&running["response_url"]).await.0, 499);
    assert_eq!(fal.lab.cancels().len(), 2);
    let nobody = json!(format!("{}/fal-ai/flux/requests/x/status", fal.lab.base_url()));
    assert_eq!(fal.get(&nobody).await, (404, json!({ "status": "NOT_FOUND" })));
    let bad = answer(fal.http.get(nobody.as_str().unwrap()).header("authorization", "Key a:b")).await;
    assert_eq!(bad, (401, json!({ "detail": "No user found for Key ID and Secret" })));
}

#[tokio::test]
async fn fal_takes_uploads_without_a_key_and_lists_what_ended() {
    let fal = Fal::start().await;
    let body = json!({ "content_type": "image/png", "file_name": "a.png" });
    let (_, begun) = fal.post("storage/upload/initiate?storage_type=fal-cdn-v3", body).await;
    let put = || fal.http.put(begun["upload_url"].as_str().unwrap()).body("pixels");
    assert_eq!(answer(put().header("authorization", &fal.auth)).await.0, 400);
    assert_eq!(answer(put()).await.0, 200);
    let file = fal.http.get(begun["file_url"].as_str().unwrap()).send().await.unwrap();
    assert_eq!((&file.headers()["content-type"], file.content_length()), (&"image/png".parse().unwrap(), Some(6)));
    assert_eq!(fal.lab.uploads()[0].bytes, "pixels");

    let history = json!(format!(
        "{}/v1/models/requests/by-endpoint?endpoint_id=fal-ai/flux/schnell&expand=payloads",
        fal.lab.base_url()
    ));
    let (_, run) = fal.post("fal-ai/flux/schnell", json!({ "prompt": "a tram", "seed": 7 })).await;
    assert_eq!(fal.get(&history).await.1["items"], json!([]));
    while fal.get(&run["status_url"]).await.0 == 202 {}
    let (_, listed) = fal.get(&history).await;
    assert_eq!(
        (&listed["items"][0]["request_id"], &listed["items"][0]["json_input"]["seed"]),
        (&run["request_id"], &json!(7))
    );
}

/// Whether one of the published keys has signed it.
async fn fal_signed(fal: &Fal, callback: &Callback) -> bool {
    let jwks = fal.http.get(format!("{}/.well-known/jwks.json", fal.lab.base_url()));
    let header = |name: &str| callback.header(&format!("x-fal-webhook-{name}")).unwrap();
    let hash = hex::encode(digest::digest(&digest::SHA256, &callback.body));
    let text = format!("{}\n{}\n{}\n{hash}", header("request-id"), header("user-id"), header("timestamp"));
    answer(jwks).await.1["keys"].as_array().unwrap().iter().any(|key| {
        let key = URL_SAFE_NO_PAD.decode(key["x"].as_str().unwrap()).unwrap();
        let key = signature::UnparsedPublicKey::new(&signature::ED25519, key);
        key.verify(text.as_bytes(), &hex::decode(header("signature")).unwrap()).is_ok()
    })
}

#[tokio::test]
async fn fal_signs_its_webhook_with_a_published_key() {
    let remote = lab::fal();
    let fal = Fal { lab: Lab::start(remote.clone()).await, ..Fal::start().await };
    fal.lab.always(Play::fails_as("image_too_small", "the image is too small"));
    let hook = "fal-ai/flux/schnell?fal_webhook=http%3A%2F%2F127.0.0.1%3A1%2F%3Fsubmission%3Dsub_x";
    let (_, run) = fal.post(hook, json!({ "prompt": "a tram" })).await;
    assert_eq!(run["status"], Value::Null);
    let submission = SubmissionId::from_remote("sub_x");
    assert!(fal.lab.callback_of(&submission).is_none());
    fal.lab.finish(&submission);
    let callback = fal.lab.callback_of(&submission).unwrap();
    let body: Value = serde_json::from_slice(&callback.body).unwrap();
    assert_eq!((&body["status"], &body["error"]), (&json!("ERROR"), &json!("Invalid status code: 422")));
    assert_eq!(
        (&body["request_id"], &body["payload"]["detail"][0]["type"]),
        (&run["request_id"], &json!("image_too_small"))
    );
    assert!(fal_signed(&fal, &callback).await);
    remote.rotate_keys();
    assert!(!fal_signed(&fal, &callback).await);
    assert!(fal_signed(&fal, &fal.lab.callback_of(&submission).unwrap()).await);
}

#[tokio::test]
async fn replicate_lists_in_pages_and_windows() {
    let lab = Lab::start(lab::replicate()).await;
    let http = http();
    for _ in 0..103 {
        super::buy(&http, &lab, "sub_x").await.unwrap();
    }
    let list = |url: String| answer(http.get(url).bearer_auth(lab.key()));
    let first = list(format!("{}/predictions?created_after=2020-01-01T00:00:00Z", lab.base_url())).await.1;
    let second = list(first["next"].as_str().unwrap().to_owned()).await.1;
    assert_eq!((first["results"].as_array().unwrap().len(), second["results"].as_array().unwrap().len()), (100, 3));
    assert_eq!(second["next"], Value::Null);
    let accepted = lab.accepted();
    assert_eq!(first["results"][0]["id"], accepted[102].remote_id.as_str());
    assert_eq!(second["results"][2]["id"], accepted[0].remote_id.as_str());
    assert!(first["results"][0]["webhook"].as_str().unwrap().contains("submission=sub_x"));
    let created = first["results"][0]["created_at"].as_str().unwrap();
    let after = list(format!("{}/predictions?created_after={created}", lab.base_url())).await.1;
    assert_eq!(after["results"].as_array().unwrap().len(), 1);
    let before = list(format!("{}/predictions?created_before={created}", lab.base_url())).await.1;
    assert_eq!(before["results"][0]["id"], accepted[101].remote_id.as_str());
}

#[tokio::test]
async fn replicate_refuses_in_its_own_words() {
    let lab = Lab::start(lab::replicate()).await;
    let http = http();
    let post = |path: &str, body: Value| {
        answer(http.post(format!("{}/{path}", lab.base_url())).bearer_auth(lab.key()).body(body.to_string()))
    };
    let official = "models/google/veo-3-fast/predictions";
    let (status, body) = post(official, json!({ "input": {} })).await;
    assert_eq!((status, &body["detail"]), (422, &json!("- input: prompt is required\n")));
    assert_eq!(post(official, json!({ "input": { "prompt": "x" }, "id": "mine" })).await.0, 422);
    assert_eq!(post("models/acme/no-such-model/predictions", json!({ "input": {} })).await.0, 404);
    assert_eq!(post("predictions", json!({ "version": "acme/clip:12", "input": {} })).await.0, 422);
    for (refusal, status) in [(Refusal::NoCredit, 402), (Refusal::Moderated("no".into()), 422)] {
        lab.then(None, Play::refuses_for(refusal));
        assert_eq!(post(official, json!({ "input": { "prompt": "x" } })).await.0, status);
    }
    assert!(lab.accepted().is_empty());
    for (deadline, status) in [("4", 422), ("soon", 422), ("5", 201), ("1h30m45s", 201)] {
        let post =
            http.post(format!("{}/{official}", lab.base_url())).bearer_auth(lab.key()).header("cancel-after", deadline);
        let (got, body) = answer(post.body(json!({ "input": { "prompt": "x" } }).to_string())).await;
        assert_eq!((got, body["deadline"].is_string()), (status, status == 201), "{deadline}");
    }
    let bad = answer(http.get(format!("{}/account", lab.base_url())).bearer_auth("r8_other")).await;
    assert_eq!((bad.0, &bad.1["title"]), (401, &json!("Unauthenticated")));
    lab.revoke_key();
    assert_eq!(answer(http.get(format!("{}/account", lab.base_url())).bearer_auth(lab.key())).await.0, 401);
}

#[tokio::test]
async fn replicate_keeps_data_for_an_hour() {
    let lab = Lab::start(lab::replicate()).await;
    let http = http();
    super::buy(&http, &lab, "sub_x").await.unwrap();
    let id = lab.accepted()[0].remote_id.clone();
    super::look(&http, &lab, &id).await;
    let end = super::look(&http, &lab, &id).await;
    assert_eq!((&end["status"], end["metrics"]["predict_time"].as_f64()), (&json!("succeeded"), Some(41.2)));
    let output = || http.get(end["output"].as_str().unwrap()).send();
    assert_eq!(output().await.unwrap().status(), 200);
    let now: jiff::Timestamp = end["completed_at"].as_str().unwrap().parse().unwrap();
    let clock = vidgen_core::clock::VirtualClock::starting_at(now + Duration::from_secs(3601));
    lab.set_clock(std::sync::Arc::new(clock));
    let later = super::look(&http, &lab, &id).await;
    assert_eq!((&later["output"], &later["data_removed"], &later["input"]), (&Value::Null, &json!(true), &json!({})));
    assert_eq!(output().await.unwrap().status(), 404);
}

#[tokio::test]
async fn replicate_signs_by_standard_webhooks() {
    let lab = Lab::start(lab::replicate()).await;
    let http = http();
    super::buy(&http, &lab, "sub_x").await.unwrap();
    let submission = SubmissionId::from_remote("sub_x");
    lab.finish(&submission);
    let callback = lab.callback_of(&submission).unwrap();
    let url = format!("{}/webhooks/default/secret", lab.base_url());
    let secret = answer(http.get(url).bearer_auth(lab.key())).await.1["key"].as_str().unwrap().to_owned();
    let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let header = |name: &str| callback.header(name).unwrap();
    let text =
        [header("webhook-id"), header("webhook-timestamp"), std::str::from_utf8(&callback.body).unwrap()].join(".");
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &key);
    let signed = STANDARD.decode(header("webhook-signature").strip_prefix("v1,").unwrap()).unwrap();
    aws_lc_rs::hmac::verify(&key, text.as_bytes(), &signed).unwrap();
    let body: Value = serde_json::from_slice(&callback.body).unwrap();
    assert_eq!(body["id"], lab.accepted()[0].remote_id.as_str());
    assert_eq!(callback.received_at.as_second().to_string(), header("webhook-timestamp"));
}

#[tokio::test]
async fn replicate_takes_files_and_speaks_of_versions() {
    let lab = Lab::start(lab::replicate()).await;
    let http = http();
    let form = "--b\r\ncontent-disposition: form-data; name=\"content\"; filename=\"a.png\"\r\ncontent-type: image/png\r\n\r\npixels\r\n--b--\r\n";
    let upload = http.post(format!("{}/files", lab.base_url())).bearer_auth(lab.key());
    let (status, file) = answer(upload.header("content-type", "multipart/form-data; boundary=b").body(form)).await;
    assert_eq!((status, &file["size"], &file["content_type"]), (201, &json!(6), &json!("image/png")));
    assert_eq!(answer(http.get(file["urls"]["get"].as_str().unwrap()).bearer_auth(lab.key())).await.0, 200);
    assert_eq!((lab.uploads()[0].name.as_str(), lab.count(Class::Upload)), ("a.png", 1));
    let version = format!("stability-ai/sdxl:{}", "0123456789abcdef".repeat(4));
    let body = json!({ "version": version, "input": { "width": 640, "height": 384 } });
    let post = http.post(format!("{}/predictions", lab.base_url())).bearer_auth(lab.key()).body(body.to_string());
    let (_, run) = answer(post).await;
    assert_eq!((run["version"].as_str().unwrap().len(), &run["model"]), (64, &json!("stability-ai/sdxl")));
    lab.always(None);
    let id = run["id"].as_str().unwrap();
    super::look(&http, &lab, id).await;
    let end = super::look(&http, &lab, id).await;
    let output = http.get(end["output"][0].as_str().unwrap()).send().await.unwrap().bytes().await.unwrap();
    // PNG: width and height are at 16.
    assert_eq!((&output[16..20], &output[20..24]), (&640_u32.to_be_bytes()[..], &384_u32.to_be_bytes()[..]));
}
