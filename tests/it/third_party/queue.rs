//! A queue at the other end of a wire: every argument and every answer crosses it as JSON text and
//! is built anew from public parts. Behind it an actor holds a queue in memory; a database would do.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use vidgen_core::memory::MemoryQueue;
use vidgen_core::*;

/// A client of the actor.
#[derive(Clone, Debug)]
struct RemoteQueue {
    wire: mpsc::UnboundedSender<(String, oneshot::Sender<String>)>,
}

impl RemoteQueue {
    /// Starts an actor that holds `queue`.
    fn before(queue: MemoryQueue) -> Self {
        let (wire, mut calls) = mpsc::unbounded_channel::<(String, oneshot::Sender<String>)>();
        tokio::spawn(async move {
            while let Some((text, mut answer)) = calls.recv().await {
                let queue = queue.clone();
                tokio::spawn(async move {
                    let told = tokio::select! {
                        told = serve(&queue, &text) => told,
                        // Nobody waits any more: a hint must not be eaten for nobody.
                        () = answer.closed() => return,
                    };
                    let _ = answer.send(told);
                });
            }
        });
        Self { wire }
    }

    async fn call<T: DeserializeOwned>(&self, call: Call) -> Result<T> {
        let lost = || Error::new(ErrorKind::Unavailable, "remote-queue", "the other end is away");
        let (answer, told) = oneshot::channel();
        self.wire.send((text(&call), answer)).map_err(|_| lost())?;
        let told: Told = read(&told.await.map_err(|e| lost().with_source(e))?);
        match told {
            Ok(value) => Ok(serde_json::from_value(value).unwrap()),
            Err(fault) => Err(fault.into()),
        }
    }
}

fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap()
}

fn read<T: DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).unwrap()
}

type Told = std::result::Result<serde_json::Value, Fault>;

/// An [`Error`] on the wire. Its source stays where it was raised.
#[derive(Serialize, Deserialize)]
struct Fault {
    kind: ErrorKind,
    origin: String,
    message: String,
    retry_after: Option<Duration>,
    fields: Vec<FieldError>,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self {
            kind: error.kind(),
            origin: error.origin().into(),
            message: error.message().into(),
            retry_after: error.retry_after(),
            fields: error.fields().to_vec(),
        }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        let error = if fault.fields.is_empty() {
            Self::new(fault.kind, fault.origin, fault.message)
        } else {
            Self::invalid(fault.fields)
        };
        match fault.retry_after {
            Some(delay) => error.with_retry_after(delay),
            None => error,
        }
    }
}

/// The calls of the trait, in parts that are JSON.
#[derive(Serialize, Deserialize)]
enum Call {
    Enqueue(Box<New>),
    Get(TenantId, JobId),
    List(TenantId, Option<JobState>, Option<JobId>, usize),
    Cancel(TenantId, JobId, Option<Event>),
    Retry(TenantId, JobId, Usd, Limits),
    /// Whether it was bought.
    Resolve(TenantId, JobId, bool),
    Delete(TenantId, JobId),
    Watch(TenantId, JobId, u64, Duration),
    Usage(TenantId, Option<Timestamp>, Option<Timestamp>),
    Stats,
    Pause(bool),
    Wake(JobId),
    Witness(Witness),
    Register(String),
    Deregister(WorkerId),
    Claim(WorkerId, usize),
    Heartbeat(WorkerId, Vec<Claim>),
    Checkpoint(Claim, Box<StepRecord>, Vec<CostEntry>, u8),
    Release(Claim, Duration, bool),
    Settle(Claim, End, Usd, Vec<Event>),
    Rescue,
    Expired(Retention, usize),
    Prune(Vec<JobId>),
    Ready,
    Signalled,
    ClaimDeliveries(WorkerId, usize),
    SettleDelivery(Box<Parcel>, Outcome),
    Deliveries(TenantId, Option<JobId>, usize),
    Redeliver(TenantId, EventId),
}

#[derive(Serialize, Deserialize)]
struct New {
    id: JobId,
    tenant: TenantId,
    request: JobRequest,
    plan: Plan,
    limits: Limits,
    idempotency: Option<(String, String)>,
    priority: u8,
    delay: Duration,
}

impl From<NewJob> for New {
    fn from(new: NewJob) -> Self {
        let NewJob { id, tenant, request, plan, limits, idempotency, priority, delay } = new;
        let idempotency = idempotency.map(|i| (i.key, i.hash));
        Self { id, tenant, request, plan, limits, idempotency, priority, delay }
    }
}

impl From<New> for NewJob {
    fn from(new: New) -> Self {
        let New { id, tenant, request, plan, limits, idempotency, priority, delay } = new;
        let idempotency = idempotency.map(|(key, hash)| Idempotency { key, hash });
        Self { id, limits, idempotency, priority, delay, ..Self::new(tenant, request, plan) }
    }
}

/// Id, kind, endpoint, body.
type Event = (EventId, String, String, String);

fn event(new: NewEvent) -> Event {
    (new.id, new.kind, new.endpoint, new.body)
}

fn new_event((id, kind, endpoint, body): Event) -> NewEvent {
    NewEvent { id: EventId::from_text(id.as_str()), kind, endpoint, body }
}

#[derive(Serialize, Deserialize)]
enum End {
    Completed(JobOutput),
    Failed(Failure),
    Canceled,
}

#[derive(Serialize, Deserialize)]
struct Parcel {
    event: Event,
    job: JobId,
    tenant: TenantId,
    attempt: u32,
    worker: WorkerId,
    epoch: u64,
}

impl From<Delivery> for Parcel {
    fn from(d: Delivery) -> Self {
        let event = (d.id, d.kind, d.endpoint, d.body);
        Self { event, job: d.job, tenant: d.tenant, attempt: d.attempt, worker: d.worker, epoch: d.epoch }
    }
}

impl From<Parcel> for Delivery {
    fn from(parcel: Parcel) -> Self {
        let Parcel { event: (id, kind, endpoint, body), job, tenant, attempt, worker, epoch } = parcel;
        Self { id, kind, job, tenant, endpoint, body, attempt, worker, epoch }
    }
}

#[derive(Serialize, Deserialize)]
enum Outcome {
    Delivered,
    Retry(Duration, String),
    GivenUp(String),
    Returned,
}

/// [`Fenced`] on the wire.
fn fenced(fenced: Fenced) -> &'static str {
    match fenced {
        Fenced::Applied => "applied",
        Fenced::Already => "already",
        Fenced::Stale => "stale",
    }
}

fn read_fenced(text: &str) -> Fenced {
    match text {
        "applied" => Fenced::Applied,
        "already" => Fenced::Already,
        _ => Fenced::Stale,
    }
}

type Batch = (Vec<(Claim, Job)>, Timestamp, Option<Duration>);
type Notes = (bool, Vec<JobId>, Vec<JobId>, Vec<Claim>, Vec<Claim>);

/// The other end of the wire.
async fn serve(queue: &MemoryQueue, call: &str) -> String {
    let told: Told = answer(queue, read(call)).await.map_err(Fault::from);
    text(&told)
}

async fn answer(queue: &MemoryQueue, call: Call) -> Result<serde_json::Value> {
    fn json(value: impl Serialize) -> Result<serde_json::Value> {
        Ok(serde_json::to_value(value).unwrap())
    }
    match call {
        Call::Enqueue(new) => {
            let Enqueued { job, replayed } = queue.enqueue((*new).into()).await?;
            json((job, replayed))
        }
        Call::Get(tenant, id) => json(queue.get(&tenant, id).await?),
        Call::List(tenant, state, before, limit) => {
            json(queue.list(&tenant, &JobFilter { state, before, limit }).await?)
        }
        Call::Cancel(tenant, id, told) => json(queue.cancel(&tenant, id, told.map(new_event)).await?),
        Call::Retry(tenant, id, hold, limits) => json(queue.retry(&tenant, id, hold, &limits).await?),
        Call::Resolve(tenant, id, bought) => {
            let verdict = if bought { Verdict::Bought } else { Verdict::NotBought };
            json(queue.resolve(&tenant, id, verdict).await?)
        }
        Call::Delete(tenant, id) => json(queue.delete(&tenant, id).await?),
        Call::Watch(tenant, id, after, patience) => json(queue.watch(&tenant, id, after, patience).await?),
        Call::Usage(tenant, from, to) => json(queue.usage(&tenant, &UsageFilter { from, to }).await?),
        Call::Stats => json(queue.stats().await?),
        Call::Pause(paused) => json(queue.pause(paused).await?),
        Call::Wake(id) => json(queue.wake(id).await?),
        Call::Witness(witness) => json(queue.witness(witness).await?),
        Call::Register(name) => json(queue.register(&name).await?),
        Call::Deregister(worker) => json(queue.deregister(worker).await?),
        Call::Claim(worker, max) => {
            let ClaimBatch { jobs, now, next_due } = queue.claim(worker, max).await?;
            let jobs: Vec<_> = jobs.into_iter().map(|Claimed { claim, job }| (claim, job)).collect();
            json((jobs, now, next_due))
        }
        Call::Heartbeat(worker, held) => {
            let Beat { known, cancels, wakes, strays, lost } = queue.heartbeat(worker, &held).await?;
            json((known, cancels, wakes, strays, lost))
        }
        Call::Checkpoint(claim, record, costs, progress) => {
            let ack = queue.checkpoint(Checkpoint { claim, record: *record, costs, progress }).await?;
            json((fenced(ack.fenced), ack.cancel, ack.now))
        }
        Call::Release(claim, delay, counts) => json(fenced(queue.release(claim, Release { delay, counts }).await?)),
        Call::Settle(claim, end, keep_hold, told) => {
            let end = match end {
                End::Completed(output) => JobEnd::Completed(output),
                End::Failed(failure) => JobEnd::Failed(failure),
                End::Canceled => JobEnd::Canceled,
            };
            let events = told.into_iter().map(new_event).collect();
            json(fenced(queue.settle(Settlement { claim, end, keep_hold, events }).await?))
        }
        Call::Rescue => json(queue.rescue().await?),
        Call::Expired(retention, max) => json(queue.expired(&retention, max).await?),
        Call::Prune(jobs) => json(queue.prune(&jobs).await?),
        Call::Ready => {
            queue.ready().await;
            json(())
        }
        Call::Signalled => {
            queue.signalled().await;
            json(())
        }
        Call::ClaimDeliveries(worker, max) => {
            let DeliveryBatch { deliveries, next_due } = queue.claim_deliveries(worker, max).await?;
            json((deliveries.into_iter().map(Parcel::from).collect::<Vec<_>>(), next_due))
        }
        Call::SettleDelivery(parcel, outcome) => {
            let outcome = match outcome {
                Outcome::Delivered => DeliveryOutcome::Delivered,
                Outcome::Retry(delay, reason) => DeliveryOutcome::Retry { delay, reason },
                Outcome::GivenUp(reason) => DeliveryOutcome::GivenUp { reason },
                Outcome::Returned => DeliveryOutcome::Returned,
            };
            json(fenced(queue.settle_delivery(&(*parcel).into(), outcome).await?))
        }
        Call::Deliveries(tenant, job, limit) => json(queue.deliveries(&tenant, &DeliveryFilter { job, limit }).await?),
        Call::Redeliver(tenant, id) => json(queue.redeliver(&tenant, &id).await?),
    }
}

#[async_trait]
impl Queue for RemoteQueue {
    async fn enqueue(&self, new: NewJob) -> Result<Enqueued> {
        let (job, replayed) = self.call(Call::Enqueue(Box::new(new.into()))).await?;
        Ok(Enqueued { job, replayed })
    }
    async fn get(&self, tenant: &TenantId, id: JobId) -> Result<Job> {
        self.call(Call::Get(tenant.clone(), id)).await
    }
    async fn list(&self, tenant: &TenantId, filter: &JobFilter) -> Result<Page<Job>> {
        self.call(Call::List(tenant.clone(), filter.state, filter.before, filter.limit)).await
    }
    async fn cancel(&self, tenant: &TenantId, id: JobId, told: Option<NewEvent>) -> Result<Job> {
        self.call(Call::Cancel(tenant.clone(), id, told.map(event))).await
    }
    async fn retry(&self, tenant: &TenantId, id: JobId, hold: Usd, limits: &Limits) -> Result<Job> {
        self.call(Call::Retry(tenant.clone(), id, hold, limits.clone())).await
    }
    async fn resolve(&self, tenant: &TenantId, id: JobId, verdict: Verdict) -> Result<Job> {
        self.call(Call::Resolve(tenant.clone(), id, verdict == Verdict::Bought)).await
    }
    async fn delete(&self, tenant: &TenantId, id: JobId) -> Result<()> {
        self.call(Call::Delete(tenant.clone(), id)).await
    }
    async fn watch(&self, tenant: &TenantId, id: JobId, after: u64, patience: Duration) -> Result<Job> {
        self.call(Call::Watch(tenant.clone(), id, after, patience)).await
    }
    async fn usage(&self, tenant: &TenantId, filter: &UsageFilter) -> Result<UsageReport> {
        self.call(Call::Usage(tenant.clone(), filter.from, filter.to)).await
    }
    async fn stats(&self) -> Result<QueueStats> {
        self.call(Call::Stats).await
    }
    async fn pause(&self, paused: bool) -> Result<()> {
        self.call(Call::Pause(paused)).await
    }
    async fn wake(&self, id: JobId) -> Result<()> {
        self.call(Call::Wake(id)).await
    }
    async fn witness(&self, witness: Witness) -> Result<()> {
        self.call(Call::Witness(witness)).await
    }
    async fn register(&self, name: &str) -> Result<WorkerId> {
        self.call(Call::Register(name.into())).await
    }
    async fn deregister(&self, worker: WorkerId) -> Result<()> {
        self.call(Call::Deregister(worker)).await
    }
    async fn claim(&self, worker: WorkerId, max: usize) -> Result<ClaimBatch> {
        let (jobs, now, next_due): Batch = self.call(Call::Claim(worker, max)).await?;
        let jobs = jobs.into_iter().map(|(claim, job)| Claimed { claim, job }).collect();
        Ok(ClaimBatch { jobs, now, next_due })
    }
    async fn heartbeat(&self, worker: WorkerId, held: &[Claim]) -> Result<Beat> {
        let (known, cancels, wakes, strays, lost): Notes = self.call(Call::Heartbeat(worker, held.to_vec())).await?;
        Ok(Beat { known, cancels, wakes, strays, lost })
    }
    async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<Ack> {
        let Checkpoint { claim, record, costs, progress } = checkpoint;
        let call = Call::Checkpoint(claim, Box::new(record), costs, progress);
        let (fenced, cancel, now): (String, bool, Timestamp) = self.call(call).await?;
        Ok(Ack { fenced: read_fenced(&fenced), cancel, now })
    }
    async fn release(&self, claim: Claim, release: Release) -> Result<Fenced> {
        let fenced: String = self.call(Call::Release(claim, release.delay, release.counts)).await?;
        Ok(read_fenced(&fenced))
    }
    async fn settle(&self, settlement: Settlement) -> Result<Fenced> {
        let Settlement { claim, end, keep_hold, events } = settlement;
        let end = match end {
            JobEnd::Completed(output) => End::Completed(output),
            JobEnd::Failed(failure) => End::Failed(failure),
            JobEnd::Canceled => End::Canceled,
        };
        let call = Call::Settle(claim, end, keep_hold, events.into_iter().map(event).collect());
        let fenced: String = self.call(call).await?;
        Ok(read_fenced(&fenced))
    }
    async fn rescue(&self) -> Result<u64> {
        self.call(Call::Rescue).await
    }
    async fn expired(&self, retention: &Retention, max: usize) -> Result<Vec<JobId>> {
        self.call(Call::Expired(retention.clone(), max)).await
    }
    async fn prune(&self, jobs: &[JobId]) -> Result<u64> {
        self.call(Call::Prune(jobs.to_vec())).await
    }
    async fn ready(&self) {
        self.call(Call::Ready).await.unwrap_or_default()
    }
    async fn signalled(&self) {
        self.call(Call::Signalled).await.unwrap_or_default()
    }
    async fn claim_deliveries(&self, worker: WorkerId, max: usize) -> Result<DeliveryBatch> {
        let call = Call::ClaimDeliveries(worker, max);
        let (parcels, next_due): (Vec<Parcel>, Option<Duration>) = self.call(call).await?;
        Ok(DeliveryBatch { deliveries: parcels.into_iter().map(Delivery::from).collect(), next_due })
    }
    async fn settle_delivery(&self, delivery: &Delivery, outcome: DeliveryOutcome) -> Result<Fenced> {
        let outcome = match outcome {
            DeliveryOutcome::Delivered => Outcome::Delivered,
            DeliveryOutcome::Retry { delay, reason } => Outcome::Retry(delay, reason),
            DeliveryOutcome::GivenUp { reason } => Outcome::GivenUp(reason),
            DeliveryOutcome::Returned => Outcome::Returned,
        };
        let call = Call::SettleDelivery(Box::new(delivery.clone().into()), outcome);
        let fenced: String = self.call(call).await?;
        Ok(read_fenced(&fenced))
    }
    async fn deliveries(&self, tenant: &TenantId, filter: &DeliveryFilter) -> Result<Page<DeliveryRecord>> {
        self.call(Call::Deliveries(tenant.clone(), filter.job, filter.limit)).await
    }
    async fn redeliver(&self, tenant: &TenantId, event: &EventId) -> Result<()> {
        self.call(Call::Redeliver(tenant.clone(), event.clone())).await
    }
}

vidgen_core::queue_conformance!(remote, |clock| async move { RemoteQueue::before(MemoryQueue::with_clock(clock)) });
