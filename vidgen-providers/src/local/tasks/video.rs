//! A video from any picture: a slow move of the camera over it.

use vidgen_core::{Result, VideoTask};

use super::super::draw::Dice;
use super::super::ffmpeg::{Arguments, Ffmpeg};
use super::super::input::{Wanted, receive};
use super::super::probe::Probed;
use super::super::runs::Run;
use super::super::scratch::RunDir;
use super::{FPS, Made, WORK_SHARE, accept, h264};

const NAME: &str = "video.mp4";

pub(super) async fn make(ffmpeg: &Ffmpeg, task: &VideoTask, dir: &RunDir, run: &Run) -> Result<Made> {
    let image = task.image.as_ref().ok_or_else(|| Wanted::Image.invalid("is missing"))?;
    let file = receive(image, Wanted::Image, dir).await?;
    Probed::of(&file, Wanted::Image, ffmpeg, dir).await?.image()?;

    let fps = task.fps.unwrap_or(FPS);
    let frames = (task.duration.as_secs_f64() * f64::from(fps)).round().max(1.0) as u32;
    let graph = graph(task, fps, frames);
    let count = frames.to_string();
    let list = Arguments::new([])
        .input(&file)?
        .words(["-filter_complex_threads", &ffmpeg.threads(), "-filter_complex", &graph, "-map", "[out]"])
        .append(h264(ffmpeg, fps))
        .words(["-frames:v", &count, "-an"])
        .output("mp4", &dir.file(NAME));
    ffmpeg.run(dir.path(), list, Some((run, task.duration, WORK_SHARE))).await.map_err(blame)?;
    accept(ffmpeg, dir, NAME, task.duration).await
}

/// A picture whose header is right and whose data are not shows itself only when it is decoded.
fn blame(error: vidgen_core::Error) -> vidgen_core::Error {
    if error.message().starts_with("ffmpeg failed") {
        Wanted::Image.invalid("cannot be decoded").with_source(error)
    } else {
        error
    }
}

/// The filters: fill the frame with the middle of the picture, lay it on grey where it is
/// transparent, then look through a window that moves over it.
///
/// The window moves on a picture a quarter larger than the output and by fractions of a pixel,
/// since `zoompan` and `crop` step by whole ones, which is seen as trembling.
fn graph(task: &VideoTask, fps: u32, frames: u32) -> String {
    let (width, height) = (task.size.width, task.size.height);
    let large = |side: u32| (side * 5 / 4).next_multiple_of(2);
    let (w, h) = (large(width), large(height));
    let Move { zoom, x, y } = Move::choose(task);
    // From 0 to 1, slow at both ends; `on` counts from 1.
    let ease = format!("(0.5-0.5*cos(PI*(on-1)/{}))", frames.saturating_sub(1).max(1));
    let along = |(from, to): (f32, f32)| format!("({from:.4}+{:.4}*{ease})", to - from);
    let zoom = along(zoom);
    let left = format!("W*(1-1/{zoom})*{}", along(x));
    let top = format!("H*(1-1/{zoom})*{}", along(y));
    let right = format!("{left}+W/{zoom}");
    let bottom = format!("{top}+H/{zoom}");
    [
        format!(
            "[0:v]format=gbrap,crop=w='max(1,min(iw,ih*{width}/{height}))':h='max(1,min(ih,iw*{height}/{width}))':exact=1,\
             scale={w}:{h}:flags=lanczos,setsar=1[picture]"
        ),
        format!("color=c=0x8a93a0:s={w}x{h}:r={fps},format=gbrp[ground]"),
        format!(
            "[ground][picture]overlay=format=gbrp:eof_action=repeat,trim=end_frame=1,\
             scale=out_color_matrix=bt709:out_range=tv,format=yuv420p,\
             loop=loop=-1:size=1,trim=end_frame={frames},setpts=N/{fps}/TB,\
             perspective=x0='{left}':y0='{top}':x1='{right}':y1='{top}':x2='{left}':y2='{bottom}':x3='{right}':y3='{bottom}'\
             :sense=source:interpolation=linear:eval=frame,\
             scale={width}:{height}:flags=bicubic,format=yuv420p,setsar=1[out]"
        ),
    ]
    .join(";")
}

/// A move of the camera: the zoom, and where the window lies in the room that the zoom leaves,
/// 0 to 1 from left to right and from top to bottom; each from start to end.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Move {
    zoom: (f32, f32),
    x: (f32, f32),
    y: (f32, f32),
}

impl Move {
    /// So close that the motion is felt and a caption stays in the picture.
    const NEAR: f32 = 1.16;

    fn choose(task: &VideoTask) -> Self {
        let mut dice = Dice::of(&[&task.prompt, task.style.as_deref().unwrap_or("")], task.seed);
        let prompt = task.prompt.to_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| prompt.contains(word));
        let (a, b) = (dice.range(0.3, 0.7), dice.range(0.3, 0.7));
        let closer = Self { zoom: (1.0, Self::NEAR), x: (0.5, a), y: (0.5, b) };
        let back = Self { zoom: (Self::NEAR, 1.0), x: (a, 0.5), y: (b, 0.5) };
        let pan = |x: (f32, f32), y: (f32, f32)| Self { zoom: (1.10, 1.14), x, y };
        let (right, left) = (pan((0.1, 0.9), (0.5, b)), pan((0.9, 0.1), (0.5, b)));
        let (down, up) = (pan((0.5, a), (0.1, 0.9)), pan((0.5, a), (0.9, 0.1)));
        if says(&["zoom out", "pull back", "reveal", "aerial", "drone"]) {
            back
        } else if says(&["zoom in", "close-up", "close up", "approach"]) {
            closer
        } else if says(&["pan left", "to the left"]) {
            left
        } else if says(&["pan right", "to the right"]) {
            right
        } else if says(&["rise", "rising", "tilt up", "launch"]) {
            up
        } else {
            let wide = task.size.width >= task.size.height;
            let sideways = if wide { [right, left] } else { [down, up] };
            *dice.pick(&[closer, closer, back, sideways[0], sideways[1]]).unwrap_or(&closer)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vidgen_core::Size;

    use super::*;

    fn task(prompt: &str, seed: u64) -> VideoTask {
        VideoTask {
            prompt: prompt.into(),
            negative_prompt: None,
            style: None,
            image: None,
            size: Size { width: 1280, height: 720 },
            duration: Duration::from_secs(4),
            fps: None,
            seed: Some(seed),
        }
    }

    #[test]
    fn the_move_follows_the_prompt_else_the_seed() {
        assert_eq!(Move::choose(&task("Zoom out of a city", 1)).zoom.1, 1.0);
        assert_eq!(Move::choose(&task("a city", 1)), Move::choose(&task("a city", 1)));
        let moves: Vec<_> = (0..20).map(|seed| Move::choose(&task("a city", seed))).collect();
        assert!(moves.iter().any(|m| m.zoom.0 > m.zoom.1) && moves.iter().any(|m| m.zoom.0 < m.zoom.1));
    }

    #[test]
    fn no_word_of_the_prompt_gets_into_the_filters() {
        let hostile = task("'];movie=/etc/passwd[x];%{pts}", 1);
        assert!(!graph(&hostile, 24, 96).contains("passwd"));
    }
}
