//! HTTP for vidgen: an axum router to mount in an existing server, and signed webhooks.
//!
//! ```no_run
//! use axum::Router;
//! use vidgen_core::Vidgen;
//! use vidgen_http::{RouterOptions, SignedLinks};
//!
//! fn app(vidgen: &Vidgen, links: SignedLinks) -> Router {
//!     let options = RouterOptions::single_tenant().with_links(links);
//!     Router::new()
//!         .nest("/api", vidgen_http::router(vidgen, options))
//!         .merge(vidgen_http::health_router(vidgen))
//!         .merge(vidgen_http::page_router("/api"))
//! }
//! ```
//!
//! The host signs its users in as it always did, and says who is asking by a [`Principal`] in the
//! request's extensions. Every error has one shape, see the README.

mod answer;
mod body;
mod callbacks;
mod error;
mod generate;
mod health;
mod jobs;
mod links;
mod media;
mod options;
mod page;
mod status;
mod usage;
mod webhook;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::from_fn;
use axum::routing::{get, post, put};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::TimeoutLayer;
use vidgen_core::Vidgen;

use crate::error::Problem;
use crate::options::Api;

pub use health::health_router;
pub use links::SignedLinks;
pub use options::{Principal, RouterOptions};
pub use page::{Page, page_router};
pub use webhook::{Webhooks, WebhooksBuilder};

/// How long a call may take: half a minute for its body to arrive, and as much for the answer.
/// Media are streamed for as long as it takes.
const CALL_TIME: Duration = Duration::from_secs(60);

/// The API, with paths relative to where the host nests it, for a host state of any type.
pub fn router<S: Clone + Send + Sync + 'static>(vidgen: &Vidgen, options: RouterOptions) -> Router<S> {
    let api = Api { vidgen: vidgen.clone(), options: Arc::new(options) };
    let mut routes = Router::new()
        .route("/generate", post(generate::generate))
        .route("/quote", post(generate::quote))
        .route("/status/{job_id}", get(status::status))
        .route("/jobs", get(jobs::list))
        .route("/jobs/{job_id}", get(jobs::get).delete(jobs::delete))
        .route("/jobs/{job_id}/retry", post(jobs::retry))
        .route("/jobs/{job_id}/video", get(jobs::video))
        .route("/jobs/{job_id}/thumbnail", get(jobs::thumbnail))
        .route("/usage", get(usage::usage))
        .route("/callbacks/{provider}", post(callbacks::callback))
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, CALL_TIME));
    routes = routes.route("/callbacks/{provider}/files/{token}/{name}", put(callbacks::upload));
    if api.options.links.is_some() {
        routes = routes.route("/media/{*key}", get(media::media));
    }
    routes
        // Without one of its own, a nested router hands unknown paths to the host's.
        .fallback(async || Problem::not_found())
        .layer(CatchPanicLayer::custom(answer::panicked))
        .layer(from_fn(answer::finish))
        .with_state(api)
}
