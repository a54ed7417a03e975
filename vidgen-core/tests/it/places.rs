//! A credential with room for a few live runs: nobody passes it, nobody starves, no place is lost.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use vidgen_core::memory::{Scene, ScriptedProvider};
use vidgen_core::*;

use crate::kit::{Call, Watched, accepted, elapsed, until};
use crate::pipeline::{World, world};

const SECOND: Duration = Duration::from_secs(1);

fn narrow() -> ScriptedProvider {
    ScriptedProvider::new("narrow").with_max_live(3).with_poll_floor(SECOND)
}

fn through(provider: impl Into<Route>) -> World {
    world(Pipeline::named("default").video(provider))
}

/// Ends every run there is and waits until all of these are completed.
async fn drain(world: &World, narrow: &ScriptedProvider, ids: &[JobId]) {
    let drained = async || {
        for submission in narrow.accepted() {
            narrow.end(&submission);
        }
        let mut ended = true;
        for id in ids {
            ended &= world.job(*id).await.state.is_ended();
        }
        ended
    };
    until("all ended", drained).await;
}

#[tokio::test(start_paused = true)]
async fn no_more_runs_are_live_than_there_are_places_and_nobody_starves() {
    let narrow = narrow();
    narrow.always(Some(Scene::Succeeds { after_polls: 4 }));
    let world = through(narrow.clone());
    let ids = world.create_many(50).await;
    let worker = world.vidgen.worker().spawn();
    let jobs = world.completed(&ids).await;
    assert_eq!((narrow.most_live(), accepted(&narrow, StepKind::Video).len()), (3, 50));
    let order: Vec<_> = narrow.accepted().iter().map(|s| s.job().unwrap()).collect();
    assert_eq!(order, ids, "first come, first served");
    assert!(jobs.iter().all(|job| job.attempts == 0));
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_place_is_canceled_quickly_and_for_nothing() {
    let narrow = narrow();
    narrow.always(Some(Scene::RunsForever));
    let world = through(narrow.clone());
    let ids = world.create_many(6).await;
    let worker = world.vidgen.worker().spawn();
    until("three are live", async || narrow.accepted().len() == 3).await;
    sleep(Duration::from_secs(60)).await;
    let waiting = ids[4];
    let began = Instant::now();
    world.vidgen.cancel(&world.tenant, waiting).await.unwrap();
    let job = world.ended(waiting).await;
    assert_eq!((job.state, job.cost), (JobState::Canceled, Usd::ZERO));
    assert!(elapsed(began) < 1.0, "{}", elapsed(began));
    // Its turn is nobody's loss.
    drain(&world, &narrow, &[ids[0], ids[1], ids[2], ids[3], ids[5]]).await;
    assert_eq!((narrow.most_live(), narrow.accepted().len()), (3, 5));
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_was_taken_over_takes_a_place() {
    let narrow = narrow();
    narrow.always(Some(Scene::RunsForever));
    let before = through(narrow.clone());
    let mut ids = before.create_many(8).await;
    let worker = before.vidgen.worker().spawn();
    until("three are live", async || narrow.accepted().len() == 3).await;
    worker.shutdown().await;
    // Another process: its places are its own.
    let vidgen = Vidgen::builder()
        .queue(before.queue.clone())
        .store(memory::MemoryStore::new())
        .pipeline(Pipeline::named("default").video(narrow.clone()))
        .clock(before.vidgen.clock().clone())
        .build()
        .unwrap();
    let world = World { vidgen, ..before };
    let worker = world.vidgen.worker().spawn();
    ids.extend(world.create_many(4).await);
    sleep(Duration::from_secs(300)).await;
    assert_eq!((narrow.most_live(), narrow.accepted().len()), (3, 3), "what is live already counts");
    drain(&world, &narrow, &ids).await;
    assert_eq!((narrow.most_live(), narrow.accepted().len()), (3, 12));
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn runs_that_were_taken_over_late_count_although_there_is_no_place_left() {
    let narrow = narrow();
    narrow.always(Some(Scene::RunsForever));
    let before = through(narrow.clone());
    let old = before.create_many(3).await;
    let worker = before.vidgen.worker().spawn();
    until("three are live", async || narrow.accepted().len() == 3).await;
    drop(worker);
    let other = || {
        let builder = Vidgen::builder().queue(before.queue.clone()).store(memory::MemoryStore::new());
        let pipeline = Pipeline::named("default").video(narrow.clone());
        builder.pipeline(pipeline).clock(before.vidgen.clock().clone()).build().unwrap()
    };
    let world = World { vidgen: other(), queue: before.queue.clone(), ..before };
    // Nobody knows yet that the first worker is dead: new runs fill the places.
    let new = world.create_many(9).await;
    let worker = world.vidgen.worker().spawn();
    until("six are live", async || narrow.accepted().len() == 6).await;
    until("the old ones are taken over", async || world.job(old[0]).await.crashes == 1).await;
    sleep(Duration::from_secs(10)).await;
    // Three of the six end: there are still as many as there may be.
    for submission in narrow.accepted().iter().take(3) {
        narrow.end(submission);
    }
    world.completed(&old).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(narrow.accepted().len(), 6, "nothing new is begun before there is room");
    drain(&world, &narrow, &new).await;
    assert_eq!(narrow.accepted().len(), 12);
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn no_place_is_lost_to_failures_cancels_or_crashes() {
    let narrow = narrow();
    let watched = Watched::new(&narrow);
    let world = through(watched.clone());
    let worker = world.vidgen.worker().spawn();
    let refused = || Scene::Rejects(ErrorKind::Refused);
    let fails = || Scene::Fails(RunFailure::new(ErrorKind::Refused, "no"));
    for scene in [refused(), fails(), Scene::Rejects(ErrorKind::Unsupported), Scene::Vanishes, Scene::Expires] {
        narrow.always(Some(scene));
        for id in world.create_many(5).await {
            assert_eq!(world.ended(id).await.state, JobState::Failed);
        }
    }
    // Canceled while live.
    narrow.always(Some(Scene::RunsForever));
    let ids = world.create_many(3).await;
    let before = narrow.accepted().len();
    until("they are live", async || narrow.accepted().len() >= before && world.job(ids[2]).await.has_open_submission())
        .await;
    for id in &ids {
        world.vidgen.cancel(&world.tenant, *id).await.unwrap();
        assert_eq!(world.ended(*id).await.state, JobState::Canceled);
    }
    // Dropped by a worker that dies; the next one is of the same process.
    narrow.always(Some(Scene::Succeeds { after_polls: 20 }));
    let ids = world.create_many(3).await;
    until("they are live", async || world.job(ids[2]).await.has_open_submission()).await;
    drop(worker);
    let worker = world.vidgen.worker().spawn();
    world.completed(&ids).await;
    // And all three places are there.
    let begun = watched.times(Call::Submit).len();
    narrow.always(Some(Scene::RunsForever));
    let ids = world.create_many(4).await;
    until("three at once", async || watched.times(Call::Submit).len() == begun + 3).await;
    sleep(Duration::from_secs(100)).await;
    assert_eq!(watched.times(Call::Submit).len(), begun + 3);
    drain(&world, &narrow, &ids).await;
    assert_eq!(narrow.most_live(), 3);
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn who_waited_for_a_place_does_not_submit_to_a_provider_that_refuses_us_meanwhile() {
    let narrow = narrow();
    narrow.always(Some(Scene::RunsForever));
    let world = through(narrow.clone());
    let ids = world.create_many(20).await;
    let worker = world.vidgen.worker().spawn();
    until("three are live", async || narrow.accepted().len() == 3).await;
    sleep(Duration::from_secs(30)).await;
    narrow.always(Some(Scene::Rejects(ErrorKind::OverBudget)));
    for submission in narrow.accepted() {
        narrow.end(&submission);
    }
    sleep(Duration::from_secs(50)).await;
    assert_eq!(narrow.requests().len(), 6, "those who got the places; they spoke for all");
    narrow.always(None);
    world.completed(&ids).await;
    worker.shutdown().await;
}
