//! Q10: whose turn it is.

use std::collections::BTreeMap;
use std::time::Duration;

use super::bench::{Bench, Dice, roomy, seconds};
use crate::conformance::sample::{self, tenant};
use crate::{Claim, Fenced, JobId, JobState, Limits, TenantId};

async fn order_of(bench: &Bench, max: usize) -> Vec<JobId> {
    let worker = bench.worker().await;
    bench.claim(worker, max).await.into_iter().map(|claimed| claimed.claim.job).collect()
}

/// First in, first out within a tenant and priority.
pub async fn q10_first_in_first_out_within_a_tenant(bench: Bench) {
    let ids = bench.jobs(&tenant("ann"), 50).await;
    let worker = bench.worker().await;
    for chunk in ids.chunks(7) {
        let taken: Vec<_> = bench.claim(worker, chunk.len()).await.into_iter().map(|c| c.claim.job).collect();
        assert_eq!(taken, chunk);
    }
}

/// Also through the park: a tenant with few slots gets its jobs in order.
pub async fn q10_parked_jobs_keep_their_order(bench: Bench) {
    let owner = tenant("ann");
    let mut ids = Vec::new();
    for _ in 0..10 {
        let mut new = sample::new_job(&owner);
        new.limits.active_jobs = 2;
        ids.push(bench.create(new).await.id);
    }
    let worker = bench.worker().await;
    let mut taken = Vec::new();
    while let Some(claimed) = bench.claim(worker, 1).await.pop() {
        taken.push(claimed.claim.job);
        bench.complete(claimed.claim).await;
    }
    assert_eq!(taken, ids);
}

/// A smaller priority number goes first, whatever came first.
pub async fn q10_priority_goes_first(bench: Bench) {
    let mut expected = Vec::new();
    for priority in [5, 0, 3, 7, 1] {
        let mut new = roomy(&tenant("ann"));
        new.priority = priority;
        expected.push((priority, bench.create(new).await.id));
    }
    expected.sort_unstable();
    let expected: Vec<_> = expected.into_iter().map(|(_, id)| id).collect();
    assert_eq!(order_of(&bench, 10).await, expected);
}

/// A tenant with a thousand jobs delays the one job of another by about one round.
pub async fn q10_a_flood_starves_nobody(bench: Bench) {
    let flooder = tenant("flooder");
    bench.crowd(1000, || sample::new_job(&flooder)).await;
    let worker = bench.worker().await;
    let mut running = bench.claim(worker, 5).await;
    for name in ["ann", "bob"] {
        let job = bench.job(&tenant(name)).await;
        let turns = async {
            for turn in 1..=50 {
                bench.complete(running.pop().expect("five slots").claim).await;
                let claimed = bench.claim_one_of(worker).await;
                if claimed.claim.job == job.id {
                    bench.complete(claimed.claim).await;
                    running.extend(bench.claim(worker, 1).await);
                    return turn;
                }
                running.insert(0, claimed);
            }
            panic!("{name} was starved")
        };
        let turns = turns.await;
        assert!(turns <= 4, "{name} waited for {turns} turns");
    }
}

/// Three times the weight is three times the turns.
pub async fn q10_weights_share_the_workers(bench: Bench) {
    let (light, heavy) = (tenant("light"), tenant("heavy"));
    for _ in 0..120 {
        for (owner, weight) in [(&light, 1), (&heavy, 3)] {
            let mut new = sample::new_job(owner);
            new.limits = Limits { active_jobs: 4, weight, ..Limits::default() };
            bench.create(new).await;
        }
    }
    let worker = bench.worker().await;
    let mut turns: BTreeMap<TenantId, i32> = BTreeMap::new();
    for _ in 0..120 {
        let claimed = bench.claim_one_of(worker).await;
        *turns.entry(claimed.job.tenant).or_default() += 1;
        bench.complete(claimed.claim).await;
    }
    assert!((27..=33).contains(&turns[&light]), "a quarter of 120 turns, within 10 %: {turns:?}");
}

/// No more jobs of a tenant are ready or running than it may have; the last limits given hold.
pub async fn q10_a_tenant_has_so_many_active_jobs(bench: Bench) {
    let owner = tenant("ann");
    let worker = bench.worker().await;
    let create = async |active_jobs| {
        let mut new = sample::new_job(&owner);
        new.limits.active_jobs = active_jobs;
        bench.create(new).await
    };
    for _ in 0..5 {
        create(2).await;
    }
    let mut running = bench.claim(worker, 10).await;
    assert_eq!(running.len(), 2);
    bench.complete(running.remove(0).claim).await;
    running.extend(bench.claim(worker, 10).await);
    assert_eq!(running.len(), 2, "an end lets one in");
    bench.release(running.remove(0).claim, seconds(60), false).await;
    running.extend(bench.claim(worker, 10).await);
    assert_eq!(running.len(), 2, "a release for later lets one in");
    create(4).await;
    running.extend(bench.claim(worker, 10).await);
    assert_eq!(running.len(), 4, "the last limits given are in force");
    create(1).await;
    bench.complete(running.remove(0).claim).await;
    assert!(bench.claim(worker, 10).await.is_empty(), "three are running, one may");
}

/// A job that is handed back at once is next again: a restart of workers costs it nothing.
pub async fn q10_a_hand_back_keeps_its_turn(bench: Bench) {
    let ids = bench.jobs(&tenant("ann"), 3).await;
    let worker = bench.worker().await;
    let first = bench.claim(worker, 2).await;
    for claimed in &first {
        bench.release(claimed.claim, Duration::ZERO, false).await;
    }
    assert_eq!(order_of(&bench, 3).await, ids);
}

/// A rescued job is next again.
pub async fn q10_a_rescued_job_keeps_its_turn(bench: Bench) {
    let ids = bench.jobs(&tenant("ann"), 3).await;
    let worker = bench.worker().await;
    bench.claim(worker, 2).await;
    bench.all_workers_die().await;
    assert_eq!(order_of(&bench, 3).await, ids);
}

/// While it is paused, the queue hands out nothing through any handle, and ends are still written.
pub async fn q10_a_paused_queue_hands_out_nothing(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    bench.job(&tenant("ann")).await;
    bench.queue.pause(true).await.unwrap();
    assert!(bench.second.stats().await.unwrap().paused);
    assert!(bench.second.claim(claimed.claim.worker, 1).await.unwrap().jobs.is_empty());
    assert_eq!(bench.complete(claimed.claim).await, Fenced::Applied);
    bench.second.pause(false).await.unwrap();
    bench.claim_one(claimed.claim.worker).await;
}

/// Whatever happens, the counts stay true: slots, live jobs, holds, and in the end nothing is left.
pub async fn q10_counters_never_drift(bench: Bench) {
    let owners = [tenant("ann"), tenant("bob"), tenant("cem")];
    let mut dice = Dice::new(42);
    let mut worker = bench.worker().await;
    let mut claims: Vec<Claim> = Vec::new();
    for step in 0..300 {
        let owner = &owners[dice.roll(3)];
        let claim = (!claims.is_empty()).then(|| claims[dice.roll(claims.len())]);
        match (dice.roll(12), claim) {
            (0..=3, _) => {
                let mut new = sample::new_job(owner);
                new.limits.active_jobs = 3;
                new.delay = seconds(if dice.roll(4) == 0 { 3 } else { 0 });
                bench.create(new).await;
            }
            (4 | 5, _) => {
                let n = dice.roll(3) + 1;
                claims.extend(bench.claim(worker, n).await.into_iter().map(|claimed| claimed.claim));
            }
            (6, Some(claim)) => drop(bench.release(claim, seconds(dice.roll(2) as u64 * 2), true).await),
            (7, Some(claim)) => drop(bench.complete(claim).await),
            (8, Some(claim)) => drop(bench.fail(claim).await),
            (9, _) => {
                let jobs = bench.list(owner).await;
                if let Some(job) = (!jobs.is_empty()).then(|| &jobs[dice.roll(jobs.len())]) {
                    let _ = bench.queue.cancel(owner, job.id, None).await;
                    let limits = Limits { active_jobs: 3, ..Limits::default() };
                    let _ = bench.queue.retry(owner, job.id, sample::HOLD, &limits).await;
                }
            }
            (10, _) if dice.roll(4) == 0 => {
                bench.all_workers_die().await;
                worker = bench.worker().await;
            }
            _ => {
                bench.clock.advance(seconds(1));
                let held: Vec<Claim> = claims.clone();
                let lost = bench.beat(worker, &held).await.lost;
                claims.retain(|claim| !lost.contains(claim));
            }
        }
        let stats = bench.queue.stats().await.unwrap();
        let (mut queued, mut processing) = (0, 0);
        for owner in &owners {
            let jobs = bench.list(owner).await;
            let count = |state| jobs.iter().filter(|job| job.state == state).count() as u64;
            assert!(count(JobState::Processing) <= 3, "step {step}: {owner} has too many slots");
            queued += count(JobState::Queued);
            processing += count(JobState::Processing);
            let held = jobs.iter().map(|job| job.held).sum();
            assert_eq!(bench.usage(owner).await.held, held, "step {step}: what {owner} holds");
        }
        assert_eq!((stats.queued + stats.waiting, stats.processing), (queued, processing), "step {step}");
    }
    // Every slot comes back: all that is left can be run to its end.
    bench.all_workers_die().await;
    worker = bench.worker().await;
    loop {
        let batch = bench.claim(worker, 500).await;
        if batch.is_empty() {
            break;
        }
        for claimed in batch {
            assert_eq!(bench.complete(claimed.claim).await, Fenced::Applied);
        }
    }
    let stats = bench.queue.stats().await.unwrap();
    assert_eq!((stats.queued, stats.waiting, stats.processing), (0, 0, 0));
}
