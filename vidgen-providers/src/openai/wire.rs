//! What the remotes send; only what we read. All of it is optional: no two of them send the same.

use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
pub(super) struct Video {
    id: Option<String>,
    /// So some gateways call it.
    task_id: Option<String>,
    pub(super) status: Option<String>,
    pub(super) progress: Option<f64>,
    pub(super) prompt: Option<String>,
    /// An object, or text.
    #[serde(default)]
    pub(super) error: Value,
}

impl Video {
    pub(super) fn id(self) -> Option<String> {
        self.id.or(self.task_id).filter(|id| !id.is_empty())
    }
}

#[derive(Deserialize)]
pub(super) struct Images {
    pub(super) data: Vec<Image>,
    #[serde(default)]
    pub(super) usage: Option<Tokens>,
}

#[derive(Deserialize)]
pub(super) struct Image {
    pub(super) b64_json: Option<String>,
    pub(super) url: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Tokens {
    pub(super) input_tokens: Option<u64>,
    pub(super) output_tokens: Option<u64>,
}
