//! A job: our durable unit of work, and the records of its steps.

mod record;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::media::MediaInfo;
use crate::money::Usd;
use crate::pipeline::Plan;
use crate::provider::{Handle, SubmissionId};
use crate::queue::Witness;
use crate::request::JobRequest;
use crate::tenant::TenantId;

pub use record::*;

/// The id of a job: `vid_` and 32 hex digits; a later one sorts after an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(Uuid);

impl JobId {
    /// A new id.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a new id is not a default value")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// The 16 bytes of the id.
    #[must_use]
    pub fn uuid(self) -> Uuid {
        self.0
    }

    /// From the 16 bytes of an id.
    #[must_use]
    pub fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vid_{}", self.0.simple())
    }
}
impl FromStr for JobId {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        s.strip_prefix("vid_")
            .filter(|hex| hex.len() == 32 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
            .and_then(|hex| Uuid::try_parse(hex).ok())
            .map(Self)
            .ok_or_else(Error::job_not_found)
    }
}
impl TryFrom<String> for JobId {
    type Error = Error;
    fn try_from(s: String) -> Result<Self> {
        s.parse()
    }
}
impl From<JobId> for String {
    fn from(id: JobId) -> Self {
        id.to_string()
    }
}

/// What a user sees of a job's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waiting for its turn, for a worker, or for the next attempt.
    Queued,
    /// A worker is at it.
    Processing,
    /// Done; there is an output.
    Completed,
    /// Ended without one; there is a failure.
    Failed,
    /// Ended because its owner said so.
    Canceled,
}

impl JobState {
    /// Whether nothing more will happen by itself.
    #[must_use]
    pub fn is_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Canceled)
    }

    /// The state as JSON has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Processing => "processing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
        }
    }
}

impl FromStr for JobState {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        [Self::Queued, Self::Processing, Self::Completed, Self::Failed, Self::Canceled]
            .into_iter()
            .find(|state| state.as_str() == s)
            .ok_or_else(|| {
                Error::invalid_field("state", "must be one of queued, processing, completed, failed, canceled")
            })
    }
}

/// A job as the queue has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Whose it is.
    pub tenant: TenantId,
    /// What was asked for.
    pub request: JobRequest,
    /// How it is made: fixed when it was created.
    pub plan: Plan,
    /// Where it is in its life.
    pub state: JobState,
    /// 0 to 100; never falls, and is 100 only when completed.
    pub progress: u8,
    /// Rises with every change that a user can see.
    pub version: u64,
    /// How many attempts were used up.
    pub attempts: u32,
    /// How many workers died at it.
    pub crashes: u32,
    /// Whether its owner asked for its end.
    pub cancel_requested: bool,
    /// When it was created.
    pub created_at: Timestamp,
    /// When a worker first took it.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// What it made.
    pub output: Option<JobOutput>,
    /// Why it made nothing.
    pub failure: Option<Failure>,
    /// What is still reserved for it.
    pub held: Usd,
    /// What the providers billed for it.
    pub cost: Usd,
    /// The records of the steps that were begun, in the order of the plan.
    pub steps: Vec<StepRecord>,
    /// What callbacks told of its submissions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub witnesses: Vec<Witness>,
}

impl Job {
    /// A job that was just created: queued, nothing begun, the plan's hold reserved.
    #[must_use]
    pub fn created(id: JobId, tenant: TenantId, request: JobRequest, plan: Plan, created_at: Timestamp) -> Self {
        let held = plan.hold();
        Self {
            id,
            tenant,
            request,
            plan,
            state: JobState::Queued,
            progress: 0,
            version: 1,
            attempts: 0,
            crashes: 0,
            cancel_requested: false,
            created_at,
            started_at: None,
            ended_at: None,
            output: None,
            failure: None,
            held,
            cost: Usd::ZERO,
            steps: Vec::new(),
            witnesses: Vec::new(),
        }
    }

    /// The record of a step, if it was begun.
    #[must_use]
    pub fn step(&self, id: StepId) -> Option<&StepRecord> {
        self.steps.iter().find(|record| record.step == id)
    }

    /// What a callback told of a submission, if one came.
    #[must_use]
    pub fn witness(&self, submission: &SubmissionId) -> Option<&Handle> {
        self.witnesses.iter().find(|w| w.submission == *submission).map(|w| &w.handle)
    }

    /// Keeps a witness: the last one for its submission, unless there is one of its end (rule Q19).
    pub fn hear(&mut self, witness: Witness) {
        match self.witnesses.iter_mut().find(|w| w.submission == witness.submission) {
            Some(known) if known.handle.has_end() => {}
            Some(known) => *known = witness,
            None => self.witnesses.push(witness),
        }
    }

    /// Whether it is not known if a submission of this job was accepted.
    #[must_use]
    pub fn in_doubt(&self) -> bool {
        self.steps.iter().any(|record| matches!(record.state, StepState::InDoubt { .. }))
    }

    /// Whether a submission of it is on its way, or at a provider.
    #[must_use]
    pub fn has_open_submission(&self) -> bool {
        self.steps.iter().any(|r| matches!(r.state, StepState::Intent { .. } | StepState::Accepted { .. }))
    }

    /// What the tenant pays, now that it ended: nothing for a job that failed.
    #[must_use]
    pub fn charge(&self) -> Usd {
        if self.state == JobState::Failed { Usd::ZERO } else { self.cost }
    }

    /// Steps that were left out, with the reason, e.g. speech where no voice can be had.
    pub fn skipped(&self) -> impl Iterator<Item = (StepId, &str)> {
        self.steps.iter().filter_map(|record| match &record.state {
            StepState::Skipped { reason } => Some((record.step, reason.as_str())),
            _ => None,
        })
    }
}

/// What a completed job made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobOutput {
    /// The video.
    pub video: MediaInfo,
    /// A picture out of it.
    pub thumbnail: Option<MediaInfo>,
    /// How long the video is.
    pub duration: Duration,
}

/// Why a job failed, fit for its owner to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For machines, e.g. `content_refused`.
    pub code: String,
    /// For people: one sentence, with the provider's own reason where it gave one.
    pub message: String,
    /// Which step it failed at.
    pub step: Option<StepId>,
}

impl Failure {
    /// A failure of the kind `kind`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { code: kind.code().into(), message: message.into(), step: None }
    }

    /// Another failure, with its own code.
    pub fn coded(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), step: None }
    }

    /// Says at which step.
    #[must_use]
    pub fn at(mut self, step: StepId) -> Self {
        self.step = Some(step);
        self
    }
}

/// The parts that a pipeline is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// Make a picture.
    Image,
    /// Make a video.
    Video,
    /// Speak the script.
    Speech,
    /// Put video and speech together.
    Compose,
    /// Take a picture out of the video.
    Thumbnail,
}

impl StepKind {
    /// Every kind, in the order of a pipeline.
    pub const ALL: [Self; 5] = [Self::Image, Self::Video, Self::Speech, Self::Compose, Self::Thumbnail];

    /// The kind as JSON has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Video => "video",
            Self::Speech => "speech",
            Self::Compose => "compose",
            Self::Thumbnail => "thumbnail",
        }
    }
}

impl fmt::Display for StepKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for StepKind {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|k| k.as_str() == s).ok_or_else(|| Error::invalid_field("step", "is not a step"))
    }
}

/// A step of a job. A pipeline has each kind once, so the kind is the id.
pub type StepId = StepKind;

/// Our id of the `ordinal`-th purchase for a step of a job.
#[must_use]
pub fn submission_id(job: JobId, step: StepId, ordinal: u32) -> SubmissionId {
    SubmissionId(format!("sub_{}_{step}_{ordinal}", job.0.simple()))
}

/// Which jobs to list, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// Only in this state.
    pub state: Option<JobState>,
    /// Only those created before this one: the last id of the page before.
    pub before: Option<JobId>,
    /// At most so many; 1 to 100.
    pub limit: usize,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The items, newest first.
    pub items: Vec<T>,
    /// Whether there are more after them.
    pub more: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_back_and_nothing_else_is() {
        let id = JobId::new();
        assert_eq!(id.to_string().parse::<JobId>().unwrap(), id);
        for bad in ["", "vid_", "1234", "vid_../../etc/passwd", &id.to_string().to_uppercase()] {
            assert!(bad.parse::<JobId>().is_err(), "{bad}");
        }
    }
}
