//! The handshake of a WebSocket: an exchange like any other, with the same TLS, proxy and headers.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::{StatusCode, Upgraded};
use uuid::Uuid;
use vidgen_core::{ErrorKind, Result};

use super::refusal::Purpose;
use super::{Call, Client};

/// What a server adds to the key that it was asked with (RFC 6455, 1.3).
const ADDED: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

impl Client {
    /// Opens a WebSocket; what comes and goes on the connection from here on are its frames. Not
    /// repeated: whoever wants one comes again.
    ///
    /// # Errors
    /// As [`Client::ask`]; `Protocol` if the remote does not speak the protocol.
    pub(crate) async fn websocket(&self, call: Call) -> Result<Upgraded> {
        let key = STANDARD.encode(Uuid::new_v4().as_bytes());
        let call = call
            .with_header("connection", "Upgrade")
            .with_header("upgrade", "websocket")
            .with_header("sec-websocket-version", "13")
            .with_header("sec-websocket-key", &key);
        let request = self.request(&self.shared.read, &call)?.timeout(self.shared.read_timeout);
        let response = request.send().await.map_err(|e| self.broken(e, Purpose::Ask))?;
        let other = || self.error(ErrorKind::Protocol, "the remote does not speak the WebSocket protocol");
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return match self.taken(response).await {
                Ok(_) => Err(other()),
                Err(refusal) => Err(self.refused(&refusal, Purpose::Ask, &call.sent())),
            };
        }
        let proof = STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{ADDED}").as_bytes()));
        let told = response.headers().get("sec-websocket-accept").and_then(|value| value.to_str().ok());
        if told != Some(proof.as_str()) {
            return Err(other());
        }
        response.upgrade().await.map_err(|e| self.broken(e, Purpose::Ask))
    }
}
