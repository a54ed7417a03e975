//! What others tell of a submission whose answer was lost: a callback, or what an earlier process
//! left in the spool.

use std::time::Duration;

use crate::error::ErrorKind;
use crate::job::{StepRecord, StepState};
use crate::pipeline::route::Asked;
use crate::pipeline::run::{Halt, Run};
use crate::pipeline::step::{self, Means};
use crate::pipeline::{OnUnknown, PlannedStep, Route};
use crate::provider::{Handle, Spool, Submission};

/// How long a store or a queue that is away is left alone before evidence is looked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How often a provider is asked whether it knows the run that a callback named.
const WITNESS_AGAIN: Duration = Duration::from_secs(15);

/// What is known of a lost submission beside what its provider makes of its id.
pub(super) enum Evidence {
    /// Nothing.
    Nothing,
    /// It is this run.
    Of(Handle),
    /// Whoever knows has to be asked again: nothing is decided for so long.
    Ask(Duration),
}

impl Run {
    /// What can be done about the open submission of a step.
    pub(super) fn means(&self, planned: &PlannedStep, record: &StepRecord, route: Option<&Route>) -> Means {
        let capabilities = route.map(|r| r.provider.capabilities());
        let submission = record.open_submission();
        let chosen = |s: &Submission| {
            planned.routes.iter().find(|r| r.provider == s.provider && r.model == s.model).map(|r| r.price)
        };
        let price = submission.and_then(chosen);
        Means {
            on_unknown: route.zip(price).map_or(OnUnknown::Park, |(route, price)| route.on_unknown(price)),
            calls_back: self.inner.callbacks.is_some() && capabilities.as_ref().is_some_and(|c| c.callback),
            capabilities,
        }
    }

    /// What somebody else than the submit's answer tells of a lost submission: a callback, or the
    /// answer itself, which an earlier process kept.
    pub(super) async fn evidence(
        &self,
        record: &StepRecord,
        means: &Means,
        route: Option<&Route>,
    ) -> Result<Evidence, Halt> {
        let StepState::Intent { submission } = &record.state else { return Ok(Evidence::Nothing) };
        if means.calls_back && !self.hear().await && self.told(submission).is_none() {
            // Whether it was bought may lie in a queue that cannot be read: nothing is decided without.
            return Ok(Evidence::Ask(LOOK_AGAIN));
        }
        if let (Some(handle), Some(route)) = (self.told(submission), route)
            && handle.provider == submission.provider
        {
            match self.verify(record, submission, means, route, handle).await? {
                Evidence::Nothing => {}
                evidence => return Ok(evidence),
            }
        }
        if !means.capabilities.as_ref().is_some_and(|c| c.spools) {
            return Ok(Evidence::Nothing);
        }
        let spool = Spool::new(self.inner.store.clone(), &submission.id).map_err(Halt::Fault)?;
        Ok(match self.ask(spool.kept()).await? {
            Ok(Some(output)) => Evidence::Of(Handle::spooled(submission.provider.clone(), &submission.id, &output)),
            Ok(None) => Evidence::Nothing,
            // Whether it was paid for lies in a store that is away: nothing is decided without it.
            Err(error) => {
                tracing::warn!(job = %self.job.id, step = %record.step, %error, "the spool cannot be looked at");
                Evidence::Ask(LOOK_AGAIN)
            }
        })
    }

    /// Asks the provider for the run that a callback named. One that it does not know is none: were
    /// it believed, the step would be paid for and lost, whatever the submission really bought.
    async fn verify(
        &self,
        record: &StepRecord,
        submission: &Submission,
        means: &Means,
        route: &Route,
        handle: Handle,
    ) -> Result<Evidence, Halt> {
        let Some(capabilities) = &means.capabilities else { return Ok(Evidence::Nothing) };
        let cooling = self.inner.breakers.cooling(&handle.provider, self.inner.clock.monotonic());
        if !cooling.is_zero() {
            return Ok(Evidence::Ask(cooling));
        }
        let seen = self.ask(route.provider.poll(&handle)).await?;
        self.heed(&handle.provider, Asked::ToLook, seen.as_ref().map(|_| ()));
        let Err(error) = seen else { return Ok(Evidence::Of(handle)) };
        tracing::warn!(job = %self.job.id, step = %record.step, %error, "looking for the run that a callback named");
        if error.kind() == ErrorKind::NotFound {
            // The claim is kept meanwhile, so that no number of calls makes a number of looks.
            self.rest(capabilities.poll_floor).await?;
            return Ok(Evidence::Nothing);
        }
        // Who does not answer is asked again, for as long as anybody could still tell. After that it is
        // in doubt: a run that nobody has seen is never believed.
        let told_by = step::told_by(submission, capabilities, means, &self.inner.timing);
        let again = error.wait().unwrap_or(WITNESS_AGAIN);
        Ok(if self.now() < told_by { Evidence::Ask(again) } else { Evidence::Nothing })
    }

    /// Reads what callbacks told; false if the queue is away. Asked for whether one is known to have
    /// come or not, since the hint that it did may get lost (Q9).
    pub(super) async fn hear(&self) -> bool {
        match self.inner.queue.get(&self.job.tenant, self.job.id).await {
            Ok(job) => {
                self.lock().witnesses = job.witnesses;
                true
            }
            Err(error) => {
                tracing::warn!(job = %self.job.id, %error, "reading what callbacks told");
                error.kind() != ErrorKind::Unavailable
            }
        }
    }

    /// What callbacks told of an open submission.
    pub(super) fn told(&self, submission: &Submission) -> Option<Handle> {
        self.lock().witnesses.iter().find(|w| w.submission == submission.id).map(|w| w.handle.clone())
    }
}
