//! A server like the standalone one, whose provider answers at once: to see what the machine
//! itself takes. `instant-server DIR` prints where it listens, and stops on SIGTERM.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "test code fails by panicking")]

use std::path::PathBuf;

use axum::Router;
use vidgen_core::memory::ScriptedProvider;
use vidgen_core::{Pipeline, Vidgen};
use vidgen_http::RouterOptions;
use vidgen_store::ObjectStore;
use vidgen_store::sqlite::SqliteQueue;

#[tokio::main]
async fn main() {
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
    let dir = PathBuf::from(std::env::args().nth(1).expect("DIR"));
    let studio = ScriptedProvider::new("studio");
    let vidgen = Vidgen::builder()
        .queue(SqliteQueue::open(dir.join("vidgen.db")).await.unwrap())
        .store(ObjectStore::local(dir.join("media")).unwrap())
        .pipeline(
            Pipeline::named("default")
                .image(studio.clone())
                .video(studio.clone())
                .speech(studio.clone())
                .compose(studio.clone()),
        )
        .build()
        .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("listening on http://{}", listener.local_addr().unwrap());
    let ledger = axum::routing::get(move || async move {
        axum::Json(studio.accepted().iter().map(ToString::to_string).collect::<Vec<_>>())
    });
    let app: Router = Router::new()
        .nest("/api", vidgen_http::router(&vidgen, RouterOptions::single_tenant()))
        .route("/ledger", ledger);
    let worker = vidgen.worker().concurrency(64).spawn();
    tokio::select! {
        served = axum::serve(listener, app) => served.unwrap(),
        _ = term.recv() => {}
    }
    worker.shutdown().await;
}
