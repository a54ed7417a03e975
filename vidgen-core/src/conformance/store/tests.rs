//! The kit on stores that are broken on purpose: each rule must see its own fault.

use super::*;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;

use async_trait::async_trait;
use futures::FutureExt;
use url::Url;

use crate::memory::MemoryStore;
use crate::store::{Media, MediaHead};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// ST1.
    ForgetsTypes,
    KeepsTags,
    /// ST2.
    KeepsHalves,
    BelievesLengths,
    ShowsWhatIsUnderWay,
    /// ST3.
    OverwritesInTwoSteps,
    /// ST4.
    MissesWhatIsDeleted,
    /// ST5.
    SaysUnavailable,
    /// ST6.
    FoldsDashes,
    DeletesAllWithoutPrefix,
    /// ST7.
    LinksForEver,
    /// ST8.
    IncludesTheEnd,
    SaysInternal,
    /// ST9.
    HoldsAll,
    /// ST10.
    DeletesByLetters,
    DeletesOneLevel,
}

#[derive(Debug)]
struct Broken {
    fault: Fault,
    inner: MemoryStore,
    first_tag: Mutex<Option<String>>,
}

impl Broken {
    fn key(&self, key: &MediaKey) -> MediaKey {
        if self.fault == Fault::FoldsDashes {
            return MediaKey::new(key.as_str().replace('-', "_")).unwrap();
        }
        key.clone()
    }

    fn twist(&self, mut head: MediaHead) -> MediaHead {
        match self.fault {
            Fault::ForgetsTypes => head.media_type = MediaType::Binary,
            Fault::KeepsTags => head.tag = self.first_tag.lock().unwrap().get_or_insert(head.tag).clone(),
            _ => {}
        }
        head
    }

    fn twist_error(&self, error: Error) -> Error {
        match (self.fault, error.kind()) {
            (Fault::SaysUnavailable, ErrorKind::NotFound) => Error::new(ErrorKind::Unavailable, "broken", "away"),
            (Fault::SaysInternal, ErrorKind::Invalid) => Error::internal("broken", "no such range"),
            _ => error,
        }
    }
}

#[async_trait]
impl Store for Broken {
    async fn put(&self, key: &MediaKey, mut body: Body) -> Result<u64> {
        let key = self.key(key);
        let length = body.length();
        match self.fault {
            Fault::HoldsAll => {
                let chunks: Vec<Bytes> = body.try_collect().await?;
                self.inner.put(&key, Body::new(stream::iter(chunks.into_iter().map(Ok)), length)).await
            }
            Fault::OverwritesInTwoSteps if length.is_some() => {
                // Careful enough to put the old bytes back, but gone meanwhile.
                let old = match self.inner.get(&key, None).await {
                    Ok(media) => Some(media.body.read(usize::MAX).await?),
                    Err(_) => None,
                };
                self.inner.delete(&key).await?;
                let put = self.inner.put(&key, body).await;
                if let (Err(_), Some(old)) = (&put, old) {
                    self.inner.put(&key, Body::from(old)).await?;
                }
                put
            }
            Fault::BelievesLengths => self.inner.put(&key, Body::new(body, None)).await,
            Fault::KeepsHalves | Fault::ShowsWhatIsUnderWay => {
                let mut all = Vec::new();
                while let Some(chunk) = body.next().await {
                    match chunk {
                        Ok(chunk) => all.extend_from_slice(&chunk),
                        Err(e) if self.fault == Fault::ShowsWhatIsUnderWay => return Err(e),
                        Err(_) => break,
                    }
                    if self.fault == Fault::ShowsWhatIsUnderWay {
                        self.inner.put(&key, Body::from(Bytes::copy_from_slice(&all))).await?;
                    }
                }
                self.inner.put(&key, Body::new(stream::iter([Ok(all.into())]), length)).await
            }
            _ => self.inner.put(&key, body).await,
        }
    }

    async fn get(&self, key: &MediaKey, range: Option<ByteRange>) -> Result<Media> {
        let range = match range {
            Some(ByteRange::Between(start, end)) if self.fault == Fault::IncludesTheEnd => {
                Some(ByteRange::Between(start, end.saturating_add(1)))
            }
            range => range,
        };
        let mut media = self.inner.get(&self.key(key), range).await.map_err(|e| self.twist_error(e))?;
        media.head = self.twist(media.head);
        Ok(media)
    }

    async fn head(&self, key: &MediaKey) -> Result<MediaHead> {
        let head = self.inner.head(&self.key(key)).await.map_err(|e| self.twist_error(e))?;
        Ok(self.twist(head))
    }

    async fn link(&self, key: &MediaKey, _life: Duration) -> Result<Option<Url>> {
        Ok((self.fault == Fault::LinksForEver).then(|| format!("https://example.com/{key}").parse().unwrap()))
    }

    async fn delete(&self, key: &MediaKey) -> Result<()> {
        if self.fault == Fault::MissesWhatIsDeleted {
            self.inner.head(key).await?;
        }
        self.inner.delete(&self.key(key)).await
    }

    async fn delete_prefix(&self, prefix: &str) -> Result<u64> {
        let taken: Box<dyn Fn(&str) -> bool + Send + Sync> = match self.fault {
            Fault::DeletesAllWithoutPrefix if prefix.is_empty() => Box::new(|_| true),
            Fault::DeletesByLetters => Box::new(|key| key.starts_with(prefix)),
            Fault::DeletesOneLevel => Box::new(|key| {
                key.strip_prefix(prefix).and_then(|k| k.strip_prefix('/')).is_some_and(|rest| !rest.contains('/'))
            }),
            _ => return self.inner.delete_prefix(prefix).await,
        };
        if self.fault != Fault::DeletesAllWithoutPrefix {
            // As picky about prefixes as the one inside.
            MediaKey::new(format!("{prefix}/x.bin"))?;
        }
        let keys: Vec<MediaKey> = self.inner.keys().into_iter().filter(|key| taken(key.as_str())).collect();
        for key in &keys {
            self.inner.delete(key).await?;
        }
        Ok(keys.len() as u64)
    }
}

/// The rules that `fault` breaks, by the kit's verdict.
async fn broken_rules(fault: Fault) -> Vec<&'static str> {
    let mut broken = Vec::new();
    macro_rules! check {
        ($($rule:ident)*) => {$(
            let store = Broken { fault, inner: MemoryStore::new(), first_tag: Mutex::default() };
            if AssertUnwindSafe($rule(&store)).catch_unwind().await.is_err() {
                broken.push(stringify!($rule).split('_').next().unwrap());
            }
        )*};
    }
    check!(
        st1_what_is_put_is_got
        st2_a_failed_body_leaves_nothing_visible
        st3_overwriting_is_atomic
        st4_deleting_twice_is_fine
        st5_what_is_absent_is_not_found
        st6_keys_cannot_climb_out
        st7_a_link_lives_as_long_as_it_says
        st8_ranges_are_the_bytes_asked_for
        st10_delete_by_prefix_takes_nothing_beside_it
    );
    if fault == Fault::HoldsAll {
        check!(st9_a_big_body_passes_in_constant_memory);
    }
    broken
}

#[tokio::test]
async fn each_rule_sees_its_own_fault() {
    let faults = [
        (Fault::None, &[][..]),
        (Fault::ForgetsTypes, &["st1"]),
        (Fault::KeepsTags, &["st1"]),
        (Fault::KeepsHalves, &["st2"]),
        (Fault::BelievesLengths, &["st2"]),
        (Fault::ShowsWhatIsUnderWay, &["st2", "st3"]),
        (Fault::OverwritesInTwoSteps, &["st3"]),
        (Fault::MissesWhatIsDeleted, &["st4"]),
        // These, too, look whether something is gone.
        (Fault::SaysUnavailable, &["st2", "st4", "st5", "st10"]),
        (Fault::FoldsDashes, &["st6"]),
        (Fault::DeletesAllWithoutPrefix, &["st6"]),
        (Fault::LinksForEver, &["st7"]),
        (Fault::IncludesTheEnd, &["st8"]),
        (Fault::SaysInternal, &["st8"]),
        (Fault::HoldsAll, &["st9"]),
        (Fault::DeletesByLetters, &["st10"]),
        (Fault::DeletesOneLevel, &["st10"]),
    ];
    for (fault, rules) in faults {
        assert_eq!(broken_rules(fault).await, rules, "{fault:?}");
    }
}
