//! What else tells what became of a submission whose answer was lost: a callback, or the spool.

use std::time::Duration;

use crate::error::ErrorKind;
use crate::job::{StepRecord, StepState};
use crate::pipeline::Route;
use crate::pipeline::route::Asked;
use crate::pipeline::run::{Halt, Run};
use crate::pipeline::step::{self, Means};
use crate::provider::{Handle, Spool, Submission};

/// How long a store that is away is left alone before the spool is looked at again.
const SPOOL_AGAIN: Duration = Duration::from_secs(5);
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
    /// What somebody else than the submit's answer tells of a lost submission: a callback, or the
    /// answer itself, which an earlier process kept.
    pub(super) async fn evidence(
        &self,
        record: &StepRecord,
        means: &Means,
        route: Option<&Route>,
    ) -> Result<Evidence, Halt> {
        let StepState::Intent { submission } = &record.state else { return Ok(Evidence::Nothing) };
        if means.calls_back {
            self.hear().await;
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
                Evidence::Ask(SPOOL_AGAIN)
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
        // Who does not answer is asked again; but not for ever: the callback was signed.
        if self.now() < step::told_by(submission, capabilities, means, &self.inner.timing) {
            return Ok(Evidence::Ask(error.retry_after().unwrap_or(WITNESS_AGAIN)));
        }
        Ok(Evidence::Of(handle))
    }

    /// Reads what callbacks told. Asked for whether one is known to have come or not, since the hint
    /// that it did may get lost (Q9).
    pub(super) async fn hear(&self) {
        match self.inner.queue.get(&self.job.tenant, self.job.id).await {
            Ok(job) => self.lock().witnesses = job.witnesses,
            Err(error) => tracing::warn!(job = %self.job.id, %error, "reading what callbacks told"),
        }
    }

    /// What callbacks told of an open submission.
    pub(super) fn told(&self, submission: &Submission) -> Option<Handle> {
        self.lock().witnesses.iter().find(|w| w.submission == submission.id).map(|w| w.handle.clone())
    }
}
