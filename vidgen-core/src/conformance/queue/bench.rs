//! What a rule works with: two handles on one fresh queue, and the clock that drives them.

use std::any::Any;
use std::fmt::{self, Debug};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::clock::ManualClock;
use crate::conformance::sample;
use crate::{
    Ack, Beat, Checkpoint, Claim, Claimed, CostEntry, DeliveryFilter, DeliveryRecord, Error, ErrorKind, Fenced, Job,
    JobEnd, JobFilter, JobId, NewEvent, NewJob, Queue, Release, Settlement, StepRecord, TenantId, UsageFilter,
    UsageReport, Usd, WorkerId,
};

/// A fresh, empty queue to be held to the rules.
pub struct Backend {
    opened: Result<Opened, String>,
}

struct Opened {
    queue: Arc<dyn Queue>,
    second: Option<Arc<dyn Queue>>,
    guards: Vec<Box<dyn Any + Send>>,
}

impl Backend {
    /// A queue. Without [`Backend::with_second`], both handles of a rule are this one.
    pub fn new(queue: impl Queue) -> Self {
        Self { opened: Ok(Opened { queue: Arc::new(queue), second: None, guards: Vec::new() }) }
    }

    /// Adds a second handle on the same state, as another process would have.
    #[must_use]
    pub fn with_second(mut self, queue: impl Queue) -> Self {
        if let Ok(opened) = &mut self.opened {
            opened.second = Some(Arc::new(queue));
        }
        self
    }

    /// Keeps something alive until the rule's end, e.g. a temporary directory.
    #[must_use]
    pub fn with_guard(mut self, guard: impl Any + Send) -> Self {
        if let Ok(opened) = &mut self.opened {
            opened.guards.push(Box::new(guard));
        }
        self
    }

    /// No queue, since a service is not there. The rule prints this and does nothing.
    pub fn skipped(reason: impl Into<String>) -> Self {
        Self { opened: Err(reason.into()) }
    }
}

impl Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Backend").field(&self.opened.as_ref().map(|opened| &opened.queue)).finish()
    }
}

impl<Q: Queue> From<Q> for Backend {
    fn from(queue: Q) -> Self {
        Self::new(queue)
    }
}

/// When every rule's clock starts: an hour before midnight UTC, so that days can turn.
#[must_use]
pub fn start() -> Timestamp {
    Timestamp::from_second(1_769_900_400).unwrap()
}

/// Opens a backend and holds it to one rule; what `queue_conformance!` calls.
pub fn check<B, Opening, Rule>(name: &str, open: impl FnOnce(ManualClock) -> Opening, rule: impl FnOnce(Bench) -> Rule)
where
    B: Into<Backend>,
    Opening: Future<Output = B>,
    Rule: Future<Output = ()>,
{
    crate::conformance::block_on(async {
        let clock = ManualClock::starting_at(start());
        match open(clock.clone()).await.into().opened {
            Ok(Opened { queue, second, guards }) => {
                let second = second.unwrap_or_else(|| queue.clone());
                rule(Bench { queue, second, clock }).await;
                drop(guards);
            }
            Err(reason) => eprintln!("SKIPPED {name}: {reason}"),
        }
    });
}

/// What a rule works with.
#[derive(Clone, Debug)]
pub struct Bench {
    /// The queue.
    pub queue: Arc<dyn Queue>,
    /// The same queue, as another process sees it if the backend can.
    pub second: Arc<dyn Queue>,
    /// Drives both.
    pub clock: ManualClock,
}

/// What rules do all the time. Each panics if the queue answers an error.
impl Bench {
    pub(crate) async fn create(&self, new: NewJob) -> Job {
        self.queue.enqueue(new).await.expect("enqueue").job
    }

    /// A job of the sample plan.
    pub(crate) async fn job(&self, tenant: &TenantId) -> Job {
        self.create(sample::new_job(tenant)).await
    }

    /// That many, oldest first.
    pub(crate) async fn jobs(&self, tenant: &TenantId, count: usize) -> Vec<JobId> {
        let mut ids = Vec::with_capacity(count);
        for _ in 0..count {
            ids.push(self.create(roomy(tenant)).await.id);
        }
        ids
    }

    /// That many at once, in no order: a queue that writes groups together is quick at it.
    pub(crate) async fn crowd(&self, count: usize, new: impl Fn() -> NewJob) -> Vec<JobId> {
        let mut ids = Vec::with_capacity(count);
        while ids.len() < count {
            let some = (ids.len()..count).take(64).map(|_| self.create(new()));
            ids.extend(futures::future::join_all(some).await.into_iter().map(|job| job.id));
        }
        ids
    }

    pub(crate) async fn get(&self, job: &Job) -> Job {
        self.queue.get(&job.tenant, job.id).await.expect("get")
    }

    pub(crate) async fn worker(&self) -> WorkerId {
        self.queue.register("a worker").await.expect("register")
    }

    pub(crate) async fn claim(&self, worker: WorkerId, max: usize) -> Vec<Claimed> {
        self.queue.claim(worker, max).await.expect("claim").jobs
    }

    /// Takes the one job there is to take.
    pub(crate) async fn claim_one(&self, worker: WorkerId) -> Claimed {
        let mut jobs = self.claim(worker, 2).await;
        assert_eq!(jobs.len(), 1, "exactly one job was to be claimed");
        jobs.remove(0)
    }

    /// Takes the first of several.
    pub(crate) async fn claim_one_of(&self, worker: WorkerId) -> Claimed {
        self.claim(worker, 1).await.pop().expect("a job was to be claimed")
    }

    /// A job that a new worker has.
    pub(crate) async fn running(&self, tenant: &TenantId) -> Claimed {
        self.job(tenant).await;
        let worker = self.worker().await;
        self.claim_one(worker).await
    }

    pub(crate) async fn beat(&self, worker: WorkerId, held: &[Claim]) -> Beat {
        self.queue.heartbeat(worker, held).await.expect("heartbeat")
    }

    pub(crate) async fn write(&self, claim: Claim, record: StepRecord, costs: Vec<CostEntry>) -> Ack {
        self.queue.checkpoint(Checkpoint { claim, record, costs, progress: 10 }).await.expect("checkpoint")
    }

    pub(crate) async fn release(&self, claim: Claim, delay: Duration, counts: bool) -> Fenced {
        self.queue.release(claim, Release { delay, counts }).await.expect("release")
    }

    pub(crate) async fn settle(&self, claim: Claim, end: JobEnd) -> Fenced {
        self.settle_with(claim, end, Usd::ZERO, Vec::new()).await
    }

    pub(crate) async fn settle_with(&self, claim: Claim, end: JobEnd, keep_hold: Usd, events: Vec<NewEvent>) -> Fenced {
        self.queue.settle(Settlement { claim, end, keep_hold, events }).await.expect("settle")
    }

    pub(crate) async fn complete(&self, claim: Claim) -> Fenced {
        self.settle(claim, JobEnd::Completed(sample::output())).await
    }

    pub(crate) async fn fail(&self, claim: Claim) -> Fenced {
        self.settle(claim, JobEnd::Failed(sample::failure())).await
    }

    pub(crate) async fn usage(&self, tenant: &TenantId) -> UsageReport {
        self.queue.usage(tenant, &UsageFilter::default()).await.expect("usage")
    }

    pub(crate) async fn list(&self, tenant: &TenantId) -> Vec<Job> {
        let filter = JobFilter { limit: 100, ..JobFilter::default() };
        self.queue.list(tenant, &filter).await.expect("list").items
    }

    pub(crate) async fn deliveries(&self, tenant: &TenantId) -> Vec<DeliveryRecord> {
        let filter = DeliveryFilter { limit: 100, ..DeliveryFilter::default() };
        self.queue.deliveries(tenant, &filter).await.expect("deliveries").items
    }

    /// Lets every lease end and rescues, but for nobody beats meanwhile.
    pub(crate) async fn all_workers_die(&self) -> u64 {
        self.clock.advance(crate::LEASE + Duration::from_secs(1));
        self.queue.rescue().await.expect("rescue")
    }
}

/// A job of a tenant that may run as many as it likes.
pub(crate) fn roomy(tenant: &TenantId) -> NewJob {
    let mut new = sample::new_job(tenant);
    new.limits.active_jobs = 100_000;
    new
}

/// The kind of an expected error.
pub(crate) fn refused<T: Debug>(answer: Result<T, Error>) -> ErrorKind {
    answer.expect_err("this was to be refused").kind()
}

pub(crate) fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// A random sequence that is the same on every run.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `sides`.
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        // xorshift64*: good enough to pick an operation, and no dependency.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(high).unwrap_or(0) % sides.max(1)
    }
}
