//! The same with a real server, if there is one.

use std::time::Duration;

use serde_json::json;
use vidgen_core::{AspectRatio, MediaType, Provider, Resolution, RunState, SubmissionId, TaskSpec, VideoTask};
use vidgen_providers::comfyui::{ComfyUi, Workflow};

use super::*;

/// It needs no weights and no GPU.
fn weightless() -> Workflow {
    let json = json!({
        "1": { "class_type": "EmptyImage", "inputs": {
            "width": 256, "height": 256, "batch_size": "{{frames}}", "color": 13_382_400,
        } },
        "2": { "class_type": "EmptyAudio", "inputs": { "duration": "{{seconds}}", "sample_rate": 44_100, "channels": 2 } },
        "3": { "class_type": "CreateVideo", "inputs": { "images": ["1", 0], "fps": 8.0, "audio": ["2", 0] } },
        "4": { "class_type": "SaveVideo", "inputs": {
            "video": ["3", 0], "filename_prefix": "", "format": "mp4", "codec": "h264",
        } },
    });
    Workflow::video("weightless", json.to_string())
        .without_prompt()
        .with_size("1.width", "1.height")
        .with_fps("3.fps")
        .with_frame_rate(8)
}

fn clip(seconds: u64) -> Task {
    task(
        "weightless",
        TaskSpec::Video(VideoTask {
            prompt: PROMPT.into(),
            negative_prompt: None,
            style: None,
            image: None,
            size: AspectRatio::Square.size(Resolution::P480),
            duration: Duration::from_secs(seconds),
            fps: None,
            seed: None,
        }),
    )
}

async fn makes_a_video(provider: &ComfyUi, pace: Duration) {
    let task = clip(2);
    let id = submission_id(&task);
    let absent = provider.find(&submission(provider, &task, &id, None)).await.unwrap();
    assert_eq!(absent, vidgen_core::Lookup::Absent);
    let handle = provider.submit(&task, &options(&id)).await.unwrap();
    let found = provider.find(&submission(provider, &task, &id, None)).await.unwrap();
    assert_eq!(found, vidgen_core::Lookup::Found(handle.clone()));
    let snapshot = tokio::time::timeout(Duration::from_secs(120), async {
        loop {
            let snapshot = provider.poll(&handle).await.unwrap();
            if !matches!(snapshot.state, RunState::Running) {
                return snapshot;
            }
            tokio::time::sleep(pace).await;
        }
    });
    let output = output(snapshot.await.unwrap());
    let bytes = provider.open(&output).await.unwrap().read(usize::MAX).await.unwrap();
    assert_eq!(MediaType::sniff(&bytes), Some(MediaType::Mp4));
    let late = provider.cancel(&handle).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::TooLate);
    let gone = SubmissionId::from_remote(format!("{id}0"));
    let never = provider.find(&submission(provider, &task, &gone, None)).await.unwrap();
    assert_eq!(never, vidgen_core::Lookup::Absent);
}

#[tokio::test]
async fn a_server_makes_a_video_without_weights() {
    let lab = Lab::start(lab::comfyui()).await;
    let provider = ComfyUi::builder(lab.base_url()).with_workflow(weightless()).build().unwrap();
    makes_a_video(&provider, Duration::from_millis(5)).await;
    let sent = lab.requests().iter().find(|seen| seen.path() == "/prompt").unwrap().json();
    let inputs = |node: &str| &sent["prompt"][node]["inputs"];
    assert_eq!((&inputs("1")["batch_size"], &inputs("2")["duration"]), (&json!(16), &json!(2)));

    // Not held to VIDGEN_REQUIRE_SERVICES: no package index has ComfyUI, so CI cannot have one.
    let Ok(url) = std::env::var("COMFYUI_URL") else {
        println!("skipped: no COMFYUI_URL, so no real ComfyUI was asked");
        return;
    };
    let provider = ComfyUi::builder(url).with_workflow(weightless()).build().unwrap();
    makes_a_video(&provider, Duration::from_millis(300)).await;
    println!("a real ComfyUI made a video");
}
