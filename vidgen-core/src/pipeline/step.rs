//! The submission state machine of one step. Pure: every crash case is a branch a unit test reaches.
//!
//! ```text
//!            choose route            POST                    poll            copy
//! (begun) ──────────────► Intent ───────────► Accepted ───────────► … ───────────► Done
//!    ▲                      │ │ rejected          │ failed                │
//!    └── Waiting ◄──────────┼─┴───────────────────┘                Failed / Skipped
//!                           └─ nobody can tell ─► InDoubt
//! ```
//!
//! Whoever finds an intent without an outcome must not send it again unless the provider
//! recognises it or runs for free: it asks the provider, and if nobody can tell, it says so.

use std::time::Duration;

use jiff::Timestamp;

use crate::clock::{later, until};
use crate::error::{Error, ErrorKind};
use crate::job::{Failure, JobId, StepAttempt, StepRecord, StepState, submission_id};
use crate::money::{Cost, CostBasis, CostEntry, Usage, Usd};
use crate::pipeline::route::{self, Choice, Pause};
use crate::pipeline::{OnUnknown, PlannedRoute, PlannedStep};
use crate::provider::{Capabilities, Handle, Lookup, Resubmit, RunFailure, Submission};

/// How patient the machine is. The defaults are reliability §1's; tests and hosts with quick
/// providers may want others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timing {
    /// How long after its intent was written a submission may still be sent.
    pub post_within: Duration,
    /// How much longer than that and its timeout "absent" is not believed: the request may still
    /// be on its way through somebody's proxy.
    pub settle: Duration,
    /// How long a provider is asked about a lost submission before it is left in doubt.
    pub find_patience: Duration,
    /// How long a run may take before its end is asked for; what is typical may be much less.
    pub run_deadline: Duration,
    /// How long after that its end is waited for.
    pub run_grace: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            post_within: Duration::from_secs(20),
            settle: Duration::from_secs(60),
            find_patience: Duration::from_secs(3600),
            run_deadline: Duration::from_secs(3600),
            run_grace: Duration::from_secs(300),
        }
    }
}

/// What can be done about an open submission.
#[derive(Clone, Debug)]
pub struct Means {
    /// What its provider can do; `None` if the host no longer has it.
    pub capabilities: Option<Capabilities>,
    /// What becomes of it if nobody can tell whether it was accepted.
    pub on_unknown: OnUnknown,
    /// Whether its provider was given a URL to call back.
    pub calls_back: bool,
}

/// What to do next about a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Write an intent for this route of the plan, then send it.
    Submit {
        /// The route's place in the plan.
        route: usize,
    },
    /// Nothing before this moment.
    Wait {
        /// By the store's clock.
        until: Timestamp,
    },
    /// Send the same submission again: it is recognised, or free.
    Resend,
    /// Ask the provider whether it knows the submission.
    Find,
    /// Poll the accepted submission.
    Poll,
    /// Write this record.
    Write(Box<StepRecord>),
    /// It ended: done, skipped, failed or in doubt.
    Ended,
}

/// Judges a record as it stands. `means` are those of the submission that is open; `pause` says
/// how long a route is to be left alone.
#[must_use]
pub fn next<P: Into<Pause>>(
    record: &StepRecord,
    step: &PlannedStep,
    means: &Means,
    pause: impl Fn(&PlannedRoute) -> P,
    timing: &Timing,
    now: Timestamp,
) -> Next {
    match &record.state {
        StepState::Done { .. } | StepState::Skipped { .. } | StepState::Failed { .. } | StepState::InDoubt { .. } => {
            Next::Ended
        }
        StepState::Waiting { not_before } if now < *not_before => Next::Wait { until: *not_before },
        StepState::Waiting { .. } => match route::choose(step, record, pause) {
            Choice::Route(route) => Next::Submit { route },
            Choice::Pause(wait) => Next::Wait { until: later(now, wait) },
            Choice::Exhausted => Next::Write(Box::new(exhausted(record, step))),
        },
        StepState::Accepted { .. } => Next::Poll,
        StepState::Intent { submission } => match &means.capabilities {
            Some(c) if c.resubmit == Resubmit::Free => Next::Resend,
            Some(Capabilities { resubmit: Resubmit::Keyed(life), .. }) if now < later(written(submission), *life) => {
                Next::Resend
            }
            Some(c) if c.find => Next::Find,
            // A worker that is still about to send it would be wronged by an earlier verdict; and
            // a callback would tell, but only when the run has ended.
            Some(c) if now < told_by(submission, c, means, timing) => {
                Next::Wait { until: told_by(submission, c, means, timing) }
            }
            _ => Next::Write(Box::new(unknown(record, step, submission, means.on_unknown, now))),
        },
    }
}

/// A record for a submission that is about to be sent by `route`.
#[must_use]
pub fn intent(record: &StepRecord, job: JobId, route: &PlannedRoute, task_hash: String) -> StepRecord {
    let ordinal = next_ordinal(record, route);
    let submission = Submission {
        id: submission_id(job, record.step, ordinal),
        ordinal,
        provider: route.provider.clone(),
        model: route.model.clone(),
        task_hash,
        hold: route.expected,
        intent_at: None,
    };
    after(record, StepState::Intent { submission })
}

/// A slot that was never bought is bought again under its own id. One that was is not; nor is one
/// that another provider was asked for, since a late request of it might still arrive there.
fn next_ordinal(record: &StepRecord, route: &PlannedRoute) -> u32 {
    match record.attempts.last() {
        None => 1,
        Some(last) if last.accepted || last.provider != route.provider || last.model != route.model => {
            last.ordinal.saturating_add(1)
        }
        Some(last) => last.ordinal,
    }
}

/// The record after it turned out, before anything was written, that `route` cannot be taken.
#[must_use]
pub fn without_route(
    record: &StepRecord,
    job: JobId,
    route: &PlannedRoute,
    reason: &str,
    now: Timestamp,
) -> StepRecord {
    let intent = intent(record, job, route, String::new());
    let Some(submission) = intent.open_submission() else { return record.clone() };
    let noted = with_attempt(record, submission, ErrorKind::Unsupported, reason, None, now);
    after(&noted, StepState::Waiting { not_before: now })
}

/// The record after a submission that must not be sent was left in doubt.
#[must_use]
pub fn doubted(record: &StepRecord) -> StepRecord {
    record.open_submission().map_or_else(|| record.clone(), |submission| in_doubt(record, submission))
}

/// The record of a step that its job may not go on with.
#[must_use]
pub fn stopped(record: &StepRecord, failure: Failure) -> StepRecord {
    after(record, StepState::Failed { failure: failure.at(record.step) })
}

/// The record after a submit was answered, or `None` if it is not known what became of it.
#[must_use]
pub fn after_submit(
    record: &StepRecord,
    step: &PlannedStep,
    answer: &Result<Handle, Error>,
    now: Timestamp,
) -> Option<StepRecord> {
    let StepState::Intent { submission } = &record.state else { return None };
    let error = match answer {
        Ok(handle) => return Some(accepted(record, submission, handle.clone())),
        Err(error) => error,
    };
    match error.kind() {
        // The user's request is at fault: no other route may be tried, nothing was bought.
        ErrorKind::Invalid | ErrorKind::Refused => {
            let record = with_attempt(record, submission, error.kind(), error.message(), None, now);
            Some(after(&record, failed(step, error.kind(), error.message())))
        }
        ErrorKind::RateLimited => {
            // Who does not say for how long is asked less and less often, or a long run of another's
            // would use up all the patience there is.
            let limits = record.attempts.iter().rev().take_while(|a| a.kind == ErrorKind::RateLimited).count();
            let wait = error.wait().unwrap_or_else(|| route::backoff(limits + 1));
            let record = with_attempt(record, submission, error.kind(), error.message(), None, now);
            Some(aside(record, step, submission, Pause::rate_limit(wait), now))
        }
        // The operator's to mend: others may do it meanwhile.
        ErrorKind::Unauthorized | ErrorKind::OverBudget => {
            let record = with_attempt(record, submission, error.kind(), error.message(), None, now);
            Some(aside(record, step, submission, route::backoff(1).into(), now))
        }
        // These say that nothing was bought (rule P8).
        ErrorKind::NotSent | ErrorKind::Unavailable | ErrorKind::NotFound | ErrorKind::Unsupported => {
            let record = with_attempt(record, submission, error.kind(), error.message(), None, now);
            Some(again(record, step, submission, error.wait(), now))
        }
        _ => None,
    }
}

/// The record after a submission was sent again under its key, or `None` if it is still not known
/// what became of it: that this request bought nothing says nothing of the first one. A refusal does,
/// once the first can no longer arrive (`settled`): had it arrived, its key would be known.
#[must_use]
pub fn after_resend(
    record: &StepRecord,
    step: &PlannedStep,
    answer: &Result<Handle, Error>,
    settled: Timestamp,
    now: Timestamp,
) -> Option<StepRecord> {
    match answer {
        Err(error) if !is_refusal(error) || now < settled => None,
        _ => after_submit(record, step, answer, now),
    }
}

/// Whether the user's request is at fault.
pub(super) fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Refused)
}

/// The record after a lost submission was looked for, or `None` if it must be asked again later.
#[must_use]
pub fn after_find(
    record: &StepRecord,
    step: &PlannedStep,
    means: &Means,
    answer: &Result<Lookup, Error>,
    timing: &Timing,
    now: Timestamp,
) -> Option<StepRecord> {
    let StepState::Intent { submission } = &record.state else { return None };
    let capabilities = means.capabilities.as_ref()?;
    let settled = settled_at(submission, capabilities, timing);
    match answer {
        // Found is true at any moment; only "absent" can come too early.
        Ok(Lookup::Found(handle)) => Some(accepted(record, submission, handle.clone())),
        Ok(_) if now < settled => None,
        Ok(Lookup::Absent) => {
            let reason = "the request did not arrive";
            let record = with_attempt(record, submission, ErrorKind::NotSent, reason, None, now);
            Some(again(record, step, submission, None, now))
        }
        Ok(Lookup::Unknown) if now < told_by(submission, capabilities, means, timing) => None,
        Err(_) if now < later(settled, timing.find_patience) => None,
        Ok(Lookup::Unknown) | Err(_) => Some(unknown(record, step, submission, means.on_unknown, now)),
    }
}

/// The record after a verified callback, or what lies in the spool, told that the submission was
/// accepted, and as which run.
#[must_use]
pub fn after_witness(record: &StepRecord, handle: &Handle) -> Option<StepRecord> {
    match &record.state {
        StepState::Intent { submission } => Some(accepted(record, submission, handle.clone())),
        _ => None,
    }
}

/// The record of a run of which only callbacks are heard, after one told more of it. An end stays
/// what it is: callbacks overtake one another.
#[must_use]
pub fn after_news(record: &StepRecord, news: &Handle) -> Option<StepRecord> {
    let StepState::Accepted { handle, .. } = &record.state else { return None };
    let another = handle.remote_id != news.remote_id || handle.provider != news.provider;
    if another || handle.has_end() || handle == news {
        return None;
    }
    let mut state = record.state.clone();
    if let StepState::Accepted { handle, .. } = &mut state {
        *handle = news.clone();
    }
    Some(after(record, state))
}

/// Until when somebody may still tell what became of a submission.
pub(super) fn told_by(
    submission: &Submission,
    capabilities: &Capabilities,
    means: &Means,
    timing: &Timing,
) -> Timestamp {
    let settled = settled_at(submission, capabilities, timing);
    // What is free and will be run again is not worth an hour's wait: its callback would have come.
    let again = submission.hold == Usd::ZERO && means.on_unknown == OnUnknown::Resubmit;
    if means.calls_back && !again { later(settled, timing.find_patience) } else { settled }
}

/// The record of a submission of which nobody can tell: left in doubt, or bought again if the
/// host would rather pay twice than look.
fn unknown(
    record: &StepRecord,
    step: &PlannedStep,
    submission: &Submission,
    policy: OnUnknown,
    now: Timestamp,
) -> StepRecord {
    match policy {
        OnUnknown::Park => in_doubt(record, submission),
        OnUnknown::Resubmit => {
            let reason = "it is not known whether the provider accepted it";
            let cost = cost_of(None, None, submission, step);
            let noted = with_attempt(record, submission, ErrorKind::OutcomeUnknown, reason, Some(cost), now);
            again(noted, step, submission, None, now)
        }
    }
}

/// From when on "absent" is believed of a submission.
#[must_use]
pub fn settled_at(submission: &Submission, capabilities: &Capabilities, timing: &Timing) -> Timestamp {
    later(written(submission), timing.post_within + capabilities.submit_timeout + timing.settle)
}

fn written(submission: &Submission) -> Timestamp {
    submission.intent_at.unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The record after a run ended without outputs, and what it cost.
#[must_use]
pub fn after_failure(
    record: &StepRecord,
    step: &PlannedStep,
    failure: &RunFailure,
    cost: Cost,
    now: Timestamp,
) -> (StepRecord, Option<CostEntry>) {
    let Some(submission) = record.open_submission() else { return (record.clone(), None) };
    let cost = if failure.billed { cost } else { Cost { amount: Usd::ZERO, ..cost } };
    let entry = failure.billed.then(|| cost_entry(record, submission, cost));
    let noted = with_attempt(record, submission, failure.kind, &failure.reason, Some(cost), now);
    let record = match failure.kind {
        ErrorKind::Invalid | ErrorKind::Refused => after(&noted, failed(step, failure.kind, &failure.reason)),
        _ => again(noted, step, submission, None, now),
    };
    (record, entry)
}

/// The record after the provider forgot a run, or nothing more will be heard of it. One that is free
/// is run again; at once and without counting if it was not this process that `sent` it, since that
/// is what a restart looks like to a provider in process. A paid one is counted as billed, since an
/// unknown cost is never zero (M7).
#[must_use]
pub fn after_loss(
    record: &StepRecord,
    step: &PlannedStep,
    capabilities: &Capabilities,
    cost: Cost,
    sent: bool,
    now: Timestamp,
) -> (StepRecord, Option<CostEntry>) {
    let Some(submission) = record.open_submission() else { return (record.clone(), None) };
    let reason = "the provider no longer knows the run";
    if !is_free(submission, capabilities) {
        let noted = with_attempt(record, submission, ErrorKind::Protocol, reason, Some(cost), now);
        let entry = cost_entry(record, submission, cost);
        return (after(&noted, failed(step, ErrorKind::Protocol, reason)), Some(entry));
    }
    if !sent && capabilities.resubmit == Resubmit::Free {
        return (after(record, StepState::Waiting { not_before: now }), None);
    }
    // In a slot of its own where callbacks may still come of the lost one: they must not be taken for
    // the next one's.
    let slot = capabilities.callback.then_some(Cost::FREE);
    let noted = with_attempt(record, submission, ErrorKind::Unavailable, reason, slot, now);
    (again(noted, step, submission, None, now), None)
}

/// Whether a run that is lost costs nothing, and may be run again.
#[must_use]
pub fn is_free(submission: &Submission, capabilities: &Capabilities) -> bool {
    submission.hold == Usd::ZERO || capabilities.resubmit == Resubmit::Free
}

/// The record after the end of a run came too late, or its output could not be had.
#[must_use]
pub fn after_waste(
    record: &StepRecord,
    step: &PlannedStep,
    failure: Failure,
    cost: Cost,
    now: Timestamp,
) -> (StepRecord, Option<CostEntry>) {
    let Some(submission) = record.open_submission() else { return (record.clone(), None) };
    let noted = with_attempt(record, submission, ErrorKind::Media, &failure.message, Some(cost), now);
    let entry = cost_entry(record, submission, cost);
    (after(&noted, StepState::Failed { failure: failure.at(step.step) }), Some(entry))
}

/// The record after its end was asked for.
#[must_use]
pub fn cancel_sent(record: &StepRecord) -> StepRecord {
    let mut state = record.state.clone();
    if let StepState::Accepted { cancel_sent, .. } = &mut state {
        *cancel_sent = true;
    }
    after(record, state)
}

/// The record after the output was copied into our store.
#[must_use]
pub fn done(record: &StepRecord, media: crate::MediaInfo, cost: Cost) -> (StepRecord, Option<CostEntry>) {
    let Some(submission) = record.open_submission() else { return (record.clone(), None) };
    let entry = cost_entry(record, submission, cost);
    let state = StepState::Done { provider: submission.provider.clone(), model: submission.model.clone(), media, cost };
    (after(record, state), Some(entry))
}

/// The record with nothing changed but its revision: to write progress.
#[must_use]
pub fn unchanged(record: &StepRecord) -> StepRecord {
    after(record, record.state.clone())
}

/// Whether the run's time is up: its end must be asked for, or no longer be waited for.
#[must_use]
pub fn overdue(record: &StepRecord, timing: &Timing, now: Timestamp) -> Overdue {
    let StepState::Accepted { accepted_at: Some(at), .. } = &record.state else { return Overdue::No };
    if until(now, later(*at, timing.run_deadline)) > Duration::ZERO {
        Overdue::No
    } else if until(now, later(*at, timing.run_deadline + timing.run_grace)) > Duration::ZERO {
        Overdue::Cancel
    } else {
        Overdue::GiveUp
    }
}

/// How late a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// It is not.
    No,
    /// Ask for its end, once.
    Cancel,
    /// No longer wait for its end.
    GiveUp,
}

fn after(record: &StepRecord, state: StepState) -> StepRecord {
    StepRecord { revision: record.revision.saturating_add(1), state, ..record.clone() }
}

fn accepted(record: &StepRecord, submission: &Submission, handle: Handle) -> StepRecord {
    let submission = submission.clone();
    after(record, StepState::Accepted { submission, handle, accepted_at: None, cancel_sent: false })
}

fn in_doubt(record: &StepRecord, submission: &Submission) -> StepRecord {
    after(record, StepState::InDoubt { submission: submission.clone() })
}

/// Waits for the next attempt: at once by another route, after a backoff by the same one.
fn again(
    record: StepRecord,
    step: &PlannedStep,
    submission: &Submission,
    wait: Option<Duration>,
    now: Timestamp,
) -> StepRecord {
    let tried = step.routes.iter().find(|r| r.provider == submission.provider && r.model == submission.model);
    let next = match route::choose(step, &record, |_| Duration::ZERO) {
        Choice::Route(n) => step.routes.get(n),
        _ => None,
    };
    let delay = match (tried, next) {
        (Some(tried), Some(next)) if tried == next => {
            wait.unwrap_or_else(|| route::backoff(route::failures(&record, tried)))
        }
        _ => Duration::ZERO,
    };
    after(&record, StepState::Waiting { not_before: later(now, delay) })
}

/// Waits for the next attempt while the route of the last one is left alone for `pause`: at once by
/// another route, unless that is not worth it.
fn aside(record: StepRecord, step: &PlannedStep, submission: &Submission, pause: Pause, now: Timestamp) -> StepRecord {
    let tried = |r: &PlannedRoute| r.provider == submission.provider && r.model == submission.model;
    let delay = match route::choose(step, &record, |r| if tried(r) { pause } else { Pause::default() }) {
        Choice::Pause(wait) => wait,
        Choice::Route(_) | Choice::Exhausted => Duration::ZERO,
    };
    after(&record, StepState::Waiting { not_before: later(now, delay) })
}

fn with_attempt(
    record: &StepRecord,
    submission: &Submission,
    kind: ErrorKind,
    reason: &str,
    accepted_at: Option<Cost>,
    now: Timestamp,
) -> StepRecord {
    let mut record = record.clone();
    record.attempts.push(StepAttempt {
        submission: submission.id.clone(),
        ordinal: submission.ordinal,
        provider: submission.provider.clone(),
        model: submission.model.clone(),
        kind,
        reason: reason.to_owned(),
        accepted: accepted_at.is_some(),
        cost: accepted_at.unwrap_or(Cost::FREE),
        at: now,
    });
    record
}

fn cost_entry(record: &StepRecord, submission: &Submission, cost: Cost) -> CostEntry {
    CostEntry {
        step: record.step,
        ordinal: submission.ordinal,
        provider: submission.provider.clone(),
        model: submission.model.clone(),
        cost,
    }
}

fn failed(step: &PlannedStep, kind: ErrorKind, reason: &str) -> StepState {
    let message = match kind {
        ErrorKind::Refused => format!("the {} was refused by the provider: {reason}", step.step),
        ErrorKind::Invalid => format!("the provider cannot make this {}: {reason}", step.step),
        _ => format!("the {} could not be made: {reason}", step.step),
    };
    StepState::Failed { failure: Failure::new(kind, message).at(step.step) }
}

/// No route is left: fail with the last reason, or leave the step out if the job may do without.
fn exhausted(record: &StepRecord, step: &PlannedStep) -> StepRecord {
    let last = record.attempts.last();
    let reason = last.map_or("no provider can do it", |a| a.reason.as_str());
    if step.optional {
        return after(record, StepState::Skipped { reason: reason.to_owned() });
    }
    after(record, failed(step, last.map_or(ErrorKind::Unsupported, |a| a.kind), reason))
}

/// What a submission cost: by the provider's word, by what it says was used and the plan's price,
/// or by the price alone. A negative cost is nobody's word.
#[must_use]
pub fn cost_of(stated: Option<Usd>, usage: Option<Usage>, submission: &Submission, step: &PlannedStep) -> Cost {
    if let Some(amount) = stated.filter(|amount| *amount >= Usd::ZERO) {
        return Cost { amount, basis: CostBasis::Stated };
    }
    let route = step.routes.iter().find(|r| r.provider == submission.provider && r.model == submission.model);
    match route.zip(usage).and_then(|(route, usage)| route.price.of_usage(usage)) {
        Some(amount) => Cost { amount, basis: CostBasis::Metered },
        None => Cost { amount: submission.hold, basis: CostBasis::Table },
    }
}

#[cfg(test)]
mod tests;
