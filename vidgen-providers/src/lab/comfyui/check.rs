//! Whether a workflow can run: what the server looks at before it takes one.

use std::collections::BTreeSet;

use axum::response::Response;
use serde_json::{Map, Value, json};

use super::super::world::World;
use super::{of, problem};

/// A class of nodes that the lab knows: its name, whether it saves something, its required inputs.
type Known = (&'static str, bool, &'static [&'static str]);

const CLASSES: &[Known] = &[
    ("EmptyImage", false, &["width", "height", "batch_size", "color"]),
    ("EmptyAudio", false, &["duration", "sample_rate", "channels"]),
    ("CreateVideo", false, &["images", "fps"]),
    ("LoadImage", false, &["image"]),
    ("ImageScale", false, &["image", "upscale_method", "width", "height", "crop"]),
    ("CheckpointLoaderSimple", false, &["ckpt_name"]),
    ("CLIPTextEncode", false, &["text", "clip"]),
    ("EmptyLatentImage", false, &["width", "height", "batch_size"]),
    ("EmptyHunyuanLatentVideo", false, &["width", "height", "length", "batch_size"]),
    ("WanImageToVideo", false, &["positive", "negative", "vae", "width", "height", "length", "batch_size"]),
    (
        "KSampler",
        false,
        &[
            "model",
            "seed",
            "steps",
            "cfg",
            "sampler_name",
            "scheduler",
            "positive",
            "negative",
            "latent_image",
            "denoise",
        ],
    ),
    ("VAEDecode", false, &["samples", "vae"]),
    ("SaveImage", true, &["images", "filename_prefix"]),
    ("PreviewImage", true, &["images"]),
    ("SaveVideo", true, &["video", "filename_prefix", "format", "codec"]),
    ("SaveWEBM", true, &["images", "filename_prefix", "codec", "fps", "crf"]),
    ("SaveAnimatedWEBP", true, &["images", "filename_prefix", "fps", "lossless", "quality", "method"]),
];

/// What of a workflow runs.
pub(super) struct Checked {
    /// The nodes that save something.
    pub(super) outputs: Vec<String>,
    /// What was dropped, as the answer has it.
    pub(super) errors: Value,
}

/// # Errors
/// The server's 400.
pub(super) fn checked(world: &World, prompt: &Map<String, Value>) -> Result<Checked, Response> {
    let class = |node: &str| prompt.get(node).and_then(|node| of(node, "class_type").as_str()).unwrap_or_default();
    let known = |node: &str| CLASSES.iter().find(|(name, ..)| *name == class(node));
    if let Some(node) = prompt.keys().find(|node| known(node).is_none()) {
        let message = format!("Cannot execute because node {} does not exist.", class(node));
        return Err(problem("invalid_prompt", &message, &format!("Node ID '#{node}'"), &json!({})));
    }
    let outputs: Vec<&String> = prompt.keys().filter(|node| known(node).is_some_and(|(_, saves, _)| *saves)).collect();
    if outputs.is_empty() {
        return Err(problem("prompt_no_outputs", "Prompt has no outputs", "", &json!({})));
    }
    let mut errors = Map::new();
    let mut fine = Vec::new();
    for output in outputs {
        let mut all = BTreeSet::new();
        ancestors(prompt, output, &mut all);
        let mut bad = false;
        for node in &all {
            let required = known(node).map_or(&[][..], |(_, _, required)| required);
            let wrong =
                wrong(world, class(node), prompt.get(node).map_or(&Value::Null, |node| of(node, "inputs")), required);
            if wrong.is_empty() {
                continue;
            }
            bad = true;
            let entry = errors
                .entry(node.clone())
                .or_insert_with(|| json!({ "errors": wrong, "dependent_outputs": [], "class_type": class(node) }));
            if let Some(dependent) = entry.get_mut("dependent_outputs").and_then(Value::as_array_mut) {
                dependent.push(json!(output));
            }
        }
        if !bad {
            fine.push(output.clone());
        }
    }
    let errors = Value::Object(errors);
    if fine.is_empty() {
        return Err(problem("prompt_outputs_failed_validation", "Prompt outputs failed validation", "", &errors));
    }
    Ok(Checked { outputs: fine, errors })
}

/// A node and all that it is made from.
fn ancestors(prompt: &Map<String, Value>, node: &str, all: &mut BTreeSet<String>) {
    let Some(found) = prompt.get(node).filter(|_| all.insert(node.to_owned())) else { return };
    for input in of(found, "inputs").as_object().into_iter().flat_map(Map::values) {
        if let Some(from) = input.get(0).and_then(Value::as_str) {
            ancestors(prompt, from, all);
        }
    }
}

/// What is wrong with the inputs of a node.
fn wrong(world: &World, class: &str, inputs: &Value, required: &[&str]) -> Vec<Value> {
    let error = |kind: &str, message: &str, input: &str, details: String| json!({ "type": kind, "message": message, "details": details, "extra_info": { "input_name": input } });
    let mut all = Vec::new();
    for input in required {
        let value = of(inputs, input);
        if value.is_null() {
            all.push(error("required_input_missing", "Required input is missing", input, (*input).to_owned()));
        }
        if !matches!(*input, "width" | "height" | "batch_size" | "length" | "fps" | "seed") || value.is_array() {
            continue;
        }
        match value.as_f64() {
            None if !value.is_null() => {
                let details = format!("{input}, {value}, invalid literal");
                all.push(error("invalid_input_type", "Failed to convert an input value", input, details));
            }
            Some(number) if number < 1.0 && *input != "seed" => {
                let details = format!("{input}, {number}");
                all.push(error("value_smaller_than_min", "Value smaller than min of 1", input, details));
            }
            Some(number) if number > 4096.0 && *input == "batch_size" => {
                let details = format!("{input}, {number}");
                all.push(error("value_bigger_than_max", "Value bigger than max of 4096", input, details));
            }
            _ => {}
        }
    }
    if class == "LoadImage" {
        let image = of(inputs, "image").as_str().unwrap_or_default();
        if !world.lock().uploads.iter().any(|upload| upload.name == image) {
            let details = format!("image - Invalid image file: {image}");
            all.push(error("custom_validation_failed", "Custom validation failed for node", "image", details));
        }
    }
    all
}
