//! The vidgen server, worker and command line in one binary.
//!
//! With nothing configured: jobs in a SQLite file, media on disk, made by ffmpeg on this machine.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program talks on its standard streams")]

mod backends;
mod doctor;
mod generate;
mod pipelines;
mod providers;
mod secrets;
mod serve;
mod settings;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::settings::Settings;

/// AI video generation as a service.
#[derive(Debug, Parser)]
#[command(name = "vidgen", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves the API, the page and, unless told otherwise, runs the jobs.
    Serve {
        #[command(flatten)]
        settings: Settings,
        /// Only serve; `vidgen worker` processes run the jobs.
        #[arg(long)]
        no_worker: bool,
    },
    /// Runs jobs, without serving anything.
    Worker {
        #[command(flatten)]
        settings: Settings,
    },
    /// Serves and runs jobs in one process.
    All {
        #[command(flatten)]
        settings: Settings,
    },
    /// Makes one video and waits for it.
    Generate(Box<generate::Args>),
    /// Checks that everything needed is there.
    Doctor {
        #[command(flatten)]
        settings: Settings,
    },
}

impl Command {
    fn settings(&self) -> &Settings {
        match self {
            Self::Serve { settings, .. }
            | Self::Worker { settings }
            | Self::All { settings }
            | Self::Doctor { settings } => settings,
            Self::Generate(args) => &args.settings,
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(&cli) {
        Ok(code) => code,
        // One line, whatever is wrong: the whole chain of causes.
        Err(error) => {
            eprintln!("vidgen: {}", format!("{error:#}").replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

fn start(cli: &Cli) -> anyhow::Result<ExitCode> {
    // `generate` has a progress bar where logs would go, and a message of its own when it fails.
    let quiet = matches!(cli.command, Command::Generate(_) | Command::Doctor { .. });
    let log = cli.command.settings().log.clone().unwrap_or_else(|| if quiet { "off" } else { "info" }.into());
    let filter = EnvFilter::try_new(&log).with_context(|| format!("LOG={log:?} is not a log filter"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .init();

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        match &cli.command {
            Command::Serve { settings, no_worker } => serve::run(settings, !no_worker).await,
            Command::All { settings } => serve::run(settings, true).await,
            Command::Worker { settings } => serve::work(settings).await,
            Command::Generate(args) => generate::run(args).await,
            Command::Doctor { settings } => Ok(doctor::run(settings).await),
        }
    });
    // What is still running is durable, or was told to stop long ago.
    runtime.shutdown_timeout(Duration::from_millis(100));
    code
}
