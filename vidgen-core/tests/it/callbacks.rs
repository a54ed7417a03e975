//! Providers that call back: what a callback recovers, what it saves, and what it can never do.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use vidgen_core::memory::{Scene, ScriptedProvider};
use vidgen_core::*;

use crate::kit::{Call, Watched, accepted, bought, callbacks, caller, calling, elapsed, until};
use crate::pipeline::{World, failure};

const SECOND: Duration = Duration::from_secs(1);

fn video_by(provider: impl Into<Route>) -> Pipeline {
    Pipeline::named("default").video(provider)
}

/// A job whose answer was lost, and the submission that it was lost for.
async fn lost(world: &World, caller: &ScriptedProvider) -> (JobId, SubmissionId) {
    caller.then(StepKind::Video, Scene::LosesAnswer);
    let id = world.create_in("default").await;
    (id, bought(caller, StepKind::Video).await)
}

async fn is_recovered(world: &World, caller: &ScriptedProvider, id: JobId) {
    let job = world.ended(id).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
    assert_eq!((accepted(caller, StepKind::Video).len(), caller.requests().len()), (1, 1), "bought once");
    assert_eq!((job.cost, world.usage().await.held), (Usd::from_cents(50), Usd::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_recovered_by_a_callback_that_came_before_anybody_missed_it() {
    let caller = caller();
    caller.then(StepKind::Video, Scene::Hangs);
    let world = calling(video_by(caller.clone()));
    let worker = world.vidgen.worker().spawn();
    let id = world.create_in("default").await;
    let submission = bought(&caller, StepKind::Video).await;
    world.call(&caller, &submission).await.unwrap();
    let began = Instant::now();
    is_recovered(&world, &caller, id).await;
    assert!(elapsed(began) < 45.0, "the submit's own timeout and no more: {}", elapsed(began));
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_recovered_by_a_callback_while_the_job_is_put_off() {
    let caller = caller();
    let world = calling(video_by(caller.clone()));
    let worker = world.vidgen.worker().spawn();
    let (id, submission) = lost(&world, &caller).await;
    until("the job waits", async || world.queue.stats().await.unwrap().waiting == 1).await;
    sleep(Duration::from_secs(600)).await;
    world.call(&caller, &submission).await.unwrap();
    let began = Instant::now();
    is_recovered(&world, &caller, id).await;
    assert!(elapsed(began) < 10.0, "{}", elapsed(began));
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_recovered_by_a_callback_while_another_worker_is_at_the_step_beside_it() {
    let (caller, studio) = (caller(), ScriptedProvider::new("studio"));
    studio.then(StepKind::Speech, Scene::RunsForever);
    caller.then(StepKind::Video, Scene::LosesAnswer);
    let world = calling(video_by(caller.clone()).speech(studio.clone()).compose(studio.clone()));
    let first = world.vidgen.worker().spawn();
    let id = world.create().await;
    let submission = bought(&caller, StepKind::Video).await;
    let speech = bought(&studio, StepKind::Speech).await;
    drop(first);
    let second = world.vidgen.worker().spawn();
    until("the second one has it", async || world.job(id).await.crashes == 1).await;
    sleep(Duration::from_secs(100)).await;
    assert_eq!(world.job(id).await.state, JobState::Processing);
    world.call(&caller, &submission).await.unwrap();
    let began = Instant::now();
    let done = async || world.job(id).await.step(StepKind::Video).is_some_and(|s| s.state.as_str() == "done");
    until("the video is there", done).await;
    assert!(elapsed(began) < 10.0, "{}", elapsed(began));
    studio.end(&speech);
    assert_eq!(world.ended(id).await.state, JobState::Completed);
    assert_eq!(accepted(&caller, StepKind::Video).len(), 1);
    second.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_callback_at_the_worst_moment_is_heard_all_the_same() {
    // Around the moments at which the worker learns of the loss, releases the job and claims it.
    for millis in (0..2_000).step_by(50) {
        let caller = caller();
        let world = calling(video_by(caller.clone()));
        let worker = world.vidgen.worker().spawn();
        let (id, submission) = lost(&world, &caller).await;
        sleep(Duration::from_millis(millis)).await;
        world.call(&caller, &submission).await.unwrap();
        let began = Instant::now();
        is_recovered(&world, &caller, id).await;
        assert!(elapsed(began) < 40.0, "{millis} ms: {}", elapsed(began));
        worker.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_callback_that_is_repeated_late_or_out_of_order_changes_nothing() {
    let caller = caller();
    let world = calling(video_by(caller.clone()));
    let worker = world.vidgen.worker().spawn();
    // The first run fails; its callback comes when the second one is long on its way.
    caller.then(StepKind::Video, Scene::Fails(RunFailure::new(ErrorKind::Unavailable, "node died")));
    caller.then(StepKind::Video, Scene::RunsForever);
    let id = world.create_in("default").await;
    let first = bought(&caller, StepKind::Video).await;
    until("the second run", async || accepted(&caller, StepKind::Video).len() == 2).await;
    let second = accepted(&caller, StepKind::Video)[1].clone();
    for _ in 0..3 {
        world.call(&caller, &first).await.unwrap();
        sleep(SECOND).await;
    }
    let job = world.job(id).await;
    assert_eq!(job.step(StepKind::Video).unwrap().attempts.len(), 1);
    caller.end(&second);
    world.call(&caller, &second).await.unwrap();
    let ended = world.ended(id).await;
    assert_eq!(ended.state, JobState::Completed, "{:?}", ended.failure);
    let usage = world.usage().await;
    for submission in [&first, &second, &first] {
        world.call(&caller, submission).await.unwrap();
        sleep(Duration::from_secs(60)).await;
    }
    let mut later = world.job(id).await;
    later.witnesses.clone_from(&ended.witnesses);
    assert_eq!((later, world.usage().await), (ended, usage));
    assert_eq!(accepted(&caller, StepKind::Video).len(), 2);
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_forged_callback_is_unauthorized_and_changes_nothing() {
    let caller = caller();
    let world = calling(video_by(caller.clone()));
    let worker = world.vidgen.worker().spawn();
    let (id, submission) = lost(&world, &caller).await;
    let (url, genuine) = caller.callback_of(&submission, world.vidgen.clock().now()).unwrap();
    let other = submission_id(id, StepKind::Video, 2);
    let with = |from: &str, to: &str| url.as_str().replace(from, to).parse().unwrap();
    let unsigned = Callback::new([("x", "y")], genuine.body.clone(), genuine.received_at);
    for (url, callback) in [
        (with(submission.as_str(), other.as_str()), genuine.clone()),
        (with("signature=", "signature=0"), genuine.clone()),
        (url.clone(), unsigned),
    ] {
        let error = world.send(&caller.id(), &url, callback).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    }
    // Signed, but by somebody else's secret.
    let stranger = Callbacks::new("https://video.example", &"another secret, of 16".to_owned().into()).unwrap();
    let error = world.send(&caller.id(), &stranger.url(&caller.id(), &submission), genuine).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(world.job(id).await.witnesses.is_empty());
    assert_eq!(failure(&world.ended(id).await), "outcome_unknown");
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_callback_of_another_provider_speaks_for_nobodys_submission_but_its_own() {
    let (caller, other) = (caller(), ScriptedProvider::new("other").with_callback());
    let world = calling(video_by(caller.clone()).speech(other.clone()).compose(other.clone()));
    let worker = world.vidgen.worker().spawn();
    caller.then(StepKind::Video, Scene::LosesAnswer);
    let id = world.create().await;
    let submission = bought(&caller, StepKind::Video).await;
    let speech = bought(&other, StepKind::Speech).await;
    let (_, callback) = other.callback_of(&speech, world.vidgen.clock().now()).unwrap();
    // Even with a URL that the host signed for it.
    world.send(&other.id(), &callbacks().url(&other.id(), &submission), callback).await.unwrap();
    let job = world.ended(id).await;
    assert_eq!(failure(&job), "outcome_unknown");
    assert_eq!(job.held, Usd::from_cents(50), "it may have been bought");
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_the_remote_does_not_know_is_no_witness_that_it_was_paid_and_lost() {
    let caller = caller();
    let watched = Watched::new(&caller);
    let world = calling(video_by(watched.clone()));
    let worker = world.vidgen.worker().spawn();
    let (id, submission) = lost(&world, &caller).await;
    let (url, genuine) = caller.callback_of(&submission, world.vidgen.clock().now()).unwrap();
    let wrong = Callback::new([("scripted-signature", caller.secret())], "run-999 succeeded", genuine.received_at);
    let began = Instant::now();
    for _ in 0..1_000 {
        world.send(&caller.id(), &url, wrong.clone()).await.unwrap();
        sleep(Duration::from_millis(60)).await;
    }
    let looks = watched.times(Call::Poll).len();
    assert!(looks >= 1 && looks as f64 <= elapsed(began) + 2.0, "{looks} in {} s, with a floor of 1 s", elapsed(began));
    let job = world.job(id).await;
    assert!(!job.state.is_ended() && job.cost == Usd::ZERO, "{:?} {}", job.state, job.cost);
    world.send(&caller.id(), &url, genuine).await.unwrap();
    is_recovered(&world, &caller, id).await;

    // And if no better one comes, it is in doubt: nobody is charged, and the hold stays.
    let (id, submission) = {
        caller.then(StepKind::Video, Scene::LosesAnswer);
        let id = world.create_in("default").await;
        until("the second job's", async || caller.accepted().len() == 2).await;
        (id, caller.accepted()[1].clone())
    };
    let (url, _) = caller.callback_of(&submission, world.vidgen.clock().now()).unwrap();
    world.send(&caller.id(), &url, wrong).await.unwrap();
    let job = world.ended(id).await;
    assert_eq!((failure(&job), job.cost, job.held), ("outcome_unknown", Usd::ZERO, Usd::from_cents(50)));
    // Even a retry, for which the witness is reason enough to look again, finds nothing.
    world.vidgen.retry(&world.tenant, id, None).await.unwrap();
    let job = world.ended(id).await;
    assert_eq!((failure(&job), job.cost, job.held), ("outcome_unknown", Usd::ZERO, Usd::from_cents(50)));
    // Until the genuine one comes.
    world.call(&caller, &submission).await.unwrap();
    world.vidgen.retry(&world.tenant, id, None).await.unwrap();
    let job = world.ended(id).await;
    assert_eq!((job.state, job.cost, job.held), (JobState::Completed, Usd::from_cents(50), Usd::ZERO));
    assert_eq!(caller.requests().len(), 2);
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_witness_is_not_believed_while_the_remote_cannot_be_asked() {
    let caller = caller();
    let watched = Watched::new(&caller);
    let world = calling(video_by(watched.clone()));
    let worker = world.vidgen.worker().spawn();
    let (id, submission) = lost(&world, &caller).await;
    let (url, genuine) = caller.callback_of(&submission, world.vidgen.clock().now()).unwrap();
    let wrong = Callback::new([("scripted-signature", caller.secret())], "run-999 succeeded", genuine.received_at);
    // Away for a moment; and once more when nobody else can tell any more.
    for away in [3, 500] {
        for _ in 0..away {
            watched.answer_look(Error::new(ErrorKind::Unavailable, "caller", "is away"));
        }
    }
    world.send(&caller.id(), &url, wrong).await.unwrap();
    let job = world.ended(id).await;
    assert_eq!((failure(&job), job.cost, job.held), ("outcome_unknown", Usd::ZERO, Usd::from_cents(50)));
    worker.shutdown().await;
}

/// A run of ten minutes, of which the remote tells when it is over, or not.
async fn ten_minutes(watched: &Watched, calls: bool) -> (f64, usize) {
    let caller = &watched.inner;
    caller.then(StepKind::Video, Scene::RunsForever);
    let world = calling(video_by(watched.clone()));
    let worker = world.vidgen.worker().spawn();
    let id = world.create_in("default").await;
    let submission = bought(caller, StepKind::Video).await;
    sleep(Duration::from_secs(600)).await;
    caller.end(&submission);
    if calls {
        world.call(caller, &submission).await.unwrap();
    }
    let began = Instant::now();
    is_recovered(&world, caller, id).await;
    worker.shutdown().await;
    (elapsed(began), watched.times(Call::Poll).len())
}

#[tokio::test(start_paused = true)]
async fn a_run_of_ten_minutes_costs_few_polls_and_ends_within_seconds_of_its_callback() {
    let (late, polls) = ten_minutes(&Watched::new(&caller()), true).await;
    assert!(late < 3.0 && polls <= 25, "{late} s late, {polls} polls");
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_callbacks_are_lost_ends_by_the_safety_net() {
    let (late, polls) = ten_minutes(&Watched::new(&caller()), false).await;
    assert!(late < 35.0 && polls <= 25, "{late} s late, {polls} polls");
}

#[tokio::test(start_paused = true)]
async fn a_callback_during_a_poll_that_saw_the_run_going_on_is_not_lost() {
    let caller = caller();
    let watched = Watched::new(&caller).with_slow_polls(Duration::from_secs(4));
    caller.then(StepKind::Video, Scene::RunsForever);
    let world = calling(video_by(watched.clone()));
    let worker = world.vidgen.worker().spawn();
    let id = world.create_in("default").await;
    let submission = bought(&caller, StepKind::Video).await;
    until("a poll", async || watched.times(Call::Poll).len() == 3).await;
    sleep(SECOND).await;
    caller.end(&submission);
    world.call(&caller, &submission).await.unwrap();
    let began = Instant::now();
    is_recovered(&world, &caller, id).await;
    assert!(elapsed(began) < 12.0, "{}", elapsed(began));
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_callbacks_makes_no_more_polls_than_the_floor_allows() {
    let caller = caller().with_poll_floor(Duration::from_secs(5));
    let watched = Watched::new(&caller);
    caller.then(StepKind::Video, Scene::RunsForever);
    let world = calling(video_by(watched.clone()));
    let worker = world.vidgen.worker().spawn();
    let id = world.create_in("default").await;
    let submission = bought(&caller, StepKind::Video).await;
    let began = Instant::now();
    for _ in 0..1_000 {
        world.call(&caller, &submission).await.unwrap();
        sleep(Duration::from_millis(120)).await;
    }
    let polls = watched.times(Call::Poll);
    assert!(polls.windows(2).all(|w| w[1] - w[0] >= Duration::from_secs(5)), "{polls:?}");
    assert!(polls.len() as f64 <= elapsed(began) / 5.0 + 1.0 && polls.len() > 5, "{}", polls.len());
    caller.end(&submission);
    world.call(&caller, &submission).await.unwrap();
    is_recovered(&world, &caller, id).await;
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn where_only_callbacks_tell_the_end_is_heard_and_never_taken_back() {
    for overtaken in [false, true] {
        let deaf = ScriptedProvider::new("caller").without_find().with_only_callback().without_cancel();
        deaf.then(StepKind::Video, Scene::RunsForever);
        let world = calling(video_by(deaf.clone()));
        let worker = world.vidgen.worker().spawn();
        let id = world.create_in("default").await;
        let submission = bought(&deaf, StepKind::Video).await;
        let (url, early) = deaf.callback_of(&submission, world.vidgen.clock().now()).unwrap();
        world.send(&deaf.id(), &url, early.clone()).await.unwrap();
        sleep(Duration::from_secs(300)).await;
        assert_eq!(world.job(id).await.state, JobState::Processing, "it goes on");
        deaf.end(&submission);
        let began = Instant::now();
        world.call(&deaf, &submission).await.unwrap();
        if overtaken {
            world.send(&deaf.id(), &url, early).await.unwrap();
        }
        is_recovered(&world, &deaf, id).await;
        assert!(elapsed(began) < 35.0, "{}", elapsed(began));
        assert_eq!(deaf.looks(&submission), 0, "nobody asked");
        worker.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn where_only_callbacks_tell_a_lost_answer_is_recovered_by_the_end() {
    let deaf = ScriptedProvider::new("caller").without_find().with_only_callback();
    let world = calling(video_by(deaf.clone()));
    let worker = world.vidgen.worker().spawn();
    let (id, submission) = lost(&world, &deaf).await;
    sleep(Duration::from_secs(200)).await;
    world.call(&deaf, &submission).await.unwrap();
    is_recovered(&world, &deaf, id).await;
    worker.shutdown().await;
}

#[test]
fn a_provider_that_only_calls_back_needs_somewhere_to_call() {
    let deaf = ScriptedProvider::new("caller").with_only_callback();
    let built = Vidgen::builder().pipeline(video_by(deaf)).build();
    assert!(built.unwrap_err().message().contains("needs callbacks"));
}
