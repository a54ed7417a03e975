//! The whole machine in process, on a virtual clock: what a job's life looks like when providers
//! fail, refuse, forget, hang and come back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use vidgen_core::clock::VirtualClock;
use vidgen_core::memory::{MemoryNotifier, MemoryQueue, MemoryStore, Scene, ScriptedProvider};
use vidgen_core::*;

pub(crate) struct World {
    pub(crate) vidgen: Vidgen,
    pub(crate) queue: MemoryQueue,
    pub(crate) notifier: MemoryNotifier,
    pub(crate) tenant: TenantId,
}

pub(crate) fn clock() -> VirtualClock {
    VirtualClock::starting_at(Timestamp::from_second(1_800_000_000).unwrap())
}

pub(crate) fn everything_by(studio: &ScriptedProvider) -> Pipeline {
    Pipeline::named("default")
        .image(studio.clone())
        .video(studio.clone())
        .speech(studio.clone())
        .compose(studio.clone())
}

pub(crate) fn world(pipeline: Pipeline) -> World {
    world_with(pipeline, |builder| builder)
}

pub(crate) fn world_with(pipeline: Pipeline, change: impl FnOnce(VidgenBuilder) -> VidgenBuilder) -> World {
    let clock = Arc::new(clock());
    let queue = MemoryQueue::with_clock(clock.clone());
    let notifier = MemoryNotifier::new();
    let builder = Vidgen::builder()
        .queue(queue.clone())
        .store(MemoryStore::new())
        .notifier(notifier.clone())
        .pipeline(pipeline)
        .clock(*clock);
    let vidgen = change(builder).build().unwrap();
    World { vidgen, queue, notifier, tenant: TenantId::single() }
}

impl World {
    pub(crate) async fn create(&self) -> JobId {
        let request =
            JobRequest::new("a cat in space").with_script("This is a cat").with_webhook_url("https://example.com/hook");
        self.vidgen.create(&self.tenant, request, CreateOptions::default()).await.unwrap().job.id
    }

    pub(crate) async fn job(&self, id: JobId) -> Job {
        self.vidgen.get(&self.tenant, id).await.unwrap()
    }

    /// Works until the job ended; a day on the virtual clock at most.
    pub(crate) async fn finish(&self, id: JobId) -> Job {
        let worker = self.vidgen.worker().spawn();
        let job = self.ended(id).await;
        worker.shutdown().await;
        job
    }

    pub(crate) async fn ended(&self, id: JobId) -> Job {
        let mut job = self.job(id).await;
        for _ in 0..50_000 {
            if job.state.is_ended() {
                return job;
            }
            job = self.vidgen.watch(&self.tenant, id, job.version, Duration::from_secs(2)).await.unwrap();
        }
        panic!("still {:?} after a day: {:#?}", job.state, job.steps);
    }

    pub(crate) async fn usage(&self) -> UsageReport {
        self.vidgen.usage(&self.tenant, &UsageFilter::default()).await.unwrap()
    }
}

pub(crate) fn failure(job: &Job) -> &str {
    &job.failure.as_ref().expect("no failure").code
}

#[tokio::test(start_paused = true)]
async fn a_job_is_made_charged_and_told_of() {
    let studio = ScriptedProvider::new("studio");
    let world = world(everything_by(&studio));
    let id = world.create().await;
    assert_eq!(world.usage().await.held, Usd::from_cents(65));
    let job = world.finish(id).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
    assert_eq!((job.progress, job.cost, job.held), (100, Usd::from_cents(65), Usd::ZERO));
    assert_eq!(studio.accepted().len(), 5);
    let output = job.output.unwrap();
    assert_eq!(output.video.media_type, MediaType::Mp4);
    assert_eq!(output.thumbnail.unwrap().media_type, MediaType::Jpeg);
    let media = world.vidgen.store().get(&output.video.key, None).await.unwrap();
    assert_eq!(media.head.length, output.video.length);
    let usage = world.usage().await;
    assert_eq!((usage.cost, usage.charged, usage.held), (Usd::from_cents(65), Usd::from_cents(65), Usd::ZERO));
    let told = world.notifier.deliveries();
    assert_eq!(told.len(), 1);
    let body: serde_json::Value = serde_json::from_str(&told[0].body).unwrap();
    assert_eq!((&body["type"], &body["status"]), (&"job.completed".into(), &"completed".into()));
    assert!(!told[0].body.contains("cat in space"), "no prompt leaves in a webhook");
}

#[tokio::test(start_paused = true)]
async fn progress_rises_and_never_falls() {
    let studio = ScriptedProvider::new("studio").with_poll_floor(Duration::from_secs(2));
    for kind in StepKind::ALL {
        studio.then(kind, Scene::Succeeds { after_polls: 10 });
    }
    let world = world(everything_by(&studio));
    let id = world.create().await;
    let worker = world.vidgen.worker().spawn();
    let (mut job, mut seen) = (world.job(id).await, vec![]);
    while !job.state.is_ended() {
        seen.push((job.state, job.progress));
        job = world.vidgen.watch(&world.tenant, id, job.version, Duration::from_secs(60)).await.unwrap();
    }
    seen.push((job.state, job.progress));
    worker.shutdown().await;
    assert!(seen.windows(2).all(|w| w[0].1 <= w[1].1), "{seen:?}");
    assert_eq!(seen.first(), Some(&(JobState::Queued, 0)));
    assert_eq!(seen.last(), Some(&(JobState::Completed, 100)));
    for mark in [10, 25, 60, 90] {
        assert!(seen.iter().any(|(_, p)| *p == mark), "{mark} is never seen: {seen:?}");
    }
    assert!(seen.iter().any(|(_, p)| *p > 25 && *p < 60), "the provider's own progress shows: {seen:?}");
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_retried_with_backoff_and_then_fails_over() {
    let (first, second) = (ScriptedProvider::new("first"), ScriptedProvider::new("second"));
    first.always(Some(Scene::Rejects(ErrorKind::Unavailable)));
    let pipeline = Pipeline::named("default")
        .image(second.clone())
        .video(first.clone())
        .or(second.clone())
        .speech(second.clone())
        .compose(second.clone());
    let world = world(pipeline);
    let id = world.create().await;
    let began = tokio::time::Instant::now();
    let job = world.finish(id).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
    let took = began.elapsed();
    assert_eq!(first.requests().len(), 3, "three attempts");
    // 5 s and 10 s, each up to twice as long by jitter, and not a second more.
    assert!(took >= Duration::from_secs(15) && took <= Duration::from_secs(45), "{took:?}");
    let video = job.step(StepKind::Video).unwrap();
    assert_eq!(video.attempts.len(), 3);
    assert!(matches!(&video.state, StepState::Done { provider, .. } if provider.as_str() == "second"));
    assert_eq!(job.cost, Usd::from_cents(65));
}

#[tokio::test(start_paused = true)]
async fn without_an_alternative_the_job_fails_readably_and_costs_its_owner_nothing() {
    let (studio, down) = (ScriptedProvider::new("studio"), ScriptedProvider::new("down"));
    down.always(Some(Scene::Rejects(ErrorKind::Unavailable)));
    let pipeline = Pipeline::named("default")
        .image(studio.clone())
        .video(down.clone())
        .speech(studio.clone())
        .compose(studio.clone());
    let world = world(pipeline);
    let id = world.create().await;
    let job = world.finish(id).await;
    assert_eq!((job.state, failure(&job)), (JobState::Failed, "unavailable"));
    assert_eq!(job.failure.as_ref().unwrap().step, Some(StepKind::Video));
    assert_eq!(job.cost, Usd::from_cents(15), "image and speech were bought");
    let usage = world.usage().await;
    assert_eq!((usage.charged, usage.held), (Usd::ZERO, Usd::ZERO));
    assert_eq!(usage.cost, Usd::from_cents(15));

    // The provider is back: a retry goes on from the last good step and buys nothing again.
    down.always(None);
    let before = studio.accepted().len();
    world.vidgen.retry(&world.tenant, id, None).await.unwrap();
    let job = world.finish(id).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
    assert_eq!(studio.accepted().len() - before, 2, "compose and thumbnail");
    assert_eq!(world.usage().await.charged, Usd::from_cents(65), "now its owner got it");
}

#[tokio::test(start_paused = true)]
async fn refusals_end_the_job_at_once_and_never_fail_over() {
    for (kind, code) in [(ErrorKind::Refused, "content_refused"), (ErrorKind::Invalid, "invalid_request")] {
        let (strict, other) = (ScriptedProvider::new("strict"), ScriptedProvider::new("other"));
        strict.always(Some(Scene::Rejects(kind)));
        let world = world(
            Pipeline::named("default")
                .video(strict.clone())
                .or(other.clone())
                .compose(other.clone())
                .speech(other.clone()),
        );
        let id = world.create().await;
        let began = tokio::time::Instant::now();
        let job = world.finish(id).await;
        assert_eq!((job.state, failure(&job)), (JobState::Failed, code));
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert_eq!(strict.requests().len(), 1);
        assert!(!other.accepted().iter().any(|s| s.as_str().contains("video")), "not bought elsewhere");
        assert!(job.failure.unwrap().message.contains("the scene says no"), "the provider's reason is passed on");
        let told = world.notifier.deliveries();
        assert_eq!(told.first().map(|d| d.kind.as_str()), Some("job.failed"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_found_and_nothing_is_bought_twice() {
    let studio = ScriptedProvider::new("studio");
    for kind in [StepKind::Image, StepKind::Video, StepKind::Speech] {
        studio.then(kind, Scene::LosesAnswer);
    }
    let world = world(everything_by(&studio));
    let id = world.create().await;
    let job = world.finish(id).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
    let mut accepted = studio.accepted();
    accepted.sort();
    accepted.dedup();
    assert_eq!((accepted.len(), studio.accepted().len()), (5, 5), "one accepted submission a step");
}

#[tokio::test(start_paused = true)]
async fn a_lost_request_is_sent_again_only_after_it_can_no_longer_arrive() {
    let studio = ScriptedProvider::new("studio");
    studio.then(StepKind::Image, Scene::LosesRequest);
    let world = world(everything_by(&studio));
    let id = world.create().await;
    let began = tokio::time::Instant::now();
    let job = world.finish(id).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
    assert!(began.elapsed() >= Duration::from_secs(20 + 30 + 60), "{:?}", began.elapsed());
    let image: Vec<_> = studio.requests().into_iter().filter(|s| s.as_str().contains("image")).collect();
    assert_eq!(image.len(), 2);
    assert_eq!(image[0], image[1], "the slot was not bought, so it keeps its id");
}

#[tokio::test(start_paused = true)]
async fn a_submission_nobody_can_look_up_is_in_doubt_and_its_hold_is_kept() {
    let (studio, blind) = (ScriptedProvider::new("studio"), ScriptedProvider::new("blind").without_find());
    blind.then(StepKind::Video, Scene::LosesAnswer);
    let world = world(
        Pipeline::named("default").video(blind.clone()).or(studio.clone()).compose(studio.clone()).speech(studio),
    );
    let id = world.create().await;
    let job = world.finish(id).await;
    assert_eq!((job.state, failure(&job)), (JobState::Failed, "outcome_unknown"));
    assert_eq!(blind.requests().len(), 1, "never sent again, never failed over");
    assert_eq!(world.usage().await.held, Usd::from_cents(50));
    let error = world.vidgen.retry(&world.tenant, id, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);

    let job = world.vidgen.resolve(&world.tenant, id, Verdict::Bought).await.unwrap();
    assert_eq!(job.cost, Usd::from_cents(55), "speech, and the video at its price");
    let usage = world.usage().await;
    assert_eq!((usage.held, usage.charged), (Usd::ZERO, Usd::ZERO));
    world.vidgen.retry(&world.tenant, id, None).await.unwrap();
    assert_eq!(world.finish(id).await.state, JobState::Completed);
}

#[tokio::test(start_paused = true)]
async fn a_submit_that_never_answers_is_given_up_and_looked_for() {
    let studio = ScriptedProvider::new("studio");
    studio.then(StepKind::Video, Scene::Hangs);
    let world = world(everything_by(&studio));
    let id = world.create().await;
    assert_eq!(world.finish(id).await.state, JobState::Completed);
    assert_eq!(studio.requests().iter().filter(|s| s.as_str().contains("video")).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_fails_is_bought_again_and_only_what_was_billed_costs() {
    let studio = ScriptedProvider::new("studio");
    studio.then(StepKind::Image, Scene::Fails(RunFailure::new(ErrorKind::Unavailable, "out of memory").with_bill()));
    studio.then(StepKind::Video, Scene::Fails(RunFailure::new(ErrorKind::Unavailable, "node died")));
    let world = world(everything_by(&studio));
    let id = world.create().await;
    let job = world.finish(id).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
    assert_eq!(job.cost, Usd::from_cents(75), "the image twice, the video once");
    let usage = world.usage().await;
    assert_eq!(usage.rows.iter().map(|r| r.cost).sum::<Usd>(), usage.charged, "the report is the sum of its rows");
}

#[tokio::test(start_paused = true)]
async fn a_job_may_not_buy_without_end() {
    let (studio, more) = (ScriptedProvider::new("studio"), ScriptedProvider::new("more"));
    for provider in [&studio, &more] {
        provider.always(Some(Scene::Fails(RunFailure::new(ErrorKind::Unavailable, "bad luck").with_bill())));
    }
    // Three attempts each would be six purchases for a job of three steps.
    let world = world(Pipeline::named("default").video(studio.clone()).or(more.clone()).compose(studio.clone()));
    let created = world.vidgen.create(&world.tenant, JobRequest::new("a cat"), CreateOptions::default());
    let id = created.await.unwrap().job.id;
    let job = world.finish(id).await;
    assert_eq!((job.state, failure(&job)), (JobState::Failed, "too_many_submissions"));
    assert_eq!(studio.accepted().len() + more.accepted().len(), job.plan.steps.len() + 1);
    assert_eq!(world.usage().await.charged, Usd::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_is_waited_for_and_costs_no_attempt() {
    let studio = ScriptedProvider::new("studio");
    for _ in 0..5 {
        studio.then(StepKind::Image, Scene::RateLimits(Duration::from_secs(40)));
    }
    let world = world(everything_by(&studio));
    let id = world.create().await;
    let began = tokio::time::Instant::now();
    let job = world.finish(id).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
    assert!(began.elapsed() >= Duration::from_secs(200), "{:?}", began.elapsed());
    assert_eq!(job.attempts, 0);
}

#[tokio::test(start_paused = true)]
async fn a_canceled_job_is_canceled_at_the_provider_once_and_its_real_cost_is_charged() {
    let studio = ScriptedProvider::new("studio");
    studio.then(StepKind::Video, Scene::RunsForever);
    let world = world(everything_by(&studio));
    let id = world.create().await;
    let worker = world.vidgen.worker().spawn();
    let mut job = world.job(id).await;
    while !job.step(StepKind::Video).is_some_and(|s| matches!(s.state, StepState::Accepted { .. })) {
        job = world.vidgen.watch(&world.tenant, id, job.version, Duration::from_secs(5)).await.unwrap();
    }
    assert!(world.vidgen.cancel(&world.tenant, id).await.unwrap().cancel_requested);
    let job = world.ended(id).await;
    worker.shutdown().await;
    assert_eq!(job.state, JobState::Canceled);
    assert_eq!(studio.cancels().len(), 1);
    assert_eq!(job.output, None);
    assert!(!studio.accepted().iter().any(|s| s.as_str().contains("compose")), "nothing new was begun");
    let usage = world.usage().await;
    assert_eq!((usage.charged, usage.held), (job.cost, Usd::ZERO));
    assert_eq!(world.notifier.deliveries().last().map(|d| d.kind.clone()), Some("job.canceled".into()));
}

#[tokio::test(start_paused = true)]
async fn a_queued_job_is_canceled_at_once_for_nothing() {
    let studio = ScriptedProvider::new("studio");
    let world = world(everything_by(&studio));
    let id = world.create().await;
    let job = world.vidgen.cancel(&world.tenant, id).await.unwrap();
    assert_eq!((job.state, job.cost), (JobState::Canceled, Usd::ZERO));
    assert_eq!(world.vidgen.cancel(&world.tenant, id).await.unwrap_err().kind(), ErrorKind::TooLate);
    assert!(studio.requests().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_run_that_never_ends_is_canceled_at_its_deadline() {
    let studio = ScriptedProvider::new("studio");
    studio.then(StepKind::Video, Scene::RunsForever);
    let world = world(everything_by(&studio));
    let id = world.create().await;
    let job = world.finish(id).await;
    assert_eq!((job.state, failure(&job)), (JobState::Failed, "timed_out"));
    assert_eq!(studio.cancels().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_the_provider_forgot_is_not_free() {
    let studio = ScriptedProvider::new("studio");
    studio.then(StepKind::Video, Scene::Vanishes);
    let world = world(everything_by(&studio));
    let id = world.create().await;
    let job = world.finish(id).await;
    assert_eq!(job.state, JobState::Failed);
    assert_eq!(job.cost, Usd::from_cents(65), "image, speech and the video at its price");
}

#[tokio::test(start_paused = true)]
async fn an_output_that_breaks_off_is_copied_again_and_never_bought_again() {
    let studio = ScriptedProvider::new("studio");
    studio.then(StepKind::Video, Scene::Truncates { times: 2 });
    let world = world(everything_by(&studio));
    let id = world.create().await;
    let job = world.finish(id).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
    assert_eq!(studio.accepted().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn an_output_that_is_not_what_it_should_be_ends_the_job() {
    let studio = ScriptedProvider::new("studio");
    studio.makes(StepKind::Video, Bytes::from_static(b"<html>sorry</html>"));
    let world = world(everything_by(&studio));
    let id = world.create().await;
    let job = world.finish(id).await;
    assert_eq!((job.state, failure(&job)), (JobState::Failed, "output_invalid"));
    assert_eq!(studio.accepted().iter().filter(|s| s.as_str().contains("video")).count(), 1, "never bought again");
}

#[tokio::test(start_paused = true)]
async fn speech_that_nobody_can_make_is_left_out_where_the_host_allows_it() {
    let (studio, mute) = (ScriptedProvider::new("studio"), ScriptedProvider::new("mute"));
    mute.always(Some(Scene::Rejects(ErrorKind::Unsupported)));
    let pipeline = |optional: bool| {
        let speech = Pipeline::named("default").video(studio.clone()).compose(studio.clone()).speech(mute.clone());
        if optional { speech.optional() } else { speech }
    };
    let forgiving = world(pipeline(true));
    let id = forgiving.create().await;
    let job = forgiving.finish(id).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
    let status = forgiving.vidgen.status(&job).await.unwrap();
    assert_eq!(status.notes, ["without speech: the scene says no"]);
    let strict = world(pipeline(false));
    let id = strict.create().await;
    assert_eq!(strict.finish(id).await.state, JobState::Failed);
}

#[tokio::test(start_paused = true)]
async fn a_stop_hands_every_job_back_and_the_next_worker_polls_the_same_runs() {
    let studio = ScriptedProvider::new("studio").with_poll_floor(Duration::from_secs(5));
    for _ in 0..20 {
        studio.then(StepKind::Video, Scene::Succeeds { after_polls: 20 });
    }
    let world = world(Pipeline::named("default").video(studio.clone()).compose(studio.clone()).speech(studio.clone()));
    let mut ids = vec![];
    for _ in 0..20 {
        ids.push(world.create().await);
    }
    for _ in 0..3 {
        let worker = world.vidgen.worker().concurrency(50).spawn();
        tokio::time::sleep(Duration::from_secs(12)).await;
        let began = tokio::time::Instant::now();
        worker.shutdown().await;
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        let stats = world.queue.stats().await.unwrap();
        assert_eq!((stats.processing, stats.workers), (0, 0), "every job was handed back");
    }
    let worker = world.vidgen.worker().concurrency(50).spawn();
    for id in ids {
        let job = world.ended(id).await;
        assert_eq!((job.state, job.attempts, job.crashes), (JobState::Completed, 0, 0));
    }
    worker.shutdown().await;
    assert_eq!(studio.accepted().len(), 20 * 4, "nothing was bought twice");
}

#[tokio::test(start_paused = true)]
async fn a_failing_webhook_never_touches_its_job_and_is_tried_again() {
    let studio = ScriptedProvider::new("studio");
    let world = world(everything_by(&studio));
    for _ in 0..3 {
        world.notifier.answer(Err(Error::new(ErrorKind::Unavailable, "receiver", "is away")));
    }
    let id = world.create().await;
    let worker = world.vidgen.worker().spawn();
    assert_eq!(world.ended(id).await.state, JobState::Completed);
    tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
    worker.shutdown().await;
    let told = world.notifier.deliveries();
    assert_eq!(told.len(), 4, "three failures, then it was taken");
    assert!(told.windows(2).all(|w| w[0].id == w[1].id && w[0].body == w[1].body));
    let log = world.vidgen.deliveries(&world.tenant, &DeliveryFilter { job: Some(id), limit: 10 }).await.unwrap();
    assert_eq!(log.items[0].state, DeliveryState::Delivered);
}

#[tokio::test(start_paused = true)]
async fn ended_jobs_and_their_media_go_when_their_time_is_up_and_the_ledger_stays() {
    let studio = ScriptedProvider::new("studio");
    let world = world(everything_by(&studio));
    let id = world.create().await;
    let worker = world.vidgen.worker().spawn();
    let key = world.ended(id).await.output.unwrap().video.key;
    tokio::time::sleep(Duration::from_secs(25 * 3600)).await;
    worker.shutdown().await;
    assert_eq!(world.vidgen.get(&world.tenant, id).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(world.vidgen.store().head(&key).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(world.usage().await.charged, Usd::from_cents(65));
}

#[tokio::test(start_paused = true)]
async fn a_thousand_jobs_complete_each_once() {
    let studio = ScriptedProvider::new("studio");
    let world = world(everything_by(&studio));
    let mut ids = vec![];
    for _ in 0..1000 {
        ids.push(world.create().await);
    }
    let worker = world.vidgen.worker().concurrency(256).spawn();
    for id in ids {
        assert_eq!(world.ended(id).await.state, JobState::Completed);
    }
    worker.shutdown().await;
    let mut accepted = studio.accepted();
    accepted.sort();
    accepted.dedup();
    assert_eq!((accepted.len(), studio.accepted().len()), (5000, 5000));
}

#[tokio::test(start_paused = true)]
async fn a_job_canceled_between_two_workers_is_canceled_at_the_provider_and_settled_at_its_real_cost() {
    let studio = ScriptedProvider::new("studio");
    studio.then(StepKind::Video, Scene::RunsForever);
    let world = world(everything_by(&studio));
    let id = world.create().await;
    let worker = world.vidgen.worker().spawn();
    let mut job = world.job(id).await;
    while !job.step(StepKind::Video).is_some_and(|s| matches!(s.state, StepState::Accepted { .. })) {
        job = world.vidgen.watch(&world.tenant, id, job.version, Duration::from_secs(5)).await.unwrap();
    }
    worker.shutdown().await;
    assert_eq!(world.vidgen.cancel(&world.tenant, id).await.unwrap().state, JobState::Queued);
    let job = world.finish(id).await;
    assert_eq!((job.state, studio.cancels().len()), (JobState::Canceled, 1));
    let usage = world.usage().await;
    assert_eq!((job.cost, usage.charged, usage.held), (Usd::from_cents(65), Usd::from_cents(65), Usd::ZERO));
}

/// A store that is away for the next so many writes.
#[derive(Clone, Debug)]
struct Away {
    store: MemoryStore,
    writes: Arc<std::sync::atomic::AtomicU32>,
}

#[async_trait::async_trait]
impl Store for Away {
    async fn put(&self, key: &MediaKey, body: Body) -> Result<u64> {
        let left = self.writes.load(std::sync::atomic::Ordering::SeqCst);
        if left > 0 {
            self.writes.store(left - 1, std::sync::atomic::Ordering::SeqCst);
            return Err(Error::new(ErrorKind::Unavailable, "store", "is away"));
        }
        self.store.put(key, body).await
    }
    async fn get(&self, key: &MediaKey, range: Option<ByteRange>) -> Result<Media> {
        self.store.get(key, range).await
    }
    async fn head(&self, key: &MediaKey) -> Result<MediaHead> {
        self.store.head(key).await
    }
    async fn link(&self, key: &MediaKey, life: Duration) -> Result<Option<url::Url>> {
        self.store.link(key, life).await
    }
    async fn delete(&self, key: &MediaKey) -> Result<()> {
        self.store.delete(key).await
    }
    async fn delete_prefix(&self, prefix: &str) -> Result<u64> {
        self.store.delete_prefix(prefix).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_delays_a_job_and_never_buys_again() {
    let studio = ScriptedProvider::new("studio");
    let clock = clock();
    let writes = Arc::new(std::sync::atomic::AtomicU32::new(20));
    let queue = MemoryQueue::with_clock(clock);
    let vidgen = Vidgen::builder()
        .queue(queue.clone())
        .store(Away { store: MemoryStore::new(), writes })
        .pipeline(everything_by(&studio))
        .clock(clock)
        .build()
        .unwrap();
    let world = World { vidgen, queue, notifier: MemoryNotifier::new(), tenant: TenantId::single() };
    let request = JobRequest::new("a cat").with_script("meow");
    let id = world.vidgen.create(&world.tenant, request, CreateOptions::default()).await.unwrap().job.id;
    let began = tokio::time::Instant::now();
    let job = world.finish(id).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
    assert!(began.elapsed() >= Duration::from_secs(60), "{:?}", began.elapsed());
    assert_eq!((studio.accepted().len(), job.cost), (5, Usd::from_cents(65)));
}

#[tokio::test(start_paused = true)]
async fn a_provider_out_of_order_is_left_alone_by_all_jobs_together() {
    let (down, spare) = (ScriptedProvider::new("down"), ScriptedProvider::new("spare"));
    down.always(Some(Scene::Rejects(ErrorKind::Unavailable)));
    let pipeline =
        Pipeline::named("default").video(down.clone()).or(spare.clone()).speech(spare.clone()).compose(spare.clone());
    let world = world(pipeline);
    let mut ids = vec![];
    for _ in 0..200 {
        ids.push(world.create().await);
    }
    let worker = world.vidgen.worker().concurrency(4).spawn();
    for id in ids {
        assert_eq!(world.ended(id).await.state, JobState::Completed);
    }
    worker.shutdown().await;
    // Without the breaker each job would find out for itself, three times: 600.
    assert!(down.requests().len() < 60, "{}", down.requests().len());
}
