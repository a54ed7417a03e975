//! The conformance kit: numbered rules as tests, so that anybody's backend can be held to them.
//!
//! ```ignore
//! vidgen_core::queue_conformance!(memory, |clock| async move { MemoryQueue::with_clock(clock) });
//! ```
//!
//! A rule is an async function that panics when the rule is broken. The macros make one named
//! `#[test]` of each; the kit uses no HTTP and brings its own runtime, so the caller needs none. A
//! rule that a backend cannot keep is named in the macro call with its reason, and printed.

// Rules are tests: a broken one must stop right there, with the place and the values.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::print_stdout,
    reason = "a rule says that it is broken by a panic"
)]

pub mod notifier;
pub mod provider;
pub mod queue;
pub mod sample;
pub mod store;

use std::future::Future;
use std::time::Duration;

/// How long one rule may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs a rule to its end, on a runtime with several threads so that races are real.
pub fn block_on<T>(rule: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, rule).await.expect("the rule hung") })
}

/// Whether a backend says that it does not keep `rule`; if so, prints why.
#[must_use]
pub fn is_exempt(backend: &str, rule: &str, exemptions: &[(&str, &str)]) -> bool {
    let exemption = exemptions.iter().find(|(exempted, _)| *exempted == rule);
    if let Some((_, reason)) = exemption {
        println!("{backend} does not keep {rule}: {reason}");
    }
    exemption.is_some()
}
