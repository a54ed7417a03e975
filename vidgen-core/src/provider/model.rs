//! What a model can make, what it costs, and what a request asks for that it cannot meet.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::FieldError;
use crate::job::StepKind;
use crate::money::Price;
use crate::provider::{ModelId, Size};
use crate::request::{AspectRatio, Resolution};

/// One model, with its hard limits and its price.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Model {
    /// Its name at the provider.
    pub id: ModelId,
    /// What kind of step it can do.
    pub kind: StepKind,
    /// How it is billed.
    pub price: Price,
    /// How long a run usually takes, however short the video.
    pub typical: Duration,
    /// How much longer it takes for each second of video asked for.
    #[serde(default)]
    pub typical_per_second: Duration,
    /// How long its videos can be.
    #[serde(default)]
    pub lengths: Lengths,
    /// The aspect ratios it can make; empty for any (or for that of the image it starts from).
    #[serde(default)]
    pub aspect_ratios: Vec<AspectRatio>,
    /// The resolutions it can make; empty for any.
    #[serde(default)]
    pub resolutions: Vec<Resolution>,
    /// The most pixels on a side it can make, if there is a limit.
    pub max_side: Option<u32>,
    /// The longest prompt or text it takes, in characters, if there is a limit.
    #[serde(default)]
    pub max_text: Option<usize>,
    /// Whether it needs an image to start from (video only).
    pub needs_image: bool,
    /// Whether it cannot start from an image (video only).
    #[serde(default)]
    pub no_image: bool,
    /// Whether its videos have sound of their own.
    #[serde(default)]
    pub audio: bool,
}

/// How long a model's videos can be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Lengths {
    /// As long as one likes.
    #[default]
    Any,
    /// From the first to the second.
    Between(Duration, Duration),
    /// One of these, ascending.
    OneOf(Vec<Duration>),
}

impl Lengths {
    /// Up to `max`.
    #[must_use]
    pub fn up_to(max: Duration) -> Self {
        Self::Between(Duration::ZERO, max)
    }

    /// One of so many whole seconds.
    pub fn seconds(choices: impl IntoIterator<Item = u64>) -> Self {
        let mut all: Vec<Duration> = choices.into_iter().map(Duration::from_secs).collect();
        all.sort_unstable();
        Self::OneOf(all)
    }

    /// Whether a video can be this long.
    #[must_use]
    pub fn allow(&self, length: Duration) -> bool {
        match self {
            Self::Any => true,
            Self::Between(min, max) => (*min..=*max).contains(&length),
            Self::OneOf(choices) => choices.contains(&length),
        }
    }

    /// The length that comes closest to `wish`, the longer of two that are as close.
    #[must_use]
    pub fn nearest(&self, wish: Duration) -> Duration {
        match self {
            Self::Any => wish,
            Self::Between(min, max) => wish.min(*max).max(*min),
            Self::OneOf(choices) => {
                choices.iter().copied().rev().min_by_key(|choice| choice.abs_diff(wish)).unwrap_or(wish)
            }
        }
    }
}

/// For people: `at most 10`, `from 2 to 10`, `one of 4, 6, 8` (seconds).
impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("of any length"),
            Self::Between(Duration::ZERO, max) => write!(f, "at most {}", max.as_secs_f64()),
            Self::Between(min, max) => write!(f, "from {} to {}", min.as_secs_f64(), max.as_secs_f64()),
            Self::OneOf(choices) => {
                let all: Vec<String> = choices.iter().map(|choice| choice.as_secs_f64().to_string()).collect();
                write!(f, "{}{}", if all.len() > 1 { "one of " } else { "" }, all.join(", "))
            }
        }
    }
}

/// What a request asks of a model, as far as a model can have a limit to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish<'a> {
    pub(crate) aspect_ratio: AspectRatio,
    pub(crate) resolution: Resolution,
    pub(crate) size: Size,
    /// `None` if the request leaves the length to the model.
    pub(crate) duration: Option<Duration>,
    pub(crate) has_image: bool,
    /// Whether that image is the request's own, and must not be left out.
    pub(crate) brought_image: bool,
    /// The prompt, or the script for speech, with the name of its field.
    pub(crate) text: (&'static str, &'a str),
}

impl Model {
    /// A model without limits that takes 30 s.
    pub fn new(id: impl Into<String>, kind: StepKind, price: Price) -> Self {
        Self {
            id: ModelId::new(id),
            kind,
            price,
            typical: Duration::from_secs(30),
            typical_per_second: Duration::ZERO,
            lengths: Lengths::Any,
            aspect_ratios: Vec::new(),
            resolutions: Vec::new(),
            max_side: None,
            max_text: None,
            needs_image: false,
            no_image: false,
            audio: false,
        }
    }

    /// Sets how long a run usually takes, however short the video.
    #[must_use]
    pub fn with_typical(mut self, typical: Duration) -> Self {
        self.typical = typical;
        self
    }

    /// Sets how much longer it takes for each second of video asked for.
    #[must_use]
    pub fn with_typical_per_second(mut self, extra: Duration) -> Self {
        self.typical_per_second = extra;
        self
    }

    /// How long a run for a video of that length usually takes.
    #[must_use]
    pub fn typical_for(&self, video: Duration) -> Duration {
        let extra = self.typical_per_second.as_secs_f64() * video.as_secs_f64();
        self.typical.saturating_add(Duration::try_from_secs_f64(extra).unwrap_or(Duration::MAX))
    }

    /// Sets the longest video it can make.
    #[must_use]
    pub fn with_max_duration(self, max: Duration) -> Self {
        self.with_lengths(Lengths::up_to(max))
    }

    /// Sets how long its videos can be.
    #[must_use]
    pub fn with_lengths(mut self, lengths: Lengths) -> Self {
        self.lengths = lengths;
        self
    }

    /// Sets the only aspect ratios it can make.
    #[must_use]
    pub fn with_aspect_ratios(mut self, ratios: impl IntoIterator<Item = AspectRatio>) -> Self {
        self.aspect_ratios = ratios.into_iter().collect();
        self
    }

    /// Sets the only resolutions it can make.
    #[must_use]
    pub fn with_resolutions(mut self, resolutions: impl IntoIterator<Item = Resolution>) -> Self {
        self.resolutions = resolutions.into_iter().collect();
        self
    }

    /// Sets the most pixels on a side it can make.
    #[must_use]
    pub fn with_max_side(mut self, max: u32) -> Self {
        self.max_side = Some(max);
        self
    }

    /// Sets the longest prompt or text it takes, in characters.
    #[must_use]
    pub fn with_max_text(mut self, max: usize) -> Self {
        self.max_text = Some(max);
        self
    }

    /// Says that it needs an image to start from.
    #[must_use]
    pub fn with_needed_image(mut self) -> Self {
        self.needs_image = true;
        self
    }

    /// Says that it cannot start from an image.
    #[must_use]
    pub fn without_image(mut self) -> Self {
        self.no_image = true;
        self
    }

    /// Says that its videos have sound of their own.
    #[must_use]
    pub fn with_audio(mut self) -> Self {
        self.audio = true;
        self
    }

    /// The first hard limit that `wish` passes, if any.
    pub(crate) fn unmet(&self, wish: &Wish<'_>) -> Option<FieldError> {
        let id = &self.id;
        let say = |field: &str, message: String| Some(FieldError::new(field, message));
        let pictures = matches!(self.kind, StepKind::Image | StepKind::Video | StepKind::Compose);
        if self.kind == StepKind::Video {
            if wish.duration.is_some_and(|duration| !self.lengths.allow(duration)) {
                return say("duration_seconds", format!("must be {} for model {id}", self.lengths));
            }
            if self.needs_image && !wish.has_image {
                return say("image", format!("model {id} needs an image to start from"));
            }
            if self.no_image && wish.brought_image {
                return say("image", format!("model {id} cannot start from an image"));
            }
        }
        if pictures && !self.aspect_ratios.is_empty() && !self.aspect_ratios.contains(&wish.aspect_ratio) {
            return say("aspect_ratio", format!("must be one of {} for model {id}", list(&self.aspect_ratios)));
        }
        if pictures && !self.resolutions.is_empty() && !self.resolutions.contains(&wish.resolution) {
            return say("resolution", format!("must be one of {} for model {id}", list(&self.resolutions)));
        }
        if pictures && let Some(max) = self.max_side.filter(|max| wish.size.width.max(wish.size.height) > *max) {
            return say("resolution", format!("must give at most {max} pixels a side for model {id}"));
        }
        let (field, text) = wish.text;
        if let Some(max) = self.max_text.filter(|max| text.chars().count() > *max) {
            return say(field, format!("must be at most {max} characters for model {id}"));
        }
        None
    }
}

fn list(choices: &[impl fmt::Display]) -> String {
    choices.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_length_is_one_that_is_allowed() {
        let seconds = Duration::from_secs;
        let choices = Lengths::seconds([8, 4, 6]);
        for (wish, got) in [(1, 4), (4, 4), (5, 6), (7, 8), (60, 8)] {
            assert_eq!(choices.nearest(seconds(wish)), seconds(got), "{wish}");
            assert!(choices.allow(choices.nearest(seconds(wish))));
        }
        assert_eq!(Lengths::Between(seconds(2), seconds(10)).nearest(seconds(1)), seconds(2));
        assert_eq!(Lengths::up_to(seconds(10)).nearest(seconds(11)), seconds(10));
        assert!(!choices.allow(seconds(5)));
    }

    #[test]
    fn lengths_are_said_in_seconds() {
        assert_eq!(Lengths::seconds([5, 10]).to_string(), "one of 5, 10");
        assert_eq!(Lengths::seconds([4]).to_string(), "4");
        assert_eq!(Lengths::up_to(Duration::from_secs(8)).to_string(), "at most 8");
        assert_eq!(Lengths::Between(Duration::from_secs(2), Duration::from_secs(10)).to_string(), "from 2 to 10");
    }
}
