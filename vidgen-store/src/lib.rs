//! Where the state of vidgen lives: durable queues, and stores for media.

#[cfg(feature = "object")]
mod object;
#[cfg(feature = "sqlite")]
pub mod sqlite;

#[cfg(feature = "object")]
pub use object::ObjectStore;
