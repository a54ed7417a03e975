//! What cog sends; only the fields that are read. All but the status may be missing: each version has
//! others.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::client::{if_fits, predict_time};

/// What a callback says.
#[derive(Deserialize)]
pub(super) struct Prediction {
    pub(super) status: String,
    #[serde(default)]
    pub(super) id: Option<String>,
    /// Only up to 0.16.
    #[serde(default)]
    pub(super) input: Value,
    #[serde(default)]
    pub(super) output: Value,
    #[serde(default)]
    pub(super) error: Value,
    #[serde(default, deserialize_with = "if_fits")]
    pub(super) metrics: Option<Map<String, Value>>,
}

impl Prediction {
    /// For how long it computed.
    pub(super) fn predict_time(&self) -> Option<Duration> {
        predict_time(self.metrics.as_ref())
    }
}

/// What a PUT answers.
#[derive(Deserialize)]
pub(super) struct Accepted {
    #[expect(dead_code, reason = "an answer without it is none of cog's")]
    pub(super) status: String,
    #[serde(default)]
    pub(super) id: Option<String>,
}

/// How the container is.
#[derive(Deserialize)]
pub(super) struct Health {
    pub(super) status: String,
}
