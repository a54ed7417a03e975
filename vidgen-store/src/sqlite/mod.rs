//! The embedded queue: one SQLite file, shared by the processes of one host.
//!
//! Commits wait for the disk, so what was acknowledged survives a power cut. One task writes, in
//! groups; readers never wait for it. Workers of a process that was killed are found out at once,
//! by a lock that the kernel gave back.
//!
//! ```
//! # use std::time::Duration;
//! # use vidgen_core::{JobRequest, NewJob, Plan, Queue, Size, TenantId};
//! # use vidgen_store::sqlite::SqliteQueue;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let size = Size { width: 1280, height: 720 };
//! # let plan = Plan { pipeline: "default".into(), duration: Duration::from_secs(4), size, image: None, steps: vec![] };
//! let queue = SqliteQueue::open(directory.path().join("vidgen.db")).await?;
//! let new = NewJob::new(TenantId::single(), JobRequest::new("a fox in the snow"), plan);
//! let id = queue.enqueue(new).await?.job.id;
//!
//! let worker = queue.register("this machine").await?;
//! let batch = queue.claim(worker, 1).await?;
//! assert_eq!(batch.jobs.first().map(|claimed| claimed.job.id), Some(id));
//! # Ok(())
//! # }
//! ```

mod fault;
mod host;
mod job;
mod liveness;
mod open;
mod outbox;
#[cfg(test)]
mod plans;
mod read;
mod rows;
mod tenant;
mod time;
mod wake;
mod worker;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use sqlx::Row;
use sqlx::sqlite::SqlitePool;
use vidgen_core::clock::SystemClock;
use vidgen_core::{
    Ack, Beat, Checkpoint, Claim, ClaimBatch, Clock, Delivery, DeliveryBatch, DeliveryFilter, DeliveryOutcome,
    DeliveryRecord, Enqueued, EventId, Fenced, Job, JobFilter, JobId, LEASE, Limits, MAX_BATCH, NewEvent, NewJob, Page,
    Queue, QueueStats, Release, Result, Retention, Settlement, TenantId, UsageFilter, UsageReport, Usd, Witness,
    WorkerId,
};

use fault::Outcome;
use liveness::{Liveness, Verdict};
use open::Opener;
use time::SteadyClock;
use wake::{Lookout, Wake};
use worker::Gone;
use writer::Writer;

/// A [`Queue`] in one SQLite file. A clone is the same handle.
///
/// Any number of processes of one host may open the same file, each with a handle of its own; a
/// network file system is refused. Back up with [`SqliteQueue::backup_to`], never by copying the
/// file of a running queue.
#[derive(Clone, Debug)]
pub struct SqliteQueue {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    writer: Writer,
    readers: SqlitePool,
    wake: Arc<Wake>,
    _lookout: Lookout,
    clock: SteadyClock,
    liveness: Liveness,
}

/// How a [`SqliteQueue`] is opened.
#[derive(Clone, Debug)]
pub struct SqliteQueueBuilder {
    path: PathBuf,
    clock: Arc<dyn Clock>,
    lease: Duration,
}

impl SqliteQueueBuilder {
    /// Takes the time from elsewhere.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Lets workers be silent for so long before they count as dead, instead of [`LEASE`]. Must be
    /// well above the time between two beats.
    #[must_use]
    pub fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Opens the file, and creates it and its tables where they are missing. Needs a tokio runtime.
    ///
    /// # Errors
    /// `Unavailable` if the file cannot be opened or its directory not be written to;
    /// `Unsupported` if commits would not be durable there.
    pub async fn open(self) -> Result<SqliteQueue> {
        let opener = Opener::new(&self.path)?;
        let mut conn = opener.writer().await?;
        open::migrate(&mut conn).await?;
        let wake = Arc::new(Wake::default());
        let clock = SteadyClock::new(self.clock);
        let inner = Inner {
            readers: opener.readers(),
            _lookout: Lookout::spawn(Arc::clone(&wake), opener.reader().await?),
            liveness: Liveness::new(opener.path(), self.lease),
            writer: Writer::spawn(opener, conn, clock.clone(), Arc::clone(&wake)),
            wake,
            clock,
        };
        Ok(SqliteQueue { inner: Arc::new(inner) })
    }
}

impl SqliteQueue {
    /// Opens a queue on the machine's clock.
    ///
    /// # Errors
    /// As [`SqliteQueueBuilder::open`].
    pub async fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::builder(path).open().await
    }

    /// A queue with other settings.
    pub fn builder(path: impl AsRef<Path>) -> SqliteQueueBuilder {
        SqliteQueueBuilder { path: path.as_ref().to_owned(), clock: Arc::new(SystemClock::new()), lease: LEASE }
    }

    /// Writes a copy of the whole queue, as it is at one moment, to a file that does not exist yet.
    ///
    /// # Errors
    /// `Unavailable` if that file cannot be written.
    pub async fn backup_to(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref().to_string_lossy().into_owned();
        // On the writing connection, but outside of its transactions, it would block all writes;
        // a reading one sees one moment just as well, once it may write that other file.
        let mut conn = self.inner.readers.acquire().await.map_err(fault::database)?.detach();
        sqlx::query("pragma query_only = off").execute(&mut conn).await.map_err(fault::database)?;
        sqlx::query("vacuum into ?").bind(path).execute(&mut conn).await.map_err(fault::database)?;
        Ok(())
    }

    fn now(&self) -> Duration {
        self.inner.clock.clock.monotonic()
    }

    /// The dead among the workers, with their locks.
    async fn dead(&self) -> Outcome<Vec<(WorkerId, Verdict)>> {
        let workers = sqlx::query("select id, beats, gone from vg_worker").fetch_all(&self.inner.readers).await?;
        let (mut known, mut dead) = (Vec::new(), Vec::new());
        for row in &workers {
            let id = rows::worker_id(row, "id")?;
            known.push(id);
            let verdict = match row.try_get("gone")? {
                0 => self.inner.liveness.judge(id, row.try_get("beats")?, self.now()),
                rows::LEFT => Verdict::Gone(Gone::Left, None),
                _ => Verdict::Gone(Gone::Died, None),
            };
            if matches!(verdict, Verdict::Gone(..)) {
                dead.push((id, verdict));
            }
        }
        self.inner.liveness.sweep(&known);
        Ok(dead)
    }
}

#[async_trait]
impl Queue for SqliteQueue {
    async fn enqueue(&self, new: NewJob) -> Result<Enqueued> {
        self.inner.writer.run(|tx| tx.enqueue(new).boxed()).await
    }

    async fn get(&self, tenant: &TenantId, id: JobId) -> Result<Job> {
        Ok(read::get(&self.inner.readers, tenant, id).await?)
    }

    async fn list(&self, tenant: &TenantId, filter: &JobFilter) -> Result<Page<Job>> {
        Ok(read::list(&self.inner.readers, tenant, filter).await?)
    }

    async fn cancel(&self, tenant: &TenantId, id: JobId, event: Option<NewEvent>) -> Result<Job> {
        let tenant = tenant.clone();
        self.inner.writer.run(move |tx| async move { tx.cancel(&tenant, id, event).await }.boxed()).await
    }

    async fn retry(&self, tenant: &TenantId, id: JobId, hold: Usd, limits: &Limits) -> Result<Job> {
        let (tenant, limits) = (tenant.clone(), limits.clone());
        self.inner.writer.run(move |tx| async move { tx.retry(&tenant, id, hold, &limits).await }.boxed()).await
    }

    async fn resolve(&self, tenant: &TenantId, id: JobId, verdict: vidgen_core::Verdict) -> Result<Job> {
        let tenant = tenant.clone();
        self.inner.writer.run(move |tx| async move { tx.resolve(&tenant, id, verdict).await }.boxed()).await
    }

    async fn delete(&self, tenant: &TenantId, id: JobId) -> Result<()> {
        let tenant = tenant.clone();
        self.inner.writer.run(move |tx| async move { tx.delete(&tenant, id).await }.boxed()).await
    }

    async fn watch(&self, tenant: &TenantId, id: JobId, after: u64, patience: Duration) -> Result<Job> {
        // Listening starts before the job is looked at, or a change in between would be missed.
        let mut watch = self.inner.wake.watch(id);
        let patience = self.inner.clock.clock.sleep(patience);
        tokio::pin!(patience);
        loop {
            let job = self.get(tenant, id).await?;
            if job.version > after {
                return Ok(job);
            }
            tokio::select! {
                () = watch.changed() => {}
                () = &mut patience => return self.get(tenant, id).await,
            }
        }
    }

    async fn usage(&self, tenant: &TenantId, filter: &UsageFilter) -> Result<UsageReport> {
        Ok(read::usage(&self.inner.readers, tenant, filter).await?)
    }

    async fn stats(&self) -> Result<QueueStats> {
        Ok(read::stats(&self.inner.readers).await?)
    }

    async fn pause(&self, paused: bool) -> Result<()> {
        self.inner.writer.run(move |tx| tx.pause(paused).boxed()).await
    }

    async fn wake(&self, id: JobId) -> Result<()> {
        self.inner.writer.run(move |tx| tx.wake_job(id).boxed()).await
    }

    async fn witness(&self, witness: Witness) -> Result<()> {
        self.inner.writer.run(move |tx| async move { tx.keep_witness(&witness).await }.boxed()).await
    }

    async fn register(&self, name: &str) -> Result<WorkerId> {
        let (worker, name) = (WorkerId::new(), name.to_owned());
        // The lock first: a row without a lock is a worker that seems dead.
        self.inner.liveness.begin(worker, self.now());
        let registered = self.inner.writer.run(move |tx| async move { tx.register(worker, &name).await }.boxed()).await;
        if registered.is_err() {
            self.inner.liveness.end(worker);
        }
        registered.map(|()| worker)
    }

    async fn deregister(&self, worker: WorkerId) -> Result<()> {
        // What passes the bound is left to the next rescue.
        let rescued = self.inner.writer.run(move |tx| tx.bury(worker, Gone::Left, MAX_BATCH).boxed()).await?;
        if rescued.done {
            self.inner.liveness.end(worker);
        }
        Ok(())
    }

    async fn claim(&self, worker: WorkerId, max: usize) -> Result<ClaimBatch> {
        self.inner.writer.run(move |tx| tx.claim(worker, max).boxed()).await
    }

    async fn heartbeat(&self, worker: WorkerId, held: &[Claim]) -> Result<Beat> {
        let (held, now) = (held.to_owned(), self.now());
        let (beat, beats) =
            self.inner.writer.run(move |tx| async move { tx.heartbeat(worker, &held).await }.boxed()).await?;
        match beats {
            Some(beats) => self.inner.liveness.saw(worker, beats, now),
            None => self.inner.liveness.end(worker),
        }
        Ok(beat)
    }

    async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<Ack> {
        self.inner.writer.run(|tx| tx.checkpoint(checkpoint).boxed()).await
    }

    async fn release(&self, claim: Claim, release: Release) -> Result<Fenced> {
        self.inner.writer.run(move |tx| tx.release(claim, release).boxed()).await
    }

    async fn settle(&self, settlement: Settlement) -> Result<Fenced> {
        self.inner.writer.run(|tx| tx.settle(settlement).boxed()).await
    }

    async fn rescue(&self) -> Result<u64> {
        let mut left = MAX_BATCH;
        for (worker, verdict) in self.dead().await? {
            let Verdict::Gone(gone, _lock) = &verdict else { continue };
            let (gone, max) = (*gone, left);
            let rescued = self.inner.writer.run(move |tx| tx.bury(worker, gone, max).boxed()).await?;
            left = left.saturating_sub(rescued.rows);
            if rescued.done {
                self.inner.liveness.end(worker);
            }
            if left == 0 {
                break;
            }
        }
        if self.has_old_keys().await? {
            self.inner.writer.run(|tx| tx.drop_old_keys().boxed()).await?;
        }
        Ok(u64::try_from(MAX_BATCH - left).unwrap_or(0))
    }

    async fn expired(&self, retention: &Retention, max: usize) -> Result<Vec<JobId>> {
        Ok(read::expired(&self.inner.readers, retention, max, self.inner.clock.steady()).await?)
    }

    async fn prune(&self, jobs: &[JobId]) -> Result<u64> {
        let jobs = jobs.to_owned();
        self.inner.writer.run(move |tx| async move { tx.prune(&jobs).await }.boxed()).await
    }

    async fn ready(&self) {
        self.inner.wake.ready().await;
    }

    async fn signalled(&self) {
        self.inner.wake.signalled().await;
    }

    async fn claim_deliveries(&self, worker: WorkerId, max: usize) -> Result<DeliveryBatch> {
        self.inner.writer.run(move |tx| tx.claim_deliveries(worker, max).boxed()).await
    }

    async fn settle_delivery(&self, delivery: &Delivery, outcome: DeliveryOutcome) -> Result<Fenced> {
        let delivery = delivery.clone();
        self.inner.writer.run(|tx| async move { tx.settle_delivery(&delivery, outcome).await }.boxed()).await
    }

    async fn deliveries(&self, tenant: &TenantId, filter: &DeliveryFilter) -> Result<Page<DeliveryRecord>> {
        Ok(read::deliveries(&self.inner.readers, tenant, filter).await?)
    }

    async fn redeliver(&self, tenant: &TenantId, event: &EventId) -> Result<()> {
        let (tenant, event) = (tenant.clone(), event.clone());
        self.inner.writer.run(move |tx| async move { tx.redeliver(&tenant, &event).await }.boxed()).await
    }
}

impl SqliteQueue {
    /// Whether idempotency rows are past their time: mostly not, and then nothing is written.
    async fn has_old_keys(&self) -> Result<bool> {
        sqlx::query_scalar("select exists (select 1 from vg_idem where expires_on <= ?)")
            .bind(self.inner.clock.steady())
            .fetch_one(&self.inner.readers)
            .await
            .map_err(fault::database)
    }
}
