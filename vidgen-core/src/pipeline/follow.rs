//! Follows one accepted submission to its end: polls, asks for its end, copies its output.

use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::job::{Failure, StepRecord, StepState};
use crate::money::{Cost, CostBasis, Usage, Usd};
use crate::pipeline::fetch::{FetchError, fetch};
use crate::pipeline::route::Asked;
use crate::pipeline::run::{Halt, Run};
use crate::pipeline::step::{self, Overdue};
use crate::pipeline::{PlannedStep, Route};
use crate::provider::{Capabilities, Handle, Output, ProviderId, RunFailure, RunState, Snapshot, Spool};
use crate::vidgen::media_prefix;

/// The longest wait between two polls of a run.
const SLOWEST_POLL: Duration = Duration::from_secs(10);
/// Where a provider calls back, it is asked this often all the same: callbacks get lost.
const SAFETY_NET: Duration = Duration::from_secs(30);
/// So many times what was held for a run is far more than its price.
const OVERRUN: i64 = 2;
/// How long a paid run may be unknown to its provider before it counts as lost: reads may lag behind
/// what was accepted, and be answered by another of its machines.
const UNKNOWN_PATIENCE: Duration = Duration::from_secs(60);
/// How often an output is copied before it is called invalid.
const MAX_COPIES: u32 = 3;
/// The wait before an output is copied again.
const COPY_AGAIN: Duration = Duration::from_secs(1);
/// The longest wait before an output is offered again to a store that is away.
const SLOWEST_COPY: Duration = Duration::from_secs(30);
/// Progress is written at most this often.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// One accepted submission.
pub(crate) struct Polling<'a> {
    run: &'a Run,
    planned: &'a PlannedStep,
    route: Route,
    capabilities: Capabilities,
    /// Whether the provider was given a URL to call: then it is asked less often.
    calls_back: bool,
    delay: Duration,
    began: Duration,
    /// When it was last asked, and after how many calls.
    asked: Duration,
    heard: u64,
    written: Duration,
    bad_copies: u32,
    store_failures: u32,
    overran: bool,
    /// Whether what callbacks told could not be read: then the end may have been told.
    unread: bool,
    /// Since when the provider does not know the run.
    unknown: Option<Duration>,
}

impl<'a> Polling<'a> {
    pub(crate) fn new(run: &'a Run, planned: &'a PlannedStep, route: Route) -> Self {
        let capabilities = route.provider.capabilities();
        run.keep_place(planned.step, &route);
        // Even who calls back is asked once soon: the call may have come before anybody listened.
        let delay = capabilities.poll_floor;
        let began = run.inner.clock.monotonic();
        let calls_back = capabilities.callback && run.inner.callbacks.is_some();
        Self {
            run,
            planned,
            route,
            capabilities,
            calls_back,
            delay,
            began,
            asked: began,
            heard: run.calls(),
            written: began,
            bad_copies: 0,
            store_failures: 0,
            overran: false,
            unread: false,
            unknown: None,
        }
    }

    /// Returns when the step's record is no longer `Accepted`.
    pub(crate) async fn follow(mut self) -> Result<(), Halt> {
        loop {
            let record = self.run.record(self.planned.step);
            let StepState::Accepted { handle, cancel_sent, .. } = &record.state else { return Ok(()) };
            let cancels = !cancel_sent && self.capabilities.cancel;
            self.wait(&handle.provider, cancels).await?;
            if self.run.canceled() && cancels {
                self.cancel(&record, handle).await?;
                continue;
            }
            let record = match self.news(&record).await {
                Some(news) => {
                    self.run.checkpoint(news, None).await?;
                    self.run.record(self.planned.step)
                }
                None => record,
            };
            let StepState::Accepted { handle, .. } = &record.state else { return Ok(()) };
            self.asked = self.run.inner.clock.monotonic();
            let snapshot = self.run.ask(self.route.provider.poll(handle)).await?;
            self.run.heed(&handle.provider, Asked::ToLook, snapshot.as_ref().map(|_| ()));
            // Only what goes on is late: a run that ended while nobody looked is there to be fetched,
            // and who just began to look must not take one error for an answer.
            let goes_on = match &snapshot {
                Ok(snapshot) => matches!(snapshot.state, RunState::Running),
                Err(error) => error.kind() != ErrorKind::NotFound && self.looked_long(),
            };
            if goes_on && !self.unread && self.end_late(&record).await? {
                continue;
            }
            match snapshot {
                Ok(snapshot) => {
                    self.unknown = None;
                    self.see(&record, snapshot).await?;
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    // Its end may have been told while it was asked for.
                    match self.news(&record).await {
                        Some(news) => self.run.checkpoint(news, None).await.map(|_| ())?,
                        None if self.unread || self.may_be_there(&record) => self.after_error(None),
                        None => self.lose(&record, self.run.sent(self.planned.step)).await?,
                    }
                }
                Err(error) => {
                    tracing::warn!(job = %self.run.job.id, step = %self.planned.step, %error, "poll");
                    self.after_error(error.wait());
                }
            }
        }
    }

    /// Waits for the next poll, or until the run is to be canceled. A callback shortens it, also one
    /// that came while the last poll was on its way; but not below what the provider allows: one that
    /// is sent again and again is no reason to ask again and again.
    async fn wait(&mut self, provider: &ProviderId, cancels: bool) -> Result<(), Halt> {
        let (run, floor) = (self.run, self.capabilities.poll_floor);
        let began = run.inner.clock.monotonic();
        loop {
            let (calls, now) = (run.calls(), run.inner.clock.monotonic());
            let due = if calls == self.heard { began + self.delay } else { self.asked + floor };
            let left = due.saturating_sub(now).max(run.inner.breakers.cooling(provider, now));
            if left.is_zero() || run.canceled() && cancels {
                run.check()?;
                self.heard = calls;
                return Ok(());
            }
            run.pause(left).await?;
        }
    }

    /// The record after a callback told more of a run of which nothing else is ever heard.
    async fn news(&mut self, record: &StepRecord) -> Option<StepRecord> {
        if !self.capabilities.only_callback {
            return None;
        }
        // The hint that a call came may get lost: it is looked for with every poll.
        self.unread = !self.run.hear().await;
        step::after_news(record, &self.run.told(record.open_submission()?)?)
    }

    /// Whether a run that its provider does not know now may only be late to be known: it was paid
    /// for, nobody asked for its end, and it was not looked for long yet.
    fn may_be_there(&mut self, record: &StepRecord) -> bool {
        let StepState::Accepted { submission, cancel_sent: false, .. } = &record.state else { return false };
        let now = self.run.inner.clock.monotonic();
        let since = *self.unknown.get_or_insert(now);
        !step::is_free(submission, &self.capabilities) && now.saturating_sub(since) < UNKNOWN_PATIENCE
    }

    fn looked_long(&self) -> bool {
        self.run.inner.clock.monotonic().saturating_sub(self.began) >= self.run.inner.timing.run_grace
    }

    /// Asks for the end of a run that takes too long, or no longer waits for it; false if neither
    /// is to be done now.
    async fn end_late(&mut self, record: &StepRecord) -> Result<bool, Halt> {
        let StepState::Accepted { handle, cancel_sent, .. } = &record.state else { return Ok(false) };
        match step::overdue(record, &self.run.inner.timing, self.run.now()) {
            Overdue::No => return Ok(false),
            Overdue::Cancel | Overdue::GiveUp if !cancel_sent && self.capabilities.cancel => {
                self.cancel(record, handle).await?;
            }
            Overdue::Cancel => return Ok(false),
            // Where nobody can be asked, that is what an end looks like whose callbacks were lost.
            Overdue::GiveUp if self.is_unheard(record) => self.lose(record, true).await?,
            Overdue::GiveUp => {
                let failure = Failure::coded("timed_out", format!("the {} took too long", self.planned.step));
                let cost = self.cost(record, None, None);
                self.waste(record, failure, cost).await?;
            }
        }
        Ok(true)
    }

    async fn see(&mut self, record: &StepRecord, snapshot: Snapshot) -> Result<(), Halt> {
        if matches!(snapshot.state, RunState::Running) {
            self.progress(record, snapshot.progress).await?;
            self.slow_down(snapshot.poll_after);
            return Ok(());
        }
        let cost = self.cost(record, snapshot.cost, snapshot.usage);
        match snapshot.state {
            RunState::Running => Ok(()),
            // Its owner does not want it any more, but it was bought: the cost is real (M11).
            RunState::Succeeded(_) if self.run.canceled() => self.waste(record, canceled(), cost).await,
            RunState::Succeeded(outputs) => match outputs.first() {
                Some(output) => self.copy(record, output, cost).await,
                None => {
                    let failure = Failure::coded("output_invalid", "the provider finished without an output");
                    self.waste(record, failure, cost).await
                }
            },
            RunState::Failed(failure) => self.fail(record, &failure, cost).await,
            RunState::Canceled if self.run.canceled() => self.waste(record, canceled(), cost).await,
            RunState::Canceled if step::overdue(record, &self.run.inner.timing, self.run.now()) != Overdue::No => {
                let failure = Failure::coded("timed_out", format!("the {} took too long", self.planned.step));
                self.waste(record, failure, cost).await
            }
            RunState::Canceled => {
                let failure = RunFailure {
                    billed: cost.basis != CostBasis::Table && cost.amount > Usd::ZERO,
                    ..RunFailure::new(ErrorKind::Unavailable, "the provider canceled the run")
                };
                self.fail(record, &failure, cost).await
            }
        }
    }

    async fn fail(&self, record: &StepRecord, failure: &RunFailure, cost: Cost) -> Result<(), Halt> {
        let down = !matches!(failure.kind, ErrorKind::Invalid | ErrorKind::Refused | ErrorKind::Unsupported);
        if let Some(submission) = record.open_submission().filter(|_| down) {
            let now = self.run.inner.clock.monotonic();
            self.run.inner.breakers.record(&submission.provider, &submission.model, false, now);
        }
        let (record, cost) = step::after_failure(record, self.planned, failure, cost, self.run.now());
        self.run.checkpoint(record, cost).await.map(|_| ())
    }

    /// Copies the output into our store. What the provider's side breaks is fetched again after
    /// another poll (which may bring a fresh link); what our store breaks is offered again for as
    /// long as it takes: it was paid for, and is never bought again for our own fault (B5).
    async fn copy(&mut self, record: &StepRecord, output: &Output, cost: Cost) -> Result<(), Halt> {
        let run = self.run;
        let ordinal = record.open_submission().map_or(1, |s| s.ordinal);
        // The epoch keeps a stale worker from overwriting what a record already names.
        let stem = format!("{}/{}-{ordinal}-{}", media_prefix(run.job.id), self.planned.step, run.claim.epoch);
        let (provider, store, clock) = (&*self.route.provider, &*run.inner.store, &run.inner.clock);
        let spool = match record.open_submission() {
            Some(submission) => Spool::new(run.inner.store.clone(), &submission.id).map_err(Halt::Fault)?,
            None => return Ok(()),
        };
        let copied = tokio::select! {
            copied = fetch(provider, &spool, output, self.planned.step, &stem, store, clock) => copied,
            halt = run.halted() => return Err(halt),
        };
        match copied {
            Ok(media) => {
                if let Some(submission) = record.open_submission() {
                    let now = run.inner.clock.monotonic();
                    run.inner.breakers.record(&submission.provider, &submission.model, true, now);
                }
                let (record, entry) = step::done(record, media, cost);
                run.checkpoint(record, entry).await?;
                if let Err(error) = spool.remove(output).await {
                    tracing::warn!(job = %run.job.id, step = %self.planned.step, %error, "the spool keeps a file until the job goes");
                }
            }
            Err(FetchError::Output(error)) => {
                self.bad_copies += 1;
                tracing::warn!(job = %run.job.id, step = %self.planned.step, %error, "output");
                if self.bad_copies >= MAX_COPIES {
                    let failure = Failure::coded("output_invalid", bad_output(self.planned, &error));
                    let (record, entry) = step::after_waste(record, self.planned, failure, cost, run.now());
                    run.checkpoint(record, entry).await?;
                } else {
                    self.delay = COPY_AGAIN.max(self.capabilities.poll_floor);
                }
            }
            Err(FetchError::Store(error)) => {
                tracing::warn!(job = %run.job.id, step = %self.planned.step, %error, "the store is away; the output is kept at the provider");
                self.delay = (COPY_AGAIN * 2u32.saturating_pow(self.store_failures)).min(SLOWEST_COPY);
                self.store_failures = self.store_failures.saturating_add(1).min(8);
            }
        }
        Ok(())
    }

    async fn cancel(&mut self, record: &StepRecord, handle: &Handle) -> Result<(), Halt> {
        // How it ended is soon to be seen.
        self.delay = self.capabilities.poll_floor;
        // Written first, so that its end is asked for once, whatever crashes.
        self.run.checkpoint(step::cancel_sent(record), None).await?;
        if let Err(error) = self.run.answered(self.route.provider.cancel(handle)).await {
            tracing::info!(job = %self.run.job.id, step = %self.planned.step, %error, "cancel");
            let record = self.run.record(self.planned.step);
            if error.kind() == ErrorKind::TooLate && self.run.canceled() && self.is_unheard(&record) {
                // Nothing was paid for, so that its end need not be waited for: it may never be told.
                self.waste(&record, canceled(), Cost::FREE).await?;
            }
        }
        Ok(())
    }

    /// Whether nothing but a callback tells of the run, and nothing is lost with it.
    fn is_unheard(&self, record: &StepRecord) -> bool {
        let free = |submission| step::is_free(submission, &self.capabilities);
        self.capabilities.only_callback && record.open_submission().is_some_and(free)
    }

    /// Nothing more will be heard of the run.
    async fn lose(&mut self, record: &StepRecord, sent: bool) -> Result<(), Halt> {
        let cost = self.cost(record, None, None);
        let (record, cost) = step::after_loss(record, self.planned, &self.capabilities, cost, sent, self.run.now());
        self.run.checkpoint(record, cost).await.map(|_| ())
    }

    async fn waste(&self, record: &StepRecord, failure: Failure, cost: Cost) -> Result<(), Halt> {
        let (record, entry) = step::after_waste(record, self.planned, failure, cost, self.run.now());
        self.run.checkpoint(record, entry).await.map(|_| ())
    }

    async fn progress(&mut self, record: &StepRecord, fraction: Option<f32>) -> Result<(), Halt> {
        let Some(fraction) = fraction else { return Ok(()) };
        let now = self.run.inner.clock.monotonic();
        if (self.run.set_fraction(self.planned.step, fraction)
            || now.saturating_sub(self.written) > PROGRESS_EVERY * 10)
            && now.saturating_sub(self.written) >= PROGRESS_EVERY
        {
            self.written = now;
            self.run.checkpoint(step::unchanged(record), None).await?;
        }
        Ok(())
    }

    /// The next poll comes later than this one did, within what the provider and its usual pace
    /// allow; or much later, where a callback will come.
    fn slow_down(&mut self, wish: Option<Duration>) {
        let wish = self.granted(wish);
        let floor = self.capabilities.poll_floor;
        let net = if self.calls_back { SAFETY_NET } else { Duration::ZERO };
        match wish {
            Some(wish) => self.delay = wish.max(net).max(floor),
            None if self.calls_back => self.delay = net.max(floor),
            None => self.delay_more(),
        }
    }

    /// The next poll comes when the provider says so, else a little later than this one did: it may
    /// be what a callback asked for.
    fn after_error(&mut self, wish: Option<Duration>) {
        match self.granted(wish) {
            Some(wish) => self.delay = wish.max(self.capabilities.poll_floor),
            None => self.delay_more(),
        }
    }

    /// Nobody is waited for longer than a run may take, or its deadline would pass unseen.
    fn granted(&self, wish: Option<Duration>) -> Option<Duration> {
        wish.map(|wish| wish.min(self.run.inner.timing.run_deadline))
    }

    fn delay_more(&mut self) {
        let floor = self.capabilities.poll_floor;
        let slowest = (self.typical() / 10).clamp(floor, SLOWEST_POLL.max(floor));
        self.delay = (self.delay + self.delay / 2).clamp(floor, slowest);
    }

    /// How long a run of this very model usually takes.
    fn typical(&self) -> Duration {
        let record = self.run.record(self.planned.step);
        let open = record.open_submission();
        let mut routes = self.planned.routes.iter();
        let route = routes.find(|r| open.is_some_and(|s| s.provider == r.provider && s.model == r.model));
        route.map_or(SLOWEST_POLL, |r| r.typical)
    }

    /// What the run costs; far more than was held for it is a reason to look at the price (M7).
    fn cost(&mut self, record: &StepRecord, stated: Option<Usd>, usage: Option<Usage>) -> Cost {
        let Some(submission) = record.open_submission() else { return Cost::FREE };
        let cost = step::cost_of(stated, usage, submission, self.planned);
        if cost.amount > submission.hold.times(OVERRUN) && !std::mem::replace(&mut self.overran, true) {
            let (job, provider, model) = (&self.run.job, &submission.provider, &submission.model);
            tracing::error!(job = %job.id, %provider, %model, cost = %cost.amount, held = %submission.hold, "a run cost far more than its price; the model is paused for this tenant");
            self.run.inner.breakers.overrun(&job.tenant, provider, model, self.run.inner.clock.monotonic());
        }
        cost
    }
}

fn canceled() -> Failure {
    Failure::coded("canceled", "the job was canceled")
}

fn bad_output(planned: &PlannedStep, error: &Error) -> String {
    format!("the {} that the provider made cannot be used: {}", planned.step, error.message())
}
