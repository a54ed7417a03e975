//! How a run lets go of its job: ends it, gives it up, or hands it back.

use std::time::Duration;

use crate::error::ErrorKind;
use crate::job::{Failure, JobOutput, JobState, StepId, StepRecord, StepState};
use crate::money::Usd;
use crate::pipeline::run::{Halt, Run, WRITE_AGAIN, is_open};
use crate::pipeline::step;
use crate::pipeline::task::{length_of, media_of};
use crate::queue::{Fenced, JobEnd, Release, Settlement};

impl Run {
    /// Every step that may be done is: ends the job.
    pub(super) async fn finish(&self) -> Result<(), Halt> {
        let (records, canceled) = {
            let shared = self.lock();
            (shared.records.clone(), shared.cancel)
        };
        let doubt = records.iter().find(|r| matches!(r.state, StepState::InDoubt { .. }));
        let failed = records.iter().find_map(|r| match &r.state {
            StepState::Failed { failure } => Some(failure.clone()),
            _ => None,
        });
        let end = if let Some(record) = doubt {
            let message = format!(
                "it is not known whether the provider accepted the {}; nothing was charged, and an operator will look",
                record.step
            );
            JobEnd::Failed(Failure::new(ErrorKind::OutcomeUnknown, message).at(record.step))
        } else if canceled {
            JobEnd::Canceled
        } else if let Some(failure) = failed {
            JobEnd::Failed(failure)
        } else {
            match media_of(&records, self.job.plan.final_video()) {
                Some(video) => JobEnd::Completed(JobOutput {
                    video: video.clone(),
                    thumbnail: media_of(&records, StepId::Thumbnail).cloned(),
                    duration: video.content.duration.unwrap_or_else(|| length_of(&self.job, &records)),
                }),
                None => JobEnd::Failed(Failure::new(ErrorKind::Internal, "the plan made no video")),
            }
        };
        self.settle(end, &records).await
    }

    /// Too many workers died at it, or attempts led nowhere: runs nothing any more. What may have been bought is in doubt.
    pub(super) async fn give_up_as_poison(&self) -> Result<(), Halt> {
        let open: Vec<StepRecord> = self.lock().records.iter().filter(|r| is_open(&r.state)).cloned().collect();
        for record in open {
            let Some(submission) = record.open_submission() else { continue };
            let free = submission.hold == Usd::ZERO;
            let failure = Failure::coded("poison", "the server failed at it");
            let record = if free { step::stopped(&record, failure) } else { step::doubted(&record) };
            self.checkpoint(record, None).await?;
        }
        let records = self.lock().records.clone();
        let message = "the server failed several times at this job, and gave it up";
        self.settle(JobEnd::Failed(Failure::coded("poison", message)), &records).await
    }

    pub(super) async fn settle(&self, end: JobEnd, records: &[StepRecord]) -> Result<(), Halt> {
        let mut job = self.job.clone();
        job.cost = self.lock().cost;
        job.ended_at = Some(self.inner.clock.now());
        job.steps = records.to_vec();
        match &end {
            JobEnd::Completed(output) => {
                job.state = JobState::Completed;
                job.progress = 100;
                job.output = Some(output.clone());
            }
            JobEnd::Failed(failure) => {
                job.state = JobState::Failed;
                job.failure = Some(failure.clone());
            }
            JobEnd::Canceled => job.state = JobState::Canceled,
        }
        let keep_hold = records
            .iter()
            .filter_map(|r| match &r.state {
                StepState::InDoubt { submission } => Some(submission.hold),
                _ => None,
            })
            .sum();
        let mut wait = WRITE_AGAIN.0;
        // Built once: a settlement that is written again must tell of the same event.
        let events: Vec<_> = loop {
            match self.inner.event(&job).await {
                Ok(event) => break event.into_iter().collect(),
                Err(error) => wait = self.write_again(error, wait).await?,
            }
        };
        let mut wait = WRITE_AGAIN.0;
        loop {
            let settlement = Settlement { claim: self.claim, end: end.clone(), keep_hold, events: events.clone() };
            match self.inner.queue.settle(settlement).await {
                Ok(Fenced::Stale) => return Err(Halt::Lost),
                Ok(_) => {
                    let code = job.failure.as_ref().map(|f| f.code.as_str());
                    tracing::info!(job = %job.id, state = job.state.as_str(), code, cost = %job.cost, "job ended");
                    return Ok(());
                }
                Err(error) => wait = self.write_again(error, wait).await?,
            }
        }
    }

    pub(super) async fn release(&self, delay: Duration, counts: bool) {
        let mut wait = WRITE_AGAIN.0;
        loop {
            match self.inner.queue.release(self.claim, Release { delay, counts }).await {
                Ok(_) => return,
                Err(error) => match self.write_again(error, wait).await {
                    Ok(longer) => wait = longer,
                    // The lease will end by itself.
                    Err(_) => return,
                },
            }
        }
    }
}
