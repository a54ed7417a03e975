//! Runs end when they should, and leave nothing behind.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures::StreamExt;
use vidgen_core::{ErrorKind, MediaInput, Provider, RunState};
use vidgen_providers::local::{LocalBuilder, LocalProvider, ToolLimits};

use super::kit::*;

fn builder(scratch: &Path) -> LocalBuilder {
    LocalProvider::builder().with_scratch(scratch)
}

fn photo() -> MediaInput {
    input("a.png", ffmpeg("-f lavfi -i mandelbrot=s=1280x720 -frames:v 1", "a.png"))
}

/// A run that takes many seconds if nobody stops it.
fn long() -> vidgen_core::Task {
    video(photo(), size(1920, 1080), 60.0)
}

/// How many directories of runs there are.
fn runs(scratch: &Path) -> usize {
    let dirs = std::fs::read_dir(scratch).unwrap().flatten();
    dirs.map(|dir| entries(&dir.path()) - 1).sum()
}

/// The processes that work in a directory under `scratch`.
fn workers(scratch: &Path) -> Vec<String> {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|process| std::fs::read_link(process.path().join("cwd")).is_ok_and(|dir| dir.starts_with(scratch)))
        .map(|process| process.file_name().into_string().unwrap())
        .collect()
}

fn at_work(scratch: &Path) -> bool {
    !workers(scratch).is_empty()
}

async fn eventually(what: &str, fine: impl Fn() -> bool) {
    let start = Instant::now();
    while !fine() {
        assert!(start.elapsed() < Duration::from_secs(10), "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_output_stays_until_it_was_read_and_then_goes() {
    let scratch = tempfile::tempdir().unwrap();
    let local = builder(scratch.path()).with_linger(Duration::ZERO).build().unwrap();
    let handle = submit(&local, &image("a city", size(640, 360), 1)).await.unwrap();
    let RunState::Succeeded(outputs) = finish(&local, &handle).await else { panic!() };
    // A reader that gives up half way takes nothing away.
    let mut body = local.open(&outputs[0]).await.unwrap();
    body.next().await.unwrap().unwrap();
    drop(body);
    assert_eq!(runs(scratch.path()), 1);
    local.open(&outputs[0]).await.unwrap().read(1 << 30).await.unwrap();
    eventually("the run's directory is gone", || runs(scratch.path()) == 0).await;
    assert_eq!(local.open(&outputs[0]).await.unwrap_err().kind(), ErrorKind::NotFound);
    // The end stays known.
    assert!(matches!(local.poll(&handle).await.unwrap().state, RunState::Succeeded(_)));
    assert_eq!(local.cancel(&handle).await.unwrap_err().kind(), ErrorKind::TooLate);
    drop(local);
    eventually("the scratch directory is empty", || entries(scratch.path()) == 0).await;
}

#[tokio::test]
async fn an_output_that_nobody_reads_goes_too() {
    let scratch = tempfile::tempdir().unwrap();
    let local = builder(scratch.path()).with_output_life(Duration::from_millis(300)).build().unwrap();
    let handle = submit(&local, &image("a city", size(64, 64), 1)).await.unwrap();
    eventually("the run's directory is gone", || runs(scratch.path()) == 0).await;
    eventually("the run is forgotten", || runs(scratch.path()) == 0).await;
    let start = Instant::now();
    while local.poll(&handle).await.is_ok() {
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}

#[tokio::test]
async fn a_failed_run_leaves_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let local = builder(scratch.path()).build().unwrap();
    failed(&local, &video(input("a.png", &b"<html>"[..]), size(64, 64), 1.0)).await;
    assert_eq!(runs(scratch.path()), 0);
}

#[tokio::test]
async fn cancel_kills_the_tool_and_leaves_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let local = builder(scratch.path()).build().unwrap();
    let handle = submit(&local, &long()).await.unwrap();
    eventually("ffmpeg is at work", || at_work(scratch.path())).await;
    local.cancel(&handle).await.unwrap();
    eventually("ffmpeg is gone", || !at_work(scratch.path())).await;
    assert_eq!(runs(scratch.path()), 0);
    assert!(matches!(local.poll(&handle).await.unwrap().state, RunState::Canceled));
    assert_eq!(local.cancel(&handle).await.unwrap_err().kind(), ErrorKind::TooLate);
}

#[tokio::test]
async fn a_run_that_waits_for_its_turn_can_be_canceled() {
    let scratch = tempfile::tempdir().unwrap();
    let local = builder(scratch.path()).with_concurrency(1).build().unwrap();
    let first = submit(&local, &long()).await.unwrap();
    eventually("ffmpeg is at work", || at_work(scratch.path())).await;
    let second = submit(&local, &image("a city", size(64, 64), 1)).await.unwrap();
    assert!(matches!(local.poll(&second).await.unwrap().state, RunState::Running));
    local.cancel(&second).await.unwrap();
    assert!(matches!(local.poll(&second).await.unwrap().state, RunState::Canceled));
    local.cancel(&first).await.unwrap();
}

#[tokio::test]
async fn with_the_last_clone_everything_ends() {
    let scratch = tempfile::tempdir().unwrap();
    let local = builder(scratch.path()).build().unwrap();
    let clone = local.clone();
    let handle = submit(&local, &long()).await.unwrap();
    drop(local);
    eventually("ffmpeg is at work", || at_work(scratch.path())).await;
    assert!(matches!(clone.poll(&handle).await.unwrap().state, RunState::Running));
    drop(clone);
    eventually("ffmpeg is gone", || !at_work(scratch.path())).await;
    eventually("the scratch directory is empty", || entries(scratch.path()) == 0).await;
}

#[test]
fn a_runtime_that_stops_takes_its_runs_along() {
    let scratch = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let local = builder(scratch.path()).build().unwrap();
    runtime.block_on(async {
        submit(&local, &long()).await.unwrap();
        eventually("ffmpeg is at work", || at_work(scratch.path())).await;
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    drop(local);
    assert_eq!(entries(scratch.path()), 0);
}

/// Set in the process that is to be killed: where it works.
const DOOMED: &str = "VIDGEN_TEST_DOOMED_SCRATCH";

#[tokio::test]
async fn what_a_killed_process_left_is_swept_at_the_next_start() {
    if let Some(scratch) = std::env::var_os(DOOMED) {
        let local = builder(Path::new(&scratch)).build().unwrap();
        submit(&local, &long()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        panic!("nobody killed this process");
    }
    let scratch = tempfile::tempdir().unwrap();
    // This test once more, in a process of its own.
    let name = "local::cleanup::what_a_killed_process_left_is_swept_at_the_next_start";
    let mut doomed = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact"])
        .env(DOOMED, scratch.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("ffmpeg is at work", || at_work(scratch.path())).await;

    // The living are left alone.
    drop(builder(scratch.path()).build().unwrap());
    assert_eq!((entries(scratch.path()), runs(scratch.path())), (1, 1));
    assert!(doomed.try_wait().unwrap().is_none());

    doomed.kill().unwrap();
    assert_eq!(doomed.wait().unwrap().signal(), Some(9));
    assert_eq!((entries(scratch.path()), runs(scratch.path())), (1, 1), "nobody could clean up");
    let local = builder(scratch.path()).build().unwrap();
    assert_eq!((entries(scratch.path()), runs(scratch.path())), (1, 0), "its own directory, and nothing in it");
    drop(local);
    assert_eq!(entries(scratch.path()), 0);
    // Its tool outlives it, within the limits of tools; nobody needs to wait for that here.
    for orphan in workers(scratch.path()) {
        assert!(Command::new("kill").args(["-9", &orphan]).status().unwrap().success());
    }
}

#[tokio::test]
async fn limits_end_a_run_and_say_so() {
    let scratch = tempfile::tempdir().unwrap();
    let mut slow = ToolLimits::default();
    slow.wall = Duration::from_millis(400);
    let mut small = ToolLimits::default();
    small.address_bytes = 150 << 20;
    let mut short = ToolLimits::default();
    short.file_bytes = 20_000;
    for limits in [slow, small, short] {
        let local = builder(scratch.path()).with_limits(limits.clone()).build().unwrap();
        let failure = failed(&local, &long()).await;
        assert_eq!(failure.kind, ErrorKind::Media, "{limits:?} {failure:?}");
        assert!(failure.reason.contains("media limit"), "{limits:?} {failure:?}");
        assert_eq!(runs(scratch.path()), 0);
    }
}

#[tokio::test]
async fn a_tool_whose_place_is_wrong_is_told_at_build() {
    for builder in [
        LocalProvider::builder().with_ffmpeg("/nowhere/ffmpeg"),
        LocalProvider::builder().with_ffprobe("/nowhere/ffprobe"),
        LocalProvider::builder().with_espeak("/nowhere/espeak-ng"),
    ] {
        assert_eq!(builder.build().unwrap_err().kind(), ErrorKind::Invalid);
    }
}
