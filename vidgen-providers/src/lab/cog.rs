//! A container of cog 0.23, as its source has it and as it was seen running (facts as of 2026-11).
//!
//! It has one slot by itself; here it has as many as [`Lab::capacity`](super::Lab::capacity) says. Not
//! played: streams, trainings, log events, schemas beside "`prompt` or `text` is required"; a
//! synchronous run is not canceled when its caller leaves; and files go out as data URLs or lie
//! elsewhere ([`Cog::with_files_elsewhere`]), since uploading them is for a real one to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::Method;
use axum::response::Response;
use axum::routing::{get, post, put};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use uuid::Uuid;
use vidgen_core::{StepKind, Usage};

use super::ledger::{Asked, Class, Seen};
use super::play::Refusal;
use super::remote::{Remote, Retries, Signed, json, typed, whole_seconds, with_header};
use super::server::gateway;
use super::world::{Phase, Run, Stopped, Wish, World};

type Answered = Result<Response, Response>;

const EVENTS: [&str; 4] = ["start", "output", "logs", "completed"];
/// What a run takes, if the play does not say.
const PREDICT_TIME: Duration = Duration::from_millis(1250);

/// A container of cog.
#[derive(Clone, Debug)]
pub struct Cog {
    elsewhere: bool,
    token: Option<String>,
    starting: Arc<AtomicBool>,
}

/// A container of cog, whose files are data URLs.
#[must_use]
pub fn cog() -> Cog {
    Cog { elsewhere: false, token: None, starting: Arc::default() }
}

impl Cog {
    /// Its files lie in a store of its own (`--upload-url`), from where everybody can fetch them.
    #[must_use]
    pub fn with_files_elsewhere(mut self) -> Self {
        self.elsewhere = true;
        self
    }

    /// Its webhooks carry this token (`WEBHOOK_AUTH_TOKEN`).
    #[must_use]
    pub fn with_webhook_token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Says that its setup goes on, or is done. After a crash it does, and
    /// [`Lab::forget_runs`](super::Lab::forget_runs) is what else a crash does.
    pub fn starts(&self, starting: bool) {
        self.starting.store(starting, Ordering::SeqCst);
    }

    fn is_starting(&self) -> bool {
        self.starting.load(Ordering::SeqCst)
    }

    fn health(&self, world: &World) -> Answered {
        // A look at the newest run, as far as this is one at all.
        let newest = world.find(|_| true);
        let live = newest.as_ref().is_some_and(|run| !run.ended());
        if let Some(run) = newest {
            world.look(&run.id)?;
        }
        let status = match (self.is_starting(), live) {
            (true, _) => "STARTING",
            (false, true) => "BUSY",
            (false, false) => "READY",
        };
        let setup =
            json!({ "started_at": world.now(), "status": if status == "STARTING" { "starting" } else { "succeeded" } });
        let version = json!({ "coglet": "0.23.1", "python_sdk": "0.23.1", "python": "3.11.7" });
        Ok(json(200, &json!({ "status": status, "setup": setup, "version": version })))
    }

    async fn predict(&self, world: World, seen: &Seen, id: Option<String>) -> Answered {
        if !seen.header("content-type").is_some_and(|kind| kind.starts_with("application/json")) {
            return Err(typed(415, "text/plain", "Expected request with `Content-Type: application/json`"));
        }
        let Value::Object(body) = seen.json() else {
            return Err(typed(400, "text/plain", "Failed to parse the request body as JSON"));
        };
        if let Some(unknown) = events(&body).find(|event| !EVENTS.contains(event)) {
            return Err(typed(422, "text/plain", format!("unknown variant `{unknown}`")));
        }
        let named = body.get("id").and_then(Value::as_str);
        if id.as_deref().zip(named).is_some_and(|(id, named)| id != named) {
            return Err(fault(&["body", "id"], "prediction ID must match the ID supplied in the URL", "value_error"));
        }
        // While it runs, whatever else the same PUT says starts nothing.
        if let Some(run) = id.as_deref().and_then(|id| world.peek(id)).filter(|run| !run.ended()) {
            return Ok(json(202, &show(self, &world, &run)));
        }
        if self.is_starting() {
            return Err(json(503, &json!({ "error": "Setup has not finished yet", "status": "failed" })));
        }
        let input = body.get("input").cloned().unwrap_or_else(|| json!({}));
        let has = |name: &str| input.get(name).is_some_and(Value::is_string);
        if !has("prompt") && !has("text") {
            return Err(fault(&["body", "input", "prompt"], "Field required", "value_error.missing"));
        }
        let id = id.or_else(|| named.map(str::to_owned));
        let id = id.unwrap_or_else(|| format!("pred_{}", Uuid::new_v4().simple()));
        let wish = Wish::new(kind(&input), "cog", input)
            .with_id(id)
            .with_callback(body.get("webhook").and_then(Value::as_str))
            .with_extra(Value::Object(body.clone()));
        let run = world.buy(seen, wish)?;
        self.say_started(&world, &run);
        if seen.header("prefer") == Some("respond-async") {
            return Ok(json(202, &json!({ "id": run.id, "status": "starting" })));
        }
        let run = world.wait(&run.id).await?;
        Ok(json(200, &show(self, &world, &run)))
    }

    /// Tells once that it begins; not again, should nobody be there.
    fn say_started(&self, world: &World, run: &Run) {
        let Some(url) = run.callback.clone().filter(|_| wants(run, "start") && !world.lock().hold) else { return };
        let said = self.signed(&json!({ "id": run.id, "status": "processing", "logs": "", "metrics": {} }));
        let sender = world.clone();
        world.spawn(async move {
            sender.post(url, said).await;
        });
    }

    fn signed(&self, body: &Value) -> Signed {
        let mut headers = vec![
            ("content-type".to_owned(), "application/json".to_owned()),
            ("user-agent".to_owned(), "coglet/0.23.1".to_owned()),
        ];
        headers.extend(self.token.as_ref().map(|token| ("authorization".to_owned(), format!("Bearer {token}"))));
        Signed { headers, body: body.to_string().into() }
    }
}

impl Remote for Cog {
    fn id(&self) -> &'static str {
        "cog"
    }

    fn routes(&self) -> Router<World> {
        let (health, new, known) = (self.clone(), self.clone(), self.clone());
        let health = move |State(world): State<World>| async move { health.health(&world) };
        let new =
            move |State(world): State<World>, Asked(seen): Asked| async move { new.predict(world, &seen, None).await };
        let known = move |State(world): State<World>, Path(id): Path<String>, Asked(seen): Asked| async move {
            known.predict(world, &seen, Some(id)).await
        };
        Router::new()
            .route("/", get(discovery))
            .route("/health-check", get(health))
            .route("/openapi.json", get(async || json(503, &json!({ "error": "OpenAPI schema not available" }))))
            .route("/predictions", post(new))
            .route("/predictions/{id}", put(known))
            .route("/predictions/{id}/cancel", post(cancel))
    }

    fn class(&self, method: &Method, path: &str) -> Class {
        match path {
            path if path.ends_with("/cancel") => Class::Cancel,
            path if path.starts_with("/predictions") && method != Method::GET => Class::Submit,
            _ => Class::Read,
        }
    }

    /// It asks nobody; a proxy before it would.
    fn admits(&self, _: &Seen, _: &str) -> bool {
        true
    }

    fn refuse(&self, refusal: &Refusal) -> Response {
        let failed = |status: u16, error: &str| json(status, &json!({ "error": error, "status": "failed" }));
        match refusal {
            Refusal::Busy => failed(409, "At capacity - all prediction slots busy"),
            Refusal::Invalid(reason) | Refusal::Moderated(reason) => {
                fault(&["body", "input", "prompt"], reason, "value_error")
            }
            Refusal::NotFound => json(404, &json!({})),
            // The rest is a proxy's, since cog has neither keys nor limits nor accounts.
            Refusal::RateLimited(delay) => {
                with_header(typed(429, "text/plain", "slow down"), "retry-after", whole_seconds(*delay).to_string())
            }
            Refusal::BadKey => gateway(401),
            Refusal::NoCredit => gateway(402),
            Refusal::Unavailable => gateway(503),
        }
    }

    fn callback(&self, world: &World, run: &Run) -> Option<Signed> {
        wants(run, "completed").then(|| self.signed(&show(self, world, run)))
    }

    fn retries(&self) -> Retries {
        Retries { tries: 8, pause: Duration::from_millis(20), on: |status| matches!(status, 429 | 500 | 502..=504) }
    }
}

fn events(body: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let filter = body.get("webhook_events_filter").and_then(Value::as_array);
    filter.into_iter().flatten().filter_map(Value::as_str)
}

fn wants(run: &Run, event: &str) -> bool {
    let filter = run.extra.get("webhook_events_filter").and_then(Value::as_array);
    filter.is_none_or(|events| events.iter().any(|wanted| wanted == event))
}

fn fault(place: &[&str], message: &str, kind: &str) -> Response {
    json(422, &json!({ "detail": [{ "loc": place, "msg": message, "type": kind }] }))
}

/// What the container makes, by the fields of its input.
fn kind(input: &Value) -> StepKind {
    match (input.get("text"), input.get("duration").or_else(|| input.get("fps"))) {
        (Some(_), _) => StepKind::Speech,
        (None, Some(_)) => StepKind::Video,
        (None, None) => StepKind::Image,
    }
}

fn show(cog: &Cog, world: &World, run: &Run) -> Value {
    let (status, error) = match run.phase() {
        Phase::Queued | Phase::Running(_) => ("processing", None),
        Phase::Unknown => ("reticulating", None),
        Phase::Succeeded => ("succeeded", None),
        Phase::Failed(failure) => ("failed", Some(format!("RuntimeError: {}", failure.text))),
        Phase::Moderated(reason) => ("failed", Some(format!("ValueError: {reason}"))),
        Phase::Aborted => ("failed", Some("TimeoutError".to_owned())),
        Phase::Canceled => ("canceled", None),
    };
    let time = match run.play.usage {
        Some(Usage::Compute(time)) => time,
        _ => PREDICT_TIME,
    };
    let mut shown = Map::new();
    let mut set = |name: &str, value: Value| drop(shown.insert(name.to_owned(), value));
    set("id", json!(run.id));
    set("status", json!(status));
    set("logs", json!("Using seed: 42\n"));
    if run.ended() {
        set("metrics", json!({ "predict_time": time.as_secs_f64() }));
    } else {
        set("metrics", json!({}));
        set("input", run.input.clone());
    }
    if let Some(error) = error {
        set("error", json!(format!("Prediction failed: Prediction failed: {error}")));
    }
    if status == "succeeded" {
        set("output", if cog.elsewhere { json!(world.output_url(run)) } else { inline(run) });
    }
    Value::Object(shown)
}

fn inline(run: &Run) -> Value {
    let bytes = run.film.bytes().unwrap_or_default();
    json!(format!("data:{};base64,{}", run.film.media_type().mime(), STANDARD.encode(bytes)))
}

async fn cancel(State(world): State<World>, Path(id): Path<String>) -> Answered {
    match world.cancel(&id)? {
        Stopped::Yes(_) => Ok(json(200, &json!({}))),
        // It knows of nothing but what runs.
        Stopped::TooLate(_) => Err(json(404, &json!({}))),
    }
}

async fn discovery(State(world): State<World>) -> Response {
    let base = world.base_url();
    json(
        200,
        &json!({
            "cog_version": "0.23.1", "docs_url": format!("{base}/docs"), "openapi_url": format!("{base}/openapi.json"),
            "healthcheck_url": format!("{base}/health-check"), "predictions_url": format!("{base}/predictions"),
            "predictions_idempotent_url": format!("{base}/predictions/{{prediction_id}}"),
            "predictions_cancel_url": format!("{base}/predictions/{{prediction_id}}/cancel"),
            "shutdown_url": format!("{base}/shutdown"),
        }),
    )
}
