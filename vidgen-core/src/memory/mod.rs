//! Backends in process: for tests, examples and trying things out. Nothing survives the process.

mod provider;

pub use provider::{Scene, ScriptedProvider};
