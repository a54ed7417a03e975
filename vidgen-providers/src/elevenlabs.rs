//! ElevenLabs speaks. The answer to the one request that buys is the audio itself: it streams into the
//! host's store before the submit is said to have worked. Facts as of 2026-11, from the official
//! client (PyPI `elevenlabs` 2.78.0) and elevenlabs.io's docs.
//!
//! ```
//! use vidgen_providers::elevenlabs::{ElevenLabs, Tier};
//!
//! let elevenlabs = ElevenLabs::builder("sk_0123").with_tier(Tier::Creator).build()?;
//! let route = elevenlabs.voice("Rachel").with_model("eleven_flash_v2_5".into());
//! # Ok::<(), vidgen_core::Error>(())
//! ```
//!
//! # Voices
//! The voice is that of the request, else of the route ([`ElevenLabs::voice`]), else the builder's,
//! else the first of the account's. Each may be an id or a name; names are looked up once in the
//! account's list (`GET /v1/voices`, which ElevenLabs gives up on beyond 500 voices: use ids then).
//!
//! # Extra fields
//! `voice` and `output_format` of a route go where they belong; all others into the body
//! (`voice_settings`, `language_code`, `previous_text`, …).
//!
//! # Lost answers
//! There is neither key nor reference, no callback, nothing to poll and nothing to look a submission
//! up by: where the answer breaks off, the characters are billed and the audio is lost, and the step
//! is in doubt. It is never asked for twice. An answer that is already in the store survives a crash.
//! Each request of a step has the same seed, so that whoever lets a doubt be bought again (by hand, or
//! by [`OnUnknown::Resubmit`](vidgen_core::OnUnknown::Resubmit)) gets the same audio where the model
//! can. ElevenLabs' own history shows what it made, for people.
//!
//! # Money
//! An answer states the credits it costs (`character-cost`), which prices the run. After a crash
//! between the audio and its record that is lost, and the table's price counts.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::digest;
use secrecy::SecretString;
use serde_json::{Map, Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;
use vidgen_core::{
    Body, Callback, Capabilities, Error, ErrorKind, Handle, Lookup, Output, Provider, ProviderId, Result, Route,
    Snapshot, Spool, Submission, SubmissionId, SubmitOptions, Task, TaskSpec, Usage,
};

use crate::client::{Auth, Call, Client, ClientBuilder, Refusal, Verdict, may_be_sound, shared_settings};
use crate::models::ModelTable;

const ORIGIN: &str = "elevenlabs";
const BASE_URL: &str = "https://api.elevenlabs.io/v1";
/// The best that every plan has.
const FORMAT: &str = "mp3_44100_128";
/// Speech is made many times faster than it is spoken: this is for some minutes of it. With what
/// comes before the submit, a graceful stop (75 s) still outlasts it.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(40);
/// A name that is not in the account's list is no reason to ask for the list more often than this.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// What to wait if a 429 does not say: the requests that fill the plan take some seconds each.
const USUAL_WAIT: Duration = Duration::from_secs(5);
/// How long an id is, at least; no name is so long, and one word.
const ID: usize = 20;

/// A client of ElevenLabs.
#[derive(Clone)]
pub struct ElevenLabs {
    id: ProviderId,
    client: Client,
    models: ModelTable,
    voice: Option<String>,
    format: String,
    voices: Arc<Mutex<Option<Voices>>>,
}

/// The account's voices, as it was asked for them.
struct Voices {
    all: Vec<wire::Voice>,
    asked: Instant,
}

/// How many requests a plan may have at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Tier {
    /// 2 at once, and what is assumed if nobody says otherwise.
    #[default]
    Free,
    /// 3 at once.
    Starter,
    /// 5 at once.
    Creator,
    /// 10 at once.
    Pro,
    /// 15 at once.
    Scale,
    /// 15 at once.
    Business,
}

impl Tier {
    /// How many requests it may have at once.
    #[must_use]
    pub fn concurrency(self) -> usize {
        match self {
            Self::Free => 2,
            Self::Starter => 3,
            Self::Creator => 5,
            Self::Pro => 10,
            Self::Scale | Self::Business => 15,
        }
    }
}

impl ElevenLabs {
    /// A client with this API key and the well-known models, for the smallest plan.
    ///
    /// # Errors
    /// `Invalid` if it cannot be a key.
    pub fn new(key: impl Into<SecretString>) -> Result<Self> {
        Self::builder(key).build()
    }

    /// A client to be set up further.
    pub fn builder(key: impl Into<SecretString>) -> ElevenLabsBuilder {
        let client = ClientBuilder::new(ORIGIN, BASE_URL, Auth::Header("xi-api-key"))
            .with_api_key(key.into())
            .with_submit_timeout(SUBMIT_TIMEOUT)
            .with_max_live(Tier::default().concurrency())
            .with_judge(judge);
        ElevenLabsBuilder {
            id: ProviderId::new(ORIGIN),
            client,
            models: ModelTable::default(),
            voice: None,
            format: FORMAT.to_owned(),
        }
    }

    /// The well-known models, as they are built in.
    ///
    /// # Errors
    /// Never: a test reads it.
    pub fn known_models() -> Result<ModelTable> {
        ModelTable::from_toml(include_str!("models/elevenlabs.toml"))
    }

    /// A route to this voice, by its name or its id; a request that names a voice overrides it.
    pub fn voice(&self, name_or_id: impl Into<String>) -> Route {
        Route::new(Arc::new(self.clone())).with_extra("voice", name_or_id.into())
    }

    /// Uses another key from now on, in all clones: keys are rotated without a restart.
    ///
    /// # Errors
    /// `Invalid` if it cannot be a key.
    pub fn rotate_key(&self, key: impl Into<SecretString>) -> Result<()> {
        self.client.rotate(&key.into())
    }

    /// The id of a voice by its name or id; without any, that of the account's first.
    async fn voice_id(&self, wish: Option<&str>) -> Result<String> {
        if let Some(wish) = wish.filter(|wish| is_id(wish)) {
            return Ok(wish.to_owned());
        }
        // Held while the list is asked for: whoever wants the same waits for it.
        let mut voices = self.voices.lock().await;
        if let Some(known) = &*voices {
            let picked = pick(&known.all, wish);
            if picked.is_ok() || known.asked.elapsed() < ASK_AGAIN {
                return picked;
            }
        }
        // "Rachel" and others of her time are listed only to those who ask for legacy ones.
        let call = Call::get(["voices"]).with_query("show_legacy", "true");
        let all = self.client.prepare::<wire::Voices>(call).await?.body.voices;
        let picked = pick(&all, wish);
        *voices = Some(Voices { all, asked: Instant::now() });
        picked
    }

    fn unsupported(&self, what: &str) -> Error {
        self.client.error(ErrorKind::Unsupported, what)
    }
}

#[async_trait]
impl Provider for ElevenLabs {
    fn id(&self) -> ProviderId {
        self.id.clone()
    }

    fn capabilities(&self) -> Capabilities {
        self.client.capabilities(&self.models).with_spools()
    }

    async fn submit(&self, task: &Task, options: &SubmitOptions) -> Result<Handle> {
        let entry = self.models.wanted(ORIGIN, task)?;
        let TaskSpec::Speech(speech) = &task.spec else {
            return Err(self.unsupported("it speaks, and does nothing else"));
        };
        let spool = self.client.spool(options)?;
        let mut extra = task.extra.clone();
        let (routed, format) = (take(&mut extra, "voice"), take(&mut extra, "output_format"));
        let format = format.unwrap_or_else(|| self.format.clone());
        if !has_a_head(&format) {
            return Err(self.unsupported("an output_format without a head of its own cannot be told from noise"));
        }
        let wish = speech.voice.as_deref().or(routed.as_deref()).or(self.voice.as_deref());
        let voice = self.voice_id(wish).await?;
        let mut body = entry.body(&task.spec, None, &extra);
        body.entry("model_id").or_insert_with(|| json!(entry.id()));
        body.entry("seed").or_insert_with(|| json!(seed(&options.submission)));
        let call = Call::post(["text-to-speech", &voice]).with_query("output_format", format).with_json(body);
        let answer = match self.client.submit_for_bytes(call).await {
            // The list that named it is out of date.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                *self.voices.lock().await = None;
                return Err(error);
            }
            answer => answer?,
        };
        if !may_be_sound(answer.header("content-type")) {
            return Err(self.client.lost("the answer is no sound"));
        }
        let usage = answer.header("character-cost").and_then(characters);
        let output = self.client.keep(spool, answer.body).await?;
        let handle = Handle::spooled(self.id.clone(), &options.submission, &output);
        Ok(match usage {
            Some(usage) => handle.with_spooled_usage(usage),
            None => handle,
        })
    }

    async fn poll(&self, handle: &Handle) -> Result<Snapshot> {
        handle.spooled_end().ok_or_else(|| self.client.error(ErrorKind::NotFound, "there is no such speech"))
    }

    async fn open(&self, _: &Output) -> Result<Body> {
        Err(self.client.error(ErrorKind::NotFound, "there is no such speech"))
    }

    async fn cancel(&self, _: &Handle) -> Result<()> {
        Err(self.unsupported("it has ended when it is answered"))
    }

    async fn find(&self, _: &Submission) -> Result<Lookup> {
        Err(self.unsupported("it knows no submission"))
    }

    async fn callback(&self, _: &Callback, _: &Spool) -> Result<Handle> {
        Err(self.unsupported("it does not call back"))
    }
}

impl fmt::Debug for ElevenLabs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ElevenLabs").field("id", &self.id).field("client", &self.client).finish_non_exhaustive()
    }
}

/// Sets an [`ElevenLabs`] up. Only [`ElevenLabsBuilder::build`] fails.
#[derive(Clone, Debug)]
pub struct ElevenLabsBuilder {
    id: ProviderId,
    client: ClientBuilder,
    models: ModelTable,
    voice: Option<String>,
    format: String,
}

impl ElevenLabsBuilder {
    shared_settings!();

    /// Has as many requests at once as the plan may; more of them wait their turn here.
    #[must_use]
    pub fn with_tier(self, tier: Tier) -> Self {
        self.with_max_live(tier.concurrency())
    }

    /// Speaks with this voice, by name or id, where neither request nor route names one.
    #[must_use]
    pub fn with_voice(mut self, name_or_id: impl Into<String>) -> Self {
        self.voice = Some(name_or_id.into());
        self
    }

    /// Asks for another format than `mp3_44100_128`: `mp3_…`, `wav_…` or `opus_…`. Some need a
    /// larger plan.
    #[must_use]
    pub fn with_output_format(mut self, format: impl Into<String>) -> Self {
        self.format = format.into();
        self
    }

    /// Builds it.
    ///
    /// # Errors
    /// `Invalid` if key, URL, proxy or format cannot be what they should be; `Internal` if there is
    /// no TLS to be had.
    pub fn build(self) -> Result<ElevenLabs> {
        if !has_a_head(&self.format) {
            return Err(Error::invalid_field("output_format", "must be mp3_…, wav_… or opus_…"));
        }
        Ok(ElevenLabs {
            id: self.id,
            client: self.client.build()?,
            models: ElevenLabs::known_models()?.with_all(self.models),
            voice: self.voice,
            format: self.format,
            voices: Arc::default(),
        })
    }
}

/// What ElevenLabs means by some of its refusals: the word of `detail` says more than the status.
fn judge(refusal: &Refusal) -> Verdict {
    let said = refusal.body.get("detail");
    let word = refusal.text(&["detail", "status"]).or_else(|| refusal.text(&["detail", "code"])).unwrap_or_default();
    let verdict = match (refusal.status, word) {
        // With 401, as if it were the key.
        (400..500, "quota_exceeded") => Verdict::of(ErrorKind::OverBudget),
        (400..500, "voice_not_found") => Verdict::of(ErrorKind::NotFound),
        // It is overloaded, whoever asks: not ours to wait for.
        (429, "system_busy") => Verdict::of(ErrorKind::Unavailable),
        (429, _) if refusal.header("retry-after").is_none() => {
            Verdict::of(ErrorKind::RateLimited).with_wait(Some(USUAL_WAIT))
        }
        // "Too early" and "conflict", in its own words: nothing was made.
        (409 | 425, _) if said.is_some() => Verdict::of(ErrorKind::Unavailable),
        (400 | 403 | 422, word) if is_moderation(word) => Verdict::of(ErrorKind::Refused),
        _ => Verdict::default(),
    };
    // As its framework lists bad fields; elsewhere it is an object or a string.
    match said.and_then(|said| said.get(0)) {
        Some(first) => {
            let name = first.get("loc").and_then(|loc| loc.as_array()?.last()?.as_str()).unwrap_or("body");
            let message = first.get("msg").and_then(Value::as_str).unwrap_or("is wrong");
            verdict.with_reason(format!("{name}: {message}"))
        }
        None => verdict,
    }
}

/// How it calls refused content is unverified.
fn is_moderation(word: &str) -> bool {
    ["policy", "moderat", "prohibited"].iter().any(|part| word.contains(part))
}

/// What tells its own type by its first bytes.
fn has_a_head(format: &str) -> bool {
    ["mp3_", "wav_", "opus_"].iter().any(|codec| format.starts_with(codec))
}

fn is_id(text: &str) -> bool {
    text.len() >= ID && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// The voice that a name or an id means: `Rachel`, or `Rachel` of `Rachel - Calm, Young`.
fn pick(voices: &[wire::Voice], wish: Option<&str>) -> Result<String> {
    let error = |what: &str| Error::new(ErrorKind::NotFound, ORIGIN, what.to_owned());
    let Some(wish) = wish else {
        let first = voices.first().map(|voice| voice.voice_id.clone());
        return first.ok_or_else(|| error("the account has no voice"));
    };
    let named = |name: &str| name.trim().to_lowercase() == wish.trim().to_lowercase();
    let full = |voice: &wire::Voice| voice.voice_id == wish || named(&voice.name);
    let short = |voice: &wire::Voice| voice.name.split_once(" - ").is_some_and(|(name, _)| named(name));
    let mut found: Vec<&wire::Voice> = voices.iter().filter(|voice| full(voice)).collect();
    if found.is_empty() {
        found = voices.iter().filter(|voice| short(voice)).collect();
    }
    match found.as_slice() {
        [voice] => Ok(voice.voice_id.clone()),
        [] => Err(error("the account has no voice of that name").with_quote(wish)),
        _ => Err(error("the account has several voices of that name; give an id").with_quote(wish)),
    }
}

/// The same for each submission of a step, so that the same audio is made again, where the model can.
fn seed(submission: &SubmissionId) -> u32 {
    let step = submission.as_str().rsplit_once('_').map_or("", |(step, _)| step);
    let hash = digest::digest(&digest::SHA256, step.as_bytes());
    hash.as_ref().iter().take(4).fold(0, |seed, byte| seed << 8 | u32::from(*byte))
}

/// What was billed, in credits; a part of one counts.
fn characters(cost: &str) -> Option<Usage> {
    let cost: f64 = cost.trim().parse().ok()?;
    // No answer costs more than that; beyond it, this is no cost.
    (0.0..1e9).contains(&cost).then(|| Usage::Characters(cost.ceil() as u64))
}

fn take(extra: &mut Map<String, Value>, name: &str) -> Option<String> {
    extra.remove(name)?.as_str().map(str::to_owned)
}

/// What it sends; only the fields that are read.
mod wire {
    use serde::Deserialize;

    #[derive(Deserialize)]
    pub(super) struct Voices {
        pub(super) voices: Vec<Voice>,
    }

    #[derive(Deserialize)]
    pub(super) struct Voice {
        pub(super) voice_id: String,
        #[serde(default)]
        pub(super) name: String,
    }
}
