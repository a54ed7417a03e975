//! What Replicate sends; only the fields that are read.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::client::{RunId, if_fits};

/// A prediction, as `GET /predictions/{id}`, the list and the webhook have it.
#[derive(Deserialize)]
pub(super) struct Prediction {
    pub(super) id: String,
    pub(super) status: String,
    #[serde(default, deserialize_with = "if_fits")]
    pub(super) model: Option<String>,
    #[serde(default, deserialize_with = "if_fits")]
    pub(super) version: Option<String>,
    #[serde(default)]
    pub(super) input: Value,
    #[serde(default)]
    pub(super) output: Value,
    /// A string, or null; its official type is "unknown".
    #[serde(default)]
    pub(super) error: Value,
    #[serde(default, deserialize_with = "if_fits")]
    pub(super) deployment: Option<String>,
    #[serde(default, deserialize_with = "if_fits")]
    pub(super) logs: Option<String>,
    #[serde(default, deserialize_with = "if_fits")]
    pub(super) metrics: Option<Map<String, Value>>,
    #[serde(default)]
    pub(super) source: Option<String>,
    #[serde(default)]
    pub(super) webhook: Option<String>,
}

/// What a create answers: an id, or nobody knows what was bought.
#[derive(Deserialize)]
pub(super) struct Created {
    pub(super) id: RunId,
}

/// A page of the list of predictions, newest first.
#[derive(Deserialize)]
pub(super) struct Page {
    /// A full URL.
    #[serde(default)]
    pub(super) next: Option<String>,
    pub(super) results: Vec<Prediction>,
}

/// An uploaded file.
#[derive(Deserialize)]
pub(super) struct File {
    pub(super) urls: Urls,
}

#[derive(Deserialize)]
pub(super) struct Urls {
    pub(super) get: String,
}

/// The secret that webhooks are signed with.
#[derive(Deserialize)]
pub(super) struct Secret {
    pub(super) key: String,
}
