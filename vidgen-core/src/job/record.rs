//! The durable record of a step: how far it is, and how it may go on.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::ErrorKind;
use crate::job::{Failure, StepId};
use crate::media::MediaInfo;
use crate::money::{Cost, CostBasis, CostEntry};
use crate::provider::{Handle, ModelId, ProviderId, Submission, SubmissionId};
use crate::queue::Verdict;

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
    /// count of attempts; one in doubt of which a callback told meanwhile (`witness`) is looked for
    /// again, which begins with the run that it told of; every other one stays as it is.
    #[must_use]
    pub fn reopened(mut self, witness: Option<&Handle>, now: Timestamp) -> Self {
        if let (StepState::InDoubt { submission }, Some(_)) = (&self.state, witness) {
            self.state = StepState::Intent { submission: submission.clone() };
            self.revision += 1;
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::StepKind;

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
