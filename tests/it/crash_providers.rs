//! Every failpoint × every paid provider, its real client against a fake remote on a socket: a
//! worker dies there, another one goes on. Oracle: the remote's ledger of what it accepted.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures::stream::{self, StreamExt};
use vidgen_core::memory::{MemoryNotifier, MemoryQueue, MemoryStore, ScriptedProvider};
use vidgen_core::*;
use vidgen_http::RouterOptions;
use vidgen_providers::cog::Cog;
use vidgen_providers::comfyui::{ComfyUi, Workflow};
use vidgen_providers::elevenlabs::ElevenLabs;
use vidgen_providers::fal::Fal;
use vidgen_providers::lab::{self, Lab, Play};
use vidgen_providers::openai::{Dialect, OpenAi};
use vidgen_providers::replicate::Replicate;
use vidgen_providers::runway::Runway;
use vidgen_tests::faults::{Crash, Faults, Faulty, Point};
use vidgen_tests::hurried::HurriedClock;

/// How many jobs die at once: they mostly wait.
const AT_ONCE: usize = 12;
/// No case takes longer on a slow machine, or it hangs.
const PATIENCE: Duration = Duration::from_secs(180);

/// A provider, and what its API lets anybody know after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Replicate,
    ReplicateCalled,
    Fal,
    FalCalled,
    ElevenLabs,
    OpenAiVideo,
    OpenAiImage,
    Runway,
    ComfyUi,
    Cog,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Replicate,
        Self::ReplicateCalled,
        Self::Fal,
        Self::FalCalled,
        Self::ElevenLabs,
        Self::OpenAiVideo,
        Self::OpenAiImage,
        Self::Runway,
        Self::ComfyUi,
        Self::Cog,
    ];

    fn calls_back(self) -> bool {
        matches!(self, Self::ReplicateCalled | Self::FalCalled | Self::Cog)
    }

    /// Whether a crash there may leave a job in doubt, because its API leaves no way to know.
    fn may_doubt(self, point: Point) -> bool {
        let lost = matches!(point, Point::AfterIntent | Point::BeforePost | Point::AfterPostBeforeOutcome);
        match self {
            // Looked up by our own id, or free to be made again.
            Self::ReplicateCalled | Self::ComfyUi | Self::Cog => false,
            // Who was accepted calls back; who was not is silent.
            Self::FalCalled => matches!(point, Point::AfterIntent | Point::BeforePost),
            // The speech is on the wire beside the video, whose point it may be.
            Self::ElevenLabs => true,
            // The answer is the output: what was not in the spool yet is lost, what was is not.
            Self::OpenAiImage => lost || matches!(point, Point::BeforeUpload | Point::MidUpload),
            // Without a callback there is nothing of ours in the request.
            _ => lost,
        }
    }
}

/// What outlives a crash.
struct World {
    kind: Kind,
    clock: HurriedClock,
    queue: MemoryQueue,
    store: MemoryStore,
    notifier: MemoryNotifier,
    studio: ScriptedProvider,
    lab: Lab,
    callbacks: Callbacks,
}

impl World {
    async fn new(kind: Kind) -> Arc<Self> {
        let clock = HurriedClock::starting_at("2026-11-25T00:00:00Z".parse().unwrap());
        let lab = match kind {
            Kind::Replicate | Kind::ReplicateCalled => Lab::start(lab::replicate()).await,
            Kind::Fal | Kind::FalCalled => Lab::start(lab::fal()).await,
            Kind::ElevenLabs => Lab::start(lab::elevenlabs()).await,
            Kind::OpenAiVideo => Lab::start(lab::vllm_omni()).await,
            Kind::OpenAiImage => Lab::start(lab::openai()).await,
            Kind::Runway => Lab::start(lab::runway()).await,
            Kind::ComfyUi => Lab::start(lab::comfyui()).await,
            Kind::Cog => Lab::start(lab::cog()).await,
        };
        lab.set_clock(Arc::new(clock));
        if kind.calls_back() {
            lab.always(Play::succeeds().after(Duration::from_millis(200)));
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/api", listener.local_addr().unwrap());
        let callbacks = Callbacks::new(&base, &"0123456789abcdef".to_owned().into()).unwrap();
        let queue = MemoryQueue::with_clock(clock);
        let (store, notifier, studio) = (MemoryStore::new(), MemoryNotifier::new(), ScriptedProvider::new("studio"));
        let world = Arc::new(Self { kind, clock, queue, store, notifier, studio, lab, callbacks });
        // The server is another process than the workers, and does not die.
        let host = world.process(&Faults::none());
        let api = Router::new().nest("/api", vidgen_http::router(&host, RouterOptions::single_tenant()));
        tokio::spawn(async move { axum::serve(listener, api).await });
        world
    }

    fn pipeline(&self, faults: &Faults) -> Pipeline {
        let (url, key) = (self.lab.base_url(), self.lab.key());
        let pipeline = Pipeline::named("default");
        let wrapped = |provider| Faulty::new(provider, faults);
        match self.kind {
            Kind::Replicate | Kind::ReplicateCalled => {
                let replicate = Replicate::builder(key).with_base_url(url).build().unwrap();
                pipeline.video(Faulty::new(replicate, faults).model("minimax/hailuo-02"))
            }
            Kind::Fal | Kind::FalCalled => {
                let fal = Fal::builder(key).with_base_url(url).build().unwrap();
                pipeline.video(Faulty::new(fal, faults).model("fal-ai/veo3/fast"))
            }
            Kind::ElevenLabs => {
                let voice = ElevenLabs::builder(key).with_base_url(url).build().unwrap();
                let studio = wrapped(self.studio.clone());
                pipeline.video(studio.clone()).speech(Faulty::new(voice, faults)).compose(studio)
            }
            Kind::OpenAiVideo => {
                let vllm = OpenAi::builder(key).with_base_url(url).with_dialect(Dialect::VllmOmni).build().unwrap();
                // Somebody's gateway, which is paid.
                let route = Faulty::new(vllm, faults).model("Wan-AI/Wan2.2-T2V-A14B-Diffusers");
                pipeline.video(route.with_price(Price::PerRun(Usd::from_cents(20))))
            }
            Kind::OpenAiImage => {
                let openai = OpenAi::builder(key).with_base_url(url).build().unwrap();
                pipeline.image(Faulty::new(openai, faults)).video(wrapped(self.studio.clone()))
            }
            Kind::Runway => {
                let runway = Runway::builder(key).with_base_url(url).build().unwrap();
                pipeline.video(Faulty::new(runway, faults).model("gen4.5"))
            }
            Kind::ComfyUi => pipeline.video(Faulty::new(comfyui(&url), faults)),
            Kind::Cog => pipeline.video(Faulty::new(cog(&url), faults)),
        }
    }

    /// A process of its own: the same state behind `faults`.
    fn process(&self, faults: &Faults) -> Vidgen {
        let mut timing = Timing::default();
        // Who will not be called back has to wait for that; not an hour in a test.
        timing.find_patience = Duration::from_secs(60);
        let builder = Vidgen::builder()
            .queue(Faulty::new(self.queue.clone(), faults))
            .store(Faulty::new(self.store.clone(), faults))
            .notifier(Faulty::new(self.notifier.clone(), faults))
            .pipeline(self.pipeline(faults))
            .timing(timing)
            .clock(self.clock);
        let builder = if self.kind.calls_back() { builder.callbacks(self.callbacks.clone()) } else { builder };
        builder.build().unwrap()
    }

    async fn settled(&self, id: JobId) -> Job {
        let log = DeliveryFilter { job: Some(id), limit: 10 };
        let told = async {
            loop {
                let log = self.queue.deliveries(&TenantId::single(), &log).await.unwrap();
                if log.items.iter().any(|d| d.state == DeliveryState::Delivered) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let told = tokio::time::timeout(PATIENCE, told).await;
        let job = self.queue.get(&TenantId::single(), id).await.unwrap();
        assert!(told.is_ok(), "{:?}: the job never ended: {:#?}", self.kind, job.steps);
        job
    }
}

/// Runs one job with a crash at the first visit of `point`, then to its end in a second process.
/// Answers whether the point was reached.
async fn one(kind: Kind, point: Point) -> Outcome {
    let world = World::new(kind).await;
    let faults = Faults::new(Crash::Freeze, Some((point, 1)));
    let (first, tenant) = (world.process(&faults), TenantId::single());
    let options = CreateOptions::default().with_idempotency_key("once");
    let request = || {
        let request = JobRequest::new("a cat").with_webhook_url("https://example.com/hook");
        if kind == Kind::ElevenLabs { request.with_script("meow") } else { request }
    };
    let created = tokio::select! {
        created = first.create(&tenant, request(), options.clone()) => Some(created.unwrap().job.id),
        () = faults.crashed() => None,
    };
    let worker = first.worker().spawn();
    let second = world.process(&Faults::none());
    let id = match created {
        Some(id) => id,
        None => second.create(&tenant, request(), options).await.unwrap().job.id,
    };
    tokio::select! {
        () = faults.crashed() => {}
        _ = world.settled(id) => {}
    }
    drop(worker);
    let worker = second.worker().spawn();
    let job = world.settled(id).await;
    worker.shutdown().await;
    check(&world, &job, point);
    Outcome { kind, fired: faults.fired(), doubt: job.in_doubt() }
}

#[derive(Debug)]
struct Outcome {
    kind: Kind,
    fired: bool,
    doubt: bool,
}

fn check(world: &World, job: &Job, point: Point) {
    let (kind, label) = (world.kind, format!("{:?} at {point:?}", world.kind));
    let accepted = world.lab.accepted();
    let mut slots: HashMap<_, u32> = HashMap::new();
    for bought in &accepted {
        *slots.entry(bought.submission.clone()).or_default() += 1;
    }
    // Where the remote sees nothing of our id, everything is one slot.
    assert!(slots.values().all(|count| *count <= 1), "{label}: a slot was bought twice: {accepted:?}");
    let steps: HashMap<_, _> = job.steps.iter().map(|s| (s.step, s.state.as_str())).collect();
    if job.in_doubt() {
        assert!(kind.may_doubt(point), "{label}: in doubt, though there is a way to know: {steps:?}");
        assert_eq!(job.failure.as_ref().unwrap().code, "outcome_unknown", "{label}");
        assert!(job.held > Usd::ZERO, "{label}: money may be out, and nothing is held");
        assert!(accepted.len() <= 1, "{label}");
        return;
    }
    assert_eq!(job.state, JobState::Completed, "{label}: {:?} {steps:?}", job.failure);
    assert_eq!(job.held, Usd::ZERO, "{label}");
    if kind == Kind::Cog || kind == Kind::ComfyUi {
        return; // One's own machine: it may be asked again, under another id.
    }
    assert_eq!(accepted.len(), 1, "{label}: {accepted:?}");
    assert!(job.cost > Usd::ZERO, "{label}: what was bought has a cost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_failpoint_with_any_provider_buys_nothing_twice_and_loses_nothing() {
    let cases = Kind::ALL.into_iter().flat_map(|kind| Point::ALL.map(|(point, _)| (kind, point)));
    let outcomes: Vec<Outcome> =
        stream::iter(cases).map(|(kind, point)| one(kind, point)).buffer_unordered(AT_ONCE).collect().await;
    for kind in Kind::ALL {
        let of = |is: fn(&Outcome) -> bool| outcomes.iter().filter(|o| o.kind == kind && is(o)).count();
        let (fired, doubts) = (of(|o| o.fired), of(|o| o.doubt));
        println!("{kind:?}: {fired} of 17 crashes fired, {doubts} in doubt");
        // Some points are never reached where the answer is the output, or nobody is polled.
        assert!(fired >= 14, "{kind:?}: {fired} crashes fired");
    }
}

fn comfyui(url: &str) -> ComfyUi {
    let workflow = r#"{
        "1": {"class_type": "EmptyImage", "inputs": {"width": 256, "height": 256, "batch_size": 16, "color": 0}},
        "2": {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "fps": 8.0}},
        "3": {"class_type": "SaveVideo", "inputs": {"video": ["2", 0], "filename_prefix": "out", "format": "mp4", "codec": "h264"}}
    }"#;
    ComfyUi::builder(url).with_workflow(Workflow::video("plain", workflow).without_prompt()).build().unwrap()
}

fn cog(url: &str) -> Cog {
    Cog::builder(url).makes(StepKind::Video).build().unwrap()
}
