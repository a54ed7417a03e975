//! Faults before and after the effect of every call that a worker makes: errors, delays, requests
//! that arrive late, processes that freeze, processes that die.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use futures::stream::StreamExt;
use tokio::sync::watch;
use tokio::time::Instant;
use vidgen_core::memory::{MemoryQueue, MemoryStore, ScriptedProvider};
use vidgen_core::*;

/// Numbers that follow from a seed (splitmix64).
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `n`, exclusive.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }

    pub(crate) fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.below(all.len() as u64)).unwrap()]
    }
}

/// Where a fault happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Site {
    Register,
    Claim,
    Beat,
    Rescue,
    Checkpoint,
    Settle,
    Release,
    Look,
    Put,
    Head,
    Get,
    Delete,
    Submit,
    Poll,
    Find,
    Cancel,
    Open,
    Bytes,
}

/// What happens there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// An error, and the call had no effect.
    Before,
    /// An error, and the call had its effect.
    After,
    /// It takes a while.
    Slow,
    /// An error, and the request arrives later.
    Late,
    /// The process stands still for longer than its lease.
    FreezeBefore,
    FreezeAfter,
    /// The process dies.
    CrashBefore,
    CrashAfter,
}

use Fault::{After, Before, CrashAfter, CrashBefore, FreezeAfter, FreezeBefore, Late, Slow};

impl Site {
    pub(crate) const ALL: [Self; 18] = [
        Self::Register,
        Self::Claim,
        Self::Beat,
        Self::Rescue,
        Self::Checkpoint,
        Self::Settle,
        Self::Release,
        Self::Look,
        Self::Put,
        Self::Head,
        Self::Get,
        Self::Delete,
        Self::Submit,
        Self::Poll,
        Self::Find,
        Self::Cancel,
        Self::Open,
        Self::Bytes,
    ];

    pub(crate) fn faults(self) -> &'static [Fault] {
        match self {
            Self::Bytes => &[Before],
            Self::Submit => {
                &[Before, Before, After, After, Slow, Late, Late, FreezeBefore, FreezeAfter, CrashBefore, CrashAfter]
            }
            _ => &[Before, After, Slow, FreezeBefore, FreezeAfter, CrashBefore, CrashAfter],
        }
    }

    /// What every worker does every second is hit more rarely than what few jobs need at all.
    fn rarity(self) -> u64 {
        match self {
            Self::Claim | Self::Beat | Self::Rescue => 40,
            Self::Poll => 9,
            Self::Head | Self::Get | Self::Delete | Self::Find | Self::Cancel => 1,
            _ => 3,
        }
    }
}

/// How often each fault fired.
pub(crate) type Tally = BTreeMap<(Site, Fault), u64>;

/// The faults of one schedule.
#[derive(Debug)]
pub(crate) struct Chaos {
    pub(crate) dice: Mutex<Dice>,
    odds: u64,
    left: AtomicU32,
    /// How many processes may die or stand still: a job at which three did is given up.
    deaths: AtomicU32,
    pub(crate) tally: Mutex<Tally>,
    pub(crate) log: Mutex<Vec<String>>,
    pub(crate) wrong: Mutex<Vec<String>>,
    began: Instant,
}

impl Chaos {
    pub(crate) fn new(mut dice: Dice) -> Arc<Self> {
        let odds = 1 + dice.below(10);
        let left = u32::try_from(dice.below(14)).unwrap();
        Arc::new(Self {
            dice: Mutex::new(dice),
            odds,
            left: AtomicU32::new(left),
            deaths: AtomicU32::new(2),
            tally: Mutex::default(),
            log: Mutex::default(),
            wrong: Mutex::default(),
            began: Instant::now(),
        })
    }

    pub(crate) fn dice<T>(&self, throw: impl FnOnce(&mut Dice) -> T) -> T {
        throw(&mut self.dice.lock().unwrap())
    }

    pub(crate) fn note(&self, what: impl fmt::Display) {
        let at = self.began.elapsed().as_secs_f64();
        self.log.lock().unwrap().push(format!("{at:9.3} {what}"));
    }

    fn draw(&self, site: Site) -> Option<Fault> {
        if self.left.load(Ordering::SeqCst) == 0 || self.dice(|d| d.below(self.odds * site.rarity())) != 0 {
            return None;
        }
        let fault = self.dice(|d| d.one_of(site.faults()));
        if matches!(fault, FreezeBefore | FreezeAfter | CrashBefore | CrashAfter) {
            let take = |left: u32| left.checked_sub(1);
            self.deaths.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).ok()?;
        }
        self.left.fetch_sub(1, Ordering::SeqCst);
        *self.tally.lock().unwrap().entry((site, fault)).or_default() += 1;
        Some(fault)
    }
}

/// One process: what it calls goes through its faults.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) chaos: Arc<Chaos>,
    name: usize,
    dead: watch::Sender<bool>,
    frozen: Arc<Mutex<Option<Instant>>>,
}

fn away(site: Site) -> Error {
    Error::new(ErrorKind::Unavailable, "chaos", format!("{site:?} is away"))
}

impl Process {
    pub(crate) fn new(chaos: &Arc<Chaos>, name: usize) -> Self {
        Self { chaos: chaos.clone(), name, dead: watch::Sender::new(false), frozen: Arc::default() }
    }

    /// Returns when it is dead.
    pub(crate) async fn died(&self) {
        let _ = self.dead.subscribe().wait_for(|dead| *dead).await;
    }

    /// Returns while it lives and moves: a dead process hears no answer.
    async fn up(&self) {
        if *self.dead.borrow() {
            std::future::pending::<()>().await;
        }
        let until = *self.frozen.lock().unwrap();
        if let Some(until) = until {
            tokio::time::sleep_until(until).await;
            // It may have died of something else meanwhile.
            if *self.dead.borrow() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn die(&self) {
        self.dead.send_replace(true);
        std::future::pending::<()>().await;
    }

    async fn freeze(&self) {
        let still = self.chaos.dice(|d| d.millis(35_000, 50_000));
        *self.frozen.lock().unwrap() = Some(Instant::now() + still);
        self.up().await;
    }

    fn draw(&self, site: Site) -> Option<Fault> {
        let fault = self.chaos.draw(site)?;
        self.chaos.note(format_args!("p{} {site:?}: {fault:?}", self.name));
        Some(fault)
    }

    async fn around<T>(&self, site: Site, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.up().await;
        let fault = self.draw(site);
        match fault {
            Some(Before) => return Err(away(site)),
            Some(CrashBefore) => self.die().await,
            Some(FreezeBefore) => self.freeze().await,
            Some(Slow) => tokio::time::sleep(self.chaos.dice(|d| d.millis(100, 8_000))).await,
            Some(After | Late | CrashAfter | FreezeAfter) | None => {}
        }
        let answer = call.await;
        match fault {
            Some(After | Late) => return Err(away(site)),
            Some(CrashAfter) => self.die().await,
            Some(FreezeAfter) => self.freeze().await,
            _ => {}
        }
        self.up().await;
        answer
    }
}

/// A backend behind the faults of a process.
#[derive(Clone, Debug)]
pub(crate) struct Chaotic<T> {
    pub(crate) inner: T,
    pub(crate) process: Process,
    /// Where intents must be durable before a submit.
    pub(crate) queue: MemoryQueue,
}

macro_rules! chaotic_queue {
    ($(async fn $name:ident(&self $(, $arg:ident: $ty:ty)*) -> $ret:ty = $site:ident;)* { $($rest:tt)* }) => {
        #[async_trait]
        impl Queue for Chaotic<MemoryQueue> {
            $(async fn $name(&self $(, $arg: $ty)*) -> $ret {
                self.process.around(Site::$site, self.inner.$name($($arg),*)).await
            })*
            $($rest)*
        }
    };
}
chaotic_queue! {
    async fn enqueue(&self, new: NewJob) -> Result<Enqueued> = Look;
    async fn get(&self, tenant: &TenantId, id: JobId) -> Result<Job> = Look;
    async fn list(&self, tenant: &TenantId, filter: &JobFilter) -> Result<Page<Job>> = Look;
    async fn cancel(&self, tenant: &TenantId, id: JobId, event: Option<NewEvent>) -> Result<Job> = Look;
    async fn retry(&self, tenant: &TenantId, id: JobId, hold: Usd, limits: &Limits) -> Result<Job> = Look;
    async fn resolve(&self, tenant: &TenantId, id: JobId, verdict: Verdict) -> Result<Job> = Look;
    async fn delete(&self, tenant: &TenantId, id: JobId) -> Result<()> = Look;
    async fn watch(&self, tenant: &TenantId, id: JobId, after: u64, patience: Duration) -> Result<Job> = Look;
    async fn usage(&self, tenant: &TenantId, filter: &UsageFilter) -> Result<UsageReport> = Look;
    async fn stats(&self) -> Result<QueueStats> = Look;
    async fn pause(&self, paused: bool) -> Result<()> = Look;
    async fn wake(&self, id: JobId) -> Result<()> = Look;
    async fn witness(&self, witness: Witness) -> Result<()> = Look;
    async fn register(&self, name: &str) -> Result<WorkerId> = Register;
    async fn deregister(&self, worker: WorkerId) -> Result<()> = Look;
    async fn claim(&self, worker: WorkerId, max: usize) -> Result<ClaimBatch> = Claim;
    async fn heartbeat(&self, worker: WorkerId, held: &[Claim]) -> Result<Beat> = Beat;
    async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<Ack> = Checkpoint;
    async fn release(&self, claim: Claim, release: Release) -> Result<Fenced> = Release;
    async fn settle(&self, settlement: Settlement) -> Result<Fenced> = Settle;
    async fn rescue(&self) -> Result<u64> = Rescue;
    async fn expired(&self, retention: &Retention, max: usize) -> Result<Vec<JobId>> = Look;
    async fn prune(&self, jobs: &[JobId]) -> Result<u64> = Look;
    async fn claim_deliveries(&self, worker: WorkerId, max: usize) -> Result<DeliveryBatch> = Look;
    async fn settle_delivery(&self, delivery: &Delivery, outcome: DeliveryOutcome) -> Result<Fenced> = Look;
    async fn deliveries(&self, tenant: &TenantId, filter: &DeliveryFilter) -> Result<Page<DeliveryRecord>> = Look;
    async fn redeliver(&self, tenant: &TenantId, event: &EventId) -> Result<()> = Look;
    {
        async fn ready(&self) {
            self.inner.ready().await;
            self.process.up().await;
        }
        async fn signalled(&self) {
            self.inner.signalled().await;
            self.process.up().await;
        }
    }
}

#[async_trait]
impl Store for Chaotic<MemoryStore> {
    async fn put(&self, key: &MediaKey, body: Body) -> Result<u64> {
        self.process.around(Site::Put, self.inner.put(key, body)).await
    }
    async fn get(&self, key: &MediaKey, range: Option<ByteRange>) -> Result<Media> {
        self.process.around(Site::Get, self.inner.get(key, range)).await
    }
    async fn head(&self, key: &MediaKey) -> Result<MediaHead> {
        self.process.around(Site::Head, self.inner.head(key)).await
    }
    async fn link(&self, key: &MediaKey, life: Duration) -> Result<Option<url::Url>> {
        self.inner.link(key, life).await
    }
    async fn delete(&self, key: &MediaKey) -> Result<()> {
        self.process.around(Site::Delete, self.inner.delete(key)).await
    }
    async fn delete_prefix(&self, prefix: &str) -> Result<u64> {
        self.inner.delete_prefix(prefix).await
    }
}

impl Chaotic<ScriptedProvider> {
    /// M2: what is sent was written down before.
    async fn is_written_down(&self, id: &SubmissionId) {
        let job = self.queue.get(&TenantId::single(), id.job().unwrap()).await.unwrap();
        let written = |step: &StepRecord| {
            step.open_submission().is_some_and(|s| s.id == *id) || step.attempts.iter().any(|a| a.submission == *id)
        };
        if !job.steps.iter().any(written) {
            self.process.chaos.wrong.lock().unwrap().push(format!("M2: {id} was sent without an intent"));
        }
    }

    /// The request reaches the remote after its sender has given up; its answer reaches nobody.
    fn arrive_late(&self, task: &Task, options: &SubmitOptions) {
        let (after, remote) = (self.process.chaos.dice(|d| d.millis(500, 50_000)), self.inner.clone());
        let (task, chaos) = (task.clone(), self.process.chaos.clone());
        let nowhere: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let mut options = options.clone();
        options.spool = Spool::new(nowhere, &options.submission).ok();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let answer = remote.submit(&task, &options).await;
            chaos.note(format_args!("{} arrives late: {:?}", options.submission, answer.map(|h| h.remote_id)));
        });
    }
}

#[async_trait]
impl Provider for Chaotic<ScriptedProvider> {
    fn id(&self) -> ProviderId {
        self.inner.id()
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn submit(&self, task: &Task, options: &SubmitOptions) -> Result<Handle> {
        self.process.up().await;
        let fault = self.process.draw(Site::Submit);
        let unknown = || Error::new(ErrorKind::OutcomeUnknown, "chaos", "connection reset");
        match fault {
            Some(Before) if self.process.chaos.dice(|d| d.chance(50)) => {
                return Err(Error::new(ErrorKind::NotSent, "chaos", "connection refused"));
            }
            Some(Before) => return Err(unknown()),
            Some(Late) => {
                self.arrive_late(task, options);
                return Err(unknown());
            }
            Some(CrashBefore) => self.process.die().await,
            Some(FreezeBefore) => self.process.freeze().await,
            Some(Slow) => tokio::time::sleep(self.process.chaos.dice(|d| d.millis(100, 8_000))).await,
            Some(After | CrashAfter | FreezeAfter) | None => {}
        }
        self.is_written_down(&options.submission).await;
        let answer = self.inner.submit(task, options).await;
        let said = answer.as_ref().map(|h| h.remote_id.clone()).map_err(Error::kind);
        self.process.chaos.note(format_args!("p{} {} → {said:?}", self.process.name, options.submission));
        match fault {
            Some(After) => return Err(unknown()),
            Some(CrashAfter) => self.process.die().await,
            Some(FreezeAfter) => self.process.freeze().await,
            _ => {}
        }
        self.process.up().await;
        answer
    }
    async fn poll(&self, handle: &Handle) -> Result<Snapshot> {
        self.process.around(Site::Poll, self.inner.poll(handle)).await
    }
    async fn open(&self, output: &Output) -> Result<Body> {
        let body = self.process.around(Site::Open, self.inner.open(output)).await?;
        let length = body.length();
        let breaks = self.process.draw(Site::Bytes).is_some();
        Ok(Body::new(Broken { body, breaks }, length))
    }
    async fn cancel(&self, handle: &Handle) -> Result<()> {
        self.process.around(Site::Cancel, self.inner.cancel(handle)).await
    }
    async fn find(&self, submission: &Submission) -> Result<Lookup> {
        self.process.around(Site::Find, self.inner.find(submission)).await
    }
    async fn callback(&self, callback: &Callback, spool: &Spool) -> Result<Handle> {
        self.inner.callback(callback, spool).await
    }
}

/// A body that breaks off at once, or not at all.
struct Broken {
    body: Body,
    breaks: bool,
}

impl Stream for Broken {
    type Item = Result<Bytes>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.breaks {
            self.breaks = false;
            return Poll::Ready(Some(Err(away(Site::Bytes))));
        }
        self.body.poll_next_unpin(cx)
    }
}
