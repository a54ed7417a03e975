//! What is behind a scripted provider: its runs, its ledger, and the scenes to come.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use url::Url;

use crate::error::ErrorKind;
use crate::job::StepKind;
use crate::media::MediaType;
use crate::money::{Usage, Usd};
use crate::provider::{RunFailure, SubmissionId, SubmitOptions};

#[derive(Debug, Default)]
pub(super) struct Remote {
    pub(super) scenes: HashMap<StepKind, VecDeque<Scene>>,
    pub(super) outage: Option<Scene>,
    pub(super) outputs: HashMap<StepKind, Bytes>,
    pub(super) runs: BTreeMap<String, Run>,
    pub(super) requests: Vec<SubmissionId>,
    pub(super) accepted: Vec<SubmissionId>,
    pub(super) cancels: Vec<String>,
    pub(super) calls: usize,
    pub(super) key_revoked: bool,
    pub(super) most_live: usize,
}

#[derive(Debug)]
pub(super) struct Run {
    pub(super) submission: SubmissionId,
    pub(super) kind: StepKind,
    pub(super) scene: Scene,
    pub(super) polls: u32,
    pub(super) looks: u32,
    pub(super) canceled: bool,
    pub(super) callback: Option<Url>,
}

/// What happens to one submission.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Scene {
    /// Accepted; succeeds at the poll after so many.
    Succeeds {
        /// How many polls see it running.
        after_polls: u32,
    },
    /// Accepted; succeeds at once and states what it costs.
    Bills(Usd),
    /// Accepted; succeeds at once and states what it used.
    Uses(Usage),
    /// Accepted; succeeds before anybody can look.
    EndsAtOnce,
    /// Accepted; then the run fails.
    Fails(RunFailure),
    /// Accepted; runs until it is canceled.
    RunsForever,
    /// Accepted; then the provider forgets it.
    Vanishes,
    /// Accepted; but whoever looks is told that there is no such run, so many times.
    Lags {
        /// How many looks.
        looks: u32,
    },
    /// Accepted; but its output breaks off half-way, so many times.
    Truncates {
        /// How many downloads break off.
        times: u32,
    },
    /// Accepted; but its output goes on after its announced end.
    Overruns,
    /// Accepted; but its output stops half-way, and never ends.
    Stalls,
    /// Accepted; but its output is there no more.
    Expires,
    /// Accepted; in a state that nobody has a word for.
    UnknownState,
    /// Accepted; but no answer about it can be understood.
    Garbles,
    /// Accepted; but whoever looks is told to come back after this long.
    RateLimitsPolls(Duration),
    /// Not accepted: the submit answers this kind of error.
    Rejects(ErrorKind),
    /// Not accepted: come back after this long.
    RateLimits(Duration),
    /// Accepted, but the answer is lost.
    LosesAnswer,
    /// Not accepted, and the request was lost on the way; the caller cannot tell.
    LosesRequest,
    /// Accepted, but the answer never comes.
    Hangs,
}

impl Remote {
    pub(super) fn accept(&mut self, options: &SubmitOptions, kind: StepKind, scene: Scene) -> String {
        let submission = &options.submission;
        self.accepted.push(submission.clone());
        let remote_id = format!("run-{}", self.accepted.len());
        let run = Run {
            submission: submission.clone(),
            kind,
            scene,
            polls: 0,
            looks: 0,
            canceled: false,
            callback: options.callback.clone(),
        };
        self.runs.insert(remote_id.clone(), run);
        self.most_live = self.most_live.max(self.runs.values().filter(|run| !run.ended()).count());
        remote_id
    }

    pub(super) fn run_of(&self, submission: &SubmissionId) -> Option<(&String, &Run)> {
        self.runs.iter().find(|(_, run)| run.submission == *submission)
    }
}

impl Run {
    /// Whether nothing more happens to it, as far as anybody who looked can tell.
    pub(super) fn ended(&self) -> bool {
        self.canceled
            || match self.scene {
                Scene::EndsAtOnce | Scene::Fails(_) => true,
                Scene::Succeeds { after_polls } => self.polls > after_polls,
                Scene::Bills(_)
                | Scene::Uses(_)
                | Scene::Truncates { .. }
                | Scene::Overruns
                | Scene::Stalls
                | Scene::Vanishes
                | Scene::Expires => self.polls > 0,
                _ => false,
            }
    }

    /// The word that a callback has for how it is.
    pub(super) fn word(&self) -> &'static str {
        match self.scene {
            _ if self.canceled => "canceled",
            Scene::RunsForever | Scene::UnknownState => "running",
            Scene::Fails(_) => "failed",
            _ => "succeeded",
        }
    }
}

/// The smallest bytes that are told as the right type by their head.
pub(super) fn sample(kind: StepKind) -> Bytes {
    let media_type = match kind {
        StepKind::Image => MediaType::Png,
        StepKind::Video | StepKind::Compose => MediaType::Mp4,
        StepKind::Speech => MediaType::Wav,
        StepKind::Thumbnail => MediaType::Jpeg,
    };
    Bytes::from_static(match media_type {
        MediaType::Png => b"\x89PNG\r\n\x1a\nscripted",
        MediaType::Mp4 => b"\0\0\0\x18ftypisom\0\0\0\0isomscripted",
        MediaType::Wav => b"RIFF\x24\0\0\0WAVEfmt scripted",
        _ => b"\xff\xd8\xff\xe0scripted",
    })
}
