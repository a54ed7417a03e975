//! Files behind URLs that strangers wrote, or that providers answered.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap, LOCATION, TRANSFER_ENCODING};
use reqwest::{Response, StatusCode};
use tokio::time::Instant;

use self::paced::{Paced, READ_GAP};
use super::guard::{Guard, ORIGIN, cause, unreachable};
use super::url::CheckedUrl;
use crate::error::{Error, ErrorKind, Result};
use crate::media::{Body, MediaType};

mod paced;

const MIB: u64 = 1024 * 1024;

/// What a shortener, a provider and its storage need together (reliability S5).
const MAX_REDIRECTS: usize = 3;

/// How much of a file its type is told by (reliability S9).
const HEAD: usize = 4096;

/// A limit beyond this is none, and adding it to an instant could overflow.
const LONGEST: Duration = Duration::from_hours(24);

/// How much one download may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DownloadLimits {
    /// From the first look-up to the last byte, redirects and all.
    pub total: Duration,
    /// How many bytes the file may have.
    pub bytes: u64,
}

impl DownloadLimits {
    /// For an image: 20 MiB, 30 s.
    pub const IMAGE: Self = Self { total: Duration::from_secs(30), bytes: 20 * MIB };

    /// For speech: 200 MiB, 2 min.
    pub const SPEECH: Self = Self { total: Duration::from_mins(2), bytes: 200 * MIB };

    /// For a video: 2 GiB, 10 min.
    pub const VIDEO: Self = Self { total: Duration::from_mins(10), bytes: 2048 * MIB };

    /// The same, with another time.
    #[must_use]
    pub fn with_total(self, total: Duration) -> Self {
        Self { total, ..self }
    }

    /// The same, with another number of bytes.
    #[must_use]
    pub fn with_bytes(self, bytes: u64) -> Self {
        Self { bytes, ..self }
    }
}

/// A file that has begun to arrive. Say what it should be, and it is a [`Body`].
///
/// The body raises `Media` where it grows past the limit, and `Unavailable` where it breaks off,
/// ends before the length it announced, sends nothing for 15 s, is slower than 32 KiB/s over 30 s,
/// or takes longer than its time. It must be read inside of a tokio runtime.
pub struct Download {
    body: Body,
    media_type: Option<MediaType>,
}

impl Download {
    /// The number of bytes, if the host announced it.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.body.length()
    }

    /// The type by the file's own first bytes, if it is a known one. What the host calls it is not
    /// even read.
    #[must_use]
    pub fn media_type(&self) -> Option<MediaType> {
        self.media_type
    }

    /// The file, if it is a still image.
    ///
    /// # Errors
    /// `Media` if it is none.
    pub fn expect_image(self) -> Result<Body> {
        self.expect(MediaType::is_image, "the file is not a png, jpeg or webp image")
    }

    /// The file, if it is a video.
    ///
    /// # Errors
    /// `Media` if it is none.
    pub fn expect_video(self) -> Result<Body> {
        self.expect(MediaType::is_video, "the file is not an mp4, mov or webm video")
    }

    /// The file, if it is sound alone.
    ///
    /// # Errors
    /// `Media` if it is none.
    pub fn expect_audio(self) -> Result<Body> {
        self.expect(MediaType::is_audio, "the file is not an mp3, wav, m4a or ogg sound")
    }

    /// The file, whatever it is: for a caller who looks at its first bytes by himself.
    #[must_use]
    pub fn any(self) -> Body {
        self.body
    }

    fn expect(self, fits: fn(MediaType) -> bool, or: &'static str) -> Result<Body> {
        if self.media_type.is_some_and(fits) { Ok(self.body) } else { Err(Error::new(ErrorKind::Media, ORIGIN, or)) }
    }
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download").field("body", &self.body).field("media_type", &self.media_type).finish()
    }
}

impl Guard {
    /// Opens the file at `url`, after at most three redirects. Its bytes stream: no more of it is in
    /// memory than what has just arrived.
    ///
    /// # Errors
    /// - `Invalid` if the rules here are not those that `url` was checked by.
    /// - `NotFound` if a public host was reached and will not give the file out, now or later: any
    ///   4xx but 408, 425 and 429. Links that expired are answered 400, 403, 404 or 410.
    /// - `Media` if it announces more bytes than `limits`, or is compressed.
    /// - `Unavailable` for all else, in the same words for what was denied, redirected to where it
    ///   may not lead, refused, timed out or answered 5xx, so that nobody can map our network by
    ///   asking.
    pub async fn get(&self, url: &CheckedUrl, limits: DownloadLimits) -> Result<Download> {
        // The other guard that checked it may have allowed more; and a literal address is never
        // shown to the resolver.
        self.rules.judge(&url.0)?;
        self.download(url, limits).await
    }

    async fn download(&self, url: &CheckedUrl, limits: DownloadLimits) -> Result<Download> {
        let deadline = Instant::now() + limits.total.min(LONGEST);
        let response = self.follow(url, deadline).await?;
        settled(response.status())?;
        if is_encoded(response.headers()) {
            return Err(Error::new(ErrorKind::Media, ORIGIN, "the file is compressed on its way"));
        }
        // Without a length, the end is a last chunk, or that of the TLS stream: a body that is cut
        // ends with an error either way.
        let length = response.content_length();
        if length.is_some_and(|length| length > limits.bytes) {
            return Err(too_long(limits.bytes));
        }
        let stream = response.bytes_stream().map_err(|e| unreachable(cause(&e))).boxed();
        begin(Paced::new(stream, length, limits.bytes, deadline), length).await
    }

    /// The first answer that is no redirect.
    async fn follow(&self, url: &CheckedUrl, deadline: Instant) -> Result<Response> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.hop(&url, deadline).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|l| std::str::from_utf8(l.as_bytes()).ok());
            let location = location.ok_or_else(|| unreachable("redirected to nowhere"))?;
            url = self.rules.follow(&url, location).map_err(|_| unreachable("redirected to where it may not lead"))?;
        }
        Err(unreachable("redirected too often"))
    }

    /// One request, with nothing in it that was not in the URL.
    async fn hop(&self, url: &CheckedUrl, deadline: Instant) -> Result<Response> {
        // Some servers compress unless they are told not to.
        let request = self.client.get(url.0.clone()).header(ACCEPT_ENCODING, "identity").send();
        let response = match tokio::time::timeout_at(deadline.min(Instant::now() + READ_GAP), request).await {
            Err(_) => return Err(unreachable("timed out")),
            Ok(Err(e)) => return Err(unreachable(cause(&e))),
            Ok(Ok(response)) => response,
        };
        self.check_peer(response.remote_addr())?;
        Ok(response)
    }
}

/// Whether the file is there, not there, or perhaps later.
fn settled(status: StatusCode) -> Result<()> {
    match status.as_u16() {
        200 => Ok(()),
        408 | 425 | 429 => Err(unreachable("asked to come back")),
        // The link is all there is to ask with, so the same one is answered the same again; an
        // expired one by Google's storage with 400, by Amazon's with 403.
        400..500 => Err(Error::new(ErrorKind::NotFound, ORIGIN, "the file is not there")),
        _ => Err(unreachable("answered with no file")),
    }
}

/// Whether the bytes would have to be unpacked, which a small bomb makes large.
fn is_encoded(headers: &HeaderMap) -> bool {
    let other_than = |name, plain: &str| {
        headers.get_all(name).iter().any(|value| {
            let value = value.as_bytes().trim_ascii();
            !value.is_empty() && !value.eq_ignore_ascii_case(plain.as_bytes())
        })
    };
    other_than(CONTENT_ENCODING, "identity") || other_than(TRANSFER_ENCODING, "chunked")
}

/// Waits for the head, since it says what the file is, and puts it back.
async fn begin(mut rest: Paced<BoxStream<'static, Result<Bytes>>>, length: Option<u64>) -> Result<Download> {
    // Copied, so that a host which sends it byte by byte does not fill a list.
    let mut head = Vec::new();
    while head.len() < HEAD {
        let Some(chunk) = rest.try_next().await? else { break };
        head.extend_from_slice(&chunk);
    }
    let media_type = MediaType::sniff(&head);
    let head = (!head.is_empty()).then(|| Ok(head.into()));
    Ok(Download { body: Body::new(stream::iter(head).chain(rest), length), media_type })
}

fn too_long(limit: u64) -> Error {
    Error::new(ErrorKind::Media, ORIGIN, format!("the file is longer than {limit} bytes"))
}

#[cfg(test)]
mod tests;
