//! What a host asks: create, look, cancel, retry, retention.

use std::collections::HashSet;

use crate::error::{Error, ErrorKind, Result};
use crate::job::{Job, JobFilter, JobId, JobState, Page};
use crate::money::{LedgerEntry, UsageFilter, UsageReport, Usd};
use crate::notifier::NewEvent;
use crate::queue::{
    Enqueued, IDEMPOTENCY_LIFE, JobEnd, MAX_BATCH, MAX_PAGE, NewJob, QueueStats, Retention, Verdict, Witness,
    check_budget, check_creates, check_live_jobs, conflict, settle_adjustment, usage_report,
};
use crate::tenant::{Limits, TenantId};

use super::state::{KeyRow, Now, Place, Row, State, class};

impl State {
    pub(super) fn enqueue(&mut self, new: NewJob, now: Now) -> Result<Enqueued> {
        self.drop_old_keys(now);
        let key = new.idempotency.as_ref().map(|idempotency| (new.tenant.clone(), idempotency.key.clone()));
        if let (Some(key), Some(asked)) = (&key, &new.idempotency)
            && let Some(first) = self.keys.get(key).filter(|first| first.until > now.mono)
        {
            if first.hash != asked.hash {
                return Err(conflict("idempotency key was used for another request"));
            }
            let job = self.jobs.get(&first.job).map(|row| row.job.clone());
            let job = job.ok_or_else(|| conflict("job of this idempotency key was deleted"))?;
            return Ok(Enqueued { job, replayed: true });
        }
        if self.jobs.contains_key(&new.id) {
            return Err(conflict("job id exists already"));
        }
        let job = Job::created(new.id, new.tenant.clone(), new.request, new.plan, now.wall);
        let tenant = self.tenants.entry(new.tenant.clone()).or_default();
        check_creates(&new.limits, tenant.created.in_window(new.limits.creates, now.wall), now.wall)?;
        check_live_jobs(&new.limits, tenant.live)?;
        check_budget(&new.limits, tenant.spent(&new.limits, now.wall), tenant.held, job.held)?;

        // From here on nothing fails: what was refused left no trace (rule Q3).
        tenant.created.add(new.limits.creates, now.wall);
        tenant.held += job.held;
        tenant.jobs.insert(new.id);
        tenant.limits = new.limits;
        if let (Some(key), Some(asked)) = (key, new.idempotency) {
            let until = now.mono + IDEMPOTENCY_LIFE;
            self.key_ages.push_back((until, key.0.clone(), key.1.clone()));
            self.keys.insert(key, KeyRow { hash: asked.hash, job: new.id, until });
        }
        let row = Row {
            job: job.clone(),
            place: Place::Created,
            priority: new.priority.min(7),
            sequence: self.next_sequence(),
            tag: 0,
            epoch: 0,
            claimed_at: now.mono,
            woken: false,
            unheld: false,
            last: None,
            billed: HashSet::new(),
            recorded: Usd::ZERO,
            pending: 0,
        };
        self.jobs.insert(new.id, row);
        if new.delay.is_zero() {
            self.park(new.id);
        } else {
            self.place(new.id, Place::Waiting(now.mono.saturating_add(new.delay)));
            // Its limits are in force from now on, also for those who are parked.
            self.admit_for(new.id);
        }
        Ok(Enqueued { job, replayed: false })
    }

    fn drop_old_keys(&mut self, now: Now) {
        for _ in 0..MAX_BATCH {
            let Some((until, tenant, key)) = self.key_ages.pop_front_if(|(until, ..)| *until <= now.mono) else {
                return;
            };
            // The same key may have been used anew since.
            let key = (tenant, key);
            if self.keys.get(&key).is_some_and(|row| row.until == until) {
                self.keys.remove(&key);
            }
        }
    }

    pub(super) fn list(&self, tenant: &TenantId, filter: &JobFilter) -> Page<Job> {
        let limit = filter.limit.clamp(1, MAX_PAGE);
        let found = self.tenants.get(tenant);
        let ids = match filter.state {
            Some(state) => found.and_then(|t| t.by_state.get(&state)),
            None => found.map(|t| &t.jobs),
        };
        let Some(ids) = ids else { return Page { items: Vec::new(), more: false } };
        let mut older = match filter.before {
            Some(before) => ids.range(..before),
            None => ids.range(..),
        }
        .rev();
        let items = older.by_ref().take(limit).filter_map(|id| self.jobs.get(id)).map(|row| row.job.clone()).collect();
        Page { items, more: older.next().is_some() }
    }

    pub(super) fn cancel(&mut self, tenant: &TenantId, id: JobId, event: Option<NewEvent>, now: Now) -> Result<Job> {
        let row = self.own(tenant, id)?;
        match row.place {
            Place::Ended(..) => return Err(Error::new(ErrorKind::TooLate, "queue", "job has already ended")),
            Place::Running(_) => {
                if !row.job.cancel_requested {
                    row.job.cancel_requested = true;
                    self.changed(id);
                    self.hints.signal = true;
                }
            }
            Place::Created | Place::Parked | Place::Ready | Place::Waiting(_) if row.job.has_open_submission() => {
                if !row.job.cancel_requested {
                    row.job.cancel_requested = true;
                    self.changed(id);
                }
                self.wake(id);
            }
            Place::Created | Place::Parked | Place::Ready | Place::Waiting(_) => {
                row.job.cancel_requested = true;
                self.end(id, JobEnd::Canceled, Usd::ZERO, event, now);
            }
        }
        self.own(tenant, id).map(|row| row.job.clone())
    }

    /// Ends a job: its record, its money and its events (rules Q3, Q16 and Q17).
    pub(super) fn end(
        &mut self,
        id: JobId,
        end: JobEnd,
        keep_hold: Usd,
        events: impl IntoIterator<Item = NewEvent>,
        now: Now,
    ) {
        let Some(row) = self.jobs.get_mut(&id) else { return };
        let state = end.state();
        let adjustment = settle_adjustment(state, row.job.cost, row.recorded);
        self.hold(id, keep_hold);
        if let Some(row) = self.jobs.get_mut(&id) {
            row.job.end(end, keep_hold, now.wall);
        }
        if adjustment != Usd::ZERO {
            self.write(id, LedgerEntry::Adjustment, adjustment, now);
        }
        self.place(id, Place::Ended(state, now.mono));
        for event in events {
            self.post(id, event, now);
        }
        self.admit_for(id);
    }

    pub(super) fn retry(&mut self, tenant: &TenantId, id: JobId, hold: Usd, limits: &Limits, now: Now) -> Result<Job> {
        let row = self.own(tenant, id)?;
        row.job.check_retry()?;
        let kept = row.job.held;
        let found = self.tenants.entry(tenant.clone()).or_default();
        check_live_jobs(limits, found.live)?;
        check_budget(limits, found.spent(limits, now.wall), found.held - kept, hold)?;

        found.limits = limits.clone();
        self.hold(id, hold);
        let sequence = self.next_sequence();
        let row = self.own(tenant, id)?;
        row.job.reopen(hold, now.steady);
        row.epoch += 1;
        row.sequence = sequence;
        self.park(id);
        self.own(tenant, id).map(|row| row.job.clone())
    }

    pub(super) fn resolve(&mut self, tenant: &TenantId, id: JobId, verdict: Verdict, now: Now) -> Result<Job> {
        let row = self.own(tenant, id)?;
        if !row.job.state.is_ended() {
            return Err(conflict("job has not ended yet"));
        }
        let resolved: Vec<_> = row.job.steps.iter().filter_map(|step| step.resolved(verdict, now.wall)).collect();
        if resolved.is_empty() {
            return Err(conflict("job has no step in doubt"));
        }
        let state = row.job.state;
        for (record, cost) in resolved {
            self.own(tenant, id)?.job.put_step(record);
            if let Some(cost) = cost {
                self.bill(id, cost, now);
            }
        }
        self.hold(id, Usd::ZERO);
        let row = self.own(tenant, id)?;
        let adjustment = settle_adjustment(state, row.job.cost, row.recorded);
        if adjustment != Usd::ZERO {
            self.write(id, LedgerEntry::Adjustment, adjustment, now);
        }
        self.changed(id);
        self.own(tenant, id).map(|row| row.job.clone())
    }

    pub(super) fn delete(&mut self, tenant: &TenantId, id: JobId) -> Result<()> {
        let row = self.own(tenant, id)?;
        if !row.job.state.is_ended() {
            return Err(conflict("job has not ended yet"));
        }
        if row.job.held != Usd::ZERO {
            // Nobody could give the hold back later.
            return Err(conflict("job has a step in doubt: resolve it first"));
        }
        self.forget(id);
        Ok(())
    }

    pub(super) fn usage(&self, tenant: &TenantId, filter: &UsageFilter) -> UsageReport {
        let Some(found) = self.tenants.get(tenant) else { return UsageReport::default() };
        let rows = found
            .ledger
            .iter()
            .filter(|row| filter.from.is_none_or(|from| row.at >= from) && filter.to.is_none_or(|to| row.at < to));
        usage_report(rows, found.held)
    }

    pub(super) fn stats(&self) -> QueueStats {
        let parked: usize = self.tenants.values().map(|tenant| tenant.parked.len()).sum();
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        QueueStats {
            queued: count(parked + self.ready.len()),
            waiting: count(self.waiting.len()),
            processing: count(self.running),
            workers: count(self.workers.values().filter(|worker| !worker.dead).count()),
            deliveries: count(self.pending),
            paused: self.paused,
        }
    }

    pub(super) fn pause(&mut self, paused: bool) {
        self.paused = paused;
        self.hints.ready |= !paused && !self.ready.is_empty();
    }

    pub(super) fn wake(&mut self, id: JobId) {
        let Some(row) = self.jobs.get_mut(&id) else { return };
        match row.place {
            Place::Waiting(_) => self.park(id),
            Place::Running(_) => {
                row.woken = true;
                self.hints.signal = true;
            }
            // It will be looked at anyway, or never again.
            Place::Created | Place::Parked | Place::Ready | Place::Ended(..) => {}
        }
    }

    pub(super) fn witness(&mut self, witness: Witness) {
        let id = witness.job;
        let Some(row) = self.jobs.get_mut(&id) else { return };
        row.job.hear(witness);
        self.wake(id);
    }

    pub(super) fn expired(&self, retention: &Retention, max: usize, now: Now) -> Vec<JobId> {
        let max = max.min(MAX_BATCH);
        let mut found: Vec<JobId> = Vec::new();
        let kinds = [
            (JobState::Completed, retention.completed, retention.max_completed),
            (JobState::Failed, retention.failed, retention.max_failed),
        ];
        for (state, age, keep) in kinds {
            let too_old = |at: &std::time::Duration| now.mono.saturating_sub(*at) >= age;
            if let Some(ended) = self.ended.get(class(state)) {
                let old = ended.iter().take_while(|(at, _)| too_old(at)).map(|(_, id)| *id);
                found.extend(old.filter(|id| self.may_go(*id)).take(max - found.len()));
            }
            let Some(keep) = keep.and_then(|keep| usize::try_from(keep).ok()) else { continue };
            for tenant in self.tenants.values() {
                let Some(ended) = tenant.ended.get(class(state)) else { continue };
                let extra = ended.iter().take(ended.len().saturating_sub(keep));
                // The aged ones are in the list already.
                let extra = extra.filter(|(at, _)| !too_old(at)).map(|(_, id)| *id);
                found.extend(extra.filter(|id| self.may_go(*id)).take(max - found.len()));
            }
        }
        found
    }

    pub(super) fn prune(&mut self, jobs: &[JobId]) -> u64 {
        let mut gone = 0;
        for id in jobs.iter().take(MAX_BATCH) {
            if self.may_go(*id) {
                self.forget(*id);
                gone += 1;
            }
        }
        gone
    }
}
