//! Ten minutes without the first choice, a thousand jobs: few requests reach it, and everybody gets
//! the video that was asked for from the alternative. Real clients, fake remotes, hurried time.

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use futures::StreamExt;
use serde_json::Value;
use vidgen_core::memory::{MemoryQueue, MemoryStore};
use vidgen_core::*;
use vidgen_providers::fal::Fal;
use vidgen_providers::lab::{self, Lab, Outage};
use vidgen_providers::replicate::Replicate;
use vidgen_tests::hurried::HurriedClock;

const JOBS: usize = 1000;
const OUTAGE: Duration = Duration::from_secs(600);

/// Width, height and length of an MP4, by ffprobe.
fn truth(bytes: &[u8]) -> (u64, u64, f64) {
    let mut file = tempfile::NamedTempFile::with_suffix(".mp4").unwrap();
    file.write_all(bytes).unwrap();
    let output = Command::new("ffprobe")
        .args(["-v", "error", "-show_streams", "-show_format", "-of", "json"])
        .arg(file.path())
        .output()
        .expect("ffprobe");
    let probed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let side = |name: &str| probed["streams"][0][name].as_u64().unwrap();
    (side("width"), side("height"), probed["format"]["duration"].as_str().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_ten_minutes_costs_few_requests_and_nobodys_video() {
    let (tried, doubts) = outage(Outage::Refuses).await;
    println!("refused connections: {tried} submits tried");
    assert!((1..=200).contains(&tried), "{tried} submits to a provider that is away");
    assert_eq!(doubts, 0);
}

/// A 503 may come from behind what has accepted: those few that met it are not sent elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_that_answers_leaves_those_few_in_doubt_that_met_it() {
    let (tried, doubts) = outage(Outage::Unavailable).await;
    println!("503: {tried} submits tried, {doubts} in doubt");
    assert!((1..=200).contains(&tried), "{tried} submits to a provider that is away");
    assert!(doubts <= tried, "{doubts} in doubt, of {tried} that were sent");
}

/// Answers how many submits were tried at the sick provider, and how many jobs ended in doubt.
async fn outage(outage: Outage) -> (usize, usize) {
    let clock = HurriedClock::starting_at("2026-11-25T00:00:00Z".parse().unwrap());
    let (sick, well) = (Lab::start(lab::fal()).await, Lab::start(lab::replicate()).await);
    sick.outage(outage).await;
    let fal = Fal::builder(sick.key()).with_base_url(sick.base_url()).build().unwrap();
    let replicate = Replicate::builder(well.key()).with_base_url(well.base_url()).build().unwrap();
    let callbacks = Callbacks::new("http://127.0.0.1:9/api", &"0123456789abcdef".to_owned().into()).unwrap();
    let mut timing = Timing::default();
    // Nobody will be called back; not an hour in a test.
    timing.find_patience = Duration::from_secs(60);
    let vidgen = Vidgen::builder()
        .queue(MemoryQueue::with_clock(clock))
        .store(MemoryStore::new())
        .callbacks(callbacks)
        .pipeline(
            Pipeline::named("default").video(fal.model("fal-ai/veo3/fast")).or(replicate.model("google/veo-3-fast")),
        )
        .timing(timing)
        .clock(clock)
        .build()
        .unwrap();
    let (tenant, mut ids) = (TenantId::single(), Vec::new());
    for n in 0..JOBS {
        let mut request = JobRequest::new("a cat").with_duration(Duration::from_secs(if n % 2 == 0 { 4 } else { 8 }));
        request.aspect_ratio = if n % 3 == 0 { AspectRatio::Tall } else { AspectRatio::Wide };
        ids.push(vidgen.create(&tenant, request, CreateOptions::default()).await.unwrap().job.id);
    }
    let worker = vidgen.worker().concurrency(JOBS).spawn();
    clock.sleep(OUTAGE).await;
    let ended = futures::stream::iter(&ids).map(|id| {
        let (vidgen, tenant) = (vidgen.clone(), tenant.clone());
        async move {
            let mut job = vidgen.get(&tenant, *id).await.unwrap();
            while !job.state.is_ended() {
                job = vidgen.watch(&tenant, *id, job.version, Duration::from_secs(60)).await.unwrap();
            }
            job
        }
    });
    let jobs: Vec<Job> = tokio::time::timeout(Duration::from_secs(120), ended.buffered(JOBS).collect()).await.unwrap();
    worker.shutdown().await;
    let at_fal = |job: &Job| {
        let record = job.step(StepKind::Video).unwrap();
        let open = record.open_submission().filter(|s| s.provider.as_str() == "fal");
        record.attempts.iter().filter(|a| a.provider.as_str() == "fal").count() + usize::from(open.is_some())
    };
    let tried: usize = jobs.iter().map(at_fal).sum();
    assert!(sick.posts() <= tried, "{} requests reached it, {tried} were meant to", sick.posts());
    let doubts = jobs.iter().filter(|job| job.in_doubt()).count();
    assert_eq!(sick.accepted().len(), 0);
    assert_eq!(well.accepted().len(), JOBS - doubts, "one purchase a job");
    for (n, job) in jobs.iter().enumerate() {
        if job.in_doubt() {
            continue;
        }
        assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
        if n % 100 > 5 {
            continue;
        }
        let key = &job.output.as_ref().unwrap().video.key;
        let video = vidgen.store().get(key, None).await.unwrap().body.read(1 << 24).await.unwrap();
        let (width, height, length) = truth(&video);
        let size = job.request.size();
        assert_eq!((width, height), (size.width.into(), size.height.into()));
        assert!((length - job.plan.duration.as_secs_f64()).abs() < 0.1, "{length}");
    }
    (tried, doubts)
}
