//! `vidgen generate`: one video from the command line, over HTTP as any other client.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::StreamExt;
use reqwest::{Client, Response, StatusCode};
use serde_json::{Map, Value, json};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use url::Url;
use uuid::Uuid;
use vidgen_core::{JobState, JobStatus};

use crate::serve::{Server, Stop};
use crate::settings::Settings;

const POLL: Duration = Duration::from_millis(300);
/// How long the server may be away (a restart, a deploy) before waiting for it is given up.
const PATIENCE: Duration = Duration::from_secs(60);
const CALL_TIME: Duration = Duration::from_secs(30);
const BAR: usize = 32;

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// What the video shall show.
    prompt: String,
    /// What shall be said in it.
    #[arg(long)]
    script: Option<String>,
    /// How long it shall be, in seconds.
    #[arg(long, value_name = "SECONDS")]
    duration: Option<f64>,
    /// 16:9, 9:16, 1:1, 4:3 or 3:4.
    #[arg(long)]
    aspect_ratio: Option<String>,
    /// 360p, 480p, 720p or 1080p.
    #[arg(long)]
    resolution: Option<String>,
    /// In what manner, e.g. watercolour.
    #[arg(long)]
    style: Option<String>,
    /// What it shall not show.
    #[arg(long)]
    negative_prompt: Option<String>,
    /// In which voice.
    #[arg(long)]
    voice: Option<String>,
    /// Same seed, same video, where the models can.
    #[arg(long)]
    seed: Option<u64>,
    /// The server to ask, e.g. http://127.0.0.1:3000; without one, it is made in this process.
    #[arg(long, env = "VIDGEN_SERVER", value_name = "URL")]
    server: Option<Url>,
    /// Where the video and its thumbnail shall lie.
    #[arg(long, short, default_value = "out", value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    pub(crate) settings: Settings,
}

pub(crate) async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if let Some(url) = &args.server {
        return make(args, url.as_str()).await;
    }
    let mut stop = Stop::new()?;
    let local = args.settings.private();
    let server = Server::start(&local, true).await?;
    let made = tokio::select! {
        made = make(args, &server.url) => made,
        () = stop.wanted() => Err(anyhow::anyhow!("interrupted; the next vidgen on this database goes on with the job")),
    };
    server.stop().await;
    made
}

async fn make(args: &Args, server: &str) -> anyhow::Result<ExitCode> {
    tokio::fs::create_dir_all(&args.output)
        .await
        .with_context(|| format!("{} cannot be made", args.output.display()))?;
    let api = Api::new(server)?;
    let (id, estimate) = api.create(args.body()).await?;
    let mut progress = Progress::new();
    progress.line(&format!("job {id}, about {estimate} s"));

    let mut heard = Instant::now();
    let status = loop {
        match api.status(&id).await {
            Ok(status) if status.status.is_ended() => {
                progress.show(&status);
                break status;
            }
            Ok(status) => {
                heard = Instant::now();
                progress.show(&status);
            }
            Err(e) if e.is::<Refusal>() || heard.elapsed() > PATIENCE => return Err(e),
            Err(_) => {}
        }
        tokio::time::sleep(POLL).await;
    };
    progress.end();
    for note in &status.notes {
        eprintln!("note: {note}");
    }
    let Some(output) = status.output.filter(|_| status.status == JobState::Completed) else {
        let reason = status.error.unwrap_or_else(|| "it was canceled".into());
        bail!("job {id} {}: {reason}", status.status.as_str());
    };
    let mut links = vec![output.video_url];
    links.extend(output.thumbnail_url);
    for link in links {
        println!("{}", api.download(&link, &args.output, &id).await?.display());
    }
    if let Some(cost) = status.cost.filter(|cost| *cost > 0.0) {
        eprintln!("cost: ${cost:.4}");
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn body(&self) -> Value {
        let mut body = Map::new();
        body.insert("prompt".into(), json!(self.prompt));
        let options = [
            ("script", self.script.as_ref().map(|v| json!(v))),
            ("duration_seconds", self.duration.map(|v| json!(v))),
            ("aspect_ratio", self.aspect_ratio.as_ref().map(|v| json!(v))),
            ("resolution", self.resolution.as_ref().map(|v| json!(v))),
            ("style", self.style.as_ref().map(|v| json!(v))),
            ("negative_prompt", self.negative_prompt.as_ref().map(|v| json!(v))),
            ("voice", self.voice.as_ref().map(|v| json!(v))),
            ("seed", self.seed.map(|v| json!(v))),
        ];
        body.extend(options.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        Value::Object(body)
    }
}

/// The server understood and said no, so asking again would not help.
#[derive(Debug)]
struct Refusal(String);

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Refusal {}

struct Api {
    client: Client,
    base: String,
}

impl Api {
    fn new(server: &str) -> anyhow::Result<Self> {
        Ok(Self { client: client(server)?, base: format!("{}/api", server.trim_end_matches('/')) })
    }

    async fn create(&self, body: Value) -> anyhow::Result<(String, u64)> {
        // One key for all attempts: an answer that gets lost does not make a second video.
        let key = Uuid::new_v4().to_string();
        let mut attempts = 0;
        let answer = loop {
            let call = self.client.post(format!("{}/generate", self.base)).timeout(CALL_TIME);
            match call.header("idempotency-key", &key).json(&body).send().await {
                Ok(response) => break answer(response).await?,
                Err(e) if attempts < 3 && !e.is_builder() => {
                    attempts += 1;
                    tokio::time::sleep(POLL).await;
                }
                Err(e) => return Err(e).with_context(|| format!("no server answers at {}", self.base)),
            }
        };
        let id = answer.get("job_id").and_then(Value::as_str).context("the server's answer has no job id")?;
        let estimate = answer.get("estimated_time_seconds").and_then(Value::as_u64).unwrap_or_default();
        Ok((id.to_owned(), estimate))
    }

    async fn status(&self, id: &str) -> anyhow::Result<JobStatus> {
        let response = self.client.get(format!("{}/status/{id}", self.base)).timeout(CALL_TIME).send().await?;
        Ok(serde_json::from_value(answer(response).await?)?)
    }

    /// Downloads to a file named after the job; complete, or not there.
    async fn download(&self, link: &str, dir: &Path, id: &str) -> anyhow::Result<PathBuf> {
        let url = Url::parse(link).context("the server's link is not a URL")?;
        let extension = Path::new(url.path()).extension().and_then(|e| e.to_str()).unwrap_or("bin");
        let (path, part) = (dir.join(format!("{id}.{extension}")), dir.join(format!(".{id}.{extension}.part")));
        // Never print the link: it is as good as the file.
        let response = self.client.get(url).send().await.map_err(|e| e.without_url()).context("download failed")?;
        if !response.status().is_success() {
            answer(response).await?;
            bail!("download failed");
        }
        let cannot = || format!("{} cannot be written", path.display());
        let mut file = File::create(&part).await.with_context(cannot)?;
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|e| e.without_url()).context("download broke off")?;
            file.write_all(&chunk).await.with_context(cannot)?;
        }
        file.sync_all().await.with_context(cannot)?;
        tokio::fs::rename(&part, &path).await.with_context(cannot)?;
        Ok(path)
    }
}

/// The JSON of a good answer; what the server said is wrong, of a bad one.
async fn answer(response: Response) -> anyhow::Result<Value> {
    let status = response.status();
    let body: Value = response.json().await.unwrap_or_default();
    if status.is_success() {
        return Ok(body);
    }
    let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut parts = vec![text(&body, "error")];
    parts.push(text(&body, "detail"));
    for detail in body.get("details").and_then(Value::as_array).into_iter().flatten() {
        parts.push(format!("{} {}", text(detail, "field"), text(detail, "message")).trim().to_owned());
    }
    parts.retain(|part| !part.is_empty());
    let message = if parts.is_empty() { format!("the server answered {status}") } else { parts.join("; ") };
    // What may pass is no refusal.
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        bail!("{message}");
    }
    Err(Refusal(message).into())
}

#[expect(clippy::disallowed_methods, reason = "whoever types the command chose the server")]
fn client(server: &str) -> anyhow::Result<Client> {
    let url = Url::parse(server).with_context(|| format!("{server:?} is not a URL"))?;
    let mut builder = Client::builder().connect_timeout(Duration::from_secs(5)).read_timeout(CALL_TIME);
    if matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]")) {
        // A proxy would look for the server on its own machine.
        builder = builder.no_proxy();
    }
    Ok(builder.build()?)
}

/// Whether a vidgen server answers there.
pub(crate) async fn is_vidgen(server: &str) -> bool {
    let Ok(client) = client(server) else { return false };
    let call = client.get(format!("{server}/health")).timeout(Duration::from_secs(2));
    match call.send().await {
        Ok(response) => response.json::<Value>().await.is_ok_and(|body| body == json!({ "status": "ok" })),
        Err(_) => false,
    }
}

/// A bar on a terminal, a line for each change elsewhere; on stderr, so that stdout has the paths.
struct Progress {
    terminal: bool,
    started: Instant,
    last: Option<(JobState, u8)>,
}

impl Progress {
    fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), started: Instant::now(), last: None }
    }

    fn line(&self, text: &str) {
        eprintln!("{text}");
    }

    fn show(&mut self, status: &JobStatus) {
        let now = (status.status, status.progress);
        let (state, percent) = (status.status.as_str(), usize::from(status.progress.min(100)));
        if self.terminal {
            let full = percent * BAR / 100;
            let bar = format!("{}{}", "█".repeat(full), "░".repeat(BAR - full));
            let seconds = self.started.elapsed().as_secs();
            eprint!("\r{bar} {percent:>3} %  {state}  {seconds} s\x1b[K");
            let _ = std::io::stderr().flush();
        } else if self.last != Some(now) {
            eprintln!("{percent:>3} %  {state}");
        }
        self.last = Some(now);
    }

    fn end(&self) {
        if self.terminal {
            eprintln!();
        }
    }
}
