//! A store of plain files.

use std::fs::Metadata;
use std::io::{ErrorKind as Io, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use vidgen_core::*;

#[derive(Debug)]
struct Files {
    root: PathBuf,
}

impl Files {
    fn path(&self, key: &MediaKey) -> PathBuf {
        self.root.join(key.as_str())
    }
}

fn failed(error: std::io::Error) -> Error {
    let kind = if error.kind() == Io::NotFound { ErrorKind::NotFound } else { ErrorKind::Unavailable };
    Error::new(kind, "files", "no such media, or no way to it").with_source(error)
}

fn head(key: &MediaKey, file: &Metadata) -> MediaHead {
    // Overwriting makes another file beside the old one, so the inode tells the two apart.
    let tag = format!("{:x}-{:x}-{:x}", file.ino(), file.mtime_nsec(), file.len());
    MediaHead { media_type: key.media_type(), length: file.len(), tag }
}

#[async_trait]
impl Store for Files {
    async fn put(&self, key: &MediaKey, mut body: Body) -> Result<u64> {
        let path = self.path(key);
        let directory = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(directory).await.map_err(failed)?;
        // Removed when dropped, unless it gets its name.
        let staged = tempfile::NamedTempFile::new_in(&self.root).map_err(failed)?;
        let mut file = File::from_std(staged.reopen().map_err(failed)?);
        let (promised, mut length) = (body.length(), 0);
        while let Some(chunk) = body.try_next().await? {
            file.write_all(&chunk).await.map_err(failed)?;
            length += chunk.len() as u64;
        }
        if promised.is_some_and(|promised| promised != length) {
            return Err(Error::new(ErrorKind::Media, "files", "the body has another length than it said"));
        }
        file.flush().await.map_err(failed)?;
        file.sync_all().await.map_err(failed)?;
        staged.persist(&path).map_err(|e| failed(e.error))?;
        Ok(length)
    }

    async fn get(&self, key: &MediaKey, range: Option<ByteRange>) -> Result<Media> {
        let mut file = File::open(self.path(key)).await.map_err(failed)?;
        let head = head(key, &file.metadata().await.map_err(failed)?);
        let range = match range {
            None => 0..head.length,
            Some(range) => range
                .of(head.length)
                .ok_or_else(|| Error::invalid(vec![FieldError::new("range", "starts past the end")]))?,
        };
        file.seek(SeekFrom::Start(range.start)).await.map_err(failed)?;
        let length = range.end - range.start;
        let chunks = stream::try_unfold(file.take(length), |mut file| async move {
            let mut chunk = vec![0; 64 * 1024];
            let read = file.read(&mut chunk).await.map_err(failed)?;
            chunk.truncate(read);
            Ok((read > 0).then(|| (Bytes::from(chunk), file)))
        });
        Ok(Media { head, range, body: Body::new(chunks, Some(length)) })
    }

    async fn head(&self, key: &MediaKey) -> Result<MediaHead> {
        Ok(head(key, &fs::metadata(self.path(key)).await.map_err(failed)?))
    }

    async fn link(&self, _key: &MediaKey, _life: Duration) -> Result<Option<url::Url>> {
        Ok(None)
    }

    async fn delete(&self, key: &MediaKey) -> Result<()> {
        match fs::remove_file(self.path(key)).await {
            Err(error) if error.kind() != Io::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }

    async fn delete_prefix(&self, prefix: &str) -> Result<u64> {
        // The pattern of keys judges prefixes, too.
        MediaKey::new(format!("{prefix}/x.bin"))?;
        let directory = self.root.join(prefix);
        let count = count(&directory).await?;
        match fs::remove_dir_all(&directory).await {
            Err(error) if error.kind() != Io::NotFound => Err(failed(error)),
            _ => Ok(count),
        }
    }
}

/// The files under `directory`, at any depth.
async fn count(directory: &Path) -> Result<u64> {
    let (mut count, mut directories) = (0, vec![directory.to_owned()]);
    while let Some(directory) = directories.pop() {
        let mut entries = match fs::read_dir(&directory).await {
            Err(error) if error.kind() == Io::NotFound => continue,
            entries => entries.map_err(failed)?,
        };
        while let Some(entry) = entries.next_entry().await.map_err(failed)? {
            if entry.file_type().await.map_err(failed)?.is_dir() {
                directories.push(entry.path());
            } else {
                count += 1;
            }
        }
    }
    Ok(count)
}

vidgen_core::store_conformance!(files, async {
    let directory = tempfile::tempdir().unwrap();
    (Files { root: directory.path().to_owned() }, directory)
});

#[tokio::test]
async fn media_of_another_crates_store_can_be_handed_to_a_provider() {
    let directory = tempfile::tempdir().unwrap();
    let store = std::sync::Arc::new(Files { root: directory.path().to_owned() });
    let key = MediaKey::new("a.png").unwrap();
    let length = store.put(&key, Body::from(Bytes::from_static(b"picture"))).await.unwrap();
    let info = MediaInfo { media_type: key.media_type(), key, length, content: ContentInfo::default() };
    let input = MediaInput::new(info, store);
    let chunks: Vec<_> = input.open().await.unwrap().collect().await;
    assert_eq!(chunks.len(), 1);
    assert_eq!(input.link(Duration::from_secs(60)).await.unwrap(), None);
}
