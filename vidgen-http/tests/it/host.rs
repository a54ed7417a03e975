//! The router inside a host's own application.

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::get;
use serde_json::json;
use tower::ServiceExt;
use vidgen_core::{Limits, TenantId};
use vidgen_http::{Principal, RouterOptions};

use crate::support::{Host, by, request, with};

#[derive(Clone)]
struct Shop {
    name: &'static str,
}

/// The host's own sign-in: a header, here.
async fn sign_in(mut request: Request, next: Next) -> Response {
    if let Some(user) = request.headers().get("x-user").and_then(|u| u.to_str().ok()) {
        let principal = Principal::new(TenantId::new(user).unwrap());
        request.extensions_mut().insert(principal);
    }
    next.run(request).await
}

#[tokio::test]
async fn it_nests_in_an_application_with_its_own_state_and_sign_in() {
    let mut host = Host::new();
    let options = RouterOptions::authenticated().with_links(host.links.clone());
    host.router = Router::new()
        .route("/", get(async |State(shop): State<Shop>| shop.name))
        .nest("/v1/video", vidgen_http::router(&host.vidgen, options).layer(from_fn(sign_in)))
        .with_state(Shop { name: "shop" });

    assert_eq!(host.get("/").await.body, "shop");
    let create = || request(Method::POST, "/v1/video/generate", r#"{"prompt": "x"}"#);
    let refused = host.send(create()).await;
    assert_eq!((refused.status.as_u16(), refused.json()["error"].as_str()), (401, Some("Unauthorized")));
    assert_eq!(refused.header("www-authenticate"), "Bearer");
    let accepted = host.send(with("x-user", "ada", create())).await;
    assert_eq!(accepted.status, 202);
    let location = accepted.header("location").to_owned();
    assert!(location.starts_with("/v1/video/status/vid_"), "{location}");
    let status = |user| host.send(with("x-user", user, request(Method::GET, &location, Body::empty())));
    assert_eq!(status("ada").await.status, 200);
    assert_eq!(status("bob").await.status, 404);
    // The host's own paths stay the host's.
    assert_eq!(host.get("/elsewhere").await.body, "");
}

#[tokio::test]
async fn a_principals_limits_are_in_force() {
    let host = Host::new();
    let limits = Limits { live_jobs: Some(1), ..Limits::default() };
    let create = || {
        let mut request = request(Method::POST, "/api/generate", r#"{"prompt": "x"}"#);
        request.extensions_mut().insert(Principal::new(TenantId::new("ada").unwrap()).with_limits(limits.clone()));
        request
    };
    assert_eq!(host.send(create()).await.status, 202);
    assert_eq!(host.send(create()).await.status, 429);
    assert_eq!(host.send(by("bob", create())).await.status, 202);
}

#[tokio::test]
async fn without_a_principal_every_call_is_401_before_anything_else() {
    let host = Host::with(Limits::default(), RouterOptions::authenticated());
    for (method, path) in [
        (Method::POST, "/api/generate"),
        (Method::POST, "/api/quote"),
        (Method::GET, "/api/status/vid_x"),
        (Method::GET, "/api/jobs"),
        (Method::GET, "/api/jobs/vid_x"),
        (Method::DELETE, "/api/jobs/vid_x"),
        (Method::POST, "/api/jobs/vid_x/retry"),
        (Method::GET, "/api/jobs/vid_x/video"),
        (Method::GET, "/api/jobs/vid_x/thumbnail"),
        (Method::GET, "/api/usage"),
    ] {
        let answer = host.send(request(method.clone(), path, Body::empty())).await;
        assert_eq!(answer.status, 401, "{method} {path}");
        assert_eq!(answer.json()["error"], "Unauthorized");
    }
}

#[tokio::test]
async fn health_and_readiness_are_told_apart() {
    let host = Host::new();
    let app: Router = vidgen_http::health_router(&host.vidgen);
    for (path, word) in [("/health", "ok"), ("/ready", "ready")] {
        let response = app.clone().oneshot(request(Method::GET, path, Body::empty())).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let body = axum::body::to_bytes(response.into_body(), 1000).await.unwrap();
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&body).unwrap(), json!({ "status": word }));
    }
}
