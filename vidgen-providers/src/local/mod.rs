//! Makes everything on this machine: pictures drawn in Rust, videos and thumbnails by `ffmpeg`,
//! speech by `espeak-ng` or ffmpeg's own `flite`. No key, no network, no cost.
//!
//! Media that come from outside are data of strangers: tools run without a shell, without a
//! network, with a clean environment, under limits of time, memory and disk, and are told what
//! format to expect.
//!
//! ```
//! # fn main() -> vidgen_core::Result<()> {
//! use vidgen_core::{Provider, StepKind};
//! use vidgen_providers::local::LocalProvider;
//!
//! let local = LocalProvider::new()?;
//! assert!(local.capabilities().model(StepKind::Compose, None).is_some());
//! # Ok(())
//! # }
//! ```

mod draw;
mod ffmpeg;
mod input;
mod probe;
mod runs;
mod sandbox;
mod scratch;
mod tasks;
mod voice;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use futures::future::{BoxFuture, FutureExt, MaybeDone, maybe_done};
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};
use vidgen_core::{
    Body, Callback, Capabilities, Error, ErrorKind, Handle, Lookup, Model, Output, Price, Provider, ProviderId,
    Resubmit, Result, RunFailure, Snapshot, Spool, StepKind, Submission, SubmitOptions, Task, TaskSpec,
};

use ffmpeg::Ffmpeg;
use runs::{EndGuard, Kept, Progress, Run};
use sandbox::Sandbox;
use scratch::Scratch;
use tasks::Workshop;
use voice::Voice;

pub use sandbox::ToolLimits;

/// The origin of this provider's errors, and its id.
const ORIGIN: &str = "local";

/// How long `poll` waits for the end of a run: most are short, so a caller hears of it at once.
const LONG_POLL: Duration = Duration::from_millis(200);

/// How long a finished run may wait for its output to be fetched.
const OUTPUT_LIFE: Duration = Duration::from_secs(30 * 60);

/// How long an output stays after it was read, should the reader's own write fail at its end.
const LINGER: Duration = Duration::from_secs(30);

/// How long `cancel` waits for the tool to be gone; killing takes milliseconds.
const CANCEL_WAIT: Duration = Duration::from_secs(5);

/// The most pixels on a side of what is made here.
const MAX_SIDE: u32 = 4096;

/// The longest video made here: the wall limit of one run on a slow machine.
const MAX_VIDEO: Duration = Duration::from_secs(60);

/// The longest video put together here.
const MAX_COMPOSED: Duration = Duration::from_secs(600);

/// How long a video of 1280×720 takes, at all and per second of it: 2, 5 and 20 s of video took
/// 2.6, 5.9 and 10.6 s on a machine of two busy cores. At 1920×1080 it is half as much again.
const VIDEO_MILLIS: (u64, u64) = (2000, 500);

/// The same for putting together: 1.8, 1.7 and 3.9 s where the picture is encoded anew, and 1 to 2 s
/// where it is copied.
const COMPOSE_MILLIS: (u64, u64) = (1000, 100);

/// Makes images, videos and speech on this machine. Clones share their runs.
#[derive(Clone, Debug)]
pub struct LocalProvider {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    workshop: Arc<Workshop>,
    scratch: Arc<Scratch>,
    slots: Arc<Semaphore>,
    lives: Lives,
    stop: CancellationToken,
    // When the last clone goes, its runs end and their directories are removed.
    _guard: DropGuard,
}

#[derive(Clone, Copy, Debug)]
struct Lives {
    output: Duration,
    linger: Duration,
}

impl LocalProvider {
    /// Uses the tools that are installed in the usual places and one run per core.
    ///
    /// # Errors
    /// `Unavailable` if the temporary directory cannot be written to. A tool that is missing is no
    /// error here: what needs it answers `Unsupported`.
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// Settings other than the usual ones.
    #[must_use]
    pub fn builder() -> LocalBuilder {
        LocalBuilder::default()
    }

    /// Which of the tools that it would like are missing, one sentence each; fit for a log at start.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        self.inner.workshop.missing()
    }
}

/// Builds a [`LocalProvider`].
#[derive(Clone, Debug, Default)]
pub struct LocalBuilder {
    ffmpeg: Option<PathBuf>,
    ffprobe: Option<PathBuf>,
    espeak: Option<PathBuf>,
    no_espeak: bool,
    mute: bool,
    scratch: Option<PathBuf>,
    concurrency: Option<usize>,
    limits: ToolLimits,
    output_life: Option<Duration>,
    linger: Option<Duration>,
}

impl LocalBuilder {
    /// Sets where `ffmpeg` is.
    #[must_use]
    pub fn with_ffmpeg(mut self, program: impl Into<PathBuf>) -> Self {
        self.ffmpeg = Some(program.into());
        self
    }

    /// Sets where `ffprobe` is.
    #[must_use]
    pub fn with_ffprobe(mut self, program: impl Into<PathBuf>) -> Self {
        self.ffprobe = Some(program.into());
        self
    }

    /// Sets where `espeak-ng` is.
    #[must_use]
    pub fn with_espeak(mut self, program: impl Into<PathBuf>) -> Self {
        self.espeak = Some(program.into());
        self
    }

    /// Leaves `espeak-ng` alone, so that the voice of ffmpeg speaks, if it has one.
    #[must_use]
    pub fn without_espeak(mut self) -> Self {
        self.no_espeak = true;
        self
    }

    /// Speaks nothing, even if there is a voice on this machine.
    #[must_use]
    pub fn without_voice(mut self) -> Self {
        self.mute = true;
        self
    }

    /// Sets the directory under which runs work; the system's temporary one otherwise.
    #[must_use]
    pub fn with_scratch(mut self, dir: impl Into<PathBuf>) -> Self {
        self.scratch = Some(dir.into());
        self
    }

    /// Sets how many runs work at a time; the number of cores otherwise.
    #[must_use]
    pub fn with_concurrency(mut self, runs: usize) -> Self {
        self.concurrency = Some(runs);
        self
    }

    /// Sets what one run of a tool may use.
    #[must_use]
    pub fn with_limits(mut self, limits: ToolLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets how long a finished run may wait for its output to be fetched; 30 minutes otherwise.
    #[must_use]
    pub fn with_output_life(mut self, life: Duration) -> Self {
        self.output_life = Some(life);
        self
    }

    /// Sets how long an output stays after it was read once; 30 seconds otherwise.
    #[must_use]
    pub fn with_linger(mut self, linger: Duration) -> Self {
        self.linger = Some(linger);
        self
    }

    /// Looks which tools there are (this runs each of them once) and sweeps what crashed processes
    /// left in the scratch directory.
    ///
    /// # Errors
    /// `Unavailable` if the scratch directory cannot be written to; `Invalid` if a tool whose place
    /// was given does not run.
    pub fn build(self) -> Result<LocalProvider> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let sandbox = Sandbox::detect(self.limits);
        let ffmpeg = Ffmpeg::detect(&sandbox, self.ffmpeg.as_deref(), self.ffprobe.as_deref())?;
        let voice = match (self.mute, self.no_espeak) {
            (true, _) => None,
            (false, true) => Voice::flite(ffmpeg.as_ref()),
            (false, false) => Voice::detect(self.espeak.as_deref(), ffmpeg.as_ref())?,
        };
        let scratch = Scratch::create(&self.scratch.unwrap_or_else(std::env::temp_dir))?;
        let stop = CancellationToken::new();
        Ok(LocalProvider {
            inner: Arc::new(Inner {
                workshop: Arc::new(Workshop { sandbox, ffmpeg, voice }),
                scratch: Arc::new(scratch),
                slots: Arc::new(Semaphore::new(self.concurrency.unwrap_or(cores).clamp(1, Semaphore::MAX_PERMITS))),
                lives: Lives { output: self.output_life.unwrap_or(OUTPUT_LIFE), linger: self.linger.unwrap_or(LINGER) },
                _guard: stop.clone().drop_guard(),
                stop,
            }),
        })
    }
}

#[async_trait]
impl Provider for LocalProvider {
    fn id(&self) -> ProviderId {
        ProviderId::new(ORIGIN)
    }

    fn capabilities(&self) -> Capabilities {
        let model = |name: &str, kind, (start, per_second): (u64, u64)| {
            Model::new(name, kind, Price::Free)
                .with_typical(Duration::from_millis(start))
                .with_typical_per_second(Duration::from_millis(per_second))
                .with_max_side(MAX_SIDE)
        };
        Capabilities::new(vec![
            model("local/image", StepKind::Image, (1000, 0)),
            model("local/video", StepKind::Video, VIDEO_MILLIS).with_needed_image().with_max_duration(MAX_VIDEO),
            model("local/speech", StepKind::Speech, (1000, 0)),
            model("local/compose", StepKind::Compose, COMPOSE_MILLIS).with_max_duration(MAX_COMPOSED),
            model("local/thumbnail", StepKind::Thumbnail, (1000, 0)),
        ])
        .with_resubmit(Resubmit::Free)
        .with_cancel()
        .with_poll_floor(Duration::from_millis(100))
        .with_submit_timeout(Duration::from_secs(10))
        .with_output_life(self.inner.lives.output)
    }

    async fn submit(&self, task: &Task, _options: &SubmitOptions) -> Result<Handle> {
        let kind = task.spec.kind();
        if self.capabilities().model(kind, Some(&task.model)).is_none() {
            return Err(Error::new(ErrorKind::Unsupported, ORIGIN, format!("there is no such model for a {kind}")));
        }
        self.inner.workshop.check(&task.spec)?;
        let run = Run::enter(self.inner.stop.child_token());
        let handle = Handle::new(self.id(), run.id.clone());
        // The task must not keep the provider alive: that its last clone goes is what ends it.
        let Inner { workshop, scratch, slots, lives, stop, .. } = &*self.inner;
        let mut turn = Box::pin(maybe_done(Arc::clone(slots).acquire_owned().boxed()));
        // It stands in line from now on: tasks that are spawned need not begin in that order.
        let _ = futures::poll!(turn.as_mut());
        let shop = (Arc::clone(workshop), Arc::clone(scratch), turn);
        tokio::spawn(drive(run, task.spec.clone(), shop, *lives, stop.clone()));
        Ok(handle)
    }

    async fn poll(&self, handle: &Handle) -> Result<Snapshot> {
        Ok(match run_of(handle)?.wait(LONG_POLL).await {
            Progress::Running(share) => Snapshot::running(Some(share)),
            Progress::Succeeded(output) => Snapshot::succeeded(vec![output]),
            Progress::Failed(failure) => Snapshot::failed(failure),
            Progress::Canceled => Snapshot::canceled(),
        })
    }

    async fn open(&self, output: &Output) -> Result<Body> {
        let gone = || Error::new(ErrorKind::NotFound, ORIGIN, "the output is gone");
        let (id, name) = output.locator.split_once('/').ok_or_else(gone)?;
        let run = Run::of(id).ok_or_else(gone)?;
        let kept = run.output().filter(|kept| kept.path.file_name().is_some_and(|n| n == name)).ok_or_else(gone)?;
        let file = File::open(kept.path).await.map_err(|e| gone().with_source(e))?;
        let length = file.metadata().await.map_err(|e| gone().with_source(e))?.len();
        // The length at the end of the run tells a damaged file from a whole one (P14).
        if length != kept.length {
            return Err(Error::new(ErrorKind::Media, ORIGIN, "the output is not as long as it was"));
        }
        Ok(stream(file, length, run))
    }

    async fn cancel(&self, handle: &Handle) -> Result<()> {
        let run = run_of(handle)?;
        if !run.progress().is_ended() {
            run.stop.cancel();
            if matches!(run.wait(CANCEL_WAIT).await, Progress::Canceled | Progress::Running(_)) {
                return Ok(());
            }
        }
        Err(Error::new(ErrorKind::TooLate, ORIGIN, "the run has already ended"))
    }

    async fn find(&self, _submission: &Submission) -> Result<Lookup> {
        Err(Error::new(ErrorKind::Unsupported, ORIGIN, "runs cannot be searched"))
    }

    async fn callback(&self, _: &Callback, _: &Spool) -> Result<Handle> {
        Err(Error::new(ErrorKind::Unsupported, "localprovider", "does not call back"))
    }
}

fn run_of(handle: &Handle) -> Result<Arc<Run>> {
    Some(&handle.remote_id)
        .filter(|_| handle.provider.as_str() == ORIGIN)
        .and_then(|id| Run::of(id))
        .ok_or_else(|| Error::new(ErrorKind::NotFound, ORIGIN, "the run is unknown to this process"))
}

/// A place in the line for a slot, or the slot.
type Turn = Pin<Box<MaybeDone<BoxFuture<'static, Result<OwnedSemaphorePermit, AcquireError>>>>>;

/// Takes a run from its start until it is forgotten.
async fn drive(
    run: Arc<Run>,
    task: TaskSpec,
    (workshop, scratch, mut turn): (Arc<Workshop>, Arc<Scratch>, Turn),
    lives: Lives,
    closed: CancellationToken,
) {
    let _guard = EndGuard(Arc::clone(&run));
    let mut slot = None;
    let work = async {
        turn.as_mut().await;
        let lost = || Error::internal(ORIGIN, "the provider is closed");
        slot = Some(turn.as_mut().take_output().and_then(Result::ok).ok_or_else(lost)?);
        let dir = scratch.run_dir()?;
        let made = workshop.perform(&task, &dir, &run).await?;
        let path = dir.file(made.name);
        let unread = |e| Error::new(ErrorKind::Unavailable, ORIGIN, "cannot read the output").with_source(e);
        let length = tokio::fs::metadata(&path).await.map_err(unread)?.len();
        Ok::<_, Error>((dir, made, Kept { path, length }))
    };
    // Dropping the work kills its tool and removes its directory.
    let ended = tokio::select! {
        biased;
        () = run.stop.cancelled() => None,
        ended = work => Some(ended),
    };
    drop((workshop, scratch, task));
    let mut held = None;
    match ended {
        None => run.end(Progress::Canceled),
        Some(Err(e)) => {
            tracing::debug!(run = run.id, error = %e, "a local run failed");
            run.end(Progress::Failed(RunFailure::new(e.kind(), e.message())));
        }
        Some(Ok((dir, made, kept))) => {
            let mut output = Output::new(format!("{}/{}", run.id, made.name));
            output.media_type = Some(made.media_type);
            output.content = made.content;
            run.set_output(Some(kept));
            held = Some(dir);
            run.end(Progress::Succeeded(output));
        }
    }
    // Only now, so that runs end in the order in which they had their turn.
    drop(slot);
    let read = async {
        run.read.notified().await;
        tokio::time::sleep(lives.linger).await;
        run.set_output(None);
        drop(held);
        // The end stays known, since what ended stays ended for whoever polls again.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = closed.cancelled() => {}
        () = tokio::time::sleep(lives.output) => {}
        () = read => {}
    }
}

/// Streams an open output; a run whose output was read to the end need not keep it for long.
fn stream(file: File, length: u64, run: Arc<Run>) -> Body {
    const CHUNK: usize = 64 * 1024;
    let chunks = futures::stream::try_unfold((file, length, run), |(mut file, left, run)| async move {
        if left == 0 {
            run.read.notify_one();
            return Ok(None);
        }
        let mut chunk = BytesMut::with_capacity(CHUNK);
        let lost = |e| Error::new(ErrorKind::Unavailable, ORIGIN, "cannot read the output").with_source(e);
        let got = file.read_buf(&mut chunk).await.map_err(lost)?;
        let left = left.saturating_sub(got as u64);
        if got == 0 {
            return Err(Error::new(ErrorKind::Media, ORIGIN, "the output is shorter than it was"));
        }
        if left == 0 {
            run.read.notify_one();
        }
        Ok(Some((chunk.freeze(), (file, left, run))))
    });
    Body::new(chunks, Some(length))
}
