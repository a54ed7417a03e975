//! Media in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::digest;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use url::Url;

use crate::error::{Error, ErrorKind, FieldError, Result};
use crate::media::{Body, MediaKey};
use crate::store::{ByteRange, Media, MediaHead, Store};

const ORIGIN: &str = "memory-store";

/// How much one item of a body holds, so that readers of big media share the thread.
const CHUNK: u64 = 1 << 20;

/// A [`Store`] in memory. Clones share what they hold; nothing survives the last of them.
///
/// It holds whole media in memory, of course, so **ST9** is kept for reading only.
#[derive(Clone, Default)]
pub struct MemoryStore {
    media: Arc<Mutex<BTreeMap<MediaKey, Stored>>>,
}

#[derive(Clone)]
struct Stored {
    head: MediaHead,
    bytes: Bytes,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The keys of everything in it, in order.
    #[must_use]
    pub fn keys(&self) -> Vec<MediaKey> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<MediaKey, Stored>> {
        // Nothing panics while it holds the lock; and if it did, the map would still be whole.
        self.media.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, key: &MediaKey) -> Result<Stored> {
        let stored = self.lock().get(key).cloned();
        stored.ok_or_else(|| Error::new(ErrorKind::NotFound, ORIGIN, format!("no media under {key}")))
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn put(&self, key: &MediaKey, mut body: Body) -> Result<u64> {
        let promised = body.length();
        let mut bytes = BytesMut::new();
        while let Some(chunk) = body.try_next().await? {
            bytes.extend_from_slice(&chunk);
        }
        let length = bytes.len() as u64;
        if promised.is_some_and(|promised| promised != length) {
            return Err(Error::new(ErrorKind::Media, ORIGIN, format!("{key} has another length than its body said")));
        }
        // A digest rather than a counter: a tag must not mean other bytes after a restart.
        let tag = hex::encode(digest::digest(&digest::SHA256, &bytes));
        let head = MediaHead { media_type: key.media_type(), length, tag };
        self.lock().insert(key.clone(), Stored { head, bytes: bytes.freeze() });
        Ok(length)
    }

    async fn get(&self, key: &MediaKey, range: Option<ByteRange>) -> Result<Media> {
        let Stored { head, bytes } = self.find(key)?;
        let range = match range {
            None => 0..head.length,
            Some(range) => range.of(head.length).ok_or_else(|| unsatisfiable(&head))?,
        };
        let length = range.end - range.start;
        let end = range.end;
        let starts = range.clone().step_by(usize::try_from(CHUNK).unwrap_or(usize::MAX));
        let chunks = stream::iter(starts).map(move |start| {
            let chunk = bytes.slice(usize_of(start)?..usize_of(end.min(start + CHUNK))?);
            Ok(chunk)
        });
        Ok(Media { head, range, body: Body::new(chunks, Some(length)) })
    }

    async fn head(&self, key: &MediaKey) -> Result<MediaHead> {
        Ok(self.find(key)?.head)
    }

    async fn link(&self, _key: &MediaKey, _life: Duration) -> Result<Option<Url>> {
        Ok(None)
    }

    async fn delete(&self, key: &MediaKey) -> Result<()> {
        self.lock().remove(key);
        Ok(())
    }

    async fn delete_prefix(&self, prefix: &str) -> Result<u64> {
        // A prefix is the start of a key that ends with a segment, so the same pattern judges it.
        if MediaKey::new(format!("{prefix}/x.bin")).is_err() {
            return Err(Error::invalid_field("prefix", "is not the first segments of a media key"));
        }
        let prefix = format!("{prefix}/");
        let mut media = self.lock();
        let before = media.len();
        media.retain(|key, _| !key.as_str().starts_with(&prefix));
        Ok((before - media.len()) as u64)
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("media", &self.lock().len()).finish()
    }
}

fn usize_of(offset: u64) -> Result<usize> {
    usize::try_from(offset).map_err(|e| Error::internal(ORIGIN, "offset is out of memory").with_source(e))
}

fn unsatisfiable(head: &MediaHead) -> Error {
    Error::invalid(vec![FieldError::new("range", format!("starts past the end of {} bytes", head.length))])
}

#[cfg(test)]
#[cfg(feature = "conformance")]
mod tests {
    use super::*;

    crate::store_conformance!(
        memory,
        async { MemoryStore::new() },
        except: [("st9", "what is put into memory is held in memory")]
    );
}
