//! Images and speech: what goes out, and what lies in the spool when the submit has worked.

use std::time::Duration;

use bytes::Bytes;
use vidgen_core::{AspectRatio, ErrorKind, ImageTask, MediaType, Output, Resolution, TaskSpec, Usage};
use vidgen_providers::lab::{Answer, Play, Serving, Setup};

use super::*;
use crate::answers::answering;

const IMAGES: &str = "POST /v1/images/generations";
const SPEECH: &str = "POST /v1/audio/speech";
const JSON: &str = "application/json";

fn shaped(ratio: AspectRatio) -> TaskSpec {
    let size = ratio.size(Resolution::P720);
    TaskSpec::Image(ImageTask { prompt: PROMPT.into(), negative_prompt: None, style: None, size, seed: None })
}

impl Set {
    async fn bytes(&self, handle: &Handle) -> Bytes {
        let output = output(end(&self.provider, handle).await);
        let spool = self.spool(&SubmissionId::from_remote(handle.remote_id.clone()));
        spool.open(&output).await.unwrap().read(20 << 20).await.unwrap()
    }

    async fn nothing_kept(&self, id: &SubmissionId) {
        assert!(self.spool(id).kept().await.unwrap().is_none());
    }
}

#[tokio::test]
async fn an_image_is_asked_for_and_its_bytes_are_kept() {
    let set = set(lab::openai(), Dialect::OpenAi).await;
    let (handle, seen) = set.recorded(&task("gpt-image-1", image())).await;
    let body = json!({
        "model": "gpt-image-1", "prompt": format!("{PROMPT}, ink"), "size": "1536x1024", "quality": "medium",
        "output_format": "png",
    });
    assert_eq!(seen, sent(IMAGES, JSON, body));
    let bytes = set.bytes(&handle).await;
    assert_eq!(MediaType::sniff(&bytes), Some(MediaType::Png));
    // 1568 tokens of the picture, and a quarter of ten of the prompt.
    assert_eq!(end(&set.provider, &handle).await.usage, Some(Usage::MilliUnits(1571)));
    // Nobody was asked again: it lies in the spool.
    assert_eq!(set.lab.requests().len(), 1);
}

#[tokio::test]
async fn a_shape_becomes_the_nearest_size_of_the_model() {
    let set = set(lab::openai(), Dialect::OpenAi).await;
    let cases = [
        (AspectRatio::Wide, "1536x864", "1536x1024"),
        (AspectRatio::Tall, "864x1536", "1024x1536"),
        (AspectRatio::Square, "1024x1024", "1024x1024"),
        (AspectRatio::Classic, "1344x1008", "1536x1024"),
        (AspectRatio::Portrait, "1008x1344", "1024x1536"),
    ];
    assert_eq!(cases.len(), AspectRatio::ALL.len());
    for model in ["gpt-image-2", "gpt-image-1.5", "gpt-image-1", "gpt-image-1-mini"] {
        for (ratio, free, listed) in cases {
            set.submit(&task(model, shaped(ratio))).await.unwrap();
            let expected = if model == "gpt-image-2" { free } else { listed };
            assert_eq!(set.lab.requests().last().unwrap().json()["size"], expected, "{model} {ratio}");
        }
    }
}

#[tokio::test]
async fn an_image_behind_a_link_is_fetched_at_once_and_without_the_key() {
    let setup = {
        let mut setup = Setup::default();
        setup.outputs_elsewhere = true;
        setup
    };
    let lab = Lab::start_with(lab::openai().answering_links(), setup).await.unwrap();
    let builder = builder(&lab.key(), &lab.base_url(), Dialect::OpenAi).with_allowed(lab.outputs_addr());
    let set = Set { provider: builder.build().unwrap(), lab, store: Arc::default() };
    // It is paid for: a download that breaks off is begun again.
    set.lab.then(None, Play::succeeds().with_serving_for(1, Serving::Truncated));
    let handle = set.submit(&task("gpt-image-1", image())).await.unwrap();
    assert_eq!(MediaType::sniff(&set.bytes(&handle).await), Some(MediaType::Png));
    assert!(set.lab.secrets().iter().all(|secret| !serde_json::to_string(&handle).unwrap().contains(secret)));
    let calls = set.lab.requests_with_keys();
    let fetched: Vec<_> = calls.iter().filter(|seen| seen.class == Class::Output).collect();
    assert_eq!((fetched.len(), calls.len()), (2, 3));
    assert!(fetched.iter().all(|seen| !seen.text().contains(&set.lab.key())));
    // One that is not there is lost, though it was made.
    set.lab.then(None, Play::succeeds().with_serving(Serving::Expired));
    let error = set.submit(&task("gpt-image-1", image())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
}

#[tokio::test]
async fn a_text_is_spoken_in_the_voice_that_was_asked_for() {
    for (voice, named) in
        [(None, json!("alloy")), (Some("coral"), json!("coral")), (Some("voice_1a2"), json!({ "id": "voice_1a2" }))]
    {
        let set = set(lab::openai(), Dialect::OpenAi).await;
        let mut task = task("gpt-4o-mini-tts", speech(voice));
        task.extra.insert("instructions".into(), json!("calmly"));
        task.extra.insert("response_format".into(), json!("wav"));
        let (handle, seen) = set.recorded(&task).await;
        let body = json!({
            "model": "gpt-4o-mini-tts", "input": PROMPT, "voice": named, "response_format": "wav",
            "instructions": "calmly",
        });
        assert_eq!(seen, sent(SPEECH, JSON, body));
        assert_eq!(MediaType::sniff(&set.bytes(&handle).await), Some(MediaType::Wav));
        let end = end(&set.provider, &handle).await;
        assert_eq!((end.usage, end.cost, set.lab.requests().len()), (None, None, 1));
    }
    let set = set(lab::openai(), Dialect::OpenAi).await;
    let (handle, seen) = set.recorded(&task("tts-1", speech(None))).await;
    let body = json!({ "model": "tts-1", "input": PROMPT, "voice": "alloy", "response_format": "mp3" });
    assert_eq!(seen, sent(SPEECH, JSON, body));
    assert_eq!(MediaType::sniff(&set.bytes(&handle).await), Some(MediaType::Mp3));
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_lost_and_leaves_nothing() {
    for (model, spec) in [("gpt-image-1", image()), ("tts-1", speech(None))] {
        let set = set(lab::openai(), Dialect::OpenAi).await;
        for answer in [Answer::BreaksOff, Answer::Garbles, Answer::Resets, Answer::Fails(500)] {
            set.lab.then(None, Play::succeeds().with_answer(answer.clone()));
            let task = task(model, spec.clone());
            let id = submission_id(&task);
            let error = set.provider.submit(&task, &set.options(&id)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{model} {answer:?}: {error:?}");
            set.nothing_kept(&id).await;
        }
        assert_eq!((set.lab.posts(), set.lab.accepted().len()), (4, 4));
    }
}

#[tokio::test]
async fn a_sound_that_is_cut_or_stalls_is_lost() {
    let lab = Lab::start(lab::openai()).await;
    let builder = builder(&lab.key(), &lab.base_url(), Dialect::OpenAi);
    let provider = builder.with_submit_timeout(Duration::from_millis(300)).build().unwrap();
    let set = Set { provider, lab, store: Arc::default() };
    for serving in [Serving::Truncated, Serving::Stalled, Serving::Page] {
        set.lab.then(None, Play::succeeds().with_serving(serving));
        let task = task("tts-1", speech(None));
        let id = submission_id(&task);
        let error = set.provider.submit(&task, &set.options(&id)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{serving:?}: {error:?}");
        set.nothing_kept(&id).await;
    }
}

#[tokio::test]
async fn what_could_not_be_kept_or_read_is_not_bought() {
    let set = set(lab::openai(), Dialect::OpenAi).await;
    let with = |model: &str, spec: TaskSpec, name: &str, value: Value| {
        let mut task = task(model, spec);
        task.extra.insert(name.into(), value);
        task
    };
    for task in [
        with("gpt-image-1", image(), "n", json!(2)),
        with("gpt-image-1", image(), "stream", json!(true)),
        with("tts-1", speech(None), "response_format", json!("pcm")),
        with("tts-1", speech(None), "response_format", json!("flac")),
        with("gpt-4o-mini-tts", speech(None), "stream_format", json!("sse")),
    ] {
        assert_eq!(set.submit(&task).await.unwrap_err().kind(), ErrorKind::Unsupported, "{:?}", task.extra);
    }
    for task in [task("gpt-image-1", image()), task("tts-1", speech(None))] {
        // Without a spool there is nowhere to keep it.
        let error = set.provider.submit(&task, &options(&submission_id(&task))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
    }
    assert_eq!(set.lab.requests().len(), 0);
}

#[tokio::test]
async fn what_lies_in_the_spool_is_nothing_of_the_remotes() {
    let set = set(lab::openai(), Dialect::OpenAi).await;
    let spooled = set.submit(&task("tts-1", speech(None))).await.unwrap();
    let accepted = set.submit(&task("acme-video", video(None, 4))).await.unwrap();
    let before = set.requests(Class::Read).len();
    set.provider.poll(&spooled).await.unwrap();
    assert_eq!(set.requests(Class::Read).len(), before, "a spooled end is known without a look");
    set.provider.poll(&accepted).await.unwrap();
    assert_eq!(set.requests(Class::Read).len(), before + 1);
    // And its output is opened by nobody but the spool.
    assert_eq!(set.provider.open(&Output::new("")).await.unwrap_err().kind(), ErrorKind::NotFound);
    let omni = OpenAi::server(set.lab.base_url()).with_dialect(Dialect::VllmOmni).build().unwrap();
    assert_eq!(omni.cancel(&spooled).await.unwrap_err().kind(), ErrorKind::TooLate);
}

#[tokio::test]
async fn patience_is_as_long_as_what_is_made_takes() {
    let timeout = |toml: &str| {
        let entry = ModelEntry::from_toml(toml).unwrap();
        let builder = OpenAi::server("http://127.0.0.1:1/v1").with_dialect(Dialect::VllmOmni).with_model(entry);
        builder.build().unwrap().capabilities()
    };
    let (picture, sound) = (
        timeout("id = \"a\"\nkind = \"image\"\nprice = { free = true }"),
        timeout("id = \"a\"\nkind = \"speech\"\nprice = { free = true }\nfields.text = \"input\""),
    );
    let clip = timeout(CLIP);
    assert!(picture.submit_timeout > sound.submit_timeout && sound.submit_timeout > clip.submit_timeout);
    assert!(picture.spools && sound.spools && !clip.spools);
    assert!(picture.submit_timeout >= Duration::from_secs(300));
}

#[tokio::test]
async fn every_known_model_is_asked_in_a_way_that_is_understood() {
    let set = set(lab::openai(), Dialect::OpenAi).await;
    let models = OpenAi::new("sk-x").unwrap().capabilities().models;
    assert_eq!(models.len(), 7);
    for model in models {
        let spec = if model.kind == vidgen_core::StepKind::Image { image() } else { speech(None) };
        set.submit(&task(model.id.as_str(), spec)).await.unwrap_or_else(|e| panic!("{}: {e}", model.id));
    }
}

#[tokio::test]
async fn a_paid_image_is_kept_whatever_is_said_of_its_tokens() {
    let used = Some(Usage::MilliUnits(1200));
    for (usage, known) in [
        (json!({ "input_tokens": 800, "output_tokens": 1000 }), used),
        (json!({ "input_tokens": 800.0, "output_tokens": 1000.0 }), None),
        (json!({ "output_tokens": -1 }), None),
        (json!("1200 tokens"), None),
        (json!([]), None),
        // What a gateway writes where it knows nothing: no picture has none.
        (json!({ "input_tokens": 0, "output_tokens": 0 }), None),
        (json!({ "output_tokens": u64::MAX }), None),
    ] {
        let body = json!({ "data": [{ "b64_json": "iVBORw0KGgo=" }], "usage": usage });
        let url = answering(200, &[], &body.to_string()).await;
        let provider = builder("k", &url, Dialect::LiteLlm).build().unwrap();
        let task = task("gpt-image-1", image());
        let id = submission_id(&task);
        let spool = Spool::new(Arc::new(MemoryStore::new()), &id).unwrap();
        let handle = provider.submit(&task, &options(&id).with_spool(spool)).await.unwrap();
        assert_eq!(provider.poll(&handle).await.unwrap().usage, known, "{usage}");
    }
}
