//! Who does a step: fallback order, attempts, circuit breaker. Pure but for the breaker's memory.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

use crate::error::ErrorKind;
use crate::job::{StepAttempt, StepRecord};
use crate::pipeline::{PlannedRoute, PlannedStep};
use crate::provider::{ModelId, ProviderId};

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
    matches!(
        attempt.kind,
        ErrorKind::Unauthorized | ErrorKind::OverBudget | ErrorKind::Unsupported | ErrorKind::NotFound
    )
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
        shortest = Some(shortest.map_or(wait, |s| s.min(wait)));
    }
    shortest.map_or(Choice::Exhausted, Choice::Pause)
}

/// Remembers, for each provider and model, whether it is out of order: so that a thousand jobs
/// do not each find out for themselves. One per process; losing it costs a few submissions that fail.
#[derive(Debug, Default)]
pub struct Breakers(Mutex<HashMap<(ProviderId, ModelId), Breaker>>);

#[derive(Debug, Default)]
struct Breaker {
    failures: Vec<Duration>,
    open_until: Option<Duration>,
}

impl Breakers {
    /// How long to leave `route` alone, `now` being monotonic. Zero lets one submission through;
    /// after a pause that one is the probe, and others wait for what becomes of it.
    pub fn pause(&self, route: &PlannedRoute, now: Duration) -> Duration {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(breaker) = all.get_mut(&(route.provider.clone(), route.model.clone())) else { return Duration::ZERO };
        match breaker.open_until {
            None => Duration::ZERO,
            Some(until) if now < until => until.saturating_sub(now),
            Some(_) => {
                breaker.open_until = Some(now + BREAKER_PAUSE);
                Duration::ZERO
            }
        }
    }

    /// Records how a submission to that provider and model went.
    pub fn record(&self, provider: &ProviderId, model: &ModelId, fine: bool, now: Duration) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (provider.clone(), model.clone());
        if fine {
            all.remove(&key);
            return;
        }
        let breaker = all.entry(key).or_default();
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
    use jiff::Timestamp;

    fn route(provider: &str) -> PlannedRoute {
        PlannedRoute {
            provider: provider.into(),
            model: "m".into(),
            price: Price::Free,
            expected: Usd::ZERO,
            typical: Duration::ZERO,
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
    fn a_bad_key_ends_a_route_at_once_and_a_rate_limit_does_not() {
        assert_eq!(choose(&step(), &record(&[("a", ErrorKind::Unauthorized)]), OPEN), Choice::Route(1));
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
        assert_eq!(breakers.pause(&a, at(4)), Duration::ZERO);
        breakers.record(&a.provider, &a.model, false, at(4));
        assert_eq!(breakers.pause(&a, at(4)), at(30));
        assert_eq!(breakers.pause(&a, at(34)), Duration::ZERO);
        assert_eq!(breakers.pause(&a, at(34)), at(30), "one probe only");
        breakers.record(&a.provider, &a.model, true, at(35));
        assert_eq!(breakers.pause(&a, at(35)), Duration::ZERO);
    }

    #[test]
    fn failures_far_apart_do_not_open_it() {
        let breakers = Breakers::default();
        let a = route("a");
        for n in 0..20 {
            breakers.record(&a.provider, &a.model, false, Duration::from_secs(n * 30));
        }
        assert_eq!(breakers.pause(&a, Duration::from_secs(600)), Duration::ZERO);
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
}
