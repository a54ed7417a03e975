//! Files: those that go to a remote, and those that it made.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, Stream};
use reqwest::header::LOCATION;
use serde_json::Value;
use vidgen_core::net::DownloadLimits;
use vidgen_core::{Body, Error, ErrorKind, MediaInput, MediaType, Output, Result, Spool, StepKind, SubmitOptions};

use super::refusal::Purpose;
use super::{Call, Client};

/// The first frames that the pipeline hands over are at most this long (reliability S7).
const MAX_IMAGE: usize = 20 * 1024 * 1024;
/// As everywhere: an API, its gateway and its storage.
const MAX_HOPS: usize = 3;

/// The bytes of an image that is to go out with a submit, or before it.
///
/// # Errors
/// Each kind says that nothing was bought.
pub(crate) async fn image_bytes(image: &MediaInput) -> Result<Bytes> {
    let body = async { image.open().await?.read(MAX_IMAGE).await };
    body.await.map_err(|e| Error::new(ErrorKind::Unavailable, "store", "the image cannot be read").with_source(e))
}

/// A data URL of a file (RFC 2397).
pub(crate) fn data_url(media_type: &str, bytes: &[u8]) -> String {
    format!("data:{media_type};base64,{}", STANDARD.encode(bytes))
}

/// Whether an answer may be sound, by what it says of itself. Where that is nothing, the pipeline tells
/// by its first bytes: it is paid for.
pub(crate) fn may_be_sound(content_type: Option<&str>) -> bool {
    let Some(content_type) = content_type else { return true };
    let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    media_type.starts_with("audio/")
        || matches!(media_type.as_str(), "" | "application/octet-stream" | "binary/octet-stream")
}

/// Where every file in an output lies, whatever the output's shape: one, a list, or an object of them.
/// Those of the step's own kind come first.
pub(crate) fn files(output: &Value, kind: Option<StepKind>) -> Vec<String> {
    let mut texts = Vec::new();
    super::strings(output, &mut texts);
    texts.retain(|text| ["https:", "http:", "data:"].iter().any(|scheme| text.starts_with(scheme)));
    texts.sort_by_key(|text| !kind.is_some_and(|kind| fits(kind, text)));
    texts
}

fn fits(kind: StepKind, url: &str) -> bool {
    if let Some(media_type) = url.strip_prefix("data:") {
        return media_type.starts_with(match kind {
            StepKind::Image | StepKind::Thumbnail => "image/",
            StepKind::Speech => "audio/",
            StepKind::Video | StepKind::Compose => "video/",
        });
    }
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let media_type = MediaType::from_extension(path.rsplit_once('.').map_or("", |(_, extension)| extension));
    match kind {
        StepKind::Image | StepKind::Thumbnail => media_type.is_image(),
        StepKind::Speech => media_type.is_audio(),
        StepKind::Video | StepKind::Compose => media_type.is_video(),
    }
}

fn from_data_url(url: &str) -> Option<Result<Body>> {
    let (head, data) = url.strip_prefix("data:")?.split_once(',')?;
    let bad = || Error::new(ErrorKind::Protocol, "data", "the output is a data URL that cannot be understood");
    let bytes = match head.strip_suffix(";base64") {
        Some(_) => STANDARD.decode(data.trim()).map_err(|_| bad()),
        None => Ok(percent_encoding::percent_decode_str(data).collect()),
    };
    Some(bytes.map(|bytes| Bytes::from(bytes).into()))
}

impl Client {
    /// Streams a file that a run made: from the API itself with the key, from anywhere else without
    /// it and only from public addresses; or out of a data URL.
    ///
    /// # Errors
    /// `NotFound` if it is there no more, `Media` if it is longer than `limits`, `Protocol` if its
    /// URL leads where nobody may call, else as [`Client::ask`]. The body raises `Media` where it
    /// grows past the limit, and `Unavailable` where it breaks off.
    pub(crate) async fn open(&self, url: &str, limits: DownloadLimits) -> Result<Body> {
        if let Some(body) = from_data_url(url) {
            return self.fitting(body?, limits);
        }
        if self.own(url).is_some() {
            self.open_call(Call::link(url), limits).await
        } else {
            self.elsewhere(url, limits).await
        }
    }

    /// The same without the key, wherever it lies: where all outputs are open to whoever has their
    /// URL, and those who write a model choose the URLs.
    ///
    /// # Errors
    /// As [`Client::open`].
    pub(crate) async fn open_without_key(&self, url: &str, limits: DownloadLimits) -> Result<Body> {
        match from_data_url(url) {
            Some(body) => self.fitting(body?, limits),
            None => self.elsewhere(url, limits).await,
        }
    }

    /// A file that came within its URL, if it is not too long.
    fn fitting(&self, body: Body, limits: DownloadLimits) -> Result<Body> {
        let fits = body.length().is_some_and(|length| length <= limits.bytes);
        if fits { Ok(body) } else { Err(self.too_long(limits.bytes)) }
    }

    /// Streams what a call to the API answers, or what it redirects to.
    ///
    /// # Errors
    /// As [`Client::open`].
    pub(crate) async fn open_call(&self, call: Call, limits: DownloadLimits) -> Result<Body> {
        let mut call = call.with_timeout(limits.total);
        for _ in 0..=MAX_HOPS {
            let url = self.url(&call)?;
            let response = match self.exchange(&self.shared.read, &call, Purpose::Ask).await? {
                Ok(response) => response,
                Err(refusal) if matches!(refusal.status, 301 | 302 | 303 | 307 | 308) => {
                    let to = refusal.header(LOCATION.as_str()).and_then(|location| url.join(location).ok());
                    let to =
                        to.ok_or_else(|| self.error(ErrorKind::Protocol, "the output is redirected to nowhere"))?;
                    if self.own(to.as_str()).is_none() {
                        return self.elsewhere(to.as_str(), limits).await;
                    }
                    call = Call::link(to).with_timeout(limits.total);
                    continue;
                }
                Err(refusal) => return Err(self.refused(&refusal, Purpose::Ask, &call.sent())),
            };
            let length = response.content_length();
            if length.is_some_and(|length| length > limits.bytes) {
                return Err(self.too_long(limits.bytes));
            }
            let client = self.clone();
            let bytes = response.bytes_stream().map(move |chunk| chunk.map_err(|e| client.broken(e, Purpose::Ask)));
            return Ok(Body::new(self.clone().counted(bytes, limits.bytes), length));
        }
        Err(self.error(ErrorKind::Protocol, "the output is redirected too often"))
    }

    async fn elsewhere(&self, url: &str, limits: DownloadLimits) -> Result<Body> {
        let refused = |e: Error| self.error(ErrorKind::Protocol, "the output's URL may not be called").with_source(e);
        let url = self.shared.guard.check(url).map_err(refused)?;
        Ok(self.shared.guard.get(&url, limits).await?.any())
    }

    /// The bytes, with an error in place of those that are too many.
    fn counted(
        self,
        bytes: impl Stream<Item = Result<Bytes>> + Send + 'static,
        limit: u64,
    ) -> impl Stream<Item = Result<Bytes>> + Send {
        stream::unfold(Some((bytes.boxed(), limit)), move |state| {
            let client = self.clone();
            async move {
                let (mut bytes, left) = state?;
                match bytes.next().await? {
                    Ok(chunk) => match left.checked_sub(u64::try_from(chunk.len()).unwrap_or(u64::MAX)) {
                        Some(left) => Some((Ok(chunk), Some((bytes, left)))),
                        None => Some((Err(client.too_long(limit)), None)),
                    },
                    Err(error) => Some((Err(error), None)),
                }
            }
        })
    }

    fn too_long(&self, limit: u64) -> Error {
        self.error(ErrorKind::Media, format!("the output is longer than {limit} bytes"))
    }

    /// A link to an image that the remote can fetch for `life`, if the host's store makes such ones.
    pub(crate) async fn public_link(&self, image: &MediaInput, life: Duration) -> Option<String> {
        let link = image.link(life).await.ok().flatten()?;
        // One that a remote is no use with, or that its own rules refuse, is none.
        (link.scheme() == "https" || self.base.scheme() == "http").then(|| link.into())
    }

    /// Where the answer to a submit shall be kept; asked for before the submit.
    ///
    /// # Errors
    /// `Internal` if the options have no such place: nothing was bought.
    pub(crate) fn spool<'a>(&self, options: &'a SubmitOptions) -> Result<&'a Spool> {
        options.spool.as_ref().ok_or_else(|| self.error(ErrorKind::Internal, "there is nowhere to keep the answer"))
    }

    /// Keeps the answer to a submit, as long as speech may be. Where that fails, something may have
    /// been bought and is lost.
    ///
    /// # Errors
    /// `OutcomeUnknown`, whatever the cause.
    pub(crate) async fn keep(&self, spool: &Spool, mut body: Body) -> Result<Output> {
        let length = body.length();
        let first = loop {
            match body.next().await {
                Some(Ok(chunk)) if chunk.is_empty() => {}
                Some(chunk) => break chunk,
                None => return Err(self.lost("the answer is empty")),
            }
        };
        let whole = stream::once(async { first }).chain(body);
        let body = Body::new(self.clone().counted(whole, DownloadLimits::SPEECH.bytes), length);
        spool.keep(body).await.map_err(|e| self.lost("the answer could not be kept").with_source(e))
    }
}
