//! Plan × records → the task of a step. Pure.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::job::{Job, StepId, StepKind, StepRecord, StepState};
use crate::media::{MediaInfo, MediaInput};
use crate::pipeline::Route;
use crate::provider::{ComposeTask, ImageTask, ModelId, SpeechTask, Task, TaskSpec, ThumbnailTask, VideoTask};
use crate::store::Store;
use crate::vidgen::hash_of;

/// The longest side of a thumbnail, in pixels.
const THUMBNAIL_SIDE: u32 = 640;

/// The media that a step made, if it is done.
pub(crate) fn media_of(records: &[StepRecord], step: StepId) -> Option<&MediaInfo> {
    records.iter().find(|r| r.step == step).and_then(|r| match &r.state {
        StepState::Done { media, .. } => Some(media),
        _ => None,
    })
}

/// How long the job's video is: as long as the route that made it sells it, which may be another
/// than the plan's first choice.
pub(crate) fn length_of(job: &Job, records: &[StepRecord]) -> Duration {
    let made = records.iter().find(|r| r.step == StepKind::Video).map(|r| &r.state);
    let Some(StepState::Done { provider, model, .. }) = made else { return job.plan.duration };
    let planned = job.plan.step(StepKind::Video).map_or(&[][..], |s| &s.routes);
    let route = planned.iter().find(|r| r.provider == *provider && r.model == *model);
    route.and_then(|r| r.duration).unwrap_or(job.plan.duration)
}

/// The task of `step`, whose needs are done or skipped.
///
/// # Errors
/// `Internal` if the plan names an input that is not there, which is a fault of ours.
pub(crate) fn task(
    job: &Job,
    step: StepId,
    records: &[StepRecord],
    route: &Route,
    model: ModelId,
    store: &Arc<dyn Store>,
) -> Result<Task> {
    let request = &job.request;
    let planned = job
        .plan
        .step(step)
        .and_then(|s| s.routes.iter().find(|r| r.provider == route.provider.id() && r.model == model));
    let duration = planned.and_then(|r| r.duration).unwrap_or(job.plan.duration);
    let input = |info: &MediaInfo| MediaInput::new(info.clone(), store.clone());
    let needed = |kind: StepKind| {
        media_of(records, kind)
            .map(input)
            .ok_or_else(|| Error::internal("pipeline", format!("step {step} lacks {kind}")))
    };
    let spec = match step {
        StepKind::Image => TaskSpec::Image(ImageTask {
            prompt: request.prompt.clone(),
            negative_prompt: request.negative_prompt.clone(),
            style: request.style.clone(),
            size: job.plan.size,
            seed: request.seed,
        }),
        StepKind::Video => TaskSpec::Video(VideoTask {
            prompt: request.prompt.clone(),
            negative_prompt: request.negative_prompt.clone(),
            style: request.style.clone(),
            image: job.plan.image.as_ref().or_else(|| media_of(records, StepKind::Image)).map(input),
            size: job.plan.size,
            duration,
            fps: request.fps,
            seed: request.seed,
        }),
        StepKind::Speech => TaskSpec::Speech(SpeechTask {
            text: request.spoken().unwrap_or_default().to_owned(),
            voice: request.voice.clone(),
        }),
        StepKind::Compose => TaskSpec::Compose(ComposeTask {
            video: needed(StepKind::Video)?,
            speech: media_of(records, StepKind::Speech).map(input),
            size: job.plan.size,
            duration: length_of(job, records),
            fps: request.fps,
        }),
        StepKind::Thumbnail => TaskSpec::Thumbnail(ThumbnailTask {
            video: needed(job.plan.final_video())?,
            at: Duration::from_secs(1).min(length_of(job, records) / 2),
            max_side: THUMBNAIL_SIDE,
        }),
    };
    let mut extra = route.extra.clone();
    if let (StepKind::Image, Some(url)) = (step, &request.image_url) {
        extra.insert("url".into(), url.as_str().into());
    }
    Ok(Task { model, spec, extra })
}

/// SHA-256 of what a task asks for, without links or anything else that changes between attempts.
pub(crate) fn task_hash(task: &Task) -> Result<String> {
    let key = |input: &MediaInput| Value::from(input.info.key.as_str());
    let spec = match &task.spec {
        TaskSpec::Image(t) => json!([t.prompt, t.negative_prompt, t.style, t.size, t.seed]),
        TaskSpec::Video(t) => {
            json!([t.prompt, t.negative_prompt, t.style, t.image.as_ref().map(key), t.size, t.duration, t.fps, t.seed])
        }
        TaskSpec::Speech(t) => json!([t.text, t.voice]),
        TaskSpec::Compose(t) => json!([key(&t.video), t.speech.as_ref().map(key), t.size, t.duration, t.fps]),
        TaskSpec::Thumbnail(t) => json!([key(&t.video), t.at, t.max_side]),
    };
    hash_of(&(&task.model, task.spec.kind(), spec, &task.extra))
}
