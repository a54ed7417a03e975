//! How far runs are, as ComfyUI tells it over a WebSocket while it works.
//!
//! It is an ornament: the truth about a run is the server's history. Where there is no socket, or
//! one is lost, a poll has no progress to show, and nothing else changes.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};
use uuid::Uuid;
use vidgen_core::Result;

use crate::client::{Call, Client};

/// More runs than a server of one's own ever has in hand. Those beyond have no progress.
const MAX_RUNS: usize = 256;
/// A run that nobody asks for any more is not listened for.
const FORGET: Duration = Duration::from_mins(10);
/// So often the server is asked whether it is still there.
const PING: Duration = Duration::from_secs(20);
/// A socket that says nothing for so long, not even to pings, is dead.
const DEAD: Duration = Duration::from_secs(60);
/// The pause before a lost socket is opened again, ...
const PAUSE: Duration = Duration::from_secs(1);
/// ... which doubles up to this.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// The longest frame: previews are pictures, and outputs can be many.
const MAX_FRAME: usize = 8 * 1024 * 1024;
/// What is read at a time.
const BUFFER: usize = 16 * 1024;

/// Listens to a server as long as there are runs to listen for. Dropping it ends that.
pub(super) struct Progress {
    /// The name under which the server knows us: it tells of a run whoever submitted it.
    client_id: String,
    client: Client,
    runs: Arc<Runs>,
    listener: Mutex<Option<JoinHandle<()>>>,
}

impl Progress {
    pub(super) fn new(client: Client) -> Self {
        let client_id = Uuid::new_v4().simple().to_string();
        Self { client_id, client, runs: Arc::default(), listener: Mutex::default() }
    }

    pub(super) fn client_id(&self) -> &str {
        &self.client_id
    }

    /// Listens for a run of so many nodes from now on.
    pub(super) fn watch(&self, id: &str, nodes: usize) {
        let mut listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        let listening = self.runs.add(id, nodes);
        // One that was cut off with its runtime has left no word.
        if !listening || listener.as_ref().is_none_or(JoinHandle::is_finished) {
            let (client, client_id, runs) = (self.client.clone(), self.client_id.clone(), self.runs.clone());
            *listener = Some(tokio::spawn(listen(client, client_id, runs)));
        }
    }

    /// How far a run is, if that is known.
    pub(super) fn of(&self, id: &str) -> Option<f32> {
        let mut state = self.runs.lock();
        let run = state.runs.get_mut(id)?;
        run.asked = Instant::now();
        run.fraction
    }

    pub(super) fn forget(&self, id: &str) {
        self.runs.lock().runs.remove(id);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(listener) = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take() {
            listener.abort();
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Runs(Mutex<State>);

#[derive(Default)]
struct State {
    runs: HashMap<String, Run>,
    listening: bool,
}

struct Run {
    nodes: usize,
    cached: usize,
    begun: usize,
    fraction: Option<f32>,
    asked: Instant,
}

impl Runs {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a run; answers whether somebody listens for it.
    fn add(&self, id: &str, nodes: usize) -> bool {
        let mut state = self.lock();
        if state.runs.len() < MAX_RUNS {
            let run = Run { nodes: nodes.max(1), cached: 0, begun: 0, fraction: None, asked: Instant::now() };
            state.runs.insert(id.to_owned(), run);
        }
        std::mem::replace(&mut state.listening, true)
    }

    /// Ends the listening, if there is nothing to listen for.
    fn leave(&self) -> bool {
        let mut state = self.lock();
        state.runs.retain(|_, run| run.asked.elapsed() < FORGET);
        state.listening = !state.runs.is_empty();
        !state.listening
    }

    /// What is not told any more is not known any more.
    fn blur(&self) {
        for run in self.lock().runs.values_mut() {
            (run.fraction, run.begun, run.cached) = (None, 0, 0);
        }
    }

    fn hear(&self, event: &Event) {
        let Some(id) = event.data.get("prompt_id").and_then(Value::as_str) else { return };
        let mut state = self.lock();
        if let Some(run) = state.runs.get_mut(id)
            && let Some(done) = run.done(event)
        {
            // A node can begin again from zero; a bar that runs backwards helps nobody.
            let done = done.clamp(0.0, 1.0);
            run.fraction = Some(run.fraction.map_or(done, |before| before.max(done)));
        }
    }
}

/// What the server says of a run, or of itself.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    data: Value,
}

impl Run {
    /// The share of nodes that are done, as far as this event tells.
    fn done(&mut self, event: &Event) -> Option<f32> {
        match event.kind.as_str() {
            "execution_start" => Some(0.0),
            "execution_cached" => {
                self.cached = event.data.get("nodes").and_then(Value::as_array).map_or(0, Vec::len);
                Some(self.share(0.0))
            }
            // All nodes that have begun, each with its own progress.
            "progress_state" => {
                let nodes = event.data.get("nodes").and_then(Value::as_object)?;
                Some(self.share(nodes.values().map(node_done).sum()))
            }
            // Older servers name the node at work, and tell of that one alone.
            "executing" if event.data.get("node").is_some_and(Value::is_string) => {
                self.begun = self.begun.saturating_add(1);
                Some(self.share(count(self.begun.saturating_sub(1))))
            }
            "progress" => Some(self.share(count(self.begun.saturating_sub(1)) + ratio(&event.data)?)),
            _ => None,
        }
    }

    fn share(&self, done: f32) -> f32 {
        (done + count(self.cached)) / count(self.nodes)
    }
}

fn node_done(node: &Value) -> f32 {
    match node.get("state").and_then(Value::as_str) {
        Some("finished") => 1.0,
        Some("running") => ratio(node).unwrap_or_default(),
        _ => 0.0,
    }
}

/// `value` of `max`.
fn ratio(of: &Value) -> Option<f32> {
    let (value, max) = (of.get("value")?.as_f64()?, of.get("max")?.as_f64()?);
    #[expect(clippy::cast_possible_truncation, reason = "a share of progress needs no more digits")]
    (max > 0.0).then(|| (value / max).clamp(0.0, 1.0) as f32)
}

#[expect(clippy::cast_precision_loss, reason = "no workflow has millions of nodes")]
fn count(nodes: usize) -> f32 {
    nodes as f32
}

async fn listen(client: Client, client_id: String, runs: Arc<Runs>) {
    let mut pause = PAUSE;
    while !runs.leave() {
        let began = Instant::now();
        match follow(&client, &client_id, &runs).await {
            Ok(Lost::No) => return,
            Ok(Lost::Yes) => tracing::debug!("the socket to ComfyUI was lost"),
            Err(error) => tracing::debug!(%error, "no progress from ComfyUI"),
        }
        runs.blur();
        // One that held for a while was fine.
        pause = if began.elapsed() > DEAD { PAUSE } else { (pause * 2).min(MAX_PAUSE) };
        sleep(pause / 2).await;
    }
}

/// How listening ended.
enum Lost {
    /// The socket is there no more.
    Yes,
    /// There was nothing more to listen for; by now somebody else may be listening.
    No,
}

async fn follow(client: &Client, client_id: &str, runs: &Runs) -> Result<Lost> {
    let stream = client.websocket(Call::get(["ws"]).with_query("clientId", client_id)).await?;
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER)
        .write_buffer_size(0)
        .max_message_size(Some(MAX_FRAME))
        .max_frame_size(Some(MAX_FRAME));
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Client, Some(config)).await;
    let mut pings = interval(PING);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            frame = socket.next() => match frame {
                Some(Ok(Message::Text(text))) => {
                    heard = Instant::now();
                    if let Ok(event) = serde_json::from_str::<Event>(&text) {
                        runs.hear(&event);
                    }
                }
                // Previews are pictures, which nobody here wants.
                Some(Ok(_)) => heard = Instant::now(),
                Some(Err(_)) | None => return Ok(Lost::Yes),
            },
            _ = pings.tick() => {
                if runs.leave() {
                    return Ok(Lost::No);
                }
                let there = heard.elapsed() <= DEAD && socket.send(Message::Ping(Bytes::new())).await.is_ok();
                if !there {
                    return Ok(Lost::Yes);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn hear(runs: &Runs, kind: &str, data: Value) {
        runs.hear(&serde_json::from_value(json!({ "type": kind, "data": data })).unwrap());
    }

    fn fraction(runs: &Runs, id: &str) -> Option<f32> {
        runs.lock().runs.get(id)?.fraction
    }

    #[test]
    fn nodes_that_are_done_count_whole_and_the_one_at_work_in_part() {
        let runs = Runs::default();
        runs.add("a", 4);
        hear(&runs, "execution_start", json!({ "prompt_id": "a" }));
        assert_eq!(fraction(&runs, "a"), Some(0.0));
        hear(&runs, "execution_cached", json!({ "prompt_id": "a", "nodes": ["1"] }));
        assert_eq!(fraction(&runs, "a"), Some(0.25));
        let (done, half) = (json!({ "state": "finished" }), json!({ "value": 5, "max": 10, "state": "running" }));
        hear(&runs, "progress_state", json!({ "prompt_id": "a", "nodes": { "2": done, "3": half } }));
        assert_eq!(fraction(&runs, "a"), Some(0.625));
        // Less than that is no news, and nor is more than all.
        hear(&runs, "progress_state", json!({ "prompt_id": "a", "nodes": { "2": half } }));
        assert_eq!(fraction(&runs, "a"), Some(0.625));
        let many = json!({ "1": done, "2": done, "3": done, "4": done, "4:1": done });
        hear(&runs, "progress_state", json!({ "prompt_id": "a", "nodes": many }));
        assert_eq!(fraction(&runs, "a"), Some(1.0));
    }

    #[test]
    fn older_servers_name_the_node_at_work() {
        let runs = Runs::default();
        runs.add("a", 2);
        hear(&runs, "executing", json!({ "prompt_id": "a", "node": "1" }));
        hear(&runs, "progress", json!({ "prompt_id": "a", "node": "1", "value": 1, "max": 2 }));
        assert_eq!(fraction(&runs, "a"), Some(0.25));
        hear(&runs, "executing", json!({ "prompt_id": "a", "node": "2" }));
        hear(&runs, "executing", json!({ "prompt_id": "a", "node": null }));
        assert_eq!(fraction(&runs, "a"), Some(0.5));
    }

    #[test]
    fn what_is_not_understood_or_is_somebody_elses_changes_nothing() {
        let runs = Runs::default();
        runs.add("a", 2);
        for data in
            [json!(null), json!([1]), json!({ "prompt_id": "b" }), json!({ "prompt_id": "a", "max": 0, "value": 1 })]
        {
            for kind in ["progress", "progress_state", "executing", "status", "crystools.monitor"] {
                hear(&runs, kind, data.clone());
            }
        }
        assert_eq!((fraction(&runs, "a"), fraction(&runs, "b")), (None, None));
    }

    #[test]
    fn memory_is_bounded_and_one_listener_is_enough() {
        let runs = Runs::default();
        assert!(!runs.add("0", 1), "nobody listens yet");
        for run in 1..2 * MAX_RUNS {
            assert!(runs.add(&run.to_string(), 1), "somebody does");
        }
        assert_eq!(runs.lock().runs.len(), MAX_RUNS);
        assert!(!runs.leave(), "there is something to listen for");
        runs.lock().runs.clear();
        assert!(runs.leave());
        assert!(!runs.add("a", 1), "whoever left does not listen");
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_that_nobody_asks_for_is_forgotten() {
        let runs = Runs::default();
        runs.add("a", 1);
        tokio::time::advance(FORGET - Duration::from_secs(1)).await;
        assert!(!runs.leave());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(runs.leave());
    }
}
