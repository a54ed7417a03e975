//! OpenAI's API, as OpenAI, vLLM-Omni, SGLang and the proxy of LiteLLM speak it (facts as of 2026-11).
//!
//! Stricter than they are: fields that a server does not know are refused, where most ignore them, so
//! that a misspelt one is seen. Speech is an MP3, or a WAV for every other format.
//!
//! Unverified: what OpenAI answers for the content of a video that is not ready (here: 404), and the
//! words of its refusals. OpenAI has no videos any more; those here are as its last API had them.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::Method;
use axum::response::Response;
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use uuid::Uuid;
use vidgen_core::{MediaType, Size, StepKind, Usage};

use super::film::{Film, mp3};
use super::ledger::{Asked, Class, Field, Seen};
use super::play::{Course, Refusal};
use super::remote::{Remote, has_key, json, typed, whole_seconds, with_header};
use super::run::{Phase, Run, Wish};
use super::world::{Stopped, World};

type Answered = Result<Response, Response>;

/// A page of the list, if nobody says how long.
const PAGE: usize = 20;
/// What a poll is told to wait.
const POLL_AFTER_MS: &str = "2500";
/// Of its MP3.
const SAMPLE_RATE: u32 = 24_000;
const KILOBITS: u32 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    OpenAi,
    VllmOmni,
    SgLang,
    LiteLlm,
}

/// A server that speaks OpenAI's API.
#[derive(Clone, Copy, Debug)]
pub struct OpenAi {
    server: Server,
    keyless: bool,
    redirects: bool,
    links: bool,
    resets: bool,
}

/// OpenAI, with the videos that it had.
#[must_use]
pub fn openai() -> OpenAi {
    OpenAi { server: Server::OpenAi, keyless: false, redirects: false, links: false, resets: false }
}

/// vLLM-Omni.
#[must_use]
pub fn vllm_omni() -> OpenAi {
    OpenAi { server: Server::VllmOmni, ..openai() }
}

/// SGLang.
#[must_use]
pub fn sglang() -> OpenAi {
    OpenAi { server: Server::SgLang, ..openai() }
}

/// The proxy of LiteLLM.
#[must_use]
pub fn litellm() -> OpenAi {
    OpenAi { server: Server::LiteLlm, ..openai() }
}

impl OpenAi {
    /// Takes calls with and without a key.
    #[must_use]
    pub fn without_key(mut self) -> Self {
        self.keyless = true;
        self
    }

    /// Redirects for the content of a video to where outputs lie.
    #[must_use]
    pub fn redirecting(mut self) -> Self {
        self.redirects = true;
        self
    }

    /// Answers images by a link, as for older models.
    #[must_use]
    pub fn answering_links(mut self) -> Self {
        self.links = true;
        self
    }

    /// Says in headers of its own when to come back, and not in `Retry-After`.
    #[must_use]
    pub fn with_reset_headers(mut self) -> Self {
        self.resets = true;
        self
    }

    /// Whether it is in FastAPI and as that has it.
    fn is_fast_api(self) -> bool {
        matches!(self.server, Server::VllmOmni | Server::SgLang)
    }

    fn error(self, status: u16, kind: &str, code: Option<&str>, message: &str) -> Response {
        if self.is_fast_api() {
            return json(status, &json!({ "detail": message }));
        }
        let error = json!({ "message": message, "type": kind, "param": null, "code": code });
        with_header(
            json(status, &json!({ "error": error })),
            "x-request-id",
            format!("req_{}", Uuid::new_v4().simple()),
        )
    }

    fn wrong(self, field: &str, message: &str) -> Response {
        if self.is_fast_api() {
            // The input is repeated: here, nobody's.
            let problem = json!({ "type": "value_error", "loc": ["body", field], "msg": message, "input": null });
            return json(422, &json!({ "detail": [problem] }));
        }
        self.error(400, "invalid_request_error", None, &format!("Invalid value for '{field}': {message}"))
    }

    async fn create_video(self, world: World, seen: Arc<Seen>) -> Answered {
        let is_form = seen.header("content-type").is_some_and(|value| value.starts_with("multipart/form-data"));
        let (input, has_file) = if is_form {
            let fields = seen.form().await;
            let has_file = fields.iter().any(|field| field.name == "input_reference" && field.file_name.is_some());
            (texts(&fields), has_file)
        } else {
            match seen.json() {
                Value::Object(input) if self.server != Server::VllmOmni => (input, false),
                _ => return Err(self.wrong("prompt", "Field required")),
            }
        };
        if self.server == Server::SgLang && is_form && !has_file {
            return Err(self.error(400, "", None, "input_reference is required for image-to-video generation"));
        }
        self.check_video(&input, is_form)?;
        let text = |name: &str| input.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let model = text("model");
        if model.contains("no-such") {
            return Err(world.refuse(&Refusal::NotFound));
        }
        let mut film = Film::new(StepKind::Video);
        if let Some(size) = size(&text("size")) {
            film = film.with_size(size);
        }
        film = film.with_duration(Duration::from_secs(seconds(&input).unwrap_or(4)));
        let hex = Uuid::new_v4().simple();
        let id = match self.server {
            Server::OpenAi => format!("video_{hex}"),
            Server::VllmOmni => format!("video_gen_{hex}"),
            Server::SgLang => Uuid::new_v4().to_string(),
            // Base64 of any alphabet: all that may be in it is.
            Server::LiteLlm => {
                let inner = format!("litellm:custom_llm_provider:azure;model_id:{model};video_id:video_{hex}");
                format!("video_{}+/ü==", STANDARD.encode(inner))
            }
        };
        let wish = Wish::new(StepKind::Video, model, Value::Object(input)).with_id(id).with_film(film);
        let run = world.buy(&seen, wish)?;
        Ok(json(200, &self.show(&run)))
    }

    fn check_video(self, input: &Map<String, Value>, is_form: bool) -> Result<(), Response> {
        let openai = ["prompt", "model", "seconds", "size", "input_reference"];
        let diffusion = ["negative_prompt", "fps", "num_frames", "num_inference_steps", "guidance_scale", "seed"];
        let omni =
            ["width", "height", "guidance_scale_2", "flow_shift", "generate_sound", "lora", "extra_params", "user"];
        for name in input.keys() {
            let name = name.as_str();
            let known = openai.contains(&name) || name.starts_with("input_reference[")
                || (self.is_fast_api() && diffusion.contains(&name))
                || (self.server == Server::VllmOmni && omni.contains(&name))
                // It hands on what it does not know.
                || self.server == Server::LiteLlm;
            if !known {
                return Err(self.wrong(name, "unknown parameter"));
            }
        }
        let prompt = input.get("prompt").and_then(Value::as_str).unwrap_or_default();
        if prompt.is_empty() || prompt.chars().count() > 32_000 {
            return Err(self.wrong("prompt", "must have 1 to 32000 characters"));
        }
        let form = match input.get("seconds") {
            None => true,
            Some(Value::String(text)) => !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && text != "0",
            Some(value) => self.server == Server::SgLang && value.as_u64().is_some(),
        };
        let numbers = self.server != Server::SgLang || is_form || input.get("seconds").is_none_or(Value::is_u64);
        if !form || !numbers {
            return Err(self.wrong("seconds", "must be a whole number in the form that is wanted"));
        }
        match input.get("size").map(|size| size.as_str().and_then(self::size)) {
            Some(None) => Err(self.wrong("size", "must be WxH")),
            _ => Ok(()),
        }
    }

    fn show(self, run: &Run) -> Value {
        let (status, progress, error) = match run.phase() {
            Phase::Queued => ("queued", 0.0, Value::Null),
            Phase::Running(done) => ("in_progress", done * 100.0, Value::Null),
            Phase::Unknown => ("reticulating", 40.0, Value::Null),
            Phase::Succeeded => ("completed", 100.0, Value::Null),
            Phase::Failed(failure) => {
                let code = failure.code.unwrap_or_else(|| match self.server {
                    Server::VllmOmni => "RuntimeError".to_owned(),
                    _ => "video_generation_failed".to_owned(),
                });
                ("failed", 0.0, json!({ "code": code, "message": failure.text }))
            }
            Phase::Moderated(reason) => ("failed", 0.0, json!({ "code": "moderation_blocked", "message": reason })),
            Phase::Aborted => ("failed", 0.0, json!({ "code": "timeout", "message": "it took too long" })),
            Phase::Canceled => ("failed", 0.0, json!({ "code": "cancelled", "message": "it was cancelled" })),
        };
        // Steps in between are nothing that vLLM-Omni knows.
        let progress = if self.server == Server::VllmOmni && progress < 100.0 { 0 } else { progress as u64 };
        let input = |name: &str| run.input.get(name).cloned().unwrap_or(Value::Null);
        let seconds = match input("seconds") {
            Value::Number(n) => n.to_string(),
            Value::String(text) => text,
            _ => "4".to_owned(),
        };
        let mut shown = json!({
            "id": run.id, "object": "video", "model": run.model, "status": status, "progress": progress,
            "created_at": run.created_at.as_second(), "completed_at": run.ended_at.map(|at| at.as_second()),
            "expires_at": null, "prompt": input("prompt"), "size": input("size"), "seconds": seconds,
            "remixed_from_video_id": null, "error": error,
        });
        if let Some(shown) = shown.as_object_mut() {
            match self.server {
                Server::VllmOmni => {
                    shown.insert("media_type".to_owned(), json!("video/mp4"));
                    shown.insert("inference_time_s".to_owned(), json!(12.5));
                }
                Server::LiteLlm => {
                    shown.insert("usage".to_owned(), json!({ "duration_seconds": 4.0 }));
                }
                Server::OpenAi | Server::SgLang => {}
            }
        }
        shown
    }

    fn video(self, world: &World, id: &str) -> Answered {
        let run = world.look(id)?;
        let response = json(200, &self.show(&run));
        match self.server {
            Server::OpenAi => Ok(with_header(response, "openai-poll-after-ms", POLL_AFTER_MS)),
            _ => Ok(response),
        }
    }

    fn list(self, world: &World, seen: &Seen) -> Answered {
        let runs = world.list()?.into_iter().filter(|run| run.kind == StepKind::Video);
        if self.server == Server::SgLang {
            return Ok(json(200, &json!({ "data": runs.map(|run| self.show(&run)).collect::<Vec<_>>() })));
        }
        let limit = seen.query("limit").and_then(|n| n.parse().ok()).unwrap_or(PAGE);
        let after = seen.query("after");
        let runs: Vec<Run> = match &after {
            Some(after) => runs.skip_while(|run| run.id != *after).skip(1).collect(),
            None => runs.collect(),
        };
        let page: Vec<Value> = runs.iter().take(limit).map(|run| self.show(run)).collect();
        let id = |video: Option<&Value>| video.and_then(|video| video.get("id").cloned());
        Ok(json(
            200,
            &json!({
                "object": "list", "first_id": id(page.first()), "last_id": id(page.last()),
                "has_more": runs.len() > page.len(), "data": page,
            }),
        ))
    }

    fn delete(self, world: &World, id: &str) -> Answered {
        match self.server {
            Server::LiteLlm => Err(json(405, &json!({ "detail": "Method Not Allowed" }))),
            // What ended goes with its file; what runs is stopped, and then goes, too.
            Server::VllmOmni => match world.cancel(id)? {
                Stopped::Yes(run) if !run.ended() => Err(self.error(409, "", None, "Video generation is in progress")),
                Stopped::Yes(_) | Stopped::TooLate(_) => {
                    world.delete(id);
                    Ok(json(200, &json!({ "id": id, "object": "video.deleted", "deleted": true })))
                }
            },
            Server::SgLang => {
                let mut shown = self.show(&world.look(id)?);
                if let Some(status) = shown.get_mut("status") {
                    *status = json!("deleted");
                }
                world.delete(id);
                Ok(json(200, &shown))
            }
            Server::OpenAi => match world.peek(id) {
                Some(run) if run.ended() => {
                    world.delete(id);
                    Ok(json(200, &json!({ "id": id, "object": "video.deleted", "deleted": true })))
                }
                Some(_) => Err(self.error(409, "invalid_request_error", None, "The video is not finished")),
                None => Err(world.refuse(&Refusal::NotFound)),
            },
        }
    }

    fn content(self, world: &World, seen: &Seen, id: &str) -> Answered {
        let run = world.peek(id).ok_or_else(|| world.refuse(&Refusal::NotFound))?;
        if self.server == Server::VllmOmni && seen.query("variant").is_some() {
            return Err(self.wrong("variant", "unknown parameter"));
        }
        match run.phase() {
            Phase::Succeeded if self.redirects => {
                Ok(with_header(typed(302, "text/plain", ""), "location", world.output_url(&run)))
            }
            Phase::Succeeded => Ok(with_header(
                world.serve(id),
                "content-disposition",
                format!("attachment; filename=\"video.{}\"", MediaType::Mp4.extension()),
            )),
            Phase::Queued | Phase::Running(_) | Phase::Unknown => {
                Err(self.error(404, "invalid_request_error", None, "Video is not ready yet"))
            }
            _ if self.server == Server::VllmOmni => Err(self.error(422, "", None, "Video generation failed")),
            _ => Err(self.error(400, "invalid_request_error", None, "Video generation failed")),
        }
    }

    async fn image(self, world: World, seen: Arc<Seen>) -> Answered {
        let Value::Object(input) = seen.json() else { return Err(self.wrong("body", "must be a JSON object")) };
        let known = ["model", "prompt", "n", "size", "quality", "output_format", "output_compression", "background"];
        let more = ["moderation", "stream", "partial_images", "user"];
        if let Some(name) = input.keys().find(|name| !known.contains(&name.as_str()) && !more.contains(&name.as_str()))
        {
            return Err(self.error(
                400,
                "invalid_request_error",
                Some("unknown_parameter"),
                &format!("Unknown parameter: '{name}'."),
            ));
        }
        let text = |name: &str| input.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (model, prompt, asked) = (text("model"), text("prompt"), text("size"));
        if prompt.is_empty() || prompt.chars().count() > 32_000 {
            return Err(self.wrong("prompt", "must have 1 to 32000 characters"));
        }
        if model.contains("no-such") {
            return Err(world.refuse(&Refusal::NotFound));
        }
        let any = model.starts_with("gpt-image-2");
        let listed = ["", "auto", "1024x1024", "1536x1024", "1024x1536"].contains(&asked.as_str());
        let size = size(&asked);
        let fits = |size: Size| {
            let (long, short) = (size.width.max(size.height), size.width.min(size.height));
            size.width.is_multiple_of(16) && size.height.is_multiple_of(16) && long <= 3840 && long <= short * 3
        };
        let made = listed || (any && size.is_some_and(fits));
        if !made {
            return Err(self.wrong("size", "is not one that the model makes"));
        }
        let film = size.map_or(Film::new(StepKind::Image), |size| Film::new(StepKind::Image).with_size(size));
        let run =
            bought(&world, &seen, Wish::new(StepKind::Image, model, Value::Object(input)).with_film(film)).await?;
        let Ok(bytes) = run.film.bytes() else { return Err(self.error(500, "server_error", None, "no picture")) };
        let image = if self.links {
            json!({ "url": world.output_url(&run) })
        } else {
            json!({ "b64_json": STANDARD.encode(bytes) })
        };
        let output = match run.play.usage {
            Some(Usage::MilliUnits(tokens)) => tokens,
            _ => 1568,
        };
        Ok(json(
            200,
            &json!({
                "created": run.created_at.as_second(), "data": [image], "output_format": "png", "size": asked,
                "quality": "medium", "background": "opaque",
                "usage": { "total_tokens": output + 10, "input_tokens": 10, "output_tokens": output },
            }),
        ))
    }

    async fn speech(self, world: World, seen: Arc<Seen>) -> Answered {
        let Value::Object(input) = seen.json() else { return Err(self.wrong("body", "must be a JSON object")) };
        let text = |name: &str| input.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let model = text("model");
        let known = ["model", "input", "voice", "instructions", "response_format", "speed", "stream_format"];
        if let Some(name) = input.keys().find(|name| !known.contains(&name.as_str())) {
            return Err(self.wrong(name, "unknown parameter"));
        }
        let spoken = text("input");
        if spoken.is_empty() || spoken.chars().count() > 4096 {
            return Err(self.wrong("input", "must have 1 to 4096 characters"));
        }
        let voices = "alloy ash ballad coral echo fable onyx nova sage shimmer verse marin cedar";
        let own = input.get("voice").and_then(|voice| voice.get("id")?.as_str());
        if !voices.split(' ').any(|voice| voice == text("voice")) && !own.is_some_and(|id| id.starts_with("voice_")) {
            return Err(self.wrong("voice", "is not one that there is"));
        }
        if model.contains("no-such") {
            return Err(world.refuse(&Refusal::NotFound));
        }
        let format = text("response_format");
        let run = bought(&world, &seen, Wish::new(StepKind::Speech, model, Value::Object(input))).await?;
        Ok(world.serve_as(&run.id, |run| match format.as_str() {
            "" | "mp3" => Some(("audio/mpeg", mp3(run.film.duration, SAMPLE_RATE, KILOBITS, "lab")?)),
            _ => Some(("audio/wav", run.film.bytes().ok()?)),
        }))
    }
}

/// Buys what ends with its answer.
async fn bought(world: &World, seen: &Seen, wish: Wish) -> Result<Run, Response> {
    let run = world.buy(seen, wish)?;
    // The answer comes when it is made.
    let run = world.wait(&run.id).await?;
    match &run.play.course {
        Course::Succeeds => Ok(run),
        Course::Moderated(reason) => Err(world.refuse(&Refusal::Moderated(reason.clone()))),
        _ => Err(world.refuse(&Refusal::Unavailable)),
    }
}

/// The fields of a form that are no files.
fn texts(fields: &[Field]) -> Map<String, Value> {
    let texts = fields.iter().filter(|field| field.file_name.is_none());
    texts.map(|field| (field.name.clone(), Value::String(field.text()))).collect()
}

fn size(text: &str) -> Option<Size> {
    let (width, height) = text.split_once('x')?;
    Some(Size { width: width.parse().ok()?, height: height.parse().ok()? })
}

fn seconds(input: &Map<String, Value>) -> Option<u64> {
    let seconds = input.get("seconds")?;
    seconds.as_u64().or_else(|| seconds.as_str()?.parse().ok())
}

impl Remote for OpenAi {
    fn id(&self) -> &'static str {
        "openai"
    }

    fn base_path(&self) -> &'static str {
        "/v1"
    }

    fn key(&self) -> String {
        "sk-lab-0123456789abcdefghijklmnopqrstuvwxyz".to_owned()
    }

    fn routes(&self) -> Router<World> {
        let this = *self;
        let list = move |State(world): State<World>, Asked(seen): Asked| async move { this.list(&world, &seen) };
        let create = move |State(world): State<World>, Asked(seen): Asked| this.create_video(world, seen);
        let video = move |State(world): State<World>, Path(id): Path<String>| async move { this.video(&world, &id) };
        let delete = move |State(world): State<World>, Path(id): Path<String>| async move { this.delete(&world, &id) };
        let content = move |State(world): State<World>, Path(id): Path<String>, Asked(seen): Asked| async move {
            this.content(&world, &seen, &id)
        };
        let image = move |State(world): State<World>, Asked(seen): Asked| this.image(world, seen);
        let speech = move |State(world): State<World>, Asked(seen): Asked| this.speech(world, seen);
        Router::new()
            .route("/v1/videos", get(list).post(create))
            .route("/v1/videos/{id}", get(video).delete(delete))
            .route("/v1/videos/{id}/content", get(content))
            .route("/v1/images/generations", post(image))
            .route("/v1/audio/speech", post(speech))
    }

    fn class(&self, method: &Method, path: &str) -> Class {
        match method.as_str() {
            "POST" => Class::Submit,
            "DELETE" => Class::Cancel,
            _ if path.ends_with("/content") => Class::Output,
            _ => Class::Read,
        }
    }

    fn admits(&self, seen: &Seen, key: &str) -> bool {
        self.keyless || has_key(seen, "Bearer", key)
    }

    fn refuse(&self, refusal: &Refusal) -> Response {
        match refusal {
            Refusal::RateLimited(delay) => {
                let seconds = whole_seconds(*delay);
                let response = self.error(
                    429,
                    "requests",
                    Some("rate_limit_exceeded"),
                    &format!("Please try again in {seconds}s."),
                );
                if self.resets {
                    let response = with_header(response, "x-ratelimit-remaining-requests", "0");
                    let response = with_header(response, "x-ratelimit-reset-requests", format!("0m{seconds}s"));
                    let response = with_header(response, "x-ratelimit-remaining-tokens", "150");
                    return with_header(response, "x-ratelimit-reset-tokens", "6m0s");
                }
                with_header(response, "retry-after", seconds.to_string())
            }
            Refusal::BadKey => {
                self.error(401, "invalid_request_error", Some("invalid_api_key"), "Incorrect API key provided.")
            }
            Refusal::NoCredit => {
                self.error(429, "insufficient_quota", Some("insufficient_quota"), "You exceeded your current quota.")
            }
            Refusal::Invalid(reason) => self.wrong("prompt", reason),
            Refusal::Moderated(reason) => {
                self.error(400, "image_generation_user_error", Some("moderation_blocked"), reason)
            }
            Refusal::NotFound => self.error(404, "invalid_request_error", Some("not_found"), "There is no such thing."),
            Refusal::Busy => self.error(429, "requests", Some("rate_limit_exceeded"), "Too many at once."),
            Refusal::Unavailable => self.error(503, "server_error", None, "The engine is overloaded."),
        }
    }
}
