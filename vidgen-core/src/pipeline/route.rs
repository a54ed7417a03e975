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
/// How often a route may put one step off (slow down, no such key, no money) before that counts as
/// out of order: with the pauses between, that is minutes of rate limits, or hours of a bad key.
const MAX_PUT_OFF: usize = 30;
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
/// A rate limit that is over so soon is waited for, rather than the route left for the next one: it
/// is no outage.
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

/// How long a route is to be left alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pause {
    /// So long; zero lets a submission through.
    pub wait: Duration,
    /// Whether that is a rate limit's word alone.
    pub rate_limit: bool,
}

impl From<Duration> for Pause {
    fn from(wait: Duration) -> Self {
        Self { wait, rate_limit: false }
    }
}

impl Pause {
    /// By a rate limit's word.
    #[must_use]
    pub fn rate_limit(wait: Duration) -> Self {
        Self { wait, rate_limit: true }
    }
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
    matches!(attempt.kind, ErrorKind::Unsupported | ErrorKind::NotFound)
}

/// Whether an attempt that ended like this was put off rather than failed: it says nothing of the
/// step, and somebody will mend it meanwhile (the provider its load, the operator the key or the account).
#[must_use]
pub fn is_put_off(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::RateLimited | ErrorKind::Unauthorized | ErrorKind::OverBudget)
}

/// The attempts that count: those after the last retry of the job.
fn counted<'a>(record: &'a StepRecord, route: &'a PlannedRoute) -> impl Iterator<Item = &'a StepAttempt> {
    record.attempts.iter().skip(record.forgiven).filter(move |a| a.provider == route.provider && a.model == route.model)
}

/// How many failures of `route` count against it.
#[must_use]
pub fn failures(record: &StepRecord, route: &PlannedRoute) -> usize {
    counted(record, route).filter(|a| !is_put_off(a.kind)).count()
}

/// Chooses by the plan's order: the first route that has attempts left and whose breaker lets it.
/// `pause` says how long a route's breaker stays shut.
#[must_use]
pub fn choose<P: Into<Pause>>(step: &PlannedStep, record: &StepRecord, pause: impl Fn(&PlannedRoute) -> P) -> Choice {
    let mut shortest: Option<Duration> = None;
    for (n, route) in step.routes.iter().enumerate() {
        let out = counted(record, route).any(is_final_for_route)
            || failures(record, route) >= MAX_ATTEMPTS
            || counted(record, route).count() >= MAX_PUT_OFF;
        if out {
            continue;
        }
        let Pause { wait, rate_limit } = pause(route).into();
        if wait.is_zero() {
            return Choice::Route(n);
        }
        if rate_limit && wait <= WORTH_WAITING && shortest.is_none() {
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

/// What a provider was asked when it took our key, or did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To take a submission.
    ToRun,
    /// How one is doing.
    ToLook,
}

/// A provider that refuses our key or our account.
#[derive(Debug)]
struct Shut {
    kind: ErrorKind,
    /// Whether a submit was refused, and not only a look at a run.
    submits: bool,
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
    /// How long to leave `route` alone, `now` being monotonic.
    pub fn pause(&self, route: &PlannedRoute, tenant: &TenantId, now: Duration) -> Pause {
        self.lock().pause(route, tenant, now)
    }

    /// Whether a submission may go to `route` now; asked by whoever sends one, right before. After a
    /// pause, the one that is let through is the probe, and others wait for what becomes of it.
    pub fn pass(&self, route: &PlannedRoute, tenant: &TenantId, now: Duration) -> bool {
        let mut memory = self.lock();
        if !memory.pause(route, tenant, now).wait.is_zero() {
            return false;
        }
        let key = (route.provider.clone(), route.model.clone());
        if let Some(until) = memory.models.get_mut(&key).and_then(|breaker| breaker.open_until.as_mut()) {
            *until = now + BREAKER_PAUSE;
        }
        if let Some(shut) = memory.shut.get_mut(&route.provider) {
            shut.pause = (shut.pause * 2).min(MAX_SHUT_PAUSE);
            shut.until = now + shut.pause;
        }
        true
    }

    /// How long a provider wants to be left alone, by its own word: also by who only looks.
    pub fn cooling(&self, provider: &ProviderId, now: Duration) -> Duration {
        left(self.lock().cooling.get(provider), now)
    }

    /// Records that a provider refuses our key or our account: until it takes something again,
    /// it gets no more than a probe now and then. Says whether this is news.
    pub fn shut(&self, provider: &ProviderId, kind: ErrorKind, asked: Asked, at: Timestamp, now: Duration) -> bool {
        let mut memory = self.lock();
        let known = memory.shut.contains_key(provider);
        let shut = memory.shut.entry(provider.clone()).or_insert(Shut {
            kind,
            submits: false,
            since: at,
            pause: SHUT_PAUSE,
            until: Duration::ZERO,
        });
        shut.kind = kind;
        shut.submits |= asked == Asked::ToRun;
        // Looks go on all the while: were they to prolong the pause, nothing would ever probe.
        if !known || asked == Asked::ToRun {
            shut.until = now + shut.pause;
        }
        !known
    }

    /// Records that a provider took our key. Says whether this is news. That it answers how a run
    /// is doing does not mean that it takes a new one: the account may be empty all the same.
    pub fn reopened(&self, provider: &ProviderId, asked: Asked) -> bool {
        let mut memory = self.lock();
        let proven = |shut: &Shut| asked == Asked::ToRun || !shut.submits;
        memory.shut.get(provider).is_some_and(proven) && memory.shut.remove(provider).is_some()
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

impl Memory {
    fn pause(&self, route: &PlannedRoute, tenant: &TenantId, now: Duration) -> Pause {
        let (provider, model) = (route.provider.clone(), route.model.clone());
        let cooling = left(self.cooling.get(&provider), now);
        let overrun = left(self.overruns.get(&(tenant.clone(), provider.clone(), model.clone())), now);
        let shut = left(self.shut.get(&provider).map(|shut| &shut.until), now);
        let breaker = self.models.get(&(provider, model));
        let broken = left(breaker.and_then(|breaker| breaker.open_until.as_ref()), now);
        let wait = cooling.max(overrun).max(shut).max(broken);
        Pause { wait, rate_limit: wait == cooling }
    }
}

fn left(until: Option<&Duration>, now: Duration) -> Duration {
    until.map_or(Duration::ZERO, |until| until.saturating_sub(now))
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
        let limited = [("a", ErrorKind::RateLimited); MAX_PUT_OFF];
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
        assert!(breakers.pass(&a, &tenant(), at(4)));
        breakers.record(&a.provider, &a.model, false, at(4));
        assert_eq!(breakers.pause(&a, &tenant(), at(4)), at(30).into());
        assert!(!breakers.pass(&a, &tenant(), at(4)));
        assert_eq!(breakers.pause(&a, &tenant(), at(34)).wait, Duration::ZERO, "who only asks takes no probe");
        assert!(breakers.pass(&a, &tenant(), at(34)));
        assert_eq!(breakers.pause(&a, &tenant(), at(34)), at(30).into(), "one probe only");
        breakers.record(&a.provider, &a.model, true, at(35));
        assert!(breakers.pass(&a, &tenant(), at(35)));
    }

    #[test]
    fn failures_far_apart_do_not_open_it() {
        let breakers = Breakers::default();
        let a = route("a");
        for n in 0..20 {
            breakers.record(&a.provider, &a.model, false, Duration::from_secs(n * 30));
        }
        assert!(breakers.pass(&a, &tenant(), Duration::from_secs(600)));
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
        assert_eq!(breakers.pause(&a, &tenant(), at(200)).wait, at(60), "a later word does not shorten it");
        assert_eq!((breakers.cooling(&a.provider, at(200)), breakers.cooling(&b.provider, at(200))), (at(60), at(0)));
        assert_eq!(breakers.pause(&b, &tenant(), at(200)).wait, Duration::ZERO);
        assert_eq!(choose(&step(), &record(&[]), pause(at(200))), Choice::Route(1));
    }

    #[test]
    fn an_outage_that_is_over_soon_is_not_waited_for() {
        let a_shut = |r: &PlannedRoute| if r.provider.as_str() == "a" { WORTH_WAITING } else { Duration::ZERO };
        assert_eq!(choose(&step(), &record(&[]), a_shut), Choice::Route(1));
    }

    #[test]
    fn a_refused_key_is_no_failure_of_the_step_and_still_not_tried_for_ever() {
        for kind in [ErrorKind::Unauthorized, ErrorKind::OverBudget] {
            assert_eq!(choose(&step(), &record(&[("a", kind); 5]), OPEN), Choice::Route(0));
            assert_eq!(choose(&step(), &record(&[("a", kind); MAX_PUT_OFF]), OPEN), Choice::Route(1));
        }
    }

    #[test]
    fn a_provider_that_refuses_our_key_is_probed_ever_less_often_until_it_takes_it() {
        let breakers = Breakers::default();
        let (a, at) = (route("a"), Duration::from_secs);
        let shut = |now| breakers.shut(&a.provider, ErrorKind::Unauthorized, Asked::ToRun, Timestamp::UNIX_EPOCH, now);
        assert!(shut(at(0)));
        assert_eq!(breakers.pause(&a, &tenant(), at(0)), at(60).into());
        assert_eq!(
            breakers.problems().first().map(|p| (p.provider.as_str().to_owned(), p.kind)),
            Some(("a".into(), ErrorKind::Unauthorized))
        );
        assert!(breakers.pass(&a, &tenant(), at(60)), "the probe");
        assert_eq!(breakers.pause(&a, &tenant(), at(60)), at(120).into(), "one only");
        assert!(!shut(at(61)), "no news");
        assert_eq!(breakers.pause(&a, &tenant(), at(61)), at(120).into());
        assert!(breakers.reopened(&a.provider, Asked::ToRun) && !breakers.reopened(&a.provider, Asked::ToRun));
        assert!(breakers.pass(&a, &tenant(), at(62)));
        assert_eq!(breakers.problems(), []);
    }

    #[test]
    fn who_answers_how_a_run_is_doing_may_still_refuse_a_new_one() {
        let breakers = Breakers::default();
        let (a, now) = (route("a"), Duration::ZERO);
        let shut = |asked| breakers.shut(&a.provider, ErrorKind::OverBudget, asked, Timestamp::UNIX_EPOCH, now);
        assert!(shut(Asked::ToRun));
        assert!(!breakers.reopened(&a.provider, Asked::ToLook));
        assert!(!shut(Asked::ToLook) && !breakers.reopened(&a.provider, Asked::ToLook));
        assert!(breakers.reopened(&a.provider, Asked::ToRun));
        assert!(shut(Asked::ToLook) && breakers.reopened(&a.provider, Asked::ToLook), "only looks were refused");
    }

    #[test]
    fn m7_a_model_that_cost_too_much_is_not_bought_again_for_that_tenant() {
        let breakers = Breakers::default();
        let (a, at) = (route("a"), Duration::from_secs);
        breakers.overrun(&tenant(), &a.provider, &a.model, at(0));
        assert_eq!(breakers.pause(&a, &tenant(), at(0)), OVERRUN_PAUSE.into());
        assert!(breakers.pass(&a, &TenantId::new("other").unwrap(), at(0)));
        assert!(breakers.pass(&a, &tenant(), OVERRUN_PAUSE));
    }
}
