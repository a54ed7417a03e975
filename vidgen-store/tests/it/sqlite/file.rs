//! The file: where it may lie, who else may hold it, what is in it.

use std::time::{Duration, Instant};

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};
use vidgen_core::conformance::sample;
use vidgen_core::{ErrorKind, Handle, JobFilter, Queue, StepKind, Witness, submission_id};
use vidgen_store::sqlite::SqliteQueue;

async fn raw(path: &std::path::Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).connect().await.unwrap()
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_to_is_refused_by_name_of_the_problem() {
    let missing = SqliteQueue::open("/nonexistent/vidgen.db").await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Unavailable);
    assert!(missing.message().contains("does not exist"), "{missing}");
    // Nobody may create files there, not even root.
    let read_only = SqliteQueue::open("/proc/self/vidgen.db").await.unwrap_err();
    assert!(read_only.message().contains("cannot be written to"), "{read_only}");
    assert!(!format!("{read_only:?}").contains("/proc"), "a message names no path of the host");
}

#[tokio::test]
async fn a_busy_file_only_delays() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vidgen.db");
    let queue = SqliteQueue::open(&path).await.unwrap();
    let mut other = raw(&path).await;
    sqlx::query("begin immediate").execute(&mut other).await.unwrap();
    let begun = Instant::now();
    let release = async {
        tokio::time::sleep(Duration::from_millis(900)).await;
        sqlx::query("rollback").execute(&mut other).await.unwrap();
    };
    let create = queue.enqueue(sample::new_job(&sample::tenant("ann")));
    // Readers go on meanwhile.
    let read = async {
        let filter = JobFilter { limit: 10, ..JobFilter::default() };
        queue.list(&sample::tenant("ann"), &filter).await.unwrap();
        begun.elapsed()
    };
    let (created, (), read_after) = tokio::join!(create, release, read);
    created.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(900));
    assert!(read_after < Duration::from_millis(500), "a reader waited {read_after:?} for a writer");
}

#[tokio::test]
async fn many_may_open_a_new_file_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vidgen.db");
    let opened = futures::future::join_all((0..8).map(|_| SqliteQueue::open(&path))).await;
    let queues: Vec<SqliteQueue> = opened.into_iter().map(Result::unwrap).collect();
    for queue in &queues {
        queue.enqueue(sample::new_job(&sample::tenant("ann"))).await.unwrap();
    }
    assert_eq!(queues[0].stats().await.unwrap().queued, 8);
}

#[tokio::test]
async fn a_file_of_the_version_before_witnesses_is_brought_up_to_date_with_its_jobs() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vidgen.db");
    let ann = sample::tenant("ann");
    let job = {
        let queue = SqliteQueue::open(&path).await.unwrap();
        queue.enqueue(sample::new_job(&ann)).await.unwrap().job
    };
    // As that version left it.
    let mut old = raw(&path).await;
    sqlx::query("drop table vg_witness").execute(&mut old).await.unwrap();
    sqlx::query("delete from _vidgen_migrations where version > 1").execute(&mut old).await.unwrap();
    old.close().await.unwrap();

    let queue = SqliteQueue::open(&path).await.unwrap();
    assert_eq!(queue.get(&ann, job.id).await.unwrap(), job);
    let submission = submission_id(job.id, StepKind::Video, 1);
    let witness = Witness { job: job.id, submission, handle: Handle::new("acme".into(), "run-1") };
    queue.witness(witness.clone()).await.unwrap();
    assert_eq!(queue.get(&ann, job.id).await.unwrap().witnesses, std::slice::from_ref(&witness));
    drop(queue);
    let again = SqliteQueue::open(&path).await.unwrap();
    assert_eq!(again.get(&ann, job.id).await.unwrap().witnesses, [witness]);
    again.cancel(&ann, job.id, None).await.unwrap();
    again.delete(&ann, job.id).await.unwrap();
    let left: i64 =
        sqlx::query_scalar("select count(*) from vg_witness").fetch_one(&mut raw(&path).await).await.unwrap();
    assert_eq!(left, 0, "it goes with its job");
}

#[tokio::test]
async fn a_backup_is_a_queue_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let queue = SqliteQueue::open(directory.path().join("vidgen.db")).await.unwrap();
    let ann = sample::tenant("ann");
    let job = queue.enqueue(sample::new_job(&ann)).await.unwrap().job;
    let copy = directory.path().join("copy.db");
    queue.backup_to(&copy).await.unwrap();
    queue.cancel(&ann, job.id, None).await.unwrap();
    let restored = SqliteQueue::open(&copy).await.unwrap();
    assert_eq!(restored.get(&ann, job.id).await.unwrap(), job);
    let again = queue.backup_to(&copy).await.unwrap_err();
    assert_ne!(again.kind(), ErrorKind::NotFound, "an existing file is never written over");
}

#[tokio::test]
async fn the_ledger_cannot_be_rewritten() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vidgen.db");
    let queue = SqliteQueue::open(&path).await.unwrap();
    drop(queue);
    let mut conn = raw(&path).await;
    let insert = "insert into vg_ledger (tenant, job, amount, at) values ('ann', x'00', 1, 0)";
    sqlx::query(insert).execute(&mut conn).await.unwrap();
    for change in ["update vg_ledger set amount = 0", "delete from vg_ledger"] {
        assert!(sqlx::query(change).execute(&mut conn).await.is_err(), "{change}");
    }
    conn.close().await.unwrap();
}

#[tokio::test]
async fn a_row_that_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vidgen.db");
    let queue = SqliteQueue::open(&path).await.unwrap();
    let ann = sample::tenant("ann");
    let job = queue.enqueue(sample::new_job(&ann)).await.unwrap().job;
    sqlx::query("update vg_job set plan = '{\"secret\":'").execute(&mut raw(&path).await).await.unwrap();
    let error = queue.get(&ann, job.id).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.message().contains(&format!("plan of job {}", job.id)), "{error}");
    assert!(!format!("{error:?}").contains("secret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_creates_at_once_share_their_commits() {
    let directory = tempfile::tempdir().unwrap();
    let queue = SqliteQueue::open(directory.path().join("vidgen.db")).await.unwrap();
    let ann = sample::tenant("ann");
    let begun = Instant::now();
    let creates = (0..1000).map(|_| queue.enqueue(sample::new_job(&ann)));
    let created = futures::future::join_all(creates).await;
    let took = begun.elapsed();
    println!("1,000 concurrent creates: {took:?}");
    assert!(created.iter().all(Result::is_ok));
    assert_eq!(queue.stats().await.unwrap().queued, 1000);
    // Alone they would be a thousand waits for the disk. The bound is for a busy machine.
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[tokio::test]
async fn a_row_that_cannot_be_read_keeps_nobody_else_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vidgen.db");
    let queue = SqliteQueue::open(&path).await.unwrap();
    let ann = sample::tenant("ann");
    let bad = queue.enqueue(sample::new_job(&ann)).await.unwrap().job;
    let good = queue.enqueue(sample::new_job(&ann)).await.unwrap().job;
    let mut other = raw(&path).await;
    sqlx::query("update vg_job set plan = '{}' where id = ?")
        .bind(bad.id.uuid().into_bytes().to_vec())
        .execute(&mut other)
        .await
        .unwrap();
    let worker = queue.register("w").await.unwrap();
    let batch = queue.claim(worker, 10).await.unwrap();
    assert_eq!(batch.jobs.iter().map(|c| c.job.id).collect::<Vec<_>>(), [good.id]);
    assert!(batch.next_due.is_some_and(|due| due <= Duration::from_secs(300)), "the other one waits");
    let stats = queue.stats().await.unwrap();
    assert_eq!((stats.processing, stats.waiting), (1, 1), "and is not lost");
}
