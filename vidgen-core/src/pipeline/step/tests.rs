use super::*;
use crate::job::StepKind;
use crate::money::{Price, Usd};
use crate::provider::{Model, ProviderId};

fn t(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

fn route(provider: &str) -> PlannedRoute {
    PlannedRoute {
        provider: provider.into(),
        model: "m".into(),
        price: Price::PerRun(Usd::from_cents(10)),
        expected: Usd::from_cents(10),
        typical: Duration::from_secs(10),
        duration: None,
    }
}

fn step() -> PlannedStep {
    PlannedStep { step: StepKind::Video, needs: vec![], routes: vec![route("a"), route("b")], optional: false }
}

fn capabilities() -> Capabilities {
    Capabilities::new(vec![Model::new("m", StepKind::Video, Price::PerRun(Usd::from_cents(10)))])
}

fn means(capabilities: &Capabilities) -> Means {
    Means { capabilities: Some(capabilities.clone()), on_unknown: OnUnknown::Park, calls_back: false }
}

fn nobody() -> Means {
    Means { capabilities: None, on_unknown: OnUnknown::Park, calls_back: false }
}

fn judge(record: &StepRecord, capabilities: &Capabilities, now: Timestamp) -> Next {
    next(record, &step(), &means(capabilities), |_| Duration::ZERO, &Timing::default(), now)
}

/// An intent of provider `a` that was written at second 0.
fn open_intent() -> StepRecord {
    let begun = StepRecord::begun(StepKind::Video);
    intent(&begun, JobId::new(), &route("a"), "hash".into()).stamped(t(0))
}

fn handle() -> Handle {
    Handle::new(ProviderId::from("a"), "remote-1")
}

fn running() -> StepRecord {
    after_submit(&open_intent(), &step(), &Ok(handle()), t(1)).unwrap().stamped(t(1))
}

fn error(kind: ErrorKind) -> Result<Handle, Error> {
    Err(Error::new(kind, "a", "says no"))
}

fn wrong(record: &StepRecord) -> String {
    match &record.state {
        StepState::Failed { failure } => failure.code.clone(),
        other => panic!("not failed: {other:?}"),
    }
}

const ABSENT_AT: i64 = 20 + 30 + 60;

#[test]
fn a_step_begins_with_the_first_route() {
    let begun = StepRecord::begun(StepKind::Video);
    assert_eq!(judge(&begun, &capabilities(), t(0)), Next::Submit { route: 0 });
}

#[test]
fn an_intent_found_after_a_crash_is_never_just_sent_again() {
    assert_eq!(judge(&open_intent(), &capabilities().with_find(), t(1)), Next::Find);
    let wait = Next::Wait { until: t(ABSENT_AT) };
    assert_eq!(judge(&open_intent(), &capabilities(), t(1)), wait, "nobody can tell, and it may yet be sent");
    let Next::Write(record) = judge(&open_intent(), &capabilities(), t(ABSENT_AT)) else { panic!() };
    assert!(matches!(record.state, StepState::InDoubt { .. }));
    let gone = next(&open_intent(), &step(), &nobody(), |_| Duration::ZERO, &Timing::default(), t(1));
    assert!(matches!(gone, Next::Write(r) if matches!(r.state, StepState::InDoubt { .. })), "the host dropped it");
}

#[test]
fn a_resend_that_bought_nothing_leaves_the_first_request_unknown() {
    use ErrorKind::{NotFound, NotSent, OverBudget, RateLimited, Unauthorized, Unavailable, Unsupported};
    for kind in [NotFound, NotSent, OverBudget, RateLimited, Unauthorized, Unavailable, Unsupported] {
        assert_eq!(after_resend(&open_intent(), &step(), &error(kind), t(0), t(1)), None, "{kind:?}");
    }
    let found = after_resend(&open_intent(), &step(), &Ok(handle()), t(ABSENT_AT), t(1)).unwrap();
    assert!(matches!(found.state, StepState::Accepted { .. }));
}

#[test]
fn a_refused_resend_is_the_last_word_once_the_first_request_can_no_longer_arrive() {
    let resent = |now| after_resend(&open_intent(), &step(), &error(ErrorKind::Refused), t(ABSENT_AT), now);
    assert_eq!(resent(t(ABSENT_AT - 1)), None, "the first one may still be accepted");
    assert_eq!(wrong(&resent(t(ABSENT_AT)).unwrap()), "content_refused");
}

#[test]
fn an_intent_is_resent_where_that_cannot_cost_twice() {
    let keyed = capabilities().with_resubmit(Resubmit::Keyed(Duration::from_secs(60)));
    assert_eq!(judge(&open_intent(), &keyed, t(59)), Next::Resend);
    assert_ne!(judge(&open_intent(), &keyed, t(60)), Next::Resend, "the key is dead");
    let free = capabilities().with_resubmit(Resubmit::Free);
    assert_eq!(judge(&open_intent(), &free, t(100_000)), Next::Resend);
}

#[test]
fn a_found_submission_is_polled() {
    let found = Ok(Lookup::Found(handle()));
    let record =
        after_find(&open_intent(), &step(), &means(&capabilities()), &found, &Timing::default(), t(1)).unwrap();
    assert_eq!(judge(&record, &capabilities(), t(1)), Next::Poll);
}

#[test]
fn absent_is_believed_only_when_the_request_can_no_longer_arrive() {
    let absent = Ok(Lookup::Absent);
    assert_eq!(
        after_find(&open_intent(), &step(), &means(&capabilities()), &absent, &Timing::default(), t(ABSENT_AT - 1)),
        None
    );
    let record =
        after_find(&open_intent(), &step(), &means(&capabilities()), &absent, &Timing::default(), t(ABSENT_AT))
            .unwrap();
    assert!(matches!(record.state, StepState::Waiting { .. }));
    let again = intent(&record, JobId::new(), &route("a"), "hash".into());
    assert_eq!(again.open_submission().unwrap().ordinal, 1, "the slot was not bought: the same id");
}

#[test]
fn a_remote_that_cannot_tell_leaves_it_in_doubt() {
    let unknown = Ok(Lookup::Unknown);
    assert_eq!(after_find(&open_intent(), &step(), &means(&capabilities()), &unknown, &Timing::default(), t(1)), None);
    let record =
        after_find(&open_intent(), &step(), &means(&capabilities()), &unknown, &Timing::default(), t(ABSENT_AT))
            .unwrap();
    assert!(matches!(record.state, StepState::InDoubt { .. }));
    let down = Err(Error::new(ErrorKind::Unavailable, "a", "down"));
    assert_eq!(
        after_find(&open_intent(), &step(), &means(&capabilities()), &down, &Timing::default(), t(ABSENT_AT)),
        None
    );
    let late = t(ABSENT_AT + 3600);
    let record = after_find(&open_intent(), &step(), &means(&capabilities()), &down, &Timing::default(), late).unwrap();
    assert!(matches!(record.state, StepState::InDoubt { .. }));
}

#[test]
fn a_submit_that_may_have_arrived_is_no_outcome() {
    for kind in [ErrorKind::OutcomeUnknown, ErrorKind::Protocol, ErrorKind::Internal, ErrorKind::Conflict] {
        assert_eq!(after_submit(&open_intent(), &step(), &error(kind), t(1)), None, "{kind:?}");
    }
}

#[test]
fn refusals_are_final_and_never_fail_over() {
    for kind in [ErrorKind::Invalid, ErrorKind::Refused] {
        let record = after_submit(&open_intent(), &step(), &error(kind), t(1)).unwrap();
        assert_eq!(wrong(&record), kind.code());
    }
}

#[test]
fn a_rate_limit_waits_as_long_as_it_says() {
    let limited = Err(Error::new(ErrorKind::RateLimited, "a", "slow down").with_retry_after(Duration::from_secs(77)));
    let record = after_submit(&open_intent(), &step(), &limited, t(1)).unwrap();
    assert_eq!(record.state, StepState::Waiting { not_before: t(1) }, "somebody else may do it meanwhile");
    let alone = PlannedStep { routes: vec![route("a")], ..step() };
    let record = after_submit(&open_intent(), &alone, &limited, t(1)).unwrap();
    assert_eq!(record.state, StepState::Waiting { not_before: t(78) });
    assert_eq!(judge(&record, &capabilities(), t(77)), Next::Wait { until: t(78) });
    assert_eq!(judge(&record, &capabilities(), t(78)), Next::Submit { route: 0 });
    let short = Err(Error::new(ErrorKind::RateLimited, "a", "slow down").with_retry_after(Duration::from_secs(7)));
    let record = after_submit(&open_intent(), &step(), &short, t(1)).unwrap();
    assert_eq!(record.state, StepState::Waiting { not_before: t(8) }, "not worth going elsewhere");
}

#[test]
fn a_refused_key_sends_the_step_elsewhere_at_once() {
    for kind in [ErrorKind::Unauthorized, ErrorKind::OverBudget] {
        let record = after_submit(&open_intent(), &step(), &error(kind), t(1)).unwrap();
        assert_eq!(record.state, StepState::Waiting { not_before: t(1) }, "{kind:?}");
        let alone = PlannedStep { routes: vec![route("a")], ..step() };
        let record = after_submit(&open_intent(), &alone, &error(kind), t(1)).unwrap();
        assert!(matches!(record.state, StepState::Waiting { not_before } if not_before > t(1)), "{kind:?}");
    }
}

#[test]
fn an_outage_backs_off_three_times_then_takes_the_other_route_at_once() {
    let mut record = StepRecord::begun(StepKind::Video);
    let mut now = t(0);
    for attempt in 1..=3u32 {
        let open = intent(&record, JobId::new(), &route("a"), "hash".into()).stamped(now);
        record = after_submit(&open, &step(), &error(ErrorKind::Unavailable), now).unwrap();
        let StepState::Waiting { not_before } = record.state else { panic!() };
        let wait = until(now, not_before);
        if attempt < 3 {
            let least = Duration::from_secs(5) * 2u32.pow(attempt - 1);
            assert!(wait >= least && wait <= least * 2, "{wait:?}");
        } else {
            assert_eq!(wait, Duration::ZERO, "another route need not wait");
        }
        now = not_before;
    }
    assert_eq!(judge(&record, &capabilities(), now), Next::Submit { route: 1 });
}

#[test]
fn a_step_without_routes_left_fails_with_the_last_reason_or_is_skipped_if_it_may_be() {
    let mut record = StepRecord::begun(StepKind::Video);
    for provider in ["a", "b"] {
        let open = intent(&record, JobId::new(), &route(provider), "hash".into());
        record = after_submit(&open, &step(), &error(ErrorKind::Unsupported), t(0)).unwrap();
    }
    let Next::Write(failed) = judge(&record, &capabilities(), t(0)) else { panic!() };
    assert_eq!(wrong(&failed), "unsupported");
    let optional = PlannedStep { optional: true, ..step() };
    let Next::Write(skipped) = next(&record, &optional, &nobody(), |_| Duration::ZERO, &Timing::default(), t(0)) else {
        panic!()
    };
    assert_eq!(skipped.state, StepState::Skipped { reason: "says no".into() });
}

#[test]
fn a_failed_run_is_bought_again_under_a_new_id_and_its_bill_is_kept() {
    let failure = RunFailure::new(ErrorKind::Unavailable, "out of memory").with_bill();
    let cost = cost_of(None, None, running().open_submission().unwrap(), &step());
    let (record, entry) = after_failure(&running(), &step(), &failure, cost, t(2));
    assert_eq!(entry.unwrap().cost.amount, Usd::from_cents(10));
    let again = intent(&record, JobId::new(), &route("a"), "hash".into());
    assert_eq!(again.open_submission().unwrap().ordinal, 2);
}

#[test]
fn an_unbilled_failure_costs_nothing_and_a_refused_run_is_final() {
    let failure = RunFailure::new(ErrorKind::Refused, "not that");
    let cost = cost_of(None, None, running().open_submission().unwrap(), &step());
    let (record, entry) = after_failure(&running(), &step(), &failure, cost, t(2));
    assert_eq!(entry, None);
    assert_eq!(wrong(&record), "content_refused");
}

#[test]
fn a_forgotten_run_is_rerun_if_free_and_counted_as_billed_if_not() {
    let cost = cost_of(None, None, running().open_submission().unwrap(), &step());
    let (record, entry) = after_loss(&running(), &step(), &capabilities(), cost, true, t(2));
    assert_eq!((wrong(&record).as_str(), entry.unwrap().cost.amount), ("provider_protocol", Usd::from_cents(10)));
    let free = capabilities().with_resubmit(Resubmit::Free);
    let (record, entry) = after_loss(&running(), &step(), &free, cost, false, t(2));
    assert_eq!((judge(&record, &free, t(2)), entry), (Next::Submit { route: 0 }, None));
    assert!(record.attempts.is_empty(), "a restart is no attempt");
    let (record, _) = after_loss(&running(), &step(), &free, cost, true, t(2));
    assert_eq!(record.attempts.len(), 1, "but a provider that forgets its own run must not be asked for ever");
}

#[test]
fn a_forgotten_run_that_was_free_is_rerun_beside_its_late_callbacks() {
    let mut record = running();
    if let StepState::Accepted { submission, .. } = &mut record.state {
        submission.hold = Usd::ZERO;
    }
    let calls = capabilities().with_only_callback();
    let (lost, entry) = after_loss(&record, &step(), &calls, Cost::FREE, false, t(2));
    assert_eq!((lost.attempts.len(), entry), (1, None), "it counts, whoever sent it");
    let again = intent(&lost, JobId::new(), &route("a"), String::new());
    assert_eq!(again.open_submission().map(|s| s.ordinal), Some(2));
}

#[test]
fn what_is_free_is_run_again_without_an_hours_wait_for_a_callback() {
    let mut record = open_intent();
    if let StepState::Intent { submission } = &mut record.state {
        submission.hold = Usd::ZERO;
    }
    let calls = capabilities().with_callback();
    let means = Means { calls_back: true, on_unknown: OnUnknown::Resubmit, ..means(&calls) };
    let judge = |now| next(&record, &step(), &means, |_| Duration::ZERO, &Timing::default(), now);
    assert_eq!(judge(t(1)), Next::Wait { until: t(ABSENT_AT) });
    let Next::Write(again) = judge(t(ABSENT_AT)) else { panic!("it is to be run again") };
    assert!(matches!(again.state, StepState::Waiting { .. }));
}

#[test]
fn who_does_not_say_when_to_come_back_is_asked_less_and_less_often() {
    let limited = || Err(Error::new(ErrorKind::RateLimited, "a", "at capacity"));
    let only = PlannedStep { routes: vec![route("a")], ..step() };
    let mut record = open_intent();
    let mut waits = vec![];
    for _ in 0..4 {
        let waiting = after_submit(&record, &only, &limited(), t(0)).unwrap();
        let StepState::Waiting { not_before } = waiting.state else { panic!("{waiting:?}") };
        waits.push(not_before.as_second() - t(0).as_second());
        record = intent(&waiting, JobId::new(), &route("a"), String::new());
    }
    // Each is between its share and twice that.
    assert!(waits.iter().zip([5, 10, 20, 40]).all(|(wait, least)| (least..=2 * least).contains(wait)), "{waits:?}");
}

#[test]
fn a_run_has_a_deadline_then_a_grace() {
    assert_eq!(overdue(&running(), &Timing::default(), t(3600)), Overdue::No);
    assert_eq!(overdue(&running(), &Timing::default(), t(3601)), Overdue::Cancel);
    assert_eq!(overdue(&running(), &Timing::default(), t(3901)), Overdue::GiveUp);
}

#[test]
fn every_change_is_the_next_revision() {
    use crate::job::Succession;
    let begun = StepRecord::begun(StepKind::Video);
    let open = open_intent();
    assert_eq!(open.follows(None), Succession::Next);
    assert_eq!(begun.revision, 0);
    assert_eq!(running().follows(Some(&open)), Succession::Next);
    assert_eq!(cancel_sent(&running()).follows(Some(&running())), Succession::Next);
    assert_eq!(unchanged(&running()).follows(Some(&running())), Succession::Next);
}

#[test]
fn who_calls_back_is_waited_for_before_anything_is_left_in_doubt() {
    let capabilities = capabilities().with_callback();
    let called = Means { calls_back: true, ..means(&capabilities) };
    let judge = |now| next(&open_intent(), &step(), &called, |_| Duration::ZERO, &Timing::default(), now);
    let patience = i64::try_from(Timing::default().find_patience.as_secs()).unwrap();
    assert_eq!(judge(t(1)), Next::Wait { until: t(ABSENT_AT + patience) });
    let Next::Write(doubted) = judge(t(ABSENT_AT + patience)) else { panic!("nobody called") };
    assert!(matches!(doubted.state, StepState::InDoubt { .. }));
    let unknown = Ok(Lookup::Unknown);
    assert_eq!(after_find(&open_intent(), &step(), &called, &unknown, &Timing::default(), t(ABSENT_AT)), None);
}

#[test]
fn a_witness_makes_an_open_intent_an_accepted_run_and_nothing_else() {
    let handle = Handle::new("a".into(), "run-1");
    let record = after_witness(&open_intent(), &handle).unwrap();
    assert!(matches!(&record.state, StepState::Accepted { handle: h, .. } if *h == handle));
    assert_eq!(after_witness(&record, &Handle::new("a".into(), "run-2")), None, "a run is never exchanged");
    let told = handle.clone().with_detail(serde_json::json!({"end": "succeeded"}));
    assert!(matches!(&after_news(&record, &told).unwrap().state, StepState::Accepted { handle: h, .. } if *h == told));
    let news = after_news(&record, &told).unwrap();
    let another_end = handle.clone().with_detail(serde_json::json!({"end": "canceled"}));
    assert_eq!(after_news(&news, &another_end), None, "an end stays");
    assert_eq!(after_news(&news, &handle), None, "and nothing takes it back");
    assert_eq!(after_news(&record, &Handle::new("b".into(), "run-1")), None, "another's");
    assert_eq!(after_news(&record, &handle), None, "no news");
    assert_eq!(after_news(&record, &Handle::new("a".into(), "run-2")), None, "another run");
}

#[test]
fn a_host_that_would_rather_pay_twice_has_the_unknown_bought_again_in_a_slot_of_its_own() {
    let rash = Means { on_unknown: OnUnknown::Resubmit, ..means(&capabilities()) };
    let Next::Write(record) =
        next(&open_intent(), &step(), &rash, |_| Duration::ZERO, &Timing::default(), t(ABSENT_AT))
    else {
        panic!("nobody can tell")
    };
    assert!(matches!(record.state, StepState::Waiting { .. }));
    let attempt = record.attempts.last().unwrap();
    assert_eq!(
        (attempt.kind, attempt.accepted, attempt.cost.amount),
        (ErrorKind::OutcomeUnknown, true, Usd::from_cents(10))
    );
    let again = intent(&record, JobId::new(), &route("a"), String::new());
    assert_eq!(again.open_submission().map(|s| s.ordinal), Some(2));
}

#[test]
fn a_cost_is_the_providers_word_else_what_was_used_else_the_price() {
    let metered = Price::PerComputeSecond { rate: Usd::from_cents(1), at_most: Duration::from_secs(60) };
    let mut step = step();
    step.routes[0].price = metered;
    let record = open_intent();
    let submission = record.open_submission().unwrap();
    let used = Some(Usage::Compute(Duration::from_millis(2500)));
    let cost = |stated, usage| cost_of(stated, usage, submission, &step);
    assert_eq!(cost(Some(Usd::from_cents(7)), used), Cost { amount: Usd::from_cents(7), basis: CostBasis::Stated });
    assert_eq!(cost(None, used), Cost { amount: Usd::from_micros(25_000), basis: CostBasis::Metered });
    assert_eq!(cost(Some(Usd::from_cents(-7)), None).basis, CostBasis::Table, "nobody pays us");
    assert_eq!(cost(None, Some(Usage::Characters(3))), Cost { amount: submission.hold, basis: CostBasis::Table });
}
