//! A real cog in a process of its own, and hosts that use it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};
use vidgen_core::{Callbacks, Pipeline, Usd, Vidgen};
use vidgen_providers::cog::Cog;
use vidgen_providers::models::ModelEntry;
use vidgen_store::ObjectStore;
use vidgen_store::sqlite::SqliteQueue;

use crate::faults::{Faults, Faulty};

/// Short, so that whoever takes over does not keep a test waiting.
pub const LEASE: Duration = Duration::from_secs(3);
/// What the container tells its webhooks' receiver.
const TOKEN: &str = "a token of the container's";
/// What a second of it costs: so that a run counts as bought.
pub const RATE: Usd = Usd::from_cents(1);

/// The Python environment of cog, if there is one.
///
/// # Panics
/// If there is none and services are required.
#[must_use]
pub fn venv() -> Option<PathBuf> {
    let venv = std::env::var_os("VIDGEN_TEST_COG_VENV").map(PathBuf::from);
    if venv.is_none() {
        assert!(std::env::var_os("VIDGEN_REQUIRE_SERVICES").is_none(), "VIDGEN_TEST_COG_VENV is not set");
        println!("skipped: VIDGEN_TEST_COG_VENV is not set (tests/services/cog/venv.sh makes one)");
    }
    venv
}

/// A running container, or what is in one.
#[derive(Debug)]
pub struct Container {
    child: Child,
    runs: PathBuf,
    /// Where it listens.
    pub url: String,
}

impl Container {
    /// Starts the model of `tests/services/cog`, with its notes in `dir`, and waits until it is set up.
    ///
    /// # Panics
    /// If that takes longer than a minute.
    pub async fn start(venv: &Path, dir: &Path, upload_url: &str) -> Self {
        let url = format!("http://{}", free_port().await);
        let port = url.rsplit(':').next().unwrap();
        let path = std::env::join_paths(
            std::iter::once(venv.join("bin"))
                .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
        );
        let runs = dir.join("runs");
        std::fs::write(&runs, "").unwrap();
        let child = Command::new(venv.join("bin/python"))
            .args(["-m", "cog.server.http", "--host", "127.0.0.1", "--upload-url", upload_url])
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("services/cog"))
            // Its worker is started as plain `python`.
            .env("PATH", path.unwrap())
            .env("PORT", port)
            .env("COG_PREDICT_TYPE_STUB", "predict.py:Predictor")
            .env("WEBHOOK_AUTH_TOKEN", TOKEN)
            .env("VIDGEN_COG_RUNS", &runs)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdout(std::fs::File::create(dir.join("cog.log")).unwrap())
            .stderr(std::fs::File::create(dir.join("cog.err")).unwrap())
            .stdin(Stdio::null())
            // It has a worker, which has to end with it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let container = Self { child, runs, url };
        let began = Instant::now();
        while container.health().await != Some("READY".into()) {
            assert!(began.elapsed() < Duration::from_secs(60), "cog never starts: {}", container.log(dir));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        container
    }

    async fn health(&self) -> Option<String> {
        #[allow(clippy::disallowed_methods, reason = "a test's own loopback server")]
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = http.get(format!("{}/health-check", self.url)).send().await.ok()?;
        answer.json::<serde_json::Value>().await.ok()?.get("status")?.as_str().map(str::to_owned)
    }

    /// What became of the runs so far: `begun`, then `done` or the name of an exception, for each.
    #[must_use]
    pub fn runs(&self) -> Vec<String> {
        std::fs::read_to_string(&self.runs).unwrap().lines().map(str::to_owned).collect()
    }

    /// What it wrote, for a test that failed.
    #[must_use]
    pub fn log(&self, dir: &Path) -> String {
        ["cog.log", "cog.err"].map(|name| std::fs::read_to_string(dir.join(name)).unwrap_or_default()).concat()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let group = self.child.id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(group) = group {
            // It may have ended by itself.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

/// A port that nobody listens on; somebody may take it before it is used, but who.
async fn free_port() -> SocketAddr {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// Where the container calls back: `base` is where the router is.
#[must_use]
pub fn callbacks(base: &str) -> Callbacks {
    Callbacks::new(base, &"a secret of enough bytes".to_owned().into()).unwrap()
}

/// A host with its data in `dir`, whose one step is a video by the container at `cog`.
pub async fn host(dir: &Path, cog: &str, base: &str, faults: &Faults) -> Vidgen {
    let model = ModelEntry::from_toml(
        r#"
        id = "cog"
        kind = "video"
        price = { per_compute_second = "0.01", at_most = 60 }
        typical = 1
        fields = { prompt = "prompt", size = { width = "width", height = "height" }, duration = "duration" }
    "#,
    );
    // More than the container has slots: its own word is to count, too.
    let cog = Cog::builder(cog).with_model(model.unwrap()).with_callback_token(TOKEN).with_max_live(4).build().unwrap();
    Vidgen::builder()
        .queue(SqliteQueue::builder(dir.join("vidgen.db")).with_lease(LEASE).open().await.unwrap())
        .store(ObjectStore::local(dir.join("media")).unwrap())
        .pipeline(Pipeline::named("default").video(Faulty::new(cog, faults)))
        .callbacks(callbacks(base))
        .build()
        .unwrap()
}
