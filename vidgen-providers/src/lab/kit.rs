//! The conformance kit's scenes, played by a lab.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use vidgen_core::conformance::provider::{Call, Fixture, Impossible, Scene, Signed, Stage};
use vidgen_core::{Handle, Provider, Task, Usd};

use super::film::Film;
use super::play::{Answer, Looks, Play, Serving};
use super::{Class, Lab, Outage, Remote, Setup};

/// What a remote in a scene says to come back after.
const COME_BACK: Duration = Duration::from_secs(7);

/// Where a client finds its remote.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Site {
    /// The provider's base URL.
    pub base_url: String,
    /// The key.
    pub key: String,
    /// The address of the API.
    pub addr: SocketAddr,
    /// The address of the outputs, for a guard that lets them pass.
    pub outputs_addr: SocketAddr,
}

type Start = Box<dyn Fn() -> Box<dyn Remote> + Send + Sync>;
type Change = Box<dyn Fn(Scene, Play) -> Play + Send + Sync>;

/// A [`Fixture`] that plays every scene in a lab. What a remote cannot be in is said with
/// [`LabFixture::impossible`].
///
/// ```text
/// let fixture = LabFixture::new(lab::acme, task(), |site| Acme::builder(&site.key).with_base_url(&site.base_url).build().unwrap())
///     .with_unknown_handle(Handle::new("acme".into(), "no-such-run"))
///     .with_secrets([PROMPT])
///     .signed(Signed::Dated)
///     .impossible(Scene::StatesCost, "it never says what a run costs");
/// ```
pub struct LabFixture<F> {
    start: Start,
    client: Arc<F>,
    task: Task,
    secrets: Vec<String>,
    handle: Option<Handle>,
    signed: Option<Signed>,
    cost: Option<Usd>,
    states_length: bool,
    setup: Setup,
    film: Option<Film>,
    play: Option<Change>,
    impossible: HashMap<Scene, String>,
}

impl<P: Provider, F: Fn(&Site) -> P + Send + Sync + 'static> LabFixture<F> {
    /// Scenes of a remote, a task for it, and clients of it, each as a fresh process would make it.
    pub fn new<R: Remote>(remote: impl Fn() -> R + Send + Sync + 'static, task: Task, client: F) -> Self {
        Self {
            start: Box::new(move || Box::new(remote())),
            client: Arc::new(client),
            task,
            secrets: Vec::new(),
            handle: None,
            signed: None,
            cost: None,
            states_length: false,
            setup: Setup::default(),
            film: None,
            play: None,
            impossible: HashMap::new(),
        }
    }

    /// A handle as this provider makes them, of a run that the remote does not know.
    #[must_use]
    pub fn with_unknown_handle(mut self, handle: Handle) -> Self {
        self.handle = Some(handle);
        self
    }

    /// What must appear nowhere, beside what the lab itself knows: the prompt.
    #[must_use]
    pub fn with_secrets(mut self, secrets: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.secrets.extend(secrets.into_iter().map(Into::into));
        self
    }

    /// It calls back, and signs like this.
    #[must_use]
    pub fn signed(mut self, signed: Signed) -> Self {
        self.signed = Some(signed);
        self
    }

    /// In [`Scene::StatesCost`] the remote states this.
    #[must_use]
    pub fn with_cost(mut self, cost: Usd) -> Self {
        self.cost = Some(cost);
        self
    }

    /// The remote states the length of an output beside HTTP, and the client holds it to that.
    #[must_use]
    pub fn with_stated_length(mut self) -> Self {
        self.states_length = true;
        self
    }

    /// Starts its labs like this.
    #[must_use]
    pub fn with_setup(mut self, setup: Setup) -> Self {
        self.setup = setup;
        self
    }

    /// What the task asks for: outputs are compared, byte for byte.
    #[must_use]
    pub fn with_film(mut self, film: Film) -> Self {
        self.film = Some(film);
        self
    }

    /// Changes what is played in a scene.
    #[must_use]
    pub fn with_play(mut self, change: impl Fn(Scene, Play) -> Play + Send + Sync + 'static) -> Self {
        self.play = Some(Box::new(change));
        self
    }

    /// Says that this provider can never be in a scene, and why.
    #[must_use]
    pub fn impossible(mut self, scene: Scene, because: impl Into<String>) -> Self {
        self.impossible.insert(scene, because.into());
        self
    }
}

#[async_trait]
impl<P: Provider, F: Fn(&Site) -> P + Send + Sync + 'static> Fixture for LabFixture<F> {
    async fn stage(&self, scene: Scene) -> Result<Stage, Impossible> {
        if let Some(because) = self.impossible.get(&scene) {
            return Err(Impossible::because(because.clone()));
        }
        if scene == Scene::OversizedOutput && !self.states_length {
            return Err(Impossible::because(
                "nothing but HTTP states a length, and what comes after that is no part of the body",
            ));
        }
        if scene == Scene::StatesCost && self.cost.is_none() {
            return Err(Impossible::because("it never says what a run costs"));
        }
        let lab = Lab::start_with((self.start)(), self.setup.clone()).await;
        let lab = Arc::new(lab.map_err(|e| Impossible::because(format!("no lab: {e}")))?);
        let play = play(scene, self.cost);
        lab.always(match &self.play {
            Some(change) => change(scene, play),
            None => play,
        });
        match scene {
            Scene::BadKey => lab.revoke_key(),
            Scene::Unreachable => lab.outage(Outage::Refuses).await,
            _ => {}
        }
        let site =
            Site { base_url: lab.base_url(), key: lab.key(), addr: lab.addr(), outputs_addr: lab.outputs_addr() };
        let client = self.client.clone();
        let seen = lab.clone();
        let calls = move || {
            // Lines that a client keeps open come and go behind every rule's back.
            let calls = seen.requests().into_iter().filter(|call| call.class != Class::Listen);
            let calls = calls.map(|call| match call.class {
                Class::Submit => Call::submit(call.text()),
                _ => Call::other(call.text()),
            });
            calls.collect()
        };
        let mut stage = Stage::new(self.task.clone(), move || client(&site), calls)
            .with_secrets(lab.secrets())
            .with_secrets(self.secrets.clone())
            .with_retry_after(COME_BACK);
        if let Some(handle) = &self.handle {
            stage = stage.with_handle(handle.clone());
        }
        if let Some(Ok(bytes)) = self.film.map(|film| film.bytes()) {
            stage = stage.with_output(bytes);
        }
        if let Some(cost) = self.cost.filter(|_| scene == Scene::StatesCost) {
            stage = stage.with_cost(cost);
        }
        if let Some(signed) = self.signed {
            let lab = lab.clone();
            stage = stage.with_callback(signed, move |submission| {
                lab.finish(submission);
                lab.callback_of(submission)
            });
        }
        Ok(stage.with_guard(lab))
    }
}

fn play(scene: Scene, cost: Option<Usd>) -> Play {
    let ends = Play::succeeds();
    match scene {
        Scene::Running | Scene::CancelOk => Play::runs(),
        Scene::Fails => Play::fails("the machine ran out of memory"),
        Scene::Refuses => Play::refuses(),
        Scene::RateLimits => Play::rate_limits(COME_BACK),
        Scene::RateLimitsLooks => ends.with_looks(Looks::RateLimited(COME_BACK)),
        Scene::Garbled => ends.with_looks(Looks::Garbled),
        Scene::GarblesAcceptance => ends.with_answer(Answer::Garbles),
        Scene::FailsAfterAccepting => ends.with_answer(Answer::Fails(502)),
        Scene::ResetsAfterAccepting => ends.with_answer(Answer::Resets),
        Scene::Hangs => ends.with_answer(Answer::Hangs),
        Scene::UnknownState => Play::runs().with_looks(Looks::UnknownState),
        Scene::CancelLate => ends.after_looks(0),
        Scene::OutputExpired => ends.with_serving(Serving::Expired),
        Scene::TruncatedOutput => ends.with_serving(Serving::Truncated),
        Scene::OversizedOutput => ends.with_serving(Serving::Oversized),
        Scene::StalledOutput => ends.with_serving(Serving::Stalled),
        Scene::StatesCost => match cost {
            Some(cost) => ends.with_cost(cost),
            None => ends,
        },
        _ => ends,
    }
}
