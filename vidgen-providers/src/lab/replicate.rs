//! Replicate, as its clients and its documentation have it (facts as of 2026-11).
//!
//! Unverified, and so to be switched: whether the list echoes webhook URLs
//! ([`Replicate::without_webhooks_in_lists`]), whether a 429 has a `Retry-After` beside its text
//! ([`Replicate::without_retry_after`]). A `Cancel-After` is checked and shown; what becomes of it is a
//! play's to say ([`Play::aborts`](super::Play::aborts)). The bodies of 401, 404 and 422 are from memory.

use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::Method;
use axum::response::Response;
use axum::routing::{get, post};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use uuid::Uuid;
use vidgen_core::clock::{later, until};
use vidgen_core::{StepKind, Usage};

use super::ledger::{Asked, Class, Seen};
use super::play::Refusal;
use super::remote::{Remote, Signed, has_key, json, standard_webhook, whole_seconds, with_header};
use super::run::{Phase, Run, Wish};
use super::world::{Stopped, Upload, World};

type Answered = Result<Response, Response>;

/// How many predictions a page of the list has.
const PAGE: usize = 100;
/// After this long an API prediction's input, output, files and logs are deleted.
const DATA_LIFE: Duration = Duration::from_secs(3600);
/// The shortest `Cancel-After`.
const SHORTEST_DEADLINE: Duration = Duration::from_secs(5);
const UPLOAD_LIFE: Duration = Duration::from_secs(24 * 3600);
/// What a prediction takes, if the play does not say.
const PREDICT_TIME: Duration = Duration::from_millis(41_200);
const WEBHOOK_SECRET: &str = "whsec_dmlkZ2VuIGxhYiByZXBsaWNhdGUgc2VjcmV0IDAx";

/// Replicate.
#[derive(Clone, Copy, Debug)]
pub struct Replicate {
    webhooks_in_lists: bool,
    retry_after: bool,
}

/// Replicate, whose lists echo webhook URLs.
#[must_use]
pub fn replicate() -> Replicate {
    Replicate { webhooks_in_lists: true, retry_after: true }
}

impl Replicate {
    /// Its lists do not echo webhook URLs, so that a submission can be known by its input only.
    #[must_use]
    pub fn without_webhooks_in_lists(mut self) -> Self {
        self.webhooks_in_lists = false;
        self
    }

    /// Its 429 says when to come back in its text only.
    #[must_use]
    pub fn without_retry_after(mut self) -> Self {
        self.retry_after = false;
        self
    }

    fn list(self, world: &World, seen: &Seen) -> Answered {
        let time = |name: &str| seen.query(name).and_then(|text| text.parse::<Timestamp>().ok());
        let (after, before) = (time("created_after"), time("created_before"));
        let runs = world.list()?.into_iter().filter(|run| {
            after.is_none_or(|after| run.created_at >= after) && before.is_none_or(|before| run.created_at < before)
        });
        // The cursor is the number of the last run of the page before.
        let last: Option<u64> = seen.query("cursor").and_then(|cursor| cursor.parse().ok());
        let mut page: Vec<Run> = runs.filter(|run| last.is_none_or(|last| run.number < last)).take(PAGE + 1).collect();
        let more = page.len() > PAGE;
        page.truncate(PAGE);
        let next = page.last().filter(|_| more).map(|run| {
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            for name in ["created_after", "created_before"] {
                seen.query(name).map(|value| query.append_pair(name, &value));
            }
            query.append_pair("cursor", &run.number.to_string());
            format!("{}/predictions?{}", world.base_url(), query.finish())
        });
        let results: Vec<Value> = page
            .iter()
            .map(|run| {
                let mut shown = show(world, run);
                if let (false, Some(shown)) = (self.webhooks_in_lists, shown.as_object_mut()) {
                    shown.remove("webhook");
                    shown.remove("webhook_events_filter");
                }
                shown
            })
            .collect();
        Ok(json(200, &json!({ "next": next, "previous": null, "results": results })))
    }
}

impl Remote for Replicate {
    fn id(&self) -> &'static str {
        "replicate"
    }

    fn base_path(&self) -> &'static str {
        "/v1"
    }

    fn key(&self) -> String {
        "r8_LabKey0123456789abcdefghijklmnopqrstu".to_owned()
    }

    fn routes(&self) -> Router<World> {
        let this = *self;
        let list = move |State(world): State<World>, Asked(seen): Asked| async move { this.list(&world, &seen) };
        Router::new()
            .route("/v1/predictions", get(list).post(create_version))
            .route("/v1/models/{owner}/{name}/predictions", post(create_official))
            .route("/v1/deployments/{owner}/{name}/predictions", post(create_deployment))
            .route("/v1/predictions/{id}", get(prediction))
            .route("/v1/predictions/{id}/cancel", post(cancel))
            .route("/v1/files", post(upload))
            .route("/v1/files/{id}", get(file))
            .route("/v1/webhooks/default/secret", get(async || json(200, &json!({ "key": WEBHOOK_SECRET }))))
            .route("/v1/account", get(account))
            .route("/v1/models/{owner}/{name}", get(model))
    }

    fn class(&self, method: &Method, path: &str) -> Class {
        match (method == Method::POST, path) {
            (true, path) if path.ends_with("/predictions") => Class::Submit,
            (true, path) if path.ends_with("/cancel") => Class::Cancel,
            (true, "/v1/files") => Class::Upload,
            _ => Class::Read,
        }
    }

    fn admits(&self, seen: &Seen, key: &str) -> bool {
        has_key(seen, "Bearer", key) || has_key(seen, "Token", key)
    }

    fn refuse(&self, refusal: &Refusal) -> Response {
        let problem = |status: u16, title: &str, detail: &str| {
            json(status, &json!({ "title": title, "detail": detail, "status": status }))
        };
        match refusal {
            Refusal::RateLimited(delay) => {
                let seconds = whole_seconds(*delay);
                let detail = format!("Request was throttled. Your rate limit resets in ~{seconds}s.");
                let response = json(429, &json!({ "detail": detail, "status": 429 }));
                if self.retry_after { with_header(response, "retry-after", seconds.to_string()) } else { response }
            }
            Refusal::BadKey => problem(401, "Unauthenticated", "You did not pass a valid authentication token"),
            Refusal::NoCredit => {
                problem(402, "Insufficient credit", "You have insufficient credit to run this model. Go to billing.")
            }
            Refusal::Invalid(reason) => invalid("input", reason),
            Refusal::Moderated(reason) => invalid("input.prompt", &format!("{reason} (E005)")),
            Refusal::NotFound => {
                json(404, &json!({ "detail": "The requested resource could not be found.", "status": 404 }))
            }
            Refusal::Busy => problem(429, "Request was throttled", "Your rate limit resets in ~30s."),
            Refusal::Unavailable => problem(503, "Service unavailable", "Try again later."),
        }
    }

    fn output_life(&self) -> Option<Duration> {
        Some(DATA_LIFE)
    }

    fn callback(&self, world: &World, run: &Run) -> Option<Signed> {
        let wants = run.extra.get("webhook_events_filter").and_then(Value::as_array);
        if wants.is_some_and(|events| !events.iter().any(|event| event == "completed")) {
            return None;
        }
        // A resend has the same id.
        let body = show(world, run).to_string();
        Some(standard_webhook(WEBHOOK_SECRET, &format!("msg_{}", run.id), world.now(), body.into()))
    }
}

fn invalid(field: &str, reason: &str) -> Response {
    let detail = format!("- {field}: {reason}\n");
    let fields = json!([{ "type": "invalid", "field": field, "description": reason }]);
    json(422, &json!({ "title": "Input validation failed", "detail": detail, "status": 422, "invalid_fields": fields }))
}

async fn create_official(
    State(world): State<World>,
    Path((owner, name)): Path<(String, String)>,
    Asked(seen): Asked,
) -> Answered {
    create(&world, &seen, &format!("{owner}/{name}"), &["input", "webhook", "webhook_events_filter", "stream"])
}

async fn create_deployment(
    State(world): State<World>,
    Path((owner, name)): Path<(String, String)>,
    Asked(seen): Asked,
) -> Answered {
    create(&world, &seen, &format!("{owner}/{name}"), &["input", "webhook", "webhook_events_filter", "stream"])
}

async fn create_version(State(world): State<World>, Asked(seen): Asked) -> Answered {
    let body = seen.json();
    let Some(version) = body.get("version").and_then(Value::as_str) else {
        return Err(invalid("version", "version is required"));
    };
    let id = version.rsplit(':').next().unwrap_or_default();
    let is_id = id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_id && (version.contains(':') || !version.contains('/')) {
        return Err(invalid(
            "version",
            "The specified version does not exist (or perhaps you don't have permission to use it?)",
        ));
    }
    create(&world, &seen, version, &["version", "input", "webhook", "webhook_events_filter", "stream"])
}

fn create(world: &World, seen: &Seen, model: &str, allowed: &[&str]) -> Answered {
    let Value::Object(body) = seen.json() else { return Err(invalid("body", "must be a JSON object")) };
    if let Some(field) = body.keys().find(|field| !allowed.contains(&field.as_str())) {
        return Err(invalid(field, "Additional property is not allowed"));
    }
    let Some(Value::Object(input)) = body.get("input") else { return Err(invalid("input", "input is required")) };
    if model.contains("no-such") {
        return Err(world.refuse(&Refusal::NotFound));
    }
    check(model, input)?;
    let deadline = match seen.header("cancel-after").map(duration) {
        Some(Some(after)) if after >= SHORTEST_DEADLINE => Some(later(world.now(), after)),
        None => None,
        _ => return Err(invalid("Cancel-After", "must be a duration of at least 5 seconds")),
    };
    let kind = kind(model);
    let mut kept = body.clone();
    kept.insert("deadline".to_owned(), json!(deadline));
    let wish = Wish::new(kind, model, Value::Object(input.clone()))
        .with_id(new_id())
        .with_callback(body.get("webhook").and_then(Value::as_str))
        .with_extra(Value::Object(kept));
    let run = world.buy(seen, wish)?;
    let shown = show(world, &run);
    let location = shown.pointer("/urls/get").and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok(with_header(json(201, &shown), "location", location))
}

/// `90s`, `1h30m45s`, or a number of seconds.
fn duration(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let (mut total, mut number) = (0_u64, String::new());
    for c in text.chars() {
        let unit = match c {
            'h' => 3600,
            'm' => 60,
            's' => 1,
            digit => {
                number.push(digit);
                continue;
            }
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
        number.clear();
    }
    number.is_empty().then_some(Duration::from_secs(total))
}

/// What the known models insist on.
fn check(model: &str, input: &Map<String, Value>) -> Result<(), Response> {
    let name = model.split(':').next().unwrap_or(model);
    let required: &[&str] = match name {
        "stability-ai/sdxl" | "meta/musicgen" | "zsxkib/mmaudio" => &[],
        "wan-video/wan-2.5-i2v" | "wan-video/wan-2.2-i2v-fast" => &["prompt", "image"],
        name if kind(name) == StepKind::Speech => &["text"],
        name if name.contains('/') => &["prompt"],
        _ => &[],
    };
    match required.iter().find(|field| !input.contains_key(**field)) {
        Some(field) => Err(invalid("input", &format!("{field} is required"))),
        None => Ok(()),
    }
}

/// What kind of thing a model makes, by its name.
fn kind(model: &str) -> StepKind {
    let has = |words: &[&str]| words.iter().any(|word| model.contains(word));
    if has(&["flux", "sdxl", "image", "imagen", "seedream"]) && !has(&["i2v", "image-to-video"]) {
        StepKind::Image
    } else if has(&["speech", "tts", "kokoro", "musicgen", "mmaudio"]) {
        StepKind::Speech
    } else {
        StepKind::Video
    }
}

/// 26 lower-case characters.
fn new_id() -> String {
    let mut bits = Uuid::new_v4().as_u128();
    let mut id = String::new();
    for _ in 0..26 {
        let digit = u32::try_from(bits & 31).unwrap_or_default();
        id.extend(char::from_digit(digit, 32));
        bits >>= 5;
    }
    id
}

fn show(world: &World, run: &Run) -> Value {
    let base = world.base_url();
    let removed = run.ended_at.is_some_and(|end| until(end, world.now()) > DATA_LIFE);
    let (status, error) = match run.phase() {
        Phase::Queued => ("starting", None),
        Phase::Running(_) => ("processing", None),
        Phase::Unknown => ("reticulating", None),
        Phase::Succeeded => ("succeeded", None),
        Phase::Failed(failure) => (
            "failed",
            Some(match failure.code {
                Some(code) => format!("{} ({code})", failure.text),
                None => failure.text,
            }),
        ),
        Phase::Moderated(reason) => ("failed", Some(format!("{reason} (E005)"))),
        Phase::Aborted => ("aborted", None),
        Phase::Canceled => ("canceled", None),
    };
    let output = match run.phase() {
        Phase::Succeeded if !removed => {
            let url = world.output_url(run);
            let list = ["flux-schnell", "sdxl"].iter().any(|name| run.model.contains(name));
            if list { json!([url]) } else { json!(url) }
        }
        _ => Value::Null,
    };
    let predict_time = match run.play.usage {
        Some(Usage::Compute(time)) => time,
        _ => PREDICT_TIME,
    };
    let (metrics, completed_at) = match run.ended_at {
        // Aborted before it began: nothing was computed, and nothing is billed.
        Some(at) if status == "aborted" => (json!({}), json!(at)),
        Some(at) => {
            let predict = predict_time.as_secs_f64();
            (json!({ "predict_time": predict, "total_time": predict + 2.8 }), json!(at))
        }
        None => (json!({}), Value::Null),
    };
    let started_at = if matches!(status, "starting" | "aborted") { Value::Null } else { json!(run.created_at) };
    let model = run.model.split(':').next().unwrap_or(&run.model);
    let version = run.model.rsplit_once(':').map_or("hidden", |(_, id)| id);
    let mut shown = json!({
        "id": run.id, "model": model, "version": version, "status": status,
        "input": if removed { json!({}) } else { run.input.clone() },
        "output": output, "error": error, "source": "api", "data_removed": removed,
        "logs": if removed || status == "starting" { String::new() } else { logs(run) },
        "created_at": run.created_at, "started_at": started_at, "completed_at": completed_at, "metrics": metrics,
        "urls": {
            "get": format!("{base}/predictions/{}", run.id),
            "cancel": format!("{base}/predictions/{}/cancel", run.id),
            "web": format!("https://replicate.com/p/{}", run.id),
        },
    });
    if let Some(shown) = shown.as_object_mut() {
        for field in ["webhook", "webhook_events_filter", "deadline"] {
            if let Some(value) = run.extra.get(field) {
                shown.insert(field.to_owned(), value.clone());
            }
        }
    }
    shown
}

/// Progress as tqdm writes it; there is no field for it.
fn logs(run: &Run) -> String {
    let done = match run.phase() {
        Phase::Running(done) => done,
        Phase::Succeeded => 1.0,
        _ => return "Using seed: 42\n".to_owned(),
    };
    let percent = (done * 100.0).round();
    format!("Using seed: 42\n{percent:3}%|█████     | {}/50 [00:01<00:03, 12.5it/s]\n", (done * 50.0).round())
}

async fn prediction(State(world): State<World>, Path(id): Path<String>) -> Answered {
    let run = world.look(&id)?;
    Ok(json(200, &show(&world, &run)))
}

async fn cancel(State(world): State<World>, Path(id): Path<String>) -> Answered {
    // One that ended is answered as it is.
    let (Stopped::Yes(run) | Stopped::TooLate(run)) = world.cancel(&id)?;
    Ok(json(200, &show(&world, &run)))
}

async fn upload(State(world): State<World>, Asked(seen): Asked) -> Answered {
    let form = seen.form().await;
    let Some(content) = form.into_iter().find(|field| field.name == "content" && field.file_name.is_some()) else {
        return Err(invalid("content", "Missing content"));
    };
    let content_type = content.content_type.unwrap_or_else(|| "application/octet-stream".to_owned());
    let kept = world.keep(content.file_name.unwrap_or_default(), content_type, content.bytes);
    Ok(json(201, &show_file(&world, &kept)))
}

async fn file(State(world): State<World>, Path(id): Path<String>) -> Answered {
    let kept = world.upload(&id).ok_or_else(|| world.refuse(&Refusal::NotFound))?;
    Ok(json(200, &show_file(&world, &kept)))
}

fn show_file(world: &World, file: &Upload) -> Value {
    let expires = later(world.now(), UPLOAD_LIFE);
    json!({
        "id": file.id, "name": file.name, "content_type": file.content_type, "size": file.bytes.len(), "metadata": {},
        "created_at": world.now(), "expires_at": expires,
        "urls": { "get": format!("{}/files/{}", world.base_url(), file.id) },
    })
}

async fn account() -> Response {
    json(200, &json!({ "type": "organization", "username": "lab", "name": "Lab", "github_url": null }))
}

async fn model(Path((owner, name)): Path<(String, String)>) -> Response {
    json(200, &json!({ "owner": owner, "name": name, "visibility": "public", "latest_version": null }))
}
