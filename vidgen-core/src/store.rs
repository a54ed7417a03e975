//! Where media lie: the product's own bucket or disk.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use url::Url;

use crate::error::Result;
use crate::media::{Body, MediaKey, MediaType};

/// Keeps media under keys.
///
/// # Contract
/// - **ST1** What is put is got, byte for byte, with its type and length.
/// - **ST2** A body that fails, or is longer or shorter than it said, leaves nothing visible.
/// - **ST3** Overwriting is atomic: a reader sees the old bytes or the new ones.
/// - **ST4** Deleting what is not there succeeds.
/// - **ST5** What is not there is `NotFound`.
/// - **ST6** A key cannot climb out ([`MediaKey`] sees to it; backends add no second meaning).
/// - **ST7** A link works until it expires and not after; a backend that has none says `None`.
/// - **ST8** Ranges: the bytes asked for, cut at the end; a start past the end is `Invalid`.
/// - **ST9** A body of any size passes in constant memory.
/// - **ST10** Delete by prefix takes the keys under `prefix/` and nothing beside them.
/// - A fault that may pass (disk full, network) is `Unavailable`.
#[async_trait]
pub trait Store: Debug + Send + Sync + 'static {
    /// Stores `body` under `key`, complete or not at all; answers the number of bytes.
    async fn put(&self, key: &MediaKey, body: Body) -> Result<u64>;

    /// Opens what lies under `key`, or a range of its bytes.
    async fn get(&self, key: &MediaKey, range: Option<ByteRange>) -> Result<Media>;

    /// What lies under `key`, without its bytes.
    async fn head(&self, key: &MediaKey) -> Result<MediaHead>;

    /// A link that anybody can fetch for `life`, or `None` if the backend has no such thing
    /// (then the router serves the media under a signed path).
    async fn link(&self, key: &MediaKey, life: Duration) -> Result<Option<Url>>;

    /// Removes what lies under `key`.
    async fn delete(&self, key: &MediaKey) -> Result<()>;

    /// Removes everything under `prefix/`; answers how many. The prefix has whole segments,
    /// without a slash at either end, e.g. `jobs/vid_0190…`.
    async fn delete_prefix(&self, prefix: &str) -> Result<u64>;
}

/// Which bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// From the first (inclusive) to the last (exclusive).
    Between(u64, u64),
    /// From here to the end.
    From(u64),
    /// The last so many.
    Last(u64),
}

impl ByteRange {
    /// The bytes of a file of `length` bytes, or `None` if there are none in it.
    #[must_use]
    pub fn of(self, length: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::Between(start, end) => start..end.min(length),
            Self::From(start) => start..length,
            Self::Last(count) => length.saturating_sub(count)..length,
        };
        (range.start < range.end).then_some(range)
    }
}

/// What lies under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaHead {
    /// Its type.
    pub media_type: MediaType,
    /// Its whole length in bytes.
    pub length: u64,
    /// A tag that changes when the bytes do, for `ETag`; without quotes.
    pub tag: String,
}

/// Opened media.
#[derive(Debug)]
pub struct Media {
    /// What it is.
    pub head: MediaHead,
    /// Which bytes of it `body` has.
    pub range: Range<u64>,
    /// The bytes.
    pub body: Body,
}

#[async_trait]
impl<T: Store + ?Sized> Store for Arc<T> {
    async fn put(&self, key: &MediaKey, body: Body) -> Result<u64> {
        (**self).put(key, body).await
    }
    async fn get(&self, key: &MediaKey, range: Option<ByteRange>) -> Result<Media> {
        (**self).get(key, range).await
    }
    async fn head(&self, key: &MediaKey) -> Result<MediaHead> {
        (**self).head(key).await
    }
    async fn link(&self, key: &MediaKey, life: Duration) -> Result<Option<Url>> {
        (**self).link(key, life).await
    }
    async fn delete(&self, key: &MediaKey) -> Result<()> {
        (**self).delete(key).await
    }
    async fn delete_prefix(&self, prefix: &str) -> Result<u64> {
        (**self).delete_prefix(prefix).await
    }
}
