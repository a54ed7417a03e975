//! Crashes at named points, by wrapping the traits: the library itself knows nothing of them.
//!
//! A point is reached before or after the effect of a call that a worker makes. The chosen visit of
//! the chosen point ends the process: really (SIGKILL), or as far as a test in one process can
//! tell (every call through these wrappers never returns again, and the worker is dropped).

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use futures::stream::StreamExt;
use tokio::sync::watch;
use vidgen_core::*;

/// The failpoints of reliability §8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are the contract's own")]
pub enum Point {
    AfterHold,
    BeforeIntent,
    AfterIntent,
    BeforePost,
    AfterPostBeforeOutcome,
    AfterOutcome,
    DuringPoll,
    BeforeDownload,
    MidDownload,
    AfterDownload,
    BeforeUpload,
    MidUpload,
    AfterUpload,
    BeforeSettle,
    AfterSettle,
    BeforeEvent,
    AfterEvent,
}

impl Point {
    /// All of them, with the names that the environment of a child process uses.
    pub const ALL: [(Self, &'static str); 17] = [
        (Self::AfterHold, "after_hold"),
        (Self::BeforeIntent, "before_intent"),
        (Self::AfterIntent, "after_intent"),
        (Self::BeforePost, "before_post"),
        (Self::AfterPostBeforeOutcome, "after_post_before_outcome"),
        (Self::AfterOutcome, "after_outcome"),
        (Self::DuringPoll, "during_poll"),
        (Self::BeforeDownload, "before_download"),
        (Self::MidDownload, "mid_download"),
        (Self::AfterDownload, "after_download"),
        (Self::BeforeUpload, "before_upload"),
        (Self::MidUpload, "mid_upload"),
        (Self::AfterUpload, "after_upload"),
        (Self::BeforeSettle, "before_settle"),
        (Self::AfterSettle, "after_settle"),
        (Self::BeforeEvent, "before_event"),
        (Self::AfterEvent, "after_event"),
    ];

    /// By name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, n)| *n == name).map(|(p, _)| *p)
    }
}

/// How a crash is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// SIGKILL to this very process.
    Kill,
    /// Nothing returns any more.
    Freeze,
}

/// Counts visits and crashes at the chosen one. Clones share it all.
#[derive(Clone, Debug)]
pub struct Faults {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    crash: Crash,
    at: Option<(Point, u32)>,
    visits: Mutex<HashMap<Point, u32>>,
    delays: Mutex<HashMap<Point, Duration>>,
    deaf: AtomicBool,
    away: AtomicBool,
    refusals: AtomicU32,
    dead: watch::Sender<bool>,
}

impl Faults {
    /// Crashes at the `visit`-th visit (from 1) of `point`, or never.
    #[must_use]
    pub fn new(crash: Crash, at: Option<(Point, u32)>) -> Self {
        let inner = Inner {
            crash,
            at,
            visits: Mutex::default(),
            delays: Mutex::default(),
            deaf: AtomicBool::new(false),
            away: AtomicBool::new(false),
            refusals: AtomicU32::new(0),
            dead: watch::Sender::new(false),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Never crashes; for delays and deafness alone.
    #[must_use]
    pub fn none() -> Self {
        Self::new(Crash::Freeze, None)
    }

    /// Makes the next visit of `point` take so long.
    pub fn delay(&self, point: Point, duration: Duration) {
        self.inner.delays.lock().unwrap().insert(point, duration);
    }

    /// Lets no beat be answered any more, as if the network between worker and queue were cut for
    /// beats alone.
    pub fn deafen(&self) {
        self.inner.deaf.store(true, Ordering::SeqCst);
    }

    /// Lets the queue be away for so many records of how a delivery went.
    pub fn refuse_delivery_records(&self, times: u32) {
        self.inner.refusals.store(times, Ordering::SeqCst);
    }

    /// How often each point was visited.
    #[must_use]
    pub fn visits(&self) -> HashMap<Point, u32> {
        self.inner.visits.lock().unwrap().clone()
    }

    /// Whether the crash happened.
    #[must_use]
    pub fn fired(&self) -> bool {
        *self.inner.dead.borrow()
    }

    /// Returns when the crash happens.
    pub async fn crashed(&self) {
        let mut dead = self.inner.dead.subscribe();
        let _ = dead.wait_for(|dead| *dead).await;
    }

    /// Visits a point.
    pub async fn reach(&self, point: Point) {
        if self.visit(point) {
            std::future::pending::<()>().await;
        }
        let delay = self.inner.delays.lock().unwrap().remove(&point);
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
    }

    /// Visits a point; true if nothing may return any more.
    fn visit(&self, point: Point) -> bool {
        if self.fired() {
            return true;
        }
        let visit = {
            let mut visits = self.inner.visits.lock().unwrap();
            let visit = visits.entry(point).or_default();
            *visit += 1;
            *visit
        };
        if self.inner.at != Some((point, visit)) {
            return false;
        }
        if self.inner.crash == Crash::Kill {
            let me = rustix::process::getpid();
            let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
        }
        self.inner.dead.send_replace(true);
        true
    }

    /// A dead process makes no further call.
    async fn alive(&self) {
        if self.fired() {
            std::future::pending::<()>().await;
        }
    }

    /// Makes every write of the queue fail, without effect, or lets them through again.
    pub fn set_away(&self, away: bool) {
        self.inner.away.store(away, Ordering::SeqCst);
    }

    fn answering(&self) -> Result<()> {
        if self.inner.away.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, "queue", "is away"));
        }
        Ok(())
    }

    async fn around<T>(&self, before: Option<Point>, call: impl Future<Output = T>, after: Option<Point>) -> T {
        self.alive().await;
        if let Some(point) = before {
            self.reach(point).await;
        }
        let answer = call.await;
        if let Some(point) = after {
            self.reach(point).await;
        }
        // The process may have died elsewhere meanwhile: then nobody hears the answer.
        self.alive().await;
        answer
    }
}

/// A backend behind faults.
#[derive(Clone, Debug)]
pub struct Faulty<T> {
    inner: T,
    faults: Faults,
}

impl<T> Faulty<T> {
    /// Puts `inner` behind `faults`.
    pub fn new(inner: T, faults: &Faults) -> Self {
        Self { inner, faults: faults.clone() }
    }
}

macro_rules! passed_on {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $ret:ty;)*) => {
        $(
            fn $name<'life0, 'async_trait>(&'life0 self, $($arg: $ty),*)
                -> Pin<Box<dyn Future<Output = $ret> + Send + 'async_trait>>
            where 'life0: 'async_trait, Self: 'async_trait
            {
                Box::pin(async move { self.faults.around(None, self.inner.$name($($arg),*), None).await })
            }
        )*
    };
}

#[async_trait]
impl<T: Queue> Queue for Faulty<T> {
    async fn enqueue(&self, new: NewJob) -> Result<Enqueued> {
        self.faults.around(None, self.inner.enqueue(new), Some(Point::AfterHold)).await
    }
    async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<Ack> {
        self.faults.answering()?;
        let (before, after) = match &checkpoint.record.state {
            StepState::Intent { .. } => (Some(Point::BeforeIntent), Some(Point::AfterIntent)),
            StepState::Accepted { .. } => (None, Some(Point::AfterOutcome)),
            _ => (None, None),
        };
        self.faults.around(before, self.inner.checkpoint(checkpoint), after).await
    }
    async fn settle(&self, settlement: Settlement) -> Result<Fenced> {
        self.faults.answering()?;
        let call = self.inner.settle(settlement);
        self.faults.around(Some(Point::BeforeSettle), call, Some(Point::AfterSettle)).await
    }
    async fn get(&self, tenant: &TenantId, id: JobId) -> Result<Job> {
        self.faults.around(None, self.inner.get(tenant, id), None).await
    }
    async fn list(&self, tenant: &TenantId, filter: &JobFilter) -> Result<Page<Job>> {
        self.faults.around(None, self.inner.list(tenant, filter), None).await
    }
    async fn cancel(&self, tenant: &TenantId, id: JobId, event: Option<NewEvent>) -> Result<Job> {
        self.faults.around(None, self.inner.cancel(tenant, id, event), None).await
    }
    async fn retry(&self, tenant: &TenantId, id: JobId, hold: Usd, limits: &Limits) -> Result<Job> {
        self.faults.around(None, self.inner.retry(tenant, id, hold, limits), None).await
    }
    async fn resolve(&self, tenant: &TenantId, id: JobId, verdict: Verdict) -> Result<Job> {
        self.faults.around(None, self.inner.resolve(tenant, id, verdict), None).await
    }
    async fn delete(&self, tenant: &TenantId, id: JobId) -> Result<()> {
        self.faults.around(None, self.inner.delete(tenant, id), None).await
    }
    async fn watch(&self, tenant: &TenantId, id: JobId, after: u64, patience: Duration) -> Result<Job> {
        self.faults.around(None, self.inner.watch(tenant, id, after, patience), None).await
    }
    async fn usage(&self, tenant: &TenantId, filter: &UsageFilter) -> Result<UsageReport> {
        self.faults.around(None, self.inner.usage(tenant, filter), None).await
    }
    async fn heartbeat(&self, worker: WorkerId, held: &[Claim]) -> Result<Beat> {
        self.faults.answering()?;
        if self.faults.inner.deaf.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.faults.around(None, self.inner.heartbeat(worker, held), None).await
    }
    async fn expired(&self, retention: &Retention, max: usize) -> Result<Vec<JobId>> {
        self.faults.around(None, self.inner.expired(retention, max), None).await
    }
    async fn prune(&self, jobs: &[JobId]) -> Result<u64> {
        self.faults.around(None, self.inner.prune(jobs), None).await
    }
    async fn register(&self, name: &str) -> Result<WorkerId> {
        self.faults.answering()?;
        self.faults.around(None, self.inner.register(name), None).await
    }
    async fn settle_delivery(&self, delivery: &Delivery, outcome: DeliveryOutcome) -> Result<Fenced> {
        let take = |left: u32| left.checked_sub(1);
        if self.faults.inner.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
            return Err(Error::new(ErrorKind::Unavailable, "faults", "the queue is away"));
        }
        self.faults.around(None, self.inner.settle_delivery(delivery, outcome), None).await
    }
    async fn deliveries(&self, tenant: &TenantId, filter: &DeliveryFilter) -> Result<Page<DeliveryRecord>> {
        self.faults.around(None, self.inner.deliveries(tenant, filter), None).await
    }
    async fn redeliver(&self, tenant: &TenantId, event: &EventId) -> Result<()> {
        self.faults.around(None, self.inner.redeliver(tenant, event), None).await
    }
    async fn claim(&self, worker: WorkerId, max: usize) -> Result<ClaimBatch> {
        self.faults.answering()?;
        self.faults.around(None, self.inner.claim(worker, max), None).await
    }
    async fn release(&self, claim: Claim, release: Release) -> Result<Fenced> {
        self.faults.answering()?;
        self.faults.around(None, self.inner.release(claim, release), None).await
    }
    async fn rescue(&self) -> Result<u64> {
        self.faults.answering()?;
        self.faults.around(None, self.inner.rescue(), None).await
    }
    passed_on! {
        stats() -> Result<QueueStats>;
        pause(paused: bool) -> Result<()>;
        wake(id: JobId) -> Result<()>;
        witness(witness: Witness) -> Result<()>;
        deregister(worker: WorkerId) -> Result<()>;
        ready() -> ();
        signalled() -> ();
        claim_deliveries(worker: WorkerId, max: usize) -> Result<DeliveryBatch>;
    }
}

#[async_trait]
impl<T: Provider> Provider for Faulty<T> {
    fn id(&self) -> ProviderId {
        self.inner.id()
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn submit(&self, task: &Task, options: &SubmitOptions) -> Result<Handle> {
        let call = self.inner.submit(task, options);
        self.faults.around(Some(Point::BeforePost), call, Some(Point::AfterPostBeforeOutcome)).await
    }
    async fn poll(&self, handle: &Handle) -> Result<Snapshot> {
        self.faults.around(None, self.inner.poll(handle), Some(Point::DuringPoll)).await
    }
    async fn open(&self, output: &Output) -> Result<Body> {
        let body = self.faults.around(Some(Point::BeforeDownload), self.inner.open(output), None).await?;
        let length = body.length();
        let middle = Some(Point::MidDownload);
        Ok(Body::new(Watched { body, faults: self.faults.clone(), middle, end: Some(Point::AfterDownload) }, length))
    }
    async fn cancel(&self, handle: &Handle) -> Result<()> {
        self.faults.around(None, self.inner.cancel(handle), None).await
    }
    async fn find(&self, submission: &Submission) -> Result<Lookup> {
        self.faults.around(None, self.inner.find(submission), None).await
    }
    async fn callback(&self, callback: &Callback, spool: &Spool) -> Result<Handle> {
        self.faults.around(None, self.inner.callback(callback, spool), None).await
    }
}

#[async_trait]
impl<T: Store> Store for Faulty<T> {
    async fn put(&self, key: &MediaKey, body: Body) -> Result<u64> {
        let length = body.length();
        let watched = Watched { body, faults: self.faults.clone(), middle: Some(Point::MidUpload), end: None };
        let call = self.inner.put(key, Body::new(watched, length));
        self.faults.around(Some(Point::BeforeUpload), call, Some(Point::AfterUpload)).await
    }
    async fn get(&self, key: &MediaKey, range: Option<ByteRange>) -> Result<Media> {
        self.faults.around(None, self.inner.get(key, range), None).await
    }
    async fn head(&self, key: &MediaKey) -> Result<MediaHead> {
        self.faults.around(None, self.inner.head(key), None).await
    }
    async fn link(&self, key: &MediaKey, life: Duration) -> Result<Option<url::Url>> {
        self.faults.around(None, self.inner.link(key, life), None).await
    }
    async fn delete(&self, key: &MediaKey) -> Result<()> {
        self.faults.around(None, self.inner.delete(key), None).await
    }
    async fn delete_prefix(&self, prefix: &str) -> Result<u64> {
        self.faults.around(None, self.inner.delete_prefix(prefix), None).await
    }
}

#[async_trait]
impl<T: Notifier> Notifier for Faulty<T> {
    fn accepts(&self, endpoint: &str) -> Result<()> {
        self.inner.accepts(endpoint)
    }
    async fn notify(&self, delivery: &Delivery) -> Result<()> {
        let call = self.inner.notify(delivery);
        self.faults.around(Some(Point::BeforeEvent), call, Some(Point::AfterEvent)).await
    }
}

/// A body that visits a point after its first bytes, and one at its end.
struct Watched {
    body: Body,
    faults: Faults,
    middle: Option<Point>,
    end: Option<Point>,
}

impl Stream for Watched {
    type Item = Result<Bytes>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let item = match self.body.poll_next_unpin(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(item) => item,
        };
        let point = if item.is_some() { self.middle.take() } else { self.end.take() };
        // A dead process is never woken again.
        if point.is_some_and(|point| self.faults.visit(point)) { Poll::Pending } else { Poll::Ready(item) }
    }
}
