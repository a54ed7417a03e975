//! Q1 and Q2: who has a job, and what a claim that is over may do.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use super::bench::{Bench, Dice, roomy, seconds};
use crate::conformance::sample::{self, tenant};
use crate::{Claim, Fenced, JobEnd, JobState, Limits, StepKind, Usd};

/// Eight claimers, some through another handle, take each job exactly once.
pub async fn q1_a_claim_is_exclusive(bench: Bench) {
    const JOBS: usize = 400;
    let owner = tenant("ann");
    bench.crowd(JOBS, || roomy(&owner)).await;
    let mut claimers = Vec::new();
    for n in 0..8 {
        let queue = if n % 2 == 0 { bench.queue.clone() } else { bench.second.clone() };
        claimers.push(tokio::spawn(async move {
            let worker = queue.register("racer").await.unwrap();
            let mut mine = Vec::new();
            loop {
                let jobs = queue.claim(worker, 7).await.unwrap().jobs;
                if jobs.is_empty() {
                    return mine;
                }
                mine.extend(jobs.into_iter().map(|claimed| claimed.claim));
            }
        }));
    }
    let mut taken = Vec::new();
    for claimer in claimers {
        taken.extend(claimer.await.unwrap());
    }
    let distinct: HashSet<_> = taken.iter().map(|claim| claim.job).collect();
    assert_eq!((taken.len(), distinct.len()), (JOBS, JOBS), "each job once");
}

/// Claim, rescue and retry each raise the epoch; a release does not lower it.
pub async fn q1_the_epoch_only_grows(bench: Bench) {
    let owner = tenant("ann");
    let first = bench.running(&owner).await;
    bench.all_workers_die().await;
    let second = bench.claim_one(bench.worker().await).await;
    assert!(second.claim.epoch >= first.claim.epoch + 2, "+1 at the rescue and +1 at the claim");
    bench.release(second.claim, Duration::ZERO, true).await;
    let third = bench.claim_one(second.claim.worker).await;
    assert!(third.claim.epoch > second.claim.epoch);
    bench.fail(third.claim).await;
    bench.queue.retry(&owner, first.claim.job, sample::HOLD, &Limits::default()).await.unwrap();
    let fourth = bench.claim_one(second.claim.worker).await;
    assert!(fourth.claim.epoch >= third.claim.epoch + 2, "+1 at the retry and +1 at the claim");
}

/// A worker that starts again under its old name is another one; the old one's jobs are freed.
pub async fn q1_a_restart_under_the_same_name_frees_the_orphans(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    bench.clock.advance(seconds(20));
    let reborn = bench.worker().await;
    assert_ne!(reborn, claimed.claim.worker);
    bench.clock.advance(seconds(15));
    bench.beat(reborn, &[]).await;
    assert_eq!(bench.queue.rescue().await.unwrap(), 1);
    assert_eq!(bench.claim_one(reborn).await.claim.job, claimed.claim.job);
}

/// After a rescue, the old worker's checkpoint changes nothing.
pub async fn q2_a_stale_claim_cannot_checkpoint(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    bench.all_workers_die().await;
    let before = bench.get(&claimed.job).await;
    let record = sample::done(StepKind::Image, 1);
    let ack = bench.write(claimed.claim, record, vec![sample::cost(StepKind::Image, 1)]).await;
    assert_eq!(ack.fenced, Fenced::Stale);
    assert_eq!(bench.get(&claimed.job).await, before);
    assert_eq!(bench.usage(&claimed.job.tenant).await.cost, Usd::ZERO);
}

/// After a rescue, the old worker's release changes nothing.
pub async fn q2_a_stale_claim_cannot_release(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    bench.all_workers_die().await;
    let newer = bench.claim_one(bench.worker().await).await;
    let before = bench.get(&claimed.job).await;
    assert_eq!(bench.release(claimed.claim, seconds(5), true).await, Fenced::Stale);
    assert_eq!(bench.get(&claimed.job).await, before);
    assert_eq!(bench.complete(newer.claim).await, Fenced::Applied);
}

/// After a rescue, the old worker's settle changes nothing and tells nobody.
pub async fn q2_a_stale_claim_cannot_settle(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    bench.all_workers_die().await;
    let newer = bench.claim_one(bench.worker().await).await;
    let before = bench.get(&claimed.job).await;
    for end in sample::ends() {
        let events = vec![sample::event("https://ann.example/hook")];
        assert_eq!(bench.settle_with(claimed.claim, end, Usd::ZERO, events).await, Fenced::Stale);
    }
    assert_eq!(bench.get(&claimed.job).await, before);
    assert!(bench.deliveries(&claimed.job.tenant).await.is_empty());
    assert_eq!(bench.complete(newer.claim).await, Fenced::Applied);
    assert_eq!(bench.fail(claimed.claim).await, Fenced::Stale, "also after the end");
}

/// The same epoch in another worker's hand is no claim: a rolled-back store may count it twice.
pub async fn q2_the_same_epoch_of_another_worker_is_refused(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    let other = Claim { worker: bench.worker().await, ..claimed.claim };
    let record = sample::intent(claimed.claim.job, StepKind::Image, 1);
    assert_eq!(bench.write(other, record, vec![]).await.fenced, Fenced::Stale);
    assert_eq!(bench.release(other, Duration::ZERO, false).await, Fenced::Stale);
    assert_eq!(bench.complete(other).await, Fenced::Stale);
    assert_eq!(bench.get(&claimed.job).await, claimed.job);
}

/// The same worker got the job anew: what it still sends under its older claim is stale.
pub async fn q2_an_older_claim_of_the_same_worker_is_stale(bench: Bench) {
    let older = bench.running(&tenant("ann")).await;
    bench.release(older.claim, Duration::ZERO, false).await;
    let newer = bench.claim_one(older.claim.worker).await;
    assert!(newer.claim.epoch > older.claim.epoch);
    let record = sample::done(StepKind::Image, 1);
    let ack = bench.write(older.claim, record, vec![sample::cost(StepKind::Image, 1)]).await;
    assert_eq!(ack.fenced, Fenced::Stale);
    assert_eq!(bench.complete(older.claim).await, Fenced::Stale);
    assert_eq!(bench.release(older.claim, seconds(5), true).await, Fenced::Already, "that it did before");
    assert_eq!(bench.get(&newer.job).await, newer.job);
    assert_eq!(bench.release(newer.claim, seconds(0), false).await, Fenced::Applied);
    assert_eq!(bench.release(older.claim, seconds(5), true).await, Fenced::Stale, "another one was written since");
}

/// The answer to a settle was lost: asked again it says `Already`, and nothing happens twice.
pub async fn q2_a_repeated_settle_is_already(bench: Bench) {
    for end in sample::ends() {
        let claimed = bench.running(&tenant("ann")).await;
        bench.write(claimed.claim, sample::done(StepKind::Image, 1), vec![sample::cost(StepKind::Image, 1)]).await;
        let events = vec![sample::event("https://ann.example/hook")];
        let fenced = bench.settle_with(claimed.claim, end.clone(), Usd::ZERO, events.clone()).await;
        assert_eq!(fenced, Fenced::Applied);
        let (job, usage) = (bench.get(&claimed.job).await, bench.usage(&claimed.job.tenant).await);
        let told = bench.deliveries(&claimed.job.tenant).await;
        for _ in 0..2 {
            let fenced = bench.settle_with(claimed.claim, end.clone(), Usd::ZERO, events.clone()).await;
            assert_eq!(fenced, Fenced::Already);
        }
        assert_eq!(bench.get(&claimed.job).await, job);
        assert_eq!(bench.usage(&claimed.job.tenant).await, usage);
        assert_eq!(bench.deliveries(&claimed.job.tenant).await, told);
    }
}

/// A claim that ended a job one way cannot end it another way.
pub async fn q2_another_end_by_the_same_claim_is_stale(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    assert_eq!(bench.complete(claimed.claim).await, Fenced::Applied);
    assert_eq!(bench.fail(claimed.claim).await, Fenced::Stale);
    assert_eq!(bench.settle(claimed.claim, JobEnd::Canceled).await, Fenced::Stale);
    assert_eq!(bench.release(claimed.claim, Duration::ZERO, true).await, Fenced::Stale);
    assert_eq!(bench.get(&claimed.job).await.state, JobState::Completed);
}

/// The answer to a release was lost: asked again it says `Already`, and counts no attempt twice.
pub async fn q2_a_repeated_release_is_already(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    assert_eq!(bench.release(claimed.claim, seconds(5), true).await, Fenced::Applied);
    let released = bench.get(&claimed.job).await;
    assert_eq!(bench.release(claimed.claim, seconds(5), true).await, Fenced::Already);
    assert_eq!(bench.get(&claimed.job).await, released);
    assert_eq!(released.attempts, 1);
    assert_eq!(bench.complete(claimed.claim).await, Fenced::Stale, "it was handed back");
}

/// The answer to a checkpoint was lost: asked again it says `Already`, and bills nothing twice.
pub async fn q2_a_repeated_checkpoint_is_already(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    let job = claimed.claim.job;
    for record in [sample::intent(job, StepKind::Image, 1), sample::accepted(job, StepKind::Image, 2)] {
        assert_eq!(bench.write(claimed.claim, record.clone(), vec![]).await.fenced, Fenced::Applied);
        bench.clock.advance(seconds(1));
        assert_eq!(bench.write(claimed.claim, record, vec![]).await.fenced, Fenced::Already);
    }
    let costs = || vec![sample::cost(StepKind::Image, 1)];
    let record = sample::done(StepKind::Image, 3);
    assert_eq!(bench.write(claimed.claim, record.clone(), costs()).await.fenced, Fenced::Applied);
    let written = bench.get(&claimed.job).await;
    assert_eq!(bench.write(claimed.claim, record, costs()).await.fenced, Fenced::Already);
    assert_eq!(bench.get(&claimed.job).await, written);
    assert_eq!(bench.usage(&claimed.job.tenant).await.cost, sample::IMAGE_PRICE);
}

/// Whatever the order of claims, releases, deaths and ends: a claim that is over writes nothing.
pub async fn q2_random_interleavings_accept_no_stale_write(bench: Bench) {
    let owner = tenant("ann");
    for seed in 0..3 {
        let mut dice = Dice::new(seed);
        let mut live: BTreeMap<crate::JobId, Claim> = BTreeMap::new();
        let mut over: Vec<Claim> = Vec::new();
        let mut worker = bench.worker().await;
        for _ in 0..150 {
            let mut held: Vec<Claim> = live.values().copied().collect();
            let chosen = (!held.is_empty()).then(|| held.swap_remove(dice.roll(held.len())));
            match (dice.roll(8), chosen) {
                (0, _) => drop(bench.create(roomy(&owner)).await),
                (1 | 2, _) => {
                    for claimed in bench.claim(worker, 2).await {
                        live.insert(claimed.claim.job, claimed.claim);
                    }
                }
                (3, Some(claim)) => {
                    let delay = seconds(dice.roll(2) as u64);
                    assert_eq!(bench.release(claim, delay, false).await, Fenced::Applied);
                    live.remove(&claim.job);
                }
                (4, Some(claim)) => {
                    assert_eq!(bench.complete(claim).await, Fenced::Applied);
                    live.remove(&claim.job);
                }
                (5, _) => {
                    bench.all_workers_die().await;
                    over.extend(live.values());
                    live.clear();
                    worker = bench.worker().await;
                }
                _ => bench.clock.advance(seconds(1)),
            }
            let held: Vec<Claim> = live.values().copied().collect();
            assert!(bench.beat(worker, &held).await.lost.is_empty());
            if let Some(claim) = (!over.is_empty()).then(|| over[dice.roll(over.len())]) {
                let record = sample::done(StepKind::Image, 1);
                let answers = [
                    bench.write(claim, record, vec![]).await.fenced,
                    bench.release(claim, Duration::ZERO, true).await,
                    bench.fail(claim).await,
                ];
                assert_eq!(answers, [Fenced::Stale; 3], "seed {seed}");
            }
        }
        // The next seed starts without anything to claim.
        for claim in live.into_values() {
            bench.complete(claim).await;
        }
        bench.clock.advance(seconds(5));
        for claimed in bench.claim(worker, 500).await {
            bench.complete(claimed.claim).await;
        }
    }
}
