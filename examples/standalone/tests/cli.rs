//! The binary as its users meet it: exit codes, what it prints, and how it starts and stops.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "tests fail by panicking, and call a server of their own"
)]

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// How long a video of a second may take on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// `vidgen` in a directory of its own, with none of the caller's settings.
fn vidgen(dir: &TempDir, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vidgen"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.args(args).env_clear().env("PATH", path).env("PORT", "0").current_dir(dir.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Exit code, standard output and standard error of a command that ends by itself.
async fn run(mut command: Command) -> (Option<i32>, String, String) {
    let output = tokio::time::timeout(PATIENCE, command.output()).await.unwrap().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

struct Server {
    child: Child,
    url: String,
}

impl Server {
    async fn start(dir: &TempDir, args: &[&str]) -> Self {
        // Into a file: a pipe that nobody reads would stop the server when it is full.
        let log = std::fs::File::create(dir.path().join("server.log")).unwrap();
        let mut child = vidgen(dir, args).stderr(log).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
        Self { child, url: line.strip_prefix("listening on ").unwrap().to_owned() }
    }

    async fn terminate(mut self) -> (Option<i32>, Duration) {
        let began = Instant::now();
        let pid = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap();
        (status.code(), began.elapsed())
    }
}

async fn create(server: &Server, body: Value) -> Value {
    let response =
        reqwest::Client::new().post(format!("{}/api/generate", server.url)).json(&body).send().await.unwrap();
    assert_eq!(response.status(), 202);
    response.json().await.unwrap()
}

async fn ended(server: &Server, id: &str) -> Value {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        let url = format!("{}/api/status/{id}", server.url);
        let status: Value = reqwest::get(url).await.unwrap().json().await.unwrap();
        if !matches!(status.get("status").and_then(Value::as_str), Some("queued" | "processing")) {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("job {id} did not end");
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("{pointer} of {value}"))
}

fn has_ffmpeg() -> bool {
    let found = std::process::Command::new("ffmpeg").arg("-version").output().is_ok();
    if !found {
        println!("skipped: there is no ffmpeg");
        assert!(std::env::var_os("VIDGEN_REQUIRE_SERVICES").is_none(), "ffmpeg is required");
    }
    found
}

fn small() -> Value {
    json!({ "prompt": "a cat in space", "resolution": "360p", "duration_seconds": 1 })
}

#[tokio::test]
async fn what_is_wrong_at_start_is_said_in_one_line() {
    let dir = TempDir::new().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (name, value, said) in [
        ("PORT", port.as_str(), "is in use"),
        ("DATABASE_URL", "postgres://me:secret@host/db", "DATABASE_URL must be"),
        ("DATABASE_URL", "sqlite::memory:", "survive a restart"),
        ("PUBLIC_URL", "ftp://x.example", "PUBLIC_URL must be"),
        ("LINK_SECRET", "short", "LINK_SECRET"),
        ("WEBHOOK_ALLOW", "10.0.0.0/8", "WEBHOOK_ALLOW"),
        ("WEBHOOK_SECRET", "whsec_%", "WEBHOOK_SECRET"),
        ("MEDIA_DIR", "/dev/null/media", "media directory"),
        ("LOG", "a=b=c", "LOG"),
    ] {
        let mut command = vidgen(&dir, &["serve"]);
        command.env(name, value).env("LOG", if name == "LOG" { value } else { "error" });
        let (code, out, err) = run(command).await;
        assert_eq!((code, out.as_str(), err.lines().count()), (Some(1), "", 1), "{name}={value}: {err}");
        assert!(err.starts_with("vidgen: ") && err.contains(said), "{name}={value}: {err}");
        assert!(!err.contains("me:secret"), "{err}");
    }
}

#[tokio::test]
async fn a_stop_takes_less_than_two_seconds_whatever_runs() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, &["serve"]).await;
    create(&server, json!({ "prompt": "a long one", "duration_seconds": 60 })).await;
    let (code, took) = server.terminate().await;
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn jobs_and_links_survive_a_killed_server() {
    if !has_ffmpeg() {
        return;
    }
    let dir = TempDir::new().unwrap();
    // Accepted by a server that runs nothing, and killed.
    let mut server = Server::start(&dir, &["serve", "--no-worker"]).await;
    let accepted = create(&server, small()).await;
    let id = text(&accepted, "/job_id");
    server.child.kill().await.unwrap();

    let server = Server::start(&dir, &["all"]).await;
    let status = ended(&server, id).await;
    assert_eq!(text(&status, "/status"), "completed", "{status}");
    let link = text(&status, "/output/video_url").to_owned();
    let port = server.url.rsplit(':').next().unwrap().to_owned();
    server.terminate().await;

    // The same links still open, since their secret is kept beside the database.
    let log = std::fs::File::create(dir.path().join("third.log")).unwrap();
    let mut third = vidgen(&dir, &["serve"]).env("PORT", port).stderr(log).spawn().unwrap();
    let mut lines = BufReader::new(third.stdout.take().unwrap()).lines();
    lines.next_line().await.unwrap();
    let video = reqwest::get(link).await.unwrap();
    assert_eq!(video.status(), 200);
    assert!(video.bytes().await.unwrap().windows(4).any(|w| w == b"ftyp"));
    third.kill().await.unwrap();
}

#[tokio::test]
async fn a_worker_beside_a_server_runs_its_jobs() {
    if !has_ffmpeg() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, &["serve", "--no-worker"]).await;
    let log = std::fs::File::create(dir.path().join("worker.log")).unwrap();
    let mut worker = vidgen(&dir, &["worker"]).stderr(log).stdout(Stdio::null()).spawn().unwrap();
    let accepted = create(&server, small()).await;
    assert_eq!(text(&ended(&server, text(&accepted, "/job_id")).await, "/status"), "completed");
    worker.kill().await.unwrap();
}

#[tokio::test]
async fn generate_prints_the_paths_of_what_it_made() {
    if !has_ffmpeg() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let args = ["generate", "a cat", "--duration", "1", "--resolution", "360p", "--output", "made"];
    let (code, out, err) = run(vidgen(&dir, &args)).await;
    assert_eq!(code, Some(0), "{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 2, "{out}");
    for (line, extension, magic) in [(lines.first(), ".mp4", &b"ftyp"[..]), (lines.last(), ".jpg", b"\xff\xd8\xff")] {
        let line = line.unwrap();
        assert!(line.starts_with("made/vid_") && line.ends_with(extension), "{line}");
        let bytes = std::fs::read(dir.path().join(line)).unwrap();
        assert!(bytes.windows(magic.len()).take(16).any(|w| w == magic), "{line}");
    }
    assert!(err.contains("100 %  completed"), "{err}");
}

#[tokio::test]
async fn generate_fails_with_the_reason() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir, &["serve", "--no-worker"]).await;
    let (code, out, err) = run(vidgen(&dir, &["generate", "", "--duration", "99", "--server", &server.url])).await;
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(err.contains("prompt must not be empty; duration_seconds must be from 1 to 60"), "{err}");

    // Canceled under its feet.
    let waiting = tokio::spawn(run(vidgen(&dir, &["generate", "a cat", "--server", &server.url])));
    let id = loop {
        let url = format!("{}/api/jobs", server.url);
        let list: Value = reqwest::get(url).await.unwrap().json().await.unwrap();
        if let Some(id) = list.pointer("/jobs/0/job_id").and_then(Value::as_str) {
            break id.to_owned();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let url = format!("{}/api/jobs/{id}", server.url);
    assert_eq!(reqwest::Client::new().delete(url).send().await.unwrap().status(), 202);
    let (code, out, err) = waiting.await.unwrap();
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(err.contains(&format!("job {id} canceled")), "{err}");
}

#[tokio::test]
async fn the_doctor_says_what_to_do() {
    let dir = TempDir::new().unwrap();
    let mut blind = vidgen(&dir, &["doctor"]);
    blind.env("PATH", "/nonexistent");
    let (code, out, _) = run(blind).await;
    assert_eq!(code, Some(1));
    assert!(out.contains("XX  ffmpeg    ffmpeg was not found; install it: apt-get install ffmpeg"), "{out}");
    assert!(out.contains("--  voice ") && out.contains("ok  database "), "{out}");
    if has_ffmpeg() {
        assert_eq!(run(vidgen(&dir, &["doctor"])).await.0, Some(0));
    }
}
