//! The HTTP crate against the in-memory backends, without a socket.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "the helpers of tests are tests")]

mod errors;
mod generate;
mod host;
mod jobs;
mod media;
mod page;
mod support;
