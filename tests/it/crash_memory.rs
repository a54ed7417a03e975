//! Crash matrix in process: a worker dies at every visit of every failpoint, another one goes on.
//! Oracle: the provider's own ledger, the ledger of costs, and what the receiver was told.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use vidgen_core::clock::VirtualClock;
use vidgen_core::memory::{MemoryNotifier, MemoryQueue, MemoryStore, Scene, ScriptedProvider};
use vidgen_core::*;
use vidgen_tests::faults::{Crash, Faults, Faulty, Point};

/// What outlives a crash: the queue's, the store's and the provider's own state.
pub(crate) struct World {
    clock: VirtualClock,
    pub(crate) queue: MemoryQueue,
    store: MemoryStore,
    pub(crate) notifier: MemoryNotifier,
    pub(crate) studio: ScriptedProvider,
}

impl World {
    pub(crate) fn new(studio: ScriptedProvider) -> Self {
        let clock = VirtualClock::starting_at(Timestamp::from_second(1_800_000_000).unwrap());
        let queue = MemoryQueue::with_clock(clock);
        Self { clock, queue, store: MemoryStore::new(), notifier: MemoryNotifier::new(), studio }
    }

    /// A process of its own: the same state behind `faults`.
    pub(crate) fn process(&self, faults: &Faults) -> Vidgen {
        let studio = Faulty::new(self.studio.clone(), faults);
        Vidgen::builder()
            .queue(Faulty::new(self.queue.clone(), faults))
            .store(Faulty::new(self.store.clone(), faults))
            .notifier(Faulty::new(self.notifier.clone(), faults))
            .pipeline(
                Pipeline::named("default")
                    .image(studio.clone())
                    .video(studio.clone())
                    .speech(studio.clone())
                    .compose(studio),
            )
            .clock(self.clock)
            .build()
            .unwrap()
    }

    pub(crate) async fn job(&self, id: JobId) -> Job {
        self.queue.get(&TenantId::single(), id).await.unwrap()
    }
}

pub(crate) fn request() -> JobRequest {
    JobRequest::new("a cat").with_script("meow").with_webhook_url("https://example.com/hook")
}

/// Runs one job with a crash at `at`, then to its end in a second process; answers how often each
/// point was visited in the first one.
async fn one_job(studio: ScriptedProvider, at: Option<(Point, u32)>) -> (World, Job, Faults) {
    let world = World::new(studio);
    let faults = Faults::new(Crash::Freeze, at);
    let first = world.process(&faults);
    let options = CreateOptions::default().with_idempotency_key("once");
    let tenant = TenantId::single();
    let created = tokio::select! {
        created = first.create(&tenant, request(), options.clone()) => Some(created.unwrap().job.id),
        () = faults.crashed() => None,
    };
    let worker = first.worker().spawn();
    let second = world.process(&Faults::none());
    // The client whose answer was lost asks again, under the same key.
    let id = match created {
        Some(id) => id,
        None => second.create(&TenantId::single(), request(), options).await.unwrap().job.id,
    };
    if at.is_some() {
        tokio::time::timeout(Duration::from_secs(24 * 3600), faults.crashed()).await.expect("the fault did not fire");
    } else {
        settled(&world, id).await;
    }
    drop(worker);
    let worker = second.worker().spawn();
    settled(&world, id).await;
    worker.shutdown().await;
    let job = world.job(id).await;
    (world, job, faults)
}

/// Waits until the job ended and its event was delivered.
pub(crate) async fn settled(world: &World, id: JobId) {
    for _ in 0..100_000 {
        let log =
            world.queue.deliveries(&TenantId::single(), &DeliveryFilter { job: Some(id), limit: 10 }).await.unwrap();
        if log.items.iter().any(|d| d.state == DeliveryState::Delivered) {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("the job never ended: {:#?}", world.job(id).await);
}

pub(crate) fn check(world: &World, job: &Job, label: &str) {
    assert_eq!(job.state, JobState::Completed, "{label}: {:?}", job.failure);
    let accepted = world.studio.accepted();
    let slots: BTreeSet<_> = accepted.iter().collect();
    assert_eq!(accepted.len(), slots.len(), "{label}: a slot was bought twice: {accepted:?}");
    assert_eq!(accepted.len(), 5, "{label}: {accepted:?}");
    let events: BTreeSet<_> = world.notifier.deliveries().into_iter().map(|d| d.id).collect();
    assert_eq!(events.len(), 1, "{label}: one event, told at least once");
    assert_eq!((job.cost, job.held), (Usd::from_cents(65), Usd::ZERO), "{label}");
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_failpoint_buys_nothing_twice_and_loses_nothing() {
    let (_, _, faults) = one_job(ScriptedProvider::new("studio"), None).await;
    let visits = faults.visits();
    for (point, name) in Point::ALL {
        assert!(visits.contains_key(&point), "{name} is never reached");
    }
    let mut crashes = 0;
    for (point, name) in Point::ALL {
        for visit in 1..=visits[&point] {
            let (world, job, faults) = one_job(ScriptedProvider::new("studio"), Some((point, visit))).await;
            assert!(faults.fired());
            check(&world, &job, &format!("{name} #{visit}"));
            crashes += 1;
        }
    }
    println!("{crashes} crashes at 17 failpoints");
    assert!(crashes >= 60, "{crashes}");
}

#[tokio::test(start_paused = true)]
async fn a_crash_around_the_submit_to_a_provider_that_cannot_look_up_is_never_a_second_submit() {
    for point in [Point::AfterIntent, Point::BeforePost, Point::AfterPostBeforeOutcome] {
        for visit in 1..=5 {
            let world = World::new(ScriptedProvider::new("studio").without_find());
            let faults = Faults::new(Crash::Freeze, Some((point, visit)));
            let first = world.process(&faults);
            let id = first.create(&TenantId::single(), request(), CreateOptions::default()).await.unwrap().job.id;
            let worker = first.worker().spawn();
            faults.crashed().await;
            drop(worker);
            let before = world.studio.requests();
            let second = world.process(&Faults::none());
            let worker = second.worker().spawn();
            settled(&world, id).await;
            worker.shutdown().await;
            let job = world.job(id).await;
            let label = format!("{point:?} #{visit}");
            if visit > 3 {
                // Compose and thumbnail cost nothing: what is lost of them is made again.
                assert_eq!((job.state, job.held), (JobState::Completed, Usd::ZERO), "{label}: {:?}", job.failure);
                continue;
            }
            let doubt = job.steps.iter().find(|s| matches!(s.state, StepState::InDoubt { .. })).expect(&label);
            let lost = &doubt.open_submission().unwrap().id;
            assert_eq!(job.failure.unwrap().code, "outcome_unknown", "{label}");
            assert!(world.studio.requests().iter().filter(|s| *s == lost).count() <= 1, "{label}");
            assert!(before.iter().filter(|s| *s == lost).count() <= 1, "{label}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn where_the_provider_knows_its_keys_the_submission_is_resent_under_its_own() {
    for point in [Point::AfterIntent, Point::AfterPostBeforeOutcome] {
        let studio =
            ScriptedProvider::new("studio").without_find().with_resubmit(Resubmit::Keyed(Duration::from_secs(3600)));
        let (world, job, _) = one_job(studio, Some((point, 2))).await;
        check(&world, &job, &format!("{point:?}"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_at_which_every_worker_dies_is_given_up() {
    let world = World::new(ScriptedProvider::new("studio"));
    let ids = {
        let host = world.process(&Faults::none());
        host.create(&TenantId::single(), request(), CreateOptions::default()).await.unwrap().job.id
    };
    for _ in 0..3 {
        world.studio.then(StepKind::Image, Scene::RunsForever);
        let faults = Faults::new(Crash::Freeze, Some((Point::DuringPoll, 1)));
        let worker = world.process(&faults).worker().spawn();
        faults.crashed().await;
        drop(worker);
    }
    let worker = world.process(&Faults::none()).worker().spawn();
    settled(&world, ids).await;
    worker.shutdown().await;
    let job = world.job(ids).await;
    assert_eq!((job.state, job.crashes), (JobState::Failed, 3));
    assert!(job.held > Usd::ZERO, "money is out: the hold is kept");
}
