//! What an answer that is no 2xx means: what the caller should do next.

use std::fmt;
use std::time::Duration;

use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};
use serde_json::Value;
use vidgen_core::{Error, ErrorKind};

use super::Client;
use super::quote::quotable;

/// A remote that wants to be left alone for longer has a fault; the job asks again then.
const MAX_WAIT: Duration = Duration::from_hours(24);

/// An answer that is no 2xx.
pub(crate) struct Refusal {
    /// The HTTP status.
    pub(crate) status: u16,
    pub(super) headers: HeaderMap,
    /// The body, if it is JSON; else a string, if it is text.
    pub(crate) body: Value,
}

/// What a provider says of a [`Refusal`]; what it leaves open is judged as for all of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    kind: Option<ErrorKind>,
    wait: Option<Duration>,
    reason: Option<String>,
    mute: bool,
}

impl Verdict {
    /// It means this.
    pub(crate) fn of(kind: ErrorKind) -> Self {
        Self { kind: Some(kind), ..Self::default() }
    }

    /// The remote says elsewhere than in its headers how long to wait.
    pub(crate) fn with_wait(mut self, wait: Option<Duration>) -> Self {
        self.wait = wait;
        self
    }

    /// The remote's reason, where it lies elsewhere than usual.
    pub(crate) fn with_reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Its words are not to be quoted.
    pub(crate) fn mute(mut self) -> Self {
        self.mute = true;
        self
    }
}

/// What sort of call was refused, which decides what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It buys.
    Submit,
    /// It comes before a submit, and buys nothing.
    Prepare,
    /// It looks, or stops.
    Ask,
}

impl Refusal {
    /// A header of the answer, if it is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The text at a path of the body, such as `["error", "type"]`.
    pub(crate) fn text(&self, path: &[&str]) -> Option<&str> {
        path.iter().try_fold(&self.body, |value, name| value.get(name))?.as_str()
    }

    /// The remote's own reason, where most of them have it.
    pub(crate) fn reason(&self) -> Option<&str> {
        let paths: [&[&str]; 7] = [
            &["error", "message"],
            &["detail", "message"],
            &["detail"],
            &["error"],
            &["message"],
            &["title"],
            &["detail", "status"],
        ];
        paths.iter().find_map(|path| self.text(path)).filter(|reason| !reason.trim().is_empty())
    }

    fn kind(&self, purpose: Purpose) -> ErrorKind {
        match (purpose, self.status) {
            (_, 401) => ErrorKind::Unauthorized,
            (_, 403) => ErrorKind::Unauthorized,
            (_, 402) => ErrorKind::OverBudget,
            (_, 404) => ErrorKind::NotFound,
            (_, 429) => ErrorKind::RateLimited,
            (Purpose::Submit | Purpose::Prepare, 400 | 413 | 422) => ErrorKind::Invalid,
            // Behind a gateway's 5xx, or an answer that nobody expects, the run may be going on.
            (Purpose::Submit, _) => ErrorKind::OutcomeUnknown,
            (Purpose::Prepare, _) => ErrorKind::Unavailable,
            (Purpose::Ask, 410) => ErrorKind::NotFound,
            (Purpose::Ask, 408 | 425 | 500..) => ErrorKind::Unavailable,
            (Purpose::Ask, _) => ErrorKind::Protocol,
        }
    }
}

/// Without headers and body.
impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusal").field("status", &self.status).finish_non_exhaustive()
    }
}

impl Client {
    /// The error that a refusal is.
    pub(super) fn refused(&self, refusal: &Refusal, purpose: Purpose, sent: &[String]) -> Error {
        let verdict = (self.shared.judge)(refusal);
        let kind = verdict.kind.unwrap_or_else(|| refusal.kind(purpose));
        let mut error = self.error(kind, format!("the remote answered {}", refusal.status));
        let reason = verdict.reason.as_deref().or_else(|| refusal.reason()).filter(|_| !verdict.mute);
        if let Some(reason) = reason.and_then(|r| quotable(r, sent.iter().map(String::as_str))) {
            error = error.with_quote(&reason);
        }
        match verdict.wait.or_else(|| wait(&refusal.headers)) {
            Some(wait) => error.with_retry_after(wait.min(MAX_WAIT)),
            None => error,
        }
    }
}

/// How long an answer asks us to wait: milliseconds, seconds, or a date, which is read against the
/// answer's own, since clocks differ (RFC 9110, 10.2.3).
pub(super) fn wait(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let number = |text: &str| text.parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0);
    let seconds = |n: f64| Duration::try_from_secs_f64(n).ok();
    if let Some(wait) = text("retry-after-ms").and_then(number).and_then(|ms| seconds(ms / 1000.0)) {
        return Some(wait);
    }
    let after = text(RETRY_AFTER.as_str())?;
    if let Some(n) = number(after) {
        return seconds(n);
    }
    let date = |text: &str| jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok();
    let (then, now) = (date(after)?, date(text(DATE.as_str())?)?);
    // A date that has passed means: now.
    Some(then.duration_since(now).try_into().unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_wait_is_seconds_milliseconds_or_a_date() {
        let date = ("date", "Wed, 21 Oct 2015 07:27:00 GMT");
        let said = |all: &[(&'static str, &'static str)]| wait(&headers(all)).map(|wait| wait.as_millis());
        assert_eq!(said(&[("retry-after", "120")]), Some(120_000));
        assert_eq!(said(&[("retry-after", "1.5")]), Some(1500));
        assert_eq!(said(&[("retry-after-ms", "250"), ("retry-after", "9")]), Some(250));
        assert_eq!(said(&[date, ("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")]), Some(60_000));
        assert_eq!(said(&[date, ("retry-after", "Wed, 21 Oct 2015 07:26:00 GMT")]), Some(0));
        // Without the answer's own date, nobody knows by which clock.
        assert_eq!(said(&[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")]), None);
        for nonsense in ["", "soon", "-1", "inf", "NaN", "1e300"] {
            assert_eq!(said(&[("retry-after", nonsense)]), None, "{nonsense}");
        }
        assert_eq!(said(&[]), None);
    }
}
