//! The body of `POST /generate` and `POST /quote`: read under limits, checked field by field, so
//! that one answer names everything that is wrong with it.

use std::fmt;
use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use futures::StreamExt;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::{Map, Value};
use vidgen_core::{AspectRatio, FieldError, JobRequest, Resolution};

use crate::error::Problem;
use crate::options::Api;

/// The largest body: a hundred times what the longest prompt and script take.
const MAX_BODY: usize = 256 * 1024;
/// How long the body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);
/// How deep JSON may be nested; each level costs stack.
const MAX_DEPTH: usize = 32;
/// How many unknown fields are named: enough to help, too few to be an echo.
const MAX_UNKNOWN: usize = 20;

/// A request that this host can do, as far as can be told beforehand.
#[derive(Debug)]
pub(crate) struct Asked(pub(crate) JobRequest);

impl FromRequest<Api> for Asked {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let declared = content_type(&parts.headers)?;
        let bytes = tokio::time::timeout(BODY_TIME, read(body, &parts.headers))
            .await
            .map_err(|_| Problem::of_status(StatusCode::REQUEST_TIMEOUT))??;
        if bytes.is_empty() {
            return Err(Problem::invalid_field("", "must be a JSON object, and is empty"));
        }
        if !declared {
            return Err(Problem::unsupported_media_type());
        }
        let fields = Fields::parse(&bytes)?;
        let (request, mut bad) = fields.check();
        // A field of the wrong type has its default here, which would only be judged once more.
        let judged = api.vidgen.problems(&request);
        let named: Vec<String> = bad.iter().map(|b| b.field.clone()).collect();
        bad.extend(judged.into_iter().filter(|b| !named.contains(&b.field)));
        let unknown = fields.unknown.iter().map(|name| FieldError::new(name, "is not a field of a request"));
        match (bad.is_empty(), fields.unknown.is_empty()) {
            (true, true) => Ok(Self(request)),
            (true, false) => Err(Problem::unknown_fields(unknown.collect())),
            (false, _) => Err(Problem::invalid(bad.into_iter().chain(unknown).collect())),
        }
    }
}

/// Whether the body is declared to be JSON; other declarations are refused before it is read.
fn content_type(headers: &HeaderMap) -> Result<bool, Problem> {
    if headers.contains_key(header::CONTENT_ENCODING) {
        let problem = Problem::of_status(StatusCode::UNSUPPORTED_MEDIA_TYPE);
        return Err(problem.with_detail("send the body without a content encoding"));
    }
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(false) };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let json = essence.eq_ignore_ascii_case("application/json");
    if json { Ok(true) } else { Err(Problem::unsupported_media_type()) }
}

async fn read(body: axum::body::Body, headers: &HeaderMap) -> Result<Vec<u8>, Problem> {
    let too_large = || Problem::of_status(StatusCode::PAYLOAD_TOO_LARGE).with_detail("the body may have 256 KiB");
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    if declared.is_some_and(|length: usize| length > MAX_BODY) {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| Problem::invalid_field("", "was cut off"))?;
        if bytes.len() + chunk.len() > MAX_BODY {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// The fields as they came, each still any JSON, so that one of the wrong type hides no other.
#[derive(Debug, Default)]
struct Fields {
    known: Vec<(Field, Value)>,
    twice: Vec<Field>,
    unknown: Vec<String>,
}

macro_rules! fields {
    ($($variant:ident = $name:literal),+ $(,)?) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Field { $($variant),+ }
        impl Field {
            const ALL: &'static [Self] = &[$(Self::$variant),+];
            fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    };
}
fields! {
    Prompt = "prompt",
    Script = "script",
    WebhookUrl = "webhook_url",
    Pipeline = "pipeline",
    AspectRatio = "aspect_ratio",
    Resolution = "resolution",
    Duration = "duration_seconds",
    Fps = "fps",
    Seed = "seed",
    Style = "style",
    NegativePrompt = "negative_prompt",
    ImageUrl = "image_url",
    Voice = "voice",
    Metadata = "metadata",
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Fields::default();
                while let Some(name) = map.next_key::<String>()? {
                    match Field::ALL.iter().find(|f| f.name() == name) {
                        Some(field) if fields.get(*field).is_some() => {
                            map.next_value::<IgnoredAny>()?;
                            fields.twice.push(*field);
                        }
                        Some(field) => fields.known.push((*field, map.next_value()?)),
                        None => {
                            map.next_value::<IgnoredAny>()?;
                            if fields.unknown.len() < MAX_UNKNOWN {
                                fields.unknown.push(vidgen_core::quote(&name));
                            }
                        }
                    }
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(Object)
    }
}

impl Fields {
    fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let text = std::str::from_utf8(bytes).map_err(|_| Problem::invalid_field("", "must be UTF-8"))?;
        if depth(text) > MAX_DEPTH {
            return Err(Problem::invalid_field("", format!("must be nested at most {MAX_DEPTH} deep")));
        }
        serde_json::from_str(text).map_err(|e| match e.classify() {
            Category::Data => Problem::invalid_field("", "must be a JSON object"),
            _ => Problem::invalid_field("", format!("is not JSON (line {}, column {})", e.line(), e.column())),
        })
    }

    fn get(&self, field: Field) -> Option<&Value> {
        self.known.iter().find(|(f, _)| *f == field).map(|(_, value)| value)
    }

    /// The request as far as the types are right, and the fields where they are not.
    fn check(&self) -> (JobRequest, Vec<FieldError>) {
        let mut bad = Vec::new();
        for field in &self.twice {
            bad.push(FieldError::new(field.name(), "is given twice"));
        }
        let mut typed = Typed { fields: self, bad };
        let mut request = JobRequest::new(typed.text(Field::Prompt).unwrap_or_default());
        if self.get(Field::Prompt).is_none() {
            typed.say(Field::Prompt, "is required");
        }
        request.script = typed.text(Field::Script);
        request.webhook_url = typed.text(Field::WebhookUrl);
        request.pipeline = typed.text(Field::Pipeline);
        request.aspect_ratio = typed.choice::<AspectRatio>(Field::AspectRatio);
        request.resolution = typed.choice::<Resolution>(Field::Resolution);
        request.duration = typed.seconds(Field::Duration);
        request.fps = typed.whole(Field::Fps).map(|fps| u32::try_from(fps).unwrap_or(u32::MAX));
        request.seed = typed.whole(Field::Seed);
        request.style = typed.text(Field::Style);
        request.negative_prompt = typed.text(Field::NegativePrompt);
        request.image_url = typed.text(Field::ImageUrl);
        request.voice = typed.text(Field::Voice);
        request.metadata = typed.object(Field::Metadata);
        (request, typed.bad)
    }
}

struct Typed<'a> {
    fields: &'a Fields,
    bad: Vec<FieldError>,
}

impl<'a> Typed<'a> {
    fn say(&mut self, field: Field, message: &str) {
        self.bad.push(FieldError::new(field.name(), message));
    }

    /// The field by `read`, or a note of what it should be if that cannot read it.
    fn read<T>(&mut self, field: Field, expected: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Option<T> {
        let value = self.fields.get(field)?;
        let result = read(value);
        if result.is_none() {
            self.say(field, expected);
        }
        result
    }

    fn text(&mut self, field: Field) -> Option<String> {
        self.read(field, "must be a string", |v| v.as_str().map(str::to_owned))
    }

    fn whole(&mut self, field: Field) -> Option<u64> {
        self.read(field, "must be a whole number, at least 0", Value::as_u64)
    }

    fn seconds(&mut self, field: Field) -> Option<Duration> {
        let seconds = self.read(field, "must be a number of seconds", Value::as_f64)?;
        // Out of range is left to the rules, which know the range.
        let limit = if seconds > 0.0 { Duration::MAX } else { Duration::ZERO };
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(limit))
    }

    fn choice<T: std::str::FromStr<Err = vidgen_core::Error> + Default>(&mut self, field: Field) -> T {
        let Some(text) = self.text(field) else { return T::default() };
        text.parse().unwrap_or_else(|e: vidgen_core::Error| {
            let message = e.fields().first().map_or("is not one of the choices", |f| f.message.as_str());
            self.say(field, message);
            T::default()
        })
    }

    fn object(&mut self, field: Field) -> Map<String, Value> {
        let object = self.read(field, "must be an object", |v| v.as_object().cloned()).unwrap_or_default();
        // Not every database can store it.
        if has_nul(&object) {
            self.say(field, "must not contain NUL characters");
            return Map::new();
        }
        object
    }
}

fn has_nul(object: &Map<String, Value>) -> bool {
    fn inside(value: &Value) -> bool {
        match value {
            Value::String(text) => text.contains('\0'),
            Value::Array(items) => items.iter().any(inside),
            Value::Object(object) => has_nul(object),
            _ => false,
        }
    }
    object.iter().any(|(key, value)| key.contains('\0') || inside(value))
}

/// How deep JSON is nested, without parsing it: the parser's own limit is not ours to set.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut quoted, mut escaped) = (0usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'{' | b'[' if !quoted => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> (JobRequest, Vec<String>) {
        let (request, bad) = Fields::parse(json.as_bytes()).unwrap().check();
        (request, bad.into_iter().map(|b| format!("{} {}", b.field, b.message)).collect())
    }

    #[test]
    fn every_field_of_a_wrong_type_is_named_at_once() {
        let (_, bad) = check(
            r#"{"script": 1, "webhook_url": [], "aspect_ratio": "2:1", "resolution": 720, "duration_seconds": "4",
                "fps": 1.5, "seed": -1, "metadata": "x", "voice": null, "voice": null}"#,
        );
        assert_eq!(
            bad,
            [
                "voice is given twice",
                "prompt is required",
                "script must be a string",
                "webhook_url must be a string",
                "aspect_ratio must be one of 16:9, 9:16, 1:1, 4:3, 3:4",
                "resolution must be a string",
                "duration_seconds must be a number of seconds",
                "fps must be a whole number, at least 0",
                "seed must be a whole number, at least 0",
                "voice must be a string",
                "metadata must be an object",
            ]
        );
    }

    #[test]
    fn every_field_is_taken_over() {
        let json = r#"{"prompt": "a cat", "script": "meow", "webhook_url": "https://example.com", "pipeline": "fast",
            "aspect_ratio": "9:16", "resolution": "360p", "duration_seconds": 2.5, "fps": 24, "seed": 7,
            "style": "ink", "negative_prompt": "dogs", "voice": "Rachel", "metadata": {"order": 1}}"#;
        let (request, bad) = check(json);
        assert_eq!(bad, [""; 0]);
        let back = serde_json::to_value(&request).unwrap();
        // Names differ only where core measures in other units.
        let names = |v: &Value| v.as_object().unwrap().keys().map(|k| k.replace("_seconds", "")).collect::<Vec<_>>();
        let mut sent = names(&serde_json::from_str(json).unwrap());
        let mut kept = names(&back);
        sent.sort();
        kept.sort();
        assert_eq!(sent, kept);
        assert_eq!(request.duration, Some(Duration::from_millis(2500)));
    }

    #[test]
    fn lengths_out_of_any_range_are_left_to_the_rules() {
        for (json, expected) in [("-1", Duration::ZERO), ("1e300", Duration::MAX), ("0", Duration::ZERO)] {
            let (request, bad) = check(&format!(r#"{{"prompt": "x", "duration_seconds": {json}}}"#));
            assert_eq!((request.duration, bad.len()), (Some(expected), 0), "{json}");
        }
    }

    #[test]
    fn nul_is_found_wherever_it_hides_in_metadata() {
        for metadata in [r#"{"a\u0000": 1}"#, r#"{"a": ["\u0000"]}"#, r#"{"a": {"b": {"c": "\u0000"}}}"#] {
            let (_, bad) = check(&format!(r#"{{"prompt": "x", "metadata": {metadata}}}"#));
            assert_eq!(bad, ["metadata must not contain NUL characters"], "{metadata}");
        }
    }

    #[test]
    fn depth_counts_brackets_outside_strings() {
        for (json, expected) in [("1", 0), ("{}", 1), (r#"{"a": [[]]}"#, 3), (r#"["[[[\"[["]"#, 1), ("[],[]", 1)] {
            assert_eq!(depth(json), expected, "{json}");
        }
    }
}
