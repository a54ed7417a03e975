//! Media over the `object_store` crate: a disk, memory, or any bucket that the host opens.
//!
//! A body goes up in parts of one size, two of them in memory at most, and becomes visible when the
//! last one is there.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, GetOptions, GetRange, GetResult, MultipartUpload, ObjectMeta, ObjectStore as Remote,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutPayloadMut,
};
use url::Url;
use vidgen_core::{Body, ByteRange, Error, ErrorKind, FieldError, Media, MediaHead, MediaKey, Result, Store};

#[cfg(feature = "fs")]
use object_store::GetResultPayload;

#[cfg(feature = "fs")]
mod disk;

const ORIGIN: &str = "object-store";

/// S3 takes parts from 5 MiB on and 10,000 of them
/// (docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html): this allows files of 80 GB.
const PART: usize = 8 << 20;

/// A [`Store`] over the `object_store` crate. Clones share it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> vidgen_core::Result<()> {
/// use vidgen_core::{Body, MediaKey, Store};
/// use vidgen_store::ObjectStore;
///
/// let store = ObjectStore::memory();
/// let key = MediaKey::new("jobs/vid_1/video.mp4")?;
/// store.put(&key, Body::from(bytes::Bytes::from_static(b"a video"))).await?;
/// assert_eq!(store.head(&key).await?.length, 7);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ObjectStore {
    backend: Backend,
}

#[derive(Clone)]
enum Backend {
    Remote(Arc<dyn Remote>),
    #[cfg(feature = "fs")]
    Disk(Arc<disk::Disk>),
}

impl ObjectStore {
    /// A store in memory.
    #[must_use]
    pub fn memory() -> Self {
        Self::new(Arc::new(object_store::memory::InMemory::new()))
    }

    /// A store in the directory `dir` of a local disk; makes it if it is not there, and sweeps what
    /// uploads of dead processes left in it. What is stored is on the disk when `put` answers.
    ///
    /// Only the directory itself may be a symbolic link: none inside of it is followed.
    ///
    /// # Errors
    /// `Unavailable` if the directory cannot be made or read.
    #[cfg(feature = "fs")]
    pub fn local(dir: impl AsRef<std::path::Path>) -> Result<Self> {
        let disk = disk::Disk::open(dir.as_ref(), &vidgen_core::clock::SystemClock::new())?;
        Ok(Self { backend: Backend::Disk(Arc::new(disk)) })
    }

    /// A store over a client that the host made: a bucket with its own credentials and limits.
    ///
    /// The client must take the `Content-Type` attribute, which the `LocalFileSystem` of
    /// `object_store` does not: for a disk, use [`ObjectStore::local`]. Let the bucket drop
    /// unfinished multipart uploads after a day: a process that dies cannot.
    #[must_use]
    pub fn new(client: Arc<dyn Remote>) -> Self {
        Self { backend: Backend::Remote(client) }
    }

    fn remote(&self) -> &dyn Remote {
        match &self.backend {
            Backend::Remote(remote) => remote.as_ref(),
            #[cfg(feature = "fs")]
            Backend::Disk(disk) => disk.files(),
        }
    }

    /// Where `key` lies; on a disk, after a look that no symbolic link is on the way.
    async fn locate(&self, key: &MediaKey) -> Result<Path> {
        #[cfg(feature = "fs")]
        if let Backend::Disk(disk) = &self.backend {
            disk.refuse_links(key.as_str()).await?;
        }
        Path::parse(key.as_str()).map_err(|e| Error::internal(ORIGIN, "a media key is not a path").with_source(e))
    }
}

#[async_trait]
impl Store for ObjectStore {
    async fn put(&self, key: &MediaKey, body: Body) -> Result<u64> {
        let location = self.locate(key).await?;
        match &self.backend {
            Backend::Remote(remote) => put_remote(remote, key, &location, body).await,
            #[cfg(feature = "fs")]
            Backend::Disk(disk) => disk.put(key, &location, body).await,
        }
    }

    async fn get(&self, key: &MediaKey, range: Option<ByteRange>) -> Result<Media> {
        let location = self.locate(key).await?;
        let wanted = match range {
            None => None,
            Some(ByteRange::Between(start, end)) => Some(GetRange::Bounded(start..end)),
            Some(ByteRange::From(start)) => Some(GetRange::Offset(start)),
            Some(ByteRange::Last(count)) => Some(GetRange::Suffix(count)),
        };
        // Clients disagree about ranges without bytes, and do not tell that failure from others.
        let found = match range {
            Some(ByteRange::Between(start, end)) if start >= end => None,
            Some(ByteRange::Last(0)) => None,
            _ => Some(self.remote().get_opts(&location, GetOptions::new().with_range(wanted)).await),
        };
        let found = match (found, range) {
            (Some(Ok(found)), _) => found,
            (Some(Err(e)), None) => return Err(raised(key, e)),
            (failed, Some(range)) => {
                let head = self.head(key).await?;
                if range.of(head.length).is_none() {
                    return Err(unsatisfiable(&head));
                }
                return Err(failed.and_then(Result::err).map_or_else(|| unsatisfiable(&head), |e| raised(key, e)));
            }
            (None, None) => return Err(Error::internal(ORIGIN, "no range has no bytes")),
        };
        let head = head_of(key, &found.meta);
        let expected = match range {
            None => 0..head.length,
            Some(range) => range.of(head.length).ok_or_else(|| unsatisfiable(&head))?,
        };
        if found.range != expected {
            return Err(Error::new(
                ErrorKind::Protocol,
                ORIGIN,
                format!("{key} came with another range than asked for"),
            ));
        }
        let body = body_of(key, found);
        Ok(Media { head, body, range: expected })
    }

    async fn head(&self, key: &MediaKey) -> Result<MediaHead> {
        let location = self.locate(key).await?;
        let meta = self.remote().head(&location).await.map_err(|e| raised(key, e))?;
        Ok(head_of(key, &meta))
    }

    async fn link(&self, _key: &MediaKey, _life: Duration) -> Result<Option<Url>> {
        Ok(None)
    }

    async fn delete(&self, key: &MediaKey) -> Result<()> {
        let location = self.locate(key).await?;
        match self.remote().delete(&location).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(raised(key, e)),
        }
    }

    async fn delete_prefix(&self, prefix: &str) -> Result<u64> {
        // A prefix is the start of a key that ends with a segment, so the same pattern judges it.
        let inside = MediaKey::new(format!("{prefix}/x.bin"))
            .map_err(|_| Error::invalid_field("prefix", "is not the first segments of a media key"))?;
        match &self.backend {
            Backend::Remote(remote) => {
                let name = inside.clone();
                let base = Path::parse(prefix)
                    .map_err(|e| Error::internal(ORIGIN, "a prefix is not a path").with_source(e))?;
                let found = remote.list(Some(&base)).map_ok(|meta| meta.location).boxed();
                let deleted = remote.delete_stream(found);
                deleted.map_err(|e| raised(&name, e)).try_fold(0, |count, _| async move { Ok(count + 1) }).await
            }
            #[cfg(feature = "fs")]
            Backend::Disk(disk) => {
                disk.refuse_links(inside.as_str()).await?;
                disk.delete_dir(prefix).await
            }
        }
    }
}

impl fmt::Debug for ObjectStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A client's own Debug may print credentials.
        let kind = match &self.backend {
            Backend::Remote(_) => "remote",
            #[cfg(feature = "fs")]
            Backend::Disk(_) => "disk",
        };
        f.debug_tuple("ObjectStore").field(&kind).finish()
    }
}

async fn put_remote(remote: &Arc<dyn Remote>, key: &MediaKey, location: &Path, body: Body) -> Result<u64> {
    let mut parts = Parts::new(key, body);
    let attributes = Attributes::from_iter([(Attribute::ContentType, key.media_type().mime())]);
    let first = parts.next().await?;
    if parts.ended {
        // Small media take one request rather than three.
        let options = PutOptions { attributes, ..PutOptions::default() };
        remote.put_opts(location, first, options).await.map_err(|e| raised(key, e))?;
        return Ok(parts.length);
    }
    let options = PutMultipartOptions { attributes, ..PutMultipartOptions::default() };
    let mut upload = Upload::new(remote.put_multipart_opts(location, options).await.map_err(|e| raised(key, e))?);
    let sent = upload.send(key, first, &mut parts).await;
    upload.end(key, sent).await?;
    Ok(parts.length)
}

/// Cuts a body into parts of [`PART`] bytes and sees to it that it is as long as it said.
struct Parts<'a> {
    key: &'a MediaKey,
    body: Body,
    promised: Option<u64>,
    rest: Bytes,
    length: u64,
    ended: bool,
}

impl<'a> Parts<'a> {
    fn new(key: &'a MediaKey, body: Body) -> Self {
        Self { key, promised: body.length(), body, rest: Bytes::new(), length: 0, ended: false }
    }

    /// The next part: a full one, or the last one if `ended` is set after it. May be empty.
    async fn next(&mut self) -> Result<PutPayload> {
        let mut part = PutPayloadMut::new();
        while part.content_length() < PART {
            if self.rest.is_empty() {
                let Some(chunk) = self.body.try_next().await? else {
                    self.ended = true;
                    break;
                };
                self.length += chunk.len() as u64;
                if self.promised.is_some_and(|promised| self.length > promised) {
                    return Err(self.wrong_length());
                }
                self.rest = chunk;
            }
            let missing = PART - part.content_length();
            // Copied rather than kept: a small slice may hold a big buffer.
            part.extend_from_slice(&self.rest.split_to(self.rest.len().min(missing)));
        }
        if self.ended && self.promised.is_some_and(|promised| self.length != promised) {
            return Err(self.wrong_length());
        }
        Ok(part.freeze())
    }

    fn wrong_length(&self) -> Error {
        Error::new(ErrorKind::Media, ORIGIN, format!("{} has another length than its body said", self.key))
    }
}

/// A multipart upload that is aborted unless it is completed, even if its future is dropped.
struct Upload {
    upload: Option<Box<dyn MultipartUpload>>,
}

impl Upload {
    fn new(upload: Box<dyn MultipartUpload>) -> Self {
        Self { upload: Some(upload) }
    }

    /// Sends `first` and all that follow; reads the next part while one is on the wire.
    async fn send(&mut self, key: &MediaKey, first: PutPayload, parts: &mut Parts<'_>) -> Result<()> {
        let Some(upload) = &mut self.upload else { return Err(Error::internal(ORIGIN, "the upload has ended")) };
        let mut part = first;
        loop {
            let sent = upload.put_part(part);
            if parts.ended {
                return sent.await.map_err(|e| raised(key, e));
            }
            let (sent, next) = futures::join!(sent, parts.next());
            sent.map_err(|e| raised(key, e))?;
            part = next?;
            if part.content_length() == 0 {
                return Ok(());
            }
        }
    }

    /// Completes the upload if all was sent; else aborts it and answers why.
    async fn end(mut self, key: &MediaKey, sent: Result<()>) -> Result<()> {
        let Some(mut upload) = self.upload.take() else { return sent };
        let completed = match sent {
            Ok(()) => upload.complete().await.map(drop).map_err(|e| raised(key, e)),
            Err(e) => Err(e),
        };
        if completed.is_err() {
            // The first failure is the one to tell; an upload that cannot be aborted is invisible, too.
            let _ = upload.abort().await;
        }
        completed
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let (Some(mut upload), Ok(runtime)) = (self.upload.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { upload.abort().await });
        }
    }
}

fn head_of(key: &MediaKey, meta: &ObjectMeta) -> MediaHead {
    let tag = match &meta.e_tag {
        Some(tag) => tag.trim_start_matches("W/").trim_matches('"').to_owned(),
        None => format!("{:x}-{:x}", meta.last_modified.timestamp_micros(), meta.size),
    };
    MediaHead { media_type: key.media_type(), length: meta.size, tag }
}

fn unsatisfiable(head: &MediaHead) -> Error {
    Error::invalid(vec![FieldError::new("range", format!("has none of the {} bytes", head.length))])
}

fn body_of(key: &MediaKey, found: GetResult) -> Body {
    let (name, length) = (key.clone(), Some(found.range.end - found.range.start));
    #[cfg(feature = "fs")]
    let found = match found {
        GetResult { payload: GetResultPayload::File(file, _), range, .. } => {
            return Body::new(disk::read(file, range).map_err(move |e| unreadable(&name, e)), length);
        }
        other => other,
    };
    Body::new(found.into_stream().map_err(move |e| raised(&name, e)), length)
}

#[cfg(feature = "fs")]
fn unreadable(key: &MediaKey, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, ORIGIN, format!("cannot read {key}")).with_source(error)
}

/// What the client raised, by what to do next. Its own words may hold signed URLs: they stay out
/// of the message.
fn raised(key: &MediaKey, error: object_store::Error) -> Error {
    use object_store::Error as E;
    let (kind, message) = match &error {
        E::NotFound { .. } => (ErrorKind::NotFound, format!("no media under {key}")),
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
            (ErrorKind::Unauthorized, format!("access to {key} was denied"))
        }
        E::NotSupported { .. } | E::NotImplemented { .. } => {
            (ErrorKind::Unsupported, format!("the client cannot do that with {key}"))
        }
        E::InvalidPath { .. } | E::UnknownConfigurationKey { .. } => {
            (ErrorKind::Internal, format!("the client refused {key}"))
        }
        // A full disk, a network that is away, a service that is overloaded: all may pass.
        _ => (ErrorKind::Unavailable, format!("the store is away, while at {key}")),
    };
    Error::new(kind, ORIGIN, message).with_source(error)
}
