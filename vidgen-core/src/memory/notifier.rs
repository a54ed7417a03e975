//! A notifier that remembers instead of telling.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::error::{Error, Result};
use crate::notifier::{Delivery, Notifier};

/// A [`Notifier`] in memory: it records every delivery and answers by script. Clones share it all.
///
/// ```
/// use vidgen_core::memory::MemoryNotifier;
/// use vidgen_core::{Error, ErrorKind};
///
/// let notifier = MemoryNotifier::new();
/// notifier.answer(Err(Error::new(ErrorKind::Unavailable, "receiver", "is away")));
/// // The next delivery fails, the ones after it succeed.
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryNotifier {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    deliveries: Vec<Delivery>,
    answers: VecDeque<Result<()>>,
    refused: BTreeSet<String>,
}

impl MemoryNotifier {
    /// A notifier that takes everything.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Says how the next delivery goes that no earlier call spoke for. Without a word, it succeeds.
    pub fn answer(&self, outcome: Result<()>) {
        self.lock().answers.push_back(outcome);
    }

    /// Makes [`Notifier::accepts`] refuse `endpoint` from now on.
    pub fn refuse(&self, endpoint: impl Into<String>) {
        self.lock().refused.insert(endpoint.into());
    }

    /// Every delivery that was tried, in order, the failed ones, too.
    #[must_use]
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.lock().deliveries.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; and if it did, the state would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Notifier for MemoryNotifier {
    fn accepts(&self, endpoint: &str) -> Result<()> {
        if endpoint.is_empty() || endpoint.contains(char::is_control) || self.lock().refused.contains(endpoint) {
            return Err(Error::invalid_field("webhook_url", "should be an endpoint that can be told"));
        }
        Ok(())
    }

    async fn notify(&self, delivery: &Delivery) -> Result<()> {
        // So that a receiver who is told here is one that `accepts` takes.
        self.accepts(&delivery.endpoint)?;
        let mut state = self.lock();
        state.deliveries.push(delivery.clone());
        state.answers.pop_front().unwrap_or(Ok(()))
    }
}

#[cfg(test)]
#[cfg(feature = "conformance")]
mod tests {
    use super::*;
    use crate::conformance::notifier::{Bench, Scene};
    use crate::error::ErrorKind;

    struct Scripted(MemoryNotifier);

    impl Bench for Scripted {
        fn notifier(&self) -> &dyn Notifier {
            &self.0
        }

        fn arrange(&self, scene: Scene) -> Option<String> {
            self.0.answer(match scene {
                Scene::Takes => Ok(()),
                Scene::Gone => Err(Error::new(ErrorKind::NotFound, "receiver", "is gone")),
                Scene::Fails | Scene::Away => Err(Error::new(ErrorKind::Unavailable, "receiver", "is away")),
                Scene::Hangs => return None,
            });
            Some("memory:receiver".into())
        }

        fn received(&self) -> Vec<(String, String)> {
            self.0.deliveries().into_iter().map(|d| (d.id.to_string(), d.body)).collect()
        }

        fn impossible(&self) -> Vec<String> {
            self.0.refuse("memory:elsewhere");
            vec![String::new(), "memory:elsewhere".into()]
        }
    }

    crate::notifier_conformance!(memory, async { Scripted(MemoryNotifier::new()) });
}
