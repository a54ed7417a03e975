//! What must be neither bought twice nor lost when providers, queues and clocks misbehave at the
//! worst moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use vidgen_core::clock::VirtualClock;
use vidgen_core::memory::{MemoryNotifier, MemoryQueue, MemoryStore, Scene, ScriptedProvider};
use vidgen_core::*;

use crate::pipeline::{World, clock, everything_by, failure, world};

fn bought(provider: &ScriptedProvider, step: StepKind) -> usize {
    provider.accepted().iter().filter(|s| s.as_str().contains(step.as_str())).count()
}

async fn accepted(world: &World, id: JobId, step: StepKind) -> Job {
    let mut job = world.job(id).await;
    while !job.step(step).is_some_and(|s| matches!(s.state, StepState::Accepted { .. })) {
        job = world.vidgen.watch(&world.tenant, id, job.version, Duration::from_secs(5)).await.unwrap();
    }
    job
}

/// A provider whose client misbehaves, each so many times.
#[derive(Clone, Debug)]
struct Odd {
    inner: ScriptedProvider,
    submit_takes: Duration,
    poll_panics: Arc<AtomicU32>,
    poll_hangs: Arc<AtomicU32>,
}

impl Odd {
    fn new(inner: ScriptedProvider) -> Self {
        Self { inner, submit_takes: Duration::ZERO, poll_panics: Arc::default(), poll_hangs: Arc::default() }
    }
}

fn taken(times: &AtomicU32) -> bool {
    times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

#[async_trait]
impl Provider for Odd {
    fn id(&self) -> ProviderId {
        self.inner.id()
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn submit(&self, task: &Task, options: &SubmitOptions) -> Result<Handle> {
        tokio::time::sleep(self.submit_takes).await;
        self.inner.submit(task, options).await
    }
    async fn poll(&self, handle: &Handle) -> Result<Snapshot> {
        assert!(!taken(&self.poll_panics), "the client's own bug");
        if taken(&self.poll_hangs) {
            std::future::pending::<()>().await;
        }
        self.inner.poll(handle).await
    }
    async fn open(&self, output: &Output) -> Result<Body> {
        self.inner.open(output).await
    }
    async fn cancel(&self, handle: &Handle) -> Result<()> {
        self.inner.cancel(handle).await
    }
    async fn find(&self, submission: &Submission) -> Result<Lookup> {
        self.inner.find(submission).await
    }

    async fn callback(&self, _: &Callback, _: &Spool) -> Result<Handle> {
        Err(Error::new(ErrorKind::Unsupported, "odd", "does not call back"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_resend_says_nothing_of_the_submission_whose_answer_was_lost() {
    for kind in [ErrorKind::NotSent, ErrorKind::Unauthorized] {
        let keyed = ScriptedProvider::new("keyed").without_find();
        let keyed = keyed.with_resubmit(Resubmit::Keyed(Duration::from_secs(3600)));
        let spare = ScriptedProvider::new("spare");
        keyed.then(StepKind::Video, Scene::LosesAnswer);
        for _ in 0..5 {
            keyed.then(StepKind::Video, Scene::Rejects(kind));
        }
        let world = world(
            Pipeline::named("default")
                .video(keyed.clone())
                .or(spare.clone())
                .compose(spare.clone())
                .speech(spare.clone()),
        );
        let id = world.create().await;
        let job = world.finish(id).await;
        assert_eq!(job.state, JobState::Completed, "{kind:?}: {:?}", job.failure);
        assert_eq!((bought(&keyed, StepKind::Video), bought(&spare, StepKind::Video)), (1, 0), "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_ended_while_no_worker_lived_is_fetched_however_late() {
    let studio = ScriptedProvider::new("studio").with_poll_floor(Duration::from_secs(5));
    let world = world(everything_by(&studio));
    let id = world.create().await;
    let worker = world.vidgen.worker().spawn();
    accepted(&world, id, StepKind::Video).await;
    worker.shutdown().await;
    tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
    let job = world.finish(id).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
    assert_eq!((bought(&studio, StepKind::Video), studio.cancels().len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_run_that_nobody_can_look_at_is_given_up_in_the_end() {
    let studio = ScriptedProvider::new("studio");
    studio.then(StepKind::Video, Scene::Garbles);
    let world = world(everything_by(&studio));
    let id = world.create().await;
    let job = world.finish(id).await;
    assert_eq!((job.state, failure(&job)), (JobState::Failed, "timed_out"));
}

#[tokio::test(start_paused = true)]
async fn a_refused_delete_leaves_the_media_that_were_paid_for() {
    let (studio, blind) = (ScriptedProvider::new("studio"), ScriptedProvider::new("blind").without_find());
    blind.then(StepKind::Video, Scene::LosesAnswer);
    let world = world(
        Pipeline::named("default")
            .image(studio.clone())
            .video(blind.clone())
            .speech(studio.clone())
            .compose(studio.clone()),
    );
    let id = world.create().await;
    let job = world.finish(id).await;
    assert_eq!(failure(&job), "outcome_unknown");
    let Some(StepState::Done { media, .. }) = job.step(StepKind::Image).map(|s| &s.state) else { panic!() };
    let refused = world.vidgen.delete(&world.tenant, id).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    world.vidgen.store().head(&media.key).await.expect("the job still names it");
}

#[tokio::test(start_paused = true)]
async fn a_free_submit_that_never_leads_anywhere_is_given_up() {
    for scene in [Scene::Rejects(ErrorKind::Internal), Scene::LosesRequest] {
        let free = ScriptedProvider::new("free").with_resubmit(Resubmit::Free);
        free.always(Some(scene.clone()));
        let world = world(everything_by(&free));
        let id = world.create().await;
        let job = world.finish(id).await;
        assert_eq!((job.state, failure(&job)), (JobState::Failed, "unavailable"), "{scene:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_panics_does_not_lose_the_submit_of_the_step_beside_it() {
    let blind = ScriptedProvider::new("blind").without_find();
    let slow = Odd { submit_takes: Duration::from_secs(5), ..Odd::new(blind.clone()) };
    let studio = ScriptedProvider::new("studio");
    let panicky = Odd { poll_panics: Arc::new(AtomicU32::new(1)), ..Odd::new(studio.clone()) };
    let world = world(Pipeline::named("default").video(slow).speech(panicky).compose(studio.clone()));
    let id = world.create().await;
    let job = world.finish(id).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
    assert_eq!((bought(&blind, StepKind::Video), job.attempts), (1, 1));
}

/// A clock whose wall time an administrator sets while the machine goes on.
#[derive(Clone, Debug)]
struct Stepped {
    inner: VirtualClock,
    seconds: Arc<AtomicI64>,
}

#[async_trait]
impl Clock for Stepped {
    fn now(&self) -> Timestamp {
        self.inner.now() + SignedDuration::from_secs(self.seconds.load(Ordering::SeqCst))
    }
    fn monotonic(&self) -> Duration {
        self.inner.monotonic()
    }
    async fn sleep(&self, duration: Duration) {
        self.inner.sleep(duration).await;
    }
}

fn world_on(pipeline: Pipeline) -> (World, Stepped) {
    let clock = Stepped { inner: clock(), seconds: Arc::default() };
    let queue = MemoryQueue::with_clock(clock.clone());
    let notifier = MemoryNotifier::new();
    let vidgen = Vidgen::builder()
        .queue(queue.clone())
        .store(MemoryStore::new())
        .notifier(notifier.clone())
        .pipeline(pipeline)
        .clock(clock.clone())
        .build()
        .unwrap();
    (World { vidgen, queue, notifier, tenant: TenantId::single() }, clock)
}

#[tokio::test(start_paused = true)]
async fn a_clock_set_forward_cancels_no_run() {
    let studio = ScriptedProvider::new("studio").with_poll_floor(Duration::from_secs(5));
    studio.then(StepKind::Video, Scene::Succeeds { after_polls: 30 });
    let (world, clock) = world_on(everything_by(&studio));
    let id = world.create().await;
    let worker = world.vidgen.worker().spawn();
    accepted(&world, id, StepKind::Video).await;
    clock.seconds.store(3600, Ordering::SeqCst);
    let job = world.ended(id).await;
    worker.shutdown().await;
    assert_eq!((job.state, studio.cancels().len()), (JobState::Completed, 0), "{:?}", job.failure);
}

#[tokio::test(start_paused = true)]
async fn a_clock_set_forward_does_not_make_absent_believed_too_early() {
    let studio = ScriptedProvider::new("studio");
    studio.then(StepKind::Image, Scene::LosesRequest);
    let (world, clock) = world_on(everything_by(&studio));
    let id = world.create().await;
    let began = tokio::time::Instant::now();
    let worker = world.vidgen.worker().spawn();
    tokio::time::sleep(Duration::from_secs(1)).await;
    clock.seconds.store(3600, Ordering::SeqCst);
    assert_eq!(world.ended(id).await.state, JobState::Completed);
    worker.shutdown().await;
    assert!(began.elapsed() >= Duration::from_secs(20 + 30 + 60), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_1970_for_a_while_keeps_no_job_waiting() {
    let studio = ScriptedProvider::new("studio");
    studio.then(StepKind::Image, Scene::Rejects(ErrorKind::Unavailable));
    let (world, clock) = world_on(everything_by(&studio));
    let id = world.create().await;
    let worker = world.vidgen.worker().spawn();
    tokio::time::sleep(Duration::from_secs(1)).await;
    clock.seconds.store(-1_800_000_000, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(60)).await;
    clock.seconds.store(0, Ordering::SeqCst);
    let job = world.ended(id).await;
    worker.shutdown().await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_breaker_uses_up_no_attempt() {
    let studio = ScriptedProvider::new("studio");
    let world = world(everything_by(&studio));
    let mut ids = vec![];
    for _ in 0..64 {
        ids.push(world.create().await);
    }
    studio.always(Some(Scene::Rejects(ErrorKind::Unavailable)));
    let worker = world.vidgen.worker().spawn();
    tokio::time::sleep(Duration::from_secs(25 * 60)).await;
    studio.always(None);
    for id in ids {
        let job = world.ended(id).await;
        assert_ne!(job.failure.map(|f| f.code).as_deref(), Some("poison"), "{} attempts", job.attempts);
    }
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_at_a_provider_that_the_host_no_longer_has_is_not_free() {
    let (old, studio) = (ScriptedProvider::new("old"), ScriptedProvider::new("studio"));
    let old = old.with_poll_floor(Duration::from_secs(5));
    let with = |video: &ScriptedProvider| {
        Pipeline::named("default").video(video.clone()).speech(studio.clone()).compose(studio.clone())
    };
    let before = world(with(&old));
    let id = before.create().await;
    let worker = before.vidgen.worker().spawn();
    accepted(&before, id, StepKind::Video).await;
    worker.shutdown().await;
    let vidgen = Vidgen::builder()
        .queue(before.queue.clone())
        .store(MemoryStore::new())
        .notifier(before.notifier.clone())
        .pipeline(with(&studio))
        .clock(clock())
        .build()
        .unwrap();
    let job = World { vidgen, ..before }.finish(id).await;
    assert_eq!((job.state, job.cost), (JobState::Failed, Usd::from_cents(55)), "speech, and the video at its price");
}

#[tokio::test(start_paused = true)]
async fn nothing_more_is_bought_for_a_job_that_cannot_succeed() {
    let (first, spare) = (ScriptedProvider::new("first"), ScriptedProvider::new("spare"));
    first.then(StepKind::Video, Scene::Fails(RunFailure::new(ErrorKind::Unsupported, "not this one")));
    spare.then(StepKind::Speech, Scene::Rejects(ErrorKind::Refused));
    let world =
        world(Pipeline::named("default").video(first).or(spare.clone()).speech(spare.clone()).compose(spare.clone()));
    let id = world.create().await;
    let job = world.finish(id).await;
    assert_eq!((job.state, failure(&job)), (JobState::Failed, "content_refused"));
    assert!(spare.accepted().is_empty(), "{:?}", spare.accepted());
}

#[tokio::test(start_paused = true)]
async fn a_poll_that_never_answers_is_made_again() {
    let studio = ScriptedProvider::new("studio");
    let odd = Odd { poll_hangs: Arc::new(AtomicU32::new(2)), ..Odd::new(studio.clone()) };
    let world = world(Pipeline::named("default").video(odd).speech(studio.clone()).compose(studio.clone()));
    let id = world.create().await;
    assert_eq!(world.finish(id).await.state, JobState::Completed);
    assert_eq!(bought(&studio, StepKind::Video), 1);
}

#[tokio::test(start_paused = true)]
async fn an_output_that_never_ends_is_given_up() {
    let studio = ScriptedProvider::new("studio");
    studio.then(StepKind::Video, Scene::Stalls);
    let world = world(everything_by(&studio));
    let id = world.create().await;
    let job = world.finish(id).await;
    assert_eq!((job.state, failure(&job)), (JobState::Failed, "output_invalid"));
}

#[tokio::test(start_paused = true)]
async fn a_retry_of_a_canceled_job_does_not_hold_again_what_was_charged() {
    let studio = ScriptedProvider::new("studio");
    studio.then(StepKind::Video, Scene::RunsForever);
    let world = world(everything_by(&studio));
    let id = world.create().await;
    let worker = world.vidgen.worker().spawn();
    accepted(&world, id, StepKind::Video).await;
    world.vidgen.cancel(&world.tenant, id).await.unwrap();
    let job = world.ended(id).await;
    worker.shutdown().await;
    assert_eq!((job.state, world.usage().await.charged), (JobState::Canceled, Usd::from_cents(65)));
    world.vidgen.retry(&world.tenant, id, None).await.unwrap();
    assert_eq!(world.usage().await.held, Usd::from_cents(50), "the video once more, and nothing twice");
    assert_eq!(world.finish(id).await.cost, Usd::from_cents(115));
    assert_eq!(world.usage().await.charged, Usd::from_cents(115));
}

/// Panics at its first delivery.
#[derive(Clone, Debug)]
struct Panicky {
    inner: MemoryNotifier,
    panics: Arc<AtomicU32>,
}

#[async_trait]
impl Notifier for Panicky {
    fn accepts(&self, endpoint: &str) -> Result<()> {
        self.inner.accepts(endpoint)
    }
    async fn notify(&self, delivery: &Delivery) -> Result<()> {
        assert!(!taken(&self.panics), "the notifier's own bug");
        self.inner.notify(delivery).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_notifier_that_panics_loses_no_event() {
    let clock = clock();
    let (queue, notifier) = (MemoryQueue::with_clock(clock), MemoryNotifier::new());
    let vidgen = Vidgen::builder()
        .queue(queue.clone())
        .store(MemoryStore::new())
        .notifier(Panicky { inner: notifier.clone(), panics: Arc::new(AtomicU32::new(1)) })
        .pipeline(everything_by(&ScriptedProvider::new("studio")))
        .clock(clock)
        .build()
        .unwrap();
    let world = World { vidgen, queue, notifier, tenant: TenantId::single() };
    let id = world.create().await;
    let worker = world.vidgen.worker().spawn();
    world.ended(id).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    worker.shutdown().await;
    assert_eq!(world.notifier.deliveries().len(), 1);
}

/// A paid run that its provider does not know yet is waited for, and one that it never knows is
/// not waited for for long.
#[tokio::test(start_paused = true)]
async fn a_paid_run_whose_provider_lags_is_not_given_up_at_the_first_look() {
    for (scene, state, failure_cost) in [
        (Scene::Lags { looks: 4 }, JobState::Completed, Usd::from_cents(50)),
        (Scene::Vanishes, JobState::Failed, Usd::from_cents(50)),
    ] {
        let studio = ScriptedProvider::new("studio");
        studio.then(StepKind::Video, scene);
        let world = world(Pipeline::named("default").video(studio.clone()));
        let job = {
            let request = JobRequest::new("a cat");
            let id = world.vidgen.create(&world.tenant, request, CreateOptions::default()).await.unwrap().job.id;
            world.finish(id).await
        };
        assert_eq!((job.state, job.cost), (state, failure_cost), "{:?}", job.failure);
        assert_eq!(studio.accepted().len(), 1);
    }
}
