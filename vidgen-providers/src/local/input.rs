//! Media on their way in: streamed to a private file under a limit, typed by their own bytes.

use std::path::PathBuf;

use futures::StreamExt;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use vidgen_core::{Error, ErrorKind, MediaInput, MediaType, Result};

use super::ORIGIN;
use super::ffmpeg::MediaFile;
use super::scratch::RunDir;

/// What a task expects a file to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Image,
    Video,
    Speech,
}

impl Wanted {
    fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Video => "video",
            Self::Speech => "speech",
        }
    }

    fn max_bytes(self) -> u64 {
        match self {
            Self::Image => 20 << 20,
            Self::Video => 2 << 30,
            Self::Speech => 256 << 20,
        }
    }

    fn accepts(self, media_type: MediaType) -> bool {
        match self {
            Self::Image => media_type.is_image(),
            Self::Video => media_type.is_video(),
            // Sound alone often comes in a container that is named after video.
            Self::Speech => media_type.is_audio() || media_type.is_video(),
        }
    }

    fn kinds(self) -> &'static str {
        match self {
            Self::Image => "PNG, JPEG or WebP",
            Self::Video => "MP4, MOV or WebM",
            Self::Speech => "WAV, MP3, M4A, Ogg, MP4 or WebM",
        }
    }

    /// Refuses what is known to be too long before anything is done.
    pub(super) fn check(self, input: &MediaInput) -> Result<()> {
        if input.info.length > self.max_bytes() { Err(self.too_long()) } else { Ok(()) }
    }

    fn too_long(self) -> Error {
        self.invalid(&format!("is longer than {} MiB", self.max_bytes() >> 20))
    }

    /// An error that says what is wrong with the file; final, since the file stays what it is.
    pub(super) fn invalid(self, problem: &str) -> Error {
        Error::new(ErrorKind::Invalid, ORIGIN, format!("the {} {problem}", self.name()))
    }
}

/// Streams `input` into `dir` and says what it is.
pub(super) async fn receive(input: &MediaInput, wanted: Wanted, dir: &RunDir) -> Result<MediaFile> {
    const HEAD: usize = 64;
    let unwritten = |e| Error::new(ErrorKind::Unavailable, ORIGIN, "cannot write to scratch").with_source(e);
    // The name says nothing: neither the sender's name nor its extension goes near a tool.
    let path: PathBuf = dir.file(wanted.name());
    let mut file = File::create_new(&path).await.map_err(unwritten)?;
    let mut body = input.open().await?;
    let mut head = Vec::with_capacity(HEAD);
    let mut length: u64 = 0;
    while let Some(chunk) = body.next().await {
        let chunk = chunk?;
        let missing = HEAD.saturating_sub(head.len());
        head.extend(chunk.iter().take(missing));
        length += chunk.len() as u64;
        if length > wanted.max_bytes() {
            return Err(wanted.too_long());
        }
        file.write_all(&chunk).await.map_err(unwritten)?;
    }
    file.flush().await.map_err(unwritten)?;
    if length == 0 {
        return Err(wanted.invalid("is empty"));
    }
    match MediaType::sniff(&head) {
        Some(media_type) if wanted.accepts(media_type) => Ok(MediaFile { path, media_type }),
        _ => Err(wanted.invalid(&format!("is not {}", wanted.kinds()))),
    }
}
