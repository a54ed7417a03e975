//! Q16: holds, costs, charges, and what a retry or an operator makes of them.

use super::bench::{Bench, refused, seconds};
use crate::clock::later;
use crate::conformance::sample::{self, tenant};
use crate::{
    Claimed, ErrorKind, Fenced, Handle, Job, JobEnd, JobState, Limits, StepKind, StepState, TenantId, UsageFilter, Usd,
    Verdict, Witness,
};

const NO_LIMITS: fn() -> Limits = Limits::default;

/// A running job whose image was bought.
async fn with_image(bench: &Bench, owner: &TenantId) -> Claimed {
    let claimed = bench.running(owner).await;
    bench.write(claimed.claim, sample::done(StepKind::Image, 1), vec![sample::cost(StepKind::Image, 1)]).await;
    claimed
}

/// A failed job whose video step is in doubt; the image was bought.
async fn in_doubt(bench: &Bench, owner: &TenantId) -> Job {
    let claimed = with_image(bench, owner).await;
    bench.write(claimed.claim, sample::in_doubt(claimed.claim.job, StepKind::Video, 1), vec![]).await;
    let end = JobEnd::Failed(sample::failure());
    bench.settle_with(claimed.claim, end, sample::VIDEO_PRICE, vec![]).await;
    bench.get(&claimed.job).await
}

/// A job holds its plan's price from the start, and nothing after its end.
pub async fn q16_a_hold_lasts_until_the_end(bench: Bench) {
    for end in sample::ends() {
        let claimed = bench.running(&tenant("ann")).await;
        assert_eq!(claimed.job.held, sample::HOLD);
        assert_eq!(bench.usage(&claimed.job.tenant).await.held, sample::HOLD);
        bench.release(claimed.claim, seconds(0), true).await;
        let claim = bench.claim_one(claimed.claim.worker).await.claim;
        assert_eq!(bench.usage(&claimed.job.tenant).await.held, sample::HOLD);
        bench.settle(claim, end).await;
        assert_eq!(bench.get(&claimed.job).await.held, Usd::ZERO);
        assert_eq!(bench.usage(&claimed.job.tenant).await.held, Usd::ZERO);
    }
}

/// A submission's cost is recorded once, and comes out of the hold; another one is another cost.
pub async fn q16_a_cost_is_recorded_once(bench: Bench) {
    let owner = tenant("ann");
    let claimed = bench.running(&owner).await;
    let waiting =
        |revision| sample::record(StepKind::Image, revision, StepState::Waiting { not_before: super::start() });
    let bill = |ordinal| sample::cost(StepKind::Image, ordinal);
    for (revision, costs, total) in
        [(1, vec![bill(1)], 1), (2, vec![bill(1)], 1), (3, vec![bill(1), bill(2), bill(2)], 2), (4, vec![], 2)]
    {
        bench.write(claimed.claim, waiting(revision), costs).await;
        let job = bench.get(&claimed.job).await;
        assert_eq!(job.cost, sample::IMAGE_PRICE.times(total));
        assert_eq!(job.held, sample::HOLD - job.cost);
        let usage = bench.usage(&owner).await;
        assert_eq!((usage.cost, usage.held), (job.cost, job.held));
    }
    // After a rescue, the next worker may write the same bill again.
    bench.all_workers_die().await;
    let again = bench.claim_one(bench.worker().await).await;
    bench.write(again.claim, waiting(5), vec![bill(2)]).await;
    assert_eq!(bench.usage(&owner).await.cost, sample::IMAGE_PRICE.times(2));
}

/// Costs above the hold are recorded in full; a hold is never less than nothing.
pub async fn q16_an_overrun_is_recorded_in_full(bench: Bench) {
    let owner = tenant("ann");
    let claimed = bench.running(&owner).await;
    let costs = vec![sample::cost(StepKind::Video, 1), sample::cost(StepKind::Video, 2)];
    bench.write(claimed.claim, sample::done(StepKind::Video, 1), costs).await;
    let job = bench.get(&claimed.job).await;
    assert_eq!((job.cost, job.held), (sample::VIDEO_PRICE.times(2), Usd::ZERO));
    bench.complete(claimed.claim).await;
    let usage = bench.usage(&owner).await;
    assert_eq!((usage.cost, usage.charged, usage.held), (job.cost, job.cost, Usd::ZERO));
}

/// A tenant pays the costs of a job that completed or was canceled, and nothing for a failed one.
pub async fn q16_a_failed_job_is_free(bench: Bench) {
    for (owner, end) in ["ann", "bob", "cem"].map(tenant).into_iter().zip(sample::ends()) {
        let claimed = with_image(&bench, &owner).await;
        bench.settle(claimed.claim, end).await;
        let job = bench.get(&claimed.job).await;
        let usage = bench.usage(&owner).await;
        let expected = if job.state == JobState::Failed { Usd::ZERO } else { sample::IMAGE_PRICE };
        assert_eq!(usage.cost, sample::IMAGE_PRICE, "the operator was billed");
        assert_eq!((usage.charged, job.charge()), (expected, expected), "{:?}", job.state);
    }
}

/// A retry holds anew, keeps what was done, and starts its counts from zero.
pub async fn q16_a_retry_goes_on_from_what_was_done(bench: Bench) {
    let owner = tenant("ann");
    let claimed = with_image(&bench, &owner).await;
    bench.write(claimed.claim, sample::failed(claimed.claim.job, StepKind::Video, 1), vec![]).await;
    bench.release(claimed.claim, seconds(0), true).await;
    let claim = bench.claim_one(claimed.claim.worker).await.claim;
    bench.fail(claim).await;
    let failed = bench.get(&claimed.job).await;
    bench.clock.advance(seconds(5));

    let retried = bench.queue.retry(&owner, claim.job, sample::VIDEO_PRICE, &NO_LIMITS()).await.unwrap();
    assert_eq!((retried.state, retried.held), (JobState::Queued, sample::VIDEO_PRICE));
    assert_eq!((retried.attempts, retried.crashes, retried.cancel_requested), (0, 0, false));
    assert_eq!((retried.ended_at, &retried.failure, retried.version), (None, &None, failed.version + 1));
    let now = later(super::start(), seconds(5));
    let reopened: Vec<_> = failed.steps.iter().cloned().map(|step| step.reopened(None, now)).collect();
    assert_eq!(retried.steps, reopened);
    assert_eq!(bench.usage(&owner).await.held, sample::VIDEO_PRICE);
    assert_eq!(bench.complete(claim).await, Fenced::Stale, "the old claim is over");

    let claim = bench.claim_one(claim.worker).await.claim;
    bench.write(claim, sample::done(StepKind::Video, 3), vec![sample::cost(StepKind::Video, 2)]).await;
    bench.complete(claim).await;
    let usage = bench.usage(&owner).await;
    assert_eq!((usage.cost, usage.charged), (sample::HOLD, sample::HOLD), "now the first try is paid, too");
    assert_eq!(usage.held, Usd::ZERO);
}

/// A canceled job can be retried; its rows sum up right whichever way it ends.
pub async fn q16_a_canceled_job_can_be_retried(bench: Bench) {
    let owner = tenant("ann");
    let claimed = with_image(&bench, &owner).await;
    bench.queue.cancel(&owner, claimed.claim.job, None).await.unwrap();
    bench.settle(claimed.claim, JobEnd::Canceled).await;
    assert_eq!(bench.usage(&owner).await.charged, sample::IMAGE_PRICE);
    let retried = bench.queue.retry(&owner, claimed.claim.job, Usd::ZERO, &NO_LIMITS()).await.unwrap();
    assert!(!retried.cancel_requested);
    let claim = bench.claim_one(claimed.claim.worker).await.claim;
    bench.fail(claim).await;
    let usage = bench.usage(&owner).await;
    assert_eq!((usage.cost, usage.charged), (sample::IMAGE_PRICE, Usd::ZERO), "in the end it failed");
}

/// A job that is live, completed or in doubt is not retried, and nothing is held for trying.
pub async fn q16_a_retry_is_refused_where_it_could_buy_twice(bench: Bench) {
    let owner = tenant("ann");
    let claimed = bench.running(&owner).await;
    let id = claimed.claim.job;
    let retry = async |id| refused(bench.queue.retry(&owner, id, sample::HOLD, &NO_LIMITS()).await);
    assert_eq!(retry(id).await, ErrorKind::Conflict, "running");
    bench.release(claimed.claim, seconds(0), false).await;
    assert_eq!(retry(id).await, ErrorKind::Conflict, "queued");
    bench.complete(bench.claim_one(claimed.claim.worker).await.claim).await;
    assert_eq!(retry(id).await, ErrorKind::Conflict, "completed");
    let doubtful = in_doubt(&bench, &owner).await;
    assert_eq!(retry(doubtful.id).await, ErrorKind::Conflict, "in doubt");
    assert_eq!(bench.get(&doubtful).await, doubtful);
    assert_eq!(bench.usage(&owner).await.held, sample::VIDEO_PRICE);
}

/// A doubt of which a callback told meanwhile is none: a retry looks for the run that it named, and
/// buys nothing for it.
pub async fn q16_a_doubt_that_a_callback_cleared_is_retried(bench: Bench) {
    let owner = tenant("ann");
    let doubtful = in_doubt(&bench, &owner).await;
    let submission = doubtful.step(StepKind::Video).and_then(|step| step.open_submission()).unwrap().clone();
    let handle = Handle::new(sample::provider(), "run-7");
    bench
        .queue
        .witness(Witness { job: doubtful.id, submission: submission.id.clone(), handle: handle.clone() })
        .await
        .unwrap();
    let retried = bench.queue.retry(&owner, doubtful.id, sample::VIDEO_PRICE, &NO_LIMITS()).await.unwrap();
    assert_eq!((retried.state, retried.held), (JobState::Queued, sample::VIDEO_PRICE));
    let record = retried.step(StepKind::Video).unwrap();
    assert!(matches!(&record.state, StepState::Intent { submission: s } if *s == submission), "{record:?}");
    assert_eq!(retried.witness(&submission.id), Some(&handle));
    assert_eq!(bench.get(&retried).await, retried);
    assert_eq!(bench.usage(&owner).await.held, sample::VIDEO_PRICE, "held once");
}

/// What may have been bought stays held after the end, until somebody decides.
pub async fn q16_a_doubt_keeps_its_hold(bench: Bench) {
    let owner = tenant("ann");
    let job = in_doubt(&bench, &owner).await;
    assert_eq!((job.state, job.held), (JobState::Failed, sample::VIDEO_PRICE));
    assert_eq!(bench.usage(&owner).await.held, sample::VIDEO_PRICE);
    assert_eq!(refused(bench.queue.delete(&owner, job.id).await), ErrorKind::Conflict, "the hold would be lost");
    assert_eq!(bench.get(&job).await, job);
}

/// An operator decides a doubt: bought is a cost of ours, not bought is none. Then a retry may go on.
pub async fn q16_a_doubt_is_resolved_once(bench: Bench) {
    for (owner, verdict, cost) in
        [(tenant("ann"), Verdict::Bought, sample::HOLD), (tenant("bob"), Verdict::NotBought, sample::IMAGE_PRICE)]
    {
        let job = in_doubt(&bench, &owner).await;
        let resolved = bench.queue.resolve(&owner, job.id, verdict).await.unwrap();
        assert_eq!((resolved.state, resolved.held, resolved.cost), (JobState::Failed, Usd::ZERO, cost), "{verdict:?}");
        assert_eq!(resolved.version, job.version + 1);
        let step = resolved.step(StepKind::Video).unwrap();
        assert!(matches!(step.state, StepState::Failed { .. }) && step.attempts.len() == 1);
        assert_eq!(step.attempts[0].accepted, verdict == Verdict::Bought);
        assert_eq!(bench.get(&job).await, resolved);
        let usage = bench.usage(&owner).await;
        assert_eq!((usage.cost, usage.charged, usage.held), (cost, Usd::ZERO, Usd::ZERO), "{verdict:?}");
        assert_eq!(refused(bench.queue.resolve(&owner, job.id, verdict).await), ErrorKind::Conflict, "no doubt left");
        bench.queue.retry(&owner, job.id, sample::VIDEO_PRICE, &NO_LIMITS()).await.unwrap();
        let claim = bench.claim_one(bench.worker().await).await.claim;
        assert_eq!(refused(bench.queue.resolve(&owner, job.id, verdict).await), ErrorKind::Conflict, "it is live");
        bench.complete(claim).await;
        assert_eq!(bench.usage(&owner).await.charged, cost, "completed after all: the tenant pays what it cost");
    }
}

/// A usage report adds up exactly, line by line: by UTC day, step, provider and model.
pub async fn q16_usage_adds_up_by_day_and_step(bench: Bench) {
    let owner = tenant("ann");
    for _ in 0..2 {
        let claimed = with_image(&bench, &owner).await;
        // From 23:00 to 01:00 of the next day.
        for _ in 0..720 {
            bench.clock.advance(seconds(10));
            bench.beat(claimed.claim.worker, &[claimed.claim]).await;
        }
        bench.write(claimed.claim, sample::done(StepKind::Video, 1), vec![sample::cost(StepKind::Video, 1)]).await;
        bench.complete(claimed.claim).await;
    }
    with_image(&bench, &tenant("bob")).await;
    let usage = bench.usage(&owner).await;
    let lines: Vec<_> = usage.rows.iter().map(|r| (r.day.as_str(), r.step.as_str(), r.count, r.cost)).collect();
    let expected = [
        ("2026-01-31", "image", 1, sample::IMAGE_PRICE),
        ("2026-02-01", "image", 1, sample::IMAGE_PRICE),
        ("2026-02-01", "video", 2, sample::VIDEO_PRICE.times(2)),
    ];
    assert_eq!(lines, expected);
    assert!(usage.rows.iter().all(|r| r.provider == sample::provider()));
    assert_eq!(usage.rows.iter().map(|r| r.cost).sum::<Usd>(), usage.cost);
    assert_eq!(usage.charged, sample::HOLD.times(2));

    let midnight = later(super::start(), seconds(3600));
    let part = async |from, to| bench.queue.usage(&owner, &UsageFilter { from, to }).await.unwrap().cost;
    assert_eq!(part(None, Some(midnight)).await, sample::IMAGE_PRICE);
    assert_eq!(part(Some(midnight), None).await, usage.cost - sample::IMAGE_PRICE);
    let start = super::start();
    assert_eq!(part(Some(start), Some(start)).await, Usd::ZERO, "the end is not included");
    assert_eq!(part(Some(start), Some(later(start, seconds(1)))).await, sample::IMAGE_PRICE, "the start is");
}

/// Deleting a job's record changes nothing in the ledger.
pub async fn q16_the_ledger_outlives_its_job(bench: Bench) {
    let owner = tenant("ann");
    let claimed = with_image(&bench, &owner).await;
    assert_eq!(refused(bench.queue.delete(&owner, claimed.claim.job).await), ErrorKind::Conflict, "it is live");
    bench.complete(claimed.claim).await;
    let usage = bench.usage(&owner).await;
    bench.queue.delete(&owner, claimed.claim.job).await.unwrap();
    assert_eq!(refused(bench.queue.get(&owner, claimed.claim.job).await), ErrorKind::NotFound);
    assert_eq!(refused(bench.queue.delete(&owner, claimed.claim.job).await), ErrorKind::NotFound);
    assert_eq!(bench.usage(&owner).await, usage);
    assert_eq!(bench.complete(claimed.claim).await, Fenced::Stale);
}
