//! Drives one claimed job from where its records are to its end, or until it is handed back. The
//! only code that knows all four traits.
//!
//! Every write goes through [`Run::checkpoint`] or [`Run::settle`], carries the claim, and is
//! waited for before the next thing happens. Whatever crashes between two of them, the next
//! worker finds a record that [`step::next`] knows how to go on from.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use futures::stream::{FuturesUnordered, StreamExt};
use jiff::Timestamp;
use tokio::sync::watch;

use crate::clock::{later, until};
use crate::error::{Error, ErrorKind, Result};
use crate::job::{Failure, Job, StepId, StepRecord, StepState};
use crate::money::{CostEntry, Usd};
use crate::pipeline::evidence::Evidence;
use crate::pipeline::follow::Polling;
use crate::pipeline::places::Place;
use crate::pipeline::progress::progress;
use crate::pipeline::route::{backoff, is_put_off};
use crate::pipeline::step::{self, Next};
use crate::pipeline::{PlannedStep, Route};
use crate::provider::{Resubmit, Submission};
use crate::queue::{Ack, Checkpoint, Claim, Claimed, Fenced, MAX_CRASHES, Witness};
use crate::vidgen::Inner;

/// The first and the longest wait before a write is tried again on a queue that is away.
pub(super) const WRITE_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long the outcome of a submit is kept for a queue that is away, whatever the lease says.
const OUTCOME_PATIENCE: Duration = Duration::from_secs(600);
/// How many attempts a job may use up in all. Each route of a step has three, so only a job that
/// never gets anywhere (a client that panics, a write that is refused) comes here.
const MAX_JOB_ATTEMPTS: u32 = 30;
/// A wait that is no longer than this is not worth handing the job back for.
const SHORT_WAIT: Duration = Duration::from_millis(500);

/// How long a provider may take to answer anything but a submit, which has a time of its own.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Who may be told of a lost submission by a callback looks this often whether it was: the hint that
/// one came may get lost (Q9).
const LISTEN_AGAIN: Duration = Duration::from_secs(30);

/// What the worker tells a running job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Signals {
    /// Its owner wants it to end.
    pub(crate) cancel: bool,
    /// The worker is stopping: hand it back.
    pub(crate) stop: bool,
    /// The claim is another's now.
    pub(crate) lost: bool,
    /// Rises when a provider called back.
    pub(crate) wake: u64,
}

/// Why a step's driver ended without an end of the step.
#[derive(Debug)]
pub(crate) enum Halt {
    /// The claim is another's now: write nothing, tell nobody.
    Lost,
    /// The worker is stopping.
    Stopped,
    /// The queue refused a write for a reason of ours, or a provider's client panicked.
    Fault(Error),
}

/// How a step's driver ended.
#[derive(Debug)]
enum Driven {
    /// The step ended: done, skipped, failed, in doubt, or not begun because the job is canceled.
    Ended,
    /// There is nothing to do before this moment.
    Wait(Timestamp),
}

/// Asks the worker whether its lease is fresh enough to spend money on.
pub(crate) type MaySubmit = Arc<dyn Fn() -> bool + Send + Sync>;

/// One claimed job.
pub(crate) struct Run {
    pub(crate) inner: Arc<Inner>,
    pub(crate) claim: Claim,
    pub(crate) job: Job,
    signals: watch::Receiver<Signals>,
    pub(super) may_submit: MaySubmit,
    shared: Mutex<Shared>,
}

/// What the drivers of a job's steps share.
pub(super) struct Shared {
    pub(super) records: Vec<StepRecord>,
    fractions: HashMap<StepId, f32>,
    pub(super) cost: Usd,
    pub(super) cancel: bool,
    /// The steps whose open submission this very run sent.
    pub(super) sent: HashSet<StepId>,
    /// What callbacks told, when last it was read.
    pub(super) witnesses: Vec<Witness>,
    /// The places that the open submissions take among a credential's live runs.
    pub(super) places: HashMap<StepId, Place>,
    /// The steps that are about to write an intent.
    pub(super) buying: HashSet<StepId>,
    /// The store's time, and the monotonic moment when it was read.
    store_time: (Timestamp, Duration),
}

impl Shared {
    fn winds_down(&self) -> bool {
        self.cancel || self.records.iter().any(|r| ends_the_job(&r.state))
    }
}

/// Runs a claimed job until it ended or was handed back.
pub(crate) async fn run(
    inner: Arc<Inner>,
    claimed: Claimed,
    now: Timestamp,
    signals: watch::Receiver<Signals>,
    may_submit: MaySubmit,
) {
    let shared = Shared {
        records: claimed.job.steps.clone(),
        fractions: HashMap::new(),
        cost: claimed.job.cost,
        cancel: claimed.job.cancel_requested,
        sent: HashSet::new(),
        witnesses: claimed.job.witnesses.clone(),
        places: HashMap::new(),
        buying: HashSet::new(),
        store_time: (now, inner.clock.monotonic()),
    };
    let run = Arc::new(Run {
        inner,
        claim: claimed.claim,
        job: claimed.job,
        signals,
        may_submit,
        shared: Mutex::new(shared),
    });
    let job = run.job.id;
    match run.clone().go().await {
        Ok(()) => {}
        Err(Halt::Lost) => tracing::warn!(%job, "the claim is another's now; left alone"),
        Err(Halt::Stopped) => run.release(Duration::ZERO, false).await,
        Err(Halt::Fault(error)) => run.hand_back_after(&error).await,
    }
}

impl Run {
    async fn go(self: Arc<Self>) -> Result<(), Halt> {
        if self.job.crashes >= MAX_CRASHES || self.job.attempts >= MAX_JOB_ATTEMPTS {
            return self.give_up_as_poison().await;
        }
        let mut active: FuturesUnordered<BoxFuture<'static, (StepId, Result<Driven, Halt>)>> = FuturesUnordered::new();
        let mut running: Vec<StepId> = Vec::new();
        let mut waits: HashMap<StepId, Timestamp> = HashMap::new();
        let mut halted: Option<Halt> = None;
        let mut signals = self.signals.clone();
        let mut heard = self.calls();
        loop {
            let now = self.now();
            let startable = self.startable();
            let called = self.calls() != heard;
            heard = self.calls();
            let over = |id: &StepId| called && matches!(self.record(*id).state, StepState::Intent { .. });
            waits.retain(|id, until| now < *until && startable.iter().any(|s| s.step == *id) && !over(id));
            if halted.is_none() {
                for planned in startable {
                    if !running.contains(&planned.step) && !waits.contains_key(&planned.step) {
                        running.push(planned.step);
                        let (run, id) = (self.clone(), planned.step);
                        // A client that panics ends its own step's driver only: the submit of the
                        // step beside it may be on the wire, and its outcome needs the claim.
                        let driven = AssertUnwindSafe(run.drive(planned)).catch_unwind();
                        let panicked =
                            |_| Err(Halt::Fault(Error::internal("pipeline", "a provider's client panicked")));
                        active.push(driven.map(move |driven| (id, driven.unwrap_or_else(panicked))).boxed());
                    }
                }
            }
            let next_wait = waits.values().min().copied();
            if active.is_empty() {
                if let Some(halt) = halted {
                    return Err(halt);
                }
                match next_wait.map(|moment| until(now, moment)) {
                    Some(wait) if wait > SHORT_WAIT => {
                        self.release(wait, self.used_an_attempt()).await;
                        return Ok(());
                    }
                    Some(wait) => {
                        self.inner.clock.sleep(wait).await;
                        continue;
                    }
                    None => return self.finish().await,
                }
            }
            let wait = next_wait.map_or(Duration::from_secs(3600), |moment| until(now, moment));
            tokio::select! {
                Some((id, ended)) = active.next() => {
                    running.retain(|r| *r != id);
                    match ended {
                        Ok(Driven::Ended) => {}
                        Ok(Driven::Wait(until)) => { waits.insert(id, until); }
                        Err(Halt::Lost) => return Err(Halt::Lost),
                        Err(halt) => halted = halted.or(Some(halt)),
                    }
                }
                () = self.inner.clock.sleep(wait) => {}
                // A callback may tell of a submission that another step waits to hear of.
                changed = signals.changed() => changed.map_err(|_| Halt::Lost)?,
            }
        }
    }

    /// Later, perhaps by another version, what failed for a reason of ours may go through.
    async fn hand_back_after(&self, error: &Error) {
        tracing::error!(job = %self.job.id, %error, "a run cannot go on");
        let attempts = usize::try_from(self.job.attempts).unwrap_or_default();
        self.release(backoff(attempts + 1), true).await;
    }

    /// The steps that may be worked on: all that are ready, or, once the job is canceled or
    /// cannot succeed, only those that money is out for.
    fn startable(&self) -> Vec<PlannedStep> {
        let shared = self.lock();
        let state = |id: StepId| shared.records.iter().find(|r| r.step == id).map(|r| &r.state);
        let winding_down = shared.winds_down();
        let ready = |planned: &&PlannedStep| match state(planned.step) {
            Some(StepState::Intent { .. } | StepState::Accepted { .. }) => true,
            Some(StepState::Waiting { .. }) | None => {
                let over = |id: &StepId| matches!(state(*id), Some(StepState::Done { .. } | StepState::Skipped { .. }));
                !winding_down && planned.needs.iter().all(over)
            }
            Some(_) => false,
        };
        self.job.plan.steps.iter().filter(ready).cloned().collect()
    }

    /// Takes one step as far as it goes.
    async fn drive(self: Arc<Self>, planned: PlannedStep) -> Result<Driven, Halt> {
        let id = planned.step;
        loop {
            self.check()?;
            let record = self.record(id);
            let route = record.open_submission().and_then(|s| self.route_of(id, s));
            let means = self.means(&planned, &record, route.as_ref());
            match self.evidence(&record, &means, route.as_ref()).await? {
                Evidence::Nothing => {}
                Evidence::Of(handle) => {
                    if let Some(accepted) = step::after_witness(&record, &handle) {
                        self.checkpoint(accepted, None).await?;
                        continue;
                    }
                }
                Evidence::Ask(wait) => return Ok(Driven::Wait(later(self.now(), wait))),
            }
            let monotonic = self.inner.clock.monotonic();
            let pause = |route: &_| self.inner.breakers.pause(route, &self.job.tenant, monotonic);
            match step::next(&record, &planned, &means, pause, &self.inner.timing, self.now()) {
                Next::Ended => return Ok(Driven::Ended),
                Next::Wait { until } => {
                    let listens = means.calls_back && matches!(record.state, StepState::Intent { .. });
                    let soon = later(self.now(), LISTEN_AGAIN);
                    return Ok(Driven::Wait(if listens { until.min(soon) } else { until }));
                }
                Next::Write(record) => {
                    self.checkpoint(*record, None).await?;
                }
                Next::Submit { route } => {
                    if self.winds_down() {
                        return Ok(Driven::Ended);
                    }
                    self.submit(&planned, &record, route).await?;
                }
                Next::Resend => {
                    let free = means.capabilities.is_some_and(|c| c.resubmit == Resubmit::Free);
                    if free && self.canceled() {
                        let failure = Failure::coded("canceled", "the job was canceled");
                        self.checkpoint(step::stopped(&record, failure), None).await?;
                    } else if let Some(until) = self.resend(&planned, &record, free).await? {
                        return Ok(Driven::Wait(until));
                    }
                }
                Next::Find => {
                    let Some(route) = route else { return Ok(Driven::Ended) };
                    if let Some(until) = self.find(&planned, &record, &route, &means).await? {
                        return Ok(Driven::Wait(until));
                    }
                }
                Next::Poll => match route {
                    Some(route) => Polling::new(&self, &planned, route).follow().await?,
                    None => {
                        let Some(submission) = record.open_submission() else { return Ok(Driven::Ended) };
                        let reason = "the server no longer has the provider that was working on it";
                        let failure = Failure::new(ErrorKind::Unsupported, reason);
                        // It was bought, and nobody can ask what it cost: that is never nothing (M7).
                        let cost = step::cost_of(None, None, submission, &planned);
                        let (record, cost) = step::after_waste(&record, &planned, failure, cost, self.now());
                        self.checkpoint(record, cost).await?;
                    }
                },
            }
        }
    }

    /// Writes a record and its cost, for as long as it takes and the claim is ours.
    pub(crate) async fn checkpoint(&self, record: StepRecord, cost: Option<CostEntry>) -> Result<Ack, Halt> {
        self.write(record, cost, Duration::ZERO).await
    }

    /// Writes what became of a submit, and goes on trying after the lease seems lost: a queue that
    /// was away for longer than the lease may not have given the claim to anybody yet, and nobody
    /// but this process knows the handle (B4). If it has, the write is stale and changes nothing.
    pub(super) async fn keep(&self, record: StepRecord) -> Result<Ack, Halt> {
        self.write(record, None, OUTCOME_PATIENCE).await
    }

    async fn write(&self, record: StepRecord, cost: Option<CostEntry>, patience: Duration) -> Result<Ack, Halt> {
        let progress = {
            let shared = self.lock();
            let mut records = shared.records.clone();
            put(&mut records, record.clone());
            progress(&self.job.plan, &records, |id| shared.fractions.get(&id).copied().unwrap_or_default())
        };
        let give_up = self.inner.clock.monotonic() + patience;
        let mut wait = WRITE_AGAIN.0;
        loop {
            let checkpoint = Checkpoint {
                claim: self.claim,
                record: record.clone(),
                costs: cost.iter().cloned().collect(),
                progress,
            };
            match self.inner.queue.checkpoint(checkpoint).await {
                Ok(Ack { fenced: Fenced::Stale, .. }) => return Err(Halt::Lost),
                Ok(ack) => {
                    let mut shared = self.lock();
                    shared.store_time = (ack.now, self.inner.clock.monotonic());
                    shared.cancel |= ack.cancel;
                    if let Some(entry) = &cost {
                        shared.cost += entry.cost.amount;
                    }
                    if record.open_submission().is_none() {
                        shared.places.remove(&record.step);
                    }
                    put(&mut shared.records, record.stamped(ack.now));
                    return Ok(ack);
                }
                Err(error) if error.kind() == ErrorKind::Unavailable && self.inner.clock.monotonic() < give_up => {
                    tracing::warn!(job = %self.job.id, %error, "the queue is away; an outcome is kept");
                    // Often, to be there before the claim is given to somebody else.
                    self.inner.clock.sleep(WRITE_AGAIN.0).await;
                }
                Err(error) => wait = self.write_again(error, wait).await?,
            }
        }
    }

    pub(super) async fn write_again(&self, error: Error, wait: Duration) -> Result<Duration, Halt> {
        if error.kind() != ErrorKind::Unavailable {
            return Err(Halt::Fault(error));
        }
        if self.signals.borrow().lost {
            return Err(Halt::Lost);
        }
        tracing::warn!(job = %self.job.id, %error, "the queue is away; the write is kept");
        self.inner.clock.sleep(wait).await;
        Ok((wait * 2).min(WRITE_AGAIN.1))
    }

    /// Waits, unless the worker stops or the claim is lost; returns early on any signal.
    pub(crate) async fn pause(&self, duration: Duration) -> Result<(), Halt> {
        let mut signals = self.signals.clone();
        signals.mark_unchanged();
        self.check()?;
        tokio::select! {
            () = self.inner.clock.sleep(duration) => {}
            changed = signals.changed() => {
                // The worker is gone: so is the claim.
                changed.map_err(|_| Halt::Lost)?;
            }
        }
        self.check()
    }

    /// Waits for all of `duration`, whoever calls meanwhile, unless the worker stops or the claim is lost.
    pub(super) async fn rest(&self, duration: Duration) -> Result<(), Halt> {
        tokio::select! {
            () = self.inner.clock.sleep(duration) => Ok(()),
            halt = self.halted() => Err(halt),
        }
    }

    /// Asks a provider, which may not answer at all, and not for longer than the claim is ours.
    pub(super) async fn ask<T>(&self, answer: impl Future<Output = Result<T>>) -> Result<Result<T>, Halt> {
        tokio::select! {
            answer = self.answered(answer) => Ok(answer),
            halt = self.halted() => Err(halt),
        }
    }

    /// The answer, or an error if there is none in time.
    pub(super) async fn answered<T>(&self, answer: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            answer = answer => answer,
            () = self.inner.clock.sleep(ANSWER_WITHIN) => {
                Err(Error::new(ErrorKind::Unavailable, "pipeline", "the provider did not answer in time"))
            }
        }
    }

    /// Returns when the worker stops or the claim is lost.
    pub(crate) async fn halted(&self) -> Halt {
        let mut signals = self.signals.clone();
        match signals.wait_for(|s| s.stop || s.lost).await {
            Ok(signals) if !signals.lost => Halt::Stopped,
            _ => Halt::Lost,
        }
    }

    pub(super) fn check(&self) -> Result<(), Halt> {
        let signals = *self.signals.borrow();
        if signals.lost {
            Err(Halt::Lost)
        } else if signals.stop {
            Err(Halt::Stopped)
        } else {
            Ok(())
        }
    }

    /// How many calls of providers this run was told of.
    pub(super) fn calls(&self) -> u64 {
        self.signals.borrow().wake
    }

    pub(crate) fn canceled(&self) -> bool {
        let mut shared = self.lock();
        shared.cancel |= self.signals.borrow().cancel;
        shared.cancel
    }

    /// Whether nothing new is to be bought for this job: it is canceled, or cannot succeed.
    pub(super) fn winds_down(&self) -> bool {
        self.canceled() || self.lock().winds_down()
    }

    /// The store's time, as far as it is known.
    pub(crate) fn now(&self) -> Timestamp {
        let (at, read) = self.lock().store_time;
        later(at, self.inner.clock.monotonic().saturating_sub(read))
    }

    pub(crate) fn record(&self, id: StepId) -> StepRecord {
        let shared = self.lock();
        shared.records.iter().find(|r| r.step == id).cloned().unwrap_or_else(|| StepRecord::begun(id))
    }

    /// Whether this very run sent the open submission of a step, so that a restart does not
    /// explain why the provider forgot it.
    pub(crate) fn sent(&self, id: StepId) -> bool {
        self.lock().sent.contains(&id)
    }

    /// Remembers a provider's own progress; says whether people would see a difference.
    pub(crate) fn set_fraction(&self, id: StepId, fraction: f32) -> bool {
        let mut shared = self.lock();
        let now = |shared: &Shared| {
            progress(&self.job.plan, &shared.records, |id| shared.fractions.get(&id).copied().unwrap_or_default())
        };
        let before = now(&shared);
        shared.fractions.insert(id, fraction);
        now(&shared) > before
    }

    pub(super) fn route_of(&self, id: StepId, submission: &Submission) -> Option<Route> {
        self.inner.route(&self.job, id, &submission.provider, &submission.model)
    }

    /// Whether one more submission may be bought for this job, those before a retry of it left out
    /// (M8). If so, it counts from now on, for the steps beside it.
    pub(super) fn may_buy(&self, id: StepId) -> bool {
        let mut shared = self.lock();
        let bought = |r: &StepRecord| {
            let wasted = r.attempts.iter().skip(r.forgiven).filter(|a| a.cost.amount > Usd::ZERO).count();
            let kept = match &r.state {
                StepState::Done { cost, .. } => cost.amount > Usd::ZERO,
                _ => r.open_submission().is_some_and(|s| s.hold > Usd::ZERO),
            };
            wasted + usize::from(kept)
        };
        let purchases = shared.records.iter().map(bought).sum::<usize>() + shared.buying.len();
        purchases <= self.job.plan.steps.len() && shared.buying.insert(id)
    }

    /// Whether a submission failed under this claim. One that failed before was counted then,
    /// however often a breaker or a provider that is asked again makes the job wait since.
    fn used_an_attempt(&self) -> bool {
        let failed =
            |records: &[StepRecord]| records.iter().flat_map(|r| &r.attempts).filter(|a| !is_put_off(a.kind)).count();
        failed(&self.lock().records) > failed(&self.job.steps)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ends_the_job(state: &StepState) -> bool {
    matches!(state, StepState::Failed { .. } | StepState::InDoubt { .. })
}

pub(super) fn is_open(state: &StepState) -> bool {
    matches!(state, StepState::Intent { .. } | StepState::Accepted { .. })
}

fn put(records: &mut Vec<StepRecord>, record: StepRecord) {
    match records.iter_mut().find(|r| r.step == record.step) {
        Some(stored) => *stored = record,
        None => records.push(record),
    }
}
