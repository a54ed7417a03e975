//! ElevenLabs' text to speech, as its clients and its documentation have it (facts as of 2026-11,
//! from PyPI `elevenlabs` 2.78.0 and elevenlabs.io's docs): the answer to the POST is the audio.
//!
//! It is stricter than the original: fields that the documentation does not have are refused.
//! Unverified, and so to be switched: whether a 429 has a `Retry-After`
//! ([`ElevenLabs::without_retry_after`]), whether every answer says what it costs
//! ([`ElevenLabs::without_cost`]). How content is refused is from memory.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::Method;
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::{Map, Value, json};
use vidgen_core::{StepKind, Usage};

use super::film::mp3;
use super::ledger::{Asked, Class, Seen};
use super::play::{Course, Refusal};
use super::remote::{Remote, json, whole_seconds, with_header};
use super::{Run, Wish, World};

type Answered = Result<Response, Response>;

/// Voices: id, name, and whether only those see it who ask for legacy ones.
const VOICES: [(&str, &str, bool); 5] = [
    ("LabSarah000000000001", "Sarah - Mature, Reassuring", false),
    ("LabRachel00000000002", "Rachel", true),
    ("LabTwin0000000000003", "Twin - Left", false),
    ("LabTwin0000000000004", "Twin - Right", false),
    ("odd/voice?id", "Odd", false),
];

/// What a body may have.
const FIELDS: [&str; 14] = [
    "text",
    "model_id",
    "language_code",
    "voice_settings",
    "seed",
    "previous_text",
    "next_text",
    "previous_request_ids",
    "next_request_ids",
    "pronunciation_dictionary_locators",
    "apply_text_normalization",
    "apply_language_text_normalization",
    "audio_effects",
    "use_pvc_as_ivc",
];

/// ElevenLabs.
#[derive(Clone, Copy, Debug)]
pub struct ElevenLabs {
    retry_after: bool,
    cost: bool,
}

/// ElevenLabs, whose answers say what they cost.
#[must_use]
pub fn elevenlabs() -> ElevenLabs {
    ElevenLabs { retry_after: true, cost: true }
}

impl ElevenLabs {
    /// Its 429 does not say when to come back.
    #[must_use]
    pub fn without_retry_after(mut self) -> Self {
        self.retry_after = false;
        self
    }

    /// Its answers do not say what they cost.
    #[must_use]
    pub fn without_cost(mut self) -> Self {
        self.cost = false;
        self
    }

    async fn speak(self, world: World, voice: String, seen: &Seen) -> Answered {
        let Value::Object(body) = seen.json() else { return Err(unprocessable("body", "not an object")) };
        let asked = check(&body, &voice, seen)?;
        let characters = asked.characters;
        let wish = Wish::new(StepKind::Speech, asked.model, Value::Object(body)).with_id(new_id());
        let run = world.buy(seen, wish)?;
        // The audio comes when it is made.
        let run = world.wait(&run.id).await?;
        match &run.play.course {
            Course::Succeeds => {}
            Course::Moderated(reason) => return Err(world.refuse(&Refusal::Moderated(reason.clone()))),
            _ => return Err(detail(500, "internal_error", "Something went wrong on our side.")),
        }
        let (sound, seed) = (asked.sound, run.input.get("seed").cloned());
        let response = world.serve_as(&run.id, |run: &Run| match sound {
            Sound::Mp3 { sample_rate, kilobits } => {
                // The same seed, the same sound; another one, another.
                let made_with = format!("lab, seed {}", seed.unwrap_or_else(|| json!(run.id)));
                Some(("audio/mpeg", mp3(run.film.duration, sample_rate, kilobits, &made_with)?))
            }
            Sound::Wav => Some(("audio/wav", run.film.bytes().ok()?)),
        });
        let billed = match run.play.usage {
            Some(Usage::Characters(count)) => count,
            _ => characters,
        };
        let response = with_header(response, "request-id", &run.id);
        let response = with_header(response, "history-item-id", format!("hist{}", run.number));
        Ok(if self.cost { with_header(response, "character-cost", billed.to_string()) } else { response })
    }
}

impl Remote for ElevenLabs {
    fn id(&self) -> &'static str {
        "elevenlabs"
    }

    fn base_path(&self) -> &'static str {
        "/v1"
    }

    fn key(&self) -> String {
        "sk_lab0123456789abcdef0123456789abcdef0123456789".to_owned()
    }

    fn routes(&self) -> Router<World> {
        let this = *self;
        let speak = move |State(world): State<World>, Path(voice): Path<String>, Asked(seen): Asked| async move {
            this.speak(world, voice, &seen).await
        };
        Router::new()
            .route("/v1/text-to-speech/{voice}", post(speak))
            .route("/v1/text-to-speech/{voice}/stream", post(speak))
            .route("/v1/voices", get(voices))
    }

    fn class(&self, method: &Method, path: &str) -> Class {
        if method == Method::POST && path.starts_with("/v1/text-to-speech/") { Class::Submit } else { Class::Read }
    }

    fn admits(&self, seen: &Seen, key: &str) -> bool {
        seen.header("xi-api-key") == Some(key)
    }

    fn refuse(&self, refusal: &Refusal) -> Response {
        match refusal {
            Refusal::RateLimited(delay) => {
                let message = "Too many concurrent requests. Your current subscription is limited to 2.";
                let response = detail(429, "too_many_concurrent_requests", message);
                let response = with_header(response, "current-concurrent-requests", "2");
                let response = with_header(response, "maximum-concurrent-requests", "2");
                let seconds = whole_seconds(*delay).to_string();
                if self.retry_after { with_header(response, "retry-after", seconds) } else { response }
            }
            Refusal::BadKey => detail(401, "invalid_api_key", "Invalid API key"),
            Refusal::NoCredit => {
                let message = "This request exceeds your quota of 10000. You have 5 credits remaining.";
                detail(401, "quota_exceeded", message)
            }
            Refusal::Invalid(reason) => unprocessable("text", reason),
            Refusal::Moderated(reason) => detail(400, "content_against_policy", reason),
            Refusal::NotFound => detail(400, "voice_not_found", "A voice with that id was not found."),
            Refusal::Busy => detail(429, "system_busy", "We are experiencing heavy traffic. Please try again."),
            Refusal::Unavailable => detail(503, "unavailable", "Try again later."),
        }
    }
}

fn detail(status: u16, word: &str, message: &str) -> Response {
    json(status, &json!({ "detail": { "status": word, "message": message } }))
}

fn unprocessable(field: &str, reason: &str) -> Response {
    json(422, &json!({ "detail": [{ "loc": ["body", field], "msg": reason, "type": "value_error" }] }))
}

enum Sound {
    Mp3 { sample_rate: u32, kilobits: u32 },
    Wav,
}

struct Wanted {
    model: String,
    characters: u64,
    sound: Sound,
}

/// What it insists on.
fn check(body: &Map<String, Value>, voice: &str, seen: &Seen) -> Result<Wanted, Response> {
    if let Some(field) = body.keys().find(|field| !FIELDS.contains(&field.as_str())) {
        return Err(unprocessable(field, "extra fields not permitted"));
    }
    if !VOICES.iter().any(|(id, ..)| *id == voice) {
        return Err(detail(400, "voice_not_found", &format!("A voice with voice_id {voice} was not found.")));
    }
    let text = body.get("text").and_then(Value::as_str).filter(|text| !text.trim().is_empty());
    let Some(text) = text else { return Err(unprocessable("text", "field required")) };
    let model = body.get("model_id").map_or(Some("eleven_multilingual_v2"), Value::as_str);
    let Some(model) = model.filter(|model| model.starts_with("eleven_")) else {
        return Err(unprocessable("model_id", "no such model"));
    };
    let limit = match model {
        "eleven_flash_v2_5" | "eleven_turbo_v2_5" => 40_000,
        "eleven_flash_v2" | "eleven_turbo_v2" => 30_000,
        _ => 10_000,
    };
    let count = text.chars().count();
    if count > limit {
        let message = format!("This request's text has {count} characters and exceeds the character limit of {limit}.");
        return Err(detail(400, "max_character_limit_exceeded", &message));
    }
    if body.get("seed").is_some_and(|seed| seed.as_u64().is_none_or(|seed| seed > u64::from(u32::MAX))) {
        return Err(unprocessable("seed", "ensure this value is less than or equal to 4294967295"));
    }
    let format = seen.query("output_format").unwrap_or_else(|| "mp3_44100_128".to_owned());
    let mut parts = format.split('_');
    let sound = match (parts.next(), parts.next().map(str::parse), parts.next().map(str::parse)) {
        (Some("mp3"), Some(Ok(sample_rate)), Some(Ok(kilobits))) => Sound::Mp3 { sample_rate, kilobits },
        (Some("wav"), Some(Ok::<u32, _>(_)), None) => Sound::Wav,
        _ => return Err(unprocessable("output_format", "the lab makes mp3 and wav only")),
    };
    Ok(Wanted { model: model.to_owned(), characters: u64::try_from(count).unwrap_or(u64::MAX), sound })
}

fn new_id() -> String {
    uuid::Uuid::new_v4().simple().to_string().chars().take(20).collect()
}

async fn voices(Asked(seen): Asked) -> Response {
    let legacy = seen.query("show_legacy").as_deref() == Some("true");
    let shown = VOICES.iter().filter(|(.., is_legacy)| legacy || !is_legacy);
    let voices: Vec<Value> = shown
        .map(|(id, name, is_legacy)| {
            json!({ "voice_id": id, "name": name, "category": "premade", "labels": {}, "is_legacy": is_legacy })
        })
        .collect();
    json(200, &json!({ "voices": voices }))
}
