//! The clock of a handle.

use std::sync::Arc;

use vidgen_core::Clock;

use super::rows;

/// The wall clock for stamps, and a steady one for what is due. Processes that opened the file on
/// either side of a step of the wall clock differ by that step until the older one is restarted.
#[derive(Clone, Debug)]
pub(super) struct SteadyClock {
    pub(super) clock: Arc<dyn Clock>,
    /// Where the wall clock stood when the monotonic clock stood at zero.
    start: i64,
}

impl SteadyClock {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        let start = clock.now().as_microsecond().saturating_sub(rows::micros(clock.monotonic()));
        Self { clock, start }
    }

    pub(super) fn wall(&self) -> i64 {
        self.clock.now().as_microsecond()
    }

    pub(super) fn steady(&self) -> i64 {
        rows::after(self.start, self.clock.monotonic())
    }
}
