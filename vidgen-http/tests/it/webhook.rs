//! Webhooks against real receivers on loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures::stream;
use tokio::net::TcpListener;
use vidgen_core::clock::ManualClock;
use vidgen_core::conformance::notifier::{Bench, Scene, delivery};
use vidgen_core::{Delivery, Error, ErrorKind, Notifier};
use vidgen_http::Webhooks;

/// The tutorial's, as it stands there.
const SECRET: &str = "your-webhook-secret";

type Requests = Arc<Mutex<Vec<(HeaderMap, Bytes)>>>;

/// One server, whose paths say how it behaves.
struct Receivers {
    socket: SocketAddr,
    away: SocketAddr,
    requests: Requests,
    webhooks: Webhooks,
}

impl Receivers {
    async fn start() -> Self {
        let away = {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            listener.local_addr().unwrap()
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let socket = listener.local_addr().unwrap();
        let requests = Requests::default();
        let app = Router::new().route("/{behaviour}", post(behave)).with_state(Arc::clone(&requests));
        tokio::spawn(async move { axum::serve(listener, app).await });
        let webhooks = Webhooks::builder(SECRET)
            .with_allowed(socket)
            .with_allowed(away)
            .with_timeout(Duration::from_millis(500))
            .with_clock(Arc::new(ManualClock::starting_at("2026-11-24T12:00:00Z".parse().unwrap())))
            .build()
            .unwrap();
        Self { socket, away, requests, webhooks }
    }

    fn url(&self, behaviour: &str) -> String {
        format!("http://{}/{behaviour}", self.socket)
    }

    async fn tell(&self, behaviour: &str) -> Result<(), Error> {
        self.webhooks.notify(&delivery(self.url(behaviour), 1)).await
    }
}

async fn behave(
    State(requests): State<Requests>,
    Path(behaviour): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    requests.lock().unwrap().push((headers, body));
    match behaviour.as_str() {
        "hang" => std::future::pending().await,
        "endless" => endless().into_response(),
        "endless-failure" => (StatusCode::INTERNAL_SERVER_ERROR, endless()).into_response(),
        "moved" => (StatusCode::MOVED_PERMANENTLY, [("location", "/200")]).into_response(),
        "wait" => (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "120")]).into_response(),
        "wait-long" => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "99999999")]).into_response(),
        "wait-not" => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "0")]).into_response(),
        "wait-date" => {
            (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "Tue, 24 Nov 2026 12:05:00 GMT")]).into_response()
        }
        status => (StatusCode::from_bytes(status.as_bytes()).unwrap(), "a secret of the receiver").into_response(),
    }
}

fn endless() -> Body {
    Body::from_stream(stream::repeat_with(|| Ok::<_, Error>(Bytes::from_static(&[b'x'; 1024]))))
}

impl Bench for Receivers {
    fn notifier(&self) -> &dyn Notifier {
        &self.webhooks
    }

    fn arrange(&self, scene: Scene) -> Option<String> {
        Some(match scene {
            Scene::Takes => self.url("200"),
            Scene::Fails => self.url("500"),
            Scene::Gone => self.url("410"),
            Scene::Away => format!("http://{}/200", self.away),
            Scene::Hangs => self.url("hang"),
            _ => return None,
        })
    }

    fn received(&self) -> Vec<(String, String)> {
        let requests = self.requests.lock().unwrap();
        let told = requests.iter().map(|(headers, body)| {
            (headers["webhook-id"].to_str().unwrap().to_owned(), String::from_utf8(body.to_vec()).unwrap())
        });
        told.collect()
    }

    fn impossible(&self) -> Vec<String> {
        let beside = SocketAddr::new(self.socket.ip(), self.socket.port() ^ 1);
        ["", "hook", "http://example.com/", "https://localhost/", "https://10.0.0.1/", "https://a:b@example.com/"]
            .map(str::to_owned)
            .into_iter()
            .chain([format!("http://{beside}/200")])
            .collect()
    }
}

vidgen_core::notifier_conformance!(webhooks, async { Receivers::start().await });

#[tokio::test]
async fn a_receiver_can_check_who_sent_it() {
    let receivers = Receivers::start().await;
    let delivery = delivery(receivers.url("200"), 3);
    receivers.webhooks.notify(&delivery).await.unwrap();
    let (headers, body) = receivers.requests.lock().unwrap()[0].clone();
    let header = |name: &str| headers[name].to_str().unwrap().to_owned();

    assert_eq!(body, delivery.body.as_bytes());
    assert_eq!(header("content-type"), "application/json");
    assert!(header("user-agent").starts_with("vidgen/"));
    assert_eq!(header("webhook-timestamp"), "1795521600");
    assert_eq!(header("x-signature"), by_hand(&body));
    let signed = [delivery.id.as_str().as_bytes(), b".1795521600.", &body].concat();
    let hex = by_hand(&signed);
    let encoded = header("webhook-signature").strip_prefix("v1,").unwrap().to_owned();
    assert_eq!(hex_of_base64(&encoded), hex);
}

/// HMAC from its definition (RFC 2104), so that a misuse of the library's own would be seen.
fn by_hand(message: &[u8]) -> String {
    use aws_lc_rs::digest::{SHA256, digest};
    let pad = |byte: u8| {
        let mut block = [byte; 64];
        block.iter_mut().zip(SECRET.bytes()).for_each(|(b, s)| *b ^= s);
        block
    };
    let inner = digest(&SHA256, &[&pad(0x36)[..], message].concat());
    hex::encode(digest(&SHA256, &[&pad(0x5c)[..], inner.as_ref()].concat()))
}

fn hex_of_base64(text: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let sextets = text.trim_end_matches('=').bytes().map(|b| ALPHABET.iter().position(|a| *a == b).unwrap());
    let bits: String = sextets.map(|s| format!("{s:06b}")).collect();
    let whole = bits.len() / 8;
    (0..whole).map(|i| format!("{:02x}", u8::from_str_radix(&bits[i * 8..i * 8 + 8], 2).unwrap())).collect()
}

#[tokio::test]
async fn only_2xx_is_success_and_only_410_is_the_end() {
    let receivers = Receivers::start().await;
    for status in [200, 201, 202, 204, 299] {
        receivers.tell(&status.to_string()).await.unwrap_or_else(|e| panic!("{status}: {e}"));
    }
    assert_eq!(receivers.tell("410").await.unwrap_err().kind(), ErrorKind::NotFound);
    for status in [300, 304, 400, 401, 403, 404, 409, 413, 422, 429, 500, 502, 503, 504] {
        let error = receivers.tell(&status.to_string()).await.unwrap_err();
        assert_eq!((error.kind(), error.retry_after()), (ErrorKind::Unavailable, None), "{status}: {error}");
    }
    assert_eq!(receivers.requests.lock().unwrap().len(), 20, "one call for each");
}

#[tokio::test]
async fn a_redirect_is_a_failure() {
    let receivers = Receivers::start().await;
    assert_eq!(receivers.tell("moved").await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(receivers.requests.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_receiver_may_ask_for_time_within_reason() {
    let receivers = Receivers::start().await;
    let day = 24 * 3600;
    for (behaviour, seconds) in [("wait", 120), ("wait-long", day), ("wait-not", 1), ("wait-date", 300)] {
        let error = receivers.tell(behaviour).await.unwrap_err();
        assert_eq!(error.retry_after(), Some(Duration::from_secs(seconds)), "{behaviour}");
    }
}

#[tokio::test]
async fn an_endless_answer_costs_bounded_time_and_memory() {
    let receivers = Receivers::start().await;
    receivers.tell("endless").await.unwrap();
    assert_eq!(receivers.tell("endless-failure").await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_receiver_that_hangs_is_left() {
    let receivers = Receivers::start().await;
    let start = tokio::time::Instant::now();
    assert_eq!(receivers.tell("hang").await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn an_error_tells_neither_endpoint_nor_answer() {
    let receivers = Receivers::start().await;
    for behaviour in ["404", "410", "500", "hang", "moved"] {
        let error = receivers.tell(behaviour).await.unwrap_err();
        let mut told = format!("{error} {error:?}");
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            told += &format!("{cause} {cause:?}");
            source = cause.source();
        }
        for secret in ["127.0.0.1", "http", "secret of the receiver", &receivers.socket.port().to_string()] {
            assert!(!told.contains(secret), "{behaviour}: {told}");
        }
    }
    let inside = Delivery { endpoint: "https://192.168.0.1/".into(), ..delivery(String::new(), 1) };
    let error = receivers.webhooks.notify(&inside).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(!format!("{error:?}").contains("192.168"), "{error:?}");
}
