//! What the server sends; only what is read of it.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use url::form_urlencoded;
use vidgen_core::{ErrorKind, MediaType, Output, RunFailure, Snapshot, StepKind, Usage};

use crate::client::{LONGEST_RUN, RunId, quotable};

/// What a locator of ours begins with. The server's own address is not in it: it may move.
pub(super) const VIEW: &str = "view?";
/// The rest of it, and all that is asked of the server.
pub(super) const VIEWED: [&str; 3] = ["filename", "subfolder", "type"];
/// More nodes are not named: the first is what has to be mended first.
const MAX_NAMED: usize = 3;

/// The answer to a submit.
#[derive(Deserialize)]
pub(super) struct Accepted {
    pub(super) prompt_id: RunId,
    #[serde(default)]
    pub(super) node_errors: Value,
}

/// The answer to an upload.
#[derive(Deserialize)]
pub(super) struct Uploaded {
    name: String,
    #[serde(default)]
    subfolder: String,
}

impl Uploaded {
    /// As a node's input names it.
    pub(super) fn path(self) -> String {
        if self.subfolder.is_empty() { self.name } else { format!("{}/{}", self.subfolder, self.name) }
    }
}

/// What waits and what runs.
#[derive(Deserialize)]
pub(super) struct Queue {
    queue_running: Vec<Item>,
    queue_pending: Vec<Item>,
}

impl Queue {
    pub(super) fn running(&self, id: &str) -> bool {
        self.queue_running.iter().any(|item| item.0 == id)
    }

    pub(super) fn pending(&self, id: &str) -> bool {
        self.queue_pending.iter().any(|item| item.0 == id)
    }
}

/// `[number, prompt_id, …]`, and more from version to version.
struct Item(String);

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Second;
        impl<'de> Visitor<'de> for Second {
            type Value = Item;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list with a run's id in the second place")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Item, A::Error> {
                let missing = || serde::de::Error::invalid_length(1, &self);
                list.next_element::<IgnoredAny>()?.ok_or_else(missing)?;
                let id = list.next_element()?.ok_or_else(missing)?;
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Item(id))
            }
        }
        deserializer.deserialize_seq(Second)
    }
}

pub(super) type History = HashMap<String, Entry>;

/// A run that ended.
#[derive(Deserialize)]
pub(super) struct Entry {
    /// What was sent, to know what may not be quoted.
    #[serde(default)]
    prompt: Value,
    #[serde(default)]
    outputs: Map<String, Value>,
    #[serde(default)]
    status: Option<Status>,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    status_str: String,
    #[serde(default)]
    completed: bool,
    #[serde(default)]
    messages: Vec<Value>,
}

/// What of a run is wanted; lies in its handle.
#[derive(Serialize, Deserialize)]
pub(super) struct Wanted {
    pub(super) kind: StepKind,
    /// The node whose file is the output, if the workflow says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) output: Option<String>,
}

impl Entry {
    pub(super) fn snapshot(&self, wanted: &Wanted) -> Snapshot {
        let Some(status) = &self.status else { return Snapshot::running(None) };
        let ended = if status.said("execution_interrupted").is_some() {
            Snapshot::canceled()
        } else if status.status_str == "error" {
            Snapshot::failed(RunFailure::new(ErrorKind::Unavailable, &self.reason(status)))
        } else if status.status_str == "success" || status.completed {
            match self.outputs(wanted) {
                outputs if outputs.is_empty() => {
                    let reason = format!("the workflow saved no {}", wanted.kind);
                    Snapshot::failed(RunFailure::new(ErrorKind::Unsupported, &reason))
                }
                outputs => Snapshot::succeeded(outputs),
            }
        } else {
            return Snapshot::running(None);
        };
        match status.computed() {
            Some(time) => ended.with_usage(Usage::Compute(time)),
            None => ended,
        }
    }

    /// The files that were saved and are of the wanted kind, in the order of the nodes' numbers.
    /// Under which key a node has them says nothing: videos are `images`, too.
    fn outputs(&self, wanted: &Wanted) -> Vec<Output> {
        let mut nodes: Vec<(&String, &Value)> =
            self.outputs.iter().filter(|(node, _)| wanted.output.as_ref().is_none_or(|only| only == *node)).collect();
        nodes.sort_by_key(|(node, _)| (node.parse::<u64>().unwrap_or(u64::MAX), node.as_str()));
        let lists = nodes.into_iter().filter_map(|(_, shown)| shown.as_object()).flat_map(Map::values);
        let files = lists.filter_map(Value::as_array).flatten();
        files.filter_map(|file| output(file, wanted.kind)).collect()
    }

    /// The error's type and words; not its trace, which tells of the server's folders.
    fn reason(&self, status: &Status) -> String {
        let Some(error) = status.said("execution_error") else { return "the workflow failed".to_owned() };
        let text = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default().trim();
        let mut sent = Vec::new();
        crate::client::strings(&self.prompt, &mut sent);
        let words = without_paths(text("exception_message"));
        // The node's class is ours to name; what the node says may repeat the prompt.
        let words = quotable(&words, sent.iter().map(String::as_str));
        let (kind, node) = (text("exception_type"), text("node_type"));
        let kind = if kind.is_empty() { "an error" } else { kind };
        let place = if node.is_empty() { String::new() } else { format!(" in {node}") };
        words.map_or_else(|| format!("{kind}{place}"), |words| format!("{kind}{place}: {words}"))
    }
}

impl Status {
    fn said(&self, what: &str) -> Option<&Value> {
        self.messages.iter().find(|message| message.get(0).is_some_and(|kind| kind == what))?.get(1)
    }

    /// From its start to its end, by the server's clock.
    fn computed(&self) -> Option<Duration> {
        let at = |data: &Value| data.get("timestamp")?.as_u64();
        let start = at(self.said("execution_start")?)?;
        let end = self.messages.iter().rev().find_map(|message| at(message.get(1)?))?;
        end.checked_sub(start).map(Duration::from_millis).filter(|time| *time <= LONGEST_RUN)
    }
}

fn output(file: &Value, kind: StepKind) -> Option<Output> {
    let text = |name: &str| file.get(name).and_then(Value::as_str);
    let (name, place) = (text("filename")?, text("type").unwrap_or_default());
    let extension = name.rsplit_once('.')?.1.to_ascii_lowercase();
    let media_type = match extension.as_str() {
        "jpeg" => MediaType::Jpeg,
        "m4v" => MediaType::Mp4,
        "mkv" => MediaType::Binary,
        other => MediaType::from_extension(other),
    };
    let fits = match kind {
        StepKind::Image => matches!(media_type, MediaType::Png | MediaType::Jpeg | MediaType::Webp),
        _ => matches!(media_type, MediaType::Mp4 | MediaType::Webm | MediaType::Mov) || extension == "mkv",
    };
    // Previews and inputs are listed, too.
    if !fits || place != "output" {
        return None;
    }
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("filename", name)
        .append_pair("subfolder", text("subfolder").unwrap_or_default())
        .append_pair("type", place)
        .finish();
    let mut output = Output::new(format!("{VIEW}{query}"));
    output.media_type = Some(media_type).filter(|known| *known != MediaType::Binary);
    Some(output)
}

/// Which inputs of which nodes are wrong, and in which way; `None` if none is. What stands in them
/// is not told: it may be the prompt.
pub(super) fn node_errors(all: &Value) -> Option<String> {
    let all = all.as_object().filter(|all| !all.is_empty())?;
    let named = all.iter().take(MAX_NAMED).map(|(node, error)| {
        let class = error.get("class_type").and_then(Value::as_str).unwrap_or("unknown class");
        let errors = error.get("errors").and_then(Value::as_array).into_iter().flatten();
        let wrong: Vec<String> = errors
            .map(|error| {
                let kind = error.get("type").and_then(Value::as_str).unwrap_or("wrong");
                let input = error.pointer("/extra_info/input_name").and_then(Value::as_str);
                input.map_or_else(|| kind.to_owned(), |input| format!("{input}: {kind}"))
            })
            .collect();
        format!("node {node} ({class}) {}", wrong.join(", "))
    });
    Some(named.collect::<Vec<_>>().join("; "))
}

/// The same without words that are paths.
fn without_paths(text: &str) -> String {
    let is_path = |word: &str| word.matches(['/', '\\']).count() > 1;
    let words: Vec<&str> = text.split_whitespace().map(|word| if is_path(word) { "…" } else { word }).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use vidgen_core::RunState;

    use super::*;

    fn wanted(kind: StepKind, output: Option<&str>) -> Wanted {
        Wanted { kind, output: output.map(str::to_owned) }
    }

    fn locators(entry: &Value, wanted: &Wanted) -> Vec<String> {
        let entry: Entry = serde_json::from_value(entry.clone()).unwrap();
        match entry.snapshot(wanted).state {
            RunState::Succeeded(outputs) => outputs.into_iter().map(|output| output.locator).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn files_are_found_under_any_key_and_picked_by_extension_and_place() {
        let file = |name: &str, place: &str| json!({ "filename": name, "subfolder": "a b", "type": place });
        let entry = json!({
            "status": { "status_str": "success", "completed": true, "messages": [["execution_start", {}, "more"]] },
            "outputs": {
                "12": { "images": [file("late.MP4", "output")], "animated": [true] },
                "3": { "gifs": [file("first.webm", "output"), file("p.mp4", "temp")], "text": ["words"], "n": 1 },
                "9": { "images": [file("s.png", "output"), file("t.png", "temp"), file("i.jpeg", "output"), file("x", "output")] },
                "sub:4": { "video": [file("film.mkv", "output")], "audio": [file("a.flac", "output")] },
            },
        });
        let view = |name: &str| format!("view?filename={name}&subfolder=a+b&type=output");
        let of = |kind, output| locators(&entry, &wanted(kind, output));
        assert_eq!(of(StepKind::Video, None), [view("first.webm"), view("late.MP4"), view("film.mkv")]);
        assert_eq!(of(StepKind::Video, Some("12")), [view("late.MP4")]);
        assert_eq!(of(StepKind::Image, None), [view("s.png"), view("i.jpeg")]);
    }

    #[test]
    fn only_what_is_known_is_an_end() {
        let judge = |status: Value| {
            let entry: Entry = serde_json::from_value(json!({ "outputs": {}, "status": status })).unwrap();
            entry.snapshot(&wanted(StepKind::Image, None)).state
        };
        for goes_on in [json!(null), json!({}), json!({ "status_str": "dreaming", "completed": false })] {
            assert!(matches!(judge(goes_on), RunState::Running));
        }
        let interrupted = json!({ "status_str": "error", "messages": [["execution_interrupted", {}]] });
        assert!(matches!(judge(interrupted), RunState::Canceled));
        let RunState::Failed(bare) = judge(json!({ "status_str": "error" })) else { panic!("it failed") };
        assert_eq!(bare.reason, "the workflow failed");
    }

    #[test]
    fn a_queue_is_read_by_the_second_of_each_item_whatever_else_there_is() {
        let queue: Queue = serde_json::from_value(json!({
            "queue_running": [[1, "a", {}, {}, [], "more"]], "queue_pending": [[2.5, "b"]],
        }))
        .unwrap();
        assert!(queue.running("a") && queue.pending("b") && !queue.running("b") && !queue.pending("a"));
        for bad in [json!({ "queue_running": [[1]], "queue_pending": [] }), json!({ "queue_running": [] }), json!([])] {
            assert!(serde_json::from_value::<Queue>(bad).is_err());
        }
    }

    #[test]
    fn words_that_are_paths_are_left_out() {
        assert_eq!(without_paths("at C:\\a\\b.py or /usr/lib\nof 24000/1001"), "at … or … of 24000/1001");
    }
}
