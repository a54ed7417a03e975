//! Faults by chance, outputs that go wrong, connections, callbacks.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, Uri};
use reqwest::Client;
use serde_json::{Value, json};
use vidgen_core::{Callback, SubmissionId};
use vidgen_providers::lab::film::Film;
use vidgen_providers::lab::{self, *};

use super::{buy, http, look};

/// What became of a call, as its caller sees it.
async fn fate(answer: reqwest::Result<reqwest::Response>) -> String {
    match answer {
        Err(_) => "lost".to_owned(),
        Ok(response) => {
            let status = response.status().as_u16();
            match response.bytes().await {
                Err(_) => "cut".to_owned(),
                Ok(body) if status < 400 && serde_json::from_slice::<Value>(&body).is_err() => "garbled".to_owned(),
                Ok(_) => status.to_string(),
            }
        }
    }
}

/// The fates of 60 submits, and how many were accepted.
async fn fates(rates: Rates, seed: u64) -> (Vec<String>, usize) {
    let lab = Lab::start(lab::replicate()).await;
    lab.faults(Faults { seed, submits: rates, ..Faults::default() });
    let http = http();
    let mut fates = Vec::new();
    for _ in 0..60 {
        fates.push(fate(buy(&http, &lab, "sub_x").await).await);
    }
    assert_eq!(lab.posts(), 60);
    (fates, lab.accepted().len())
}

#[tokio::test]
async fn faults_by_chance_repeat_and_say_what_they_are() {
    let (first, accepted) = fates(Rates::all(0.12), 1).await;
    assert_eq!(fates(Rates::all(0.12), 1).await, (first.clone(), accepted));
    assert_ne!(fates(Rates::all(0.12), 2).await.0, first);
    for fate in ["lost", "503", "502", "garbled", "201"] {
        assert!(first.iter().any(|f| f == fate), "no {fate} in {first:?}");
    }
    let only = |rates: Rates| async move {
        let (fates, accepted) = fates(rates, 3).await;
        assert!(fates.iter().all(|f| *f == fates[0]), "{fates:?}");
        (fates[0].clone(), accepted)
    };
    let none = Rates::default();
    // Before the effect nothing is bought; after it, everything.
    assert_eq!(only(Rates { drop_before: 1.0, ..none }).await, ("lost".to_owned(), 0));
    assert_eq!(only(Rates { unavailable_before: 1.0, ..none }).await, ("503".to_owned(), 0));
    assert_eq!(only(Rates { reset_after: 1.0, ..none }).await, ("lost".to_owned(), 60));
    assert_eq!(only(Rates { bad_gateway_after: 1.0, ..none }).await, ("502".to_owned(), 60));
    assert_eq!(only(Rates { garbled_after: 1.0, ..none }).await, ("garbled".to_owned(), 60));
    assert_eq!(only(none).await, ("201".to_owned(), 60));
}

#[tokio::test]
async fn faults_of_one_class_leave_the_others_alone() {
    let lab = Lab::start(lab::replicate()).await;
    let http = http();
    let always = Rates { reset_after: 1.0, ..Rates::default() };
    lab.faults(Faults { reads: always, ..Faults::default() });
    assert_eq!(buy(&http, &lab, "sub_x").await.unwrap().status(), 201);
    let url = |lab: &Lab| format!("{}/predictions/{}", lab.base_url(), lab.accepted()[0].remote_id);
    assert!(http.get(url(&lab)).bearer_auth(lab.key()).send().await.is_err());
    lab.faults(Faults { outputs: always, ..Faults::default() });
    let end = look(&http, &lab, &lab.accepted()[0].remote_id).await;
    let output = http.get(end["output"].as_str().unwrap()).send().await.unwrap();
    assert!(output.bytes().await.is_err());
    lab.faults(Faults::default());
    assert!(http.get(end["output"].as_str().unwrap()).send().await.unwrap().bytes().await.is_ok());
}

/// A run that has ended, and where its output lies.
async fn made(lab: &Lab, http: &Client) -> String {
    buy(http, lab, "sub_x").await.unwrap();
    let id = lab.accepted().last().unwrap().remote_id.clone();
    loop {
        if let Some(url) = look(http, lab, &id).await["output"].as_str() {
            return url.to_owned();
        }
    }
}

#[tokio::test]
async fn outputs_go_wrong_as_they_are_told() {
    let lab = Lab::start(lab::replicate()).await;
    let http = http();
    let whole = Film::new(vidgen_core::StepKind::Video).bytes().unwrap();
    let read = |url: String| {
        let http = http.clone();
        async move { fetch(&http, &url, Duration::from_secs(20)).await }
    };
    // What never ends is looked at for a moment.
    let glance = |url: String| {
        let http = http.clone();
        async move { fetch(&http, &url, Duration::from_millis(300)).await }
    };
    let play = |serving| Play::succeeds().after_looks(0).with_serving(serving);
    lab.then(None, play(Serving::Truncated));
    let (length, body, ended) = read(made(&lab, &http).await).await;
    assert_eq!((length, body.len(), ended), (Some(whole.len() as u64), whole.len() / 2, Err(())));
    lab.then(None, play(Serving::Stalled));
    let (length, body, ended) = glance(made(&lab, &http).await).await;
    assert_eq!((length, body.len(), ended), (Some(whole.len() as u64), whole.len() / 2, Ok(false)));
    lab.then(None, play(Serving::Oversized));
    let (length, body, ended) = read(made(&lab, &http).await).await;
    assert_eq!((length, body.len(), ended), (None, whole.len() + whole.len() / 2, Ok(true)));
    lab.then(None, play(Serving::Endless));
    let (length, body, ended) = glance(made(&lab, &http).await).await;
    assert!(
        length.is_none() && body.len() > 2 * whole.len() && ended == Ok(false),
        "{length:?} {} {ended:?}",
        body.len()
    );
    lab.then(None, play(Serving::Dripping(Duration::from_millis(5))));
    let (length, body, ended) = glance(made(&lab, &http).await).await;
    assert_eq!((length, ended), (Some(whole.len() as u64), Ok(false)));
    assert!((1..1000).contains(&body.len()), "{}", body.len());
    lab.then(None, play(Serving::Expired));
    assert_eq!(http.get(made(&lab, &http).await).send().await.unwrap().status(), 404);
    lab.then(None, play(Serving::Page));
    let page = http.get(made(&lab, &http).await).send().await.unwrap();
    assert_eq!((page.status().as_u16(), page.headers()["content-type"].to_str().unwrap()), (200, "text/html"));
    // Once, and then whole.
    lab.then(None, Play::succeeds().with_serving_for(1, Serving::Truncated));
    let url = made(&lab, &http).await;
    assert_eq!(read(url.clone()).await.2, Err(()));
    assert_eq!(read(url.clone()).await, (Some(whole.len() as u64), whole, Ok(true)));
    let guessed = url.replace("/outputs/", "/outputs/0");
    assert_eq!(http.get(guessed).send().await.unwrap().status(), 404);
}

/// What was announced, what came in time, and how it ended: whole, not yet, or broken off.
async fn fetch(http: &Client, url: &str, patience: Duration) -> (Option<u64>, Bytes, Result<bool, ()>) {
    let mut response = http.get(url).send().await.unwrap();
    let length = response.content_length();
    let mut body = Vec::new();
    let end = tokio::time::Instant::now() + patience;
    loop {
        match tokio::time::timeout_at(end, response.chunk()).await {
            Err(_) => return (length, body.into(), Ok(false)),
            Ok(Err(_)) => return (length, body.into(), Err(())),
            Ok(Ok(None)) => return (length, body.into(), Ok(true)),
            Ok(Ok(Some(chunk))) => body.extend_from_slice(&chunk),
        }
    }
}

#[tokio::test]
async fn looks_go_wrong_as_they_are_told() {
    let lab = Lab::start(lab::replicate()).await;
    let http = http();
    let looks = async |play: Play, times: usize| {
        // What comes, comes; only silence is not waited for.
        let silent = play.looks.0 == Looks::Hang;
        lab.then(None, play);
        buy(&http, &lab, "sub_x").await.unwrap();
        let url = format!("{}/predictions/{}", lab.base_url(), lab.accepted().last().unwrap().remote_id);
        let mut fates = Vec::new();
        for look in 0..times {
            let patience = Duration::from_millis(if silent && look < 2 { 100 } else { 20_000 });
            let call = async { fate(http.get(&url).bearer_auth(lab.key()).send().await).await };
            fates.push(tokio::time::timeout(patience, call).await.unwrap_or("hung".to_owned()));
        }
        fates
    };
    let play = |looks| Play::succeeds().with_looks_for(2, looks);
    assert_eq!(looks(play(Looks::Fail(502)), 3).await, ["502", "502", "200"]);
    assert_eq!(looks(play(Looks::Garbled), 3).await, ["garbled", "garbled", "200"]);
    assert_eq!(looks(play(Looks::RateLimited(Duration::from_secs(3))), 3).await, ["429", "429", "200"]);
    assert_eq!(looks(play(Looks::NotFound), 3).await, ["404", "404", "200"]);
    assert_eq!(looks(play(Looks::Hang), 3).await, ["hung", "hung", "200"]);
    lab.then(None, play(Looks::UnknownState));
    buy(&http, &lab, "sub_x").await.unwrap();
    let id = lab.accepted().last().unwrap().remote_id.clone();
    for expected in ["reticulating", "reticulating", "succeeded"] {
        assert_eq!(look(&http, &lab, &id).await["status"], expected);
    }
    // A list of what cannot be understood cannot be either.
    let list = format!("{}/predictions", lab.base_url());
    assert_eq!(fate(http.get(&list).bearer_auth(lab.key()).send().await).await, "200");
    lab.then(None, Play::succeeds().with_looks(Looks::Garbled));
    buy(&http, &lab, "sub_x").await.unwrap();
    assert_eq!(fate(http.get(&list).bearer_auth(lab.key()).send().await).await, "garbled");
}

#[tokio::test]
async fn a_remote_that_restarts_has_forgotten_and_is_still_owed() {
    let lab = Lab::start(lab::replicate()).await;
    let http = http();
    lab.capacity(2);
    lab.always(Play::runs());
    for status in [201, 201, 429] {
        assert_eq!(buy(&http, &lab, "sub_x").await.unwrap().status(), status);
    }
    assert_eq!(lab.most_live(), 2);
    lab.forget_runs();
    let id = lab.accepted()[0].remote_id.clone();
    assert_eq!(look(&http, &lab, &id).await["status"], 404);
    assert_eq!(lab.accepted().len(), 2);
}

#[tokio::test]
async fn connections_are_kept_and_outputs_may_have_an_origin_of_their_own() {
    let mut setup = Setup::default();
    setup.outputs_elsewhere = true;
    let lab = Lab::start_with(lab::replicate(), setup).await.unwrap();
    let http = http();
    assert_ne!(lab.addr(), lab.outputs_addr());
    let url = made(&lab, &http).await;
    assert!(url.starts_with(&format!("http://{}/outputs/", lab.outputs_addr())));
    assert_eq!(http.get(&url).send().await.unwrap().status(), 200);
    // One connection, many calls: hyper would say so by closing.
    let mut stream = tokio::net::TcpStream::connect(lab.addr()).await.unwrap();
    for _ in 0..3 {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let call = format!("GET /v1/account HTTP/1.1\r\nhost: lab\r\nauthorization: Bearer {}\r\n\r\n", lab.key());
        stream.write_all(call.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let n = stream.read(&mut answer).await.unwrap();
        assert!(answer[..n].starts_with(b"HTTP/1.1 200"));
    }
    let (addr, outputs) = (lab.addr(), lab.outputs_addr());
    drop(lab);
    for addr in [addr, outputs] {
        while tokio::net::TcpStream::connect(addr).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }
}

type Calls = Arc<Mutex<Vec<(String, HeaderMap, Bytes)>>>;

/// A receiver that answers these statuses, then 200; and what it took.
async fn receiver(statuses: impl IntoIterator<Item = u16>) -> (SocketAddr, Calls) {
    let calls = Calls::default();
    let (seen, statuses) = (calls.clone(), Mutex::new(statuses.into_iter().collect::<Vec<_>>().into_iter()));
    let statuses = Arc::new(statuses);
    let app = Router::new().fallback(move |uri: Uri, headers: HeaderMap, body: Bytes| {
        seen.lock().unwrap().push((uri.to_string(), headers, body));
        let status = statuses.lock().unwrap().next().unwrap_or(200);
        async move { StatusCode::from_u16(status).unwrap() }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    (addr, calls)
}

async fn buy_with_callback(http: &Client, lab: &Lab, to: SocketAddr, submission: &str) {
    let webhook = format!("http://{to}/callbacks/replicate?submission={submission}&signature=abc");
    let body = json!({ "input": { "prompt": "a tram" }, "webhook": webhook, "webhook_events_filter": ["completed"] });
    let url = format!("{}/models/google/veo-3-fast/predictions", lab.base_url());
    let status = http.post(url).bearer_auth(lab.key()).body(body.to_string()).send().await.unwrap().status();
    assert_eq!(status, 201);
}

async fn until(what: impl Fn() -> bool) {
    let end = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), end).await.unwrap();
}

#[tokio::test]
async fn a_run_that_nobody_looks_at_ends_and_is_called_back_until_it_is_taken() {
    let lab = Lab::start(lab::replicate()).await;
    let http = http();
    let (to, calls) = receiver([500, 404]).await;
    lab.always(Play::succeeds().after(Duration::from_millis(10)));
    buy_with_callback(&http, &lab, to, "sub_a").await;
    until(|| lab.deliveries().len() == 3).await;
    let statuses: Vec<_> = lab.deliveries().iter().map(|d| d.status).collect();
    assert_eq!(statuses, [Some(500), Some(404), Some(200)]);
    let calls = calls.lock().unwrap().clone();
    assert_eq!(calls[0].0, "/callbacks/replicate?submission=sub_a&signature=abc");
    // A resend is of the same id, and is what the test can have without a receiver.
    assert!(calls.iter().all(|call| call.1["webhook-id"] == calls[0].1["webhook-id"] && call.2 == calls[0].2));
    let again = lab.callback_of(&SubmissionId::from_remote("sub_a")).unwrap();
    assert_eq!((again.header("webhook-id"), &again.body), (calls[0].1["webhook-id"].to_str().ok(), &calls[0].2));
    // It is not told twice by being looked at.
    look(&http, &lab, &lab.accepted()[0].remote_id).await;
    assert_eq!(lab.resend_callbacks().await[0].status, Some(200));
    assert_eq!(lab.deliveries().len(), 4);
}

#[tokio::test]
async fn callbacks_are_held_sent_in_another_order_and_never_leave_this_machine() {
    let lab = Lab::start(lab::replicate()).await;
    let http = http();
    let (to, calls) = receiver([]).await;
    lab.always(Play::runs());
    lab.hold_callbacks(true);
    for submission in ["sub_a", "sub_b"] {
        buy_with_callback(&http, &lab, to, submission).await;
        assert!(lab.finish(&SubmissionId::from_remote(submission)));
    }
    assert!(calls.lock().unwrap().is_empty());
    lab.resend_callbacks().await;
    let order: Vec<_> = calls.lock().unwrap().iter().map(|call| call.0.contains("sub_b")).collect();
    assert_eq!(order, [true, false]);
    lab.hold_callbacks(false);
    until(|| lab.deliveries().len() == 4).await;

    // A cancel is an end, too.
    buy_with_callback(&http, &lab, to, "sub_c").await;
    let id = lab.accepted()[2].remote_id.clone();
    let cancel = http.post(format!("{}/predictions/{id}/cancel", lab.base_url())).bearer_auth(lab.key());
    assert_eq!(cancel.send().await.unwrap().status(), 200);
    until(|| lab.deliveries().len() == 5).await;
    let last: Value = serde_json::from_slice(&calls.lock().unwrap().last().unwrap().2).unwrap();
    assert_eq!(last["status"], "canceled");

    let url = format!("{}/models/google/veo-3-fast/predictions", lab.base_url());
    let body = json!({ "input": { "prompt": "x" }, "webhook": "https://host.example/callbacks/sub_d" });
    http.post(url).bearer_auth(lab.key()).body(body.to_string()).send().await.unwrap();
    lab.finish(&SubmissionId::from_remote("sub_d"));
    until(|| lab.deliveries().len() > 5).await;
    assert!(lab.deliveries()[5..].iter().all(|delivery| delivery.status.is_none()));
    let told: Option<Callback> = lab.callback_of(&SubmissionId::from_remote("sub_d"));
    assert!(told.is_some());
}

#[tokio::test]
async fn cancels_stop_are_too_late_or_are_not_heeded() {
    let lab = Lab::start(lab::replicate()).await;
    let http = http();
    let play = async |play: Play| {
        lab.then(None, play);
        buy(&http, &lab, "sub_x").await.unwrap();
        let id = lab.accepted().last().unwrap().remote_id.clone();
        let cancel = http.post(format!("{}/predictions/{id}/cancel", lab.base_url())).bearer_auth(lab.key());
        let bytes = cancel.send().await.unwrap().bytes().await.unwrap();
        let said: Value = serde_json::from_slice(&bytes).unwrap();
        lab.finish(&SubmissionId::from_remote("sub_x"));
        (said["status"].as_str().unwrap().to_owned(), look(&http, &lab, &id).await["status"].clone())
    };
    assert_eq!(play(Play::runs()).await, ("canceled".to_owned(), json!("canceled")));
    assert_eq!(play(Play::succeeds().after_looks(0)).await, ("succeeded".to_owned(), json!("succeeded")));
    lab.forget_runs();
    let goes_on = Play::runs().with_on_cancel(OnCancel::GoesOn);
    assert_eq!(play(goes_on).await, ("starting".to_owned(), json!("succeeded")));
    assert_eq!(lab.cancels().len(), 3);
}

#[tokio::test]
async fn a_reset_is_one_and_a_drop_is_an_end() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let lab = Lab::start(lab::replicate()).await;
    let body = r#"{"input":{"prompt":"a tram"}}"#;
    let call = format!(
        "POST /v1/models/google/veo-3/predictions HTTP/1.1\r\nhost: lab\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n{body}",
        lab.key(),
        body.len()
    );
    let end = async |call: &str| {
        let mut stream = tokio::net::TcpStream::connect(lab.addr()).await.unwrap();
        stream.write_all(call.as_bytes()).await.unwrap();
        stream.read(&mut [0; 64]).await
    };
    lab.then(None, Play::succeeds().with_answer(Answer::Resets));
    assert_eq!(end(&call).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    lab.faults(Faults { submits: Rates { drop_before: 1.0, ..Rates::default() }, ..Faults::default() });
    assert_eq!(end(&call).await.unwrap(), 0);
    assert_eq!((lab.accepted().len(), lab.posts()), (1, 2));
}

#[tokio::test]
async fn an_answer_that_is_late_or_waited_for_comes_when_its_time_has_come() {
    let lab = Lab::start(lab::replicate()).await;
    let http = http();
    lab.then(None, Play::succeeds().with_answer(Answer::Late(Duration::from_millis(80))));
    let begin = std::time::Instant::now();
    assert_eq!(buy(&http, &lab, "sub_late").await.unwrap().status(), 201);
    assert!(begin.elapsed() >= Duration::from_millis(80));
    // For remotes that answer with the output itself.
    for (play, least) in [
        (Play::succeeds().after(Duration::from_millis(60)), 60),
        (Play::succeeds().after_looks(1), 100),
        (Play::succeeds().after_looks(0), 0),
    ] {
        lab.then(None, play);
        let begin = std::time::Instant::now();
        buy(&http, &lab, "sub_x").await.unwrap();
        let run = lab.world().wait(&lab.accepted().last().unwrap().remote_id).await.unwrap();
        assert!(run.ended() && begin.elapsed() >= Duration::from_millis(least), "{:?}", begin.elapsed());
    }
    lab.then(None, Play::runs());
    buy(&http, &lab, "sub_told").await.unwrap();
    let id = lab.accepted().last().unwrap().remote_id.clone();
    let world = lab.world().clone();
    let waits = tokio::spawn(async move { world.wait(&id).await.is_ok() });
    tokio::task::yield_now().await;
    assert!(!waits.is_finished());
    lab.finish_all();
    assert!(waits.await.unwrap());
}
