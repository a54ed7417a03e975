//! A clock that hurries, for tests whose remotes are real sockets: a paused clock would jump over
//! their answers.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use vidgen_core::Clock;
use vidgen_core::clock::later;

/// So many seconds here are one of the machine's.
const HURRY: u32 = 25;

/// Hours of waiting in minutes: everything that asks a [`Clock`] goes faster, sockets do not.
#[derive(Clone, Copy, Debug)]
pub struct HurriedClock {
    epoch: Timestamp,
    start: tokio::time::Instant,
}

impl HurriedClock {
    /// Starts at `epoch`.
    #[must_use]
    pub fn starting_at(epoch: Timestamp) -> Self {
        Self { epoch, start: tokio::time::Instant::now() }
    }
}

#[async_trait]
impl Clock for HurriedClock {
    fn now(&self) -> Timestamp {
        later(self.epoch, self.monotonic())
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed() * HURRY
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration / HURRY).await;
    }
}
