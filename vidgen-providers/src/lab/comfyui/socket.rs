//! The server's WebSocket: who listens, and what is told them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};
use uuid::Uuid;

use super::super::ledger::Seen;
use super::super::remote::{typed, with_header};
use super::super::world::World;

/// A preview: type 1, format 2 (PNG), and no picture.
const PREVIEW: &[u8] = &[0, 0, 0, 1, 0, 0, 0, 2];

/// Who listens.
#[derive(Clone, Default)]
pub(super) struct Sockets {
    open: Arc<Mutex<HashMap<String, UnboundedSender<Message>>>>,
    refused: Arc<AtomicBool>,
}

impl Sockets {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, UnboundedSender<Message>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn clients(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    pub(super) fn refuse(&self, refuse: bool) {
        self.refused.store(refuse, Ordering::SeqCst);
        if refuse {
            self.clear();
        }
    }

    /// Tells one client something, if it listens.
    pub(super) fn tell(&self, client: &str, kind: &str, data: &Value) {
        if let Some(to) = self.lock().get(client) {
            drop(to.send(Message::text(json!({ "type": kind, "data": data }).to_string())));
        }
    }

    /// Shows one client a preview.
    pub(super) fn show(&self, client: &str) {
        if let Some(to) = self.lock().get(client) {
            drop(to.send(Message::Binary(Bytes::from_static(PREVIEW))));
        }
    }

    /// Answers the handshake, and listens from then on.
    pub(super) fn open(&self, world: &World, seen: &Seen, mut request: Request) -> Response {
        let Some(key) = seen.header("sec-websocket-key").filter(|_| seen.header("upgrade") == Some("websocket")) else {
            return typed(400, "text/plain", "No WebSocket UPGRADE hdr");
        };
        if self.refused.load(Ordering::SeqCst) {
            return typed(503, "text/plain", "");
        }
        let proof = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes());
        let client = seen.query("clientId").filter(|id| !id.is_empty());
        let client = client.unwrap_or_else(|| Uuid::new_v4().simple().to_string());
        let (upgrade, sockets) = (hyper::upgrade::on(&mut request), self.clone());
        world.spawn(async move {
            if let Ok(stream) = upgrade.await {
                let socket = WebSocketStream::from_raw_socket(TokioIo::new(stream), Role::Server, None).await;
                sockets.serve(client, socket).await;
            }
        });
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let response = with_header(with_header(response, "connection", "Upgrade"), "upgrade", "websocket");
        with_header(response, "sec-websocket-accept", STANDARD.encode(proof))
    }

    async fn serve(&self, client: String, mut socket: WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>) {
        let (to, mut said): (_, UnboundedReceiver<Message>) = unbounded_channel();
        // Whoever comes again under a name takes it over.
        let mine = to.downgrade();
        self.lock().insert(client.clone(), to);
        self.tell(&client, "status", &json!({ "status": { "exec_info": { "queue_remaining": 0 } }, "sid": client }));
        loop {
            tokio::select! {
                message = said.recv() => match message {
                    Some(message) => if socket.send(message).await.is_err() { break },
                    None => return,
                },
                heard = socket.next() => if !matches!(heard, Some(Ok(_))) { break },
            }
        }
        let mut all = self.lock();
        if mine.upgrade().is_some_and(|mine| all.get(&client).is_some_and(|current| current.same_channel(&mine))) {
            all.remove(&client);
        }
    }
}
