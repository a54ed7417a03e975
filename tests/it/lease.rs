//! What a worker does that lost its lease, or may have, and what a stop waits for.

use std::time::Duration;

use vidgen_core::memory::{Scene, ScriptedProvider};
use vidgen_core::*;
use vidgen_tests::faults::{Faults, Point};

use crate::crash_memory::{World, check, request, settled};

async fn created(vidgen: &Vidgen) -> JobId {
    vidgen.create(&TenantId::single(), request(), CreateOptions::default()).await.unwrap().job.id
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_job_was_taken_over_writes_nothing_and_buys_nothing() {
    let studio = ScriptedProvider::new("studio").with_poll_floor(Duration::from_secs(20));
    studio.then(StepKind::Video, Scene::Succeeds { after_polls: 4 });
    let world = World::new(studio);
    // It hears no beat, believes in a lease that is much longer than the queue's, and has no free
    // hand to claim with: nothing but the answer to a write can tell it.
    let faults = Faults::none();
    let first = world.process(&faults);
    let id = created(&first).await;
    let stale = first.worker().lease(Duration::from_secs(24 * 3600)).concurrency(1).deliveries(0).spawn();
    tokio::time::sleep(Duration::from_secs(5)).await;
    faults.deafen();
    let second = world.process(&Faults::none()).worker().spawn();
    settled(&world, id).await;
    // Both polled the same run to its end; the first one found out with its next write.
    tokio::time::sleep(Duration::from_secs(600)).await;
    stale.shutdown().await;
    second.shutdown().await;
    let job = world.job(id).await;
    assert_eq!(job.crashes, 1, "it was taken over");
    check(&world, &job, "taken over");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_hears_no_beat_spends_no_money_and_then_begins_anew() {
    let world = World::new(ScriptedProvider::new("studio"));
    let faults = Faults::none();
    faults.deafen();
    let host = world.process(&faults);
    let worker = host.worker().spawn();
    tokio::time::sleep(Duration::from_secs(22)).await;
    let id = created(&host).await;
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(world.job(id).await.state, JobState::Processing, "it was claimed");
    assert!(world.studio.requests().is_empty(), "two thirds of the lease are over: nothing is bought");
    settled(&world, id).await;
    worker.shutdown().await;
    check(&world, &world.job(id).await, "after the new registration");
}

#[tokio::test(start_paused = true)]
async fn an_intent_that_took_too_long_to_write_is_not_sent() {
    let world = World::new(ScriptedProvider::new("studio"));
    let faults = Faults::none();
    faults.delay(Point::AfterIntent, Duration::from_secs(25));
    let host = world.process(&faults);
    let id = created(&host).await;
    let worker = host.worker().spawn();
    tokio::time::sleep(Duration::from_secs(26)).await;
    let late: Vec<_> = world.job(id).await.steps.into_iter().flat_map(|s| s.attempts).collect();
    assert_eq!(late.len(), 1);
    assert_eq!(late[0].kind, ErrorKind::NotSent);
    settled(&world, id).await;
    worker.shutdown().await;
    check(&world, &world.job(id).await, "sent later, under the same id");
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_a_submit_that_is_on_the_wire_and_writes_its_outcome() {
    let world = World::new(ScriptedProvider::new("studio"));
    let faults = Faults::none();
    faults.delay(Point::BeforePost, Duration::from_secs(15));
    let host = world.process(&faults);
    let id = created(&host).await;
    let worker = host.worker().spawn();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let began = tokio::time::Instant::now();
    worker.shutdown().await;
    assert!(began.elapsed() >= Duration::from_secs(9), "{:?}", began.elapsed());
    let job = world.job(id).await;
    assert_eq!(job.state, JobState::Queued, "handed back");
    let open = |s: &StepRecord| matches!(s.state, StepState::Intent { .. });
    assert!(!job.steps.iter().any(open), "its outcome was written: {:#?}", job.steps);
    assert!(job.steps.iter().any(|s| matches!(s.state, StepState::Accepted { .. })));
    let worker = host.worker().spawn();
    settled(&world, id).await;
    worker.shutdown().await;
    check(&world, &world.job(id).await, "after the stop");
}

#[tokio::test(start_paused = true)]
async fn a_delivery_whose_outcome_could_not_be_recorded_is_not_left_on_its_way() {
    let world = World::new(ScriptedProvider::new("studio"));
    // Neither the failure of the first attempt nor the success of the second is recorded at once.
    world.notifier.answer(Err(Error::new(ErrorKind::Unavailable, "receiver", "is away")));
    let faults = Faults::none();
    faults.refuse_delivery_records(2);
    let host = world.process(&faults);
    let id = created(&host).await;
    let worker = host.worker().spawn();
    let told = tokio::time::timeout(Duration::from_secs(600), settled(&world, id)).await;
    worker.shutdown().await;
    told.expect("it stayed on its way");
    check(&world, &world.job(id).await, "after the queue was away");
}

#[tokio::test(start_paused = true)]
async fn an_outcome_is_kept_for_a_queue_that_is_away_for_longer_than_the_lease() {
    // Nobody else could ever tell what became of the submit.
    let world = World::new(ScriptedProvider::new("studio").without_find());
    let faults = Faults::none();
    faults.delay(Point::BeforePost, Duration::from_secs(2));
    let host = world.process(&faults);
    let id = created(&host).await;
    let worker = host.worker().spawn();
    tokio::time::sleep(Duration::from_secs(1)).await;
    faults.set_away(true);
    tokio::time::sleep(Duration::from_secs(60)).await;
    faults.set_away(false);
    settled(&world, id).await;
    worker.shutdown().await;
    check(&world, &world.job(id).await, "after the outage");
}
