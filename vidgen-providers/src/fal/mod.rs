//! fal: models of many makers behind one queue.
//!
//! A request is queued, looked at by the URLs that its submit was answered, and its result fetched
//! when it is complete. Outputs lie on a CDN and are fetched without the key. Facts as of 2026-11,
//! from the official clients (npm `@fal-ai/client` 1.10.1, PyPI `fal-client` 1.0.3) and fal's docs.
//!
//! ```
//! use vidgen_core::ProviderExt;
//! use vidgen_providers::fal::Fal;
//!
//! let fal = Fal::new("key-id:key-secret")?;
//! let image = fal.clone().model("fal-ai/flux/schnell");
//! let video = fal.model("fal-ai/wan/v2.7/image-to-video");
//! # Ok::<(), vidgen_core::Error>(())
//! ```
//!
//! # Models
//! A model is an endpoint id, whatever its length: `fal-ai/veo3/fast`, `workflows/owner/name`, an app
//! of your own. What is not in the table is added with [`FalBuilder::with_model`].
//!
//! # Lost answers
//! fal takes neither a key nor a reference with a submit. Our id goes out in the webhook URL, if the
//! host has callbacks ([`Callbacks`](vidgen_core::Callbacks)): the webhook, which comes when the run
//! ends, is what tells of a submit whose answer was lost. So give fal callbacks.
//!
//! Looking is not declared ([`Capabilities::find`]). The account's history lists what has ended and, as
//! far as is known, nothing that waits or runs; it says of a request no more than its input, in which
//! no field that every model takes could carry a mark. So it could never say that a request did not
//! arrive, and where it could say that one did, the webhook has said so before. An entry with
//! `fields.marker`, for an app of your own that takes another field, puts our id there for people to see.
//!
//! A webhook names the request, but not its endpoint. The run of a lost submit is therefore looked for
//! under each app of the table in turn: one GET for each.
//!
//! # What vanishes
//! The queue keeps a result for an hour (six minutes from 10 KB on), or for 30 days with the account's
//! payload storage on, which is the default. Where it no longer knows a run that was bought, the
//! account's history is asked for the stored result. If that has none either, the run is `NotFound`:
//! lost, paid for, and recorded as such. If the history cannot be reached, nobody can tell, and it is
//! asked again.
//!
//! # Tries
//! fal itself tries a request up to ten times where a runner is lost (503, 504). That is within one
//! request, billed once, and so left on (`X-Fal-No-Retry` is not sent): it is a better try than a new
//! request of ours would be.
//!
//! # Money
//! fal states no money; it states units of the endpoint's own (`x-fal-billable-units`), which price a
//! model that is billed per unit. Its own faults (5xx) are not billed. What a model refuses (422) is if
//! it says so, or if a machine has worked at it.

mod callback;
mod ends;
mod wire;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::Method;
use secrecy::SecretString;
use serde_json::{Value, json};
use url::Url;
use vidgen_core::net::DownloadLimits;
use vidgen_core::{
    Body, Callback, Capabilities, ErrorKind, Handle, Lookup, MediaInput, Output, Provider, ProviderId, Result,
    Snapshot, Spool, StepKind, Submission, SubmitOptions, Task, TaskSpec,
};

use self::ends::{Said, UNITS, milli, success};
use crate::client::{Auth, Call, Client, ClientBuilder, Refusal, Verdict, data_url, image_bytes, shared_settings};
use crate::models::ModelTable;

const ORIGIN: &str = "fal";
const QUEUE: &str = "https://queue.fal.run";
const STORAGE: &str = "https://rest.fal.ai";
const PLATFORM: &str = "https://api.fal.ai/v1";
const JWKS: &str = "https://rest.fal.ai/.well-known/jwks.json";
/// Files in a request count to its size and are stored with it; larger ones go to the CDN.
const MAX_INLINE: usize = 256 * 1000;
/// For how long a link to an image has to work: a request may wait in the queue for hours.
const LINK_LIFE: Duration = Duration::from_hours(12);
/// For how long the CDN keeps an image of ours, for the same reason.
const UPLOAD_LIFE: Duration = Duration::from_hours(24);
/// The official clients poll ten times a second; for a video, that is no help.
const POLL_FLOOR: Duration = Duration::from_secs(1);
/// The files live for a week, but nobody knows where they are when the result is gone. Ours have
/// fewer than 10 KB, unless pictures come as text.
const RESULT_LIFE: Duration = Duration::from_hours(1);
/// What to wait if a 429 does not say.
const USUAL_WAIT: Duration = Duration::from_secs(10);
/// The shortest time to start that it takes.
const SHORTEST_START: Duration = Duration::from_secs(2);
/// Namespaces that belong to an app's name.
const SPACES: [&str; 2] = ["workflows", "comfy"];

/// A client of fal.
#[derive(Clone)]
pub struct Fal {
    id: ProviderId,
    client: Client,
    storage: Client,
    platform: Client,
    models: ModelTable,
    keys: Arc<callback::Keys>,
    start_within: Option<Duration>,
    plain_callbacks: bool,
}

impl Fal {
    /// A client with this API key (`id:secret`) and the well-known models.
    ///
    /// # Errors
    /// `Invalid` if it cannot be a key.
    pub fn new(key: impl Into<SecretString>) -> Result<Self> {
        Self::builder(key).build()
    }

    /// A client to be set up further.
    pub fn builder(key: impl Into<SecretString>) -> FalBuilder {
        FalBuilder {
            id: ProviderId::new(ORIGIN),
            client: ClientBuilder::new(ORIGIN, QUEUE, Auth::Scheme("Key")).with_judge(judge),
            key: key.into(),
            models: ModelTable::default(),
            storage_url: None,
            platform_url: None,
            jwks_url: None,
            start_within: None,
        }
    }

    /// The well-known models, as they are built in.
    ///
    /// # Errors
    /// Never: a test reads it.
    pub fn known_models() -> Result<ModelTable> {
        ModelTable::from_toml(include_str!("../models/fal.toml"))
    }

    /// Uses another key from now on, in all clones: keys are rotated without a restart.
    ///
    /// # Errors
    /// `Invalid` if it cannot be a key.
    pub fn rotate_key(&self, key: impl Into<SecretString>) -> Result<()> {
        self.client.rotate(&key.into())
    }

    /// Where an image can be had: the host's own link, itself if it is small, else a file on the CDN.
    async fn image(&self, image: &MediaInput) -> Result<String> {
        if let Some(link) = self.client.public_link(image, LINK_LIFE).await {
            return Ok(link);
        }
        let media_type = image.info.media_type;
        let bytes = image_bytes(image).await?;
        if bytes.len() <= MAX_INLINE {
            return Ok(data_url(media_type.mime(), &bytes));
        }
        let life = json!({ "expiration_duration_seconds": UPLOAD_LIFE.as_secs() });
        let name = format!("image.{}", media_type.extension());
        let asks = Call::post(["storage", "upload", "initiate"])
            .with_query("storage_type", "fal-cdn-v3")
            .with_header("x-fal-object-lifecycle", life.to_string())
            .with_json(json!({ "content_type": media_type.mime(), "file_name": name }));
        let ticket: wire::Ticket = self.storage.prepare(asks).await?.body;
        let put = Call::link(ticket.upload_url).with_method(Method::PUT);
        self.storage.upload(put.with_header("content-type", media_type.mime()).with_bytes(bytes)).await?;
        Ok(ticket.file_url)
    }

    /// Where fal shall call. It takes https only, and to have the whole submit refused would be a
    /// high price for a hint.
    fn webhook<'a>(&self, options: &'a SubmitOptions) -> Option<&'a Url> {
        options.callback.as_ref().filter(|url| url.scheme() == "https" || self.plain_callbacks)
    }

    /// Where the run of a handle may be looked at: at one place, or, if its endpoint is not known,
    /// under any app of the table.
    fn places(&self, handle: &Handle) -> Vec<Place> {
        let detail: wire::Detail = serde_json::from_value(handle.detail.clone()).unwrap_or_default();
        let id = &handle.remote_id;
        let place = |app, endpoint, links| Place { app, id: id.clone(), endpoint, links };
        if let Some(endpoint) = detail.endpoint {
            return vec![place(app(&endpoint), Some(endpoint), detail.links)];
        }
        let mut apps: Vec<Vec<String>> = Vec::new();
        for entry in self.models.entries() {
            let app = app(entry.id().as_str());
            if !apps.contains(&app) {
                apps.push(app);
            }
        }
        apps.into_iter().map(|app| place(app, None, wire::Links::default())).collect()
    }

    /// What the queue says of a run, and where; `None` if it does not know it.
    async fn look(&self, handle: &Handle) -> Result<Option<(Place, wire::Status)>> {
        let mut unclear = None;
        for place in self.places(handle) {
            match self.client.ask::<wire::Status>(self.call(&place, What::Status)).await {
                Ok(answer) => return Ok(Some((place, answer.body))),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                // Perhaps the way in which another app's place says that.
                Err(error) if error.kind() == ErrorKind::Protocol => unclear = Some(error),
                Err(error) => return Err(error),
            }
        }
        unclear.map_or(Ok(None), Err)
    }

    /// The call for `what`: by the link that the submit was answered, if the key may go there.
    fn call(&self, place: &Place, what: What) -> Call {
        let (link, end) = match what {
            What::Status => (&place.links.status_url, Some("status")),
            What::Result => (&place.links.response_url, None),
            What::Cancel => (&place.links.cancel_url, Some("cancel")),
        };
        match link.as_deref().and_then(|link| self.plain_link(link)) {
            Some(link) => Call::link(link),
            None => {
                let path = place.app.iter().map(String::as_str).chain(["requests", &place.id]).chain(end);
                Call::get(path)
            }
        }
    }

    /// A link that may be kept in a handle, and called: the API's own, and without a query, which
    /// might hold a secret. Without it, the documented path does.
    fn plain_link(&self, link: &str) -> Option<String> {
        let url = self.client.own(link)?;
        (url.query().is_none() && url.fragment().is_none()).then(|| url.into())
    }

    fn kind(&self, endpoint: Option<&str>) -> Option<StepKind> {
        let entry = self.models.entries().iter().find(|entry| Some(entry.id().as_str()) == endpoint)?;
        Some(entry.model().kind)
    }

    /// The end of a run that is complete. Its result is fetched once: status, headers and body of it
    /// are what the model answered.
    async fn ended(&self, place: &Place, status: &wire::Status) -> Result<Snapshot> {
        let result = match self.client.ask_any(self.call(place, What::Result)).await {
            Ok(result) => result,
            // As the status says, it failed; and these may be the model's own words for that.
            Err(error) if status.failed() && speaks_of_us(error.kind()) => return Ok(Said::by(status).snapshot()),
            Err(error) => return Err(error),
        };
        match result {
            Ok(answer) => {
                let units = answer.header(UNITS).and_then(milli);
                Ok(if status.failed() {
                    Said::by(status).with_units(units).snapshot()
                } else {
                    success(&answer.body, units, self.kind(place.endpoint.as_deref()))
                })
            }
            Err(refusal) if matches!(refusal.status, 404 | 410) => {
                if status.failed() {
                    Ok(Said::by(status).snapshot())
                } else {
                    self.remembered(place).await
                }
            }
            Err(refusal) if is_replayed(&refusal) => Ok(Said::by(status).and(&refusal).snapshot()),
            // A gateway's: the model has said nothing of the kind.
            Err(refusal) => {
                let message = format!("the result was answered {}", refusal.status);
                Err(self.client.error(ErrorKind::Unavailable, message))
            }
        }
    }

    /// What the account's history has of a run that the queue no longer knows. It wants the whole
    /// endpoint; one that is not known is any of the table's that fit.
    async fn remembered(&self, place: &Place) -> Result<Snapshot> {
        let endpoints: Vec<&str> = match &place.endpoint {
            Some(endpoint) => vec![endpoint],
            None => {
                let ids = self.models.entries().iter().map(|entry| entry.id().as_str());
                ids.filter(|id| place.app.is_empty() || app(id) == place.app).collect()
            }
        };
        let mut refused = None;
        for endpoint in endpoints {
            match self.past(endpoint, &place.id).await {
                Ok(Some(snapshot)) => return Ok(snapshot),
                Ok(None) => {}
                // Nobody can tell now; but somebody may, later.
                Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::RateLimited) => {
                    return Err(error);
                }
                // A key that may not ask, or a history that is another by now.
                Err(error) => refused = Some(error),
            }
        }
        let gone = self.client.error(ErrorKind::NotFound, "the queue no longer knows the run, or its result");
        Err(match refused {
            Some(error) => gone.with_source(error),
            None => gone,
        })
    }

    async fn past(&self, endpoint: &str, id: &str) -> Result<Option<Snapshot>> {
        let call = Call::get(["models", "requests", "by-endpoint"])
            .with_query("endpoint_id", endpoint)
            .with_query("request_id", id)
            .with_query("expand", "payloads");
        let history = self.platform.ask::<wire::History>(call).await?.body;
        let Some(past) = history.items.into_iter().find(|past| past.request_id == id) else { return Ok(None) };
        Ok(match past.status_code {
            Some(200..300) if past.json_output.is_object() => {
                Some(success(&past.json_output, None, self.kind(Some(endpoint))))
            }
            Some(code @ 400..) => Some(Said::default().and_body(code, &past.json_output).snapshot()),
            None if past.ended_at.is_none() => Some(Snapshot::running(None)),
            _ => None,
        })
    }
}

/// Where a run is.
struct Place {
    app: Vec<String>,
    id: String,
    endpoint: Option<String>,
    links: wire::Links,
}

impl Place {
    /// Under no app that is known.
    fn anywhere(id: &str) -> Self {
        Self { app: Vec::new(), id: id.to_owned(), endpoint: None, links: wire::Links::default() }
    }
}

#[derive(Clone, Copy)]
enum What {
    Status,
    Result,
    Cancel,
}

/// The part of an endpoint id that status, result and cancel go by: its first two segments, or
/// three in a namespace.
fn app(endpoint: &str) -> Vec<String> {
    let first = endpoint.split('/').next().unwrap_or_default();
    let length = if SPACES.contains(&first) { 3 } else { 2 };
    endpoint.split('/').take(length).map(str::to_owned).collect()
}

fn speaks_of_us(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unauthorized | ErrorKind::OverBudget | ErrorKind::RateLimited)
}

/// Whether an answer is the model's, which the queue only repeats: it has the request's id with it,
/// or the form of an error of fal's.
fn is_replayed(refusal: &Refusal) -> bool {
    let headers = ["x-fal-request-id", "x-fal-error-type", "x-fal-request-timeout-type"];
    headers.iter().any(|name| refusal.header(name).is_some()) || refusal.body.get("detail").is_some()
}

#[async_trait]
impl Provider for Fal {
    fn id(&self) -> ProviderId {
        self.id.clone()
    }

    fn capabilities(&self) -> Capabilities {
        let capabilities = self.client.capabilities(&self.models).with_cancel().with_callback();
        capabilities.with_poll_floor(POLL_FLOOR).with_output_life(RESULT_LIFE)
    }

    async fn submit(&self, task: &Task, options: &SubmitOptions) -> Result<Handle> {
        let entry = self.models.wanted(ORIGIN, task)?;
        let image = match &task.spec {
            TaskSpec::Video(video) if entry.takes_image() => video.image.as_ref(),
            _ => None,
        };
        let image = match image {
            Some(image) => Some(self.client.in_time(self.image(image)).await?),
            None => None,
        };
        let input = entry.mark(entry.body(&task.spec, image, &task.extra), &options.submission);
        let endpoint = entry.id().as_str();
        let mut call = Call::post(endpoint.split('/')).with_json(input);
        if let Some(url) = self.webhook(options) {
            call = call.with_query("fal_webhook", url.as_str());
        }
        if let Some(limit) = self.start_within {
            call = call.with_header("x-fal-request-timeout", limit.as_secs().to_string());
        }
        let accepted = self.client.submit::<wire::Accepted>(call).await?.body;
        let plain = |link: Option<String>| link.and_then(|link| self.plain_link(&link));
        let links = wire::Links {
            status_url: plain(accepted.links.status_url),
            response_url: plain(accepted.links.response_url),
            cancel_url: plain(accepted.links.cancel_url),
        };
        let detail = wire::Detail { endpoint: Some(endpoint.to_owned()), links };
        let detail = serde_json::to_value(detail).unwrap_or(Value::Null);
        Ok(Handle::new(self.id.clone(), accepted.request_id.0).with_detail(detail))
    }

    async fn poll(&self, handle: &Handle) -> Result<Snapshot> {
        match self.look(handle).await? {
            Some((place, status)) if status.status == "COMPLETED" => self.ended(&place, &status).await,
            // `IN_QUEUE`, `IN_PROGRESS`, or what nobody knows yet. Progress is in logs only, if at all.
            Some(_) => Ok(Snapshot::running(None)),
            None => {
                let mut places = self.places(handle);
                let known = places.pop().filter(|place| place.endpoint.is_some());
                self.remembered(&known.unwrap_or_else(|| Place::anywhere(&handle.remote_id))).await
            }
        }
    }

    async fn open(&self, output: &Output) -> Result<Body> {
        // Whoever wrote the model wrote the URL: the key goes to none of them. The pipeline holds each
        // kind of step to limits of its own.
        self.client.open_without_key(&output.locator, DownloadLimits::VIDEO).await
    }

    async fn cancel(&self, handle: &Handle) -> Result<()> {
        let mut places = self.places(handle);
        let place = match places.pop() {
            Some(place) if place.endpoint.is_some() => place,
            // Told of by its webhook, so it has ended; but the queue shall say that.
            _ => match self.look(handle).await? {
                Some((place, _)) => place,
                None => return Err(self.client.error(ErrorKind::NotFound, "the queue does not know the run")),
            },
        };
        self.client.tell(self.call(&place, What::Cancel).with_method(Method::PUT)).await?;
        Ok(())
    }

    async fn find(&self, _: &Submission) -> Result<Lookup> {
        Err(self.client.error(ErrorKind::Unsupported, "fal has no list of what it has accepted"))
    }

    async fn callback(&self, callback: &Callback, _: &Spool) -> Result<Handle> {
        self.keys.verify(callback).await?;
        let webhook: wire::Webhook = serde_json::from_slice(&callback.body)
            .map_err(|_| self.client.error(ErrorKind::Protocol, "the callback cannot be understood"))?;
        Ok(Handle::new(self.id.clone(), webhook.request_id))
    }
}

impl fmt::Debug for Fal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fal").field("id", &self.id).field("client", &self.client).finish_non_exhaustive()
    }
}

/// Sets a [`Fal`] up. Only [`FalBuilder::build`] fails.
#[derive(Clone, Debug)]
pub struct FalBuilder {
    id: ProviderId,
    client: ClientBuilder,
    key: SecretString,
    models: ModelTable,
    storage_url: Option<String>,
    platform_url: Option<String>,
    jwks_url: Option<String>,
    start_within: Option<Duration>,
}

/// With another base URL than fal's own queue, all parts of its API are taken to be there, so that no
/// key goes to fal that is not for it; each can be said apart.
impl FalBuilder {
    shared_settings!();

    /// Reads the keys that webhooks are signed with from here (`https://rest.fal.ai/.well-known/jwks.json`).
    /// Our own key is not sent.
    #[must_use]
    pub fn with_jwks_url(mut self, url: impl Into<String>) -> Self {
        self.jwks_url = Some(url.into());
        self
    }

    /// Uploads images here (`https://rest.fal.ai`).
    #[must_use]
    pub fn with_storage_url(mut self, url: impl Into<String>) -> Self {
        self.storage_url = Some(url.into());
        self
    }

    /// Asks for the account's history here (`https://api.fal.ai/v1`).
    #[must_use]
    pub fn with_platform_url(mut self, url: impl Into<String>) -> Self {
        self.platform_url = Some(url.into());
        self
    }

    /// Lets fal give a request up that has not started after so long, its queueing and its tries
    /// together (`X-Fal-Request-Timeout`). At least 2 s. Such a run fails, and is not billed.
    #[must_use]
    pub fn with_start_timeout(mut self, limit: Duration) -> Self {
        self.start_within = Some(limit.max(SHORTEST_START));
        self
    }

    /// Builds it.
    ///
    /// # Errors
    /// `Invalid` if key, proxy or a URL cannot be what they should be; `Internal` if there is no TLS
    /// to be had.
    pub fn build(self) -> Result<Fal> {
        let client = self.client.clone().with_api_key(self.key).build()?;
        let base = client.base().as_str().trim_end_matches('/');
        let own = base == QUEUE;
        let or = |given: Option<String>, fals: &str, end: &str| {
            given.unwrap_or_else(|| if own { fals.to_owned() } else { format!("{base}{end}") })
        };
        let storage = client.at(&or(self.storage_url, STORAGE, ""))?;
        let platform = client.at(&or(self.platform_url, PLATFORM, "/v1"))?;
        let published = self.client.with_base_url(or(self.jwks_url, JWKS, "/.well-known/jwks.json")).build()?;
        Ok(Fal {
            id: self.id,
            plain_callbacks: client.is_plain(),
            storage,
            platform,
            client,
            models: Fal::known_models()?.with_all(self.models),
            keys: Arc::new(callback::Keys::new(published)),
            start_within: self.start_within,
        })
    }
}

/// What fal means by some of its refusals.
fn judge(refusal: &Refusal) -> Verdict {
    let reason = refusal.reason().unwrap_or_default().to_lowercase();
    match refusal.status {
        400 if refusal.text(&["status"]) == Some("ALREADY_COMPLETED") => Verdict::of(ErrorKind::TooLate),
        403 if ["balance", "top up"].iter().any(|word| reason.contains(word)) => Verdict::of(ErrorKind::OverBudget),
        400 | 422 if refusal.body.get("detail").is_some_and(Value::is_array) => {
            let said = Said::default().and_body(refusal.status, &refusal.body);
            let verdict = match said.kind() {
                ErrorKind::Refused => Verdict::of(ErrorKind::Refused),
                _ => Verdict::default(),
            };
            verdict.with_reason(said.reason())
        }
        429 if refusal.header("retry-after").is_none() => {
            Verdict::of(ErrorKind::RateLimited).with_wait(Some(USUAL_WAIT))
        }
        _ => Verdict::default(),
    }
}

#[cfg(test)]
mod tests;
