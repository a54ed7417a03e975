//! Who makes images, videos and speech, and puts them together.

mod callback;
mod end;
mod model;
mod spool;
mod task;

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::Url;

use crate::error::{ErrorKind, Result, quote};
use crate::job::StepKind;
use crate::media::{Body, ContentInfo, MediaKey, MediaType};
use crate::money::{Usage, Usd};
use crate::pipeline::Route;

pub use callback::Callback;
pub(crate) use model::Wish;
pub use model::{Lengths, Model};
pub use spool::Spool;
pub use task::*;

/// Runs tasks somewhere else: submit, poll, fetch the outputs.
///
/// # Contract
/// - **P1** A handle survives JSON and works from a fresh client.
/// - **P2** Secrets are in neither handle nor `Debug` nor errors.
/// - **P3** Terminal stays terminal.
/// - **P4** An unknown remote state is running: not an error, not success.
/// - **P5** A `RateLimited` carries the remote's `Retry-After`.
/// - **P6** A bad key is `Unauthorized`, and is never retried.
/// - **P7** A garbled answer to a read is `Protocol`.
/// - **P8** A lost answer to a submit is `OutcomeUnknown`, and the remote saw exactly one request.
///   `NotSent` only if nothing can have reached it. A submit that the remote refused is
///   `Invalid`, `Refused`, `Unauthorized`, `OverBudget`, `NotFound`, `RateLimited` or
///   `Unavailable`: each of these says that nothing was bought.
/// - **P9** Cancel after the end is `TooLate`.
/// - **P10** What [`Capabilities`] does not declare is `Unsupported`, without a call.
/// - **P11** An unknown handle is `NotFound`, and so is an output that expired.
/// - **P12** The submission id goes out with every submit, the same on each keyed resend.
/// - **P13** `find` answers `Absent` only when the remote cannot know the submission.
/// - **P14** Outputs stream; a truncated or oversized body is an error, never a short file.
/// - **P15** The cost reported is the remote's if it states one, else `None`: the pipeline then
///   uses the price table, with the usage if the remote states that. It is never zero by default.
/// - **P16** A callback that is forged, altered or too old is `Unauthorized`, and one that is not
///   understood is `Protocol`; a genuine one names the handle of the run that it tells of. Where
///   nothing else is heard of a run, the handle of one that ended carries the end
///   ([`Handle::with_end`]), and a look at it sees that.
#[async_trait]
pub trait Provider: Debug + Send + Sync + 'static {
    /// The provider's name, unique in a pipeline, e.g. `replicate`.
    fn id(&self) -> ProviderId;

    /// What it can do. Constant for the life of the value.
    fn capabilities(&self) -> Capabilities;

    /// Buys one run of `task`: one request, never repeated.
    async fn submit(&self, task: &Task, options: &SubmitOptions) -> Result<Handle>;

    /// Looks how an accepted submission is doing.
    async fn poll(&self, handle: &Handle) -> Result<Snapshot>;

    /// Streams an output, with whatever authentication the provider wants.
    async fn open(&self, output: &Output) -> Result<Body>;

    /// Asks for the run to stop. Poll afterwards: the end may still be success.
    async fn cancel(&self, handle: &Handle) -> Result<()>;

    /// Looks for a submission whose answer was lost.
    async fn find(&self, submission: &Submission) -> Result<Lookup>;

    /// Verifies what was sent to the callback URL of a submission, and answers the handle of the
    /// run that it tells of. Bytes that come with it and never again go to `spool`.
    async fn callback(&self, callback: &Callback, spool: &Spool) -> Result<Handle>;
}

/// The name of a provider: `replicate`, `fal`, `local`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProviderId(String);

/// The name of a model at its provider: `black-forest-labs/flux-schnell`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ModelId(String);

macro_rules! name {
    ($name:ident) => {
        impl $name {
            /// Takes the name as it is.
            pub fn new(name: impl Into<String>) -> Self {
                Self(name.into())
            }
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl From<&str> for $name {
            fn from(name: &str) -> Self {
                Self(name.into())
            }
        }
    };
}
name!(ProviderId);
name!(ModelId);

/// What a provider can do.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Capabilities {
    /// The models it knows. The first of a kind is the default for that kind.
    pub models: Vec<Model>,
    /// What may be done when the answer to a submit was lost.
    pub resubmit: Resubmit,
    /// Whether [`Provider::find`] can tell.
    pub find: bool,
    /// Whether [`Provider::cancel`] works.
    pub cancel: bool,
    /// Whether it calls back.
    pub callback: bool,
    /// Whether its callback is all that is ever heard of a run: the end that a verified callback
    /// put into its handle ([`Handle::with_end`]) is then believed, since nobody can be asked.
    pub only_callback: bool,
    /// Whether it answers a submit with the output itself, which it keeps in the [`Spool`].
    pub spools: bool,
    /// How many runs may be live at once under this credential, if there is a limit.
    pub max_live: Option<usize>,
    /// Never poll more often than this.
    pub poll_floor: Duration,
    /// How long the answer to a submit may take.
    pub submit_timeout: Duration,
    /// How long outputs stay fetchable, if they vanish.
    pub output_life: Option<Duration>,
}

impl Capabilities {
    /// Can run `models` and nothing more, which is the careful assumption.
    #[must_use]
    pub fn new(models: Vec<Model>) -> Self {
        Self {
            models,
            resubmit: Resubmit::Never,
            find: false,
            cancel: false,
            callback: false,
            only_callback: false,
            spools: false,
            max_live: None,
            poll_floor: Duration::from_secs(1),
            submit_timeout: Duration::from_secs(30),
            output_life: None,
        }
    }

    /// Says what may be done when the answer to a submit was lost.
    #[must_use]
    pub fn with_resubmit(mut self, resubmit: Resubmit) -> Self {
        self.resubmit = resubmit;
        self
    }

    /// Says that [`Provider::find`] can tell.
    #[must_use]
    pub fn with_find(mut self) -> Self {
        self.find = true;
        self
    }

    /// Says that [`Provider::cancel`] works.
    #[must_use]
    pub fn with_cancel(mut self) -> Self {
        self.cancel = true;
        self
    }

    /// Says that it calls back.
    #[must_use]
    pub fn with_callback(mut self) -> Self {
        self.callback = true;
        self
    }

    /// Says that it calls back, and that nothing else is ever heard of a run.
    #[must_use]
    pub fn with_only_callback(mut self) -> Self {
        self.callback = true;
        self.only_callback = true;
        self
    }

    /// Says that it answers a submit with the output itself.
    #[must_use]
    pub fn with_spools(mut self) -> Self {
        self.spools = true;
        self
    }

    /// Sets how many runs may be live at once under this credential.
    #[must_use]
    pub fn with_max_live(mut self, runs: usize) -> Self {
        self.max_live = Some(runs.max(1));
        self
    }

    /// Sets the shortest time between polls.
    #[must_use]
    pub fn with_poll_floor(mut self, floor: Duration) -> Self {
        self.poll_floor = floor;
        self
    }

    /// Sets how long the answer to a submit may take.
    #[must_use]
    pub fn with_submit_timeout(mut self, timeout: Duration) -> Self {
        self.submit_timeout = timeout;
        self
    }

    /// Says that outputs vanish after `life`.
    #[must_use]
    pub fn with_output_life(mut self, life: Duration) -> Self {
        self.output_life = Some(life);
        self
    }

    /// The model of that name and kind, or the default one of the kind if no name is given.
    #[must_use]
    pub fn model(&self, kind: StepKind, name: Option<&ModelId>) -> Option<&Model> {
        self.models.iter().find(|m| m.kind == kind && name.is_none_or(|n| *n == m.id))
    }
}

/// What may be done when it is not known whether a submit was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resubmit {
    /// Nothing: a second submit may be a second bill.
    Never,
    /// The remote recognises the submission id for this long after the first submit.
    Keyed(Duration),
    /// It costs nothing and may be repeated at will; a lost run is simply run again.
    Free,
}

/// What goes with a submit beside the task.
#[derive(Clone)]
#[non_exhaustive]
pub struct SubmitOptions {
    /// Our id of the submission: key, reference or part of the callback URL, as the provider allows.
    pub submission: SubmissionId,
    /// Where the provider shall call back.
    pub callback: Option<Url>,
    /// Where bytes go that the provider hands over once and never again.
    pub spool: Option<Spool>,
}

/// Without the callback, which is signed.
impl Debug for SubmitOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubmitOptions").field("submission", &self.submission).finish_non_exhaustive()
    }
}

impl SubmitOptions {
    /// A submit under `submission`, without a callback.
    #[must_use]
    pub fn new(submission: SubmissionId) -> Self {
        Self { submission, callback: None, spool: None }
    }

    /// Sets where bytes go that the provider hands over once and never again.
    #[must_use]
    pub fn with_spool(mut self, spool: Spool) -> Self {
        self.spool = Some(spool);
        self
    }

    /// Sets where the provider shall call back.
    #[must_use]
    pub fn with_callback(mut self, callback: Url) -> Self {
        self.callback = Some(callback);
        self
    }
}

/// Our id of a submission: `sub_<job>_<step>_<ordinal>`. It follows from the slot it buys, so
/// whoever reconciles a lost one can name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SubmissionId(pub(crate) String);

impl SubmissionId {
    /// The id as text: `[a-z0-9_]`, at most 64 characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Takes an id that came back from a remote.
    pub fn from_remote(id: impl Into<String>) -> Self {
        Self(id.into())
    }
}

impl fmt::Display for SubmissionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The durable record of one submission, written before it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// Our id.
    pub id: SubmissionId,
    /// Which purchase of its step it is, from 1.
    pub ordinal: u32,
    /// To whom it goes.
    pub provider: ProviderId,
    /// For which model.
    pub model: ModelId,
    /// SHA-256 of the task, hex: a resend must ask for the same.
    pub task_hash: String,
    /// The most it may cost.
    pub hold: Usd,
    /// When the intent was written, by the store's clock; the store fills it in.
    pub intent_at: Option<jiff::Timestamp>,
}

/// The provider's id of an accepted submission. JSON, without secrets.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handle {
    /// Whose it is.
    pub provider: ProviderId,
    /// The provider's own id.
    pub remote_id: String,
    /// Whatever else the provider needs to poll (URLs without secrets, the endpoint). Never what a
    /// remote said as it stands: `end` is believed ([`Handle::with_end`]).
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub detail: Value,
}

impl Handle {
    /// A handle that is an id and nothing more.
    pub fn new(provider: ProviderId, remote_id: impl Into<String>) -> Self {
        Self { provider, remote_id: remote_id.into(), detail: Value::Null }
    }

    /// Adds what else the provider needs to poll.
    #[must_use]
    pub fn with_detail(mut self, detail: Value) -> Self {
        self.detail = detail;
        self
    }
}

/// What one poll saw.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// How it is going.
    pub state: RunState,
    /// The provider's own progress, 0 to 1, if it has one.
    pub progress: Option<f32>,
    /// What the provider says it costs, at the end. `None`: the price table is used.
    pub cost: Option<Usd>,
    /// What the provider says was used, at the end; with the price, that is the cost.
    pub usage: Option<Usage>,
    /// When the provider would like to be asked again.
    pub poll_after: Option<Duration>,
}

impl Snapshot {
    /// Still going on.
    #[must_use]
    pub fn running(progress: Option<f32>) -> Self {
        Self { state: RunState::Running, progress, cost: None, usage: None, poll_after: None }
    }

    /// Finished, with outputs.
    #[must_use]
    pub fn succeeded(outputs: Vec<Output>) -> Self {
        Self { state: RunState::Succeeded(outputs), progress: Some(1.0), cost: None, usage: None, poll_after: None }
    }

    /// Ended without outputs.
    #[must_use]
    pub fn failed(failure: RunFailure) -> Self {
        Self { state: RunState::Failed(failure), progress: None, cost: None, usage: None, poll_after: None }
    }

    /// Stopped because we asked for it.
    #[must_use]
    pub fn canceled() -> Self {
        Self { state: RunState::Canceled, progress: None, cost: None, usage: None, poll_after: None }
    }

    /// Adds what the provider says it costs.
    #[must_use]
    pub fn with_cost(mut self, cost: Usd) -> Self {
        self.cost = Some(cost);
        self
    }

    /// Adds what the provider says was used.
    #[must_use]
    pub fn with_usage(mut self, usage: Usage) -> Self {
        self.usage = Some(usage);
        self
    }

    /// Adds when the provider would like to be asked again.
    #[must_use]
    pub fn with_poll_after(mut self, delay: Duration) -> Self {
        self.poll_after = Some(delay);
        self
    }
}

/// How an accepted submission is going.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RunState {
    /// Waiting or running, or in a state we do not know.
    Running,
    /// Finished.
    Succeeded(Vec<Output>),
    /// Ended without outputs.
    Failed(RunFailure),
    /// Stopped because we asked for it.
    Canceled,
}

impl RunState {
    /// Whether nothing more comes of it.
    #[must_use]
    pub fn is_end(&self) -> bool {
        !matches!(self, Self::Running)
    }
}

/// Why a run ended without outputs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunFailure {
    /// `Refused` and `Invalid` are final; `Unsupported` means that this provider cannot;
    /// everything else may be tried again.
    pub kind: ErrorKind,
    /// The provider's own reason, fit for a user to read: one line, at most 200 characters.
    pub reason: String,
    /// Whether the run is billed all the same.
    pub billed: bool,
}

impl RunFailure {
    /// A failure that is not billed; the reason is cut to what may be shown.
    #[must_use]
    pub fn new(kind: ErrorKind, reason: &str) -> Self {
        Self { kind, reason: quote(reason), billed: false }
    }

    /// Says that the run is billed all the same.
    #[must_use]
    pub fn with_bill(mut self) -> Self {
        self.billed = true;
        self
    }
}

/// A file that a run made, still at the provider.
#[derive(Clone, Serialize, Deserialize)]
pub struct Output {
    /// Where: a URL or a path of the provider's. May carry a signature, so it is not printed.
    pub locator: String,
    /// What it is, if the provider says so.
    pub media_type: Option<MediaType>,
    /// What is known of the content.
    #[serde(default)]
    pub content: ContentInfo,
    /// Where it lies in the host's store, if it does. Not to be set by what a remote says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spooled: Option<MediaKey>,
}

impl Output {
    /// An output of which nothing but its place is known.
    pub fn new(locator: impl Into<String>) -> Self {
        Self { locator: locator.into(), media_type: None, content: ContentInfo::default(), spooled: None }
    }

    /// An output that lies in the spool.
    pub(crate) fn in_spool(key: MediaKey) -> Self {
        Self { spooled: Some(key), ..Self::new("") }
    }

    /// Where it lies in the host's store, if it is there: then [`Spool::open`] streams it, and
    /// [`Provider::open`] need not know it.
    #[must_use]
    pub fn spooled(&self) -> Option<&MediaKey> {
        self.spooled.as_ref()
    }
}

impl Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output")
            .field("locator", &"…")
            .field("media_type", &self.media_type)
            .field("content", &self.content)
            .finish()
    }
}

/// What [`Provider::find`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// It was accepted; here is its handle.
    Found(Handle),
    /// It was never accepted, and the remote would know.
    Absent,
    /// The remote cannot tell.
    Unknown,
}

/// A provider of the images that requests name by URL: its one model makes an image of the field
/// `url` of a task's [`extra`](Task::extra).
pub trait ImageUrls: Provider {
    /// Whether such a URL may be fetched at all. No I/O.
    ///
    /// # Errors
    /// `Invalid`, saying what it should be.
    fn accepts(&self, url: &str) -> Result<()>;
}

/// Convenience for every provider.
pub trait ProviderExt: Provider + Sized {
    /// A route to one model of this provider.
    fn model(self, name: impl Into<String>) -> Route {
        Route::new(Arc::new(self)).with_model(ModelId(name.into()))
    }
}

impl<P: Provider + Sized> ProviderExt for P {}

#[async_trait]
impl<T: Provider + ?Sized> Provider for Arc<T> {
    fn id(&self) -> ProviderId {
        (**self).id()
    }
    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }
    async fn submit(&self, task: &Task, options: &SubmitOptions) -> Result<Handle> {
        (**self).submit(task, options).await
    }
    async fn poll(&self, handle: &Handle) -> Result<Snapshot> {
        (**self).poll(handle).await
    }
    async fn open(&self, output: &Output) -> Result<Body> {
        (**self).open(output).await
    }
    async fn cancel(&self, handle: &Handle) -> Result<()> {
        (**self).cancel(handle).await
    }
    async fn find(&self, submission: &Submission) -> Result<Lookup> {
        (**self).find(submission).await
    }
    async fn callback(&self, callback: &Callback, spool: &Spool) -> Result<Handle> {
        (**self).callback(callback, spool).await
    }
}
