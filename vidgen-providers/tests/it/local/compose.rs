use bytes::Bytes;
use vidgen_core::{MediaInput, MediaType};

use super::kit::*;

fn clip(arguments: &str, name: &str) -> MediaInput {
    input(name, ffmpeg(arguments, name))
}

/// A clip of `seconds` as a provider might deliver it.
fn plain(seconds: u32) -> Bytes {
    let source = format!("-f lavfi -i testsrc=s=320x180:d={seconds}:r=24 -pix_fmt yuv420p -metadata title=secret");
    ffmpeg(&source, "plain.mp4")
}

fn tone(seconds: f64, name: &str) -> MediaInput {
    clip(&format!("-f lavfi -i sine=f=440:d={seconds}"), name)
}

#[tokio::test]
async fn speech_that_is_longer_holds_the_last_frame_until_it_ends() {
    let video = input("v.mp4", plain(1));
    let (output, bytes) = made(&local(), &compose(video, Some(tone(2.5, "s.wav")), size(320, 180), 1.0)).await;
    assert!((seconds(&output) - 2.5).abs() < 0.1, "{}", seconds(&output));
    assert_eq!(output.content.audio, Some(true));
    let said = probe(&bytes, "stream=codec_name,width,height:format_tags");
    assert!(said.contains("codec_name=h264") && said.contains("codec_name=aac"), "{said}");
    assert!(!said.contains("secret") && !said.contains("title"), "{said}");
    let frames = frames(&bytes, "8");
    assert!(frames.len() >= 19, "{}", frames.len());
    assert!(difference(&frames[12], &frames[18]) < 1.0, "held");
    assert!(loudness(&bytes, 2.0).1 > -40.0, "speech to the end");
}

#[tokio::test]
async fn speech_that_is_shorter_is_followed_by_silence() {
    let video = input("v.mp4", plain(3));
    let (output, bytes) = made(&local(), &compose(video, Some(tone(1.0, "s.mp3")), size(320, 180), 3.0)).await;
    assert!((seconds(&output) - 3.0).abs() < 0.1, "{}", seconds(&output));
    assert!(loudness(&bytes, 0.0).1 > -40.0 && loudness(&bytes, 1.5).0 < -60.0);
    let frames = frames(&bytes, "8");
    assert!(difference(&frames[10], &frames[22]) > 0.5, "still moving");
}

#[tokio::test]
async fn without_speech_there_is_no_sound_and_the_length_is_at_least_that_asked_for() {
    let local = local();
    let noisy =
        ffmpeg("-f lavfi -i testsrc=s=320x180:d=1:r=24 -f lavfi -i sine=d=1 -pix_fmt yuv420p -shortest", "noisy.mp4");
    for (asked, got) in [(0.5, 1.0), (2.0, 2.0)] {
        let (output, bytes) = made(&local, &compose(input("v.mp4", noisy.clone()), None, size(320, 180), asked)).await;
        assert!((seconds(&output) - got).abs() < 0.1, "{}", seconds(&output));
        assert_eq!(output.content.audio, Some(false));
        assert!(!probe(&bytes, "stream=codec_type").contains("audio"));
    }
}

#[tokio::test]
async fn any_video_that_people_bring_is_fitted_into_the_frame() {
    let local = local();
    let source = "-f lavfi -i testsrc=s=161x95:d=1:r=30";
    for (arguments, name) in [
        (format!("{source} -c:v libx264 -pix_fmt yuv444p"), "a.mp4"),
        (format!("{source} -c:v mpeg4"), "b.mp4"),
        (format!("{source} -c:v libvpx-vp9 -deadline realtime"), "c.webm"),
        (format!("{source} -c:v libvpx -deadline realtime"), "d.webm"),
        (format!("{source} -vf scale=160:96 -c:v prores"), "e.mov"),
        (format!("{source} -vf setsar=2/1 -c:v libx264"), "f.mp4"),
        // As browsers record it: without a length, from a pipe.
        (format!("{source} -c:v libvpx -deadline realtime -live 1 -f webm"), "g.webm"),
    ] {
        let video = clip(&arguments, name);
        let (output, bytes) = made(&local, &compose(video, Some(tone(0.5, "s.ogg")), size(180, 320), 1.0)).await;
        assert_eq!((output.content.width, output.content.height), (Some(180), Some(320)), "{name}");
        assert!((seconds(&output) - 1.0).abs() < 0.15, "{name}: {}", seconds(&output));
        assert!(probe(&bytes, "stream=pix_fmt,sample_aspect_ratio").contains("yuv420p"), "{name}");
        // Fitted, not cut: black above and below.
        assert!(frames(&bytes, "4")[0][..32].iter().all(|v| *v < 30), "{name}");
    }
}

#[tokio::test]
async fn a_thumbnail_is_a_small_jpeg_of_that_moment() {
    let local = local();
    let clip = ffmpeg(
        "-f lavfi -i color=black:s=640x360:d=1:r=24 -f lavfi -i color=white:s=640x360:d=1:r=24 \
         -filter_complex [0][1]concat -pix_fmt yuv420p",
        "c.mp4",
    );
    for (at, max_side, light) in
        [(0.0, 320, false), (0.5, 320, false), (1.5, 320, true), (99.0, 160, true), (2.0, 4000, true)]
    {
        let (output, bytes) = made(&local, &thumbnail(input("c.mp4", clip.clone()), at, max_side)).await;
        assert_eq!(output.media_type, Some(MediaType::Jpeg));
        let width = max_side.min(640);
        assert_eq!((output.content.width, output.content.height), (Some(width), Some(width * 9 / 16)));
        assert!(probe(&bytes, "stream=width").contains(&format!("width={width}\n")));
        let mean = frames(&bytes, "25")[0].iter().map(|v| u32::from(*v)).sum::<u32>() / (32 * 18);
        assert_eq!(mean > 128, light, "at {at}: {mean}");
    }
    let tall = ffmpeg("-f lavfi -i testsrc=s=90x160:d=0.2:r=24 -pix_fmt yuv420p", "t.mp4");
    let (output, _) = made(&local, &thumbnail(input("t.mp4", tall), 5.0, 80)).await;
    assert_eq!((output.content.width, output.content.height), (Some(46), Some(80)));
}
