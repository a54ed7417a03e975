//! A worker to be killed: one process on a SQLite file and a media directory, whose provider is a
//! remote in the test's own process. Creates jobs if told to, then works until it is stopped.
//!
//! `crash-worker DIR REMOTE_URL [POINT VISIT]`; `JOBS=n` creates n jobs under fixed idempotency keys;
//! `LEASE_MS` shortens the lease.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "test code fails by panicking")]

use std::time::Duration;

use vidgen_core::memory::MemoryNotifier;
use vidgen_core::{CreateOptions, JobRequest, LEASE, Pipeline, TenantId, Vidgen};
use vidgen_store::ObjectStore;
use vidgen_store::sqlite::SqliteQueue;
use vidgen_tests::faults::{Crash, Faults, Faulty, Point};
use vidgen_tests::remote::{self, RemoteStudio};

#[tokio::main]
async fn main() {
    // Listened for before anything else, or an early signal would end the process the hard way.
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
    let mut args = std::env::args().skip(1);
    let dir = std::path::PathBuf::from(args.next().expect("DIR"));
    let base = args.next().expect("REMOTE_URL").parse().unwrap();
    let at = args.next().map(|name| {
        let visit = args.next().expect("VISIT").parse().unwrap();
        (Point::named(&name).expect("POINT"), visit)
    });
    let faults = Faults::new(Crash::Kill, at);
    let studio = Faulty::new(RemoteStudio::new(base), &faults);
    let lease = std::env::var("LEASE_MS").map_or(LEASE, |ms| Duration::from_millis(ms.parse().unwrap()));
    let queue = SqliteQueue::builder(dir.join("vidgen.db")).with_lease(lease).open().await.unwrap();
    let vidgen = Vidgen::builder()
        .queue(Faulty::new(queue, &faults))
        .store(Faulty::new(ObjectStore::local(dir.join("media")).unwrap(), &faults))
        .notifier(Faulty::new(MemoryNotifier::new(), &faults))
        .pipeline(
            Pipeline::named("default")
                .image(studio.clone())
                .video(studio.clone())
                .speech(studio.clone())
                .compose(studio),
        )
        .timing(remote::timing())
        .build()
        .unwrap();
    let jobs: usize = std::env::var("JOBS").map_or(0, |n| n.parse().unwrap());
    for n in 0..jobs {
        let request = JobRequest::new("a cat").with_script("meow").with_webhook_url("https://example.com/hook");
        let options = CreateOptions::default().with_idempotency_key(format!("job-{n}"));
        vidgen.create(&TenantId::single(), request, options).await.unwrap();
    }
    println!("created");
    let worker = vidgen.worker().concurrency(16).lease(lease).spawn();
    // A test that forgets its child must not leave it behind for ever.
    let _ = tokio::time::timeout(Duration::from_secs(300), term.recv()).await;
    worker.shutdown().await;
    println!("stopped");
}
