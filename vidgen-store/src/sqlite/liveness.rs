//! Which workers are dead.
//!
//! A worker's process holds an operating-system lock on a file of its own, which the kernel gives
//! back however the process ends. Whoever gets that lock knows at once that the worker is dead,
//! and no clock is asked.
//!
//! A worker whose lock is held, or that has none (the file is gone, the file system has no locks),
//! is dead when its beats stood still for a whole lease **as this handle saw it, on its own
//! monotonic clock**: a stopped process holds its lock, too. The wall stamp of the last beat is
//! for people and judges nobody, since the wall clock may have been set; the price is that a
//! handle which was just opened waits a lease before it believes that a locked worker is dead.

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vidgen_core::WorkerId;

use super::worker::Gone;

#[derive(Debug)]
pub(super) struct Liveness {
    database: PathBuf,
    lease: Duration,
    /// The locks of the workers that registered with this handle; dropped with it.
    locks: Mutex<HashMap<WorkerId, File>>,
    seen: Mutex<HashMap<WorkerId, Seen>>,
}

/// The beats of a worker, and since when they stand still.
#[derive(Clone, Copy, Debug)]
struct Seen {
    beats: i64,
    since: Duration,
}

/// What became of a worker.
#[derive(Debug)]
pub(super) enum Verdict {
    Alive,
    /// Gone, and how; the lock of a dead process is ours meanwhile, so that no two rescue at once.
    Gone(Gone, Option<File>),
}

impl Liveness {
    pub(super) fn new(database: &Path, lease: Duration) -> Self {
        Self { database: database.to_owned(), lease, locks: Mutex::default(), seen: Mutex::default() }
    }

    /// Takes the lock of a new worker. Without it the worker lives by its beats alone.
    pub(super) fn begin(&self, worker: WorkerId, now: Duration) {
        let path = self.path(worker);
        let locked = File::create_new(&path).and_then(|file| file.try_lock().map(|()| file).map_err(Into::into));
        match locked {
            Ok(file) => drop(lock(&self.locks).insert(worker, file)),
            Err(error) => {
                tracing::warn!(%error, "no lock file for a worker: if its process dies, its jobs wait for a lease");
                let _ = fs::remove_file(&path);
            }
        }
        self.saw(worker, 0, now);
    }

    /// Remembers a beat that was counted.
    pub(super) fn saw(&self, worker: WorkerId, beats: i64, now: Duration) {
        lock(&self.seen).insert(worker, Seen { beats, since: now });
    }

    /// Judges a worker that has beaten `beats` times so far.
    pub(super) fn judge(&self, worker: WorkerId, beats: i64, now: Duration) -> Verdict {
        if let Some(file) = self.lock_of_the_dead(worker) {
            return Verdict::Gone(Gone::Died, Some(file));
        }
        let mut seen = lock(&self.seen);
        let last = seen.entry(worker).or_insert(Seen { beats, since: now });
        if last.beats != beats {
            *last = Seen { beats, since: now };
        }
        if now.saturating_sub(last.since) >= self.lease {
            return Verdict::Gone(Gone::Silent(beats), None);
        }
        Verdict::Alive
    }

    fn lock_of_the_dead(&self, worker: WorkerId) -> Option<File> {
        // Our own are ours, whatever the platform thinks of a second lock in one process.
        if lock(&self.locks).contains_key(&worker) {
            return None;
        }
        let file = File::options().read(true).write(true).open(self.path(worker)).ok()?;
        match file.try_lock() {
            Ok(()) => Some(file),
            Err(TryLockError::WouldBlock) => None,
            Err(TryLockError::Error(error)) => {
                tracing::debug!(%error, "a worker's lock cannot be asked for");
                None
            }
        }
    }

    /// Forgets a worker that has nothing any more.
    pub(super) fn end(&self, worker: WorkerId) {
        lock(&self.seen).remove(&worker);
        lock(&self.locks).remove(&worker);
        let _ = fs::remove_file(self.path(worker));
    }

    /// Forgets the workers that others rescued, and removes lock files that no known worker and no
    /// living process has: those of processes that died between the lock and the registration, or
    /// between the rescue and the removal.
    pub(super) fn sweep(&self, known: &[WorkerId]) {
        lock(&self.seen).retain(|worker, _| known.contains(worker));
        let (Some(directory), Some(name)) = (self.database.parent(), self.database.file_name()) else { return };
        let prefix = format!("{}.worker-", name.to_string_lossy());
        let Ok(files) = fs::read_dir(directory) else { return };
        for file in files.flatten() {
            let id = file.file_name().to_str().and_then(|n| n.strip_prefix(&prefix)?.parse::<uuid::Uuid>().ok());
            let Some(worker) = id.map(WorkerId::from_uuid).filter(|worker| !known.contains(worker)) else { continue };
            if let Some(_ours) = self.lock_of_the_dead(worker) {
                let _ = fs::remove_file(file.path());
            }
        }
    }

    fn path(&self, worker: WorkerId) -> PathBuf {
        let mut name = self.database.clone().into_os_string();
        name.push(format!(".worker-{worker}"));
        name.into()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
