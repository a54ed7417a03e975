//! What a run has ended with: its outputs, or why there are none.

use std::time::Duration;

use serde_json::{Map, Value};
use vidgen_core::{ContentInfo, ErrorKind, MediaType, Output, RunFailure, Snapshot, StepKind, Usage};

use super::wire;
use crate::client::{self, Refusal};

/// Longer words are none of fal's.
const MAX_WORD: usize = 64;

/// What is said of a run that has no outputs. No text of the remote's is kept but its words for what
/// went wrong: its messages quote inputs, which nobody here can tell from them.
#[derive(Default)]
pub(super) struct Said {
    code: Option<u16>,
    word: Option<String>,
    field: Option<String>,
    units: Option<u64>,
    worked: Option<f64>,
    /// Whether it says that another try would end the same.
    lasting: bool,
}

impl Said {
    /// What its status says.
    pub(super) fn by(status: &wire::Status) -> Self {
        Self { code: status.code(), word: status.word().and_then(word), worked: status.worked(), ..Self::default() }
    }

    /// What its result says, which the queue replays with status and headers.
    pub(super) fn and(mut self, refusal: &Refusal) -> Self {
        if self.word.is_none() {
            self.word = refusal.header("x-fal-error-type").and_then(word);
        }
        self.units = refusal.header(UNITS).and_then(milli);
        // The one name is in older pages of the documentation, the other in newer ones.
        self.lasting = ["x-fal-retryable", "x-fal-needs-retry"]
            .iter()
            .filter_map(|name| refusal.header(name))
            .any(|value| matches!(value, "false" | "0" | "no"));
        self.and_body(refusal.status, &refusal.body)
    }

    /// What the body of its result says.
    pub(super) fn and_body(mut self, code: u16, body: &Value) -> Self {
        self.code = Some(code);
        // A list is the model's own word, a text the platform's.
        let details = body.get("detail").and_then(Value::as_array);
        let kind = |detail: &&Value| detail.get("type").and_then(Value::as_str) == Some(POLICY);
        if let Some(detail) = details.and_then(|all| all.iter().find(kind).or_else(|| all.first())) {
            self.word = detail.get("type").and_then(Value::as_str).and_then(word);
            let place = detail.get("loc").and_then(Value::as_array);
            self.field = place.and_then(|place| place.iter().rev().find_map(|name| word(name.as_str()?)));
        } else if let Some(kind) = body.get("error_type").and_then(Value::as_str) {
            self.word = word(kind);
        }
        self
    }

    pub(super) fn with_units(mut self, units: Option<u64>) -> Self {
        self.units = units;
        self
    }

    /// What to do next.
    pub(super) fn kind(&self) -> ErrorKind {
        match self.word.as_deref().unwrap_or_default() {
            POLICY => ErrorKind::Refused,
            // The model's own machine: whether to try again is in a header.
            "internal_server_error"
            | "generation_timeout"
            | "downstream_service_error"
            | "downstream_service_unavailable"
                if self.lasting =>
            {
                ErrorKind::Unsupported
            }
            "internal_server_error"
            | "generation_timeout"
            | "downstream_service_error"
            | "downstream_service_unavailable"
            | "internal_error"
            | "request_timeout"
            | "startup_timeout"
            | "client_disconnected"
            | "concurrent_requests_limit" => ErrorKind::Unavailable,
            kind if kind.starts_with("runner_") => ErrorKind::Unavailable,
            // Ours to hand over: not the user's fault.
            "file_download_error" => ErrorKind::Unavailable,
            // Another model may take what this one does not.
            "feature_not_supported" | "file_too_large" | "image_too_small" | "image_too_large" => {
                ErrorKind::Unsupported
            }
            kind if ["unsupported_", "audio_duration_", "video_duration_"].iter().any(|p| kind.starts_with(p)) => {
                ErrorKind::Unsupported
            }
            _ => match self.code {
                Some(400 | 413 | 422) => ErrorKind::Invalid,
                // No such path in the app.
                Some(404 | 405) => ErrorKind::Unsupported,
                _ => ErrorKind::Unavailable,
            },
        }
    }

    /// Whether it is billed: what a machine has worked at may be, unless the fault is its own (5xx). If
    /// nothing tells, it is.
    fn billed(&self) -> bool {
        match self.code {
            Some(499..) => false,
            Some(_) => match (self.units, self.worked) {
                (Some(units), _) => units > 0,
                (None, worked) => worked.is_none_or(|seconds| seconds > 0.0),
            },
            None => matches!(self.kind(), ErrorKind::Refused | ErrorKind::Invalid | ErrorKind::Unsupported),
        }
    }

    /// For people: what it means, and fal's word for it.
    pub(super) fn reason(&self) -> String {
        let what = match self.kind() {
            ErrorKind::Refused => "the content was refused",
            ErrorKind::Invalid => "the model did not take the input",
            ErrorKind::Unsupported => "the model cannot do this",
            _ => "the run failed",
        };
        let code = self.code.map(|code| code.to_string());
        let words: Vec<&str> = [&self.word, &self.field, &code].into_iter().flatten().map(String::as_str).collect();
        if words.is_empty() { what.to_owned() } else { format!("{what} ({})", words.join(", ")) }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let usage = self.units.map(Usage::MilliUnits);
        let end = match self.word.as_deref() {
            Some("client_cancelled") => Snapshot::canceled(),
            _ => {
                let failure = RunFailure::new(self.kind(), &self.reason());
                Snapshot::failed(if self.billed() { failure.with_bill() } else { failure })
            }
        };
        match usage {
            Some(usage) => end.with_usage(usage),
            None => end,
        }
    }
}

/// How many units of the endpoint's own a run has used.
pub(super) const UNITS: &str = "x-fal-billable-units";
const POLICY: &str = "content_policy_violation";

fn word(text: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    (!text.is_empty() && text.len() <= MAX_WORD && text.chars().all(plain)).then(|| text.to_owned())
}

/// `3.008` → 3008 thousandths, rounded up.
pub(super) fn milli(units: &str) -> Option<u64> {
    client::milli(units.trim().parse().ok()?)
}

/// A run that has ended well.
pub(super) fn success(body: &Value, units: Option<u64>, kind: Option<StepKind>) -> Snapshot {
    // A picture that its safety checker flags is black (unverified), and paid for.
    let flags = body.get("has_nsfw_concepts").and_then(Value::as_array);
    let flagged = flags.is_some_and(|flags| !flags.is_empty() && flags.iter().all(|flag| *flag == true));
    let end = if flagged && kind == Some(StepKind::Image) {
        let failure = RunFailure::new(ErrorKind::Refused, "the content was refused (has_nsfw_concepts)");
        Snapshot::failed(failure.with_bill())
    } else {
        Snapshot::succeeded(outputs(body, kind))
    };
    match units {
        Some(units) => end.with_usage(Usage::MilliUnits(units)),
        None => end,
    }
}

/// Every file in a result, whatever its shape: `video.url`, `images[].url`, `audio.url`, or plain
/// strings as in `video_url`. Those of the step's own kind come first.
fn outputs(body: &Value, kind: Option<StepKind>) -> Vec<Output> {
    let mut files = Vec::new();
    collect("", body, &mut files);
    let length = body.get("duration_ms").and_then(Value::as_u64).map(Duration::from_millis);
    let wanted = kind.map(|kind| match kind {
        StepKind::Image | StepKind::Thumbnail => "image",
        StepKind::Speech => "audio",
        StepKind::Video | StepKind::Compose => "video",
    });
    files.sort_by_key(|file| {
        let rank = match (wanted, file.class) {
            (Some(wanted), Some(class)) => u8::from(wanted != class) * 2,
            _ => 1,
        };
        (file.aside, rank)
    });
    let outputs = files.into_iter().map(|file| {
        let mut output = file.output;
        if file.class == Some("audio") {
            output.content.duration = output.content.duration.or(length);
        }
        output
    });
    outputs.collect()
}

struct Found {
    output: Output,
    /// `image`, `video` or `audio`.
    class: Option<&'static str>,
    /// A thumbnail, which is never what was asked for.
    aside: bool,
}

fn collect(name: &str, value: &Value, files: &mut Vec<Found>) {
    match value {
        Value::Object(map) => match map.get("url").and_then(Value::as_str).filter(|url| is_file(url)) {
            Some(url) => files.push(found(name, url, Some(map))),
            // What was put in is nothing that came out.
            None => map
                .iter()
                .filter(|(name, _)| !matches!(name.as_str(), "input" | "inputs" | "prompt"))
                .for_each(|(name, value)| collect(name, value, files)),
        },
        Value::Array(items) => items.iter().for_each(|item| collect(name, item, files)),
        // Not any text: a prompt may be a URL, too.
        Value::String(url) if is_file(url) && (name.ends_with("url") || class(name).is_some() || name == "output") => {
            files.push(found(name, url, None));
        }
        _ => {}
    }
}

fn is_file(url: &str) -> bool {
    ["https:", "http:", "data:"].iter().any(|scheme| url.starts_with(scheme))
}

/// The first of these words that is in `text`.
fn class(text: &str) -> Option<&'static str> {
    ["video", "audio", "image"].into_iter().find(|class| text.contains(class))
}

fn found(name: &str, url: &str, file: Option<&Map<String, Value>>) -> Found {
    let none = Map::new();
    let file = file.unwrap_or(&none);
    let content_type = file.get("content_type").and_then(Value::as_str).unwrap_or_default();
    let content_type = content_type.split(';').next().unwrap_or_default().trim();
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let extension = path.rsplit_once('.').map_or("", |(_, extension)| extension);
    let named = Some(MediaType::from_extension(extension)).filter(|of| *of != MediaType::Binary);
    let mut output = Output::new(url);
    output.media_type = media_type(content_type).or(named);
    let pixels = |name| file.get(name).and_then(Value::as_u64).and_then(|pixels| u32::try_from(pixels).ok());
    let seconds = file.get("duration").and_then(Value::as_f64).filter(|seconds| *seconds > 0.0);
    output.content = ContentInfo {
        width: pixels("width"),
        height: pixels("height"),
        duration: seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        audio: None,
    };
    let told = output.media_type.map_or(content_type, |of| of.mime());
    let told = class(told.split('/').next().unwrap_or_default());
    Found { class: told.or_else(|| class(name)), aside: name.contains("thumb") || name.contains("preview"), output }
}

fn media_type(mime: &str) -> Option<MediaType> {
    use MediaType::{Jpeg, M4a, Mov, Mp3, Mp4, Ogg, Png, Wav, Webm, Webp};
    match mime {
        "audio/mp3" => Some(Mp3),
        "audio/x-wav" => Some(Wav),
        _ => [Png, Jpeg, Webp, Mp4, Webm, Mov, Mp3, Wav, M4a, Ogg].into_iter().find(|of| of.mime() == mime),
    }
}
