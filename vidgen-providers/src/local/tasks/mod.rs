//! What can be made here, and how.

mod compose;
mod image;
mod speech;
mod thumbnail;
mod video;

use std::time::Duration;

use vidgen_core::{ContentInfo, Error, ErrorKind, FieldError, MediaType, Result, Size, TaskSpec};

use super::ffmpeg::{Arguments, Ffmpeg, MediaFile};
use super::input::Wanted;
use super::probe::{Probed, measure};
use super::runs::Run;
use super::sandbox::Sandbox;
use super::scratch::RunDir;
use super::voice::Voice;
use super::{MAX_COMPOSED, MAX_SIDE, MAX_VIDEO, ORIGIN};

/// How much of a run's progress is the work of its tool; the rest is looking at the result.
const WORK_SHARE: f32 = 0.95;

/// Frames per second, if nothing else is asked for.
const FPS: u32 = 24;

/// The longest prompt that is read; far above what a request may hold.
const MAX_TEXT: usize = 20_000;

/// The tools, and what is made with them.
#[derive(Debug)]
pub(super) struct Workshop {
    pub(super) sandbox: Sandbox,
    pub(super) ffmpeg: Option<Ffmpeg>,
    pub(super) voice: Option<Voice>,
}

/// A file that was made.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) name: &'static str,
    pub(super) media_type: MediaType,
    pub(super) content: ContentInfo,
}

impl Workshop {
    pub(super) fn missing(&self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        if self.ffmpeg.is_none() {
            missing.push("no videos and thumbnails can be made here: install ffmpeg");
        }
        if self.voice.is_none() {
            missing.push("nothing can be spoken here: install espeak-ng");
        }
        missing
    }

    /// Refuses what cannot be done, before anything is started.
    pub(super) fn check(&self, task: &TaskSpec) -> Result<()> {
        let mut bad = Vec::new();
        let mut say = |field: &str, fine: bool, message: &str| {
            if !fine {
                bad.push(FieldError::new(field, message));
            }
        };
        let length = |d: Duration, max: Duration| d >= Duration::from_millis(100) && d <= max;
        let fps = |fps: Option<u32>| fps.is_none_or(|f| (1..=60).contains(&f));
        match task {
            TaskSpec::Image(task) => {
                say("prompt", task.prompt.len() <= MAX_TEXT, "is too long");
                say("size", sides(task.size, 1), "must be from 16 to 4096 pixels on a side");
            }
            TaskSpec::Video(task) => {
                self.ffmpeg()?;
                say("size", sides(task.size, 2), "must be even, from 16 to 4096 pixels on a side");
                say("duration", length(task.duration, MAX_VIDEO), "must be from 0.1 to 60 seconds");
                say("fps", fps(task.fps), "must be from 1 to 60");
                say("image", task.image.is_some(), "is needed to make a video from");
                task.image.iter().try_for_each(|image| Wanted::Image.check(image))?;
            }
            TaskSpec::Speech(task) => {
                self.voice()?.check(task.voice.as_deref())?;
                say("text", !task.text.trim().is_empty(), "must not be empty");
                say("text", task.text.len() <= MAX_TEXT, "is too long");
            }
            TaskSpec::Compose(task) => {
                self.ffmpeg()?;
                say("size", sides(task.size, 2), "must be even, from 16 to 4096 pixels on a side");
                say("duration", task.duration <= MAX_COMPOSED, "must be at most 600 seconds");
                say("fps", fps(task.fps), "must be from 1 to 60");
                Wanted::Video.check(&task.video)?;
                task.speech.iter().try_for_each(|speech| Wanted::Speech.check(speech))?;
            }
            TaskSpec::Thumbnail(task) => {
                self.ffmpeg()?;
                say("max_side", (16..=MAX_SIDE).contains(&task.max_side), "must be from 16 to 4096");
                Wanted::Video.check(&task.video)?;
            }
            _ => return Err(Error::new(ErrorKind::Unsupported, ORIGIN, "this kind of task is unknown here")),
        }
        if bad.is_empty() { Ok(()) } else { Err(Error::invalid(bad)) }
    }

    /// Does the task in `dir`.
    pub(super) async fn perform(&self, task: &TaskSpec, dir: &RunDir, run: &Run) -> Result<Made> {
        match task {
            TaskSpec::Image(task) => image::make(task, dir).await,
            TaskSpec::Video(task) => video::make(self.ffmpeg()?, task, dir, run).await,
            TaskSpec::Speech(task) => self.speak(task, dir).await,
            TaskSpec::Compose(task) => compose::make(self.ffmpeg()?, task, dir, run).await,
            TaskSpec::Thumbnail(task) => thumbnail::make(self.ffmpeg()?, task, dir).await,
            _ => Err(Error::new(ErrorKind::Unsupported, ORIGIN, "this kind of task is unknown here")),
        }
    }

    fn ffmpeg(&self) -> Result<&Ffmpeg> {
        let message = "there is no ffmpeg on this machine: install ffmpeg, or say where it is";
        self.ffmpeg.as_ref().ok_or_else(|| Error::new(ErrorKind::Unsupported, ORIGIN, message))
    }

    fn voice(&self) -> Result<&Voice> {
        let message = "there is no voice on this machine: install espeak-ng";
        self.voice.as_ref().ok_or_else(|| Error::new(ErrorKind::Unsupported, ORIGIN, message))
    }
}

fn sides(size: Size, step: u32) -> bool {
    [size.width, size.height].iter().all(|side| (16..=MAX_SIDE).contains(side) && side % step == 0)
}

/// The options of every video made here: H.264 that every player takes.
fn h264(ffmpeg: &Ffmpeg, fps: u32) -> Arguments {
    let (threads, rate, keys) = (ffmpeg.threads(), fps.to_string(), (fps * 2).to_string());
    Arguments::new(["-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-profile:v", "high"])
        .words(["-pix_fmt", "yuv420p", "-color_range", "tv", "-colorspace", "bt709"])
        .words(["-color_primaries", "bt709", "-color_trc", "bt709"])
        .words(["-r", &rate, "-g", &keys, "-threads", &threads, "-movflags", "+faststart"])
}

/// Looks at a video that was made: it is one, is as long as it should be, and its first and last
/// second decode.
async fn accept(ffmpeg: &Ffmpeg, dir: &RunDir, name: &'static str, expected: Duration) -> Result<Made> {
    let wrong = |problem: &str| Error::new(ErrorKind::Media, ORIGIN, format!("the video made here {problem}"));
    let file = MediaFile { path: dir.file(name), media_type: MediaType::Mp4 };
    let probed = Probed::of(&file, Wanted::Video, ffmpeg, dir)
        .await
        .map_err(|e| wrong("cannot be read").with_quote(e.message()))?;
    if probed.picture.is_none() {
        return Err(wrong("has no picture"));
    }
    let length = probed.length.unwrap_or_default();
    if length < expected.mul_f32(0.8) || length > expected.mul_f32(1.2) + Duration::from_millis(100) {
        return Err(wrong("has the wrong length"));
    }
    let list = Arguments::new(["-t", "1"])
        .input(&file)?
        .words(["-sseof", "-1"])
        .input(&file)?
        .words(["-map", "0:v", "-map", "1:v", "-f", "null", "-"]);
    ffmpeg.run(dir.path(), list, None).await.map_err(|e| wrong("does not decode").with_source(e))?;
    Ok(Made { name, media_type: MediaType::Mp4, content: probed.content() })
}

/// How long a file is: as it says, or as its packets tell.
async fn length_of(
    ffmpeg: &Ffmpeg,
    dir: &RunDir,
    file: &MediaFile,
    said: Option<Duration>,
    stream: u32,
) -> Result<Duration> {
    match said {
        Some(length) => Ok(length),
        None => measure(file, stream, ffmpeg, dir).await,
    }
}
