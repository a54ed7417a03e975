//! A provider of pictures, with a remote that speaks JSON over function calls: what an adapter of
//! a real API does, without its sockets.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use serde_json::{Map, Value, json};
use vidgen_core::conformance::provider::{Call, Fixture, Impossible, Scene, Signed, Stage};
use vidgen_core::*;

const KEY: &str = "easel-key-0123456789";
const PROMPT: &str = "somebody's secret idea";
const PICTURE: &[u8] = b"\x89PNG\r\n\x1a\na picture of somebody's idea";
const BACK_AFTER: u64 = 42;

/// A client of the Easel API.
#[derive(Clone)]
struct Easel {
    key: String,
    remote: Arc<Remote>,
}

impl std::fmt::Debug for Easel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Easel").field("key", &"…").finish()
    }
}

fn error(kind: ErrorKind, message: &str) -> Error {
    Error::new(kind, "easel", message)
}

/// An answer that says no, as far as it is the same for every call.
fn refusal(status: u16, body: &Value) -> Error {
    match status {
        401 => error(ErrorKind::Unauthorized, "the key is wrong"),
        404 => error(ErrorKind::NotFound, "no such painting"),
        409 => error(ErrorKind::TooLate, "the painting is dry"),
        422 => error(ErrorKind::Refused, "refused").with_quote(body["reason"].as_str().unwrap_or_default()),
        429 => error(ErrorKind::RateLimited, "too many")
            .with_retry_after(Duration::from_secs(body["retry_after"].as_u64().unwrap_or(1))),
        _ => error(ErrorKind::Unavailable, "the easel has a fault"),
    }
}

impl Easel {
    /// A call that changes nothing, or that may be repeated.
    async fn ask(&self, call: Value) -> Result<Value> {
        match self.remote.call(&self.key, call).await {
            Answer::Says(200, text) => serde_json::from_str(&text)
                .map_err(|e| error(ErrorKind::Protocol, "the answer is not understood").with_source(e)),
            Answer::Says(status, text) => Err(refusal(status, &serde_json::from_str(&text).unwrap_or_default())),
            Answer::Breaks | Answer::Refused => Err(error(ErrorKind::Unavailable, "the connection broke")),
        }
    }
}

#[async_trait]
impl Provider for Easel {
    fn id(&self) -> ProviderId {
        ProviderId::new("easel")
    }

    fn capabilities(&self) -> Capabilities {
        let oils = Model::new("easel/oils", StepKind::Image, Price::PerRun(Usd::from_cents(4)))
            .with_typical(Duration::from_secs(3))
            .with_max_side(2048);
        Capabilities::new(vec![oils])
            .with_resubmit(Resubmit::Keyed(Duration::from_secs(3600)))
            .with_find()
            .with_cancel()
            .with_callback()
            .with_submit_timeout(Duration::from_secs(5))
            .with_output_life(Duration::from_secs(600))
    }

    async fn submit(&self, task: &Task, options: &SubmitOptions) -> Result<Handle> {
        if self.capabilities().model(task.spec.kind(), Some(&task.model)).is_none() {
            return Err(error(ErrorKind::Unsupported, "no such model"));
        }
        let TaskSpec::Image(image) = &task.spec else {
            return Err(error(ErrorKind::Unsupported, "it paints pictures and nothing else"));
        };
        let call = json!({
            "do": "paint", "key": options.submission, "prompt": image.prompt, "callback": options.callback,
            "width": image.size.width, "height": image.size.height,
        });
        let lost = || error(ErrorKind::OutcomeUnknown, "nobody knows whether it is painted");
        match self.remote.call(&self.key, call).await {
            Answer::Refused => Err(error(ErrorKind::NotSent, "nobody is there")),
            Answer::Breaks | Answer::Says(500.., _) => Err(lost()),
            Answer::Says(200, text) => {
                let body: Value = serde_json::from_str(&text).map_err(|e| lost().with_source(e))?;
                let id = body["id"].as_str().ok_or_else(lost)?;
                Ok(Handle::new(self.id(), id).with_detail(json!({ "room": body["room"] })))
            }
            Answer::Says(status, text) => Err(refusal(status, &serde_json::from_str(&text).unwrap_or_default())),
        }
    }

    async fn poll(&self, handle: &Handle) -> Result<Snapshot> {
        let body = self.ask(json!({ "do": "look", "id": handle.remote_id })).await?;
        let snapshot = match body["state"].as_str() {
            None => return Err(error(ErrorKind::Protocol, "a painting without a state")),
            Some("done") => {
                let mut output = Output::new(body["link"].as_str().unwrap_or_default());
                output.media_type = Some(MediaType::Png);
                Snapshot::succeeded(vec![output])
            }
            Some("spoiled") => {
                let reason = body["reason"].as_str().unwrap_or_default();
                Snapshot::failed(RunFailure::new(ErrorKind::Unavailable, reason).with_bill())
            }
            Some("stopped") => Snapshot::canceled(),
            // New states come without notice.
            Some(_) => Snapshot::running(body["progress"].as_f64().map(|p| p as f32)),
        };
        Ok(match body["cents"].as_i64() {
            Some(cents) => snapshot.with_cost(Usd::from_cents(cents)),
            None => snapshot,
        })
    }

    async fn open(&self, output: &Output) -> Result<Body> {
        let body = self.ask(json!({ "do": "fetch", "link": output.locator })).await?;
        let length = body["length"].as_u64();
        let broke = || error(ErrorKind::Unavailable, "the connection broke");
        let sent = self.remote.bytes();
        Ok(match self.remote.scene {
            Scene::TruncatedOutput => Body::new(stream::iter([Ok(sent), Err(broke())]), length),
            Scene::StalledOutput => Body::new(stream::iter([Ok(sent)]).chain(stream::pending()), length),
            _ => Body::new(stream::iter([Ok(sent)]), length),
        })
    }

    async fn cancel(&self, handle: &Handle) -> Result<()> {
        self.ask(json!({ "do": "stop", "id": handle.remote_id })).await.map(drop)
    }

    async fn find(&self, submission: &Submission) -> Result<Lookup> {
        let body = self.ask(json!({ "do": "search", "key": submission.id })).await?;
        let paintings = body["paintings"].as_array().ok_or_else(|| error(ErrorKind::Protocol, "no list"))?;
        let id = paintings.first().and_then(Value::as_str);
        Ok(id.map_or(Lookup::Absent, |id| Lookup::Found(Handle::new(self.id(), id))))
    }

    async fn callback(&self, callback: &Callback, _: &Spool) -> Result<Handle> {
        if callback.header("easel-key") != Some(KEY) {
            return Err(error(ErrorKind::Unauthorized, "the callback is not the easel's"));
        }
        let body: Value = serde_json::from_slice(&callback.body)
            .map_err(|e| error(ErrorKind::Protocol, "the callback is not understood").with_source(e))?;
        let id = body["id"].as_str().ok_or_else(|| error(ErrorKind::Protocol, "a callback about nothing"))?;
        Ok(Handle::new(self.id(), id))
    }
}

/// The other end.
struct Remote {
    scene: Scene,
    calls: Mutex<Vec<Call>>,
    /// By number: the key it was ordered under, and whether it was stopped.
    paintings: Mutex<Vec<(String, bool)>>,
}

enum Answer {
    Says(u16, String),
    /// The connection ends.
    Breaks,
    /// There was no connection.
    Refused,
}

impl Remote {
    async fn call(&self, key: &str, call: Value) -> Answer {
        if self.scene == Scene::Unreachable {
            return Answer::Refused;
        }
        let says = |status: u16, body: Value| Answer::Says(status, body.to_string());
        let paints = call["do"] == "paint";
        let text = format!("Authorization: {key}\n{call}");
        self.calls.lock().unwrap().push(if paints { Call::submit(text) } else { Call::other(text) });
        let limited = || says(429, json!({ "retry_after": BACK_AFTER }));
        if key != KEY {
            return says(401, json!({}));
        }
        if paints {
            match self.scene {
                Scene::RateLimits => return limited(),
                Scene::Refuses => return says(422, json!({ "reason": "not in this house" })),
                _ => {}
            }
            let id = self.accept(call["key"].as_str().unwrap_or_default());
            return match self.scene {
                Scene::Hangs => std::future::pending().await,
                Scene::ResetsAfterAccepting => Answer::Breaks,
                Scene::FailsAfterAccepting => says(502, json!("bad gateway")),
                Scene::GarblesAcceptance => Answer::Says(200, "<html>welcome</html>".into()),
                _ => says(200, json!({ "id": id, "room": 7 })),
            };
        }
        match self.scene {
            Scene::Garbled => return Answer::Says(200, "{\"state\":".into()),
            Scene::RateLimitsLooks => return limited(),
            _ => {}
        }
        let paintings = self.paintings.lock().unwrap().clone();
        if call["do"] == "search" {
            let found = paintings.iter().enumerate().filter(|(_, (key, _))| call["key"] == **key);
            return says(200, json!({ "paintings": found.map(|(n, _)| format!("p{n}")).collect::<Vec<_>>() }));
        }
        if call["do"] == "fetch" {
            let gone = self.scene == Scene::OutputExpired;
            let announced = if self.scene == Scene::OversizedOutput { PICTURE.len() - 5 } else { PICTURE.len() };
            return if gone { says(404, json!({})) } else { says(200, json!({ "length": announced })) };
        }
        let number = call["id"].as_str().and_then(|id| id.strip_prefix('p')).and_then(|n| n.parse::<usize>().ok());
        let Some((number, stopped)) = number.and_then(|n| Some((n, paintings.get(n)?.1))) else {
            return says(404, json!({}));
        };
        let state = match self.scene {
            _ if stopped => "stopped",
            Scene::Accepts | Scene::Running | Scene::CancelOk => "drying",
            Scene::UnknownState => "being framed",
            Scene::Fails => "spoiled",
            _ => "done",
        };
        if call["do"] == "stop" {
            if state != "drying" {
                return says(409, json!({}));
            }
            self.paintings.lock().unwrap()[number].1 = true;
            return says(200, json!({}));
        }
        let cents = (self.scene == Scene::StatesCost).then_some(5);
        let link = format!("paintings/{number}?signature={KEY}");
        says(200, json!({ "state": state, "link": link, "cents": cents, "reason": "rain\nand wind" }))
    }

    fn accept(&self, key: &str) -> String {
        let mut paintings = self.paintings.lock().unwrap();
        let number = paintings.iter().position(|(known, _)| known == key).unwrap_or_else(|| {
            paintings.push((key.into(), false));
            paintings.len() - 1
        });
        format!("p{number}")
    }

    fn bytes(&self) -> Bytes {
        let half = matches!(self.scene, Scene::TruncatedOutput | Scene::StalledOutput);
        Bytes::from_static(if half { &PICTURE[..20] } else { PICTURE })
    }
}

struct Studio;

#[async_trait]
impl Fixture for Studio {
    async fn stage(&self, scene: Scene) -> Result<Stage, Impossible> {
        let remote = Arc::new(Remote { scene, calls: Mutex::default(), paintings: Mutex::default() });
        let size = Size { width: 640, height: 360 };
        let image = ImageTask { prompt: PROMPT.into(), negative_prompt: None, style: None, size, seed: Some(1) };
        let task = Task { model: ModelId::new("easel/oils"), spec: TaskSpec::Image(image), extra: Map::new() };
        let key = if scene == Scene::BadKey { "easel-key-revoked" } else { KEY };
        let client = {
            let remote = remote.clone();
            move || Easel { key: key.into(), remote: remote.clone() }
        };
        let told = {
            let remote = remote.clone();
            move |id: &SubmissionId| {
                let paintings = remote.paintings.lock().unwrap();
                let number = paintings.iter().position(|(key, _)| key == id.as_str())?;
                let body = json!({ "id": format!("p{number}"), "state": "done" }).to_string();
                Some(Callback::new([("easel-key", KEY)], body, jiff::Timestamp::UNIX_EPOCH))
            }
        };
        let stage = Stage::new(task, client, move || remote.calls.lock().unwrap().clone())
            .with_callback(Signed::Sender, told)
            .with_secrets([KEY, "easel-key-revoked", PROMPT])
            .with_handle(Handle::new(ProviderId::new("easel"), "p999"))
            .with_retry_after(Duration::from_secs(BACK_AFTER))
            .with_output(PICTURE);
        Ok(if scene == Scene::StatesCost { stage.with_cost(Usd::from_cents(5)) } else { stage })
    }
}

vidgen_core::provider_conformance!(easel, Studio);
