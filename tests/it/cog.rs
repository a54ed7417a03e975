//! A real cog (0.23.1) whose callbacks and files come to our router over the loopback.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};
use vidgen_core::*;
use vidgen_http::RouterOptions;
use vidgen_tests::cog::{self, Container, LEASE, RATE};
use vidgen_tests::faults::Faults;

/// Nothing here takes longer, or it hangs.
const PATIENCE: Duration = Duration::from_secs(45);

struct World {
    dir: tempfile::TempDir,
    cog: Container,
    base: String,
    vidgen: Vidgen,
    router: tokio::task::JoinHandle<()>,
}

impl World {
    /// A container, and a host whose router it can call. `None` if there is no cog here.
    async fn new() -> Option<Self> {
        let venv = cog::venv()?;
        let dir = tempfile::tempdir().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/api", listener.local_addr().unwrap());
        let files = cog::callbacks(&base).files_url(&"cog".into());
        let cog = Container::start(&venv, dir.path(), files.as_str()).await;
        let vidgen = cog::host(dir.path(), &cog.url, &base, &Faults::none()).await;
        let api = axum::Router::new().nest("/api", vidgen_http::router(&vidgen, RouterOptions::authenticated()));
        let router = tokio::spawn(async move { axum::serve(listener, api).await.unwrap() });
        Some(Self { dir, cog, base, vidgen, router })
    }

    async fn create(&self, prompt: &str) -> JobId {
        let made = self.vidgen.create(&TenantId::single(), JobRequest::new(prompt), CreateOptions::default()).await;
        made.unwrap().job.id
    }

    async fn job(&self, id: JobId) -> Job {
        self.vidgen.get(&TenantId::single(), id).await.unwrap()
    }

    /// The job as soon as that holds.
    async fn until(&self, id: JobId, what: &str, holds: impl Fn(&Job) -> bool) -> Job {
        let began = Instant::now();
        loop {
            let job = self.job(id).await;
            if holds(&job) {
                return job;
            }
            assert!(began.elapsed() < PATIENCE, "never {what}: {job:#?}\n{}", self.cog.log(self.dir.path()));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn ended(&self, id: JobId) -> Job {
        self.until(id, "ended", |job| job.state.is_ended()).await
    }

    /// A worker in a process of its own.
    fn spawn(&self, at: Option<(&str, u32)>) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cog-worker"));
        command.arg(self.dir.path()).arg(&self.cog.url).arg(&self.base);
        if let Some((point, visit)) = at {
            command.arg(point).arg(visit.to_string());
        }
        command.stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap()
    }

    /// Everything that lies in the store.
    fn media(&self) -> Vec<PathBuf> {
        fn walk(dir: PathBuf) -> Vec<PathBuf> {
            let Ok(entries) = std::fs::read_dir(dir) else { return vec![] };
            let paths = entries.map(|entry| entry.unwrap().path());
            paths.flat_map(|path| if path.is_dir() { walk(path) } else { vec![path] }).collect()
        }
        walk(self.dir.path().join("media"))
    }

    /// The job was made by one run, whose file came whole and is all that lies in the store.
    fn check(&self, job: &Job) {
        assert_eq!(job.state, JobState::Completed, "{:?}\n{}", job.failure, self.cog.log(self.dir.path()));
        assert_eq!(self.cog.runs(), ["begun", "done"]);
        let video = &job.output.as_ref().unwrap().video;
        let files = self.media();
        let [file] = &files[..] else { panic!("{files:?}") };
        assert!(file.ends_with(video.key.as_str()), "{files:?}");
        let bytes = std::fs::read(file).unwrap();
        assert_eq!((bytes.len() as u64, &bytes[4..8]), (video.length, &b"ftyp"[..]));
        assert!(video.length > 300_000 && bytes.ends_with(b"vvv"));
        let Some(StepState::Done { cost, .. }) = job.step(StepKind::Video).map(|step| &step.state) else { panic!() };
        assert_eq!(cost.basis, CostBasis::Metered, "by the time that it says it took");
        assert!(cost.amount > Usd::ZERO && cost.amount < RATE.times(20), "{cost:?}");
        assert_eq!((job.cost, job.held), (cost.amount, Usd::ZERO));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.router.abort();
    }
}

fn is_accepted(job: &Job) -> bool {
    job.step(StepKind::Video).is_some_and(|step| matches!(step.state, StepState::Accepted { .. }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_video_comes_through_the_upload_and_its_cost_by_the_callback() {
    let Some(world) = World::new().await else { return };
    let worker = world.vidgen.worker().lease(LEASE).spawn();
    let id = world.create("a cat for 0.3").await;
    let job = world.ended(id).await;
    world.check(&job);
    worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_is_told_without_the_prompt_and_a_cancel_ends_the_run() {
    let Some(world) = World::new().await else { return };
    let worker = world.vidgen.worker().lease(LEASE).spawn();
    let id = world.create("a cat shall explode").await;
    let failed = |job: &Job| job.step(StepKind::Video).is_some_and(|step| !step.attempts.is_empty());
    let job = world.until(id, "failed", failed).await;
    let attempt = &job.step(StepKind::Video).unwrap().attempts[0];
    assert_eq!((attempt.kind, attempt.reason.as_str()), (ErrorKind::Unavailable, "the model raised ValueError"));
    assert_eq!(world.cog.runs(), ["begun", "ValueError"]);
    world.vidgen.cancel(&TenantId::single(), id).await.unwrap();
    assert_eq!(world.ended(id).await.state, JobState::Canceled);

    let id = world.create("a cat for 40").await;
    world.until(id, "begun", |job| is_accepted(job) && world.cog.runs().len() == 3).await;
    world.vidgen.cancel(&TenantId::single(), id).await.unwrap();
    let job = world.ended(id).await;
    assert_eq!((job.state, job.held), (JobState::Canceled, Usd::ZERO));
    assert!(job.cost > Usd::ZERO && job.cost < RATE.times(30), "for what it took: {}", job.cost);
    assert_eq!(world.cog.runs().len(), 4, "{:?}", world.cog.runs());
    worker.shutdown().await;
    assert!(world.media().is_empty(), "{:?}", world.media());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_jobs_at_one_slot_take_turns() {
    let Some(world) = World::new().await else { return };
    let worker = world.vidgen.worker().concurrency(2).lease(LEASE).spawn();
    let ids = [world.create("a cat for 1.5").await, world.create("a dog for 1.5").await];
    let mut put_off = 0;
    for id in ids {
        let job = world.ended(id).await;
        assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
        let attempts = &job.step(StepKind::Video).unwrap().attempts;
        assert!(attempts.iter().all(|attempt| attempt.kind == ErrorKind::RateLimited), "{attempts:?}");
        put_off += attempts.len();
    }
    assert!(put_off > 0, "the container was never full");
    assert_eq!(world.cog.runs(), ["begun", "done", "begun", "done"], "one after the other, each once");
    worker.shutdown().await;
}

/// Kills a worker in the middle of a run, and one that has not yet written down that its submit was
/// taken: whoever comes after goes on with the one run that there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_leaves_its_run_to_the_next_one() {
    let worlds = [None, Some(("after_post_before_outcome", 1))].map(|at| async move {
        let Some(world) = World::new().await else { return };
        let id = world.create("a cat for 2.5").await;
        let mut first = world.spawn(at);
        if at.is_none() {
            world.until(id, "accepted", |job| is_accepted(job) && !world.cog.runs().is_empty()).await;
            first.start_kill().unwrap();
        }
        assert_eq!(first.wait().await.unwrap().signal(), Some(9));
        let job = world.job(id).await;
        assert_eq!(is_accepted(&job), at.is_none(), "{:?}", job.steps);
        if at.is_none() {
            // It ends while nobody works.
            let done = |_: &Job| world.cog.runs().len() == 2;
            world.until(id, "done", done).await;
        }
        let second = world.spawn(None);
        let job = world.ended(id).await;
        world.check(&job);
        drop(second);
    });
    futures::future::join_all(worlds).await;
}
