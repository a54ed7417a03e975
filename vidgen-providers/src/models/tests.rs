//! That tables say what they are read as, and say where they are wrong.

use std::time::Duration;

use serde_json::json;
use vidgen_core::{AspectRatio, ErrorKind, ImageTask, Lengths, Resolution, SpeechTask, TaskSpec, Usd, VideoTask};

use super::*;

/// Every table that is built in.
const TABLES: &[(&str, &str)] = &[
    #[cfg(feature = "elevenlabs")]
    ("elevenlabs", include_str!("elevenlabs.toml")),
    #[cfg(feature = "fal")]
    ("fal", include_str!("fal.toml")),
    #[cfg(feature = "openai")]
    ("openai", include_str!("openai.toml")),
    #[cfg(feature = "openai")]
    ("openai-vllm", include_str!("openai-vllm.toml")),
    #[cfg(feature = "openai")]
    ("openai-sglang", include_str!("openai-sglang.toml")),
    #[cfg(feature = "replicate")]
    ("replicate", include_str!("replicate.toml")),
    #[cfg(feature = "runway")]
    ("runway", include_str!("runway.toml")),
];

const CLIP: &str = r#"
    id = "acme/clip"
    kind = "video"
    endpoint = "fast"
    price = { per_second = "0.10" }
    typical = 60
    typical_per_second = 1.5
    lengths = [10, 5]
    aspect_ratios = ["16:9", "9:16"]
    resolutions = ["720p", "1080p"]
    max_text = 30
    audio = true
    defaults = { watermark = false, options = { a = 1 } }
    [fields]
    prompt = "prompt"
    negative_prompt = "options.avoid"
    image = { name = "images", form = "list" }
    aspect_ratio = { name = "shape", values = { "16:9" = "wide", "9:16" = "tall" } }
    resolution = "resolution"
    size = { name = "size", form = "x", multiple_of = 16 }
    duration = { name = "duration", form = "suffixed" }
    fps = { name = "fps", form = "text" }
    seed = { name = "seed", below = 1000 }
    audio = "generate_audio"
"#;

fn video() -> VideoTask {
    VideoTask {
        prompt: "a fox.".into(),
        negative_prompt: Some("rain".into()),
        style: Some("ink".into()),
        image: None,
        size: AspectRatio::Wide.size(Resolution::P720),
        duration: Duration::from_secs(5),
        fps: Some(25),
        seed: Some(12_345),
    }
}

#[test]
fn every_table_that_is_built_in_is_read() {
    for (name, text) in TABLES {
        let table = ModelTable::from_toml(text).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(!table.entries().is_empty(), "{name}");
    }
}

#[test]
fn limits_and_prices_are_as_they_are_written() {
    let entry = ModelEntry::from_toml(CLIP).unwrap();
    let model = entry.model();
    assert_eq!((entry.id().as_str(), entry.endpoint(), model.kind), ("acme/clip", "fast", StepKind::Video));
    assert_eq!(model.price, Price::PerSecond(Usd::from_cents(10)));
    assert_eq!(model.lengths, Lengths::seconds([5, 10]));
    assert_eq!(model.aspect_ratios, [AspectRatio::Wide, AspectRatio::Tall]);
    assert_eq!(model.resolutions, [Resolution::P720, Resolution::P1080]);
    assert_eq!(model.typical_for(Duration::from_secs(10)), Duration::from_secs(75));
    assert!(model.audio && !model.no_image && !model.needs_image && entry.takes_image());
}

#[test]
fn a_price_is_exact_dollars_and_one_of_them() {
    let priced = |price: &str| {
        let text = format!("id = \"a\"\nkind = \"image\"\nprice = {{ {price} }}");
        ModelEntry::from_toml(&text).map(|entry| entry.model.price)
    };
    let micros = Usd::from_micros;
    for (text, price) in [
        ("free = true", Price::Free),
        ("per_run = \"0.003\"", Price::PerRun(micros(3000))),
        ("per_run = \"12\"", Price::PerRun(Usd::from_dollars(12))),
        ("per_character = \"0.000015\"", Price::PerCharacter(micros(15))),
        (
            "per_compute_second = \"0.000975\", at_most = 60",
            Price::PerComputeSecond { rate: micros(975), at_most: Duration::from_secs(60) },
        ),
        ("per_unit = \"0.025\", at_most = 1.5", Price::PerUnit { rate: micros(25_000), at_most_milli: 1500 }),
        (
            "per_unit = \"0.01\", units_per_second = 12.5",
            Price::PerUnitSecond { rate: micros(10_000), milli_per_second: 12_500 },
        ),
    ] {
        assert_eq!(priced(text).unwrap(), price, "{text}");
    }
    for bad in [
        "",
        "free = false",
        "per_run = 0.003",
        "per_run = \"-1\"",
        "per_run = \"0.0000001\"",
        "per_run = \"1e3\"",
        "per_run = \".5\"",
        "per_run = \"99999999999999999999\"",
        "per_run = \"1\", per_second = \"1\"",
        "per_run = \"1\", at_most = 3",
        "per_unit = \"1\"",
        "per_unit = \"1\", at_most = 3, units_per_second = 1",
        "per_second = \"1\", units_per_second = 1",
    ] {
        assert_eq!(priced(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
    }
}

#[test]
fn a_video_task_is_written_in_the_models_own_words() {
    let entry = ModelEntry::from_toml(CLIP).unwrap();
    let extra = Map::from_iter([("watermark".to_owned(), json!(true))]);
    let body = entry.body(&TaskSpec::Video(video()), Some("https://x.example/a.png".into()), &extra);
    assert_eq!(
        Value::Object(body),
        json!({
            "prompt": "a fox, ink", "options": { "a": 1, "avoid": "rain" }, "images": ["https://x.example/a.png"],
            "shape": "wide", "resolution": "720p", "size": "1280x720", "duration": "5s", "fps": "25", "seed": 345,
            "generate_audio": true, "watermark": true,
        })
    );
}

#[test]
fn what_is_not_asked_for_does_not_go_out() {
    let entry = ModelEntry::from_toml(CLIP).unwrap();
    let task = VideoTask { negative_prompt: None, style: None, fps: None, seed: None, ..video() };
    let body = entry.body(&TaskSpec::Video(task), None, &Map::new());
    for name in ["images", "fps", "seed"] {
        assert!(!body.contains_key(name), "{name}");
    }
    assert_eq!(body.get("prompt"), Some(&json!("a fox.")));
}

#[test]
fn a_style_that_does_not_fit_is_left_out() {
    let entry = ModelEntry::from_toml(CLIP).unwrap();
    let task = VideoTask { style: Some("very long, very long, very long".into()), ..video() };
    assert_eq!(entry.body(&TaskSpec::Video(task), None, &Map::new()).get("prompt"), Some(&json!("a fox.")));
}

#[test]
fn a_length_has_the_form_that_the_model_wants() {
    for (form, length, expected) in [
        ("form = \"number\"", 8.0, json!(8)),
        ("form = \"number\"", 5.4, json!(5.4)),
        ("form = \"text\"", 8.0, json!("8")),
        ("form = \"suffixed\"", 8.0, json!("8s")),
        ("form = \"milliseconds\"", 5.4, json!(5400)),
        ("form = \"frames\", fps = 16, extra = 1", 5.0, json!(81)),
    ] {
        let text = format!(
            "id = \"a\"\nkind = \"video\"\nprice = {{ free = true }}\nfields.duration = {{ name = \"n\", {form} }}"
        );
        let task = VideoTask { duration: Duration::from_secs_f64(length), ..video() };
        let body = ModelEntry::from_toml(&text).unwrap().body(&TaskSpec::Video(task), None, &Map::new());
        assert_eq!(body.get("n"), Some(&expected), "{form}");
    }
}

#[test]
fn sizes_are_two_numbers_an_object_or_text() {
    let size = |field: &str| {
        let text = format!("id = \"a\"\nkind = \"image\"\nprice = {{ free = true }}\nfields.size = {{ {field} }}");
        let size = AspectRatio::Wide.size(Resolution::P480);
        let task = ImageTask { prompt: "x".into(), negative_prompt: None, style: None, size, seed: None };
        ModelEntry::from_toml(&text).map(|entry| Value::Object(entry.body(&TaskSpec::Image(task), None, &Map::new())))
    };
    assert_eq!(size("width = \"w\", height = \"h\", multiple_of = 8").unwrap(), json!({ "w": 856, "h": 480 }));
    assert_eq!(size("name = \"s\", form = \"object\"").unwrap(), json!({ "s": { "width": 854, "height": 480 } }));
    assert_eq!(size("name = \"s\", form = \":\"").unwrap(), json!({ "s": "854:480" }));
    for bad in ["name = \"s\"", "width = \"w\"", "name = \"s\", form = \"+\"", "name = \"s\", width = \"w\""] {
        assert!(size(bad).is_err(), "{bad}");
    }
}

#[test]
fn speech_has_its_text_and_a_voice_if_there_is_one() {
    let text = "id = \"a\"\nkind = \"speech\"\nprice = { per_character = \"0.0001\" }\n\
                fields = { text = \"text\", voice = \"voice_setting.voice_id\" }\n\
                defaults = { voice_setting = { speed = 1.0 } }";
    let entry = ModelEntry::from_toml(text).unwrap();
    let body = |voice: Option<&str>| {
        let task = SpeechTask { text: "hello".into(), voice: voice.map(str::to_owned) };
        Value::Object(entry.body(&TaskSpec::Speech(task), None, &Map::new()))
    };
    assert_eq!(body(None), json!({ "text": "hello", "voice_setting": { "speed": 1.0 } }));
    assert_eq!(body(Some("ada")), json!({ "text": "hello", "voice_setting": { "speed": 1.0, "voice_id": "ada" } }));
}

#[test]
fn an_error_names_the_line_and_what_is_wrong_with_it() {
    let good = "[[model]]\nid = \"a\"\nkind = \"video\"\nprice = { free = true }\n";
    for (bad, line, word) in [
        ("lenghts = [5]", 5, "lenghts"),
        ("lengths = []", 1, "no length"),
        ("lengths = \"5\"", 5, "[5, 10]"),
        ("aspect_ratios = [\"2:1\"]", 5, "2:1"),
        ("lengths = [5, 10]", 1, "no field carries the length"),
        ("lengths = [5]\nneeds_image = true", 1, "no field carries it"),
        ("lengths = [5]\naspect_ratios = [\"16:9\", \"1:1\"]", 1, "aspect ratios"),
        ("fields = { duration = { name = \"d\", form = \"weeks\" } }", 5, "weeks"),
        ("fields = { duration = { form = \"text\" } }", 5, "name"),
        ("fields = { duration = \"a..b\" }", 5, "a..b"),
        ("fields = { duration = 5 }", 5, "name"),
        ("fields = { colour = \"c\" }", 5, "colour"),
        (
            "lengths = [5]\naspect_ratios = [\"1:1\"]\n\
             fields.aspect_ratio = { name = \"r\", values = { \"16:9\" = \"wide\" } }",
            1,
            "has 1:1, but no value for it",
        ),
    ] {
        let error = ModelTable::from_toml(&format!("{good}{bad}")).expect_err(bad);
        let message = &error.fields()[0].message;
        assert!(message.starts_with(&format!("line {line}")) && message.contains(word), "{bad}: {message}");
        assert!(error.to_string().contains(word), "{error}");
    }
    let twice = format!("{good}lengths = [5]\n{good}lengths = [6]\n");
    assert!(ModelTable::from_toml(&twice).unwrap_err().fields()[0].message.contains("model a stands there twice"));
}

#[test]
fn a_hosts_entry_replaces_the_one_of_its_name_and_kind() {
    let entry = |kind: &str, price: &str| {
        let fields = "fields = { text = \"t\", duration = \"d\" }";
        let text = format!("id = \"a\"\nkind = \"{kind}\"\nprice = {{ per_run = \"{price}\" }}\n{fields}");
        ModelEntry::from_toml(&text).unwrap()
    };
    let table = ModelTable::default().with(entry("image", "1")).with(entry("speech", "2")).with(entry("image", "3"));
    let id = ModelId::from("a");
    assert_eq!(table.entries().len(), 2);
    assert_eq!(table.entry(StepKind::Image, &id).unwrap().model.price, Price::PerRun(Usd::from_dollars(3)));
    assert!(table.entry(StepKind::Video, &id).is_none());
}

#[test]
fn frames_are_counted_at_the_rate_that_is_asked_for() {
    let entry = |fields: &str| {
        ModelEntry::from_toml(&format!(
            "id = \"a\"\nkind = \"video\"\nprice = {{ free = true }}\nfields = {{ {fields} }}"
        ))
    };
    let frames = "duration = { name = \"frames\", form = \"frames\", fps = 16, extra = 1 }";
    let body = |fields: &str, fps| {
        let spec = TaskSpec::Video(VideoTask { fps, duration: Duration::from_secs(5), ..video() });
        entry(fields).unwrap().body(&spec, None, &Map::new())["frames"].clone()
    };
    assert_eq!(body(frames, Some(24)), json!(81), "the model has its own rate");
    let both = format!("{frames}, fps = \"fps\"");
    assert_eq!((body(&both, Some(24)), body(&both, None)), (json!(121), json!(81)));
    let error = entry("duration = { name = \"frames\", form = \"frames\" }").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "five seconds would be no frame at all");
}
