//! `ffmpeg` and `ffprobe`: how they are found and how they are called.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vidgen_core::{Error, ErrorKind, MediaType, Result};

use super::ORIGIN;
use super::runs::Run;
use super::sandbox::{Invocation, Sandbox, locate};

/// The most pixels a decoder may be asked to hold: 40 megapixels.
pub(super) const MAX_PIXELS: u64 = 40_000_000;

/// Each thread of a decoder holds frames of its own: of a large video, many would hit the limit
/// of addresses.
const DECODER_THREADS: &str = "2";

/// The two programs.
#[derive(Clone, Debug)]
pub(super) struct Ffmpeg {
    program: PathBuf,
    prober: PathBuf,
    sandbox: Sandbox,
    /// Whether it can speak.
    pub(super) flite: bool,
}

/// A file in a run's directory, with the type that its own bytes say.
#[derive(Clone, Debug)]
pub(super) struct MediaFile {
    pub(super) path: PathBuf,
    pub(super) media_type: MediaType,
}

impl Ffmpeg {
    /// Finds both programs, or none if one of them is missing.
    pub(super) fn detect(sandbox: &Sandbox, ffmpeg: Option<&Path>, ffprobe: Option<&Path>) -> Result<Option<Self>> {
        let prober = locate(ffprobe, "ffprobe", &["-hide_banner", "-version"])?;
        let program = locate(ffmpeg, "ffmpeg", &["-hide_banner", "-filters"])?;
        let (Some((program, filters)), Some((prober, _))) = (program, prober) else { return Ok(None) };
        let flite = filters.lines().any(|line| line.split_whitespace().nth(1) == Some("flite"));
        Ok(Some(Self { program, prober, sandbox: sandbox.clone(), flite }))
    }

    /// Runs ffmpeg in `dir`. `length` is that of the output, if progress is to be told.
    pub(super) async fn run(
        &self,
        dir: &Path,
        arguments: Arguments,
        progress: Option<(&Run, Duration, f32)>,
    ) -> Result<()> {
        let mut list = Arguments::new(["-nostdin", "-hide_banner", "-v", "error", "-y"]);
        if progress.is_some() {
            list = list.words(["-progress", "pipe:1", "-stats_period", "0.2"]);
        }
        let call = Invocation {
            program: &self.program,
            arguments: list.append(arguments).0,
            dir,
            wall: self.sandbox.limits.wall,
        };
        self.sandbox
            .run(call, |line| {
                if let (Some((run, length, share)), Some(done)) = (progress, out_time(line)) {
                    run.advance(share * (done.as_secs_f32() / length.as_secs_f32().max(0.001)).min(1.0));
                }
            })
            .await?;
        Ok(())
    }

    /// Runs ffmpeg and answers how much time of media it went through.
    pub(super) async fn measure(&self, dir: &Path, arguments: Arguments) -> Result<Duration> {
        let list = Arguments::new(["-nostdin", "-hide_banner", "-v", "error", "-progress", "pipe:1"]);
        let mut length = Duration::ZERO;
        let call = Invocation {
            program: &self.program,
            arguments: list.append(arguments).0,
            dir,
            wall: self.sandbox.limits.wall,
        };
        self.sandbox
            .run(call, |line| {
                if let Some(done) = out_time(line) {
                    length = length.max(done);
                }
            })
            .await?;
        Ok(length)
    }

    /// Runs ffprobe on a file and answers its report as JSON.
    pub(super) async fn report(&self, dir: &Path, file: &MediaFile) -> Result<Vec<u8>> {
        // No tags: they are a stranger's, and may be long.
        const ENTRIES: &str = "format=duration:stream=index,codec_type,codec_name,profile,pix_fmt,width,height,\
            sample_aspect_ratio,avg_frame_rate,duration,start_time:stream_disposition=attached_pic:\
            stream_side_data=rotation";
        let list = Arguments::new(["-hide_banner", "-v", "error", "-of", "json", "-show_entries", ENTRIES]);
        let call = Invocation {
            program: &self.prober,
            arguments: list.input(file)?.0,
            dir,
            wall: self.sandbox.limits.probe_wall,
        };
        Ok(self.sandbox.run(call, |_| {}).await?.stdout)
    }

    /// The option that bounds the threads of encoders and decoders.
    pub(super) fn threads(&self) -> String {
        self.sandbox.limits.threads.to_string()
    }
}

fn out_time(line: &str) -> Option<Duration> {
    line.strip_prefix("out_time_us=")?.parse().ok().map(Duration::from_micros)
}

/// An argument vector.
#[derive(Clone, Debug, Default)]
pub(super) struct Arguments(Vec<OsString>);

impl Arguments {
    pub(super) fn new<const N: usize>(words: [&str; N]) -> Self {
        Self::default().words(words)
    }

    pub(super) fn words<const N: usize>(mut self, words: [&str; N]) -> Self {
        self.0.extend(words.map(OsString::from));
        self
    }

    /// Adds an input file. Its format is forced to what we saw in its first bytes, and it may name
    /// no other file and no other format, so a playlist in disguise is only a broken video.
    pub(super) fn input(self, file: &MediaFile) -> Result<Self> {
        let format = demuxer(file.media_type)?;
        let pixels = MAX_PIXELS.to_string();
        let mut list = self.words(["-protocol_whitelist", "file,pipe", "-format_whitelist", format, "-f", format]);
        if !file.media_type.is_audio() {
            list = list.words(["-max_pixels", &pixels, "-threads", DECODER_THREADS]);
        }
        list.0.push("-i".into());
        list.0.push(file_url(&file.path));
        Ok(list)
    }

    /// Adds an output file, in the format `muxer`, with nothing in it that we did not put there.
    pub(super) fn output(self, muxer: &str, path: &Path) -> Self {
        let mut list = self.words(["-map_metadata", "-1", "-map_chapters", "-1", "-fflags", "+bitexact", "-f", muxer]);
        list.0.push(file_url(path));
        list
    }

    pub(super) fn append(mut self, mut other: Self) -> Self {
        self.0.append(&mut other.0);
        self
    }
}

/// A path that cannot be taken for an option, a URL or a pipe.
fn file_url(path: &Path) -> OsString {
    let mut url = OsString::from("file:");
    url.push(path);
    url
}

fn demuxer(media_type: MediaType) -> Result<&'static str> {
    Ok(match media_type {
        MediaType::Png => "png_pipe",
        MediaType::Jpeg => "jpeg_pipe",
        MediaType::Webp => "webp_pipe",
        MediaType::Mp4 | MediaType::Mov | MediaType::M4a => "mov",
        MediaType::Webm => "matroska",
        MediaType::Mp3 => "mp3",
        MediaType::Wav => "wav",
        MediaType::Ogg => "ogg",
        _ => return Err(Error::new(ErrorKind::Invalid, ORIGIN, "the file is of an unknown type")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_always_forced_and_fenced() {
        let file = MediaFile { path: "/tmp/a b/-i.mp4".into(), media_type: MediaType::Mp4 };
        let list = Arguments::new([]).input(&file).unwrap().0;
        let text: Vec<_> = list.iter().map(|w| w.to_string_lossy()).collect();
        assert_eq!(
            text,
            [
                "-protocol_whitelist",
                "file,pipe",
                "-format_whitelist",
                "mov",
                "-f",
                "mov",
                "-max_pixels",
                "40000000",
                "-threads",
                "2",
                "-i",
                "file:/tmp/a b/-i.mp4"
            ]
        );
    }

    #[test]
    fn progress_is_read_and_rubbish_is_not() {
        assert_eq!(out_time("out_time_us=1500000"), Some(Duration::from_millis(1500)));
        assert_eq!(out_time("out_time_us=N/A"), None);
        assert_eq!(out_time("frame=3"), None);
    }
}
