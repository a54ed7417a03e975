//! How outputs are served, whole or not.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::{StreamExt, stream};
use vidgen_core::clock::until;

use super::play::{Refusal, Serving};
use super::run::{Phase, Run};
use super::server::{cut_after, file, gateway};
use super::world::World;

/// What an endless body consists of.
const BLOCK: Bytes = Bytes::from_static(&[0; 16 << 10]);

impl World {
    /// Where the output of `run` lies, for everybody who has the URL.
    #[must_use]
    pub fn output_url(&self, run: &Run) -> String {
        let (token, number, extension) = (&self.0.output_token, run.number, run.film.media_type().extension());
        format!("{}/outputs/{token}/{number}/output.{extension}", self.0.outputs)
    }

    pub(super) fn serve_output(&self, token: &str, number: u64) -> Response {
        let id = self.lock().runs.iter().find(|run| run.number == number).map(|run| run.id.clone());
        match id {
            Some(id) if token == self.0.output_token => self.serve(&id),
            _ => self.refuse(&Refusal::NotFound),
        }
    }

    /// The output of a run, as the play wants it served. For remotes that serve outputs at a route
    /// of their own, or as the answer to a submit.
    #[must_use]
    pub fn serve(&self, id: &str) -> Response {
        self.serve_as(id, |run| Some((run.film.media_type().mime(), run.film.bytes().ok()?)))
    }

    /// The same, where the remote makes a file of another sort: what `make` makes of the run.
    pub fn serve_as(&self, id: &str, make: impl FnOnce(&Run) -> Option<(&'static str, Bytes)>) -> Response {
        let (run, now) = {
            let mut state = self.lock();
            let now = state.clock.now();
            let Some(run) = state.runs.iter_mut().rfind(|run| run.id == id) else {
                drop(state);
                return self.refuse(&Refusal::NotFound);
            };
            run.served = run.served.saturating_add(1);
            (run.clone(), now)
        };
        let life = self.0.remote.output_life();
        let gone = |(life, end)| until(end, now) > life;
        if life.zip(run.ended_at).is_some_and(gone) {
            return self.refuse(&Refusal::NotFound);
        }
        if matches!(run.phase(), Phase::Failed(_) | Phase::Moderated(_) | Phase::Aborted | Phase::Canceled) {
            return self.refuse(&Refusal::NotFound);
        }
        let Some((content_type, bytes)) = make(&run) else { return gateway(500) };
        let (length, half) = (bytes.len(), bytes.slice(..bytes.len() / 2));
        let (serving, times) = run.play.serving;
        match serving {
            Serving::Whole => file(Some(length), content_type, bytes.into()),
            _ if run.served > times => file(Some(length), content_type, bytes.into()),
            Serving::Expired => self.refuse(&Refusal::NotFound),
            Serving::Truncated => file(Some(length), content_type, cut_after(half)),
            Serving::Oversized => file(None, content_type, flow([bytes, half])),
            Serving::Endless => {
                let blocks = stream::iter([bytes]).chain(stream::repeat(BLOCK)).map(Ok::<_, std::convert::Infallible>);
                file(None, content_type, Body::from_stream(blocks))
            }
            Serving::Stalled => {
                let stalls = stream::iter([half]).chain(stream::pending()).map(Ok::<_, std::convert::Infallible>);
                file(Some(length), content_type, Body::from_stream(stalls))
            }
            Serving::Dripping(pause) => {
                let drops = stream::unfold(bytes, move |mut rest| async move {
                    if rest.is_empty() {
                        return None;
                    }
                    tokio::time::sleep(pause).await;
                    let first = rest.split_to(1);
                    Some((Ok::<_, std::convert::Infallible>(first), rest))
                });
                file(Some(length), content_type, Body::from_stream(drops))
            }
            Serving::Page => super::server::garbled(),
        }
    }
}

/// A body of these parts, of no stated length.
fn flow(parts: [Bytes; 2]) -> Body {
    Body::from_stream(stream::iter(parts.map(Ok::<_, std::convert::Infallible>)))
}
