//! What the tests of all remote providers share: tasks, and requests as the lab saw them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use serde_json::{Map, Value, json};
use vidgen_core::memory::MemoryStore;
use vidgen_core::{
    AspectRatio, Body, ContentInfo, Handle, ImageTask, JobId, MediaInfo, MediaInput, MediaKey, Output, Provider,
    Resolution, RunState, Snapshot, SpeechTask, Store, Submission, SubmissionId, SubmitOptions, Task, TaskSpec, Usd,
    VideoTask,
};
use vidgen_providers::lab::Seen;

/// What no handle, error or log may hold.
pub(crate) const PROMPT: &str = "a zebra-striped tram in the fog";

pub(crate) fn task(model: &str, spec: TaskSpec) -> Task {
    Task { model: model.into(), spec, extra: Map::new() }
}

/// 16:9 at 720p, with everything that a request can say.
pub(crate) fn image() -> TaskSpec {
    TaskSpec::Image(ImageTask {
        prompt: PROMPT.into(),
        negative_prompt: Some("rain".into()),
        style: Some("ink".into()),
        size: AspectRatio::Wide.size(Resolution::P720),
        seed: Some(7),
    })
}

/// 16:9 at 720p, from `image` or from text alone.
pub(crate) fn video(image: Option<MediaInput>, seconds: u64) -> TaskSpec {
    TaskSpec::Video(VideoTask {
        prompt: PROMPT.into(),
        negative_prompt: Some("rain".into()),
        style: None,
        image,
        size: AspectRatio::Wide.size(Resolution::P720),
        duration: Duration::from_secs(seconds),
        fps: Some(24),
        seed: Some(7),
    })
}

pub(crate) fn speech(voice: Option<&str>) -> TaskSpec {
    TaskSpec::Speech(SpeechTask { text: PROMPT.into(), voice: voice.map(str::to_owned) })
}

/// A picture of that many bytes in a store that makes no links; the first of them are a PNG's.
pub(crate) fn picture(length: usize) -> MediaInput {
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    bytes.resize(length, 7);
    let key = MediaKey::new("jobs/a/image-1.png").unwrap();
    let info = MediaInfo {
        key: key.clone(),
        media_type: key.media_type(),
        length: length as u64,
        content: ContentInfo::default(),
    };
    let store = MemoryStore::new();
    store.put(&key, Body::from(Bytes::from(bytes))).now_or_never().unwrap().unwrap();
    MediaInput::new(info, Arc::new(store))
}

/// A submission id as ours are.
pub(crate) fn submission_id(task: &Task) -> SubmissionId {
    let job = JobId::new().to_string().replace("vid_", "");
    SubmissionId::from_remote(format!("sub_{job}_{}_1", task.spec.kind()))
}

/// Options with a callback URL as the host makes them.
pub(crate) fn options(id: &SubmissionId) -> SubmitOptions {
    let url = format!("https://host.example/callbacks/acme?submission={id}&signature=s1gn4ture");
    SubmitOptions::new(id.clone()).with_callback(url.parse().unwrap())
}

/// What the pipeline keeps of it, whose intent was written at `at`.
pub(crate) fn submission(
    provider: &dyn Provider,
    task: &Task,
    id: &SubmissionId,
    at: Option<jiff::Timestamp>,
) -> Submission {
    Submission {
        id: id.clone(),
        ordinal: 1,
        provider: provider.id(),
        model: task.model.clone(),
        task_hash: "0".repeat(64),
        hold: Usd::from_cents(100),
        intent_at: at,
    }
}

/// Looks until the run ends.
pub(crate) async fn end(provider: &dyn Provider, handle: &Handle) -> Snapshot {
    for _ in 0..100 {
        let snapshot = provider.poll(handle).await.unwrap();
        if !matches!(snapshot.state, RunState::Running) {
            return snapshot;
        }
    }
    panic!("it never ends");
}

pub(crate) fn output(snapshot: Snapshot) -> Output {
    match snapshot.state {
        RunState::Succeeded(mut outputs) if !outputs.is_empty() => outputs.remove(0),
        other => panic!("{other:?}"),
    }
}

/// A request, as it is compared: method, path with query, the headers that say something, and the
/// body (as JSON, or as the text that it is). The key is left out, and checked to be there.
pub(crate) fn request(seen: &Seen) -> Value {
    // What every client sends, and the secret.
    let usual = ["host", "accept", "user-agent", "content-length", "authorization", "xi-api-key"];
    let said = seen.headers.iter().filter(|(name, _)| !usual.contains(&name.as_str()));
    let headers: Map<String, Value> =
        said.map(|(name, value)| (name.to_string(), json!(value.to_str().unwrap()))).collect();
    let body = match seen.json() {
        Value::Null => json!(String::from_utf8_lossy(&seen.body)),
        body => body,
    };
    json!({ "line": format!("{} {}", seen.method, seen.uri), "headers": headers, "body": body })
}
