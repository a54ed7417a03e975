//! Checks what is needed, and says what to do where it is missing.

use std::net::SocketAddr;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use tokio::process::Command;

use vidgen_core::ProviderId;

use crate::settings::Settings;
use crate::{backends, serve};

/// How long a tool may take to tell its version.
const TOOL_TIME: Duration = Duration::from_secs(10);

enum Finding {
    Fine(String),
    /// It works without, less well.
    Lacking(String),
    Missing(String),
}
use Finding::{Fine, Lacking, Missing};

pub(crate) async fn run(settings: &Settings) -> ExitCode {
    let findings = [
        ("ffmpeg", tool("ffmpeg", "-version", "install it: apt-get install ffmpeg", true).await),
        ("ffprobe", tool("ffprobe", "-version", "it comes with ffmpeg: apt-get install ffmpeg", true).await),
        ("voice", tool("espeak-ng", "--version", "scripts stay unspoken: apt-get install espeak-ng", false).await),
        ("pipeline", pipelines(settings)),
        ("callbacks", callbacks(settings)),
        ("media", media(settings).await),
        ("database", database(settings).await),
        ("port", port(settings).await),
    ];
    let mut fine = true;
    for (name, finding) in findings {
        let (mark, text) = match finding {
            Fine(text) => ("ok", text),
            Lacking(text) => ("--", text),
            Missing(text) => {
                fine = false;
                ("XX", text)
            }
        };
        println!("{mark}  {name:<9} {text}");
    }
    if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn tool(program: &str, flag: &str, remedy: &str, essential: bool) -> Finding {
    let run = Command::new(program).arg(flag).stdin(Stdio::null()).kill_on_drop(true).output();
    let problem = match tokio::time::timeout(TOOL_TIME, run).await {
        Ok(Ok(output)) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            let line = text.lines().next().unwrap_or_default();
            return Fine(line.split(" Copyright").next().unwrap_or_default().trim().to_owned());
        }
        Ok(Err(e)) if e.kind() == std::io::ErrorKind::NotFound => format!("{program} was not found; {remedy}"),
        _ => format!("{program} does not run; {remedy}"),
    };
    if essential { Missing(problem) } else { Lacking(problem) }
}

fn pipelines(settings: &Settings) -> Finding {
    match backends::probe_pipelines(settings) {
        Ok(text) => Fine(text),
        Err(e) => Missing(format!("{e:#}")),
    }
}

fn callbacks(settings: &Settings) -> Finding {
    match settings.callbacks(settings.port) {
        Ok(Some(callbacks)) if settings.providers.cog_url.is_some() => {
            // The operator has to know it: cog is told where to put its files when it starts.
            Fine(format!("start cog with --upload-url {}", callbacks.files_url(&ProviderId::new("cog"))))
        }
        Ok(Some(_)) => Fine("providers are told to call back".into()),
        Ok(None) => Lacking("providers are polled only; set CALLBACK_URL if they can reach this server".into()),
        Err(e) => Missing(format!("{e:#}")),
    }
}

async fn media(settings: &Settings) -> Finding {
    match backends::probe_media(settings).await {
        Ok(()) => Fine(format!("{} can be written to", settings.media_dir.display())),
        Err(e) => Missing(format!("{e:#}; set MEDIA_DIR to a directory that can be written to")),
    }
}

async fn database(settings: &Settings) -> Finding {
    match backends::probe_database(settings).await {
        Ok(jobs) => Fine(format!("{} opens; {jobs} jobs are live", settings.database_url)),
        Err(e) => Missing(format!("{e:#}; set DATABASE_URL to sqlite:PATH on a local disk")),
    }
}

async fn port(settings: &Settings) -> Finding {
    let address = SocketAddr::new(settings.host, settings.port);
    let Err(problem) = serve::listen(address).await else { return Fine(format!("{address} is free")) };
    let base = settings.public_base(settings.port).unwrap_or_default();
    match crate::generate::is_vidgen(&base).await {
        true => Fine(format!("a vidgen server already listens at {address}")),
        false => Missing(format!("{problem:#}")),
    }
}
