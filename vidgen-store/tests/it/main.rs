//! Every backend of this crate, against the rules of its trait and its own promises.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say what they skip"
)]

#[cfg(feature = "object")]
mod object;
#[cfg(feature = "sqlite")]
mod sqlite;
