//! What a user asks for, and the check that names each bad field.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use url::Url;

use crate::error::{Error, FieldError, Result};
use crate::media::MediaKey;
use crate::provider::Size;

/// What a user asks for. Everything but the prompt is optional.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct JobRequest {
    /// What the video shall show.
    pub prompt: String,
    /// What shall be said in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// Who shall be told when the job ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook_url: Option<String>,
    /// Which pipeline shall make it; the host's first one if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<String>,
    /// Width to height.
    pub aspect_ratio: AspectRatio,
    /// Pixels on the short side.
    pub resolution: Resolution,
    /// How long the video shall be; the pipeline's own default if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<Duration>,
    /// Frames per second; the model's own default if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fps: Option<u32>,
    /// Same seed, same result, where the models can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// In what manner, e.g. `watercolour`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub style: Option<String>,
    /// What it shall not show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// An image to start from that already lies in the host's store; skips the image step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<MediaKey>,
    /// An image to start from that anybody can fetch; skips the image step, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_url: Option<String>,
    /// In which voice, by the speech provider's own name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub voice: Option<String>,
    /// Whatever the user wants to find again in the job; at most 4 KiB of JSON.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
}

/// How much a request may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestRules {
    /// The longest prompt, in characters.
    pub max_prompt: usize,
    /// The longest script, in characters.
    pub max_script: usize,
    /// The longest video.
    pub max_duration: Duration,
    /// The most frames per second.
    pub max_fps: u32,
}

/// The tutorial's own limits, and a minute of video.
impl Default for RequestRules {
    fn default() -> Self {
        Self { max_prompt: 500, max_script: 1000, max_duration: Duration::from_secs(60), max_fps: 60 }
    }
}

impl RequestRules {
    /// Allows prompts of up to `max` characters, at most 8,000.
    #[must_use]
    pub fn with_max_prompt(mut self, max: usize) -> Self {
        self.max_prompt = max.min(8_000);
        self
    }

    /// Allows scripts of up to `max` characters, at most 8,000.
    #[must_use]
    pub fn with_max_script(mut self, max: usize) -> Self {
        self.max_script = max.min(8_000);
        self
    }

    /// Allows videos of up to `max`.
    #[must_use]
    pub fn with_max_duration(mut self, max: Duration) -> Self {
        self.max_duration = max;
        self
    }
}

/// Without what the user wrote, which is nobody's business who reads a log.
impl fmt::Debug for JobRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobRequest")
            .field("pipeline", &self.pipeline)
            .field("aspect_ratio", &self.aspect_ratio)
            .field("resolution", &self.resolution)
            .field("duration", &self.duration)
            .field("fps", &self.fps)
            .field("seed", &self.seed)
            .field("image", &self.image)
            .finish_non_exhaustive()
    }
}

impl JobRequest {
    /// Asks for a video of `prompt` with every option at its default.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self { prompt: prompt.into(), ..Self::default() }
    }

    /// Adds what shall be said in it.
    #[must_use]
    pub fn with_script(mut self, script: impl Into<String>) -> Self {
        self.script = Some(script.into());
        self
    }

    /// Adds who shall be told when the job ends.
    #[must_use]
    pub fn with_webhook_url(mut self, url: impl Into<String>) -> Self {
        self.webhook_url = Some(url.into());
        self
    }

    /// Chooses a pipeline by name.
    #[must_use]
    pub fn with_pipeline(mut self, name: impl Into<String>) -> Self {
        self.pipeline = Some(name.into());
        self
    }

    /// Sets the length.
    #[must_use]
    pub fn with_duration(mut self, duration: Duration) -> Self {
        self.duration = Some(duration);
        self
    }

    /// Sets the seed.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Starts from an image in the host's store.
    #[must_use]
    pub fn with_image(mut self, image: MediaKey) -> Self {
        self.image = Some(image);
        self
    }

    /// Starts from an image that anybody can fetch.
    #[must_use]
    pub fn with_image_url(mut self, url: impl Into<String>) -> Self {
        self.image_url = Some(url.into());
        self
    }

    /// Finds every bad field.
    #[must_use]
    pub fn problems(&self, rules: &RequestRules) -> Vec<FieldError> {
        let mut bad = Vec::new();
        let mut say = |field: &str, message: String| bad.push(FieldError::new(field, message));
        let text = |value: &str, max: usize| -> Option<String> {
            if value.trim().is_empty() {
                Some("must not be empty".into())
            } else if value.chars().count() > max {
                Some(format!("must be at most {max} characters"))
            } else if value.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
                Some("must not contain control characters".into())
            } else {
                None
            }
        };
        if let Some(message) = text(&self.prompt, rules.max_prompt) {
            say("prompt", message);
        }
        let optional: [(&str, &Option<String>, usize); 5] = [
            ("script", &self.script, rules.max_script),
            ("style", &self.style, 100),
            ("negative_prompt", &self.negative_prompt, rules.max_prompt),
            ("voice", &self.voice, 100),
            ("pipeline", &self.pipeline, 100),
        ];
        for (field, value, max) in optional {
            // As in the tutorial, an empty script is a script that says nothing.
            let empty_script = field == "script" && value.as_deref() == Some("");
            if let Some(message) = value.as_deref().and_then(|v| text(v, max)).filter(|_| !empty_script) {
                say(field, message);
            }
        }
        if let Some(url) = &self.webhook_url {
            match Url::parse(url) {
                _ if url.len() > 2048 => say("webhook_url", "must be at most 2048 characters".into()),
                Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => {}
                _ => say("webhook_url", "must be an http or https URL".into()),
            }
        }
        if let Some(url) = &self.image_url {
            match Url::parse(url) {
                _ if url.len() > 2048 => say("image_url", "must be at most 2048 characters".into()),
                _ if self.image.is_some() => say("image_url", "must not be given beside image".into()),
                Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => {}
                _ => say("image_url", "must be an https URL".into()),
            }
        }
        if let Some(duration) = self.duration
            && (duration < Duration::from_secs(1) || duration > rules.max_duration)
        {
            say("duration_seconds", format!("must be from 1 to {}", rules.max_duration.as_secs()));
        }
        if let Some(fps) = self.fps
            && (fps == 0 || fps > rules.max_fps)
        {
            say("fps", format!("must be from 1 to {}", rules.max_fps));
        }
        let metadata = serde_json::to_string(&self.metadata).map_or(0, |json| json.len());
        if metadata > 4096 {
            say("metadata", "must be at most 4096 bytes of JSON".into());
        }
        bad
    }

    /// Refuses a request with bad fields.
    ///
    /// # Errors
    /// `Invalid`, naming each of them.
    pub fn validate(&self, rules: &RequestRules) -> Result<()> {
        let bad = self.problems(rules);
        if bad.is_empty() { Ok(()) } else { Err(Error::invalid(bad)) }
    }

    /// The size in pixels that aspect ratio and resolution give.
    #[must_use]
    pub fn size(&self) -> Size {
        self.aspect_ratio.size(self.resolution)
    }

    /// What is to be said, if anything.
    #[must_use]
    pub fn spoken(&self) -> Option<&str> {
        self.script.as_deref().filter(|s| !s.trim().is_empty())
    }
}

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident, $expected:literal, { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $text)] $variant),+
        }
        impl $name {
            /// Every choice.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// The choice as users write it.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl FromStr for $name {
            type Err = Error;
            fn from_str(s: &str) -> Result<Self> {
                Self::ALL.iter().copied().find(|c| c.as_str() == s)
                    .ok_or_else(|| Error::invalid_field("", concat!("must be one of ", $expected)))
            }
        }
    };
}

choice!(
    /// Width to height.
    AspectRatio, "16:9, 9:16, 1:1, 4:3, 3:4", {
        /// Landscape, as on a screen.
        #[default]
        Wide = "16:9",
        /// Portrait, as on a phone.
        Tall = "9:16",
        /// Square.
        Square = "1:1",
        /// Landscape, as on an old screen.
        Classic = "4:3",
        /// Portrait, as on paper.
        Portrait = "3:4",
    }
);

choice!(
    /// Pixels on the short side.
    Resolution, "360p, 480p, 720p, 1080p", {
        /// 360 pixels.
        P360 = "360p",
        /// 480 pixels.
        P480 = "480p",
        /// 720 pixels.
        #[default]
        P720 = "720p",
        /// 1080 pixels.
        P1080 = "1080p",
    }
);

impl AspectRatio {
    /// The size whose short side is `resolution`; both sides are even, as H.264 wants.
    #[must_use]
    pub fn size(self, resolution: Resolution) -> Size {
        let short = match resolution {
            Resolution::P360 => 360,
            Resolution::P480 => 480,
            Resolution::P720 => 720,
            Resolution::P1080 => 1080,
        };
        let even = |n: u32| n + n % 2;
        let (width, height) = match self {
            Self::Wide => (even(short * 16 / 9), short),
            Self::Tall => (short, even(short * 16 / 9)),
            Self::Square => (short, short),
            Self::Classic => (even(short * 4 / 3), short),
            Self::Portrait => (short, even(short * 4 / 3)),
        };
        Size { width, height }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(request: &JobRequest) -> Vec<String> {
        request.problems(&RequestRules::default()).into_iter().map(|p| p.field).collect()
    }

    #[test]
    fn what_the_user_wrote_is_not_printed() {
        let mut request = JobRequest::new("canary").with_script("canary").with_webhook_url("https://canary.example");
        request.negative_prompt = Some("canary".into());
        request.style = Some("canary".into());
        request.image_url = Some("https://canary.example".into());
        request.metadata.insert("canary".into(), "canary".into());
        assert!(!format!("{request:?}").contains("canary"));
    }

    #[test]
    fn every_bad_field_is_named_at_once() {
        let mut request = JobRequest::new("")
            .with_script("x".repeat(1001))
            .with_webhook_url("ftp://example.com")
            .with_duration(Duration::from_secs(61));
        request.fps = Some(0);
        assert_eq!(fields(&request), ["prompt", "script", "webhook_url", "duration_seconds", "fps"]);
    }

    #[test]
    fn limits_count_characters_not_bytes() {
        assert!(fields(&JobRequest::new("ä".repeat(500))).is_empty());
        assert_eq!(fields(&JobRequest::new("ä".repeat(501))), ["prompt"]);
        assert_eq!(fields(&JobRequest::new("bell \u{7}")), ["prompt"]);
    }

    #[test]
    fn sizes_are_even() {
        for aspect in AspectRatio::ALL {
            for resolution in Resolution::ALL {
                let Size { width, height } = aspect.size(*resolution);
                assert!(width % 2 == 0 && height % 2 == 0, "{aspect} {resolution}");
            }
        }
        assert_eq!(AspectRatio::Wide.size(Resolution::P720), Size { width: 1280, height: 720 });
    }
}
