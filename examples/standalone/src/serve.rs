//! The server, the worker, and how both stop.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use vidgen_core::{Vidgen, Worker};
use vidgen_http::{Page, RouterOptions, SignedLinks};

use crate::backends;
use crate::settings::Settings;

/// How long calls that are being answered may take to end. What is longer is a download, and its
/// client will ask for the rest.
const DRAIN: Duration = Duration::from_secs(1);

/// A server that listens, and its worker.
pub(crate) struct Server {
    pub(crate) url: String,
    stop: watch::Sender<bool>,
    serving: JoinHandle<std::io::Result<()>>,
    worker: Option<Worker>,
}

/// Serves until it is told to stop.
pub(crate) async fn run(settings: &Settings, with_worker: bool) -> anyhow::Result<ExitCode> {
    let mut stop = Stop::new()?;
    let mut server = Server::start(settings, with_worker).await?;
    // Scripts read this line.
    println!("listening on {}", server.url);
    tokio::select! {
        () = stop.wanted() => {}
        ended = &mut server.serving => {
            ended.context("the server panicked")?.context("the server ended")?;
            bail!("the server ended");
        }
    }
    tracing::info!("stopping");
    tokio::select! {
        () = server.stop() => Ok(ExitCode::SUCCESS),
        () = stop.wanted() => Ok(ExitCode::FAILURE),
    }
}

/// Runs jobs until it is told to stop.
pub(crate) async fn work(settings: &Settings) -> anyhow::Result<ExitCode> {
    let mut stop = Stop::new()?;
    let links = links(settings, settings.port)?;
    let worker = worker(&backends::open(settings, links, settings.port).await?, settings);
    println!("working");
    stop.wanted().await;
    tracing::info!("stopping");
    tokio::select! {
        () = worker.shutdown() => Ok(ExitCode::SUCCESS),
        () = stop.wanted() => Ok(ExitCode::FAILURE),
    }
}

impl Server {
    pub(crate) async fn start(settings: &Settings, with_worker: bool) -> anyhow::Result<Self> {
        // First of all, so that a second server on the same port touches nothing.
        let listener = listen(SocketAddr::new(settings.host, settings.port)).await?;
        let address = listener.local_addr()?;
        let base = settings.public_base(address.port())?;
        let links = links(settings, address.port())?;
        let vidgen = backends::open(settings, links.clone(), address.port()).await?;

        let page = Page::new("/api").with_media_origin(&base)?;
        let app = Router::new()
            .nest("/api", vidgen_http::router(&vidgen, RouterOptions::single_tenant().with_links(links)))
            .merge(vidgen_http::health_router(&vidgen))
            .merge(page.router());
        let worker = with_worker.then(|| worker(&vidgen, settings));
        let (stop, mut stopped) = watch::channel(false);
        let serving = axum::serve(listener, app).with_graceful_shutdown(async move {
            // An error means that the sender is gone, which is a stop, too.
            let _ = stopped.wait_for(|stop| *stop).await;
        });
        let reached =
            if address.ip().is_unspecified() { (Ipv4Addr::LOCALHOST, address.port()).into() } else { address };
        Ok(Self { url: format!("http://{reached}"), stop, serving: tokio::spawn(serving.into_future()), worker })
    }

    /// Stops listening, lets calls end, and hands every job back.
    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        let drained = async {
            if tokio::time::timeout(DRAIN, self.serving).await.is_err() {
                tracing::info!("open downloads were cut off");
            }
        };
        let handed_back = async {
            if let Some(worker) = self.worker {
                worker.shutdown().await;
            }
        };
        tokio::join!(drained, handed_back);
    }
}

fn worker(vidgen: &Vidgen, settings: &Settings) -> Worker {
    let name = format!("vidgen-{}", std::process::id());
    vidgen.worker().name(name).concurrency(settings.concurrency.into()).spawn()
}

fn links(settings: &Settings, port: u16) -> anyhow::Result<SignedLinks> {
    let base = format!("{}/api", settings.public_base(port)?);
    SignedLinks::new(&base, settings.link_secret()?).context("LINK_SECRET or PUBLIC_URL cannot be used")
}

pub(crate) async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| match e.kind() {
        ErrorKind::AddrInUse => {
            anyhow::anyhow!("port {} is in use: stop what listens there, or set PORT to another one", address.port())
        }
        _ => anyhow::Error::new(e).context(format!("cannot listen at {address}")),
    })
}

/// The signals that mean stop.
pub(crate) struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    pub(crate) async fn wanted(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
