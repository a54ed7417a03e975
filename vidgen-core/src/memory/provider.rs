//! A provider that does what it is told: for tests, examples and trying things out.

mod remote;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use url::Url;

use crate::error::{Error, ErrorKind, Result};
use crate::job::StepKind;
use crate::media::Body;
use crate::money::{Price, Usd};
use crate::provider::{
    Callback, Capabilities, Handle, Lookup, Model, Output, Provider, ProviderId, Resubmit, RunFailure, Snapshot, Spool,
    Submission, SubmissionId, SubmitOptions, Task,
};

pub use remote::Scene;
use remote::{Remote, sample};

/// A provider in process that plays scenes. Without any, every submission succeeds at once.
///
/// Clones share one remote: what was accepted, the ledger of it, and the scenes to come. The
/// remote outlives a simulated crash of a worker, as a real one would.
#[derive(Clone, Debug)]
pub struct ScriptedProvider {
    id: ProviderId,
    capabilities: Capabilities,
    /// Whether its look-ups can tell.
    remembers: bool,
    remote: Arc<Mutex<Remote>>,
}

/// Ends every output's locator, as the signature ends a signed link. It is to be kept as secret as
/// one: a test can look for it where it must not be.
const SIGNATURE: &str = "?signature=scripted-secret";

impl ScriptedProvider {
    /// A provider of every kind of step at the tutorial's prices (image $0.10, video $0.50, speech
    /// $0.05, the others free), which can look up lost submissions and cancel.
    pub fn new(id: &str) -> Self {
        let model = |kind: StepKind, price| {
            Model::new(format!("scripted/{kind}"), kind, price).with_typical(Duration::from_secs(10))
        };
        let models = vec![
            model(StepKind::Image, Price::PerRun(Usd::from_cents(10))),
            model(StepKind::Video, Price::PerRun(Usd::from_cents(50))),
            model(StepKind::Speech, Price::PerRun(Usd::from_cents(5))),
            model(StepKind::Compose, Price::Free),
            model(StepKind::Thumbnail, Price::Free),
        ];
        let capabilities = Capabilities::new(models)
            .with_find()
            .with_cancel()
            .with_poll_floor(Duration::from_millis(1))
            .with_submit_timeout(Duration::from_secs(30));
        Self { id: ProviderId::from(id), capabilities, remembers: true, remote: Arc::default() }
    }

    /// Says what may be done when the answer to a submit was lost.
    #[must_use]
    pub fn with_resubmit(mut self, resubmit: Resubmit) -> Self {
        self.capabilities.resubmit = resubmit;
        self
    }

    /// Takes away the ability to look up lost submissions.
    #[must_use]
    pub fn without_find(mut self) -> Self {
        self.capabilities.find = false;
        self
    }

    /// Makes every look-up of a lost submission answer that it cannot tell.
    #[must_use]
    pub fn with_vague_find(mut self) -> Self {
        self.remembers = false;
        self
    }

    /// Takes away the ability to cancel.
    #[must_use]
    pub fn without_cancel(mut self) -> Self {
        self.capabilities.cancel = false;
        self
    }

    /// Adds the ability to call back; what would be called is in [`ScriptedProvider::callback_of`].
    #[must_use]
    pub fn with_callback(mut self) -> Self {
        self.capabilities.callback = true;
        self
    }

    /// Makes its callbacks all that is ever heard of a run.
    #[must_use]
    pub fn with_only_callback(mut self) -> Self {
        self.capabilities = self.capabilities.with_only_callback();
        self
    }

    /// Makes it answer each submit with the output itself.
    #[must_use]
    pub fn with_spools(mut self) -> Self {
        self.capabilities = self.capabilities.with_spools();
        self
    }

    /// Sets how many runs may be live at once.
    #[must_use]
    pub fn with_max_live(mut self, runs: usize) -> Self {
        self.capabilities = self.capabilities.with_max_live(runs);
        self
    }

    /// Changes the models, e.g. for other prices or limits.
    #[must_use]
    pub fn with_models(mut self, models: Vec<Model>) -> Self {
        self.capabilities.models = models;
        self
    }

    /// Sets the shortest time between polls.
    #[must_use]
    pub fn with_poll_floor(mut self, floor: Duration) -> Self {
        self.capabilities.poll_floor = floor;
        self
    }

    /// Sets how long the answer to a submit may take.
    #[must_use]
    pub fn with_submit_timeout(mut self, timeout: Duration) -> Self {
        self.capabilities.submit_timeout = timeout;
        self
    }

    /// Plays `scene` for the next submission of that kind that has none yet.
    pub fn then(&self, kind: StepKind, scene: Scene) {
        self.lock().scenes.entry(kind).or_default().push_back(scene);
    }

    /// Plays `scene` for every submission that has no other, until told otherwise.
    pub fn always(&self, scene: Option<Scene>) {
        self.lock().outage = scene;
    }

    /// Sets the bytes that runs of that kind make.
    pub fn makes(&self, kind: StepKind, bytes: Bytes) {
        self.lock().outputs.insert(kind, bytes);
    }

    /// The callback about an accepted submission: the URL that the submit gave, and what would be
    /// sent there, by the remote's word at `now`. `None` if the submit gave no URL.
    #[must_use]
    pub fn callback_of(&self, submission: &SubmissionId, now: Timestamp) -> Option<(Url, Callback)> {
        let remote = self.lock();
        let (id, run) = remote.run_of(submission)?;
        let body = format!("{id} {}", run.word()).into_bytes();
        Some((run.callback.clone()?, Callback::new([("scripted-signature", self.secret())], body, now)))
    }

    /// Lets a run that goes on for ever succeed.
    pub fn end(&self, submission: &SubmissionId) {
        if let Some(run) = self.lock().runs.values_mut().find(|run| run.submission == *submission) {
            run.scene = Scene::EndsAtOnce;
        }
    }

    /// From now on the remote takes the key for a wrong one, whatever it is asked.
    pub fn revoke_key(&self) {
        self.lock().key_revoked = true;
    }

    /// From now on the remote takes the key again.
    pub fn mend_key(&self) {
        self.lock().key_revoked = false;
    }

    /// Every submission that reached the remote, accepted or not, in order.
    #[must_use]
    pub fn requests(&self) -> Vec<SubmissionId> {
        self.lock().requests.clone()
    }

    /// Every submission that was accepted, in order: what the provider bills for.
    #[must_use]
    pub fn accepted(&self) -> Vec<SubmissionId> {
        self.lock().accepted.clone()
    }

    /// How many calls of any sort reached the remote.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.lock().calls
    }

    /// How often somebody looked how a submission is doing.
    #[must_use]
    pub fn looks(&self, submission: &SubmissionId) -> u32 {
        self.lock().run_of(submission).map_or(0, |(_, run)| run.looks)
    }

    /// The most runs that were ever live at once. One ends when somebody sees its end.
    #[must_use]
    pub fn most_live(&self) -> usize {
        self.lock().most_live
    }

    /// What must appear in no handle, log line or error: the signed part of its output links.
    #[must_use]
    pub fn secret(&self) -> &'static str {
        SIGNATURE.trim_start_matches("?signature=")
    }

    /// The remote ids of the runs whose end was asked for, in order.
    #[must_use]
    pub fn cancels(&self) -> Vec<String> {
        self.lock().cancels.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Remote> {
        self.remote.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call that reaches the remote, which looks at the key before anything else.
    fn call(&self) -> Result<MutexGuard<'_, Remote>> {
        let mut remote = self.lock();
        remote.calls += 1;
        if remote.key_revoked {
            return Err(self.error(ErrorKind::Unauthorized, "the key is wrong"));
        }
        Ok(remote)
    }

    fn error(&self, kind: ErrorKind, message: &str) -> Error {
        Error::new(kind, self.id.as_str().to_owned(), message)
    }

    fn garbled(&self) -> Error {
        self.error(ErrorKind::Protocol, "the answer is not understood")
    }
}

#[async_trait]
impl Provider for ScriptedProvider {
    fn id(&self) -> ProviderId {
        self.id.clone()
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    async fn submit(&self, task: &Task, options: &SubmitOptions) -> Result<Handle> {
        let kind = task.spec.kind();
        if self.capabilities.model(kind, Some(&task.model)).is_none() {
            return Err(self.error(ErrorKind::Unsupported, "no such model"));
        }
        let submission = &options.submission;
        let spool = options.spool.as_ref().filter(|_| self.capabilities.spools);
        if self.capabilities.spools && spool.is_none() {
            return Err(self.error(ErrorKind::Internal, "there is no spool for the answer"));
        }
        let (remote_id, hangs, bytes) = {
            let mut remote = self.lock();
            let scene = match remote.scenes.get_mut(&kind).and_then(VecDeque::pop_front) {
                Some(scene) => scene,
                None => remote.outage.clone().unwrap_or(Scene::Succeeds { after_polls: 0 }),
            };
            if let Scene::Rejects(ErrorKind::NotSent) = scene {
                return Err(self.error(ErrorKind::NotSent, "connection refused"));
            }
            remote.calls += 1;
            remote.requests.push(submission.clone());
            if remote.key_revoked {
                return Err(self.error(ErrorKind::Unauthorized, "the key is wrong"));
            }
            let keyed = !matches!(self.capabilities.resubmit, Resubmit::Never);
            if let (true, Some((id, _))) = (keyed, remote.run_of(submission)) {
                // The same key: the run that it bought, and no other.
                return Ok(Handle::new(self.id.clone(), id.clone()));
            }
            let bytes = remote.outputs.get(&kind).cloned().unwrap_or_else(|| sample(kind));
            match scene {
                Scene::Rejects(kind) => return Err(self.error(kind, "the scene says no")),
                Scene::RateLimits(delay) => {
                    return Err(self.error(ErrorKind::RateLimited, "slow down").with_retry_after(delay));
                }
                Scene::LosesRequest => return Err(self.error(ErrorKind::OutcomeUnknown, "connection reset")),
                Scene::LosesAnswer => {
                    remote.accept(options, kind, Scene::Succeeds { after_polls: 0 });
                    return Err(self.error(ErrorKind::OutcomeUnknown, "connection reset"));
                }
                Scene::Hangs => (remote.accept(options, kind, Scene::Succeeds { after_polls: 0 }), true, bytes),
                scene => (remote.accept(options, kind, scene), false, bytes),
            }
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        let Some(spool) = spool else { return Ok(Handle::new(self.id.clone(), remote_id)) };
        let lost = |e| self.error(ErrorKind::OutcomeUnknown, "the answer could not be kept").with_source(e);
        let output = spool.keep(bytes.into()).await.map_err(lost)?;
        Ok(Handle::spooled(self.id.clone(), submission, &output))
    }

    async fn poll(&self, handle: &Handle) -> Result<Snapshot> {
        if let Some(end) = handle.spooled_end() {
            return Ok(end);
        }
        if self.capabilities.only_callback {
            return Ok(handle.end().unwrap_or_else(|| Snapshot::running(None)));
        }
        let mut remote = self.call()?;
        let unknown = || self.error(ErrorKind::NotFound, "no such run");
        let run = remote.runs.get_mut(&handle.remote_id).ok_or_else(unknown)?;
        run.looks = run.looks.saturating_add(1);
        if run.canceled {
            return Ok(Snapshot::canceled());
        }
        run.polls = run.polls.saturating_add(1);
        Ok(match &run.scene {
            Scene::Vanishes => return Err(unknown()),
            Scene::Lags { looks } if run.polls <= *looks => return Err(unknown()),
            Scene::Fails(failure) => Snapshot::failed(failure.clone()),
            Scene::RunsForever => Snapshot::running(Some(0.5)),
            Scene::UnknownState => Snapshot::running(None),
            Scene::Garbles => return Err(self.garbled()),
            Scene::RateLimitsPolls(delay) => {
                return Err(self.error(ErrorKind::RateLimited, "slow down").with_retry_after(*delay));
            }
            Scene::Bills(cost) => succeeded(handle).with_cost(*cost),
            Scene::Uses(usage) => succeeded(handle).with_usage(*usage),
            Scene::Succeeds { after_polls } if run.polls <= *after_polls => {
                // A few polls at most: exact in an f32.
                #[expect(clippy::cast_precision_loss, reason = "scenes have few polls")]
                Snapshot::running(Some(run.polls as f32 / (*after_polls + 1) as f32))
            }
            _ => succeeded(handle),
        })
    }

    async fn open(&self, output: &Output) -> Result<Body> {
        let mut remote = self.call()?;
        let gone = || self.error(ErrorKind::NotFound, "no such output");
        let run_id = output.locator.strip_suffix(SIGNATURE).ok_or_else(gone)?;
        let run = remote.runs.get_mut(run_id).ok_or_else(gone)?;
        let (kind, scene) = (run.kind, run.scene.clone());
        if let Scene::Truncates { times } = &mut run.scene {
            *times = times.saturating_sub(1);
        }
        let bytes = remote.outputs.get(&kind).cloned().unwrap_or_else(|| sample(kind));
        let length = u64::try_from(bytes.len()).ok();
        let half = bytes.slice(..bytes.len() / 2);
        let cut = || self.error(ErrorKind::Unavailable, "the connection broke off");
        Ok(match scene {
            Scene::Expires => return Err(gone()),
            Scene::Truncates { times: 1.. } => Body::new(stream::iter([Ok(half), Err(cut())]), length),
            Scene::Overruns => Body::new(stream::iter([Ok(bytes), Ok(half)]), length),
            Scene::Stalls => Body::new(stream::iter([Ok(half)]).chain(stream::pending()), length),
            _ => bytes.into(),
        })
    }

    async fn cancel(&self, handle: &Handle) -> Result<()> {
        if !self.capabilities.cancel {
            return Err(self.error(ErrorKind::Unsupported, "cannot cancel"));
        }
        let mut remote = self.call()?;
        remote.cancels.push(handle.remote_id.clone());
        let run =
            remote.runs.get_mut(&handle.remote_id).ok_or_else(|| self.error(ErrorKind::NotFound, "no such run"))?;
        if run.ended() && !run.canceled {
            return Err(self.error(ErrorKind::TooLate, "it ended"));
        }
        run.canceled = true;
        Ok(())
    }

    async fn find(&self, submission: &Submission) -> Result<Lookup> {
        if !self.capabilities.find {
            return Err(self.error(ErrorKind::Unsupported, "cannot look up"));
        }
        let remote = self.call()?;
        if !self.remembers {
            return Ok(Lookup::Unknown);
        }
        let found = remote.run_of(&submission.id);
        if found.is_some_and(|(_, run)| matches!(run.scene, Scene::Garbles)) {
            return Err(self.garbled());
        }
        Ok(found.map_or(Lookup::Absent, |(id, _)| Lookup::Found(Handle::new(self.id.clone(), id.clone()))))
    }

    async fn callback(&self, callback: &Callback, _spool: &Spool) -> Result<Handle> {
        if !self.capabilities.callback {
            return Err(self.error(ErrorKind::Unsupported, "does not call back"));
        }
        if callback.header("scripted-signature") != Some(self.secret()) {
            return Err(forged(&self.id));
        }
        let body = std::str::from_utf8(&callback.body).map_err(|_| self.garbled())?;
        let (run, word) = body.split_once(' ').ok_or_else(|| self.garbled())?;
        let handle = Handle::new(self.id.clone(), run);
        if !self.capabilities.only_callback {
            return Ok(handle);
        }
        let end = match word {
            "succeeded" => succeeded(&handle),
            "failed" => Snapshot::failed(RunFailure::new(ErrorKind::Unavailable, "the callback says so")),
            "canceled" => Snapshot::canceled(),
            _ => return Ok(handle),
        };
        Ok(handle.with_end(&end))
    }
}

fn forged(id: &ProviderId) -> Error {
    Error::new(ErrorKind::Unauthorized, id.as_str().to_owned(), "the callback is not the remote's")
}

fn succeeded(handle: &Handle) -> Snapshot {
    Snapshot::succeeded(vec![Output::new(format!("{}{SIGNATURE}", handle.remote_id))])
}
