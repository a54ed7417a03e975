//! Backends in process: for tests, examples and trying things out. Nothing survives the process.

mod provider;
mod queue;

pub use provider::{Scene, ScriptedProvider};
pub use queue::MemoryQueue;
