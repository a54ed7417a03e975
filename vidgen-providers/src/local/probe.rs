//! What is in a media file, by ffprobe, and whether it is within the limits.

use std::time::Duration;

use serde::{Deserialize, Deserializer};
use vidgen_core::{ContentInfo, ErrorKind, Result};

use super::ffmpeg::{Arguments, Ffmpeg, MAX_PIXELS, MediaFile};
use super::input::Wanted;
use super::scratch::RunDir;

const MAX_IMAGE_SIDE: u32 = 8192;
const MAX_VIDEO_SIDE: u32 = 4096;
const MAX_FPS: f64 = 120.0;
const MAX_LENGTH: Duration = Duration::from_secs(600);
const MAX_STREAMS: usize = 8;

/// What is in a file.
#[derive(Clone, Debug)]
pub(super) struct Probed {
    pub(super) picture: Option<Picture>,
    /// The number of the first stream of sound.
    pub(super) sound: Option<u32>,
    /// How long it says it is.
    pub(super) length: Option<Duration>,
    streams: usize,
}

/// The first stream of pictures.
#[derive(Clone, Debug)]
pub(super) struct Picture {
    /// The number of its stream.
    pub(super) index: u32,
    /// As it is to be shown: turned upright, with square pixels.
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) fps: Option<f64>,
    /// Whether every player takes it as it is: H.264 4:2:0, upright, square pixels, from zero.
    pub(super) plain: bool,
    stored: (u32, u32),
}

impl Probed {
    /// Looks into `file`. What cannot be read is the fault of the file, hence final.
    pub(super) async fn of(file: &MediaFile, wanted: Wanted, ffmpeg: &Ffmpeg, dir: &RunDir) -> Result<Self> {
        let report = ffmpeg.report(dir.path(), file).await.map_err(|e| match e.kind() {
            ErrorKind::Media if !e.message().starts_with("media limit") => {
                wanted.invalid("cannot be read").with_quote(e.message())
            }
            _ => e,
        })?;
        let report: wire::Report =
            serde_json::from_slice(&report).map_err(|e| wanted.invalid("cannot be read").with_source(e))?;
        Ok(Self::from_report(&report))
    }

    fn from_report(report: &wire::Report) -> Self {
        let is = |stream: &&wire::Stream, kind: &str| stream.codec_type == kind;
        let picture = report.streams.iter().find(|s| is(s, "video") && s.disposition.attached_pic == 0);
        let sound = report.streams.iter().find(|s| is(s, "audio"));
        let lengths = report.streams.iter().map(|s| s.duration).chain([report.format.duration]);
        Self {
            picture: picture.map(Picture::from_stream),
            sound: sound.map(|s| s.index),
            length: lengths
                .flatten()
                .filter(|d| d.is_finite() && *d > 0.0)
                .fold(None, |longest: Option<f64>, d| Some(longest.map_or(d, |l| l.max(d))))
                .and_then(|d| Duration::try_from_secs_f64(d).ok()),
            streams: report.streams.len(),
        }
    }

    /// The picture of an image file, if it is within the limits.
    pub(super) fn image(&self) -> Result<&Picture> {
        let picture = self.picture.as_ref().ok_or_else(|| Wanted::Image.invalid("has no picture"))?;
        let (width, height) = picture.stored;
        // The decoder is told the limit too, and then reports no size at all.
        if width == 0 || height == 0 {
            return Err(Wanted::Image.invalid("cannot be read, or is larger than 40 megapixels"));
        }
        if width.max(height) > MAX_IMAGE_SIDE || u64::from(width) * u64::from(height) > MAX_PIXELS {
            return Err(Wanted::Image.invalid("is larger than 40 megapixels or 8192 pixels on a side"));
        }
        Ok(picture)
    }

    /// The picture of a video file, if it is within the limits.
    pub(super) fn video(&self) -> Result<&Picture> {
        let wrong = |problem: &str| Err(Wanted::Video.invalid(problem));
        let Some(picture) = &self.picture else { return wrong("has no picture") };
        let (width, height) = picture.stored;
        if width == 0 || height == 0 {
            wrong("cannot be read")
        } else if width.max(height) > MAX_VIDEO_SIDE {
            wrong("has more than 4096 pixels on a side")
        } else if picture.fps.is_some_and(|fps| fps > MAX_FPS) {
            wrong("has more than 120 frames per second")
        } else if self.length.is_some_and(|length| length > MAX_LENGTH) {
            wrong("is longer than 10 minutes")
        } else if self.streams > MAX_STREAMS {
            wrong("has more than 8 streams")
        } else {
            Ok(picture)
        }
    }

    pub(super) fn content(&self) -> ContentInfo {
        ContentInfo {
            width: self.picture.as_ref().map(|p| p.width),
            height: self.picture.as_ref().map(|p| p.height),
            duration: self.length,
            audio: Some(self.sound.is_some()),
        }
    }
}

impl Picture {
    fn from_stream(stream: &wire::Stream) -> Self {
        let turned = stream.side_data_list.iter().find_map(|side| side.rotation).unwrap_or(0.0);
        let aspect = stream.sample_aspect_ratio.filter(|a| *a > 0.01 && *a < 100.0).unwrap_or(1.0);
        let wide = (f64::from(stream.width) * aspect).round().clamp(0.0, f64::from(u32::MAX)) as u32;
        let sideways = (turned.abs() % 180.0 - 90.0).abs() < 45.0;
        let (width, height) = if sideways { (stream.height, wide) } else { (wide, stream.height) };
        let plain = stream.codec_name == "h264"
            && stream.pix_fmt == "yuv420p"
            && ["Constrained Baseline", "Baseline", "Main", "High"].contains(&stream.profile.as_str())
            && turned == 0.0
            && aspect == 1.0
            && stream.start_time.is_none_or(|t| t.abs() < 0.01);
        let fps = stream.avg_frame_rate.filter(|f| f.is_finite() && *f > 0.0);
        Self { index: stream.index, width, height, fps, plain, stored: (stream.width, stream.height) }
    }
}

/// How long a stream is by its own packets, for files that do not say, such as recordings of browsers.
pub(super) async fn measure(file: &MediaFile, stream: u32, ffmpeg: &Ffmpeg, dir: &RunDir) -> Result<Duration> {
    let map = format!("0:{stream}");
    let list = Arguments::new([]).input(file)?.words(["-map", &map, "-c", "copy", "-f", "null", "-"]);
    ffmpeg.measure(dir.path(), list).await
}

mod wire {
    use super::{Deserialize, ratio, seconds};

    #[derive(Debug, Deserialize)]
    pub(super) struct Report {
        #[serde(default)]
        pub(super) streams: Vec<Stream>,
        #[serde(default)]
        pub(super) format: Format,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    pub(super) struct Format {
        #[serde(deserialize_with = "seconds")]
        pub(super) duration: Option<f64>,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    pub(super) struct Stream {
        pub(super) index: u32,
        pub(super) codec_type: String,
        pub(super) codec_name: String,
        pub(super) profile: String,
        pub(super) pix_fmt: String,
        pub(super) width: u32,
        pub(super) height: u32,
        #[serde(deserialize_with = "ratio")]
        pub(super) sample_aspect_ratio: Option<f64>,
        #[serde(deserialize_with = "ratio")]
        pub(super) avg_frame_rate: Option<f64>,
        #[serde(deserialize_with = "seconds")]
        pub(super) duration: Option<f64>,
        #[serde(deserialize_with = "seconds")]
        pub(super) start_time: Option<f64>,
        pub(super) disposition: Disposition,
        pub(super) side_data_list: Vec<SideData>,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    pub(super) struct Disposition {
        pub(super) attached_pic: u8,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    pub(super) struct SideData {
        pub(super) rotation: Option<f64>,
    }
}

/// `"4.000000"`; `"N/A"` is unknown.
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.and_then(|text| text.parse().ok()))
}

/// `"30000/1001"` or `"4:3"`; `"0/0"` is unknown.
fn ratio<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    let parts = text.split_once(['/', ':']);
    Ok(parts
        .and_then(|(n, d)| Some(n.parse::<f64>().ok()? / d.parse::<f64>().ok()?))
        .filter(|r| r.is_finite() && *r > 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probed(json: &str) -> Probed {
        Probed::from_report(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn a_video_is_seen_as_it_is_shown() {
        let report = probed(
            r#"{"streams":[{"index":0,"codec_type":"video","width":640,"height":480,"disposition":{"attached_pic":1}},
            {"index":2,"codec_type":"video","codec_name":"h264","width":1920,"height":1080,"pix_fmt":"yuv420p",
             "profile":"High","sample_aspect_ratio":"1:1","avg_frame_rate":"30000/1001","duration":"4.5",
             "side_data_list":[{"side_data_type":"Display Matrix","rotation":-90}]},
            {"index":3,"codec_type":"audio"}],"format":{"duration":"4.6"}}"#,
        );
        let picture = report.video().unwrap();
        assert_eq!((picture.index, picture.width, picture.height, picture.plain), (2, 1080, 1920, false));
        assert_eq!(report.sound, Some(3));
        assert_eq!(report.length, Some(Duration::from_millis(4600)));
    }

    #[test]
    fn limits_are_kept_before_anything_is_decoded() {
        let video = |width: u32, rate: &str, length: &str| {
            probed(&format!(
                r#"{{"streams":[{{"codec_type":"video","width":{width},"height":100,"avg_frame_rate":"{rate}"}}],
                "format":{{"duration":"{length}"}}}}"#
            ))
        };
        assert!(video(4096, "120/1", "600").video().is_ok());
        assert!(video(4097, "25/1", "4").video().is_err());
        assert!(video(640, "121/1", "4").video().is_err());
        assert!(video(640, "25/1", "601").video().is_err());
        assert!(video(0, "25/1", "4").video().is_err());
        assert!(video(8192, "0/0", "N/A").image().is_ok());
        assert!(video(8193, "0/0", "N/A").image().is_err());
        assert!(probed("{}").video().is_err());
    }
}
