//! What a request asks for is what is bought, whoever makes it; and what nobody can make is refused
//! by the name of its field.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use vidgen_core::memory::{Scene, ScriptedProvider};
use vidgen_core::*;

use crate::pipeline::world;

/// A provider that remembers what it was asked for.
#[derive(Clone, Debug)]
struct Asked {
    inner: ScriptedProvider,
    tasks: Arc<Mutex<Vec<TaskSpec>>>,
}

impl Asked {
    fn new(id: &str, models: Vec<Model>) -> Self {
        Self { inner: ScriptedProvider::new(id).with_models(models), tasks: Arc::default() }
    }

    fn videos(&self) -> Vec<(u64, Size)> {
        let tasks = self.tasks.lock().unwrap();
        let video = |task: &TaskSpec| match task {
            TaskSpec::Video(task) => Some((task.duration.as_secs(), task.size)),
            _ => None,
        };
        tasks.iter().filter_map(video).collect()
    }

    fn composed(&self) -> Vec<u64> {
        let tasks = self.tasks.lock().unwrap();
        let compose = |task: &TaskSpec| match task {
            TaskSpec::Compose(task) => Some(task.duration.as_secs()),
            _ => None,
        };
        tasks.iter().filter_map(compose).collect()
    }
}

#[async_trait]
impl Provider for Asked {
    fn id(&self) -> ProviderId {
        self.inner.id()
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn submit(&self, task: &Task, options: &SubmitOptions) -> Result<Handle> {
        self.tasks.lock().unwrap().push(task.spec.clone());
        self.inner.submit(task, options).await
    }
    async fn poll(&self, handle: &Handle) -> Result<Snapshot> {
        self.inner.poll(handle).await
    }
    async fn open(&self, output: &Output) -> Result<Body> {
        self.inner.open(output).await
    }
    async fn cancel(&self, handle: &Handle) -> Result<()> {
        self.inner.cancel(handle).await
    }
    async fn find(&self, submission: &Submission) -> Result<Lookup> {
        self.inner.find(submission).await
    }
    async fn callback(&self, callback: &Callback, spool: &Spool) -> Result<Handle> {
        self.inner.callback(callback, spool).await
    }
}

fn video() -> Model {
    Model::new("video", StepKind::Video, Price::PerSecond(Usd::from_cents(10)))
}

fn others() -> Vec<Model> {
    vec![
        Model::new("speech", StepKind::Speech, Price::Free),
        Model::new("compose", StepKind::Compose, Price::Free),
        Model::new("image", StepKind::Image, Price::Free),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_fallback_buys_the_length_and_shape_that_was_asked_for() {
    let first = Asked::new("first", vec![video().with_lengths(Lengths::seconds([4, 8]))]);
    let second =
        Asked::new("second", vec![video().with_lengths(Lengths::Between(Duration::ZERO, Duration::from_secs(10)))]);
    let studio = Asked::new("studio", others());
    first.inner.always(Some(Scene::Rejects(ErrorKind::Unsupported)));
    let pipeline = Pipeline::named("default").video(first.clone()).or(second.clone()).compose(studio.clone());
    let world = world(pipeline);
    let mut request = JobRequest::new("a cat").with_duration(Duration::from_secs(8));
    request.aspect_ratio = AspectRatio::Portrait;
    let size = request.size();
    assert!(size.height > size.width);
    let created = world.vidgen.create(&world.tenant, request, CreateOptions::default()).await.unwrap();
    let job = world.finish(created.job.id).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
    assert_eq!((first.videos(), second.videos()), (vec![(8, size)], vec![(8, size)]));
    assert_eq!((studio.composed(), job.cost), (vec![8], Usd::from_cents(80)));
}

#[tokio::test(start_paused = true)]
async fn a_length_that_was_left_open_is_each_routes_own() {
    let first = Asked::new("first", vec![video().with_lengths(Lengths::seconds([6, 10]))]);
    let second = Asked::new("second", vec![video().with_lengths(Lengths::seconds([5]))]);
    let studio = Asked::new("studio", others());
    let pipeline = || Pipeline::named("default").video(first.clone()).or(second.clone()).compose(studio.clone());
    let world = world(pipeline());
    let create = || world.vidgen.create(&world.tenant, JobRequest::new("a cat"), CreateOptions::default());
    let job = world.finish(create().await.unwrap().job.id).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
    assert_eq!((job.plan.duration.as_secs(), job.cost), (4, Usd::from_cents(60)));
    assert_eq!(job.output.unwrap().duration, Duration::from_secs(6), "as long as it is");
    first.inner.always(Some(Scene::Rejects(ErrorKind::Unsupported)));
    let created = create().await.unwrap().job;
    assert_eq!(created.held, Usd::from_cents(60), "the dearest route is held for");
    let job = world.finish(created.id).await;
    assert_eq!((job.cost, job.output.unwrap().duration), (Usd::from_cents(50), Duration::from_secs(5)));
    let seconds = |asked: &Asked| asked.videos().iter().map(|(s, _)| *s).collect::<Vec<_>>();
    assert_eq!((seconds(&first), seconds(&second)), (vec![6, 6], vec![5]));
    assert_eq!(studio.composed(), [6, 5], "what is put together is as long as what was made");
}

#[tokio::test(start_paused = true)]
async fn what_no_model_makes_is_refused_by_the_name_of_its_field() {
    let landscape = video().with_aspect_ratios([AspectRatio::Wide]);
    let request = || JobRequest::new("a cat");
    let portrait = {
        let mut request = request();
        request.aspect_ratio = AspectRatio::Portrait;
        request
    };
    let sharp = {
        let mut request = request();
        request.resolution = Resolution::P1080;
        request
    };
    let cases: Vec<(Model, JobRequest, &str)> = vec![
        (
            video().with_lengths(Lengths::seconds([4, 8])),
            request().with_duration(Duration::from_secs(5)),
            "duration_seconds",
        ),
        (
            video().with_max_duration(Duration::from_secs(5)),
            request().with_duration(Duration::from_secs(6)),
            "duration_seconds",
        ),
        (landscape, portrait, "aspect_ratio"),
        (video().with_resolutions([Resolution::P720]), sharp, "resolution"),
        (video().with_max_text(4), request(), "prompt"),
    ];
    for (model, request, field) in cases {
        let maker = ScriptedProvider::new("maker").with_models(vec![model.clone()]);
        // One alternative that can do no better.
        let alternative = ScriptedProvider::new("alternative").with_models(vec![model]);
        let world = world(Pipeline::named("default").video(maker.clone()).or(alternative));
        let refused = world.vidgen.create(&world.tenant, request.clone(), CreateOptions::default()).await.unwrap_err();
        let fields: Vec<&str> = refused.fields().iter().map(|f| f.field.as_str()).collect();
        assert_eq!((refused.kind(), fields), (ErrorKind::Invalid, vec![field]));
        assert!(refused.fields()[0].message.contains("model video"), "{:?}", refused.fields());
        assert_eq!(world.vidgen.problems(&request).iter().map(|f| f.field.as_str()).collect::<Vec<_>>(), [field]);
        assert!(maker.requests().is_empty() && world.usage().await.held == Usd::ZERO);
    }
    let speaker = vec![
        Model::new("speech", StepKind::Speech, Price::Free).with_max_text(4),
        Model::new("compose", StepKind::Compose, Price::Free),
        video(),
    ];
    let speaker = ScriptedProvider::new("speaker").with_models(speaker);
    let pipeline = Pipeline::named("default").video(speaker.clone()).speech(speaker.clone()).compose(speaker);
    let world = world(pipeline);
    let refused = world.vidgen.create(&world.tenant, request().with_script("meow!"), CreateOptions::default()).await;
    assert_eq!(refused.unwrap_err().fields()[0].field, "script");
    world.vidgen.create(&world.tenant, request().with_script("meow"), CreateOptions::default()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_route_that_cannot_meet_the_request_is_left_out_and_never_submitted_to() {
    let short = Asked::new("short", vec![video().with_max_duration(Duration::from_secs(5))]);
    let long = Asked::new("long", vec![video()]);
    let world = world(Pipeline::named("default").video(short.clone()).or(long.clone()));
    let request = JobRequest::new("a cat").with_duration(Duration::from_secs(9));
    let created = world.vidgen.create(&world.tenant, request, CreateOptions::default()).await.unwrap();
    long.inner.then(StepKind::Video, Scene::Rejects(ErrorKind::Unavailable));
    let job = world.finish(created.job.id).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
    assert!(short.videos().is_empty());
    assert_eq!(long.videos().len(), 2);
}
