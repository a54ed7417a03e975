//! The state of one remote, as its routes see it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::response::Response;
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;
use vidgen_core::clock::SystemClock;
use vidgen_core::{Clock, StepKind};

use super::faults::{Faults, Outage};
use super::film::Film;
use super::ledger::{Accepted, Class, Delivery, Seen};
use super::play::{Answer, Ends, Looks, OnCancel, Play, Refusal};
use super::remote::Remote;
// Remotes find all that they work on here.
pub use super::run::{Phase, Run, Wish};

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
    /// Rung whenever a run ends.
    ended: Notify,
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
    /// How many runs may be live at once.
    pub(super) capacity: Option<usize>,
    /// How many have been, at most.
    pub(super) most_live: usize,
    pub(super) deliveries: Vec<Delivery>,
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
            capacity: None,
            most_live: 0,
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
            ended: Notify::new(),
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
            let mut play = state.play(wish.kind);
            let live = state.runs.iter().filter(|run| !run.ended() && !run.due()).count();
            let full = state.capacity.is_some_and(|capacity| live >= capacity);
            let refusal = match &play.answer {
                Answer::Refuses(refusal) => Some(refusal),
                _ => full.then_some(&Refusal::Busy),
            };
            if let Some(refusal) = refusal {
                drop(state);
                return Err(self.refuse(refusal));
            }
            state.most_live = state.most_live.max(live + 1);
            play.course = wish.course.unwrap_or(play.course);
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

    /// The newest run of which that is true, without counting as a look.
    pub fn find(&self, is: impl Fn(&Run) -> bool) -> Option<Run> {
        let id = self.lock().runs.iter().rfind(|run| is(run)).map(|run| run.id.clone());
        id.and_then(|id| self.peek(&id))
    }

    /// Waits until a run ends, for remotes that answer a submit with the output itself. What ends
    /// after so many looks takes as many times 100 ms.
    ///
    /// # Errors
    /// That there is none, or no longer.
    pub async fn wait(&self, id: &str) -> Result<Run, Response> {
        loop {
            let end = self.0.ended.notified();
            let run = self.change(id, |_| ())?;
            let Some(rest) = run.rest() else { return Ok(run) };
            // Told, or by itself.
            let _ = tokio::time::timeout(rest, end).await;
            self.change(id, |run| {
                if run.rest() == Some(Duration::ZERO) {
                    run.play.ends = Ends::After(Duration::ZERO);
                }
            })?;
        }
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
                run.stopped = run.play.on_cancel == OnCancel::Stops;
            }
        })?;
        Ok(if late { Stopped::TooLate(run) } else { Stopped::Yes(run) })
    }

    /// Forgets a run, as where a remote deletes one.
    pub fn delete(&self, id: &str) {
        self.lock().runs.retain(|run| run.id != id);
    }

    /// Lets runs end now; answers whether there are any.
    pub(super) fn finish(&self, is: impl Fn(&Run) -> bool) -> bool {
        let runs = self.lock().runs.iter().filter(|run| is(run)).map(|run| run.id.clone()).collect::<Vec<_>>();
        runs.iter().for_each(|id| drop(self.change(id, |run| run.play.ends = Ends::After(Duration::ZERO))));
        !runs.is_empty()
    }

    /// Keeps something of a run for the remote's file, as its [`Run::extra`].
    pub fn note(&self, id: &str, extra: Value) {
        drop(self.change(id, |run| run.extra = extra));
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
            self.0.ended.notify_waiters();
            self.call_back(&run.id);
        }
        Ok(run)
    }

    /// A run of which a callback is asked ends when its time has come, whether anybody looks or not.
    fn ends_unseen(&self, run: &Run) {
        let Some(after) = run.rest().filter(|_| run.callback.is_some() && run.play.ends != Ends::WhenTold) else {
            return;
        };
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

    /// Gives a file its bytes, where its id comes before them; answers whether there is one.
    pub fn fill(&self, id: &str, bytes: Bytes) -> bool {
        let mut state = self.lock();
        let upload = state.uploads.iter_mut().find(|upload| upload.id == id);
        upload.map(|upload| upload.bytes = bytes).is_some()
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
