//! The maps, and the two transitions that keep their counters true: [`State::place`] and
//! [`State::admit`]. Nothing else moves a job.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use crate::error::{Error, Result};
use crate::job::{Job, JobId, JobState, StepId};
use crate::money::{CostEntry, LedgerEntry, LedgerRow, Usd};
use crate::notifier::EventId;
use crate::queue::{Claim, MAX_BATCH, fair_tag, held_after_cost, window_of};
use crate::tenant::{Limits, TenantId};
use crate::{Window, WorkerId};

use super::outbox::DeliveryRow;

/// One reading of both clocks, so that a call happens at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) wall: Timestamp,
    pub(super) mono: Duration,
    /// The wall clock when the queue was made, and the monotonic one from there on: what workers
    /// compare, so that a step of the wall clock makes nothing early or late.
    pub(super) steady: Timestamp,
}

/// Everything the queue knows.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) jobs: HashMap<JobId, Row>,
    pub(super) tenants: HashMap<TenantId, Tenant>,
    pub(super) workers: HashMap<WorkerId, Worker>,
    /// By priority, tag and age: the order of claims.
    pub(super) ready: BTreeSet<(u8, i64, u64, JobId)>,
    pub(super) waiting: BTreeSet<(Duration, JobId)>,
    pub(super) running: usize,
    /// Ended jobs, oldest first: those that completed and those that did not.
    pub(super) ended: [BTreeSet<(Duration, JobId)>; 2],
    pub(super) keys: HashMap<(TenantId, String), KeyRow>,
    /// Idempotency rows by age.
    pub(super) key_ages: VecDeque<(Duration, TenantId, String)>,
    /// By age; the newest has the greatest number.
    pub(super) deliveries: BTreeMap<u64, DeliveryRow>,
    pub(super) events: HashMap<EventId, u64>,
    /// The deliveries of each job, also of one whose record is gone.
    pub(super) told: HashMap<JobId, BTreeSet<u64>>,
    /// Unclaimed pending deliveries by the moment they are due.
    pub(super) due: BTreeSet<(Duration, u64)>,
    /// How many deliveries are on their way to an endpoint.
    pub(super) in_flight: HashMap<String, usize>,
    pub(super) pending: usize,
    pub(super) watchers: HashMap<JobId, watch::Sender<u64>>,
    pub(super) virtual_time: i64,
    pub(super) sequence: u64,
    pub(super) paused: bool,
    pub(super) hints: Hints,
}

/// What happened that somebody may wait for; told after the lock is given back.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hints {
    pub(super) ready: bool,
    pub(super) signal: bool,
}

/// A job, and what users do not see of it.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) job: Job,
    pub(super) place: Place,
    pub(super) priority: u8,
    pub(super) sequence: u64,
    pub(super) tag: i64,
    pub(super) epoch: u64,
    pub(super) claimed_at: Duration,
    /// A callback came in since the worker's last beat.
    pub(super) woken: bool,
    /// The last beat of its worker did not name it.
    pub(super) unheld: bool,
    /// The write that ended the last claim, so that its repetition can be told from a stale one.
    pub(super) last: Option<(WorkerId, u64, LastWrite)>,
    /// Purchases that are in the ledger.
    pub(super) billed: HashSet<(StepId, u32)>,
    /// The sum of its ledger rows.
    pub(super) recorded: Usd,
    /// Events that are still to be delivered.
    pub(super) pending: usize,
}

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere yet.
    Created,
    /// Its tenant has no free slot.
    Parked,
    /// May be claimed.
    Ready,
    /// Until a moment of the monotonic clock.
    Waiting(Duration),
    /// A worker's.
    Running(WorkerId),
    /// Ended, when.
    Ended(JobState, Duration),
}

/// How a claim ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LastWrite {
    Released,
    Settled(JobState),
}

impl Place {
    fn public(self) -> JobState {
        match self {
            Self::Created | Self::Parked | Self::Ready | Self::Waiting(_) => JobState::Queued,
            Self::Running(_) => JobState::Processing,
            Self::Ended(state, _) => state,
        }
    }

    fn is_active(self) -> bool {
        matches!(self, Self::Ready | Self::Running(_))
    }

    fn is_live(self) -> bool {
        !matches!(self, Self::Created | Self::Ended(..))
    }
}

/// Which of the two sets of ended jobs a state belongs to.
pub(super) fn class(state: JobState) -> usize {
    usize::from(state != JobState::Completed)
}

/// What is known of a tenant.
#[derive(Debug, Default)]
pub(super) struct Tenant {
    pub(super) limits: Limits,
    pub(super) active: usize,
    pub(super) live: u64,
    pub(super) last_tag: i64,
    pub(super) held: Usd,
    pub(super) parked: BTreeSet<(u8, u64, JobId)>,
    /// All jobs, and those of each state: a page costs what it shows.
    pub(super) jobs: BTreeSet<JobId>,
    pub(super) by_state: HashMap<JobState, BTreeSet<JobId>>,
    /// Ended jobs, oldest first, as in [`State::ended`].
    pub(super) ended: [BTreeSet<(Duration, JobId)>; 2],
    pub(super) deliveries: BTreeSet<u64>,
    pub(super) created: Counter<u32>,
    spent: Counter<Usd>,
    pub(super) ledger: Vec<LedgerRow>,
}

/// What was counted in one window.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counter<T> {
    per: Duration,
    window: i64,
    count: T,
}

impl Counter<u32> {
    /// How many there were in the window that `now` lies in.
    pub(super) fn in_window(&self, limit: Option<Window<u32>>, now: Timestamp) -> u32 {
        limit.filter(|l| l.per == self.per && window_of(now, l.per).0 == self.window).map_or(0, |_| self.count)
    }

    pub(super) fn add(&mut self, limit: Option<Window<u32>>, now: Timestamp) {
        let Some(limit) = limit else { return };
        let count = self.in_window(Some(limit), now).saturating_add(1);
        *self = Self { per: limit.per, window: window_of(now, limit.per).0, count };
    }
}

impl Tenant {
    /// The sum of the ledger rows in the budget's window. Added up once for each window, then
    /// kept up to date, so that a create costs the same however long the ledger is.
    pub(super) fn spent(&mut self, limits: &Limits, now: Timestamp) -> Usd {
        let Some(budget) = limits.budget else { return Usd::ZERO };
        let window = window_of(now, budget.per).0;
        if self.spent.per != budget.per || self.spent.window != window {
            let within = |row: &&LedgerRow| window_of(row.at, budget.per).0 == window;
            let count = self.ledger.iter().filter(within).map(|row| row.amount).sum();
            self.spent = Counter { per: budget.per, window, count };
        }
        self.spent.count
    }

    pub(super) fn write(&mut self, row: LedgerRow) {
        if window_of(row.at, self.spent.per).0 == self.spent.window {
            self.spent.count += row.amount;
        }
        self.ledger.push(row);
    }
}

/// An idempotency row.
#[derive(Clone, Debug)]
pub(super) struct KeyRow {
    pub(super) hash: String,
    pub(super) job: JobId,
    pub(super) until: Duration,
}

/// A registered worker.
#[derive(Debug, Default)]
pub(super) struct Worker {
    pub(super) beat_at: Duration,
    pub(super) jobs: BTreeSet<JobId>,
    pub(super) deliveries: BTreeSet<u64>,
    /// Found dead, or deregistered: it may do nothing more while its jobs are rescued.
    pub(super) dead: bool,
    /// It went by itself, so no crash is counted.
    pub(super) clean: bool,
}

impl State {
    pub(super) fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// A tenant's own job; anybody else's is not there (rule Q15).
    pub(super) fn own(&mut self, tenant: &TenantId, id: JobId) -> Result<&mut Row> {
        self.jobs.get_mut(&id).filter(|row| row.job.tenant == *tenant).ok_or_else(Error::job_not_found)
    }

    /// Whether a worker may claim and write (rule Q5).
    pub(super) fn known(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_some_and(|w| !w.dead)
    }

    /// The job of a claim, if the claim still stands (rules Q1, Q2 and Q5).
    pub(super) fn fenced(&mut self, claim: Claim) -> Option<&mut Row> {
        if !self.known(claim.worker) {
            return None;
        }
        let stands = |row: &&mut Row| row.epoch == claim.epoch && row.place == Place::Running(claim.worker);
        self.jobs.get_mut(&claim.job).filter(stands)
    }

    /// Moves a job: all indexes, counters and the state that users see, in one go.
    pub(super) fn place(&mut self, id: JobId, to: Place) {
        let Some(row) = self.jobs.get_mut(&id) else { return };
        let tenant = self.tenants.entry(row.job.tenant.clone()).or_default();
        let from = std::mem::replace(&mut row.place, to);
        let by_ready = (row.priority, row.tag, row.sequence, id);
        let by_park = (row.priority, row.sequence, id);
        match from {
            Place::Created => {}
            Place::Parked => drop(tenant.parked.remove(&by_park)),
            Place::Ready => drop(self.ready.remove(&by_ready)),
            Place::Waiting(due) => drop(self.waiting.remove(&(due, id))),
            Place::Running(worker) => {
                self.running -= 1;
                if let Some(worker) = self.workers.get_mut(&worker) {
                    worker.jobs.remove(&id);
                }
            }
            Place::Ended(state, at) => {
                for ended in [&mut self.ended, &mut tenant.ended] {
                    if let Some(set) = ended.get_mut(class(state)) {
                        set.remove(&(at, id));
                    }
                }
            }
        }
        match to {
            Place::Created => {}
            Place::Parked => drop(tenant.parked.insert(by_park)),
            Place::Ready => {
                self.ready.insert(by_ready);
                self.hints.ready = true;
            }
            Place::Waiting(due) => drop(self.waiting.insert((due, id))),
            Place::Running(worker) => {
                self.running += 1;
                row.woken = false;
                row.unheld = false;
                if let Some(worker) = self.workers.get_mut(&worker) {
                    worker.jobs.insert(id);
                }
            }
            Place::Ended(state, at) => {
                for ended in [&mut self.ended, &mut tenant.ended] {
                    if let Some(set) = ended.get_mut(class(state)) {
                        set.insert((at, id));
                    }
                }
            }
        }
        tenant.active = tenant.active + usize::from(to.is_active()) - usize::from(from.is_active());
        tenant.live = tenant.live + u64::from(to.is_live()) - u64::from(from.is_live());
        let (before, after) = (from.public(), to.public());
        if from != Place::Created && before != after {
            tenant.by_state.entry(before).or_default().remove(&id);
            self.changed(id);
        }
        let Some(row) = self.jobs.get_mut(&id) else { return };
        row.job.state = after;
        if let Some(tenant) = self.tenants.get_mut(&row.job.tenant) {
            tenant.by_state.entry(after).or_default().insert(id);
        }
    }

    /// Makes the next parked jobs of a tenant ready while it has free slots (rule Q10).
    pub(super) fn admit(&mut self, tenant: &TenantId) {
        for _ in 0..MAX_BATCH {
            let Some(found) = self.tenants.get_mut(tenant) else { return };
            let slots = usize::try_from(found.limits.active_jobs.max(1)).unwrap_or(usize::MAX);
            let Some(&(.., id)) = found.parked.first().filter(|_| found.active < slots) else { return };
            found.last_tag = fair_tag(self.virtual_time, found.last_tag, found.limits.weight);
            let tag = found.last_tag;
            if let Some(row) = self.jobs.get_mut(&id) {
                row.tag = tag;
            }
            self.place(id, Place::Ready);
        }
    }

    /// Takes a job out of whatever it waits for, and lets its tenant use the slot it may have had.
    pub(super) fn park(&mut self, id: JobId) {
        self.place(id, Place::Parked);
        self.admit_for(id);
    }

    /// Admits for the tenant of a job.
    pub(super) fn admit_for(&mut self, id: JobId) {
        if let Some(tenant) = self.jobs.get(&id).map(|row| row.job.tenant.clone()) {
            self.admit(&tenant);
        }
    }

    /// Makes jobs ready whose moment has come: all of them are parked before one is admitted, so
    /// that a tenant's oldest goes first whatever moment each waited for.
    pub(super) fn promote(&mut self, now: Now) {
        let due: Vec<JobId> =
            self.waiting.iter().take_while(|(due, _)| *due <= now.mono).map(|(_, id)| *id).take(MAX_BATCH).collect();
        for id in &due {
            self.place(*id, Place::Parked);
        }
        for id in &due {
            self.admit_for(*id);
        }
    }

    /// A user can see a difference: the next version, and whoever watches learns it.
    pub(super) fn changed(&mut self, id: JobId) {
        let Some(row) = self.jobs.get_mut(&id) else { return };
        row.job.version += 1;
        if let Some(watchers) = self.watchers.get(&id) {
            watchers.send_replace(row.job.version);
            if watchers.receiver_count() == 0 {
                self.watchers.remove(&id);
            }
        }
    }

    /// Sets what is held for a job, and the tenant's sum with it.
    pub(super) fn hold(&mut self, id: JobId, held: Usd) {
        let Some(row) = self.jobs.get_mut(&id) else { return };
        if let Some(tenant) = self.tenants.get_mut(&row.job.tenant) {
            tenant.held = tenant.held - row.job.held + held;
        }
        row.job.held = held;
    }

    /// Writes a cost to the ledger, once (rule Q16).
    pub(super) fn bill(&mut self, id: JobId, entry: CostEntry, now: Now) {
        let Some(row) = self.jobs.get_mut(&id) else { return };
        if !row.billed.insert((entry.step, entry.ordinal)) {
            return;
        }
        let amount = entry.cost.amount;
        row.job.cost += amount;
        let held = held_after_cost(row.job.held, amount);
        self.hold(id, held);
        self.write(id, LedgerEntry::Cost(entry), amount, now);
    }

    /// Appends a ledger row.
    pub(super) fn write(&mut self, id: JobId, entry: LedgerEntry, amount: Usd, now: Now) {
        let Some(row) = self.jobs.get_mut(&id) else { return };
        row.recorded += amount;
        let tenant = row.job.tenant.clone();
        if let Some(found) = self.tenants.get_mut(&tenant) {
            found.write(LedgerRow { tenant, job: id, entry, amount, at: now.wall });
        }
    }

    /// Whether retention may take a job (rule Q18).
    pub(super) fn may_go(&self, id: JobId) -> bool {
        let free = |row: &Row| matches!(row.place, Place::Ended(..)) && row.job.held == Usd::ZERO && row.pending == 0;
        self.jobs.get(&id).is_some_and(free)
    }

    /// Removes the record of an ended job and its ended deliveries. Ledger and idempotency row stay.
    pub(super) fn forget(&mut self, id: JobId) {
        self.place(id, Place::Created);
        let Some(row) = self.jobs.remove(&id) else { return };
        self.watchers.remove(&id);
        let Some(tenant) = self.tenants.get_mut(&row.job.tenant) else { return };
        tenant.jobs.remove(&id);
        if let Some(set) = tenant.by_state.get_mut(&JobState::Queued) {
            set.remove(&id);
        }
        self.forget_deliveries(id, &row.job.tenant);
    }
}
