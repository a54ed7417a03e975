//! Private directories that are always removed: by their owner, or by the next start after a crash.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use uuid::Uuid;
use vidgen_core::{Error, ErrorKind, Result};

use super::ORIGIN;

const PREFIX: &str = "vidgen-local-";
const LOCK: &str = "lock";

/// The directory of one provider. Its lock is held as long as the provider, or one of its runs,
/// lives, so that nobody sweeps it.
#[derive(Debug)]
pub(super) struct Scratch {
    dir: PathBuf,
    _lock: File,
}

impl Scratch {
    /// Sweeps what crashed processes left under `root` and makes a new directory there.
    pub(super) fn create(root: &Path) -> Result<Self> {
        let failed = |e: std::io::Error| {
            Error::new(ErrorKind::Unavailable, ORIGIN, "cannot write to the scratch directory").with_source(e)
        };
        let root = std::path::absolute(root).map_err(failed)?;
        fs::create_dir_all(&root).map_err(failed)?;
        sweep(&root);
        // The directory gets the name by which others sweep only once its lock is held.
        let fresh = tempfile::Builder::new().prefix(".vidgen-new-").tempdir_in(&root).map_err(failed)?;
        let lock = File::create_new(fresh.path().join(LOCK)).map_err(failed)?;
        lock.try_lock().map_err(|e| failed(e.into()))?;
        let dir = root.join(format!("{PREFIX}{}", Uuid::new_v4().simple()));
        fs::rename(fresh.path(), &dir).map_err(failed)?;
        // The guard would remove a name that is gone; from here on `Drop` is responsible.
        let _ = fresh.keep();
        Ok(Self { dir, _lock: lock })
    }

    /// A new private directory for one run.
    pub(super) fn run_dir(self: &Arc<Self>) -> Result<RunDir> {
        let dir = tempfile::Builder::new().prefix("run-").tempdir_in(&self.dir).map_err(|e| {
            Error::new(ErrorKind::Unavailable, ORIGIN, "cannot make a scratch directory").with_source(e)
        })?;
        Ok(RunDir { dir, _scratch: Arc::clone(self) })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(error = %e, "a scratch directory could not be removed");
        }
    }
}

/// The directory of one run; gone when this is dropped.
#[derive(Debug)]
pub(super) struct RunDir {
    // Dropped before the scratch it lies in.
    dir: TempDir,
    _scratch: Arc<Scratch>,
}

impl RunDir {
    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

fn sweep(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let path = entry.path();
        let lock = path.join(LOCK);
        // In a directory that others may write to, a pipe of this name would block `open`.
        if !fs::symlink_metadata(&lock).is_ok_and(|m| m.is_file()) {
            continue;
        }
        if let Ok(file) = File::open(&lock)
            && file.try_lock().is_ok()
            && fs::remove_dir_all(&path).is_ok()
        {
            tracing::info!("swept a scratch directory of a process that is gone");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_of_the_dead_are_swept_and_those_of_the_living_are_not() {
        let root = tempfile::tempdir().unwrap();
        let living = Scratch::create(root.path()).unwrap();
        let dead = root.path().join(format!("{PREFIX}dead"));
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join(LOCK), "").unwrap();
        fs::write(dead.join("half.mp4"), "x").unwrap();
        let foreign = root.path().join("somebody-else");
        fs::create_dir(&foreign).unwrap();
        let second = Scratch::create(root.path()).unwrap();
        assert!(living.dir.exists() && second.dir.exists() && foreign.exists());
        assert!(!dead.exists());
    }

    #[test]
    fn a_run_keeps_the_directory_it_lies_in() {
        let root = tempfile::tempdir().unwrap();
        let scratch = Arc::new(Scratch::create(root.path()).unwrap());
        let run = scratch.run_dir().unwrap();
        drop(scratch);
        assert!(run.path().exists());
        drop(run);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
