//! The SQLite queue: the contract by the conformance kit, and what only a file can be asked.

use std::sync::Arc;

use vidgen_core::conformance::queue::Backend;
use vidgen_store::sqlite::SqliteQueue;

vidgen_core::queue_conformance!(conformance, |clock| async move {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vidgen.db");
    let open = || SqliteQueue::builder(&path).with_clock(Arc::new(clock.clone())).open();
    let (first, second) = (open().await.unwrap(), open().await.unwrap());
    Backend::new(first).with_second(second).with_guard(directory)
});
