//! Providers for vidgen: where images, videos and speech come from. Each is behind a feature of its
//! own name.

#[cfg(feature = "lab")]
pub mod lab;
#[cfg(feature = "local")]
pub mod local;
