//! Who waits for what. Inside the process a commit wakes them; other processes' commits are seen
//! by a task that asks the file whether it changed, while somebody waits.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::{Row, SqliteConnection};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use vidgen_core::{JobId, MAX_BATCH};

use super::fault::Outcome;
use super::rows;
use super::writer::Touched;

/// How often the file is asked whether it changed while it does: 7 µs a question.
const BUSY_LOOK: Duration = Duration::from_millis(5);
/// How often once it rests, so that an idle server uses no CPU to speak of.
const IDLE_LOOK: Duration = Duration::from_millis(25);
/// How long after a change the file counts as resting.
const RESTING: Duration = Duration::from_secs(1);

/// A flag that is raised for all who wait, and stays up for one who comes too late.
#[derive(Debug, Default)]
struct Hint {
    raised: AtomicBool,
    notify: Notify,
}

impl Hint {
    fn raise(&self) {
        self.raised.store(true, Ordering::SeqCst);
        self.notify.notify_waiters();
    }

    async fn wait(&self) {
        let notified = self.notify.notified();
        tokio::pin!(notified);
        // Listening starts before the flag is looked at, or a raise in between would be missed.
        notified.as_mut().enable();
        if !self.raised.swap(false, Ordering::SeqCst) {
            notified.await;
            self.raised.store(false, Ordering::SeqCst);
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Wake {
    ready: Hint,
    signalled: Hint,
    watched: Mutex<HashMap<JobId, Watched>>,
    waiting: AtomicUsize,
    begun: Notify,
    /// The value of `vg_meta.signals` that was already told of.
    signals: AtomicI64,
}

#[derive(Debug)]
struct Watched {
    changes: watch::Sender<()>,
    version: i64,
}

/// Counts somebody as waiting.
#[derive(Debug)]
struct Waiting<'w>(&'w Wake);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Hears of changes of one job, until dropped.
#[derive(Debug)]
pub(super) struct Watch<'w> {
    changes: watch::Receiver<()>,
    job: JobId,
    wake: &'w Wake,
    _waiting: Waiting<'w>,
}

impl Watch<'_> {
    /// Returns when the job may have changed since the last call, or since the watch began.
    pub(super) async fn changed(&mut self) {
        // The sender lives in the map as long as we do, so this cannot fail.
        let _ = self.changes.changed().await;
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut watched = self.wake.watched();
        if watched.get(&self.job).is_some_and(|entry| entry.changes.receiver_count() <= 1) {
            watched.remove(&self.job);
        }
    }
}

impl Wake {
    pub(super) async fn ready(&self) {
        let _waiting = self.wait();
        self.ready.wait().await;
    }

    pub(super) async fn signalled(&self) {
        let _waiting = self.wait();
        self.signalled.wait().await;
    }

    /// Starts to listen for changes of a job.
    pub(super) fn watch(&self, job: JobId) -> Watch<'_> {
        let mut watched = self.watched();
        let entry = watched.entry(job).or_insert_with(|| Watched { changes: watch::Sender::new(()), version: -1 });
        let changes = entry.changes.subscribe();
        drop(watched);
        Watch { changes, job, wake: self, _waiting: self.wait() }
    }

    /// Tells of a commit of this process.
    pub(super) fn fire(&self, touched: &Touched) {
        if touched.ready {
            self.ready.raise();
        }
        if let Some(signals) = touched.signals {
            // Told of here, so the lookout need not.
            self.signals.fetch_max(signals, Ordering::SeqCst);
            self.signalled.raise();
        }
        if !touched.jobs.is_empty() {
            let watched = self.watched();
            for entry in touched.jobs.iter().filter_map(|job| watched.get(job)) {
                entry.changes.send_replace(());
            }
        }
    }

    fn wait(&self) -> Waiting<'_> {
        if self.waiting.fetch_add(1, Ordering::SeqCst) == 0 {
            self.begun.notify_one();
        }
        Waiting(self)
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<JobId, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that looks for other processes' commits; it ends with this.
#[derive(Debug)]
pub(super) struct Lookout(JoinHandle<()>);

impl Drop for Lookout {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Lookout {
    pub(super) fn spawn(wake: Arc<Wake>, conn: SqliteConnection) -> Self {
        let seen = Seen { data_version: 0, next_due: None };
        Self(tokio::spawn(look_out(wake, conn, seen)))
    }
}

/// What the last look found.
#[derive(Debug)]
struct Seen {
    data_version: i64,
    next_due: Option<i64>,
}

async fn look_out(wake: Arc<Wake>, mut conn: SqliteConnection, mut seen: Seen) {
    let mut changed_at = Instant::now();
    loop {
        if wake.waiting.load(Ordering::SeqCst) == 0 {
            wake.begun.notified().await;
        }
        match look(&wake, &mut conn, &mut seen).await {
            Ok(true) => changed_at = Instant::now(),
            Ok(false) => {}
            // Hints may be lost; whoever waits also looks for themselves once a second.
            Err(error) => tracing::debug!(?error, "could not look for changes"),
        }
        tokio::time::sleep(if changed_at.elapsed() < RESTING { BUSY_LOOK } else { IDLE_LOOK }).await;
    }
}

/// Whether the file changed; if so, wakes only those who would find something, since each of
/// them goes on to ask the database, and beats and progress change it all the time.
async fn look(wake: &Wake, conn: &mut SqliteConnection, seen: &mut Seen) -> Outcome<bool> {
    let data_version: i64 = sqlx::query_scalar("pragma data_version").fetch_one(&mut *conn).await?;
    if data_version == seen.data_version {
        return Ok(false);
    }
    let row = sqlx::query(LOOK).fetch_one(&mut *conn).await?;
    let next_due: Option<i64> = row.try_get("next_due")?;
    // A job that waits until a sooner moment shortens the sleep of whoever claims.
    let sooner = next_due.is_some_and(|due| seen.next_due.is_none_or(|before| due < before));
    if row.try_get::<bool, _>("ready")? || sooner {
        wake.ready.raise();
    }
    let signals: i64 = row.try_get("signals")?;
    if wake.signals.fetch_max(signals, Ordering::SeqCst) < signals {
        wake.signalled.raise();
    }
    look_at_watched(wake, conn).await?;
    // Last, so that a look that failed half-way is made again.
    *seen = Seen { data_version, next_due };
    Ok(true)
}

/// One row, from indexes that hold live jobs only.
pub(super) const LOOK: &str = "select m.signals, \
    m.paused = 0 and exists (select 1 from vg_queue where state = 1) as ready, \
    (select min(run_on) from vg_queue where state = 2) as next_due \
    from vg_meta m";

async fn look_at_watched(wake: &Wake, conn: &mut SqliteConnection) -> Outcome<()> {
    let jobs: Vec<JobId> = wake.watched().keys().copied().collect();
    for some in jobs.chunks(MAX_BATCH) {
        let found = sqlx::query(
            "select j.id, coalesce(q.version, j.version) as version from json_each(?) e \
             join vg_job j on j.id = unhex(e.value) left join vg_queue q on q.job = j.id",
        )
        .bind(rows::hex_list(some)?)
        .fetch_all(&mut *conn)
        .await?;
        let mut watched = wake.watched();
        for row in found {
            let (id, version) = (rows::job_id(&row, "id")?, row.try_get::<i64, _>("version")?);
            if let Some(entry) = watched.get_mut(&id).filter(|entry| entry.version != version) {
                entry.version = version;
                entry.changes.send_replace(());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hint_reaches_all_who_wait_and_the_next_one_to_come() {
        let wake = Wake::default();
        let raise = async {
            tokio::task::yield_now().await;
            wake.ready.raise();
        };
        tokio::join!(wake.ready(), wake.ready(), raise);
        let late = tokio::time::timeout(Duration::from_millis(20), wake.ready());
        assert!(late.await.is_err(), "a hint that was taken is not told again");
        wake.ready.raise();
        wake.ready().await;
        assert_eq!(wake.waiting.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn a_watch_leaves_nothing_behind() {
        let (wake, job) = (Wake::default(), JobId::new());
        let (mut one, two) = (wake.watch(job), wake.watch(job));
        drop(two);
        wake.fire(&Touched { jobs: vec![job], ..Touched::default() });
        one.changed().await;
        drop(one);
        assert!(wake.watched().is_empty());
        assert_eq!(wake.waiting.load(Ordering::SeqCst), 0);
    }
}
