//! What a remote saw, and what it bills for.

use std::sync::OnceLock;

use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Multipart};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Request, StatusCode, Uri};
use bytes::Bytes;
use serde_json::Value;
use vidgen_core::SubmissionId;

use super::play::Answer;

/// What stands for a key that was taken out.
const REDACTED: &str = "…";

/// What kind of call it is: faults are dealt by it, and the ledger counts by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Buys a run.
    Submit,
    /// Asks for a run, a list, a price, a key.
    Read,
    /// Asks a run to stop.
    Cancel,
    /// Hands over an input.
    Upload,
    /// Fetches an output.
    Output,
    /// Opens a line on which it is told of things; comes and goes by itself.
    Listen,
}

/// One call, as it came in.
#[derive(Debug)]
#[non_exhaustive]
pub struct Seen {
    /// Which call it was, from 1.
    pub number: u64,
    /// Which it was of its class, from 1.
    pub of_class: u64,
    /// What kind of call.
    pub class: Class,
    /// `GET`, `POST`, …
    pub method: Method,
    /// Path and query, as they came.
    pub uri: Uri,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// How the play wants it answered, if it bought something.
    pub(super) after: OnceLock<Answer>,
}

/// What was accepted: what the remote bills for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Accepted {
    /// Which it was, from 1.
    pub number: u64,
    /// Our id of it, as far as the remote could see that anywhere.
    pub submission: Option<SubmissionId>,
    /// The remote's id of its run.
    pub remote_id: String,
    /// The model.
    pub model: String,
    /// The [`Seen::number`] of the call that bought it.
    pub call: u64,
}

/// One attempt to call back.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivery {
    /// The remote's id of the run.
    pub remote_id: String,
    /// What the receiver answered; `None` if it could not be reached, or is not on this machine.
    pub status: Option<u16>,
}

/// One part of a form.
#[derive(Clone, Debug)]
pub struct Field {
    /// The field's name.
    pub name: String,
    /// The file's name, if it is a file.
    pub file_name: Option<String>,
    /// Its type, if it says so.
    pub content_type: Option<String>,
    /// What it holds.
    pub bytes: Bytes,
}

impl Field {
    /// What it holds, as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

impl Seen {
    /// The path without its query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.uri.path()
    }

    /// The value of a query parameter, decoded.
    #[must_use]
    pub fn query(&self, name: &str) -> Option<String> {
        let pairs = url::form_urlencoded::parse(self.uri.query()?.as_bytes());
        pairs.into_iter().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }

    /// The value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as JSON; null if it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The fields of a form (multipart), in order; none if it is not one.
    pub async fn form(&self) -> Vec<Field> {
        let mut request = Request::new(axum::body::Body::from(self.body.clone()));
        request.headers_mut().clone_from(&self.headers);
        *request.method_mut() = Method::POST;
        // It came in whole; axum's own limit would cut it at 2 MB.
        DefaultBodyLimit::disable().apply(&mut request);
        let Ok(mut form) = Multipart::from_request(request, &()).await else { return Vec::new() };
        let mut fields = Vec::new();
        while let Ok(Some(part)) = form.next_field().await {
            let name = part.name().unwrap_or_default().to_owned();
            let (file_name, content_type) =
                (part.file_name().map(str::to_owned), part.content_type().map(str::to_owned));
            let Ok(bytes) = part.bytes().await else { break };
            fields.push(Field { name, file_name, content_type, bytes });
        }
        fields
    }

    /// All of it as text: request line, headers, body. Bodies that are no text are shown as well
    /// as can be.
    #[must_use]
    pub fn text(&self) -> String {
        let headers: String =
            self.headers.iter().map(|(k, v)| format!("{k}: {}\n", String::from_utf8_lossy(v.as_bytes()))).collect();
        format!("{} {}\n{headers}\n{}", self.method, self.uri, String::from_utf8_lossy(&self.body))
    }

    /// Our id of the submission, wherever the call carries it: in a callback URL's query, a
    /// header, a reference, the path.
    #[must_use]
    pub fn submission(&self) -> Option<SubmissionId> {
        let text = self.text();
        let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let ids = text.match_indices("sub_").filter_map(|(at, _)| {
            let rest = text.get(at..)?;
            let id = rest.split(|c| !is_part(c)).next()?;
            Some(SubmissionId::from_remote(id))
        });
        let mut others = Vec::new();
        for id in ids {
            if id.job().is_some() {
                return Some(id);
            }
            others.push(id);
        }
        // A test's own id, such as `sub_test`.
        others.into_iter().next()
    }

    /// The same without the key.
    pub(super) fn redacted(&self, key: &str) -> Self {
        let clean = |text: &str| text.replace(key, REDACTED);
        let mut headers = self.headers.clone();
        for value in headers.values_mut() {
            let text = String::from_utf8_lossy(value.as_bytes());
            if text.contains(key)
                && let Ok(cleaned) = axum::http::HeaderValue::from_bytes(clean(&text).as_bytes())
            {
                *value = cleaned;
            }
        }
        let uri = self.uri.to_string();
        let uri =
            if uri.contains(key) { uri.replace(key, "REDACTED").parse().unwrap_or_default() } else { self.uri.clone() };
        let body = match std::str::from_utf8(&self.body) {
            Ok(text) if text.contains(key) => clean(text).into(),
            _ => self.body.clone(),
        };
        Self {
            number: self.number,
            of_class: self.of_class,
            class: self.class,
            method: self.method.clone(),
            uri,
            headers,
            body,
            after: OnceLock::new(),
        }
    }
}

/// Hands a route what was seen.
#[derive(Clone, Debug)]
pub struct Asked(pub std::sync::Arc<Seen>);

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, StatusCode> {
        parts.extensions.get::<Self>().cloned().ok_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}
