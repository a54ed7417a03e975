//! Providers for vidgen: where images, videos and speech come from. Each is behind a feature of its
//! own name.

#[cfg(feature = "local")]
pub mod local;
