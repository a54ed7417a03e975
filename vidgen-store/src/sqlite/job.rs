//! A job inside a transaction: read, fenced, changed, ended.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use vidgen_core::{
    Claim, Error, ErrorKind, Fenced, Job, JobEnd, JobId, JobState, LedgerEntry, NewEvent, StepRecord, TenantId, Usd,
    WorkerId, held_after_cost, settle_adjustment,
};

use super::fault::{ORIGIN, Outcome};
use super::rows::{self, Blob, CANCELED, COMPLETED, FAILED, READY, RUNNING, job_columns};
use super::tenant::Account;
use super::writer::Tx;

pub(super) const FIND: &str = concat!(
    "select j.priority, ",
    job_columns!(),
    " from vg_job j left join vg_queue q on q.job = j.id where j.id = ?"
);
pub(super) const FENCED: &str = concat!(
    "select j.priority, ",
    job_columns!(),
    " from vg_queue q join vg_worker w on w.id = q.worker join vg_job j on j.id = q.job \
     where q.job = ? and q.worker = ? and q.epoch = ? and q.state = 3 and w.gone = 0"
);

/// A job of the queue that an operation changes, with what users do not see of it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) job: Job,
    /// `None` once it ended.
    pub(super) place: Option<i64>,
    pub(super) epoch: i64,
    pub(super) priority: i64,
}

impl Entry {
    pub(super) fn of(row: &SqliteRow) -> Outcome<Self> {
        Ok(Self {
            job: rows::job(row)?,
            place: row.try_get("state")?,
            epoch: row.try_get("epoch")?,
            priority: row.try_get("priority")?,
        })
    }

    /// Whether it takes one of its tenant's slots.
    fn is_active(&self) -> bool {
        matches!(self.place, Some(READY | RUNNING))
    }
}

/// It contradicts what is already there.
pub(super) fn conflict(message: &'static str) -> Error {
    Error::new(ErrorKind::Conflict, ORIGIN, message)
}

pub(super) fn final_of(state: JobState) -> Option<i64> {
    match state {
        JobState::Queued | JobState::Processing => None,
        JobState::Completed => Some(COMPLETED),
        JobState::Failed => Some(FAILED),
        JobState::Canceled => Some(CANCELED),
    }
}

impl Tx {
    /// A job by its id.
    pub(super) async fn find(&mut self, id: JobId) -> Outcome<Option<Entry>> {
        let row = sqlx::query(FIND).bind(id.blob()).fetch_optional(&mut self.conn).await?;
        row.as_ref().map(Entry::of).transpose()
    }

    /// A tenant's own job; anybody else's is not there (rule Q15).
    pub(super) async fn own(&mut self, tenant: &TenantId, id: JobId) -> Outcome<Entry> {
        let found = self.find(id).await?.filter(|entry| entry.job.tenant == *tenant);
        Ok(found.ok_or_else(Error::job_not_found)?)
    }

    /// Whether a worker may claim and write (rule Q5).
    pub(super) async fn is_known(&mut self, worker: WorkerId) -> Outcome<bool> {
        let known = sqlx::query_scalar("select exists (select 1 from vg_worker where id = ? and gone = 0)")
            .bind(worker.blob())
            .fetch_one(&mut self.conn)
            .await?;
        Ok(known)
    }

    /// The job of a claim, if the claim still stands (rules Q1, Q2 and Q5).
    pub(super) async fn fenced(&mut self, claim: Claim) -> Outcome<Option<Entry>> {
        let row = sqlx::query(FENCED)
            .bind(claim.job.blob())
            .bind(claim.worker.blob())
            .bind(rows::signed(claim.epoch))
            .fetch_optional(&mut self.conn)
            .await?;
        row.as_ref().map(Entry::of).transpose()
    }

    /// The answer to a write of a claim that does not stand.
    pub(super) async fn ended_by(&mut self, claim: Claim, write: i64) -> Outcome<Fenced> {
        let same: bool = sqlx::query_scalar(
            "select exists (select 1 from vg_job j left join vg_queue q on q.job = j.id where j.id = ?1 and \
             ((q.last_worker = ?2 and q.last_epoch = ?3 and q.last_write = ?4) or \
              (q.job is null and j.last_worker = ?2 and j.last_epoch = ?3 and j.last_write = ?4)))",
        )
        .bind(claim.job.blob())
        .bind(claim.worker.blob())
        .bind(rows::signed(claim.epoch))
        .bind(write)
        .fetch_one(&mut self.conn)
        .await?;
        Ok(if same { Fenced::Already } else { Fenced::Stale })
    }

    /// Writes a step's record.
    pub(super) async fn put_step(&mut self, job: JobId, record: &StepRecord) -> Outcome<()> {
        sqlx::query(
            "insert into vg_step (job, step, revision, record) values (?1, ?2, ?3, ?4) \
             on conflict (job, step) do update set revision = ?3, record = ?4",
        )
        .bind(job.blob())
        .bind(record.step.as_str())
        .bind(i64::from(record.revision))
        .bind(rows::to_json(record)?)
        .execute(&mut self.conn)
        .await?;
        Ok(())
    }

    /// Records a cost, once (rule Q16): in the ledger, and in the job, which the caller writes.
    pub(super) async fn bill(
        &mut self,
        account: &mut Account,
        job: &mut Job,
        cost: vidgen_core::CostEntry,
    ) -> Outcome<()> {
        let amount = cost.cost.amount;
        if self.book(account, job.id, &LedgerEntry::Cost(cost), amount).await? {
            job.cost += amount;
            let held = held_after_cost(job.held, amount);
            account.held = account.held - job.held + held;
            job.held = held;
        }
        Ok(())
    }

    /// Makes the ledger rows of an ended job add up to what its tenant pays (rule Q16).
    pub(super) async fn adjust(&mut self, account: &mut Account, job: &Job) -> Outcome<()> {
        let booked: i64 = sqlx::query_scalar("select coalesce(sum(amount), 0) from vg_ledger where job = ?")
            .bind(job.id.blob())
            .fetch_one(&mut self.conn)
            .await?;
        let difference = settle_adjustment(job.state, job.cost, Usd::from_micros(booked));
        if difference != Usd::ZERO {
            self.book(account, job.id, &LedgerEntry::Adjustment, difference).await?;
        }
        Ok(())
    }

    /// Ends a live job: its record, its money and its events. `by` is the claim that does it.
    pub(super) async fn end(
        &mut self,
        mut entry: Entry,
        end: JobEnd,
        keep_hold: Usd,
        events: Vec<NewEvent>,
        by: Option<Claim>,
    ) -> Outcome<Job> {
        let mut account = self.account(&entry.job.tenant).await?;
        account.live -= 1;
        account.active -= i64::from(entry.is_active());
        account.held = account.held - entry.job.held + keep_hold;
        let job = &mut entry.job;
        let last = end.state();
        job.end(end, keep_hold, self.timestamp());
        job.version += 1;
        let failed = last != JobState::Completed;
        *(if failed { &mut account.failed } else { &mut account.completed }) += 1;
        sqlx::query(
            "update vg_job set final = ?2, started_at = ?3, ended_at = ?4, ended_on = ?5, failed = ?6, version = ?7, \
             progress = ?8, attempts = ?9, crashes = ?10, cancel = ?11, epoch = ?12, held = ?13, cost = ?14, \
             output = ?15, failure = ?16, \
             (last_worker, last_epoch, last_write) = \
             (select last_worker, last_epoch, last_write from vg_queue where job = ?1) where id = ?1",
        )
        .bind(job.id.blob())
        .bind(final_of(last))
        .bind(job.started_at.map(jiff::Timestamp::as_microsecond))
        .bind(self.now)
        .bind(self.steady)
        .bind(failed)
        .bind(rows::signed(job.version))
        .bind(i64::from(job.progress))
        .bind(i64::from(job.attempts))
        .bind(i64::from(job.crashes))
        .bind(job.cancel_requested)
        .bind(entry.epoch)
        .bind(job.held.micros())
        .bind(job.cost.micros())
        .bind(job.output.as_ref().map(rows::to_json).transpose()?)
        .bind(job.failure.as_ref().map(rows::to_json).transpose()?)
        .execute(&mut self.conn)
        .await?;
        if let Some(claim) = by {
            sqlx::query("update vg_job set last_worker = ?, last_epoch = ?, last_write = ? where id = ?")
                .bind(claim.worker.blob())
                .bind(rows::signed(claim.epoch))
                .bind(final_of(last))
                .bind(job.id.blob())
                .execute(&mut self.conn)
                .await?;
        }
        sqlx::query("delete from vg_queue where job = ?").bind(job.id.blob()).execute(&mut self.conn).await?;
        self.adjust(&mut account, job).await?;
        for event in &events {
            self.post(job, event).await?;
        }
        self.save(account).await?;
        self.touched.jobs.push(job.id);
        Ok(entry.job)
    }
}
