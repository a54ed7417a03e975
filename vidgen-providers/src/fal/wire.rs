//! What fal sends; only the fields that are read.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::client::{RunId, if_fits};

/// The answer to a submit. Its documentation shows less with a webhook than without; an id is all
/// that it takes.
#[derive(Deserialize)]
pub(super) struct Accepted {
    pub(super) request_id: RunId,
    #[serde(flatten)]
    pub(super) links: Links,
}

/// Where a run is looked at, as the submit answered it.
#[derive(Clone, Default, Deserialize, Serialize)]
pub(super) struct Links {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) status_url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) response_url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cancel_url: Option<String>,
}

/// What a handle has beside the id.
#[derive(Clone, Default, Deserialize, Serialize)]
pub(super) struct Detail {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) endpoint: Option<String>,
    #[serde(flatten)]
    pub(super) links: Links,
}

#[derive(Default, Deserialize)]
pub(super) struct Status {
    pub(super) status: String,
    /// With `COMPLETED`: it is no success.
    #[serde(default)]
    error: Value,
    #[serde(default, deserialize_with = "if_fits")]
    error_type: Option<String>,
    #[serde(default, deserialize_with = "if_fits")]
    metrics: Option<Metrics>,
}

#[derive(Deserialize)]
struct Metrics {
    #[serde(default)]
    inference_time: Option<f64>,
}

impl Status {
    pub(super) fn failed(&self) -> bool {
        let error = !matches!(&self.error, Value::Null) && self.error != "";
        error || self.word().is_some()
    }

    /// The platform's word for what went wrong; a model's is in the result.
    pub(super) fn word(&self) -> Option<&str> {
        self.error_type.as_deref().filter(|word| !word.is_empty())
    }

    /// The status of the result, as `Invalid status code: 422` has it.
    pub(super) fn code(&self) -> Option<u16> {
        self.error.as_str()?.strip_prefix("Invalid status code:")?.trim().parse().ok()
    }

    /// For how long a machine has worked at it.
    pub(super) fn worked(&self) -> Option<f64> {
        self.metrics.as_ref()?.inference_time
    }
}

/// A page of the account's history.
#[derive(Deserialize)]
pub(super) struct History {
    pub(super) items: Vec<Past>,
}

#[derive(Deserialize)]
pub(super) struct Past {
    pub(super) request_id: String,
    #[serde(default)]
    pub(super) ended_at: Option<String>,
    #[serde(default)]
    pub(super) status_code: Option<u16>,
    #[serde(default)]
    pub(super) json_output: Value,
}

/// Where a file goes, and where it is then.
#[derive(Deserialize)]
pub(super) struct Ticket {
    pub(super) upload_url: String,
    pub(super) file_url: String,
}

/// What comes to a webhook.
#[derive(Deserialize)]
pub(super) struct Webhook {
    pub(super) request_id: String,
}

/// The keys that webhooks are signed with (RFC 7517, RFC 8037).
#[derive(Deserialize)]
pub(super) struct Jwks {
    pub(super) keys: Vec<Jwk>,
}

#[derive(Deserialize)]
pub(super) struct Jwk {
    #[serde(default)]
    pub(super) kty: String,
    #[serde(default)]
    pub(super) crv: String,
    #[serde(default)]
    pub(super) x: String,
}
