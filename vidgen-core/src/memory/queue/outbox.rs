//! Events and their deliveries.

use std::time::Duration;

use jiff::Timestamp;

use crate::clock::later;
use crate::error::{Error, ErrorKind, Result};
use crate::job::{JobId, Page};
use crate::notifier::{Delivery, DeliveryFilter, DeliveryRecord, DeliveryState, EventId, NewEvent};
use crate::queue::{DeliveryBatch, DeliveryOutcome, Fenced, MAX_BATCH, MAX_PAGE, MAX_PER_ENDPOINT, WorkerId};
use crate::tenant::TenantId;

use super::state::{Now, State};
use super::work::unknown_worker;

/// An event and how its delivery stands.
#[derive(Debug)]
pub(super) struct DeliveryRow {
    event: NewEvent,
    job: JobId,
    tenant: TenantId,
    state: DeliveryState,
    attempts: u32,
    due: Duration,
    next_at: Timestamp,
    reason: Option<String>,
    created_at: Timestamp,
    worker: Option<WorkerId>,
    epoch: u64,
    last: Option<(WorkerId, u64, DeliveryOutcome)>,
}

impl State {
    /// Puts an event into the outbox, once by its id (rule Q17).
    pub(super) fn post(&mut self, job: JobId, event: NewEvent, now: Now) {
        if self.events.contains_key(&event.id) {
            return;
        }
        let number = self.next_sequence();
        let Some(row) = self.jobs.get_mut(&job) else { return };
        row.pending += 1;
        self.pending += 1;
        self.events.insert(event.id.clone(), number);
        self.due.insert((now.mono, number));
        self.told.entry(job).or_default().insert(number);
        let tenant = row.job.tenant.clone();
        if let Some(found) = self.tenants.get_mut(&tenant) {
            found.deliveries.insert(number);
        }
        let row = DeliveryRow {
            event,
            job,
            tenant,
            state: DeliveryState::Pending,
            attempts: 0,
            due: now.mono,
            next_at: now.wall,
            reason: None,
            created_at: now.wall,
            worker: None,
            epoch: 0,
            last: None,
        };
        self.deliveries.insert(number, row);
        self.hints.signal = true;
    }

    pub(super) fn claim_deliveries(&mut self, worker: WorkerId, max: usize, now: Now) -> Result<DeliveryBatch> {
        if !self.known(worker) {
            return Err(unknown_worker());
        }
        let due: Vec<u64> = self.due.iter().take_while(|(due, _)| *due <= now.mono).map(|(_, n)| *n).collect();
        let mut deliveries = Vec::new();
        for number in due {
            if deliveries.len() >= max.min(MAX_BATCH) {
                break;
            }
            let Some(row) = self.deliveries.get_mut(&number) else { continue };
            let in_flight = self.in_flight.entry(row.event.endpoint.clone()).or_default();
            if *in_flight >= MAX_PER_ENDPOINT {
                continue;
            }
            *in_flight += 1;
            self.due.remove(&(row.due, number));
            row.worker = Some(worker);
            row.epoch += 1;
            if let Some(worker) = self.workers.get_mut(&worker) {
                worker.deliveries.insert(number);
            }
            deliveries.push(Delivery {
                id: row.event.id.clone(),
                kind: row.event.kind.clone(),
                job: row.job,
                tenant: row.tenant.clone(),
                endpoint: row.event.endpoint.clone(),
                body: row.event.body.clone(),
                attempt: row.attempts + 1,
                worker,
                epoch: row.epoch,
            });
        }
        let next_due = self.due.iter().find(|(due, _)| *due > now.mono).map(|(due, _)| due.saturating_sub(now.mono));
        Ok(DeliveryBatch { deliveries, next_due })
    }

    pub(super) fn settle_delivery(&mut self, delivery: &Delivery, outcome: DeliveryOutcome, now: Now) -> Fenced {
        let Some(&number) = self.events.get(&delivery.id) else { return Fenced::Stale };
        let known = self.known(delivery.worker);
        let Some(row) = self.deliveries.get_mut(&number) else { return Fenced::Stale };
        if !known || row.worker != Some(delivery.worker) || row.epoch != delivery.epoch {
            let same = row.last == Some((delivery.worker, delivery.epoch, outcome));
            return if same { Fenced::Already } else { Fenced::Stale };
        }
        row.last = Some((delivery.worker, delivery.epoch, outcome.clone()));
        row.attempts += u32::from(outcome != DeliveryOutcome::Returned);
        let (delay, reason, state) = match outcome {
            DeliveryOutcome::Delivered => (None, None, DeliveryState::Delivered),
            DeliveryOutcome::GivenUp { reason } => (None, Some(reason), DeliveryState::GivenUp),
            DeliveryOutcome::Retry { delay, reason } => (Some(delay), Some(reason), DeliveryState::Pending),
            DeliveryOutcome::Returned => (Some(Duration::ZERO), row.reason.take(), DeliveryState::Pending),
        };
        row.reason = reason;
        let job = row.job;
        self.unclaim(number);
        match delay {
            Some(delay) => self.make_due(number, delay, now),
            None => self.deliver_no_more(number, job, state),
        }
        Fenced::Applied
    }

    fn deliver_no_more(&mut self, number: u64, job: JobId, state: DeliveryState) {
        self.pending -= 1;
        let Some(row) = self.deliveries.get_mut(&number) else { return };
        row.state = state;
        let tenant = row.tenant.clone();
        match self.jobs.get_mut(&job) {
            Some(row) => row.pending -= 1,
            // The job's record was deleted meanwhile; the delivery's only waited for its end.
            None => self.forget_deliveries(job, &tenant),
        }
    }

    /// Takes a delivery out of its worker's hands.
    fn unclaim(&mut self, number: u64) {
        let Some(row) = self.deliveries.get_mut(&number) else { return };
        let Some(worker) = row.worker.take() else { return };
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.deliveries.remove(&number);
        }
        if let Some(in_flight) = self.in_flight.get_mut(&row.event.endpoint) {
            // Its endpoint was full: another delivery may have waited for this slot. Otherwise nobody
            // needs to know, and each hint costs every worker a beat.
            self.hints.signal |= *in_flight >= MAX_PER_ENDPOINT;
            *in_flight -= 1;
            if *in_flight == 0 {
                self.in_flight.remove(&row.event.endpoint);
            }
        }
    }

    fn make_due(&mut self, number: u64, delay: Duration, now: Now) {
        let Some(row) = self.deliveries.get_mut(&number) else { return };
        self.due.remove(&(row.due, number));
        row.due = now.mono.saturating_add(delay);
        row.next_at = later(now.wall, delay);
        self.due.insert((row.due, number));
        self.hints.signal = true;
    }

    /// Makes a dead worker's delivery due again. Whether the receiver got it is not known, so no
    /// attempt is counted.
    pub(super) fn rescue_delivery(&mut self, number: u64, now: Now) {
        if let Some(row) = self.deliveries.get_mut(&number) {
            row.epoch += 1;
        }
        self.unclaim(number);
        self.make_due(number, Duration::ZERO, now);
    }

    pub(super) fn deliveries(&self, tenant: &TenantId, filter: &DeliveryFilter) -> Page<DeliveryRecord> {
        let numbers = match filter.job {
            Some(job) => self.told.get(&job),
            None => self.tenants.get(tenant).map(|tenant| &tenant.deliveries),
        };
        let numbers = numbers.into_iter().flat_map(|numbers| numbers.iter().rev());
        let mut rows = numbers.filter_map(|number| self.deliveries.get(number)).filter(|row| row.tenant == *tenant);
        let items = rows.by_ref().take(filter.limit.clamp(1, MAX_PAGE)).map(DeliveryRow::record).collect();
        Page { items, more: rows.next().is_some() }
    }

    pub(super) fn redeliver(&mut self, tenant: &TenantId, event: &EventId, now: Now) -> Result<()> {
        let number = self.events.get(event).copied().unwrap_or_default();
        let row = self.deliveries.get_mut(&number).filter(|row| row.tenant == *tenant);
        let row = row.ok_or_else(|| Error::new(ErrorKind::NotFound, "queue", "event not found"))?;
        row.attempts = 0;
        if row.worker.is_some() {
            // It is on its way already; a second one beside it would tell the receiver twice.
            return Ok(());
        }
        if row.state != DeliveryState::Pending {
            row.state = DeliveryState::Pending;
            self.pending += 1;
            if let Some(job) = self.jobs.get_mut(&row.job) {
                job.pending += 1;
            }
        }
        self.make_due(number, Duration::ZERO, now);
        Ok(())
    }

    /// Removes the ended deliveries of a job whose record is gone.
    pub(super) fn forget_deliveries(&mut self, job: JobId, tenant: &TenantId) {
        let (Some(told), Some(found)) = (self.told.get_mut(&job), self.tenants.get_mut(tenant)) else { return };
        let deliveries = &self.deliveries;
        let pending = |number: &u64| deliveries.get(number).is_some_and(|row| row.state == DeliveryState::Pending);
        let ended: Vec<u64> = told.iter().filter(|number| !pending(number)).copied().collect();
        for number in ended {
            told.remove(&number);
            found.deliveries.remove(&number);
            if let Some(row) = self.deliveries.remove(&number) {
                self.events.remove(&row.event.id);
            }
        }
        if told.is_empty() {
            self.told.remove(&job);
        }
    }
}

impl DeliveryRow {
    fn record(&self) -> DeliveryRecord {
        let next_at = (self.state == DeliveryState::Pending).then_some(self.next_at);
        DeliveryRecord {
            id: self.event.id.clone(),
            kind: self.event.kind.clone(),
            job: self.job,
            state: self.state,
            attempts: self.attempts,
            next_at,
            reason: self.reason.clone(),
            created_at: self.created_at,
        }
    }
}
