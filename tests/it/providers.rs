//! Paid providers as users of the standalone server meet them: pipelines chosen by environment
//! variables alone, against fake remotes that keep a ledger.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use vidgen_providers::lab::{self, Lab, Play};
use vidgen_tests::server::Server;

use crate::standalone::{client, download, generate, probe, status, walk};

const SDXL: &str = "replicate:stability-ai/sdxl:39ed52f2a78e934b3ba6e2a89f5b1c712de7dfea535525255b1aa35c5565e08b";

struct Remotes {
    replicate: Lab,
    fal: Lab,
    elevenlabs: Lab,
}

impl Remotes {
    async fn start() -> Self {
        let (replicate, fal, elevenlabs) = (lab::replicate(), lab::fal(), lab::elevenlabs());
        Self {
            replicate: Lab::start(replicate).await,
            fal: Lab::start(fal).await,
            elevenlabs: Lab::start(elevenlabs).await,
        }
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("REPLICATE_API_TOKEN", self.replicate.key()),
            ("REPLICATE_BASE_URL", self.replicate.base_url()),
            ("FAL_KEY", self.fal.key()),
            ("FAL_BASE_URL", self.fal.base_url()),
            ("ELEVENLABS_API_KEY", self.elevenlabs.key()),
            ("ELEVENLABS_BASE_URL", self.elevenlabs.base_url()),
        ]
    }
}

async fn server(dir: &Path, environment: &[(&'static str, String)], more: &[(&'static str, &str)]) -> Server {
    let all: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (*name, value.as_str())).chain(more.iter().copied()).collect();
    Server::standalone(dir, "serve", &all).await
}

async fn finished(server: &Server, body: &Value) -> Value {
    let id = generate(server, body).await["job_id"].as_str().unwrap().to_owned();
    let last = walk(server, &id).await.pop().unwrap();
    assert_eq!(last["status"], "completed", "{last:#}");
    last
}

async fn record(server: &Server, id: &Value) -> Value {
    let url = format!("{}/api/jobs/{}", server.url, id.as_str().unwrap());
    client().get(url).send().await.unwrap().json().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tutorials_pipeline_runs_on_replicate_fal_and_elevenlabs() {
    let dir = tempfile::tempdir().unwrap();
    let remotes = Remotes::start().await;
    let routes =
        [("PIPELINE_IMAGE", SDXL), ("PIPELINE_VIDEO", "fal:fal-ai/fast-svd"), ("PIPELINE_SPEECH", "elevenlabs")];
    let server = server(dir.path(), &remotes.environment(), &routes).await;
    let done =
        finished(&server, &json!({ "prompt": "a cat in space", "script": "This is a cat floating in space" })).await;
    for (name, lab) in [("replicate", &remotes.replicate), ("fal", &remotes.fal), ("elevenlabs", &remotes.elevenlabs)] {
        assert_eq!(lab.accepted().len(), 1, "{name}");
    }
    let record = record(&server, &done["job_id"]).await;
    let steps = record["steps"].as_array().unwrap();
    let by = |step: &str| {
        let step = steps.iter().find(|s| s["step"] == step).unwrap();
        (step["provider"].as_str().unwrap().to_owned(), step["cost"].as_f64().unwrap())
    };
    for (step, provider) in [("image", "replicate"), ("video", "fal"), ("speech", "elevenlabs")] {
        assert_eq!(by(step).0, provider);
        assert!(by(step).1 > 0.0, "what was paid for has a cost: {steps:#?}");
    }
    let sum: f64 = steps.iter().map(|s| s["cost"].as_f64().unwrap()).sum();
    assert!((done["cost"].as_f64().unwrap() - sum).abs() < 1e-9, "{done:#} {sum}");
    // The media lie with us: the remotes may go.
    drop(remotes);
    let video = dir.path().join("video.mp4");
    assert_eq!(download(&done["output"]["video_url"], &video).await, "video/mp4");
    let streams = probe(&video)["streams"].as_array().unwrap().len();
    assert_eq!(streams, 2, "pictures and speech");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_to_video_is_one_step_of_the_length_and_shape_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let remotes = Remotes::start().await;
    let routes =
        [("PIPELINE_VIDEO", "fal:fal-ai/veo3/fast"), ("PIPELINE_COMPOSE", "none"), ("PIPELINE_THUMBNAIL", "none")];
    let server = server(dir.path(), &remotes.environment(), &routes).await;
    let asked = json!({ "prompt": "a cat", "aspect_ratio": "9:16", "duration_seconds": 6, "resolution": "720p" });
    let done = finished(&server, &asked).await;
    assert_eq!(record(&server, &done["job_id"]).await["steps"].as_array().unwrap().len(), 1);
    assert_eq!((remotes.fal.accepted().len(), remotes.replicate.accepted().len()), (1, 0));
    let video = dir.path().join("video.mp4");
    download(&done["output"]["video_url"], &video).await;
    let probed = probe(&video);
    let picture = &probed["streams"][0];
    assert_eq!((&picture["width"], &picture["height"]), (&json!(720), &json!(1280)));
    let length: f64 = probed["format"]["duration"].as_str().unwrap().parse().unwrap();
    assert!((length - 6.0).abs() < 0.1, "{length}");

    let refused = client().post(format!("{}/api/generate", server.url));
    let refused = refused.json(&json!({ "prompt": "a cat", "duration_seconds": 5 })).send().await.unwrap();
    assert_eq!(refused.status(), 400);
    let body: Value = refused.json().await.unwrap();
    assert_eq!(body["details"][0]["field"], "duration_seconds", "{body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callbacks_end_a_job_long_before_the_next_poll() {
    let dir = tempfile::tempdir().unwrap();
    let remotes = Remotes::start().await;
    remotes.fal.always(Play::succeeds().after(Duration::from_secs(3)));
    let routes = [
        ("PIPELINE_VIDEO", "fal:fal-ai/veo3/fast"),
        ("PIPELINE_COMPOSE", "none"),
        ("PIPELINE_THUMBNAIL", "none"),
        ("CALLBACK_URL", "auto"),
    ];
    let server = server(dir.path(), &remotes.environment(), &routes).await;
    let began = std::time::Instant::now();
    finished(&server, &json!({ "prompt": "a cat" })).await;
    assert!(remotes.fal.deliveries().iter().any(|d| d.status == Some(204)), "{:?}", remotes.fal.deliveries());
    // The safety net would have come after half a minute.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alternative_takes_over_where_the_first_choice_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let remotes = Remotes::start().await;
    remotes.fal.outage(lab::Outage::Refuses).await;
    let routes = [
        ("PIPELINE_IMAGE", SDXL),
        ("PIPELINE_VIDEO", "fal:fal-ai/wan/v2.7/image-to-video, replicate:wan-video/wan-2.5-i2v"),
        ("PIPELINE_SPEECH", "none"),
    ];
    let server = server(dir.path(), &remotes.environment(), &routes).await;
    let done = finished(&server, &json!({ "prompt": "a cat", "duration_seconds": 5 })).await;
    let record = record(&server, &done["job_id"]).await;
    let video = record["steps"].as_array().unwrap().iter().find(|s| s["step"] == "video").unwrap();
    assert_eq!(video["provider"], "replicate", "{video:#}");
    assert_eq!(video["attempts"][0]["provider"], "fal", "the attempt and its reason are kept");
    let file = dir.path().join("video.mp4");
    download(&done["output"]["video_url"], &file).await;
    let probed = probe(&file);
    let (picture, length) = (&probed["streams"][0], probed["format"]["duration"].as_str().unwrap());
    assert_eq!((&picture["width"], &picture["height"]), (&json!(1280), &json!(720)));
    assert!((length.parse::<f64>().unwrap() - 5.0).abs() < 0.2, "{length}");
    let ready: Value = client().get(format!("{}/ready", server.url)).send().await.unwrap().json().await.unwrap();
    assert_eq!(ready["status"], "ready", "an outage is no fault of our key");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_key_is_named_when_it_is_found_out_and_never_told() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let remotes = Remotes::start().await;
    remotes.fal.revoke_key();
    let mut environment = remotes.environment();
    environment.extend([
        ("PIPELINE_VIDEO", "fal:fal-ai/veo3/fast".to_owned()),
        ("PIPELINE_COMPOSE", "none".to_owned()),
        ("PIPELINE_THUMBNAIL", "none".to_owned()),
        ("LOG", "trace".to_owned()),
    ]);
    let all: Vec<(&str, &str)> = environment.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let mut command = Server::command(dir.path(), "serve", &all);
    command.stderr(std::fs::File::create(&log).unwrap());
    let server = Server::start(command).await;
    let jobs = [generate(&server, &json!({ "prompt": "a" })).await, generate(&server, &json!({ "prompt": "b" })).await];
    let ready = loop {
        let ready: Value = client().get(format!("{}/ready", server.url)).send().await.unwrap().json().await.unwrap();
        if ready["status"] == "degraded" {
            break ready;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(
        (&ready["providers"][0]["provider"], &ready["providers"][0]["problem"]),
        (&json!("fal"), &json!("unauthorized"))
    );
    for job in &jobs {
        let now = status(&server, job["job_id"].as_str().unwrap()).await;
        assert!(matches!(now["status"].as_str(), Some("queued" | "processing")), "jobs wait for the key: {now}");
    }
    drop(server);
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.contains("refuses"), "the log says so");
    assert!(!log.contains(remotes.fal.key().as_str()) && !ready.to_string().contains(&remotes.fal.key()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_prompts_and_links_of_paid_providers_are_in_no_log_line_even_at_trace() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let remotes = Remotes::start().await;
    let mut environment = remotes.environment();
    environment.extend([
        ("PIPELINE_IMAGE", SDXL.to_owned()),
        ("PIPELINE_VIDEO", "fal:fal-ai/fast-svd".to_owned()),
        ("PIPELINE_SPEECH", "elevenlabs".to_owned()),
        ("CALLBACK_URL", "auto".to_owned()),
        ("LOG", "trace".to_owned()),
    ]);
    let all: Vec<(&str, &str)> = environment.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let mut command = Server::command(dir.path(), "serve", &all);
    command.stderr(std::fs::File::create(&log).unwrap());
    let server = Server::start(command).await;
    // One that works, one that is refused in the run, one that a remote refuses at once.
    let asked = json!({ "prompt": "canary-prompt", "script": "canary-script", "negative_prompt": "canary-negative" });
    finished(&server, &asked).await;
    for play in [Play::refuses_in_run(), Play::refuses()] {
        remotes.replicate.then(None, play);
        let id = generate(&server, &asked).await["job_id"].as_str().unwrap().to_owned();
        let failed = walk(&server, &id).await.pop().unwrap();
        assert_eq!(failed["status"], "failed", "{failed:#}");
        assert!(!failed.to_string().contains("canary"), "{failed:#}");
    }
    let callback_urls: Vec<String> = remotes
        .fal
        .requests()
        .iter()
        .filter_map(|seen| seen.query("fal_webhook"))
        .filter_map(|url| Some(url.split("signature=").nth(1)?.to_owned()))
        .collect();
    assert!(!callback_urls.is_empty(), "no callback URL went out");
    drop(server);
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.contains("TRACE") && log.contains("job ended"), "the log is there");
    let labs = [&remotes.replicate, &remotes.fal, &remotes.elevenlabs];
    let mut secrets: Vec<String> = labs.iter().flat_map(|lab| lab.secrets()).chain(callback_urls).collect();
    secrets.extend(["canary-prompt", "canary-script", "canary-negative"].map(str::to_owned));
    assert!(secrets.iter().all(|secret| secret.len() > 6), "{secrets:?}");
    for secret in secrets {
        let line = log.lines().find(|line| line.contains(&secret));
        assert!(line.is_none(), "{line:?}");
    }
}
