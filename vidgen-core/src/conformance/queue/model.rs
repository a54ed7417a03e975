//! Whole histories, played to the queue and to [`MemoryQueue`] alike: every answer must be the same.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use super::bench::{Bench, Dice, seconds};
use crate::clock::ManualClock;
use crate::conformance::sample::{self, tenant};
use crate::memory::MemoryQueue;
use crate::{
    Checkpoint, Claim, Delivery, DeliveryFilter, DeliveryOutcome, ErrorKind, EventId, Fenced, Idempotency, Job,
    JobFilter, JobId, LEASE, Limits, MAX_BATCH, NewEvent, NewJob, Queue, Release, Result, Retention, Settlement,
    StepId, StepKind, StepRecord, StepState, TenantId, UsageFilter, Usd, Verdict, Window, WorkerId,
};

/// How long a history is, and how many are played.
const STEPS: usize = 400;
const HISTORIES: u64 = 5;

/// Random histories with deaths, lost answers, replays, cancels and retries: queue and model agree
/// on every answer, and in the end every job can be ended.
pub async fn q3_random_histories_match_the_model(bench: Bench) {
    for seed in 1..=HISTORIES {
        let mut twins = Twins::new(&bench, seed).await;
        for _ in 0..STEPS {
            twins.step().await;
        }
        twins.finish().await;
    }
}

/// Asks both, and compares the answers if they can be compared as they are.
macro_rules! both {
    ($twins:expr, $call:ident($($arg:expr),*)) => {{
        let real = $twins.real.$call($($arg),*).await.map_err(|error| error.kind());
        let model = $twins.model.$call($($arg),*).await.map_err(|error| error.kind());
        (real, model)
    }};
}

/// The same thing under the names that the queue and the model gave it.
#[derive(Clone, Copy, Debug)]
struct Pair<T> {
    real: T,
    model: T,
}

struct Twins {
    real: Arc<dyn Queue>,
    model: MemoryQueue,
    clocks: Pair<ManualClock>,
    dice: Dice,
    seed: u64,
    owners: Vec<TenantId>,
    jobs: Vec<(TenantId, JobId)>,
    events: Vec<(TenantId, EventId)>,
    workers: Vec<Pair<WorkerId>>,
    claims: Vec<Pair<Claim>>,
    /// Claims that ended, were lost or were forgotten; writes under them are tried, too.
    over: Vec<Pair<Claim>>,
    deliveries: Vec<Pair<Delivery>>,
    paused: bool,
    log: Vec<String>,
}

type Answer<T> = std::result::Result<T, ErrorKind>;

impl Twins {
    async fn new(bench: &Bench, seed: u64) -> Self {
        // The clock of the bench has gone on since its start; the model's starts where it is now.
        let clock = ManualClock::starting_at(crate::clock::Clock::now(&bench.clock));
        let mut twins = Self {
            real: bench.queue.clone(),
            model: MemoryQueue::with_clock(clock.clone()),
            clocks: Pair { real: bench.clock.clone(), model: clock },
            dice: Dice::new(seed),
            seed,
            // Each history has tenants of its own, since the queue still has those before.
            owners: ["ann", "bob", "cem"].map(|name| tenant(&format!("{name}-{seed}"))).to_vec(),
            jobs: Vec::new(),
            events: Vec::new(),
            workers: Vec::new(),
            claims: Vec::new(),
            over: Vec::new(),
            deliveries: Vec::new(),
            paused: false,
            log: Vec::new(),
        };
        twins.register().await;
        twins
    }

    fn agree<T: PartialEq + Debug>(&mut self, what: String, (real, model): (Answer<T>, Answer<T>)) -> Option<T> {
        self.log.push(what);
        if real != model {
            let from = self.log.len().saturating_sub(25);
            let history = self.log[from..].join("\n  ");
            panic!("seed {}: queue and model differ\n  {history}\n queue: {real:#?}\n model: {model:#?}", self.seed);
        }
        model.ok()
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> Option<T> {
        (!of.is_empty()).then(|| of[self.dice.roll(of.len())].clone())
    }

    fn odds(&mut self, of: usize) -> bool {
        self.dice.roll(of) == 0
    }

    async fn step(&mut self) {
        match self.dice.roll(32) {
            0..=4 => self.enqueue().await,
            5..=8 => self.claim().await,
            9..=12 => self.checkpoint().await,
            13 | 14 => self.release().await,
            15..=17 => self.settle().await,
            18..=20 => self.pass_time().await,
            21 => self.cancel().await,
            22 => self.retry().await,
            23 => self.decide().await,
            24 => self.wake().await,
            25 => self.forget().await,
            26 | 27 => self.claim_deliveries().await,
            28 | 29 => self.settle_delivery().await,
            30 => self.redeliver().await,
            _ => self.disturb().await,
        }
        self.compare().await;
    }

    async fn register(&mut self) {
        let real = self.real.register("twin").await.unwrap();
        let model = self.model.register("twin").await.unwrap();
        self.workers.push(Pair { real, model });
    }

    async fn enqueue(&mut self) {
        let owner = self.owners[self.dice.roll(3)].clone();
        let mut new = sample::new_job(&owner);
        new.priority = [3, 3, 3, 1][self.dice.roll(4)];
        new.delay = seconds([0, 0, 0, 7][self.dice.roll(4)]);
        let hour = seconds(3600);
        new.limits = Limits {
            active_jobs: 1 + u32::try_from(self.dice.roll(4)).unwrap(),
            weight: 1 + u32::try_from(self.dice.roll(3)).unwrap(),
            live_jobs: self.odds(3).then_some(6),
            creates: self.odds(3).then_some(Window { limit: 9, per: hour }),
            budget: self.odds(3).then_some(Window { limit: sample::HOLD.times(6), per: hour }),
        };
        if self.odds(4) {
            let (key, hash) = (format!("key-{}", self.dice.roll(4)), format!("hash-{}", self.dice.roll(2)));
            new.idempotency = Some(Idempotency { key, hash });
        }
        let what = format!("enqueue {} for {owner} {:?} {:?}", new.id, new.limits, new.idempotency);
        let id = new.id;
        let (real, model) = both!(self, enqueue(NewJob::clone(&new)));
        let plain = |answer: Answer<crate::Enqueued>| answer.map(|enqueued| (enqueued.job, enqueued.replayed));
        if let Some((_, false)) = self.agree(what, (plain(real), plain(model))) {
            self.jobs.push((owner, id));
        }
    }

    async fn claim(&mut self) {
        let Some(worker) = self.pick(&self.workers.clone()) else { return };
        let max = self.dice.roll(4);
        let real = self.real.claim(worker.real, max).await;
        let model = self.model.claim(worker.model, max).await;
        let claims = |answer: &Result<crate::ClaimBatch>| -> Vec<Claim> {
            answer.iter().flat_map(|batch| &batch.jobs).map(|claimed| claimed.claim).collect()
        };
        let (reals, models) = (claims(&real), claims(&model));
        let plain = |answer: Result<crate::ClaimBatch>| {
            let jobs = |batch: crate::ClaimBatch| batch.jobs.into_iter().map(|c| c.job).collect::<Vec<_>>();
            answer.map(|batch| (batch.now, batch.next_due, jobs(batch))).map_err(|error| error.kind())
        };
        self.agree(format!("claim {max}"), (plain(real), plain(model)));
        for (real, model) in reals.into_iter().zip(models) {
            // Now and then the answer is lost.
            if self.odds(8) {
                self.log.push(format!("  lost: {}", real.job));
                self.over.push(Pair { real, model });
            } else {
                self.claims.push(Pair { real, model });
            }
        }
    }

    /// A claim that stands, or now and then one that is over.
    fn some_claim(&mut self) -> Option<Pair<Claim>> {
        let stale = self.odds(5);
        let from = if stale { self.over.clone() } else { self.claims.clone() };
        self.pick(&from)
    }

    fn end_claim(&mut self, claim: Pair<Claim>) {
        self.claims.retain(|other| other.real != claim.real);
        self.over.push(claim);
    }

    async fn checkpoint(&mut self) {
        let Some(claim) = self.some_claim() else { return };
        let job = claim.model.job;
        let Some((owner, _)) = self.jobs.iter().find(|(_, id)| *id == job).cloned() else { return };
        let step = [StepKind::Image, StepKind::Video][self.dice.roll(2)];
        let stored = self.model.get(&owner, job).await.ok().and_then(|job| job.step(step).cloned());
        let record = self.next_record(job, step, stored);
        let costs = if self.odds(2) { vec![sample::cost(step, 1 + self.dice.roll(3) as u32)] } else { vec![] };
        let progress = u8::try_from(self.dice.roll(120)).unwrap();
        let write = |claim| Checkpoint { claim, record: record.clone(), costs: costs.clone(), progress };
        let real = self.real.checkpoint(write(claim.real)).await;
        let model = self.model.checkpoint(write(claim.model)).await;
        let plain = |answer: Result<crate::Ack>| {
            answer.map(|ack| (ack.fenced, ack.cancel, ack.now)).map_err(|error| error.kind())
        };
        let what = format!("checkpoint {job} {step} r{} {}", record.revision, record.state.as_str());
        self.agree(what, (plain(real), plain(model)));
    }

    fn next_record(&mut self, job: JobId, step: StepId, stored: Option<StepRecord>) -> StepRecord {
        let last = stored.as_ref().map_or(0, |record| record.revision);
        if let Some(stored) = stored.filter(|_| self.odds(4)) {
            return stored;
        }
        let revision = if self.odds(6) { last + 2 } else { last + 1 };
        match self.dice.roll(6) {
            0 => sample::intent(job, step, revision),
            1 => sample::accepted(job, step, revision),
            2 => sample::done(step, revision),
            3 => sample::failed(job, step, revision),
            4 => sample::in_doubt(job, step, revision),
            _ => sample::record(step, revision, StepState::Waiting { not_before: super::start() }),
        }
    }

    async fn release(&mut self) {
        let Some(claim) = self.some_claim() else { return };
        let release = Release { delay: seconds([0, 3, 12][self.dice.roll(3)]), counts: self.odds(2) };
        let real = self.real.release(claim.real, release).await.map_err(|error| error.kind());
        let model = self.model.release(claim.model, release).await.map_err(|error| error.kind());
        if self.agree(format!("release {} {release:?}", claim.real.job), (real, model)) == Some(Fenced::Applied) {
            self.end_claim(claim);
        }
    }

    async fn settle(&mut self) {
        let Some(claim) = self.some_claim() else { return };
        let end = sample::ends()[self.dice.roll(3)].clone();
        let keep_hold = if self.odds(4) { sample::VIDEO_PRICE } else { Usd::ZERO };
        let events: Vec<NewEvent> =
            (0..self.dice.roll(3)).map(|n| sample::event(&format!("https://{n}.example"))).collect();
        let write = |claim| Settlement { claim, end: end.clone(), keep_hold, events: events.clone() };
        let real = self.real.settle(write(claim.real)).await.map_err(|error| error.kind());
        let model = self.model.settle(write(claim.model)).await.map_err(|error| error.kind());
        let what = format!("settle {} {:?} keep {keep_hold}, {} events", claim.real.job, end.state(), events.len());
        if self.agree(what, (real, model)) == Some(Fenced::Applied) {
            let owner = self.jobs.iter().find(|(_, id)| *id == claim.real.job).unwrap().0.clone();
            self.events.extend(events.into_iter().map(|event| (owner.clone(), event.id)));
            self.end_claim(claim);
        }
    }

    /// Up to six seconds pass, and every worker beats.
    async fn pass_time(&mut self) {
        let time = seconds(1 + self.dice.roll(6) as u64);
        self.advance(time);
        for worker in self.workers.clone() {
            let mine = self.claims.iter().filter(|claim| claim.real.worker == worker.real).copied();
            let mut held: Vec<Pair<Claim>> = mine.collect();
            if self.odds(6) {
                held.extend(self.over.last());
            }
            let reals: Vec<Claim> = held.iter().map(|claim| claim.real).collect();
            let models: Vec<Claim> = held.iter().map(|claim| claim.model).collect();
            let real = self.real.heartbeat(worker.real, &reals).await;
            let model = self.model.heartbeat(worker.model, &models).await;
            let sorted = |mut jobs: Vec<JobId>| {
                jobs.sort_unstable();
                jobs
            };
            let ids = |claims: Vec<Claim>| sorted(claims.into_iter().map(|claim| claim.job).collect());
            let plain = |answer: Result<crate::Beat>| {
                let beat = |b: crate::Beat| (b.known, sorted(b.cancels), sorted(b.wakes), ids(b.strays), ids(b.lost));
                answer.map(beat).map_err(|error| error.kind())
            };
            self.agree(format!("beat of {} claims after {time:?}", held.len()), (plain(real), plain(model)));
        }
    }

    fn advance(&self, time: Duration) {
        self.clocks.real.advance(time);
        self.clocks.model.advance(time);
    }

    async fn cancel(&mut self) {
        let Some((owner, id)) = self.pick(&self.jobs.clone()) else { return };
        let event = self.odds(2).then(|| sample::event("https://0.example"));
        let answer = both!(self, cancel(&owner, id, event.clone()));
        let job = self.agree(format!("cancel {id}"), answer);
        if let (Some(event), true) = (event, job.is_some_and(|job| job.state.is_ended())) {
            self.events.push((owner, event.id));
        }
    }

    async fn retry(&mut self) {
        let Some((owner, id)) = self.pick(&self.jobs.clone()) else { return };
        let limits = Limits { live_jobs: self.odds(3).then_some(5), active_jobs: 2, ..Limits::default() };
        let answer = both!(self, retry(&owner, id, sample::HOLD, &limits));
        self.agree(format!("retry {id}"), answer);
    }

    async fn decide(&mut self) {
        // Most jobs are not in doubt: those that are come first, or this would hardly ever succeed.
        let mut doubtful = Vec::new();
        for (owner, id) in &self.jobs {
            let job = self.model.get(owner, *id).await;
            doubtful.extend(job.ok().filter(|job| job.in_doubt()).map(|job| (owner.clone(), job.id)));
        }
        let from = if doubtful.is_empty() { self.jobs.clone() } else { doubtful };
        let Some((owner, id)) = self.pick(&from) else { return };
        let verdict = if self.odds(2) { Verdict::Bought } else { Verdict::NotBought };
        let answer = both!(self, resolve(&owner, id, verdict));
        self.agree(format!("resolve {id} {verdict:?}"), answer);
    }

    async fn wake(&mut self) {
        let Some((_, id)) = self.pick(&self.jobs.clone()) else { return };
        let answer = both!(self, wake(id));
        self.agree(format!("wake {id}"), answer);
    }

    async fn forget(&mut self) {
        let Some((owner, id)) = self.pick(&self.jobs.clone()) else { return };
        if self.odds(2) {
            let answer = both!(self, delete(&owner, id));
            self.agree(format!("delete {id}"), answer);
            return;
        }
        // The queue also has the jobs of the histories before, so one job is asked about, not all.
        let answer = both!(self, prune(&[id]));
        self.agree(format!("prune {id}"), answer);
    }

    async fn claim_deliveries(&mut self) {
        let Some(worker) = self.pick(&self.workers.clone()) else { return };
        let max = self.dice.roll(4);
        let real = self.real.claim_deliveries(worker.real, max).await;
        let model = self.model.claim_deliveries(worker.model, max).await;
        let list = |answer: &Result<crate::DeliveryBatch>| -> Vec<Delivery> {
            answer.iter().flat_map(|batch| batch.deliveries.clone()).collect()
        };
        let (reals, models) = (list(&real), list(&model));
        let plain = |answer: &Result<crate::DeliveryBatch>| {
            let due = |batch: &crate::DeliveryBatch| batch.next_due.filter(|_| batch.deliveries.is_empty());
            let told = |d: &Delivery| (d.id.clone(), d.job, d.endpoint.clone(), d.attempt);
            answer
                .as_ref()
                .map(|batch| (batch.deliveries.iter().map(told).collect::<Vec<_>>(), due(batch)))
                .map_err(|error| error.kind())
        };
        self.agree(format!("claim {max} deliveries"), (plain(&real), plain(&model)));
        self.deliveries.extend(reals.into_iter().zip(models).map(|(real, model)| Pair { real, model }));
    }

    async fn settle_delivery(&mut self) {
        let Some(delivery) = self.pick(&self.deliveries.clone()) else { return };
        let reason = || "answered 500".to_owned();
        let outcome = match self.dice.roll(5) {
            0 | 1 => DeliveryOutcome::Delivered,
            2 => DeliveryOutcome::Retry { delay: seconds([0, 5][self.dice.roll(2)]), reason: reason() },
            3 => DeliveryOutcome::GivenUp { reason: reason() },
            _ => DeliveryOutcome::Returned,
        };
        let real = self.real.settle_delivery(&delivery.real, outcome.clone()).await.map_err(|error| error.kind());
        let model = self.model.settle_delivery(&delivery.model, outcome.clone()).await.map_err(|error| error.kind());
        self.agree(format!("settle delivery {} {outcome:?}", delivery.real.id), (real, model));
    }

    async fn redeliver(&mut self) {
        let Some((owner, event)) = self.pick(&self.events.clone()) else { return };
        let answer = both!(self, redeliver(&owner, &event));
        self.agree(format!("redeliver {event}"), answer);
    }

    /// Something goes wrong: workers die or leave, or the queue is paused.
    async fn disturb(&mut self) {
        match self.dice.roll(4) {
            0 => self.all_die().await,
            1 => {
                let at = self.dice.roll(self.workers.len());
                let worker = self.workers.swap_remove(at);
                self.real.deregister(worker.real).await.unwrap();
                self.model.deregister(worker.model).await.unwrap();
                self.log.push("a worker leaves".into());
                let (over, claims) = self.claims.drain(..).partition(|claim| claim.real.worker == worker.real);
                self.claims = claims;
                self.over.extend::<Vec<_>>(over);
                self.register().await;
            }
            2 => self.register().await,
            _ => {
                self.paused = !self.paused;
                let answer = both!(self, pause(self.paused));
                self.agree(format!("pause {}", self.paused), answer);
            }
        }
    }

    async fn all_die(&mut self) {
        self.advance(LEASE + seconds(1));
        let answer = both!(self, rescue());
        self.agree("all workers die".into(), answer);
        self.workers.clear();
        self.over.append(&mut self.claims);
        self.register().await;
    }

    /// Looks at everything that can be seen of the tenants of this history.
    async fn compare(&mut self) {
        let page = JobFilter { limit: 100, ..JobFilter::default() };
        let log = DeliveryFilter { limit: 100, ..DeliveryFilter::default() };
        for owner in self.owners.clone() {
            let answer = both!(self, list(&owner, &page));
            self.agree(format!("  list {owner}"), answer);
            let answer = both!(self, usage(&owner, &UsageFilter::default()));
            self.agree(format!("  usage {owner}"), answer);
            let answer = both!(self, deliveries(&owner, &log));
            self.agree(format!("  deliveries {owner}"), answer);
            // What was looked at is no news: only what was done stays in the log.
            self.log.truncate(self.log.len() - 3);
        }
    }

    /// Ends what is live, delivers what is due, and leaves the queue as empty as it was found.
    async fn finish(&mut self) {
        if self.paused {
            let answer = both!(self, pause(false));
            self.agree("resume".into(), answer);
        }
        self.all_die().await;
        let worker = self.workers[0];
        loop {
            let real = self.real.claim(worker.real, MAX_BATCH).await.unwrap();
            let model = self.model.claim(worker.model, MAX_BATCH).await.unwrap();
            let jobs = |batch: &crate::ClaimBatch| batch.jobs.iter().map(|c| c.job.clone()).collect::<Vec<Job>>();
            self.agree("claim the rest".into(), (Ok(jobs(&real)), Ok(jobs(&model))));
            if real.jobs.is_empty() {
                break;
            }
            for (real, model) in real.jobs.into_iter().zip(model.jobs) {
                let write = |claim| Settlement {
                    claim,
                    end: crate::JobEnd::Completed(sample::output()),
                    keep_hold: Usd::ZERO,
                    events: vec![],
                };
                let real = self.real.settle(write(real.claim)).await.map_err(|error| error.kind());
                let model = self.model.settle(write(model.claim)).await.map_err(|error| error.kind());
                assert_eq!(self.agree("settle the rest".into(), (real, model)), Some(Fenced::Applied));
            }
        }
        loop {
            let batch = self.real.claim_deliveries(worker.real, MAX_BATCH).await.unwrap();
            let model = self.model.claim_deliveries(worker.model, MAX_BATCH).await.unwrap();
            for delivery in &batch.deliveries {
                self.real.settle_delivery(delivery, DeliveryOutcome::Delivered).await.unwrap();
            }
            for delivery in &model.deliveries {
                self.model.settle_delivery(delivery, DeliveryOutcome::Delivered).await.unwrap();
            }
            if batch.deliveries.is_empty() {
                break;
            }
        }
        self.compare().await;
        let stats = both!(self, stats());
        self.agree("stats".into(), stats);
        let retention = Retention { completed: Duration::ZERO, failed: Duration::ZERO, ..Retention::default() };
        let ids = self.real.expired(&retention, MAX_BATCH).await.unwrap();
        self.real.prune(&ids).await.unwrap();
        self.real.deregister(worker.real).await.unwrap();
    }
}
