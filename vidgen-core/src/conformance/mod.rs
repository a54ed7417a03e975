//! The conformance kit: every rule of a trait's contract is one function and, by one macro call per
//! backend, one named test. It uses no HTTP and needs no runtime of its caller.
//!
//! A rule that a backend cannot keep is named in the macro call with its reason, and printed.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "this is test code: it fails by panicking"
)]
#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "the same, wherever a rule has use for it")]

pub mod notifier;
pub mod store;

/// Runs one rule to its end, on a runtime of its own.
///
/// # Panics
/// If the rule does, or if there is no runtime to be had.
pub fn block_on<T>(rule: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(rule)
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
