//! What providers that speak HTTP share: one request for one purchase, patient reads, errors that
//! say what to do next and tell no secret.
//!
//! Three ways to call, by what may happen twice:
//! - [`Client::submit`] buys: one attempt, and whatever is not clearly a No is `OutcomeUnknown`.
//! - [`Client::prepare`] comes before a purchase (an upload): each of its errors says that nothing
//!   was bought.
//! - [`Client::ask`] and its kin look and stop: asked a few times, since the answer costs nothing.

mod call;
mod exchange;
mod media;
mod quote;
mod refusal;
mod settings;
mod standard_webhooks;
mod told;
#[cfg(feature = "comfyui")]
mod websocket;

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use secrecy::SecretString;
use url::Url;
use vidgen_core::net::Guard;
use vidgen_core::{Capabilities, Error, ErrorKind, Model, Result};

use crate::models::ModelTable;

pub(crate) use call::{Call, Part};
pub(crate) use exchange::Answer;
pub(crate) use media::{data_url, files, image_bytes, may_be_sound};
pub(crate) use quote::{quotable, strings};
pub(crate) use refusal::{Refusal, Verdict};
pub(crate) use settings::{Auth, ClientBuilder, shared_settings};
pub(crate) use standard_webhooks::WebhookSecrets;
pub(crate) use told::{LONGEST_RUN, RunId, if_fits, milli, predict_time};

/// A client of one API. Clones share connections and key.
#[derive(Clone)]
pub(crate) struct Client {
    base: Url,
    shared: Arc<Shared>,
}

struct Shared {
    origin: &'static str,
    submit: reqwest::Client,
    read: reqwest::Client,
    guard: Guard,
    auth: Auth,
    /// Changes when the key is rotated.
    credential: RwLock<Option<(HeaderName, HeaderValue)>>,
    headers: HeaderMap,
    submit_timeout: Duration,
    read_timeout: Duration,
    max_live: Option<usize>,
    judge: fn(&Refusal) -> Verdict,
}

impl Client {
    /// The same client for another part of the API, at a base URL of its own: `rest.fal.ai` beside
    /// `queue.fal.run`. The key goes there, too.
    ///
    /// # Errors
    /// `Invalid` if it is no base URL.
    pub(crate) fn at(&self, base: &str) -> Result<Self> {
        Ok(Self { base: settings::base_url(base)?, shared: self.shared.clone() })
    }

    /// What a provider with these models can do, as far as that is the same for all: the rest is
    /// added to it.
    pub(crate) fn capabilities(&self, models: &ModelTable) -> Capabilities {
        self.capabilities_of(models.entries().iter().map(|entry| entry.model().clone()).collect())
    }

    /// The same, for models that are in no table.
    pub(crate) fn capabilities_of(&self, models: Vec<Model>) -> Capabilities {
        // The pipeline's patience is for all that a submit does.
        let capabilities =
            Capabilities::new(models).with_submit_timeout(self.shared.submit_timeout + exchange::PREPARE_TIMEOUT);
        match self.shared.max_live {
            Some(runs) => capabilities.with_max_live(runs),
            None => capabilities,
        }
    }

    /// Uses another key from now on (reliability C5).
    ///
    /// # Errors
    /// `Invalid` if it cannot be a key.
    pub(crate) fn rotate(&self, key: &SecretString) -> Result<()> {
        let credential = self.shared.auth.credential(Some(key))?;
        *self.shared.credential.write().unwrap_or_else(PoisonError::into_inner) = credential;
        Ok(())
    }

    /// How long the answer to a submit is waited for.
    pub(crate) fn submit_timeout(&self) -> Duration {
        self.shared.submit_timeout
    }

    /// Where the API is.
    pub(crate) fn base(&self) -> &Url {
        &self.base
    }

    /// Whether the API is spoken to without TLS: a lab, or a server of the host's own.
    pub(crate) fn is_plain(&self) -> bool {
        self.base.scheme() == "http"
    }

    /// An error of this provider's.
    pub(crate) fn error(&self, kind: ErrorKind, message: impl Into<String>) -> Error {
        Error::new(kind, self.shared.origin, message)
    }

    /// A submit that the remote may have accepted, and nobody can tell.
    pub(crate) fn lost(&self, what: &str) -> Error {
        self.error(ErrorKind::OutcomeUnknown, format!("{what}, so the outcome is unknown"))
    }

    /// The URL of a link that the remote answered, if it leads nowhere else than to the API
    /// itself: only there may the key go.
    pub(crate) fn own(&self, link: &str) -> Option<Url> {
        Url::parse(link)
            .ok()
            .filter(|url| url.origin() == self.base.origin() && url.username().is_empty() && url.password().is_none())
    }

    fn credential(&self) -> Option<(HeaderName, HeaderValue)> {
        self.shared.credential.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Without key and headers, and without more of the URL than its origin.
impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("origin", &self.shared.origin)
            .field("base", &self.base.origin().ascii_serialization())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
