//! A JPEG out of a video.

use vidgen_core::{ContentInfo, MediaType, Result, ThumbnailTask};

use super::super::ffmpeg::{Arguments, Ffmpeg};
use super::super::input::{Wanted, receive};
use super::super::probe::{Picture, Probed};
use super::super::scratch::RunDir;
use super::{Made, length_of};

const NAME: &str = "thumbnail.jpg";

pub(super) async fn make(ffmpeg: &Ffmpeg, task: &ThumbnailTask, dir: &RunDir) -> Result<Made> {
    let video = receive(&task.video, Wanted::Video, dir).await?;
    let probed = Probed::of(&video, Wanted::Video, ffmpeg, dir).await?;
    let picture = probed.video()?;
    let length = length_of(ffmpeg, dir, &video, probed.length, picture.index).await?;
    let (width, height) = fit(picture, task.max_side);

    let at = format!("{:.3}", task.at.as_secs_f64());
    let mut tries = Vec::new();
    if task.at < length {
        tries.push(Arguments::new(["-ss", &at]).input(&video)?.words(["-frames:v", "1"]));
    }
    // The last frame: the one that is left when each overwrites the one before. From near the
    // end, or from the start where a file cannot be sought in.
    tries.push(Arguments::new(["-sseof", "-2"]).input(&video)?);
    tries.push(Arguments::new([]).input(&video)?);
    let mut last = Wanted::Video.invalid("has no picture");
    for list in tries {
        let filter = format!("scale={width}:{height}:out_color_matrix=bt601:out_range=full,format=yuvj420p,setsar=1");
        let map = format!("0:{}", picture.index);
        let list = list
            .words(["-map", &map, "-vf", &filter, "-an", "-c:v", "mjpeg", "-q:v", "3", "-vsync", "passthrough"])
            .words(["-threads", &ffmpeg.threads(), "-update", "1"])
            .output("image2", &dir.file(NAME));
        match ffmpeg.run(dir.path(), list, None).await {
            Ok(()) if is_jpeg(dir).await => {
                let content = ContentInfo { width: Some(width), height: Some(height), duration: None, audio: None };
                return Ok(Made { name: NAME, media_type: MediaType::Jpeg, content });
            }
            Ok(()) => {}
            Err(e) if e.message().starts_with("ffmpeg failed") => {
                last = Wanted::Video.invalid("cannot be decoded").with_source(e);
            }
            Err(e) => return Err(e),
        }
    }
    Err(last)
}

async fn is_jpeg(dir: &RunDir) -> bool {
    let bytes = tokio::fs::read(dir.file(NAME)).await.unwrap_or_default();
    MediaType::sniff(&bytes) == Some(MediaType::Jpeg)
}

/// The size with the longest side at most `max`, never larger than the video.
fn fit(picture: &Picture, max: u32) -> (u32, u32) {
    let longest = picture.width.max(picture.height).max(1);
    let scale = (f64::from(max) / f64::from(longest)).min(1.0);
    let side = |n: u32| ((f64::from(n) * scale / 2.0).round() as u32 * 2).clamp(2, max.max(2));
    (side(picture.width), side(picture.height))
}
