//! The SQLite queue: the contract by the conformance kit, and what only a file can be asked.

mod file;
mod handles;
mod processes;

use std::path::Path;
use std::sync::Arc;

use vidgen_core::clock::ManualClock;
use vidgen_core::conformance::queue::{Backend, start};
use vidgen_store::sqlite::SqliteQueue;

vidgen_core::queue_conformance!(conformance, |clock| async move {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vidgen.db");
    let (first, second) = (on(&path, &clock).await, on(&path, &clock).await);
    Backend::new(first).with_second(second).with_guard(directory)
});

/// A handle driven by a clock of ours.
async fn on(path: &Path, clock: &ManualClock) -> SqliteQueue {
    SqliteQueue::builder(path).with_clock(Arc::new(clock.clone())).open().await.unwrap()
}

fn manual_clock() -> ManualClock {
    ManualClock::starting_at(start())
}
