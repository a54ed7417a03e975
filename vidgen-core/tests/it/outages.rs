//! Providers that say slow down, refuse our key, are out of order or never end: who waits, who goes
//! elsewhere, and how much is asked of them meanwhile.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use vidgen_core::memory::{Scene, ScriptedProvider};
use vidgen_core::*;

use crate::kit::{Call, Logs, Watched, accepted, bought, elapsed, until};
use crate::pipeline::{World, failure, world, world_with};

const SECOND: Duration = Duration::from_secs(1);

fn alone(provider: impl Into<Route>) -> Pipeline {
    Pipeline::named("default").video(provider)
}

fn made_by(job: &Job) -> &str {
    match &job.step(StepKind::Video).unwrap().state {
        StepState::Done { provider, .. } => provider.as_str(),
        other => panic!("{other:?}"),
    }
}

/// Nothing is asked between the answer that said so and `wait` later, and something soon after that.
fn obeyed(watched: &Watched, said: Duration, wait: Duration) {
    let after: Vec<Duration> = watched.all().into_iter().filter(|at| *at > said).collect();
    let first = after.first().expect("it is asked again");
    assert!(*first >= said + wait, "too early: {first:?} after {said:?} + {wait:?}");
    assert!(*first <= said + wait + SECOND * 2, "too late: {first:?} after {said:?} + {wait:?}");
}

#[tokio::test(start_paused = true)]
async fn a_rate_limited_submit_is_obeyed_to_the_second_by_all_jobs() {
    for wait in [4, 9, 77] {
        let wait = Duration::from_secs(wait);
        let studio = ScriptedProvider::new("studio");
        let watched = Watched::new(&studio);
        studio.then(StepKind::Video, Scene::RateLimits(wait));
        let world = world(alone(watched.clone()));
        let worker = world.vidgen.worker().spawn();
        let first = world.create_in("default").await;
        until("it said so", async || watched.all().len() == 1).await;
        let said = watched.all()[0];
        let mut others = vec![];
        for _ in 0..20 {
            others.push(world.create_in("default").await);
            sleep(wait / 25).await;
        }
        world.completed(&[first]).await;
        world.completed(&others).await;
        obeyed(&watched, said, wait);
        assert_eq!(watched.times(Call::Submit).len(), 22, "nobody else found out for themselves");
        worker.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_rate_limited_look_is_obeyed_to_the_second_by_all_jobs() {
    let studio = ScriptedProvider::new("studio").with_poll_floor(SECOND);
    let watched = Watched::new(&studio);
    studio.always(Some(Scene::RunsForever));
    let world = world(alone(watched.clone()));
    let worker = world.vidgen.worker().spawn();
    let ids = world.create_many(10).await;
    until("all are looked at", async || watched.times(Call::Poll).len() >= 30).await;
    let limit = Error::new(ErrorKind::RateLimited, "studio", "slow down").with_retry_after(Duration::from_secs(40));
    watched.answer_look(limit);
    let before = watched.all().len();
    until("one was told", async || watched.all().len() > before).await;
    let said = watched.all()[before];
    studio.always(None);
    let late = world.create_in("default").await;
    sleep(Duration::from_secs(50)).await;
    obeyed(&watched, said + SECOND / 10, Duration::from_secs(40) - SECOND / 10);
    for submission in studio.accepted() {
        studio.end(&submission);
    }
    world.completed(&ids).await;
    world.completed(&[late]).await;
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_wait_without_end_buys_nothing_is_no_doubt_and_comes_to_an_end() {
    let studio = ScriptedProvider::new("studio");
    let watched = Watched::new(&studio);
    studio.then(StepKind::Video, Scene::RateLimits(Duration::MAX));
    let world = world(alone(watched.clone()));
    let worker = world.vidgen.worker().spawn();
    let id = world.create_in("default").await;
    let began = Instant::now();
    let job = world.completed(&[id]).await.remove(0);
    assert!(elapsed(began) < 25.0 * 3600.0 && studio.accepted().len() == 1, "{}", elapsed(began));
    assert_eq!((job.attempts, job.step(StepKind::Video).unwrap().attempts.len()), (0, 1));

    studio.then(StepKind::Video, Scene::RunsForever);
    let id = world.create_in("default").await;
    until("it is looked at", async || watched.times(Call::Poll).len() >= 3).await;
    let limit = Error::new(ErrorKind::Unavailable, "studio", "down").with_retry_after(Duration::MAX);
    watched.answer_look(limit);
    let job = world.ended(id).await;
    assert_eq!((failure(&job), job.crashes, job.attempts), ("timed_out", 0, 0));
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn who_may_come_back_at_once_still_does_not_ask_without_a_pause() {
    let caller = crate::kit::caller();
    let watched = Watched::new(&caller);
    caller.then(StepKind::Video, Scene::LosesAnswer);
    let world = crate::kit::calling(alone(watched.clone()));
    let worker = world.vidgen.worker().spawn();
    let id = world.create_in("default").await;
    let submission = bought(&caller, StepKind::Video).await;
    for _ in 0..30 {
        // What a front that is overloaded says: come back, and at once.
        let down = Error::new(ErrorKind::Unavailable, "caller", "down").with_retry_after(Duration::ZERO);
        watched.answer_look(down);
    }
    let began = Instant::now();
    world.call(&caller, &submission).await.unwrap();
    world.completed(&[id]).await;
    assert!(elapsed(began) >= 29.0, "thirty looks within {} s", elapsed(began));
    worker.shutdown().await;

    let studio = ScriptedProvider::new("studio");
    for _ in 0..20 {
        studio.then(StepKind::Video, Scene::RateLimits(Duration::ZERO));
    }
    let world = crate::pipeline::world(alone(studio.clone()));
    let began = Instant::now();
    let job = world.finish(world.create_in("default").await).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
    assert!(elapsed(began) >= 60.0, "twenty requests within {} s", elapsed(began));
}

#[tokio::test(start_paused = true)]
async fn a_short_rate_limit_is_waited_for_and_a_long_one_fails_over() {
    for (wait, by) in [(8, "first"), (60, "second")] {
        let (first, second) = (ScriptedProvider::new("first"), ScriptedProvider::new("second"));
        first.then(StepKind::Video, Scene::RateLimits(Duration::from_secs(wait)));
        let world = world(alone(first.clone()).or(second.clone()));
        let worker = world.vidgen.worker().spawn();
        let began = Instant::now();
        let limited = world.create_in("default").await;
        until("it said so", async || first.requests().len() == 1).await;
        let other = world.create_in("default").await;
        for job in world.completed(&[limited, other]).await {
            assert_eq!(made_by(&job), by);
            assert_eq!((job.attempts, job.cost), (0, Usd::from_cents(50)));
        }
        assert!(elapsed(began) < 12.0, "{}", elapsed(began));
        worker.shutdown().await;
    }
}

/// Ten jobs with an alternative, ten without, at a provider that refuses us; what it takes to mend it.
async fn refused(kind: ErrorKind, what: &str, break_it: fn(&ScriptedProvider), mend_it: fn(&ScriptedProvider)) {
    let logs = Logs::capture();
    let (sick, spare) = (ScriptedProvider::new("sick").with_poll_floor(SECOND), ScriptedProvider::new("spare"));
    let live = {
        sick.then(StepKind::Video, Scene::RunsForever);
        sick.clone()
    };
    let either = alone(sick.clone()).or(spare.clone());
    let world = world_with(either, |b| b.pipeline(Pipeline::named("alone").video(sick.clone())));
    let worker = world.vidgen.worker().spawn();
    // A run that is looked at all the while.
    let running = world.create_in("alone").await;
    let run = bought(&live, StepKind::Video).await;
    assert_eq!(world.vidgen.provider_problems(), []);
    break_it(&sick);
    let began = Instant::now();
    let (mut with, mut without) = (vec![], vec![]);
    for _ in 0..10 {
        without.push(world.create_in("alone").await);
        with.push(world.create_in("default").await);
    }
    for job in world.completed(&with).await {
        assert_eq!((made_by(&job), job.cost), ("spare", Usd::from_cents(50)));
    }
    assert!(elapsed(began) < 5.0, "who has an alternative takes it at once: {}", elapsed(began));
    let problems = world.vidgen.provider_problems();
    assert_eq!(problems.iter().map(|p| (p.provider.as_str(), p.kind)).collect::<Vec<_>>(), [("sick", kind)]);
    // Those that were on their way when the first answer came are on their way; from then on, at 60,
    // 180 and 420 s, however many jobs wait.
    let before = sick.requests().len();
    sleep(Duration::from_secs(600)).await;
    let asked = sick.requests().len() - before;
    assert!((2..=3).contains(&asked), "{asked} probes in ten minutes");
    for id in &without {
        assert!(!world.job(*id).await.state.is_ended(), "it waits for somebody to mend it");
    }
    assert_eq!(world.vidgen.provider_problems().len(), 1, "whatever the looks say");
    assert_eq!(logs.count("the provider refuses us"), 1, "{:#?}", logs.lines());
    assert_eq!(logs.count(&format!("what=\"{what}\"")), 1, "{:#?}", logs.lines());
    mend_it(&sick);
    world.completed(&without).await;
    assert_eq!(world.vidgen.provider_problems(), []);
    assert_eq!(logs.count("takes our key again"), 1);
    sick.end(&run);
    world.completed(&[running]).await;
    assert_eq!(accepted(&sick, StepKind::Video).len(), 11);
    assert_eq!(world.usage().await.charged, Usd::from_cents(50 * 21));
    worker.shutdown().await;
    for secret in [sick.secret(), "a cat in space"] {
        assert_eq!(logs.count(secret), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_key_stops_submits_is_told_once_and_loses_nothing() {
    refused(ErrorKind::Unauthorized, "key", ScriptedProvider::revoke_key, ScriptedProvider::mend_key).await;
}

#[tokio::test(start_paused = true)]
async fn a_model_that_is_not_ours_to_use_is_not_asked_more_often_since_looks_are_answered() {
    let forbid = |p: &ScriptedProvider| p.always(Some(Scene::Rejects(ErrorKind::Unauthorized)));
    refused(ErrorKind::Unauthorized, "key", forbid, |p| p.always(None)).await;
}

#[tokio::test(start_paused = true)]
async fn an_empty_account_stops_submits_is_told_once_and_loses_nothing() {
    let empty = |p: &ScriptedProvider| p.always(Some(Scene::Rejects(ErrorKind::OverBudget)));
    refused(ErrorKind::OverBudget, "account", empty, |p| p.always(None)).await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_never_mended_fails_its_jobs_in_the_end() {
    let studio = ScriptedProvider::new("studio");
    studio.revoke_key();
    let world = world(alone(studio.clone()));
    let worker = world.vidgen.worker().spawn();
    let id = world.create_in("default").await;
    let job = world.ended(id).await;
    assert_eq!((job.state, failure(&job)), (JobState::Failed, "unauthorized"));
    assert!(studio.requests().len() <= 30, "{}", studio.requests().len());
    assert_eq!((job.cost, world.usage().await.held), (Usd::ZERO, Usd::ZERO));
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_submission_is_not_resent_again_and_again_to_a_provider_that_refuses_us() {
    let keyed = ScriptedProvider::new("keyed").without_find();
    let keyed = keyed.with_resubmit(Resubmit::Keyed(Duration::from_secs(24 * 3600)));
    keyed.then(StepKind::Video, Scene::Hangs);
    let world = world(alone(keyed.clone()));
    let worker = world.vidgen.worker().spawn();
    let id = world.create_in("default").await;
    bought(&keyed, StepKind::Video).await;
    keyed.revoke_key();
    sleep(Duration::from_secs(600)).await;
    assert!((3..=6).contains(&keyed.requests().len()), "{}", keyed.requests().len());
    keyed.mend_key();
    world.completed(&[id]).await;
    assert_eq!(keyed.accepted().len(), 1);
    worker.shutdown().await;
}

async fn submitted(providers: [&ScriptedProvider; 2]) -> usize {
    providers.iter().map(|p| accepted(p, StepKind::Video).len()).sum()
}

#[tokio::test(start_paused = true)]
async fn m9_ten_minutes_of_outage_cost_few_submits_and_no_job() {
    for scene in [Scene::Rejects(ErrorKind::Unavailable), Scene::Rejects(ErrorKind::NotSent)] {
        let (sick, spare) = (ScriptedProvider::new("sick"), ScriptedProvider::new("spare"));
        let watched = Watched::new(&sick);
        sick.always(Some(scene));
        let world = world(alone(watched.clone()).or(spare.clone()));
        let worker = world.vidgen.worker().concurrency(64).spawn();
        let mut ids = vec![];
        for _ in 0..1_000 {
            ids.push(world.create_in("default").await);
            sleep(Duration::from_millis(600)).await;
        }
        let asked = watched.times(Call::Submit).len();
        assert!(asked <= 200, "{asked} submits to a provider that is down");
        sick.always(None);
        world.completed(&ids).await;
        let all = watched.times(Call::Submit).len() + spare.requests().len();
        assert_eq!(submitted([&sick, &spare]).await, 1_000);
        let retries = all - 1_000;
        assert!(retries * 10 <= all, "{retries} of {all}");
        worker.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn m9_a_thousand_jobs_at_once_at_a_provider_that_is_down_find_out_together() {
    let (sick, spare) = (ScriptedProvider::new("sick"), ScriptedProvider::new("spare"));
    let watched = Watched::new(&sick);
    sick.always(Some(Scene::Rejects(ErrorKind::Unavailable)));
    let world = world(alone(watched.clone()).or(spare.clone()));
    let ids = world.create_many(1_000).await;
    let worker = world.vidgen.worker().concurrency(256).spawn();
    world.completed(&ids).await;
    assert!(watched.times(Call::Submit).len() <= 200, "{}", watched.times(Call::Submit).len());
    assert_eq!(submitted([&sick, &spare]).await, 1_000);
    worker.shutdown().await;
}

/// Follows a run that hangs to its end, with a crash after its end was asked for, or without.
async fn hangs(crash: bool, cancelable: bool) -> (World, ScriptedProvider, Job) {
    let studio = ScriptedProvider::new("studio").with_poll_floor(Duration::from_secs(20));
    let studio = if cancelable { studio } else { studio.without_cancel() };
    studio.then(StepKind::Video, Scene::RunsForever);
    let world = world(alone(studio.clone()));
    let worker = world.vidgen.worker().spawn();
    let id = world.create_in("default").await;
    let began = Instant::now();
    let worker = if crash {
        until("its end was asked for", async || studio.cancels().len() == 1).await;
        assert_eq!(world.usage().await.held, Usd::from_cents(50), "what it costs is not known yet");
        drop(worker);
        world.vidgen.worker().spawn()
    } else {
        worker
    };
    let job = world.ended(id).await;
    worker.shutdown().await;
    let took = elapsed(began);
    assert!((3600.0..3600.0 + 420.0).contains(&took), "the deadline is an hour, the grace five minutes: {took}");
    (world, studio, job)
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_hangs_ends_at_the_deadline_with_one_cancel_whatever_crashes() {
    for crash in [false, true] {
        let (world, studio, job) = hangs(crash, true).await;
        assert_eq!((job.state, failure(&job), job.crashes), (JobState::Failed, "timed_out", u32::from(crash)));
        assert_eq!(studio.cancels().len(), 1);
        // The remote states no cost, and an unknown one is never zero (M7).
        assert_eq!((job.cost, job.held), (Usd::from_cents(50), Usd::ZERO));
        let usage = world.usage().await;
        assert_eq!((usage.held, usage.charged), (Usd::ZERO, Usd::ZERO));
    }
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_hangs_and_cannot_be_canceled_is_given_up_after_the_grace() {
    let (_, studio, job) = hangs(false, false).await;
    assert_eq!((failure(&job), job.cost, job.held), ("timed_out", Usd::from_cents(50), Usd::ZERO));
    assert_eq!((studio.cancels().len(), studio.accepted().len()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn refusals_say_nothing_of_the_provider() {
    for kind in [ErrorKind::Invalid, ErrorKind::Refused] {
        for run_fails in [false, true] {
            let (strict, spare) = (ScriptedProvider::new("strict"), ScriptedProvider::new("spare"));
            strict.always(Some(match run_fails {
                true => Scene::Fails(RunFailure::new(kind, "not that")),
                false => Scene::Rejects(kind),
            }));
            let world = world(alone(strict.clone()).or(spare.clone()));
            let worker = world.vidgen.worker().concurrency(1).spawn();
            for id in world.create_many(20).await {
                let job = world.ended(id).await;
                assert_eq!((job.state, failure(&job)), (JobState::Failed, kind.code()));
                assert_eq!(job.step(StepKind::Video).unwrap().attempts.len(), 1);
            }
            strict.always(None);
            let job = world.completed(&world.create_many(1).await).await.remove(0);
            assert_eq!(made_by(&job), "strict", "no breaker opened");
            assert!(spare.requests().is_empty(), "nobody asked elsewhere for what was refused");
            worker.shutdown().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn m7_an_overrun_is_recorded_in_full_and_pauses_the_model_for_its_tenant_alone() {
    let logs = Logs::capture();
    let (dear, spare) = (ScriptedProvider::new("dear"), ScriptedProvider::new("spare"));
    dear.then(StepKind::Video, Scene::Bills(Usd::from_cents(100)));
    dear.then(StepKind::Video, Scene::Bills(Usd::from_cents(450)));
    let mut world = world(alone(dear.clone()).or(spare.clone()));
    let worker = world.vidgen.worker().spawn();
    // Twice what was held is dear, but no overrun.
    let job = world.completed(&world.create_many(1).await).await.remove(0);
    assert_eq!((made_by(&job), job.cost, logs.count("far more than its price")), ("dear", Usd::from_cents(100), 0));
    let job = world.completed(&world.create_many(1).await).await.remove(0);
    assert_eq!((job.cost, job.charge(), job.held), (Usd::from_cents(450), Usd::from_cents(450), Usd::ZERO));
    assert_eq!(world.usage().await.charged, Usd::from_cents(550), "in full");
    assert_eq!(logs.count("far more than its price"), 1, "{:#?}", logs.lines());
    let job = world.completed(&world.create_many(1).await).await.remove(0);
    assert_eq!(made_by(&job), "spare");
    let me = std::mem::replace(&mut world.tenant, TenantId::new("another").unwrap());
    let job = world.completed(&world.create_many(1).await).await.remove(0);
    assert_eq!(made_by(&job), "dear");
    world.tenant = me;
    sleep(Duration::from_secs(600)).await;
    let job = world.completed(&world.create_many(1).await).await.remove(0);
    assert_eq!(made_by(&job), "dear", "after somebody had time to look");
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_costs_what_it_used_by_the_providers_count() {
    let price = Price::PerComputeSecond { rate: Usd::from_micros(1_400), at_most: Duration::from_secs(100) };
    let model = Model::new("gpu", StepKind::Video, price);
    let studio = ScriptedProvider::new("studio").with_models(vec![model]);
    studio.then(StepKind::Video, Scene::Uses(Usage::Compute(Duration::from_millis(12_345))));
    studio.then(StepKind::Video, Scene::Uses(Usage::Characters(3)));
    let world = world(alone(studio.clone()));
    let worker = world.vidgen.worker().spawn();
    let first = world.create_in("default").await;
    assert_eq!(world.usage().await.held, Usd::from_cents(14));
    let job = world.completed(&[first]).await.remove(0);
    let Some(StepState::Done { cost, .. }) = job.step(StepKind::Video).map(|s| &s.state) else { panic!() };
    assert_eq!((cost.amount, cost.basis), (Usd::from_micros(17_283), CostBasis::Metered));
    assert_eq!((job.cost, world.usage().await.charged), (cost.amount, cost.amount));
    // What is counted in something else is worth what was held: never nothing.
    let job = world.completed(&world.create_many(1).await).await.remove(0);
    assert_eq!(job.cost, Usd::from_cents(14));
    worker.shutdown().await;
}
