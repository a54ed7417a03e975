//! A ComfyUI server: v0.3.64 as it was run, with what the source of 2026 adds (facts as of 2026-11).
//!
//! Its routes exist with and without `/api`. It has no keys of its own; [`ComfyUi::behind_a_key`]
//! puts a proxy in front of it that wants one. Unlike the real one it runs nothing: a run waits
//! until somebody looks at it, and ends as its play has it.

mod check;
mod socket;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::{Map, Value, json};
use uuid::Uuid;
use vidgen_core::{StepKind, Usage};

use super::film::Film;
use super::ledger::{Asked, Class, Seen};
use super::play::Refusal;
use super::remote::{Remote, has_key, json, typed, whole_seconds, with_header};
use super::world::{Phase, Run, Stopped, Wish, World};
use socket::Sockets;

type Answered = Result<Response, Response>;

/// What an error's trace has and nobody may pass on: where the server lives.
const TRACE: &str = "  File \"/home/lab/ComfyUI/execution.py\", line 496, in execute\n";

/// ComfyUI. Clones are the same server: keep one to see and to move what the lab has no word for.
#[derive(Clone)]
pub struct ComfyUi {
    guarded: bool,
    jobs: bool,
    lag: u32,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    sockets: Sockets,
    /// Runs that left the queue before they began: these leave no trace.
    dequeued: Mutex<HashSet<String>>,
    /// How often the history of a run that ended was asked for.
    asked: Mutex<HashMap<String, u32>>,
    bare_interrupts: AtomicUsize,
}

/// A ComfyUI of 2026.
#[must_use]
pub fn comfyui() -> ComfyUi {
    ComfyUi { guarded: false, jobs: true, lag: 0, shared: Arc::default() }
}

impl ComfyUi {
    /// As v0.3.64, which has no `/api/jobs`.
    #[must_use]
    pub fn without_jobs(mut self) -> Self {
        self.jobs = false;
        self
    }

    /// Behind a proxy that wants `Authorization: Bearer <key>`.
    #[must_use]
    pub fn behind_a_key(mut self) -> Self {
        self.guarded = true;
        self
    }

    /// A run that ended is in neither queue nor history for so many reads of the latter.
    #[must_use]
    pub fn with_history_lag(mut self, reads: u32) -> Self {
        self.lag = reads;
        self
    }

    /// The client ids of the sockets that are open.
    #[must_use]
    pub fn sockets(&self) -> Vec<String> {
        self.shared.sockets.clients()
    }

    /// Closes all sockets.
    pub fn drop_sockets(&self) {
        self.shared.sockets.clear();
    }

    /// Lets nobody listen from now on, or everybody again.
    pub fn refuse_sockets(&self, refuse: bool) {
        self.shared.sockets.refuse(refuse);
    }

    /// Sends a frame of text to everybody who listens.
    pub fn tell(&self, kind: &str, data: &Value) {
        for client in self.sockets() {
            self.shared.sockets.tell(&client, kind, data);
        }
    }

    /// How often it was told to stop whatever runs.
    #[must_use]
    pub fn bare_interrupts(&self) -> usize {
        self.shared.bare_interrupts.load(Ordering::SeqCst)
    }

    fn dequeue(&self, world: &World, id: &str) -> bool {
        let stopped = waits(world, id) && matches!(world.cancel(id), Ok(Stopped::Yes(_)));
        if stopped {
            self.shared.dequeued.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned());
        }
        stopped
    }

    fn interrupt(world: &World, id: &str) -> bool {
        !waits(world, id) && matches!(world.cancel(id), Ok(Stopped::Yes(_)))
    }

    /// Whether the server has lost sight of a run for a moment.
    fn lags(&self, run: &Run, count: bool) -> bool {
        if !run.ended() {
            return false;
        }
        let mut asked = self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = asked.entry(run.id.clone()).or_default();
        *asked += u32::from(count);
        *asked <= self.lag
    }

    fn submit(&self, world: &World, seen: &Seen) -> Answered {
        let Ok(Value::Object(body)) = serde_json::from_slice(&seen.body) else {
            return Err(typed(
                500,
                "text/plain; charset=utf-8",
                "500 Internal Server Error\n\nServer got itself in trouble",
            ));
        };
        let Some(Value::Object(prompt)) = body.get("prompt") else {
            return Err(problem("no_prompt", "No prompt provided", "", &json!({})));
        };
        let id = match body.get("prompt_id") {
            None | Some(Value::Null) => Uuid::new_v4().to_string(),
            Some(Value::String(id)) if canonical(id) => id.clone(),
            Some(_) => return Err(problem("invalid_prompt_id", "prompt_id must be a UUID", "", &json!({}))),
        };
        let checked = check::checked(world, prompt)?;
        let output = checked.outputs.first().cloned().unwrap_or_default();
        let film = film(prompt, &output);
        let prefix = prompt.get(&output).and_then(|node| node.pointer("/inputs/filename_prefix")?.as_str());
        let prefix = prefix.unwrap_or("ComfyUI");
        let same = world.lock().runs.iter().filter(|run| of(&run.extra, "prefix") == prefix).count();
        let extra = json!({
            "prefix": prefix, "counter": same + 1, "output": output, "client_id": body.get("client_id"),
            "extra_data": body.get("extra_data"),
        });
        let wish = Wish::new(kind(prompt, &output), "workflow", Value::Object(prompt.clone()));
        let run = world.buy(seen, wish.with_id(id).with_film(film).with_extra(extra))?;
        let left = world.lock().runs.iter().filter(|run| !run.ended()).count();
        self.shared.sockets.tell(
            &client(&run),
            "status",
            &json!({ "status": { "exec_info": { "queue_remaining": left } } }),
        );
        Ok(json(200, &json!({ "prompt_id": run.id, "number": run.number, "node_errors": checked.errors })))
    }

    fn queue(&self, world: &World) -> Answered {
        let (mut running, mut pending) = (Vec::new(), Vec::new());
        for run in world.list()?.iter().rev().filter(|run| !run.ended()) {
            let item = json!([run.number, run.id, run.input, of(&run.extra, "extra_data"), [of(&run.extra, "output")]]);
            if running.is_empty() { running.push(item) } else { pending.push(item) }
        }
        Ok(json(200, &json!({ "queue_running": running, "queue_pending": pending })))
    }

    fn history(&self, world: &World, id: &str) -> Answered {
        let run = match world.look(id) {
            Ok(run) => run,
            Err(response) if response.status() == StatusCode::NOT_FOUND => return Ok(json(200, &json!({}))),
            Err(response) => return Err(response),
        };
        self.announce(&run);
        let dequeued = self.shared.dequeued.lock().unwrap_or_else(PoisonError::into_inner).contains(id);
        let entry = if dequeued || self.lags(&run, true) { None } else { entry(&run) };
        Ok(json(200, &entry.map_or_else(|| json!({}), |entry| json!({ id: entry }))))
    }

    /// Tells whoever submitted it.
    fn announce(&self, run: &Run) {
        let (to, id) = (client(run), json!(run.id));
        let say = |kind: &str, data: Value| {
            self.shared.sockets.tell(&to, kind, &with(data, "prompt_id", id.clone()));
        };
        match run.phase() {
            Phase::Running(done) => {
                if run.looks == 1 {
                    say("execution_start", json!({ "timestamp": run.created_at.as_millisecond() }));
                    say("execution_cached", json!({ "nodes": [] }));
                    self.shared.sockets.show(&to);
                }
                let node = |node: &String| (node.clone(), json!({ "value": done, "max": 1.0, "state": "running" }));
                let nodes: Map<String, Value> =
                    run.input.as_object().into_iter().flat_map(Map::keys).map(node).collect();
                say("progress_state", json!({ "nodes": nodes }));
            }
            Phase::Succeeded => {
                say("execution_success", json!({}));
                say("executing", json!({ "node": null }));
            }
            Phase::Failed(_) => say("execution_error", json!({})),
            Phase::Canceled => say("execution_interrupted", json!({})),
            _ => {}
        }
    }
}

impl Remote for ComfyUi {
    fn id(&self) -> &'static str {
        "comfyui"
    }

    fn routes(&self) -> Router<World> {
        let (this, submit, queue, history) = (self.clone(), self.clone(), self.clone(), self.clone());
        let (ws, delete, interrupt, jobs) = (self.clone(), self.clone(), self.clone(), self.clone());
        let mut routes = Router::new()
            .route(
                "/prompt",
                post(async move |State(world): State<World>, Asked(seen): Asked| submit.submit(&world, &seen))
                    .get(remaining),
            )
            .route(
                "/queue",
                get(async move |State(world): State<World>| queue.queue(&world)).post(
                    async move |State(world): State<World>, Asked(seen): Asked| {
                        for id in of(&seen.json(), "delete").as_array().into_iter().flatten().filter_map(Value::as_str)
                        {
                            delete.dequeue(&world, id);
                        }
                        Response::new(Body::empty())
                    },
                ),
            )
            .route(
                "/history/{id}",
                get(async move |State(world): State<World>, Path(id): Path<String>| history.history(&world, &id)),
            )
            .route(
                "/interrupt",
                post(async move |State(world): State<World>, Asked(seen): Asked| {
                    match of(&seen.json(), "prompt_id").as_str() {
                        Some(id) => _ = Self::interrupt(&world, id),
                        None => {
                            interrupt.shared.bare_interrupts.fetch_add(1, Ordering::SeqCst);
                            let all = world.list().unwrap_or_default();
                            for run in &all {
                                Self::interrupt(&world, &run.id);
                            }
                        }
                    }
                    Response::new(Body::empty())
                }),
            )
            .route("/view", get(view))
            .route("/upload/image", post(upload))
            .route(
                "/ws",
                get(async move |State(world): State<World>, Asked(seen): Asked, request: Request| {
                    ws.shared.sockets.open(&world, &seen, request)
                }),
            );
        if this.jobs {
            let cancel = async move |State(world): State<World>, Path(id): Path<String>| {
                let done = jobs.dequeue(&world, &id) || Self::interrupt(&world, &id);
                json(200, &json!({ "cancelled": done }))
            };
            routes = routes.route("/jobs/{id}/cancel", post(cancel));
        }
        Router::new().merge(routes.clone()).nest("/api", routes).layer(from_fn(same_origin))
    }

    fn class(&self, method: &Method, path: &str) -> Class {
        match (method == Method::POST, path.strip_prefix("/api").unwrap_or(path)) {
            (true, "/prompt") => Class::Submit,
            (true, "/upload/image") => Class::Upload,
            (true, "/queue" | "/interrupt") => Class::Cancel,
            (true, path) if path.ends_with("/cancel") => Class::Cancel,
            (false, "/view") => Class::Output,
            (false, "/ws") => Class::Listen,
            _ => Class::Read,
        }
    }

    fn admits(&self, seen: &Seen, key: &str) -> bool {
        !self.guarded || has_key(seen, "Bearer", key)
    }

    fn refuse(&self, refusal: &Refusal) -> Response {
        let text = |status: u16, text: &'static str| typed(status, "text/plain; charset=utf-8", text);
        match refusal {
            Refusal::RateLimited(delay) => {
                with_header(text(429, "429: Too Many Requests"), "retry-after", whole_seconds(*delay).to_string())
            }
            Refusal::BadKey => text(401, "401: Unauthorized"),
            Refusal::NoCredit => text(402, "402: Payment Required"),
            Refusal::Invalid(reason) | Refusal::Moderated(reason) => {
                problem("invalid_prompt", "Cannot execute", reason, &json!({}))
            }
            Refusal::NotFound => text(404, "404: Not Found"),
            Refusal::Busy | Refusal::Unavailable => text(503, "503: Service Unavailable"),
        }
    }
}

/// Whether a run waits for its turn: one runs at a time, in the order of their numbers.
fn waits(world: &World, id: &str) -> bool {
    let state = world.lock();
    let first = state.runs.iter().find(|run| !run.ended());
    state.runs.iter().any(|run| run.id == id && !run.ended()) && first.is_some_and(|run| run.id != id)
}

/// A field; null if there is none.
fn of<'a>(value: &'a Value, name: &str) -> &'a Value {
    value.get(name).unwrap_or(&Value::Null)
}

/// An object with one field more.
fn with(mut object: Value, name: &str, value: Value) -> Value {
    if let Some(object) = object.as_object_mut() {
        object.insert(name.to_owned(), value);
    }
    object
}

fn client(run: &Run) -> String {
    of(&run.extra, "client_id").as_str().unwrap_or_default().to_owned()
}

/// Hyphens and lower case, as the server of 2026 wants it.
fn canonical(id: &str) -> bool {
    Uuid::parse_str(id).is_ok_and(|uuid| uuid.hyphenated().to_string() == id)
}

fn problem(kind: &str, message: &str, details: &str, node_errors: &Value) -> Response {
    let error = json!({ "type": kind, "message": message, "details": details, "extra_info": {} });
    json(400, &json!({ "error": error, "node_errors": node_errors }))
}

/// A page of another site may not use the server.
async fn same_origin(request: Request, next: Next) -> Response {
    if request.headers().contains_key(header::ORIGIN) {
        return typed(403, "text/plain", "");
    }
    next.run(request).await
}

async fn remaining(State(world): State<World>) -> Response {
    let left = world.lock().runs.iter().filter(|run| !run.ended()).count();
    json(200, &json!({ "exec_info": { "queue_remaining": left } }))
}

fn kind(prompt: &Map<String, Value>, output: &str) -> StepKind {
    match prompt.get(output).and_then(|node| of(node, "class_type").as_str()) {
        Some("SaveVideo" | "SaveWEBM" | "SaveAnimatedWEBP") => StepKind::Video,
        _ => StepKind::Image,
    }
}

/// As the nodes have it: whichever has a size, a number of frames, a rate.
fn film(prompt: &Map<String, Value>, output: &str) -> Film {
    let input = |name: &str| prompt.values().find_map(|node| of(of(node, "inputs"), name).as_f64());
    let whole = |name: &str| input(name).map(|number| number as u32);
    let mut film = Film::new(kind(prompt, output));
    if let (Some(width), Some(height)) = (whole("width"), whole("height")) {
        film = film.with_size(vidgen_core::Size { width, height });
    }
    let frames = input("length").or_else(|| input("batch_size")).filter(|frames| *frames > 1.0);
    if let (Some(frames), Some(fps)) = (frames, input("fps").filter(|fps| *fps > 0.0)) {
        film = film.with_duration(std::time::Duration::from_secs_f64(frames / fps));
    }
    film
}

/// Folder and name of what a run saved.
fn saved(run: &Run) -> (String, String) {
    let prefix = of(&run.extra, "prefix").as_str().unwrap_or_default();
    let (folder, stem) = prefix.rsplit_once('/').unwrap_or(("", prefix));
    let counter = of(&run.extra, "counter").as_u64().unwrap_or(1);
    (folder.to_owned(), format!("{stem}_{counter:05}_.{}", run.film.media_type().extension()))
}

fn entry(run: &Run) -> Option<Value> {
    let at = |ended: bool| match (run.ended_at, run.play.usage) {
        (Some(_), Some(Usage::Compute(time))) if ended => {
            run.created_at.as_millisecond() + i64::try_from(time.as_millis()).unwrap_or_default()
        }
        (Some(end), _) if ended => end.as_millisecond(),
        _ => run.created_at.as_millisecond(),
    };
    let last = |kind: &str, data: Value| {
        json!([kind, with(with(data, "prompt_id", json!(run.id)), "timestamp", json!(at(true)))])
    };
    let failed = |kind: &str, text: &str| {
        let node = of(&run.extra, "output").as_str().unwrap_or_default();
        let class = of(of(&run.input, node), "class_type");
        json!({ "node_id": node, "node_type": class, "exception_type": kind, "exception_message": text,
                "traceback": [TRACE], "current_inputs": {}, "executed": [] })
    };
    let (word, completed, end) = match run.phase() {
        Phase::Queued | Phase::Running(_) => return None,
        Phase::Unknown => ("reticulating", false, last("execution_dreams", json!({}))),
        Phase::Succeeded => ("success", true, last("execution_success", json!({}))),
        Phase::Failed(failure) => {
            let kind = failure.code.as_deref().unwrap_or("RuntimeError");
            ("error", false, last("execution_error", failed(kind, &failure.text)))
        }
        Phase::Moderated(reason) => ("error", false, last("execution_error", failed("Exception", &reason))),
        Phase::Aborted => ("error", false, last("execution_error", failed("Exception", "aborted"))),
        Phase::Canceled => ("error", false, last("execution_interrupted", json!({ "node_id": "1", "executed": [] }))),
    };
    let outputs = if completed {
        let (subfolder, filename) = saved(run);
        let files = json!([{ "filename": filename, "subfolder": subfolder, "type": "output" }]);
        let shown = json!({ "images": files });
        let moves = run.kind == StepKind::Video;
        let shown = if moves { with(shown, "animated", json!([true])) } else { shown };
        json!({ of(&run.extra, "output").as_str().unwrap_or_default(): shown })
    } else {
        json!({})
    };
    let start = json!(["execution_start", { "prompt_id": run.id, "timestamp": at(false) }]);
    let cached = json!(["execution_cached", { "nodes": [], "prompt_id": run.id, "timestamp": at(false) }]);
    Some(json!({
        "prompt": [run.number, run.id, run.input, of(&run.extra, "extra_data"), [of(&run.extra, "output")]],
        "outputs": outputs,
        "status": { "status_str": word, "completed": completed, "messages": [start, cached, end] },
        "meta": {},
    }))
}

async fn view(State(world): State<World>, Asked(seen): Asked) -> Answered {
    let [name, folder, place] = ["filename", "subfolder", "type"].map(|name| seen.query(name).unwrap_or_default());
    if name.starts_with('/') || format!("{name}{folder}").contains("..") {
        return Err(typed(400, "text/plain", ""));
    }
    let found = world.lock().runs.iter().find(|run| saved(run) == (folder.clone(), name.clone())).map(|r| r.id.clone());
    match found {
        Some(id) if place == "output" => Ok(world.serve(&id)),
        _ => Err(world.refuse(&Refusal::NotFound)),
    }
}

async fn upload(State(world): State<World>, Asked(seen): Asked) -> Answered {
    let form = seen.form().await;
    let text = |name: &str| form.iter().find(|field| field.name == name).map(super::ledger::Field::text);
    let Some((file, asked)) =
        form.iter().find(|field| field.name == "image").and_then(|field| Some((field, field.file_name.clone()?)))
    else {
        return Err(typed(400, "text/plain", ""));
    };
    let overwrite = matches!(text("overwrite").as_deref(), Some("true" | "1"));
    let (stem, extension) = asked.rsplit_once('.').unwrap_or((&asked, ""));
    let mut name = asked.clone();
    for number in 1.. {
        let taken = world.lock().uploads.iter().any(|there| there.name == name && there.bytes != file.bytes);
        if overwrite || !taken {
            break;
        }
        name = format!("{stem} ({number}).{extension}");
    }
    let content_type = file.content_type.clone().unwrap_or_default();
    let kept = world.keep(name, content_type, file.bytes.clone());
    let place = text("type").unwrap_or_else(|| "input".to_owned());
    Ok(json(200, &json!({ "name": kept.name, "subfolder": text("subfolder").unwrap_or_default(), "type": place })))
}
