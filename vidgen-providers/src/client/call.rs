//! One call, put together so that no id in its path can lead elsewhere.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::multipart;
use serde_json::Value;
use url::Url;
use vidgen_core::{Error, ErrorKind, Result};

use super::Client;

/// What may stand in a path segment as it is (RFC 3986, 2.3), and the colon of `model:verb`. A
/// percent sign may not, so that nothing which is encoded already is decoded by somebody.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b':');

/// Enough for a prediction that echoes a small image, or lists a hundred of them.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// One call to an API.
#[derive(Clone)]
pub(crate) struct Call {
    pub(super) method: Method,
    target: Target,
    query: Vec<(&'static str, String)>,
    pub(super) headers: HeaderMap,
    pub(super) payload: Payload,
    pub(super) timeout: Option<Duration>,
    pub(super) max_answer: usize,
}

#[derive(Clone)]
enum Target {
    /// Below the base URL.
    Path(Vec<String>),
    /// What the remote answered.
    Link(String),
}

#[derive(Clone)]
pub(super) enum Payload {
    Nothing,
    Json(Value),
    Form(Vec<Part>),
    Bytes(Bytes),
}

/// One part of a multipart form.
#[derive(Clone)]
pub(crate) struct Part {
    name: Cow<'static, str>,
    file_name: Option<String>,
    media_type: Option<&'static str>,
    bytes: Bytes,
}

impl Part {
    /// A plain field.
    pub(crate) fn text(name: impl Into<Cow<'static, str>>, value: impl Into<String>) -> Self {
        Self { name: name.into(), file_name: None, media_type: None, bytes: value.into().into() }
    }

    /// A file.
    pub(crate) fn file(
        name: impl Into<Cow<'static, str>>,
        file_name: impl Into<String>,
        media_type: &'static str,
        bytes: Bytes,
    ) -> Self {
        Self { name: name.into(), file_name: Some(file_name.into()), media_type: Some(media_type), bytes }
    }

    /// A field that is JSON, and says so.
    pub(crate) fn json(name: impl Into<Cow<'static, str>>, value: &Value) -> Self {
        let bytes = value.to_string().into();
        Self { name: name.into(), file_name: None, media_type: Some("application/json"), bytes }
    }

    fn into_part(self) -> Result<multipart::Part, reqwest::Error> {
        // With its length, or the whole form would go out in chunks, which some servers refuse.
        let length = u64::try_from(self.bytes.len()).unwrap_or(u64::MAX);
        let mut part = multipart::Part::stream_with_length(self.bytes, length);
        if let Some(name) = self.file_name {
            part = part.file_name(name);
        }
        match self.media_type {
            Some(media_type) => part.mime_str(media_type),
            None => Ok(part),
        }
    }
}

impl Call {
    /// Reads what lies at these segments below the base URL. Ids are opaque and may hold anything:
    /// each stays within its segment.
    pub(crate) fn get<S: Into<String>>(path: impl IntoIterator<Item = S>) -> Self {
        Self::new(Method::GET, Target::Path(path.into_iter().map(Into::into).collect()))
    }

    /// The same with POST.
    pub(crate) fn post<S: Into<String>>(path: impl IntoIterator<Item = S>) -> Self {
        Self { method: Method::POST, ..Self::get(path) }
    }

    /// The same with PUT.
    pub(crate) fn put<S: Into<String>>(path: impl IntoIterator<Item = S>) -> Self {
        Self { method: Method::PUT, ..Self::get(path) }
    }

    /// The same with DELETE.
    pub(crate) fn delete<S: Into<String>>(path: impl IntoIterator<Item = S>) -> Self {
        Self { method: Method::DELETE, ..Self::get(path) }
    }

    /// Reads a link that the remote answered, if it leads to the API itself (else `Protocol`).
    pub(crate) fn link(link: impl Into<String>) -> Self {
        Self::new(Method::GET, Target::Link(link.into()))
    }

    fn new(method: Method, target: Target) -> Self {
        Self {
            method,
            target,
            query: Vec::new(),
            headers: HeaderMap::new(),
            payload: Payload::Nothing,
            timeout: None,
            max_answer: MAX_ANSWER,
        }
    }

    /// Uses another method, for links.
    pub(crate) fn with_method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    /// Adds to the query.
    pub(crate) fn with_query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    /// Sends a header; one that cannot be a header is left out.
    pub(crate) fn with_header(mut self, name: &'static str, value: impl AsRef<str>) -> Self {
        if let Ok(value) = HeaderValue::from_str(value.as_ref()) {
            self.headers.insert(HeaderName::from_static(name), value);
        }
        self
    }

    /// Sends JSON.
    pub(crate) fn with_json(mut self, body: impl Into<Value>) -> Self {
        self.payload = Payload::Json(body.into());
        self
    }

    /// Sends a multipart form.
    pub(crate) fn with_form(mut self, parts: impl IntoIterator<Item = Part>) -> Self {
        self.payload = Payload::Form(parts.into_iter().collect());
        self
    }

    /// Sends bytes.
    pub(crate) fn with_bytes(mut self, bytes: impl Into<Bytes>) -> Self {
        self.payload = Payload::Bytes(bytes.into());
        self
    }

    /// Waits longer, or less long, than the client does for calls of this sort.
    pub(crate) fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Waits so long, unless it says otherwise.
    pub(super) fn within(mut self, timeout: Duration) -> Self {
        self.timeout = self.timeout.or(Some(timeout));
        self
    }

    /// Takes a longer answer, e.g. one with a picture in it.
    pub(crate) fn with_max_answer(mut self, bytes: usize) -> Self {
        self.max_answer = bytes;
        self
    }

    /// The strings that go out, which no error may repeat.
    pub(super) fn sent(&self) -> Vec<String> {
        let mut all: Vec<String> = self.query.iter().map(|(_, value)| value.clone()).collect();
        match &self.payload {
            Payload::Json(body) => super::quote::strings(body, &mut all),
            Payload::Form(parts) => {
                let texts = parts.iter().filter(|part| part.file_name.is_none());
                all.extend(texts.filter_map(|part| String::from_utf8(part.bytes.to_vec()).ok()));
            }
            Payload::Nothing | Payload::Bytes(_) => {}
        }
        all
    }
}

/// The method alone: all else may hold what nobody may read in a log.
impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("method", &self.method).finish_non_exhaustive()
    }
}

impl Client {
    /// Where a call goes.
    ///
    /// # Errors
    /// `NotFound` if an id is one that no remote can know; `Protocol` for a link that leads elsewhere.
    pub(super) fn url(&self, call: &Call) -> Result<Url> {
        let mut url = match &call.target {
            Target::Path(segments) => self.below(segments)?,
            Target::Link(link) => self.own(link).ok_or_else(|| {
                self.error(ErrorKind::Protocol, "the remote answered a link that leads away from its API")
            })?,
        };
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&call.query);
        }
        Ok(url)
    }

    fn below(&self, segments: &[String]) -> Result<Url> {
        let mut path = self.base.path().trim_end_matches('/').to_owned();
        for segment in segments {
            // Parsers take these for steps, in any spelling.
            if matches!(segment.as_str(), "" | "." | "..") {
                return Err(self.error(ErrorKind::NotFound, "there can be nothing of that name"));
            }
            path.push('/');
            path.extend(utf8_percent_encode(segment, SEGMENT));
        }
        let mut url = self.base.clone();
        url.set_path(&path);
        Ok(url)
    }

    /// The link that a call goes to.
    pub(super) fn link_of(&self, call: &Call) -> Result<String> {
        match &call.target {
            Target::Link(link) => Ok(link.clone()),
            Target::Path(_) => self.url(call).map(String::from),
        }
    }

    /// The request that a call is, with the key: it goes nowhere but to the API.
    pub(super) fn request(&self, http: &reqwest::Client, call: &Call) -> Result<reqwest::RequestBuilder> {
        let mut request = http.request(call.method.clone(), self.url(call)?).headers(self.shared.headers.clone());
        if let Some((name, value)) = self.credential() {
            request = request.header(name, value);
        }
        self.filled(request, call)
    }

    /// The request without key, wherever it goes.
    pub(super) fn without_key(&self, http: &reqwest::Client, call: &Call) -> Result<reqwest::RequestBuilder> {
        self.filled(http.request(call.method.clone(), self.link_of(call)?), call)
    }

    fn filled(&self, request: reqwest::RequestBuilder, call: &Call) -> Result<reqwest::RequestBuilder> {
        let request = request.headers(call.headers.clone());
        Ok(match &call.payload {
            Payload::Nothing => request,
            Payload::Json(body) => request.json(body),
            Payload::Bytes(bytes) => request.body(bytes.clone()),
            Payload::Form(parts) => request.multipart(self.form(parts)?),
        })
    }

    fn form(&self, parts: &[Part]) -> Result<multipart::Form> {
        let mut form = multipart::Form::new();
        for part in parts {
            let name = part.name.clone();
            form = form.part(name, part.clone().into_part().map_err(|e| self.not_made(e))?);
        }
        Ok(form)
    }

    /// The headers and the body of a call that another client makes.
    pub(super) async fn encoded(&self, call: &Call) -> Result<(HeaderMap, Bytes)> {
        let mut headers = call.headers.clone();
        let (media_type, body) = match &call.payload {
            Payload::Nothing => return Ok((headers, Bytes::new())),
            Payload::Bytes(bytes) => return Ok((headers, bytes.clone())),
            Payload::Json(body) => ("application/json".to_owned(), body.to_string().into()),
            Payload::Form(parts) => {
                let form = self.form(parts)?;
                let media_type = format!("multipart/form-data; boundary={}", form.boundary());
                let chunks: Vec<Bytes> = form.into_stream().try_collect().await.map_err(|e| self.not_made(e))?;
                (media_type, chunks.concat().into())
            }
        };
        if let Ok(value) = HeaderValue::from_str(&media_type) {
            headers.insert(CONTENT_TYPE, value);
        }
        Ok((headers, body))
    }

    pub(super) fn not_made(&self, error: reqwest::Error) -> Error {
        self.error(ErrorKind::Internal, "the request cannot be made").with_source(error.without_url())
    }
}
