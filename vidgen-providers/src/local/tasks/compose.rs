//! Video and speech in one file that plays everywhere.

use std::time::Duration;

use vidgen_core::{ComposeTask, Result};

use super::super::ffmpeg::{Arguments, Ffmpeg, MediaFile};
use super::super::input::{Wanted, receive};
use super::super::probe::{Picture, Probed, measure};
use super::super::runs::Run;
use super::super::scratch::RunDir;
use super::{FPS, MAX_COMPOSED, Made, WORK_SHARE, accept, h264, length_of};

const NAME: &str = "composed.mp4";

pub(super) async fn make(ffmpeg: &Ffmpeg, task: &ComposeTask, dir: &RunDir, run: &Run) -> Result<Made> {
    let video = receive(&task.video, Wanted::Video, dir).await?;
    let probed = Probed::of(&video, Wanted::Video, ffmpeg, dir).await?;
    let picture = probed.video()?;
    let shown = length_of(ffmpeg, dir, &video, probed.length, picture.index).await?;
    let speech = match &task.speech {
        Some(input) => Some(Speech::receive(input, ffmpeg, dir).await?),
        None => None,
    };
    let spoken = speech.as_ref().map_or(Duration::ZERO, |s| s.length);
    let length = shown.max(spoken).max(task.duration);
    if length > MAX_COMPOSED || length.is_zero() {
        return Err(Wanted::Video.invalid("is empty or longer than 10 minutes"));
    }

    let list = arguments(ffmpeg, task, &video, picture, shown, speech.as_ref(), length)?;
    let list = list.words(["-t", &seconds(length)]).output("mp4", &dir.file(NAME));
    ffmpeg.run(dir.path(), list, Some((run, length, WORK_SHARE))).await.map_err(blame)?;
    accept(ffmpeg, dir, NAME, length).await
}

/// Speech, with the stream of its file that is heard.
struct Speech {
    file: MediaFile,
    stream: u32,
    length: Duration,
}

impl Speech {
    async fn receive(input: &vidgen_core::MediaInput, ffmpeg: &Ffmpeg, dir: &RunDir) -> Result<Self> {
        let file = receive(input, Wanted::Speech, dir).await?;
        let probed = Probed::of(&file, Wanted::Speech, ffmpeg, dir).await?;
        let stream = probed.sound.ok_or_else(|| Wanted::Speech.invalid("has no sound"))?;
        // What a header says of compressed sound is often a guess; its packets know.
        let length = measure(&file, stream, ffmpeg, dir).await.map_err(blame_speech)?;
        Ok(Self { file, stream, length })
    }
}

fn arguments(
    ffmpeg: &Ffmpeg,
    task: &ComposeTask,
    video: &MediaFile,
    picture: &Picture,
    shown: Duration,
    speech: Option<&Speech>,
    length: Duration,
) -> Result<Arguments> {
    let fps = task.fps.unwrap_or_else(|| picture.fps.map_or(FPS, |fps| fps.round().clamp(1.0, 60.0) as u32));
    // What already is as it should be is taken over as it is: no loss, and a tenth of the time.
    let same_rate = picture.fps.is_some_and(|f| (f - f64::from(fps)).abs() < 0.01);
    let same_size = (picture.width, picture.height) == (task.size.width, task.size.height);
    let frame = Duration::from_secs_f64(1.0 / f64::from(fps));
    let copied = picture.plain && same_rate && same_size && length <= shown + frame;

    let mut graph = Vec::new();
    if !copied {
        graph.push(pictures(task, picture.index, fps, length.saturating_sub(shown) + Duration::from_secs(1)));
    }
    if let Some(speech) = speech {
        graph.push(format!(
            "[1:{}]aresample=48000:first_pts=0,apad,aformat=channel_layouts=stereo[sound]",
            speech.stream
        ));
    }
    let mut list = Arguments::new([]).input(video)?;
    if let Some(speech) = speech {
        list = list.input(&speech.file)?;
    }
    if !graph.is_empty() {
        list = list.words(["-filter_complex_threads", &ffmpeg.threads(), "-filter_complex", &graph.join(";")]);
    }
    list = if copied {
        list.words(["-map", &format!("0:{}", picture.index), "-c:v", "copy", "-movflags", "+faststart"])
    } else {
        list.words(["-map", "[video]"]).append(h264(ffmpeg, fps))
    };
    Ok(match speech {
        Some(_) => list.words(["-map", "[sound]", "-c:a", "aac", "-b:a", "128k", "-ac", "2"]),
        None => list.words(["-an"]),
    })
}

/// The filters for the pictures: square pixels, fitted into the frame, black beside them, and the
/// last one held for `hold`.
fn pictures(task: &ComposeTask, stream: u32, fps: u32, hold: Duration) -> String {
    let (width, height) = (task.size.width, task.size.height);
    format!(
        "[0:{stream}]setpts=PTS-STARTPTS,scale=w='max(1,round(iw*sar))':h=ih,setsar=1,\
         scale={width}:{height}:force_original_aspect_ratio=decrease:force_divisible_by=2:flags=bicubic\
         :out_color_matrix=bt709:out_range=tv,\
         pad={width}:{height}:(ow-iw)/2:(oh-ih)/2,setsar=1,fps={fps},\
         tpad=stop_mode=clone:stop_duration={},format=yuv420p[video]",
        seconds(hold)
    )
}

fn seconds(duration: Duration) -> String {
    format!("{:.3}", duration.as_secs_f64())
}

/// A file whose header is right and whose data are not shows itself only when it is decoded.
fn blame(error: vidgen_core::Error) -> vidgen_core::Error {
    if error.message().starts_with("ffmpeg failed") {
        Wanted::Video.invalid("or the speech cannot be decoded").with_source(error)
    } else {
        error
    }
}

fn blame_speech(error: vidgen_core::Error) -> vidgen_core::Error {
    if error.message().starts_with("ffmpeg failed") {
        Wanted::Speech.invalid("cannot be read").with_source(error)
    } else {
        error
    }
}
