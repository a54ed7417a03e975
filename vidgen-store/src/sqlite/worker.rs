//! What workers do: claims, checkpoints, ends, beats, rescue.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use vidgen_core::{
    Ack, BEAT, Beat, Checkpoint, Claim, ClaimBatch, Claimed, Error, ErrorKind, Fenced, JobId, JobState, MAX_BATCH,
    Release, Settlement, Succession, WorkerId, progress_after,
};

use super::fault::{ORIGIN, Outcome};
use super::job::{Entry, conflict, final_of};
use super::rows::{self, Blob, DIED, LEFT, PARKED, READY, RELEASED, RUNNING, WAITING, job_columns};
use super::writer::Tx;

/// The jobs to claim, in order. Read and updated by the same words, so that both mean the same.
macro_rules! head {
    () => {
        "select job from vg_queue where state = 1 order by priority, tag, seq, job limit ?"
    };
}
/// How long a job is let alone that cannot be read.
const UNREADABLE_WAIT: Duration = Duration::from_secs(300);
/// The columns of the claimable jobs.
pub(super) const HEAD: &str = concat!(
    "select j.priority, q.tag, ",
    job_columns!(),
    " from vg_queue q join vg_job j on j.id = q.job where q.job in (",
    head!(),
    ") order by q.priority, q.tag, q.seq, q.job"
);
pub(super) const CLAIM: &str = concat!(
    "update vg_queue set state = 3, worker = ?, epoch = epoch + 1, version = version + 1, claimed_on = ?, wake = 0, \
     unheld = 0, started_at = coalesce(started_at, ?) where job in (",
    head!(),
    ")"
);
/// Jobs whose moment has come.
pub(super) const DUE: &str =
    "select job, tenant from vg_queue where state = 2 and run_on <= ? order by run_on, job limit ?";
pub(super) const NEXT_DUE: &str = "select min(run_on) from vg_queue where state = 2";
/// A sum over all claims of a worker, from the index alone: equal sums, equal claims.
pub(super) const SUM: &str =
    "select count(*) as claims, total(mark) + total(epoch) as sum from vg_queue where worker = ? and state = 3";
pub(super) const FLAGGED: &str = "select job, epoch, cancel, wake from vg_queue where worker = ? and state = 3 and \
    (cancel = 1 or wake = 1 or unheld = 1)";
/// What a dead worker leaves.
pub(super) const ORPHANS: &str = "select job from vg_queue where worker = ? and state = 3 limit ?";

/// What a worker is told that the queue does not know (rule Q5).
pub(super) fn unknown_worker() -> Error {
    Error::new(ErrorKind::Stale, ORIGIN, "worker is not registered")
}

/// How a worker came to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    /// By itself.
    Left,
    /// Its process did, as its lock shows.
    Died,
    /// It did not beat for a lease; this was its last beat.
    Silent(i64),
}

/// What a rescue did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rescued {
    pub(super) rows: usize,
    /// Whether nothing is left of the worker.
    pub(super) done: bool,
}

impl Tx {
    pub(super) async fn register(&mut self, worker: WorkerId, name: &str) -> Outcome<()> {
        sqlx::query("insert into vg_worker (id, name, started_at, seen_at) values (?1, ?2, ?3, ?3)")
            .bind(worker.blob())
            .bind(name)
            .bind(self.now)
            .execute(&mut self.conn)
            .await?;
        Ok(())
    }

    pub(super) async fn claim(&mut self, worker: WorkerId, max: usize) -> Outcome<ClaimBatch> {
        if !self.is_known(worker).await? {
            return Err(unknown_worker().into());
        }
        self.promote().await?;
        let paused: bool = sqlx::query_scalar("select paused from vg_meta").fetch_one(&mut self.conn).await?;
        let max = if paused { 0 } else { rows::limit(max.min(MAX_BATCH)) };
        let mut heads = sqlx::query(HEAD).bind(max).fetch_all(&mut self.conn).await?;
        while self.set_aside_unreadable(&heads).await? {
            heads = sqlx::query(HEAD).bind(max).fetch_all(&mut self.conn).await?;
        }
        let mut jobs = Vec::with_capacity(heads.len());
        let mut last_tag = None;
        for row in &heads {
            last_tag = last_tag.max(Some(row.try_get::<i64, _>("tag")?));
            let Entry { mut job, epoch, .. } = Entry::of(row)?;
            job.state = JobState::Processing;
            job.version += 1;
            job.started_at = job.started_at.or(Some(self.timestamp()));
            self.touched.jobs.push(job.id);
            jobs.push(Claimed { claim: Claim { job: job.id, worker, epoch: rows::unsigned(epoch + 1) }, job });
        }
        if let Some(tag) = last_tag {
            sqlx::query(CLAIM)
                .bind(worker.blob())
                .bind(self.steady)
                .bind(self.now)
                .bind(max)
                .execute(&mut self.conn)
                .await?;
            sqlx::query("update vg_meta set v = ?1 where v < ?1").bind(tag).execute(&mut self.conn).await?;
            // What was left is for the next worker.
            self.touched.ready |=
                sqlx::query_scalar::<_, bool>("select exists (select 1 from vg_queue where state = 1)")
                    .fetch_one(&mut self.conn)
                    .await?;
        }
        let next_due: Option<i64> = sqlx::query_scalar(NEXT_DUE).fetch_one(&mut self.conn).await?;
        Ok(ClaimBatch { jobs, now: self.moment(), next_due: next_due.map(|due| rows::wait(self.steady, due)) })
    }

    /// Lets jobs wait that this process cannot read: one bad row must not keep everybody else's job
    /// back, and another version of the program may well read it (B9). Says whether there were any.
    async fn set_aside_unreadable(&mut self, heads: &[SqliteRow]) -> Outcome<bool> {
        let mut any = false;
        for row in heads {
            let Err(fault) = Entry::of(row) else { continue };
            any = true;
            let id = rows::job_id(row, "id")?;
            tracing::error!(job = %id, ?fault, "a job cannot be read; it waits for a process that can");
            sqlx::query("update vg_queue set state = ?, run_on = ? where job = ?")
                .bind(WAITING)
                .bind(rows::after(self.steady, UNREADABLE_WAIT))
                .bind(id.blob())
                .execute(&mut self.conn)
                .await?;
            let mut account = self.account(&rows::tenant(row)?).await?;
            account.active -= 1;
            self.save(account).await?;
        }
        Ok(any)
    }

    /// Makes jobs ready whose moment has come, as far as their tenants have slots.
    async fn promote(&mut self) -> Outcome<()> {
        let due = sqlx::query(DUE).bind(self.steady).bind(rows::limit(MAX_BATCH)).fetch_all(&mut self.conn).await?;
        let mut tenants = Vec::new();
        for row in &due {
            self.set_place(rows::job_id(row, "job")?, PARKED).await?;
            let tenant = rows::tenant(row)?;
            if !tenants.contains(&tenant) {
                tenants.push(tenant);
            }
        }
        for tenant in tenants {
            let account = self.account(&tenant).await?;
            self.save(account).await?;
        }
        Ok(())
    }

    /// Answers the beat and its number, if the worker is known.
    pub(super) async fn heartbeat(&mut self, worker: WorkerId, held: &[Claim]) -> Outcome<(Beat, Option<i64>)> {
        let mut beat =
            Beat { known: false, cancels: Vec::new(), wakes: Vec::new(), strays: Vec::new(), lost: Vec::new() };
        let beats: Option<i64> = sqlx::query_scalar(
            "update vg_worker set seen_at = ?, beats = beats + 1 where id = ? and gone = 0 returning beats",
        )
        .bind(self.now)
        .bind(worker.blob())
        .fetch_optional(&mut self.conn)
        .await?;
        if beats.is_none() {
            return Ok((beat, None));
        }
        beat.known = true;
        let claims: HashSet<(JobId, i64)> = held.iter().map(|claim| (claim.job, rows::signed(claim.epoch))).collect();
        let mut signals = HashMap::new();
        for row in sqlx::query(FLAGGED).bind(worker.blob()).fetch_all(&mut self.conn).await? {
            let (job, epoch) = (rows::job_id(&row, "job")?, row.try_get("epoch")?);
            if !claims.contains(&(job, epoch)) {
                continue;
            }
            sqlx::query("update vg_queue set wake = 0, unheld = 0 where job = ? and (wake = 1 or unheld = 1)")
                .bind(job.blob())
                .execute(&mut self.conn)
                .await?;
            signals.insert(job, (row.try_get::<bool, _>("cancel")?, row.try_get::<bool, _>("wake")?));
        }
        for claim in held {
            if let Some((cancel, wake)) = signals.remove(&claim.job) {
                beat.cancels.extend(cancel.then_some(claim.job));
                beat.wakes.extend(wake.then_some(claim.job));
            }
        }
        if !self.agrees(worker, held).await? {
            self.reconcile(worker, held, &claims, &mut beat).await?;
        }
        Ok((beat, beats))
    }

    /// Whether a worker holds just what the store thinks: tells it without reading 50,000 rows.
    async fn agrees(&mut self, worker: WorkerId, held: &[Claim]) -> Outcome<bool> {
        if held.iter().any(|claim| claim.worker != worker) {
            return Ok(false);
        }
        let row = sqlx::query(SUM).bind(worker.blob()).fetch_one(&mut self.conn).await?;
        let sum: i64 = held.iter().map(|claim| rows::mark(claim.job).saturating_add(rows::signed(claim.epoch))).sum();
        #[expect(clippy::cast_precision_loss, reason = "2^20 claims of 2^32 each are exact below 2^53")]
        let same = row.try_get::<f64, _>("sum")? == sum as f64;
        Ok(same && row.try_get::<i64, _>("claims")? == rows::limit(held.len()))
    }

    /// Finds what a worker holds that is not its own, and hands back what it does not hold.
    async fn reconcile(
        &mut self,
        worker: WorkerId,
        held: &[Claim],
        claims: &HashSet<(JobId, i64)>,
        beat: &mut Beat,
    ) -> Outcome<()> {
        let mut own = HashSet::new();
        let rows = sqlx::query(
            "select job, epoch, unheld, claimed_on from vg_queue where worker = ? and state = 3 order by job",
        )
        .bind(worker.blob())
        .fetch_all(&mut self.conn)
        .await?;
        for row in rows {
            let (job, epoch): (_, i64) = (rows::job_id(&row, "job")?, row.try_get("epoch")?);
            own.insert((job, epoch));
            // The answer to a young claim may still be on its way, and a beat may be sent twice.
            let young = rows::wait(row.try_get("claimed_on")?, self.steady) < BEAT;
            if claims.contains(&(job, epoch)) || young {
                continue;
            }
            if !row.try_get::<bool, _>("unheld")? {
                sqlx::query("update vg_queue set unheld = 1 where job = ?")
                    .bind(job.blob())
                    .execute(&mut self.conn)
                    .await?;
            } else if beat.strays.len() < MAX_BATCH {
                beat.strays.push(Claim { job, worker, epoch: rows::unsigned(epoch) });
                self.hand_back(job, 0).await?;
            }
        }
        let is_own = |claim: &&Claim| claim.worker == worker && own.contains(&(claim.job, rows::signed(claim.epoch)));
        beat.lost.extend(held.iter().filter(|claim| !is_own(claim)));
        Ok(())
    }

    /// Makes a running job ready again under a new epoch. It keeps its slot and its tag, since it
    /// is the oldest work there is.
    async fn hand_back(&mut self, job: JobId, crashes: i64) -> Outcome<()> {
        sqlx::query(
            "update vg_queue set state = 1, worker = null, epoch = epoch + 1, version = version + 1, \
             crashes = crashes + ? where job = ? and state = 3",
        )
        .bind(crashes)
        .bind(job.blob())
        .execute(&mut self.conn)
        .await?;
        self.touched.ready = true;
        self.touched.jobs.push(job);
        Ok(())
    }

    pub(super) async fn checkpoint(&mut self, checkpoint: Checkpoint) -> Outcome<Ack> {
        let Checkpoint { claim, record, costs, progress } = checkpoint;
        let mut ack = Ack { fenced: Fenced::Stale, cancel: false, now: self.moment() };
        let Some(Entry { mut job, .. }) = self.fenced(claim).await? else { return Ok(ack) };
        ack.cancel = job.cancel_requested;
        match record.follows(job.step(record.step)) {
            Succession::Broken => return Err(conflict("step record does not follow the stored one").into()),
            Succession::Same => ack.fenced = Fenced::Already,
            Succession::Next => {
                ack.fenced = Fenced::Applied;
                self.put_step(job.id, &record.stamped(self.moment())).await?;
                if !costs.is_empty() {
                    let mut account = self.account(&job.tenant).await?;
                    for cost in costs {
                        self.bill(&mut account, &mut job, cost).await?;
                    }
                    self.save(account).await?;
                }
                sqlx::query(
                    "update vg_queue set progress = ?, held = ?, cost = ?, version = version + 1 where job = ?",
                )
                .bind(i64::from(progress_after(job.progress, progress)))
                .bind(job.held.micros())
                .bind(job.cost.micros())
                .bind(job.id.blob())
                .execute(&mut self.conn)
                .await?;
                self.touched.jobs.push(job.id);
            }
        }
        Ok(ack)
    }

    pub(super) async fn release(&mut self, claim: Claim, release: Release) -> Outcome<Fenced> {
        let Some(Entry { job, .. }) = self.fenced(claim).await? else { return self.ended_by(claim, RELEASED).await };
        // At once, it keeps its slot and its turn: a restart of workers must not send it to the back.
        // One that counts is a backoff, also from what keeps the job from being ended.
        let unwanted = job.cancel_requested && !job.has_open_submission() && !release.counts;
        let place = if release.delay.is_zero() || unwanted { READY } else { WAITING };
        sqlx::query(
            "update vg_queue set state = ?, run_on = ?, worker = null, version = version + 1, \
             attempts = attempts + ?, last_worker = ?, last_epoch = ?, last_write = ? where job = ?",
        )
        .bind(place)
        .bind(rows::after(self.steady, release.delay))
        .bind(i64::from(release.counts))
        .bind(claim.worker.blob())
        .bind(rows::signed(claim.epoch))
        .bind(RELEASED)
        .bind(job.id.blob())
        .execute(&mut self.conn)
        .await?;
        if place == WAITING {
            let mut account = self.account(&job.tenant).await?;
            account.active -= 1;
            self.save(account).await?;
        }
        // Also for a later moment: whoever claims next learns when that is.
        self.touched.ready = true;
        self.touched.jobs.push(job.id);
        Ok(Fenced::Applied)
    }

    pub(super) async fn settle(&mut self, settlement: Settlement) -> Outcome<Fenced> {
        let Settlement { claim, end, keep_hold, events } = settlement;
        let Some(entry) = self.fenced(claim).await? else {
            let write = final_of(end.state()).unwrap_or(RUNNING);
            return self.ended_by(claim, write).await;
        };
        self.end(entry, end, keep_hold, events, Some(claim)).await?;
        Ok(Fenced::Applied)
    }

    /// Frees up to `max` jobs and deliveries of a worker that is gone, and forgets it once it has
    /// none. Guarded by its last beat: one that beat meanwhile is left alone.
    pub(super) async fn bury(&mut self, worker: WorkerId, gone: Gone, max: usize) -> Outcome<Rescued> {
        let (how, beats) = match gone {
            Gone::Left => (LEFT, None),
            Gone::Died => (DIED, None),
            Gone::Silent(beats) => (DIED, Some(beats)),
        };
        sqlx::query("update vg_worker set gone = ? where id = ? and gone = 0 and beats = coalesce(?, beats)")
            .bind(how)
            .bind(worker.blob())
            .bind(beats)
            .execute(&mut self.conn)
            .await?;
        let how: Option<i64> = sqlx::query_scalar("select gone from vg_worker where id = ?")
            .bind(worker.blob())
            .fetch_optional(&mut self.conn)
            .await?;
        let crashes = match how {
            None => return Ok(Rescued { rows: 0, done: true }),
            Some(DIED) => 1,
            Some(LEFT) => 0,
            Some(_) => return Ok(Rescued::default()),
        };
        let orphans = sqlx::query(ORPHANS).bind(worker.blob()).bind(rows::limit(max)).fetch_all(&mut self.conn).await?;
        for row in &orphans {
            self.hand_back(rows::job_id(row, "job")?, crashes).await?;
        }
        let left = max.saturating_sub(orphans.len());
        let deliveries = self.rescue_deliveries(worker, left).await?;
        let rows = orphans.len() + deliveries;
        let done = rows < max;
        if done {
            sqlx::query("delete from vg_worker where id = ?").bind(worker.blob()).execute(&mut self.conn).await?;
        }
        Ok(Rescued { rows, done })
    }
}
