//! The one error type. Its kind is chosen by what the *caller* should do next.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The result of everything in vidgen.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How long a remote's own words may be when an error quotes them, in characters.
const MAX_QUOTE: usize = 200;
/// Nobody who is told to come back sooner helps the remote, or himself.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
/// A remote that wants more has a broken clock: after a day somebody asks again.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// What went wrong, where, and what to do next.
///
/// Messages name the thing at fault and never hold keys, prompts, signed URLs or raw bodies.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    origin: Cow<'static, str>,
    message: String,
    retry_after: Option<Duration>,
    fields: Vec<FieldError>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// What the caller should do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request is wrong; [`Error::fields`] says where. Change it.
    Invalid,
    /// The content was refused (moderation, policy). Change it; never fail over.
    Refused,
    /// A key is missing, wrong or revoked. Stop and alert.
    Unauthorized,
    /// There is no such thing (or it is somebody else's).
    NotFound,
    /// It contradicts what is already there.
    Conflict,
    /// Too many in this window. Wait [`Error::retry_after`].
    RateLimited,
    /// The tenant's budget, or the account at a provider, is used up.
    OverBudget,
    /// Nothing reached the remote. Safe to send again.
    NotSent,
    /// The remote is away or overloaded, and nothing was bought. Try later.
    Unavailable,
    /// The remote may have accepted it, but the answer was lost. Reconcile; never send again.
    OutcomeUnknown,
    /// This backend cannot do that. Use another.
    Unsupported,
    /// The remote answered something we do not understand.
    Protocol,
    /// It already ended; nothing was changed.
    TooLate,
    /// This claim is no longer ours. Stop, write nothing, tell nobody.
    Stale,
    /// A media file is not what it should be (too big, truncated, wrong type).
    Media,
    /// A fault of ours or of the host's configuration.
    Internal,
}

impl ErrorKind {
    /// The kind as the machine-readable `code` of an API answer or a failed job.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Invalid => "invalid_request",
            Self::Refused => "content_refused",
            Self::Unauthorized => "unauthorized",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::RateLimited => "rate_limited",
            Self::OverBudget => "over_budget",
            Self::NotSent | Self::Unavailable => "unavailable",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::Unsupported => "unsupported",
            Self::Protocol => "provider_protocol",
            Self::TooLate => "too_late",
            Self::Stale => "stale_claim",
            Self::Media => "media_invalid",
            Self::Internal => "internal",
        }
    }
}

/// One bad field of a request: which, and what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldError {
    /// The field as the user wrote it, e.g. `prompt`; empty for the body as a whole.
    pub field: String,
    /// What it should be.
    pub message: String,
}

impl FieldError {
    /// Says that `field` is wrong because of `message`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

impl Error {
    /// Makes an error of `kind`, raised by `origin` (a backend's name, such as `sqlite`).
    pub fn new(kind: ErrorKind, origin: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            origin: origin.into(),
            message: message.into(),
            retry_after: None,
            fields: Vec::new(),
            source: None,
        }))
    }

    /// A request with bad fields.
    #[must_use]
    pub fn invalid(fields: Vec<FieldError>) -> Self {
        let names: Vec<&str> = fields.iter().map(|f| f.field.as_str()).collect();
        let mut error = Self::new(ErrorKind::Invalid, "request", format!("invalid request: {}", names.join(", ")));
        error.0.fields = fields;
        error
    }

    /// A request with one bad field.
    pub fn invalid_field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::invalid(vec![FieldError::new(field, message)])
    }

    /// An unknown job, or one of another tenant: the two are not told apart.
    #[must_use]
    pub fn job_not_found() -> Self {
        Self::new(ErrorKind::NotFound, "queue", "job not found")
    }

    /// A fault of ours.
    pub fn internal(origin: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, origin, message)
    }

    /// Keeps the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Says how long to wait before the next attempt: a day at most.
    #[must_use]
    pub fn with_retry_after(mut self, delay: Duration) -> Self {
        self.0.retry_after = Some(delay.min(LONGEST_WAIT));
        self
    }

    /// Appends a remote's own reason to the message, cut to 200 characters and one line.
    #[must_use]
    pub fn with_quote(mut self, reason: &str) -> Self {
        self.0.message = format!("{}: {}", self.0.message, quote(reason));
        self
    }

    /// What the caller should do next.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The backend that raised it.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.0.origin
    }

    /// What went wrong, without the origin.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// How long to wait, if the remote or the limit said so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// How long whoever asks again shall wait: what the remote said, but a second at least. No wait
    /// at all says nothing, and he takes a pause of his own.
    pub(crate) fn wait(&self) -> Option<Duration> {
        self.0.retry_after.filter(|delay| !delay.is_zero()).map(|delay| delay.max(SHORTEST_WAIT))
    }

    /// The bad fields of an [`ErrorKind::Invalid`].
    #[must_use]
    pub fn fields(&self) -> &[FieldError] {
        &self.0.fields
    }
}

/// Cuts a remote's words to what may be shown: one line, 200 characters, no control characters.
#[must_use]
pub fn quote(reason: &str) -> String {
    let line: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut short: String = line.trim().chars().take(MAX_QUOTE).collect();
    if line.trim().chars().count() > MAX_QUOTE {
        short.push('…');
    }
    short
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.origin, self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("origin", &self.0.origin)
            .field("message", &self.0.message)
            .field("retry_after", &self.0.retry_after)
            .field("fields", &self.0.fields)
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|s| s as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remote_reason_is_cut_and_flattened() {
        let long = "x\n".repeat(500);
        let error = Error::new(ErrorKind::Protocol, "acme", "bad answer").with_quote(&long);
        assert!(error.message().chars().count() < 230);
        assert!(!error.message().contains('\n'));
    }

    #[test]
    fn the_cause_is_kept() {
        let error = Error::internal("acme", "no disk").with_source(std::io::Error::other("full"));
        assert_eq!(error.source().map(ToString::to_string), Some("full".into()));
    }
}
