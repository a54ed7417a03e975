//! What remotes say in numbers and names, as far as it can be true.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// No run computes for longer; what says so is no time.
pub(crate) const LONGEST_RUN: Duration = Duration::from_hours(24);
/// No run takes more of its provider's units; beyond that, it is no cost.
const MOST_UNITS: f64 = 1e6;

/// The id of a run, as it was accepted: one that can be asked for. Without such an one, nobody can
/// tell what was bought, so it is read with the answer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct RunId(pub(crate) String);

impl TryFrom<String> for RunId {
    type Error = &'static str;
    fn try_from(id: String) -> Result<Self, Self::Error> {
        if matches!(id.as_str(), "" | "." | "..") { Err("this is no id") } else { Ok(Self(id)) }
    }
}

/// A field that is nice to have, if it is what it should be: for the sake of another one, nothing that
/// was paid for is to be lost.
pub(crate) fn if_fits<'de, D: Deserializer<'de>, T: DeserializeOwned>(field: D) -> Result<Option<T>, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(field)?).ok())
}

/// For how long a model computed, as cog measures it, and so Replicate.
pub(crate) fn predict_time(metrics: Option<&Map<String, Value>>) -> Option<Duration> {
    let seconds = metrics?.get("predict_time")?.as_f64()?;
    Duration::try_from_secs_f64(seconds).ok().filter(|time| *time <= LONGEST_RUN)
}

/// `3.008` → 3008 thousandths, rounded up.
pub(crate) fn milli(units: f64) -> Option<u64> {
    // What is lost in a binary fraction is no thousandth.
    let milli = (units * 1000.0 - 1e-6).ceil().max(0.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within 2^53, and not negative")]
    (0.0..=MOST_UNITS).contains(&units).then_some(milli as u64)
}
