//! Puts a [`Vidgen`] together, and says in one sentence what is missing.

use std::sync::{Arc, Mutex};

use crate::callbacks::Callbacks;
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, Result};
use crate::notifier::Notifier;
use crate::pipeline::route::Breakers;
use crate::pipeline::{Pipeline, Timing};
use crate::provider::{ImageUrls, Provider};
use crate::queue::{Queue, Retention};
use crate::request::RequestRules;
use crate::status::MediaLinks;
use crate::store::Store;
use crate::tenant::Limits;
use crate::vidgen::{Inner, Vidgen};

/// Puts a [`Vidgen`] together.
#[derive(Debug, Default)]
pub struct VidgenBuilder {
    queue: Option<Arc<dyn Queue>>,
    store: Option<Arc<dyn Store>>,
    notifier: Option<Arc<dyn Notifier>>,
    links: Option<Arc<dyn MediaLinks>>,
    images: Option<Arc<dyn ImageUrls>>,
    pipelines: Vec<Pipeline>,
    clock: Option<Arc<dyn Clock>>,
    rules: RequestRules,
    limits: Limits,
    retention: Retention,
    timing: Timing,
    callbacks: Option<Callbacks>,
}

impl VidgenBuilder {
    /// Where jobs lie.
    #[must_use]
    pub fn queue(mut self, queue: impl Queue) -> Self {
        self.queue = Some(Arc::new(queue));
        self
    }

    /// Where media lie.
    #[must_use]
    pub fn store(mut self, store: impl Store) -> Self {
        self.store = Some(Arc::new(store));
        self
    }

    /// Who tells the world. Without one, requests with a `webhook_url` are refused.
    #[must_use]
    pub fn notifier(mut self, notifier: impl Notifier) -> Self {
        self.notifier = Some(Arc::new(notifier));
        self
    }

    /// Who makes links to media, where the store cannot.
    #[must_use]
    pub fn media_links(mut self, links: impl MediaLinks) -> Self {
        self.links = Some(Arc::new(links));
        self
    }

    /// Who fetches the images that requests name by `image_url`. Without one, they are refused.
    #[must_use]
    pub fn image_urls(mut self, images: impl ImageUrls) -> Self {
        self.images = Some(Arc::new(images));
        self
    }

    /// Adds a pipeline; the first one is the default.
    #[must_use]
    pub fn pipeline(mut self, pipeline: Pipeline) -> Self {
        self.pipelines.push(pipeline);
        self
    }

    /// Sets the clock; the machine's own if not set.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Some(Arc::new(clock));
        self
    }

    /// Sets how much a request may ask for.
    #[must_use]
    pub fn rules(mut self, rules: RequestRules) -> Self {
        self.rules = rules;
        self
    }

    /// Sets what a tenant may use where the create does not say.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets how long ended jobs are kept.
    #[must_use]
    pub fn retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// Sets how patient the machine is with providers.
    #[must_use]
    pub fn timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }

    /// Sets where providers call back. Without it, runs are only polled, and providers of which
    /// nothing but a callback is ever heard cannot be used.
    #[must_use]
    pub fn callbacks(mut self, callbacks: Callbacks) -> Self {
        self.callbacks = Some(callbacks);
        self
    }

    /// Checks that everything is there and fits together.
    ///
    /// # Errors
    /// `Internal`, saying in one sentence what is missing or contradictory.
    pub fn build(self) -> Result<Vidgen> {
        let missing = |what: &str| Error::internal("builder", format!("no {what} was given: call `.{what}(…)`"));
        if self.pipelines.is_empty() {
            return Err(missing("pipeline"));
        }
        let pipelines = self.pipelines.into_iter().map(Pipeline::checked).collect::<Result<Vec<_>>>()?;
        let deaf = |p: &dyn Provider| p.capabilities().only_callback && self.callbacks.is_none();
        if let Some(provider) = pipelines.iter().flat_map(Pipeline::providers).find(|p| deaf(&***p)) {
            let message = format!("provider {} needs callbacks: call `.callbacks(…)`", provider.id());
            return Err(Error::internal("builder", message));
        }
        for (n, pipeline) in pipelines.iter().enumerate() {
            if pipelines.iter().take(n).any(|p| p.name() == pipeline.name()) {
                return Err(Error::internal("builder", format!("two pipelines are named {:?}", pipeline.name())));
            }
        }
        Ok(Vidgen {
            inner: Arc::new(Inner {
                queue: self.queue.ok_or_else(|| missing("queue"))?,
                store: self.store.ok_or_else(|| missing("store"))?,
                notifier: self.notifier,
                links: self.links,
                images: self.images,
                pipelines,
                clock: self.clock.unwrap_or_else(|| Arc::new(SystemClock::new())),
                rules: self.rules,
                limits: self.limits,
                retention: self.retention,
                timing: self.timing,
                breakers: Breakers::default(),
                callbacks: self.callbacks,
                places: Mutex::default(),
            }),
        })
    }
}
