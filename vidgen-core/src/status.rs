//! What a user is shown of a job: the answer to a status call, and the heart of a webhook.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::job::{Job, JobId, JobState};
use crate::media::MediaKey;
use crate::tenant::TenantId;

/// Makes links to media that the store cannot link to itself. `vidgen-http` has one that the
/// router serves.
pub trait MediaLinks: std::fmt::Debug + Send + Sync + 'static {
    /// A link that `tenant`'s media under `key` can be fetched by until `expires_at`.
    fn link(&self, tenant: &TenantId, key: &MediaKey, expires_at: Timestamp) -> Url;
}

/// What a user is shown of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    /// The job's id.
    pub job_id: JobId,
    /// Where it is in its life.
    pub status: JobState,
    /// 0 to 100.
    pub progress: u8,
    /// What it made, once completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<StatusOutput>,
    /// Why it made nothing, for people, once failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The same for machines, e.g. `content_refused`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// What its owner pays, in dollars, once ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
    /// What was left out and why, e.g. speech where no voice can be had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
}

/// Links to what a job made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusOutput {
    /// The video.
    pub video_url: String,
    /// A picture out of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thumbnail_url: Option<String>,
    /// How long the video is.
    pub duration_seconds: f64,
}

impl JobStatus {
    /// What is shown of `job`, with the links that were made for its output.
    #[must_use]
    pub fn of(job: &Job, output: Option<StatusOutput>) -> Self {
        let ended = job.state.is_ended();
        Self {
            job_id: job.id,
            status: job.state,
            progress: job.progress,
            output,
            error: job.failure.as_ref().map(|f| f.message.clone()),
            code: job.failure.as_ref().map(|f| f.code.clone()),
            cost: ended.then(|| job.charge().dollars()),
            notes: job.skipped().map(|(step, reason)| format!("without {step}: {reason}")).collect(),
            created_at: job.created_at,
            completed_at: job.ended_at,
        }
    }
}
