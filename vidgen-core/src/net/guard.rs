//! The client itself.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, Method, Response};

use super::resolve::{Denied, ForClient, Judged, Resolve, SystemResolver};
use super::url::{CheckedUrl, Rules};
use crate::clock::until;
use crate::error::{Error, ErrorKind, Result};

pub(super) const ORIGIN: &str = "net";

/// Enough for two lost packets in a handshake; a public host that takes longer is down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Calls URLs that strangers wrote, and only public ones.
///
/// No proxy, redirect, retry, cookie, referer, compression or kept connection: each of them lets a
/// stranger choose a second address, or learn of ours. Clones share the client.
#[derive(Clone)]
pub struct Guard {
    pub(super) client: Client,
    pub(super) rules: Rules,
    breaches: Arc<AtomicU64>,
}

/// How much one call may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallLimits {
    /// From the first look-up to the last byte.
    pub total: Duration,
    /// How many bytes of the answer are read.
    pub answer: usize,
}

impl CallLimits {
    /// For a webhook: 15 s, 4 KiB.
    pub const WEBHOOK: Self = Self { total: Duration::from_secs(15), answer: 4096 };

    /// The same, with another time.
    #[must_use]
    pub fn with_total(self, total: Duration) -> Self {
        Self { total, ..self }
    }
}

/// What a call was answered.
#[derive(Clone)]
#[non_exhaustive]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The start of the body; shorter than the limit if the receiver stopped in the middle.
    pub body: Bytes,
    retry_after: Option<String>,
}

impl Answer {
    /// How long the receiver wants us to wait, from `now` on, if it says so: seconds or a date
    /// (RFC 9110, 10.2.3).
    #[must_use]
    pub fn retry_after(&self, now: Timestamp) -> Option<Duration> {
        let text = self.retry_after.as_deref()?.trim();
        if let Ok(seconds) = text.parse() {
            return Some(Duration::from_secs(seconds));
        }
        let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
        Some(until(now, date))
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The body is a stranger's, and may quote what we sent.
        f.debug_struct("Answer").field("status", &self.status).finish_non_exhaustive()
    }
}

impl Guard {
    /// Allows https on port 443 to public addresses, and nothing else.
    #[must_use]
    pub fn builder() -> GuardBuilder {
        GuardBuilder { ports: vec![443], allowed: Vec::new(), resolver: Arc::new(SystemResolver) }
    }

    /// Whether `text` is a URL that may be called at all. No I/O.
    ///
    /// # Errors
    /// `Invalid`, with the one field `url`, saying what it should be.
    pub fn check(&self, text: &str) -> Result<CheckedUrl> {
        self.rules.check(text)
    }

    /// Posts `body` to `url`, once.
    ///
    /// # Errors
    /// `Invalid` if the rules here are not those that `url` was checked by. Else `Unavailable`, in
    /// the same words for what was denied, refused, timed out or not found, so that nobody can
    /// map our network by asking.
    pub async fn post(&self, url: &CheckedUrl, headers: HeaderMap, body: Bytes, limits: CallLimits) -> Result<Answer> {
        // The other guard that checked it may have allowed more; and a literal address is never
        // shown to the resolver.
        self.rules.judge(&url.0)?;
        self.exchange(Method::POST, url, headers, body, limits).await
    }

    /// Puts `body` at `url`, once: where a remote wants a file to be left.
    ///
    /// # Errors
    /// As [`Guard::post`].
    pub async fn put(&self, url: &CheckedUrl, headers: HeaderMap, body: Bytes, limits: CallLimits) -> Result<Answer> {
        self.rules.judge(&url.0)?;
        self.exchange(Method::PUT, url, headers, body, limits).await
    }

    /// How often an answer came from an address that should have been out of reach. Anything but
    /// zero means that the guard has a hole: raise an alarm.
    #[must_use]
    pub fn ssrf_guard_breaches(&self) -> u64 {
        self.breaches.load(Ordering::Relaxed)
    }

    async fn exchange(
        &self,
        method: Method,
        url: &CheckedUrl,
        headers: HeaderMap,
        body: Bytes,
        limits: CallLimits,
    ) -> Result<Answer> {
        let start = tokio::time::Instant::now();
        let request = self.client.request(method, url.0.clone()).headers(headers).body(body).send();
        let response = match tokio::time::timeout(limits.total, request).await {
            Err(_) => return Err(unreachable("timed out")),
            Ok(Err(e)) => return Err(unreachable(cause(&e))),
            Ok(Ok(response)) => response,
        };
        self.check_peer(response.remote_addr())?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let rest = limits.total.saturating_sub(start.elapsed());
        let body = read_start(response, limits.answer, rest).await;
        Ok(Answer { status, body, retry_after })
    }

    pub(super) fn check_peer(&self, peer: Option<SocketAddr>) -> Result<()> {
        if peer.is_some_and(|peer| self.rules.is_peer(peer)) {
            return Ok(());
        }
        self.breaches.fetch_add(1, Ordering::Relaxed);
        tracing::error!(
            ssrf_guard_breach_total = self.ssrf_guard_breaches(),
            "an answer came from a forbidden address"
        );
        Err(unreachable("forbidden peer"))
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("rules", &self.rules).field("breaches", &self.breaches).finish_non_exhaustive()
    }
}

/// The start of a body. The status has already said how the call went, so an answer that breaks or
/// drags on after it is cut and no failure.
async fn read_start(mut response: Response, limit: usize, time: Duration) -> Bytes {
    let mut start = Vec::new();
    let reading = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            let room = limit.saturating_sub(start.len());
            start.extend(chunk.iter().take(room));
            if chunk.len() >= room {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(time, reading).await;
    start.into()
}

/// The one error of every call that got no answer; its cause goes to the log, without the address.
pub(super) fn unreachable(cause: &str) -> Error {
    tracing::debug!(cause, "a guarded call failed");
    Error::new(ErrorKind::Unavailable, ORIGIN, "the host cannot be reached")
}

pub(super) fn cause(error: &reqwest::Error) -> &'static str {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if inner.is::<Denied>() {
            return "denied";
        }
        source = inner.source();
    }
    if error.is_timeout() {
        "timed out"
    } else if error.is_connect() {
        "cannot connect"
    } else {
        "broken off"
    }
}

/// Puts a [`Guard`] together.
#[derive(Clone, Debug)]
pub struct GuardBuilder {
    ports: Vec<u16>,
    allowed: Vec<SocketAddr>,
    resolver: Arc<dyn Resolve>,
}

impl GuardBuilder {
    /// Allows another port.
    #[must_use]
    pub fn with_port(mut self, port: u16) -> Self {
        self.ports.push(port);
        self
    }

    /// Allows this one socket, whatever its address, over http, too. For development and tests: a
    /// URL gets there only if its host is this very address.
    #[must_use]
    pub fn with_allowed(mut self, socket: SocketAddr) -> Self {
        self.allowed.push(socket);
        self
    }

    /// Looks names up with `resolver`. What it answers is judged like any other answer.
    #[must_use]
    pub fn with_resolver(mut self, resolver: Arc<dyn Resolve>) -> Self {
        self.resolver = resolver;
        self
    }

    /// Builds it.
    ///
    /// # Errors
    /// `Internal` if there is no TLS to be had.
    pub fn build(self) -> Result<Guard> {
        self.build_with(|inner| Judged {
            inner,
            #[cfg(test)]
            lets_all_pass: false,
        })
    }

    #[expect(clippy::disallowed_methods, reason = "the one place where a guarded client is made")]
    pub(super) fn build_with(self, judge: impl FnOnce(Arc<dyn Resolve>) -> Judged) -> Result<Guard> {
        // Each line is pinned by a test below; compression is said off by name, because another
        // crate of the host may have turned the feature on.
        let client = Client::builder()
            .dns_resolver(ForClient(Arc::new(judge(self.resolver))))
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .pool_max_idle_per_host(0)
            .connect_timeout(CONNECT_TIMEOUT)
            .build()
            .map_err(|e| Error::internal(ORIGIN, "cannot make an HTTP client").with_source(e.without_url()))?;
        Ok(Guard {
            client,
            rules: Rules { ports: self.ports, allowed: self.allowed },
            breaches: Arc::new(AtomicU64::new(0)),
        })
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod namespace;
#[cfg(test)]
mod tests;
