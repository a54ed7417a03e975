//! Buys: writes the intent, sends it once, writes the outcome; and looks for what was lost.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::clock::{later, until};
use crate::error::{Error, ErrorKind, Result};
use crate::job::{Failure, StepId, StepRecord};
use crate::pipeline::route::{Asked, backoff};
use crate::pipeline::run::{Halt, Run};
use crate::pipeline::step::{self, Means};
use crate::pipeline::task::{task, task_hash};
use crate::pipeline::{PlannedRoute, PlannedStep, Route};
use crate::provider::{ProviderId, Resubmit, Spool, Submission, SubmitOptions};

/// Which request for a submission this is.
#[derive(Clone, Copy, Debug)]
enum Request {
    /// The first one, or one that costs nothing.
    First,
    /// Another one, under the key of one whose answer was lost and which may arrive until then.
    Keyed(Timestamp),
}

/// How often a provider is asked about a lost submission.
const FIND_AGAIN: Duration = Duration::from_secs(15);
/// How often somebody who waits for a place looks whether the job is canceled.
const PLACE_AGAIN: Duration = Duration::from_secs(5);

impl Run {
    /// Buys: writes the intent, sends it, writes the outcome.
    pub(super) async fn submit(
        self: &Arc<Self>,
        planned: &PlannedStep,
        record: &StepRecord,
        n: usize,
    ) -> Result<(), Halt> {
        let (id, now) = (planned.step, self.now());
        let Some(chosen) = planned.routes.get(n) else { return Ok(()) };
        let Some(route) = self.inner.route(&self.job, id, &chosen.provider, &chosen.model) else {
            let reason = "the server no longer has this provider or model";
            let record = step::without_route(record, self.job.id, chosen, reason, now);
            self.checkpoint(record, None).await?;
            return Ok(());
        };
        while !(self.may_submit)() {
            self.pause(Duration::from_secs(1)).await?;
        }
        if !self.take_place(id, &route).await? {
            return Ok(());
        }
        // What happens while one waits for a place counts, too.
        if !self.pass(chosen) {
            self.lock().places.remove(&id);
            return Ok(());
        }
        if !chosen.price.is_free() && !self.may_buy(id) {
            let failure = Failure::coded("too_many_submissions", "too many submissions were bought for this job");
            self.checkpoint(step::stopped(record, failure), None).await?;
            return Ok(());
        }
        let sent = self.buy(record, planned, chosen, &route).await;
        self.lock().buying.remove(&id);
        sent
    }

    /// Writes the intent, sends it, writes the outcome.
    async fn buy(
        self: &Arc<Self>,
        record: &StepRecord,
        planned: &PlannedStep,
        chosen: &PlannedRoute,
        route: &Route,
    ) -> Result<(), Halt> {
        let id = planned.step;
        let records = self.lock().records.clone();
        let task =
            task(&self.job, id, &records, route, chosen.model.clone(), &self.inner.store).map_err(Halt::Fault)?;
        let hash = task_hash(&task).map_err(Halt::Fault)?;
        let intent = step::intent(record, self.job.id, chosen, hash);
        let started = self.inner.clock.monotonic();
        self.checkpoint(intent, None).await?;
        // Its record counts from here on.
        self.lock().buying.remove(&id);
        let late = self.inner.clock.monotonic().saturating_sub(started) >= self.inner.timing.post_within;
        if late || self.winds_down() || self.check().is_err() {
            // Nobody sent it, and nobody will: the slot stays free.
            let error = Err(Error::new(ErrorKind::NotSent, "pipeline", "it was not sent in time"));
            return self.write_outcome(planned, error, Duration::ZERO, Request::First).await.map(|_| ());
        }
        self.send(planned.clone(), route.clone(), task, Request::First).await.map(|_| ())
    }

    /// Sends a submission again where that cannot cost twice; answers when to come back if the
    /// outcome is unknown again.
    pub(super) async fn resend(
        self: &Arc<Self>,
        planned: &PlannedStep,
        record: &StepRecord,
        free: bool,
    ) -> Result<Option<Timestamp>, Halt> {
        let Some(submission) = record.open_submission() else { return Ok(None) };
        let Some(route) = self.route_of(planned.step, submission) else { return Ok(None) };
        let mut known = planned.routes.iter();
        if let Some(chosen) = known.find(|r| r.provider == submission.provider && r.model == submission.model)
            && !self.pass(chosen)
        {
            let (breakers, monotonic) = (&self.inner.breakers, self.inner.clock.monotonic());
            return Ok(Some(later(self.now(), breakers.pause(chosen, &self.job.tenant, monotonic).wait)));
        }
        let records = self.lock().records.clone();
        let model = submission.model.clone();
        let task = task(&self.job, planned.step, &records, &route, model, &self.inner.store).map_err(Halt::Fault)?;
        if !free && task_hash(&task).map_err(Halt::Fault)? != submission.task_hash {
            // The key would stand for something else than what it bought.
            self.checkpoint(step::doubted(record), None).await?;
            return Ok(None);
        }
        let settled = step::settled_at(submission, &route.provider.capabilities(), &self.inner.timing);
        let request = if free { Request::First } else { Request::Keyed(settled) };
        let unknown = self.send(planned.clone(), route, task, request).await?;
        Ok(unknown.map(|wait| later(self.now(), wait)))
    }

    /// Sends what the step's intent says and writes the outcome, in a task of its own: no cancel,
    /// shutdown or lost claim drops a submit that is on the wire (M4). If the outcome is not known
    /// then, answers how long to leave the provider alone.
    async fn send(
        self: &Arc<Self>,
        planned: PlannedStep,
        route: Route,
        task: crate::provider::Task,
        request: Request,
    ) -> Result<Option<Duration>, Halt> {
        let Some(submission) = self.record(planned.step).open_submission().cloned() else { return Ok(None) };
        self.lock().sent.insert(planned.step);
        let free = route.provider.capabilities().resubmit == Resubmit::Free;
        let (run, sent) = (self.clone(), planned.clone());
        let sending = tokio::spawn(async move {
            let timeout = route.provider.capabilities().submit_timeout;
            let started = run.inner.clock.monotonic();
            let options = run.options(&submission, &route)?;
            let answer = tokio::select! {
                answer = route.provider.submit(&task, &options) => answer,
                () = run.inner.clock.sleep(timeout) => {
                    Err(Error::new(ErrorKind::OutcomeUnknown, submission.provider.to_string(), "no answer in time"))
                }
            };
            let took = run.inner.clock.monotonic().saturating_sub(started);
            run.count(&submission, answer.as_ref().map(|_| ()));
            let wait = match (&answer, request) {
                // It will be refused again; whether that is the last word shows when all have arrived.
                (Err(error), Request::Keyed(settled)) if step::is_refusal(error) => Some(until(run.now(), settled)),
                (answer, _) => answer.as_ref().err().and_then(Error::wait),
            };
            let known = run.write_outcome(&sent, answer, took, request).await?;
            Ok((!known).then(|| wait.unwrap_or_else(|| backoff(1))))
        });
        // A panic in a provider's client says nothing of what the remote saw: unknown.
        let unknown = sending.await.unwrap_or_else(|_| Ok(Some(backoff(1))))?;
        if free && unknown.is_some() {
            // It counts as a failure, or what never answers would be sent for ever.
            let error = Error::new(ErrorKind::Unavailable, "pipeline", "the provider did not take it");
            self.write_outcome(&planned, Err(error), Duration::ZERO, request).await?;
            return Ok(None);
        }
        Ok(unknown)
    }

    /// Says whether the outcome is known.
    async fn write_outcome(
        &self,
        planned: &PlannedStep,
        answer: Result<crate::Handle>,
        took: Duration,
        request: Request,
    ) -> Result<bool, Halt> {
        let record = self.record(planned.step);
        if let Err(error) = &answer {
            tracing::warn!(job = %self.job.id, step = %planned.step, ?took, %error, "submit");
        }
        let after = match request {
            Request::First => step::after_submit(&record, planned, &answer, self.now()),
            Request::Keyed(settled) => step::after_resend(&record, planned, &answer, settled, self.now()),
        };
        match after {
            Some(record) => self.keep(record).await.map(|_| true),
            None => Ok(false),
        }
    }

    fn options(&self, submission: &Submission, route: &Route) -> Result<SubmitOptions, Halt> {
        let mut options = SubmitOptions::new(submission.id.clone());
        options.spool = Some(Spool::new(self.inner.store.clone(), &submission.id).map_err(Halt::Fault)?);
        if route.provider.capabilities().callback {
            options.callback = self.inner.callbacks.as_ref().map(|c| c.url(&submission.provider, &submission.id));
        }
        Ok(options)
    }

    /// Waits until the credential has room for another live run; false if by then nothing new is
    /// to be bought.
    async fn take_place(&self, id: StepId, route: &Route) -> Result<bool, Halt> {
        let Some(places) = self.inner.places(&*route.provider) else { return Ok(true) };
        // One wait, however often it is looked up from: whoever stood in line stays there.
        let place = places.take();
        tokio::pin!(place);
        loop {
            self.check()?;
            if self.winds_down() {
                return Ok(false);
            }
            tokio::select! {
                place = &mut place => {
                    self.lock().places.insert(id, place);
                    return Ok(true);
                }
                paused = self.pause(PLACE_AGAIN) => paused?,
            }
        }
    }

    /// Whether the route may be submitted to now, by what is known of it for all jobs.
    fn pass(&self, route: &PlannedRoute) -> bool {
        self.inner.breakers.pass(route, &self.job.tenant, self.inner.clock.monotonic())
    }

    /// Counts a run that was submitted under another claim among the live ones.
    pub(super) fn keep_place(&self, id: StepId, route: &Route) {
        let Some(places) = self.inner.places(&*route.provider) else { return };
        self.lock().places.entry(id).or_insert_with(|| places.count());
    }

    /// Tells the breakers how a provider answered a submit.
    fn count(&self, submission: &Submission, answer: Result<(), &Error>) {
        let (breakers, now) = (&self.inner.breakers, self.inner.clock.monotonic());
        self.heed(&submission.provider, Asked::ToRun, answer);
        let fine = match answer.map_err(Error::kind) {
            Ok(()) => true,
            Err(ErrorKind::NotSent | ErrorKind::Unavailable | ErrorKind::OutcomeUnknown) => false,
            // What was refused says nothing of how the provider is.
            Err(_) => return,
        };
        // Each image comes from another host: that one of them is down is no reason to keep the
        // others waiting, or any tenant could stop them all.
        if self.inner.images.as_ref().is_some_and(|images| images.id() == submission.provider) {
            return;
        }
        breakers.record(&submission.provider, &submission.model, fine, now);
    }

    /// Remembers for all jobs what an answer says of the provider as such: that it wants to be left
    /// alone, or refuses our key.
    pub(super) fn heed(&self, provider: &ProviderId, asked: Asked, answer: Result<(), &Error>) {
        let (breakers, clock) = (&self.inner.breakers, &self.inner.clock);
        match answer.map_err(|e| (e.kind(), e.wait())) {
            Ok(()) => {
                if breakers.reopened(provider, asked) {
                    tracing::info!(%provider, "the provider takes our key again");
                }
            }
            Err((ErrorKind::RateLimited, wait)) => {
                breakers.cool_down(provider, wait.unwrap_or_else(|| backoff(1)), clock.monotonic());
            }
            Err((kind @ (ErrorKind::Unauthorized | ErrorKind::OverBudget), _)) => {
                if breakers.shut(provider, kind, asked, clock.now(), clock.monotonic()) {
                    let what = if kind == ErrorKind::Unauthorized { "key" } else { "account" };
                    tracing::error!(%provider, what, "the provider refuses us; nothing more is submitted to it until it takes a probe");
                }
            }
            Err(_) => {}
        }
    }

    /// Asks the provider about a submission whose outcome is not known; answers when to ask again.
    pub(super) async fn find(
        &self,
        planned: &PlannedStep,
        record: &StepRecord,
        route: &Route,
        means: &Means,
    ) -> Result<Option<Timestamp>, Halt> {
        let (Some(submission), Some(capabilities)) = (record.open_submission(), &means.capabilities) else {
            return Ok(None);
        };
        let cooling = self.inner.breakers.cooling(&submission.provider, self.inner.clock.monotonic());
        if !cooling.is_zero() {
            return Ok(Some(later(self.now(), cooling)));
        }
        let answer = self.ask(route.provider.find(submission)).await?;
        self.heed(&submission.provider, Asked::ToLook, answer.as_ref().map(|_| ()));
        if let Err(error) = &answer {
            tracing::warn!(job = %self.job.id, step = %planned.step, %error, "looking for a lost submission");
        }
        match step::after_find(record, planned, means, &answer, &self.inner.timing, self.now()) {
            Some(record) => self.checkpoint(record, None).await.map(|_| None),
            None => {
                let (again, settled) =
                    (later(self.now(), FIND_AGAIN), step::settled_at(submission, capabilities, &self.inner.timing));
                Ok(Some(if settled > self.now() { again.min(settled) } else { again }))
            }
        }
    }
}
