//! Backends in process: for tests, examples and trying things out. Nothing survives the process.

mod queue;

pub use queue::MemoryQueue;
