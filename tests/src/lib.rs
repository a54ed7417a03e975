//! What the end-to-end and crash tests share: faults that wrap the traits, and a provider whose
//! remote outlives the process that calls it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "test code fails by panicking"
)]

pub mod cog;
pub mod faults;
pub mod hurried;
pub mod remote;
pub mod server;

/// The README's code, compiled as it stands.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
