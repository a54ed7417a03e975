//! The rules of what was accepted: handles, looks, ends and outputs.

use std::error::Error as StdError;
use std::fmt::Debug;
use std::mem::discriminant;
use std::time::Duration;

use futures::StreamExt;

use super::stage::{Fixture, PATIENCE, Scene, Stage, needed, new_submission, only_output, read, stage};
use crate::error::{Error, ErrorKind, Result};
use crate::provider::{Handle, Lookup, Output, RunState};

/// How many looks a state has to outlast.
const LOOKS: usize = 4;
/// The most characters of a remote's own words that may be shown, with the mark that there were more.
const MAX_REASON: usize = 201;

/// How long a body may stall where only what it says is of interest.
const STALL: Duration = Duration::from_millis(200);

/// P1.
pub async fn p1_a_handle_survives_json_and_a_new_client(fixture: &dyn Fixture) {
    let mut stage = needed(fixture, Scene::Succeeds).await;
    let handle = stage.accepted().await;
    assert_eq!(handle.provider, stage.provider.id(), "the handle names another provider");
    let json = serde_json::to_string(&handle).unwrap();
    let back: Handle = serde_json::from_str(&json).unwrap();
    assert_eq!(back, handle);
    // Another process, later: all it has is the JSON.
    stage.provider = stage.client();
    assert_eq!(stage.provider.id(), handle.provider, "a new client has another name");
    let output = only_output(stage.end(&back).await.state);
    stage.provider = stage.client();
    let bytes = read(stage.open(&handle, &output).await.expect("the output")).await.expect("its bytes");
    assert!(stage.output.as_ref().is_none_or(|expected| *expected == bytes), "the output has other bytes");
}

/// P2.
pub async fn p2_secrets_are_in_neither_handle_nor_debug_nor_errors(fixture: &dyn Fixture) {
    let mut secrets = 0;
    for scene in Scene::ALL {
        let Some(stage) = stage(fixture, "p2", scene).await else { continue };
        let mut said = Said::default();
        // As a matter of form: every call there is, whether the scene has a use for it or not.
        said.by(&stage.provider);
        let id = new_submission(stage.task.spec.kind());
        let submitted = stage.submit_or_give_up(&id, scene).await.and_then(|answer| said.unless_ok(answer));
        if let Some(handle) = submitted.or_else(|| stage.handle.clone()) {
            said.by(&handle);
            said.line(serde_json::to_string(&handle).unwrap());
            every_call(&stage, &handle, &mut said).await;
        }
        match said.unless_ok(stage.provider.find(&stage.submission(&id)).await) {
            Some(Lookup::Found(handle)) => said.line(serde_json::to_string(&handle).unwrap()),
            found => said.by(&found),
        }
        for secret in &stage.secrets {
            let line = said.0.iter().find(|line| line.contains(secret.as_str()));
            assert!(line.is_none(), "{scene:?}: a secret is told: {line:?}");
        }
        secrets += stage.secrets.len();
    }
    if secrets == 0 {
        println!("p2: no stage has a secret to keep");
    }
}

async fn every_call(stage: &Stage, handle: &Handle, said: &mut Said) {
    for _ in 0..LOOKS {
        let Some(snapshot) = said.unless_ok(stage.provider.poll(handle).await) else { continue };
        said.by(&snapshot);
        if let RunState::Succeeded(outputs) = &snapshot.state {
            for output in outputs {
                // What stalls has said by then what it has to say.
                drop(tokio::time::timeout(STALL, every_byte(stage, handle, output, said)).await);
            }
        }
    }
    said.unless_ok(stage.provider.cancel(handle).await);
}

async fn every_byte(stage: &Stage, handle: &Handle, output: &Output, said: &mut Said) {
    let Some(mut body) = said.unless_ok(stage.open(handle, output).await) else { return };
    said.by(&body);
    while let Some(chunk) = body.next().await {
        said.unless_ok(chunk);
    }
}

/// What a client said that may end in a log.
#[derive(Default)]
struct Said(Vec<String>);

impl Said {
    fn line(&mut self, line: String) {
        self.0.push(line);
    }

    fn by(&mut self, value: &dyn Debug) {
        self.line(format!("{value:?}"));
        self.line(format!("{value:#?}"));
    }

    fn unless_ok<T>(&mut self, answer: Result<T>) -> Option<T> {
        answer.map_err(|error| self.error(&error)).ok()
    }

    fn error(&mut self, error: &Error) {
        self.by(error);
        let mut cause: Option<&dyn StdError> = Some(error);
        while let Some(error) = cause {
            self.line(format!("{error} {error:?}"));
            cause = error.source();
        }
    }
}

/// P3.
pub async fn p3_terminal_stays_terminal(fixture: &dyn Fixture) {
    let stage = needed(fixture, Scene::Succeeds).await;
    let (handle, _) = stage.succeeded().await;
    assert_stays(&stage, &handle, Scene::Succeeds).await;
    if stage.capabilities().cancel {
        // Too late, as P9 says; and whatever it answers, the run did succeed.
        drop(stage.provider.cancel(&handle).await);
        assert_stays(&stage, &handle, Scene::Succeeds).await;
    }

    if let Some(stage) = super::stage::stage(fixture, "p3", Scene::Fails).await {
        let handle = stage.accepted().await;
        match stage.end(&handle).await.state {
            RunState::Failed(failure) => {
                let readable = failure.reason.chars().count() <= MAX_REASON && !failure.reason.contains('\n');
                assert!(readable, "a reason is one line of 200 characters: {:?}", failure.reason);
            }
            other => panic!("the run failed, but is {other:?}"),
        }
        assert_stays(&stage, &handle, Scene::Fails).await;
    }

    if stage.capabilities().cancel {
        let Some(stage) = super::stage::stage(fixture, "p3", Scene::CancelOk).await else { return };
        let handle = stage.accepted().await;
        drop(stage.provider.cancel(&handle).await);
        stage.end(&handle).await;
        assert_stays(&stage, &handle, Scene::CancelOk).await;
    }
}

async fn assert_stays(stage: &Stage, handle: &Handle, scene: Scene) {
    let (handle, end) = stage.ended(handle).await;
    let end = end.state;
    for look in 0..LOOKS {
        let state = stage.provider.poll(&handle).await.expect("a look at a run that ended").state;
        let same = match (&end, &state) {
            (RunState::Failed(was), RunState::Failed(is)) => was.kind == is.kind,
            _ => discriminant(&end) == discriminant(&state),
        };
        assert!(same, "{scene:?}: it was {end:?}, and is {state:?} {} looks later", look + 1);
    }
}

/// P4. That the wait has an end is the pipeline's part: a step has a deadline.
pub async fn p4_an_unknown_state_is_running(fixture: &dyn Fixture) {
    for scene in [Scene::Running, Scene::UnknownState] {
        let Some(stage) = stage(fixture, "p4", scene).await else { continue };
        let handle = stage.accepted().await;
        for _ in 0..LOOKS {
            let snapshot = stage.provider.poll(&handle).await.unwrap_or_else(|e| panic!("{scene:?}: {e:?}"));
            assert!(matches!(snapshot.state, RunState::Running), "{scene:?}: {:?}", snapshot.state);
            let sane = snapshot.progress.is_none_or(|p| (0.0..=1.0).contains(&p));
            assert!(sane, "{scene:?}: a progress of {:?}", snapshot.progress);
        }
    }
}

/// P7.
pub async fn p7_a_garbled_answer_to_a_read_is_protocol(fixture: &dyn Fixture) {
    let Some(stage) = stage(fixture, "p7", Scene::Garbled).await else { return };
    let handle = stage.accepted().await;
    for _ in 0..LOOKS {
        match stage.provider.poll(&handle).await {
            Ok(snapshot) => panic!("nobody can understand this, but it is {:?}", snapshot.state),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Protocol, "{error:?}"),
        }
    }
}

/// P9.
pub async fn p9_cancel_after_the_end_is_too_late(fixture: &dyn Fixture) {
    if !needed(fixture, Scene::Accepts).await.capabilities().cancel {
        println!("p9: it does not cancel (that this is Unsupported is for p10)");
        return;
    }
    let Some(stage) = stage(fixture, "p9", Scene::CancelLate).await else { return };
    // Without a look before it: only the remote knows that the run has ended.
    let unseen = stage.accepted().await;
    let (seen, _) = stage.succeeded().await;
    for (what, handle) in [("unseen", unseen), ("seen", seen)] {
        match stage.provider.cancel(&handle).await {
            Ok(()) => panic!("a run whose end was {what} is said to be canceled"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::TooLate, "{what}: {error:?}"),
        }
        only_output(stage.end(&handle).await.state);
    }
}

/// P11.
pub async fn p11_an_unknown_handle_is_not_found(fixture: &dyn Fixture) {
    if let Some(stage) = stage(fixture, "p11", Scene::UnknownHandle).await {
        let handle = stage.handle.clone().expect("the stage has a handle that the remote does not know");
        match stage.provider.poll(&handle).await {
            Ok(snapshot) => panic!("the remote does not know it, but it is {:?}", snapshot.state),
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}"),
        }
        if stage.capabilities().cancel {
            let error = stage.provider.cancel(&handle).await.expect_err("the remote does not know it");
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
        }
    }
    if let Some(stage) = stage(fixture, "p11", Scene::OutputExpired).await {
        let (handle, output) = stage.succeeded().await;
        let Err(error) = stage.open(&handle, &output).await else { panic!("the output is there no more") };
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    }
}

/// P14.
pub async fn p14_a_truncated_or_oversized_output_is_never_a_short_file(fixture: &dyn Fixture) {
    let stage = needed(fixture, Scene::Succeeds).await;
    let (handle, output) = stage.succeeded().await;
    let body = stage.open(&handle, &output).await.expect("the output");
    let length = body.length();
    let bytes = read(body).await.expect("its bytes");
    assert!(!bytes.is_empty(), "the output is empty");
    assert!(length.is_none_or(|l| l == bytes.len() as u64), "{} bytes, announced as {length:?}", bytes.len());
    assert!(stage.output.as_ref().is_none_or(|expected| *expected == bytes), "the output has other bytes");

    for scene in [Scene::TruncatedOutput, Scene::OversizedOutput] {
        let Some(stage) = super::stage::stage(fixture, "p14", scene).await else { continue };
        let (handle, output) = stage.succeeded().await;
        // An error at once is as good as one in the stream.
        let Ok(body) = stage.open(&handle, &output).await else { continue };
        let length = body.length();
        if let Ok(bytes) = read(body).await {
            // Or the announced length tells, which everybody who takes a body compares.
            let told = length.is_some_and(|length| length != bytes.len() as u64);
            assert!(told, "{scene:?}: {} bytes pass for the whole output", bytes.len());
        }
    }

    if let Some(stage) = super::stage::stage(fixture, "p14", Scene::StalledOutput).await {
        let (handle, output) = stage.succeeded().await;
        let first = async { stage.open(&handle, &output).await.expect("the output").next().await };
        let first = tokio::time::timeout(PATIENCE, first).await;
        let first = first.expect("nothing is handed on before the end: outputs stream");
        assert!(matches!(first, Some(Ok(chunk)) if !chunk.is_empty()), "the first bytes were to come");
    }
}
