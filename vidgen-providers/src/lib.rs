//! Providers for vidgen: where images, videos and speech come from.

#[cfg(feature = "local")]
pub mod local;
