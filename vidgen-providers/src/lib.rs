//! Providers for vidgen: where images, videos and speech come from. Each is behind a feature of its
//! own name.

#[cfg(feature = "_http")]
#[allow(unused, reason = "each provider uses its part of it")]
mod client;
#[cfg(feature = "_http")]
#[allow(dead_code, reason = "not every provider has a table of models")]
pub mod models;

#[cfg(feature = "comfyui")]
pub mod comfyui;
#[cfg(feature = "lab")]
pub mod lab;
#[cfg(feature = "local")]
pub mod local;
#[cfg(feature = "replicate")]
pub mod replicate;
