//! Q7 and Q9: moments, delays, and hints that wake.

use std::future::Future;
use std::time::Duration;

use super::bench::{Bench, refused, seconds};
use crate::conformance::sample::{self, tenant};
use crate::{ErrorKind, Fenced, JobState, StepKind, Usd};

/// How long a hint may take in real time before it counts as lost: the second that Q9 allows,
/// and what a busy machine needs.
const HINT: Duration = Duration::from_secs(10);

async fn in_time<T>(what: &str, hint: impl Future<Output = T>) -> T {
    tokio::time::timeout(HINT, hint).await.unwrap_or_else(|_| panic!("{what}: no hint came"))
}

/// A job with a delay does not run early, and its claimers know when to look.
pub async fn q7_a_delayed_job_does_not_run_early(bench: Bench) {
    let mut new = sample::new_job(&tenant("ann"));
    new.delay = seconds(60);
    let job = bench.create(new).await;
    assert_eq!(job.state, JobState::Queued);
    let worker = bench.worker().await;
    let batch = bench.queue.claim(worker, 1).await.unwrap();
    assert!(batch.jobs.is_empty());
    assert_eq!(batch.next_due, Some(seconds(60)));
    bench.clock.advance(seconds(59));
    bench.beat(worker, &[]).await;
    let batch = bench.queue.claim(worker, 1).await.unwrap();
    assert!(batch.jobs.is_empty());
    assert_eq!(batch.next_due, Some(seconds(1)));
    bench.clock.advance(seconds(1));
    assert_eq!(bench.claim_one(worker).await.claim.job, job.id);
    assert_eq!(bench.queue.claim(worker, 1).await.unwrap().next_due, None);
}

/// A release waits as long as it says; only one that counts uses up an attempt.
pub async fn q7_a_release_waits_and_counts_as_it_says(bench: Bench) {
    let mut claimed = bench.running(&tenant("ann")).await;
    let worker = claimed.claim.worker;
    for (counts, attempts) in [(true, 1), (false, 1), (true, 2)] {
        assert_eq!(bench.release(claimed.claim, seconds(5), counts).await, Fenced::Applied);
        let job = bench.get(&claimed.job).await;
        assert_eq!((job.state, job.attempts, job.crashes), (JobState::Queued, attempts, 0));
        bench.clock.advance(seconds(4));
        assert!(bench.claim(worker, 1).await.is_empty(), "it is too early");
        bench.clock.advance(seconds(1));
        claimed = bench.claim_one(worker).await;
        bench.beat(worker, &[claimed.claim]).await;
    }
}

/// A job whose end was asked for is handed back to be ended; with money out, or after a failure,
/// it waits all the same.
pub async fn q7_a_release_makes_no_canceled_job_wait(bench: Bench) {
    for (open, counts) in [(false, false), (true, false), (false, true)] {
        let claimed = bench.running(&tenant("ann")).await;
        if open {
            bench.write(claimed.claim, sample::intent(claimed.claim.job, StepKind::Image, 1), vec![]).await;
        }
        bench.queue.cancel(&claimed.job.tenant, claimed.claim.job, None).await.unwrap();
        bench.release(claimed.claim, seconds(3600), counts).await;
        assert_eq!(bench.claim(claimed.claim.worker, 1).await.is_empty(), open || counts);
    }
}

/// A wake makes a waiting job ready, and leaves every other one as it is.
pub async fn q7_a_wake_makes_a_waiting_job_ready(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    let (worker, job) = (claimed.claim.worker, claimed.claim.job);
    bench.release(claimed.claim, seconds(3600), false).await;
    assert!(bench.claim(worker, 1).await.is_empty());
    bench.second.wake(job).await.unwrap();
    let again = bench.claim_one(worker).await;
    assert_eq!(again.claim.job, job);
    bench.complete(again.claim).await;
    let ended = bench.get(&claimed.job).await;
    bench.queue.wake(job).await.unwrap();
    bench.queue.wake(crate::JobId::new()).await.unwrap();
    assert_eq!(bench.get(&claimed.job).await, ended, "a late callback changes nothing");
}

/// A hint of work that came before the wait is not lost, and one during it wakes.
pub async fn q9_ready_wakes_a_claimer(bench: Bench) {
    bench.job(&tenant("ann")).await;
    in_time("created before the wait", bench.queue.ready()).await;
    let worker = bench.worker().await;
    let claimed = bench.claim_one(worker).await;
    let waiter = tokio::spawn({
        let queue = bench.queue.clone();
        async move {
            // A hint may be stale: whoever waits looks, and waits again.
            loop {
                queue.ready().await;
                let jobs = queue.claim(worker, 1).await.unwrap().jobs;
                if !jobs.is_empty() {
                    return jobs;
                }
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    bench.release(claimed.claim, Duration::ZERO, false).await;
    let again = in_time("released during the wait", waiter).await.unwrap();
    assert_eq!(again[0].claim.job, claimed.claim.job);
}

/// A cancel, a callback and an event each call for attention.
pub async fn q9_signalled_wakes_a_worker(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    bench.queue.wake(claimed.claim.job).await.unwrap();
    in_time("a callback", bench.queue.signalled()).await;
    bench.queue.cancel(&claimed.job.tenant, claimed.claim.job, None).await.unwrap();
    in_time("a cancel", bench.queue.signalled()).await;
    let events = vec![sample::event("https://ann.example/hook")];
    bench.settle_with(claimed.claim, crate::JobEnd::Canceled, Usd::ZERO, events).await;
    in_time("an event", bench.queue.signalled()).await;
    let owner = &claimed.job.tenant;
    let courier = bench.worker().await;
    let delivery = bench.queue.claim_deliveries(courier, 1).await.unwrap().deliveries.remove(0);
    bench.queue.settle_delivery(&delivery, crate::DeliveryOutcome::Delivered).await.unwrap();
    bench.queue.redeliver(owner, &delivery.id).await.unwrap();
    in_time("an event to be told again", bench.queue.signalled()).await;
}

/// No claim needs a hint.
pub async fn q9_work_is_found_without_hints(bench: Bench) {
    let worker = bench.second.register("deaf").await.unwrap();
    let job = bench.job(&tenant("ann")).await;
    assert_eq!(bench.second.claim(worker, 1).await.unwrap().jobs[0].claim.job, job.id);
}

/// A watch answers at once if there is news, and as soon as there is.
pub async fn q9_a_watch_answers_a_newer_version(bench: Bench) {
    let owner = tenant("ann");
    let job = bench.job(&owner).await;
    let known = in_time("a version from before", bench.queue.watch(&owner, job.id, 0, seconds(60))).await.unwrap();
    assert_eq!(known, job);
    let watcher = tokio::spawn({
        let (queue, owner) = (bench.queue.clone(), owner.clone());
        async move { queue.watch(&owner, job.id, job.version, seconds(60)).await.unwrap() }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    let claimed = bench.claim_one(bench.worker().await).await;
    let seen = in_time("a claim", watcher).await.unwrap();
    assert!(seen.version > job.version);
    assert_eq!(seen.state, JobState::Processing);
    bench.write(claimed.claim, sample::done(StepKind::Image, 1), vec![]).await;
    let seen = in_time("a checkpoint", bench.queue.watch(&owner, job.id, seen.version, seconds(60))).await.unwrap();
    assert_eq!(seen.steps.len(), 1);
}

/// A watch without news answers the job as it is when its patience ends.
pub async fn q9_a_watch_ends_with_its_patience(bench: Bench) {
    let owner = tenant("ann");
    let job = bench.job(&owner).await;
    let watcher = tokio::spawn({
        let (queue, owner) = (bench.queue.clone(), owner.clone());
        async move { queue.watch(&owner, job.id, job.version, seconds(5)).await.unwrap() }
    });
    let ticking = async {
        loop {
            tokio::time::sleep(Duration::from_millis(10)).await;
            bench.clock.advance(seconds(1));
        }
    };
    let seen = tokio::select! {
        seen = in_time("patience", watcher) => seen.unwrap(),
        () = ticking => unreachable!("it ticks for ever"),
    };
    assert_eq!(seen, job);
    let nobody = bench.queue.watch(&owner, crate::JobId::new(), 0, seconds(5)).await;
    assert_eq!(refused(nobody), ErrorKind::NotFound);
}
