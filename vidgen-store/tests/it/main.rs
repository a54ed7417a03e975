//! One binary for all integration tests of the crate.

#[cfg(feature = "sqlite")]
mod sqlite;
