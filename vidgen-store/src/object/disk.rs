//! A local disk: staged beside the media, synced, then moved into place.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, Stream};
use jiff::Timestamp;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore as Remote, ObjectStoreExt as _};
use uuid::Uuid;
use vidgen_core::clock::until;
use vidgen_core::{Body, Clock, Error, ErrorKind, MediaKey, Result};

use super::{ORIGIN, Parts, Upload, raised};

/// Where uploads grow. No media key has a dot in a directory, so no key names anything in here.
const STAGING: &str = ".staging";

/// No upload takes a day (a download is given 10 minutes), so what is older has no owner.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// How much is read at once: a player's buffer or two, and few enough trips to the disk's thread.
const PIECE: u64 = 256 << 10;

/// Files under one directory.
#[derive(Debug)]
pub(super) struct Disk {
    files: Arc<LocalFileSystem>,
    root: PathBuf,
}

impl Disk {
    /// Opens `dir`, makes it if need be, and sweeps what dead uploads left.
    pub(super) fn open(dir: &FilePath, clock: &dyn Clock) -> Result<Self> {
        let failed =
            |e: io::Error| Error::new(ErrorKind::Unavailable, ORIGIN, "cannot open the directory").with_source(e);
        std::fs::create_dir_all(dir.join(STAGING)).map_err(failed)?;
        let root = dir.canonicalize().map_err(failed)?;
        sweep(&root.join(STAGING), clock.now()).map_err(failed)?;
        let files = LocalFileSystem::new_with_prefix(&root)
            .map_err(|e| Error::new(ErrorKind::Unavailable, ORIGIN, "cannot open the directory").with_source(e))?;
        // Without it, an answered `put` may be gone after a power cut.
        Ok(Self { files: Arc::new(files.with_fsync(true)), root })
    }

    pub(super) fn files(&self) -> &dyn Remote {
        self.files.as_ref()
    }

    /// Stores `body`. `LocalFileSystem` would stage it beside its place, where what a dead process
    /// left could only be found by a walk over everything; hence the directory of its own.
    pub(super) async fn put(&self, key: &MediaKey, location: &Path, body: Body) -> Result<u64> {
        let staged = Path::from_iter([STAGING, Uuid::new_v4().simple().to_string().as_str()]);
        let mut parts = Parts::new(key, body);
        let mut upload = Upload::new(self.files.put_multipart(&staged).await.map_err(|e| raised(key, e))?);
        let first = parts.next().await;
        let sent = match first {
            Ok(first) => upload.send(key, first, &mut parts).await,
            Err(e) => Err(e),
        };
        let leftover = Leftover { files: Arc::clone(&self.files), staged: Some(staged.clone()) };
        upload.end(key, sent).await?;
        self.files.rename(&staged, location).await.map_err(|e| raised(key, e))?;
        leftover.forget();
        Ok(parts.length)
    }

    /// Deletes the directory `prefix` with all in it; answers how many files were in it.
    pub(super) async fn delete_dir(&self, prefix: &str) -> Result<u64> {
        let dir = self.root.join(prefix);
        let deleted = blocking(move || {
            let count = match count_files(&dir) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
                count => count?,
            };
            std::fs::remove_dir_all(&dir)?;
            Ok(count)
        });
        deleted.await.map_err(|e| {
            Error::new(ErrorKind::Unavailable, ORIGIN, format!("cannot delete all under {prefix}")).with_source(e)
        })
    }

    /// Refuses `key` if a symbolic link is on the way to it, so that nothing outside of the
    /// directory is read, overwritten or deleted. Who can swap a directory for a link in between
    /// can write here anyway.
    pub(super) async fn refuse_links(&self, key: &str) -> Result<()> {
        let mut path = self.root.clone();
        let segments: Vec<String> = key.split('/').map(str::to_owned).collect();
        let link = blocking(move || {
            for segment in segments {
                path.push(segment);
                match path.symlink_metadata() {
                    Ok(found) if found.file_type().is_symlink() => return Ok(true),
                    Ok(_) => {}
                    Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
                    Err(e) => return Err(e),
                }
            }
            Ok(false)
        });
        match link.await {
            Ok(false) => Ok(()),
            Ok(true) => Err(Error::internal(ORIGIN, format!("a symbolic link is on the way to {key}"))),
            Err(e) => Err(Error::new(ErrorKind::Unavailable, ORIGIN, format!("cannot look at {key}")).with_source(e)),
        }
    }
}

/// Streams `range` of `file`. The client of `object_store` would do it in pieces of 8 KiB, each of
/// them a trip to another thread.
pub(super) fn read(file: File, range: Range<u64>) -> impl Stream<Item = io::Result<Bytes>> {
    stream::try_unfold((file, range.start, range.end), |(mut file, at, end)| async move {
        let wanted = PIECE.min(end.saturating_sub(at));
        if wanted == 0 {
            return Ok(None);
        }
        let read = blocking(move || {
            let mut piece = Vec::with_capacity(usize::try_from(wanted).unwrap_or_default());
            file.seek(SeekFrom::Start(at))?;
            (&mut file).take(wanted).read_to_end(&mut piece)?;
            if piece.len() as u64 != wanted {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok((Bytes::from(piece), file))
        });
        let (piece, file) = read.await?;
        Ok(Some((piece, (file, at + wanted, end))))
    })
}

/// Deletes a staged file that never came into place, even if its future is dropped.
struct Leftover {
    files: Arc<LocalFileSystem>,
    staged: Option<Path>,
}

impl Leftover {
    fn forget(mut self) {
        self.staged = None;
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        let Some(staged) = self.staged.take() else { return };
        // One unlink; and there may be no runtime left to do it on.
        if let Ok(path) = self.files.path_to_filesystem(&staged) {
            let _ = std::fs::remove_file(path);
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn count_files(dir: &FilePath) -> io::Result<u64> {
    let mut count = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        // The type of the entry itself: a link counts as one and is not followed.
        count += if entry.file_type()?.is_dir() { count_files(&entry.path())? } else { 1 };
    }
    Ok(count)
}

fn sweep(staging: &FilePath, now: Timestamp) -> io::Result<()> {
    for entry in std::fs::read_dir(staging)? {
        let path = entry?.path();
        let changed = path.symlink_metadata().and_then(|m| m.modified());
        let Ok(changed) = changed.map_err(|_| ()).and_then(|t| Timestamp::try_from(t).map_err(|_| ())) else {
            // It vanished, or its time means nothing.
            continue;
        };
        if until(changed, now) > STALE {
            tracing::info!("sweeping an upload that a dead process left");
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(%error, "cannot sweep it");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vidgen_core::clock::{ManualClock, SystemClock, later};

    #[test]
    fn what_a_dead_process_left_is_swept_after_a_day() {
        let dir = tempfile::tempdir().unwrap();
        let staging = dir.path().join(STAGING);
        std::fs::create_dir_all(&staging).unwrap();
        std::fs::write(staging.join("left#1"), b"half a video").unwrap();
        let count = || std::fs::read_dir(&staging).unwrap().count();

        let now = SystemClock::new().now();
        Disk::open(dir.path(), &ManualClock::starting_at(later(now, Duration::from_secs(23 * 3600)))).unwrap();
        assert_eq!(count(), 1, "it may still have an owner");
        Disk::open(dir.path(), &ManualClock::starting_at(Timestamp::UNIX_EPOCH)).unwrap();
        assert_eq!(count(), 1, "a clock that went back sweeps nothing");
        Disk::open(dir.path(), &ManualClock::starting_at(later(now, Duration::from_secs(25 * 3600)))).unwrap();
        assert_eq!(count(), 0);
    }
}
