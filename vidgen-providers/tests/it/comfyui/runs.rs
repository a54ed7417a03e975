//! What becomes of a run: looks, ends, outputs, cancels, lost answers, progress.

use std::time::Duration;

use serde_json::{Value, json};
use vidgen_core::{ErrorKind, Handle, Lookup, Provider, RunState, StepKind, SubmissionId, Usage};
use vidgen_providers::comfyui::Workflow;
use vidgen_providers::lab::{self, Answer, Class, Play};

use super::*;

fn still() -> Task {
    task("sdxl", image())
}

fn clip() -> Task {
    task("plain", video(None, 2))
}

async fn find(set: &Set, task: &Task, id: &SubmissionId) -> Lookup {
    set.provider.find(&submission(&set.provider, task, id, None)).await.unwrap()
}

#[tokio::test]
async fn a_workflow_of_which_a_part_is_wrong_is_taken_back() {
    for server in [lab::comfyui(), lab::comfyui().without_jobs()] {
        let set = set_with(server, |builder| builder).await;
        set.lab.then(None, Play::runs());
        let other = set.submit(&clip()).await.unwrap();
        let mut task = clip();
        // The still would be made, and the video silently not.
        task.extra.insert("1.batch_size".into(), json!(5000));
        let error = set.submit(&task).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.message().contains("node 1 (EmptyImage) batch_size: value_bigger_than_max"), "{error}");
        assert_eq!(set.lab.accepted().len(), 2, "the server took it");
        assert_eq!(set.lines(Class::Cancel), ["POST /queue"]);
        assert!(set.lab.runs()[1].ended(), "and it is out of the queue");
        // One that has begun by then is interrupted.
        set.provider.cancel(&other).await.unwrap();
        set.submit(&task).await.unwrap_err();
        assert_eq!(set.lines(Class::Cancel).last().unwrap(), "POST /interrupt");
        assert!(set.lab.runs().iter().all(|run| run.ended()));
        assert_eq!(set.server.bare_interrupts(), 0);
    }
}

#[tokio::test]
async fn a_lost_submission_is_found_under_its_own_name_wherever_it_is() {
    let set = set().await;
    let (task, id) = (clip(), submission_id(&clip()));
    assert_eq!(find(&set, &task, &id).await, Lookup::Absent);
    set.lab.then(None, Play::runs().with_answer(Answer::Resets));
    let error = set.provider.submit(&task, &options(&id)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    let Lookup::Found(handle) = find(&set, &task, &id).await else { panic!("it waits in the queue") };
    assert!(matches!(set.provider.poll(&handle).await.unwrap().state, RunState::Running));
    let Lookup::Found(again) = find(&set, &task, &id).await else { panic!("it runs") };
    set.lab.finish(&id);
    let Lookup::Found(ended) = find(&set, &task, &id).await else { panic!("it is in the history") };
    assert_eq!((&handle, &again), (&again, &ended));
    output(end(&set.provider, &ended).await);
    // Another one, of a workflow that is not there any more: nobody knows what it was to make.
    let other = crate::remote::task("gone", video(None, 2));
    let lookup = set.provider.find(&submission(&set.provider, &other, &id, None)).await.unwrap();
    assert_eq!(lookup, Lookup::Unknown);
}

#[tokio::test]
async fn after_a_restart_the_server_knows_nothing_and_it_may_be_sent_again() {
    let set = set().await;
    let (task, id) = (clip(), submission_id(&clip()));
    set.lab.always(Play::runs());
    let handle = set.provider.submit(&task, &options(&id)).await.unwrap();
    set.provider.poll(&handle).await.unwrap();
    set.lab.forget_runs();
    assert_eq!(set.provider.poll(&handle).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(set.provider.cancel(&handle).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(find(&set, &task, &id).await, Lookup::Absent);
    let again = set.provider.submit(&task, &options(&id)).await.unwrap();
    assert_eq!(handle, again, "it is the same run, once more");
}

#[tokio::test]
async fn the_server_knows_no_duplicates_which_is_why_nothing_is_sent_twice() {
    let set = set().await;
    let (task, id) = (clip(), submission_id(&clip()));
    let first = set.provider.submit(&task, &options(&id)).await.unwrap();
    let second = set.provider.submit(&task, &options(&id)).await.unwrap();
    assert_eq!(first, second);
    assert_eq!(set.lab.accepted().len(), 2, "and yet it would run twice");
    assert_eq!(set.provider.capabilities().resubmit, vidgen_core::Resubmit::Never);
}

#[tokio::test]
async fn a_run_on_its_way_from_the_queue_to_the_history_is_not_lost() {
    let set = set_with(lab::comfyui().with_history_lag(2), |builder| builder).await;
    let (task, id) = (clip(), submission_id(&clip()));
    set.lab.always(Play::succeeds().after_looks(0));
    let handle = set.provider.submit(&task, &options(&id)).await.unwrap();
    output(set.provider.poll(&handle).await.unwrap());
    // The same for a search.
    let other = submission_id(&task);
    set.provider.submit(&task, &options(&other)).await.unwrap();
    assert!(set.lab.finish(&other));
    assert!(matches!(find(&set, &task, &other).await, Lookup::Found(_)));
}

#[tokio::test]
async fn what_is_no_comfyui_does_not_lose_a_run() {
    let set = set().await;
    let handle = set.submit(&clip()).await.unwrap();
    let elsewhere = builder(&format!("{}/elsewhere", set.lab.base_url())).build().unwrap();
    assert_eq!(elsewhere.poll(&handle).await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn every_version_cancels_one_run_and_no_other() {
    for (server, jobs) in [(lab::comfyui(), true), (lab::comfyui().without_jobs(), false)] {
        let set = set_with(server, |builder| builder).await;
        set.lab.always(Play::runs());
        let runs = set.submit(&clip()).await.unwrap();
        let (waits, other) = (set.submit(&clip()).await.unwrap(), set.submit(&clip()).await.unwrap());
        let mut expected = Vec::new();
        for (handle, by) in [(&waits, "POST /queue"), (&runs, "POST /interrupt")] {
            set.provider.cancel(handle).await.unwrap();
            let state = set.provider.poll(handle).await.unwrap().state;
            assert!(matches!(state, RunState::Canceled), "{by}: {state:?}");
            assert_eq!(set.provider.cancel(handle).await.unwrap_err().kind(), ErrorKind::TooLate, "{by}");
            let line = format!("POST /api/jobs/{}/cancel", handle.remote_id);
            expected.push(line.clone());
            expected.extend((!jobs).then(|| by.to_owned()));
            expected.push(line);
        }
        assert_eq!(set.lines(Class::Cancel), expected);
        if !jobs {
            let bodies: Vec<Value> = set.requests(Class::Cancel).iter().map(lab::Seen::json).collect();
            assert_eq!(bodies[1], json!({ "delete": [waits.remote_id] }));
            assert_eq!(bodies[4], json!({ "prompt_id": runs.remote_id }));
        }
        assert_eq!(set.server.bare_interrupts(), 0);
        assert!(matches!(set.provider.poll(&other).await.unwrap().state, RunState::Running));
    }
}

#[tokio::test]
async fn a_run_that_somebody_else_interrupts_is_canceled() {
    let set = set().await;
    set.lab.always(Play::runs());
    let handle = set.submit(&clip()).await.unwrap();
    set.provider.poll(&handle).await.unwrap();
    set.lab.world().cancel(&handle.remote_id).unwrap();
    assert!(matches!(set.provider.poll(&handle).await.unwrap().state, RunState::Canceled));
}

#[tokio::test]
async fn a_failure_is_told_without_trace_paths_and_prompt() {
    let set = set().await;
    let cases = [
        (
            "Allocation on device 0 would exceed memory",
            "torch.OutOfMemoryError in SaveImage: Allocation on device 0 would exceed memory",
        ),
        ("No such file: /home/lab/ComfyUI/models/x.pt", "torch.OutOfMemoryError in SaveImage: No such file: …"),
        (
            "cannot encode 'a zebra-striped tram in the fog, ink'",
            "torch.OutOfMemoryError in SaveImage: cannot encode '…'",
        ),
        ("cannot encode 'zebra-striped tram in'", "torch.OutOfMemoryError in SaveImage"),
    ];
    for (says, told) in cases {
        set.lab.then(None, Play::fails_as("torch.OutOfMemoryError", says));
        let handle = set.submit(&still()).await.unwrap();
        let snapshot = end(&set.provider, &handle).await;
        let RunState::Failed(failure) = snapshot.state else { panic!("{:?}", snapshot.state) };
        assert_eq!((failure.reason.as_str(), failure.kind, failure.billed), (told, ErrorKind::Unavailable, false));
    }
}

#[tokio::test]
async fn the_output_is_of_the_wanted_kind_and_says_how_long_was_computed() {
    let set = set().await;
    set.lab.always(Play::succeeds().with_usage(Usage::Compute(Duration::from_millis(41_200))));
    for (task, extension) in [(still(), "png"), (clip(), "mp4")] {
        let id = submission_id(&task);
        let handle = set.provider.submit(&task, &options(&id)).await.unwrap();
        let snapshot = end(&set.provider, &handle).await;
        assert_eq!((snapshot.usage, snapshot.cost), (Some(Usage::Compute(Duration::from_millis(41_200))), None));
        let output = output(snapshot);
        assert_eq!(output.media_type.unwrap().extension(), extension);
        let view = format!("view?filename={id}_00001_.{extension}&subfolder=vidgen&type=output");
        assert_eq!(output.locator, view);
        let bytes = set.provider.open(&output).await.unwrap().read(usize::MAX).await.unwrap();
        assert_eq!(vidgen_core::MediaType::sniff(&bytes), output.media_type);
        let seen = set.requests(Class::Output).pop().unwrap();
        assert_eq!(seen.uri.to_string(), format!("/{view}"));
        assert_eq!(seen.header("range"), None);
    }
}

#[tokio::test]
async fn a_workflow_that_saves_nothing_of_the_kind_fails_for_good() {
    // Made a still, where a video was wanted.
    let json = json!({
        "5": { "class_type": "EmptyImage", "inputs": { "width": 64, "height": 64, "batch_size": 1, "color": 0 } },
        "6": { "class_type": "SaveImage", "inputs": { "images": ["5", 0], "filename_prefix": "x" } },
    });
    let lab = Lab::start(lab::comfyui()).await;
    let workflow = Workflow::video("still", json.to_string()).without_prompt();
    let provider = ComfyUi::builder(lab.base_url()).with_workflow(workflow).build().unwrap();
    let task = task("still", video(None, 2));
    let handle = provider.submit(&task, &options(&submission_id(&task))).await.unwrap();
    let RunState::Failed(failure) = end(&provider, &handle).await.state else { panic!("there is no video") };
    assert_eq!((failure.kind, failure.reason.as_str()), (ErrorKind::Unsupported, "the workflow saved no video"));
}

#[tokio::test]
async fn an_output_that_is_none_of_this_servers_is_not_asked_for() {
    let set = set().await;
    for locator in ["http://169.254.169.254/latest", "/view?filename=x", "history", ""] {
        let error = set.provider.open(&vidgen_core::Output::new(locator)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{locator}");
    }
    assert!(set.lab.requests().is_empty());
}

/// Looks until a run shows that progress.
async fn progress(set: &Set, handle: &Handle, wanted: impl Fn(Option<f32>) -> bool) -> Option<f32> {
    let looks = async {
        loop {
            let snapshot = set.provider.poll(handle).await.unwrap();
            assert!(matches!(snapshot.state, RunState::Running), "{:?}", snapshot.state);
            if wanted(snapshot.progress) {
                return snapshot.progress;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), looks).await.unwrap()
}

fn nodes(handle: &Handle, nodes: Value) -> Value {
    json!({ "prompt_id": handle.remote_id, "nodes": nodes })
}

#[tokio::test]
async fn progress_comes_by_the_socket_and_never_runs_backwards() {
    let set = set().await;
    set.lab.always(Play::runs());
    let handle = set.submit(&clip()).await.unwrap();
    until(|| !set.server.sockets().is_empty()).await;
    let sockets = set.server.sockets();
    let sent = set.requests(Class::Submit)[0].json();
    assert_eq!(json!(sockets), json!([sent["client_id"]]), "the run is told of to its own client");
    // The lab tells of itself when it is looked at: five nodes, each half done, and more.
    let first = progress(&set, &handle, |p| p.is_some_and(|p| p > 0.4)).await.unwrap();
    set.server
        .tell("progress_state", &nodes(&handle, json!({ "1": { "value": 0.0, "max": 1.0, "state": "running" } })));
    set.server.tell("surprise", &json!([1, 2]));
    let later = progress(&set, &handle, |p| p.is_some_and(|p| p > first)).await.unwrap();
    let finished = json!({ "value": 1.0, "max": 1.0, "state": "finished" });
    let all: Value = ["1", "3", "4", "5", "6", "7"].iter().map(|node| ((*node).to_owned(), finished.clone())).collect();
    set.server.tell("progress_state", &nodes(&handle, all));
    assert_eq!(progress(&set, &handle, |p| p.is_some_and(|p| p > later && p >= 1.0)).await, Some(1.0));
}

#[tokio::test]
async fn a_lost_socket_is_lost_progress_and_nothing_else() {
    let set = set().await;
    set.lab.always(Play::runs());
    let handle = set.submit(&clip()).await.unwrap();
    let id = SubmissionId::from_remote(set.lab.accepted()[0].submission.clone().unwrap().as_str());
    until(|| !set.server.sockets().is_empty()).await;
    progress(&set, &handle, |p| p.is_some()).await;
    let before = set.server.sockets();
    set.server.refuse_sockets(true);
    progress(&set, &handle, |p| p.is_none()).await;
    set.server.refuse_sockets(false);
    // It comes again by itself, under the same name.
    until(|| !set.server.sockets().is_empty()).await;
    assert_eq!(set.server.sockets(), before);
    progress(&set, &handle, |p| p.is_some()).await;
    set.server.drop_sockets();
    set.lab.finish(&id);
    output(set.provider.poll(&handle).await.unwrap());
}

#[tokio::test]
async fn without_a_socket_there_is_no_progress_and_no_error() {
    let set = set_with(lab::comfyui(), |builder| builder.without_progress()).await;
    let handle = set.submit(&clip()).await.unwrap();
    let sent = set.requests(Class::Submit)[0].json();
    assert_eq!(sent.get("client_id"), None);
    assert_eq!(set.provider.poll(&handle).await.unwrap().progress, None);
    output(end(&set.provider, &handle).await);
    assert!(set.lab.requests().iter().all(|seen| seen.path() != "/ws"));
}

#[tokio::test]
async fn a_provider_that_is_dropped_leaves_no_task_and_no_socket() {
    let metrics = tokio::runtime::Handle::current().metrics();
    let set = set().await;
    set.lab.always(Play::runs());
    let clone = set.provider.clone();
    let handle = set.submit(&clip()).await.unwrap();
    set.provider.poll(&handle).await.unwrap();
    until(|| set.server.sockets().len() == 1).await;
    let Set { lab, server, provider } = set;
    drop(provider);
    // A clone is the same provider, and listens on.
    server.tell("status", &json!({}));
    assert_eq!(server.sockets().len(), 1);
    drop(clone);
    until(|| server.sockets().is_empty()).await;
    drop(lab);
    until(|| metrics.num_alive_tasks() == 0).await;
}

#[tokio::test]
async fn kinds_are_told_apart_by_name_alone() {
    let set = set().await;
    assert_eq!(set.provider.capabilities().model(StepKind::Image, None).unwrap().id.as_str(), "sdxl");
    let error = set.submit(&task("sdxl", video(None, 2))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn a_half_accepted_workflow_that_cannot_be_taken_back_may_run() {
    let body = json!({ "prompt_id": "x", "number": 1, "node_errors": { "9": { "class_type": "SaveImage" } } });
    let url = crate::answers::answering(200, &[], &body.to_string()).await;
    let provider = ComfyUi::builder(url).with_workflow(sdxl()).without_progress().build().unwrap();
    let task = task("sdxl", image());
    let error = provider.submit(&task, &SubmitOptions::new(submission_id(&task))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
}
