//! Crashes for real: worker processes on one SQLite file, killed at failpoints and at random,
//! stopped beyond their lease, ended politely. The provider's remote lives in this process.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};
use tokio::process::{Child, Command};
use url::Url;
use vidgen_core::memory::{Scene, ScriptedProvider};
use vidgen_core::*;
use vidgen_store::sqlite::SqliteQueue;
use vidgen_tests::faults::Point;
use vidgen_tests::remote;

/// How many times a worker is killed at a random moment; the long run kills ten times as often.
const RANDOM_KILLS: u32 = 300;
/// How many of them side by side.
const LANES: u32 = 6;
/// Nothing here takes longer, or it hangs.
const PATIENCE: Duration = Duration::from_secs(90);

struct World {
    dir: tempfile::TempDir,
    queue: SqliteQueue,
    studio: ScriptedProvider,
    remote: Url,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let queue = SqliteQueue::open(dir.path().join("vidgen.db")).await.unwrap();
        let studio = ScriptedProvider::new("studio");
        // M2: whatever arrives at the provider was written down before.
        let witness = {
            let queue = queue.clone();
            move |submission: SubmissionId| has_intent(queue.clone(), submission).boxed()
        };
        let remote = remote::serve(studio.clone(), Some(Arc::new(witness))).await;
        Self { dir, queue, studio, remote }
    }

    fn spawn(&self, jobs: usize, at: Option<(&str, u32)>, lease: Option<Duration>) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_crash-worker"));
        command.arg(self.dir.path()).arg(self.remote.as_str()).env("JOBS", jobs.to_string());
        if let Some((point, visit)) = at {
            command.arg(point).arg(visit.to_string());
        }
        if let Some(lease) = lease {
            command.env("LEASE_MS", lease.as_millis().to_string());
        }
        command.stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap()
    }

    async fn jobs(&self) -> Vec<Job> {
        self.queue.list(&TenantId::single(), &JobFilter { limit: 100, ..JobFilter::default() }).await.unwrap().items
    }

    /// Waits until `count` jobs ended and each one's event was delivered.
    async fn settled(&self, count: usize) {
        let began = Instant::now();
        loop {
            let filter = DeliveryFilter { job: None, limit: 100 };
            let log = self.queue.deliveries(&TenantId::single(), &filter).await.unwrap().items;
            if log.iter().filter(|d| d.state == DeliveryState::Delivered).count() == count {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "not settled: {:#?}", self.jobs().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn check(&self, count: usize, label: &str) {
        let jobs = self.jobs().await;
        assert_eq!(jobs.len(), count, "{label}");
        for job in &jobs {
            assert_eq!(job.state, JobState::Completed, "{label}: {:?} {:#?}", job.failure, job.steps);
            assert_eq!((job.cost, job.held), (Usd::from_cents(65), Usd::ZERO), "{label}");
            let video = &job.output.as_ref().unwrap().video;
            let bytes = std::fs::metadata(self.dir.path().join("media").join(video.key.as_str())).unwrap().len();
            assert_eq!(bytes, video.length, "{label}");
        }
        let accepted = self.studio.accepted();
        let slots: BTreeSet<_> = accepted.iter().collect();
        assert_eq!(accepted.len(), slots.len(), "{label}: a slot was bought twice: {accepted:?}");
        assert_eq!(accepted.len(), 5 * count, "{label}");
        let usage = self.queue.usage(&TenantId::single(), &UsageFilter::default()).await.unwrap();
        let due = Usd::from_cents(65).times(i64::try_from(count).unwrap());
        assert_eq!((usage.charged, usage.cost, usage.held), (due, due, Usd::ZERO), "{label}");
    }
}

/// Whether the step of `submission` has an intent on disk, as a reader of the file sees it.
async fn has_intent(queue: SqliteQueue, submission: SubmissionId) -> bool {
    let jobs = queue.list(&TenantId::single(), &JobFilter { limit: 100, ..JobFilter::default() }).await.unwrap().items;
    let job = jobs.iter().find(|j| submission.as_str().contains(&j.id.uuid().simple().to_string())).map(|j| j.id);
    let Some(job) = job else { return false };
    let job = queue.get(&TenantId::single(), job).await.unwrap();
    job.steps.iter().any(|s| s.open_submission().is_some_and(|open| open.id == submission))
}

async fn stop(mut child: Child) -> Duration {
    let began = Instant::now();
    let pid = rustix::process::Pid::from_child_id(child.id());
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let status = child.wait().await.unwrap();
    assert!(status.success(), "{status}");
    began.elapsed()
}

trait PidOf {
    fn from_child_id(id: Option<u32>) -> Self;
}

impl PidOf for rustix::process::Pid {
    fn from_child_id(id: Option<u32>) -> Self {
        Self::from_raw(i32::try_from(id.expect("it still runs")).unwrap()).unwrap()
    }
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child_id(child.id()), signal).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_at_any_failpoint_buys_nothing_twice_and_loses_nothing() {
    // The create, the settlement and the event come once; the others once a step.
    let once = ["after_hold", "before_settle", "after_settle", "before_event", "after_event"];
    let visits = |point: &str| if once.contains(&point) { vec![1] } else { vec![1, 3, 5] };
    let cases: Vec<_> = Point::ALL.iter().flat_map(|(_, p)| visits(p).into_iter().map(move |v| (*p, v))).collect();
    let kills = cases.len();
    futures::stream::iter(cases)
        .for_each_concurrent(usize::try_from(LANES).unwrap(), |(point, visit)| async move {
            let world = World::new().await;
            let mut first = world.spawn(1, Some((point, visit)), None);
            let status = tokio::time::timeout(PATIENCE, first.wait()).await.expect("the fault did not fire").unwrap();
            assert_eq!(status.signal(), Some(9), "{point} #{visit}: {status}");
            let second = world.spawn(1, None, None);
            world.settled(1).await;
            stop(second).await;
            world.check(1, &format!("{point} #{visit}")).await;
        })
        .await;
    println!("{kills} kills at 17 failpoints");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_killed_at_random_moments_buy_nothing_twice_and_lose_nothing() {
    let target = if std::env::var_os("RELIABILITY_LONG").is_some() { RANDOM_KILLS * 10 } else { RANDOM_KILLS };
    // Side by side, since a worker mostly waits.
    let lanes = (0..LANES).map(|lane| random_kills(target / LANES, std::process::id() + lane));
    let kills: u32 = futures::future::join_all(lanes).await.into_iter().sum();
    println!("{kills} kills at random moments");
}

async fn random_kills(target: u32, mut seed: u32) -> u32 {
    const JOBS: usize = 6;
    let mut kills = 0;
    while kills < target {
        let world = World::new().await;
        let label = format!("seed {seed}");
        // Two deaths of a job at most: the third would rightly give it up as poison.
        for _ in 0..2 {
            let mut child = world.spawn(JOBS, None, None);
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            tokio::time::sleep(Duration::from_millis(u64::from(seed >> 23))).await;
            signal(&child, rustix::process::Signal::KILL);
            assert_eq!(child.wait().await.unwrap().signal(), Some(9));
            kills += 1;
        }
        let last = world.spawn(JOBS, None, None);
        world.settled(JOBS).await;
        drop(last);
        world.check(JOBS, &label).await;
    }
    kills
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminated_worker_hands_every_job_back_at_once_and_the_next_goes_on() {
    let world = World::new().await;
    for _ in 0..20 {
        world.studio.then(StepKind::Video, Scene::Succeeds { after_polls: 8 });
    }
    let first = world.spawn(20, None, None);
    let began = Instant::now();
    while world.studio.accepted().iter().filter(|s| s.as_str().contains("video")).count() < 10 {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let took = stop(first).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    let stats = world.queue.stats().await.unwrap();
    assert_eq!((stats.processing, stats.workers), (0, 0), "every job was handed back");
    let second = world.spawn(0, None, None);
    world.settled(20).await;
    stop(second).await;
    assert!(world.jobs().await.iter().all(|j| j.crashes == 0), "a polite end is no crash");
    world.check(20, "after SIGTERM").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_share_one_file_and_a_paused_one_is_refused_when_it_wakes() {
    let lease = Some(Duration::from_secs(3));
    let world = World::new().await;
    for _ in 0..12 {
        world.studio.then(StepKind::Video, Scene::Succeeds { after_polls: 10 });
    }
    let first = world.spawn(12, None, lease);
    let began = Instant::now();
    while world.studio.accepted().len() < 12 {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Paused in the middle of its jobs, beyond its lease; the lock that says it lives is still held.
    // (Not in the middle of a write, though: the file is locked for everybody then, until it wakes.)
    loop {
        signal(&first, rustix::process::Signal::STOP);
        if tokio::time::timeout(Duration::from_millis(500), world.queue.pause(false)).await.is_ok() {
            break;
        }
        signal(&first, rustix::process::Signal::CONT);
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
    let second = world.spawn(0, None, lease);
    world.settled(12).await;
    signal(&first, rustix::process::Signal::CONT);
    // Awake, it may write what it likes: nothing of it counts.
    tokio::time::sleep(Duration::from_millis(800)).await;
    stop(first).await;
    stop(second).await;
    let jobs = world.jobs().await;
    assert!(jobs.iter().any(|j| j.crashes == 1), "nothing was taken over");
    world.check(12, "after a pause").await;
}
