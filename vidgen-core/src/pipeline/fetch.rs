//! Provider output → our store, in one pass, bounded, and told by its own first bytes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::job::StepKind;
use crate::media::{Body, MediaInfo, MediaKey, MediaType};
use crate::provider::{Output, Provider, Spool};
use crate::store::Store;

const MIB: u64 = 1024 * 1024;
/// How long an output may take to begin, or to go on: beyond that its connection is dead.
const STALLED: Duration = Duration::from_secs(60);
/// How many of the first bytes are enough to tell a type.
const HEAD: usize = 32;

/// Why a copy failed: the two sides are dealt with differently.
#[derive(Debug)]
pub(crate) enum FetchError {
    /// The output could not be had, or is not what it should be.
    Output(Error),
    /// Our store did not take it: wait and copy again, never buy again.
    Store(Error),
}

/// Copies an output of a step under `stem` and the extension of its type.
///
/// # Errors
/// Which side failed, and how. Nothing is visible in the store then.
pub(crate) async fn fetch(
    provider: &dyn Provider,
    spool: &Spool,
    output: &Output,
    step: StepKind,
    stem: &str,
    store: &dyn Store,
    clock: &Arc<dyn Clock>,
) -> Result<MediaInfo, FetchError> {
    let copied = copy(provider, spool, output, step, stem, store, clock).await;
    copied.map_err(|failed| match failed {
        // What lies in the spool is read from our store as well: only a file that is gone or cut
        // will never be there again.
        FetchError::Output(e)
            if output.spooled().is_some() && !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Media) =>
        {
            FetchError::Store(e)
        }
        other => other,
    })
}

async fn copy(
    provider: &dyn Provider,
    spool: &Spool,
    output: &Output,
    step: StepKind,
    stem: &str,
    store: &dyn Store,
    clock: &Arc<dyn Clock>,
) -> Result<MediaInfo, FetchError> {
    let opened = async {
        match output.spooled() {
            None => provider.open(output).await.map_err(FetchError::Output),
            // Only what is not there is the output's fault; all else is our store's.
            Some(_) => spool.open(output).await.map_err(|e| match e.kind() {
                ErrorKind::NotFound => FetchError::Output(e),
                _ => FetchError::Store(e),
            }),
        }
    };
    let body = tokio::select! {
        body = opened => body?,
        () = clock.sleep(STALLED) => return Err(FetchError::Output(stalled())),
    };
    let length = body.length();
    // Fused, since the look at its head may have come to its end.
    let mut body = Body::new(unstalled(body, clock.clone()).fuse(), length);
    let limit = limit(step);
    if length.is_some_and(|l| l > limit) {
        return Err(FetchError::Output(too_long(step, limit)));
    }
    let mut head: Vec<Bytes> = Vec::new();
    let mut seen = Vec::new();
    while seen.len() < HEAD {
        match body.next().await {
            Some(Ok(chunk)) => {
                seen.extend(chunk.iter().take(HEAD));
                head.push(chunk);
            }
            Some(Err(error)) => return Err(FetchError::Output(error)),
            None => break,
        }
    }
    let media_type = MediaType::sniff(&seen).filter(|t| fits(step, *t)).ok_or_else(|| {
        FetchError::Output(Error::new(ErrorKind::Media, "fetch", format!("the output is not what a step {step} makes")))
    })?;
    let key = MediaKey::new(format!("{stem}.{}", media_type.extension())).map_err(FetchError::Store)?;
    let broken = Arc::new(AtomicBool::new(false));
    let counted =
        Counted { head: head.into_iter(), rest: body, left: limit, expected: length, step, broken: broken.clone() };
    let stored = store.put(&key, Body::new(counted, length)).await;
    match stored {
        Ok(length) => Ok(MediaInfo { key, media_type, length, content: output.content }),
        Err(error) if broken.load(Ordering::Acquire) => Err(FetchError::Output(error)),
        Err(error) if error.kind() == ErrorKind::Media => Err(FetchError::Output(error)),
        Err(error) => Err(FetchError::Store(error)),
    }
}

/// The most bytes a step's output may have (reliability S7).
fn limit(step: StepKind) -> u64 {
    match step {
        StepKind::Image | StepKind::Thumbnail => 20 * MIB,
        StepKind::Speech => 200 * MIB,
        StepKind::Video | StepKind::Compose => 2048 * MIB,
    }
}

fn fits(step: StepKind, media_type: MediaType) -> bool {
    match step {
        StepKind::Image | StepKind::Thumbnail => media_type.is_image(),
        StepKind::Speech => media_type.is_audio(),
        StepKind::Video | StepKind::Compose => media_type.is_video(),
    }
}

/// The body, with an error where it does not go on.
fn unstalled(body: Body, clock: Arc<dyn Clock>) -> impl Stream<Item = Result<Bytes>> + Send {
    stream::unfold(Some((body, clock)), |state| async {
        let (mut body, clock) = state?;
        tokio::select! {
            // Bytes that are there count, however long nobody asked for them.
            biased;
            item = body.next() => item.map(|item| (item, Some((body, clock)))),
            () = clock.sleep(STALLED) => Some((Err(stalled()), None)),
        }
    })
}

fn stalled() -> Error {
    Error::new(ErrorKind::Unavailable, "fetch", "the output does not go on")
}

fn too_long(step: StepKind, limit: u64) -> Error {
    Error::new(ErrorKind::Media, "fetch", format!("the output of step {step} is longer than {} MiB", limit / MIB))
}

/// Gives back the head that was looked at, then the rest, up to the limit; remembers whether the
/// provider's side broke, since the store only sees that its body did.
struct Counted {
    head: std::vec::IntoIter<Bytes>,
    rest: Body,
    left: u64,
    expected: Option<u64>,
    step: StepKind,
    broken: Arc<AtomicBool>,
}

impl Stream for Counted {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let item = match self.head.next() {
            Some(chunk) => Some(Ok(chunk)),
            None => match self.rest.poll_next_unpin(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(item) => item,
            },
        };
        let item = match item {
            Some(Ok(chunk)) => {
                let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
                match self.left.checked_sub(length) {
                    Some(left) => {
                        self.left = left;
                        Some(Ok(chunk))
                    }
                    None => Some(Err(too_long(self.step, limit(self.step)))),
                }
            }
            // Some clients end a body quietly when the connection does.
            None if self.expected.is_some_and(|length| length != limit(self.step) - self.left) => {
                self.expected = None;
                Some(Err(Error::new(ErrorKind::Media, "fetch", "the output is shorter or longer than it said")))
            }
            other => other,
        };
        if matches!(item, Some(Err(_))) {
            self.broken.store(true, Ordering::Release);
        }
        Poll::Ready(item)
    }
}
