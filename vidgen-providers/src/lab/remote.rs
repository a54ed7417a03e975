//! What a file of this directory says of its remote, and what several of them need for that.

use std::time::Duration;

use aws_lc_rs::hmac;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::future::BoxFuture;
use serde_json::Value;

use super::ledger::{Class, Seen};
use super::play::Refusal;
use super::run::Run;
use super::world::World;

/// A remote that the lab can play: its routes, its words, its signatures. What is the same for all
/// of them (who is let in, what was bought, faults, outputs, calling back) is the lab's.
///
/// A route that buys calls [`World::buy`]; one that shows a run [`World::look`]; one that lists
/// them [`World::list`]; one that stops one [`World::cancel`]. Each answers `Err(response)` for
/// what the play wants said instead, so that routes are `Result<Response, Response>` and use `?`.
pub trait Remote: Send + Sync + 'static {
    /// The provider's name, as [`ProviderId`](vidgen_core::ProviderId) has it.
    fn id(&self) -> &'static str;

    /// The path that the client's base URL ends with, such as `/v1`; may be empty.
    fn base_path(&self) -> &'static str {
        ""
    }

    /// The key that is accepted, in the remote's own form. Long enough not to be found by chance.
    fn key(&self) -> String {
        format!("{}-lab-key-0123456789", self.id())
    }

    /// The routes, full paths. Outputs that are fetched without a key need none:
    /// [`World::output_url`] leads to a route that is the lab's.
    fn routes(&self) -> Router<World>;

    /// What kind of call this is.
    fn class(&self, method: &Method, path: &str) -> Class;

    /// Whether a call carries the key, or needs none.
    fn admits(&self, seen: &Seen, key: &str) -> bool;

    /// The remote's way to say no.
    fn refuse(&self, refusal: &Refusal) -> Response;

    /// What the remote sends to the callback URL of a run that ended: headers (with the signature,
    /// if it has one) and body. `None`: it does not call back.
    fn callback(&self, world: &World, run: &Run) -> Option<Signed> {
        let _ = (world, run);
        None
    }

    /// What it does when a run has ended, before it calls back: uploads its output somewhere, say.
    /// What came of that is kept with [`World::note`].
    fn before_callback(&self, world: World, run: Run) -> BoxFuture<'static, ()> {
        let _ = (world, run);
        Box::pin(std::future::ready(()))
    }

    /// How long outputs are there after the end, by the remote's clock, if not for ever.
    fn output_life(&self) -> Option<Duration> {
        None
    }

    /// How often it tries to call back, and from which pause on; shortened to what a test can wait for.
    fn retries(&self) -> Retries {
        Retries::default()
    }
}

impl Remote for Box<dyn Remote> {
    fn id(&self) -> &'static str {
        (**self).id()
    }
    fn base_path(&self) -> &'static str {
        (**self).base_path()
    }
    fn key(&self) -> String {
        (**self).key()
    }
    fn routes(&self) -> Router<World> {
        (**self).routes()
    }
    fn class(&self, method: &Method, path: &str) -> Class {
        (**self).class(method, path)
    }
    fn admits(&self, seen: &Seen, key: &str) -> bool {
        (**self).admits(seen, key)
    }
    fn refuse(&self, refusal: &Refusal) -> Response {
        (**self).refuse(refusal)
    }
    fn callback(&self, world: &World, run: &Run) -> Option<Signed> {
        (**self).callback(world, run)
    }
    fn before_callback(&self, world: World, run: Run) -> BoxFuture<'static, ()> {
        (**self).before_callback(world, run)
    }
    fn output_life(&self) -> Option<Duration> {
        (**self).output_life()
    }
    fn retries(&self) -> Retries {
        (**self).retries()
    }
}

/// What is sent to a callback URL.
#[derive(Clone, Debug)]
pub struct Signed {
    /// Headers, with the signature.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
}

/// How a remote repeats a callback that was not taken: each pause is twice the one before.
#[derive(Clone, Copy, Debug)]
pub struct Retries {
    /// How often it tries at most.
    pub tries: u32,
    /// The first pause.
    pub pause: Duration,
    /// Which statuses it repeats; not being reached is always repeated.
    pub on: fn(u16) -> bool,
}

impl Default for Retries {
    fn default() -> Self {
        Self { tries: 5, pause: Duration::from_millis(20), on: |status| status >= 400 }
    }
}

/// An answer with a JSON body.
#[must_use]
pub fn json(status: u16, body: &Value) -> Response {
    typed(status, "application/json", body.to_string())
}

/// An answer of that type.
pub fn typed(status: u16, content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Adds a header; one that cannot be is left out.
#[must_use]
pub fn with_header(mut response: Response, name: &'static str, value: impl AsRef<str>) -> Response {
    if let Ok(value) = HeaderValue::from_str(value.as_ref()) {
        response.headers_mut().insert(name, value);
    }
    response
}

/// Whether the call has `Authorization: {scheme} {key}`.
#[must_use]
pub fn has_key(seen: &Seen, scheme: &str, key: &str) -> bool {
    seen.header("authorization").and_then(|value| value.strip_prefix(scheme)?.strip_prefix(' ')) == Some(key)
}

/// Whole seconds of a wait, rounded up, as `Retry-After` has them.
#[must_use]
pub fn whole_seconds(delay: Duration) -> u64 {
    delay.as_secs() + u64::from(delay.subsec_nanos() > 0)
}

/// What is sent under Standard Webhooks: `webhook-id`, `webhook-timestamp`, `webhook-signature`.
/// `secret` is `whsec_` and base64.
#[must_use]
pub fn standard_webhook(secret: &str, id: &str, at: jiff::Timestamp, body: Bytes) -> Signed {
    let key = STANDARD.decode(secret.trim_start_matches("whsec_")).unwrap_or_default();
    let seconds = at.as_second();
    let mut text = format!("{id}.{seconds}.").into_bytes();
    text.extend_from_slice(&body);
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), &text);
    let headers = [
        ("content-type", "application/json".to_owned()),
        ("webhook-id", id.to_owned()),
        ("webhook-timestamp", seconds.to_string()),
        ("webhook-signature", format!("v1,{}", STANDARD.encode(signature))),
    ];
    Signed { headers: headers.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(), body }
}
