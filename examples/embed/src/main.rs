//! vidgen inside an application that was there before: with its own routes, its own state and its
//! own way of signing users in.
//!
//! ```text
//! cargo run -p embed
//! curl http://127.0.0.1:8080/
//! curl -H 'x-api-key: ada-key' -H 'content-type: application/json' \
//!      -d '{"prompt": "a cat in space"}' http://127.0.0.1:8080/video/generate
//! ```
#![allow(clippy::print_stdout, reason = "an example says what it does")]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use vidgen_core::memory::MemoryQueue;
use vidgen_core::{Limits, Pipeline, TenantId, Usd, Vidgen, Window};
use vidgen_http::{Principal, RouterOptions, SignedLinks};
use vidgen_providers::local::LocalProvider;
use vidgen_store::ObjectStore;

const ADDRESS: &str = "127.0.0.1:8080";

/// The application's own state.
#[derive(Clone, Debug)]
struct Shop {
    name: &'static str,
    users: Arc<HashMap<&'static str, User>>,
}

#[derive(Clone, Copy, Debug)]
struct User {
    id: &'static str,
    paying: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let shop = Shop {
        name: "The Example Shop",
        users: Arc::new(HashMap::from([
            ("ada-key", User { id: "ada", paying: true }),
            ("bob-key", User { id: "bob", paying: false }),
        ])),
    };

    // A real host keeps this secret in its configuration, so that links survive a restart.
    let links = SignedLinks::new(&format!("http://{ADDRESS}/video"), "only an example, not a secret")?;
    let local = LocalProvider::new()?;
    let vidgen = Vidgen::builder()
        // Gone with the process; `vidgen_store::sqlite::SqliteQueue::open("vidgen.db").await?` is not.
        .queue(MemoryQueue::new())
        .store(ObjectStore::memory())
        .media_links(links.clone())
        .pipeline(
            Pipeline::named("default")
                .image(local.clone())
                .video(local.clone())
                .speech(local.clone())
                .optional()
                .compose(local),
        )
        .build()?;
    let worker = vidgen.worker().name("embedded").concurrency(4).spawn();

    let video = vidgen_http::router(&vidgen, RouterOptions::authenticated().with_links(links))
        .layer(from_fn_with_state(shop.clone(), sign_in));
    let app = Router::new()
        .route("/", get(welcome))
        .nest("/video", video)
        .merge(vidgen_http::health_router(&vidgen))
        .with_state(shop);

    let listener = TcpListener::bind(ADDRESS).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app)
        .with_graceful_shutdown(async {
            // If the signal cannot be had, stopping at once is the safe side.
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;
    worker.shutdown().await;
    Ok(())
}

/// A route that was there before.
async fn welcome(State(shop): State<Shop>) -> Json<Value> {
    Json(json!({ "shop": shop.name, "video": "/video/generate" }))
}

/// The application's own sign-in tells vidgen who is asking and what they may use. Whoever is
/// not signed in has no principal, and gets vidgen's 401; links to media need none.
async fn sign_in(State(shop): State<Shop>, mut request: Request, next: Next) -> Response {
    let key = request.headers().get("x-api-key").and_then(|key| key.to_str().ok());
    let user = key.and_then(|key| shop.users.get(key));
    if let Some((user, tenant)) = user.and_then(|user| Some((user, TenantId::new(user.id).ok()?))) {
        let day = Duration::from_secs(24 * 3600);
        let mut limits = Limits::default();
        if !user.paying {
            limits.creates = Some(Window { limit: 3, per: day });
            limits.budget = Some(Window { limit: Usd::from_dollars(1), per: day });
        }
        request.extensions_mut().insert(Principal::new(tenant).with_limits(limits));
    }
    next.run(request).await
}
