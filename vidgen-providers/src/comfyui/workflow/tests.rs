use std::time::Duration;

use serde_json::{Map, Value, json};
use vidgen_core::{ImageTask, ModelId, Size, SubmissionId, Task, TaskSpec, VideoTask};

use super::fill::{Piece, pieces};
use super::*;

fn graph() -> Value {
    json!({
        "2": { "class_type": "CreateVideo", "inputs": { "images": ["5", 0], "fps": 8.0 } },
        "3": { "class_type": "KSampler", "inputs": { "seed": 1, "cfg": 2.5, "positive": ["6", 0] } },
        "5": { "class_type": "Empty", "inputs": { "width": 64, "height": 64, "length": 1 } },
        "6": { "class_type": "CLIPTextEncode", "inputs": { "text": "x", "deep": [{ "note": "{{seconds}} s: {{prompt}}!" }] } },
        "7": { "class_type": "CLIPTextEncode", "inputs": { "text": "blurry" } },
        "9": { "class_type": "SaveVideo", "inputs": { "video": ["2", 0], "filename_prefix": "mine", "tag": "{{submission}}" } },
    })
}

fn workflow() -> Workflow {
    Workflow::video("w", graph().to_string())
        .with_prompt("6.text")
        .with_negative_prompt("7.text")
        .with_seed("3.seed")
        .with_size("5.width", "5.height")
        .with_size_multiple(16)
        .with_frames("5.length")
        .with_fps("2.fps")
        .with_frame_rate(16)
        .with_frame_counts(4, 1)
}

fn video(change: impl FnOnce(&mut VideoTask)) -> Task {
    let mut task = VideoTask {
        prompt: "a {{seed}} fox".into(),
        negative_prompt: None,
        style: None,
        image: None,
        size: Size { width: 854, height: 480 },
        duration: Duration::from_millis(5000),
        fps: None,
        seed: Some(u64::MAX),
    };
    change(&mut task);
    Task { model: ModelId::from("w"), spec: TaskSpec::Video(task), extra: Map::new() }
}

fn filled(workflow: Workflow, task: &Task, submission: &str) -> Result<Value> {
    let template = workflow.checked()?;
    let submission = SubmissionId::from_remote(submission);
    template.filled(&Given::new(&template, task, &submission).unwrap())
}

#[test]
fn a_task_is_put_where_it_belongs_and_numbers_stay_numbers() {
    let full = video(|task| {
        task.style = Some("ink".into());
        task.negative_prompt = Some("rain".into());
        task.fps = Some(24);
    });
    let mut expected = graph();
    expected["2"]["inputs"]["fps"] = json!(24.0);
    expected["3"]["inputs"]["seed"] = json!(u64::MAX);
    expected["5"]["inputs"] = json!({ "width": 848, "height": 480, "length": 121 });
    // What the user wrote is not looked at again.
    expected["6"]["inputs"]["text"] = json!("a {{seed}} fox, ink");
    expected["6"]["inputs"]["deep"] = json!([{ "note": "5 s: a {{seed}} fox, ink!" }]);
    expected["7"]["inputs"]["text"] = json!("rain");
    expected["9"]["inputs"]["filename_prefix"] = json!("vidgen/sub_1");
    expected["9"]["inputs"]["tag"] = json!("sub_1");
    assert_eq!(filled(workflow(), &full, "sub_1").unwrap(), expected);
}

#[test]
fn what_a_request_leaves_open_is_as_the_file_has_it_but_for_the_seed() {
    let bare = video(|task| (task.seed, task.duration) = (None, Duration::from_millis(2100)));
    let once = filled(workflow(), &bare, "sub_1").unwrap();
    assert_eq!((&once["7"]["inputs"]["text"], &once["2"]["inputs"]["fps"]), (&json!("blurry"), &json!(16.0)));
    // 2.1 s at 16 fps are 33.6 frames: rounded up to a multiple of four, and one.
    assert_eq!(once["5"]["inputs"]["length"], 37);
    assert_eq!(once["6"]["inputs"]["deep"][0]["note"], "2.1 s: a {{seed}} fox!");
    let seed = |submission| filled(workflow(), &bare, submission).unwrap()["3"]["inputs"]["seed"].as_u64().unwrap();
    assert_eq!(seed("sub_1"), seed("sub_1"), "sent again, it is the same");
    assert_ne!(seed("sub_1"), seed("sub_2"), "or ComfyUI makes the same again");
    assert!(seed("sub_1") <= u64::from(u32::MAX));
}

#[test]
fn a_lone_placeholder_becomes_a_number_and_others_text() {
    let json = json!({ "1": { "class_type": "A", "inputs": {
        "w": "{{width}}", "h": "{{ height }}", "t": "{{width}}x{{height}}", "n": "{{negative_prompt}}", "s": "{{seed}}",
        "p": "{{prompt}}", "b": "{a|b} {{{seed}}} {{not this}} {{", "c": 1.5,
    } } });
    let image = ImageTask {
        prompt: "a fox".into(),
        negative_prompt: None,
        style: None,
        size: Size { width: 640, height: 360 },
        seed: Some(7),
    };
    let mut task = Task { model: ModelId::from("w"), spec: TaskSpec::Image(image), extra: Map::new() };
    task.extra.insert("1.c".into(), json!(3));
    let expected = json!({
        "w": 640, "h": 360, "t": "640x360", "n": "", "s": 7, "p": "a fox", "b": "{a|b} {7} {{not this}} {{", "c": 3,
    });
    let workflow = Workflow::image("w", json.to_string());
    assert_eq!(filled(workflow.clone(), &task, "sub_1").unwrap()["1"]["inputs"], expected);
    task.extra.insert("2.c".into(), json!(3));
    let error = filled(workflow, &task, "sub_1").unwrap_err();
    assert_eq!(
        (error.kind(), error.message()),
        (ErrorKind::Invalid, "workflow w: extra \"2.c\" names no node's input")
    );
}

#[test]
fn braces_are_taken_apart_at_words_only() {
    let (text, name) = (Piece::Text, Piece::Name);
    for (given, expected) in [
        ("", vec![]),
        ("{{a}}", vec![name("a")]),
        ("x{{a}}{{ b }}y", vec![text("x"), name("a"), name(" b "), text("y")]),
        ("{{{a}}}", vec![text("{"), name("a"), text("}")]),
        ("{{}} {{a b}} {{ä", vec![text("{{}} {{a b}} {{ä")]),
    ] {
        assert_eq!(pieces(given), expected, "{given}");
    }
}

#[test]
fn what_is_wrong_is_said_when_it_is_built_by_node_and_input() {
    let (plain, with) = (graph().to_string(), |bind: fn(Workflow) -> Workflow| bind(workflow()));
    let cases = [
        (Workflow::video("w", "{"), "it is no JSON at line 1 column 1"),
        (Workflow::video("w", "[]"), "it must be an object of nodes"),
        (Workflow::video("w", "{}"), "it has no nodes"),
        (
            Workflow::video("w", r#"{"nodes":[],"links":[]}"#),
            "the editor's own format: export it with \"Export (API)\"",
        ),
        (Workflow::video("w", r#"{"1":{"inputs":{}}}"#), "node 1 has no class_type or no inputs"),
        (Workflow::new(Model::new("w", StepKind::Speech, Price::Free), &plain), "must be of kind image or video"),
        (Workflow::video("w", r#"{"1":{"class_type":"A","inputs":{}}}"#), "no input takes the prompt"),
        (with(|w| w.with_prompt("66.text")), "66.text: there is no node 66"),
        (with(|w| w.with_prompt("6.txt")), "6.txt: node 6 has no input txt"),
        (with(|w| w.with_prompt("prompt")), "\"prompt\" names no input: it must be like 6.text"),
        (with(|w| w.with_seed("3.positive")), "3.positive: the input comes from node 6; bind one of that node"),
        (with(|w| w.with_output("12")), "there is no node 12 to take the output from"),
        (with(|w| w.with_frame_rate(0)), "frames cannot be counted without a rate"),
        (
            Workflow::video("w", plain.replace("{{seconds}}", "{{secs}}")).with_prompt("6.text"),
            "6.deep: nobody knows {{secs}}",
        ),
        (Workflow::image("w", &plain).with_prompt("6.text").with_image("7.text"), "so no input can take one"),
    ];
    for (workflow, expected) in cases {
        let error = workflow.checked().err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{expected}");
        assert!(error.message().starts_with("workflow w: "), "{error}");
        assert!(error.message().contains(expected), "{error} – {expected}");
    }
}

#[test]
fn limits_that_follow_from_the_file_need_not_be_said() {
    let model = workflow().checked().unwrap().model;
    assert!(model.no_image && !model.needs_image);
    let model = workflow().with_image("7.text").checked().unwrap().model;
    assert!(model.needs_image && !model.no_image);
}
