//! Q11 and Q14: what a create is checked against.

use std::collections::HashSet;

use super::bench::{Bench, refused, seconds};
use crate::conformance::sample::{self, tenant};
use crate::{ErrorKind, Idempotency, Limits, NewJob, StepKind, TenantId, Usd, Window};

const DAY: u64 = 24 * 3600;

fn keyed(owner: &TenantId, hash: &str) -> NewJob {
    let idempotency = Some(Idempotency { key: "order-7".into(), hash: hash.into() });
    NewJob { idempotency, ..sample::new_job(owner) }
}

/// The same key and hash is the same job, as it is by then; it holds nothing twice.
pub async fn q11_the_same_key_is_the_same_job(bench: Bench) {
    let owner = tenant("ann");
    let first = bench.queue.enqueue(keyed(&owner, "a")).await.unwrap();
    assert!(!first.replayed);
    let claimed = bench.claim_one(bench.worker().await).await;
    let again = bench.second.enqueue(keyed(&owner, "a")).await.unwrap();
    assert!(again.replayed);
    assert_eq!(again.job, claimed.job);
    assert_eq!(bench.usage(&owner).await.held, sample::HOLD);
    assert_eq!(bench.list(&owner).await.len(), 1);
}

/// A replay is answered even where a new job would be refused.
pub async fn q11_a_replay_is_no_new_job_to_limits(bench: Bench) {
    let mut new = keyed(&tenant("ann"), "a");
    new.limits.live_jobs = Some(1);
    new.limits.creates = Some(Window { limit: 1, per: seconds(60) });
    let first = bench.create(new.clone()).await;
    let again = bench.queue.enqueue(NewJob { id: crate::JobId::new(), ..new }).await.unwrap();
    assert_eq!((again.replayed, again.job.id), (true, first.id));
}

/// The same key with another hash is a conflict.
pub async fn q11_another_hash_is_a_conflict(bench: Bench) {
    let owner = tenant("ann");
    let first = bench.create(keyed(&owner, "a")).await;
    assert_eq!(refused(bench.queue.enqueue(keyed(&owner, "b")).await), ErrorKind::Conflict);
    assert_eq!(bench.list(&owner).await, [first]);
}

/// Tenants do not share keys.
pub async fn q11_keys_belong_to_a_tenant(bench: Bench) {
    bench.create(keyed(&tenant("ann"), "a")).await;
    let other = bench.queue.enqueue(keyed(&tenant("bob"), "b")).await.unwrap();
    assert!(!other.replayed);
}

/// Sixty-four creates with one key at once make one job, and all of them answer it.
pub async fn q11_racing_creates_make_one_job(bench: Bench) {
    let owner = tenant("ann");
    let racers: Vec<_> = (0..64)
        .map(|n| {
            let queue = if n % 2 == 0 { bench.queue.clone() } else { bench.second.clone() };
            let new = keyed(&owner, "a");
            tokio::spawn(async move { queue.enqueue(new).await.unwrap() })
        })
        .collect();
    let (mut ids, mut first) = (HashSet::new(), 0);
    for racer in racers {
        let answer = racer.await.unwrap();
        ids.insert(answer.job.id);
        first += usize::from(!answer.replayed);
    }
    assert_eq!((ids.len(), first), (1, 1));
    assert_eq!(bench.usage(&owner).await.held, sample::HOLD);
}

/// A key outlives its job: the same request is then a conflict, not a second purchase.
pub async fn q11_a_key_outlives_its_job(bench: Bench) {
    let owner = tenant("ann");
    let job = bench.create(keyed(&owner, "a")).await;
    bench.queue.cancel(&owner, job.id, None).await.unwrap();
    bench.queue.delete(&owner, job.id).await.unwrap();
    for hash in ["a", "b"] {
        assert_eq!(refused(bench.queue.enqueue(keyed(&owner, hash)).await), ErrorKind::Conflict);
    }
    assert!(bench.list(&owner).await.is_empty());
}

/// A key is free again after 24 hours, and not before.
pub async fn q11_a_key_lives_for_a_day(bench: Bench) {
    let owner = tenant("ann");
    let first = bench.create(keyed(&owner, "a")).await;
    bench.clock.advance(seconds(DAY - 1));
    assert!(bench.queue.enqueue(keyed(&owner, "a")).await.unwrap().replayed);
    bench.clock.advance(seconds(1));
    let second = bench.queue.enqueue(keyed(&owner, "b")).await.unwrap();
    assert!(!second.replayed);
    assert_ne!(second.job.id, first.id);
    assert!(bench.queue.enqueue(keyed(&owner, "b")).await.unwrap().replayed);
}

/// So many creates in a window; the refusal says how long the window still lasts.
pub async fn q14_creates_are_limited_by_window(bench: Bench) {
    let owner = tenant("ann");
    let create = async || {
        let mut new = sample::new_job(&owner);
        new.limits.creates = Some(Window { limit: 2, per: seconds(60) });
        bench.queue.enqueue(new).await
    };
    bench.clock.advance(seconds(50));
    create().await.unwrap();
    let job = create().await.unwrap().job;
    bench.queue.cancel(&owner, job.id, None).await.unwrap();
    let error = create().await.unwrap_err();
    assert_eq!((error.kind(), error.retry_after()), (ErrorKind::RateLimited, Some(seconds(10))));
    let other = sample::new_job(&tenant("bob"));
    bench.create(other).await;
    bench.clock.advance(seconds(10));
    create().await.unwrap();
    create().await.unwrap();
    assert_eq!(refused(create().await), ErrorKind::RateLimited);
}

/// So many jobs queued or processing at once.
pub async fn q14_live_jobs_are_limited(bench: Bench) {
    let owner = tenant("ann");
    let create = async || {
        let mut new = sample::new_job(&owner);
        new.limits.live_jobs = Some(2);
        bench.queue.enqueue(new).await
    };
    create().await.unwrap();
    let claimed = bench.claim_one(bench.worker().await).await;
    create().await.unwrap();
    let error = create().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RateLimited);
    assert!(error.retry_after().is_some());
    bench.fail(claimed.claim).await;
    let limits = Limits { live_jobs: Some(1), ..Limits::default() };
    let retry = bench.queue.retry(&owner, claimed.claim.job, sample::HOLD, &limits).await;
    assert_eq!(refused(retry), ErrorKind::RateLimited, "a retry is a live job, too");
    create().await.unwrap();
}

/// Held and spent together never pass the budget, to the micro-dollar, however creates race.
pub async fn q14_racing_creates_keep_the_budget(bench: Bench) {
    let owner = tenant("ann");
    let racers: Vec<_> = (0..100)
        .map(|n| {
            let queue = if n % 2 == 0 { bench.queue.clone() } else { bench.second.clone() };
            let mut new = sample::new_job(&owner);
            let limit = sample::HOLD.times(11) - Usd::from_micros(1);
            new.limits.budget = Some(Window { limit, per: seconds(DAY) });
            tokio::spawn(async move { queue.enqueue(new).await.map_err(|e| e.kind()) })
        })
        .collect();
    let mut created = 0;
    for racer in racers {
        match racer.await.unwrap() {
            Ok(_) => created += 1,
            Err(kind) => assert_eq!(kind, ErrorKind::OverBudget),
        }
    }
    assert_eq!(created, 10);
    assert_eq!(bench.usage(&owner).await.held, sample::HOLD.times(10));
}

/// What was spent counts in its window; what was held and given back, or waived, does not.
pub async fn q14_the_budget_counts_what_was_spent(bench: Bench) {
    let owner = tenant("ann");
    let worker = bench.worker().await;
    let create = async || {
        let mut new = sample::new_job(&owner);
        new.limits.budget = Some(Window { limit: sample::HOLD + sample::IMAGE_PRICE, per: seconds(3600) });
        bench.queue.enqueue(new).await
    };
    // Billed, but failed: waived. Then billed 10 cents of 60, and completed.
    for completes in [false, true] {
        create().await.unwrap();
        let claimed = bench.claim_one(worker).await;
        bench.write(claimed.claim, sample::done(StepKind::Image, 1), vec![sample::cost(StepKind::Image, 1)]).await;
        let job = bench.get(&claimed.job).await;
        assert_eq!((job.cost, job.held), (sample::IMAGE_PRICE, sample::VIDEO_PRICE), "spent is no longer held");
        if completes {
            bench.complete(claimed.claim).await
        } else {
            bench.fail(claimed.claim).await
        };
    }
    let third = create().await.unwrap().job;
    assert_eq!(refused(create().await), ErrorKind::OverBudget, "10 spent, 60 held");
    bench.queue.cancel(&owner, third.id, None).await.unwrap();
    create().await.unwrap();
    assert_eq!(refused(create().await), ErrorKind::OverBudget);
    let limits = Limits { budget: Some(Window { limit: sample::HOLD, per: seconds(3600) }), ..Limits::default() };
    let retry = bench.queue.retry(&owner, third.id, sample::HOLD, &limits).await;
    assert_eq!(refused(retry), ErrorKind::OverBudget, "a retry holds, too");
}

/// A new window starts with nothing spent; what is held stays held.
pub async fn q14_a_budget_starts_anew_with_its_window(bench: Bench) {
    let owner = tenant("ann");
    let create = async || {
        let mut new = sample::new_job(&owner);
        new.limits.budget = Some(Window { limit: sample::HOLD, per: seconds(3600) });
        bench.queue.enqueue(new).await
    };
    create().await.unwrap();
    let claimed = bench.claim_one(bench.worker().await).await;
    bench.write(claimed.claim, sample::done(StepKind::Image, 1), vec![sample::cost(StepKind::Image, 1)]).await;
    bench.complete(claimed.claim).await;
    assert_eq!(refused(create().await), ErrorKind::OverBudget);
    bench.clock.advance(seconds(3600));
    create().await.unwrap();
    assert_eq!(refused(create().await), ErrorKind::OverBudget);
    bench.clock.advance(seconds(3600));
    assert_eq!(refused(create().await), ErrorKind::OverBudget, "a hold has no window");
}
