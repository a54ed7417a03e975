//! Numbers, not promises: `cargo bench -p vidgen-store`. On a shared machine only their order tells.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "a program that prints numbers, or fails"
)]

use std::future::Future;
use std::time::{Duration, Instant};

use futures::StreamExt;
use vidgen_core::conformance::sample;
use vidgen_core::{Claim, JobEnd, Limits, MAX_BATCH, NewJob, Queue, Settlement, Usd};
use vidgen_store::sqlite::SqliteQueue;

fn new() -> NewJob {
    let limits = Limits { active_jobs: 1_000_000, ..Limits::default() };
    NewJob { limits, ..sample::new_job(&sample::tenant("ann")) }
}

async fn rate<F: Future<Output = ()>>(what: &str, count: usize, callers: usize, call: impl Fn() -> F) {
    let begun = Instant::now();
    futures::stream::iter(0..count).for_each_concurrent(callers, |_| call()).await;
    let per_second = f64::from(u32::try_from(count).unwrap()) / begun.elapsed().as_secs_f64();
    println!("{what}, {callers} callers: {per_second:.0}/s");
}

fn spread(mut waits: Vec<Duration>) -> String {
    waits.sort();
    let at = |percent: usize| waits[(waits.len() * percent / 100).min(waits.len() - 1)];
    format!("p50 {:?}, p95 {:?}, p99 {:?}", at(50), at(95), at(99))
}

/// User and system time of this process, in ticks of 10 ms.
fn cpu() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let numbers: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    numbers[11].parse::<u64>().unwrap() + numbers[12].parse::<u64>().unwrap()
}

fn main() {
    tokio::runtime::Runtime::new().unwrap().block_on(measure());
}

async fn measure() {
    let directory = tempfile::tempdir_in(".").unwrap();
    let queue = SqliteQueue::open(directory.path().join("vidgen.db")).await.unwrap();
    let create = || async { drop(queue.enqueue(new()).await.unwrap()) };
    rate("create", 300, 1, create).await;
    rate("create", 5_000, 10, create).await;
    rate("create", 20_000, 100, create).await;
    rate("create", 24_700, 1_000, create).await;

    let worker = queue.register("w").await.unwrap();
    let begun = Instant::now();
    let mut held: Vec<Claim> = Vec::new();
    while let Some(batch) = Some(queue.claim(worker, MAX_BATCH).await.unwrap()).filter(|b| !b.jobs.is_empty()) {
        held.extend(batch.jobs.into_iter().map(|claimed| claimed.claim));
    }
    println!("claim of {} jobs, {MAX_BATCH} at once: {:?}", held.len(), begun.elapsed());
    let begun = Instant::now();
    assert!(queue.heartbeat(worker, &held).await.unwrap().lost.is_empty());
    println!("a beat for them: {:?}", begun.elapsed());
    let begun = Instant::now();
    queue.stats().await.unwrap();
    println!("stats of them: {:?}", begun.elapsed());
    let settle = |claim| {
        let settlement =
            Settlement { claim, end: JobEnd::Completed(sample::output()), keep_hold: Usd::ZERO, events: vec![] };
        async { assert_eq!(queue.settle(settlement).await.unwrap(), vidgen_core::Fenced::Applied) }
    };
    let begun = Instant::now();
    futures::stream::iter(&held).for_each_concurrent(100, |claim| settle(*claim)).await;
    println!("settle, 100 callers: {:.0}/s", held.len() as f64 / begun.elapsed().as_secs_f64());

    let mut waits = Vec::new();
    for _ in 0..500 {
        let begun = Instant::now();
        let picked = async {
            queue.ready().await;
            queue.claim(worker, 1).await.unwrap()
        };
        let (_, batch) = tokio::join!(queue.enqueue(new()), picked);
        if let Some(claimed) = batch.jobs.first() {
            waits.push(begun.elapsed());
            settle(claimed.claim).await;
        }
    }
    println!("create to claim with {} ended jobs: {}", held.len(), spread(waits));

    let waiting = queue.clone();
    let waiter = tokio::spawn(async move {
        loop {
            waiting.ready().await
        }
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = cpu();
    tokio::time::sleep(Duration::from_secs(5)).await;
    println!("idle, one worker waiting: {} ms of CPU in 5 s", (cpu() - before) * 10);
    waiter.abort();
}
