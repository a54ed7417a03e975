//! What is only read: on connections of their own, which never wait for the writer.

use sqlx::sqlite::SqlitePool;
use sqlx::{QueryBuilder, Row, Sqlite};
use vidgen_core::{
    DeliveryFilter, DeliveryRecord, Error, Job, JobFilter, JobId, JobState, MAX_BATCH, MAX_PAGE, ModelId, Page,
    ProviderId, QueueStats, Retention, StepId, TenantId, UsageFilter, UsageReport, UsageRow, Usd,
};

use super::fault::{Outcome, corrupt};
use super::job::final_of;
use super::outbox;
use super::rows::{self, Blob, job_columns};
use super::writer::Tx;

const GET: &str = concat!(
    "select ",
    job_columns!(),
    " from vg_job j left join vg_queue q on q.job = j.id where j.id = ? and j.tenant = ?"
);
/// Each kind of page goes along an index of its own, newest first.
pub(super) const LIST_ALL: &str = concat!(
    "select ",
    job_columns!(),
    " from vg_job j left join vg_queue q on q.job = j.id where j.tenant = ?1 and j.id < ?2 \
     order by j.id desc limit ?3"
);
pub(super) const LIST_ENDED: &str = concat!(
    "select ",
    job_columns!(),
    " from vg_job j left join vg_queue q on q.job = j.id where j.tenant = ?1 and j.id < ?2 and j.final = ?4 \
     order by j.id desc limit ?3"
);
pub(super) const LIST_LIVE: &str = concat!(
    "select ",
    job_columns!(),
    " from vg_queue q cross join vg_job j on j.id = q.job where q.tenant = ?1 and q.job < ?2 and \
     (q.state = 3) = ?4 order by q.job desc limit ?3"
);
pub(super) const STATS: &str = "select m.paused, \
    (select count(*) from vg_queue where state = 0) + (select count(*) from vg_queue where state = 1) as queued, \
    (select count(*) from vg_queue where state = 2) as waiting, \
    (select count(*) from vg_queue where state = 3) as processing, \
    (select count(*) from vg_worker where gone = 0) as workers, \
    (select count(*) from vg_delivery where state = 0) + (select count(*) from vg_delivery where state = 1) \
    as deliveries from vg_meta m";
/// Whether retention may take a job (rule Q18).
macro_rules! may_go {
    () => {
        "j.held = 0 and not exists (select 1 from vg_delivery d where d.job = j.id and d.state < 2)"
    };
}
pub(super) const OLD: &str = concat!(
    "select j.id from vg_job j where j.failed = ? and j.ended_on <= ? and ",
    may_go!(),
    " order by j.ended_on, j.id limit ?"
);
/// The oldest `?4` of a tenant, as far as they may go.
pub(super) const EXTRA: &str = concat!(
    "select j.id from (select * from vg_job where tenant = ?1 and failed = ?2 order by ended_on, id limit ?4) j \
     where j.ended_on > ?3 and ",
    may_go!(),
    " order by j.ended_on, j.id limit ?5"
);
const MAY_GO: &str = concat!("select 1 from vg_job j where j.id = ? and j.final is not null and ", may_go!());

pub(super) async fn get(pool: &SqlitePool, tenant: &TenantId, id: JobId) -> Outcome<Job> {
    let row = sqlx::query(GET).bind(id.blob()).bind(tenant.as_str()).fetch_optional(pool).await?;
    rows::job(&row.ok_or_else(Error::job_not_found)?)
}

pub(super) async fn list(pool: &SqlitePool, tenant: &TenantId, filter: &JobFilter) -> Outcome<Page<Job>> {
    let limit = filter.limit.clamp(1, MAX_PAGE);
    // Ids are 16 bytes, so 17 of the highest are greater than all.
    let before = filter.before.map_or_else(|| vec![0xff; 17], |id| id.blob());
    let (page, class) = match filter.state {
        None => (LIST_ALL, None),
        Some(JobState::Queued) => (LIST_LIVE, Some(0)),
        Some(JobState::Processing) => (LIST_LIVE, Some(1)),
        Some(state) => (LIST_ENDED, final_of(state)),
    };
    let query = sqlx::query(page).bind(tenant.as_str()).bind(before).bind(rows::limit(limit + 1));
    let query = if class.is_some() { query.bind(class) } else { query };
    let found = query.fetch_all(pool).await?;
    let items = found.iter().take(limit).map(rows::job).collect::<Outcome<_>>()?;
    Ok(Page { items, more: found.len() > limit })
}

pub(super) async fn stats(pool: &SqlitePool) -> Outcome<QueueStats> {
    let row = sqlx::query(STATS).fetch_one(pool).await?;
    let count = |name| -> Outcome<u64> { Ok(rows::unsigned(row.try_get(name)?)) };
    Ok(QueueStats {
        queued: count("queued")?,
        waiting: count("waiting")?,
        processing: count("processing")?,
        workers: count("workers")?,
        deliveries: count("deliveries")?,
        paused: row.try_get("paused")?,
    })
}

pub(super) async fn usage(pool: &SqlitePool, tenant: &TenantId, filter: &UsageFilter) -> Outcome<UsageReport> {
    let mut query = QueryBuilder::<Sqlite>::new(
        "select date(at / 1000000, 'unixepoch') as day, step, provider, model, count(*) as count, \
         sum(amount) as amount, (select held from vg_tenant t where t.tenant = l.tenant) as held \
         from vg_ledger l where l.tenant = ",
    );
    query.push_bind(tenant.as_str());
    if let Some(from) = filter.from {
        query.push(" and at >= ").push_bind(from.as_microsecond());
    }
    if let Some(to) = filter.to {
        query.push(" and at < ").push_bind(to.as_microsecond());
    }
    let lines = query.push(" group by 1, 2, 3, 4").build().fetch_all(pool).await?;
    let held: Option<i64> = sqlx::query_scalar("select held from vg_tenant where tenant = ?")
        .bind(tenant.as_str())
        .fetch_optional(pool)
        .await?;
    let mut report = UsageReport { held: Usd::from_micros(held.unwrap_or(0)), ..UsageReport::default() };
    let mut costs: Vec<(StepId, UsageRow)> = Vec::new();
    for line in lines {
        let cost = Usd::from_micros(line.try_get("amount")?);
        report.charged += cost;
        let Some(step) = line.try_get::<Option<&str>, _>("step")? else { continue };
        let step: StepId = step.parse().map_err(|e| corrupt("a step in the ledger", e))?;
        report.cost += cost;
        costs.push((
            step,
            UsageRow {
                day: line.try_get("day")?,
                step: step.to_string(),
                provider: ProviderId::new(line.try_get::<String, _>("provider")?),
                model: ModelId::new(line.try_get::<String, _>("model")?),
                count: rows::unsigned(line.try_get("count")?),
                cost,
            },
        ));
    }
    costs.sort_by(|(a_step, a), (b_step, b)| {
        (&a.day, a_step, &a.provider, &a.model).cmp(&(&b.day, b_step, &b.provider, &b.model))
    });
    report.rows = costs.into_iter().map(|(_, row)| row).collect();
    Ok(report)
}

pub(super) async fn deliveries(
    pool: &SqlitePool,
    tenant: &TenantId,
    filter: &DeliveryFilter,
) -> Outcome<Page<DeliveryRecord>> {
    let limit = filter.limit.clamp(1, MAX_PAGE);
    let query = match filter.job {
        None => {
            sqlx::query("select * from vg_delivery where tenant = ? order by seq desc limit ?").bind(tenant.as_str())
        }
        Some(job) => sqlx::query("select * from vg_delivery where job = ? and +tenant = ? order by seq desc limit ?")
            .bind(job.blob())
            .bind(tenant.as_str()),
    };
    let found = query.bind(rows::limit(limit + 1)).fetch_all(pool).await?;
    let items = found.iter().take(limit).map(outbox::record).collect::<Outcome<_>>()?;
    Ok(Page { items, more: found.len() > limit })
}

pub(super) async fn expired(pool: &SqlitePool, retention: &Retention, max: usize, steady: i64) -> Outcome<Vec<JobId>> {
    let max = max.min(MAX_BATCH);
    let mut found = Vec::new();
    let kinds = [(false, retention.completed, retention.max_completed), (true, retention.failed, retention.max_failed)];
    for (failed, age, keep) in kinds {
        let old = steady.saturating_sub(rows::micros(age));
        let left = |found: &Vec<JobId>| rows::limit(max.saturating_sub(found.len()));
        let aged = sqlx::query(OLD).bind(failed).bind(old).bind(left(&found)).fetch_all(pool).await?;
        for row in &aged {
            found.push(rows::job_id(row, "id")?);
        }
        let Some(keep) = keep.map(i64::from) else { continue };
        let count = if failed { "failed" } else { "completed" };
        let crowded = QueryBuilder::<Sqlite>::new("select tenant, ")
            .push(count)
            .push(" as count from vg_tenant where ")
            .push(count)
            .push(" > ")
            .push_bind(keep)
            .build()
            .fetch_all(pool)
            .await?;
        for row in &crowded {
            let extra = sqlx::query(EXTRA)
                .bind(row.try_get::<&str, _>("tenant")?)
                .bind(failed)
                .bind(old)
                .bind(row.try_get::<i64, _>("count")? - keep)
                .bind(left(&found))
                .fetch_all(pool)
                .await?;
            for row in &extra {
                found.push(rows::job_id(row, "id")?);
            }
        }
    }
    Ok(found)
}

impl Tx {
    /// Removes the records of ended jobs that may go (rule Q18); answers how many went.
    pub(super) async fn prune(&mut self, jobs: &[JobId]) -> Outcome<u64> {
        let mut gone = 0;
        for id in jobs.iter().take(MAX_BATCH) {
            let may_go = sqlx::query(MAY_GO).bind(id.blob()).fetch_optional(&mut self.conn).await?.is_some();
            if let Some(entry) = self.find(*id).await?.filter(|_| may_go) {
                self.forget(&entry.job).await?;
                gone += 1;
            }
        }
        Ok(gone)
    }

    /// Removes idempotency rows past their time, some at once.
    pub(super) async fn drop_old_keys(&mut self) -> Outcome<()> {
        sqlx::query(
            "delete from vg_idem where (tenant, key) in \
             (select tenant, key from vg_idem where expires_on <= ? order by expires_on limit ?)",
        )
        .bind(self.steady)
        .bind(rows::limit(MAX_BATCH))
        .execute(&mut self.conn)
        .await?;
        Ok(())
    }
}
