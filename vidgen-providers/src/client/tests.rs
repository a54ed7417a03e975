//! What the clients do and do not do, seen from sockets on loopback.

use std::error::Error as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;

use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use vidgen_core::net::DownloadLimits;

use super::*;

const KEY: &str = "canary-key";
const PROMPT: &str = "a canary in a coal mine";

/// A server that answers from a list, in turn; the last answer is for all that come after.
#[derive(Clone)]
struct Server {
    socket: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    replies: Vec<Reply>,
    connections: usize,
    requests: Vec<String>,
}

#[derive(Clone)]
enum Reply {
    /// Then the connection is kept, if the client keeps it.
    Text(String),
    /// Then the connection is closed.
    Cut(String),
    Hang,
}

fn ok(body: &str) -> Reply {
    answer(200, "", body)
}

fn answer(status: u16, headers: &str, body: &str) -> Reply {
    let length = body.len();
    Reply::Text(format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\n\r\n{body}"))
}

impl Server {
    async fn start(replies: impl IntoIterator<Item = Reply>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let socket = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { replies: replies.into_iter().collect(), ..State::default() }));
        let server = Self { socket, state };
        let running = server.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                running.state.lock().unwrap().connections += 1;
                tokio::spawn(running.clone().serve(stream));
            }
        });
        server
    }

    async fn serve(self, mut stream: TcpStream) {
        while let Some(request) = read(&mut stream).await {
            let reply = {
                let mut state = self.state.lock().unwrap();
                state.requests.push(request);
                if state.replies.len() > 1 { state.replies.remove(0) } else { state.replies[0].clone() }
            };
            match reply {
                Reply::Text(text) => drop(stream.write_all(text.as_bytes()).await),
                Reply::Cut(text) => {
                    drop(stream.write_all(text.as_bytes()).await);
                    return;
                }
                Reply::Hang => std::future::pending().await,
            }
        }
    }

    fn base(&self) -> String {
        format!("http://{}/v1", self.socket)
    }

    fn connections(&self) -> usize {
        self.state.lock().unwrap().connections
    }

    fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }

    fn client(&self) -> Client {
        builder(&self.base()).build().unwrap()
    }
}

/// One whole request: headers, and as much body as they announce.
async fn read(stream: &mut TcpStream) -> Option<String> {
    let mut request = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.to_lowercase();
            let length = length.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return Some(text);
            }
        }
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return None;
        }
    }
}

fn builder(base: &str) -> ClientBuilder {
    ClientBuilder::new("acme", base, Auth::Bearer)
        .with_api_key(KEY.into())
        .with_submit_timeout(Duration::from_millis(300))
        .with_read_timeout(Duration::from_millis(300))
}

fn buy() -> Call {
    Call::post(["runs"]).with_json(json!({ "prompt": PROMPT }))
}

fn look() -> Call {
    Call::get(["runs", "1"])
}

async fn closed() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap()
}

/// Everything an error says, its causes, too.
fn said(error: &Error) -> String {
    let mut text = format!("{error} {error:?} {error:#?}");
    let mut cause = error.source();
    while let Some(inner) = cause {
        text += &format!(" {inner} {inner:?}");
        cause = inner.source();
    }
    text
}

#[tokio::test]
async fn a_submit_is_one_request_whatever_comes_back() {
    let cut = |text: &str| Reply::Cut(text.to_owned());
    for (reply, kind) in [
        (answer(400, "", "{}"), ErrorKind::Invalid),
        (answer(401, "", "{}"), ErrorKind::Unauthorized),
        (answer(402, "", "{}"), ErrorKind::OverBudget),
        (answer(403, "", "{}"), ErrorKind::Unauthorized),
        (answer(404, "", "{}"), ErrorKind::NotFound),
        (answer(413, "", "{}"), ErrorKind::Invalid),
        (answer(422, "", "{}"), ErrorKind::Invalid),
        (answer(429, "Retry-After: 7\r\n", "{}"), ErrorKind::RateLimited),
        (answer(408, "", "{}"), ErrorKind::OutcomeUnknown),
        (answer(409, "", "{}"), ErrorKind::OutcomeUnknown),
        (answer(500, "", "{}"), ErrorKind::OutcomeUnknown),
        (answer(503, "Retry-After: 7\r\n", "{}"), ErrorKind::OutcomeUnknown),
        (answer(307, "Location: /v1/elsewhere\r\n", ""), ErrorKind::OutcomeUnknown),
        (ok("nonsense"), ErrorKind::OutcomeUnknown),
        (ok("{}"), ErrorKind::OutcomeUnknown),
        (cut(""), ErrorKind::OutcomeUnknown),
        (cut("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"id\":"), ErrorKind::OutcomeUnknown),
        (Reply::Hang, ErrorKind::OutcomeUnknown),
    ] {
        let shown = match &reply {
            Reply::Text(text) | Reply::Cut(text) => text.clone(),
            Reply::Hang => "a hang".to_owned(),
        };
        let server = Server::start([reply]).await;
        #[derive(Debug, serde::Deserialize)]
        struct Accepted {
            #[allow(dead_code)]
            id: String,
        }
        let error = server.client().submit::<Accepted>(buy()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{shown}");
        assert_eq!((server.connections(), server.requests().len()), (1, 1), "{shown}");
        assert_eq!(error.retry_after(), shown.contains("Retry-After").then(|| Duration::from_secs(7)), "{shown}");
        assert!(!said(&error).contains("canary") && !said(&error).contains("127.0.0.1"), "{}", said(&error));
    }
}

#[tokio::test]
async fn what_cannot_be_connected_to_was_not_sent() {
    let client = builder(&format!("http://{}", closed().await)).build().unwrap();
    let kind = |result: Result<Answer<Value>>| result.unwrap_err().kind();
    assert_eq!(kind(client.submit(buy()).await), ErrorKind::NotSent);
    assert_eq!(kind(client.prepare(buy()).await), ErrorKind::NotSent);
    assert_eq!(kind(client.ask(look()).await), ErrorKind::Unavailable);
    // What speaks no TLS has not been told anything yet.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let client = builder(&format!("https://{}", listener.local_addr().unwrap())).build().unwrap();
    let (answer, ()) = tokio::join!(client.submit::<Value>(buy()), async {
        let mut stream = listener.accept().await.unwrap().0;
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    });
    assert_eq!(kind(answer), ErrorKind::NotSent);
}

#[tokio::test]
async fn a_submit_keeps_no_connection_and_a_look_does() {
    let server = Server::start([ok("{}")]).await;
    let client = server.client();
    client.submit::<Value>(buy()).await.unwrap();
    client.submit::<Value>(buy()).await.unwrap();
    assert_eq!(server.connections(), 2, "a connection of a submit was kept");
    for _ in 0..3 {
        client.ask::<Value>(look()).await.unwrap();
    }
    assert_eq!(server.connections(), 3, "no connection of a look was kept");
}

#[tokio::test]
async fn a_request_says_no_more_than_it_has_to() {
    let server = Server::start([ok("{}")]).await;
    let client = builder(&server.base()).with_header("x-version", "7").build().unwrap();
    client.submit::<Value>(buy().with_header("prefer", "x")).await.unwrap();
    client.ask::<Value>(look().with_query("q", "a b&c")).await.unwrap();
    let requests = server.requests();
    assert!(requests[0].starts_with("POST /v1/runs HTTP/1.1\r\n"), "{}", requests[0]);
    assert!(requests[0].ends_with(&format!("\r\n\r\n{{\"prompt\":\"{PROMPT}\"}}")), "{}", requests[0]);
    assert!(requests[0].contains("prefer: x\r\n") && requests[0].contains("x-version: 7\r\n"), "{}", requests[0]);
    assert!(requests[1].starts_with("GET /v1/runs/1?q=a+b%26c HTTP/1.1\r\n"), "{}", requests[1]);
    for request in requests.iter().map(|request| request.to_lowercase()) {
        assert_eq!(request.matches(&format!("authorization: bearer {KEY}\r\n")).count(), 1, "{request}");
        for header in ["accept-encoding", "referer", "cookie", "proxy-", "transfer-encoding"] {
            assert!(!request.contains(header), "{header} in {request}");
        }
    }
}

#[tokio::test]
async fn a_look_is_asked_again_after_no_answer_and_after_no_other() {
    for (replies, asked, kind) in [
        (vec![answer(502, "", ""), Reply::Cut(String::new()), ok("{}")], 3, None),
        (vec![answer(500, "", ""), ok("{}")], 2, None),
        (vec![Reply::Hang, ok("{}")], 2, None),
        (vec![answer(500, "", "")], 3, Some(ErrorKind::Unavailable)),
        // It says when to come back.
        (vec![answer(503, "Retry-After: 7\r\n", "")], 1, Some(ErrorKind::Unavailable)),
        (vec![answer(429, "Retry-After: 7\r\n", "")], 1, Some(ErrorKind::RateLimited)),
        (vec![answer(401, "", "")], 1, Some(ErrorKind::Unauthorized)),
        (vec![answer(403, "", "")], 1, Some(ErrorKind::Unauthorized)),
        (vec![answer(404, "", "")], 1, Some(ErrorKind::NotFound)),
        (vec![answer(410, "", "")], 1, Some(ErrorKind::NotFound)),
        (vec![answer(422, "", "")], 1, Some(ErrorKind::Protocol)),
        (vec![answer(301, "Location: /\r\n", "")], 1, Some(ErrorKind::Protocol)),
        (vec![ok("nonsense")], 1, Some(ErrorKind::Protocol)),
    ] {
        let server = Server::start(replies).await;
        let looked = server.client().ask::<Value>(look()).await.map(drop).map_err(|e| e.kind());
        assert_eq!(looked, kind.map_or(Ok(()), Err));
        assert_eq!(server.requests().len(), asked, "{kind:?}");
    }
}

#[tokio::test]
async fn what_comes_before_a_submit_says_that_nothing_was_bought() {
    for (reply, kind) in [
        (answer(422, "", "{}"), ErrorKind::Invalid),
        (answer(401, "", "{}"), ErrorKind::Unauthorized),
        (answer(429, "", "{}"), ErrorKind::RateLimited),
        (answer(500, "", "{}"), ErrorKind::Unavailable),
        (answer(302, "", "{}"), ErrorKind::Unavailable),
        (ok("nonsense"), ErrorKind::Unavailable),
        (Reply::Cut(String::new()), ErrorKind::Unavailable),
    ] {
        let server = Server::start([reply]).await;
        let error = server.client().prepare::<Value>(buy().with_timeout(Duration::from_millis(300))).await.unwrap_err();
        assert_eq!(error.kind(), kind);
    }
}

#[tokio::test]
async fn an_answer_that_replays_a_models_is_no_error() {
    let server = Server::start([answer(422, "", "{\"detail\":\"x\"}")]).await;
    let refusal = server.client().ask_any(look()).await.unwrap().unwrap_err();
    assert_eq!((refusal.status, refusal.reason()), (422, Some("x")));
    let server = Server::start([answer(401, "", "{}")]).await;
    assert_eq!(server.client().ask_any(look()).await.unwrap_err().kind(), ErrorKind::Unauthorized);
    let server = Server::start([answer(500, "", "oops"), ok("{}")]).await;
    let refusal = server.client().ask_any(look()).await.unwrap().unwrap_err();
    assert_eq!((refusal.status, &refusal.body), (500, &json!("oops")));
}

#[tokio::test]
async fn a_provider_judges_its_own_refusals() {
    fn judge(refusal: &Refusal) -> Verdict {
        match refusal.text(&["code"]) {
            Some("broke") => Verdict::of(ErrorKind::OverBudget).with_reason("the account is empty"),
            Some("later") => Verdict::of(ErrorKind::RateLimited).with_wait(Some(Duration::from_secs(3))),
            Some("quiet") => Verdict::default().mute(),
            _ => Verdict::default(),
        }
    }
    let refused = async |body: &str| {
        let server = Server::start([answer(403, "", body)]).await;
        let client = builder(&server.base()).with_judge(judge).build().unwrap();
        client.submit::<Value>(buy()).await.unwrap_err()
    };
    let broke = refused("{\"code\":\"broke\"}").await;
    assert_eq!(
        (broke.kind(), broke.message()),
        (ErrorKind::OverBudget, "the remote answered 403: the account is empty")
    );
    assert_eq!(refused("{\"code\":\"later\"}").await.retry_after(), Some(Duration::from_secs(3)));
    let quiet = refused("{\"code\":\"quiet\",\"message\":\"words\"}").await;
    assert_eq!((quiet.kind(), quiet.message()), (ErrorKind::Unauthorized, "the remote answered 403"));
}

#[tokio::test]
async fn what_the_remote_repeats_of_ours_is_not_repeated() {
    let body = json!({ "detail": format!("prompt: '{PROMPT}' has a canary in a coal…") }).to_string();
    let server = Server::start([answer(422, "", &body)]).await;
    let error = server.client().submit::<Value>(buy()).await.unwrap_err();
    assert!(!said(&error).contains("canary"), "{}", said(&error));
    let body = json!({ "detail": format!("'{PROMPT}' was refused") }).to_string();
    let server = Server::start([answer(422, "", &body)]).await;
    let error = server.client().submit::<Value>(buy()).await.unwrap_err();
    assert_eq!(error.message(), "the remote answered 422: '…' was refused");
    let form = Call::post(["runs"]).with_form([Part::text("prompt", PROMPT)]);
    let error = server.client().submit::<Value>(form).await.unwrap_err();
    assert!(!said(&error).contains("canary"), "{}", said(&error));
}

#[tokio::test]
async fn no_id_leads_out_of_its_segment() {
    let server = Server::start([ok("{}")]).await;
    let client = server.client();
    for (id, segment) in [
        ("video_1", "video_1"),
        ("dmlkZW8=/+", "dmlkZW8%3D%2F%2B"),
        ("../../admin", "..%2F..%2Fadmin"),
        ("%2e%2e", "%252e%252e"),
        ("a?b#c", "a%3Fb%23c"),
        ("a\r\nb\tc", "a%0D%0Ab%09c"),
        ("..\\x", "..%5Cx"),
        ("ü", "%C3%BC"),
        ("m:predict", "m:predict"),
        ("...", "..."),
    ] {
        client.ask::<Value>(Call::get(["runs", id, "x"])).await.unwrap();
        let request = server.requests().pop().unwrap();
        assert!(request.starts_with(&format!("GET /v1/runs/{segment}/x HTTP/1.1\r\n")), "{id}: {request}");
    }
    let before = server.requests().len();
    for id in ["", ".", ".."] {
        let error = client.ask::<Value>(Call::get(["runs", id, "x"])).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{id:?}");
    }
    assert_eq!(server.requests().len(), before);
}

#[tokio::test]
async fn a_link_is_followed_to_the_api_only() {
    let server = Server::start([ok("{}")]).await;
    let other = Server::start([ok("{}")]).await;
    let client = server.client();
    client.ask::<Value>(Call::link(format!("http://{}/v2/x?cursor=1", server.socket))).await.unwrap();
    assert!(server.requests()[0].starts_with("GET /v2/x?cursor=1 HTTP/1.1\r\n"));
    let port = server.socket.port();
    for link in [
        format!("http://{}/x", other.socket),
        format!("https://{}/x", server.socket),
        format!("http://localhost:{port}/x"),
        format!("http://user@{}/x", server.socket),
        format!("//{}/x", server.socket),
        "/x".to_owned(),
        "x".to_owned(),
        "file:///etc/passwd".to_owned(),
    ] {
        let error = client.ask::<Value>(Call::link(&link)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{link}");
    }
    assert_eq!((server.requests().len(), other.connections()), (1, 0));
}

#[tokio::test]
async fn an_output_of_the_apis_own_is_fetched_with_the_key_and_any_other_without() {
    let other = Server::start([ok("the file")]).await;
    let hops = [
        answer(302, "Location: /v1/moved\r\n", ""),
        answer(302, &format!("Location: http://{}/cdn\r\n", other.socket), ""),
    ];
    let server = Server::start(hops).await;
    let client = builder(&server.base()).with_allowed(other.socket).build().unwrap();
    let url = format!("{}/files/1", server.base());
    let body = client.open(&url, DownloadLimits::IMAGE).await.unwrap();
    assert_eq!(body.read(100).await.unwrap(), Bytes::from_static(b"the file"));
    assert!(server.requests().iter().all(|request| request.contains(KEY)));
    assert_eq!(server.requests().len(), 2);
    assert!(!other.requests()[0].contains("canary"), "the key went elsewhere: {}", other.requests()[0]);
    let url = format!("http://{}/direct", other.socket);
    client.open(&url, DownloadLimits::IMAGE).await.unwrap();
    assert!(!other.requests()[1].contains("canary"));
    // A client that was not told of that address does not go there.
    let strict = server.client();
    for url in [url.as_str(), "https://10.0.0.1/x", "https://localhost/x", "http://169.254.169.254/", "file:///x", "x"]
    {
        assert_eq!(strict.open(url, DownloadLimits::IMAGE).await.unwrap_err().kind(), ErrorKind::Protocol, "{url}");
    }
    assert_eq!(other.connections(), 2);
}

#[tokio::test]
async fn an_output_is_whole_or_an_error() {
    let limits = DownloadLimits::IMAGE.with_bytes(10);
    let open = async |reply: Reply| {
        let server = Server::start([reply]).await;
        match server.client().open(&format!("{}/x", server.base()), limits).await {
            Ok(body) => body.read(100).await.map_err(|e| e.kind()),
            Err(error) => Err(error.kind()),
        }
    };
    assert_eq!(open(ok("0123456789")).await, Ok(Bytes::from_static(b"0123456789")));
    assert_eq!(open(ok("0123456789x")).await, Err(ErrorKind::Media));
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n01234567\r\n8\r\n01234567\r\n0\r\n\r\n";
    assert_eq!(open(Reply::Text(chunked.into())).await, Err(ErrorKind::Media));
    let cut = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n0123";
    assert_eq!(open(Reply::Cut(cut.into())).await, Err(ErrorKind::Unavailable));
    for (status, kind) in [
        (404, ErrorKind::NotFound),
        (410, ErrorKind::NotFound),
        (401, ErrorKind::Unauthorized),
        (500, ErrorKind::Unavailable),
        (418, ErrorKind::Protocol),
    ] {
        assert_eq!(open(answer(status, "", "")).await, Err(kind), "{status}");
    }
    assert_eq!(open(answer(302, "Location: /v1/x\r\n", "")).await, Err(ErrorKind::Protocol));
}

#[tokio::test]
async fn a_data_url_is_a_file() {
    let client = builder("https://api.example").build().unwrap();
    let url = data_url("image/png", b"\x89PNG");
    assert_eq!(url, "data:image/png;base64,iVBORw==");
    let body = client.open(&url, DownloadLimits::IMAGE).await.unwrap();
    assert_eq!(body.read(9).await.unwrap(), Bytes::from_static(b"\x89PNG"));
    let body = client.open("data:,a%20b", DownloadLimits::IMAGE).await.unwrap();
    assert_eq!(body.read(9).await.unwrap(), Bytes::from_static(b"a b"));
    for (bad, kind) in [("data:image/png;base64,?", ErrorKind::Protocol), ("data:x", ErrorKind::Protocol)] {
        assert_eq!(client.open(bad, DownloadLimits::IMAGE).await.unwrap_err().kind(), kind, "{bad}");
    }
    let small = DownloadLimits::IMAGE.with_bytes(3);
    assert_eq!(client.open(&url, small).await.unwrap_err().kind(), ErrorKind::Media);
    assert_eq!(client.open_without_key(&url, small).await.unwrap_err().kind(), ErrorKind::Media);
}

#[tokio::test]
async fn bytes_that_break_off_leave_the_outcome_unknown() {
    let cut = "HTTP/1.1 200 OK\r\nX-Cost: 3\r\nContent-Length: 9\r\n\r\n0123";
    let server = Server::start([Reply::Cut(cut.into())]).await;
    let answer = server.client().submit_for_bytes(buy()).await.unwrap();
    assert_eq!((answer.status, answer.header("x-cost"), answer.body.length()), (200, Some("3"), Some(9)));
    let chunks: Vec<_> = answer.body.collect().await;
    assert_eq!(chunks.last().unwrap().as_ref().unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn an_upload_goes_without_the_key() {
    let part = || Part::file("file", "a.png", "image/png", Bytes::from_static(b"bytes"));
    let server = Server::start([ok("{}")]).await;
    let other = Server::start([ok("{\"url\":\"u\"}")]).await;
    let client = builder(&server.base()).with_allowed(other.socket).build().unwrap();
    for target in [&server, &other] {
        let call = Call::link(format!("http://{}/put?signature=s", target.socket)).with_method(reqwest::Method::POST);
        let answer = client.upload(call.with_form([Part::text("key", "k"), part()])).await.unwrap();
        assert!(answer.body.starts_with(b"{"));
        let request = target.requests().pop().unwrap();
        assert!(request.starts_with("POST /put?signature=s HTTP/1.1\r\n"), "{request}");
        assert!(!request.contains("canary") && !request.contains("chunked"), "{request}");
        for piece in [
            "Content-Disposition: form-data; name=\"key\"\r\n\r\nk\r\n",
            "Content-Disposition: form-data; name=\"file\"; filename=\"a.png\"\r\nContent-Type: image/png\r\n\r\nbytes\r\n",
        ] {
            assert!(request.contains(piece), "{piece} in {request}");
        }
    }
    // That the guard puts as it posts is tested where it is.
    let patch = Call::link(format!("http://{}/put", other.socket)).with_method(reqwest::Method::PATCH).with_bytes("x");
    assert_eq!(client.upload(patch).await.unwrap_err().kind(), ErrorKind::Unsupported);
    let strict = server.client();
    let call = Call::link(format!("http://{}/put", other.socket)).with_method(reqwest::Method::POST);
    assert_eq!(strict.upload(call.with_bytes("x")).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(other.connections(), 1);
}

#[tokio::test]
async fn a_proxy_is_used_if_the_operator_names_it() {
    let proxy = Server::start([ok("{}")]).await;
    let base = format!("http://{}/v1", closed().await);
    let client = builder(&base).with_proxy(format!("http://{}", proxy.socket)).build().unwrap();
    client.submit::<Value>(buy()).await.unwrap();
    client.ask::<Value>(look()).await.unwrap();
    assert!(proxy.requests()[0].starts_with(&format!("POST {base}/runs HTTP/1.1\r\n")), "{}", proxy.requests()[0]);
    assert_eq!(proxy.requests().len(), 2);
}

/// The environment of a process cannot be changed safely, so the calls are made by a child: this
/// very test, told where to call.
#[tokio::test]
async fn a_proxy_in_the_environment_is_ignored() {
    if let Ok(base) = std::env::var("VIDGEN_TEST_CALL") {
        let client = builder(&base).build().unwrap();
        client.submit::<Value>(buy()).await.unwrap();
        client.ask::<Value>(look()).await.unwrap();
        return;
    }
    let (server, proxy) = (Server::start([ok("{}")]).await, Server::start([ok("{}")]).await);
    let (base, proxy_url) = (server.base(), format!("http://{}", proxy.socket));
    let child = tokio::task::spawn_blocking(move || {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "client::tests::a_proxy_in_the_environment_is_ignored"]);
        for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
            command.env(name, &proxy_url);
        }
        command.env_remove("NO_PROXY").env_remove("no_proxy").env_remove("REQUEST_METHOD");
        command.env("VIDGEN_TEST_CALL", base).output().unwrap()
    });
    let output = child.await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!((server.requests().len(), proxy.connections()), (2, 0));
}

#[test]
fn each_scheme_has_its_header() {
    let header = |auth: Auth| auth.credential(Some(&" k3y\n".into())).unwrap();
    let (name, value) = header(Auth::Bearer).unwrap();
    assert_eq!((name.as_str(), value.to_str().unwrap(), value.is_sensitive()), ("authorization", "Bearer k3y", true));
    assert_eq!(header(Auth::Scheme("Key")).unwrap().1, "Key k3y");
    let (name, value) = header(Auth::Header("xi-api-key")).unwrap();
    assert_eq!((name.as_str(), value.to_str().unwrap()), ("xi-api-key", "k3y"));
    assert!(header(Auth::None).is_none());
    for bad in ["", "  ", "a\nb", "schlüssel"] {
        assert!(Auth::Bearer.credential(Some(&bad.into())).is_err(), "{bad:?}");
    }
}

#[test]
fn only_a_base_url_is_one() {
    for bad in ["", "x", "ftp://a.example", "https://a.example/?k=v", "https://a.example/#f", "https://u:p@a.example"] {
        assert_eq!(builder(bad).build().unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
    }
    assert!(builder("https://a.example").with_proxy("::").build().is_err());
}

#[test]
fn nothing_prints_the_key() {
    let builder = builder("https://a.example/secret/path");
    let client = builder.clone().build().unwrap();
    let call = buy().with_query("q", PROMPT).with_header("x-h", PROMPT);
    let said = format!("{builder:?} {client:?} {client:#?} {call:?}");
    assert!(!said.contains("canary") && !said.contains("secret"), "{said}");
}

#[tokio::test]
async fn a_link_that_refuses_an_upload_says_nothing_of_the_key() {
    for status in [302, 400, 401, 402, 403, 404, 422, 500] {
        let server = Server::start([answer(status, "", "{}")]).await;
        let call = Call::link(format!("{}/put?signature=s", server.base())).with_method(reqwest::Method::PUT);
        let error = server.client().upload(call.with_bytes("x")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{status}: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_before_a_submit_ends_before_the_pipelines_patience() {
    let client = builder("http://127.0.0.1:9").build().unwrap();
    let began = tokio::time::Instant::now();
    let error = client.in_time(std::future::pending::<Result<()>>()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "nothing was bought");
    let patience = client.capabilities(&ModelTable::default()).submit_timeout;
    assert!(began.elapsed() + client.submit_timeout() < patience);
}
