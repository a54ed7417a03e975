//! A server in a process of its own, as its users meet it.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// The standalone binary, beside the running test's own; built if it is not there.
///
/// # Panics
/// If it cannot be built.
#[must_use]
pub fn vidgen_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        // …/debug/deps/it-1234 → …/debug/vidgen
        let test = std::env::current_exe().unwrap();
        let profile = test.parent().and_then(Path::parent).unwrap();
        let binary = profile.join("vidgen");
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
        let status = std::process::Command::new(env!("CARGO"))
            // As tests/run.sh builds it: other features would build half the workspace once more.
            .args(["build", "--quiet", "--workspace", "--all-features", "--bins"])
            .args(["--manifest-path", manifest, "--target-dir"])
            .arg(profile.parent().unwrap())
            .status()
            .unwrap();
        assert!(status.success(), "the standalone binary cannot be built");
        binary
    })
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Where it listens, without a slash at the end.
    pub url: String,
}

impl Server {
    /// Starts the standalone server with its data in `dir`.
    ///
    /// # Panics
    /// If it does not listen within 30 s.
    pub async fn standalone(dir: &Path, command: &str, environment: &[(&str, &str)]) -> Self {
        Self::start(Self::command(dir, command, environment)).await
    }

    /// What [`Server::standalone`] starts.
    #[must_use]
    pub fn command(dir: &Path, command: &str, environment: &[(&str, &str)]) -> Command {
        let mut server = Command::new(vidgen_binary());
        server.arg(command).env("PORT", "0").env("MEDIA_DIR", dir.join("media"));
        server.env("DATABASE_URL", format!("sqlite:{}", dir.join("vidgen.db").display()));
        server.envs(environment.iter().copied());
        server
    }

    /// Starts whatever prints `listening on URL`.
    ///
    /// # Panics
    /// If it does not listen within 30 s.
    pub async fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let listening = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some(url) = line.strip_prefix("listening on ") {
                    return url.to_owned();
                }
            }
            panic!("the server ended before it listened");
        };
        let url = tokio::time::timeout(Duration::from_secs(30), listening).await.expect("the server does not listen");
        Self { child, url }
    }

    /// Its memory in use, in KiB, as the kernel counts it.
    ///
    /// # Panics
    /// If the kernel does not say.
    #[must_use]
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it is gone.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id().expect("it still runs")).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Sends it a signal and waits for its end; says how and how soon.
    ///
    /// # Panics
    /// If it does not end within 90 s.
    pub async fn end(mut self, signal: Signal) -> (ExitStatus, Duration) {
        let began = Instant::now();
        self.signal(signal);
        let ended = tokio::time::timeout(Duration::from_secs(90), self.child.wait()).await;
        (ended.expect("the server does not end").unwrap(), began.elapsed())
    }
}
