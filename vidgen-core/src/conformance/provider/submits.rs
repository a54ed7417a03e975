//! The rules around a submit: what goes out, what comes back, what is found afterwards.

use std::time::Duration;

use super::stage::{Fixture, Scene, Signed, Stage, needed, new_submission, only_output, stage};
use crate::error::{Error, ErrorKind};
use crate::provider::{Callback, Lookup, ModelId, Resubmit, RunState, SubmissionId, SubmitOptions};

/// After a submit was given up, a client that repeats it behind the caller's back has so long to.
const BEHIND_THE_BACK: Duration = Duration::from_millis(200);
/// A remote's list may lag behind what it accepted.
const LAG: Duration = Duration::from_millis(50);
/// How often the kit asks a list that may lag.
const ASKS: usize = 40;

/// P5.
pub async fn p5_a_rate_limit_carries_its_retry_after(fixture: &dyn Fixture) {
    if let Some(stage) = stage(fixture, "p5", Scene::RateLimits).await {
        assert_limited(&stage, stage.submit().await.expect_err("it was to be limited"), "a submit");
        assert_eq!(stage.submits().len(), 1, "a limited submit was repeated, or never sent");
    }
    if let Some(stage) = stage(fixture, "p5", Scene::RateLimitsLooks).await {
        let handle = stage.accepted().await;
        assert_limited(&stage, stage.provider.poll(&handle).await.expect_err("it was to be limited"), "a look");
    }
}

fn assert_limited(stage: &Stage, error: Error, what: &str) {
    assert_eq!(error.kind(), ErrorKind::RateLimited, "{what}: {error:?}");
    let expected = stage.retry_after.expect("the stage says after how long to come back");
    assert_eq!(error.retry_after(), Some(expected), "{what}: {error:?}");
}

/// P6.
pub async fn p6_a_bad_key_is_unauthorized_and_never_retried(fixture: &dyn Fixture) {
    let Some(stage) = stage(fixture, "p6", Scene::BadKey).await else { return };
    let error = stage.submit().await.expect_err("a bad key bought something");
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
    tokio::time::sleep(BEHIND_THE_BACK).await;
    // One call, whichever it is: a client may be refused at an upload, before the submit.
    assert_eq!(stage.calls(), 1, "a bad key was tried again, or never");
    match &stage.handle {
        Some(handle) => {
            let error = stage.provider.poll(handle).await.expect_err("a bad key saw something");
            assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
            assert_eq!(stage.calls(), 2, "a look with a bad key was repeated, or never made");
        }
        None => println!("p6: without a handle, looks are not held to this rule"),
    }
}

/// P8.
pub async fn p8_a_lost_answer_is_outcome_unknown_and_one_request(fixture: &dyn Fixture) {
    let lost = [Scene::ResetsAfterAccepting, Scene::FailsAfterAccepting, Scene::GarblesAcceptance, Scene::Hangs];
    for scene in lost {
        let Some(stage) = stage(fixture, "p8", scene).await else { continue };
        match stage.submit_or_give_up(&new_submission(stage.task.spec.kind()), scene).await {
            Some(Ok(handle)) => panic!("{scene:?}: nobody answered, but there is {handle:?}"),
            Some(Err(error)) => assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{scene:?}: {error:?}"),
            // The pipeline gives up as the kit did, and takes the outcome for unknown.
            None => assert_eq!(scene, Scene::Hangs, "the submit was waited for longer than it may take"),
        }
        tokio::time::sleep(BEHIND_THE_BACK).await;
        assert_eq!(stage.submits().len(), 1, "{scene:?}: submits that the remote saw");
    }
    if let Some(stage) = stage(fixture, "p8", Scene::Unreachable).await {
        let error = stage.submit().await.expect_err("nobody is there");
        assert_eq!(error.kind(), ErrorKind::NotSent, "{error:?}");
        assert_eq!(stage.submits().len(), 0, "NotSent is for what cannot have reached the remote");
    }
    if let Some(stage) = stage(fixture, "p8", Scene::Refuses).await {
        match stage.submit().await {
            Err(error) => {
                let verdicts = [ErrorKind::Invalid, ErrorKind::Refused];
                assert!(verdicts.contains(&error.kind()), "the content was refused: {error:?}");
            }
            Ok(handle) => match stage.end(&handle).await.state {
                RunState::Failed(failure) => {
                    let verdicts = [ErrorKind::Invalid, ErrorKind::Refused];
                    assert!(verdicts.contains(&failure.kind), "the content was refused: {failure:?}");
                }
                other => panic!("the content was refused, but the run is {other:?}"),
            },
        }
        assert_eq!(stage.submits().len(), 1, "a refused submit was repeated, or never sent");
    }
}

/// P10.
pub async fn p10_what_is_not_declared_is_unsupported_without_a_call(fixture: &dyn Fixture) {
    let stage = needed(fixture, Scene::Accepts).await;
    let capabilities = stage.capabilities();
    let (again, fresh) = (stage.capabilities(), stage.client().capabilities());
    for other in [again, fresh] {
        assert_eq!(format!("{other:?}"), format!("{capabilities:?}"), "capabilities change");
    }
    assert!(
        capabilities.model(stage.task.spec.kind(), Some(&stage.task.model)).is_some(),
        "the stage's task is for a model that is not declared"
    );

    let id = new_submission(stage.task.spec.kind());
    let mut task = stage.task.clone();
    task.model = ModelId::new("no-such-maker/no-such-model");
    let before = stage.calls();
    let error =
        stage.provider.submit(&task, &SubmitOptions::new(id.clone())).await.expect_err("there is no such model");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    assert_eq!(stage.calls(), before, "a call was made for a model that is not declared");

    let handle = stage.submit_as(&id).await.expect("the remote accepts it");
    let before = stage.calls();
    if !capabilities.cancel {
        let error = stage.provider.cancel(&handle).await.expect_err("cancel is not declared");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    }
    if !capabilities.find {
        let error = stage.provider.find(&stage.submission(&id)).await.expect_err("find is not declared");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    }
    assert_eq!(stage.calls(), before, "a call was made for what is not declared");

    if !capabilities.cancel {
        println!("p10: it does not cancel");
    } else if let Some(stage) = super::stage::stage(fixture, "p10", Scene::CancelOk).await {
        let handle = stage.accepted().await;
        stage.provider.cancel(&handle).await.expect("cancel is declared");
        let state = stage.end(&handle).await.state;
        assert!(matches!(state, RunState::Canceled), "it was canceled, but is {state:?}");
    }
}

/// P12.
pub async fn p12_the_submission_id_goes_out_with_every_submit(fixture: &dyn Fixture) {
    let stage = needed(fixture, Scene::Accepts).await;
    let kind = stage.task.spec.kind();
    let (first, second) = (new_submission(kind), new_submission(kind));
    let handle = stage.submit_as(&first).await.expect("the remote accepts it");
    let other = stage.submit_as(&second).await.expect("the remote accepts another");
    assert_ne!(handle.remote_id, other.remote_id, "two submissions are one run");
    assert_carried(&stage, &[&first, &second]);

    let resubmit = stage.capabilities().resubmit;
    if !matches!(resubmit, Resubmit::Keyed(_)) {
        println!("p12: no resend here, for its capability is {resubmit:?}");
        return;
    }
    let resent = stage.submit_as(&first).await.expect("the remote knows its key");
    assert_eq!(resent.remote_id, handle.remote_id, "a resend under the same key bought another run");
    assert_carried(&stage, &[&first, &second, &first]);
}

fn assert_carried(stage: &Stage, ids: &[&SubmissionId]) {
    let seen = stage.submits();
    assert_eq!(seen.len(), ids.len(), "submits that the remote saw");
    for (text, id) in seen.iter().zip(ids) {
        assert!(text.contains(id.as_str()), "a submit went out without {id}");
    }
}

/// P13.
pub async fn p13_find_never_says_absent_of_what_may_be_there(fixture: &dyn Fixture) {
    let stage = needed(fixture, Scene::Accepts).await;
    if !stage.capabilities().find {
        println!("p13: it does not find (that this is Unsupported is for p10)");
        return;
    }
    let kind = stage.task.spec.kind();
    let (id, never) = (new_submission(kind), new_submission(kind));
    let handle = stage.submit_as(&id).await.expect("the remote accepts it");
    match found(&stage, &id).await {
        Some(found) => assert_eq!(found.remote_id, handle.remote_id, "another run was found"),
        None => panic!("find is declared, but what was accepted is never found"),
    }
    match stage.provider.find(&stage.submission(&never)).await.expect("a search") {
        Lookup::Absent | Lookup::Unknown => {}
        Lookup::Found(handle) => panic!("what was never sent is found as {handle:?}"),
    }

    for scene in [Scene::ResetsAfterAccepting, Scene::GarblesAcceptance, Scene::Hangs] {
        let Some(stage) = super::stage::stage(fixture, "p13", scene).await else { continue };
        let id = new_submission(kind);
        if let Some(Ok(_)) = stage.submit_or_give_up(&id, scene).await {
            continue; // That is for P8 to say.
        }
        match found(&stage, &id).await {
            Some(handle) => drop(stage.provider.poll(&handle).await.expect("a look at what was found")),
            None => println!("p13: {scene:?}: the remote cannot tell"),
        }
    }

    if let Some(stage) = super::stage::stage(fixture, "p13", Scene::Garbled).await {
        let id = new_submission(kind);
        stage.submit_as(&id).await.expect("the remote accepts it");
        if let Ok(Lookup::Absent) = stage.provider.find(&stage.submission(&id)).await {
            panic!("an answer that nobody understands was taken for a No");
        }
    }
}

/// Looks for what the remote has accepted, for as long as its list may lag.
async fn found(stage: &Stage, id: &SubmissionId) -> Option<crate::provider::Handle> {
    for _ in 0..ASKS {
        match stage.provider.find(&stage.submission(id)).await.expect("a search") {
            Lookup::Found(handle) => return Some(handle),
            Lookup::Absent => panic!("the remote accepted {id}, and find says Absent"),
            Lookup::Unknown => tokio::time::sleep(LAG).await,
        }
    }
    None
}

/// P15.
pub async fn p15_the_cost_is_the_remotes_or_none(fixture: &dyn Fixture) {
    let stage = needed(fixture, Scene::Succeeds).await;
    let handle = stage.accepted().await;
    let end = stage.end(&handle).await;
    assert_eq!(end.cost, stage.cost, "the cost of {handle:?}");
    only_output(end.state);
    if let Some(stage) = super::stage::stage(fixture, "p15", Scene::StatesCost).await {
        let stated = stage.cost.expect("the stage says which cost the remote states");
        let handle = stage.accepted().await;
        assert_eq!(stage.end(&handle).await.cost, Some(stated), "the remote states the cost");
    }
    if let Some(stage) = super::stage::stage(fixture, "p15", Scene::Fails).await {
        let handle = stage.accepted().await;
        assert_eq!(stage.end(&handle).await.cost, stage.cost, "the cost of a run that failed");
    }
}

/// P16.
pub async fn p16_only_a_genuine_callback_is_believed(fixture: &dyn Fixture) {
    let stage = needed(fixture, Scene::Succeeds).await;
    let id = new_submission(stage.task.spec.kind());
    let spool = stage.spool(&id);
    if !stage.capabilities().callback {
        let callback = Callback::new([("x", "y")], "{}", jiff::Timestamp::UNIX_EPOCH);
        let error = stage.provider.callback(&callback, &spool).await.expect_err("callbacks are not declared");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
        return;
    }
    let handle = stage.submit_as(&id).await.expect("the remote accepts it");
    if !stage.capabilities().only_callback {
        stage.end(&handle).await;
    }
    let genuine = stage.callback(&id).expect("callbacks are declared: the stage says what the remote would send");
    // Late, sent twice, from a process that remembers nothing: it is the same word each time.
    for provider in [stage.client(), stage.client()] {
        let told = provider.callback(&genuine, &spool).await.expect("a genuine callback");
        assert_eq!((&told.provider, &told.remote_id), (&handle.provider, &handle.remote_id), "another run");
        if stage.capabilities().only_callback {
            assert!(told.has_end(), "nobody else will ever tell how {told:?} ended");
            only_output(provider.poll(&told).await.expect("a look at what was told").state);
        }
        let said = format!("{told:?} {genuine:?}");
        assert!(stage.secrets.iter().all(|secret| !said.contains(secret.as_str())), "a secret is told");
    }
    let refused = |callback: Callback, what: &'static str| {
        let (provider, spool) = (stage.client(), spool.clone());
        async move {
            let error = provider.callback(&callback, &spool).await.expect_err(what);
            assert_eq!(error.kind(), ErrorKind::Unauthorized, "{what}: {error:?}");
        }
    };
    if stage.signed != Signed::No {
        let bare = Callback::new([("content-type", "application/json")], genuine.body.clone(), genuine.received_at);
        refused(bare, "a callback without a signature is believed").await;
    }
    if matches!(stage.signed, Signed::Body | Signed::Dated) {
        let mut altered = genuine.clone();
        let mut body = altered.body.to_vec();
        body.push(b' ');
        altered.body = body.into();
        refused(altered, "an altered callback is believed").await;
    }
    if stage.signed == Signed::Dated {
        for hours in [-1, 1] {
            let mut stale = genuine.clone();
            stale.received_at += jiff::SignedDuration::from_hours(hours);
            refused(stale, "a callback of another hour is believed").await;
        }
    }
}
