//! Runs of which nothing is ever heard but by their callbacks, when those overtake one another or
//! are lost for good.

use std::sync::Arc;
use std::time::Duration;

use vidgen_core::memory::{MemoryQueue, MemoryStore, Scene, ScriptedProvider};
use vidgen_core::*;

use crate::pipeline::{World, clock, failure};

const PRICE: Usd = Usd::from_cents(30);

/// A provider that only calls back, with a video model at that price.
fn deaf(price: Price) -> ScriptedProvider {
    let models = vec![Model::new("deaf/video", StepKind::Video, price)];
    ScriptedProvider::new("deaf").without_find().with_only_callback().with_models(models)
}

fn world(provider: &ScriptedProvider) -> World {
    let clock = Arc::new(clock());
    let queue = MemoryQueue::with_clock(clock.clone());
    let callbacks = Callbacks::new("https://video.example", &"a secret of enough bytes".to_owned().into()).unwrap();
    let vidgen = Vidgen::builder()
        .queue(queue.clone())
        .store(MemoryStore::new())
        .pipeline(Pipeline::named("default").video(provider.clone()))
        .callbacks(callbacks)
        .clock(*clock)
        .build()
        .unwrap();
    World { vidgen, queue, notifier: memory::MemoryNotifier::new(), tenant: TenantId::single() }
}

impl World {
    async fn film(&self) -> JobId {
        self.vidgen.create(&self.tenant, JobRequest::new("a cat"), CreateOptions::default()).await.unwrap().job.id
    }

    /// The `n`th submission that the remote accepts, as soon as it does.
    async fn taken(&self, provider: &ScriptedProvider, n: usize) -> SubmissionId {
        for _ in 0..86_400 {
            if let Some(submission) = provider.accepted().get(n - 1) {
                return submission.clone();
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        panic!("nothing was accepted for the {n}th time")
    }

    fn call_of(&self, provider: &ScriptedProvider, submission: &SubmissionId) -> (url::Url, Callback) {
        provider.callback_of(submission, self.vidgen.clock().now()).expect("there is such a run")
    }

    async fn take(&self, (url, callback): (url::Url, Callback)) {
        let value = |name: &str| url.query_pairs().find(|(n, _)| n == name).map(|(_, v)| v.into_owned()).unwrap();
        let taken = self.vidgen.callback(&"deaf".into(), &value("submission"), &value("signature"), callback).await;
        taken.expect("a genuine callback");
    }
}

#[tokio::test(start_paused = true)]
async fn a_free_run_whose_callbacks_are_lost_is_run_again_and_late_words_of_it_mean_nothing() {
    let deaf = deaf(Price::Free);
    deaf.then(StepKind::Video, Scene::EndsAtOnce);
    deaf.then(StepKind::Video, Scene::RunsForever);
    let world = world(&deaf);
    let id = world.film().await;
    let worker = world.vidgen.worker().spawn();
    let lost = world.taken(&deaf, 1).await;
    let began = tokio::time::Instant::now();
    let again = world.taken(&deaf, 2).await;
    assert_ne!(again, lost, "a run of its own");
    let waited = began.elapsed().as_secs();
    assert!((3_900..4_200).contains(&waited), "{waited} s: the run's time and its grace");
    assert_eq!(deaf.cancels(), ["run-1"], "its end was asked for");
    // The first run's own end, which came too late for anybody.
    world.take(world.call_of(&deaf, &lost)).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(world.job(id).await.state, JobState::Processing, "that was not this run's");
    deaf.end(&again);
    world.take(world.call_of(&deaf, &again)).await;
    let job = world.ended(id).await;
    assert_eq!((job.state, job.cost), (JobState::Completed, Usd::ZERO), "{:?}", job.failure);
    assert_eq!(deaf.accepted().len(), 2);
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_free_run_of_which_nothing_is_ever_heard_is_not_run_for_ever() {
    let deaf = deaf(Price::Free);
    deaf.always(Some(Scene::EndsAtOnce));
    let world = world(&deaf);
    let id = world.film().await;
    let job = world.finish(id).await;
    assert_eq!((job.state, failure(&job), deaf.accepted().len()), (JobState::Failed, "unavailable", 3));
    assert_eq!((job.cost, job.held), (Usd::ZERO, Usd::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_paid_run_whose_callbacks_are_lost_is_counted_as_billed_and_not_bought_again() {
    let deaf = deaf(Price::PerRun(PRICE));
    deaf.always(Some(Scene::EndsAtOnce));
    let world = world(&deaf);
    let id = world.film().await;
    let job = world.finish(id).await;
    assert_eq!((job.state, failure(&job), deaf.accepted().len()), (JobState::Failed, "timed_out", 1));
    assert_eq!((job.cost, job.held), (PRICE, Usd::ZERO));
    let usage = world.usage().await;
    assert_eq!((usage.cost, usage.charged), (PRICE, Usd::ZERO), "the operator's, not the tenant's");
}

#[tokio::test(start_paused = true)]
async fn a_canceled_job_does_not_wait_for_a_free_run_that_nobody_will_tell_of() {
    let deaf = deaf(Price::Free);
    deaf.always(Some(Scene::EndsAtOnce));
    let world = world(&deaf);
    let id = world.film().await;
    let worker = world.vidgen.worker().spawn();
    world.taken(&deaf, 1).await;
    let began = tokio::time::Instant::now();
    world.vidgen.cancel(&world.tenant, id).await.unwrap();
    assert_eq!(world.ended(id).await.state, JobState::Canceled);
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_word_of_the_beginning_makes_a_lost_answer_a_run_and_one_that_was_overtaken_takes_nothing_back() {
    let deaf = deaf(Price::PerRun(PRICE));
    deaf.then(StepKind::Video, Scene::Hangs);
    let world = world(&deaf);
    let id = world.film().await;
    let worker = world.vidgen.worker().spawn();
    let submission = world.taken(&deaf, 1).await;
    // The scripted run has ended; this is what it said when it began.
    let (url, end) = world.call_of(&deaf, &submission);
    let begun = Callback::new(
        [("scripted-signature", deaf.secret())],
        String::from_utf8(end.body.to_vec()).unwrap().replace("succeeded", "running"),
        end.received_at,
    );
    tokio::time::sleep(Duration::from_secs(60)).await;
    let open = world.job(id).await.step(StepKind::Video).unwrap().state.clone();
    assert!(matches!(open, StepState::Intent { .. }), "the answer was lost: {open:?}");
    world.take((url.clone(), begun.clone())).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let run = world.job(id).await.step(StepKind::Video).unwrap().state.clone();
    assert!(matches!(run, StepState::Accepted { .. }), "it is known to run: {run:?}");
    worker.shutdown().await;
    world.take((url.clone(), end)).await;
    world.take((url, begun)).await;
    let job = world.finish(id).await;
    assert_eq!((job.state, job.cost), (JobState::Completed, PRICE), "{:?}", job.failure);
    assert_eq!(deaf.accepted().len(), 1);
}
