//! What the client does and does not do, seen from sockets on loopback.

use super::*;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A receiver that keeps what it is sent and answers always the same.
#[derive(Clone, Debug)]
struct Receiver {
    socket: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

#[derive(Clone, Debug)]
enum Reply {
    Text(String),
    Endless,
    Hang,
    Close,
}

impl Receiver {
    async fn start(reply: Reply) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let receiver = Self { socket: listener.local_addr().unwrap(), requests: Arc::default() };
        let requests = Arc::clone(&receiver.requests);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // Counted when it is accepted: not even a handshake may arrive.
                requests.lock().unwrap().push(String::new());
                let index = requests.lock().unwrap().len() - 1;
                tokio::spawn(serve(stream, reply.clone(), Arc::clone(&requests), index));
            }
        });
        receiver
    }

    fn accepts(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    fn url(&self) -> String {
        format!("http://{}/hook", self.socket)
    }
}

async fn serve(mut stream: TcpStream, reply: Reply, requests: Arc<Mutex<Vec<String>>>, index: usize) {
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer).await.unwrap_or(0);
        let mut requests = requests.lock().unwrap();
        requests[index].push_str(&String::from_utf8_lossy(&buffer[..read]));
        if read == 0 || requests[index].ends_with("the body") {
            break;
        }
    }
    match reply {
        Reply::Text(text) => {
            let _ = stream.write_all(text.as_bytes()).await;
            // Open until the client closes: a kept connection would be used again.
            while stream.read(&mut buffer).await.unwrap_or(0) > 0 {}
        }
        Reply::Endless => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            while stream.write_all(&[b'x'; 1024]).await.is_ok() {}
        }
        Reply::Hang => std::future::pending().await,
        Reply::Close => {}
    }
}

fn ok() -> Reply {
    Reply::Text("HTTP/1.1 200 OK\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nfine".into())
}

fn guard_with(receiver: &Receiver) -> Guard {
    Guard::builder().with_allowed(receiver.socket).build().unwrap()
}

async fn call(guard: &Guard, url: &str) -> Result<Answer> {
    let limits = CallLimits::WEBHOOK.with_total(Duration::from_secs(2));
    guard.post(&guard.check(url)?, HeaderMap::new(), Bytes::from_static(b"the body"), limits).await
}

/// All names are this address.
#[derive(Debug)]
struct Always(IpAddr);

#[async_trait]
impl Resolve for Always {
    async fn resolve(&self, _name: &str) -> std::io::Result<Vec<IpAddr>> {
        Ok(vec![self.0])
    }
}

#[tokio::test]
async fn an_allowed_socket_is_called_plainly() {
    let receiver = Receiver::start(ok()).await;
    let guard = guard_with(&receiver);
    let answer = call(&guard, &receiver.url()).await.unwrap();
    assert_eq!((answer.status, &answer.body[..]), (200, &b"fine"[..]));
    assert_eq!(answer.retry_after(Timestamp::UNIX_EPOCH), Some(Duration::from_secs(7)));
    let url = guard.check(&receiver.url()).unwrap();
    guard.put(&url, HeaderMap::new(), Bytes::from_static(b"the body"), CallLimits::WEBHOOK).await.unwrap();

    assert_eq!(receiver.accepts(), 2, "a connection was kept");
    let put = receiver.requests.lock().unwrap()[1].to_lowercase();
    assert!(put.starts_with("put /hook http/1.1\r\n") && put.ends_with("the body"), "{put}");
    let request = receiver.requests.lock().unwrap()[0].to_lowercase();
    assert!(request.starts_with("post /hook http/1.1\r\n"), "{request}");
    for header in ["accept-encoding", "referer", "cookie", "authorization", "user-agent", "proxy-"] {
        assert!(!request.contains(header), "{header} in {request}");
    }
    assert_eq!(guard.ssrf_guard_breaches(), 0);
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_not_an_errand() {
    let elsewhere = Receiver::start(ok()).await;
    for status in [301, 302, 303, 307, 308] {
        let reply = format!("HTTP/1.1 {status} X\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n", elsewhere.url());
        let receiver = Receiver::start(Reply::Text(reply)).await;
        let guard = Guard::builder().with_allowed(receiver.socket).with_allowed(elsewhere.socket).build().unwrap();
        assert_eq!(call(&guard, &receiver.url()).await.unwrap().status, status);
    }
    assert_eq!(elsewhere.accepts(), 0);
}

#[tokio::test]
async fn a_literal_address_is_refused_without_a_call() {
    let receiver = Receiver::start(ok()).await;
    let strict = Guard::builder().with_port(receiver.socket.port()).build().unwrap();
    let lax = Guard::builder().with_allowed(receiver.socket).build().unwrap();
    let port = receiver.socket.port();
    for host in ["127.0.0.1", "0x7f.1", "2130706433", "[::ffff:127.0.0.1]", "127.1"] {
        for scheme in ["http", "https"] {
            let url = format!("{scheme}://{host}:{port}/hook");
            assert_eq!(call(&strict, &url).await.unwrap_err().kind(), ErrorKind::Invalid, "{url}");
            // Checked by a guard that allows it, then posted by one that does not.
            if let Ok(checked) = lax.check(&url) {
                let posted = strict.post(&checked, HeaderMap::new(), Bytes::new(), CallLimits::WEBHOOK).await;
                assert_eq!(posted.unwrap_err().kind(), ErrorKind::Invalid, "{url}");
                let put = strict.put(&checked, HeaderMap::new(), Bytes::new(), CallLimits::WEBHOOK).await;
                assert_eq!(put.unwrap_err().kind(), ErrorKind::Invalid, "{url}");
            }
        }
    }
    assert_eq!(receiver.accepts(), 0);
    // The same call through the escape arrives: the silence above was not for other reasons.
    call(&lax, &receiver.url()).await.unwrap();
    assert_eq!(receiver.accepts(), 1);
}

#[tokio::test]
async fn a_name_of_a_private_address_is_refused_without_a_call() {
    let receiver = Receiver::start(ok()).await;
    let port = receiver.socket.port();
    for address in ["127.0.0.1", "::ffff:127.0.0.1", "::1"] {
        let guard = Guard::builder()
            .with_port(port)
            .with_allowed(receiver.socket)
            .with_resolver(Arc::new(Always(address.parse().unwrap())))
            .build()
            .unwrap();
        let error = call(&guard, &format!("https://example.com:{port}/hook")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{address}: {error}");
    }
    assert_eq!(receiver.accepts(), 0);
}

/// The resolver lets the private address pass here, as a hole in it would.
#[tokio::test]
async fn a_peer_that_should_be_out_of_reach_is_dropped_and_counted() {
    let receiver = Receiver::start(ok()).await;
    let builder =
        Guard::builder().with_port(receiver.socket.port()).with_resolver(Arc::new(Always(receiver.socket.ip())));
    let guard = builder.build_with(|inner| Judged { inner, lets_all_pass: true }).unwrap();
    let url = CheckedUrl(format!("http://example.com:{}/hook", receiver.socket.port()).parse().unwrap());
    let sent = guard.exchange(Method::PUT, &url, HeaderMap::new(), Bytes::from("the body"), CallLimits::WEBHOOK).await;
    let error = sent.unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::Unavailable, "the host cannot be reached"));
    assert_eq!((receiver.accepts(), guard.ssrf_guard_breaches()), (1, 1));
    assert!(guard.check_peer(None).is_err(), "an unknown peer is no known one");
}

#[tokio::test]
async fn all_failures_sound_alike() {
    let limits = CallLimits::WEBHOOK.with_total(Duration::from_millis(200));
    let mut words = Vec::new();
    for reply in [Reply::Hang, Reply::Close, Reply::Text("nonsense\r\n\r\n".into())] {
        let receiver = Receiver::start(reply).await;
        let guard = guard_with(&receiver);
        let url = guard.check(&receiver.url()).unwrap();
        let error = guard.post(&url, HeaderMap::new(), Bytes::from("the body"), limits).await.unwrap_err();
        words.push(format!("{error} {error:?}"));
        assert_eq!(receiver.accepts(), 1, "it was tried again");
    }
    let closed = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        listener.local_addr().unwrap()
    };
    let guard = Guard::builder().with_allowed(closed).build().unwrap();
    let error = call(&guard, &format!("http://{closed}/")).await.unwrap_err();
    words.push(format!("{error} {error:?}"));
    let guard = Guard::builder().with_resolver(Arc::new(Always(Ipv4Addr::LOCALHOST.into()))).build().unwrap();
    let error = call(&guard, "https://example.com/").await.unwrap_err();
    words.push(format!("{error} {error:?}"));
    words.dedup();
    assert_eq!(words.len(), 1, "{words:?}");
    assert!(!words[0].contains("127.0.0.1") && !words[0].contains("example"), "{words:?}");
}

#[tokio::test]
async fn https_is_spoken_where_it_is_asked_for() {
    let receiver = Receiver::start(Reply::Hang).await;
    let guard = guard_with(&receiver);
    let url = guard.check(&receiver.url().replace("http:", "https:")).unwrap();
    let limits = CallLimits::WEBHOOK.with_total(Duration::from_millis(300));
    let error = guard.post(&url, HeaderMap::new(), Bytes::from("the body"), limits).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    // A TLS record that begins a handshake, and nothing in the clear (RFC 8446, 5.1).
    let sent = receiver.requests.lock().unwrap()[0].clone();
    assert!(sent.starts_with("\u{16}\u{3}") && !sent.contains("the body"), "{sent:?}");
}

#[tokio::test]
async fn an_endless_answer_is_cut() {
    let receiver = Receiver::start(Reply::Endless).await;
    let answer = call(&guard_with(&receiver), &receiver.url()).await.unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, 4096));
}

#[tokio::test]
async fn an_answer_that_drags_on_counts_by_its_status() {
    let head = "HTTP/1.1 204 No Content\r\n\r\n";
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf";
    for (reply, status) in [(head, 204), (half, 200)] {
        let receiver = Receiver::start(Reply::Text(reply.into())).await;
        assert_eq!(call(&guard_with(&receiver), &receiver.url()).await.unwrap().status, status);
    }
}

/// The environment of a process cannot be changed safely, so the call is made by a child: this
/// very test, told where to call.
#[tokio::test]
async fn a_proxy_in_the_environment_is_ignored() {
    if let Ok(socket) = std::env::var("VIDGEN_TEST_CALL") {
        let guard = Guard::builder().with_allowed(socket.parse().unwrap()).build().unwrap();
        call(&guard, &format!("http://{socket}/hook")).await.unwrap();
        return;
    }
    let (receiver, proxy) = (Receiver::start(ok()).await, Receiver::start(ok()).await);
    let mut child = tokio::task::spawn_blocking({
        let (target, proxy) = (receiver.socket.to_string(), format!("http://{}", proxy.socket));
        move || {
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "net::guard::tests::a_proxy_in_the_environment_is_ignored"]);
            for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
                command.env(name, &proxy);
            }
            command.env_remove("NO_PROXY").env_remove("no_proxy").env_remove("REQUEST_METHOD");
            command.env("VIDGEN_TEST_CALL", target).output().unwrap()
        }
    });
    let output = (&mut child).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!((receiver.accepts(), proxy.accepts()), (1, 0));
}

#[test]
fn retry_after_is_seconds_or_a_date() {
    let now: Timestamp = "2015-10-21T07:27:00Z".parse().unwrap();
    let wait = |text: &str| Answer { status: 503, body: Bytes::new(), retry_after: Some(text.into()) }.retry_after(now);
    assert_eq!(wait("120"), Some(Duration::from_secs(120)));
    assert_eq!(wait("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::from_secs(60)));
    assert_eq!(wait("Wed, 21 Oct 2015 07:26:00 GMT"), Some(Duration::ZERO));
    for nonsense in ["", "soon", "-1", "1.5", "99999999999999999999999"] {
        assert_eq!(wait(nonsense), None, "{nonsense}");
    }
}
