//! Core's own tests of its public face: the whole machine in process, and the in-process backends
//! held to the rules.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests fail by panicking"
)]

mod callbacks;
mod doubts;
mod kit;
mod outages;
mod pipeline;
mod places;
mod provider;
mod queue;
mod silence;
mod survival;
mod wishes;
