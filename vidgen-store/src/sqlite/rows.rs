//! Rows to values and back.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;
use vidgen_core::{Error, Job, JobId, JobState, StepRecord, TenantId, Usd, WorkerId};

use super::fault::{ORIGIN, Outcome, corrupt};

/// `vg_queue.state`. The partial indexes of the schema spell these numbers out.
pub(super) const PARKED: i64 = 0;
pub(super) const READY: i64 = 1;
pub(super) const WAITING: i64 = 2;
pub(super) const RUNNING: i64 = 3;

/// `vg_job.final`, and `last_write` where that is not [`RELEASED`].
pub(super) const COMPLETED: i64 = 1;
pub(super) const FAILED: i64 = 2;
pub(super) const CANCELED: i64 = 3;
/// `last_write` of a claim that was handed back.
pub(super) const RELEASED: i64 = 0;
/// `vg_worker.gone`.
pub(super) const DIED: i64 = 1;
pub(super) const LEFT: i64 = 2;

/// Everything of a job, live or ended, with its steps: one statement, so one moment.
macro_rules! job_columns {
    () => {
        "j.id, j.tenant, j.request, j.plan, j.created_at, j.final, j.ended_at, j.output, j.failure, q.state, \
         coalesce(q.version, j.version) as version, coalesce(q.progress, j.progress) as progress, \
         coalesce(q.attempts, j.attempts) as attempts, coalesce(q.crashes, j.crashes) as crashes, \
         coalesce(q.cancel, j.cancel) as cancel, coalesce(q.started_at, j.started_at) as started_at, \
         coalesce(q.held, j.held) as held, coalesce(q.cost, j.cost) as cost, coalesce(q.epoch, j.epoch) as epoch, \
         (select '[' || group_concat(s.record, ',') || ']' from vg_step s where s.job = j.id) as steps, \
         (select '[' || group_concat(w.witness, ',') || ']' from vg_witness w where w.job = j.id) as witnesses"
    };
}
pub(super) use job_columns;

/// Reads what [`job_columns`] selects.
pub(super) fn job(row: &SqliteRow) -> Outcome<Job> {
    let id = job_id(row, "id")?;
    let column = |name: &str| format!("{name} of job {id}");
    let tenant = tenant(row)?;
    let request = json(row.try_get("request")?, || column("request"))?;
    let plan = json(row.try_get("plan")?, || column("plan"))?;
    let mut job = Job::created(id, tenant, request, plan, timestamp(row.try_get("created_at")?));
    job.state = match (row.try_get("state")?, row.try_get("final")?) {
        (Some(RUNNING), _) => JobState::Processing,
        (Some(_), _) => JobState::Queued,
        (None, Some(COMPLETED)) => JobState::Completed,
        (None, Some(FAILED)) => JobState::Failed,
        (None, Some(CANCELED)) => JobState::Canceled,
        (None, _) => return Err(Error::internal(ORIGIN, format!("job {id} is neither live nor ended")).into()),
    };
    job.version = unsigned(row.try_get("version")?);
    job.progress = u8::try_from(row.try_get::<i64, _>("progress")?).unwrap_or(100);
    job.attempts = small(row.try_get("attempts")?);
    job.crashes = small(row.try_get("crashes")?);
    job.cancel_requested = row.try_get("cancel")?;
    job.started_at = row.try_get::<Option<i64>, _>("started_at")?.map(timestamp);
    job.ended_at = row.try_get::<Option<i64>, _>("ended_at")?.map(timestamp);
    job.output = optional_json(row, "output", column)?;
    job.failure = optional_json(row, "failure", column)?;
    job.held = Usd::from_micros(row.try_get("held")?);
    job.cost = Usd::from_micros(row.try_get("cost")?);
    let mut steps: Vec<StepRecord> = optional_json(row, "steps", column)?.unwrap_or_default();
    // The order of a plan.
    steps.sort_by_key(|record| record.step);
    job.steps = steps;
    job.witnesses = optional_json(row, "witnesses", column)?.unwrap_or_default();
    Ok(job)
}

fn optional_json<T: DeserializeOwned>(
    row: &SqliteRow,
    name: &str,
    column: impl Fn(&str) -> String,
) -> Outcome<Option<T>> {
    row.try_get::<Option<&str>, _>(name)?.map(|text| json(text, || column(name))).transpose()
}

/// Reads a JSON column; `what` names it in the error.
pub(super) fn json<T: DeserializeOwned>(text: &str, what: impl FnOnce() -> String) -> Outcome<T> {
    // The cause is told without the text: serde quotes no more than a place and a type.
    serde_json::from_str(text).map_err(|e| corrupt(what(), e).into())
}

/// The text of a JSON column.
pub(super) fn to_json<T: Serialize>(value: &T) -> Outcome<String> {
    serde_json::to_string(value)
        .map_err(|e| Error::internal(ORIGIN, "a value cannot be written as JSON").with_source(e).into())
}

pub(super) fn job_id(row: &SqliteRow, column: &str) -> Outcome<JobId> {
    Ok(JobId::from_uuid(uuid(row, column)?))
}

pub(super) fn worker_id(row: &SqliteRow, column: &str) -> Outcome<WorkerId> {
    Ok(WorkerId::from_uuid(uuid(row, column)?))
}

fn uuid(row: &SqliteRow, column: &str) -> Outcome<Uuid> {
    Uuid::from_slice(row.try_get(column)?).map_err(|e| corrupt(format!("the id in column {column}"), e).into())
}

pub(super) fn tenant(row: &SqliteRow) -> Outcome<TenantId> {
    let text: String = row.try_get("tenant")?;
    TenantId::new(text).map_err(|e| corrupt("a tenant's id", e).into())
}

/// The bytes of an id, to bind.
pub(super) trait Blob {
    fn blob(&self) -> Vec<u8>;
}

impl Blob for JobId {
    fn blob(&self) -> Vec<u8> {
        self.uuid().into_bytes().to_vec()
    }
}

impl Blob for WorkerId {
    fn blob(&self) -> Vec<u8> {
        self.uuid().into_bytes().to_vec()
    }
}

/// Ids as a JSON list of hex, for `json_each` and `unhex`: SQLite binds no lists.
pub(super) fn hex_list(jobs: &[JobId]) -> Outcome<String> {
    to_json(&jobs.iter().map(|job| job.uuid().simple().to_string()).collect::<Vec<_>>())
}

/// The last 4 bytes of a job's id: random, so that sums of them tell sets apart.
pub(super) fn mark(job: JobId) -> i64 {
    i64::try_from(job.uuid().as_u128() & 0xffff_ffff).unwrap_or(0)
}

pub(super) fn timestamp(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or(Timestamp::MAX)
}

/// A duration in microseconds, at most as long as time.
pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// The moment `delay` after `now`, within what a timestamp can be.
pub(super) fn after(now: i64, delay: Duration) -> i64 {
    now.saturating_add(micros(delay)).min(Timestamp::MAX.as_microsecond())
}

/// How long from `now` until `then`; zero if that is past.
pub(super) fn wait(now: i64, then: i64) -> Duration {
    Duration::from_micros(unsigned(then.saturating_sub(now)))
}

/// A number of rows or a counter, which is never negative.
pub(super) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

pub(super) fn small(value: i64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// A count or an epoch, to bind.
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A limit, to bind.
pub(super) fn limit(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
