//! The parts of the contract that are arithmetic: every backend asks here, so that none drifts.

use std::time::Duration;

use jiff::Timestamp;

use crate::error::{Error, ErrorKind, Result};
use crate::job::{Job, JobState, StepRecord, StepState};
use crate::money::{LedgerEntry, LedgerRow, UsageReport, UsageRow, Usd};
use crate::queue::JobEnd;
use crate::tenant::Limits;

/// How long an idempotency row lives.
pub const IDEMPOTENCY_LIFE: Duration = Duration::from_secs(24 * 3600);

/// The longest page of a list.
pub const MAX_PAGE: usize = 100;

/// What a tenant with too many live jobs is told to wait: about one short video.
const LIVE_JOBS_RETRY: Duration = Duration::from_secs(10);

/// Refuses a create that would be one too many in its window (rule Q14); `created` is how many
/// there were in it.
///
/// # Errors
/// `RateLimited`, with the time until the next window.
pub fn check_creates(limits: &Limits, created: u32, now: Timestamp) -> Result<()> {
    match limits.creates {
        Some(window) if created >= window.limit => {
            let message = format!("more than {} jobs created in {} s", window.limit, window.per.as_secs());
            let (_, left) = window_of(now, window.per);
            Err(Error::new(ErrorKind::RateLimited, "queue", message).with_retry_after(left))
        }
        _ => Ok(()),
    }
}

/// Refuses a job that would be one too many alive (rule Q14).
///
/// # Errors
/// `RateLimited`, with a guess of when one may have ended.
pub fn check_live_jobs(limits: &Limits, live: u64) -> Result<()> {
    match limits.live_jobs {
        Some(limit) if live >= u64::from(limit) => {
            let message = format!("more than {limit} jobs queued or processing");
            Err(Error::new(ErrorKind::RateLimited, "queue", message).with_retry_after(LIVE_JOBS_RETRY))
        }
        _ => Ok(()),
    }
}

/// Refuses a hold that the budget does not cover (rule Q14). `spent` is the sum of the ledger rows
/// in the window, `held` what other jobs hold now.
///
/// # Errors
/// `OverBudget`.
pub fn check_budget(limits: &Limits, spent: Usd, held: Usd, hold: Usd) -> Result<()> {
    match limits.budget {
        // A waiver of a cost in an earlier window makes no room in this one.
        Some(window) if spent.max(Usd::ZERO) + held + hold > window.limit => {
            let message = format!("a hold of {hold} passes the budget of {}", window.limit);
            Err(Error::new(ErrorKind::OverBudget, "queue", message))
        }
        _ => Ok(()),
    }
}

/// The ledger row to write when a job ends, so that its rows sum up to what the tenant pays
/// (rule Q16): `recorded` is their sum so far, `cost` all the job's costs. Zero needs no row.
#[must_use]
pub fn settle_adjustment(end: JobState, cost: Usd, recorded: Usd) -> Usd {
    let charge = if end == JobState::Failed { Usd::ZERO } else { cost };
    charge - recorded
}

/// What stays held after a cost of `amount` was recorded: spent money is no longer reserved.
#[must_use]
pub fn held_after_cost(held: Usd, amount: Usd) -> Usd {
    (held - amount.max(Usd::ZERO)).max(Usd::ZERO)
}

/// A job's progress after a checkpoint that claims `reported`: never less, 100 only at the end.
#[must_use]
pub fn progress_after(before: u8, reported: u8) -> u8 {
    before.max(reported.min(99))
}

/// The fair tag of a job at admission (rule Q10), in 1/1024 of a turn.
#[must_use]
pub fn fair_tag(virtual_time: i64, last_tag: i64, weight: u32) -> i64 {
    virtual_time.max(last_tag).saturating_add(1024 / i64::from(weight.clamp(1, 1024)))
}

/// Which window of length `per` a moment lies in, and how long until the next one starts.
#[must_use]
pub fn window_of(now: Timestamp, per: Duration) -> (i64, Duration) {
    let per = i64::try_from(per.as_micros()).unwrap_or(i64::MAX).max(1);
    let micros = now.as_microsecond();
    let left = per - micros.rem_euclid(per);
    (micros.div_euclid(per), Duration::from_micros(u64::try_from(left).unwrap_or(0)))
}

/// Adds up ledger rows (rule Q16): costs by UTC day, step, provider and model; every row for the
/// charge. The caller chose the rows by time; `held` is what is reserved now.
#[must_use]
pub fn usage_report<'a>(rows: impl IntoIterator<Item = &'a LedgerRow>, held: Usd) -> UsageReport {
    let mut report = UsageReport { held, ..UsageReport::default() };
    let mut lines = std::collections::BTreeMap::new();
    for row in rows {
        report.charged += row.amount;
        let LedgerEntry::Cost(entry) = &row.entry else { continue };
        report.cost += row.amount;
        let key = (usage_day(row.at), entry.step, entry.provider.clone(), entry.model.clone());
        let (count, cost) = lines.entry(key).or_insert((0, Usd::ZERO));
        *count += 1;
        *cost += row.amount;
    }
    report.rows = lines
        .into_iter()
        .map(|((day, step, provider, model), (count, cost))| UsageRow {
            day,
            step: step.to_string(),
            provider,
            model,
            count,
            cost,
        })
        .collect();
    report
}

/// The UTC day of a moment, as a usage report names it: `2026-01-31`.
#[must_use]
pub fn usage_day(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d").to_string()
}

impl JobEnd {
    /// The state that it leaves the job in.
    #[must_use]
    pub fn state(&self) -> JobState {
        match self {
            Self::Completed(_) => JobState::Completed,
            Self::Failed(_) => JobState::Failed,
            Self::Canceled => JobState::Canceled,
        }
    }
}

impl Job {
    /// Writes how it ended; the queue sees to money, version and events.
    pub fn end(&mut self, end: JobEnd, keep_hold: Usd, now: Timestamp) {
        self.state = end.state();
        self.ended_at = Some(now);
        self.held = keep_hold;
        match end {
            JobEnd::Completed(output) => {
                self.output = Some(output);
                self.progress = 100;
            }
            JobEnd::Failed(failure) => self.failure = Some(failure),
            JobEnd::Canceled => {}
        }
    }

    /// Whether a retry may take it up again (see [`Queue::retry`](crate::Queue::retry)).
    ///
    /// # Errors
    /// `Conflict`, saying why not.
    pub fn check_retry(&self) -> Result<()> {
        let why = match self.state {
            JobState::Queued | JobState::Processing => "job has not ended yet",
            JobState::Completed => "job is completed",
            JobState::Failed | JobState::Canceled if self.has_untold_doubt() => {
                "job has a step in doubt: resolve it first"
            }
            JobState::Failed | JobState::Canceled => return Ok(()),
        };
        Err(conflict(why))
    }

    /// Makes an ended job as a retry finds it: queued, with its steps reopened and a new hold.
    /// Progress stays, since users must not see it fall.
    pub fn reopen(&mut self, hold: Usd, now: Timestamp) {
        self.state = JobState::Queued;
        self.attempts = 0;
        self.crashes = 0;
        self.cancel_requested = false;
        self.ended_at = None;
        self.failure = None;
        self.held = hold;
        let reopened = |step: StepRecord| {
            let witness = step.open_submission().and_then(|submission| self.witness(&submission.id)).cloned();
            step.reopened(witness.as_ref(), now)
        };
        self.steps = self.steps.iter().cloned().map(reopened).collect();
    }

    /// Whether a step is in doubt of which no callback told since.
    fn has_untold_doubt(&self) -> bool {
        self.steps.iter().any(|step| match &step.state {
            StepState::InDoubt { submission } => self.witness(&submission.id).is_none(),
            _ => false,
        })
    }

    /// Puts a step record in its place, in the order of the plan.
    pub fn put_step(&mut self, record: StepRecord) {
        match self.steps.binary_search_by_key(&record.step, |stored| stored.step) {
            Ok(at) => {
                if let Some(stored) = self.steps.get_mut(at) {
                    *stored = record;
                }
            }
            Err(at) => self.steps.insert(at, record),
        }
    }
}

/// It contradicts what is already there.
pub(crate) fn conflict(message: &'static str) -> Error {
    Error::new(ErrorKind::Conflict, "queue", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenant::Window;

    #[test]
    fn a_newcomer_is_tagged_next_to_the_virtual_time_whatever_the_backlog() {
        let flooder = (0..10_000).fold(0, |last, _| fair_tag(0, last, 1));
        assert_eq!(flooder, 10_240_000);
        assert_eq!(fair_tag(2048, 0, 1), 3072);
    }

    #[test]
    fn three_times_the_weight_is_a_third_of_the_distance() {
        assert_eq!(fair_tag(0, 0, 3), 341);
        assert_eq!(fair_tag(0, 0, 0), 1024);
        assert_eq!(fair_tag(0, 0, u32::MAX), 1);
    }

    #[test]
    fn windows_start_at_multiples_of_their_length() {
        let now = Timestamp::from_second(95).unwrap();
        assert_eq!(window_of(now, Duration::from_secs(60)), (1, Duration::from_secs(25)));
        assert_eq!(window_of(now, Duration::ZERO).1, Duration::from_micros(1));
    }

    #[test]
    fn the_rows_of_an_ended_job_sum_up_to_what_its_tenant_pays() {
        let cost = Usd::from_cents(65);
        assert_eq!(settle_adjustment(JobState::Completed, cost, cost), Usd::ZERO);
        assert_eq!(settle_adjustment(JobState::Failed, cost, cost), -cost);
        // Failed once (rows sum to nothing), retried for another 10 cents, completed.
        let more = Usd::from_cents(10);
        assert_eq!(settle_adjustment(JobState::Completed, cost + more, more), cost);
    }

    #[test]
    fn a_waiver_of_an_earlier_window_makes_no_room_in_this_one() {
        let budget = Some(Window { limit: Usd::from_dollars(1), per: Duration::from_secs(60) });
        let limits = Limits { budget, ..Limits::default() };
        assert!(check_budget(&limits, Usd::from_dollars(-5), Usd::ZERO, Usd::from_dollars(1)).is_ok());
        assert!(check_budget(&limits, Usd::from_dollars(-5), Usd::ZERO, Usd::from_cents(101)).is_err());
    }
}
