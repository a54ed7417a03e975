//! A stream of bytes that must keep moving, and end where it said.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{Stream, StreamExt};
use tokio::time::{Instant, Sleep};

use super::super::guard::unreachable;
use super::too_long;
use crate::error::{Error, Result};

/// Longer than any lost packet takes to come again; a host silent for so long is gone.
pub(super) const READ_GAP: Duration = Duration::from_secs(15);

/// Over how long a body's speed is measured.
const WINDOW: Duration = Duration::from_secs(30);

/// The speed of a poor mobile line. Slower than that, a body is a way to keep us busy.
const SLOWEST: u64 = 32 * 1024;

/// Passes on `inner` while it keeps its length, its limit, its time and its pace.
///
/// Only the time in which bytes were asked for and did not come counts against the pace: a reader
/// that takes long to store them is no fault of the host's.
pub(super) struct Paced<S> {
    /// `None` once it is over, so that the connection of a body that failed closes at once.
    inner: Option<S>,
    announced: Option<u64>,
    limit: u64,
    received: u64,
    deadline: Instant,
    /// Set anew for each wait.
    alarm: Pin<Box<Sleep>>,
    waiting_since: Option<Instant>,
    window: Window,
}

#[derive(Default)]
struct Window {
    waited: Duration,
    bytes: u64,
}

impl<S: Stream<Item = Result<Bytes>> + Unpin> Paced<S> {
    pub(super) fn new(inner: S, announced: Option<u64>, limit: u64, deadline: Instant) -> Self {
        Self {
            inner: Some(inner),
            announced,
            limit,
            received: 0,
            deadline,
            alarm: Box::pin(tokio::time::sleep_until(deadline)),
            waiting_since: None,
            window: Window::default(),
        }
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        let now = Instant::now();
        if now >= self.deadline {
            return Poll::Ready(Some(Err(unreachable("timed out"))));
        }
        if let Poll::Ready(item) = inner.poll_next_unpin(cx) {
            let waited = self.waiting_since.take().map_or(Duration::ZERO, |since| now - since);
            return Poll::Ready(match item {
                Some(Ok(chunk)) => Some(self.count(&chunk, waited).map(|()| chunk)),
                Some(Err(error)) => Some(Err(error)),
                None => self.end().err().map(Err),
            });
        }
        if self.waiting_since.is_none() {
            self.waiting_since = Some(now);
            self.alarm.as_mut().reset(self.deadline.min(now + READ_GAP));
        }
        ready!(self.alarm.as_mut().poll(cx));
        let why = if Instant::now() < self.deadline { "stalled" } else { "timed out" };
        Poll::Ready(Some(Err(unreachable(why))))
    }

    fn count(&mut self, chunk: &Bytes, waited: Duration) -> Result<()> {
        let bytes = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        self.received = self.received.saturating_add(bytes);
        if self.received > self.limit {
            return Err(too_long(self.limit));
        }
        if self.announced.is_some_and(|announced| self.received > announced) {
            return Err(unreachable("longer than announced"));
        }
        // Looked at only when bytes come: no wait is longer than the gap above.
        self.window.waited += waited;
        self.window.bytes = self.window.bytes.saturating_add(bytes);
        if self.window.waited >= WINDOW {
            let window = std::mem::take(&mut self.window);
            if u128::from(window.bytes) * 1000 < u128::from(SLOWEST) * window.waited.as_millis() {
                return Err(unreachable("too slow"));
            }
        }
        Ok(())
    }

    /// Some clients end a body quietly when the connection does.
    fn end(&self) -> Result<(), Error> {
        match self.announced {
            Some(announced) if announced != self.received => Err(unreachable("shorter than announced")),
            _ => Ok(()),
        }
    }
}

impl<S: Stream<Item = Result<Bytes>> + Unpin> Stream for Paced<S> {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let item = ready!(self.poll_inner(cx));
        if !matches!(item, Some(Ok(_))) {
            self.inner = None;
        }
        Poll::Ready(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use futures::stream;
    use std::sync::Arc;

    const KIB: usize = 1024;
    const HOUR: Duration = Duration::from_hours(1);
    /// Not by its name, so that the rule's number is pinned.
    const SECONDS_30: Duration = Duration::from_secs(30);

    fn chunk(length: usize) -> Result<Bytes> {
        Ok(vec![0; length].into())
    }

    /// Waits so many milliseconds, then gives so many bytes, for each pair; then goes on for ever
    /// without any.
    fn script(pairs: Vec<(u64, usize)>) -> impl Stream<Item = Result<Bytes>> + Unpin {
        let given = stream::iter(pairs).then(|(milliseconds, length)| async move {
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            chunk(length)
        });
        given.chain(stream::pending()).boxed()
    }

    /// What came of it: the bytes, when it ended, and how.
    async fn run<S>(mut paced: Paced<S>) -> (u64, Duration, Result<(), Error>)
    where
        S: Stream<Item = Result<Bytes>> + Unpin,
    {
        let (start, mut bytes) = (Instant::now(), 0);
        let end = loop {
            match paced.next().await {
                Some(Ok(chunk)) => bytes += u64::try_from(chunk.len()).unwrap(),
                Some(Err(error)) => break Err(error),
                None => break Ok(()),
            }
        };
        assert!(paced.next().await.is_none(), "it went on after its end");
        (bytes, start.elapsed(), end)
    }

    fn within(
        total: Duration,
        inner: impl Stream<Item = Result<Bytes>> + Unpin,
    ) -> Paced<impl Stream<Item = Result<Bytes>> + Unpin> {
        Paced::new(inner, None, u64::MAX, Instant::now() + total)
    }

    fn kind(end: Result<(), Error>) -> Option<ErrorKind> {
        end.err().map(|e| e.kind())
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_drip_is_cut_off_and_a_poor_line_is_not() {
        for (milliseconds, length) in [(1000, 1), (1000, 32 * KIB - 1), (10, 320), (14_900, 400 * KIB), (1, 32)] {
            let (_, took, end) = run(within(HOUR, script(vec![(milliseconds, length); 100_000]))).await;
            assert_eq!(kind(end), Some(ErrorKind::Unavailable), "{length} bytes each {milliseconds} ms");
            let late = Duration::from_millis(milliseconds);
            assert!(took >= SECONDS_30 && took <= SECONDS_30 + late, "{length} bytes each {milliseconds} ms: {took:?}");
        }
        for (milliseconds, length) in [(1000, 32 * KIB), (10, 328), (14_900, 480 * KIB), (0, 1)] {
            let inner = script(vec![(milliseconds, length); 1000]).take(1000);
            let (bytes, _, end) = run(within(10 * HOUR, inner)).await;
            let all = u64::try_from(1000 * length).unwrap();
            assert_eq!((bytes, kind(end)), (all, None), "{length} bytes each {milliseconds} ms");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_fast_start_is_no_credit_for_later() {
        let mut pairs = vec![(1, 64 * KIB); 1000];
        pairs.extend(vec![(1000, KIB); 1000]);
        let (_, took, end) = run(within(HOUR, script(pairs))).await;
        assert_eq!(kind(end), Some(ErrorKind::Unavailable));
        assert!(took < 2 * SECONDS_30 + Duration::from_secs(2), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it() {
        let (bytes, took, end) = run(within(HOUR, script(vec![(0, 5 * KIB), (14_000, 800 * KIB)]))).await;
        assert_eq!((bytes, kind(end)), (805 * 1024, Some(ErrorKind::Unavailable)));
        assert_eq!(took.as_secs(), 14 + 15);
        let (_, took, _) = run(within(HOUR, script(vec![]))).await;
        assert_eq!(took.as_secs(), 15);
    }

    #[tokio::test(start_paused = true)]
    async fn its_time_ends_it_whoever_is_slow() {
        let total = Duration::from_secs(30);
        for (milliseconds, inner_end) in [(1000, 30), (7000, 30), (14_999, 30)] {
            let (_, took, end) = run(within(total, script(vec![(milliseconds, 2048 * KIB); 100]))).await;
            assert_eq!((took.as_secs(), kind(end)), (inner_end, Some(ErrorKind::Unavailable)), "{milliseconds} ms");
        }
        // The reader's own delay: everything is there at once.
        let mut paced = within(total, stream::repeat_with(|| chunk(1)));
        for second in [0, 10, 20] {
            assert!(paced.next().await.unwrap().is_ok(), "{second}");
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        assert_eq!(paced.next().await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
        assert!(paced.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_is_no_fault_of_the_hosts() {
        let mut paced = within(HOUR, stream::repeat_with(|| chunk(1)).take(100));
        while let Some(item) = paced.next().await {
            item.unwrap();
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        assert_eq!(paced.received, 100);
    }

    #[tokio::test]
    async fn its_bytes_are_counted() {
        let chunks = || stream::iter([chunk(4), chunk(0), chunk(6)]);
        let deadline = Instant::now() + HOUR;
        for (announced, limit, expected) in [
            (None, 10, None),
            (None, 11, None),
            (Some(10), 10, None),
            (None, 9, Some(ErrorKind::Media)),
            (None, 3, Some(ErrorKind::Media)),
            (None, 0, Some(ErrorKind::Media)),
            (Some(11), 20, Some(ErrorKind::Unavailable)),
            (Some(9), 20, Some(ErrorKind::Unavailable)),
            (Some(0), 20, Some(ErrorKind::Unavailable)),
        ] {
            let (bytes, _, end) = run(Paced::new(chunks(), announced, limit, deadline)).await;
            assert_eq!(kind(end), expected, "{announced:?}, {limit}");
            assert!(bytes <= limit && announced.is_none_or(|a| bytes <= a), "{bytes} of {announced:?}, {limit}");
        }
    }

    #[tokio::test]
    async fn a_body_that_failed_lets_go_of_its_connection() {
        let connection = Arc::new(());
        let held = Arc::clone(&connection);
        let inner = stream::repeat_with(move || chunk(Arc::strong_count(&held)));
        let mut paced = Paced::new(inner, None, 3, Instant::now() + HOUR);
        assert!(paced.next().await.unwrap().is_ok());
        assert!(paced.next().await.unwrap().is_err());
        assert_eq!(Arc::strong_count(&connection), 1, "it is still held");
    }
}
