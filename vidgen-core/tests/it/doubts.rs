//! What nobody can tell whether it was bought, and bytes that are handed over once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::{Instant, sleep};
use vidgen_core::memory::{MemoryNotifier, MemoryQueue, MemoryStore, Scene, ScriptedProvider};
use vidgen_core::*;

use crate::kit::{Watched, accepted, bought, calling, elapsed, until};
use crate::pipeline::{World, clock, failure, world};

fn blind() -> ScriptedProvider {
    ScriptedProvider::new("blind").without_find()
}

fn video_by(provider: impl Into<Route>) -> Pipeline {
    Pipeline::named("default").video(provider)
}

fn route(provider: &ScriptedProvider, policy: OnUnknown) -> Route {
    Route::new(Arc::new(provider.clone())).with_on_unknown(policy)
}

#[tokio::test(start_paused = true)]
async fn the_unknown_is_parked_where_it_is_paid_for_and_done_again_where_it_is_free() {
    let (paid, studio) = (blind(), ScriptedProvider::new("studio"));
    paid.then(StepKind::Video, Scene::LosesAnswer);
    let parked = world(video_by(paid.clone()).or(studio.clone()));
    let job = parked.finish(parked.create_in("default").await).await;
    assert_eq!((failure(&job), job.held, job.cost), ("outcome_unknown", Usd::from_cents(50), Usd::ZERO));
    assert_eq!((paid.requests().len(), studio.requests().len()), (1, 0), "neither again nor elsewhere");
    assert_eq!(parked.usage().await.charged, Usd::ZERO);

    let free = blind().with_models(vec![Model::new("free", StepKind::Video, Price::Free)]);
    free.then(StepKind::Video, Scene::LosesAnswer);
    let again = world(video_by(free.clone()));
    let job = again.finish(again.create_in("default").await).await;
    assert_eq!((job.state, job.cost, job.held), (JobState::Completed, Usd::ZERO, Usd::ZERO), "{:?}", job.failure);
    assert_eq!(free.accepted().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_host_may_park_what_is_free_too() {
    let free = blind().with_models(vec![Model::new("free", StepKind::Video, Price::Free)]);
    free.then(StepKind::Video, Scene::LosesAnswer);
    let world = world(video_by(route(&free, OnUnknown::Park)));
    let job = world.finish(world.create_in("default").await).await;
    assert_eq!((failure(&job), free.requests().len()), ("outcome_unknown", 1));
}

#[tokio::test(start_paused = true)]
async fn a_host_that_would_rather_pay_twice_buys_again_in_another_slot_and_says_what_it_may_have_cost() {
    let blind = blind();
    blind.then(StepKind::Video, Scene::LosesAnswer);
    let world = world(video_by(route(&blind, OnUnknown::Resubmit)));
    let id = world.create_in("default").await;
    let began = Instant::now();
    let job = world.finish(id).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
    assert!(elapsed(began) >= 110.0, "not before the first one can no longer arrive: {}", elapsed(began));
    let slots: Vec<String> = blind.accepted().iter().map(ToString::to_string).collect();
    assert_eq!(slots.len(), 2);
    assert!(slots[0].ends_with("video_1") && slots[1].ends_with("video_2"), "{slots:?}");
    let attempt = &job.step(StepKind::Video).unwrap().attempts[0];
    assert_eq!(
        (attempt.kind, attempt.accepted, attempt.cost.amount),
        (ErrorKind::OutcomeUnknown, true, Usd::from_cents(50))
    );
    let usage = world.usage().await;
    assert_eq!((job.cost, usage.charged, usage.held), (Usd::from_cents(50), Usd::from_cents(50), Usd::ZERO));
}

#[tokio::test(start_paused = true)]
async fn m8_who_pays_twice_does_not_pay_without_end() {
    let (one, two) = (blind(), ScriptedProvider::new("two").without_find());
    one.always(Some(Scene::LosesAnswer));
    two.always(Some(Scene::LosesAnswer));
    let world = world(video_by(route(&one, OnUnknown::Resubmit)).or(route(&two, OnUnknown::Resubmit)));
    let job = world.finish(world.create_in("default").await).await;
    assert_eq!((job.state, failure(&job)), (JobState::Failed, "too_many_submissions"));
    assert_eq!(one.accepted().len() + two.accepted().len(), job.plan.steps.len() + 1);
    let usage = world.usage().await;
    assert_eq!((usage.charged, usage.held), (Usd::ZERO, Usd::ZERO));
}

#[tokio::test(start_paused = true)]
async fn m8_steps_side_by_side_do_not_pass_the_cap_together() {
    // Image and speech are bought at the same moment, again and again; neither ever succeeds.
    let studio = ScriptedProvider::new("studio");
    let bad = || Scene::Fails(RunFailure::new(ErrorKind::Unavailable, "bad luck").with_bill());
    studio.always(Some(bad()));
    let more = ScriptedProvider::new("more");
    more.always(Some(bad()));
    let slow = Watched::new(&studio).with_slow_submits(Duration::from_secs(3));
    let pipeline = Pipeline::named("default").image(slow.clone()).or(more.clone());
    let pipeline = pipeline.video(slow.clone()).speech(slow.clone()).or(more.clone()).compose(slow);
    let world = world(pipeline);
    let job = world.finish(world.create().await).await;
    assert_eq!(job.state, JobState::Failed);
    let bought = studio.accepted().len() + more.accepted().len();
    assert!(bought <= job.plan.steps.len() + 1, "{bought} of {}", job.plan.steps.len() + 1);
}

/// A store that is away for the next so many looks, and remembers what was asked of it.
#[derive(Clone, Debug, Default)]
struct Flaky {
    store: MemoryStore,
    heads: Arc<AtomicU32>,
    puts: Arc<AtomicU32>,
    /// How many of the next reads break off.
    reads: Arc<AtomicU32>,
}

fn away(left: &AtomicU32) -> Result<()> {
    match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
        Ok(_) => Err(Error::new(ErrorKind::Unavailable, "store", "is away")),
        Err(_) => Ok(()),
    }
}

#[async_trait]
impl Store for Flaky {
    async fn put(&self, key: &MediaKey, body: Body) -> Result<u64> {
        away(&self.puts)?;
        self.store.put(key, body).await
    }
    async fn get(&self, key: &MediaKey, range: Option<ByteRange>) -> Result<Media> {
        let mut media = self.store.get(key, range).await?;
        if let Err(error) = away(&self.reads) {
            let begun = Bytes::from_static(b"\0\0\0\x18ftypisom\0\0\0\0isom and what follows that");
            let chunks = [Ok(begun), Err(error)];
            media.body = Body::new(futures::stream::iter(chunks), media.body.length());
        }
        Ok(media)
    }
    async fn head(&self, key: &MediaKey) -> Result<MediaHead> {
        away(&self.heads)?;
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

/// A process that dies before the spool is filled, after it, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dies {
    BeforeTheSpool,
    AfterTheSpool,
    Never,
}

/// A provider that answers with the bytes, and whose caller never hears of it.
#[derive(Clone, Debug)]
struct Cut {
    inner: ScriptedProvider,
    dies: Dies,
}

#[async_trait]
impl Provider for Cut {
    fn id(&self) -> ProviderId {
        self.inner.id()
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn submit(&self, task: &Task, options: &SubmitOptions) -> Result<Handle> {
        if self.dies == Dies::BeforeTheSpool {
            self.inner.then(task.spec.kind(), Scene::Hangs);
        }
        let answer = self.inner.submit(task, options).await;
        if self.dies == Dies::AfterTheSpool {
            std::future::pending::<()>().await;
        }
        answer
    }
    async fn poll(&self, handle: &Handle) -> Result<Snapshot> {
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
    async fn callback(&self, callback: &Callback, spool: &Spool) -> Result<Handle> {
        self.inner.callback(callback, spool).await
    }
}

struct Spooling {
    queue: MemoryQueue,
    store: Flaky,
    voice: ScriptedProvider,
    clock: vidgen_core::clock::VirtualClock,
}

impl Spooling {
    fn new() -> Self {
        let clock = clock();
        let voice = ScriptedProvider::new("voice").without_find().without_cancel().with_spools();
        Self { queue: MemoryQueue::with_clock(clock), store: Flaky::default(), voice, clock }
    }

    fn process(&self, dies: Dies) -> World {
        let vidgen = Vidgen::builder()
            .queue(self.queue.clone())
            .store(self.store.clone())
            .pipeline(video_by(Cut { inner: self.voice.clone(), dies }))
            .clock(self.clock)
            .build()
            .unwrap();
        let (queue, notifier) = (self.queue.clone(), MemoryNotifier::new());
        World { vidgen, queue, notifier, tenant: TenantId::single() }
    }

    /// Creates a job in a process that dies at its submit.
    async fn crashed(&self, dies: Dies) -> JobId {
        let first = self.process(dies);
        let id = first.create_in("default").await;
        let worker = first.vidgen.worker().spawn();
        bought(&self.voice, StepKind::Video).await;
        sleep(Duration::from_secs(1)).await;
        drop(worker);
        // A submit that is on the wire outlives its worker, but not its process.
        id
    }

    fn spooled(&self) -> usize {
        self.store.store.keys().iter().filter(|key| key.as_str().contains("spool")).count()
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_the_bytes_is_copied_and_leaves_nothing_in_the_spool() {
    let spooling = Spooling::new();
    let world = spooling.process(Dies::Never);
    let job = world.finish(world.create_in("default").await).await;
    assert_eq!((job.state, job.cost), (JobState::Completed, Usd::from_cents(50)), "{:?}", job.failure);
    assert_eq!((spooling.spooled(), spooling.store.store.keys().len()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_crash_after_the_spool_was_filled_loses_nothing_and_buys_nothing_again() {
    let spooling = Spooling::new();
    let id = spooling.crashed(Dies::AfterTheSpool).await;
    assert_eq!(spooling.spooled(), 1);
    let began = Instant::now();
    let job = spooling.process(Dies::Never).finish(id).await;
    assert_eq!((job.state, job.cost, job.held), (JobState::Completed, Usd::from_cents(50), Usd::ZERO));
    assert_eq!((spooling.voice.requests().len(), spooling.spooled()), (1, 0));
    assert!(elapsed(began) < 60.0, "{}", elapsed(began));
}

#[tokio::test(start_paused = true)]
async fn a_crash_before_the_spool_was_filled_is_in_doubt() {
    let spooling = Spooling::new();
    let id = spooling.crashed(Dies::BeforeTheSpool).await;
    let world = spooling.process(Dies::Never);
    let job = world.finish(id).await;
    assert_eq!((failure(&job), job.held, job.cost), ("outcome_unknown", Usd::from_cents(50), Usd::ZERO));
    assert_eq!(spooling.voice.requests().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_decided_of_an_answer_while_the_store_that_may_have_it_is_away() {
    let spooling = Spooling::new();
    let id = spooling.crashed(Dies::AfterTheSpool).await;
    spooling.store.heads.store(u32::MAX, Ordering::SeqCst);
    let world = spooling.process(Dies::Never);
    let worker = world.vidgen.worker().spawn();
    sleep(Duration::from_secs(2 * 3600)).await;
    let job = world.job(id).await;
    assert!(!job.state.is_ended(), "{:?}", job.failure);
    let revision = job.step(StepKind::Video).unwrap().revision;
    sleep(Duration::from_secs(600)).await;
    assert_eq!(world.job(id).await.step(StepKind::Video).unwrap().revision, revision, "and nothing is written");
    spooling.store.heads.store(0, Ordering::SeqCst);
    let began = Instant::now();
    let job = world.ended(id).await;
    assert_eq!((job.state, job.cost), (JobState::Completed, Usd::from_cents(50)), "{:?}", job.failure);
    assert!(elapsed(began) < 10.0 && spooling.voice.requests().len() == 1);
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_the_store_did_not_take_is_lost_and_not_bought_again() {
    let spooling = Spooling::new();
    spooling.store.puts.store(1, Ordering::SeqCst);
    let world = spooling.process(Dies::Never);
    let job = world.finish(world.create_in("default").await).await;
    assert_eq!((failure(&job), job.held), ("outcome_unknown", Usd::from_cents(50)));
    assert_eq!(spooling.voice.requests().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_the_store_does_not_take_is_made_later_from_the_spool() {
    let spooling = Spooling::new();
    let world = spooling.process(Dies::Never);
    let id = world.create_in("default").await;
    let worker = world.vidgen.worker().spawn();
    until("the spool is filled", async || spooling.spooled() == 1 || spooling.store.store.keys().len() == 1).await;
    spooling.store.puts.store(10, Ordering::SeqCst);
    let job = world.ended(id).await;
    assert_eq!((job.state, accepted(&spooling.voice, StepKind::Video).len()), (JobState::Completed, 1));
    assert_eq!(spooling.spooled(), 0);
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_spool_that_cannot_be_read_for_a_while_is_no_fault_of_the_output() {
    let spooling = Spooling::new();
    spooling.store.reads.store(10, Ordering::SeqCst);
    let world = spooling.process(Dies::Never);
    let job = world.finish(world.create_in("default").await).await;
    assert_eq!((job.state, job.cost), (JobState::Completed, Usd::from_cents(50)), "{:?}", job.failure);
    assert_eq!((spooling.voice.requests().len(), spooling.spooled()), (1, 0));
}

/// What a remote says of its output is what it says: here, where another tenant's file lies.
#[derive(Clone, Debug)]
struct Liar {
    inner: ScriptedProvider,
    names: String,
}

#[async_trait]
impl Provider for Liar {
    fn id(&self) -> ProviderId {
        self.inner.id()
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn submit(&self, task: &Task, options: &SubmitOptions) -> Result<Handle> {
        self.inner.submit(task, options).await
    }
    async fn poll(&self, handle: &Handle) -> Result<Snapshot> {
        let said = handle.clone().with_detail(serde_json::json!({ "spooled": self.names }));
        Ok(said.spooled_end().expect("a media key"))
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
    async fn callback(&self, callback: &Callback, spool: &Spool) -> Result<Handle> {
        self.inner.callback(callback, spool).await
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_remote_says_cannot_name_another_tenants_file() {
    let store = MemoryStore::new();
    let other = submission_id(JobId::new(), StepKind::Video, 1);
    let secret = Bytes::from_static(b"\0\0\0\x18ftypisom\0\0\0\0isomanother tenant's");
    let spooled = Spool::new(Arc::new(store.clone()), &other).unwrap().keep(secret.clone().into()).await.unwrap();
    let plain = MediaKey::new(format!("jobs/{}/video-1-1.mp4", JobId::new())).unwrap();
    store.put(&plain, secret.into()).await.unwrap();
    for key in [spooled.spooled().unwrap(), &plain] {
        let clock = clock();
        let queue = MemoryQueue::with_clock(clock);
        let inner = ScriptedProvider::new("liar").with_spools();
        let vidgen = Vidgen::builder()
            .queue(queue.clone())
            .store(store.clone())
            .pipeline(video_by(Liar { inner, names: key.to_string() }))
            .clock(clock)
            .build()
            .unwrap();
        let world = World { vidgen, queue, notifier: MemoryNotifier::new(), tenant: TenantId::single() };
        let job = world.finish(world.create_in("default").await).await;
        assert_eq!((failure(&job), job.output.as_ref()), ("output_invalid", None));
        store.head(key).await.expect("and it is not removed");
    }
}

#[tokio::test(start_paused = true)]
async fn a_doubt_that_a_callback_clears_later_is_retried_and_buys_nothing() {
    let caller = blind().with_callback();
    caller.then(StepKind::Video, Scene::LosesAnswer);
    let world = calling(video_by(caller.clone()));
    let id = world.create_in("default").await;
    let job = world.finish(id).await;
    assert_eq!(failure(&job), "outcome_unknown");
    assert_eq!(world.vidgen.retry(&world.tenant, id, None).await.unwrap_err().kind(), ErrorKind::Conflict);
    world.call(&caller, &caller.accepted()[0]).await.unwrap();
    world.vidgen.retry(&world.tenant, id, None).await.unwrap();
    let job = world.finish(id).await;
    assert_eq!((job.state, job.cost, job.held), (JobState::Completed, Usd::from_cents(50), Usd::ZERO));
    assert_eq!((caller.requests().len(), world.usage().await.charged), (1, Usd::from_cents(50)));
}

/// A queue that tells nobody of a job while its reads are away; it writes all the same.
#[derive(Clone, Debug)]
struct Unread {
    queue: MemoryQueue,
    reads: Arc<AtomicU32>,
}

macro_rules! unread {
    ($(async fn $name:ident(&self $(, $arg:ident: $ty:ty)*) -> $ret:ty;)*) => {
        #[async_trait]
        impl Queue for Unread {
            async fn get(&self, tenant: &TenantId, id: JobId) -> Result<Job> {
                away(&self.reads)?;
                self.queue.get(tenant, id).await
            }
            $(async fn $name(&self $(, $arg: $ty)*) -> $ret { self.queue.$name($($arg),*).await })*
        }
    };
}
unread! {
    async fn enqueue(&self, new: NewJob) -> Result<Enqueued>;
    async fn list(&self, tenant: &TenantId, filter: &JobFilter) -> Result<Page<Job>>;
    async fn cancel(&self, tenant: &TenantId, id: JobId, event: Option<NewEvent>) -> Result<Job>;
    async fn retry(&self, tenant: &TenantId, id: JobId, hold: Usd, limits: &Limits) -> Result<Job>;
    async fn resolve(&self, tenant: &TenantId, id: JobId, verdict: Verdict) -> Result<Job>;
    async fn delete(&self, tenant: &TenantId, id: JobId) -> Result<()>;
    async fn watch(&self, tenant: &TenantId, id: JobId, after: u64, patience: Duration) -> Result<Job>;
    async fn usage(&self, tenant: &TenantId, filter: &UsageFilter) -> Result<UsageReport>;
    async fn stats(&self) -> Result<QueueStats>;
    async fn pause(&self, paused: bool) -> Result<()>;
    async fn wake(&self, id: JobId) -> Result<()>;
    async fn witness(&self, witness: Witness) -> Result<()>;
    async fn register(&self, name: &str) -> Result<WorkerId>;
    async fn deregister(&self, worker: WorkerId) -> Result<()>;
    async fn claim(&self, worker: WorkerId, max: usize) -> Result<ClaimBatch>;
    async fn heartbeat(&self, worker: WorkerId, held: &[Claim]) -> Result<Beat>;
    async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<Ack>;
    async fn release(&self, claim: Claim, release: Release) -> Result<Fenced>;
    async fn settle(&self, settlement: Settlement) -> Result<Fenced>;
    async fn rescue(&self) -> Result<u64>;
    async fn expired(&self, retention: &Retention, max: usize) -> Result<Vec<JobId>>;
    async fn prune(&self, jobs: &[JobId]) -> Result<u64>;
    async fn ready(&self) -> ();
    async fn signalled(&self) -> ();
    async fn claim_deliveries(&self, worker: WorkerId, max: usize) -> Result<DeliveryBatch>;
    async fn settle_delivery(&self, delivery: &Delivery, outcome: DeliveryOutcome) -> Result<Fenced>;
    async fn deliveries(&self, tenant: &TenantId, filter: &DeliveryFilter) -> Result<Page<DeliveryRecord>>;
    async fn redeliver(&self, tenant: &TenantId, event: &EventId) -> Result<()>;
}

/// A world with callbacks, and how many of the next reads of its jobs fail.
fn unread(pipeline: Pipeline) -> (World, Arc<AtomicU32>) {
    let clock = clock();
    let queue = Unread { queue: MemoryQueue::with_clock(clock), reads: Arc::default() };
    let mut timing = Timing::default();
    timing.find_patience = Duration::from_secs(600);
    let vidgen = Vidgen::builder()
        .queue(queue.clone())
        .store(MemoryStore::new())
        .pipeline(pipeline)
        .clock(clock)
        .timing(timing)
        .callbacks(crate::kit::callbacks())
        .build()
        .unwrap();
    (World { vidgen, queue: queue.queue, notifier: MemoryNotifier::new(), tenant: TenantId::single() }, queue.reads)
}

#[tokio::test(start_paused = true)]
async fn an_end_that_cannot_be_read_at_the_deadline_is_not_given_up() {
    let deaf = blind().without_cancel().with_only_callback();
    deaf.then(StepKind::Video, Scene::RunsForever);
    let (world, reads) = unread(video_by(deaf.clone()));
    let id = world.create_in("default").await;
    let worker = world.vidgen.worker().spawn();
    let submission = bought(&deaf, StepKind::Video).await;
    sleep(Duration::from_secs(3700)).await;
    reads.store(u32::MAX, Ordering::SeqCst);
    deaf.end(&submission);
    world.call(&deaf, &submission).await.unwrap();
    sleep(Duration::from_secs(600)).await;
    reads.store(0, Ordering::SeqCst);
    let job = world.ended(id).await;
    assert_eq!((job.state, job.cost), (JobState::Completed, Usd::from_cents(50)), "{:?}", job.failure);
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_decided_while_what_callbacks_told_cannot_be_read() {
    let (caller, studio) = (blind().with_callback(), ScriptedProvider::new("studio"));
    caller.then(StepKind::Video, Scene::LosesAnswer);
    // The speech keeps the claim all the while, so that nothing is read with a new one.
    studio.then(StepKind::Speech, Scene::RunsForever);
    let pipeline = video_by(route(&caller, OnUnknown::Resubmit)).speech(studio.clone()).compose(studio.clone());
    let (world, reads) = unread(pipeline);
    let request = JobRequest::new("a cat in space").with_script("This is a cat");
    let id = world.vidgen.create(&world.tenant, request, CreateOptions::default()).await.unwrap().job.id;
    let worker = world.vidgen.worker().spawn();
    let submission = bought(&caller, StepKind::Video).await;
    let speech = bought(&studio, StepKind::Speech).await;
    sleep(Duration::from_secs(10)).await;
    reads.store(u32::MAX, Ordering::SeqCst);
    world.call(&caller, &submission).await.unwrap();
    sleep(Duration::from_secs(1200)).await;
    assert_eq!(accepted(&caller, StepKind::Video).len(), 1, "the second one would be paid for, too");
    reads.store(0, Ordering::SeqCst);
    studio.end(&speech);
    let job = world.ended(id).await;
    assert_eq!((job.state, accepted(&caller, StepKind::Video).len()), (JobState::Completed, 1), "{:?}", job.failure);
    worker.shutdown().await;
}
