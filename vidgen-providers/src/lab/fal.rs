//! fal, as its clients and its documentation have it (facts as of 2026-11).
//!
//! One origin stands for its hosts: the queue, storage and the JWKS are at the base URL, the
//! platform API at `/v1` of it.
//!
//! Unverified, and so to be switched: whether the history lists what has not ended
//! ([`Fal::listing_unfinished`]). Unverified, and as the majority has it: a result that is asked for
//! too early is a 400; a canceled request's result is a 499.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use axum::Router;
use axum::extract::{Path, State};
use axum::http::Method;
use axum::response::Response;
use axum::routing::{get, post, put};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde_json::{Value, json};
use vidgen_core::clock::until;
use vidgen_core::{MediaType, StepKind, Usage};

use super::ledger::{Asked, Class, Seen};
use super::play::{Course, Failure, Refusal};
use super::remote::{Remote, Retries, Signed, has_key, json, typed, whole_seconds, with_header};
use super::world::{Phase, Run, Stopped, Wish, World};

type Answered = Result<Response, Response>;

const USER: &str = "lab-user";
/// The history shows so much of the past, unless asked.
const HISTORY: Duration = Duration::from_secs(24 * 3600);
const PAGE: usize = 100;
/// What its platform says, and not the model; only for these is `error_type` in the status.
const PLATFORM: [&str; 11] = [
    "request_timeout",
    "startup_timeout",
    "runner_scheduling_failure",
    "runner_connection_timeout",
    "runner_disconnected",
    "runner_connection_refused",
    "runner_connection_error",
    "runner_incomplete_response",
    "runner_server_error",
    "internal_error",
    "client_cancelled",
];

/// fal. Clones are the same remote.
#[derive(Clone, Debug, Default)]
pub struct Fal {
    /// Which signing key is in use.
    generation: Arc<AtomicU8>,
    unfinished: bool,
}

/// fal, whose history lists what has ended.
#[must_use]
pub fn fal() -> Fal {
    Fal::default()
}

impl Fal {
    /// Its history lists what has not ended, too.
    #[must_use]
    pub fn listing_unfinished(mut self) -> Self {
        self.unfinished = true;
        self
    }

    /// Signs with another key from now on, and publishes that one only.
    pub fn rotate_keys(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    fn pair(&self) -> Option<Ed25519KeyPair> {
        let seed = [self.generation.load(Ordering::SeqCst).wrapping_add(7); 32];
        Ed25519KeyPair::from_seed_unchecked(&seed).ok()
    }

    /// Another key comes first, as in the course of a rotation: no header names the right one.
    fn jwks(&self) -> Response {
        let other = Ed25519KeyPair::from_seed_unchecked(&[200; 32]).ok();
        let keys = [other, self.pair()].into_iter().flatten().map(|pair| {
            let x = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
            json!({ "kty": "OKP", "crv": "Ed25519", "use": "sig", "x": x })
        });
        json(200, &json!({ "keys": keys.collect::<Vec<_>>() }))
    }
}

impl Remote for Fal {
    fn id(&self) -> &'static str {
        "fal"
    }

    fn key(&self) -> String {
        "1ab00000-0000-4000-8000-00000000fa15:0123456789abcdef0123456789abcdef".to_owned()
    }

    fn routes(&self) -> Router<World> {
        let this = self.clone();
        let jwks = move || async move { this.jwks() };
        let unfinished = self.unfinished;
        let history =
            move |State(world): State<World>, Asked(seen): Asked| async move { history(&world, &seen, unfinished) };
        Router::new()
            .route("/.well-known/jwks.json", get(jwks))
            .route("/storage/upload/initiate", post(initiate))
            .route("/storage/put/{id}", put(store))
            .route("/files/lab/{id}/{name}", get(stored))
            .route("/v1/models/requests/by-endpoint", get(history))
            .route("/v1/models/pricing", get(pricing))
            .route("/{*path}", post(submit).get(read).put(cancel))
    }

    fn class(&self, method: &Method, path: &str) -> Class {
        match method.as_str() {
            "PUT" if path.ends_with("/cancel") => Class::Cancel,
            "PUT" => Class::Upload,
            "POST" if path.starts_with("/storage/") => Class::Upload,
            "POST" => Class::Submit,
            _ => Class::Read,
        }
    }

    fn admits(&self, seen: &Seen, key: &str) -> bool {
        let open = ["/.well-known/", "/storage/put/", "/files/"].iter().any(|path| seen.path().starts_with(path));
        open || has_key(seen, "Key", key)
    }

    fn refuse(&self, refusal: &Refusal) -> Response {
        let detail = |status: u16, text: &str| json(status, &json!({ "detail": text }));
        match refusal {
            Refusal::RateLimited(delay) => {
                let body = json!({ "detail": "Too many requests", "error_type": "concurrent_requests_limit" });
                with_header(json(429, &body), "retry-after", whole_seconds(*delay).to_string())
            }
            Refusal::BadKey => detail(401, "No user found for Key ID and Secret"),
            Refusal::NoCredit => detail(
                403,
                "User is locked. Reason: Exhausted balance. Top up your balance at fal.ai/dashboard/billing.",
            ),
            Refusal::Invalid(reason) => model_error(422, "value_error", reason),
            Refusal::Moderated(reason) => model_error(422, "content_policy_violation", reason),
            Refusal::NotFound => json(404, &json!({ "status": "NOT_FOUND" })),
            Refusal::Busy => detail(429, "Queue is too long"),
            Refusal::Unavailable => typed(503, "text/html", "<html><center>nginx</center></html>"),
        }
    }

    fn callback(&self, world: &World, run: &Run) -> Option<Signed> {
        let (status, payload, _) = result(world, run)?;
        let error = (status != 200).then(|| format!("Invalid status code: {status}"));
        let body = json!({
            "request_id": run.id, "gateway_request_id": run.id,
            "status": if status == 200 { "OK" } else { "ERROR" }, "error": error, "payload": payload,
        });
        let body = body.to_string();
        let hash = hex::encode(digest::digest(&digest::SHA256, body.as_bytes()));
        let seconds = world.now().as_second().to_string();
        let text = [&run.id, USER, &seconds, &hash].join("\n");
        let signature = hex::encode(self.pair()?.sign(text.as_bytes()));
        let headers = [
            ("content-type", "application/json"),
            ("x-fal-webhook-request-id", &run.id),
            ("x-fal-webhook-user-id", USER),
            ("x-fal-webhook-timestamp", &seconds),
            ("x-fal-webhook-signature", &signature),
        ];
        let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        Some(Signed { headers: headers.collect(), body: body.into() })
    }

    fn retries(&self) -> Retries {
        // A redirect is for good; it tries for long.
        Retries { tries: 10, pause: Duration::from_millis(10), on: |status| status >= 400 }
    }
}

/// An error of a model: a list.
fn model_error(status: u16, kind: &str, text: &str) -> Response {
    json(status, &model_detail(kind, text))
}

fn model_detail(kind: &str, text: &str) -> Value {
    json!({ "detail": [{ "loc": ["body", "prompt"], "msg": text, "type": kind, "url": format!("https://docs.fal.ai/errors#{kind}") }] })
}

/// The first two segments of an endpoint: all that status, result and cancel are found by. Ids
/// in a namespace keep that.
fn app(endpoint: &str) -> String {
    let parts = if ["workflows/", "comfy/"].iter().any(|space| endpoint.starts_with(space)) { 3 } else { 2 };
    endpoint.split('/').take(parts).collect::<Vec<_>>().join("/")
}

async fn submit(State(world): State<World>, Path(endpoint): Path<String>, Asked(seen): Asked) -> Answered {
    let input @ Value::Object(_) = seen.json() else {
        return Err(json(422, &json!({ "detail": "Request body must be a JSON object" })));
    };
    if endpoint.split('/').count() < 2 || endpoint.contains("no-such") || endpoint.contains("/requests/") {
        return Err(json(404, &json!({ "detail": format!("Application '{endpoint}' not found") })));
    }
    let course =
        wrong(&endpoint, &input).map(|(code, text)| Course::Fails(Failure { code: Some(code.to_owned()), text }));
    let stored = seen.header("x-fal-store-io").unwrap_or("1") != "0";
    let wish = Wish::new(kind(&endpoint), &endpoint, input)
        .with_callback(seen.query("fal_webhook").as_deref())
        .with_course(course)
        .with_extra(json!({ "stored": stored }));
    let run = world.buy(&seen, wish)?;
    let mut shown = urls(&world, &run);
    if let Some(shown) = shown.as_object_mut() {
        shown.insert("gateway_request_id".to_owned(), json!(run.id));
        // With a webhook its documentation shows no more than the ids.
        if run.callback.is_none() {
            shown.insert("status".to_owned(), json!("IN_QUEUE"));
            shown.insert("queue_position".to_owned(), json!(0));
        }
    }
    Ok(with_header(json(200, &shown), "x-fal-request-id", &run.id))
}

fn urls(world: &World, run: &Run) -> Value {
    let url = format!("{}/{}/requests/{}", world.base_url(), app(&run.model), run.id);
    json!({
        "request_id": run.id, "response_url": url,
        "status_url": format!("{url}/status"), "cancel_url": format!("{url}/cancel"),
    })
}

/// `{app}/requests/{id}` and what follows.
fn parse<'a>(world: &World, path: &'a str) -> Result<(&'a str, &'a str), Response> {
    let unknown = || world.refuse(&Refusal::NotFound);
    let (of, rest) = path.split_once("/requests/").ok_or_else(unknown)?;
    let (id, what) = rest.split_once('/').unwrap_or((rest, ""));
    // Only by the app that it is of, and by nothing but its first segments.
    let run = world.find(|run| run.id == id).ok_or_else(unknown)?;
    if app(&run.model) == of { Ok((id, what)) } else { Err(unknown()) }
}

async fn read(State(world): State<World>, Path(path): Path<String>, Asked(seen): Asked) -> Answered {
    let (id, what) = parse(&world, &path)?;
    let run = world.look(id)?;
    match what {
        "status" => Ok(status(&world, &run, seen.query("logs").as_deref() == Some("1"))),
        "" | "response" => {
            let Some((status, body, headers)) = result(&world, &run) else {
                return Ok(json(400, &json!({ "detail": "Request is still in progress" })));
            };
            let response = with_header(json(status, &body), "x-fal-request-id", &run.id);
            Ok(headers.into_iter().fold(response, |response, (name, value)| with_header(response, name, value)))
        }
        _ => Err(world.refuse(&Refusal::NotFound)),
    }
}

fn status(world: &World, run: &Run, logs: bool) -> Response {
    let mut shown = urls(world, run);
    let mut set = |name: &str, value: Value| {
        if let Some(shown) = shown.as_object_mut() {
            shown.insert(name.to_owned(), value);
        }
    };
    let code = match run.phase() {
        Phase::Queued => {
            set("status", json!("IN_QUEUE"));
            set("queue_position", json!(0));
            202
        }
        Phase::Unknown => {
            set("status", json!("IN_LIMBO"));
            202
        }
        // The first look finds it in the queue, where more follow.
        Phase::Running(_) if run.looks == 1 => {
            set("status", json!("IN_QUEUE"));
            set("queue_position", json!(1));
            202
        }
        Phase::Running(done) => {
            set("status", json!("IN_PROGRESS"));
            let log =
                json!([{ "message": format!("{:.0}%", done * 100.0), "timestamp": world.now(), "level": "INFO" }]);
            set("logs", if logs { log } else { Value::Null });
            202
        }
        phase => {
            set("status", json!("COMPLETED"));
            set("logs", if logs { json!([]) } else { Value::Null });
            set("metrics", json!({ "inference_time": 12.5 }));
            match phase {
                Phase::Succeeded => {}
                Phase::Canceled => {
                    set("error", json!("Request was cancelled by the client"));
                    set("error_type", json!("client_cancelled"));
                }
                Phase::Failed(Failure { code: Some(code), text }) if PLATFORM.contains(&code.as_str()) => {
                    set("error", json!(text));
                    set("error_type", json!(code));
                }
                // What a model says is in the result only.
                other => set("error", json!(format!("Invalid status code: {}", outcome(&other).0))),
            }
            200
        }
    };
    json(code, &shown)
}

/// The status of a result that is none, and its body.
fn outcome(phase: &Phase) -> (u16, Value) {
    match phase {
        Phase::Moderated(reason) => (422, model_detail("content_policy_violation", reason)),
        Phase::Canceled => platform(499, "client_cancelled", "Request was cancelled by the client"),
        Phase::Aborted => platform(504, "startup_timeout", "The request was not started in time"),
        Phase::Failed(Failure { code: Some(code), text }) if PLATFORM.contains(&code.as_str()) => {
            let status = match code.as_str() {
                "request_timeout" | "startup_timeout" => 504,
                "runner_incomplete_response" => 502,
                "runner_server_error" | "internal_error" => 500,
                _ => 503,
            };
            platform(status, code, text)
        }
        Phase::Failed(Failure { code, text }) => {
            let code = code.as_deref().unwrap_or("internal_server_error");
            let status = match code {
                "internal_server_error" | "downstream_service_unavailable" | "downstream_service_error" => 500,
                "generation_timeout" => 504,
                _ => 422,
            };
            (status, model_detail(code, text))
        }
        _ => (500, Value::Null),
    }
}

fn platform(status: u16, kind: &str, text: &str) -> (u16, Value) {
    (status, json!({ "detail": text, "error_type": kind }))
}

type Outcome = (u16, Value, Vec<(&'static str, String)>);

/// What the model answered, which the queue replays; `None` before the end.
fn result(world: &World, run: &Run) -> Option<Outcome> {
    let phase = run.phase();
    if !run.ended() || phase == Phase::Unknown {
        return None;
    }
    if phase != Phase::Succeeded {
        let (status, body) = outcome(&phase);
        let kind = body.get("error_type").or_else(|| body.pointer("/detail/0/type")).and_then(Value::as_str);
        let headers = kind.map(|kind| ("x-fal-error-type", kind.to_owned())).into_iter().collect();
        return Some((status, body, headers));
    }
    let (film, url) = (&run.film, world.output_url(run));
    let size = film.bytes().map_or(0, |bytes| bytes.len());
    let name = url.rsplit('/').next().unwrap_or_default().to_owned();
    let mut file =
        json!({ "url": url, "content_type": film.media_type().mime(), "file_name": name, "file_size": size });
    let body = match film.media_type() {
        MediaType::Png => {
            for (field, pixels) in [("width", film.width), ("height", film.height)] {
                file.as_object_mut().map(|file| file.insert(field.to_owned(), json!(pixels)));
            }
            json!({ "images": [file], "seed": 42, "has_nsfw_concepts": [false], "timings": {} })
        }
        MediaType::Wav => json!({ "audio": file }),
        _ => json!({ "video": file, "seed": 42 }),
    };
    let milli = match run.play.usage {
        Some(Usage::MilliUnits(milli)) => milli,
        _ => units(run),
    };
    let units = format!("{}.{:03}", milli / 1000, milli % 1000);
    let units = units.trim_end_matches('0').trim_end_matches('.').to_owned();
    Some((200, body, vec![("x-fal-billable-units", units), ("x-fal-served-from", "lab".to_owned())]))
}

/// Seconds of video, megapixels of a picture, thousands of characters of speech, in thousandths.
fn units(run: &Run) -> u64 {
    match run.kind {
        StepKind::Image => u64::from(run.film.width) * u64::from(run.film.height) / 1000,
        StepKind::Speech => {
            let text = run.input.get("text").or_else(|| run.input.get("prompt")).and_then(Value::as_str);
            text.map_or(0, |text| text.chars().count() as u64)
        }
        _ => u64::try_from(run.film.duration.as_millis()).unwrap_or(u64::MAX),
    }
}

async fn cancel(State(world): State<World>, Path(path): Path<String>) -> Answered {
    let (id, what) = parse(&world, &path)?;
    if what != "cancel" {
        return Err(world.refuse(&Refusal::NotFound));
    }
    let queued = world.peek(id).is_some_and(|run| run.looks <= 1);
    Ok(match world.cancel(id)? {
        Stopped::TooLate(_) => json(400, &json!({ "status": "ALREADY_COMPLETED" })),
        Stopped::Yes(_) if queued => json(200, &json!({ "status": "OK" })),
        Stopped::Yes(_) => json(202, &json!({ "status": "CANCELLATION_REQUESTED" })),
    })
}

/// What the model says no to, but only when it runs.
fn wrong(endpoint: &str, input: &Value) -> Option<(&'static str, String)> {
    let missing = |field: &str| Some(("missing", format!("Field required: {field}")));
    let has = |field: &str| input.get(field).is_some_and(|value| !value.is_null());
    let one_of = |field: &str, values: &[&str]| {
        let value = input.get(field)?;
        let fits = value.as_str().is_some_and(|value| values.contains(&value));
        (!fits).then(|| ("literal_error", format!("{field} should be one of {}", values.join(", "))))
    };
    let start = ["kling-video/v2.6", "kling-video/v3"].iter().any(|family| endpoint.contains(family));
    let image = if start { "start_image_url" } else { "image_url" };
    if endpoint.ends_with("/image-to-video") && !has(image) {
        return missing(image);
    }
    let text = if endpoint.contains("/elevenlabs/tts/") { "text" } else { "prompt" };
    let free = ["/kokoro/", "/ffmpeg-api/", "fast-svd", "kling-video/v3", "wan/v2.7"];
    if !free.iter().any(|family| endpoint.contains(family)) && !has(text) {
        return missing(text);
    }
    if endpoint.contains("/veo3") {
        return one_of("duration", &["4s", "6s", "8s"]).or_else(|| one_of("resolution", &["720p", "1080p", "4k"]));
    }
    if endpoint.contains("kling-video/v2.6") || endpoint.contains("wan-25-preview") {
        return one_of("duration", &["5", "10"]);
    }
    None
}

fn kind(endpoint: &str) -> StepKind {
    let has = |words: &[&str]| words.iter().any(|word| endpoint.contains(word));
    if has(&["video", "veo", "svd", "sora", "merge", "compose"]) {
        StepKind::Video
    } else if has(&["tts", "speech", "kokoro", "audio"]) {
        StepKind::Speech
    } else {
        StepKind::Image
    }
}

async fn initiate(State(world): State<World>, Asked(seen): Asked) -> Answered {
    let body = seen.json();
    let field = |name: &str| body.get(name).and_then(Value::as_str);
    let (Some(content_type), Some(name)) = (field("content_type"), field("file_name")) else {
        return Err(model_error(422, "missing", "content_type and file_name are required"));
    };
    let kept = world.keep(name, content_type, bytes::Bytes::new());
    let upload = format!("{}/storage/put/{}?signature={}", world.base_url(), kept.id, kept.id);
    let file = format!("{}/files/lab/{}/{name}", world.base_url(), kept.id);
    Ok(json(200, &json!({ "upload_url": upload, "file_url": file })))
}

async fn store(State(world): State<World>, Path(id): Path<String>, Asked(seen): Asked) -> Answered {
    if seen.header("authorization").is_some() {
        return Err(typed(400, "application/xml", "<Error><Code>InvalidArgument</Code></Error>"));
    }
    let known = seen.query("signature").as_deref() == Some(&id) && world.fill(&id, seen.body.clone());
    if known { Ok(typed(200, "text/plain", "")) } else { Err(typed(403, "application/xml", "<Error/>")) }
}

async fn stored(State(world): State<World>, Path((id, _)): Path<(String, String)>) -> Answered {
    let file = world.upload(&id).ok_or_else(|| world.refuse(&Refusal::NotFound))?;
    Ok(with_header(typed(200, "application/octet-stream", file.bytes), "content-type", file.content_type))
}

/// What ended in a window, latest end first.
fn history(world: &World, seen: &Seen, unfinished: bool) -> Answered {
    let Some(endpoint) = seen.query("endpoint_id") else {
        return Err(model_error(422, "missing", "endpoint_id is required"));
    };
    let (now, id) = (world.now(), seen.query("request_id"));
    let time = |name: &str| seen.query(name).and_then(|text| text.parse::<Timestamp>().ok());
    let days = if id.is_some() { HISTORY * 90 } else { HISTORY };
    let start = time("start").unwrap_or_else(|| now.saturating_sub(days).unwrap_or(Timestamp::MIN));
    let end = time("end").unwrap_or(Timestamp::MAX);
    let mut runs: Vec<Run> = world.list()?;
    runs.retain(|run| {
        let at = run.ended_at.unwrap_or(run.created_at);
        run.model == endpoint
            && (unfinished || run.ended())
            && (start..=end).contains(&at)
            && id.as_ref().is_none_or(|id| *id == run.id)
    });
    runs.sort_by_key(|run| std::cmp::Reverse(run.ended_at.unwrap_or(Timestamp::MAX)));
    let offset: usize = seen.query("cursor").and_then(|cursor| cursor.parse().ok()).unwrap_or_default();
    let limit: usize = seen.query("limit").and_then(|limit| limit.parse().ok()).unwrap_or(PAGE).clamp(1, PAGE);
    let payloads = seen.query("expand").is_some_and(|expand| expand == "payloads");
    let total = runs.len();
    let items: Vec<Value> = runs.iter().skip(offset).take(limit).map(|run| item(world, run, payloads)).collect();
    let more = offset + items.len() < total;
    let next = more.then(|| (offset + items.len()).to_string());
    Ok(json(200, &json!({ "items": items, "next_cursor": next, "has_more": more })))
}

fn item(world: &World, run: &Run, payloads: bool) -> Value {
    let result = result(world, run);
    let duration = run.ended_at.map(|end| until(run.created_at, end).as_secs_f64());
    let mut item = json!({
        "request_id": run.id, "endpoint_id": run.model, "sent_at": run.created_at, "started_at": run.created_at,
        "ended_at": run.ended_at, "status_code": result.as_ref().map(|result| result.0), "duration": duration,
    });
    let stored = run.extra.get("stored") == Some(&Value::Bool(true));
    if let (true, true, Some(item)) = (payloads, stored, item.as_object_mut()) {
        item.insert("json_input".to_owned(), run.input.clone());
        item.insert("json_output".to_owned(), json!(result.map(|result| result.1)));
    }
    item
}

async fn pricing(Asked(seen): Asked) -> Response {
    let pairs = url::form_urlencoded::parse(seen.uri.query().unwrap_or_default().as_bytes());
    let prices: Vec<Value> = pairs
        .filter(|(name, _)| name == "endpoint_id")
        .map(|(_, id)| json!({ "endpoint_id": id, "unit_price": 0.1, "unit": "seconds", "currency": "USD" }))
        .collect();
    json(200, &json!({ "prices": prices, "next_cursor": null, "has_more": false }))
}
