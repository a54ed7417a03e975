//! Media files as a remote would make them: real ones, of the size and length that were asked,
//! made without any tool, and small.

mod asked;
mod h264;
mod mp3;

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use vidgen_core::{Error, ErrorKind, MediaType, Result, Size, StepKind};

pub use mp3::mp3;

/// Speech as remotes make it.
const SAMPLE_RATE: u32 = 24_000;
/// The largest side and the longest time that are made; what asks for more gets this.
const MAX_SIDE: u32 = 4096;
const MAX_DURATION: Duration = Duration::from_secs(120);
const MAX_FPS: u32 = 60;
/// So many files are kept; tests ask for few.
const MAX_CACHED: usize = 32;

/// What a file shall be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Film {
    /// For what kind of step: a PNG for pictures, an MP4 for videos, a WAV for speech.
    pub kind: StepKind,
    /// Width in pixels, even.
    pub width: u32,
    /// Height in pixels, even.
    pub height: u32,
    /// How long.
    pub duration: Duration,
    /// Frames per second.
    pub fps: u32,
}

impl Film {
    /// As remotes make it that are asked for nothing in particular: 1024 by 1024 for a picture, 5 s
    /// of 720p for a video, 2 s of speech.
    #[must_use]
    pub fn new(kind: StepKind) -> Self {
        let (width, height) = if kind == StepKind::Image { (1024, 1024) } else { (1280, 720) };
        let seconds = if kind == StepKind::Speech { 2 } else { 5 };
        Self { kind, width, height, duration: Duration::from_secs(seconds), fps: 24 }
    }

    /// Of that size; made even, as H.264 has it.
    #[must_use]
    pub fn with_size(mut self, size: Size) -> Self {
        let side = |pixels: u32| pixels.clamp(16, MAX_SIDE) & !1;
        (self.width, self.height) = (side(size.width), side(size.height));
        self
    }

    /// Of that length.
    #[must_use]
    pub fn with_duration(mut self, duration: Duration) -> Self {
        self.duration = duration.clamp(Duration::from_millis(100), MAX_DURATION);
        self
    }

    /// With so many frames per second.
    #[must_use]
    pub fn with_fps(mut self, fps: u32) -> Self {
        self.fps = fps.clamp(1, MAX_FPS);
        self
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

    /// The file: the same for the same film.
    ///
    /// # Errors
    /// `Internal` if it cannot be made.
    pub fn bytes(&self) -> Result<Bytes> {
        static CACHE: LazyLock<Mutex<HashMap<Film, Bytes>>> = LazyLock::new(Mutex::default);
        // Held while one is made: whoever wants the same waits for it.
        let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = cache.get(self) {
            return Ok(bytes.clone());
        }
        let bytes = match self.media_type() {
            MediaType::Png => self.png()?,
            MediaType::Mp4 => h264::mp4(self)?,
            _ => self.wav(),
        };
        if cache.len() >= MAX_CACHED {
            cache.clear();
        }
        cache.insert(*self, bytes.clone());
        Ok(bytes)
    }

    fn png(&self) -> Result<Bytes> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width, self.height);
        encoder.set_color(png::ColorType::Rgb);
        let mut writer = encoder.write_header().map_err(failed)?;
        let mut rows = Vec::with_capacity(self.width as usize * self.height as usize * 3);
        for y in 0..self.height {
            let shade = u8::try_from(y.saturating_mul(160) / self.height).unwrap_or(u8::MAX);
            let pixel = [60 + shade, 90, 200 - shade];
            rows.extend((0..self.width).flat_map(|_| pixel));
        }
        writer.write_image_data(&rows).map_err(failed)?;
        writer.finish().map_err(failed)?;
        Ok(bytes.into())
    }

    /// A quiet tone, 16 bits, one channel.
    fn wav(&self) -> Bytes {
        let samples = (self.duration.as_secs_f64() * f64::from(SAMPLE_RATE)).round() as u32;
        let data = samples * 2;
        let mut bytes = Vec::with_capacity(data as usize + 44);
        bytes.extend(b"RIFF");
        bytes.extend((data + 36).to_le_bytes());
        bytes.extend(b"WAVEfmt ");
        bytes.extend(16_u32.to_le_bytes());
        bytes.extend([1_u16, 1].into_iter().flat_map(u16::to_le_bytes));
        bytes.extend([SAMPLE_RATE, SAMPLE_RATE * 2].into_iter().flat_map(u32::to_le_bytes));
        bytes.extend([2_u16, 16].into_iter().flat_map(u16::to_le_bytes));
        bytes.extend(b"data");
        bytes.extend(data.to_le_bytes());
        // 220 Hz.
        let step = 220.0 * std::f64::consts::TAU / f64::from(SAMPLE_RATE);
        for n in 0..samples {
            let sample = (f64::from(n) * step).sin() * 3000.0;
            bytes.extend((sample as i16).to_le_bytes());
        }
        bytes.into()
    }
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Internal, "lab", "the file cannot be made").with_source(error)
}
