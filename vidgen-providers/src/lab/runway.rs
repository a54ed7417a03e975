//! Runway's task API, as its clients and its documentation have it (facts as of 2026-11, from PyPI
//! `runwayml` 5.24.0 and docs.dev.runwayml.com): strict about fields, ratios and lengths, each model
//! for itself.
//!
//! Unverified, and so to be switched: whether a canceled task can still be looked at
//! ([`Runway::forgetting_canceled`]), whether a 429 has a `Retry-After`
//! ([`Runway::without_retry_after`]). What it says to an empty account is from memory.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::Method;
use axum::response::Response;
use axum::routing::{get, post};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use vidgen_core::{StepKind, Usage};

use super::ledger::{Asked, Class, Seen};
use super::play::{Course, Failure, Refusal};
use super::remote::{Remote, has_key, json, typed, whole_seconds, with_header};
use super::{Phase, Run, Stopped, Wish, World};

type Answered = Result<Response, Response>;

const VERSION: &str = "2024-11-06";
/// The longest data URI.
const MAX_URI: usize = 5 * 1024 * 1024;
/// The longest text, in UTF-16 code units.
const MAX_TEXT: usize = 1000;
/// Where the form of an upload goes: somebody else's storage.
const BUCKET: &str = "/bucket";

const SIX: &[&str] = &["1280:720", "720:1280", "1104:832", "960:960", "832:1104", "1584:672"];
const VEO: &[&str] = &["1280:720", "720:1280", "1080:1920", "1920:1080"];
const IMAGE: &[&str] = &[
    "1024:1024",
    "1080:1080",
    "1168:880",
    "1360:768",
    "1440:1080",
    "1080:1440",
    "1808:768",
    "1920:1080",
    "1080:1920",
    "2112:912",
    "1280:720",
    "720:1280",
    "720:720",
    "960:720",
    "720:960",
    "1680:720",
];

/// One of the models, at one of the paths.
struct Model {
    path: &'static str,
    name: &'static str,
    ratios: &'static [&'static str],
    lengths: &'static [u64],
    required: &'static [&'static str],
    optional: &'static [&'static str],
    /// For a second, or for a picture.
    credits: u64,
}

const TO_TEN: &[u64] = &[2, 3, 4, 5, 6, 7, 8, 9, 10];

const MODELS: [Model; 8] = [
    Model {
        path: "image_to_video",
        name: "gen4.5",
        ratios: SIX,
        lengths: TO_TEN,
        required: &["duration", "promptImage", "promptText", "ratio"],
        optional: &["contentModeration", "outputFormat", "seed"],
        credits: 12,
    },
    Model {
        path: "text_to_video",
        name: "gen4.5",
        ratios: &["1280:720", "720:1280"],
        lengths: TO_TEN,
        required: &["duration", "promptText", "ratio"],
        optional: &["contentModeration", "outputFormat", "seed"],
        credits: 12,
    },
    Model {
        path: "image_to_video",
        name: "gen4_turbo",
        ratios: SIX,
        lengths: TO_TEN,
        required: &["promptImage", "ratio"],
        optional: &["contentModeration", "duration", "promptText", "seed"],
        credits: 5,
    },
    Model {
        path: "image_to_video",
        name: "veo3.1",
        ratios: VEO,
        lengths: &[4, 6, 8],
        required: &["promptImage", "ratio"],
        optional: &["audio", "duration", "negativePrompt", "promptText", "seed"],
        credits: 40,
    },
    Model {
        path: "text_to_video",
        name: "veo3.1",
        ratios: VEO,
        lengths: &[4, 6, 8],
        required: &["promptText", "ratio"],
        optional: &["audio", "duration", "negativePrompt", "seed"],
        credits: 40,
    },
    Model {
        path: "image_to_video",
        name: "veo3.1_fast",
        ratios: VEO,
        lengths: &[4, 6, 8],
        required: &["promptImage", "ratio"],
        optional: &["audio", "duration", "negativePrompt", "promptText", "seed"],
        credits: 15,
    },
    Model {
        path: "text_to_video",
        name: "veo3.1_fast",
        ratios: VEO,
        lengths: &[4, 6, 8],
        required: &["promptText", "ratio"],
        optional: &["audio", "duration", "negativePrompt", "seed"],
        credits: 15,
    },
    Model {
        path: "text_to_image",
        name: "gen4_image",
        ratios: IMAGE,
        lengths: &[],
        required: &["promptText", "ratio"],
        optional: &["contentModeration", "referenceImages", "seed"],
        credits: 8,
    },
];

/// Runway.
#[derive(Clone, Copy, Debug)]
pub struct Runway {
    shows_canceled: bool,
    retry_after: bool,
}

/// Runway, which shows canceled tasks as such.
#[must_use]
pub fn runway() -> Runway {
    Runway { shows_canceled: true, retry_after: true }
}

impl Runway {
    /// A canceled task cannot be looked at any more.
    #[must_use]
    pub fn forgetting_canceled(mut self) -> Self {
        self.shows_canceled = false;
        self
    }

    /// Its 429 does not say when to come back.
    #[must_use]
    pub fn without_retry_after(mut self) -> Self {
        self.retry_after = false;
        self
    }

    fn remove(self, world: &World, id: &str) -> Answered {
        match world.cancel(id)? {
            Stopped::Yes(run) if self.shows_canceled || !run.ended() => {}
            // What has ended is deleted, with its output.
            Stopped::Yes(_) | Stopped::TooLate(_) => world.delete(id),
        }
        Ok(typed(204, "application/json", ""))
    }
}

impl Remote for Runway {
    fn id(&self) -> &'static str {
        "runway"
    }

    fn base_path(&self) -> &'static str {
        "/v1"
    }

    fn key(&self) -> String {
        "key_lab0123456789abcdef0123456789abcdef".to_owned()
    }

    fn routes(&self) -> Router<World> {
        let this = *self;
        let remove = move |State(world): State<World>, Path(id): Path<String>| async move { this.remove(&world, &id) };
        Router::new()
            .route("/v1/image_to_video", post(create))
            .route("/v1/text_to_video", post(create))
            .route("/v1/text_to_image", post(create))
            .route("/v1/tasks/{id}", get(task).delete(remove))
            .route("/v1/uploads", post(begin_upload))
            .route("/bucket/{id}", post(take_upload))
    }

    fn class(&self, method: &Method, path: &str) -> Class {
        match *method {
            Method::DELETE => Class::Cancel,
            Method::POST if path == "/v1/uploads" || path.starts_with(BUCKET) => Class::Upload,
            Method::POST => Class::Submit,
            _ => Class::Read,
        }
    }

    fn admits(&self, seen: &Seen, key: &str) -> bool {
        // Storage has a policy of its own in the form, and refuses whoever shows another paper.
        if seen.path().starts_with(BUCKET) {
            return seen.header("authorization").is_none();
        }
        has_key(seen, "Bearer", key)
    }

    fn refuse(&self, refusal: &Refusal) -> Response {
        match refusal {
            Refusal::RateLimited(delay) => {
                let response = error(429, "You have exceeded your daily generation limit for this model.");
                let seconds = whole_seconds(*delay).to_string();
                if self.retry_after { with_header(response, "retry-after", seconds) } else { response }
            }
            Refusal::BadKey => error(401, "The provided API key is not valid."),
            Refusal::NoCredit => error(400, "You do not have enough credits to run this task."),
            Refusal::Invalid(reason) | Refusal::Moderated(reason) => error(400, reason),
            Refusal::NotFound => error(404, "The requested resource could not be found."),
            Refusal::Busy => error(429, "Too many requests."),
            Refusal::Unavailable => error(503, "Service unavailable."),
        }
    }
}

fn error(status: u16, reason: &str) -> Response {
    json(status, &json!({ "error": reason }))
}

fn invalid(field: &str, reason: &str) -> Response {
    error(400, &format!("Validation of body failed: {field} {reason}"))
}

/// Every call needs the version of the API that it speaks.
fn versioned(seen: &Seen) -> Result<(), Response> {
    match seen.header("x-runway-version") {
        Some(VERSION) => Ok(()),
        _ => Err(error(400, "The X-Runway-Version header is missing or names no version.")),
    }
}

async fn create(State(world): State<World>, Asked(seen): Asked) -> Answered {
    versioned(&seen)?;
    let path = seen.path().trim_start_matches("/v1/").to_owned();
    let Value::Object(body) = seen.json() else { return Err(invalid("body", "must be an object")) };
    let named = body.get("model").and_then(Value::as_str);
    let model = MODELS.iter().find(|model| model.path == path && Some(model.name) == named);
    let Some(model) = model else { return Err(invalid("model", "is none that this path has")) };
    let asset_is_bad = check(model, &body, &world)?;
    let kind = if path == "text_to_image" { StepKind::Image } else { StepKind::Video };
    let seconds = body.get("duration").and_then(Value::as_u64).unwrap_or(if kind == StepKind::Image { 1 } else { 5 });
    let credits = model.credits.saturating_mul(seconds);
    let mut wish = Wish::new(kind, model.name, Value::Object(body)).with_extra(json!(credits));
    if asset_is_bad {
        let failure =
            Failure { code: Some("ASSET.INVALID".to_owned()), text: "The asset could not be read.".to_owned() };
        wish = wish.with_course(Some(Course::Fails(failure)));
    }
    let run = world.buy(&seen, wish)?;
    Ok(json(200, &json!({ "id": run.id, "estimatedCost": { "credits": credits } })))
}

/// What the model insists on; answers whether its image turns out to be none.
fn check(model: &Model, body: &Map<String, Value>, world: &World) -> Result<bool, Response> {
    let known = |field: &str| field == "model" || model.required.contains(&field) || model.optional.contains(&field);
    if let Some(field) = body.keys().find(|field| !known(field)) {
        return Err(invalid(field, "is not a field of this model"));
    }
    if let Some(field) = model.required.iter().find(|field| !body.contains_key(**field)) {
        return Err(invalid(field, "is required"));
    }
    let text = |field: &str| body.get(field).map(|value| value.as_str());
    if text("ratio").is_some_and(|ratio| ratio.is_none_or(|ratio| !model.ratios.contains(&ratio))) {
        return Err(invalid("ratio", "is none that this model has"));
    }
    let length = body.get("duration").map(|value| value.as_u64());
    if length.is_some_and(|length| length.is_none_or(|length| !model.lengths.contains(&length))) {
        return Err(invalid("duration", "is none that this model has"));
    }
    let fits = |text: &str| !text.is_empty() && text.encode_utf16().count() <= MAX_TEXT;
    if text("promptText").is_some_and(|text| !text.is_some_and(fits)) {
        return Err(invalid("promptText", "must have 1 to 1000 UTF-16 code units"));
    }
    if body.get("seed").is_some_and(|seed| seed.as_u64().is_none_or(|seed| seed > u64::from(u32::MAX))) {
        return Err(invalid("seed", "must be from 0 to 4294967295"));
    }
    let uri = match body.get("promptImage") {
        None => return Ok(false),
        Some(Value::String(uri)) => uri.as_str(),
        Some(Value::Array(all)) => all.first().and_then(|one| one.get("uri")?.as_str()).unwrap_or_default(),
        Some(_) => "",
    };
    match uri.split_once(':') {
        Some(("https", _)) => Ok(false),
        Some(("data", rest)) if rest.starts_with("image/") && uri.len() <= MAX_URI => Ok(false),
        Some(("data", _)) => Err(invalid("promptImage", "must be an image of at most 5 MB")),
        Some(("runway", id)) => {
            let upload = world.upload(id.trim_start_matches("//uploads/"));
            Ok(upload.ok_or_else(|| invalid("promptImage", "is no upload"))?.bytes.is_empty())
        }
        _ => Err(invalid("promptImage", "must be a https, data or runway URI")),
    }
}

async fn task(State(world): State<World>, Path(id): Path<String>, Asked(seen): Asked) -> Answered {
    versioned(&seen)?;
    let run = world.look(&id)?;
    Ok(json(200, &show(&world, &run)))
}

fn show(world: &World, run: &Run) -> Value {
    let estimate = run.extra.as_u64().unwrap_or_default();
    let stated = match run.play.usage {
        Some(Usage::MilliUnits(units)) => Some(units / 1000),
        _ => None,
    };
    let mut shown = json!({ "id": run.id, "createdAt": run.created_at });
    let failed = |failure: Failure| {
        let code = failure.code.unwrap_or_else(|| "INTERNAL".to_owned());
        json!({ "status": "FAILED", "failure": failure.text, "failureCode": code, "cost": { "credits": stated.unwrap_or_default() } })
    };
    let estimated = json!({ "credits": estimate });
    let more = match run.phase() {
        Phase::Queued => json!({ "status": "PENDING", "estimatedCost": estimated }),
        // Accepted, but more than the tier may have at once.
        Phase::Running(_) if run.looks <= 1 => json!({ "status": "THROTTLED", "estimatedCost": estimated }),
        Phase::Running(done) => json!({ "status": "RUNNING", "progress": done, "estimatedCost": estimated }),
        Phase::Unknown => json!({ "status": "RETICULATING" }),
        Phase::Succeeded => {
            // Signed anew at each look.
            let url = format!("{}?_jwt={}", world.output_url(run), run.looks);
            json!({ "status": "SUCCEEDED", "output": [url], "cost": { "credits": stated.unwrap_or(estimate) } })
        }
        Phase::Failed(failure) => failed(failure),
        Phase::Moderated(text) => failed(Failure { code: Some("SAFETY.INPUT.TEXT".to_owned()), text }),
        Phase::Aborted => failed(Failure { code: None, text: "An internal error occurred.".to_owned() }),
        // Whether anything is refunded depends on what the server saw when it was asked: nothing, here.
        Phase::Canceled => json!({ "status": "CANCELLED", "cost": { "credits": stated.unwrap_or(estimate) } }),
    };
    if let (Some(shown), Value::Object(more)) = (shown.as_object_mut(), more) {
        shown.extend(more);
    }
    shown
}

async fn begin_upload(State(world): State<World>, Asked(seen): Asked) -> Answered {
    versioned(&seen)?;
    let body = seen.json();
    let Some(name) = body.get("filename").and_then(Value::as_str) else {
        return Err(invalid("filename", "is required"));
    };
    if body.get("type").and_then(Value::as_str) != Some("ephemeral") {
        return Err(invalid("type", "must be ephemeral"));
    }
    let kept = world.keep(name, "application/octet-stream", Bytes::new());
    Ok(json(
        200,
        &json!({
            "uploadUrl": format!("{}{BUCKET}/{}", world.0.outputs, kept.id),
            "fields": { "key": kept.id, "policy": "eyJsYWIiOjF9", "x-amz-signature": "c0ffee" },
            "runwayUri": format!("runway://uploads/{}", kept.id),
        }),
    ))
}

/// The form of S3: the fields that were given, and the file last.
async fn take_upload(State(world): State<World>, Path(id): Path<String>, Asked(seen): Asked) -> Answered {
    let mut form = seen.form().await;
    let file = form.pop().filter(|field| field.name == "file" && field.file_name.is_some());
    let given = |name: &str, value: &str| form.iter().any(|field| field.name == name && field.text() == value);
    match file {
        Some(file) if given("key", &id) && given("policy", "eyJsYWIiOjF9") && given("x-amz-signature", "c0ffee") => {
            world.fill(&id, file.bytes);
            Ok(typed(204, "application/xml", ""))
        }
        _ => Ok(typed(403, "application/xml", "<Error><Code>AccessDenied</Code></Error>")),
    }
}
