//! One binary for all tests of providers from the outside.

#[cfg(feature = "local")]
mod local;
