//! A template and a task → the graph that goes out.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Map, Value, json};
use vidgen_core::{Error, ErrorKind, Result, Size, SubmissionId, Task, TaskSpec};

use super::super::ORIGIN;
use super::{Field, Template};

/// Where our files lie in the server's output folder.
const FOLDER: &str = "vidgen";

/// What of a task is put into a workflow.
pub(in crate::comfyui) struct Given<'a> {
    prompt: String,
    negative_prompt: Option<&'a str>,
    size: Size,
    seed: u64,
    /// The name of the first frame on the server.
    pub(in crate::comfyui) image: Option<String>,
    video: Option<(Duration, Option<u32>)>,
    submission: &'a SubmissionId,
    extra: &'a Map<String, Value>,
}

impl<'a> Given<'a> {
    /// What a task has to give; nothing for kinds that no workflow does.
    pub(in crate::comfyui) fn new(template: &Template, task: &'a Task, submission: &'a SubmissionId) -> Option<Self> {
        let (prompt, style, negative_prompt, size, seed, video) = match &task.spec {
            TaskSpec::Image(t) => (&t.prompt, &t.style, &t.negative_prompt, t.size, t.seed, None),
            TaskSpec::Video(t) => (&t.prompt, &t.style, &t.negative_prompt, t.size, t.seed, Some((t.duration, t.fps))),
            _ => return None,
        };
        // A style that would make the prompt longer than the workflow takes is left out.
        let fits = |both: &String| template.model.max_text.is_none_or(|max| both.chars().count() <= max);
        let style = style.as_deref().map(str::trim).filter(|style| !style.is_empty());
        let both = style.map(|style| format!("{}, {style}", prompt.trim_end().trim_end_matches(['.', ','])));
        let prompt = both.filter(fits).unwrap_or_else(|| prompt.clone());
        let seed = seed.unwrap_or_else(|| own_seed(submission));
        let negative_prompt = negative_prompt.as_deref();
        Some(Self { prompt, negative_prompt, size, seed, image: None, video, submission, extra: &task.extra })
    }
}

/// With the same seed ComfyUI makes the same picture again, and without one it has the file's: so
/// each submission has its own. Within 32 bits, which is all that some samplers take.
fn own_seed(submission: &SubmissionId) -> u64 {
    let digest = digest(&SHA256, submission.as_str().as_bytes());
    digest.as_ref().iter().take(4).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

impl Template {
    /// The graph for one submission.
    ///
    /// # Errors
    /// `Invalid` if an extra field of the task names no input.
    pub(in crate::comfyui) fn filled(&self, given: &Given<'_>) -> Result<Value> {
        let mut nodes = self.nodes.clone();
        let inputs = nodes.values_mut().filter_map(|node| node.get_mut("inputs")?.as_object_mut());
        for value in inputs.flat_map(|inputs| inputs.values_mut()) {
            self.expand(value, given);
        }
        for (slot, field) in &self.slots {
            let place = nodes.get_mut(&slot.node).and_then(|node| node.get_mut("inputs")?.get_mut(&slot.input));
            if let (Some(place), Some(value)) = (place, self.value(*field, given)) {
                *place = like(place, value);
            }
        }
        for (name, value) in given.extra {
            let place = name.split_once('.').and_then(|(node, input)| {
                let inputs = nodes.get_mut(node)?.get_mut("inputs")?.as_object_mut()?;
                Some(inputs.insert(input.to_owned(), value.clone()))
            });
            if place.is_none() {
                let what = format!("workflow {}: extra \"{name}\" names no node's input", self.model.id);
                return Err(Error::new(ErrorKind::Invalid, ORIGIN, what));
            }
        }
        // Last, so that nothing can give two submissions the same files.
        for inputs in nodes.values_mut().filter_map(|node| node.get_mut("inputs")?.as_object_mut()) {
            if let Some(prefix) = inputs.get_mut("filename_prefix") {
                *prefix = json!(format!("{FOLDER}/{}", given.submission));
            }
        }
        Ok(Value::Object(nodes))
    }

    fn expand(&self, value: &mut Value, given: &Given<'_>) {
        match value {
            Value::String(text) => {
                let pieces = pieces(text);
                let only = match pieces.as_slice() {
                    [Piece::Name(name)] => Field::named(name),
                    _ => None,
                };
                if let Some(field) = only {
                    *value = self.value(field, given).unwrap_or_else(|| json!(""));
                    return;
                }
                let expanded: String = pieces.iter().map(|piece| self.text(piece, given)).collect();
                *value = Value::String(expanded);
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.expand(item, given)),
            Value::Object(map) => map.values_mut().for_each(|item| self.expand(item, given)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn text(&self, piece: &Piece<'_>, given: &Given<'_>) -> String {
        match piece {
            Piece::Text(text) => (*text).to_owned(),
            Piece::Name(name) => match Field::named(name).and_then(|field| self.value(field, given)) {
                Some(Value::String(text)) => text,
                Some(value) => value.to_string(),
                None => String::new(),
            },
        }
    }

    /// What a task says of a field, if it says anything.
    fn value(&self, field: Field, given: &Given<'_>) -> Option<Value> {
        Some(match field {
            Field::Prompt => json!(given.prompt),
            Field::NegativePrompt => json!(given.negative_prompt?),
            Field::Width => json!(self.side(given.size.width)),
            Field::Height => json!(self.side(given.size.height)),
            Field::Seed => json!(given.seed),
            Field::Image => json!(given.image.as_ref()?),
            Field::Frames => json!(self.frames(given)?),
            Field::Fps => json!(self.fps(given)?),
            Field::Seconds => {
                let (length, _) = given.video?;
                // A node that counts whole seconds takes no 5.0.
                if length.subsec_nanos() == 0 { json!(length.as_secs()) } else { json!(length.as_secs_f64()) }
            }
            Field::Submission => json!(given.submission),
        })
    }

    /// The closest multiple that the workflow takes.
    fn side(&self, side: u32) -> u32 {
        let unit = self.sides.get();
        (side.saturating_add(unit / 2) / unit).max(1).saturating_mul(unit)
    }

    /// A rate that has no place in the workflow is not the request's to choose.
    fn fps(&self, given: &Given<'_>) -> Option<u32> {
        let asked = given.video.and_then(|(_, fps)| fps).filter(|_| self.takes_fps);
        asked.or_else(|| self.rate.map(std::num::NonZeroU32::get))
    }

    fn frames(&self, given: &Given<'_>) -> Option<u64> {
        let ((length, _), fps) = (given.video?, self.fps(given)?);
        let (of, plus) = (u128::from(self.counts.0.get()), u64::from(self.counts.1));
        let units = length.as_millis().saturating_mul(u128::from(fps)).div_ceil(of.saturating_mul(1000));
        let frames = u64::try_from(units.saturating_mul(of)).unwrap_or(u64::MAX);
        Some(frames.saturating_add(plus).max(1))
    }
}

/// A number where the file has a float stays one: 24.0 for 24.
fn like(old: &Value, new: Value) -> Value {
    match (old, new.as_f64()) {
        (Value::Number(old), Some(number)) if old.is_f64() => json!(number),
        _ => new,
    }
}

/// A part of a string of a template.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    Text(&'a str),
    /// What stands between `{{` and `}}`.
    Name(&'a str),
}

/// The parts of a string. Only words stand for something: other uses of braces stay as they are.
pub(super) fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut from = 0;
    while let Some(open) = rest.get(from..).and_then(|text| text.find("{{")).map(|at| at + from) {
        let after = open + 2;
        let name = rest.get(after..).and_then(|text| text.split_once("}}")).map(|(name, _)| name);
        let word = |name: &&str| {
            let name = name.trim();
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        let Some(name) = name.filter(word) else {
            from = open + 1;
            continue;
        };
        let (before, rest_after) = (rest.get(..open).unwrap_or_default(), after + name.len() + 2);
        if !before.is_empty() {
            pieces.push(Piece::Text(before));
        }
        pieces.push(Piece::Name(name));
        (rest, from) = (rest.get(rest_after..).unwrap_or_default(), 0);
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest));
    }
    pieces
}
