//! A host's own provider: a renderer of its own, here a command that it runs. Everything a
//! provider has to be is in this file; nothing of vidgen had to be touched.
//!
//! ```text
//! cargo run -p custom_provider -- "a calm evening"
//! ```
#![allow(clippy::print_stdout, reason = "an example says what it does")]

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::process::Command;
use vidgen_core::memory::{MemoryQueue, MemoryStore};
use vidgen_core::{
    Body, Callback, Capabilities, CreateOptions, Error, ErrorKind, Handle, JobRequest, JobState, Lookup, Model, Output,
    Pipeline, Price, Provider, ProviderId, Resubmit, Result, RunFailure, Snapshot, Spool, StepKind, Store, Submission,
    SubmitOptions, Task, TaskSpec, TenantId, Usd, VideoTask, Vidgen,
};

const MODEL: &str = "plasma-1";
/// Larger than any video of a few seconds that this renderer makes.
const MAX_VIDEO: usize = 256 * 1024 * 1024;

/// Renders a slow play of colours that follows from the prompt.
#[derive(Clone, Debug, Default)]
struct Plasma {
    runs: Arc<Mutex<HashMap<String, Run>>>,
}

#[derive(Clone, Debug)]
enum Run {
    Rendering,
    Rendered(Bytes),
    Failed(String),
}

impl Plasma {
    fn id() -> ProviderId {
        ProviderId::new("plasma")
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<String, Run>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The run of a handle or an output, or the `NotFound` that the contract asks for (P11).
    fn run(&self, id: &str) -> Result<Run> {
        let unknown = || Error::new(ErrorKind::NotFound, "plasma", format!("run {id:?} is unknown"));
        self.runs().get(id).cloned().ok_or_else(unknown)
    }
}

#[async_trait]
impl Provider for Plasma {
    fn id(&self) -> ProviderId {
        Self::id()
    }

    fn capabilities(&self) -> Capabilities {
        let model = Model::new(MODEL, StepKind::Video, Price::PerSecond(Usd::from_cents(1)))
            .with_typical(Duration::from_secs(3))
            .with_max_duration(Duration::from_secs(20))
            .with_max_side(1920);
        Capabilities::new(vec![model])
            .with_poll_floor(Duration::from_millis(100))
            // A lost run costs nothing: it may simply be run again.
            .with_resubmit(Resubmit::Free)
    }

    async fn submit(&self, task: &Task, options: &SubmitOptions) -> Result<Handle> {
        let TaskSpec::Video(video) = &task.spec else {
            return Err(Error::new(ErrorKind::Unsupported, "plasma", "makes videos only"));
        };
        // The submission's own id names the run, so a repeated submit is the same run.
        let id = options.submission.as_str().to_owned();
        self.runs().insert(id.clone(), Run::Rendering);
        let (runs, video, run) = (self.clone(), video.clone(), id.clone());
        tokio::spawn(async move {
            let done = match render(&video).await {
                Ok(bytes) => Run::Rendered(bytes),
                Err(reason) => Run::Failed(reason.to_string()),
            };
            runs.runs().insert(run, done);
        });
        Ok(Handle::new(Self::id(), id))
    }

    async fn poll(&self, handle: &Handle) -> Result<Snapshot> {
        Ok(match self.run(&handle.remote_id)? {
            Run::Rendering => Snapshot::running(None),
            Run::Rendered(_) => Snapshot::succeeded(vec![Output::new(handle.remote_id.clone())]),
            Run::Failed(reason) => Snapshot::failed(RunFailure::new(ErrorKind::Unavailable, &reason)),
        })
    }

    async fn open(&self, output: &Output) -> Result<Body> {
        match self.run(&output.locator)? {
            Run::Rendered(bytes) => Ok(bytes.into()),
            _ => Err(Error::new(ErrorKind::NotFound, "plasma", "this run has no output")),
        }
    }

    async fn cancel(&self, _: &Handle) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "plasma", "cannot cancel"))
    }

    async fn find(&self, _: &Submission) -> Result<Lookup> {
        Err(Error::new(ErrorKind::Unsupported, "plasma", "cannot look up"))
    }

    async fn callback(&self, _: &Callback, _: &Spool) -> Result<Handle> {
        Err(Error::new(ErrorKind::Unsupported, "plasma", "does not call back"))
    }
}

/// Runs the renderer: ffmpeg, which only gets numbers of ours on its command line.
async fn render(video: &VideoTask) -> anyhow::Result<Bytes> {
    let seed = video
        .prompt
        .bytes()
        .fold(video.seed.unwrap_or(7), |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let source = format!(
        "gradients=size={}x{}:rate={}:duration={}:speed=0.02:seed={}",
        video.size.width,
        video.size.height,
        video.fps.unwrap_or(24),
        video.duration.as_secs_f64(),
        seed % 1_000_000,
    );
    // Fragmented, since a pipe cannot be rewound to write an index.
    let output = Command::new("ffmpeg")
        .args(["-v", "error", "-nostdin", "-f", "lavfi", "-i", &source, "-c:v", "libx264", "-pix_fmt", "yuv420p"])
        .args(["-movflags", "frag_keyframe+empty_moov", "-f", "mp4", "pipe:1"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("ffmpeg cannot be run")?;
    ensure!(output.status.success(), "ffmpeg failed");
    Ok(output.stdout.into())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let prompt = std::env::args().nth(1).unwrap_or_else(|| "a calm evening".into());
    let store = Arc::new(MemoryStore::new());
    let vidgen = Vidgen::builder()
        .queue(MemoryQueue::new())
        .store(store.clone())
        .pipeline(Pipeline::named("plasma").video(Plasma::default()))
        .build()?;
    let worker = vidgen.worker().spawn();

    let tenant = TenantId::single();
    let request = JobRequest::new(prompt).with_duration(Duration::from_secs(3));
    let mut job = vidgen.create(&tenant, request, CreateOptions::default()).await?.job;
    println!("{} may cost up to {}", job.id, job.held);
    while !job.state.is_ended() {
        job = vidgen.watch(&tenant, job.id, job.version, Duration::from_secs(10)).await?;
        println!("{:>3} %  {}", job.progress, job.state.as_str());
    }
    worker.shutdown().await;

    let reason = job.failure.as_ref().map_or("it was canceled", |failure| failure.message.as_str());
    ensure!(job.state == JobState::Completed, "{reason}");
    let output = job.output.context("a completed job has an output")?;
    let video = store.get(&output.video.key, None).await?.body.read(MAX_VIDEO).await?;
    let path = std::env::temp_dir().join(format!("{}.mp4", job.id));
    tokio::fs::write(&path, &video).await?;
    println!("{} bytes for {}: {}", video.len(), job.cost, path.display());
    Ok(())
}
