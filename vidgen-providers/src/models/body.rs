//! A task → the fields of a model's request.

use std::time::Duration;

use serde_json::{Map, Value, json};
use vidgen_core::{AspectRatio, Resolution, Size, SubmissionId, TaskSpec};

use super::ModelEntry;
use super::fields::{FieldMap, Image, ImageForm, Length, LengthForm, Number, NumberForm, Path, Place, Sides, Word};
use super::shape::shape;

/// What every seed fits into: most remotes keep it in 32 bits, some with a sign.
const SEEDS: u64 = 1 << 31;

impl ModelEntry {
    /// The fields of a request for `spec`; `image` is where the first frame can be fetched, or the
    /// frame itself as a data URL. `extra` overrides whatever this entry says.
    #[must_use]
    pub fn body(&self, spec: &TaskSpec, image: Option<String>, extra: &Map<String, Value>) -> Map<String, Value> {
        let mut body = Body(self.defaults.clone());
        let fields = &self.fields;
        match spec {
            TaskSpec::Image(task) => {
                body.word(fields.prompt.as_ref(), Some(self.prompt(&task.prompt, task.style.as_deref())));
                body.word(fields.negative_prompt.as_ref(), task.negative_prompt.clone());
                body.size(fields, task.size);
                body.number(fields.seed.as_ref(), task.seed.map(|seed| bounded(fields.seed.as_ref(), seed)));
            }
            TaskSpec::Video(task) => {
                body.word(fields.prompt.as_ref(), Some(self.prompt(&task.prompt, task.style.as_deref())));
                body.word(fields.negative_prompt.as_ref(), task.negative_prompt.clone());
                body.image(fields.image.as_ref(), image);
                body.size(fields, task.size);
                // Frames fill their time at the rate that is asked for, if the model can be asked.
                let rate = task.fps.filter(|fps| *fps > 0 && fields.fps.is_some());
                body.length(fields.duration.as_ref(), task.duration, rate);
                body.number(fields.fps.as_ref(), task.fps.map(u64::from));
                body.number(fields.seed.as_ref(), task.seed.map(|seed| bounded(fields.seed.as_ref(), seed)));
                if let Some(audio) = &fields.audio {
                    body.set(&audio.name, Value::Bool(self.model.audio));
                }
            }
            TaskSpec::Speech(task) => {
                body.word(fields.text.as_ref(), Some(task.text.clone()));
                body.word(fields.voice.as_ref(), task.voice.clone());
            }
            // Nobody sells these; a table cannot have them.
            _ => {}
        }
        let mut body = body.0;
        body.extend(extra.iter().map(|(name, value)| (name.clone(), value.clone())));
        body
    }

    /// Adds our id of the submission, if a field carries it.
    pub(crate) fn mark(&self, body: Map<String, Value>, submission: &SubmissionId) -> Map<String, Value> {
        let mut body = Body(body);
        body.word(self.fields.marker.as_ref(), Some(submission.to_string()));
        body.0
    }

    #[allow(dead_code, reason = "only for providers whose lists show what was sent")]
    /// Our id of the submission in what was sent, or is said to have been.
    #[allow(dead_code, reason = "only some providers can look for it")]
    pub(crate) fn marked<'a>(&self, body: &'a Value) -> Option<&'a str> {
        let path = &self.fields.marker.as_ref()?.name;
        path.0.iter().try_fold(body, |value, name| value.get(name))?.as_str()
    }

    /// The prompt with the style in which. A style that would make it longer than the model takes is
    /// left out: the prompt alone was found to fit.
    fn prompt(&self, prompt: &str, style: Option<&str>) -> String {
        let Some(style) = style.map(str::trim).filter(|style| !style.is_empty()) else { return prompt.to_owned() };
        let both = format!("{}, {style}", prompt.trim_end().trim_end_matches(['.', ',']));
        let fits = self.model.max_text.is_none_or(|max| both.chars().count() <= max);
        if fits { both } else { prompt.to_owned() }
    }
}

impl FieldMap {
    /// An aspect ratio or a resolution for which there is a list of values, and not this one.
    pub(super) fn missing(&self, ratios: &[AspectRatio], resolutions: &[Resolution]) -> Option<String> {
        let lacks = |word: &Option<Word>, text: &str| {
            word.as_ref().is_some_and(|word| !word.values.is_empty() && !word.values.contains_key(text))
        };
        let ratio = ratios.iter().map(|r| r.as_str()).find(|text| lacks(&self.aspect_ratio, text));
        let resolution = resolutions.iter().map(|r| r.as_str()).find(|text| lacks(&self.resolution, text));
        ratio.or(resolution).map(str::to_owned)
    }
}

fn bounded(field: Option<&Number>, seed: u64) -> u64 {
    seed % field.and_then(|field| field.below).unwrap_or(SEEDS).max(1)
}

struct Body(Map<String, Value>);

impl Body {
    fn set(&mut self, path: &Path, value: Value) {
        let Some((last, around)) = path.0.split_last() else { return };
        let mut map = &mut self.0;
        for name in around {
            let inner = map.entry(name).or_insert_with(|| json!({}));
            if !inner.is_object() {
                *inner = json!({});
            }
            let Value::Object(inner) = inner else { return };
            map = inner;
        }
        map.insert(last.clone(), value);
    }

    fn word(&mut self, field: Option<&Word>, text: Option<String>) {
        let (Some(field), Some(text)) = (field, text) else { return };
        let value = field.values.get(&text).cloned();
        self.set(&field.name, value.unwrap_or(Value::String(text)));
    }

    fn image(&mut self, field: Option<&Image>, image: Option<String>) {
        let (Some(field), Some(image)) = (field, image) else { return };
        let value = match field.form {
            ImageForm::Url => Value::String(image),
            ImageForm::List => json!([image]),
        };
        self.set(&field.name, value);
    }

    fn number(&mut self, field: Option<&Number>, number: Option<u64>) {
        let (Some(field), Some(number)) = (field, number) else { return };
        let value = match field.form {
            NumberForm::Number => json!(number),
            NumberForm::Text => json!(number.to_string()),
        };
        self.set(&field.name, value);
    }

    fn length(&mut self, field: Option<&Length>, length: Duration, rate: Option<u32>) {
        let Some(field) = field else { return };
        let text = length.as_secs_f64().to_string();
        let value = match field.form {
            // Whole seconds as an integer: a model that counts them so takes no 5.0.
            LengthForm::Number if length.subsec_nanos() == 0 => json!(length.as_secs()),
            LengthForm::Number => json!(length.as_secs_f64()),
            LengthForm::Text => json!(text),
            LengthForm::Suffixed => json!(format!("{text}s")),
            LengthForm::Milliseconds => json!(u64::try_from(length.as_millis()).unwrap_or(u64::MAX)),
            LengthForm::Frames => {
                let frames =
                    length.as_millis().saturating_mul(u128::from(rate.unwrap_or(field.fps))).saturating_add(500) / 1000;
                json!(u64::try_from(frames).unwrap_or(u64::MAX).saturating_add(u64::from(field.extra)))
            }
        };
        self.set(&field.name, value);
    }

    fn size(&mut self, fields: &FieldMap, size: Size) {
        let (ratio, resolution) = shape(size);
        self.word(fields.aspect_ratio.as_ref(), Some(ratio.to_string()));
        self.word(fields.resolution.as_ref(), Some(resolution.to_string()));
        if let Some(sides) = &fields.size {
            let (width, height) = (rounded(sides, size.width), rounded(sides, size.height));
            match &sides.place {
                Place::Two { width: w, height: h } => {
                    self.set(w, json!(width));
                    self.set(h, json!(height));
                }
                Place::Object(path) => self.set(path, json!({ "width": width, "height": height })),
                Place::Text(path, between) => self.set(path, json!(format!("{width}{between}{height}"))),
            }
        }
    }
}

/// The closest multiple that the model takes.
fn rounded(sides: &Sides, side: u32) -> u32 {
    let unit = sides.multiple_of;
    (side.saturating_add(unit / 2) / unit).max(1).saturating_mul(unit)
}
