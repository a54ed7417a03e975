//! Jobs, records and ends to test with. Two steps, ten cents and fifty, bought from `acme`.

use std::time::Duration;

use jiff::Timestamp;

use crate::media::{ContentInfo, MediaInfo, MediaKey, MediaType};
use crate::{
    Cost, CostBasis, CostEntry, ErrorKind, EventId, Failure, Handle, JobEnd, JobId, JobOutput, JobRequest, ModelId,
    NewEvent, NewJob, Plan, PlannedRoute, PlannedStep, Price, ProviderId, Size, StepAttempt, StepId, StepKind,
    StepRecord, StepState, Submission, TenantId, Usd, submission_id,
};

/// What the image step of [`plan`] costs.
pub const IMAGE_PRICE: Usd = Usd::from_cents(10);
/// What the video step of [`plan`] costs.
pub const VIDEO_PRICE: Usd = Usd::from_cents(50);
/// What a job of [`plan`] holds.
pub const HOLD: Usd = Usd::from_cents(60);

/// The provider of every sample.
#[must_use]
pub fn provider() -> ProviderId {
    ProviderId::new("acme")
}

/// The model of a step.
#[must_use]
pub fn model(step: StepId) -> ModelId {
    ModelId::new(format!("acme/{step}"))
}

/// A tenant.
#[must_use]
pub fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

/// An image for ten cents, then a video for fifty.
#[must_use]
pub fn plan() -> Plan {
    Plan {
        pipeline: "sample".into(),
        duration: Duration::from_secs(4),
        size: Size { width: 1280, height: 720 },
        image: None,
        steps: vec![
            planned(StepKind::Image, vec![], IMAGE_PRICE),
            planned(StepKind::Video, vec![StepKind::Image], VIDEO_PRICE),
        ],
    }
}

/// A plan that costs nothing.
#[must_use]
pub fn free_plan() -> Plan {
    Plan { steps: vec![planned(StepKind::Video, vec![], Usd::ZERO)], ..plan() }
}

fn planned(step: StepKind, needs: Vec<StepId>, expected: Usd) -> PlannedStep {
    let route = PlannedRoute {
        duration: None,
        provider: provider(),
        model: model(step),
        price: Price::PerRun(expected),
        expected,
        typical: Duration::from_secs(30),
    };
    PlannedStep { step, needs, routes: vec![route], optional: false }
}

/// A job of [`plan`], without key, limits or delay.
#[must_use]
pub fn new_job(tenant: &TenantId) -> NewJob {
    NewJob::new(tenant.clone(), JobRequest::new("a lighthouse in a storm"), plan())
}

/// The record of the `ordinal`-th submission of a step.
#[must_use]
pub fn submission(job: JobId, step: StepId, ordinal: u32) -> Submission {
    let hold = if step == StepKind::Image { IMAGE_PRICE } else { VIDEO_PRICE };
    Submission {
        id: submission_id(job, step, ordinal),
        ordinal,
        provider: provider(),
        model: model(step),
        task_hash: "0".repeat(64),
        hold,
        intent_at: None,
    }
}

/// A record of `step` at `revision`.
#[must_use]
pub fn record(step: StepId, revision: u32, state: StepState) -> StepRecord {
    StepRecord { revision, state, ..StepRecord::begun(step) }
}

/// A submission about to be sent.
#[must_use]
pub fn intent(job: JobId, step: StepId, revision: u32) -> StepRecord {
    record(step, revision, StepState::Intent { submission: submission(job, step, 1) })
}

/// A submission that the provider has.
#[must_use]
pub fn accepted(job: JobId, step: StepId, revision: u32) -> StepRecord {
    let handle = Handle::new(provider(), format!("remote-{step}"));
    let submission = submission(job, step, 1);
    record(step, revision, StepState::Accepted { submission, handle, accepted_at: None, cancel_sent: false })
}

/// A step whose output is in the store.
#[must_use]
pub fn done(step: StepId, revision: u32) -> StepRecord {
    let cost = cost(step, 1).cost;
    record(step, revision, StepState::Done { provider: provider(), model: model(step), media: media(step), cost })
}

/// A step that cannot be done, after one submission that ended without an output.
#[must_use]
pub fn failed(job: JobId, step: StepId, revision: u32) -> StepRecord {
    let attempt = StepAttempt {
        submission: submission_id(job, step, 1),
        ordinal: 1,
        provider: provider(),
        model: model(step),
        kind: ErrorKind::Refused,
        reason: "a sample refusal".into(),
        accepted: true,
        cost: Cost::FREE,
        at: Timestamp::UNIX_EPOCH,
    };
    let state = StepState::Failed { failure: failure().at(step) };
    StepRecord { attempts: vec![attempt], ..record(step, revision, state) }
}

/// A submission of which nobody can tell whether it was accepted.
#[must_use]
pub fn in_doubt(job: JobId, step: StepId, revision: u32) -> StepRecord {
    record(step, revision, StepState::InDoubt { submission: submission(job, step, 1) })
}

/// A picture or a video that lies in the store.
#[must_use]
pub fn media(step: StepId) -> MediaInfo {
    let (extension, media_type) =
        if step == StepKind::Image { ("png", MediaType::Png) } else { ("mp4", MediaType::Mp4) };
    let key = MediaKey::new(format!("sample/{step}.{extension}")).unwrap();
    MediaInfo { key, media_type, length: 1000, content: ContentInfo::default() }
}

/// The bill of the `ordinal`-th submission of a step, at its price.
#[must_use]
pub fn cost(step: StepId, ordinal: u32) -> CostEntry {
    let amount = if step == StepKind::Image { IMAGE_PRICE } else { VIDEO_PRICE };
    let cost = Cost { amount, basis: CostBasis::Stated };
    CostEntry { step, ordinal, provider: provider(), model: model(step), cost }
}

/// What a completed job made.
#[must_use]
pub fn output() -> JobOutput {
    let thumbnail = Some(media(StepKind::Image));
    JobOutput { video: media(StepKind::Video), thumbnail, duration: Duration::from_secs(4) }
}

/// Why a failed job made nothing.
#[must_use]
pub fn failure() -> Failure {
    Failure::new(ErrorKind::Refused, "the provider refused the prompt")
}

/// The three ends of a job.
#[must_use]
pub fn ends() -> [JobEnd; 3] {
    [JobEnd::Completed(output()), JobEnd::Failed(failure()), JobEnd::Canceled]
}

/// An event for an endpoint.
#[must_use]
pub fn event(endpoint: &str) -> NewEvent {
    NewEvent {
        id: EventId::new(),
        kind: "job.completed".into(),
        endpoint: endpoint.into(),
        body: r#"{"type":"job.completed"}"#.into(),
    }
}
