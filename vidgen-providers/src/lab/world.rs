//! The state of one remote, as its routes see it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::response::Response;
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;
use url::Url;
use uuid::Uuid;
use vidgen_core::clock::SystemClock;
use vidgen_core::{Clock, StepKind, SubmissionId};

use super::faults::{Faults, Outage};
use super::film::Film;
use super::ledger::{Accepted, Class, Delivery, Seen};
use super::play::{Answer, Course, Ends, Failure, Looks, OnCancel, Play, Refusal};
use super::remote::Remote;

/// As often is a run looked at by nobody: how runs end of which a callback is asked.
pub(super) const NOBODYS_LOOK: Duration = Duration::from_millis(100);

/// A remote's state: what its routes ask and tell. Clones share it.
#[derive(Clone)]
pub struct World(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) remote: Box<dyn Remote>,
    /// `http://127.0.0.1:port`
    pub(super) origin: String,
    /// Where outputs lie; another port if they have an origin of their own.
    pub(super) outputs: String,
    pub(super) key: String,
    /// The part of an output's URL that nobody can guess.
    pub(super) output_token: String,
    pub(super) tasks: Mutex<JoinSet<()>>,
    pub(super) http: reqwest::Client,
    state: Mutex<State>,
}

pub(super) struct State {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) plays: VecDeque<(Option<StepKind>, Play)>,
    pub(super) always: Option<Play>,
    pub(super) key_revoked: bool,
    pub(super) faults: Faults,
    pub(super) outage: Option<Outage>,
    pub(super) runs: Vec<Run>,
    pub(super) seen: Vec<Arc<Seen>>,
    pub(super) counts: HashMap<Class, u64>,
    pub(super) accepted: Vec<Accepted>,
    pub(super) cancels: Vec<String>,
    pub(super) uploads: Vec<Upload>,
    pub(super) hold: bool,
    pub(super) deliveries: Vec<Delivery>,
}

/// What a submit asks for, as its route understood it.
#[derive(Clone, Debug)]
pub struct Wish {
    kind: StepKind,
    model: String,
    input: Value,
    id: Option<String>,
    submission: Option<SubmissionId>,
    callback: Option<Url>,
    film: Option<Film>,
    extra: Value,
}

impl Wish {
    /// A run of `model` on `input`, which is shown again where the remote does that, and says what
    /// the output shall be like.
    pub fn new(kind: StepKind, model: impl Into<String>, input: Value) -> Self {
        Self {
            kind,
            model: model.into(),
            input,
            id: None,
            submission: None,
            callback: None,
            film: None,
            extra: Value::Null,
        }
    }

    /// With something that the remote's file wants to know of the run later.
    #[must_use]
    pub fn with_extra(mut self, extra: Value) -> Self {
        self.extra = extra;
        self
    }

    /// Under this id, instead of a random UUID.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// For this submission, where it cannot be read in the call as it is.
    #[must_use]
    pub fn with_submission(mut self, submission: Option<SubmissionId>) -> Self {
        self.submission = submission;
        self
    }

    /// To be told of at this URL; one that is none is ignored.
    #[must_use]
    pub fn with_callback(mut self, url: Option<&str>) -> Self {
        self.callback = url.and_then(|url| Url::parse(url).ok());
        self
    }

    /// With an output like this, where the input's usual fields do not say it.
    #[must_use]
    pub fn with_film(mut self, film: Film) -> Self {
        self.film = Some(film);
        self
    }
}

/// One accepted submission.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Run {
    /// Which it was, from 1.
    pub number: u64,
    /// The remote's id.
    pub id: String,
    /// What kind of step it is for.
    pub kind: StepKind,
    /// The model.
    pub model: String,
    /// What was asked.
    pub input: Value,
    /// Our id of it, as far as it could be seen.
    pub submission: Option<SubmissionId>,
    /// Where to call back.
    pub callback: Option<Url>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// What happens to it.
    pub play: Play,
    /// How often it was looked at.
    pub looks: u32,
    /// What it makes.
    pub film: Film,
    /// What the remote's file keeps of it.
    pub extra: Value,
    pub(super) began: Instant,
    pub(super) canceled: bool,
    pub(super) stopped: bool,
    pub(super) served: u32,
    pub(super) called: bool,
}

/// How a run is doing.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Phase {
    /// It waits for its turn.
    Queued,
    /// It runs; how far it is, from 0 to 1.
    Running(f64),
    /// The remote is to say a state that its documentation does not have.
    Unknown,
    /// It has an output.
    Succeeded,
    /// It failed.
    Failed(Failure),
    /// It was ended for its content, for this reason.
    Moderated(String),
    /// The remote gave it up before it began.
    Aborted,
    /// It was stopped.
    Canceled,
}

impl Run {
    /// How it is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        if self.stopped {
            return Phase::Canceled;
        }
        if self.play.looks.0 == Looks::UnknownState && self.looks <= self.play.looks.1 {
            return Phase::Unknown;
        }
        if self.ended_at.is_none() {
            return match self.looks {
                0 => Phase::Queued,
                looks => Phase::Running(1.0 - 1.0 / f64::from(looks.saturating_add(1))),
            };
        }
        match &self.play.course {
            Course::Succeeds => Phase::Succeeded,
            Course::Fails(failure) => Phase::Failed(failure.clone()),
            Course::Moderated(reason) => Phase::Moderated(reason.clone()),
            Course::Aborts => Phase::Aborted,
        }
    }

    /// Whether it ended, one way or another.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended_at.is_some()
    }

    fn due(&self) -> bool {
        match self.play.ends {
            Ends::AfterLooks(looks) => self.looks > looks,
            Ends::After(duration) => self.began.elapsed() >= duration,
            Ends::WhenTold => false,
        }
    }
}

/// A file that was handed over.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Upload {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its type, as it was said.
    pub content_type: String,
    /// Its bytes.
    pub bytes: Bytes,
}

/// What asking a run to stop came to.
#[derive(Clone, Debug)]
pub enum Stopped {
    /// It stops, or the remote says so.
    Yes(Run),
    /// It had ended.
    TooLate(Run),
}

impl World {
    pub(super) fn new(remote: Box<dyn Remote>, origin: String, outputs: String, http: reqwest::Client) -> Self {
        let state = State {
            clock: Arc::new(SystemClock::new()),
            plays: VecDeque::new(),
            always: None,
            key_revoked: false,
            faults: Faults::default(),
            outage: None,
            runs: Vec::new(),
            seen: Vec::new(),
            counts: HashMap::new(),
            accepted: Vec::new(),
            cancels: Vec::new(),
            uploads: Vec::new(),
            hold: false,
            deliveries: Vec::new(),
        };
        Self(Arc::new(Inner {
            key: remote.key(),
            remote,
            origin,
            outputs,
            output_token: Uuid::new_v4().simple().to_string(),
            tasks: Mutex::default(),
            http,
            state: Mutex::new(state),
        }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client's base URL: origin and the remote's base path, no slash at its end.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("{}{}", self.0.origin, self.0.remote.base_path())
    }

    /// `http://127.0.0.1:port`
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.0.origin
    }

    /// The remote's time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.lock().clock.now()
    }

    /// The remote's way to say no.
    #[must_use]
    pub fn refuse(&self, refusal: &Refusal) -> Response {
        self.0.remote.refuse(refusal)
    }

    /// Buys a run, if the play lets it: from here on it is billed.
    ///
    /// # Errors
    /// The remote's refusal.
    pub fn buy(&self, seen: &Seen, wish: Wish) -> Result<Run, Response> {
        let run = {
            let mut state = self.lock();
            let play = state.play(wish.kind);
            if let Answer::Refuses(refusal) = &play.answer {
                drop(state);
                return Err(self.refuse(refusal));
            }
            // Set once: a call that bought two things is answered as the first wants it.
            drop(seen.after.set(play.answer.clone()));
            let number = u64::try_from(state.accepted.len()).unwrap_or(u64::MAX).saturating_add(1);
            let id = wish.id.unwrap_or_else(|| Uuid::new_v4().to_string());
            let submission = wish.submission.or_else(|| seen.submission());
            let accepted = Accepted {
                number,
                submission: submission.clone(),
                remote_id: id.clone(),
                model: wish.model.clone(),
                call: seen.number,
            };
            state.accepted.push(accepted);
            let film = wish.film.unwrap_or_else(|| Film::asked(wish.kind, &wish.input));
            let run = Run {
                number,
                id,
                kind: wish.kind,
                model: wish.model,
                input: wish.input,
                submission,
                callback: wish.callback,
                created_at: state.clock.now(),
                ended_at: None,
                play,
                looks: 0,
                film,
                extra: wish.extra,
                began: Instant::now(),
                canceled: false,
                stopped: false,
                served: 0,
                called: false,
            };
            state.runs.push(run.clone());
            run
        };
        self.ends_unseen(&run);
        Ok(run)
    }

    /// Looks at a run, which counts: plays end after so many looks.
    ///
    /// # Errors
    /// That there is none, or what the play wants answered instead.
    pub fn look(&self, id: &str) -> Result<Run, Response> {
        let run = self.change(id, |run| run.looks = run.looks.saturating_add(1))?;
        let (looks, times) = run.play.looks;
        if run.looks > times {
            return Ok(run);
        }
        Err(match looks {
            Looks::Plainly | Looks::UnknownState => return Ok(run),
            Looks::Garbled => super::server::garbled(),
            Looks::RateLimited(delay) => self.refuse(&Refusal::RateLimited(delay)),
            Looks::Fail(status) => super::server::gateway(status),
            Looks::NotFound => self.refuse(&Refusal::NotFound),
            Looks::Hang => super::server::hang(),
        })
    }

    /// A run, without counting as a look.
    #[must_use]
    pub fn peek(&self, id: &str) -> Option<Run> {
        self.change(id, |_| ()).ok()
    }

    /// All runs, newest first; the state of each without counting as a look.
    ///
    /// # Errors
    /// What cannot be understood, if the play of one of them is so.
    pub fn list(&self) -> Result<Vec<Run>, Response> {
        let mut ended = Vec::new();
        let runs = {
            let mut state = self.lock();
            let now = state.clock.now();
            for run in state.runs.iter_mut().filter(|run| run.ended_at.is_none() && run.due()) {
                run.ended_at = Some(now);
                ended.push(run.id.clone());
            }
            state.runs.clone()
        };
        ended.iter().for_each(|id| self.call_back(id));
        if runs.iter().any(|run| run.play.looks == (Looks::Garbled, u32::MAX)) {
            return Err(super::server::garbled());
        }
        Ok(runs.into_iter().rev().collect())
    }

    /// Asks a run to stop. It is then as late as at a look.
    ///
    /// # Errors
    /// That there is none.
    pub fn cancel(&self, id: &str) -> Result<Stopped, Response> {
        self.lock().cancels.push(id.to_owned());
        let mut late = false;
        let run = self.change(id, |run| {
            late = run.ended_at.is_some() || matches!(run.play.ends, Ends::AfterLooks(0)) || run.due();
            if late {
                // Seen by nobody yet, but ended.
                run.looks = run.looks.max(1);
            } else {
                run.canceled = true;
                run.stopped = run.play.on_cancel == OnCancel::Stops;
            }
        })?;
        Ok(if late { Stopped::TooLate(run) } else { Stopped::Yes(run) })
    }

    /// Forgets a run, as where a remote deletes one.
    pub fn delete(&self, id: &str) {
        self.lock().runs.retain(|run| run.id != id);
    }

    /// Lets a run end now.
    pub(super) fn finish(&self, submission: &SubmissionId) -> bool {
        let id = self.lock().runs.iter().find(|run| run.submission.as_ref() == Some(submission)).map(|r| r.id.clone());
        id.is_some_and(|id| self.change(&id, |run| run.play.ends = Ends::After(Duration::ZERO)).is_ok())
    }

    /// Changes a run and sees whether it has ended by then; if so, it is called back about.
    fn change(&self, id: &str, change: impl FnOnce(&mut Run)) -> Result<Run, Response> {
        let (run, ended) = {
            let mut state = self.lock();
            let now = state.clock.now();
            let Some(run) = state.runs.iter_mut().rfind(|run| run.id == id) else {
                drop(state);
                return Err(self.refuse(&Refusal::NotFound));
            };
            change(run);
            let ended = run.ended_at.is_none() && (run.stopped || run.due());
            if ended {
                run.ended_at = Some(now);
            }
            (run.clone(), ended)
        };
        if ended {
            self.call_back(&run.id);
        }
        Ok(run)
    }

    /// A run of which a callback is asked ends when its time has come, whether anybody looks or not.
    fn ends_unseen(&self, run: &Run) {
        let after = match run.play.ends {
            Ends::AfterLooks(looks) => NOBODYS_LOOK * looks,
            Ends::After(duration) => duration,
            Ends::WhenTold => return,
        };
        if run.callback.is_none() {
            return;
        }
        let (world, id) = (self.clone(), run.id.clone());
        self.spawn(async move {
            tokio::time::sleep(after).await;
            drop(world.change(&id, |run| run.play.ends = Ends::After(Duration::ZERO)));
        });
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Keeps a file that was handed over, under a new id.
    pub fn keep(&self, name: impl Into<String>, content_type: impl Into<String>, bytes: Bytes) -> Upload {
        let id = Uuid::new_v4().simple().to_string();
        let upload = Upload { id, name: name.into(), content_type: content_type.into(), bytes };
        self.lock().uploads.push(upload.clone());
        upload
    }

    /// A file that was handed over.
    #[must_use]
    pub fn upload(&self, id: &str) -> Option<Upload> {
        self.lock().uploads.iter().find(|upload| upload.id == id).cloned()
    }
}

impl State {
    fn play(&mut self, kind: StepKind) -> Play {
        let next = self.plays.iter().position(|(of, _)| of.is_none_or(|of| of == kind));
        let next = next.and_then(|at| self.plays.remove(at));
        next.map(|(_, play)| play).or_else(|| self.always.clone()).unwrap_or_default()
    }
}
