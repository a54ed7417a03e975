//! The user's own workflow: a graph in ComfyUI's API format, and what of a task goes where in it.

mod fill;

use std::fmt;
use std::num::NonZeroU32;

use serde_json::{Map, Value};
use vidgen_core::{Error, ErrorKind, Model, Price, Result, StepKind};

pub(super) use fill::Given;

use super::ORIGIN;

/// A workflow, as ComfyUI's "Export (API)" writes it, and which of its inputs carry what.
///
/// An input is named as the file has it: the node's id, a dot, the input: `"6.text"`. Each of the
/// `with_…` below binds one; binding several to the same thing is fine (two samplers, one seed). Or
/// a string in the file names what belongs there, alone or within other text:
///
/// | placeholder | what it stands for | bound by |
/// |---|---|---|
/// | `{{prompt}}` | the prompt, with the style in which | [`with_prompt`](Self::with_prompt) |
/// | `{{negative_prompt}}` | what the prompt shall not show; empty if nothing is said | [`with_negative_prompt`](Self::with_negative_prompt) |
/// | `{{width}}`, `{{height}}` | pixels | [`with_size`](Self::with_size) |
/// | `{{seed}}` | the request's seed, else one that follows from the submission | [`with_seed`](Self::with_seed) |
/// | `{{image}}` | the name of the uploaded first frame | [`with_image`](Self::with_image) |
/// | `{{frames}}` | how many frames the video has | [`with_frames`](Self::with_frames) |
/// | `{{fps}}` | frames per second | [`with_fps`](Self::with_fps) |
/// | `{{seconds}}` | the length of the video | [`with_seconds`](Self::with_seconds) |
/// | `{{submission}}` | an id that no other submission has, for names of files | each `filename_prefix` |
///
/// A string that is nothing but a placeholder becomes what it stands for, so that numbers are
/// numbers: `"{{width}}"` is 1280, `"at {{fps}} fps"` is text. Whatever the user writes is put in
/// once and not looked at again. Every `filename_prefix` is replaced by one of the submission's own,
/// so that no two of them ever share a file.
///
/// ```
/// use vidgen_core::{Lengths, Model, Price, StepKind};
/// use vidgen_providers::comfyui::{ComfyUi, Workflow};
///
/// # let json = r#"{
/// #   "3": {"class_type": "KSampler", "inputs": {"seed": 1, "positive": ["6", 0]}},
/// #   "5": {"class_type": "EmptyHunyuanLatentVideo", "inputs": {"width": 512, "height": 512, "length": 1}},
/// #   "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ""}},
/// #   "9": {"class_type": "SaveVideo", "inputs": {"filename_prefix": "video"}}
/// # }"#;
/// // let json = std::fs::read_to_string("wan_t2v.json")?;
/// let limits = Model::new("wan-2.2-t2v", StepKind::Video, Price::Free).with_lengths(Lengths::seconds([3, 5]));
/// let workflow = Workflow::new(limits, json)
///     .with_prompt("6.text")
///     .with_seed("3.seed")
///     .with_size("5.width", "5.height")
///     .with_size_multiple(16)
///     .with_frames("5.length")
///     .with_frame_rate(16)
///     .with_frame_counts(4, 1); // 49, 81: multiples of four, and one
/// let comfyui = ComfyUi::builder("http://127.0.0.1:8188").with_workflow(workflow).build()?;
/// # Ok::<(), vidgen_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Workflow {
    model: Model,
    json: String,
    slots: Vec<(String, Field)>,
    output: Option<String>,
    promptless: bool,
    sides: NonZeroU32,
    rate: Option<NonZeroU32>,
    counts: (NonZeroU32, u32),
}

/// What of a task goes into an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Prompt,
    NegativePrompt,
    Width,
    Height,
    Seed,
    Image,
    Frames,
    Fps,
    Seconds,
    Submission,
}

impl Field {
    const ALL: [(&'static str, Self); 10] = [
        ("prompt", Self::Prompt),
        ("negative_prompt", Self::NegativePrompt),
        ("width", Self::Width),
        ("height", Self::Height),
        ("seed", Self::Seed),
        ("image", Self::Image),
        ("frames", Self::Frames),
        ("fps", Self::Fps),
        ("seconds", Self::Seconds),
        ("submission", Self::Submission),
    ];

    fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name.trim()).map(|(_, field)| *field)
    }
}

impl Workflow {
    /// A workflow with the name, the kind (image or video), the limits and the price of `model`.
    /// What is wrong with it, [`build`](super::ComfyUiBuilder::build) says.
    ///
    /// Limits that follow from the file need not be said: a workflow with a place for a first
    /// frame needs one, and one without takes none. What it cannot bend to does: a workflow that
    /// makes five seconds, whatever it is asked, needs [`Model::with_lengths`].
    pub fn new(model: Model, json: impl Into<String>) -> Self {
        Self {
            model,
            json: json.into(),
            slots: Vec::new(),
            output: None,
            promptless: false,
            sides: NonZeroU32::MIN,
            rate: None,
            counts: (NonZeroU32::MIN, 0),
        }
    }

    /// A workflow that makes images, without limits and free of charge.
    pub fn image(name: impl Into<String>, json: impl Into<String>) -> Self {
        Self::new(Model::new(name, StepKind::Image, Price::Free), json)
    }

    /// A workflow that makes videos, without limits and free of charge.
    pub fn video(name: impl Into<String>, json: impl Into<String>) -> Self {
        Self::new(Model::new(name, StepKind::Video, Price::Free), json)
    }

    /// The prompt goes here.
    #[must_use]
    pub fn with_prompt(self, input: impl Into<String>) -> Self {
        self.bound(input, Field::Prompt)
    }

    /// There is no place for the prompt, and that is meant so. (Else it is an error.)
    #[must_use]
    pub fn without_prompt(mut self) -> Self {
        self.promptless = true;
        self
    }

    /// What shall not be seen goes here. If a request does not say, what the file has stays.
    #[must_use]
    pub fn with_negative_prompt(self, input: impl Into<String>) -> Self {
        self.bound(input, Field::NegativePrompt)
    }

    /// Width and height go here.
    #[must_use]
    pub fn with_size(self, width: impl Into<String>, height: impl Into<String>) -> Self {
        self.bound(width, Field::Width).bound(height, Field::Height)
    }

    /// Width and height are to be multiples of this, such as 8 or 16; the closest ones are taken.
    #[must_use]
    pub fn with_size_multiple(mut self, pixels: u32) -> Self {
        self.sides = NonZeroU32::new(pixels).unwrap_or(NonZeroU32::MIN);
        self
    }

    /// The seed goes here.
    #[must_use]
    pub fn with_seed(self, input: impl Into<String>) -> Self {
        self.bound(input, Field::Seed)
    }

    /// The name of the uploaded first frame goes here, usually to the `image` of a `LoadImage`.
    #[must_use]
    pub fn with_image(self, input: impl Into<String>) -> Self {
        self.bound(input, Field::Image)
    }

    /// The number of frames goes here. Say at which rate, too.
    #[must_use]
    pub fn with_frames(self, input: impl Into<String>) -> Self {
        self.bound(input, Field::Frames)
    }

    /// The frames per second go here; without a place for them, they always are those of
    /// [`with_frame_rate`](Self::with_frame_rate).
    #[must_use]
    pub fn with_fps(self, input: impl Into<String>) -> Self {
        self.bound(input, Field::Fps)
    }

    /// The length in seconds goes here.
    #[must_use]
    pub fn with_seconds(self, input: impl Into<String>) -> Self {
        self.bound(input, Field::Seconds)
    }

    /// How many frames there are in a second, where a request does not say or cannot.
    #[must_use]
    pub fn with_frame_rate(mut self, fps: u32) -> Self {
        self.rate = NonZeroU32::new(fps);
        self
    }

    /// The number of frames is a multiple of `of`, and `plus`, as video models have it: 4 and 1
    /// for Wan and Hunyuan, 8 and 1 for LTX. It is rounded up, so that no video is too short.
    #[must_use]
    pub fn with_frame_counts(mut self, of: u32, plus: u32) -> Self {
        self.counts = (NonZeroU32::new(of).unwrap_or(NonZeroU32::MIN), plus);
        self
    }

    /// The output is that of this node, by its id. Otherwise it is the first file of the right kind
    /// that the workflow saves, in the order of the nodes' numbers.
    #[must_use]
    pub fn with_output(mut self, node: impl Into<String>) -> Self {
        self.output = Some(node.into());
        self
    }

    fn bound(mut self, input: impl Into<String>, field: Field) -> Self {
        self.slots.push((input.into(), field));
        self
    }

    /// Its name, as tasks have it.
    #[must_use]
    pub fn name(&self) -> &str {
        self.model.id.as_str()
    }

    /// Whether it takes the place of another.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.model.id == other.model.id
    }

    fn wrong(&self, what: impl fmt::Display) -> Error {
        Error::new(ErrorKind::Invalid, ORIGIN, format!("workflow {}: {what}", self.name()))
    }

    /// Checks it, once and for all.
    pub(super) fn checked(self) -> Result<Template> {
        if !matches!(self.model.kind, StepKind::Image | StepKind::Video) {
            return Err(self.wrong("it must be of kind image or video"));
        }
        let nodes = self.nodes()?;
        let mut slots = Vec::new();
        for (input, field) in &self.slots {
            slots.push((self.slot(&nodes, input)?, *field));
        }
        let mut named = Vec::new();
        for (node, value) in &nodes {
            for (input, value) in value.get("inputs").and_then(Value::as_object).into_iter().flatten() {
                self.placeholders(value, &mut named).map_err(|what| self.wrong(format!("{node}.{input}: {what}")))?;
            }
        }
        let has = |field: Field| named.contains(&field) || slots.iter().any(|(_, bound)| *bound == field);
        if !has(Field::Prompt) && !self.promptless {
            return Err(self.wrong("no input takes the prompt: bind one with with_prompt, or say without_prompt"));
        }
        let needs_rate = has(Field::Frames) || named.contains(&Field::Fps);
        if needs_rate && self.rate.is_none() {
            return Err(self.wrong("frames cannot be counted without a rate: say it with with_frame_rate"));
        }
        if let Some(output) = self.output.as_ref().filter(|output| !nodes.contains_key(output.as_str())) {
            return Err(self.wrong(format!("there is no node {output} to take the output from")));
        }
        let (takes_image, takes_fps) = (has(Field::Image), has(Field::Fps));
        if takes_image && self.model.kind == StepKind::Image {
            return Err(self.wrong("an image is made from a prompt alone, so no input can take one"));
        }
        let mut model = self.model;
        if model.kind == StepKind::Video {
            (model.needs_image, model.no_image) = (takes_image, !takes_image);
        }
        let (output, sides, rate, counts) = (self.output, self.sides, self.rate, self.counts);
        Ok(Template { model, nodes, slots, output, takes_image, takes_fps, sides, rate, counts })
    }

    fn nodes(&self) -> Result<Map<String, Value>> {
        // Not what stood there: a workflow may hold anything.
        let nodes: Value = serde_json::from_str(&self.json)
            .map_err(|e| self.wrong(format!("it is no JSON at line {} column {}", e.line(), e.column())))?;
        let Value::Object(nodes) = nodes else { return Err(self.wrong("it must be an object of nodes")) };
        if nodes.get("nodes").is_some_and(Value::is_array) {
            return Err(self.wrong("it is in the editor's own format: export it with \"Export (API)\""));
        }
        let strange = |node: &Value| {
            !node.get("class_type").is_some_and(Value::is_string) || !node.get("inputs").is_some_and(Value::is_object)
        };
        if let Some((node, _)) = nodes.iter().find(|(_, node)| strange(node)) {
            return Err(self.wrong(format!("node {node} has no class_type or no inputs")));
        }
        if nodes.is_empty() { Err(self.wrong("it has no nodes")) } else { Ok(nodes) }
    }

    /// The node and the input that `text` names, both of which there must be: the export writes
    /// every input, so that a name that is not there is a mistake.
    fn slot(&self, nodes: &Map<String, Value>, text: &str) -> Result<Slot> {
        let (node, input) = text
            .split_once('.')
            .ok_or_else(|| self.wrong(format!("\"{text}\" names no input: it must be like 6.text")))?;
        let found = nodes.get(node).ok_or_else(|| self.wrong(format!("{text}: there is no node {node}")))?;
        match found.get("inputs").and_then(|inputs| inputs.get(input)) {
            None => Err(self.wrong(format!("{text}: node {node} has no input {input}"))),
            Some(Value::Array(link)) => {
                let from = link.first().and_then(Value::as_str).unwrap_or("another node");
                Err(self.wrong(format!("{text}: the input comes from node {from}; bind one of that node")))
            }
            Some(_) => Ok(Slot { node: node.to_owned(), input: input.to_owned() }),
        }
    }

    /// Notes which placeholders stand in `value`, at any depth.
    fn placeholders(&self, value: &Value, named: &mut Vec<Field>) -> Result<(), String> {
        match value {
            Value::String(text) => {
                for piece in fill::pieces(text) {
                    if let fill::Piece::Name(name) = piece {
                        named.push(Field::named(name).ok_or_else(|| format!("nobody knows {{{{{name}}}}}"))?);
                    }
                }
                Ok(())
            }
            Value::Array(items) => items.iter().try_for_each(|item| self.placeholders(item, named)),
            Value::Object(map) => map.values().try_for_each(|item| self.placeholders(item, named)),
            Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
        }
    }
}

/// The name alone: the rest is the operator's.
impl fmt::Debug for Workflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workflow").field("model", &self.model.id).finish_non_exhaustive()
    }
}

/// An input of a node.
#[derive(Clone)]
struct Slot {
    node: String,
    input: String,
}

/// A workflow whose every binding leads somewhere.
pub(super) struct Template {
    pub(super) model: Model,
    nodes: Map<String, Value>,
    slots: Vec<(Slot, Field)>,
    pub(super) output: Option<String>,
    pub(super) takes_image: bool,
    takes_fps: bool,
    sides: NonZeroU32,
    rate: Option<NonZeroU32>,
    counts: (NonZeroU32, u32),
}

impl Template {
    /// How many nodes there are to run.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }
}

#[cfg(test)]
mod tests;
