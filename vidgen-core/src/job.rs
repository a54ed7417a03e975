//! A job: our durable unit of work, and the records of its steps.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::media::MediaInfo;
use crate::money::{Cost, CostBasis, CostEntry, Usd};
use crate::pipeline::Plan;
use crate::provider::{Handle, ModelId, ProviderId, Submission, SubmissionId};
use crate::queue::Verdict;
use crate::request::JobRequest;
use crate::tenant::TenantId;

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
        }
    }

    /// The record of a step, if it was begun.
    #[must_use]
    pub fn step(&self, id: StepId) -> Option<&StepRecord> {
        self.steps.iter().find(|record| record.step == id)
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

/// How far a step is, durable. Each change has the next revision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Which step.
    pub step: StepId,
    /// Rises by one with each change; a record never goes back to an earlier one.
    pub revision: u32,
    /// How far it is.
    pub state: StepState,
    /// The submissions that ended without an output, oldest first.
    #[serde(default)]
    pub attempts: Vec<StepAttempt>,
    /// How many of them, from the oldest, no longer count, since the job was retried after them.
    #[serde(default)]
    pub forgiven: usize,
}

/// How far a step is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
#[non_exhaustive]
pub enum StepState {
    /// A submission is about to be sent, or was sent and the answer is not known.
    Intent {
        /// Which.
        submission: Submission,
    },
    /// The provider has it.
    Accepted {
        /// Which.
        submission: Submission,
        /// The provider's id of it.
        handle: Handle,
        /// When this was written, by the store's clock; the store fills it in.
        accepted_at: Option<Timestamp>,
        /// Whether its end was asked for.
        cancel_sent: bool,
    },
    /// The last submission ended without an output; another one may be sent.
    Waiting {
        /// Not before this moment, by the store's clock.
        not_before: Timestamp,
    },
    /// The output lies in our store. Never run again.
    Done {
        /// What made it.
        provider: ProviderId,
        /// With which model.
        model: ModelId,
        /// The output.
        media: MediaInfo,
        /// What it cost.
        cost: Cost,
    },
    /// Left out.
    Skipped {
        /// Why.
        reason: String,
    },
    /// It cannot be done.
    Failed {
        /// Why.
        failure: Failure,
    },
    /// It is not known whether the submission was accepted, and nobody can tell.
    InDoubt {
        /// Which.
        submission: Submission,
    },
}

impl StepState {
    /// Its name as JSON has it.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Intent { .. } => "intent",
            Self::Accepted { .. } => "accepted",
            Self::Waiting { .. } => "waiting",
            Self::Done { .. } => "done",
            Self::Skipped { .. } => "skipped",
            Self::Failed { .. } => "failed",
            Self::InDoubt { .. } => "in_doubt",
        }
    }
}

/// A submission that ended without an output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepAttempt {
    /// Which.
    pub submission: SubmissionId,
    /// Which purchase of the step it was.
    pub ordinal: u32,
    /// To whom it went.
    pub provider: ProviderId,
    /// For which model.
    pub model: ModelId,
    /// Why it ended.
    pub kind: ErrorKind,
    /// The same for people.
    pub reason: String,
    /// Whether the provider had accepted it.
    pub accepted: bool,
    /// What it cost.
    pub cost: Cost,
    /// When, by the store's clock as the worker knew it.
    pub at: Timestamp,
}

/// How a new record relates to the stored one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Succession {
    /// It is the next one: write it.
    Next,
    /// It is the stored one: the answer was lost, say so again.
    Same,
    /// It is older, or skips one: refuse it.
    Broken,
}

impl StepRecord {
    /// A record of a step that nothing was written of yet: revision 0.
    #[must_use]
    pub fn begun(step: StepId) -> Self {
        let state = StepState::Waiting { not_before: Timestamp::UNIX_EPOCH };
        Self { step, revision: 0, state, attempts: Vec::new(), forgiven: 0 }
    }

    /// Judges this record against the stored one, by revision. Every queue asks this before it writes.
    #[must_use]
    pub fn follows(&self, stored: Option<&Self>) -> Succession {
        let last = stored.map_or(0, |record| record.revision);
        if self.revision == last.saturating_add(1) {
            match stored.map(|record| &record.state) {
                Some(StepState::Done { .. } | StepState::Skipped { .. }) => Succession::Broken,
                _ => Succession::Next,
            }
        } else if self.revision == last && stored.is_some_and(|s| self.same_as(s)) {
            Succession::Same
        } else {
            Succession::Broken
        }
    }

    fn same_as(&self, stored: &Self) -> bool {
        let mut mine = self.clone();
        mine.stamp_from(stored);
        mine == *stored
    }

    fn stamp_from(&mut self, stored: &Self) {
        match (&mut self.state, &stored.state) {
            (StepState::Intent { submission }, StepState::Intent { submission: theirs }) => {
                submission.intent_at = theirs.intent_at;
            }
            (StepState::Accepted { accepted_at, .. }, StepState::Accepted { accepted_at: theirs, .. }) => {
                *accepted_at = *theirs;
            }
            _ => {}
        }
    }

    /// Fills in the moment of writing where the record has none yet. Every queue calls this with
    /// its own clock before it writes.
    #[must_use]
    pub fn stamped(mut self, now: Timestamp) -> Self {
        match &mut self.state {
            StepState::Intent { submission } => submission.intent_at = submission.intent_at.or(Some(now)),
            StepState::Accepted { accepted_at, .. } => *accepted_at = accepted_at.or(Some(now)),
            _ => {}
        }
        self
    }

    /// The record as a retry of its job finds it: a failed step may be tried again, with a clean
    /// count of attempts; every other one stays as it is.
    #[must_use]
    pub fn reopened(mut self, now: Timestamp) -> Self {
        if matches!(self.state, StepState::Failed { .. }) {
            self.state = StepState::Waiting { not_before: now };
            self.forgiven = self.attempts.len();
            self.revision += 1;
        }
        self
    }

    /// The record after an operator decided a doubt, with the cost if it was bought; `None` if
    /// it is not in doubt.
    #[must_use]
    pub fn resolved(&self, verdict: Verdict, now: Timestamp) -> Option<(Self, Option<CostEntry>)> {
        let StepState::InDoubt { submission } = &self.state else { return None };
        let cost = match verdict {
            Verdict::Bought => Cost { amount: submission.hold, basis: CostBasis::Table },
            Verdict::NotBought => Cost::FREE,
        };
        let reason = "the outcome was unknown and was decided by an operator";
        let mut record = self.clone();
        record.revision += 1;
        record.attempts.push(StepAttempt {
            submission: submission.id.clone(),
            ordinal: submission.ordinal,
            provider: submission.provider.clone(),
            model: submission.model.clone(),
            kind: ErrorKind::OutcomeUnknown,
            reason: reason.into(),
            accepted: verdict == Verdict::Bought,
            cost,
            at: now,
        });
        record.state = StepState::Failed { failure: Failure::new(ErrorKind::OutcomeUnknown, reason).at(self.step) };
        let entry = (verdict == Verdict::Bought).then(|| CostEntry {
            step: self.step,
            ordinal: submission.ordinal,
            provider: submission.provider.clone(),
            model: submission.model.clone(),
            cost,
        });
        Some((record, entry))
    }

    /// The submission that is on its way or at the provider.
    #[must_use]
    pub fn open_submission(&self) -> Option<&Submission> {
        match &self.state {
            StepState::Intent { submission }
            | StepState::Accepted { submission, .. }
            | StepState::InDoubt { submission } => Some(submission),
            _ => None,
        }
    }
}

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

    fn record(revision: u32, state: StepState) -> StepRecord {
        StepRecord { revision, state, ..StepRecord::begun(StepKind::Image) }
    }

    #[test]
    fn a_record_goes_on_by_one_and_never_back() {
        let skipped = || StepState::Skipped { reason: "no voice".into() };
        let waiting = || StepState::Waiting { not_before: Timestamp::UNIX_EPOCH };
        assert_eq!(record(1, waiting()).follows(None), Succession::Next);
        assert_eq!(record(2, waiting()).follows(None), Succession::Broken);
        assert_eq!(record(1, waiting()).follows(Some(&record(1, waiting()))), Succession::Same);
        assert_eq!(record(1, skipped()).follows(Some(&record(1, waiting()))), Succession::Broken);
        assert_eq!(record(2, skipped()).follows(Some(&record(1, waiting()))), Succession::Next);
        assert_eq!(record(1, waiting()).follows(Some(&record(2, skipped()))), Succession::Broken);
        assert_eq!(record(3, waiting()).follows(Some(&record(2, skipped()))), Succession::Broken);
    }
}
