//! What a download does and does not do, seen from sockets on loopback.

use super::*;
use crate::net::resolve::{Judged, Resolve};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n and so on";
/// What nobody may read in an error, in `Debug`.
const SECRET: &str = "X-Signature=hush";

#[derive(Clone, Debug)]
enum Reply {
    /// Then waits for the client to close.
    Send(Vec<u8>),
    /// Then closes.
    Cut(Vec<u8>),
    /// Then sends letters for ever.
    Endless(Vec<u8>),
    /// Says nothing.
    Hang,
}

/// A host that answers by path, and keeps what it is sent.
#[derive(Clone)]
struct Host {
    socket: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    /// When a request, or what else arrived, was read.
    read: Arc<Notify>,
    /// When a client closed what was not to its end.
    left: Arc<Notify>,
}

impl Host {
    async fn start(routes: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let socket = listener.local_addr().unwrap();
        let host = Self { socket, requests: Arc::default(), read: Arc::default(), left: Arc::default() };
        let (of_task, routes) = (host.clone(), Arc::new(routes));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // Counted when it is accepted: not even a handshake may arrive.
                of_task.requests.lock().unwrap().push(String::new());
                let index = of_task.accepts() - 1;
                tokio::spawn(of_task.clone().serve(stream, Arc::clone(&routes), index));
            }
        });
        host
    }

    async fn always(reply: Reply) -> Self {
        Self::start(move |_| reply.clone()).await
    }

    async fn serve(self, mut stream: TcpStream, routes: Arc<impl Fn(&str) -> Reply>, index: usize) {
        let mut buffer = [0; 4096];
        loop {
            let read = stream.read(&mut buffer).await.unwrap_or(0);
            let text = String::from_utf8_lossy(&buffer[..read]).into_owned();
            let request = {
                let request = &mut self.requests.lock().unwrap()[index];
                request.push_str(&text);
                request.clone()
            };
            if read == 0 || request.ends_with("\r\n\r\n") || request.starts_with('\u{16}') {
                break;
            }
        }
        self.read.notify_one();
        let path = self.requests.lock().unwrap()[index].split(' ').nth(1).unwrap_or_default().to_owned();
        match routes(&path) {
            Reply::Send(bytes) => {
                let _ = stream.write_all(&bytes).await;
                while stream.read(&mut buffer).await.unwrap_or(0) > 0 {}
            }
            Reply::Cut(bytes) => {
                let _ = stream.write_all(&bytes).await;
            }
            Reply::Endless(bytes) => {
                let _ = stream.write_all(&bytes).await;
                while stream.write_all(&[b'x'; 1024]).await.is_ok() {}
            }
            Reply::Hang => std::future::pending().await,
        }
        self.left.notify_one();
    }

    fn accepts(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.socket)
    }

    fn guard(&self) -> Guard {
        Guard::builder().with_allowed(self.socket).build().unwrap()
    }

    /// One call of a path, by a guard that allows this host and no other.
    async fn get(&self, path: &str, limits: DownloadLimits) -> Result<Download> {
        let guard = self.guard();
        guard.get(&guard.check(&self.url(path))?, limits).await
    }
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

fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 {head}\r\n\r\n").as_bytes(), body].concat()
}

/// With its length.
fn file(body: &[u8]) -> Reply {
    Reply::Send(answer(&format!("200 OK\r\nContent-Length: {}", body.len()), body))
}

fn redirect(status: u16, location: &str) -> Reply {
    let head = format!("{status} X\r\nLocation: {location}\r\nSet-Cookie: a=b\r\nContent-Length: 0");
    Reply::Send(answer(&head, b""))
}

fn is_unreachable(error: &Error) -> bool {
    (error.kind(), error.message()) == (ErrorKind::Unavailable, "the host cannot be reached")
}

/// `Debug` and `Display`, as a log line may show them.
fn shown(error: &Error) -> String {
    format!("{error} {error:?}")
}

async fn read(download: Result<Download>) -> Result<Bytes> {
    download?.any().read(usize::MAX).await
}

#[tokio::test]
async fn a_file_is_asked_for_plainly() {
    let host = Host::always(file(PNG)).await;
    for _ in 0..2 {
        let download = host.get("/a.png?b=c", DownloadLimits::IMAGE).await.unwrap();
        assert_eq!((download.length(), download.media_type()), (Some(18), Some(MediaType::Png)));
        assert_eq!(download.expect_image().unwrap().read(100).await.unwrap(), PNG);
    }
    assert_eq!(host.accepts(), 2, "a connection was kept");
    let request = host.requests.lock().unwrap()[0].to_lowercase();
    assert!(request.starts_with("get /a.png?b=c http/1.1\r\n"), "{request}");
    assert!(request.contains("\r\naccept-encoding: identity\r\n"), "{request}");
    for header in ["referer", "cookie", "authorization", "user-agent", "proxy-", "range"] {
        assert!(!request.contains(header), "{header} in {request}");
    }
}

#[tokio::test]
async fn three_redirects_are_followed_and_no_fourth() {
    let host = Host::start(|path| match path {
        "/0" => file(PNG),
        "/1" => redirect(302, "/0"),
        "/2" => redirect(307, "1"),
        "/3" => redirect(308, "./2#fragment"),
        "/4" => redirect(301, "3"),
        "/loop" | "/loop?a" => redirect(303, "?a"),
        "/deep/er/1" => redirect(301, "../../0"),
        _ => redirect(301, ""),
    })
    .await;
    for (path, hops) in [("/0", 1), ("/1", 2), ("/2", 3), ("/3", 4), ("/deep/er/1", 2)] {
        let before = host.accepts();
        assert_eq!(read(host.get(path, DownloadLimits::IMAGE).await).await.unwrap(), PNG, "{path}");
        assert_eq!(host.accepts() - before, hops, "{path}");
    }
    for path in ["/4", "/loop", "/to/itself"] {
        let before = host.accepts();
        assert!(is_unreachable(&host.get(path, DownloadLimits::IMAGE).await.unwrap_err()), "{path}");
        assert_eq!(host.accepts() - before, 4, "{path}");
    }
    for request in host.requests.lock().unwrap().iter().map(|r| r.to_lowercase()) {
        for header in ["referer", "cookie", "authorization"] {
            assert!(!request.contains(header), "{header} in {request}");
        }
    }
}

#[tokio::test]
async fn every_redirect_status_is_one_and_nothing_else_is() {
    for status in [301, 302, 303, 307, 308] {
        let host = Host::start(move |path| if path == "/0" { file(PNG) } else { redirect(status, "/0") }).await;
        assert_eq!(read(host.get("/", DownloadLimits::IMAGE).await).await.unwrap(), PNG, "{status}");
    }
    for status in [201, 300, 304, 305, 306, 404, 500] {
        let host = Host::start(move |path| if path == "/0" { file(PNG) } else { redirect(status, "/0") }).await;
        host.get("/", DownloadLimits::IMAGE).await.unwrap_err();
        assert_eq!(host.accepts(), 1, "{status}");
    }
}

#[tokio::test]
async fn a_redirect_to_where_it_may_not_lead_is_not_followed() {
    let canary = Host::always(file(PNG)).await;
    let port = canary.socket.port();
    let locations = [
        format!("http://127.0.0.1:{port}/"),
        format!("//127.0.0.1:{port}/"),
        format!("https://127.0.0.1:{port}/"),
        format!("https://2130706433:{port}/"),
        format!("https://[::ffff:127.0.0.1]:{port}/"),
        format!("http://localhost:{port}/"),
        format!("https://localhost:{port}/"),
        // Passes all rules of the text; its address does not.
        format!("https://rebind.example:{port}/"),
        format!("http://rebind.example:{port}/"),
        format!("http://user:secret@127.0.0.1:{port}/"),
        format!("\\\\127.0.0.1:{port}\\"),
        format!("http://127.0.0.1:{port}/a b"),
        format!("http://127.0.0.1:{port}/a\tb"),
        "file:///etc/passwd".into(),
        "https://".into(),
    ];
    let mut words = Vec::new();
    for location in locations {
        let reply = redirect(302, &location);
        let host = Host::always(reply).await;
        let guard = Guard::builder()
            .with_port(port)
            .with_allowed(host.socket)
            .with_resolver(Arc::new(Always(canary.socket.ip())))
            .build()
            .unwrap();
        let url = guard.check(&host.url(&format!("/?{SECRET}"))).unwrap();
        let error = guard.get(&url, DownloadLimits::IMAGE).await.unwrap_err();
        assert!(is_unreachable(&error), "{location}: {error}");
        assert_eq!(host.accepts(), 1, "{location}");
        words.push(shown(&error));
    }
    for head in ["302 X\r\nContent-Length: 0", "302 X\r\nLocation: /\u{fe}\r\nContent-Length: 0"] {
        // As Latin-1: no UTF-8.
        let bytes = answer(head, b"").into_iter().filter(|b| *b != 0xc3).collect();
        let host = Host::always(Reply::Send(bytes)).await;
        words.push(shown(&host.get("/", DownloadLimits::IMAGE).await.unwrap_err()));
        assert_eq!(host.accepts(), 1, "{head}");
    }
    words.dedup();
    assert_eq!(words.len(), 1, "{words:?}");
    assert_eq!(canary.accepts(), 0);
    // The same redirect through the escape arrives: the silence above was not for other reasons.
    let host = Host::always(redirect(302, &canary.url("/"))).await;
    let guard = Guard::builder().with_allowed(host.socket).with_allowed(canary.socket).build().unwrap();
    let url = guard.check(&host.url("/")).unwrap();
    assert_eq!(read(guard.get(&url, DownloadLimits::IMAGE).await).await.unwrap(), PNG);
    assert_eq!(canary.accepts(), 1);
}

#[tokio::test]
async fn what_another_guard_allowed_is_judged_again() {
    let host = Host::always(file(PNG)).await;
    let strict = Guard::builder().build().unwrap();
    let url = host.guard().check(&host.url("/")).unwrap();
    assert_eq!(strict.get(&url, DownloadLimits::IMAGE).await.unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(host.accepts(), 0);
}

/// The resolver lets the private address pass here, as a hole in it would.
#[tokio::test]
async fn a_peer_that_should_be_out_of_reach_is_dropped_and_counted() {
    let elsewhere = Host::always(file(PNG)).await;
    let not_found = Reply::Send(answer("404 X\r\nContent-Length: 0", b""));
    // Whatever it answers: not even its redirect counts, nor that it has no such file.
    for reply in [file(PNG), redirect(302, &elsewhere.url("/")), not_found] {
        let host = Host::always(reply).await;
        let builder = Guard::builder()
            .with_port(host.socket.port())
            .with_allowed(elsewhere.socket)
            .with_resolver(Arc::new(Always(host.socket.ip())));
        let guard = builder.build_with(|inner| Judged { inner, lets_all_pass: true }).unwrap();
        let url = CheckedUrl(format!("http://example.com:{}/", host.socket.port()).parse().unwrap());
        assert!(is_unreachable(&guard.download(&url, DownloadLimits::IMAGE).await.unwrap_err()));
        assert_eq!((host.accepts(), guard.ssrf_guard_breaches()), (1, 1));
    }
    assert_eq!(elsewhere.accepts(), 0);
}

#[tokio::test]
async fn gone_is_not_the_same_as_away() {
    let host = Host::start(|path| {
        let status = path.trim_matches(|c: char| !c.is_ascii_digit());
        Reply::Send(answer(&format!("{status} X\r\nContent-Length: 0"), b""))
    })
    .await;
    for status in 400..=499 {
        let error = host.get(&format!("/{status}?{SECRET}"), DownloadLimits::IMAGE).await.unwrap_err();
        if [408, 425, 429].contains(&status) {
            assert!(is_unreachable(&error), "{status}: {error}");
        } else {
            assert_eq!((error.kind(), error.message()), (ErrorKind::NotFound, "the file is not there"), "{status}");
        }
        assert!(!shown(&error).contains("hush") && !shown(&error).contains("127.0.0.1"), "{error:?}");
    }
    for status in [201, 202, 203, 204, 206, 300, 304, 500, 502, 503, 504, 599] {
        let error = host.get(&format!("/{status}"), DownloadLimits::IMAGE).await.unwrap_err();
        assert!(is_unreachable(&error), "{status}: {error}");
    }
}

#[tokio::test]
async fn all_failures_of_the_network_sound_alike() {
    let limits = DownloadLimits::IMAGE.with_total(Duration::from_millis(200));
    let mut words = Vec::new();
    for reply in [Reply::Hang, Reply::Cut(Vec::new()), Reply::Cut(b"nonsense\r\n\r\n".into())] {
        let host = Host::always(reply).await;
        words.push(shown(&host.get(&format!("/?{SECRET}"), limits).await.unwrap_err()));
        assert_eq!(host.accepts(), 1, "it was tried again");
    }
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
    let guard = Guard::builder().with_allowed(closed).build().unwrap();
    let url = guard.check(&format!("http://{closed}/?{SECRET}")).unwrap();
    words.push(shown(&guard.get(&url, limits).await.unwrap_err()));
    let guard = Guard::builder().with_resolver(Arc::new(Always(Ipv4Addr::LOCALHOST.into()))).build().unwrap();
    let url = guard.check(&format!("https://example.com/?{SECRET}")).unwrap();
    words.push(shown(&guard.get(&url, limits).await.unwrap_err()));
    words.dedup();
    assert_eq!(words.len(), 1, "{words:?}");
    assert!(!words[0].contains("127.0.0.1") && !words[0].contains("example") && !words[0].contains("hush"));
}

#[tokio::test]
async fn an_announced_length_beyond_the_limit_is_refused_at_once() {
    let limits = DownloadLimits::IMAGE.with_bytes(100);
    // Its body never comes.
    let host = Host::always(Reply::Send(answer("200 OK\r\nContent-Length: 101", b""))).await;
    let error = host.get("/", limits).await.unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::Media, "the file is longer than 100 bytes"));
    host.left.notified().await;

    let host = Host::always(file(&[b'x'; 100])).await;
    assert_eq!(read(host.get("/", limits).await).await.unwrap().len(), 100);
}

#[tokio::test]
async fn an_unannounced_length_is_counted() {
    for head in ["200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffff", "200 OK"] {
        let host = Host::always(Reply::Endless(answer(head, b""))).await;
        for limit in [0, 100, 4096, 100_000] {
            let download = host.get("/", DownloadLimits::VIDEO.with_bytes(limit)).await;
            assert!(download.as_ref().map_or(true, |d| d.length().is_none()));
            let error = read(download).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Media, "{limit} after {head}: {error}");
            host.left.notified().await;
        }
    }
    let chunked = answer("200 OK\r\nTransfer-Encoding: chunked", b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n");
    let host = Host::always(Reply::Send(chunked)).await;
    let download = host.get("/", DownloadLimits::VIDEO.with_bytes(11)).await.unwrap();
    assert_eq!(download.length(), None);
    assert_eq!(read(Ok(download)).await.unwrap(), "hello world");
    let download = host.get("/", DownloadLimits::VIDEO.with_bytes(10)).await;
    assert_eq!(read(download).await.unwrap_err().kind(), ErrorKind::Media);
}

#[tokio::test]
async fn a_body_that_is_cut_is_no_short_file() {
    for length in [10, 10_000] {
        let body = vec![b'x'; length];
        let announced = answer(&format!("200 OK\r\nContent-Length: {}", length + 1), &body);
        let mut chunked = answer("200 OK\r\nTransfer-Encoding: chunked", format!("{length:x}\r\n").as_bytes());
        chunked.extend_from_slice(&body);
        let without_end = [&chunked[..], b"\r\n"].concat();
        for bytes in [announced, chunked, without_end] {
            let host = Host::always(Reply::Cut(bytes)).await;
            let error = read(host.get("/", DownloadLimits::IMAGE).await).await.unwrap_err();
            assert!(is_unreachable(&error), "{length}: {error}");
        }
    }
}

#[tokio::test]
async fn a_compressed_file_is_refused() {
    let refused = ["Content-Encoding: gzip", "content-encoding: GZIP", "Content-Encoding: br", "Content-Encoding: x"]
        .into_iter()
        .chain(["Content-Encoding: identity, gzip", "Content-Encoding: identity\r\nContent-Encoding: gzip"])
        .chain(["Transfer-Encoding: gzip, chunked"]);
    for header in refused {
        let host = Host::always(Reply::Send(answer(&format!("200 OK\r\n{header}\r\nContent-Length: 18"), PNG))).await;
        let error = host.get("/", DownloadLimits::IMAGE).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Media, "{header}: {error}");
    }
    for header in ["Content-Encoding: identity", "Content-Encoding: IDENTITY ", "Content-Encoding: "] {
        let host = Host::always(Reply::Send(answer(&format!("200 OK\r\n{header}\r\nContent-Length: 18"), PNG))).await;
        assert_eq!(read(host.get("/", DownloadLimits::IMAGE).await).await.unwrap(), PNG, "{header}");
    }
}

#[tokio::test]
async fn a_file_is_what_its_first_bytes_say() {
    let cases: [(&[u8], &str); 17] = [
        (b"\x89PNG\r\n\x1a\n", "image"),
        (b"\xff\xd8\xff\xe0", "image"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image"),
        (b"\0\0\0\x20ftypisom", "video"),
        (b"\0\0\0\x14ftypqt  ", "video"),
        (b"\x1a\x45\xdf\xa3\x9fB\x86", "video"),
        (b"ID3\x04", "audio"),
        (b"RIFF\0\0\0\0WAVEfmt ", "audio"),
        (b"\0\0\0\x20ftypM4A ", "audio"),
        (b"OggS", "audio"),
        (b"\0\0\0\x20ftypavif", ""),
        (b"GIF89a", ""),
        (b"<svg xmlns='http://www.w3.org/2000/svg'>", ""),
        (b"<!doctype html>", ""),
        (b"#EXTM3U\n", ""),
        (b"\x89PN", ""),
        (b"", ""),
    ];
    for (body, kind) in cases {
        // What the host calls it does not matter.
        let head = format!("200 OK\r\nContent-Type: video/mp4\r\nContent-Length: {}", body.len());
        let host = Host::always(Reply::Send(answer(&head, body))).await;
        let get = || host.get("/a.mp4", DownloadLimits::IMAGE);
        for (wanted, file) in [
            ("image", get().await.unwrap().expect_image()),
            ("video", get().await.unwrap().expect_video()),
            ("audio", get().await.unwrap().expect_audio()),
            (kind, Ok(get().await.unwrap().any())),
        ] {
            let wrong = file.as_ref().err().map(Error::kind);
            assert_eq!(wrong, (wanted != kind).then_some(ErrorKind::Media), "{body:?} as {wanted}");
            if let Ok(file) = file {
                assert_eq!(file.read(100).await.unwrap(), body);
            }
        }
    }
}

/// The head is put back, and told from its pieces: not a byte is lost, wherever they end.
#[tokio::test]
async fn a_file_arrives_whole() {
    for (length, size) in [(19, 1), (HEAD - 1, 97), (HEAD, 97), (HEAD + 1, 97), (300_000, 4999)] {
        let body: Vec<u8> = PNG.iter().copied().chain((0..=250).cycle()).take(length).collect();
        let mut chunked = answer("200 OK\r\nTransfer-Encoding: chunked", b"");
        for piece in body.chunks(size) {
            chunked.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            chunked.extend_from_slice(piece);
            chunked.extend_from_slice(b"\r\n");
        }
        chunked.extend_from_slice(b"0\r\n\r\n");
        for reply in [file(&body), Reply::Send(chunked)] {
            let host = Host::always(reply).await;
            let image = host.get("/", DownloadLimits::IMAGE).await.unwrap().expect_image().unwrap();
            assert!(image.read(length).await.unwrap() == body, "{length} bytes in pieces of {size}");
        }
    }
}

/// The clock stands still from when the host has read the request, and jumps to whatever ends the
/// wait.
#[tokio::test]
async fn a_silent_host_is_left_after_its_gap() {
    let half = answer("200 OK\r\nContent-Length: 10000", &[b'x'; 5000]);
    let in_the_head = answer("200 OK\r\nContent-Length: 10000", &[b'x'; 500]);
    for (scheme, reply, seconds) in [
        ("http", Reply::Hang, 15),
        ("http", Reply::Send(b"HTTP/1.1 200 OK\r\nContent-".into()), 15),
        ("http", Reply::Send(in_the_head), 15),
        ("http", Reply::Send(half), 15),
        // A handshake that is not answered belongs to the connecting.
        ("https", Reply::Hang, 5),
    ] {
        let host = Host::always(reply.clone()).await;
        let guard = host.guard();
        let url = guard.check(&host.url("/").replace("http:", &format!("{scheme}:"))).unwrap();
        let call = tokio::spawn(async move { read(guard.get(&url, DownloadLimits::VIDEO).await).await });
        host.read.notified().await;
        tokio::time::pause();
        let start = Instant::now();
        let error = call.await.unwrap().unwrap_err();
        tokio::time::resume();
        assert!(is_unreachable(&error), "{error}");
        assert_eq!(start.elapsed().as_secs_f64().round() as u64, seconds, "{scheme} {reply:?}");
    }
}

#[test]
fn a_download_shows_nothing_of_its_content() {
    let download = Download { body: Body::from(Bytes::from_static(PNG)), media_type: Some(MediaType::Png) };
    assert_eq!(format!("{download:?}"), "Download { body: Body { length: Some(18), .. }, media_type: Some(Png) }");
}

#[test]
fn the_limits_are_those_of_the_rule() {
    let told = |limits: DownloadLimits| (limits.bytes / MIB, limits.total.as_secs());
    assert_eq!(told(DownloadLimits::IMAGE), (20, 30));
    assert_eq!(told(DownloadLimits::SPEECH), (200, 120));
    assert_eq!(told(DownloadLimits::VIDEO), (2048, 600));
    assert_eq!(told(DownloadLimits::VIDEO.with_bytes(3 * MIB).with_total(Duration::from_secs(4))), (3, 4));
}
