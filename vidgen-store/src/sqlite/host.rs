//! What a host asks for that changes something: create, cancel, retry, resolve, delete, pause, wake.

use sqlx::Row;
use vidgen_core::{
    Enqueued, Error, ErrorKind, IDEMPOTENCY_LIFE, Idempotency, Job, JobEnd, JobId, JobState, Limits, NewEvent, NewJob,
    TenantId, Usd, Verdict, Witness,
};

use super::fault::{ORIGIN, Outcome};
use super::job::{Entry, conflict};
use super::rows::{self, Blob, PARKED, READY, RUNNING, WAITING};
use super::writer::Tx;

/// The lowest priority there is.
const LAST_PRIORITY: u8 = 7;

impl Tx {
    pub(super) async fn enqueue(&mut self, new: NewJob) -> Outcome<Enqueued> {
        if let Some(asked) = &new.idempotency
            && let Some(job) = self.first_of(&new.tenant, asked).await?
        {
            return Ok(Enqueued { job, replayed: true });
        }
        let mut job = Job::created(new.id, new.tenant.clone(), new.request, new.plan, self.timestamp());
        let priority = i64::from(new.priority.min(LAST_PRIORITY));
        self.insert_job(&job, priority).await?;

        let mut account = self.account(&new.tenant).await?;
        self.count_create(&mut account, &new.limits)?;
        let others = account.held;
        self.check_limits(&mut account, &new.limits, others, job.held).await?;
        account.held += job.held;
        let (seq, virtual_time) = self.next_seq().await?;
        let (place, tag) = if !new.delay.is_zero() {
            self.touched.ready = true;
            (WAITING, 0)
        } else if account.has_room() {
            self.touched.ready = true;
            (READY, account.take_slot(virtual_time))
        } else {
            (PARKED, 0)
        };
        account.live += 1;
        let run_on = rows::after(self.steady, new.delay);
        self.insert_live(&job, Slot { place, priority, tag, seq, run_on, epoch: 0 }).await?;
        self.save(account).await?;
        if let Some(asked) = new.idempotency {
            sqlx::query("insert or replace into vg_idem (tenant, key, hash, job, expires_on) values (?, ?, ?, ?, ?)")
                .bind(new.tenant.as_str())
                .bind(asked.key)
                .bind(asked.hash)
                .bind(new.id.blob())
                .bind(rows::after(self.steady, IDEMPOTENCY_LIFE))
                .execute(&mut self.conn)
                .await?;
        }
        job.state = JobState::Queued;
        Ok(Enqueued { job, replayed: false })
    }

    /// The job that was created under this idempotency key, if the key is still in force (rule Q11).
    async fn first_of(&mut self, tenant: &TenantId, asked: &Idempotency) -> Outcome<Option<Job>> {
        let row = sqlx::query("select hash, job from vg_idem where tenant = ? and key = ? and expires_on > ?")
            .bind(tenant.as_str())
            .bind(&asked.key)
            .bind(self.steady)
            .fetch_optional(&mut self.conn)
            .await?;
        let Some(row) = row else { return Ok(None) };
        if row.try_get::<&str, _>("hash")? != asked.hash {
            return Err(conflict("idempotency key was used for another request").into());
        }
        let first = self.find(rows::job_id(&row, "job")?).await?;
        Ok(Some(first.ok_or_else(|| conflict("job of this idempotency key was deleted"))?.job))
    }

    async fn insert_job(&mut self, job: &Job, priority: i64) -> Outcome<()> {
        let inserted = sqlx::query(
            "insert into vg_job (id, tenant, request, plan, priority, created_at, version, progress, attempts, \
             crashes, cancel, epoch, held, cost) values (?, ?, ?, ?, ?, ?, ?, 0, 0, 0, 0, 0, ?, 0) \
             on conflict (id) do nothing",
        )
        .bind(job.id.blob())
        .bind(job.tenant.as_str())
        .bind(rows::to_json(&job.request)?)
        .bind(rows::to_json(&job.plan)?)
        .bind(priority)
        .bind(self.now)
        .bind(rows::signed(job.version))
        .bind(job.held.micros())
        .execute(&mut self.conn)
        .await?;
        if inserted.rows_affected() == 0 {
            return Err(conflict("job id exists already").into());
        }
        Ok(())
    }

    async fn insert_live(&mut self, job: &Job, slot: Slot) -> Outcome<()> {
        sqlx::query(
            "insert into vg_queue (job, tenant, state, priority, tag, seq, run_on, epoch, mark, progress, version, \
             started_at, held, cost) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(job.id.blob())
        .bind(job.tenant.as_str())
        .bind(slot.place)
        .bind(slot.priority)
        .bind(slot.tag)
        .bind(slot.seq)
        .bind(slot.run_on)
        .bind(slot.epoch)
        .bind(rows::mark(job.id))
        .bind(i64::from(job.progress))
        .bind(rows::signed(job.version))
        .bind(job.started_at.map(jiff::Timestamp::as_microsecond))
        .bind(job.held.micros())
        .bind(job.cost.micros())
        .execute(&mut self.conn)
        .await?;
        Ok(())
    }

    /// The next number of arrival, and the virtual time of now.
    async fn next_seq(&mut self) -> Outcome<(i64, i64)> {
        let row = sqlx::query("update vg_meta set seq = seq + 1 returning seq, v").fetch_one(&mut self.conn).await?;
        Ok((row.try_get("seq")?, row.try_get("v")?))
    }

    pub(super) async fn cancel(&mut self, tenant: &TenantId, id: JobId, event: Option<NewEvent>) -> Outcome<Job> {
        let mut entry = self.own(tenant, id).await?;
        match entry.place {
            None => Err(Error::new(ErrorKind::TooLate, ORIGIN, "job has already ended").into()),
            Some(place) if place == RUNNING || entry.job.has_open_submission() => {
                if !entry.job.cancel_requested {
                    entry.job.cancel_requested = true;
                    entry.job.version += 1;
                    sqlx::query("update vg_queue set cancel = 1, version = version + 1 where job = ?")
                        .bind(id.blob())
                        .execute(&mut self.conn)
                        .await?;
                    self.touched.signalled = true;
                    self.touched.jobs.push(id);
                }
                if place == WAITING {
                    self.wake_job(id).await?;
                }
                Ok(entry.job)
            }
            Some(_) => {
                entry.job.cancel_requested = true;
                self.end(entry, JobEnd::Canceled, Usd::ZERO, event.into_iter().collect(), None).await
            }
        }
    }

    pub(super) async fn retry(&mut self, tenant: &TenantId, id: JobId, hold: Usd, limits: &Limits) -> Outcome<Job> {
        let Entry { mut job, epoch, priority, .. } = self.own(tenant, id).await?;
        job.check_retry()?;
        let mut account = self.account(tenant).await?;
        let others = account.held - job.held;
        self.check_limits(&mut account, limits, others, hold).await?;
        account.held = others + hold;
        account.live += 1;
        account.failed -= 1;
        let before = job.steps.clone();
        job.reopen(hold, self.moment());
        job.version += 1;
        for record in job.steps.iter().filter(|record| !before.contains(record)) {
            self.put_step(id, record).await?;
        }
        let (seq, _) = self.next_seq().await?;
        let slot = Slot { place: PARKED, priority, tag: 0, seq, run_on: self.steady, epoch: epoch + 1 };
        self.insert_live(&job, slot).await?;
        sqlx::query(
            "update vg_queue set (last_worker, last_epoch, last_write) = \
             (select last_worker, last_epoch, last_write from vg_job where id = ?1) where job = ?1",
        )
        .bind(id.blob())
        .execute(&mut self.conn)
        .await?;
        sqlx::query(
            "update vg_job set final = null, failed = null, ended_at = null, ended_on = null, output = null, \
             failure = null where id = ?",
        )
        .bind(id.blob())
        .execute(&mut self.conn)
        .await?;
        self.save(account).await?;
        self.touched.jobs.push(id);
        Ok(job)
    }

    pub(super) async fn resolve(&mut self, tenant: &TenantId, id: JobId, verdict: Verdict) -> Outcome<Job> {
        let Entry { mut job, .. } = self.own(tenant, id).await?;
        if !job.state.is_ended() {
            return Err(conflict("job has not ended yet").into());
        }
        let now = self.timestamp();
        let resolved: Vec<_> = job.steps.iter().filter_map(|step| step.resolved(verdict, now)).collect();
        if resolved.is_empty() {
            return Err(conflict("job has no step in doubt").into());
        }
        let mut account = self.account(tenant).await?;
        for (record, cost) in resolved {
            self.put_step(id, &record).await?;
            job.put_step(record);
            if let Some(cost) = cost {
                self.bill(&mut account, &mut job, cost).await?;
            }
        }
        account.held -= job.held;
        job.held = Usd::ZERO;
        job.version += 1;
        self.adjust(&mut account, &job).await?;
        sqlx::query("update vg_job set held = ?, cost = ?, version = ? where id = ?")
            .bind(job.held.micros())
            .bind(job.cost.micros())
            .bind(rows::signed(job.version))
            .bind(id.blob())
            .execute(&mut self.conn)
            .await?;
        self.save(account).await?;
        self.touched.jobs.push(id);
        Ok(job)
    }

    pub(super) async fn delete(&mut self, tenant: &TenantId, id: JobId) -> Outcome<()> {
        let entry = self.own(tenant, id).await?;
        if !entry.job.state.is_ended() {
            return Err(conflict("job has not ended yet").into());
        }
        if entry.job.held != Usd::ZERO {
            // Nobody could give the hold back later.
            return Err(conflict("job has a step in doubt: resolve it first").into());
        }
        self.forget(&entry.job).await
    }

    /// Removes the record of an ended job and its ended deliveries. Ledger and idempotency row stay.
    pub(super) async fn forget(&mut self, job: &Job) -> Outcome<()> {
        let mut account = self.account(&job.tenant).await?;
        *(if job.state == JobState::Completed { &mut account.completed } else { &mut account.failed }) -= 1;
        self.save(account).await?;
        self.forget_deliveries(job.id).await?;
        sqlx::query("delete from vg_job where id = ?").bind(job.id.blob()).execute(&mut self.conn).await?;
        self.touched.jobs.push(job.id);
        Ok(())
    }

    pub(super) async fn pause(&mut self, paused: bool) -> Outcome<()> {
        sqlx::query("update vg_meta set paused = ?").bind(paused).execute(&mut self.conn).await?;
        self.touched.ready |= !paused;
        Ok(())
    }

    pub(super) async fn wake_job(&mut self, id: JobId) -> Outcome<()> {
        let row = sqlx::query("select tenant, state from vg_queue where job = ?")
            .bind(id.blob())
            .fetch_optional(&mut self.conn)
            .await?;
        let Some(row) = row else { return Ok(()) };
        match row.try_get("state")? {
            WAITING => {
                self.set_place(id, PARKED).await?;
                let account = self.account(&rows::tenant(&row)?).await?;
                self.save(account).await
            }
            RUNNING => {
                sqlx::query("update vg_queue set wake = 1 where job = ?")
                    .bind(id.blob())
                    .execute(&mut self.conn)
                    .await?;
                self.touched.signalled = true;
                Ok(())
            }
            // It will be looked at anyway.
            _ => Ok(()),
        }
    }

    /// Keeps what a callback told, if its job is there and no end was told, and wakes the job (Q19).
    pub(super) async fn keep_witness(&mut self, witness: &Witness) -> Outcome<()> {
        // The end, where `Handle::has_end` looks for it; a null is none to either.
        let kept = sqlx::query(
            "insert into vg_witness (job, submission, witness) select id, ?2, ?3 from vg_job where id = ?1 \
             on conflict (job, submission) do update set witness = case \
             when json_extract(witness, '$.handle.detail.end') is null then ?3 else witness end",
        )
        .bind(witness.job.blob())
        .bind(witness.submission.as_str())
        .bind(rows::to_json(witness)?)
        .execute(&mut self.conn)
        .await?;
        if kept.rows_affected() == 0 {
            return Ok(());
        }
        self.wake_job(witness.job).await
    }

    pub(super) async fn set_place(&mut self, id: JobId, place: i64) -> Outcome<()> {
        sqlx::query("update vg_queue set state = ? where job = ?")
            .bind(place)
            .bind(id.blob())
            .execute(&mut self.conn)
            .await?;
        Ok(())
    }
}

/// Where a job begins in the queue.
#[derive(Debug)]
struct Slot {
    place: i64,
    priority: i64,
    tag: i64,
    seq: i64,
    run_on: i64,
    epoch: i64,
}
