//! What is asked, and what became of it: one run of one remote.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::time::Instant;
use url::Url;
use vidgen_core::{StepKind, SubmissionId};

use super::film::Film;
use super::play::{Course, Ends, Failure, Looks, Play};

/// As often is a run looked at by nobody: how runs end of which a callback is asked.
const NOBODYS_LOOK: Duration = Duration::from_millis(100);

/// What a submit asks for, as its route understood it.
#[derive(Clone, Debug)]
pub struct Wish {
    pub(super) kind: StepKind,
    pub(super) model: String,
    pub(super) input: Value,
    pub(super) id: Option<String>,
    pub(super) submission: Option<SubmissionId>,
    pub(super) callback: Option<Url>,
    pub(super) film: Option<Film>,
    pub(super) course: Option<Course>,
    pub(super) extra: Value,
}

impl Wish {
    /// A run of `model` on `input`, which is shown again where the remote does that, and says what
    /// the output shall be like.
    pub fn new(kind: StepKind, model: impl Into<String>, input: Value) -> Self {
        Self {
            kind,
            model: model.into(),
            input,
            id: None,
            submission: None,
            callback: None,
            film: None,
            course: None,
            extra: Value::Null,
        }
    }

    /// That becomes this, whatever the play has: an input that the remote finds wrong only when it
    /// runs.
    #[must_use]
    pub fn with_course(mut self, course: Option<Course>) -> Self {
        self.course = course;
        self
    }

    /// With something that the remote's file wants to know of the run later.
    #[must_use]
    pub fn with_extra(mut self, extra: Value) -> Self {
        self.extra = extra;
        self
    }

    /// Under this id, instead of a random UUID.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// For this submission, where it cannot be read in the call as it is.
    #[must_use]
    pub fn with_submission(mut self, submission: Option<SubmissionId>) -> Self {
        self.submission = submission;
        self
    }

    /// To be told of at this URL; one that is none is ignored.
    #[must_use]
    pub fn with_callback(mut self, url: Option<&str>) -> Self {
        self.callback = url.and_then(|url| Url::parse(url).ok());
        self
    }

    /// With an output like this, where the input's usual fields do not say it.
    #[must_use]
    pub fn with_film(mut self, film: Film) -> Self {
        self.film = Some(film);
        self
    }
}

/// One accepted submission.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Run {
    /// Which it was, from 1.
    pub number: u64,
    /// The remote's id.
    pub id: String,
    /// What kind of step it is for.
    pub kind: StepKind,
    /// The model.
    pub model: String,
    /// What was asked.
    pub input: Value,
    /// Our id of it, as far as it could be seen.
    pub submission: Option<SubmissionId>,
    /// Where to call back.
    pub callback: Option<Url>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// What happens to it.
    pub play: Play,
    /// How often it was looked at.
    pub looks: u32,
    /// What it makes.
    pub film: Film,
    /// What the remote's file keeps of it.
    pub extra: Value,
    pub(super) began: Instant,
    pub(super) stopped: bool,
    pub(super) served: u32,
    pub(super) called: bool,
}

/// How a run is doing.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Phase {
    /// It waits for its turn.
    Queued,
    /// It runs; how far it is, from 0 to 1.
    Running(f64),
    /// The remote is to say a state that its documentation does not have.
    Unknown,
    /// It has an output.
    Succeeded,
    /// It failed.
    Failed(Failure),
    /// It was ended for its content, for this reason.
    Moderated(String),
    /// The remote gave it up before it began.
    Aborted,
    /// It was stopped.
    Canceled,
}

impl Run {
    /// How it is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        if self.stopped {
            return Phase::Canceled;
        }
        if self.play.looks.0 == Looks::UnknownState && self.looks <= self.play.looks.1 {
            return Phase::Unknown;
        }
        if self.ended_at.is_none() {
            return match (self.looks, self.play.ends) {
                (0, _) => Phase::Queued,
                (_, Ends::After(duration)) => {
                    Phase::Running((self.began.elapsed().as_secs_f64() / duration.as_secs_f64().max(1e-3)).min(0.99))
                }
                (looks, _) => Phase::Running(1.0 - 1.0 / f64::from(looks.saturating_add(1))),
            };
        }
        match &self.play.course {
            Course::Succeeds => Phase::Succeeded,
            Course::Fails(failure) => Phase::Failed(failure.clone()),
            Course::Moderated(reason) => Phase::Moderated(reason.clone()),
            Course::Aborts => Phase::Aborted,
        }
    }

    /// Whether it ended, one way or another.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended_at.is_some()
    }

    /// How long until it ends if nobody looks; `None` if it has.
    pub(super) fn rest(&self) -> Option<Duration> {
        let after = match self.play.ends {
            _ if self.ended() => return None,
            Ends::AfterLooks(looks) => NOBODYS_LOOK.saturating_mul(looks),
            Ends::After(duration) => duration,
            // Often enough to see that it was told.
            Ends::WhenTold => return Some(NOBODYS_LOOK),
        };
        Some(after.saturating_sub(self.began.elapsed()))
    }

    /// Whether it ends now.
    pub(super) fn due(&self) -> bool {
        match self.play.ends {
            Ends::AfterLooks(looks) => self.looks > looks,
            Ends::After(duration) => self.began.elapsed() >= duration,
            Ends::WhenTold => false,
        }
    }
}
