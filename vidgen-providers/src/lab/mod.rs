//! Fake servers of the remote providers, for tests, and for trying vidgen against "Replicate" without a key.
//!
//! A [`Lab`] is one remote on a socket of this machine, in this process: it speaks that provider's
//! protocol as its documentation has it (see the file of each for what is known and what is not),
//! keeps a ledger of what it would bill, and does what a test tells it to: fail, lose answers,
//! be away, call back late.
//!
//! ```
//! # async fn example() {
//! use std::time::Duration;
//! use vidgen_core::StepKind;
//! use vidgen_providers::lab::{self, Answer, Lab, Play};
//!
//! let lab = Lab::start(lab::replicate()).await;
//! lab.then(StepKind::Video, Play::succeeds().with_answer(Answer::Resets));
//! lab.then(None, Play::rate_limits(Duration::from_secs(7)));
//! // … a client of `lab.base_url()` with the key `lab.key()` submits …
//! assert_eq!(lab.posts(), 0);
//! assert!(lab.accepted().is_empty());
//! # }
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example());
//! ```
//!
//! A new remote is one file: a type that is a [`Remote`], and a function of the provider's name.

#![allow(clippy::result_large_err, reason = "a route answers with a response either way")]

mod callbacks;
mod cog;
mod comfyui;
mod elevenlabs;
mod fal;
mod faults;
pub mod film;
pub mod kit;
mod ledger;
mod openai;
mod outputs;
mod play;
mod remote;
mod replicate;
mod run;
mod runway;
mod server;
mod world;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;
use vidgen_core::{Callback, Clock, StepKind, SubmissionId};

pub use cog::{Cog, cog};
pub use comfyui::{ComfyUi, comfyui};
pub use elevenlabs::{ElevenLabs, elevenlabs};
pub use fal::{Fal, fal};
pub use faults::{Faults, Outage, Rates};
pub use ledger::{Accepted, Asked, Class, Delivery, Field, Seen};
pub use openai::{OpenAi, litellm, openai, sglang, vllm_omni};
pub use play::{Answer, Course, Ends, Failure, Looks, OnCancel, Play, Refusal, Serving};
pub use remote::{Remote, Retries, Signed, has_key, json, standard_webhook, typed, whole_seconds, with_header};
pub use replicate::{Replicate, replicate};
pub use runway::{Runway, runway};

pub use world::{Phase, Run, Stopped, Upload, Wish, World};

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;

/// Every remote that there is, as it is without anything special.
#[must_use]
pub fn remotes() -> Vec<Box<dyn Remote>> {
    vec![
        Box::new(cog()),
        Box::new(comfyui()),
        Box::new(elevenlabs()),
        Box::new(fal()),
        Box::new(openai()),
        Box::new(replicate()),
        Box::new(runway()),
    ]
}

/// One fake remote. Dropping it closes it, and every connection to it.
pub struct Lab {
    world: World,
    ports: Vec<Port>,
}

/// How a lab is started; [`Lab::start`] is this without anything special.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Setup {
    /// The port; 0 for any.
    pub port: u16,
    /// Whether outputs have an origin of their own, as behind a CDN: another port.
    pub outputs_elsewhere: bool,
}

/// A port that stays ours, whether anybody listens on it or not.
struct Port {
    addr: SocketAddr,
    /// Bound, but not listening: keeps the port from others while it is closed.
    #[cfg(unix)]
    _reserve: TcpSocket,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

impl Lab {
    /// Starts a remote on a free port of the loopback.
    ///
    /// # Panics
    /// If this machine has no port left.
    #[expect(clippy::panic, reason = "a test without its remote has nothing to go on with")]
    pub async fn start(remote: impl Remote) -> Self {
        Self::start_with(remote, Setup::default()).await.unwrap_or_else(|e| panic!("no lab: {e}"))
    }

    /// Starts a remote with a setup of one's own.
    ///
    /// # Errors
    /// If the port is not free.
    pub async fn start_with(remote: impl Remote, setup: Setup) -> io::Result<Self> {
        let mut ports = vec![Port::bind(setup.port)?];
        if setup.outputs_elsewhere {
            ports.push(Port::bind(0)?);
        }
        let origins: Vec<String> = ports.iter().map(|port| format!("http://{}", port.addr)).collect();
        let (origin, outputs) = (origins.first().cloned(), origins.last().cloned());
        let http = callbacks::client().map_err(io::Error::other)?;
        let world = World::new(Box::new(remote), origin.unwrap_or_default(), outputs.unwrap_or_default(), http);
        let lab = Self { world, ports };
        lab.open()?;
        Ok(lab)
    }

    fn open(&self) -> io::Result<()> {
        for port in &self.ports {
            port.open(&self.world)?;
        }
        Ok(())
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.ports.first().map_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), |port| port.addr)
    }

    /// Where its outputs are served: the same address, unless the setup has it otherwise.
    #[must_use]
    pub fn outputs_addr(&self) -> SocketAddr {
        self.ports.last().map_or(self.addr(), |port| port.addr)
    }

    /// What a client takes for the provider's base URL.
    #[must_use]
    pub fn base_url(&self) -> String {
        self.world.base_url()
    }

    /// The key that it accepts.
    #[must_use]
    pub fn key(&self) -> String {
        self.world.0.key.clone()
    }

    /// What must appear in no handle, error or log: the key, and the part of output URLs that
    /// nobody can guess.
    #[must_use]
    pub fn secrets(&self) -> Vec<String> {
        vec![self.key(), self.world.0.output_token.clone()]
    }

    /// Its state, as its routes see it.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Plays `play` for the next submission of that kind that has none yet (`None`: of any kind).
    pub fn then(&self, kind: impl Into<Option<StepKind>>, play: Play) {
        self.world.lock().plays.push_back((kind.into(), play));
    }

    /// Plays `play` for every submission that has no other, until told otherwise. Without one, they
    /// succeed at the second look.
    pub fn always(&self, play: impl Into<Option<Play>>) {
        self.world.lock().always = play.into();
    }

    /// From now on the key is wrong.
    pub fn revoke_key(&self) {
        self.world.lock().key_revoked = true;
    }

    /// Sets faults by chance.
    pub fn faults(&self, faults: Faults) {
        self.world.lock().faults = faults;
    }

    /// Goes away, or comes back. What was accepted is remembered.
    ///
    /// # Panics
    /// If somebody took the port meanwhile, which only systems without `SO_REUSEPORT` allow.
    #[expect(clippy::panic, reason = "a test without its remote has nothing to go on with")]
    pub async fn outage(&self, outage: impl Into<Option<Outage>>) {
        let outage = outage.into();
        self.world.lock().outage = outage;
        if outage == Some(Outage::Refuses) {
            for port in &self.ports {
                port.close().await;
            }
        } else if let Err(e) = self.open() {
            panic!("the lab cannot come back: {e}");
        }
    }

    /// Refuses what is more than so many live runs at once; `None`: takes any number.
    pub fn capacity(&self, runs: impl Into<Option<usize>>) {
        self.world.lock().capacity = runs.into();
    }

    /// How many runs were live at once, at most.
    #[must_use]
    pub fn most_live(&self) -> usize {
        self.world.lock().most_live
    }

    /// Forgets all runs, as a remote that keeps them in memory does when it restarts. The ledger
    /// of what it bills for stays.
    pub fn forget_runs(&self) {
        self.world.lock().runs.clear();
    }

    /// Lets the runs of a submission end now; answers whether there are any.
    pub fn finish(&self, submission: &SubmissionId) -> bool {
        self.world.finish(|run| run.submission.as_ref() == Some(submission))
    }

    /// Lets all runs end now.
    pub fn finish_all(&self) {
        self.world.finish(|_| true);
    }

    /// Takes the time from `clock` from now on.
    pub fn set_clock(&self, clock: Arc<dyn Clock>) {
        self.world.lock().clock = clock;
    }

    /// Every accepted submission, in order: what the remote bills for.
    #[must_use]
    pub fn accepted(&self) -> Vec<Accepted> {
        self.world.lock().accepted.clone()
    }

    /// The submissions that were accepted more than once: what was bought twice.
    #[must_use]
    pub fn doubles(&self) -> Vec<SubmissionId> {
        let mut ids: Vec<_> = self.accepted().into_iter().filter_map(|accepted| accepted.submission).collect();
        ids.sort();
        let mut doubles: Vec<_> = ids
            .windows(2)
            .filter(|pair| pair.first() == pair.last())
            .filter_map(|pair| pair.first().cloned())
            .collect();
        doubles.dedup();
        doubles
    }

    /// Every call, in order, the key taken out.
    #[must_use]
    pub fn requests(&self) -> Vec<Seen> {
        let seen = self.world.lock().seen.clone();
        seen.iter().map(|seen| seen.redacted(&self.world.0.key)).collect()
    }

    /// Every call, in order, with its key: to see who was sent it.
    #[must_use]
    pub fn requests_with_keys(&self) -> Vec<Arc<Seen>> {
        self.world.lock().seen.clone()
    }

    /// How many submits reached it, accepted or not.
    #[must_use]
    pub fn posts(&self) -> usize {
        self.count(Class::Submit)
    }

    /// How many calls of a class reached it.
    #[must_use]
    pub fn count(&self, class: Class) -> usize {
        let count = self.world.lock().counts.get(&class).copied().unwrap_or_default();
        usize::try_from(count).unwrap_or(usize::MAX)
    }

    /// The remote's ids of the runs that were asked to stop, in order.
    #[must_use]
    pub fn cancels(&self) -> Vec<String> {
        self.world.lock().cancels.clone()
    }

    /// The files that were handed over, in order.
    #[must_use]
    pub fn uploads(&self) -> Vec<Upload> {
        self.world.lock().uploads.clone()
    }

    /// The runs that it has, oldest first. No look is counted.
    #[must_use]
    pub fn runs(&self) -> Vec<Run> {
        self.world.lock().runs.clone()
    }

    /// What it sends to the callback URL of a submission whose run ended, signed as of now, without
    /// sending it. `None` if the submit named no URL, or the run goes on.
    #[must_use]
    pub fn callback_of(&self, submission: &SubmissionId) -> Option<Callback> {
        self.world.callback_of(submission)
    }

    /// Holds callbacks back, or sends those that were held.
    pub fn hold_callbacks(&self, hold: bool) {
        self.world.hold(hold);
    }

    /// Calls back once more about every run that ended, newest first; answers how each was taken.
    pub async fn resend_callbacks(&self) -> Vec<Delivery> {
        let runs: Vec<Run> = self.runs().into_iter().filter(|run| run.ended() && run.callback.is_some()).collect();
        let mut deliveries = Vec::new();
        for run in runs.iter().rev() {
            deliveries.push(Delivery { remote_id: run.id.clone(), status: self.world.send(run).await });
        }
        deliveries
    }

    /// Every attempt to call back so far, in order.
    #[must_use]
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.world.lock().deliveries.clone()
    }
}

impl fmt::Debug for Lab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lab").field("base_url", &self.base_url()).finish_non_exhaustive()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.world.0.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        for port in &self.ports {
            if let Some(accepting) = port.take() {
                accepting.abort();
            }
        }
    }
}

impl Port {
    fn bind(port: u16) -> io::Result<Self> {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        #[cfg(unix)]
        {
            if port != 0 {
                // Another lab would share it.
                drop(std::net::TcpListener::bind(addr)?);
            }
            let reserve = socket()?;
            reserve.bind(addr)?;
            let addr = reserve.local_addr()?;
            Ok(Self { addr, _reserve: reserve, accepting: Mutex::new(None) })
        }
        #[cfg(not(unix))]
        {
            let addr = std::net::TcpListener::bind(addr)?.local_addr()?;
            Ok(Self { addr, accepting: Mutex::new(None) })
        }
    }

    fn take(&self) -> Option<JoinHandle<()>> {
        self.accepting.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Listens, if nobody does yet.
    fn open(&self, world: &World) -> io::Result<()> {
        let mut accepting = self.accepting.lock().unwrap_or_else(PoisonError::into_inner);
        if accepting.is_some() {
            return Ok(());
        }
        let socket = socket()?;
        socket.bind(self.addr)?;
        let listener: TcpListener = socket.listen(BACKLOG)?;
        *accepting = Some(tokio::spawn(server::serve(listener, world.clone(), server::routes(world))));
        Ok(())
    }

    /// Stops listening, and ends every connection.
    async fn close(&self) {
        if let Some(accepting) = self.take() {
            accepting.abort();
            // Until the socket is closed.
            drop(accepting.await);
        }
    }
}

/// A socket that shares its port with the one that reserves it.
fn socket() -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    #[cfg(unix)]
    socket.set_reuseport(true)?;
    Ok(socket)
}
