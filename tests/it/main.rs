//! The integration tests of the whole project, in one binary.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests fail by panicking"
)]

mod cog;
mod crash_memory;
mod crash_providers;
mod crash_sqlite;
mod hints;
mod layering;
mod lease;
mod outage;
mod providers;
mod sim;
mod standalone;
mod third_party;
