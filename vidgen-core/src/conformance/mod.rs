//! The conformance kit: numbered rules as tests, so that anybody's backend can be held to them.
//!
//! ```text
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

/// Sees to it that each exemption is from one of `rules`: a mistyped number would exempt from nothing,
/// and go unnoticed until somebody trusts it.
pub fn assert_exemptions(backend: &str, rules: &[&str], exemptions: &[(&str, &str)]) {
    let numbers: Vec<&str> = rules.iter().filter_map(|rule| rule.split('_').next()).collect();
    for (exempted, _) in exemptions {
        assert!(numbers.contains(exempted), "{backend} does not keep {exempted:?}: no such rule among {numbers:?}");
    }
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

#[cfg(test)]
#[allow(dead_code, unnameable_test_items, reason = "these rules are not to run, only to be named")]
mod tests {
    use super::notifier::{Bench, Scene};
    use crate::memory::{MemoryNotifier, MemoryStore};
    use crate::notifier::Notifier;

    #[test]
    #[should_panic(expected = r#"mistyped does not keep "st99": no such rule among ["st1", "st2","#)]
    fn an_exemption_from_no_rule_of_stores_fails() {
        crate::store_conformance!(mistyped, async { MemoryStore::new() }, except: [("st9", "so"), ("st99", "so")]);
        mistyped::exemptions_are_from_rules();
    }

    struct Alone(MemoryNotifier);

    impl Bench for Alone {
        fn notifier(&self) -> &dyn Notifier {
            &self.0
        }
        fn arrange(&self, _: Scene) -> Option<String> {
            None
        }
        fn received(&self) -> Vec<(String, String)> {
            vec![]
        }
        fn impossible(&self) -> Vec<String> {
            vec![]
        }
    }

    #[test]
    #[should_panic(expected = r#"mistyped does not keep "N1": no such rule among ["n1", "n2","#)]
    fn an_exemption_from_no_rule_of_notifiers_fails() {
        crate::notifier_conformance!(mistyped, async { Alone(MemoryNotifier::new()) }, except: [("N1", "so")]);
        mistyped::exemptions_are_from_rules();
    }
}
