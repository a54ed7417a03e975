//! Stored bytes: their names, what is known of them, and how they stream.

use std::fmt;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, Stream, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;

/// The name of stored media: one to eight segments of `a-z 0-9 _ -`, joined by `/`, and one
/// extension, e.g. `jobs/vid_0190…/video-1-3.mp4`. At most 200 characters, so it can neither
/// climb out of a directory nor surprise a file system or a URL.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MediaKey(String);

impl MediaKey {
    /// Checks the pattern.
    ///
    /// # Errors
    /// `Invalid` if the key does not match it.
    pub fn new(key: impl Into<String>) -> Result<Self> {
        let key = key.into();
        let (stem, extension) = key.rsplit_once('.').unwrap_or(("", ""));
        let word = |s: &str| {
            !s.is_empty() && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
        };
        let plain_extension = extension.len() <= 8 && extension.bytes().all(|b| b.is_ascii_alphanumeric());
        let segments = stem.split('/');
        if key.len() > 200
            || !plain_extension
            || !word(extension)
            || segments.clone().count() > 8
            || !segments.into_iter().all(word)
        {
            return Err(Error::invalid_field("key", "is not a media key"));
        }
        Ok(Self(key))
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The content type that the extension says.
    #[must_use]
    pub fn media_type(&self) -> MediaType {
        self.0.rsplit_once('.').map_or(MediaType::Binary, |(_, e)| MediaType::from_extension(e))
    }
}

impl fmt::Display for MediaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl FromStr for MediaKey {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        Self::new(s)
    }
}
impl TryFrom<String> for MediaKey {
    type Error = Error;
    fn try_from(s: String) -> Result<Self> {
        Self::new(s)
    }
}
impl From<MediaKey> for String {
    fn from(key: MediaKey) -> Self {
        key.0
    }
}

/// The kinds of files vidgen handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MediaType {
    /// `image/png`
    Png,
    /// `image/jpeg`
    Jpeg,
    /// `image/webp`
    Webp,
    /// `video/mp4`
    Mp4,
    /// `video/webm`
    Webm,
    /// `video/quicktime`
    Mov,
    /// `audio/mpeg`
    Mp3,
    /// `audio/wav`
    Wav,
    /// `audio/mp4`
    M4a,
    /// `audio/ogg`
    Ogg,
    /// Anything else.
    Binary,
}

impl MediaType {
    const ALL: [(Self, &'static str, &'static str); 11] = [
        (Self::Png, "png", "image/png"),
        (Self::Jpeg, "jpg", "image/jpeg"),
        (Self::Webp, "webp", "image/webp"),
        (Self::Mp4, "mp4", "video/mp4"),
        (Self::Webm, "webm", "video/webm"),
        (Self::Mov, "mov", "video/quicktime"),
        (Self::Mp3, "mp3", "audio/mpeg"),
        (Self::Wav, "wav", "audio/wav"),
        (Self::M4a, "m4a", "audio/mp4"),
        (Self::Ogg, "ogg", "audio/ogg"),
        (Self::Binary, "bin", "application/octet-stream"),
    ];

    /// The content type, e.g. `video/mp4`.
    #[must_use]
    pub fn mime(self) -> &'static str {
        Self::ALL.iter().find(|(t, ..)| *t == self).map_or("application/octet-stream", |(_, _, mime)| mime)
    }

    /// The file extension, e.g. `mp4`.
    #[must_use]
    pub fn extension(self) -> &'static str {
        Self::ALL.iter().find(|(t, ..)| *t == self).map_or("bin", |(_, extension, _)| extension)
    }

    /// By file extension; [`MediaType::Binary`] if unknown.
    #[must_use]
    pub fn from_extension(extension: &str) -> Self {
        Self::ALL.iter().find(|(_, e, _)| *e == extension).map_or(Self::Binary, |(t, ..)| *t)
    }

    /// By the magic bytes at the start of a file, which is the only evidence believed of files
    /// that come from outside. A dozen bytes are enough.
    #[must_use]
    pub fn sniff(head: &[u8]) -> Option<Self> {
        let at = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
        if at(0, b"\x89PNG\r\n\x1a\n") {
            Some(Self::Png)
        } else if at(0, b"\xff\xd8\xff") {
            Some(Self::Jpeg)
        } else if at(0, b"RIFF") && at(8, b"WEBP") {
            Some(Self::Webp)
        } else if at(0, b"RIFF") && at(8, b"WAVE") {
            Some(Self::Wav)
        } else if at(4, b"ftypqt  ") {
            Some(Self::Mov)
        } else if at(4, b"ftypM4A ") {
            Some(Self::M4a)
        } else if at(4, b"ftyp") && [b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1"].iter().any(|b| at(8, *b)) {
            // Pictures that lie in the box of a video.
            None
        } else if at(4, b"ftyp") {
            Some(Self::Mp4)
        } else if at(0, b"\x1a\x45\xdf\xa3") {
            Some(Self::Webm)
        } else if at(0, b"ID3") || head.first() == Some(&0xff) && head.get(1).is_some_and(|b| b & 0xe6 == 0xe2) {
            Some(Self::Mp3)
        } else if at(0, b"OggS") {
            Some(Self::Ogg)
        } else {
            None
        }
    }

    /// Whether it is a still image.
    #[must_use]
    pub fn is_image(self) -> bool {
        self.mime().starts_with("image/")
    }

    /// Whether it is a video.
    #[must_use]
    pub fn is_video(self) -> bool {
        self.mime().starts_with("video/")
    }

    /// Whether it is sound alone.
    #[must_use]
    pub fn is_audio(self) -> bool {
        self.mime().starts_with("audio/")
    }
}

/// What is known of stored media.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MediaInfo {
    /// Its name in the store.
    pub key: MediaKey,
    /// Its type, by its own magic bytes.
    pub media_type: MediaType,
    /// Its length in bytes.
    pub length: u64,
    /// What is known of the content.
    #[serde(default)]
    pub content: ContentInfo,
}

/// What is known of a picture, a video or a sound; a provider fills in what it knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContentInfo {
    /// Width in pixels.
    pub width: Option<u32>,
    /// Height in pixels.
    pub height: Option<u32>,
    /// Length in time.
    pub duration: Option<Duration>,
    /// Whether there is sound.
    pub audio: Option<bool>,
}

/// A stream of bytes with what is known beforehand.
pub struct Body {
    stream: BoxStream<'static, Result<Bytes>>,
    length: Option<u64>,
}

impl Body {
    /// Streams from `stream`; `length` is the number of bytes if it is known beforehand.
    /// A stream that yields an error, or another number of bytes than `length`, is not a file.
    pub fn new(stream: impl Stream<Item = Result<Bytes>> + Send + 'static, length: Option<u64>) -> Self {
        Self { stream: stream.boxed(), length }
    }

    /// The number of bytes, if it is known beforehand.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// Reads all of it into memory, up to `limit` bytes.
    ///
    /// # Errors
    /// `Media` if it is longer than `limit`, or what the stream raises.
    pub async fn read(mut self, limit: usize) -> Result<Bytes> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.stream.try_next().await? {
            if bytes.len() + chunk.len() > limit {
                return Err(Error::new(ErrorKind::Media, "media", format!("body is longer than {limit} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.into())
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        let length = u64::try_from(bytes.len()).ok();
        Self::new(futures::stream::once(async move { Ok(bytes) }), length)
    }
}

impl Stream for Body {
    type Item = Result<Bytes>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.poll_next_unpin(cx)
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("length", &self.length).finish_non_exhaustive()
    }
}

/// Media handed to a provider: what it is, and how to get its bytes or a link to them.
#[derive(Clone, Debug)]
pub struct MediaInput {
    /// What is known of it.
    pub info: MediaInfo,
    store: Arc<dyn Store>,
}

impl MediaInput {
    /// Media that lies in `store`.
    #[must_use]
    pub fn new(info: MediaInfo, store: Arc<dyn Store>) -> Self {
        Self { info, store }
    }

    /// Streams the bytes.
    ///
    /// # Errors
    /// What the store raises.
    pub async fn open(&self) -> Result<Body> {
        Ok(self.store.get(&self.info.key, None).await?.body)
    }

    /// A link that a remote can fetch for `life`, if the store can make one.
    ///
    /// # Errors
    /// What the store raises.
    pub async fn link(&self, life: Duration) -> Result<Option<url::Url>> {
        self.store.link(&self.info.key, life).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_cannot_climb_out_or_surprise() {
        for fine in ["a.png", "jobs/vid_1/video-1-3.mp4", "a/b/c/d/e/f/g/h.jpg"] {
            assert!(MediaKey::new(fine).is_ok(), "{fine}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a",
            "/a.png",
            "a/../b.png",
            "a//b.png",
            "a/.png",
            "A.png",
            "a\\b.png",
            "a%2fb.png",
            "a\0.png",
            "a.png/",
            "a.b.png",
            "ä.png",
            "a b.png",
            "a.",
            "a/b/c/d/e/f/g/h/i.png",
            "a.p_g",
        ] {
            assert!(MediaKey::new(bad).is_err(), "{bad}");
        }
        assert!(MediaKey::new(format!("{}.png", "a".repeat(200))).is_err());
    }

    #[test]
    fn a_type_is_told_by_its_first_bytes() {
        assert_eq!(MediaType::sniff(b"\x89PNG\r\n\x1a\n...."), Some(MediaType::Png));
        assert_eq!(MediaType::sniff(b"\0\0\0\x20ftypisom"), Some(MediaType::Mp4));
        assert_eq!(MediaType::sniff(b"\0\0\0\x20ftypqt  "), Some(MediaType::Mov));
        assert_eq!(MediaType::sniff(b"\0\0\0\x20ftypavif"), None);
        assert_eq!(MediaType::sniff(b"RIFF\0\0\0\0WAVE"), Some(MediaType::Wav));
        assert_eq!(MediaType::sniff(b"\xff\xfb\x90\x00"), Some(MediaType::Mp3));
        assert_eq!(MediaType::sniff(b"<html>"), None);
        assert_eq!(MediaType::sniff(b""), None);
    }

    #[tokio::test]
    async fn reading_stops_at_the_limit() {
        let body = Body::from(Bytes::from_static(b"12345"));
        assert_eq!(body.length(), Some(5));
        assert!(Body::from(Bytes::from_static(b"12345")).read(4).await.is_err());
        assert_eq!(body.read(5).await.unwrap(), Bytes::from_static(b"12345"));
    }
}
