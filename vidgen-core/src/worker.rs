//! Claims jobs, runs them, keeps the lease, and stops without losing anything.
//!
//! One worker is a handful of tasks: one claims and runs, one beats, one rescues what dead workers
//! left, one tidies up ended jobs, one is the [courier](crate::courier).

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::FutureExt;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::courier;
use crate::error::{ErrorKind, Result};
use crate::job::JobId;
use crate::pipeline::route::backoff;
use crate::pipeline::run::{Signals, run};
use crate::queue::{BEAT, Beat, Claim, Claimed, LEASE, Release, WorkerId};
use crate::vidgen::{Inner, Vidgen, media_prefix};

/// Without a hint, the queue is asked this often whether there is work; each time up to a fifth
/// sooner, so that workers do not move in step.
pub(crate) const POLL: Duration = Duration::from_secs(1);
/// Beats that the queue hints at are no closer together than this.
const HINTED_BEAT: Duration = Duration::from_millis(100);
/// How often dead workers are looked for.
const RESCUE: Duration = Duration::from_secs(5);
/// How often ended jobs are tidied up.
const TIDY: Duration = Duration::from_secs(60);
/// How many ended jobs are tidied up at a time.
const TIDY_BATCH: usize = 100;
/// How many jobs are claimed at a time.
const CLAIM_BATCH: usize = 64;
/// How long a stop waits for a submit that is on the wire (M4).
const STOP_PATIENCE: Duration = Duration::from_secs(75);
/// The wait after the queue could not be reached.
const QUEUE_AGAIN: Duration = Duration::from_secs(1);

/// Puts a worker together.
#[derive(Debug)]
#[must_use = "a worker does nothing before `spawn`"]
pub struct WorkerBuilder {
    inner: Arc<Inner>,
    name: String,
    concurrency: usize,
    deliveries: usize,
    lease: Duration,
}

impl WorkerBuilder {
    /// A name for people to read in logs; it need not be unique.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// How many jobs run at once; most of them only wait for a provider. 64 if not set.
    pub fn concurrency(mut self, jobs: usize) -> Self {
        self.concurrency = jobs.max(1);
        self
    }

    /// How many webhooks may be on their way at once. 16 if not set; 0 leaves them to others.
    pub fn deliveries(mut self, deliveries: usize) -> Self {
        self.deliveries = deliveries;
        self
    }

    /// How long the queue lets a worker be silent, if it was told another time than
    /// [`LEASE`](crate::LEASE). The worker beats three times in it.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Starts the worker on the current tokio runtime.
    pub fn spawn(self) -> Worker {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(work(self, stopped));
        Worker { stop, tasks }
    }
}

impl Vidgen {
    /// Begins to put together a worker that runs this host's jobs.
    pub fn worker(&self) -> WorkerBuilder {
        WorkerBuilder {
            inner: self.inner.clone(),
            name: "worker".into(),
            concurrency: 64,
            deliveries: 16,
            lease: LEASE,
        }
    }
}

/// A running worker. Dropping it ends it at once, as a crash would: nothing is lost, but its jobs
/// wait for its lease to end. [`Worker::shutdown`] hands them back.
#[derive(Debug)]
#[must_use = "dropping a worker ends it"]
pub struct Worker {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Worker {
    /// Stops claiming, finishes the writes in hand, hands every job back and returns; waits for a
    /// submit that is on the wire. Remote renders go on; the next worker polls them.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
    }
}

/// What the tasks of one registration share.
pub(crate) struct Shift {
    pub(crate) inner: Arc<Inner>,
    pub(crate) worker: WorkerId,
    held: Mutex<HashMap<JobId, Held>>,
    /// The monotonic moment at which the last acknowledged beat was sent.
    beaten: Mutex<Duration>,
    lease: Duration,
    /// Set when the lease is gone.
    pub(crate) over: watch::Sender<bool>,
}

#[derive(Debug)]
struct Held {
    claim: Claim,
    signals: watch::Sender<Signals>,
}

impl Shift {
    fn held(&self) -> MutexGuard<'_, HashMap<JobId, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn since_beat(&self) -> Duration {
        let beaten = *self.beaten.lock().unwrap_or_else(PoisonError::into_inner);
        self.inner.clock.monotonic().saturating_sub(beaten)
    }

    fn signal(&self, job: JobId, change: impl FnOnce(&mut Signals)) {
        if let Some(held) = self.held().get(&job) {
            held.signals.send_modify(change);
        }
    }

    fn signal_all(&self, change: impl Fn(&mut Signals)) {
        for held in self.held().values() {
            held.signals.send_modify(&change);
        }
    }

    /// Drops everything: the lease is another's, or may be.
    fn end(&self) {
        self.signal_all(|s| s.lost = true);
        self.over.send_replace(true);
    }
}

/// Up to a fifth less than `duration`, at random.
fn jittered(duration: Duration) -> Duration {
    let [byte, ..] = *uuid::Uuid::new_v4().as_bytes();
    duration - duration * u32::from(byte) / (5 * 256)
}

/// Registers, works until told to stop or the lease is lost, and in the latter case begins anew.
async fn work(builder: WorkerBuilder, mut stopped: watch::Receiver<bool>) {
    let WorkerBuilder { inner, name, concurrency, deliveries, lease } = builder;
    while !*stopped.borrow_and_update() {
        let sent = inner.clock.monotonic();
        let worker = match inner.queue.register(&name).await {
            Ok(worker) => worker,
            Err(error) => {
                tracing::warn!(%name, %error, "the queue is away");
                tokio::select! {
                    () = inner.clock.sleep(QUEUE_AGAIN) => {}
                    _ = stopped.changed() => {}
                }
                continue;
            }
        };
        tracing::info!(%name, %worker, concurrency, "worker registered");
        let shift = Arc::new(Shift {
            inner: inner.clone(),
            worker,
            held: Mutex::default(),
            beaten: Mutex::new(sent),
            lease,
            over: watch::Sender::new(false),
        });
        let mut helpers = JoinSet::new();
        helpers.spawn(beat(shift.clone()));
        helpers.spawn(rescue(inner.clone()));
        helpers.spawn(tidy(inner.clone()));
        let mut courier = JoinSet::new();
        if deliveries > 0 && inner.notifier.is_some() {
            courier.spawn(courier::run(shift.clone(), deliveries, stopped.clone()));
        }
        claim_and_run(&shift, concurrency, &mut stopped).await;
        if *shift.over.borrow() {
            tracing::warn!(%name, %worker, "the lease was lost; registering anew");
            continue;
        }
        while courier.join_next().await.is_some() {}
        drop(helpers);
        if let Err(error) = inner.queue.deregister(worker).await {
            tracing::warn!(%name, %worker, %error, "deregister; the lease will end by itself");
        }
        tracing::info!(%name, %worker, "worker stopped");
    }
}

async fn claim_and_run(shift: &Arc<Shift>, concurrency: usize, stopped: &mut watch::Receiver<bool>) {
    let mut running: JoinSet<()> = JoinSet::new();
    let mut over = shift.over.subscribe();
    loop {
        if *stopped.borrow_and_update() || *over.borrow_and_update() {
            break;
        }
        while running.try_join_next().is_some() {}
        let free = concurrency.saturating_sub(running.len()).min(CLAIM_BATCH);
        let mut wait = jittered(POLL);
        if free > 0 {
            match shift.inner.queue.claim(shift.worker, free).await {
                Ok(batch) => {
                    let full = batch.jobs.len() == free;
                    for claimed in batch.jobs {
                        start(shift, &mut running, claimed, batch.now);
                    }
                    if full {
                        continue;
                    }
                    wait = wait.min(batch.next_due.unwrap_or(wait));
                }
                // The beat decides whether the lease is really gone.
                Err(error) if error.kind() == ErrorKind::Stale => shift.end(),
                Err(error) => {
                    tracing::warn!(worker = %shift.worker, %error, "claim");
                    wait = QUEUE_AGAIN;
                }
            }
        }
        tokio::select! {
            () = shift.inner.queue.ready(), if free > 0 => {}
            () = shift.inner.clock.sleep(wait) => {}
            Some(_) = running.join_next(), if free == 0 => {}
            _ = stopped.changed() => {}
            _ = over.changed() => {}
        }
    }
    shift.signal_all(|s| s.stop = true);
    let drained = async { while running.join_next().await.is_some() {} };
    tokio::select! {
        () = drained => {}
        () = shift.inner.clock.sleep(STOP_PATIENCE) => tracing::error!("a submit did not end; its job is left to reconciliation"),
    }
}

fn start(shift: &Arc<Shift>, running: &mut JoinSet<()>, claimed: Claimed, now: jiff::Timestamp) {
    let (signals, heard) = watch::channel(Signals::default());
    let claim = claimed.claim;
    shift.held().insert(claim.job, Held { claim, signals });
    let may_submit = {
        let shift = shift.clone();
        // Too stale a lease is not spent money on: it might be another's by the time of the post (Q5).
        Arc::new(move || shift.since_beat() < shift.lease * 2 / 3)
    };
    let shift = shift.clone();
    running.spawn(async move {
        let _guard = Guard { shift: shift.clone(), claim };
        let attempts = usize::try_from(claimed.job.attempts).unwrap_or_default();
        let running = run(shift.inner.clone(), claimed, now, heard, may_submit);
        if AssertUnwindSafe(running).catch_unwind().await.is_err() {
            // A provider's client panicked, say. The job is handed back as after a failed attempt,
            // or it would stay claimed with nobody at it.
            tracing::error!(job = %claim.job, "a run panicked");
            let release = Release { delay: backoff(attempts + 1), counts: true };
            if let Err(error) = shift.inner.queue.release(claim, release).await {
                tracing::warn!(job = %claim.job, %error, "release");
            }
        }
    });
}

/// Forgets a claim when its run ends, however it ends.
struct Guard {
    shift: Arc<Shift>,
    claim: Claim,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut held = self.shift.held();
        if held.get(&self.claim.job).is_some_and(|h| h.claim == self.claim) {
            held.remove(&self.claim.job);
        }
    }
}

/// Renews the lease three times in its length, or sooner when the queue hints at a signal.
async fn beat(shift: Arc<Shift>) {
    let mut over = shift.over.subscribe();
    let usual = (shift.lease / 3).min(BEAT);
    let mut wait = usual;
    loop {
        tokio::select! {
            () = shift.inner.clock.sleep(wait) => {}
            () = hinted(&shift) => {}
            _ = over.wait_for(|over| *over) => return,
        }
        let held: Vec<Claim> = shift.held().values().map(|h| h.claim).collect();
        let sent = shift.inner.clock.monotonic();
        let beat = tokio::select! {
            beat = shift.inner.queue.heartbeat(shift.worker, &held) => beat,
            // A queue that does not answer must not keep a worker from noticing that its time is up.
            () = shift.inner.clock.sleep(usual) => Err(crate::Error::new(ErrorKind::Unavailable, "worker", "no answer to a beat")),
        };
        match beat {
            Ok(beat) => {
                *shift.beaten.lock().unwrap_or_else(PoisonError::into_inner) = sent;
                wait = usual;
                if !heed(&shift, beat) {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(worker = %shift.worker, %error, "beat");
                wait = QUEUE_AGAIN.min(usual);
            }
        }
        if shift.since_beat() >= shift.lease {
            tracing::warn!(worker = %shift.worker, "no beat was acknowledged for a whole lease; everything is dropped");
            shift.end();
            return;
        }
    }
}

/// Returns when the queue hints at a signal, but not too soon after the last beat: a beat compares
/// all claims, and hints may come by the thousand.
async fn hinted(shift: &Shift) {
    shift.inner.queue.signalled().await;
    shift.inner.clock.sleep(HINTED_BEAT.saturating_sub(shift.since_beat())).await;
}

/// Passes on what a beat said; false if the lease is gone.
fn heed(shift: &Shift, beat: Beat) -> bool {
    if !beat.known {
        shift.end();
        return false;
    }
    for claim in beat.lost {
        if shift.held().get(&claim.job).is_some_and(|h| h.claim == claim) {
            shift.signal(claim.job, |s| s.lost = true);
        }
    }
    for job in beat.cancels {
        shift.signal(job, |s| s.cancel = true);
    }
    for job in beat.wakes {
        shift.signal(job, |s| s.wake = s.wake.wrapping_add(1));
    }
    for claim in beat.strays {
        tracing::warn!(job = %claim.job, worker = %shift.worker, "the answer to a claim was lost; the job went back");
    }
    true
}

async fn rescue(inner: Arc<Inner>) {
    loop {
        match inner.queue.rescue().await {
            Ok(0) => {}
            Ok(jobs) => tracing::warn!(jobs, "rescued from workers that died"),
            Err(error) => tracing::warn!(%error, "rescue"),
        }
        inner.clock.sleep(jittered(RESCUE)).await;
    }
}

/// Removes ended jobs past their retention: media first, so that nothing is left behind without
/// a record that names it.
async fn tidy(inner: Arc<Inner>) {
    loop {
        inner.clock.sleep(jittered(TIDY)).await;
        loop {
            match tidy_once(&inner).await {
                Ok(0) => break,
                Ok(jobs) => tracing::info!(jobs, "ended jobs removed"),
                Err(error) => {
                    tracing::warn!(%error, "tidying up");
                    break;
                }
            }
        }
    }
}

async fn tidy_once(inner: &Inner) -> Result<u64> {
    let jobs = inner.queue.expired(&inner.retention, TIDY_BATCH).await?;
    if jobs.is_empty() {
        return Ok(0);
    }
    for job in &jobs {
        inner.store.delete_prefix(&media_prefix(*job)).await?;
    }
    inner.queue.prune(&jobs).await
}
