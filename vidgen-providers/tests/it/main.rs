//! One binary for all tests of providers from the outside.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "clippy allows these in tests, but does not know the helpers of an integration test"
)]

#[cfg(feature = "lab")]
#[allow(dead_code, reason = "some providers' tests use it")]
mod answers;
#[cfg(all(feature = "lab", feature = "cog"))]
mod cog;
#[cfg(all(feature = "lab", feature = "comfyui"))]
mod comfyui;
#[cfg(all(feature = "lab", feature = "elevenlabs"))]
mod elevenlabs;
#[cfg(all(feature = "lab", feature = "fal"))]
mod fal;
#[cfg(feature = "lab")]
mod lab;
#[cfg(feature = "local")]
mod local;
#[cfg(all(feature = "lab", feature = "openai"))]
mod openai;
#[cfg(feature = "lab")]
#[allow(dead_code, reason = "each provider's tests use a part of it")]
mod remote;
#[cfg(all(feature = "lab", feature = "replicate"))]
mod replicate;
#[cfg(all(feature = "lab", feature = "runway"))]
mod runway;
