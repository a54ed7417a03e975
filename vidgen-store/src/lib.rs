//! Where the state of vidgen lives: durable queues, and stores for media.
//!
//! ```
//! use std::time::Duration;
//! use vidgen_core::memory::ScriptedProvider;
//! use vidgen_core::{CreateOptions, JobRequest, JobState, Pipeline, TenantId, Vidgen};
//! use vidgen_store::ObjectStore;
//! use vidgen_store::sqlite::SqliteQueue;
//!
//! # async fn example(dir: &std::path::Path) -> vidgen_core::Result<()> {
//! let vidgen = Vidgen::builder()
//!     .queue(SqliteQueue::open(dir.join("vidgen.db")).await?)
//!     .store(ObjectStore::local(dir.join("media"))?)
//!     .pipeline(Pipeline::named("default").video(ScriptedProvider::new("studio")))
//!     .build()?;
//! let tenant = TenantId::single();
//! let mut job = vidgen.create(&tenant, JobRequest::new("a cat"), CreateOptions::default()).await?.job;
//! let worker = vidgen.worker().spawn();
//! while !job.state.is_ended() {
//!     job = vidgen.watch(&tenant, job.id, job.version, Duration::from_secs(10)).await?;
//! }
//! worker.shutdown().await;
//! assert_eq!(job.state, JobState::Completed);
//! # Ok(())
//! # }
//! # let dir = tempfile::tempdir().unwrap();
//! # tokio::runtime::Runtime::new().unwrap().block_on(example(dir.path())).unwrap();
//! ```

#[cfg(feature = "object")]
mod object;
#[cfg(feature = "sqlite")]
pub mod sqlite;

#[cfg(feature = "object")]
pub use object::ObjectStore;
