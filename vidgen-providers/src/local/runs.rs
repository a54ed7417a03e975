//! The runs of this process: what became of each, and where its output lies.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use vidgen_core::{ErrorKind, Output, RunFailure};

/// Every run of every provider in this process, so that a handle works from a fresh provider too.
static RUNS: LazyLock<Mutex<HashMap<String, Arc<Run>>>> = LazyLock::new(Mutex::default);

fn runs() -> MutexGuard<'static, HashMap<String, Arc<Run>>> {
    RUNS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a run is going.
#[derive(Clone, Debug)]
pub(super) enum Progress {
    Running(f32),
    Succeeded(Output),
    Failed(RunFailure),
    Canceled,
}

impl Progress {
    pub(super) fn is_ended(&self) -> bool {
        !matches!(self, Self::Running(_))
    }
}

/// A file that a run made.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) path: PathBuf,
    /// How long it was when the run ended.
    pub(super) length: u64,
}

/// One run.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) id: String,
    /// Ends it, by a cancel or because its provider is gone.
    pub(super) stop: CancellationToken,
    /// Told when the output was read to its end.
    pub(super) read: Notify,
    progress: watch::Sender<Progress>,
    output: Mutex<Option<Kept>>,
}

impl Run {
    /// Enters a new run into the table.
    pub(super) fn enter(stop: CancellationToken) -> Arc<Self> {
        let run = Arc::new(Self {
            id: format!("run_{}", Uuid::new_v4().simple()),
            stop,
            read: Notify::new(),
            progress: watch::Sender::new(Progress::Running(0.0)),
            output: Mutex::default(),
        });
        runs().insert(run.id.clone(), Arc::clone(&run));
        run
    }

    /// The run of that id, if this process knows it.
    pub(super) fn of(id: &str) -> Option<Arc<Self>> {
        runs().get(id).cloned()
    }

    pub(super) fn forget(&self) {
        runs().remove(&self.id);
    }

    pub(super) fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Waits until the run ended, at most for `patience`.
    pub(super) async fn wait(&self, patience: Duration) -> Progress {
        let mut watcher = self.progress.subscribe();
        let ended = tokio::time::timeout(patience, watcher.wait_for(Progress::is_ended)).await;
        drop(ended);
        self.progress()
    }

    /// Notes how much is done, 0 to 1. It never goes back, and never past the end of the run.
    pub(super) fn advance(&self, share: f32) {
        self.progress.send_if_modified(|progress| match progress {
            Progress::Running(old) if share > *old => {
                *old = share.min(1.0);
                true
            }
            _ => false,
        });
    }

    /// Ends the run; only the first end counts.
    pub(super) fn end(&self, end: Progress) {
        self.progress.send_if_modified(|progress| {
            let first = !progress.is_ended();
            if first {
                *progress = end;
            }
            first
        });
    }

    pub(super) fn set_output(&self, kept: Option<Kept>) {
        *self.output.lock().unwrap_or_else(PoisonError::into_inner) = kept;
    }

    pub(super) fn output(&self) -> Option<Kept> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Sees to it that a run ends even if its task panics or its runtime goes away.
#[derive(Debug)]
pub(super) struct EndGuard(pub(super) Arc<Run>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.end(Progress::Failed(RunFailure::new(ErrorKind::Unavailable, "the run was lost")));
        self.0.forget();
    }
}
