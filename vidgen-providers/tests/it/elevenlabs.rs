//! ElevenLabs against its lab: the rules of the kit, and what exactly goes out.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::json;
use url::Url;
use vidgen_core::conformance::provider::Scene;
use vidgen_core::memory::{MemoryQueue, MemoryStore, ScriptedProvider};
use vidgen_core::{
    Body, ByteRange, CostBasis, CreateOptions, Error, ErrorKind, Handle, JobRequest, JobState, Media, MediaHead,
    MediaKey, MediaType, Pipeline, Provider, Result, SpeechTask, Spool, StepKind, StepState, Store, SubmissionId,
    SubmitOptions, Task, TaskSpec, TenantId, Usage, Usd, Vidgen,
};
use vidgen_providers::elevenlabs::{ElevenLabs, ElevenLabsBuilder, Tier};
use vidgen_providers::lab::kit::{LabFixture, Site};
use vidgen_providers::lab::{self, Answer, Class, Lab, Play, Refusal, Seen, Serving};
use vidgen_providers::models::ModelEntry;

use crate::answers::answering;
use crate::remote::*;

const MULTILINGUAL: &str = "eleven_multilingual_v2";
/// The ids of the lab's voices.
const SARAH: &str = "LabSarah000000000001";
const RACHEL: &str = "LabRachel00000000002";

type Client = fn(&Site) -> ElevenLabs;

fn fixture() -> LabFixture<Client> {
    let client: Client = |site| ElevenLabs::builder(site.key.as_str()).with_base_url(&site.base_url).build().unwrap();
    let at_once = "it has ended when it is answered, and nobody is asked about it";
    let ours = "the output lies in our own store";
    [
        (Scene::StatesCost, "it states credits, whose price is the plan's"),
        (Scene::Running, at_once),
        (Scene::Fails, "it fails by not being accepted, or nobody can tell"),
        (Scene::RateLimitsLooks, at_once),
        (Scene::Garbled, at_once),
        (Scene::UnknownState, at_once),
        (Scene::UnknownHandle, at_once),
        (Scene::CancelOk, at_once),
        (Scene::OutputExpired, ours),
        (Scene::TruncatedOutput, ours),
        (Scene::StalledOutput, ours),
    ]
    .into_iter()
    .fold(LabFixture::new(lab::elevenlabs, say(Some("Rachel")), client), |fixture, (scene, because)| {
        fixture.impossible(scene, because)
    })
    .with_secrets([PROMPT])
}

vidgen_core::provider_conformance!(elevenlabs, fixture(), except: [("p12", "it takes neither key nor reference")]);

fn say(voice: Option<&str>) -> Task {
    task(MULTILINGUAL, speech(voice))
}

/// A client of a lab, and what goes with it.
struct Set {
    lab: Lab,
    provider: ElevenLabs,
    store: Arc<MemoryStore>,
}

async fn set() -> Set {
    set_with(lab::elevenlabs(), |builder| builder).await
}

async fn set_with(remote: lab::ElevenLabs, how: impl FnOnce(ElevenLabsBuilder) -> ElevenLabsBuilder) -> Set {
    let lab = Lab::start(remote).await;
    let provider = how(ElevenLabs::builder(lab.key()).with_base_url(lab.base_url())).build().unwrap();
    Set { lab, provider, store: Arc::new(MemoryStore::new()) }
}

impl Set {
    fn spool(&self, id: &SubmissionId) -> Spool {
        Spool::new(self.store.clone(), id).unwrap()
    }

    async fn submit_as(&self, task: &Task, id: &SubmissionId) -> Result<Handle> {
        self.provider.submit(task, &SubmitOptions::new(id.clone()).with_spool(self.spool(id))).await
    }

    async fn submit(&self, task: &Task) -> Result<Handle> {
        self.submit_as(task, &submission_id(task)).await
    }

    /// The audio that came of a task.
    async fn audio(&self, task: &Task, id: &SubmissionId) -> Bytes {
        let handle = self.submit_as(task, id).await.unwrap();
        let output = output(self.provider.poll(&handle).await.unwrap());
        self.spool(id).open(&output).await.unwrap().read(usize::MAX).await.unwrap()
    }

    fn requests(&self, class: Class) -> Vec<Seen> {
        self.lab.requests().into_iter().filter(|seen| seen.class == class).collect()
    }

    /// The path that the last submit went to.
    fn path(&self) -> String {
        self.requests(Class::Submit).last().unwrap().path().to_owned()
    }
}

#[tokio::test]
async fn a_text_is_spoken_and_the_request_is_this() {
    let set = set().await;
    let id = SubmissionId::from_remote("sub_0190163d8694739bb6b2d4b3a1c5e7f9_speech_1");
    let mut task = say(Some("Rachel"));
    task.extra.insert("voice_settings".into(), json!({ "stability": 0.4 }));
    let audio = set.audio(&task, &id).await;
    assert_eq!(MediaType::sniff(&audio), Some(MediaType::Mp3));
    let seen = set.lab.requests();
    let list = json!({ "line": "GET /v1/voices?show_legacy=true", "headers": {}, "body": "" });
    let submit = json!({
        "line": format!("POST /v1/text-to-speech/{RACHEL}?output_format=mp3_44100_128"),
        "headers": { "content-type": "application/json" },
        "body": {
            "text": PROMPT, "model_id": MULTILINGUAL, "seed": 355_132_459_u32,
            "voice_settings": { "stability": 0.4 },
        },
    });
    assert_eq!(seen.iter().map(request).collect::<Vec<_>>(), [list, submit]);
    let keys = set.lab.requests_with_keys();
    assert!(keys.iter().all(|seen| seen.header("xi-api-key") == Some(set.lab.key().as_str())));
}

#[tokio::test]
async fn the_voice_is_the_requests_or_the_routes_or_the_builders_or_the_accounts_first() {
    let set = set_with(lab::elevenlabs(), |builder| builder.with_voice("rachel ")).await;
    let mut routed = say(None);
    routed.extra.insert("voice".into(), json!("Sarah"));
    let mut both = say(Some("LabOther000000000009"));
    both.extra = routed.extra.clone();
    set.submit(&routed).await.unwrap();
    assert_eq!(set.path(), format!("/v1/text-to-speech/{SARAH}"));
    set.submit(&say(None)).await.unwrap();
    assert_eq!(set.path(), format!("/v1/text-to-speech/{RACHEL}"));
    // An id is not looked up; the remote does not know this one.
    assert_eq!(set.submit(&both).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(set.path(), "/v1/text-to-speech/LabOther000000000009");
    assert!(set.requests(Class::Submit).iter().all(|seen| seen.json().get("voice").is_none()));
    let plain = set_with(lab::elevenlabs(), |builder| builder).await;
    plain.submit(&say(None)).await.unwrap();
    assert_eq!(plain.path(), format!("/v1/text-to-speech/{SARAH}"));
}

#[tokio::test]
async fn names_are_looked_up_once_and_stay_within_their_part_of_the_path() {
    let set = set().await;
    for name in ["Odd", "odd", "odd/voice?id"] {
        set.submit(&say(Some(name))).await.unwrap();
        assert_eq!(set.path(), "/v1/text-to-speech/odd%2Fvoice%3Fid");
    }
    // Neither of them: nothing is bought, and the list is not asked for again at once.
    for name in ["Nobody", "Twin", "../voices"] {
        assert_eq!(set.submit(&say(Some(name))).await.unwrap_err().kind(), ErrorKind::NotFound, "{name}");
    }
    set.submit(&say(Some("Twin - Left"))).await.unwrap();
    assert_eq!((set.lab.count(Class::Read), set.lab.posts()), (1, 4));
    // A voice that is gone is looked up anew.
    set.lab.then(None, Play::refuses_for(Refusal::NotFound));
    assert_eq!(set.submit(&say(Some("Odd"))).await.unwrap_err().kind(), ErrorKind::NotFound);
    set.submit(&say(Some("Odd"))).await.unwrap();
    assert_eq!(set.lab.count(Class::Read), 2);
}

#[tokio::test]
async fn the_credits_of_the_answer_are_in_the_handle() {
    let set = set().await;
    for (play, used) in
        [(Play::succeeds(), PROMPT.len() as u64), (Play::succeeds().with_usage(Usage::Characters(5)), 5)]
    {
        set.lab.then(None, play);
        let handle = set.submit(&say(None)).await.unwrap();
        let json = serde_json::to_string(&handle).unwrap();
        let end = set.provider.poll(&serde_json::from_str(&json).unwrap()).await.unwrap();
        assert_eq!((end.usage, end.cost), (Some(Usage::Characters(used)), None));
    }
    let silent = set_with(lab::elevenlabs().without_cost(), |builder| builder).await;
    let handle = silent.submit(&say(None)).await.unwrap();
    assert_eq!(silent.provider.poll(&handle).await.unwrap().usage, None);
}

#[tokio::test]
async fn a_cost_that_is_none_prices_nothing() {
    for (cost, used) in [("12.2", Some(13)), ("0", Some(0)), ("-1", None), ("many", None), ("1e300", None)] {
        let url = answering(200, &[("content-type", "audio/mpeg"), ("character-cost", cost)], "ID3").await;
        let provider = ElevenLabs::builder("k").with_base_url(url).build().unwrap();
        let (task, store) = (say(Some(RACHEL)), Arc::new(MemoryStore::new()));
        let id = submission_id(&task);
        let options = SubmitOptions::new(id.clone()).with_spool(Spool::new(store, &id).unwrap());
        let handle = provider.submit(&task, &options).await.unwrap();
        let usage = provider.poll(&handle).await.unwrap().usage;
        assert_eq!(usage, used.map(Usage::Characters), "{cost}");
    }
}

#[tokio::test]
async fn audio_that_breaks_off_is_an_unknown_outcome_and_no_file() {
    let set = set_with(lab::elevenlabs(), |builder| builder.with_submit_timeout(Duration::from_secs(1))).await;
    for (n, play) in [
        Play::succeeds().with_serving(Serving::Truncated),
        Play::succeeds().with_serving(Serving::Stalled),
        Play::succeeds().with_serving(Serving::Endless),
        Play::succeeds().with_serving(Serving::Page),
        Play::succeeds().with_answer(Answer::BreaksOff),
        Play::fails("no more voice"),
    ]
    .into_iter()
    .enumerate()
    {
        set.lab.then(None, play.clone());
        let task = say(None);
        let id = submission_id(&task);
        let error = set.submit_as(&task, &id).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{play:?}: {error}");
        assert!(set.spool(&id).kept().await.unwrap().is_none(), "{play:?}: a short file is kept");
        assert_eq!((set.lab.accepted().len(), set.lab.posts()), (n + 1, n + 1), "{play:?}");
    }
}

#[tokio::test]
async fn without_a_spool_nothing_is_bought_and_one_that_fails_leaves_a_doubt() {
    let set = set().await;
    let task = say(None);
    let error = set.provider.submit(&task, &SubmitOptions::new(submission_id(&task))).await.unwrap_err();
    assert_eq!((error.kind(), set.lab.requests().len()), (ErrorKind::Internal, 0));

    let id = submission_id(&task);
    let spool = Spool::new(Arc::new(Full), &id).unwrap();
    let error = set.provider.submit(&task, &SubmitOptions::new(id).with_spool(spool)).await.unwrap_err();
    assert_eq!((error.kind(), set.lab.posts()), (ErrorKind::OutcomeUnknown, 1));
}

/// A store with a full disk.
#[derive(Debug)]
struct Full;

impl Full {
    fn error() -> Error {
        Error::new(ErrorKind::Unavailable, "store", "the disk is full")
    }
}

#[async_trait]
impl Store for Full {
    async fn put(&self, _: &MediaKey, _: Body) -> Result<u64> {
        Err(Self::error())
    }
    async fn get(&self, _: &MediaKey, _: Option<ByteRange>) -> Result<Media> {
        Err(Self::error())
    }
    async fn head(&self, _: &MediaKey) -> Result<MediaHead> {
        Err(Self::error())
    }
    async fn link(&self, _: &MediaKey, _: Duration) -> Result<Option<Url>> {
        Err(Self::error())
    }
    async fn delete(&self, _: &MediaKey) -> Result<()> {
        Err(Self::error())
    }
    async fn delete_prefix(&self, _: &str) -> Result<u64> {
        Err(Self::error())
    }
}

#[tokio::test]
async fn a_step_that_is_bought_again_is_given_the_same_audio() {
    let set = set().await;
    let task = say(None);
    let (id, other) = (submission_id(&task), submission_id(&task));
    let again = SubmissionId::from_remote(id.as_str().replace("_speech_1", "_speech_2"));
    let first = set.audio(&task, &id).await;
    assert_eq!(first, set.audio(&task, &again).await);
    assert_ne!(first, set.audio(&task, &other).await);
    let mut seeded = task.clone();
    seeded.extra.insert("seed".into(), json!(7));
    set.audio(&seeded, &other).await;
    assert_eq!(set.requests(Class::Submit).last().unwrap().json()["seed"], 7);
}

#[tokio::test]
async fn each_refusal_has_its_kind() {
    let set = set_with(lab::elevenlabs().without_retry_after(), |builder| builder).await;
    for (refusal, kind, wait) in [
        (Refusal::NoCredit, ErrorKind::OverBudget, None),
        (Refusal::BadKey, ErrorKind::Unauthorized, None),
        (Refusal::Invalid("too short".into()), ErrorKind::Invalid, None),
        (Refusal::Moderated("not this".into()), ErrorKind::Refused, None),
        (Refusal::NotFound, ErrorKind::NotFound, None),
        (Refusal::RateLimited(Duration::from_secs(9)), ErrorKind::RateLimited, Some(Duration::from_secs(5))),
        (Refusal::Busy, ErrorKind::Unavailable, None),
        (Refusal::Unavailable, ErrorKind::OutcomeUnknown, None),
    ] {
        set.lab.then(None, Play::refuses_for(refusal.clone()));
        let error = set.submit(&say(Some(RACHEL))).await.unwrap_err();
        assert_eq!((error.kind(), error.retry_after()), (kind, wait), "{refusal:?}: {error}");
    }
    assert_eq!((set.lab.accepted().len(), set.lab.posts()), (0, 8));
}

#[tokio::test]
async fn a_detail_is_an_object_a_list_or_text() {
    let list = r#"{"detail":[{"loc":["body","voice_settings"],"msg":"bad stability","type":"x"}]}"#;
    let quoting = r#"{"detail":[{"loc":["body","text"],"msg":"bad: 'a zebra-striped tram in'","type":"x"}]}"#;
    let quota = r#"{"detail":{"code":"quota_exceeded","type":"x","message":"no credits"}}"#;
    for (status, body, kind, words) in [
        (422, list, ErrorKind::Invalid, Some("voice_settings: bad stability")),
        (422, quoting, ErrorKind::Invalid, None),
        (400, r#"{"detail":"bad text"}"#, ErrorKind::Invalid, Some("bad text")),
        (400, r#"{"detail":[]}"#, ErrorKind::Invalid, None),
        (402, quota, ErrorKind::OverBudget, Some("no credits")),
        (401, quota, ErrorKind::OverBudget, Some("no credits")),
        (401, r#"{"detail":{"status":"detected_unusual_activity"}}"#, ErrorKind::Unauthorized, None),
        (425, r#"{"detail":{"status":"too_early"}}"#, ErrorKind::Unavailable, None),
        (409, r#"{"detail":"conflict"}"#, ErrorKind::Unavailable, None),
        // Not its own words: a gateway's, and nobody knows what is behind it.
        (409, "<html>", ErrorKind::OutcomeUnknown, None),
        (500, r#"{"detail":{"status":"quota_exceeded"}}"#, ErrorKind::OutcomeUnknown, None),
        (504, "", ErrorKind::OutcomeUnknown, None),
    ] {
        let url = answering(status, &[("content-type", "application/json")], body).await;
        let provider = ElevenLabs::builder("k").with_base_url(url).build().unwrap();
        let task = say(Some(RACHEL));
        let id = submission_id(&task);
        let spool = Spool::new(Arc::new(MemoryStore::new()), &id).unwrap();
        let error = provider.submit(&task, &SubmitOptions::new(id).with_spool(spool)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{status} {body}: {error}");
        assert!(words.is_none_or(|words| error.message().ends_with(words)), "{status} {body}: {error}");
        assert!(!error.to_string().contains("zebra"), "{error}");
    }
}

#[tokio::test]
async fn each_model_of_the_table_is_taken_with_as_much_text_as_it_says() {
    let set = set().await;
    let table = ElevenLabs::known_models().unwrap();
    for entry in table.entries() {
        let text = "a".repeat(entry.model().max_text.unwrap());
        let spoken = TaskSpec::Speech(SpeechTask { text, voice: None });
        set.submit(&task(entry.id().as_str(), spoken)).await.unwrap_or_else(|e| panic!("{}: {e}", entry.id()));
    }
    assert_eq!(set.lab.accepted().len(), table.entries().len());
    let long = TaskSpec::Speech(SpeechTask { text: "a".repeat(10_001), voice: None });
    assert_eq!(set.submit(&task(MULTILINGUAL, long)).await.unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn a_hosts_own_model_and_format_go_out() {
    let text = "id = \"eleven_next\"\nkind = \"speech\"\nprice = { per_character = \"0.0001\" }\n\
                fields = { text = \"text\" }\ndefaults = { language_code = \"de\" }";
    let entry = ModelEntry::from_toml(text).unwrap();
    let set = set_with(lab::elevenlabs(), |b| b.with_model(entry).with_output_format("wav_24000")).await;
    let mut task = task("eleven_next", speech(None));
    let id = submission_id(&task);
    assert_eq!(MediaType::sniff(&set.audio(&task, &id).await), Some(MediaType::Wav));
    let sent = set.requests(Class::Submit);
    assert_eq!(sent[0].uri.query(), Some("output_format=wav_24000"));
    assert_eq!((&sent[0].json()["model_id"], &sent[0].json()["language_code"]), (&json!("eleven_next"), &json!("de")));
    task.extra.insert("output_format".into(), json!("mp3_22050_32"));
    assert_eq!(MediaType::sniff(&set.audio(&task, &submission_id(&task)).await), Some(MediaType::Mp3));
    // Without a head, nobody could tell it from noise: it would be paid for and thrown away.
    task.extra.insert("output_format".into(), json!("pcm_16000"));
    assert_eq!(set.submit(&task).await.unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(set.lab.posts(), 2);
    let bad = ElevenLabs::builder("k").with_output_format("pcm_16000").build().unwrap_err();
    assert_eq!(bad.fields()[0].field, "output_format");
}

#[tokio::test]
async fn a_plan_has_so_many_at_once() {
    let live = |builder: ElevenLabsBuilder| builder.build().unwrap().capabilities().max_live;
    assert_eq!(live(ElevenLabs::builder("k")), Some(2));
    assert_eq!(live(ElevenLabs::builder("k").with_tier(Tier::Pro)), Some(10));
    assert_eq!(live(ElevenLabs::builder("k").with_tier(Tier::Pro).with_max_live(4)), Some(4));
}

#[tokio::test]
async fn a_handle_without_an_end_is_unknown_without_a_call() {
    let set = set().await;
    let error = set.provider.poll(&Handle::new("elevenlabs".into(), "sub_x")).await.unwrap_err();
    assert_eq!((error.kind(), set.lab.requests().len()), (ErrorKind::NotFound, 0));
}

#[tokio::test]
async fn a_rotated_key_is_used_at_once() {
    let set = set().await;
    let provider = ElevenLabs::builder("old").with_base_url(set.lab.base_url()).build().unwrap();
    let other = Set { provider: provider.clone(), ..set };
    assert_eq!(other.submit(&say(None)).await.unwrap_err().kind(), ErrorKind::Unauthorized);
    provider.rotate_key(other.lab.key()).unwrap();
    other.submit(&say(None)).await.unwrap();
}

/// The whole of it: bought once, copied out of the spool, and billed by what the answer said.
#[tokio::test]
async fn a_job_speaks_and_costs_what_the_answer_said() {
    let lab = Lab::start(lab::elevenlabs()).await;
    lab.always(Play::succeeds().with_usage(Usage::Characters(20)));
    let provider = ElevenLabs::builder(lab.key()).with_base_url(lab.base_url()).build().unwrap();
    let studio = ScriptedProvider::new("studio");
    let pipeline = Pipeline::named("default").video(studio.clone()).speech(provider.voice("Rachel")).compose(studio);
    let store = Arc::new(MemoryStore::new());
    let vidgen = Vidgen::builder().queue(MemoryQueue::new()).store(store.clone()).pipeline(pipeline).build().unwrap();
    let tenant = TenantId::single();
    let request = JobRequest::new("a cat").with_script("Hello, you.");
    let mut job = vidgen.create(&tenant, request, CreateOptions::default()).await.unwrap().job;
    let worker = vidgen.worker().spawn();
    while !job.state.is_ended() {
        job = vidgen.watch(&tenant, job.id, job.version, Duration::from_secs(60)).await.unwrap();
    }
    worker.shutdown().await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
    let StepState::Done { media, cost, .. } = &job.step(StepKind::Speech).unwrap().state else { panic!("{job:?}") };
    assert_eq!((media.media_type, cost.basis), (MediaType::Mp3, CostBasis::Metered));
    assert_eq!(cost.amount, Usd::from_micros(300 * 20));
    assert_eq!(lab.posts(), 1);
    let spoken = &lab.requests()[1];
    assert_eq!(
        (spoken.path(), &spoken.json()["text"]),
        (format!("/v1/text-to-speech/{RACHEL}").as_str(), &json!("Hello, you."))
    );
}

#[tokio::test]
async fn an_answer_is_told_by_its_type_and_has_to_have_something_in_it() {
    for (content_type, body, lost) in [
        ("audio/mpeg", "ID3", false),
        ("Audio/MPEG; x=y", "ID3", false),
        ("", "ID3", false),
        ("audio/mpeg", "", true),
        ("application/json", "{}", true),
    ] {
        let headers = [("content-type", content_type)];
        let headers = if content_type.is_empty() { &headers[..0] } else { &headers[..] };
        let url = answering(200, headers, body).await;
        let provider = ElevenLabs::builder("k").with_base_url(url).build().unwrap();
        let (task, store) = (say(Some(RACHEL)), Arc::new(MemoryStore::new()));
        let id = submission_id(&task);
        let options = SubmitOptions::new(id.clone()).with_spool(Spool::new(store, &id).unwrap());
        let answer = provider.submit(&task, &options).await;
        assert_eq!(answer.err().map(|e| e.kind()), lost.then_some(ErrorKind::OutcomeUnknown), "{content_type} {body}");
    }
}
