//! Where time comes from. Everything that waits or stamps asks a [`Clock`], so tests can drive it.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::watch;

/// Wall time for stamps, monotonic time for durations, and the only way to sleep.
#[async_trait]
pub trait Clock: Debug + Send + Sync + 'static {
    /// The wall clock, UTC. May jump; never subtract two of these to measure a duration.
    fn now(&self) -> Timestamp;

    /// Time since some fixed moment of this process. Never goes back.
    fn monotonic(&self) -> Duration;

    /// Returns when `duration` has passed on the monotonic clock.
    async fn sleep(&self, duration: Duration);
}

#[async_trait]
impl<T: Clock + ?Sized> Clock for Arc<T> {
    fn now(&self) -> Timestamp {
        (**self).now()
    }
    fn monotonic(&self) -> Duration {
        (**self).monotonic()
    }
    async fn sleep(&self, duration: Duration) {
        (**self).sleep(duration).await;
    }
}

/// `base + duration`, at the end of time rather than past it.
#[must_use]
pub fn later(base: Timestamp, duration: Duration) -> Timestamp {
    base.saturating_add(duration).unwrap_or(Timestamp::MAX)
}

/// How long from `from` until `to`; zero if `to` is past.
#[must_use]
pub fn until(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or(Duration::ZERO)
}

/// The machine's own clock, with tokio's timers.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: tokio::time::Instant,
}

impl SystemClock {
    /// Starts the monotonic clock at zero.
    #[must_use]
    pub fn new() -> Self {
        Self { start: tokio::time::Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place where the wall clock is read")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

/// Tokio's own time as wall clock, too: on a paused runtime (`start_paused = true`) hours of
/// backoff pass in milliseconds, in a reproducible order.
#[derive(Clone, Copy, Debug)]
pub struct VirtualClock {
    epoch: Timestamp,
    start: tokio::time::Instant,
}

impl VirtualClock {
    /// Starts at `epoch`.
    #[must_use]
    pub fn starting_at(epoch: Timestamp) -> Self {
        Self { epoch, start: tokio::time::Instant::now() }
    }
}

#[async_trait]
impl Clock for VirtualClock {
    fn now(&self) -> Timestamp {
        later(self.epoch, self.start.elapsed())
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

/// A clock that stands still until it is told to move.
#[derive(Clone, Debug)]
pub struct ManualClock {
    wall: Arc<Mutex<Timestamp>>,
    elapsed: watch::Sender<Duration>,
}

impl ManualClock {
    /// Starts at `wall`.
    #[must_use]
    pub fn starting_at(wall: Timestamp) -> Self {
        Self { wall: Arc::new(Mutex::new(wall)), elapsed: watch::Sender::new(Duration::ZERO) }
    }

    /// Lets `duration` pass, on both clocks, and wakes who slept until then.
    pub fn advance(&self, duration: Duration) {
        let mut wall = self.wall.lock().unwrap_or_else(PoisonError::into_inner);
        *wall = later(*wall, duration);
        self.elapsed.send_modify(|elapsed| *elapsed += duration);
    }

    /// Sets the wall clock alone, as an administrator or NTP would.
    pub fn step_wall(&self, wall: Timestamp) {
        *self.wall.lock().unwrap_or_else(PoisonError::into_inner) = wall;
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.wall.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn monotonic(&self) -> Duration {
        *self.elapsed.borrow()
    }

    async fn sleep(&self, duration: Duration) {
        let mut elapsed = self.elapsed.subscribe();
        let end = *elapsed.borrow_and_update() + duration;
        // The sender lives in `self`, so this cannot end early.
        let _ = elapsed.wait_for(|now| *now >= end).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_manual_clock_wakes_a_sleeper_at_its_time_and_not_before() {
        let clock = ManualClock::starting_at(Timestamp::UNIX_EPOCH);
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep(Duration::from_secs(5)).await }
        });
        tokio::task::yield_now().await;
        clock.advance(Duration::from_secs(4));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        clock.advance(Duration::from_secs(1));
        sleeper.await.unwrap();
        assert_eq!(clock.now(), later(Timestamp::UNIX_EPOCH, Duration::from_secs(5)));
    }
}
