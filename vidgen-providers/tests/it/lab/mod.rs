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
        let got = tokio::time::timeout(Duration::from_millis(300), got).await;
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
