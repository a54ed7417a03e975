//! Q3: one call is one transaction.

use super::bench::{Bench, refused, roomy, seconds};
use crate::conformance::sample::{self, tenant};
use crate::{
    Claimed, DeliveryState, ErrorKind, Fenced, Idempotency, JobEnd, JobState, QueueStats, StepKind, Usd, Window,
};

/// A create that was refused left no job, hold, key or count.
pub async fn q3_a_refused_create_leaves_nothing(bench: Bench) {
    let owner = tenant("ann");
    let mut new = sample::new_job(&owner);
    new.limits.budget = Some(Window { limit: Usd::from_cents(1), per: seconds(3600) });
    new.limits.creates = Some(Window { limit: 1, per: seconds(3600) });
    new.idempotency = Some(Idempotency { key: "k".into(), hash: "first".into() });
    assert_eq!(refused(bench.queue.enqueue(new.clone()).await), ErrorKind::OverBudget);
    assert_eq!(refused(bench.queue.get(&owner, new.id).await), ErrorKind::NotFound);
    assert!(bench.list(&owner).await.is_empty());
    assert_eq!(bench.usage(&owner).await.held, Usd::ZERO);
    assert_eq!(bench.queue.stats().await.unwrap(), QueueStats::default());
    // The key is free for another request, and the one create of the window was not used up.
    new.limits.budget = None;
    new.idempotency = Some(Idempotency { key: "k".into(), hash: "second".into() });
    assert!(!bench.queue.enqueue(new).await.unwrap().replayed);
}

/// A job's id is used once.
pub async fn q3_a_job_id_is_created_once(bench: Bench) {
    let new = sample::new_job(&tenant("ann"));
    let job = bench.create(new.clone()).await;
    assert_eq!(refused(bench.queue.enqueue(new).await), ErrorKind::Conflict);
    assert_eq!(bench.get(&job).await, job);
    assert_eq!(bench.usage(&job.tenant).await.held, sample::HOLD);
}

/// Job, money, counts and event are there at once when a settle answers.
pub async fn q3_a_settle_moves_everything_together(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    let owner = &claimed.job.tenant;
    bench.write(claimed.claim, sample::done(StepKind::Image, 1), vec![sample::cost(StepKind::Image, 1)]).await;
    bench.clock.advance(seconds(5));
    let event = sample::event("https://ann.example/hook");
    let end = JobEnd::Completed(sample::output());
    assert_eq!(bench.settle_with(claimed.claim, end, Usd::ZERO, vec![event.clone()]).await, Fenced::Applied);

    let job = bench.second.get(owner, claimed.claim.job).await.unwrap();
    assert_eq!((job.state, job.progress, job.held), (JobState::Completed, 100, Usd::ZERO));
    assert_eq!((job.output, job.failure), (Some(sample::output()), None));
    assert!(job.ended_at > job.started_at);
    let usage = bench.usage(owner).await;
    assert_eq!((usage.cost, usage.charged, usage.held), (sample::IMAGE_PRICE, sample::IMAGE_PRICE, Usd::ZERO));
    let told = bench.deliveries(owner).await;
    assert_eq!((told.len(), &told[0].id, told[0].job), (1, &event.id, job.id));
    assert_eq!((told[0].state, told[0].attempts), (DeliveryState::Pending, 0));
    let stats = bench.queue.stats().await.unwrap();
    assert_eq!((stats.queued, stats.processing, stats.deliveries), (0, 0, 1));
}

/// What one handle wrote, another one sees.
pub async fn q3_a_second_handle_sees_what_the_first_wrote(bench: Bench) {
    let job = bench.job(&tenant("ann")).await;
    assert_eq!(bench.second.get(&job.tenant, job.id).await.unwrap(), job);
    let worker = bench.second.register("elsewhere").await.unwrap();
    let claimed = bench.second.claim(worker, 1).await.unwrap().jobs.remove(0);
    assert_eq!(bench.get(&job).await, claimed.job);
    assert_eq!(bench.complete(claimed.claim).await, Fenced::Applied, "the claim holds, whoever writes it down");
}

/// Counts are of what is live, and the claim's answer is the job as it is.
pub async fn q3_stats_count_what_is_live(bench: Bench) {
    let owner = tenant("ann");
    for n in 0..4 {
        let mut new = sample::new_job(&owner);
        new.limits.active_jobs = 2;
        new.delay = if n == 3 { seconds(60) } else { seconds(0) };
        bench.create(new).await;
    }
    let worker = bench.worker().await;
    let claimed = bench.claim_one_of(worker).await;
    let stats = bench.queue.stats().await.unwrap();
    let expected = QueueStats { queued: 2, waiting: 1, processing: 1, workers: 1, ..QueueStats::default() };
    assert_eq!(stats, expected, "one ready, one parked, one waiting, one running");
    assert_eq!(bench.get(&claimed.job).await, claimed.job);
    assert_eq!(claimed.job.state, JobState::Processing);
    assert_eq!(claimed.job.started_at, Some(super::start()));
}

/// A cancel at any moment before a worker has the job ends it at once, with its event and hold.
pub async fn q3_cancel_ends_a_queued_job_at_once(bench: Bench) {
    let owner = tenant("ann");
    for kind in ["parked", "ready", "waiting"] {
        let mut new = roomy(&owner);
        if kind == "parked" {
            bench.job(&owner).await;
            new.limits.active_jobs = 1;
        }
        new.delay = seconds(if kind == "waiting" { 60 } else { 0 });
        let job = bench.create(new).await;
        let before = bench.usage(&owner).await.held;
        let event = sample::event("https://ann.example/hook");
        let canceled = bench.queue.cancel(&owner, job.id, Some(event.clone())).await.unwrap();
        assert_eq!((canceled.state, canceled.held), (JobState::Canceled, Usd::ZERO), "{kind}");
        assert!(canceled.ended_at.is_some() && canceled.version > job.version, "{kind}");
        assert_eq!(bench.get(&job).await, canceled, "{kind}");
        assert_eq!(bench.usage(&owner).await.held, before - sample::HOLD, "{kind}");
        assert_eq!(bench.deliveries(&owner).await[0].id, event.id, "{kind}");
        assert_eq!(refused(bench.queue.cancel(&owner, job.id, None).await), ErrorKind::TooLate, "{kind}");
    }
}

/// A cancel of a queued job that was handed back with a submission open leaves the end to a worker:
/// money may be out, and somebody must ask the provider to stop, and record what it cost (M11).
pub async fn q3_cancel_leaves_an_open_submission_to_a_worker(bench: Bench) {
    for delay in [0, 60] {
        let Claimed { claim, job } = bench.running(&tenant("ann")).await;
        bench.write(claim, sample::intent(job.id, StepKind::Image, 1), vec![]).await;
        bench.write(claim, sample::accepted(job.id, StepKind::Image, 2), vec![]).await;
        bench.release(claim, seconds(delay), false).await;
        let event = Some(sample::event("https://ann.example/hook"));
        let flagged = bench.queue.cancel(&job.tenant, job.id, event).await.unwrap();
        assert_eq!((flagged.state, flagged.cancel_requested), (JobState::Queued, true), "after {delay} s");
        assert_eq!(flagged.held, sample::HOLD, "the hold stays for what it may cost");
        assert!(bench.deliveries(&job.tenant).await.is_empty(), "the event belongs to the end");
        let again = bench.claim_one_of(claim.worker).await;
        assert_eq!((again.job.id, again.job.cancel_requested), (job.id, true), "at once, not after {delay} s");
        assert_eq!(bench.settle(again.claim, JobEnd::Canceled).await, Fenced::Applied);
    }
}

/// A cancel of a running job flags it: the worker learns it by checkpoint, and ends it.
pub async fn q3_cancel_flags_a_running_job(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    let owner = &claimed.job.tenant;
    let event = Some(sample::event("https://ann.example/hook"));
    let flagged = bench.queue.cancel(owner, claimed.claim.job, event).await.unwrap();
    assert_eq!((flagged.state, flagged.cancel_requested), (JobState::Processing, true));
    assert_eq!(flagged.version, claimed.job.version + 1);
    assert!(bench.deliveries(owner).await.is_empty(), "the event belongs to the end");
    let again = bench.queue.cancel(owner, claimed.claim.job, None).await.unwrap();
    assert_eq!(again, flagged, "asking twice changes nothing");
    assert!(bench.write(claimed.claim, sample::done(StepKind::Image, 1), vec![]).await.cancel);
    assert_eq!(bench.settle(claimed.claim, JobEnd::Canceled).await, Fenced::Applied);
    assert_eq!(bench.get(&flagged).await.state, JobState::Canceled);
}

/// Cancel and settle raced: one of them decided, and the job and its event agree.
pub async fn q3_cancel_and_settle_have_one_winner(bench: Bench) {
    let owner = tenant("ann");
    for _ in 0..40 {
        let claimed = bench.running(&owner).await;
        let job = claimed.claim.job;
        let (canceling, settling) = (bench.clone(), bench.clone());
        let cancel = tokio::spawn({
            let owner = owner.clone();
            async move { canceling.second.cancel(&owner, job, None).await.map_err(|e| e.kind()) }
        });
        let settle = tokio::spawn(async move {
            let events = vec![sample::event("https://ann.example/hook")];
            settling.settle_with(claimed.claim, JobEnd::Completed(sample::output()), Usd::ZERO, events).await
        });
        let (cancel, settle) = (cancel.await.unwrap(), settle.await.unwrap());
        assert_eq!(settle, Fenced::Applied);
        let job = bench.queue.get(&owner, job).await.unwrap();
        assert_eq!(job.state, JobState::Completed);
        match cancel {
            Ok(flagged) => assert!(flagged.state == JobState::Processing && job.cancel_requested),
            Err(kind) => assert!(kind == ErrorKind::TooLate && !job.cancel_requested),
        }
    }
    assert_eq!(bench.deliveries(&owner).await.len(), 40);
}
