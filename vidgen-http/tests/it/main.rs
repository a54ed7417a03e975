//! The HTTP crate from outside: against the in-memory backends, the router without a socket.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod callbacks;
mod errors;
mod generate;
mod host;
mod jobs;
mod media;
mod page;
mod support;
mod webhook;
