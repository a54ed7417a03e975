//! The queue in process: one mutex over maps. It keeps every rule of [`Queue`] and is what the
//! conformance kit compares other queues with.

mod host;
mod outbox;
mod state;
mod work;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::{Notify, watch};

use crate::clock::{Clock, SystemClock, later};
use crate::error::Result;
use crate::job::{Job, JobFilter, JobId, Page};
use crate::money::{UsageFilter, UsageReport, Usd};
use crate::notifier::{Delivery, DeliveryFilter, DeliveryRecord, EventId, NewEvent};
use crate::queue::{
    Ack, Beat, Checkpoint, Claim, ClaimBatch, DeliveryBatch, DeliveryOutcome, Enqueued, Fenced, NewJob, Queue,
    QueueStats, Release, Retention, Settlement, Verdict, Witness, WorkerId,
};
use crate::tenant::{Limits, TenantId};

use state::{Now, State};

/// A [`Queue`] in process, for tests, examples and trying things out: **nothing survives the
/// process**, so a paid submission that was on its way is lost with it. A clone is a second handle
/// on the same jobs.
#[derive(Clone, Debug)]
pub struct MemoryQueue {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
    /// Both clocks when the queue was made.
    start: (Timestamp, Duration),
    ready: Notify,
    signal: Notify,
}

impl MemoryQueue {
    /// An empty queue on the machine's clock.
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(SystemClock::new())
    }

    /// An empty queue on another clock.
    #[must_use]
    pub fn with_clock(clock: impl Clock) -> Self {
        let shared = Shared {
            state: Mutex::default(),
            start: (clock.now(), clock.monotonic()),
            clock: Arc::new(clock),
            ready: Notify::new(),
            signal: Notify::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Does one call: under the lock, at one moment, and tells whoever waits for it afterwards.
    fn call<T>(&self, work: impl FnOnce(&mut State, Now) -> T) -> T {
        let (wall, mono) = (self.shared.clock.now(), self.shared.clock.monotonic());
        let (start, began) = self.shared.start;
        let now = Now { wall, mono, steady: later(start, mono.saturating_sub(began)) };
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = work(&mut state, now);
        let hints = std::mem::take(&mut state.hints);
        drop(state);
        if hints.ready {
            tell(&self.shared.ready);
        }
        if hints.signal {
            tell(&self.shared.signal);
        }
        answer
    }
}

/// Wakes everybody who waits, and the next one who will: a hint sent before the wait is not lost.
fn tell(notify: &Notify) {
    notify.notify_waiters();
    notify.notify_one();
}

impl Default for MemoryQueue {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Queue for MemoryQueue {
    async fn enqueue(&self, new: NewJob) -> Result<Enqueued> {
        self.call(|state, now| state.enqueue(new, now))
    }

    async fn get(&self, tenant: &TenantId, id: JobId) -> Result<Job> {
        self.call(|state, _| state.own(tenant, id).map(|row| row.job.clone()))
    }

    async fn list(&self, tenant: &TenantId, filter: &JobFilter) -> Result<Page<Job>> {
        Ok(self.call(|state, _| state.list(tenant, filter)))
    }

    async fn cancel(&self, tenant: &TenantId, id: JobId, event: Option<NewEvent>) -> Result<Job> {
        self.call(|state, now| state.cancel(tenant, id, event, now))
    }

    async fn retry(&self, tenant: &TenantId, id: JobId, hold: Usd, limits: &Limits) -> Result<Job> {
        self.call(|state, now| state.retry(tenant, id, hold, limits, now))
    }

    async fn resolve(&self, tenant: &TenantId, id: JobId, verdict: Verdict) -> Result<Job> {
        self.call(|state, now| state.resolve(tenant, id, verdict, now))
    }

    async fn delete(&self, tenant: &TenantId, id: JobId) -> Result<()> {
        self.call(|state, _| state.delete(tenant, id))
    }

    async fn watch(&self, tenant: &TenantId, id: JobId, after: u64, patience: Duration) -> Result<Job> {
        let look = || {
            self.call(|state, _| {
                let job = state.own(tenant, id)?.job.clone();
                let version = job.version;
                if version > after {
                    return Ok((job, None));
                }
                // Subscribed under the lock, so no change falls between the look and the wait.
                let versions = state.watchers.entry(id).or_insert_with(|| watch::Sender::new(version)).subscribe();
                Ok((job, Some(versions)))
            })
        };
        let patience = self.shared.clock.sleep(patience);
        tokio::pin!(patience);
        loop {
            let (job, versions) = look()?;
            let Some(mut versions) = versions else { return Ok(job) };
            tokio::select! {
                // An error means that the job was deleted; the next look says so.
                _ = versions.changed() => {}
                () = &mut patience => return look().map(|(job, _)| job),
            }
        }
    }

    async fn usage(&self, tenant: &TenantId, filter: &UsageFilter) -> Result<UsageReport> {
        Ok(self.call(|state, _| state.usage(tenant, filter)))
    }

    async fn stats(&self) -> Result<QueueStats> {
        Ok(self.call(|state, _| state.stats()))
    }

    async fn pause(&self, paused: bool) -> Result<()> {
        self.call(|state, _| state.pause(paused));
        Ok(())
    }

    async fn wake(&self, id: JobId) -> Result<()> {
        self.call(|state, _| state.wake(id));
        Ok(())
    }

    async fn witness(&self, witness: Witness) -> Result<()> {
        self.call(|state, _| state.witness(witness));
        Ok(())
    }

    async fn register(&self, _name: &str) -> Result<WorkerId> {
        Ok(self.call(State::register))
    }

    async fn deregister(&self, worker: WorkerId) -> Result<()> {
        self.call(|state, now| state.deregister(worker, now));
        Ok(())
    }

    async fn claim(&self, worker: WorkerId, max: usize) -> Result<ClaimBatch> {
        self.call(|state, now| state.claim(worker, max, now))
    }

    async fn heartbeat(&self, worker: WorkerId, held: &[Claim]) -> Result<Beat> {
        Ok(self.call(|state, now| state.heartbeat(worker, held, now)))
    }

    async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<Ack> {
        self.call(|state, now| state.checkpoint(checkpoint, now))
    }

    async fn release(&self, claim: Claim, release: Release) -> Result<Fenced> {
        Ok(self.call(|state, now| state.release(claim, release, now)))
    }

    async fn settle(&self, settlement: Settlement) -> Result<Fenced> {
        Ok(self.call(|state, now| state.settle(settlement, now)))
    }

    async fn rescue(&self) -> Result<u64> {
        Ok(self.call(State::rescue))
    }

    async fn expired(&self, retention: &Retention, max: usize) -> Result<Vec<JobId>> {
        Ok(self.call(|state, now| state.expired(retention, max, now)))
    }

    async fn prune(&self, jobs: &[JobId]) -> Result<u64> {
        Ok(self.call(|state, _| state.prune(jobs)))
    }

    async fn ready(&self) {
        self.shared.ready.notified().await;
    }

    async fn signalled(&self) {
        self.shared.signal.notified().await;
    }

    async fn claim_deliveries(&self, worker: WorkerId, max: usize) -> Result<DeliveryBatch> {
        self.call(|state, now| state.claim_deliveries(worker, max, now))
    }

    async fn settle_delivery(&self, delivery: &Delivery, outcome: DeliveryOutcome) -> Result<Fenced> {
        Ok(self.call(|state, now| state.settle_delivery(delivery, outcome, now)))
    }

    async fn deliveries(&self, tenant: &TenantId, filter: &DeliveryFilter) -> Result<Page<DeliveryRecord>> {
        Ok(self.call(|state, _| state.deliveries(tenant, filter)))
    }

    async fn redeliver(&self, tenant: &TenantId, event: &EventId) -> Result<()> {
        self.call(|state, now| state.redeliver(tenant, event, now))
    }
}
