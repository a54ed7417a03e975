//! Telling the world that a job ended.

use std::fmt::{self, Debug};
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::Result;
use crate::job::JobId;
use crate::queue::WorkerId;
use crate::tenant::TenantId;

/// Takes an event to its endpoint.
///
/// # Contract
/// - **N1** A retry repeats the event id and the bytes.
/// - **N2** Failure is an `Error` with a verdict, never a panic: `Invalid`, `Refused`, `NotFound` and
///   `Unauthorized` mean never again, everything else means later (`retry_after`, if given).
/// - **N3** A slow receiver costs bounded time, and stalls nobody else.
/// - **N4** [`Notifier::accepts`] refuses, without a call, an endpoint that could never be told.
#[async_trait]
pub trait Notifier: Debug + Send + Sync + 'static {
    /// Whether an endpoint can be told at all; checked when the job is created.
    ///
    /// # Errors
    /// `Invalid`, saying what the endpoint should be.
    fn accepts(&self, endpoint: &str) -> Result<()>;

    /// Delivers one event, once.
    async fn notify(&self, delivery: &Delivery) -> Result<()>;
}

#[async_trait]
impl<T: Notifier + ?Sized> Notifier for Arc<T> {
    fn accepts(&self, endpoint: &str) -> Result<()> {
        (**self).accepts(endpoint)
    }
    async fn notify(&self, delivery: &Delivery) -> Result<()> {
        (**self).notify(delivery).await
    }
}

/// The id of an event: `evt_` and 32 hex digits, the same on every attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventId(String);

impl EventId {
    /// A new random id.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a new id is not a default value")]
    pub fn new() -> Self {
        Self(format!("evt_{}", Uuid::new_v4().simple()))
    }

    /// Takes an id that was made before.
    pub fn from_text(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An event to put into the outbox, serialised once.
#[derive(Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// Its id.
    pub id: EventId,
    /// What happened, e.g. `job.completed`.
    pub kind: String,
    /// Where to tell it.
    pub endpoint: String,
    /// What to tell: JSON. May hold signed links, so it is not printed.
    pub body: String,
}

impl Debug for NewEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewEvent").field("id", &self.id).field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// One event on its way to one endpoint.
#[derive(Clone)]
pub struct Delivery {
    /// The event's id.
    pub id: EventId,
    /// What happened.
    pub kind: String,
    /// Of which job.
    pub job: JobId,
    /// Of which tenant.
    pub tenant: TenantId,
    /// Where to.
    pub endpoint: String,
    /// The bytes to send.
    pub body: String,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// Who claimed it.
    pub worker: WorkerId,
    /// Makes the writes of earlier claims fail.
    pub epoch: u64,
}

impl Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .field("job", &self.job)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

/// Which deliveries to list, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeliveryFilter {
    /// Only those of this job.
    pub job: Option<JobId>,
    /// At most so many; 1 to 100.
    pub limit: usize,
}

/// How an event's delivery stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryRecord {
    /// The event's id.
    pub id: EventId,
    /// What happened.
    pub kind: String,
    /// Of which job.
    pub job: JobId,
    /// How it stands.
    pub state: DeliveryState,
    /// How many attempts were made.
    pub attempts: u32,
    /// When the next one is due, if one is.
    pub next_at: Option<Timestamp>,
    /// Why the last one failed.
    pub reason: Option<String>,
    /// When it was created.
    pub created_at: Timestamp,
}

/// How a delivery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// Due now or later.
    Pending,
    /// The receiver took it.
    Delivered,
    /// It never will be.
    GivenUp,
}
