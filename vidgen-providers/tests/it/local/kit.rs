//! What the tests share: tasks, and ffmpeg to make and judge media with.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use vidgen_core::memory::MemoryStore;
use vidgen_core::{
    Body, ComposeTask, ContentInfo, Handle, ImageTask, MediaInfo, MediaInput, MediaKey, MediaType, Output, Provider,
    Result, RunFailure, RunState, Size, SpeechTask, Store, SubmissionId, SubmitOptions, Task, TaskSpec, ThumbnailTask,
    VideoTask,
};
use vidgen_providers::local::LocalProvider;

/// `bytes` as media that claim to be of the type of `key`'s extension.
pub(crate) fn input(key: &str, bytes: impl Into<Bytes>) -> MediaInput {
    let key = MediaKey::new(key).unwrap();
    let bytes = bytes.into();
    let info = MediaInfo {
        key: key.clone(),
        media_type: key.media_type(),
        length: bytes.len() as u64,
        content: ContentInfo::default(),
    };
    let store = MemoryStore::new();
    store.put(&key, Body::from(bytes)).now_or_never().unwrap().unwrap();
    MediaInput::new(info, Arc::new(store))
}

pub(crate) fn local() -> LocalProvider {
    LocalProvider::new().unwrap()
}

pub(crate) fn size(width: u32, height: u32) -> Size {
    Size { width, height }
}

pub(crate) fn task(spec: TaskSpec) -> Task {
    let model = format!("local/{}", spec.kind());
    Task { model: model.as_str().into(), spec, extra: serde_json::Map::new() }
}

pub(crate) fn image(prompt: &str, size: Size, seed: u64) -> Task {
    task(TaskSpec::Image(ImageTask {
        prompt: prompt.into(),
        negative_prompt: None,
        style: None,
        size,
        seed: Some(seed),
    }))
}

pub(crate) fn video(image: MediaInput, size: Size, seconds: f64) -> Task {
    task(TaskSpec::Video(VideoTask {
        prompt: "a slow move".into(),
        negative_prompt: None,
        style: None,
        image: Some(image),
        size,
        duration: Duration::from_secs_f64(seconds),
        fps: None,
        seed: Some(1),
    }))
}

pub(crate) fn speech(text: &str, voice: Option<&str>) -> Task {
    task(TaskSpec::Speech(SpeechTask { text: text.into(), voice: voice.map(Into::into) }))
}

pub(crate) fn compose(video: MediaInput, speech: Option<MediaInput>, size: Size, seconds: f64) -> Task {
    let duration = Duration::from_secs_f64(seconds);
    task(TaskSpec::Compose(ComposeTask { video, speech, size, duration, fps: None }))
}

pub(crate) fn thumbnail(video: MediaInput, at: f64, max_side: u32) -> Task {
    task(TaskSpec::Thumbnail(ThumbnailTask { video, at: Duration::from_secs_f64(at), max_side }))
}

pub(crate) async fn submit(local: &LocalProvider, task: &Task) -> Result<Handle> {
    local.submit(task, &SubmitOptions::new(SubmissionId::from_remote("sub_test"))).await
}

/// Polls until the run ended; progress must not go back meanwhile.
pub(crate) async fn finish(local: &LocalProvider, handle: &Handle) -> RunState {
    let mut last = 0.0;
    loop {
        let snapshot = local.poll(handle).await.unwrap();
        if !matches!(snapshot.state, RunState::Running) {
            return snapshot.state;
        }
        let progress = snapshot.progress.unwrap();
        assert!((last..=1.0).contains(&progress), "{last} to {progress}");
        last = progress;
    }
}

pub(crate) async fn made(local: &LocalProvider, task: &Task) -> (Output, Bytes) {
    let handle = submit(local, task).await.unwrap();
    match finish(local, &handle).await {
        RunState::Succeeded(outputs) => {
            let [output] = <[Output; 1]>::try_from(outputs).unwrap();
            let body = local.open(&output).await.unwrap();
            let length = body.length().unwrap();
            let bytes = body.read(1 << 30).await.unwrap();
            assert_eq!(bytes.len() as u64, length);
            assert_eq!(MediaType::sniff(&bytes), output.media_type);
            (output, bytes)
        }
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn failed(local: &LocalProvider, task: &Task) -> RunFailure {
    let handle = submit(local, task).await.unwrap();
    match finish(local, &handle).await {
        RunState::Failed(failure) => {
            assert!(!failure.billed);
            assert!(!failure.reason.contains("vidgen-") && !failure.reason.contains("/tmp"), "{}", failure.reason);
            failure
        }
        other => panic!("{other:?}"),
    }
}

/// Makes a file with ffmpeg, by arguments without the output, and reads it.
pub(crate) fn ffmpeg(arguments: &str, name: &str) -> Bytes {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    let status = Command::new("ffmpeg")
        .args(["-nostdin", "-v", "error", "-y"])
        .args(arguments.split(' '))
        .arg(&path)
        .status()
        .unwrap();
    assert!(status.success(), "{arguments}");
    std::fs::read(path).unwrap().into()
}

/// What ffprobe says of `entries`, as `key=value` lines.
pub(crate) fn probe(bytes: &[u8], entries: &str) -> String {
    with_file(bytes, |path| {
        let output = Command::new("ffprobe")
            .args(["-v", "error", "-count_frames", "-of", "default=nw=1", "-show_entries", entries])
            .arg(path)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    })
}

/// The frames of a video at `fps`, scaled to 32 by 18 grey pixels.
pub(crate) fn frames(bytes: &[u8], fps: &str) -> Vec<Vec<u8>> {
    let raw = with_file(bytes, |path| {
        let filter = format!("fps={fps},scale=32:18,format=gray");
        let output = Command::new("ffmpeg")
            .args(["-nostdin", "-v", "error", "-i"])
            .arg(path)
            .args(["-vf", &filter, "-f", "rawvideo", "-"])
            .output()
            .unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    });
    raw.chunks_exact(32 * 18).map(<[u8]>::to_vec).collect()
}

/// How much two frames differ, on average.
pub(crate) fn difference(a: &[u8], b: &[u8]) -> f64 {
    let sum: u64 = a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum as f64 / a.len() as f64
}

/// The loudest sample and the mean in dB, from `start` seconds on.
pub(crate) fn loudness(bytes: &[u8], start: f64) -> (f64, f64) {
    let text = with_file(bytes, |path| {
        let output = Command::new("ffmpeg")
            .args(["-nostdin", "-hide_banner", "-ss", &start.to_string(), "-i"])
            .arg(path)
            .args(["-map", "0:a", "-af", "volumedetect", "-f", "null", "-"])
            .output()
            .unwrap();
        String::from_utf8(output.stderr).unwrap()
    });
    let value = |name: &str| {
        let (_, rest) = text.split_once(name).unwrap_or_else(|| panic!("{text}"));
        rest.split_whitespace().next().unwrap().parse().unwrap()
    };
    (value("max_volume: "), value("mean_volume: "))
}

fn with_file<T>(bytes: &[u8], look: impl FnOnce(&Path) -> T) -> T {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("media");
    std::fs::write(&path, bytes).unwrap();
    look(&path)
}

pub(crate) fn seconds(output: &Output) -> f64 {
    output.content.duration.unwrap().as_secs_f64()
}

/// How many entries lie in a directory.
pub(crate) fn entries(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}
