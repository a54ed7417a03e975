//! Events and their deliveries.

use std::time::Duration;

use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use vidgen_core::{
    Delivery, DeliveryBatch, DeliveryOutcome, DeliveryRecord, DeliveryState, Error, ErrorKind, EventId, Fenced, Job,
    JobId, MAX_BATCH, MAX_PER_ENDPOINT, NewEvent, TenantId, WorkerId,
};

use super::fault::{ORIGIN, Outcome};
use super::rows::{self, Blob};
use super::worker::unknown_worker;
use super::writer::Tx;

/// `vg_delivery.state`. The partial indexes of the schema spell these numbers out.
const DUE: i64 = 0;
const FLYING: i64 = 1;
const DELIVERED: i64 = 2;
const GIVEN_UP: i64 = 3;

/// Endpoints that something may be taken from now, the one that waits longest first.
pub(super) const ENDPOINTS: &str = "select endpoint from vg_endpoint where next_on <= ? order by next_on limit ?";
/// The first deliveries for one endpoint that may go.
pub(super) const HEAD: &str = "select * from vg_delivery where state = 0 and endpoint = ?1 and next_on <= ?2 \
    order by next_on, seq limit max(0, ?3 - (select count(*) from vg_delivery where state = 1 and endpoint = ?1))";
pub(super) const ORPHANS: &str = "select seq, endpoint from vg_delivery where worker = ? and state = 1 limit ?";
pub(super) const NEXT: &str = "select min(next_on) from vg_delivery where state = 0 and next_on > ?";

impl Tx {
    /// Puts an event into the outbox, once by its id (rule Q17).
    pub(super) async fn post(&mut self, job: &Job, event: &NewEvent) -> Outcome<()> {
        let inserted = sqlx::query(
            "insert into vg_delivery (event, kind, job, tenant, endpoint, body, state, next_at, next_on, created_at) \
             values (?1, ?2, ?3, ?4, ?5, ?6, 0, ?7, ?8, ?7) on conflict (event) do nothing",
        )
        .bind(event.id.as_str())
        .bind(&event.kind)
        .bind(job.id.blob())
        .bind(job.tenant.as_str())
        .bind(&event.endpoint)
        .bind(&event.body)
        .bind(self.now)
        .bind(self.steady)
        .execute(&mut self.conn)
        .await?;
        if inserted.rows_affected() > 0 {
            self.refresh(&event.endpoint).await?;
        }
        Ok(())
    }

    /// Brings an endpoint's row up to date with its deliveries, from indexes of the pending ones.
    async fn refresh(&mut self, endpoint: &str) -> Outcome<()> {
        let row = sqlx::query(
            "select (select count(*) from vg_delivery where state = 1 and endpoint = ?1) as flying, \
             (select min(next_on) from vg_delivery where state = 0 and endpoint = ?1) as next_on",
        )
        .bind(endpoint)
        .fetch_one(&mut self.conn)
        .await?;
        let flying: i64 = row.try_get("flying")?;
        let next_on: Option<i64> = row.try_get("next_on")?;
        if flying == 0 && next_on.is_none() {
            sqlx::query("delete from vg_endpoint where endpoint = ?").bind(endpoint).execute(&mut self.conn).await?;
        } else {
            let open = flying < rows::limit(MAX_PER_ENDPOINT);
            sqlx::query(
                "insert into vg_endpoint (endpoint, next_on) values (?1, ?2) \
                 on conflict (endpoint) do update set next_on = ?2",
            )
            .bind(endpoint)
            .bind(next_on.filter(|_| open))
            .execute(&mut self.conn)
            .await?;
        }
        // Something may be due, now or sooner than the courier thinks.
        self.touched.signalled = true;
        Ok(())
    }

    pub(super) async fn claim_deliveries(&mut self, worker: WorkerId, max: usize) -> Outcome<DeliveryBatch> {
        if !self.is_known(worker).await? {
            return Err(unknown_worker().into());
        }
        let max = max.min(MAX_BATCH);
        let signalled = self.touched.signalled;
        let endpoints: Vec<String> =
            sqlx::query_scalar(ENDPOINTS).bind(self.steady).bind(rows::limit(max)).fetch_all(&mut self.conn).await?;
        let mut due = Vec::new();
        for endpoint in &endpoints {
            let heads = sqlx::query(HEAD)
                .bind(endpoint)
                .bind(self.steady)
                .bind(rows::limit(MAX_PER_ENDPOINT))
                .fetch_all(&mut self.conn)
                .await?;
            for row in heads {
                due.push(((row.try_get::<i64, _>("next_on")?, row.try_get::<i64, _>("seq")?), row));
            }
        }
        due.sort_by_key(|(order, _)| *order);
        due.truncate(max);
        let mut deliveries = Vec::with_capacity(due.len());
        for ((_, seq), row) in &due {
            sqlx::query("update vg_delivery set state = 1, worker = ?, epoch = epoch + 1 where seq = ?")
                .bind(worker.blob())
                .bind(seq)
                .execute(&mut self.conn)
                .await?;
            deliveries.push(Delivery {
                id: EventId::from_text(row.try_get::<String, _>("event")?),
                kind: row.try_get("kind")?,
                job: rows::job_id(row, "job")?,
                tenant: rows::tenant(row)?,
                endpoint: row.try_get("endpoint")?,
                body: row.try_get("body")?,
                attempt: rows::small(row.try_get("attempts")?).saturating_add(1),
                worker,
                epoch: rows::unsigned(row.try_get::<i64, _>("epoch")? + 1),
            });
        }
        for endpoint in endpoints {
            self.refresh(&endpoint).await?;
        }
        // Who claims needs no signal of it.
        self.touched.signalled = signalled;
        let next: Option<i64> = sqlx::query_scalar(NEXT).bind(self.steady).fetch_one(&mut self.conn).await?;
        Ok(DeliveryBatch { deliveries, next_due: next.map(|next| rows::wait(self.steady, next)) })
    }

    pub(super) async fn settle_delivery(&mut self, delivery: &Delivery, outcome: DeliveryOutcome) -> Outcome<Fenced> {
        let row = sqlx::query("select * from vg_delivery where event = ?")
            .bind(delivery.id.as_str())
            .fetch_optional(&mut self.conn)
            .await?;
        let Some(row) = row else { return Ok(Fenced::Stale) };
        let is_claim = |worker, epoch| -> Outcome<bool> {
            let by = row.try_get::<Option<Vec<u8>>, _>(worker)?;
            let at = row.try_get::<Option<i64>, _>(epoch)?;
            Ok(by == Some(delivery.worker.blob()) && at == Some(rows::signed(delivery.epoch)))
        };
        let stands = row.try_get::<i64, _>("state")? == FLYING && is_claim("worker", "epoch")?;
        let told = told(&outcome);
        if !stands || !self.is_known(delivery.worker).await? {
            let same = is_claim("last_worker", "last_epoch")?
                && row.try_get::<Option<&str>, _>("last_outcome")? == Some(told.as_str());
            return Ok(if same { Fenced::Already } else { Fenced::Stale });
        }
        let attempted = outcome != DeliveryOutcome::Returned;
        let (state, delay, reason) = match outcome {
            DeliveryOutcome::Delivered => (DELIVERED, Duration::ZERO, None),
            DeliveryOutcome::GivenUp { reason } => (GIVEN_UP, Duration::ZERO, Some(reason)),
            DeliveryOutcome::Retry { delay, reason } => (DUE, delay, Some(reason)),
            DeliveryOutcome::Returned => (DUE, Duration::ZERO, row.try_get("reason")?),
        };
        sqlx::query(
            "update vg_delivery set state = ?, attempts = attempts + ?, next_at = ?, next_on = ?, reason = ?, \
             worker = null, last_worker = ?, last_epoch = ?, last_outcome = ? where event = ?",
        )
        .bind(state)
        .bind(attempted)
        .bind(rows::after(self.now, delay))
        .bind(rows::after(self.steady, delay))
        .bind(reason)
        .bind(delivery.worker.blob())
        .bind(rows::signed(delivery.epoch))
        .bind(told)
        .bind(delivery.id.as_str())
        .execute(&mut self.conn)
        .await?;
        if state != DUE {
            // The job's record may have been deleted meanwhile; the delivery's only waited for its end.
            let job = rows::job_id(&row, "job")?;
            sqlx::query("delete from vg_delivery where event = ? and not exists (select 1 from vg_job where id = ?)")
                .bind(delivery.id.as_str())
                .bind(job.blob())
                .execute(&mut self.conn)
                .await?;
        }
        self.refresh(row.try_get("endpoint")?).await?;
        Ok(Fenced::Applied)
    }

    /// Makes a dead worker's deliveries due again. Whether the receivers got them is not known, so
    /// no attempt is counted.
    pub(super) async fn rescue_deliveries(&mut self, worker: WorkerId, max: usize) -> Outcome<usize> {
        let rows = sqlx::query(ORPHANS).bind(worker.blob()).bind(rows::limit(max)).fetch_all(&mut self.conn).await?;
        for row in &rows {
            sqlx::query(
                "update vg_delivery set state = 0, worker = null, epoch = epoch + 1, next_at = ?, next_on = ? \
                 where seq = ?",
            )
            .bind(self.now)
            .bind(self.steady)
            .bind(row.try_get::<i64, _>("seq")?)
            .execute(&mut self.conn)
            .await?;
            self.refresh(row.try_get("endpoint")?).await?;
        }
        Ok(rows.len())
    }

    pub(super) async fn redeliver(&mut self, tenant: &TenantId, event: &EventId) -> Outcome<()> {
        let row = sqlx::query("select seq, endpoint, state from vg_delivery where event = ? and tenant = ?")
            .bind(event.as_str())
            .bind(tenant.as_str())
            .fetch_optional(&mut self.conn)
            .await?;
        let row = row.ok_or_else(|| Error::new(ErrorKind::NotFound, ORIGIN, "event not found"))?;
        // One that is on its way already stays so: a second beside it would tell the receiver twice.
        sqlx::query(
            "update vg_delivery set attempts = 0, state = iif(state = 1, 1, 0), \
             next_at = iif(state = 1, next_at, ?), next_on = iif(state = 1, next_on, ?) where seq = ?",
        )
        .bind(self.now)
        .bind(self.steady)
        .bind(row.try_get::<i64, _>("seq")?)
        .execute(&mut self.conn)
        .await?;
        self.refresh(row.try_get("endpoint")?).await
    }

    /// Removes the ended deliveries of a job whose record goes.
    pub(super) async fn forget_deliveries(&mut self, job: JobId) -> Outcome<()> {
        sqlx::query("delete from vg_delivery where job = ? and state >= 2")
            .bind(job.blob())
            .execute(&mut self.conn)
            .await?;
        Ok(())
    }
}

/// An outcome as text, to tell the same from another.
fn told(outcome: &DeliveryOutcome) -> String {
    match outcome {
        DeliveryOutcome::Delivered => "delivered".into(),
        DeliveryOutcome::Retry { delay, reason } => format!("retry in {} us: {reason}", delay.as_micros()),
        DeliveryOutcome::GivenUp { reason } => format!("given up: {reason}"),
        DeliveryOutcome::Returned => "returned".into(),
    }
}

/// Reads a row of `vg_delivery`.
pub(super) fn record(row: &SqliteRow) -> Outcome<DeliveryRecord> {
    let state = match row.try_get("state")? {
        DELIVERED => DeliveryState::Delivered,
        GIVEN_UP => DeliveryState::GivenUp,
        _ => DeliveryState::Pending,
    };
    let next_at = rows::timestamp(row.try_get("next_at")?);
    Ok(DeliveryRecord {
        id: EventId::from_text(row.try_get::<String, _>("event")?),
        kind: row.try_get("kind")?,
        job: rows::job_id(row, "job")?,
        state,
        attempts: rows::small(row.try_get("attempts")?),
        next_at: (state == DeliveryState::Pending).then_some(next_at),
        reason: row.try_get("reason")?,
        created_at: rows::timestamp(row.try_get("created_at")?),
    })
}
