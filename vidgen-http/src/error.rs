//! The one shape of every error answer (RFC 9457 members beside the tutorial's own).
//!
//! A route answers a [`Problem`]; [`answer`](crate::answer) writes it out, since only there the
//! request id and the whole path are known.

use std::borrow::Cow;
use std::error::Error as _;
use std::fmt::Write as _;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use vidgen_core::{Error, ErrorKind, FieldError};

/// How long a caller is asked to wait if nobody knows better: long enough for a failover.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// An error answer, before it is written out.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    code: Cow<'static, str>,
    error: &'static str,
    detail: Option<String>,
    details: Vec<FieldError>,
    retry_after: Option<Duration>,
}

#[derive(Serialize)]
struct Wire<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    instance: &'a str,
    error: &'a str,
    code: &'a str,
    details: &'a [FieldError],
    request_id: &'a str,
}

impl Problem {
    fn new(status: StatusCode, code: impl Into<Cow<'static, str>>, error: &'static str) -> Self {
        Self { status, code: code.into(), error, detail: None, details: Vec::new(), retry_after: None }
    }

    /// The request has these bad fields.
    pub(crate) fn invalid(details: Vec<FieldError>) -> Self {
        let problem = Self::new(StatusCode::BAD_REQUEST, ErrorKind::Invalid.code(), "Invalid request");
        Self { details, ..problem }
    }

    /// The body as a whole, or one field, is wrong.
    pub(crate) fn invalid_field(field: &str, message: impl Into<String>) -> Self {
        Self::invalid(vec![FieldError::new(field, message)])
    }

    /// The request has fields that nobody knows.
    pub(crate) fn unknown_fields(details: Vec<FieldError>) -> Self {
        let problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "unknown_field", "Invalid request");
        Self { details, ..problem }
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, ErrorKind::Unauthorized.code(), "Unauthorized")
    }

    /// No such job, or another tenant's: the two are not told apart.
    pub(crate) fn job_not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorKind::NotFound.code(), "Job not found")
    }

    pub(crate) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorKind::NotFound.code(), "Not found")
    }

    pub(crate) fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, "Conflict").with_detail(detail)
    }

    /// The idempotency key was used for another request.
    pub(crate) fn idempotency_conflict() -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_conflict", "Idempotency key reused")
            .with_detail("this Idempotency-Key was used for another request")
    }

    pub(crate) fn link(code: &'static str, detail: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, "Forbidden").with_detail(detail)
    }

    pub(crate) fn unsupported_media_type() -> Self {
        Self::of_status(StatusCode::UNSUPPORTED_MEDIA_TYPE).with_detail("send JSON as application/json")
    }

    pub(crate) fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorKind::Internal.code(), "Internal server error")
    }

    /// For answers that are not made by a route: the framework's own, and those of layers.
    pub(crate) fn of_status(status: StatusCode) -> Self {
        let (code, error) = match status {
            StatusCode::BAD_REQUEST => ("invalid_request", "Invalid request"),
            StatusCode::UNAUTHORIZED => return Self::unauthorized(),
            StatusCode::PAYMENT_REQUIRED => ("over_budget", "Budget exceeded"),
            StatusCode::FORBIDDEN => ("forbidden", "Forbidden"),
            StatusCode::NOT_FOUND => return Self::not_found(),
            StatusCode::METHOD_NOT_ALLOWED => ("method_not_allowed", "Method not allowed"),
            StatusCode::REQUEST_TIMEOUT => ("request_timeout", "Request timeout"),
            StatusCode::CONFLICT => ("conflict", "Conflict"),
            StatusCode::PAYLOAD_TOO_LARGE => ("payload_too_large", "Payload too large"),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => ("unsupported_media_type", "Unsupported media type"),
            StatusCode::RANGE_NOT_SATISFIABLE => ("range_not_satisfiable", "Range not satisfiable"),
            StatusCode::TOO_MANY_REQUESTS => ("rate_limited", "Too many requests"),
            StatusCode::NOT_IMPLEMENTED => ("unsupported", "Not supported"),
            StatusCode::SERVICE_UNAVAILABLE => ("unavailable", "Service unavailable"),
            _ if status.is_server_error() => return Self::internal(),
            _ => ("invalid_request", "Invalid request"),
        };
        let wait = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        Self { retry_after: wait.then_some(RETRY_AFTER), ..Self::new(status, code, error) }
    }

    pub(crate) fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Writes the answer out. Headers that were set before stay, e.g. `Allow` and `Content-Range`.
    pub(crate) fn render(&self, mut headers: HeaderMap, instance: &str, request_id: &str) -> Response {
        let wire = Wire {
            r#type: format!("urn:vidgen:problem:{}", self.code),
            title: self.error,
            status: self.status.as_u16(),
            detail: self.detail.as_deref(),
            instance,
            error: self.error,
            code: &self.code,
            details: &self.details,
            request_id,
        };
        // Strings and numbers always serialise.
        let body = serde_json::to_vec(&wire).unwrap_or_default();
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(wait) = self.retry_after {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.entry(header::WWW_AUTHENTICATE).or_insert(HeaderValue::from_static("Bearer"));
        }
        (self.status, headers, body).into_response()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let kind = error.kind();
        let of_status = |status| Self { code: kind.code().into(), ..Self::of_status(status) };
        let said = |status| of_status(status).with_detail(error.message());
        match kind {
            ErrorKind::Invalid if error.fields().is_empty() => said(StatusCode::BAD_REQUEST),
            ErrorKind::Invalid => Self::invalid(error.fields().to_vec()),
            ErrorKind::NotFound => Self::job_not_found(),
            ErrorKind::Conflict | ErrorKind::TooLate => said(StatusCode::CONFLICT),
            ErrorKind::RateLimited => {
                let wait = error.retry_after().unwrap_or(RETRY_AFTER);
                Self { retry_after: Some(wait), ..said(StatusCode::TOO_MANY_REQUESTS) }
            }
            ErrorKind::OverBudget => said(StatusCode::PAYMENT_REQUIRED),
            ErrorKind::Refused => Self { error: "Content refused", ..said(StatusCode::UNPROCESSABLE_ENTITY) },
            ErrorKind::Unsupported => said(StatusCode::NOT_IMPLEMENTED),
            ErrorKind::Unavailable | ErrorKind::NotSent => {
                tracing::warn!(cause = %chain(&error), "a backend is away");
                let wait = error.retry_after().unwrap_or(RETRY_AFTER);
                Self { retry_after: Some(wait), ..of_status(StatusCode::SERVICE_UNAVAILABLE) }
            }
            // `Unauthorized` is a key of the operator's that a backend refused, not the caller's.
            _ => {
                tracing::error!(cause = %chain(&error), kind = kind.code(), "a request failed");
                Self::internal()
            }
        }
    }
}

/// An error with its causes in one line. Messages hold no secrets and no prompts, by rule.
fn chain(error: &Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(line, ": {cause}");
        source = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status_of(kind: ErrorKind) -> (u16, Cow<'static, str>, &'static str) {
        let problem = Problem::from(Error::new(kind, "test", "secret cause"));
        (problem.status.as_u16(), problem.code, problem.error)
    }

    #[test]
    fn every_kind_has_its_answer() {
        let table = [
            (ErrorKind::Invalid, 400, "invalid_request", "Invalid request"),
            (ErrorKind::Refused, 422, "content_refused", "Content refused"),
            (ErrorKind::Unauthorized, 500, "internal", "Internal server error"),
            (ErrorKind::NotFound, 404, "not_found", "Job not found"),
            (ErrorKind::Conflict, 409, "conflict", "Conflict"),
            (ErrorKind::RateLimited, 429, "rate_limited", "Too many requests"),
            (ErrorKind::OverBudget, 402, "over_budget", "Budget exceeded"),
            (ErrorKind::NotSent, 503, "unavailable", "Service unavailable"),
            (ErrorKind::Unavailable, 503, "unavailable", "Service unavailable"),
            (ErrorKind::OutcomeUnknown, 500, "internal", "Internal server error"),
            (ErrorKind::Unsupported, 501, "unsupported", "Not supported"),
            (ErrorKind::Protocol, 500, "internal", "Internal server error"),
            (ErrorKind::TooLate, 409, "too_late", "Conflict"),
            (ErrorKind::Stale, 500, "internal", "Internal server error"),
            (ErrorKind::Media, 500, "internal", "Internal server error"),
            (ErrorKind::Internal, 500, "internal", "Internal server error"),
        ];
        for (kind, status, code, error) in table {
            assert_eq!(status_of(kind), (status, code.into(), error), "{kind:?}");
        }
    }

    #[test]
    fn a_fault_of_ours_or_of_a_backend_says_nothing_of_its_cause() {
        for kind in [ErrorKind::Internal, ErrorKind::Unavailable, ErrorKind::Protocol, ErrorKind::Unauthorized] {
            let problem = Problem::from(Error::new(kind, "test", "secret cause"));
            assert_eq!((problem.detail, problem.details), (None, vec![]), "{kind:?}");
        }
    }

    #[test]
    fn a_wait_is_rounded_up_to_whole_seconds() {
        let wait = |millis| {
            let error = Error::new(ErrorKind::RateLimited, "test", "too many");
            let problem = Problem::from(error.with_retry_after(Duration::from_millis(millis)));
            problem.render(HeaderMap::new(), "/", "r").headers()[header::RETRY_AFTER].clone()
        };
        assert_eq!([wait(0), wait(1000), wait(1001)], ["1", "1", "2"]);
    }
}
