//! Being laid.

#[cfg(feature = "sqlite")]
pub mod sqlite;
