//! The lab's media are real: ffmpeg decodes them without a word, and ffprobe reports what was asked.

use std::process::Command;
use std::time::Duration;

use vidgen_core::{MediaType, Size, StepKind};
use vidgen_providers::lab::film::Film;

/// What ffprobe says of the first stream, after ffmpeg has decoded all of it in silence.
fn probe(bytes: &[u8], name: &str, entries: &str) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let mut decode = Command::new("ffmpeg");
    decode.args(["-nostdin", "-v", "error", "-xerror", "-i"]).arg(&path).args(["-f", "null", "-"]);
    let decoded = decode.output().unwrap();
    assert!(decoded.status.success() && decoded.stderr.is_empty(), "{}", String::from_utf8_lossy(&decoded.stderr));
    let mut probe = Command::new("ffprobe");
    probe.args(["-v", "error", "-count_frames", "-of", "csv=p=0", "-show_entries", entries]).arg(&path);
    let said = probe.output().unwrap();
    assert!(said.stderr.is_empty(), "{}", String::from_utf8_lossy(&said.stderr));
    String::from_utf8(said.stdout).unwrap().split([',', '\n']).map(str::to_owned).collect()
}

#[test]
fn a_video_has_the_size_the_length_and_the_rate_that_were_asked() {
    // (width, height, ms, fps): usual ones, odd ones, one that is no whole number of frames.
    let cases = [
        (1280, 720, 5000, 24),
        (1920, 1080, 8000, 24),
        (720, 1280, 4000, 30),
        (854, 480, 5000, 25),
        (320, 180, 1000, 8),
        (18, 34, 1500, 16),
        (832, 1104, 2041, 24),
        (3840, 2160, 1000, 24),
        (640, 360, 100, 1),
    ];
    for (width, height, millis, fps) in cases {
        let film = Film::new(StepKind::Video)
            .with_size(Size { width, height })
            .with_duration(Duration::from_millis(millis))
            .with_fps(fps);
        let begin = std::time::Instant::now();
        let bytes = film.bytes().unwrap();
        let took = begin.elapsed();
        println!("{width}x{height}, {millis} ms, {fps} fps: {} bytes in {took:?}", bytes.len());
        let said = probe(&bytes, "a.mp4", "stream=width,height,r_frame_rate,duration,nb_read_frames,profile,pix_fmt");
        let (duration, frames) = (said[5].parse::<f64>().unwrap(), (millis * u64::from(fps) / 1000).max(1));
        assert_eq!(said[..4], ["Constrained Baseline", &width.to_string(), &height.to_string(), "yuv420p"], "{said:?}");
        assert!((duration * 1000.0 - millis as f64).abs() < 0.5, "{duration} for {millis} ms at {fps}");
        assert_eq!(said[6].parse::<u64>().unwrap(), frames);
        if millis * u64::from(fps) % 1000 == 0 && frames > 1 {
            assert_eq!(said[4], format!("{fps}/1"));
        }
        let container = probe(&bytes, "a.mp4", "format=duration");
        assert!((container[0].parse::<f64>().unwrap() * 1000.0 - millis as f64).abs() < 1.0, "{container:?}");
        // The index comes first, and the file is small.
        let at = |tag: &[u8]| bytes.windows(4).position(|w| w == tag).unwrap();
        assert!(at(b"moov") < at(b"mdat"));
        assert!(bytes.len() < 300_000, "{}", bytes.len());
        assert_eq!(MediaType::sniff(&bytes), Some(MediaType::Mp4));
    }
}

/// A picture of the video at that moment, 16 by 9 grey pixels.
fn picture(bytes: &[u8], at: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.mp4");
    std::fs::write(&path, bytes).unwrap();
    let mut take = Command::new("ffmpeg");
    take.args(["-nostdin", "-v", "error", "-ss", at, "-i"]).arg(&path);
    take.args(["-frames:v", "1", "-vf", "scale=16:9:flags=area,format=gray", "-f", "rawvideo", "-"]);
    take.output().unwrap().stdout
}

#[test]
fn a_video_moves_and_shows_what_was_drawn() {
    let film =
        Film::new(StepKind::Video).with_size(Size { width: 256, height: 144 }).with_duration(Duration::from_secs(2));
    let bytes = film.bytes().unwrap();
    let (first, last) = (picture(&bytes, "0"), picture(&bytes, "1.95"));
    // Each row has one shade, from dark to light; the bar in the last one is not there, then whole.
    let rows: Vec<&[u8]> = first.chunks(16).collect();
    assert!(rows.iter().all(|row| row.iter().all(|p| p.abs_diff(row[0]) <= 1)), "{first:?}");
    assert!(rows.windows(2).all(|pair| pair[0][0] < pair[1][0]), "{first:?}");
    assert_eq!(last[..8 * 16], first[..8 * 16]);
    assert!(last[8 * 16..].iter().all(|p| *p > 240), "{last:?}");
}

#[test]
fn pictures_and_speech_are_real_too() {
    let image = Film::new(StepKind::Image).with_size(Size { width: 1024, height: 576 }).bytes().unwrap();
    assert_eq!(probe(&image, "a.png", "stream=codec_name,width,height")[..3], ["png", "1024", "576"]);
    assert!(image.len() < 100_000, "{}", image.len());
    let speech = Film::new(StepKind::Speech).with_duration(Duration::from_millis(3300)).bytes().unwrap();
    let said = probe(&speech, "a.wav", "stream=codec_name,sample_rate,channels,duration");
    assert_eq!(said[..4], ["pcm_s16le", "24000", "1", "3.300000"]);
    assert_eq!((MediaType::sniff(&image), MediaType::sniff(&speech)), (Some(MediaType::Png), Some(MediaType::Wav)));
}

/// The values of a field of every slice header, as ffmpeg's strict parser reads them.
fn headers(bytes: &[u8], field: &str) -> Vec<u32> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.mp4");
    std::fs::write(&path, bytes).unwrap();
    let mut trace = Command::new("ffmpeg");
    trace.args(["-nostdin", "-i"]).arg(&path).args(["-c", "copy", "-bsf:v", "trace_headers", "-f", "null", "-"]);
    let said = String::from_utf8(trace.output().unwrap().stderr).unwrap();
    let lines = said.lines().filter(|line| line.split_whitespace().any(|word| word == field));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect()
}

#[test]
fn pictures_are_numbered_as_the_standard_wants() {
    let film = Film::new(StepKind::Video).with_size(Size { width: 64, height: 64 }).with_fps(20);
    let bytes = film.with_duration(Duration::from_secs(1)).bytes().unwrap();
    assert_eq!(headers(&bytes, "frame_num"), (0..20).map(|n| n % 16).collect::<Vec<_>>());
    // The smallest level that holds it, so that small players take it, too.
    assert_eq!(headers(&bytes, "level_idc").first(), Some(&30));
}
