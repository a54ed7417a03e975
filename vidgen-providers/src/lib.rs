//! Providers for vidgen: where images, videos and speech come from. Each is behind a feature of its
//! own name.

#[cfg(feature = "_http")]
#[allow(unused, reason = "each provider uses its part of it")]
mod client;
#[cfg(feature = "_http")]
#[allow(unused, reason = "each provider uses its part of it")]
pub mod models;

#[cfg(feature = "cog")]
pub mod cog;
#[cfg(feature = "comfyui")]
pub mod comfyui;
#[cfg(feature = "elevenlabs")]
pub mod elevenlabs;
#[cfg(feature = "fal")]
pub mod fal;
#[cfg(feature = "lab")]
pub mod lab;
#[cfg(feature = "local")]
pub mod local;
#[cfg(feature = "openai")]
pub mod openai;
#[cfg(feature = "replicate")]
pub mod replicate;
#[cfg(feature = "runway")]
pub mod runway;
