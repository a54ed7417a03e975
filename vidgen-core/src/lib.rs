//! AI video generation as a service, as a library: traits, job pipeline and in-memory backends.
//!
//! A product's users ask for a video, get a job id at once, and poll, watch or are called back.
//! Behind that stand four traits: a [`Queue`] keeps the jobs, [`Provider`]s make the media, a
//! [`Store`] keeps them, and a [`Notifier`] tells the world. A [`Pipeline`] says which steps a job
//! has and who does each; [`Vidgen`] is the handle a host holds.

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

pub use clock::Clock;
pub use error::{Error, ErrorKind, FieldError, Result, quote};
pub use job::*;
pub use media::*;
pub use money::*;
pub use notifier::*;
pub use pipeline::{Pipeline, Plan, PlannedRoute, PlannedStep, Route, Timing};
pub use provider::*;
pub use queue::*;
pub use request::*;
pub use status::*;
pub use store::*;
pub use tenant::*;
pub use vidgen::{CreateOptions, Vidgen, VidgenBuilder};
pub use worker::{Worker, WorkerBuilder};
