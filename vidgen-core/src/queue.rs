//! The system of record: jobs, steps, money, idempotency rows and the outbox, changed together.

mod rules;

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::Result;
use crate::job::{Failure, Job, JobFilter, JobId, JobOutput, Page, StepRecord};
use crate::money::{CostEntry, UsageFilter, UsageReport, Usd};
use crate::notifier::{Delivery, DeliveryFilter, DeliveryRecord, EventId, NewEvent};
use crate::pipeline::Plan;
use crate::provider::{Handle, SubmissionId};
use crate::request::JobRequest;
use crate::tenant::{Limits, TenantId};

pub use rules::*;

/// How long a worker's claims live after its last beat.
pub const LEASE: Duration = Duration::from_secs(30);
/// How often a worker beats: three beats may be lost before the lease ends.
pub const BEAT: Duration = Duration::from_secs(10);
/// How many workers may die at a job before it is given up as poison.
pub const MAX_CRASHES: u32 = 3;
/// No call touches more rows than this.
pub const MAX_BATCH: usize = 500;
/// How many deliveries may be on their way to one endpoint at once.
pub const MAX_PER_ENDPOINT: usize = 4;

/// Keeps jobs and hands them to workers.
///
/// States inside: *parked* (its tenant has no free slot), *ready*, *waiting* (until a moment),
/// *running*, and the three ends. Users see parked, ready and waiting as queued.
///
/// # Contract
/// - **Q1** A claim is `(job, worker, epoch)`. A worker id is 128 random bits for each
///   registration. The epoch only grows: +1 at claim, rescue and retry.
/// - **Q2** Every worker write carries the claim and answers `Applied`, `Already` (the same claim
///   did exactly this before) or `Stale` (nothing was written).
/// - **Q3** One call is one transaction: job, steps, money, idempotency row, tenant counters and
///   events move together or not at all.
/// - **Q4** A lease belongs to a worker and lasts [`LEASE`] from its last beat. A beat answers
///   whether the worker is still known, which of its jobs were signalled, which claims the store
///   thinks are its own though it does not hold them (strays: the answer to a claim was lost;
///   they are handed back), and which it holds though they are not its own (lost). A stray is one
///   that two beats in a row did not name and that was claimed at least [`BEAT`] ago, since the
///   answer to a younger claim may still be on its way. A lease is over when a rescue says so; a
///   late beat before that renews it.
/// - **Q5** A worker that is not known claims nothing (`Stale`) and writes nothing.
/// - **Q6** Rescue is guarded and bounded. It raises `crashes`, not `attempts`, and never touches
///   a job that ended. A rescued job is ready at once, with its slot and its tag.
/// - **Q7** Time is the store's. No caller's wall clock is compared with it, and a step of the
///   store's own moves none of the moments that workers compare: those of Q12, and the `now` of a
///   claim and of an [`Ack`].
/// - **Q8** No call costs more as ended jobs grow, and none touches more than [`MAX_BATCH`] rows.
/// - **Q9** [`Queue::ready`], [`Queue::signalled`] and the end of [`Queue::watch`]'s patience are
///   hints. Losing all of them costs a second, never a job.
/// - **Q10** Order: priority, then fair tag. First in, first out within a tenant and priority,
///   except after a retry. A tag is `max(V, tenant's last tag) + 1024 / weight` at admission, with
///   `V` the greatest tag claimed so far; equal ones go by age. Jobs whose moment has come are all
///   parked before one is admitted.
/// - **Q11** Same tenant, idempotency key and hash: the first job, for 24 hours, even if it is
///   deleted meanwhile (then `Conflict`). Another hash: `Conflict`.
/// - **Q12** The store stamps an intent and an acceptance with its own clock.
/// - **Q13** A step record is written only if it [follows](StepRecord::follows) the stored one; a
///   broken succession under a standing claim is a `Conflict`. The version rises by one with each
///   change of state, checkpoint, request to cancel and resolve. Progress never falls.
/// - **Q14** Limits are checked in the transaction that creates the job: `RateLimited` with
///   `retry_after` (creates, live jobs) or `OverBudget` (spent in the window + held + this hold).
/// - **Q15** A job of another tenant is `NotFound`, as if it did not exist.
/// - **Q16** Money: enqueue and retry hold; a cost entry is recorded once by (job, step, ordinal)
///   and takes its amount out of the hold ([`held_after_cost`]), so nothing counts twice; the end gives the hold back except `keep_hold`, and writes an adjustment so that the sum of
///   the job's ledger rows is what the tenant pays ([`LedgerEntry`](crate::LedgerEntry)). Rows are never changed.
/// - **Q17** An event is inserted once by id, with the change it tells of, and stays until it is
///   delivered or given up. A delivery is claimed like a job; at most [`MAX_PER_ENDPOINT`] are on
///   their way to one endpoint.
/// - **Q18** Retention never takes a live job, one with an open hold or one with an event still
///   to be delivered, and never the ledger or an idempotency row before its time.
/// - **Q19** A witness is kept with its job, the last one for each submission, and the job is woken
///   (as by [`Queue::wake`]) in the same transaction. One of an end ([`Handle::has_end`](crate::Handle::has_end))
///   stays whatever comes later, since callbacks overtake one another. A witness of a job that is
///   not there is forgotten without an error. It changes neither state nor version nor money.
#[async_trait]
pub trait Queue: Debug + Send + Sync + 'static {
    // --- for the host ---

    /// Creates a job with its hold and idempotency row, or answers the one created before.
    async fn enqueue(&self, new: NewJob) -> Result<Enqueued>;

    /// One job.
    async fn get(&self, tenant: &TenantId, id: JobId) -> Result<Job>;

    /// Jobs of a tenant, newest first.
    async fn list(&self, tenant: &TenantId, filter: &JobFilter) -> Result<Page<Job>>;

    /// Ends a queued job at once, with `event` if it has an endpoint. One that a worker has is
    /// flagged; so is one with a [submission open](Job::has_open_submission), which also becomes
    /// ready: money may be out, so a worker must end it and settle what it really cost. A job that
    /// ended is `TooLate`.
    async fn cancel(&self, tenant: &TenantId, id: JobId, event: Option<NewEvent>) -> Result<Job>;

    /// Queues a failed or canceled job again, with its steps as [`StepRecord::reopened`] leaves
    /// them, attempts and crashes at zero, and a new hold of `hold` under `limits`. A job that is
    /// live or completed, or has a step in doubt of which no callback told, is a `Conflict`.
    async fn retry(&self, tenant: &TenantId, id: JobId, hold: Usd, limits: &Limits) -> Result<Job>;

    /// Decides the steps in doubt of a job that ended: bought (the submission's hold becomes its cost)
    /// or not. They become failed and what is still held is released.
    async fn resolve(&self, tenant: &TenantId, id: JobId, verdict: Verdict) -> Result<Job>;

    /// Removes the record of a job that ended and its ended deliveries; the ledger stays, and an
    /// event still to be delivered is delivered. A live one, or one with an open hold, is a `Conflict`.
    async fn delete(&self, tenant: &TenantId, id: JobId) -> Result<()>;

    /// Answers the job when its version is greater than `after`, or as it is when `patience` ends.
    async fn watch(&self, tenant: &TenantId, id: JobId, after: u64, patience: Duration) -> Result<Job>;

    /// Adds up a tenant's ledger.
    async fn usage(&self, tenant: &TenantId, filter: &UsageFilter) -> Result<UsageReport>;

    /// Counts of what is live.
    async fn stats(&self) -> Result<QueueStats>;

    /// Stops or resumes handing out jobs, for all processes.
    async fn pause(&self, paused: bool) -> Result<()>;

    /// Tells the worker of a running job to look again (a provider called back), or makes a
    /// waiting one ready. Anything else, and a job that is not there, is left as it is.
    async fn wake(&self, id: JobId) -> Result<()>;

    /// Keeps what a verified callback told, and wakes the job (Q19).
    async fn witness(&self, witness: Witness) -> Result<()>;

    // --- for workers ---

    /// Starts a lease; `name` is for people to read.
    async fn register(&self, name: &str) -> Result<WorkerId>;

    /// Ends a lease; what it still held is rescued at once, without a crash counted.
    async fn deregister(&self, worker: WorkerId) -> Result<()>;

    /// Takes up to `max` jobs, after making those ready whose moment has come.
    async fn claim(&self, worker: WorkerId, max: usize) -> Result<ClaimBatch>;

    /// Renews the lease and compares notes.
    async fn heartbeat(&self, worker: WorkerId, held: &[Claim]) -> Result<Beat>;

    /// Writes a step record, its costs and the job's progress.
    async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<Ack>;

    /// Hands a job back. At once: it keeps its slot and its turn, so that a restart of workers
    /// costs it nothing. For later: it gives its slot away meanwhile; but a job whose end was asked
    /// for goes back at once, unless a submission of it is open or the release counts. `Already`
    /// if this claim's release was written before.
    async fn release(&self, claim: Claim, release: Release) -> Result<Fenced>;

    /// Ends a job. `Already` if this claim's end in the same state was written before.
    async fn settle(&self, settlement: Settlement) -> Result<Fenced>;

    /// Rescues the jobs and deliveries of dead workers; answers how many.
    async fn rescue(&self) -> Result<u64>;

    /// Ended jobs past their retention, at most `max`. Their media go first, then
    /// [`Queue::prune`] takes the records: a crash between the two loses nothing.
    async fn expired(&self, retention: &Retention, max: usize) -> Result<Vec<JobId>>;

    /// Removes the records of ended jobs that may go (Q18); answers how many went.
    async fn prune(&self, jobs: &[JobId]) -> Result<u64>;

    /// Returns when there may be something to claim. A hint; never fails, may be late.
    async fn ready(&self);

    /// Returns when a running job or a delivery may want attention. A hint, as above.
    async fn signalled(&self);

    // --- the outbox ---

    /// Takes up to `max` due deliveries; answers when the next one is due, if none is now.
    async fn claim_deliveries(&self, worker: WorkerId, max: usize) -> Result<DeliveryBatch>;

    /// Records how a claimed delivery went.
    async fn settle_delivery(&self, delivery: &Delivery, outcome: DeliveryOutcome) -> Result<Fenced>;

    /// Deliveries of a tenant, newest first.
    async fn deliveries(&self, tenant: &TenantId, filter: &DeliveryFilter) -> Result<Page<DeliveryRecord>>;

    /// Makes an event due again, from its first attempt, also one that was delivered or given up.
    /// One that is on its way is left there, with its attempts forgotten. `NotFound` if the event
    /// is not the tenant's.
    async fn redeliver(&self, tenant: &TenantId, event: &EventId) -> Result<()>;
}

/// A job to create.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Its id.
    pub id: JobId,
    /// Whose it is.
    pub tenant: TenantId,
    /// What was asked for.
    pub request: JobRequest,
    /// How it is made; its hold is reserved.
    pub plan: Plan,
    /// What its tenant may use.
    pub limits: Limits,
    /// So that a repeated create makes one job.
    pub idempotency: Option<Idempotency>,
    /// 0 first, 7 last.
    pub priority: u8,
    /// Not before so long from now.
    pub delay: Duration,
}

/// The usual priority.
pub const DEFAULT_PRIORITY: u8 = 3;

impl NewJob {
    /// A job of usual priority, at once, without an idempotency key or limits.
    #[must_use]
    pub fn new(tenant: TenantId, request: JobRequest, plan: Plan) -> Self {
        Self {
            id: JobId::new(),
            tenant,
            request,
            plan,
            limits: Limits::default(),
            idempotency: None,
            priority: DEFAULT_PRIORITY,
            delay: Duration::ZERO,
        }
    }
}

/// A caller's key for a create, and the hash of what it asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// 1 to 255 printable ASCII characters.
    pub key: String,
    /// SHA-256 of the request, hex.
    pub hash: String,
}

/// What a verified callback told of a submission: that it was accepted, and as which run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Witness {
    /// For which job.
    pub job: JobId,
    /// Which submission.
    pub submission: SubmissionId,
    /// The run that it is.
    pub handle: Handle,
}

/// What [`Queue::enqueue`] did.
#[derive(Clone, Debug)]
pub struct Enqueued {
    /// The job.
    pub job: Job,
    /// Whether it was created before, under the same idempotency key.
    pub replayed: bool,
}

/// An operator's answer to "was it bought?".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was; what was held for it is its cost.
    Bought,
    /// It was not.
    NotBought,
}

/// The id of a registered worker: 128 random bits, never a host's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerId(Uuid);

impl WorkerId {
    /// A new random id. Only a queue makes one, in [`Queue::register`].
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a new id is not a default value")]
    pub fn new() -> Self {
        Self(Uuid::new_v4())
    }
    /// The 16 bytes of the id.
    #[must_use]
    pub fn uuid(self) -> Uuid {
        self.0
    }
    /// From the 16 bytes of an id.
    #[must_use]
    pub fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.simple())
    }
}

/// The right to work on a job, until the lease ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Claim {
    /// Which job.
    pub job: JobId,
    /// Whose right.
    pub worker: WorkerId,
    /// Makes the writes of earlier claims fail.
    pub epoch: u64,
}

/// A claimed job.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// The right to work on it.
    pub claim: Claim,
    /// The job, with its steps.
    pub job: Job,
}

/// What [`Queue::claim`] took.
#[derive(Clone, Debug)]
pub struct ClaimBatch {
    /// The jobs.
    pub jobs: Vec<Claimed>,
    /// The store's time.
    pub now: Timestamp,
    /// How long until the next waiting job's moment.
    pub next_due: Option<Duration>,
}

/// What a beat answers.
#[derive(Clone, Debug)]
pub struct Beat {
    /// Whether the lease still stands. If not, drop everything and register anew.
    pub known: bool,
    /// Held jobs whose owner wants them to end.
    pub cancels: Vec<JobId>,
    /// Held jobs that were woken since the last beat.
    pub wakes: Vec<JobId>,
    /// Claims that were this worker's, not held, and now handed back.
    pub strays: Vec<Claim>,
    /// Claims that are no longer this worker's.
    pub lost: Vec<Claim>,
}

/// A step record to write.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The right to.
    pub claim: Claim,
    /// The whole record, as it shall be.
    pub record: StepRecord,
    /// Submissions that were billed; each is recorded once.
    pub costs: Vec<CostEntry>,
    /// 0 to 99; a smaller one than before changes nothing.
    pub progress: u8,
}

/// How a worker's write went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fenced {
    /// It was written.
    Applied,
    /// The same claim wrote the same before.
    Already,
    /// The claim is another's now: stop, write nothing, tell nobody.
    Stale,
}

/// What a checkpoint answers.
#[derive(Clone, Copy, Debug)]
pub struct Ack {
    /// How it went.
    pub fenced: Fenced,
    /// Whether the job's owner wants it to end.
    pub cancel: bool,
    /// The store's time.
    pub now: Timestamp,
}

/// Why and for how long a job is handed back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// Not before so long from now.
    pub delay: Duration,
    /// Whether it uses up an attempt.
    pub counts: bool,
}

/// The end of a job.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// The right to.
    pub claim: Claim,
    /// How it ended.
    pub end: JobEnd,
    /// What stays held, since its outcome is unknown.
    pub keep_hold: Usd,
    /// Who is told, and what.
    pub events: Vec<NewEvent>,
}

/// How a job ended.
#[derive(Clone, Debug)]
pub enum JobEnd {
    /// With an output.
    Completed(JobOutput),
    /// Without one.
    Failed(Failure),
    /// Because its owner said so.
    Canceled,
}

/// How long ended jobs are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Retention {
    /// Completed jobs.
    pub completed: Duration,
    /// Failed and canceled jobs.
    pub failed: Duration,
    /// At most so many completed jobs of each tenant. Off by default, since it makes finished
    /// jobs vanish early; the tutorial's setting is 100.
    pub max_completed: Option<u32>,
    /// At most so many failed and canceled jobs of each tenant; the tutorial's setting is 500.
    pub max_failed: Option<u32>,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            completed: Duration::from_secs(24 * 3600),
            failed: Duration::from_secs(7 * 24 * 3600),
            max_completed: None,
            max_failed: None,
        }
    }
}

/// Counts of what is live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStats {
    /// Jobs that could run now, were there a worker or a slot (parked and ready).
    pub queued: u64,
    /// Jobs that wait for a moment.
    pub waiting: u64,
    /// Jobs that a worker has.
    pub processing: u64,
    /// Registered workers.
    pub workers: u64,
    /// Events still to be delivered.
    pub deliveries: u64,
    /// Whether handing out is paused.
    pub paused: bool,
}

/// What [`Queue::claim_deliveries`] took.
#[derive(Clone, Debug)]
pub struct DeliveryBatch {
    /// The deliveries.
    pub deliveries: Vec<Delivery>,
    /// How long until the next one is due.
    pub next_due: Option<Duration>,
}

/// How a delivery went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeliveryOutcome {
    /// The receiver took it.
    Delivered,
    /// It did not; again after this long.
    Retry {
        /// How long to wait.
        delay: Duration,
        /// Why, for the log: no address, no answer body.
        reason: String,
    },
    /// It never will.
    GivenUp {
        /// Why.
        reason: String,
    },
    /// It was not attempted (the worker is stopping): due again at once, no attempt counted.
    Returned,
}

macro_rules! forward {
    ($(async fn $name:ident(&self $(, $arg:ident: $ty:ty)*) -> $ret:ty;)*) => {
        #[async_trait]
        impl<T: Queue + ?Sized> Queue for Arc<T> {
            $(async fn $name(&self $(, $arg: $ty)*) -> $ret { (**self).$name($($arg),*).await })*
        }
    };
}
forward! {
    async fn enqueue(&self, new: NewJob) -> Result<Enqueued>;
    async fn get(&self, tenant: &TenantId, id: JobId) -> Result<Job>;
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
