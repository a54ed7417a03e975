//! What workers do: leases, claims, checkpoints, ends, rescue.

use crate::error::{Error, ErrorKind, Result};
use crate::job::{JobId, Succession};
use crate::queue::{
    Ack, BEAT, Beat, Checkpoint, Claim, ClaimBatch, Claimed, Fenced, LEASE, MAX_BATCH, Release, Settlement, WorkerId,
    conflict, progress_after,
};

use super::state::{LastWrite, Now, Place, State, Worker};

/// What a worker is told that the queue does not know (rule Q5).
pub(super) fn unknown_worker() -> Error {
    Error::new(ErrorKind::Stale, "queue", "worker is not registered")
}

impl State {
    pub(super) fn register(&mut self, now: Now) -> WorkerId {
        let id = WorkerId::new();
        self.workers.insert(id, Worker { beat_at: now.mono, ..Worker::default() });
        id
    }

    pub(super) fn deregister(&mut self, id: WorkerId, now: Now) {
        let Some(worker) = self.workers.get_mut(&id).filter(|worker| !worker.dead) else { return };
        worker.dead = true;
        worker.clean = true;
        // What passes the bound is left to the next rescue.
        self.bury(id, MAX_BATCH, now);
    }

    pub(super) fn claim(&mut self, worker: WorkerId, max: usize, now: Now) -> Result<ClaimBatch> {
        if !self.known(worker) {
            return Err(unknown_worker());
        }
        self.promote(now);
        let mut jobs = Vec::new();
        let max = if self.paused { 0 } else { max.min(MAX_BATCH) };
        while jobs.len() < max {
            let Some(&(_, tag, _, id)) = self.ready.first() else { break };
            self.virtual_time = self.virtual_time.max(tag);
            self.place(id, Place::Running(worker));
            let Some(row) = self.jobs.get_mut(&id) else { break };
            row.epoch += 1;
            row.claimed_at = now.mono;
            row.job.started_at = row.job.started_at.or(Some(now.wall));
            jobs.push(Claimed { claim: Claim { job: id, worker, epoch: row.epoch }, job: row.job.clone() });
        }
        // One call wakes one worker; what it left is for the next one.
        self.hints.ready |= !self.paused && !self.ready.is_empty();
        let next_due = self.waiting.first().map(|(due, _)| due.saturating_sub(now.mono));
        Ok(ClaimBatch { jobs, now: now.steady, next_due })
    }

    pub(super) fn heartbeat(&mut self, id: WorkerId, held: &[Claim], now: Now) -> Beat {
        let mut beat = Beat {
            known: self.known(id),
            cancels: Vec::new(),
            wakes: Vec::new(),
            strays: Vec::new(),
            lost: Vec::new(),
        };
        let Some(worker) = self.workers.get_mut(&id).filter(|_| beat.known) else { return beat };
        worker.beat_at = now.mono;
        let mut unheld = worker.jobs.clone();
        for claim in held {
            let Some(row) = self.fenced(*claim).filter(|_| claim.worker == id) else {
                beat.lost.push(*claim);
                continue;
            };
            unheld.remove(&claim.job);
            row.unheld = false;
            if row.job.cancel_requested {
                beat.cancels.push(claim.job);
            }
            if std::mem::take(&mut row.woken) {
                beat.wakes.push(claim.job);
            }
        }
        for job in unheld {
            let Some(row) = self.jobs.get_mut(&job) else { continue };
            // The answer to a young claim may still be on its way, and a beat may be sent twice.
            let young = now.mono.saturating_sub(row.claimed_at) < BEAT;
            if young || !std::mem::replace(&mut row.unheld, true) {
                continue;
            }
            beat.strays.push(Claim { job, worker: id, epoch: row.epoch });
            row.epoch += 1;
            self.place(job, Place::Ready);
        }
        beat
    }

    pub(super) fn checkpoint(&mut self, checkpoint: Checkpoint, now: Now) -> Result<Ack> {
        let mut ack = Ack { fenced: Fenced::Stale, cancel: false, now: now.steady };
        let Some(row) = self.fenced(checkpoint.claim) else { return Ok(ack) };
        ack.cancel = row.job.cancel_requested;
        match checkpoint.record.follows(row.job.step(checkpoint.record.step)) {
            Succession::Broken => return Err(conflict("step record does not follow the stored one")),
            Succession::Same => ack.fenced = Fenced::Already,
            Succession::Next => {
                ack.fenced = Fenced::Applied;
                row.job.put_step(checkpoint.record.stamped(now.steady));
                row.job.progress = progress_after(row.job.progress, checkpoint.progress);
                let job = checkpoint.claim.job;
                for cost in checkpoint.costs {
                    self.bill(job, cost, now);
                }
                self.changed(job);
            }
        }
        Ok(ack)
    }

    /// The answer to a write of a claim that does not stand.
    fn ended_by(&self, claim: Claim, write: LastWrite) -> Fenced {
        let same = self.jobs.get(&claim.job).and_then(|row| row.last) == Some((claim.worker, claim.epoch, write));
        if same { Fenced::Already } else { Fenced::Stale }
    }

    pub(super) fn release(&mut self, claim: Claim, release: Release, now: Now) -> Fenced {
        let Some(row) = self.fenced(claim) else { return self.ended_by(claim, LastWrite::Released) };
        row.last = Some((claim.worker, claim.epoch, LastWrite::Released));
        row.job.attempts += u32::from(release.counts);
        // One that counts is a backoff, also from what keeps the job from being ended.
        let unwanted = row.job.cancel_requested && !row.job.has_open_submission() && !release.counts;
        if release.delay.is_zero() || unwanted {
            // It keeps its slot and its turn: a restart of workers must not send it to the back.
            self.place(claim.job, Place::Ready);
        } else {
            self.place(claim.job, Place::Waiting(now.mono.saturating_add(release.delay)));
            self.admit_for(claim.job);
        }
        Fenced::Applied
    }

    pub(super) fn settle(&mut self, settlement: Settlement, now: Now) -> Fenced {
        let Settlement { claim, end, keep_hold, events } = settlement;
        let write = LastWrite::Settled(end.state());
        let Some(row) = self.fenced(claim) else { return self.ended_by(claim, write) };
        row.last = Some((claim.worker, claim.epoch, write));
        self.end(claim.job, end, keep_hold, events, now);
        Fenced::Applied
    }

    pub(super) fn rescue(&mut self, now: Now) -> u64 {
        let over = |worker: &Worker| worker.dead || now.mono.saturating_sub(worker.beat_at) >= LEASE;
        let dead: Vec<WorkerId> = self.workers.iter().filter(|(_, worker)| over(worker)).map(|(id, _)| *id).collect();
        let mut rescued = 0;
        for id in dead {
            if let Some(worker) = self.workers.get_mut(&id) {
                worker.dead = true;
            }
            rescued += self.bury(id, MAX_BATCH - rescued, now);
        }
        u64::try_from(rescued).unwrap_or(u64::MAX)
    }

    /// Frees up to `max` jobs and deliveries of a dead worker, and forgets it when it has none.
    fn bury(&mut self, id: WorkerId, max: usize, now: Now) -> usize {
        let Some(worker) = self.workers.get(&id) else { return 0 };
        let crashed = u32::from(!worker.clean);
        let jobs: Vec<JobId> = worker.jobs.iter().copied().take(max).collect();
        let deliveries: Vec<u64> = worker.deliveries.iter().copied().take(max - jobs.len()).collect();
        for job in &jobs {
            if let Some(row) = self.jobs.get_mut(job) {
                row.epoch += 1;
                row.job.crashes += crashed;
            }
            // It keeps its slot and its tag: it is the oldest work there is.
            self.place(*job, Place::Ready);
        }
        for delivery in &deliveries {
            self.rescue_delivery(*delivery, now);
        }
        if self.workers.get(&id).is_some_and(|worker| worker.jobs.is_empty() && worker.deliveries.is_empty()) {
            self.workers.remove(&id);
        }
        jobs.len() + deliveries.len()
    }
}
