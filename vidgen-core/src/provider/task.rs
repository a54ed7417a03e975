//! What one call asks of a provider: typed fields, and a free map for what vidgen has no word for.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::job::StepKind;
use crate::media::MediaInput;
use crate::provider::ModelId;

/// What one call asks of a provider.
#[derive(Clone)]
pub struct Task {
    /// Which model shall do it.
    pub model: ModelId,
    /// What shall be done.
    pub spec: TaskSpec,
    /// Fields of the model that vidgen has no word for, passed through as they are.
    pub extra: Map<String, Value>,
}

/// The typed part of a [`Task`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum TaskSpec {
    /// Make a picture.
    Image(ImageTask),
    /// Make a video, from a picture or from text alone.
    Video(VideoTask),
    /// Speak a text.
    Speech(SpeechTask),
    /// Put video and speech into one playable file.
    Compose(ComposeTask),
    /// Take a picture out of a video.
    Thumbnail(ThumbnailTask),
}

/// Width and height in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Width in pixels, even.
    pub width: u32,
    /// Height in pixels, even.
    pub height: u32,
}

/// Make a picture.
#[derive(Clone)]
pub struct ImageTask {
    /// What it shall show.
    pub prompt: String,
    /// What it shall not show.
    pub negative_prompt: Option<String>,
    /// In what manner, e.g. `watercolour`.
    pub style: Option<String>,
    /// How large.
    pub size: Size,
    /// Same seed, same picture, where the model can.
    pub seed: Option<u64>,
}

/// Make a video.
#[derive(Clone)]
pub struct VideoTask {
    /// What it shall show.
    pub prompt: String,
    /// What it shall not show.
    pub negative_prompt: Option<String>,
    /// In what manner.
    pub style: Option<String>,
    /// The first frame; `None` for text to video.
    pub image: Option<MediaInput>,
    /// How large.
    pub size: Size,
    /// How long.
    pub duration: Duration,
    /// Frames per second.
    pub fps: Option<u32>,
    /// Same seed, same video, where the model can.
    pub seed: Option<u64>,
}

/// Speak a text.
#[derive(Clone)]
pub struct SpeechTask {
    /// What to say.
    pub text: String,
    /// In which voice, by the provider's own name.
    pub voice: Option<String>,
}

/// Put video and speech into one playable file: H.264 (+ AAC) in MP4, index first.
#[derive(Clone, Debug)]
pub struct ComposeTask {
    /// The pictures.
    pub video: MediaInput,
    /// The speech. Longer than the video: the last frame is held until it ends. Shorter: silence after it.
    pub speech: Option<MediaInput>,
    /// How large; the video is scaled and padded to it.
    pub size: Size,
    /// How long the video shall be at least.
    pub duration: Duration,
    /// Frames per second.
    pub fps: Option<u32>,
}

/// Take a JPEG out of a video.
#[derive(Clone, Debug)]
pub struct ThumbnailTask {
    /// From where.
    pub video: MediaInput,
    /// At what moment; past the end means the last frame.
    pub at: Duration,
    /// The longest side in pixels.
    pub max_side: u32,
}

// What the user wrote, and fields that we know nothing of, are not printed.
impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("model", &self.model).field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl fmt::Debug for ImageTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageTask").field("size", &self.size).field("seed", &self.seed).finish_non_exhaustive()
    }
}

impl fmt::Debug for VideoTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VideoTask")
            .field("image", &self.image)
            .field("size", &self.size)
            .field("duration", &self.duration)
            .field("fps", &self.fps)
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for SpeechTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpeechTask").field("voice", &self.voice).finish_non_exhaustive()
    }
}

impl TaskSpec {
    /// What kind of step it is.
    #[must_use]
    pub fn kind(&self) -> StepKind {
        match self {
            Self::Image(_) => StepKind::Image,
            Self::Video(_) => StepKind::Video,
            Self::Speech(_) => StepKind::Speech,
            Self::Compose(_) => StepKind::Compose,
            Self::Thumbnail(_) => StepKind::Thumbnail,
        }
    }

    /// The length of what is made; speech is assumed to take a second for 10 characters.
    #[must_use]
    pub fn duration(&self) -> Duration {
        match self {
            Self::Video(task) => task.duration,
            Self::Compose(task) => task.duration,
            Self::Speech(task) => {
                Duration::from_millis(100) * u32::try_from(task.text.chars().count()).unwrap_or(u32::MAX)
            }
            Self::Image(_) | Self::Thumbnail(_) => Duration::ZERO,
        }
    }

    /// The text to speak; empty for other kinds.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Speech(task) => &task.text,
            _ => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_wrote_is_not_printed() {
        let size = Size { width: 16, height: 16 };
        let (prompt, more) = ("canary".to_owned(), Some("canary".to_owned()));
        let image =
            ImageTask { prompt: prompt.clone(), negative_prompt: more.clone(), style: more.clone(), size, seed: None };
        let video = VideoTask {
            prompt: prompt.clone(),
            negative_prompt: more.clone(),
            style: more,
            image: None,
            size,
            duration: Duration::ZERO,
            fps: None,
            seed: None,
        };
        let speech = SpeechTask { text: prompt, voice: None };
        for spec in [TaskSpec::Image(image), TaskSpec::Video(video), TaskSpec::Speech(speech)] {
            let extra = Map::from_iter([("style".to_owned(), Value::from("canary"))]);
            let task = Task { model: ModelId::from("m"), spec, extra };
            assert!(!format!("{task:?}").contains("canary"), "{task:?}");
        }
    }
}
