//! ComfyUI against its lab: the rules of the kit, what exactly goes out, and what becomes of a run.

mod live;
mod runs;

use secrecy::SecretString;
use serde_json::{Value, json};
use vidgen_core::conformance::provider::Scene;
use vidgen_core::{ErrorKind, Handle, Provider, StepKind, SubmissionId, SubmitOptions, Task};
use vidgen_providers::comfyui::{ComfyUi, ComfyUiBuilder, Workflow};
use vidgen_providers::lab::kit::{LabFixture, Site};
use vidgen_providers::lab::{self, Class, Lab, Play, Refusal, Seen};

use crate::remote::*;

/// SDXL, as it is exported.
pub(super) fn sdxl() -> Workflow {
    let json = json!({
        "3": { "class_type": "KSampler", "inputs": {
            "seed": 42, "steps": 20, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
            "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
        }, "_meta": { "title": "KSampler" } },
        "4": { "class_type": "CheckpointLoaderSimple", "inputs": { "ckpt_name": "sd_xl_base_1.0.safetensors" } },
        "5": { "class_type": "EmptyLatentImage", "inputs": { "width": 512, "height": 512, "batch_size": 1 } },
        "6": { "class_type": "CLIPTextEncode", "inputs": { "text": "{{prompt}}", "clip": ["4", 1] } },
        "7": { "class_type": "CLIPTextEncode", "inputs": { "text": "text, watermark", "clip": ["4", 1] } },
        "8": { "class_type": "VAEDecode", "inputs": { "samples": ["3", 0], "vae": ["4", 2] } },
        "9": { "class_type": "SaveImage", "inputs": { "filename_prefix": "ComfyUI", "images": ["8", 0] } },
    });
    Workflow::image("sdxl", json.to_string())
        .with_negative_prompt("7.text")
        .with_seed("3.seed")
        .with_size("5.width", "5.height")
}

/// A video from a first frame.
pub(super) fn i2v() -> Workflow {
    let json = json!({
        "1": { "class_type": "LoadImage", "inputs": { "image": "example.png" } },
        "2": { "class_type": "ImageScale", "inputs": {
            "image": ["1", 0], "upscale_method": "area", "width": 832, "height": 480, "crop": "center",
        } },
        "3": { "class_type": "CLIPTextEncode", "inputs": { "text": "", "clip": ["5", 1] } },
        "5": { "class_type": "CheckpointLoaderSimple", "inputs": { "ckpt_name": "wan.safetensors" } },
        "6": { "class_type": "WanImageToVideo", "inputs": {
            "positive": ["3", 0], "negative": ["3", 0], "vae": ["5", 2], "start_image": ["2", 0],
            "width": 832, "height": 480, "length": 81, "batch_size": 1,
        } },
        "7": { "class_type": "KSampler", "inputs": {
            "seed": 0, "steps": 4, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
            "model": ["5", 0], "positive": ["6", 0], "negative": ["6", 1], "latent_image": ["6", 2],
        } },
        "8": { "class_type": "VAEDecode", "inputs": { "samples": ["7", 0], "vae": ["5", 2] } },
        "10": { "class_type": "CreateVideo", "inputs": { "images": ["8", 0], "fps": 16.0 } },
        "11": { "class_type": "SaveVideo", "inputs": {
            "video": ["10", 0], "filename_prefix": "video/ComfyUI", "format": "mp4", "codec": "h264",
        } },
    });
    Workflow::video("wan-i2v", json.to_string())
        .with_prompt("3.text")
        .with_image("1.image")
        .with_seed("7.seed")
        .with_size("2.width", "2.height")
        .with_size("6.width", "6.height")
        .with_size_multiple(16)
        .with_frames("6.length")
        .with_frame_counts(4, 1)
        .with_frame_rate(16)
        .with_output("11")
}

/// Two branches: a still, and a video; no weights.
pub(super) fn plain() -> Workflow {
    let json = json!({
        "1": { "class_type": "EmptyImage", "inputs": { "width": 256, "height": 256, "batch_size": 16, "color": 13_382_400 } },
        "3": { "class_type": "CreateVideo", "inputs": { "images": ["1", 0], "fps": 8.0 } },
        "4": { "class_type": "SaveVideo", "inputs": {
            "video": ["3", 0], "filename_prefix": "x", "format": "mp4", "codec": "h264",
        } },
        "5": { "class_type": "EmptyImage", "inputs": { "width": 64, "height": 64, "batch_size": 1, "color": 0 } },
        "6": { "class_type": "SaveImage", "inputs": { "images": ["5", 0], "filename_prefix": "x" } },
    });
    Workflow::video("plain", json.to_string()).without_prompt().with_size("1.width", "1.height")
}

pub(super) fn builder(base_url: &str) -> ComfyUiBuilder {
    ComfyUi::builder(base_url).with_workflow(sdxl()).with_workflow(i2v()).with_workflow(plain())
}

type Client = fn(&Site) -> ComfyUi;

fn fixture(remote: impl Fn() -> lab::ComfyUi + Send + Sync + 'static, task: Task) -> LabFixture<Client> {
    let client: Client = |site| {
        let key = SecretString::from(format!("Bearer {}", site.key));
        builder(&site.base_url).with_header("Authorization", key).build().unwrap()
    };
    let unknown = Handle::new("comfyui".into(), "01234567-89ab-8def-8123-456789abcdef");
    LabFixture::new(remote, task, client)
        .with_unknown_handle(unknown.with_detail(json!({ "kind": "video" })))
        .with_secrets([PROMPT])
        .impossible(Scene::StatesCost, "it runs on a machine of one's own, and knows of no money")
}

fn newest() -> lab::ComfyUi {
    lab::comfyui().behind_a_key()
}

fn older() -> lab::ComfyUi {
    lab::comfyui().behind_a_key().without_jobs().with_history_lag(2)
}

vidgen_core::provider_conformance!(comfyui_image, fixture(newest, task("sdxl", image())));
vidgen_core::provider_conformance!(comfyui_video, fixture(newest, task("wan-i2v", video(Some(picture(900)), 5))));
vidgen_core::provider_conformance!(comfyui_older, fixture(older, task("plain", video(None, 2))));

/// A client of a lab, and what goes with it.
pub(super) struct Set {
    pub(super) lab: Lab,
    /// The same server, for what only it knows.
    pub(super) server: lab::ComfyUi,
    pub(super) provider: ComfyUi,
}

pub(super) async fn set() -> Set {
    set_with(lab::comfyui(), |builder| builder).await
}

pub(super) async fn set_with(server: lab::ComfyUi, change: fn(ComfyUiBuilder) -> ComfyUiBuilder) -> Set {
    let lab = Lab::start(server.clone()).await;
    let provider = change(builder(&lab.base_url())).build().unwrap();
    Set { lab, server, provider }
}

impl Set {
    pub(super) async fn submit(&self, task: &Task) -> vidgen_core::Result<Handle> {
        self.provider.submit(task, &options(&submission_id(task))).await
    }

    pub(super) fn requests(&self, class: Class) -> Vec<Seen> {
        self.lab.requests().into_iter().filter(|seen| seen.class == class).collect()
    }

    /// Method and path of every call of a class.
    pub(super) fn lines(&self, class: Class) -> Vec<String> {
        self.requests(class).iter().map(|seen| format!("{} {}", seen.method, seen.path())).collect()
    }
}

const SUBMISSION: &str = "sub_0198c7f0aaaa7bbb8cccddddeeeeffff_image_1";

/// What goes out for a task under [`SUBMISSION`], without the client's own id.
async fn recorded(set: &Set, task: &Task) -> Value {
    let options = SubmitOptions::new(SubmissionId::from_remote(SUBMISSION));
    set.provider.submit(task, &options).await.unwrap();
    let mut sent = request(set.requests(Class::Submit).last().unwrap());
    let client = sent["body"].as_object_mut().unwrap().remove("client_id").unwrap();
    assert_eq!(client.as_str().unwrap().len(), 32);
    sent
}

fn expected(prompt: Value) -> Value {
    json!({
        "line": "POST /prompt",
        "headers": { "content-type": "application/json" },
        "body": {
            "prompt": prompt,
            // SHA-256 of "vidgen comfyui " and the submission, as a UUID of version 8.
            "prompt_id": "PROMPT_ID",
            "extra_data": { "vidgen": { "submission": SUBMISSION } },
        },
    })
}

#[tokio::test]
async fn a_picture_is_asked_for_by_the_users_own_workflow() {
    let set = set().await;
    let mut sent = recorded(&set, &task("sdxl", image())).await;
    let id = sent["body"]["prompt_id"].take();
    sent["body"]["prompt_id"] = json!("PROMPT_ID");
    let prompt = json!({
        "3": { "class_type": "KSampler", "inputs": {
            "seed": 7, "steps": 20, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
            "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
        }, "_meta": { "title": "KSampler" } },
        "4": { "class_type": "CheckpointLoaderSimple", "inputs": { "ckpt_name": "sd_xl_base_1.0.safetensors" } },
        "5": { "class_type": "EmptyLatentImage", "inputs": { "width": 1280, "height": 720, "batch_size": 1 } },
        "6": { "class_type": "CLIPTextEncode", "inputs": { "text": format!("{PROMPT}, ink"), "clip": ["4", 1] } },
        "7": { "class_type": "CLIPTextEncode", "inputs": { "text": "rain", "clip": ["4", 1] } },
        "8": { "class_type": "VAEDecode", "inputs": { "samples": ["3", 0], "vae": ["4", 2] } },
        "9": { "class_type": "SaveImage", "inputs": {
            "filename_prefix": format!("vidgen/{SUBMISSION}"), "images": ["8", 0],
        } },
    });
    assert_eq!(sent, expected(prompt));
    // It must never change: a submission of an older version is looked for by it.
    assert_eq!(id, "b05d52dd-c093-8968-94ac-6a2496decce5");
    assert_eq!(set.lab.requests().iter().filter(|seen| seen.path() != "/ws").count(), 1);
}

#[tokio::test]
async fn a_first_frame_is_uploaded_and_named_as_the_server_names_it() {
    let set = set().await;
    let task = task("wan-i2v", video(Some(picture(900)), 5));
    // Somebody's file has the name that ours would have.
    set.lab.world().keep(format!("{SUBMISSION}.png"), "image/png", bytes::Bytes::from_static(b"other"));
    let sent = recorded(&set, &task).await;
    let uploads = set.requests(Class::Upload);
    assert_eq!((uploads.len(), uploads[0].method.as_str(), uploads[0].path()), (1, "POST", "/upload/image"));
    let form: Vec<_> =
        uploads[0].form().await.into_iter().map(|f| (f.name, f.file_name, f.content_type, f.bytes.len())).collect();
    let file = (Some(format!("{SUBMISSION}.png")), Some("image/png".to_owned()));
    assert_eq!(form, [("image".to_owned(), file.0, file.1, 900), ("type".to_owned(), None, None, 5)]);
    let inputs = |node: &str| &sent["body"]["prompt"][node]["inputs"];
    assert_eq!(inputs("1")["image"], format!("{SUBMISSION} (1).png"));
    assert_eq!((&inputs("2")["width"], &inputs("2")["height"]), (&json!(1280), &json!(720)));
    assert_eq!((&inputs("6")["width"], &inputs("6")["length"]), (&json!(1280), &json!(81)));
    assert_eq!((&inputs("3")["text"], &inputs("7")["seed"]), (&json!(PROMPT), &json!(7)));
    assert_eq!(inputs("11")["filename_prefix"], format!("vidgen/{SUBMISSION}"));
}

#[tokio::test]
async fn no_call_has_an_origin_and_all_have_the_operators_headers() {
    let change = |builder: ComfyUiBuilder| {
        let secret = |text: &str| SecretString::from(text.to_owned());
        builder
            .with_header("CF-Access-Client-Id", secret("me"))
            .with_header("cf-access-client-secret", secret("s3cret"))
    };
    let set = set_with(lab::comfyui(), change).await;
    let task = task("wan-i2v", video(Some(picture(900)), 5));
    let handle = set.submit(&task).await.unwrap();
    let output = output(end(&set.provider, &handle).await);
    set.provider.open(&output).await.unwrap().read(usize::MAX).await.unwrap();
    set.provider.cancel(&handle).await.unwrap_err();
    until(|| !set.server.sockets().is_empty()).await;
    let seen = set.lab.requests();
    assert!(seen.iter().any(|seen| seen.path() == "/ws") && seen.iter().any(|seen| seen.path() == "/view"));
    for seen in seen {
        assert_eq!(seen.header("origin"), None, "{}", seen.uri);
        let told = (seen.header("cf-access-client-id"), seen.header("cf-access-client-secret"));
        assert_eq!(told, (Some("me"), Some("s3cret")), "{}", seen.uri);
    }
    assert!(!format!("{:?}", set.provider).contains("s3cret"));
    let bad = builder(&set.lab.base_url()).with_header("a b", SecretString::from("x".to_owned())).build();
    assert_eq!(bad.unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn every_refusal_is_told_as_what_to_do_next() {
    let set = set().await;
    let invalid = Refusal::Invalid("Node ID '#1'".into());
    for (refusal, kind) in [
        (invalid, ErrorKind::Invalid),
        (Refusal::BadKey, ErrorKind::Unauthorized),
        (Refusal::NoCredit, ErrorKind::OverBudget),
        (Refusal::NotFound, ErrorKind::NotFound),
        (Refusal::RateLimited(std::time::Duration::from_secs(7)), ErrorKind::RateLimited),
        (Refusal::Unavailable, ErrorKind::OutcomeUnknown),
    ] {
        set.lab.then(None, Play::refuses_for(refusal.clone()));
        let error = set.submit(&task("sdxl", image())).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{refusal:?}: {error:?}");
    }
    assert_eq!(set.lab.posts(), 6);
    assert!(set.lab.accepted().is_empty());
}

#[tokio::test]
async fn a_workflow_that_the_server_does_not_take_is_named_by_node_and_input() {
    let set = set().await;
    let mut task = task("sdxl", image());
    task.extra.insert("5.width".into(), json!(0));
    task.extra.insert("6.text".into(), Value::Null);
    let error = set.submit(&task).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    for named in ["node 5", "width: value_smaller_than_min", "node 6", "text: required_input_missing"] {
        assert!(error.message().contains(named), "{named}: {error}");
    }
    assert!(set.lab.accepted().is_empty());
    // Nothing goes out for what cannot be.
    let before = set.lab.requests().len();
    for spec in [video(None, 5), image()] {
        let error = set.submit(&crate::remote::task("wan-i2v", spec)).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Unsupported), "{error}");
    }
    let error = set.submit(&crate::remote::task("plain", video(Some(picture(9)), 5))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert_eq!(set.lab.requests().len(), before);
}

#[test]
fn workflows_are_models_by_name_and_the_first_of_a_kind_is_the_default() {
    let again = sdxl().with_output("9");
    let provider = builder("http://127.0.0.1:8188").with_workflow(again).with_max_live(5).with_id("gpu-2").build();
    let provider = provider.unwrap();
    let capabilities = provider.capabilities();
    let names: Vec<&str> = capabilities.models.iter().map(|model| model.id.as_str()).collect();
    assert_eq!(names, ["wan-i2v", "plain", "sdxl"]);
    assert_eq!(capabilities.model(StepKind::Video, None).unwrap().id.as_str(), "wan-i2v");
    assert!(capabilities.models.iter().all(|model| model.price.is_free()));
    assert_eq!((capabilities.max_live, provider.id().as_str()), (Some(5), "gpu-2"));
    assert_eq!(builder("http://127.0.0.1:8188").build().unwrap().capabilities().max_live, Some(2));
    assert!(capabilities.find && capabilities.cancel && !capabilities.callback);
}

/// Waits for what other tasks do, for as long as a test may take.
pub(super) async fn until(done: impl Fn() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), wait).await.unwrap();
}
