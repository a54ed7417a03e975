//! Backends in process: for tests, examples and trying things out. Nothing survives the process.

mod notifier;
mod provider;
mod queue;
mod store;

pub use notifier::MemoryNotifier;
pub use provider::{Scene, ScriptedProvider};
pub use queue::MemoryQueue;
pub use store::MemoryStore;
