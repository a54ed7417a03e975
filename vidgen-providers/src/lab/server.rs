//! The accept loop, and what every call goes through.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::{fmt, io};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderValue, Request, StatusCode, header};
use axum::response::Response;
use axum::routing::get;
use bytes::Bytes;
use futures::{StreamExt, stream};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tower::ServiceExt;

use super::faults::{Fault, Outage};
use super::ledger::{Asked, Class, Seen};
use super::play::{Answer, Refusal};
use super::remote::typed;
use super::world::World;

/// More than any remote takes: an input of 100 MB as a data URL.
const MAX_BODY: usize = 256 << 20;

/// What nobody can understand.
const GARBLED: &str = "<html><body>\u{fffd} it works, somewhere else</body>";

/// What happens to the connection instead of an answer.
#[derive(Clone, Copy, Debug)]
enum Instead {
    Hang,
    Close,
    Reset,
}

/// The connection ends here, without an answer.
#[derive(Debug)]
struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the lab cut the connection")
    }
}

impl std::error::Error for Cut {}

/// An answer with status 200 that nobody can understand.
pub(super) fn garbled() -> Response {
    typed(200, "text/html", GARBLED)
}

/// A gateway's own page for a fault.
pub(super) fn gateway(status: u16) -> Response {
    typed(status, "text/html", format!("<html><body><h1>{status}</h1></body></html>"))
}

/// Never an answer.
pub(super) fn hang() -> Response {
    instead(Instead::Hang)
}

fn instead(what: Instead) -> Response {
    let mut response = Response::new(Body::empty());
    response.extensions_mut().insert(what);
    response
}

/// Serves until aborted; every connection ends with it.
pub(super) async fn serve(listener: TcpListener, world: World, routes: Router) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(converse(stream, world.clone(), routes.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// All routes: the remote's own, and those of outputs.
pub(super) fn routes(world: &World) -> Router {
    let lost = world.clone();
    let fallback = move || async move { lost.refuse(&Refusal::NotFound) };
    let routes = world.0.remote.routes().route("/outputs/{token}/{number}/{name}", get(output));
    routes.fallback(fallback).layer(DefaultBodyLimit::disable()).with_state(world.clone())
}

async fn output(State(world): State<World>, Path((token, number, _)): Path<(String, u64, String)>) -> Response {
    world.serve_output(&token, number)
}

async fn converse(stream: TcpStream, world: World, routes: Router) {
    let reset = Arc::new(AtomicBool::new(false));
    let wire = Wire { stream, reset: reset.clone() };
    let service = service_fn(move |request| {
        let (world, routes, reset) = (world.clone(), routes.clone(), reset.clone());
        async move { answer(&world, routes, request, &reset).await }
    });
    // Whatever ends a connection, the next call opens another.
    drop(http1::Builder::new().serve_connection(TokioIo::new(wire), service).with_upgrades().await);
}

async fn answer(
    world: &World,
    routes: Router,
    request: Request<Incoming>,
    reset: &AtomicBool,
) -> Result<Response, Cut> {
    let response = respond(world, routes, request).await?;
    match response.extensions().get::<Instead>() {
        None => Ok(response),
        Some(Instead::Hang) => std::future::pending().await,
        Some(Instead::Close) => Err(Cut),
        Some(Instead::Reset) => {
            reset.store(true, Ordering::SeqCst);
            Err(Cut)
        }
    }
}

async fn respond(world: &World, routes: Router, request: Request<Incoming>) -> Result<Response, Cut> {
    let (parts, body) = request.into_parts();
    // A caller that leaves in the middle of its request has not called.
    let body = to_bytes(Body::new(body), MAX_BODY).await.map_err(|_| Cut)?;
    let class = class(world, &parts.method, parts.uri.path());
    let (seen, outage, fault, admitted) = {
        let mut state = world.lock();
        let of_class = state.counts.entry(class).or_default();
        *of_class += 1;
        let of_class = *of_class;
        let seen = Arc::new(Seen {
            number: u64::try_from(state.seen.len()).unwrap_or(u64::MAX).saturating_add(1),
            of_class,
            class,
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            headers: parts.headers.clone(),
            body: body.clone(),
            after: OnceLock::new(),
        });
        state.seen.push(seen.clone());
        let open = class == Class::Output && seen.path().starts_with(OUTPUTS);
        let admitted = open || (!state.key_revoked && world.0.remote.admits(&seen, &world.0.key));
        (seen.clone(), state.outage, state.faults.hits(&seen), admitted)
    };
    match outage {
        None | Some(Outage::Refuses) => {}
        Some(Outage::Unavailable) => return Ok(gateway(503)),
        Some(Outage::Hangs) => return Ok(instead(Instead::Hang)),
        Some(Outage::Drops) => return Ok(instead(Instead::Close)),
    }
    match fault {
        Some(Fault::DropBefore) => return Ok(instead(Instead::Close)),
        Some(Fault::UnavailableBefore) => return Ok(gateway(503)),
        _ => {}
    }
    if !admitted {
        return Ok(world.refuse(&Refusal::BadKey));
    }
    let mut request = Request::from_parts(parts, Body::from(body));
    request.extensions_mut().insert(Asked(seen.clone()));
    let response = match routes.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let response = match seen.after.get() {
        None | Some(Answer::Plainly | Answer::Refuses(_)) => response,
        Some(Answer::Resets) => instead(Instead::Reset),
        Some(Answer::BreaksOff) => break_off(response).await,
        Some(Answer::Fails(status)) => gateway(*status),
        Some(Answer::Garbles) => garbled(),
        Some(Answer::Hangs) => instead(Instead::Hang),
        Some(Answer::Late(delay)) => {
            tokio::time::sleep(*delay).await;
            response
        }
    };
    Ok(match fault {
        Some(Fault::ResetAfter) if class == Class::Output => break_off(response).await,
        Some(Fault::ResetAfter) => instead(Instead::Reset),
        Some(Fault::BadGatewayAfter) => gateway(502),
        // Nobody garbles a file but on purpose; that is no fault of chance.
        Some(Fault::GarbledAfter) if class == Class::Output => break_off(response).await,
        Some(Fault::GarbledAfter) => garbled(),
        _ => response,
    })
}

/// Where outputs lie that need no key.
pub(super) const OUTPUTS: &str = "/outputs/";

fn class(world: &World, method: &axum::http::Method, path: &str) -> Class {
    if path.starts_with(OUTPUTS) { Class::Output } else { world.0.remote.class(method, path) }
}

/// The answer up to its middle; then the connection is closed.
pub(super) async fn break_off(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    let bytes = to_bytes(body, MAX_BODY).await.unwrap_or_default();
    parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    Response::from_parts(parts, cut_after(bytes.slice(..bytes.len() / 2)))
}

/// An answer of that length, if one is stated, with this body.
pub(super) fn file(length: Option<usize>, content_type: &'static str, body: Body) -> Response {
    let mut response = typed(StatusCode::OK.as_u16(), content_type, body);
    if let Some(length) = length {
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    response
}

/// A body that breaks off after these bytes.
pub(super) fn cut_after(bytes: Bytes) -> Body {
    let cut = stream::once(async {
        // Time for hyper to send what there is: it drops all that it holds when a body fails.
        tokio::task::yield_now().await;
        Err(Cut)
    });
    Body::from_stream(stream::iter([Ok::<Bytes, Cut>(bytes)]).chain(cut))
}

/// A connection that can be reset: closed so that the other side gets an error and no end.
struct Wire {
    stream: TcpStream,
    reset: Arc<AtomicBool>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.reset.load(Ordering::SeqCst) {
            drop(self.stream.set_zero_linger());
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.reset.load(Ordering::SeqCst) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
