//! A worker to be killed whose provider is a real cog.
//!
//! `cog-worker DIR COG_URL CALLBACK_BASE [POINT VISIT]`

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code fails by panicking")]

use std::path::PathBuf;
use std::time::Duration;

use vidgen_tests::cog::{self, LEASE};
use vidgen_tests::faults::{Crash, Faults, Point};

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let mut arg = |name: &str| args.next().ok_or_else(|| format!("{name} is missing"));
    let (dir, url, base) = (PathBuf::from(arg("DIR").unwrap()), arg("COG_URL").unwrap(), arg("CALLBACK_BASE").unwrap());
    let at =
        arg("POINT").ok().map(|point| (Point::named(&point).expect("POINT"), arg("VISIT").unwrap().parse().unwrap()));
    let vidgen = cog::host(&dir, &url, &base, &Faults::new(Crash::Kill, at)).await;
    let worker = vidgen.worker().lease(LEASE).spawn();
    // A test that forgets its child must not leave it behind for ever.
    tokio::time::sleep(Duration::from_secs(120)).await;
    worker.shutdown().await;
}
