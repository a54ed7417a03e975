//! Sending a call, and what its answer means.

use std::fmt;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use futures::TryStreamExt;
use reqwest::header::HeaderMap;
use reqwest::{Method, Response};
use serde::de::DeserializeOwned;
use serde_json::Value;
use vidgen_core::net::CallLimits;
use vidgen_core::{Body, Error, ErrorKind, Result};

use super::refusal::{Purpose, Refusal, wait};
use super::{Call, Client};

/// What is asked is asked so often again: it passes over a restart of the remote's front end, and
/// a poll of a remote that is really down ends soon.
const ASK_AGAIN: usize = 2;
/// Before the first repetition; the second one waits twice as long. Jittered, so that the jobs of a
/// process do not come back together.
const ASK_DELAY: Duration = Duration::from_millis(200);
/// What is read of an answer that is no 2xx: any reason fits, and no page of an attacker's.
const MAX_REFUSAL: usize = 64 * 1024;
/// All that comes before a submit: an image of 20 MiB over a slow line. A provider's submits may take
/// so much longer than the answer to the one request that buys.
pub(super) const PREPARE_TIMEOUT: Duration = Duration::from_secs(30);
/// A little less, or the pipeline's patience ends first: then it cannot know that nothing was bought.
const PREPARE_WITHIN: Duration = Duration::from_secs(28);

/// An answer to a call.
pub(crate) struct Answer<T> {
    /// The HTTP status.
    pub(crate) status: u16,
    headers: HeaderMap,
    /// What it says.
    pub(crate) body: T,
}

impl<T> Answer<T> {
    /// A header, if it is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// How long it asks us to wait.
    pub(crate) fn wait(&self) -> Option<Duration> {
        wait(&self.headers)
    }

    fn map<U>(self, to: impl FnOnce(T) -> Result<U>) -> Result<Answer<U>> {
        Ok(Answer { status: self.status, headers: self.headers, body: to(self.body)? })
    }
}

/// Without headers and body.
impl<T> fmt::Debug for Answer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("status", &self.status).finish_non_exhaustive()
    }
}

impl Client {
    /// Buys, by one request that is never repeated. An answer that cannot be read says nothing of
    /// what was bought: `OutcomeUnknown`, as anything else that is no clear refusal.
    ///
    /// # Errors
    /// As P8 has them, or what the provider's judge says.
    pub(crate) async fn submit<T: DeserializeOwned>(&self, call: Call) -> Result<Answer<T>> {
        let answer = self.once(&self.shared.submit, &call, Purpose::Submit).await?;
        answer.map(|body| {
            serde_json::from_slice(&body)
                .map_err(|e| self.lost("the answer cannot be understood").with_source(blur(&e)))
        })
    }

    /// The same, where the answer is the output itself. Its bytes stream: they are to be kept
    /// before the submit is said to have worked. Where they break off, the outcome is unknown.
    ///
    /// # Errors
    /// As [`Client::submit`].
    pub(crate) async fn submit_for_bytes(&self, call: Call) -> Result<Answer<Body>> {
        let response = self.begin(&self.shared.submit, &call, Purpose::Submit).await?;
        let length = response.content_length();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let client = self.clone();
        let stream =
            response.bytes_stream().map_err(move |e| client.lost("the answer broke off").with_source(e.without_url()));
        Ok(Answer { status, headers, body: Body::new(stream, length) })
    }

    /// Does what comes before a submit and buys nothing, such as an upload; asked again like a look.
    ///
    /// # Errors
    /// Each kind says that nothing was bought.
    pub(crate) async fn prepare<T: DeserializeOwned>(&self, call: Call) -> Result<Answer<T>> {
        let call = call.within(PREPARE_TIMEOUT);
        let answered = async {
            let answer = self.again(&call, Purpose::Prepare).await?;
            answer.map(|body| self.understood(&body))
        };
        self.in_time(answered).await
    }

    /// All that comes before a submit, within its time: reading an image and handing it over.
    ///
    /// # Errors
    /// Each kind says that nothing was bought.
    pub(crate) async fn in_time<T>(&self, preparing: impl Future<Output = Result<T>>) -> Result<T> {
        let late = || self.error(ErrorKind::Unavailable, "what comes before the submit takes too long");
        tokio::time::timeout(PREPARE_WITHIN, preparing).await.unwrap_or_else(|_| Err(late())).map_err(nothing_bought)
    }

    /// Looks, or stops something, and takes the answer for JSON: asked a few times again where
    /// there is no answer, or a 5xx. Not for what may not happen twice.
    ///
    /// # Errors
    /// `Protocol` if it is none; `Unavailable`, `RateLimited`, `Unauthorized`, `NotFound`, or what
    /// the provider's judge says.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, call: Call) -> Result<Answer<T>> {
        let answer = self.again(&call, Purpose::Ask).await?;
        answer.map(|body| self.understood(&body))
    }

    /// The same, where the answer says no more than that it worked.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub(crate) async fn tell(&self, call: Call) -> Result<Answer<()>> {
        self.again(&call, Purpose::Ask).await?.map(|_| Ok(()))
    }

    /// Puts a file where the remote said that it shall go: a link of the remote's, without our key.
    /// To other hosts than the API's, only through the guard.
    ///
    /// # Errors
    /// As [`Client::prepare`].
    pub(crate) async fn upload(&self, call: Call) -> Result<Answer<Bytes>> {
        let call = call.within(PREPARE_TIMEOUT);
        self.in_time(self.put_there(&call)).await
    }

    async fn put_there(&self, call: &Call) -> Result<Answer<Bytes>> {
        let link = self.link_of(call)?;
        if self.own(&link).is_some() {
            let request = self.without_key(&self.shared.read, call)?.timeout(PREPARE_TIMEOUT);
            let response = request.send().await.map_err(|e| self.broken(e, Purpose::Prepare))?;
            return match self.taken(response).await {
                Ok(response) => self.read(response, call, Purpose::Prepare).await,
                // Its signature is what it refuses, or the file: neither our key nor the request.
                Err(refusal) => Err(self.upload_refused(refusal.status)),
            };
        }
        let (headers, body) = self.encoded(call).await?;
        // A link that may not be called is the remote's fault, and no bad field of the request's.
        let refused =
            |e: Error| self.error(ErrorKind::Unavailable, "the upload leads where nobody may call").with_source(e);
        let (guard, limits) = (&self.shared.guard, CallLimits::WEBHOOK.with_total(PREPARE_TIMEOUT));
        let url = guard.check(&link).map_err(refused)?;
        let answer = match call.method {
            Method::POST => guard.post(&url, headers, body, limits).await?,
            Method::PUT => guard.put(&url, headers, body, limits).await?,
            _ => return Err(self.error(ErrorKind::Unsupported, "files go to other hosts by POST or PUT only")),
        };
        if !(200..300).contains(&answer.status) {
            return Err(self.upload_refused(answer.status));
        }
        Ok(Answer { status: answer.status, headers: HeaderMap::new(), body: answer.body })
    }

    fn upload_refused(&self, status: u16) -> Error {
        self.error(ErrorKind::Unavailable, format!("the upload was answered {status}"))
    }

    /// The same, where a status that is no 2xx is part of what is asked: that of a model, say,
    /// which its provider replays. Statuses that are about us (401, 402, 403, 429) are errors all
    /// the same.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub(crate) async fn ask_any(&self, call: Call) -> Result<Result<Answer<Value>, Refusal>> {
        let one = || async {
            match self.exchange(&self.shared.read, &call, Purpose::Ask).await? {
                Ok(response) => {
                    let answer = self.read(response, &call, Purpose::Ask).await?;
                    answer.map(|body| self.understood(&body)).map(Ok)
                }
                Err(refusal) if matches!(refusal.status, 401..=403 | 429) => {
                    Err(self.refused(&refusal, Purpose::Ask, &call.sent()))
                }
                Err(refusal) => Ok(Err(refusal)),
            }
        };
        one.retry(waits()).sleep(tokio::time::sleep).when(worth_asking_again).await
    }

    fn understood<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T> {
        serde_json::from_slice(body)
            .map_err(|e| self.error(ErrorKind::Protocol, "the answer cannot be understood").with_source(blur(&e)))
    }

    async fn again(&self, call: &Call, purpose: Purpose) -> Result<Answer<Bytes>> {
        let one = || self.once(&self.shared.read, call, purpose);
        one.retry(waits()).sleep(tokio::time::sleep).when(worth_asking_again).await
    }

    async fn once(&self, http: &reqwest::Client, call: &Call, purpose: Purpose) -> Result<Answer<Bytes>> {
        let response = self.begin(http, call, purpose).await?;
        self.read(response, call, purpose).await
    }

    async fn begin(&self, http: &reqwest::Client, call: &Call, purpose: Purpose) -> Result<Response> {
        let answer = self.exchange(http, call, purpose).await?;
        answer.map_err(|refusal| self.refused(&refusal, purpose, &call.sent()))
    }

    /// One request, up to the headers of a 2xx, or to the end of a refusal.
    pub(super) async fn exchange(
        &self,
        http: &reqwest::Client,
        call: &Call,
        purpose: Purpose,
    ) -> Result<Result<Response, Refusal>> {
        let usual = if purpose == Purpose::Submit { self.shared.submit_timeout } else { self.shared.read_timeout };
        let request = self.request(http, call)?.timeout(call.timeout.unwrap_or(usual));
        let response = request.send().await.map_err(|e| self.broken(e, purpose))?;
        Ok(self.taken(response).await)
    }

    /// Parts the 2xx from the rest.
    pub(super) async fn taken(&self, response: Response) -> Result<Response, Refusal> {
        if response.status().is_success() {
            return Ok(response);
        }
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        // The status counts, however the rest of it ends.
        let text = read_up_to(response, MAX_REFUSAL).await.unwrap_or_default();
        let body = serde_json::from_slice(&text).unwrap_or_else(|_| String::from_utf8_lossy(&text).into());
        Err(Refusal { status, headers, body })
    }

    async fn read(&self, response: Response, call: &Call, purpose: Purpose) -> Result<Answer<Bytes>> {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = read_up_to(response, call.max_answer).await.map_err(|e| match e {
            Some(e) => self.broken(e, purpose),
            None if purpose == Purpose::Submit => self.lost("the answer is too long"),
            None => self.error(ErrorKind::Protocol, "the answer is too long"),
        })?;
        Ok(Answer { status, headers, body })
    }

    /// What no answer means.
    pub(super) fn broken(&self, error: reqwest::Error, purpose: Purpose) -> Error {
        if error.is_builder() && purpose == Purpose::Ask {
            return self.not_made(error);
        }
        // Before there is a connection, not a byte of the request is written.
        let (kind, what) = match (purpose, error.is_connect() || error.is_builder()) {
            (Purpose::Submit | Purpose::Prepare, true) => (ErrorKind::NotSent, "the remote cannot be reached"),
            (Purpose::Ask, true) => (ErrorKind::Unavailable, "the remote cannot be reached"),
            (Purpose::Submit, false) => (ErrorKind::OutcomeUnknown, "the answer was lost, so the outcome is unknown"),
            (Purpose::Prepare | Purpose::Ask, false) if error.is_timeout() => {
                (ErrorKind::Unavailable, "the remote does not answer")
            }
            (Purpose::Prepare | Purpose::Ask, false) => (ErrorKind::Unavailable, "the answer broke off"),
        };
        self.error(kind, what).with_source(error.without_url())
    }
}

/// Makes an error of what comes before a submit one that says so (P8): whatever went wrong, nothing
/// was bought.
pub(super) fn nothing_bought(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Invalid
        | ErrorKind::Refused
        | ErrorKind::Unauthorized
        | ErrorKind::OverBudget
        | ErrorKind::NotFound
        | ErrorKind::RateLimited
        | ErrorKind::NotSent
        | ErrorKind::Unavailable
        | ErrorKind::Unsupported => error,
        _ => {
            let origin = error.origin().to_owned();
            let wait = error.retry_after();
            let outer =
                Error::new(ErrorKind::Unavailable, origin, "what comes before the submit failed").with_source(error);
            match wait {
                Some(wait) => outer.with_retry_after(wait),
                None => outer,
            }
        }
    }
}

fn waits() -> ExponentialBuilder {
    ExponentialBuilder::default().with_min_delay(ASK_DELAY).with_max_times(ASK_AGAIN).with_jitter()
}

/// A remote that says when to come back is taken at its word.
fn worth_asking_again(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotSent | ErrorKind::Unavailable) && error.retry_after().is_none()
}

/// All of a body; `None` for an error is: it is longer than that.
async fn read_up_to(mut response: Response, limit: usize) -> Result<Bytes, Option<reqwest::Error>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if bytes.len() + chunk.len() > limit {
            return Err(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.into())
}

/// Where the JSON went wrong, without what stood there.
fn blur(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Io | serde_json::error::Category::Syntax => "no JSON",
        serde_json::error::Category::Data => "other JSON than expected",
        serde_json::error::Category::Eof => "JSON that ends too early",
    };
    format!("{what} at line {} column {}", error.line(), error.column())
}
