//! OpenAI's API against labs of those who speak it: the rules of the kit, and what exactly goes out.

mod answers;
mod errors;
mod video;

use std::sync::Arc;

use serde_json::{Value, json};
use vidgen_core::conformance::provider::Scene;
use vidgen_core::memory::MemoryStore;
use vidgen_core::{Handle, Provider, Spool, SubmissionId, SubmitOptions, Task};
use vidgen_providers::lab::kit::{LabFixture, Site};
use vidgen_providers::lab::{self, Class, Lab, Remote, Seen};
use vidgen_providers::models::ModelEntry;
use vidgen_providers::openai::{Dialect, OpenAi, OpenAiBuilder};

use crate::remote::*;

const CLIP: &str = r#"
    id = "acme-video"
    kind = "video"
    price = { per_second = "0.10" }
    lengths = [4, 8, 12]
    fields = { prompt = "prompt", image = "input_reference", size = { name = "size", form = "x" }, duration = { name = "seconds", form = "text" } }
"#;
const WAN: &str = "Wan-AI/Wan2.2-TI2V-5B-Diffusers";
const WAN_T2V: &str = "Wan-AI/Wan2.2-T2V-A14B-Diffusers";
const WAN_I2V: &str = "Wan-AI/Wan2.2-I2V-A14B-Diffusers";

type Client = Box<dyn Fn(&Site) -> OpenAi + Send + Sync>;

fn builder(key: &str, base_url: &str, dialect: Dialect) -> OpenAiBuilder {
    let builder = OpenAi::builder(key).with_base_url(base_url).with_dialect(dialect);
    match dialect {
        Dialect::OpenAi | Dialect::LiteLlm => builder.with_model(ModelEntry::from_toml(CLIP).unwrap()),
        _ => builder,
    }
}

fn fixture<R: Remote>(remote: fn() -> R, dialect: Dialect, task: Task) -> LabFixture<Client> {
    let client: Client = Box::new(move |site| builder(&site.key, &site.base_url, dialect).build().unwrap());
    LabFixture::new(remote, task, client).with_secrets([PROMPT])
}

fn video_fixture<R: Remote>(remote: fn() -> R, dialect: Dialect, task: Task) -> LabFixture<Client> {
    fixture(remote, dialect, task).with_unknown_handle(Handle::new("openai".into(), "video_no+such/one="))
}

/// Of what is its submit's answer, nothing is looked at later.
fn spooled_fixture(task: Task) -> LabFixture<Client> {
    let later = [
        Scene::Running,
        Scene::Fails,
        Scene::RateLimitsLooks,
        Scene::Garbled,
        Scene::UnknownState,
        Scene::UnknownHandle,
        Scene::OutputExpired,
    ];
    let fixture = fixture(lab::openai, Dialect::OpenAi, task);
    let fixture = later.into_iter().fold(fixture, |fixture, scene| {
        fixture.impossible(scene, "the answer to the submit is the output: there is no run to be looked at")
    });
    [Scene::TruncatedOutput, Scene::StalledOutput].into_iter().fold(fixture, |fixture, scene| {
        fixture.impossible(scene, "the submit itself breaks off then: its outcome is unknown")
    })
}

vidgen_core::provider_conformance!(
    openai_video,
    video_fixture(lab::openai, Dialect::OpenAi, task("acme-video", video(Some(picture(300_000)), 8)))
);
vidgen_core::provider_conformance!(openai_image, spooled_fixture(task("gpt-image-1", image())));
vidgen_core::provider_conformance!(openai_speech, spooled_fixture(task("tts-1", speech(None))));
vidgen_core::provider_conformance!(
    openai_vllm_omni,
    video_fixture(lab::vllm_omni, Dialect::VllmOmni, task(WAN, video(Some(picture(300)), 4)))
);
vidgen_core::provider_conformance!(
    openai_sglang,
    video_fixture(lab::sglang, Dialect::SgLang, task(WAN_T2V, video(None, 4)))
);
vidgen_core::provider_conformance!(
    openai_litellm,
    video_fixture(lab::litellm, Dialect::LiteLlm, task("acme-video", video(None, 4)))
);

/// A client of a lab, and what goes with it.
struct Set {
    lab: Lab,
    provider: OpenAi,
    store: Arc<MemoryStore>,
}

async fn set(remote: lab::OpenAi, dialect: Dialect) -> Set {
    let lab = Lab::start(remote).await;
    let provider = builder(&lab.key(), &lab.base_url(), dialect).build().unwrap();
    Set { lab, provider, store: Arc::default() }
}

impl Set {
    fn spool(&self, id: &SubmissionId) -> Spool {
        Spool::new(self.store.clone(), id).unwrap()
    }

    fn options(&self, id: &SubmissionId) -> SubmitOptions {
        options(id).with_spool(self.spool(id))
    }

    async fn submit(&self, task: &Task) -> vidgen_core::Result<Handle> {
        self.provider.submit(task, &self.options(&submission_id(task))).await
    }

    fn requests(&self, class: Class) -> Vec<Seen> {
        self.lab.requests().into_iter().filter(|seen| seen.class == class).collect()
    }

    /// The one call that a submit was.
    async fn recorded(&self, task: &Task) -> (Handle, Value) {
        let id = submission_id(task);
        let handle = self.provider.submit(task, &self.options(&id)).await.unwrap();
        let all = self.lab.requests();
        assert_eq!(all.len(), 1, "one call, whatever goes with it");
        (handle, normal(&all[0], &id).await)
    }
}

/// A request with its form spelt out, and our id by its name.
async fn normal(seen: &Seen, id: &SubmissionId) -> Value {
    let mut recorded = request(seen);
    let form: Vec<Value> = seen
        .form()
        .await
        .iter()
        .map(|field| json!([field.name, field.file_name, field.content_type, String::from_utf8_lossy(&field.bytes)]))
        .collect();
    if !form.is_empty() {
        recorded["body"] = json!(form);
        let content_type = recorded["headers"]["content-type"].as_str().unwrap();
        assert!(content_type.starts_with("multipart/form-data; boundary="), "{content_type}");
        recorded["headers"]["content-type"] = json!("multipart/form-data");
        // Not in chunks: some servers refuse those.
        assert!(seen.header("content-length").is_some());
    }
    assert_eq!(seen.headers["authorization"].as_bytes(), "Bearer …".as_bytes());
    assert_eq!(recorded["headers"]["x-client-request-id"], json!(id.as_str()));
    recorded["headers"].as_object_mut().unwrap().remove("x-client-request-id");
    recorded
}

fn sent(line: &str, content_type: &str, body: Value) -> Value {
    json!({ "line": line, "headers": { "content-type": content_type }, "body": body })
}

fn part(name: &str, text: &str) -> Value {
    json!([name, null, null, text])
}
