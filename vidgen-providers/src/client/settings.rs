//! How a client is put together, and what every provider's builder lets a host set.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use secrecy::{ExposeSecret, SecretString};
use url::{Host, Url};
use vidgen_core::net::Guard;
use vidgen_core::{Error, Result};

use super::refusal::{Refusal, Verdict};
use super::{Client, Shared};

/// Enough for two lost packets in a handshake; an API that takes longer is down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(6);
/// Creating a run is a matter of a second; a cold front end takes some. With what reconciling adds,
/// a graceful stop (75 s) still outlasts it.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(30);
/// A look is answered from a table. Three of them fit between two heartbeats of a patient job.
const READ_TIMEOUT: Duration = Duration::from_secs(15);
/// Shorter than most servers keep a connection, so that a read seldom meets one that was just closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// One upstream is polled by all jobs of a process: a few warm connections serve them.
const IDLE_CONNECTIONS: usize = 4;

const USER_AGENT: &str = concat!("vidgen/", env!("CARGO_PKG_VERSION"));

/// How an API wants its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Auth {
    /// It wants none.
    None,
    /// `Authorization: Bearer <key>`
    Bearer,
    /// `Authorization: <scheme> <key>`
    Scheme(&'static str),
    /// A header of its own, named in lower case.
    Header(&'static str),
}

impl Auth {
    /// The header that carries `key`; none without a key, which self-hosted servers need not have.
    pub(super) fn credential(self, key: Option<&SecretString>) -> Result<Option<(HeaderName, HeaderValue)>> {
        let Some(key) = key else { return Ok(None) };
        let key = key.expose_secret().trim();
        let (name, text) = match self {
            Self::None => return Ok(None),
            Self::Bearer => (AUTHORIZATION, format!("Bearer {key}")),
            Self::Scheme(scheme) => (AUTHORIZATION, format!("{scheme} {key}")),
            Self::Header(name) => (HeaderName::from_static(name), key.to_owned()),
        };
        let value = HeaderValue::from_str(&text).ok().filter(|_| !key.is_empty() && key.is_ascii());
        let mut value = value.ok_or_else(|| Error::invalid_field("api_key", "must be a key in plain ASCII"))?;
        value.set_sensitive(true);
        Ok(Some((name, value)))
    }
}

/// Puts a [`Client`] together. Only [`ClientBuilder::build`] fails.
#[derive(Clone)]
pub(crate) struct ClientBuilder {
    origin: &'static str,
    base: String,
    auth: Auth,
    key: Option<SecretString>,
    headers: HeaderMap,
    proxy: Option<String>,
    allowed: Vec<SocketAddr>,
    submit_timeout: Option<Duration>,
    read_timeout: Duration,
    http1: bool,
    max_live: Option<usize>,
    judge: fn(&Refusal) -> Verdict,
}

impl ClientBuilder {
    /// A client of the API at `base`; errors name `origin`.
    pub(crate) fn new(origin: &'static str, base: impl Into<String>, auth: Auth) -> Self {
        Self {
            origin,
            base: base.into(),
            auth,
            key: None,
            headers: HeaderMap::new(),
            proxy: None,
            allowed: Vec::new(),
            submit_timeout: None,
            read_timeout: READ_TIMEOUT,
            http1: false,
            max_live: None,
            judge: |_| Verdict::default(),
        }
    }

    pub(crate) fn with_base_url(mut self, base: impl Into<String>) -> Self {
        self.base = base.into();
        self
    }

    pub(crate) fn with_api_key(mut self, key: SecretString) -> Self {
        self.key = Some(key);
        self
    }

    /// Sends a header with every call, such as the version of the API.
    pub(crate) fn with_header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        self
    }

    /// Sends a header of the operator's own with every call to the API, whose value nobody may see.
    pub(crate) fn with_secret_header(mut self, name: HeaderName, mut value: HeaderValue) -> Self {
        value.set_sensitive(true);
        self.headers.insert(name, value);
        self
    }

    /// Speaks HTTP/1.1 and nothing newer, as an API with a [`Client::websocket`] must be spoken to.
    pub(crate) fn with_http1(mut self) -> Self {
        self.http1 = true;
        self
    }

    /// Calls the API, and nothing else, through a proxy.
    pub(crate) fn with_proxy(mut self, url: impl Into<String>) -> Self {
        self.proxy = Some(url.into());
        self
    }

    /// Lets outputs be fetched from this socket, whatever its address.
    pub(crate) fn with_allowed(mut self, socket: SocketAddr) -> Self {
        self.allowed.push(socket);
        self
    }

    pub(crate) fn with_submit_timeout(mut self, timeout: Duration) -> Self {
        self.submit_timeout = Some(timeout);
        self
    }

    /// Waits so long for the answer to a submit, unless the host has said otherwise: where the answer
    /// is what was made, it takes as long as that.
    pub(crate) fn with_usual_submit_timeout(mut self, timeout: Duration) -> Self {
        self.submit_timeout.get_or_insert(timeout);
        self
    }

    pub(crate) fn with_read_timeout(mut self, timeout: Duration) -> Self {
        self.read_timeout = timeout;
        self
    }

    pub(crate) fn with_max_live(mut self, runs: usize) -> Self {
        self.max_live = Some(runs);
        self
    }

    /// Judges answers that are no 2xx where this API means something of its own by them.
    pub(crate) fn with_judge(mut self, judge: fn(&Refusal) -> Verdict) -> Self {
        self.judge = judge;
        self
    }

    /// Builds it.
    ///
    /// # Errors
    /// `Invalid` if base URL, key or proxy cannot be what they should be; `Internal` if there is
    /// no TLS to be had.
    pub(crate) fn build(self) -> Result<Client> {
        let base = base_url(&self.base)?;
        let credential = self.auth.credential(self.key.as_ref())?;
        let mut guard = Guard::builder();
        for socket in self.allowed.iter().copied().chain(literal_socket(&base)) {
            guard = guard.with_allowed(socket);
        }
        let proxy = self.proxy.as_deref().map(proxy).transpose()?;
        Ok(Client {
            base,
            shared: Arc::new(Shared {
                origin: self.origin,
                submit: self.http(proxy.clone(), 0)?,
                read: self.http(proxy, IDLE_CONNECTIONS)?,
                guard: guard.build()?,
                auth: self.auth,
                credential: RwLock::new(credential),
                headers: self.headers,
                submit_timeout: self.submit_timeout.unwrap_or(SUBMIT_TIMEOUT),
                read_timeout: self.read_timeout,
                max_live: self.max_live,
                judge: self.judge,
            }),
        })
    }

    /// Without a proxy of the environment's, which the library does not read, and without anything
    /// that sends a request twice: a connection that is kept may be closed while a request is on
    /// its way, and nobody can tell whether it arrived. Each line is pinned by a test.
    #[expect(clippy::disallowed_methods, reason = "the API is the operator's own choice, and this is its one client")]
    fn http(&self, proxy: Option<reqwest::Proxy>, idle: usize) -> Result<reqwest::Client> {
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .pool_max_idle_per_host(idle)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(USER_AGENT);
        if let Some(proxy) = proxy {
            builder = builder.proxy(proxy);
        }
        if self.http1 {
            builder = builder.http1_only();
        }
        builder
            .build()
            .map_err(|e| Error::internal(self.origin, "cannot make an HTTP client").with_source(e.without_url()))
    }
}

/// Without the key.
impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder").field("origin", &self.origin).finish_non_exhaustive()
    }
}

pub(super) fn base_url(text: &str) -> Result<Url> {
    let bad = |message: &str| Error::invalid_field("base_url", message);
    let url = Url::parse(text).map_err(|_| bad("must be a URL"))?;
    if !matches!(url.scheme(), "http" | "https") || url.query().is_some() || url.fragment().is_some() {
        return Err(bad("must be an http or https URL without a query"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("must have no user name or password: set the key"));
    }
    Ok(url)
}

fn proxy(text: &str) -> Result<reqwest::Proxy> {
    reqwest::Proxy::all(text).map_err(|_| Error::invalid_field("proxy", "must be the URL of a proxy"))
}

/// The socket of a server that the operator named by its address: it may hand out links to itself.
fn literal_socket(base: &Url) -> Option<SocketAddr> {
    let port = base.port_or_known_default()?;
    match base.host()? {
        Host::Ipv4(ip) => Some((ip, port).into()),
        Host::Ipv6(ip) => Some((ip, port).into()),
        Host::Domain(_) => None,
    }
}

/// The part of a provider's builder that is the same for all: the builder has the fields
/// `id: ProviderId`, `client: ClientBuilder` and `models: ModelTable`.
macro_rules! shared_settings {
    () => {
        /// Another name in pipelines, for a second account or server beside the first. Handles and
        /// callback URLs carry it: it must stay the same while jobs live.
        #[must_use]
        pub fn with_id(mut self, id: &str) -> Self {
            self.id = vidgen_core::ProviderId::new(id);
            self
        }

        /// Calls another server than the provider's own. One whose host is an IP address may hand
        /// out links to itself, even if that address is private.
        #[must_use]
        pub fn with_base_url(mut self, url: impl Into<String>) -> Self {
            self.client = self.client.with_base_url(url);
            self
        }

        /// Calls the API through a proxy. The environment is not read; and outputs that lie on
        /// other hosts are never fetched through a proxy, which would connect to whatever it is told.
        #[must_use]
        pub fn with_proxy(mut self, url: impl Into<String>) -> Self {
            self.client = self.client.with_proxy(url);
            self
        }

        /// Lets outputs be fetched from this socket, whatever its address, over http, too. For
        /// self-hosted servers that keep their files elsewhere, and for tests.
        #[must_use]
        pub fn with_allowed(mut self, socket: std::net::SocketAddr) -> Self {
            self.client = self.client.with_allowed(socket);
            self
        }

        /// Sets how long the answer to a submit is waited for. Whoever stops waiting does not know
        /// whether he has bought.
        #[must_use]
        pub fn with_submit_timeout(mut self, timeout: std::time::Duration) -> Self {
            self.client = self.client.with_submit_timeout(timeout);
            self
        }

        /// Sets how long the answer to anything else is waited for.
        #[must_use]
        pub fn with_read_timeout(mut self, timeout: std::time::Duration) -> Self {
            self.client = self.client.with_read_timeout(timeout);
            self
        }

        /// Sets how many runs may be live at once under this key; more of them wait their turn.
        #[must_use]
        pub fn with_max_live(mut self, runs: usize) -> Self {
            self.client = self.client.with_max_live(runs);
            self
        }

        /// Adds a model, or replaces the one of that name and kind.
        #[must_use]
        pub fn with_model(mut self, entry: crate::models::ModelEntry) -> Self {
            self.models = self.models.with(entry);
            self
        }

        /// Adds models, or replaces those of these names and kinds.
        #[must_use]
        pub fn with_models(mut self, table: crate::models::ModelTable) -> Self {
            self.models = self.models.with_all(table);
            self
        }
    };
}
pub(crate) use shared_settings;
