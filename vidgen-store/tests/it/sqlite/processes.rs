//! Real processes, killed and stopped. A child is this test binary itself, told by an environment
//! variable what to do; without that its "test" does nothing.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use vidgen_core::conformance::sample;
use vidgen_core::{
    Checkpoint, DeliveryFilter, Fenced, Idempotency, JobEnd, JobFilter, JobId, JobState, NewJob, Queue, Settlement,
    StepKind, UsageFilter, Usd,
};
use vidgen_store::sqlite::SqliteQueue;

const ROLE: &str = "VIDGEN_TEST_SQLITE_ROLE";
const FILE: &str = "VIDGEN_TEST_SQLITE_FILE";
/// How often the storm is cut short.
const KILLS: usize = 6;

fn child(role: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sqlite::processes::child_process", "--nocapture"])
        .env(ROLE, role)
        .env(FILE, path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// Says something to the parent, whole and at once.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n> {line}").unwrap();
    out.flush().unwrap();
}

fn said(lines: &mut impl Iterator<Item = std::io::Result<String>>) -> Option<String> {
    lines.find_map(|line| Some(line.ok()?.strip_prefix("> ")?.to_owned()))
}

/// Not a test of its own: what the children of the others do.
#[tokio::test(flavor = "multi_thread")]
async fn child_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let queue = SqliteQueue::open(std::env::var(FILE).unwrap()).await.unwrap();
    match role.as_str() {
        "storm" => storm(queue).await,
        "hold" => hold(queue).await,
        _ => unreachable!(),
    }
}

/// Creates, works and ends jobs as fast as it can, and says what was acknowledged.
async fn storm(queue: SqliteQueue) {
    let ann = sample::tenant("ann");
    let worker = queue.register("storm").await.unwrap();
    let creators = (0..4).map(|_| {
        let (queue, ann) = (queue.clone(), ann.clone());
        tokio::spawn(async move {
            loop {
                let key = JobId::new().to_string();
                let idempotency = Some(Idempotency { key, hash: "h".into() });
                let job = queue.enqueue(NewJob { idempotency, ..sample::new_job(&ann) }).await.unwrap().job;
                say(&format!("created {}", job.id));
            }
        })
    });
    let creators: Vec<_> = creators.collect();
    loop {
        let jobs = queue.claim(worker, 8).await.unwrap().jobs;
        let work = jobs.into_iter().map(async |claimed| {
            let (claim, step) = (claimed.claim, StepKind::Image);
            let checkpoint = |record, costs| Checkpoint { claim, record, costs, progress: 10 };
            // Its first worker may have been killed after any of these.
            let revision = claimed.job.step(step).map_or(0, |record| record.revision);
            if revision < 1 {
                let intent = checkpoint(sample::intent(claim.job, step, 1), vec![]);
                assert_eq!(queue.checkpoint(intent).await.unwrap().fenced, Fenced::Applied);
            }
            if revision < 2 {
                let done = checkpoint(sample::done(step, 2), vec![sample::cost(step, 1)]);
                assert_eq!(queue.checkpoint(done).await.unwrap().fenced, Fenced::Applied);
                say(&format!("bought {}", claim.job));
            }
            let settlement = Settlement {
                claim,
                end: JobEnd::Completed(sample::output()),
                keep_hold: Usd::ZERO,
                events: vec![sample::event("https://example.com/hook")],
            };
            assert_eq!(queue.settle(settlement).await.unwrap(), Fenced::Applied);
            say(&format!("ended {}", claim.job));
        });
        futures::future::join_all(work).await;
        if creators.iter().any(tokio::task::JoinHandle::is_finished) {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_moment_loses_nothing_that_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vidgen.db");
    let ann = sample::tenant("ann");
    let mut acknowledged: HashMap<JobId, &str> = HashMap::new();
    for round in 0..KILLS {
        let mut child = child("storm", &path);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut left = 40 + 57 * round;
        let mut killed = false;
        while let Some(line) = said(&mut lines) {
            let (what, id) = line.split_once(' ').unwrap();
            let what = ["created", "bought", "ended"].into_iter().find(|known| *known == what).unwrap();
            let id: JobId = id.parse().unwrap();
            // Lines of one job may overtake each other; the furthest one counts.
            let furthest = acknowledged.entry(id).or_insert(what);
            if ["created", "bought", "ended"].iter().position(|w| w == furthest)
                < ["created", "bought", "ended"].iter().position(|w| *w == what)
            {
                *furthest = what;
            }
            left = left.saturating_sub(1);
            // What it said before it died is read to the end.
            if left == 0 && !killed {
                child.kill().unwrap();
                killed = true;
            }
        }
        child.wait().unwrap();
        assert!(killed, "the storm ended by itself");
        check(&path, &ann, &acknowledged).await;
    }
    println!("{} jobs acknowledged in {KILLS} storms", acknowledged.len());
}

async fn check(path: &Path, ann: &vidgen_core::TenantId, acknowledged: &HashMap<JobId, &str>) {
    let queue = SqliteQueue::open(path).await.unwrap();
    let begun = Instant::now();
    queue.rescue().await.unwrap();
    let stats = queue.stats().await.unwrap();
    assert_eq!((stats.processing, stats.workers), (0, 0), "rescued at once after kill -9");
    assert!(begun.elapsed() < Duration::from_secs(1));

    for (id, what) in acknowledged {
        let job = queue.get(ann, *id).await.unwrap_or_else(|e| panic!("{what} job {id} is lost: {e}"));
        match *what {
            "created" => {}
            "bought" => assert_eq!(job.cost, sample::cost(StepKind::Image, 1).cost.amount),
            _ => assert_eq!(job.state, JobState::Completed),
        }
    }
    let (mut jobs, mut before) = (Vec::new(), None);
    loop {
        let page = queue.list(ann, &JobFilter { before, limit: 100, ..JobFilter::default() }).await.unwrap();
        before = page.items.last().map(|job| job.id);
        jobs.extend(page.items);
        if !page.more {
            break;
        }
    }
    let usage = queue.usage(ann, &UsageFilter::default()).await.unwrap();
    assert_eq!(usage.charged, jobs.iter().map(|job| job.cost).sum::<Usd>());
    assert_eq!(usage.held, jobs.iter().map(|job| job.held).sum::<Usd>());
    let ended = jobs.iter().filter(|job| job.state == JobState::Completed).count();
    assert_eq!(stats.deliveries, u64::try_from(ended).unwrap(), "one event for each end");
    assert_eq!(stats.queued, u64::try_from(jobs.len() - ended).unwrap());
    let log = queue.deliveries(ann, &DeliveryFilter { limit: 1, ..DeliveryFilter::default() }).await.unwrap();
    assert_eq!(log.items.is_empty(), ended == 0);
    drop(queue);

    let mut conn = SqliteConnectOptions::new().filename(path).connect().await.unwrap();
    let sound: String = sqlx::query_scalar("pragma integrity_check").fetch_one(&mut conn).await.unwrap();
    assert_eq!(sound, "ok");
    let broken = sqlx::query("pragma foreign_key_check").fetch_all(&mut conn).await.unwrap();
    assert!(broken.is_empty());
}

/// Claims a job, says so, and tries to end it when told to.
async fn hold(queue: SqliteQueue) {
    let worker = queue.register("hold").await.unwrap();
    let claim = queue.claim(worker, 1).await.unwrap().jobs[0].claim;
    say("claimed");
    std::io::stdin().lines().next().unwrap().unwrap();
    let settlement =
        Settlement { claim, end: JobEnd::Completed(sample::output()), keep_hold: Usd::ZERO, events: vec![] };
    say(&format!("{:?}", queue.settle(settlement).await.unwrap()));
    say(&format!("known {}", queue.heartbeat(worker, &[claim]).await.unwrap().known));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_process_holds_its_lock_and_loses_its_claims_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vidgen.db");
    let lease = Duration::from_millis(300);
    let queue = SqliteQueue::builder(&path).with_lease(lease).open().await.unwrap();
    let ann = sample::tenant("ann");
    let job = queue.enqueue(sample::new_job(&ann)).await.unwrap().job;
    let mut child = child("hold", &path);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(said(&mut lines).unwrap(), "claimed");
    signal(&child, "STOP");
    assert_eq!(queue.rescue().await.unwrap(), 0, "its lock is held, and its silence was not seen yet");
    tokio::time::sleep(lease + Duration::from_millis(50)).await;
    assert_eq!(queue.rescue().await.unwrap(), 1);
    let worker = queue.register("heir").await.unwrap();
    assert_eq!(queue.claim(worker, 1).await.unwrap().jobs[0].job.id, job.id);

    signal(&child, "CONT");
    writeln!(child.stdin.take().unwrap(), "go on").unwrap();
    assert_eq!(said(&mut lines).unwrap(), "Stale");
    assert_eq!(said(&mut lines).unwrap(), "known false");
    child.wait().unwrap();
    assert_eq!(queue.get(&ann, job.id).await.unwrap().state, JobState::Processing);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_is_found_out_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vidgen.db");
    let queue = SqliteQueue::open(&path).await.unwrap();
    let ann = sample::tenant("ann");
    let job = queue.enqueue(sample::new_job(&ann)).await.unwrap().job;
    let mut child = child("hold", &path);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(said(&mut lines).unwrap(), "claimed");
    assert_eq!(queue.rescue().await.unwrap(), 0);
    child.kill().unwrap();
    child.wait().unwrap();
    let begun = Instant::now();
    assert_eq!(queue.rescue().await.unwrap(), 1);
    println!("a killed process was found out in {:?}", begun.elapsed());
    assert_eq!(queue.get(&ann, job.id).await.unwrap().crashes, 1);
}
