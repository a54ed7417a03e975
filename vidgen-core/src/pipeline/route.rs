//! Who does a step: fallback order, attempts, circuit breaker. Pure but for the breaker's memory.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use jiff::Timestamp;

use crate::error::ErrorKind;
use crate::job::{StepAttempt, StepRecord};
use crate::pipeline::{PlannedRoute, PlannedStep};
use crate::provider::{ModelId, ProviderId};
use crate::tenant::TenantId;

/// How often one route is tried for a step, as the tutorial has it.
pub const MAX_ATTEMPTS: usize = 3;
/// How often a provider may say "slow down" to one step before that counts as out of order.
const MAX_RATE_LIMITS: usize = 30;
/// The wait before the second attempt, as the tutorial has it.
const FIRST_BACKOFF: Duration = Duration::from_secs(5);
/// No wait is longer than this.
const MAX_BACKOFF: Duration = Duration::from_secs(300);
/// So many failures ...
const BREAKER_FAILURES: usize = 5;
/// ... within this time open the breaker ...
const BREAKER_WINDOW: Duration = Duration::from_secs(60);
/// ... for this long; then one submission probes.
const BREAKER_PAUSE: Duration = Duration::from_secs(30);

/// A provider that refuses our key or our account is left alone for so long, then longer, ...
const SHUT_PAUSE: Duration = Duration::from_secs(60);
/// ... up to this long; then one submission probes whether somebody has mended it.
const MAX_SHUT_PAUSE: Duration = Duration::from_secs(600);
/// A route that may be taken again so soon is waited for, rather than left for the next one: a
/// rate limit is no outage.
const WORTH_WAITING: Duration = Duration::from_secs(10);
/// After a run cost more than twice what was held for it, its model is not bought for that tenant
/// for so long (M7): somebody has to look at the price table.
const OVERRUN_PAUSE: Duration = Duration::from_secs(600);

/// The wait after `failures` failures: 5 s, 10 s, 20 s … and up to as much again at random.
#[must_use]
pub fn backoff(failures: usize) -> Duration {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_BACKOFF)
        .with_factor(2.0)
        .with_max_delay(MAX_BACKOFF)
        .without_max_times()
        .with_jitter()
        .build()
        .nth(failures.saturating_sub(1).min(16))
        .unwrap_or(MAX_BACKOFF)
}

/// Which route to take next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This one, by its place in the plan.
    Route(usize),
    /// Every usable route's breaker is open: wait this long.
    Pause(Duration),
    /// None is left.
    Exhausted,
}

/// Whether `attempt` says that its route cannot do this step at all, now or later.
fn is_final_for_route(attempt: &StepAttempt) -> bool {
    // A key that is refused, or an account that is empty, is the operator's to mend meanwhile.
    matches!(attempt.kind, ErrorKind::Unsupported | ErrorKind::NotFound)
}

/// The attempts that count: those after the last retry of the job.
fn counted<'a>(record: &'a StepRecord, route: &'a PlannedRoute) -> impl Iterator<Item = &'a StepAttempt> {
    record.attempts.iter().skip(record.forgiven).filter(move |a| a.provider == route.provider && a.model == route.model)
}

/// How many failures of `route` count against it.
#[must_use]
pub fn failures(record: &StepRecord, route: &PlannedRoute) -> usize {
    counted(record, route).filter(|a| a.kind != ErrorKind::RateLimited).count()
}

/// Chooses by the plan's order: the first route that has attempts left and whose breaker lets it.
/// `pause` says how long a route's breaker stays shut.
#[must_use]
pub fn choose(step: &PlannedStep, record: &StepRecord, pause: impl Fn(&PlannedRoute) -> Duration) -> Choice {
    let mut shortest: Option<Duration> = None;
    for (n, route) in step.routes.iter().enumerate() {
        let out = counted(record, route).any(is_final_for_route)
            || failures(record, route) >= MAX_ATTEMPTS
            || counted(record, route).count() >= MAX_RATE_LIMITS;
        if out {
            continue;
        }
        let wait = pause(route);
        if wait.is_zero() {
            return Choice::Route(n);
        }
        if wait <= WORTH_WAITING && shortest.is_none() {
            return Choice::Pause(wait);
        }
        shortest = Some(shortest.map_or(wait, |s| s.min(wait)));
    }
    shortest.map_or(Choice::Exhausted, Choice::Pause)
}

/// Remembers, for each provider and model, whether it is out of order: so that a thousand jobs
/// do not each find out for themselves. One per process; losing it costs a few submissions that fail.
#[derive(Debug, Default)]
pub struct Breakers(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    models: HashMap<(ProviderId, ModelId), Breaker>,
    shut: HashMap<ProviderId, Shut>,
    /// Until when providers want to be left alone, by their own word.
    cooling: HashMap<ProviderId, Duration>,
    overruns: HashMap<(TenantId, ProviderId, ModelId), Duration>,
}

/// A provider that refuses our key or our account.
#[derive(Debug)]
struct Shut {
    kind: ErrorKind,
    since: Timestamp,
    pause: Duration,
    until: Duration,
}

/// What stands between a provider and the jobs that need it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProviderProblem {
    /// Which.
    pub provider: ProviderId,
    /// `Unauthorized`: it refuses the key. `OverBudget`: the account there is empty.
    pub kind: ErrorKind,
    /// Since when, by this process's clock.
    pub since: Timestamp,
}

#[derive(Debug, Default)]
struct Breaker {
    failures: Vec<Duration>,
    open_until: Option<Duration>,
}

impl Breakers {
    /// How long to leave `route` alone, `now` being monotonic. Zero lets one submission through;
    /// after a pause that one is the probe, and others wait for what becomes of it.
    pub fn pause(&self, route: &PlannedRoute, tenant: &TenantId, now: Duration) -> Duration {
        let mut memory = self.lock();
        let left = |until: Option<&Duration>| until.map_or(Duration::ZERO, |until| until.saturating_sub(now));
        let (provider, model) = (route.provider.clone(), route.model.clone());
        let cooling = left(memory.cooling.get(&provider));
        let overrun = left(memory.overruns.get(&(tenant.clone(), provider.clone(), model.clone())));
        let shut = left(memory.shut.get(&provider).map(|shut| &shut.until));
        let key = (provider.clone(), model);
        let broken = left(memory.models.get(&key).and_then(|breaker| breaker.open_until.as_ref()));
        let wait = cooling.max(overrun).max(shut).max(broken);
        if wait.is_zero() {
            if let Some(until) = memory.models.get_mut(&key).and_then(|breaker| breaker.open_until.as_mut()) {
                *until = now + BREAKER_PAUSE;
            }
            if let Some(shut) = memory.shut.get_mut(&provider) {
                shut.pause = (shut.pause * 2).min(MAX_SHUT_PAUSE);
                shut.until = now + shut.pause;
            }
        }
        wait
    }

    /// Records that a provider refuses our key or our account: until it takes something again,
    /// it gets no more than a probe now and then. Says whether this is news.
    pub fn shut(&self, provider: &ProviderId, kind: ErrorKind, at: Timestamp, now: Duration) -> bool {
        let mut memory = self.lock();
        let known = memory.shut.contains_key(provider);
        let shut = memory.shut.entry(provider.clone()).or_insert(Shut {
            kind,
            since: at,
            pause: SHUT_PAUSE,
            until: Duration::ZERO,
        });
        shut.kind = kind;
        shut.until = now + shut.pause;
        !known
    }

    /// Records that a provider took our key. Says whether this is news.
    pub fn reopened(&self, provider: &ProviderId) -> bool {
        self.lock().shut.remove(provider).is_some()
    }

    /// Records that a provider wants to be left alone for `wait`.
    pub fn cool_down(&self, provider: &ProviderId, wait: Duration, now: Duration) {
        let mut memory = self.lock();
        let until = memory.cooling.entry(provider.clone()).or_default();
        *until = (*until).max(now + wait);
    }

    /// Records that a run cost a tenant far more than was held for it (M7).
    pub fn overrun(&self, tenant: &TenantId, provider: &ProviderId, model: &ModelId, now: Duration) {
        let key = (tenant.clone(), provider.clone(), model.clone());
        self.lock().overruns.insert(key, now + OVERRUN_PAUSE);
    }

    /// Which providers refuse our key or our account.
    pub fn problems(&self) -> Vec<ProviderProblem> {
        let memory = self.lock();
        let mut problems: Vec<ProviderProblem> = memory
            .shut
            .iter()
            .map(|(provider, shut)| ProviderProblem { provider: provider.clone(), kind: shut.kind, since: shut.since })
            .collect();
        problems.sort_by(|a, b| a.provider.cmp(&b.provider));
        problems
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records how a submission to that provider and model went.
    pub fn record(&self, provider: &ProviderId, model: &ModelId, fine: bool, now: Duration) {
        let mut memory = self.lock();
        let key = (provider.clone(), model.clone());
        if fine {
            memory.models.remove(&key);
            return;
        }
        let breaker = memory.models.entry(key).or_default();
        breaker.failures.retain(|at| now.saturating_sub(*at) < BREAKER_WINDOW);
        breaker.failures.push(now);
        if breaker.failures.len() >= BREAKER_FAILURES {
            breaker.open_until = Some(now + BREAKER_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{StepKind, submission_id};
    use crate::money::{Cost, Price, Usd};

    fn route(provider: &str) -> PlannedRoute {
        PlannedRoute {
            provider: provider.into(),
            model: "m".into(),
            price: Price::Free,
            expected: Usd::ZERO,
            typical: Duration::ZERO,
            duration: None,
        }
    }

    fn step() -> PlannedStep {
        PlannedStep { step: StepKind::Image, needs: vec![], routes: vec![route("a"), route("b")], optional: false }
    }

    fn record(attempts: &[(&str, ErrorKind)]) -> StepRecord {
        let mut record = StepRecord::begun(StepKind::Image);
        record.attempts = attempts
            .iter()
            .map(|(provider, kind)| StepAttempt {
                submission: submission_id(crate::JobId::new(), StepKind::Image, 1),
                ordinal: 1,
                provider: (*provider).into(),
                model: "m".into(),
                kind: *kind,
                reason: String::new(),
                accepted: false,
                cost: Cost::FREE,
                at: Timestamp::UNIX_EPOCH,
            })
            .collect();
        record
    }

    fn tenant() -> TenantId {
        TenantId::new("t").unwrap()
    }

    const OPEN: fn(&PlannedRoute) -> Duration = |_| Duration::ZERO;

    #[test]
    fn a_route_is_left_after_three_failures() {
        let down = ("a", ErrorKind::Unavailable);
        assert_eq!(choose(&step(), &record(&[down, down]), OPEN), Choice::Route(0));
        assert_eq!(choose(&step(), &record(&[down, down, down]), OPEN), Choice::Route(1));
        let b = ("b", ErrorKind::NotSent);
        assert_eq!(choose(&step(), &record(&[down, down, down, b, b, b]), OPEN), Choice::Exhausted);
    }

    #[test]
    fn a_missing_model_ends_a_route_at_once_and_a_rate_limit_does_not() {
        assert_eq!(choose(&step(), &record(&[("a", ErrorKind::NotFound)]), OPEN), Choice::Route(1));
        let limited = [("a", ErrorKind::RateLimited); 5];
        assert_eq!(choose(&step(), &record(&limited), OPEN), Choice::Route(0));
        let limited = [("a", ErrorKind::RateLimited); MAX_RATE_LIMITS];
        assert_eq!(choose(&step(), &record(&limited), OPEN), Choice::Route(1));
    }

    #[test]
    fn a_retry_of_the_job_forgives() {
        let down = ("a", ErrorKind::Unavailable);
        let mut record = record(&[down, down, down]);
        record.forgiven = 3;
        assert_eq!(choose(&step(), &record, OPEN), Choice::Route(0));
    }

    #[test]
    fn an_open_breaker_is_passed_by_or_waited_for() {
        let a_shut = |r: &PlannedRoute| if r.provider.as_str() == "a" { BREAKER_PAUSE } else { Duration::ZERO };
        assert_eq!(choose(&step(), &record(&[]), a_shut), Choice::Route(1));
        assert_eq!(choose(&step(), &record(&[]), |_| BREAKER_PAUSE), Choice::Pause(BREAKER_PAUSE));
    }

    #[test]
    fn five_failures_in_a_minute_open_the_breaker_and_one_probe_goes_through() {
        let breakers = Breakers::default();
        let (a, at) = (route("a"), Duration::from_secs);
        for second in 0..4 {
            breakers.record(&a.provider, &a.model, false, at(second));
        }
        assert_eq!(breakers.pause(&a, &tenant(), at(4)), Duration::ZERO);
        breakers.record(&a.provider, &a.model, false, at(4));
        assert_eq!(breakers.pause(&a, &tenant(), at(4)), at(30));
        assert_eq!(breakers.pause(&a, &tenant(), at(34)), Duration::ZERO);
        assert_eq!(breakers.pause(&a, &tenant(), at(34)), at(30), "one probe only");
        breakers.record(&a.provider, &a.model, true, at(35));
        assert_eq!(breakers.pause(&a, &tenant(), at(35)), Duration::ZERO);
    }

    #[test]
    fn failures_far_apart_do_not_open_it() {
        let breakers = Breakers::default();
        let a = route("a");
        for n in 0..20 {
            breakers.record(&a.provider, &a.model, false, Duration::from_secs(n * 30));
        }
        assert_eq!(breakers.pause(&a, &tenant(), Duration::from_secs(600)), Duration::ZERO);
    }

    #[test]
    fn waits_double_and_are_jittered() {
        for _ in 0..50 {
            let (first, third) = (backoff(1), backoff(3));
            assert!(first >= FIRST_BACKOFF && first <= FIRST_BACKOFF * 2, "{first:?}");
            assert!(third >= FIRST_BACKOFF * 4 && third <= FIRST_BACKOFF * 8, "{third:?}");
            assert!(backoff(1000) <= MAX_BACKOFF * 2);
        }
        assert!((0..20).map(|_| backoff(1)).collect::<std::collections::HashSet<_>>().len() > 1);
    }

    #[test]
    fn a_provider_that_asks_for_a_moment_is_waited_for_and_one_that_asks_for_long_is_left() {
        let breakers = Breakers::default();
        let (a, b, at) = (route("a"), route("b"), Duration::from_secs);
        breakers.cool_down(&a.provider, at(7), at(100));
        let pause = |now| {
            let b = &breakers;
            move |r: &PlannedRoute| b.pause(r, &tenant(), now)
        };
        assert_eq!(choose(&step(), &record(&[]), pause(at(100))), Choice::Pause(at(7)), "to the second");
        assert_eq!(choose(&step(), &record(&[]), pause(at(107))), Choice::Route(0));
        breakers.cool_down(&a.provider, at(60), at(200));
        breakers.cool_down(&a.provider, at(1), at(200));
        assert_eq!(breakers.pause(&a, &tenant(), at(200)), at(60), "a later word does not shorten it");
        assert_eq!(breakers.pause(&b, &tenant(), at(200)), Duration::ZERO);
        assert_eq!(choose(&step(), &record(&[]), pause(at(200))), Choice::Route(1));
    }

    #[test]
    fn a_provider_that_refuses_our_key_is_probed_ever_less_often_until_it_takes_it() {
        let breakers = Breakers::default();
        let (a, at) = (route("a"), Duration::from_secs);
        assert!(breakers.shut(&a.provider, ErrorKind::Unauthorized, Timestamp::UNIX_EPOCH, at(0)));
        assert_eq!(breakers.pause(&a, &tenant(), at(0)), at(60));
        assert_eq!(
            breakers.problems().first().map(|p| (p.provider.as_str().to_owned(), p.kind)),
            Some(("a".into(), ErrorKind::Unauthorized))
        );
        assert_eq!(breakers.pause(&a, &tenant(), at(60)), Duration::ZERO, "the probe");
        assert_eq!(breakers.pause(&a, &tenant(), at(60)), at(120), "one only");
        assert!(!breakers.shut(&a.provider, ErrorKind::Unauthorized, Timestamp::UNIX_EPOCH, at(61)), "no news");
        assert_eq!(breakers.pause(&a, &tenant(), at(61)), at(120));
        assert!(breakers.reopened(&a.provider) && !breakers.reopened(&a.provider));
        assert_eq!(breakers.pause(&a, &tenant(), at(62)), Duration::ZERO);
        assert_eq!(breakers.problems(), []);
    }

    #[test]
    fn m7_a_model_that_cost_too_much_is_not_bought_again_for_that_tenant() {
        let breakers = Breakers::default();
        let (a, at) = (route("a"), Duration::from_secs);
        breakers.overrun(&tenant(), &a.provider, &a.model, at(0));
        assert_eq!(breakers.pause(&a, &tenant(), at(0)), OVERRUN_PAUSE);
        assert_eq!(breakers.pause(&a, &TenantId::new("other").unwrap(), at(0)), Duration::ZERO);
        assert_eq!(breakers.pause(&a, &tenant(), OVERRUN_PAUSE), Duration::ZERO);
    }
}
