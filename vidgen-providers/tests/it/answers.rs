//! A remote that answers every call with the same words, for those that no lab has a reason to say.

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response};
use tokio::net::TcpListener;

/// Its base URL.
pub(crate) async fn answering(status: u16, headers: &[(&'static str, &'static str)], body: &str) -> String {
    let (headers, body) = (headers.to_vec(), body.to_owned());
    let answer = move || {
        let mut response = Response::new(Body::from(body.clone()));
        *response.status_mut() = status.try_into().unwrap();
        let all = headers.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        response.headers_mut().extend(all);
        async move { response }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    format!("http://{address}")
}
