//! Backends in process: for tests, examples and trying things out. Nothing survives the process.

mod notifier;
mod store;

pub use notifier::MemoryNotifier;
pub use store::MemoryStore;
