//! What the remotes mean by their errors: `{"error": {"message", "type", "param", "code"}}` at OpenAI,
//! `{"detail": …}` at servers in FastAPI, either of them text or an object at gateways.

use std::time::Duration;

use jiff::SignedDuration;
use serde_json::Value;
use vidgen_core::ErrorKind;

use crate::client::{Refusal, Verdict};

/// What is said of content, in codes and types of errors; LiteLLM names it in the message.
const MODERATION: [&str; 7] = [
    "moderation",
    "content_policy",
    "contentpolicy",
    "content_filter",
    "policy_violation",
    "responsibleaipolicy",
    "safety_violation",
];
/// What is said of an account that is empty, or has spent what it may.
const NO_MONEY: [&str; 5] =
    ["insufficient_quota", "billing_hard_limit", "billing_not_active", "budget_exceeded", "quota_exceeded"];

/// Judges an answer that is no 2xx.
pub(super) fn judge(refusal: &Refusal) -> Verdict {
    // Behind a 5xx, whatever it says, a run may be going on.
    if !(400..500).contains(&refusal.status) {
        return Verdict::default();
    }
    let error = ["error", "detail"].iter().find_map(|name| refusal.body.get(name)).unwrap_or(&refusal.body);
    let verdict = match (refusal.status, meaning(error)) {
        (401, _) => Verdict::default(),
        (_, Some(kind @ (ErrorKind::Refused | ErrorKind::OverBudget | ErrorKind::NotFound))) => Verdict::of(kind),
        (429, _) => Verdict::default().with_wait(reset(refusal)),
        _ => Verdict::default(),
    };
    match first_problem(error) {
        Some(reason) => verdict.with_reason(reason),
        None => verdict,
    }
}

/// What an error means by its code, its type or its message; `None` if it says nothing of that.
pub(super) fn meaning(error: &Value) -> Option<ErrorKind> {
    let words = [code(error), error.get("type").and_then(Value::as_str)];
    let words: Vec<String> = words.into_iter().flatten().map(str::to_ascii_lowercase).collect();
    let says = |all: &[&str]| words.iter().any(|word| all.iter().any(|sign| word.contains(sign)));
    if says(&MODERATION) || message(error).is_some_and(|text| text.contains("ContentPolicyViolationError")) {
        Some(ErrorKind::Refused)
    } else if says(&NO_MONEY) {
        Some(ErrorKind::OverBudget)
    } else if says(&["model_not_found"]) {
        Some(ErrorKind::NotFound)
    } else if says(&["invalid_request_error"]) {
        Some(ErrorKind::Invalid)
    } else {
        None
    }
}

pub(super) fn code(error: &Value) -> Option<&str> {
    error.get("code").and_then(Value::as_str)
}

pub(super) fn message(error: &Value) -> Option<&str> {
    error.as_str().or_else(|| error.get("message")?.as_str()).filter(|text| !text.trim().is_empty())
}

/// The first entry of a list of what is wrong with a request, as FastAPI has it.
fn first_problem(error: &Value) -> Option<String> {
    let first = error.as_array()?.first()?;
    let text = first.get("msg")?.as_str()?;
    let place = first.get("loc").and_then(Value::as_array).and_then(|path| path.last()).and_then(Value::as_str);
    Some(place.map_or_else(|| text.to_owned(), |place| format!("{place}: {text}")))
}

/// When there is room again, where no header says how long to wait: the later one of what is used up.
fn reset(refusal: &Refusal) -> Option<Duration> {
    if refusal.header("retry-after").is_some() || refusal.header("retry-after-ms").is_some() {
        return None;
    }
    let of = |remaining, reset| {
        let wait: SignedDuration =
            refusal.header(reset).filter(|_| refusal.header(remaining) == Some("0"))?.parse().ok()?;
        Duration::try_from(wait).ok()
    };
    let requests = of("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests");
    requests.max(of("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"))
}
