//! Q18: what may be forgotten, and what not.

use std::time::Duration;

use super::bench::{Bench, roomy, seconds};
use crate::conformance::sample::{self, tenant};
use crate::{
    DeliveryOutcome, Idempotency, JobEnd, JobId, MAX_BATCH, NewEvent, Retention, StepKind, TenantId, Usd, Verdict,
};

const DAY: u64 = 24 * 3600;

async fn end(bench: &Bench, owner: &TenantId, end: JobEnd, keep_hold: Usd, events: Vec<NewEvent>) -> JobId {
    let claimed = bench.running(owner).await;
    if keep_hold != Usd::ZERO {
        bench.write(claimed.claim, sample::in_doubt(claimed.claim.job, StepKind::Video, 1), vec![]).await;
    }
    bench.settle_with(claimed.claim, end, keep_hold, events).await;
    bench.queue.deregister(claimed.claim.worker).await.unwrap();
    claimed.claim.job
}

async fn completed(bench: &Bench, owner: &TenantId) -> JobId {
    end(bench, owner, JobEnd::Completed(sample::output()), Usd::ZERO, vec![]).await
}

async fn failed(bench: &Bench, owner: &TenantId) -> JobId {
    end(bench, owner, JobEnd::Failed(sample::failure()), Usd::ZERO, vec![]).await
}

async fn expired(bench: &Bench, retention: &Retention) -> Vec<JobId> {
    let mut ids = bench.queue.expired(retention, MAX_BATCH).await.unwrap();
    ids.sort_unstable();
    ids
}

/// Ended jobs are kept as long as their kind is; live ones are kept.
pub async fn q18_jobs_are_kept_for_their_time(bench: Bench) {
    let owner = tenant("ann");
    let done = completed(&bench, &owner).await;
    let broken = failed(&bench, &owner).await;
    let canceled = bench.job(&owner).await.id;
    bench.queue.cancel(&owner, canceled, None).await.unwrap();
    bench.job(&owner).await;
    let retention = Retention::default();
    bench.clock.advance(seconds(DAY - 1));
    assert!(expired(&bench, &retention).await.is_empty());
    bench.clock.advance(seconds(2));
    assert_eq!(expired(&bench, &retention).await, [done]);
    bench.clock.advance(seconds(7 * DAY));
    assert_eq!(expired(&bench, &retention).await, [done, broken, canceled]);
    assert_eq!(bench.list(&owner).await.len(), 4, "asking forgets nothing");
    assert_eq!(bench.queue.prune(&[done, broken, canceled]).await.unwrap(), 3);
    assert_eq!(bench.list(&owner).await.len(), 1);
    assert_eq!(bench.queue.prune(&[done]).await.unwrap(), 0);
}

/// At most so many of each kind and tenant are kept: the newest.
pub async fn q18_jobs_are_kept_up_to_a_count(bench: Bench) {
    let (ann, bob) = (tenant("ann"), tenant("bob"));
    let mut done = Vec::new();
    for _ in 0..5 {
        done.push(completed(&bench, &ann).await);
        bench.clock.advance(seconds(1));
    }
    for _ in 0..2 {
        completed(&bench, &bob).await;
        failed(&bench, &ann).await;
        bench.clock.advance(seconds(1));
    }
    let retention = Retention { max_completed: Some(2), max_failed: Some(2), ..Retention::default() };
    assert_eq!(expired(&bench, &retention).await, done[..3]);
    assert_eq!(bench.queue.expired(&retention, 2).await.unwrap().len(), 2);
    let all = Retention { max_completed: Some(0), max_failed: Some(0), ..Retention::default() };
    assert_eq!(expired(&bench, &all).await.len(), 9);
}

/// A job with an open hold or an event on its way is not forgotten, whoever asks.
pub async fn q18_what_is_still_needed_is_kept(bench: Bench) {
    let owner = tenant("ann");
    let live = bench.create(roomy(&owner)).await.id;
    let worker = bench.worker().await;
    let claim = bench.claim_one(worker).await.claim;
    bench.release(claim, seconds(100 * DAY), false).await;
    let held = end(&bench, &owner, JobEnd::Failed(sample::failure()), sample::VIDEO_PRICE, vec![]).await;
    let event = sample::event("https://ann.example/hook");
    let told = end(&bench, &owner, JobEnd::Canceled, Usd::ZERO, vec![event.clone()]).await;
    bench.clock.advance(seconds(30 * DAY));
    let now = Retention { completed: Duration::ZERO, failed: Duration::ZERO, ..Retention::default() };
    assert!(expired(&bench, &now).await.is_empty());
    assert_eq!(bench.queue.prune(&[live, held, told]).await.unwrap(), 0);

    bench.queue.resolve(&owner, held, Verdict::NotBought).await.unwrap();
    let courier = bench.worker().await;
    let delivery = bench.queue.claim_deliveries(courier, 1).await.unwrap().deliveries.remove(0);
    assert_eq!(expired(&bench, &now).await, [held]);
    bench.queue.settle_delivery(&delivery, DeliveryOutcome::Delivered).await.unwrap();
    assert_eq!(expired(&bench, &now).await, [held, told]);
    bench.queue.redeliver(&owner, &event.id).await.unwrap();
    assert_eq!(bench.queue.prune(&[live, held, told]).await.unwrap(), 1, "it is to be told again");
    let delivery = bench.queue.claim_deliveries(courier, 1).await.unwrap().deliveries.remove(0);
    bench.queue.settle_delivery(&delivery, DeliveryOutcome::GivenUp { reason: "410".into() }).await.unwrap();
    assert_eq!(bench.queue.prune(&[told]).await.unwrap(), 1);
    assert!(bench.deliveries(&owner).await.is_empty(), "the log of a forgotten job goes with it");
}

/// Forgetting a job leaves the ledger and the idempotency row.
pub async fn q18_ledger_and_keys_are_kept(bench: Bench) {
    let owner = tenant("ann");
    let mut new = sample::new_job(&owner);
    new.idempotency = Some(Idempotency { key: "k".into(), hash: "a".into() });
    bench.create(new.clone()).await;
    let claimed = bench.claim_one(bench.worker().await).await;
    bench.write(claimed.claim, sample::done(StepKind::Image, 1), vec![sample::cost(StepKind::Image, 1)]).await;
    bench.complete(claimed.claim).await;
    let usage = bench.usage(&owner).await;
    assert_eq!(bench.queue.prune(&[claimed.claim.job]).await.unwrap(), 1);
    assert_eq!(bench.usage(&owner).await, usage);
    new.id = JobId::new();
    assert_eq!(super::bench::refused(bench.queue.enqueue(new).await), crate::ErrorKind::Conflict);
}

/// One call forgets so many and no more.
pub async fn q18_forgetting_is_bounded(bench: Bench) {
    let owner = tenant("ann");
    let ids = bench.crowd(MAX_BATCH + 30, || roomy(&owner)).await;
    for some in ids.chunks(64) {
        let cancels = some.iter().map(|id| bench.queue.cancel(&owner, *id, None));
        futures::future::try_join_all(cancels).await.unwrap();
    }
    bench.clock.advance(seconds(8 * DAY));
    let first = bench.queue.expired(&Retention::default(), usize::MAX).await.unwrap();
    assert!(!first.is_empty() && first.len() <= MAX_BATCH);
    let mut gone = bench.queue.prune(&ids).await.unwrap();
    assert!(gone <= MAX_BATCH as u64);
    while gone < ids.len() as u64 {
        let more = bench.queue.expired(&Retention::default(), MAX_BATCH).await.unwrap();
        let pruned = bench.queue.prune(&more).await.unwrap();
        assert!(pruned > 0);
        gone += pruned;
    }
    assert!(bench.list(&owner).await.is_empty());
}
