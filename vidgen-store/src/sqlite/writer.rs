//! The one task that writes: it drains what is waiting into one transaction and answers after
//! the commit. A commit costs an fsync, so a group of 256 is nearly 100 times cheaper than 256 alone.

use std::sync::Arc;

use futures::future::BoxFuture;
use jiff::Timestamp;
use sqlx::{Connection, SqliteConnection};
use tokio::sync::{mpsc, oneshot};
use vidgen_core::{Error, ErrorKind, JobId, Result};

use super::fault::{self, ORIGIN, Outcome};
use super::open::Opener;
use super::rows;
use super::time::SteadyClock;
use super::wake::Wake;

/// How many operations share one transaction: beyond that the gain is small and a beat waits longer.
const GROUP: usize = 256;
/// How many operations may wait before callers have to.
const BACKLOG: usize = 4096;

/// Hands operations to the writing task.
#[derive(Debug)]
pub(super) struct Writer {
    operations: mpsc::Sender<Box<dyn Operation>>,
}

/// One caller's writes.
trait Operation: Send {
    /// Runs, and keeps what is to be answered.
    fn run<'t>(&'t mut self, tx: &'t mut Tx) -> BoxFuture<'t, Writes>;
    /// Answers, now that the transaction was committed or lost.
    fn answer(self: Box<Self>, commit: Result<()>);
}

/// What is to happen to the writes of an operation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writes {
    Keep,
    Undo,
    /// The disk or the connection failed: nothing of this transaction can be kept.
    Lost,
}

struct Pending<T, F> {
    work: Option<F>,
    outcome: Option<Outcome<T>>,
    answer: oneshot::Sender<Result<T>>,
}

impl<T, F> Operation for Pending<T, F>
where
    T: Send + 'static,
    F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Outcome<T>> + Send + 'static,
{
    fn run<'t>(&'t mut self, tx: &'t mut Tx) -> BoxFuture<'t, Writes> {
        Box::pin(async move {
            let Some(work) = self.work.take() else { return Writes::Keep };
            let outcome = work(tx).await;
            let writes = match &outcome {
                Ok(_) => Writes::Keep,
                Err(fault) if fault.spoils_the_batch() => Writes::Lost,
                Err(_) => Writes::Undo,
            };
            self.outcome = Some(outcome);
            writes
        })
    }

    fn answer(self: Box<Self>, commit: Result<()>) {
        let result = match (commit, self.outcome) {
            (_, Some(Err(fault))) => Err(fault.into()),
            (Err(lost), _) => Err(lost),
            (Ok(()), Some(Ok(value))) => Ok(value),
            (Ok(()), None) => Err(closed()),
        };
        // Nobody listens if the caller was dropped.
        let _ = self.answer.send(result);
    }
}

/// The transaction that operations run in.
#[derive(Debug)]
pub(super) struct Tx {
    pub(super) conn: SqliteConnection,
    /// The wall clock, in microseconds since 1970: what is stamped.
    pub(super) now: i64,
    /// What is due is judged by this: the wall clock when the file was opened, and the monotonic
    /// clock from there on, so that a step of the wall clock makes nothing early or late.
    pub(super) steady: i64,
    /// Who is to be woken after the commit.
    pub(super) touched: Touched,
}

/// What changed, for those who wait for it.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) ready: bool,
    pub(super) signalled: bool,
    /// Where `vg_meta.signals` stands after it, if it moved.
    pub(super) signals: Option<i64>,
    pub(super) jobs: Vec<JobId>,
}

impl Tx {
    pub(super) fn timestamp(&self) -> Timestamp {
        rows::timestamp(self.now)
    }

    /// The steady clock, for what workers compare: when an intent was written, when to go on.
    pub(super) fn moment(&self) -> Timestamp {
        rows::timestamp(self.steady)
    }
}

impl Writer {
    /// Starts the task; it ends when the last handle is dropped.
    pub(super) fn spawn(opener: Opener, conn: SqliteConnection, clock: SteadyClock, wake: Arc<Wake>) -> Self {
        let (operations, waiting) = mpsc::channel(BACKLOG);
        let tx = Tx { conn, now: 0, steady: 0, touched: Touched::default() };
        tokio::spawn(serve(opener, tx, clock, wake, waiting));
        Self { operations }
    }

    /// Runs `work` in a transaction and answers after its commit. Dropping the future does not
    /// undo what was begun.
    pub(super) async fn run<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Outcome<T>> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let pending = Pending { work: Some(work), outcome: None, answer };
        self.operations.send(Box::new(pending)).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, ORIGIN, "the queue is closed")
}

async fn serve(
    opener: Opener,
    mut tx: Tx,
    clock: SteadyClock,
    wake: Arc<Wake>,
    mut waiting: mpsc::Receiver<Box<dyn Operation>>,
) {
    let mut group = Vec::with_capacity(GROUP);
    while waiting.recv_many(&mut group, GROUP).await > 0 {
        tx.touched = Touched::default();
        let failure = transact(&mut tx, &clock, &mut group).await.err().map(Arc::new);
        match &failure {
            None => wake.fire(&tx.touched),
            Some(error) => {
                tracing::warn!(%error, operations = group.len(), "a group of writes was rolled back");
                recover(&opener, &mut tx).await;
            }
        }
        for operation in group.drain(..) {
            operation.answer(failure.as_ref().map_or(Ok(()), |error| Err(fault::shared(error))));
        }
    }
    if let Err(error) = tx.conn.close().await {
        tracing::debug!(%error, "the writing connection did not close cleanly");
    }
}

/// Runs a group in one transaction.
async fn transact(tx: &mut Tx, clock: &SteadyClock, group: &mut [Box<dyn Operation>]) -> Result<(), sqlx::Error> {
    // A deferred transaction that upgrades fails at once, whatever `busy_timeout` says.
    sqlx::query("begin immediate").execute(&mut tx.conn).await?;
    for operation in group {
        (tx.now, tx.steady) = (clock.wall(), clock.steady());
        sqlx::query("savepoint operation").execute(&mut tx.conn).await?;
        match operation.run(tx).await {
            Writes::Keep => {}
            Writes::Undo => {
                sqlx::query("rollback to operation").execute(&mut tx.conn).await?;
            }
            // Its own error is its answer; the neighbours hear that the database is away.
            Writes::Lost => return Err(sqlx::Error::WorkerCrashed),
        }
        sqlx::query("release operation").execute(&mut tx.conn).await?;
    }
    if tx.touched.signalled {
        let moved = "update vg_meta set signals = signals + 1 returning signals";
        tx.touched.signals = Some(sqlx::query_scalar(moved).fetch_one(&mut tx.conn).await?);
    }
    sqlx::query("commit").execute(&mut tx.conn).await?;
    Ok(())
}

/// Makes the connection fit for the next transaction, with a new one if it must be.
async fn recover(opener: &Opener, tx: &mut Tx) {
    // Fails if SQLite rolled back by itself, which is as good; a begin would fail if it is not.
    let rolled_back = sqlx::query("rollback").execute(&mut tx.conn).await;
    let broken = matches!(rolled_back, Err(sqlx::Error::WorkerCrashed | sqlx::Error::Io(_)));
    if broken {
        match opener.writer().await {
            Ok(conn) => tx.conn = conn,
            Err(error) => tracing::error!(%error, "the database cannot be opened again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use vidgen_core::clock::SystemClock;

    use super::super::open;
    use super::*;

    async fn writer(directory: &tempfile::TempDir) -> Writer {
        let opener = Opener::new(&directory.path().join("vidgen.db")).unwrap();
        let mut conn = opener.writer().await.unwrap();
        open::migrate(&mut conn).await.unwrap();
        let clock = SteadyClock::new(Arc::new(SystemClock::new()));
        Writer::spawn(opener, conn, clock, Arc::default())
    }

    async fn insert(tx: &mut Tx, key: &str, fails: bool) -> Outcome<()> {
        sqlx::query("insert into vg_idem values ('t', ?, '', x'', 0)").bind(key).execute(&mut tx.conn).await?;
        if fails { Err(closed().into()) } else { Ok(()) }
    }

    async fn count(writer: &Writer) -> i64 {
        let count = async |tx: &mut Tx| -> Outcome<i64> {
            Ok(sqlx::query_scalar("select count(*) from vg_idem").fetch_one(&mut tx.conn).await?)
        };
        writer.run(move |tx| async move { count(tx).await }.boxed()).await.unwrap()
    }

    #[tokio::test]
    async fn a_failing_operation_does_not_spoil_its_neighbours() {
        let directory = tempfile::tempdir().unwrap();
        let writer = writer(&directory).await;
        let insert = |key: &'static str, fails| writer.run(move |tx| insert(tx, key, fails).boxed());
        // One of them breaks a constraint after it wrote, one gives up after it wrote.
        let (a, b, again, c) =
            tokio::join!(insert("a", false), insert("b", true), insert("a", false), insert("c", false));
        assert!(a.is_ok() && b.is_err() && again.is_err() && c.is_ok());
        assert_eq!(count(&writer).await, 2);
    }

    #[tokio::test]
    async fn a_full_disk_is_unavailable_for_all_and_passes() {
        let directory = tempfile::tempdir().unwrap();
        let writer = writer(&directory).await;
        let limit = |pages: &'static str| {
            writer.run(move |tx| async move { Ok(sqlx::query(pages).execute(&mut tx.conn).await.map(|_| ())?) }.boxed())
        };
        limit("pragma max_page_count = 1").await.unwrap();
        let big: &'static str = "x".repeat(1 << 20).leak();
        let insert = |key: &'static str| writer.run(move |tx| insert(tx, key, false).boxed());
        let (small, big) = tokio::join!(insert("small"), insert(big));
        let (small, big) = (small.unwrap_err(), big.unwrap_err());
        assert_eq!((small.kind(), big.kind()), (ErrorKind::Unavailable, ErrorKind::Unavailable));
        assert_eq!(big.message(), "the disk is full");
        limit("pragma max_page_count = 1000000").await.unwrap();
        insert("later").await.unwrap();
        assert_eq!(count(&writer).await, 1, "nothing of the lost group is left");
    }
}
