//! A queue that loses its hints or takes its time: nothing is lost, and nothing sent too late.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep};
use vidgen_core::clock::VirtualClock;
use vidgen_core::memory::{MemoryQueue, MemoryStore, Scene, ScriptedProvider};
use vidgen_core::*;

use crate::sim::chaos::{Chaos, Chaotic, Process};

struct World {
    vidgen: Vidgen,
    process: Process,
}

impl World {
    fn new(pipeline: Pipeline, deaf: bool) -> Self {
        let clock = VirtualClock::starting_at(Timestamp::from_second(1_800_000_000).unwrap());
        let queue = MemoryQueue::with_clock(clock);
        let mut process = Process::new(&Chaos::none(), 0);
        process.deaf = deaf;
        let callbacks = Callbacks::new("https://video.example", &"a secret of enough bytes".to_owned().into());
        let vidgen = Vidgen::builder()
            .queue(Chaotic { inner: queue.clone(), process: process.clone(), queue })
            .store(MemoryStore::new())
            .pipeline(pipeline)
            .clock(clock)
            .callbacks(callbacks.unwrap())
            .build()
            .unwrap();
        Self { vidgen, process }
    }

    async fn create(&self) -> JobId {
        let request = JobRequest::new("a cat").with_script("meow");
        self.vidgen.create(&TenantId::single(), request, CreateOptions::default()).await.unwrap().job.id
    }

    async fn job(&self, id: JobId) -> Job {
        self.vidgen.get(&TenantId::single(), id).await.unwrap()
    }

    async fn ended(&self, id: JobId) -> Job {
        let mut job = self.job(id).await;
        while !job.state.is_ended() {
            job = self.vidgen.watch(&TenantId::single(), id, job.version, Duration::from_secs(60)).await.unwrap();
        }
        job
    }

    async fn call(&self, provider: &ScriptedProvider, submission: &SubmissionId) {
        let (url, callback) = provider.callback_of(submission, self.vidgen.clock().now()).unwrap();
        let signature = url.query_pairs().find(|(n, _)| n == "signature").unwrap().1.into_owned();
        self.vidgen.callback(&provider.id(), submission.as_str(), &signature, callback).await.unwrap();
    }
}

async fn bought(provider: &ScriptedProvider, kind: StepKind) -> SubmissionId {
    loop {
        if let Some(first) = provider.accepted().into_iter().find(|s| s.as_str().contains(kind.as_str())) {
            return first;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn q9_a_callback_of_which_no_hint_came_is_found_beside_another_step() {
    let caller = ScriptedProvider::new("caller").without_find().with_callback();
    let studio = ScriptedProvider::new("studio");
    caller.then(StepKind::Video, Scene::LosesAnswer);
    studio.then(StepKind::Speech, Scene::RunsForever);
    let pipeline = Pipeline::named("default").video(caller.clone()).speech(studio.clone()).compose(studio.clone());
    let world = World::new(pipeline, true);
    let worker = world.vidgen.worker().spawn();
    let id = world.create().await;
    let (video, speech) = (bought(&caller, StepKind::Video).await, bought(&studio, StepKind::Speech).await);
    sleep(Duration::from_secs(100)).await;
    world.call(&caller, &video).await;
    let began = Instant::now();
    while world.job(id).await.step(StepKind::Video).is_none_or(|s| !matches!(s.state, StepState::Done { .. })) {
        sleep(Duration::from_secs(1)).await;
    }
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    studio.end(&speech);
    assert_eq!(world.ended(id).await.state, JobState::Completed);
    assert_eq!(caller.accepted().len(), 1);
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn q9_the_end_that_only_a_callback_tells_is_found_without_a_hint() {
    let deaf = ScriptedProvider::new("deaf").without_find().with_only_callback();
    let studio = ScriptedProvider::new("studio");
    deaf.then(StepKind::Video, Scene::RunsForever);
    let pipeline = Pipeline::named("default").video(deaf.clone()).speech(studio.clone()).compose(studio);
    let world = World::new(pipeline, true);
    let worker = world.vidgen.worker().spawn();
    let id = world.create().await;
    let video = bought(&deaf, StepKind::Video).await;
    sleep(Duration::from_secs(100)).await;
    deaf.end(&video);
    world.call(&deaf, &video).await;
    let began = Instant::now();
    let job = world.ended(id).await;
    assert_eq!((job.state, deaf.accepted().len()), (JobState::Completed, 1), "{:?}", job.failure);
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn m3_an_intent_that_took_too_long_to_write_is_not_sent() {
    let studio = ScriptedProvider::new("studio").without_find();
    let world = World::new(
        Pipeline::named("default").video(studio.clone()).speech(studio.clone()).compose(studio.clone()),
        false,
    );
    // Longer than it may lie before it is sent, and shorter than the lease.
    world.process.slow_intents.lock().unwrap().extend([Duration::from_secs(21), Duration::from_secs(21)]);
    let worker = world.vidgen.worker().spawn();
    let id = world.create().await;
    let began = Instant::now();
    bought(&studio, StepKind::Video).await;
    assert!(began.elapsed() >= Duration::from_secs(21), "{:?}", began.elapsed());
    let job = world.ended(id).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
    let video = job.step(StepKind::Video).unwrap();
    assert_eq!(video.attempts.iter().map(|a| (a.kind, a.accepted)).collect::<Vec<_>>(), [(ErrorKind::NotSent, false)]);
    assert_eq!(studio.requests().len(), 4, "and the slot was bought once");
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn m8_steps_that_are_bought_at_the_same_moment_do_not_pass_the_cap_together() {
    // Four steps, so that five may be bought: two and two are, and two more want to be.
    let model = |kind: StepKind| Model::new(format!("m/{kind}"), kind, Price::PerRun(Usd::from_cents(10)));
    let kinds = [StepKind::Image, StepKind::Video, StepKind::Speech, StepKind::Compose];
    let studio = ScriptedProvider::new("studio").with_models(kinds.map(model).into());
    // Such a failure is no reason to give a route up.
    studio.always(Some(Scene::Fails(RunFailure::new(ErrorKind::RateLimited, "no room").with_bill())));
    let pipeline = Pipeline::named("default").image(studio.clone()).video(studio.clone());
    let world = World::new(pipeline.speech(studio.clone()).compose(studio.clone()), false);
    world.process.slow_intents.lock().unwrap().extend([Duration::from_secs(15); 20]);
    let worker = world.vidgen.worker().spawn();
    let job = world.ended(world.create().await).await;
    assert_eq!(job.failure.map(|f| f.code).as_deref(), Some("too_many_submissions"));
    assert!(studio.accepted().len() <= job.plan.steps.len() + 1, "{:?}", studio.accepted());
    worker.shutdown().await;
}
