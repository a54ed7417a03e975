//! What an input asks for, by the fields that the remotes have for that.

use std::time::Duration;

use serde_json::Value;
use vidgen_core::{Size, StepKind};

use super::Film;

/// How deep a field may lie: `response_format.aspect_ratio`, `instances[0].…`.
const DEPTH: usize = 4;
/// Speech of so many characters takes a second.
const CHARACTERS_PER_SECOND: f64 = 15.0;

impl Film {
    /// As an input asks for it: `duration`, `seconds`, `num_frames`; `width` and `height`, `size`,
    /// `ratio`, `resolution`, `aspect_ratio`, `image_size`, `megapixels`; `fps`; at any depth. Speech is as long
    /// as its text takes.
    #[must_use]
    pub fn asked(kind: StepKind, input: &Value) -> Self {
        let mut film = Self::new(kind);
        if let Some(fps) = number(input, &["fps", "frames_per_second", "framesPerSecond", "frame_rate"]) {
            film = film.with_fps(fps.round() as u32);
        }
        if let Some(size) = size(kind, input) {
            film = film.with_size(size);
        }
        let seconds = match kind {
            StepKind::Speech => {
                let text = ["text", "input", "prompt", "promptText"]
                    .iter()
                    .find_map(|name| find(input, name, DEPTH)?.as_str());
                text.map(|text| text.chars().count() as f64 / CHARACTERS_PER_SECOND)
            }
            _ => {
                let frames = || Some(number(input, &["num_frames", "frames"])? / f64::from(film.fps));
                number(input, &["duration", "seconds", "durationSeconds", "duration_seconds"]).or_else(frames)
            }
        };
        match seconds {
            Some(seconds) if seconds > 0.0 && seconds < 1e6 => film.with_duration(Duration::from_secs_f64(seconds)),
            _ => film,
        }
    }
}

/// The first field of that name, wherever it is.
fn find<'a>(value: &'a Value, name: &str, depth: usize) -> Option<&'a Value> {
    let inside = |value: &'a Value| if depth == 0 { None } else { find(value, name, depth - 1) };
    match value {
        Value::Object(fields) => fields.get(name).or_else(|| fields.values().find_map(inside)),
        Value::Array(items) => items.iter().find_map(inside),
        _ => None,
    }
}

/// A number, as such or as text: `5`, `"5"`, `"5s"`.
fn number(input: &Value, names: &[&str]) -> Option<f64> {
    names.iter().find_map(|name| match find(input, name, DEPTH)? {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim_end_matches('s').parse().ok(),
        _ => None,
    })
}

fn text<'a>(input: &'a Value, names: &[&str]) -> Option<&'a str> {
    names.iter().find_map(|name| find(input, name, DEPTH)?.as_str())
}

fn size(kind: StepKind, input: &Value) -> Option<Size> {
    let pixels = |name: &str| number(input, &[name]).map(|side| side as u32);
    if let (Some(width), Some(height)) = (pixels("width"), pixels("height")) {
        return Some(Size { width, height });
    }
    let names = ["size", "ratio", "resolution", "image_size", "video_size", "aspect_ratio", "aspectRatio"];
    if let Some((width, height)) = names.iter().find_map(|name| pair(text(input, &[name])?).filter(|(w, _)| *w > 100)) {
        return Some(Size { width, height });
    }
    if let Some((width, height)) = text(input, &["image_size", "video_size"]).and_then(named) {
        return Some(Size { width, height });
    }
    let ratio = text(input, &["aspect_ratio", "aspectRatio", "ratio"]).and_then(pair);
    let lines = text(input, &["resolution"]).and_then(lines);
    if ratio.is_none() && lines.is_none() {
        return None;
    }
    let (w, h) = ratio.unwrap_or(if kind == StepKind::Image { (1, 1) } else { (16, 9) });
    let ratio = f64::from(w) / f64::from(h.max(1));
    let (width, height) = match lines {
        // 720p is the shorter side, whichever that is.
        Some(lines) if ratio >= 1.0 => (f64::from(lines) * ratio, f64::from(lines)),
        Some(lines) => (f64::from(lines), f64::from(lines) / ratio),
        None if kind == StepKind::Image => {
            let area = number(input, &["megapixels"]).unwrap_or(1.0) * 1024.0 * 1024.0;
            ((area * ratio).sqrt(), (area / ratio).sqrt())
        }
        None if ratio >= 1.0 => (720.0 * ratio, 720.0),
        None => (720.0, 720.0 / ratio),
    };
    Some(Size { width: even(width), height: even(height) })
}

fn even(side: f64) -> u32 {
    ((side / 2.0).round() as u32) * 2
}

/// `1280x720`, `1280:720`, `16:9`, `1280*720`.
fn pair(text: &str) -> Option<(u32, u32)> {
    let (width, height) = text.split_once(['x', 'X', ':', '*'])?;
    Some((width.trim().parse().ok()?, height.trim().parse().ok()?))
}

/// `720p`, `768P`, `2k`, `4k`.
fn lines(text: &str) -> Option<u32> {
    match text.to_ascii_lowercase().as_str() {
        "2k" => Some(1440),
        "4k" => Some(2160),
        other => other.strip_suffix('p')?.parse().ok(),
    }
}

/// The names that fal has for sizes.
fn named(name: &str) -> Option<(u32, u32)> {
    Some(match name {
        "square_hd" => (1024, 1024),
        "square" => (512, 512),
        "portrait_4_3" => (768, 1024),
        "portrait_16_9" => (576, 1024),
        "landscape_4_3" => (1024, 768),
        "landscape_16_9" => (1024, 576),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_asked_is_understood_in_everybodys_words() {
        let cases = [
            (json!({ "aspect_ratio": "16:9", "resolution": "1080p", "duration": 8 }), (1920, 1080, 8000)),
            (json!({ "aspect_ratio": "9:16", "resolution": "720p", "duration": "4s" }), (720, 1280, 4000)),
            (json!({ "resolution": "480p", "duration": "5" }), (854, 480, 5000)),
            (json!({ "resolution": "768P" }), (1366, 768, 5000)),
            (json!({ "size": "1024x1792", "seconds": "12" }), (1024, 1792, 12_000)),
            (json!({ "ratio": "832:1104", "duration": 2 }), (832, 1104, 2000)),
            (json!({ "width": 641, "height": 480, "num_frames": 48, "fps": 16 }), (640, 480, 3000)),
            (json!({ "image_size": { "width": 640, "height": 360 } }), (640, 360, 5000)),
            (
                json!({ "parameters": { "aspectRatio": "16:9", "resolution": "720p", "durationSeconds": 6 } }),
                (1280, 720, 6000),
            ),
            (json!({ "duration": "soon", "aspect_ratio": "auto" }), (1280, 720, 5000)),
            (json!({}), (1280, 720, 5000)),
        ];
        for (input, (width, height, millis)) in cases {
            let film = Film::asked(StepKind::Video, &input);
            let got = (film.width, film.height, film.duration.as_millis());
            assert_eq!(got, (width, height, millis), "{input}");
        }
        let image = |input: Value| Film::asked(StepKind::Image, &input);
        assert_eq!((image(json!({})).width, image(json!({ "image_size": "landscape_16_9" })).height), (1024, 576));
        let wide = image(json!({ "aspect_ratio": "16:9", "megapixels": "0.25" }));
        assert_eq!((wide.width, wide.height), (682, 384));
        let speech = Film::asked(StepKind::Speech, &json!({ "text": "a".repeat(45), "duration": 9 }));
        assert_eq!(speech.duration, Duration::from_secs(3));
    }
}
