//! What the remotes send; only what we read. All of it is optional: no two of them send the same.

use serde::Deserialize;
use serde_json::Value;

use crate::client::{RunId, if_fits};

#[derive(Deserialize)]
pub(super) struct Video {
    #[serde(default, deserialize_with = "if_fits")]
    id: Option<RunId>,
    /// So some gateways call it.
    #[serde(default, deserialize_with = "if_fits")]
    task_id: Option<RunId>,
    #[serde(default, deserialize_with = "if_fits")]
    pub(super) status: Option<String>,
    #[serde(default, deserialize_with = "if_fits")]
    pub(super) progress: Option<f64>,
    #[serde(default, deserialize_with = "if_fits")]
    pub(super) prompt: Option<String>,
    /// An object, or text.
    #[serde(default)]
    pub(super) error: Value,
}

impl Video {
    pub(super) fn id(self) -> Option<String> {
        self.id.or(self.task_id).map(|id| id.0)
    }
}

#[derive(Deserialize)]
pub(super) struct Images {
    pub(super) data: Vec<Image>,
    #[serde(default, deserialize_with = "if_fits")]
    pub(super) usage: Option<Tokens>,
}

#[derive(Deserialize)]
pub(super) struct Image {
    #[serde(default, deserialize_with = "if_fits")]
    pub(super) b64_json: Option<String>,
    #[serde(default, deserialize_with = "if_fits")]
    pub(super) url: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Tokens {
    pub(super) input_tokens: Option<u64>,
    pub(super) output_tokens: Option<u64>,
}
