//! Who a job belongs to, and what they may use.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::money::Usd;

/// A user of the host's product: who owns jobs and pays for them.
///
/// 1 to 128 characters of `A-Z a-z 0-9 . _ @ : + -`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantId(String);

impl TenantId {
    /// Takes the host's own id of the user.
    ///
    /// # Errors
    /// `Invalid` if it is empty, longer than 128 characters or has a character that is not allowed.
    pub fn new(id: impl Into<String>) -> Result<Self> {
        let id = id.into();
        let fine = |c: char| c.is_ascii_alphanumeric() || "._@:+-".contains(c);
        if id.is_empty() || id.len() > 128 || !id.chars().all(fine) {
            return Err(Error::invalid_field("tenant", "must be 1 to 128 characters of A-Z a-z 0-9 . _ @ : + -"));
        }
        Ok(Self(id))
    }

    /// The tenant of a host that has only one.
    #[must_use]
    pub fn single() -> Self {
        Self("default".into())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl FromStr for TenantId {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        Self::new(s)
    }
}
impl TryFrom<String> for TenantId {
    type Error = Error;
    fn try_from(s: String) -> Result<Self> {
        Self::new(s)
    }
}
impl From<TenantId> for String {
    fn from(id: TenantId) -> Self {
        id.0
    }
}

/// What a tenant may use. Checked by the queue in the transaction that creates the job, so the
/// limits hold exactly across processes. The last limits given for a tenant are the ones in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// How many jobs may be created in a window; `None` is no limit.
    pub creates: Option<Window<u32>>,
    /// How many jobs may be live (queued or processing) at once; `None` is no limit.
    pub live_jobs: Option<u32>,
    /// How much may be spent in a window, holds of live jobs included; `None` is no limit.
    pub budget: Option<Window<Usd>>,
    /// How many jobs may be ready or running at once; the others wait their turn.
    pub active_jobs: u32,
    /// The share of the workers relative to other tenants; at least 1.
    pub weight: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { creates: None, live_jobs: None, budget: None, active_jobs: 16, weight: 1 }
    }
}

/// So much in each window of time. Windows are fixed: they start at multiples of `per` since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window<T> {
    /// How much.
    pub limit: T,
    /// In how long.
    pub per: Duration,
}
