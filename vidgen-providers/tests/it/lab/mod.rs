//! The lab itself: that each fault really fires, and that its ledger counts.

mod faults;
mod film;
mod remotes;

use std::time::Duration;

use reqwest::{Client, Response};
use serde_json::{Value, json};
use vidgen_core::SubmissionId;
use vidgen_providers::lab::{self, *};

#[expect(clippy::disallowed_methods, reason = "it calls nothing but the lab")]
pub(super) fn http() -> Client {
    Client::builder().no_proxy().build().unwrap()
}

/// Posts a prediction under a submission.
pub(super) async fn buy(http: &Client, lab: &Lab, submission: &str) -> reqwest::Result<Response> {
    let url = format!("{}/models/google/veo-3-fast/predictions", lab.base_url());
    let webhook = format!("http://127.0.0.1:1/callbacks/replicate?submission={submission}&signature=x");
    let body = json!({ "input": { "prompt": "a tram" }, "webhook": webhook, "webhook_events_filter": ["completed"] });
    http.post(url).bearer_auth(lab.key()).body(body.to_string()).send().await
}

pub(super) async fn look(http: &Client, lab: &Lab, id: &str) -> Value {
    let url = format!("{}/predictions/{id}", lab.base_url());
    let response = http.get(url).bearer_auth(lab.key()).send().await.unwrap();
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

#[tokio::test]
async fn a_run_is_bought_looked_at_and_fetched() {
    let lab = Lab::start(lab::replicate()).await;
    let http = http();
    lab.always(Play::succeeds().after_looks(2).when_told());
    let response = buy(&http, &lab, "sub_one").await.unwrap();
    assert_eq!(response.status(), 201);
    let run: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    let id = run["id"].as_str().unwrap();
    assert_eq!((run["status"].as_str(), id.len()), (Some("starting"), 26));
    assert_eq!(look(&http, &lab, id).await["status"], "processing");
    assert!(lab.finish(&SubmissionId::from_remote("sub_one")));
    let end = look(&http, &lab, id).await;
    assert_eq!(end["status"], "succeeded");
    let output = http.get(end["output"].as_str().unwrap()).send().await.unwrap();
    assert_eq!(output.headers()["content-type"], "video/mp4");
    let accepted = lab.accepted();
    assert_eq!((accepted.len(), accepted[0].submission.as_ref().unwrap().as_str()), (1, "sub_one"));
    assert_eq!((lab.posts(), lab.count(Class::Read), lab.count(Class::Output)), (1, 2, 1));
    assert!(!format!("{:?}", lab.requests()).contains(&lab.key()));
}

#[tokio::test]
async fn each_answer_to_a_submit_is_what_it_says() {
    let lab = Lab::start(lab::replicate()).await;
    let http = http();
    for answer in [Answer::Resets, Answer::BreaksOff, Answer::Garbles, Answer::Fails(502), Answer::Hangs] {
        let before = lab.accepted().len();
        lab.then(None, Play::succeeds().with_answer(answer.clone()));
        let got = async { buy(&http, &lab, "sub_x").await?.bytes().await };
        // What comes, comes; only silence is not waited for.
        let patience = Duration::from_millis(if answer == Answer::Hangs { 300 } else { 20_000 });
        let got = tokio::time::timeout(patience, got).await;
        match answer {
            Answer::Hangs => assert!(got.is_err()),
            Answer::Resets | Answer::BreaksOff => assert!(got.unwrap().is_err()),
            _ => assert!(serde_json::from_slice::<Value>(&got.unwrap().unwrap()).is_err()),
        }
        assert_eq!(lab.accepted().len(), before + 1, "{answer:?}");
    }
    lab.then(None, Play::rate_limits(Duration::from_secs(7)));
    let limited = buy(&http, &lab, "sub_x").await.unwrap();
    assert_eq!((limited.status().as_u16(), limited.headers()["retry-after"].to_str().unwrap()), (429, "7"));
    assert_eq!((lab.accepted().len(), lab.posts()), (5, 6));
}

#[tokio::test]
async fn an_outage_is_one_and_ends() {
    let lab = Lab::start(lab::replicate()).await;
    let http = http();
    buy(&http, &lab, "sub_1").await.unwrap();
    lab.outage(Outage::Refuses).await;
    assert!(buy(&http, &lab, "sub_2").await.unwrap_err().is_connect());
    assert_eq!(lab.posts(), 1);
    lab.outage(Outage::Unavailable).await;
    assert_eq!(buy(&http, &lab, "sub_2").await.unwrap().status(), 503);
    lab.outage(Outage::Drops).await;
    assert!(buy(&http, &lab, "sub_2").await.is_err());
    lab.outage(Outage::Hangs).await;
    assert!(tokio::time::timeout(Duration::from_millis(100), buy(&http, &lab, "sub_2")).await.is_err());
    lab.outage(None).await;
    assert_eq!(buy(&http, &lab, "sub_2").await.unwrap().status(), 201);
    assert_eq!(lab.accepted().len(), 2);
}

#[tokio::test]
async fn what_is_bought_twice_is_told() {
    let lab = Lab::start(lab::replicate()).await;
    let http = http();
    for submission in ["sub_a", "sub_b", "sub_c", "sub_b", "sub_b"] {
        buy(&http, &lab, submission).await.unwrap();
    }
    assert_eq!(lab.doubles(), [SubmissionId::from_remote("sub_b")]);
}

/// The server, ended when it is dropped.
struct Server(std::process::Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test]
async fn the_server_says_where_each_remote_is_and_refuses_what_it_does_not_know() {
    use std::io::BufRead;
    use std::process::{Command, Stdio};
    let server = || Command::new(env!("CARGO_BIN_EXE_provider-lab"));
    let mut child = server().args(["replicate", "fal", "--seconds", "0"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let server_runs = Server(child);
    let said: Vec<String> = lines.take(2).map(Result::unwrap).collect();
    let words: Vec<&str> = said[0].split(' ').collect();
    assert_eq!((words[0], words[2], said[1].starts_with("fal: http://127.0.0.1:")), ("replicate:", "key", true));
    let url = format!("{}/models/google/veo-3-fast/predictions", words[1]);
    let post = http().post(url).bearer_auth(words[3]).body(json!({ "input": { "prompt": "a tram" } }).to_string());
    let run: Value = serde_json::from_slice(&post.send().await.unwrap().bytes().await.unwrap()).unwrap();
    let get = http().get(run["urls"]["get"].as_str().unwrap()).bearer_auth(words[3]);
    let end: Value = serde_json::from_slice(&get.send().await.unwrap().bytes().await.unwrap()).unwrap();
    assert_eq!(end["status"], "succeeded");
    let taken = format!("replicate={}", words[1].trim_end_matches("/v1").rsplit(':').next().unwrap());
    for wrong in [&["nobody"][..], &[], &["replicate=x"], &["replicate", "--faults", "2"], &["--help"], &[&taken]] {
        let ended = server().args(wrong).output().unwrap();
        assert_eq!((ended.status.code(), ended.stdout.len()), (Some(2), 0), "{wrong:?}");
    }
    drop(server_runs);
}
