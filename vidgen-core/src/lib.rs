//! AI video generation as a service, as a library: traits, job pipeline and in-memory backends.
//!
//! A product's users ask for a video, get a job id at once, and poll, watch or are called back.
//! Behind that stand four traits: a [`Queue`] keeps the jobs, [`Provider`]s make the media, a
//! [`Store`] keeps them, and a [`Notifier`] tells the world. A [`Pipeline`] says which steps a job
//! has and who does each; [`Vidgen`] is the handle a host holds; a [`Worker`] does the work.
//!
//! ```
//! use std::time::Duration;
//! use vidgen_core::memory::{MemoryQueue, MemoryStore, ScriptedProvider};
//! use vidgen_core::{CreateOptions, JobRequest, JobState, Pipeline, TenantId, Usd, Vidgen};
//!
//! # async fn example() -> vidgen_core::Result<()> {
//! let studio = ScriptedProvider::new("studio");
//! let vidgen = Vidgen::builder()
//!     .queue(MemoryQueue::new())
//!     .store(MemoryStore::new())
//!     .pipeline(Pipeline::named("default").image(studio.clone()).video(studio.clone()).compose(studio))
//!     .build()?;
//!
//! let tenant = TenantId::new("ada")?;
//! let created = vidgen.create(&tenant, JobRequest::new("a cat in space"), CreateOptions::default()).await?;
//! let worker = vidgen.worker().spawn();
//! let mut job = created.job;
//! while !job.state.is_ended() {
//!     job = vidgen.watch(&tenant, job.id, job.version, Duration::from_secs(10)).await?;
//! }
//! worker.shutdown().await;
//!
//! assert_eq!(job.state, JobState::Completed);
//! assert_eq!(job.charge(), Usd::from_cents(60));
//! # Ok(())
//! # }
//! # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
//! ```
//!
//! # Reading on
//! [`Provider`] and [`Queue`] are the contracts everything hangs on; [`pipeline::step`] is the state
//! machine that keeps a paid generation from being bought twice. With the feature `conformance`,
//! anybody's backend can be held to the same numbered rules as ours; with `net` comes the guarded
//! client for addresses that somebody else chose.

mod builder;
mod callbacks;
pub mod clock;
#[cfg(feature = "conformance")]
pub mod conformance;
mod courier;
mod error;
mod job;
mod media;
pub mod memory;
mod money;
#[cfg(feature = "net")]
pub mod net;
mod notifier;
pub mod pipeline;
mod provider;
mod queue;
mod request;
mod status;
mod store;
mod tenant;
mod vidgen;
mod worker;

pub use builder::VidgenBuilder;
pub use callbacks::{Callbacks, uploaded_name};
pub use clock::Clock;
pub use error::{Error, ErrorKind, FieldError, Result, quote};
pub use job::*;
pub use media::*;
pub use money::*;
pub use notifier::*;
pub use pipeline::route::ProviderProblem;
pub use pipeline::{OnUnknown, Pipeline, Plan, PlannedRoute, PlannedStep, Route, Timing};
pub use provider::*;
pub use queue::*;
pub use request::*;
pub use status::*;
pub use store::*;
pub use tenant::*;
pub use vidgen::{CreateOptions, Vidgen};
pub use worker::{Worker, WorkerBuilder};
