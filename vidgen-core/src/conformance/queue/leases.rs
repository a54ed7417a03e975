//! Q4 to Q8 and Q12 as far as they are about workers: beats, strays, rescue, bounds, clocks.

use std::collections::HashSet;
use std::time::Duration;

use super::bench::{Bench, refused, roomy, seconds};
use crate::clock::later;
use crate::conformance::sample::{self, tenant};
use crate::{BEAT, Claim, ErrorKind, Fenced, JobState, LEASE, MAX_BATCH, StepKind, StepState, WorkerId};

/// Beats on time keep the claims, for ever.
pub async fn q4_beats_keep_the_claims(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    for _ in 0..30 {
        bench.clock.advance(BEAT);
        let beat = bench.beat(claimed.claim.worker, &[claimed.claim]).await;
        assert!(beat.known && beat.lost.is_empty() && beat.strays.is_empty());
        assert_eq!(bench.second.rescue().await.unwrap(), 0, "a live worker is never rescued");
    }
    assert_eq!(bench.complete(claimed.claim).await, Fenced::Applied);
}

/// The answer to a claim was lost: within three beats the job is handed back, without a crash.
pub async fn q4_a_lost_claim_reply_is_handed_back(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    let worker = claimed.claim.worker;
    let mut strays = Vec::new();
    for _ in 0..3 {
        bench.clock.advance(BEAT);
        strays.extend(bench.beat(worker, &[]).await.strays);
    }
    assert_eq!(strays, [claimed.claim]);
    let job = bench.get(&claimed.job).await;
    assert_eq!((job.state, job.crashes, job.attempts), (JobState::Queued, 0, 0));
    assert_eq!(bench.complete(claimed.claim).await, Fenced::Stale);
    let again = bench.claim_one(worker).await;
    assert_eq!(again.claim.job, job.id);
    assert_ne!(again.claim, claimed.claim);
}

/// A claim whose answer may still be on its way is no stray, even if a beat is sent twice.
pub async fn q4_a_young_claim_is_no_stray(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    let worker = claimed.claim.worker;
    for _ in 0..3 {
        assert!(bench.beat(worker, &[]).await.strays.is_empty(), "the claim is younger than one beat");
    }
    bench.clock.advance(BEAT);
    assert!(bench.beat(worker, &[claimed.claim]).await.lost.is_empty(), "the answer came");
    bench.clock.advance(BEAT);
    let beat = bench.beat(worker, &[]).await;
    assert!(beat.strays.is_empty(), "one beat that does not name it is not enough");
    assert_eq!(bench.complete(claimed.claim).await, Fenced::Applied);
}

/// A beat names the claims that are no longer the worker's.
pub async fn q4_a_beat_names_lost_claims(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    let old = Claim { epoch: claimed.claim.epoch - 1, ..claimed.claim };
    let foreign = Claim { worker: bench.worker().await, ..claimed.claim };
    let beat = bench.beat(claimed.claim.worker, &[old, claimed.claim, foreign]).await;
    assert_eq!(beat.lost.iter().collect::<HashSet<_>>(), HashSet::from([&old, &foreign]));
    bench.complete(claimed.claim).await;
    assert_eq!(bench.beat(claimed.claim.worker, &[claimed.claim]).await.lost, [claimed.claim]);
}

/// A beat tells of a cancel as long as the job runs, and of a wake once.
pub async fn q4_a_beat_tells_of_cancels_and_wakes(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    let (worker, job) = (claimed.claim.worker, claimed.claim.job);
    let quiet = bench.beat(worker, &[claimed.claim]).await;
    assert!(quiet.known && quiet.cancels.is_empty() && quiet.wakes.is_empty());
    bench.second.wake(job).await.unwrap();
    bench.second.cancel(&claimed.job.tenant, job, None).await.unwrap();
    let told = bench.beat(worker, &[claimed.claim]).await;
    assert_eq!((told.cancels, told.wakes), (vec![job], vec![job]));
    let later = bench.beat(worker, &[claimed.claim]).await;
    assert_eq!((later.cancels, later.wakes), (vec![job], vec![]));
}

/// A worker that was never registered, or went, claims nothing.
pub async fn q5_an_unknown_worker_claims_nothing(bench: Bench) {
    let job = bench.job(&tenant("ann")).await;
    let gone = bench.worker().await;
    bench.queue.deregister(gone).await.unwrap();
    for worker in [WorkerId::new(), gone] {
        assert_eq!(refused(bench.queue.claim(worker, 1).await), ErrorKind::Stale);
        assert_eq!(refused(bench.queue.claim_deliveries(worker, 1).await), ErrorKind::Stale);
        assert!(!bench.beat(worker, &[]).await.known);
    }
    assert_eq!(bench.get(&job).await, job);
}

/// A worker whose lease ended and was rescued hears it, and can do nothing under its old id.
pub async fn q5_a_reaped_worker_can_do_nothing(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    let worker = claimed.claim.worker;
    assert_eq!(bench.all_workers_die().await, 1);
    assert!(!bench.beat(worker, &[claimed.claim]).await.known);
    assert_eq!(refused(bench.queue.claim(worker, 1).await), ErrorKind::Stale);
    assert_eq!(bench.complete(claimed.claim).await, Fenced::Stale);
    assert!(!bench.beat(worker, &[]).await.known, "a beat does not bring it back");
    assert_ne!(bench.worker().await, worker);
}

/// A dead worker's jobs are ready again: steps intact, no attempt used up, one crash counted.
pub async fn q6_a_dead_workers_jobs_are_rescued(bench: Bench) {
    let owner = tenant("ann");
    bench.crowd(300, || roomy(&owner)).await;
    let worker = bench.worker().await;
    let claimed = bench.claim(worker, 300).await;
    assert_eq!(claimed.len(), 300);
    for claimed in claimed.iter().take(10) {
        bench.write(claimed.claim, sample::accepted(claimed.claim.job, StepKind::Image, 1), vec![]).await;
    }
    let before = bench.get(&claimed[0].job).await;
    bench.clock.advance(LEASE - seconds(1));
    assert_eq!(bench.queue.rescue().await.unwrap(), 0, "the lease has not ended");
    bench.clock.advance(seconds(2));
    assert_eq!(bench.queue.rescue().await.unwrap(), 300);
    let after = bench.get(&claimed[0].job).await;
    assert_eq!((after.state, after.crashes, after.attempts), (JobState::Queued, 1, 0));
    assert_eq!(after.steps, before.steps);
    assert!(after.version > before.version);
    let next = bench.worker().await;
    let again: HashSet<_> = bench.claim(next, 500).await.into_iter().map(|c| c.claim.job).collect();
    assert_eq!(again, claimed.iter().map(|c| c.claim.job).collect());
}

/// Crashes add up, whoever crashes; what is done about them is the worker's business.
pub async fn q6_crashes_are_counted_apart_from_attempts(bench: Bench) {
    let first = bench.running(&tenant("ann")).await;
    bench.release(first.claim, Duration::ZERO, true).await;
    bench.claim_one(first.claim.worker).await;
    bench.all_workers_die().await;
    bench.claim_one(bench.worker().await).await;
    bench.all_workers_die().await;
    let last = bench.claim_one(bench.worker().await).await;
    assert_eq!((last.job.attempts, last.job.crashes), (1, 2));
}

/// A worker that goes by itself leaves its jobs at once, and no crash is counted.
pub async fn q6_a_deregistered_workers_jobs_are_free_at_once(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    bench.queue.deregister(claimed.claim.worker).await.unwrap();
    let again = bench.claim_one(bench.worker().await).await;
    assert_eq!((again.claim.job, again.job.crashes, again.job.attempts), (claimed.claim.job, 0, 0));
    assert_eq!(bench.complete(claimed.claim).await, Fenced::Stale);
}

/// Rescue and settle raced: the job ends once, or is rescued once, and never both.
pub async fn q6_rescue_never_overwrites_an_end(bench: Bench) {
    let owner = tenant("ann");
    for _ in 0..40 {
        let claimed = bench.running(&owner).await;
        bench.clock.advance(LEASE + seconds(1));
        let (settling, rescuing) = (bench.clone(), bench.clone());
        let settle = tokio::spawn(async move { settling.complete(claimed.claim).await });
        let rescue = tokio::spawn(async move { rescuing.second.rescue().await.unwrap() });
        let (settle, rescued) = (settle.await.unwrap(), rescue.await.unwrap());
        let job = bench.get(&claimed.job).await;
        match settle {
            Fenced::Applied => assert_eq!((job.state, rescued, job.crashes), (JobState::Completed, 0, 0)),
            _ => assert_eq!((job.state, rescued, job.crashes), (JobState::Queued, 1, 1)),
        }
        if job.state == JobState::Queued {
            let worker = bench.worker().await;
            let claim = bench.claim_one(worker).await.claim;
            bench.complete(claim).await;
            bench.queue.deregister(worker).await.unwrap();
        }
    }
}

/// A live worker's jobs stay its own while another's are rescued.
pub async fn q6_rescue_takes_from_the_dead_alone(bench: Bench) {
    let owner = tenant("ann");
    let dead = bench.running(&owner).await;
    bench.clock.advance(seconds(25));
    let alive = bench.running(&owner).await;
    bench.clock.advance(seconds(10));
    assert_eq!(bench.queue.rescue().await.unwrap(), 1);
    assert_eq!(bench.get(&dead.job).await.state, JobState::Queued);
    assert_eq!(bench.complete(alive.claim).await, Fenced::Applied);
}

/// The wall clock's jumps end no lease and let no delay end early.
pub async fn q7_a_jump_of_the_wall_clock_changes_nothing(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    let mut waiting = sample::new_job(&tenant("bob"));
    waiting.delay = seconds(120);
    bench.create(waiting).await;
    for wall in [later(super::start(), seconds(3600)), jiff::Timestamp::UNIX_EPOCH, super::start()] {
        bench.clock.step_wall(wall);
        assert_eq!(bench.queue.rescue().await.unwrap(), 0);
        let batch = bench.queue.claim(claimed.claim.worker, 10).await.unwrap();
        assert!(batch.jobs.is_empty());
        assert_eq!(batch.now, super::start(), "what workers compare goes on as if nothing had happened");
        assert!(bench.beat(claimed.claim.worker, &[claimed.claim]).await.known);
    }
    bench.clock.step_wall(jiff::Timestamp::UNIX_EPOCH);
    let intent = sample::intent(claimed.claim.job, StepKind::Image, 1);
    assert_eq!(bench.write(claimed.claim, intent, vec![]).await.now, super::start());
    let stored = bench.get(&claimed.job).await.steps.remove(0);
    assert_eq!(stored.open_submission().and_then(|s| s.intent_at), Some(super::start()));
    bench.clock.step_wall(super::start());
    assert_eq!(bench.complete(claimed.claim).await, Fenced::Applied);
}

/// No call touches more rows than it may: many orphans take several rescues.
pub async fn q8_rescue_is_bounded(bench: Bench) {
    let owner = tenant("ann");
    let orphans = MAX_BATCH * 2 + 100;
    bench.crowd(orphans, || roomy(&owner)).await;
    let dead = [bench.worker().await, bench.worker().await];
    let mut claimed = Vec::new();
    while claimed.len() < orphans {
        let jobs = bench.claim(dead[claimed.len() % 2], MAX_BATCH - 50).await;
        assert!(!jobs.is_empty());
        claimed.extend(jobs);
    }
    let mut total = bench.all_workers_die().await;
    assert!(total > 0 && total <= MAX_BATCH as u64);
    let late = claimed.iter().rev().take(20).map(|c| c.claim);
    for claim in late {
        assert_eq!(bench.complete(claim).await, Fenced::Stale, "dead is dead, rescued yet or not");
    }
    for _ in 0..10 {
        let rescued = bench.queue.rescue().await.unwrap();
        assert!(rescued <= MAX_BATCH as u64);
        total += rescued;
    }
    assert_eq!(total, orphans as u64);
    assert_eq!(bench.queue.stats().await.unwrap().queued, orphans as u64);
}

/// No claim takes more than it asked for, nor more than any call may.
pub async fn q8_a_claim_is_bounded(bench: Bench) {
    bench.crowd(MAX_BATCH + 20, || roomy(&tenant("ann"))).await;
    let worker = bench.worker().await;
    assert_eq!(bench.claim(worker, 0).await.len(), 0);
    assert_eq!(bench.claim(worker, 7).await.len(), 7);
    assert!(bench.claim(worker, usize::MAX).await.len() <= MAX_BATCH);
}

/// The store stamps an intent and an acceptance with its own clock, and not a second time.
pub async fn q12_the_store_stamps_intents_and_acceptances(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    let job = claimed.claim.job;
    bench.clock.advance(seconds(3));
    let at = later(super::start(), seconds(3));
    assert_eq!(bench.write(claimed.claim, sample::intent(job, StepKind::Image, 1), vec![]).await.now, at);
    let stored = bench.get(&claimed.job).await.steps.remove(0);
    let StepState::Intent { submission } = stored.state else { panic!("an intent was written") };
    assert_eq!(submission.intent_at, Some(at));

    bench.clock.advance(seconds(2));
    let mut record = sample::accepted(job, StepKind::Image, 2);
    if let StepState::Accepted { submission: accepted, .. } = &mut record.state {
        *accepted = submission;
    }
    bench.write(claimed.claim, record, vec![]).await;
    let stored = bench.get(&claimed.job).await.steps.remove(0);
    let StepState::Accepted { submission, accepted_at, .. } = stored.state else { panic!("it was accepted") };
    assert_eq!((submission.intent_at, accepted_at), (Some(at), Some(later(at, seconds(2)))));
}
