//! Two handles on one file, as two processes have: who works, who is dead, who is woken.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use vidgen_core::clock::ManualClock;
use vidgen_core::conformance::queue::start;
use vidgen_core::conformance::sample;
use vidgen_core::{BEAT, ClaimBatch, Fenced, JobEnd, LEASE, Limits, NewJob, Queue, Settlement, Usd, WorkerId};
use vidgen_store::sqlite::SqliteQueue;

use super::{manual_clock, on};

fn lock_files(directory: &Path) -> usize {
    let is_lock = |name: &str| name.contains(".worker-");
    std::fs::read_dir(directory)
        .unwrap()
        .filter(|f| is_lock(&f.as_ref().unwrap().file_name().to_string_lossy()))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_handles_share_the_jobs_and_never_one_job() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vidgen.db");
    let (one, two) = (SqliteQueue::open(&path).await.unwrap(), SqliteQueue::open(&path).await.unwrap());
    let limits = Limits { active_jobs: 1000, ..Limits::default() };
    let new = || NewJob { limits: limits.clone(), ..sample::new_job(&sample::tenant("ann")) };
    let creates = (0..400).map(|n| if n % 2 == 0 { one.enqueue(new()) } else { two.enqueue(new()) });
    futures::future::join_all(creates).await.into_iter().for_each(|created| drop(created.unwrap()));
    // Each has its first jobs before either goes on: on a busy machine one may do all the rest.
    let mut begun = Vec::new();
    for queue in [one, two] {
        let worker = queue.register("w").await.unwrap();
        let batch = queue.claim(worker, 7).await.unwrap();
        begun.push((queue, worker, batch));
    }
    let drain = async |(queue, worker, mut batch): (SqliteQueue, WorkerId, ClaimBatch)| {
        let mut done = Vec::new();
        while !batch.jobs.is_empty() {
            for claimed in std::mem::take(&mut batch.jobs) {
                let settlement = Settlement {
                    claim: claimed.claim,
                    end: JobEnd::Completed(sample::output()),
                    keep_hold: Usd::ZERO,
                    events: vec![],
                };
                assert_eq!(queue.settle(settlement).await.unwrap(), Fenced::Applied);
                done.push(claimed.job.id);
            }
            batch = queue.claim(worker, 7).await.unwrap();
        }
        done
    };
    let (two, one) = (begun.pop().unwrap(), begun.pop().unwrap());
    let (a, b) = tokio::join!(tokio::spawn(drain(one)), tokio::spawn(drain(two)));
    let (a, b) = (a.unwrap(), b.unwrap());
    let all: HashSet<_> = a.iter().chain(&b).collect();
    assert_eq!((a.len() + b.len(), all.len()), (400, 400));
    assert!(!a.is_empty() && !b.is_empty(), "both worked: {} and {}", a.len(), b.len());
}

#[tokio::test]
async fn a_dropped_handle_is_dead_at_once_by_no_clock() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vidgen.db");
    let clock = manual_clock();
    let (one, two) = (on(&path, &clock).await, on(&path, &clock).await);
    let ann = sample::tenant("ann");
    let job = one.enqueue(sample::new_job(&ann)).await.unwrap().job;
    let worker = one.register("w").await.unwrap();
    let claim = one.claim(worker, 1).await.unwrap().jobs[0].claim;
    assert_eq!(two.rescue().await.unwrap(), 0, "a living worker is left alone");
    assert_eq!(lock_files(directory.path()), 1);
    drop(one);
    assert_eq!(two.rescue().await.unwrap(), 1);
    assert_eq!(lock_files(directory.path()), 0);
    let job = two.get(&ann, job.id).await.unwrap();
    assert_eq!((job.crashes, job.attempts), (1, 0));
    let late = Settlement { claim, end: JobEnd::Canceled, keep_hold: Usd::ZERO, events: vec![] };
    assert_eq!(two.settle(late).await.unwrap(), Fenced::Stale);
}

#[tokio::test]
async fn a_silent_worker_is_dead_after_a_lease_though_it_holds_its_lock() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vidgen.db");
    let clock = manual_clock();
    let (one, two) = (on(&path, &clock).await, on(&path, &clock).await);
    one.enqueue(sample::new_job(&sample::tenant("ann"))).await.unwrap();
    let worker = one.register("w").await.unwrap();
    one.claim(worker, 1).await.unwrap();
    // However long it was silent before, a handle that sees it for the first time watches for a lease.
    clock.advance(2 * LEASE);
    assert_eq!(two.rescue().await.unwrap(), 0);
    clock.advance(LEASE - Duration::from_millis(1));
    assert_eq!(two.rescue().await.unwrap(), 0);
    clock.advance(Duration::from_millis(1));
    assert_eq!(two.rescue().await.unwrap(), 1);
    assert!(!one.heartbeat(worker, &[]).await.unwrap().known);
}

#[tokio::test]
async fn a_beating_worker_lives_whatever_the_wall_clock_says() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vidgen.db");
    let clock = manual_clock();
    let (one, two) = (on(&path, &clock).await, on(&path, &clock).await);
    one.enqueue(sample::new_job(&sample::tenant("ann"))).await.unwrap();
    let worker = one.register("w").await.unwrap();
    let held = [one.claim(worker, 1).await.unwrap().jobs[0].claim];
    for hours in [1, -1, 24, -48, 0] {
        clock.step_wall(start() + jiff::SignedDuration::from_hours(hours));
        clock.advance(BEAT);
        let beat = one.heartbeat(worker, &held).await.unwrap();
        assert!(beat.known && beat.lost.is_empty());
        assert_eq!(two.rescue().await.unwrap(), 0);
        assert_eq!(on(&path, &ManualClock::starting_at(start())).await.rescue().await.unwrap(), 0);
    }
}

#[tokio::test]
async fn lock_files_of_nobody_are_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vidgen.db");
    let queue = SqliteQueue::open(&path).await.unwrap();
    let worker = queue.register("w").await.unwrap();
    let stray = format!("vidgen.db.worker-{}", vidgen_core::WorkerId::new());
    std::fs::write(directory.path().join(stray), "").unwrap();
    assert_eq!(lock_files(directory.path()), 2);
    queue.rescue().await.unwrap();
    assert_eq!(lock_files(directory.path()), 1);
    queue.deregister(worker).await.unwrap();
    assert_eq!(lock_files(directory.path()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_handles_jobs_and_signals_wake_within_50_ms() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vidgen.db");
    let (one, two) = (SqliteQueue::open(&path).await.unwrap(), SqliteQueue::open(&path).await.unwrap());
    let ann = sample::tenant("ann");
    let limits = Limits { active_jobs: 100, ..Limits::default() };
    let worker = two.register("w").await.unwrap();
    let mut waits = Vec::new();
    for _ in 0..20 {
        let woken = tokio::spawn({
            let two = two.clone();
            async move {
                two.ready().await;
                Instant::now()
            }
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        one.enqueue(NewJob { limits: limits.clone(), ..sample::new_job(&ann) }).await.unwrap();
        let created = Instant::now();
        waits.push(woken.await.unwrap().saturating_duration_since(created));
        two.claim(worker, 1).await.unwrap();
    }
    waits.sort();
    println!("a job created by another handle is heard of after {:?}, {:?} at worst", waits[10], waits[19]);
    assert!(waits[10] < Duration::from_millis(50), "{waits:?}");

    let job = one.enqueue(NewJob { limits, ..sample::new_job(&ann) }).await.unwrap().job;
    two.claim(worker, 1).await.unwrap();
    let version = one.get(&ann, job.id).await.unwrap().version;
    let watched = tokio::spawn({
        let (two, ann) = (two.clone(), ann.clone());
        async move {
            let job = two.watch(&ann, job.id, version, Duration::from_secs(10)).await.unwrap();
            (job.cancel_requested, Instant::now())
        }
    });
    let signalled = tokio::spawn({
        let two = two.clone();
        async move {
            two.signalled().await;
            Instant::now()
        }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    one.cancel(&ann, job.id, None).await.unwrap();
    let canceled = Instant::now();
    let (seen, at) = watched.await.unwrap();
    let told = signalled.await.unwrap();
    println!("watch after {:?}, signal after {:?}", at - canceled, told - canceled);
    assert!(seen);
    assert!(at - canceled < Duration::from_millis(500) && told - canceled < Duration::from_millis(500));
}

#[tokio::test(flavor = "multi_thread")]
async fn beats_and_progress_of_others_wake_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vidgen.db");
    let (one, two) = (SqliteQueue::open(&path).await.unwrap(), SqliteQueue::open(&path).await.unwrap());
    let ann = sample::tenant("ann");
    let worker = one.register("w").await.unwrap();
    let job = one.enqueue(sample::new_job(&ann)).await.unwrap().job;
    let claim = one.claim(worker, 1).await.unwrap().jobs[0].claim;
    one.cancel(&ann, job.id, None).await.unwrap();
    // What was missed so far is told at once; then there must be silence, though a flag is up.
    for queue in [&one, &two] {
        let _ = tokio::time::timeout(Duration::from_millis(50), queue.signalled()).await;
        let _ = tokio::time::timeout(Duration::from_millis(50), queue.ready()).await;
    }
    let noise = async {
        for _ in 0..20 {
            one.heartbeat(worker, &[claim]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let quiet = async |hint| tokio::time::timeout(Duration::from_millis(150), hint).await.is_err();
    let silence = tokio::join!(quiet(one.signalled()), quiet(two.signalled()), quiet(two.ready()), noise);
    assert_eq!((silence.0, silence.1, silence.2), (true, true, true));
}
