//! What a fixture answers: a scene, set up.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::Result;
use crate::job::{JobId, StepKind, submission_id};
use crate::media::Body;
use crate::memory::MemoryStore;
use crate::money::Usd;
use crate::provider::{
    Callback, Capabilities, Handle, Output, Provider, RunState, Snapshot, Spool, Submission, SubmissionId,
    SubmitOptions, Task,
};
use crate::store::Store;

/// How long the kit waits for what must come: a run's end, a body's first bytes.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// How long the kit waits for the answer to a submit that hangs. A fixture whose client has a limit
/// of its own sets it below this, so that the kit sees what the client makes of it.
const GIVES_UP: Duration = Duration::from_millis(500);
/// Between two looks at a run: a remote in process needs little time, and no floor of a real one holds.
const PACE: Duration = Duration::from_millis(10);

/// Sets up remotes for a provider under test.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// A fresh remote that plays `scene`, and a client of it. Nothing of an earlier stage is seen.
    ///
    /// # Errors
    /// Why this provider can never be in that scene. The kit prints it.
    async fn stage(&self, scene: Scene) -> Result<Stage, Impossible>;
}

/// Why a provider can never be in a scene, e.g. "there is no key to be wrong".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Impossible(String);

impl Impossible {
    /// Says why.
    pub fn because(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

impl fmt::Display for Impossible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the remote does. Every submit that a scene has accepted, it accepts in the same way again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scene {
    /// Accepts, and knows the run when it is looked for. What becomes of it is not asked.
    Accepts,
    /// Accepts; every look sees it running.
    Running,
    /// Accepts; it succeeds after a few looks at most, with one output
    /// ([`Stage::with_output`]), and states no cost unless [`Stage::with_cost`] says so.
    Succeeds,
    /// As [`Scene::Succeeds`], and the remote states what it costs ([`Stage::with_cost`]).
    StatesCost,
    /// Accepts; then the run fails, for a reason of the remote's own.
    Fails,
    /// Refuses the content: not accepted, or accepted and then failed with that reason.
    Refuses,
    /// Answers every submit with: too many, come back after [`Stage::with_retry_after`].
    RateLimits,
    /// Accepts; then answers every look with: too many, as above.
    RateLimitsLooks,
    /// Takes the client's key for a wrong one, whatever is asked. With [`Stage::with_handle`], a
    /// look at that handle is held to it, too.
    BadKey,
    /// Cannot be connected to.
    Unreachable,
    /// Accepts; then answers every read (look, search) with what nobody can understand.
    Garbled,
    /// Accepts; but the answer to the submit is what nobody can understand.
    GarblesAcceptance,
    /// Accepts; but answers the submit with a fault of its own (a 500 or 502).
    FailsAfterAccepting,
    /// Accepts; but the connection ends before the answer to the submit.
    ResetsAfterAccepting,
    /// Accepts; but never answers the submit.
    Hangs,
    /// Accepts; every look sees a state of which the provider's documentation says nothing.
    UnknownState,
    /// Knows of no run at all, not even of the one of [`Stage::with_handle`].
    UnknownHandle,
    /// Accepts; runs until it is asked to stop, and stops then. (Only where cancel is declared.)
    CancelOk,
    /// Accepts; the run has succeeded by the time that it is asked to stop, and the remote says so.
    /// (Only where cancel is declared.)
    CancelLate,
    /// As [`Scene::Succeeds`], but the output is there no more.
    OutputExpired,
    /// As [`Scene::Succeeds`], but the output's connection ends half-way.
    TruncatedOutput,
    /// As [`Scene::Succeeds`], but the output goes on after the length that was announced.
    OversizedOutput,
    /// As [`Scene::Succeeds`], but the output stops half-way and its connection stays open.
    StalledOutput,
}

impl Scene {
    /// Every scene.
    pub const ALL: [Self; 23] = [
        Self::Accepts,
        Self::Running,
        Self::Succeeds,
        Self::StatesCost,
        Self::Fails,
        Self::Refuses,
        Self::RateLimits,
        Self::RateLimitsLooks,
        Self::BadKey,
        Self::Unreachable,
        Self::Garbled,
        Self::GarblesAcceptance,
        Self::FailsAfterAccepting,
        Self::ResetsAfterAccepting,
        Self::Hangs,
        Self::UnknownState,
        Self::UnknownHandle,
        Self::CancelOk,
        Self::CancelLate,
        Self::OutputExpired,
        Self::TruncatedOutput,
        Self::OversizedOutput,
        Self::StalledOutput,
    ];
}

/// One call that the remote saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    submits: bool,
    text: String,
}

impl Call {
    /// A call that buys a run; `text` is all that it carried: path, headers, body.
    pub fn submit(text: impl Into<String>) -> Self {
        Self { submits: true, text: text.into() }
    }

    /// Any other call: a look, a search, an upload.
    pub fn other(text: impl Into<String>) -> Self {
        Self { submits: false, text: text.into() }
    }
}

type Client = Box<dyn Fn() -> Arc<dyn Provider> + Send + Sync>;
type Calls = Box<dyn Fn() -> Vec<Call> + Send + Sync>;
type CallbackOf = Box<dyn Fn(&SubmissionId) -> Option<Callback> + Send + Sync>;

/// How a remote signs its callbacks, beside the signature that their URL carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signed {
    /// Not at all.
    No,
    /// The sender is told by a secret of its own, which stands for no particular body.
    Sender,
    /// Over the body.
    Body,
    /// Over the body and the time, which may not be long ago.
    Dated,
}

/// A scene, set up: clients of a remote that plays it, a task for it, and what is to be expected.
pub struct Stage {
    /// The client under test.
    pub(super) provider: Arc<dyn Provider>,
    pub(super) task: Task,
    new_client: Client,
    calls: Calls,
    pub(super) secrets: Vec<String>,
    pub(super) handle: Option<Handle>,
    pub(super) retry_after: Option<Duration>,
    pub(super) cost: Option<Usd>,
    pub(super) output: Option<Bytes>,
    callback: Option<CallbackOf>,
    pub(super) signed: Signed,
    store: Arc<dyn Store>,
    guards: Vec<Box<dyn Any + Send + Sync>>,
}

impl Stage {
    /// A stage on which `task` is submitted.
    ///
    /// `client` makes a client as a fresh process would: with the same configuration, of the same
    /// remote, and with nothing in memory. `calls` answers every call that the remote saw, in order.
    pub fn new<P: Provider>(
        task: Task,
        client: impl Fn() -> P + Send + Sync + 'static,
        calls: impl Fn() -> Vec<Call> + Send + Sync + 'static,
    ) -> Self {
        let new_client: Client = Box::new(move || Arc::new(client()));
        Self {
            provider: new_client(),
            task,
            new_client,
            calls: Box::new(calls),
            secrets: Vec::new(),
            handle: None,
            retry_after: None,
            cost: None,
            output: None,
            callback: None,
            signed: Signed::Dated,
            store: Arc::new(MemoryStore::new()),
            guards: Vec::new(),
        }
    }

    /// What must appear nowhere: the key, the signed part of a link, the prompt.
    #[must_use]
    pub fn with_secrets(mut self, secrets: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.secrets.extend(secrets.into_iter().map(Into::into));
        self
    }

    /// A handle as this provider makes them, of a run that the remote does not know.
    #[must_use]
    pub fn with_handle(mut self, handle: Handle) -> Self {
        self.handle = Some(handle);
        self
    }

    /// After how long the remote says to come back.
    #[must_use]
    pub fn with_retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// What the remote says that the run costs.
    #[must_use]
    pub fn with_cost(mut self, cost: Usd) -> Self {
        self.cost = Some(cost);
        self
    }

    /// What the remote would send to the callback URL of an accepted submission whose run ended,
    /// as of now; and how that is signed.
    #[must_use]
    pub fn with_callback(
        mut self,
        signed: Signed,
        callback: impl Fn(&SubmissionId) -> Option<Callback> + Send + Sync + 'static,
    ) -> Self {
        self.callback = Some(Box::new(callback));
        self.signed = signed;
        self
    }

    /// The bytes of the output, where they are known beforehand.
    #[must_use]
    pub fn with_output(mut self, output: impl Into<Bytes>) -> Self {
        self.output = Some(output.into());
        self
    }

    /// Keeps something alive as long as the stage: a server, a temporary directory.
    #[must_use]
    pub fn with_guard(mut self, guard: impl Any + Send + Sync) -> Self {
        self.guards.push(Box::new(guard));
        self
    }

    pub(super) fn capabilities(&self) -> Capabilities {
        self.provider.capabilities()
    }

    pub(super) fn client(&self) -> Arc<dyn Provider> {
        (self.new_client)()
    }

    /// How many calls the remote saw.
    pub(super) fn calls(&self) -> usize {
        (self.calls)().len()
    }

    /// What each submit that the remote saw carried.
    pub(super) fn submits(&self) -> Vec<String> {
        (self.calls)().into_iter().filter(|call| call.submits).map(|call| call.text).collect()
    }

    /// Submits the task under `id`, as the pipeline does.
    pub(super) async fn submit_as(&self, id: &SubmissionId) -> Result<Handle> {
        let mut options = SubmitOptions::new(id.clone()).with_spool(self.spool(id));
        if self.capabilities().callback {
            // Where a provider takes neither key nor reference, this is how the id goes out.
            options.callback = format!("https://host.example/callbacks/{id}").parse().ok();
        }
        self.provider.submit(&self.task, &options).await
    }

    /// Where the provider leaves what it hands over once.
    pub(super) fn spool(&self, id: &SubmissionId) -> Spool {
        Spool::new(self.store.clone(), id).expect("an id of ours")
    }

    /// Streams an output from where it lies, as the pipeline does.
    pub(super) async fn open(&self, handle: &Handle, output: &Output) -> Result<Body> {
        match output.spooled() {
            Some(_) => self.spool(&SubmissionId::from_remote(handle.remote_id.clone())).open(output).await,
            None => self.provider.open(output).await,
        }
    }

    /// What the remote would send about a submission.
    pub(super) fn callback(&self, id: &SubmissionId) -> Option<Callback> {
        self.callback.as_ref().and_then(|callback| callback(id))
    }

    /// Submits the task under an id of its own.
    pub(super) async fn submit(&self) -> Result<Handle> {
        self.submit_as(&new_submission(self.task.spec.kind())).await
    }

    /// Submits what is to be accepted.
    pub(super) async fn accepted(&self) -> Handle {
        self.submit().await.expect("the remote accepts it")
    }

    /// Submits as the pipeline does, which gives up when there is no answer; `None` is that.
    pub(super) async fn submit_or_give_up(&self, id: &SubmissionId, scene: Scene) -> Option<Result<Handle>> {
        let limit = if scene == Scene::Hangs { GIVES_UP } else { PATIENCE };
        tokio::time::timeout(limit, self.submit_as(id)).await.ok()
    }

    /// Looks until the run ends.
    pub(super) async fn end(&self, handle: &Handle) -> Snapshot {
        self.ended(handle).await.1
    }

    /// The same, and the handle as the pipeline has it then: the one that a callback told, where
    /// nothing else is heard of a run.
    pub(super) async fn ended(&self, handle: &Handle) -> (Handle, Snapshot) {
        let looks = async {
            let mut handle = handle.clone();
            loop {
                let snapshot = self.provider.poll(&handle).await.expect("a look at a run");
                match snapshot.state {
                    RunState::Running => tokio::time::sleep(PACE).await,
                    _ => return (handle, snapshot),
                }
                if self.capabilities().only_callback {
                    handle = self.told(&handle).await;
                }
            }
        };
        tokio::time::timeout(PATIENCE, looks).await.expect("the run never ends")
    }

    /// The handle after its callback, if that has come. Its id is the submission's: a run that is only
    /// heard of by callbacks can have no other.
    async fn told(&self, handle: &Handle) -> Handle {
        let id = SubmissionId::from_remote(handle.remote_id.clone());
        let Some(callback) = self.callback(&id) else { return handle.clone() };
        self.provider.callback(&callback, &self.spool(&id)).await.expect("a genuine callback")
    }

    /// Submits the task and follows it to its success.
    pub(super) async fn succeeded(&self) -> (Handle, Output) {
        let handle = self.accepted().await;
        let output = only_output(self.end(&handle).await.state);
        (handle, output)
    }

    /// What the pipeline keeps of a submission, to look for it by.
    pub(super) fn submission(&self, id: &SubmissionId) -> Submission {
        Submission {
            id: id.clone(),
            ordinal: 1,
            provider: self.provider.id(),
            model: self.task.model.clone(),
            task_hash: "0".repeat(64),
            hold: Usd::from_cents(100),
            intent_at: None,
        }
    }
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage").field("provider", &self.provider).finish_non_exhaustive()
    }
}

/// An id that no other stage has used.
pub(super) fn new_submission(kind: StepKind) -> SubmissionId {
    submission_id(JobId::new(), kind, 1)
}

pub(super) fn only_output(state: RunState) -> Output {
    match state {
        RunState::Succeeded(mut outputs) if outputs.len() == 1 => outputs.remove(0),
        other => panic!("it was to succeed with one output, but is {other:?}"),
    }
}

/// Everything of an output, however long.
pub(super) async fn read(body: Body) -> Result<Bytes> {
    tokio::time::timeout(PATIENCE, body.read(usize::MAX)).await.expect("the output never ends")
}

/// Sets `scene` up for `rule`, or prints why it cannot be.
pub(super) async fn stage(fixture: &dyn Fixture, rule: &str, scene: Scene) -> Option<Stage> {
    match fixture.stage(scene).await {
        Ok(stage) => Some(stage),
        Err(reason) => {
            println!("{rule}: no scene {scene:?}: {reason}");
            None
        }
    }
}

/// Sets up a scene that every provider can be in.
pub(super) async fn needed(fixture: &dyn Fixture, scene: Scene) -> Stage {
    match fixture.stage(scene).await {
        Ok(stage) => stage,
        Err(reason) => panic!("every provider can be in the scene {scene:?}, but: {reason}"),
    }
}
