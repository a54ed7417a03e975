//! The rules of [`Store`].

#![allow(clippy::print_stdout, reason = "what is not checked is not passed over in silence")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use crate::error::{Error, ErrorKind, Result};
use crate::media::{Body, MediaKey, MediaType};
use crate::store::{ByteRange, Store};

/// Makes one test of every rule, each on what `factory` yields: an empty store that nobody else
/// uses, or a pair of one and something to keep alive as long (a temporary directory).
///
/// ```text
/// vidgen_core::store_conformance!(memory, async { MemoryStore::new() }, except: [("st9", "it is memory")]);
/// ```
#[macro_export]
macro_rules! store_conformance {
    ($name:ident, $factory:expr) => {
        $crate::store_conformance!($name, $factory, except: []);
    };
    ($name:ident, $factory:expr, except: [$($exemption:expr),* $(,)?]) => {
        mod $name {
            #[allow(unused_imports, reason = "a factory may need nothing of its surroundings")]
            use super::*;

            $crate::store_conformance!(@rules $name, $factory, [$($exemption),*],
                st1_what_is_put_is_got
                st2_a_failed_body_leaves_nothing_visible
                st3_overwriting_is_atomic
                st4_deleting_twice_is_fine
                st5_what_is_absent_is_not_found
                st6_keys_cannot_climb_out
                st7_a_link_lives_as_long_as_it_says
                st8_ranges_are_the_bytes_asked_for
                st9_a_big_body_passes_in_constant_memory
                st10_delete_by_prefix_takes_nothing_beside_it
            );
        }
    };
    (@rules $name:ident, $factory:expr, $exemptions:expr, $($rule:ident)*) => {
        #[test]
        pub(super) fn exemptions_are_from_rules() {
            $crate::conformance::assert_exemptions(stringify!($name), &[$(stringify!($rule)),*], &$exemptions);
        }
        $(
            #[test]
            fn $rule() {
                let exemptions: &[(&str, &str)] = &$exemptions;
                let number = stringify!($rule).split('_').next().unwrap_or_default();
                if $crate::conformance::is_exempt(stringify!($name), number, exemptions) {
                    return;
                }
                $crate::conformance::block_on(async {
                    let fresh = $factory.await;
                    $crate::conformance::store::$rule($crate::conformance::store::FreshStore::store(&fresh)).await;
                });
            }
        )*
    };
}

/// What a factory yields: a store, alone or with what must live as long.
pub trait FreshStore {
    /// The store.
    fn store(&self) -> &dyn Store;
}
impl<S: Store> FreshStore for S {
    fn store(&self) -> &dyn Store {
        self
    }
}
impl<S: Store, K> FreshStore for (S, K) {
    fn store(&self) -> &dyn Store {
        &self.0
    }
}

/// How many bytes of a body a store may hold at once. The parts of a multipart upload to S3 are at
/// least 5 MiB (docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html), and a few may be under way.
const MAX_HELD: usize = 32 << 20;

const BIG: u64 = 200_000_000;
const MIB: usize = 1 << 20;

/// ST1.
pub async fn st1_what_is_put_is_got(store: &dyn Store) {
    let cases = [
        ("a.png", MediaType::Png, 0),
        ("jobs/vid_1/video-1-3.mp4", MediaType::Mp4, 1),
        ("jobs/vid_1/speech.mp3", MediaType::Mp3, 70_000),
        ("a/b/c/d/e/f/g/h.webm", MediaType::Webm, 3 * MIB),
        ("jobs/vid_1/other.xyz", MediaType::Binary, 11 * MIB + 1),
    ];
    for (name, media_type, length) in cases {
        for promised in [true, false] {
            let key = key(name);
            let bytes = noise(length);
            let chunks: Vec<_> = bytes.chunks(100_000).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
            let body = Body::new(stream::iter(chunks), promised.then_some(length as u64));
            assert_eq!(store.put(&key, body).await.unwrap(), length as u64, "{key}");

            let head = store.head(&key).await.unwrap();
            assert_eq!((head.media_type, head.length), (media_type, length as u64), "{key}");
            assert!(!head.tag.is_empty() && !head.tag.contains('"'), "{key} has the tag {:?}", head.tag);
            let media = store.get(&key, None).await.unwrap();
            assert_eq!((&media.head, &media.range), (&head, &(0..length as u64)), "{key}");
            assert_eq!(media.body.length(), Some(length as u64), "{key}");
            assert!(media.body.read(length).await.unwrap() == bytes, "{key} has other bytes");
        }
    }
    let tag = store.head(&key("a.png")).await.unwrap().tag;
    put(store, "a.png", b"other bytes").await;
    assert_ne!(store.head(&key("a.png")).await.unwrap().tag, tag, "the tag stayed when the bytes changed");
}

/// ST2.
pub async fn st2_a_failed_body_leaves_nothing_visible(store: &dyn Store) {
    put(store, "jobs/vid_1/kept.mp4", b"kept").await;
    // Big enough to be past every buffer, and small enough to be within the first.
    for length in [3 * MIB as u64, 12 * MIB as u64, 10] {
        for name in ["jobs/vid_1/new.mp4", "jobs/vid_1/kept.mp4"] {
            let key = key(name);
            let bytes = noise(usize::try_from(length).unwrap());
            let pieces = |bytes: &Bytes| bytes.chunks(MIB).map(|c| Ok(Bytes::copy_from_slice(c))).collect::<Vec<_>>();
            let mut failing = pieces(&bytes);
            failing.push(Err(Error::new(ErrorKind::Unavailable, "kit", "the stream broke")));
            let bodies = [
                ("that fails", Body::new(stream::iter(failing), None)),
                ("that is shorter than it said", Body::new(stream::iter(pieces(&bytes)), Some(length + 1))),
                ("that is longer than it said", Body::new(stream::iter(pieces(&bytes)), Some(length - 1))),
            ];
            for (what, body) in bodies {
                assert!(store.put(&key, body).await.is_err(), "a body {what} was stored");
                assert_untouched(store, &key, what).await;
            }

            // And one that is under way, then dropped.
            let (sender, body) = driven_body(None);
            let put = store.put(&key, body);
            let drive = async {
                for piece in pieces(&bytes) {
                    sender.send(piece).await.unwrap();
                }
                assert_untouched(store, &key, "under way").await;
            };
            tokio::select! {
                done = put => panic!("a body without an end was stored: {done:?}"),
                () = drive => {}
            }
            assert_untouched(store, &key, "dropped half-way").await;
        }
    }
    assert_eq!(store.delete_prefix("jobs/vid_1").await.unwrap(), 1, "something was left beside the kept media");
}

async fn assert_untouched(store: &dyn Store, key: &MediaKey, what: &str) {
    if key.as_str().contains("kept") {
        assert_eq!(read(store, key).await, "kept", "a body {what} damaged what was there");
    } else {
        assert_absent(store, key, &format!("a body {what} left something visible")).await;
    }
}

/// ST3.
pub async fn st3_overwriting_is_atomic(store: &dyn Store) {
    let key = key("jobs/vid_1/video.mp4");
    let (old, new) = (noise(9 * MIB), noise(12 * MIB).slice(1..));
    store.put(&key, Body::from(old.clone())).await.unwrap();

    let (sender, body) = driven_body(Some(new.len() as u64));
    let before = store.get(&key, None).await.unwrap();
    let readers = async {
        for piece in new.chunks(MIB) {
            sender.send(Ok(Bytes::copy_from_slice(piece))).await.unwrap();
            assert!(read(store, &key).await == old, "a reader saw an overwriting under way");
        }
        drop(sender);
    };
    let (put, ()) = futures::join!(store.put(&key, body), readers);
    put.unwrap();
    assert!(read(store, &key).await == new, "the new bytes are not there");
    // A reader who came before may be told that it is too late, but not a mixture.
    if let Ok(bytes) = before.body.read(new.len()).await {
        assert!(bytes == old || bytes == new, "an early reader saw a mixture");
    }
}

/// ST4.
pub async fn st4_deleting_twice_is_fine(store: &dyn Store) {
    let key = key("jobs/vid_1/video.mp4");
    store.delete(&key).await.unwrap();
    put(store, "jobs/vid_1/video.mp4", b"bytes").await;
    store.delete(&key).await.unwrap();
    assert_absent(store, &key, "it is there after its deletion").await;
    store.delete(&key).await.unwrap();
    put(store, "jobs/vid_1/video.mp4", b"again").await;
    assert_eq!(read(store, &key).await, "again");
}

/// ST5.
pub async fn st5_what_is_absent_is_not_found(store: &dyn Store) {
    put(store, "jobs/vid_1/video.mp4", b"bytes").await;
    for name in ["jobs/vid_1/video.webm", "jobs/vid_2/video.mp4", "jobs.mp4", "jobs/vid_1.mp4", "video.mp4"] {
        assert_absent(store, &key(name), "something is there that was never put").await;
        for range in [ByteRange::From(0), ByteRange::Last(1), ByteRange::Between(0, 1)] {
            let error = store.get(&key(name), Some(range)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound, "{name} {range:?}: {error}");
        }
    }
}

/// ST6.
pub async fn st6_keys_cannot_climb_out(store: &dyn Store) {
    for evil in
        ["../a.mp4", "/a.mp4", "a/../../b.mp4", "a/./b.mp4", "%2e%2e/a.mp4", "a\\..\\b.mp4", "a\0.mp4", "a.mp4/"]
    {
        assert!(MediaKey::new(evil).is_err(), "{evil:?} is a key");
        assert!(serde_json::from_value::<MediaKey>(evil.into()).is_err(), "{evil:?} is a key in JSON");
    }
    // Keys that a sloppy backend might mix up.
    let long = format!("{}.mp4", "l".repeat(196));
    let deep = format!("{}/h.mp4", ["s"; 7].join("/"));
    let alike = ["a/b.mp4", "a_b.mp4", "a-b.mp4", "a--b.mp4", "ab.mp4", "a/b/c.mp4", "a.mp4", "con.mp4", &long, &deep];
    for name in alike {
        put(store, name, name.as_bytes()).await;
    }
    for name in alike {
        assert_eq!(read(store, &key(name)).await, name, "two keys name the same media");
    }
    let evil =
        ["", "/", ".", "..", "a/", "/a", "a/..", "a/../a", "a//b", "%2e%2e", "a\\b", "a\0", "*", "a*", ".staging", "A"];
    for prefix in evil {
        match store.delete_prefix(prefix).await {
            Ok(count) => panic!("{prefix:?} was taken for a prefix, {count} deleted"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Invalid, "{prefix:?}: {error}"),
        }
    }
    for name in alike {
        assert_eq!(read(store, &key(name)).await, name, "an evil prefix took it");
    }
}

/// ST7. The kit has no HTTP, so of a link it checks only what can be seen.
pub async fn st7_a_link_lives_as_long_as_it_says(store: &dyn Store) {
    put(store, "jobs/vid_1/video.mp4", b"bytes").await;
    let key = key("jobs/vid_1/video.mp4");
    let short = store.link(&key, Duration::from_secs(1)).await.unwrap();
    let long = store.link(&key, Duration::from_secs(3600)).await.unwrap();
    match (short, long) {
        (None, None) => {}
        (Some(short), Some(long)) => {
            println!("st7: whether the link works until it expires is for a test with HTTP");
            assert!(short.query().is_some() && short != long, "a link does not say how long it lives");
        }
        (short, _) => panic!("sometimes a link, sometimes none: the short one is {:?}", short.is_some()),
    }
}

/// ST8.
pub async fn st8_ranges_are_the_bytes_asked_for(store: &dyn Store) {
    let bytes = noise(3 * MIB);
    let all = bytes.len() as u64;
    let key = key("jobs/vid_1/video.mp4");
    store.put(&key, Body::from(bytes.clone())).await.unwrap();
    let cases = [
        (ByteRange::Between(0, 1), 0..1),
        (ByteRange::Between(0, all), 0..all),
        (ByteRange::Between(70_000, 2_000_001), 70_000..2_000_001),
        (ByteRange::Between(all - 1, all + 100), all - 1..all),
        (ByteRange::Between(5, u64::MAX), 5..all),
        (ByteRange::From(0), 0..all),
        (ByteRange::From(all - 1), all - 1..all),
        (ByteRange::Last(1), all - 1..all),
        (ByteRange::Last(all), 0..all),
        (ByteRange::Last(u64::MAX), 0..all),
    ];
    for (range, expected) in cases {
        let media = store.get(&key, Some(range)).await.unwrap();
        assert_eq!((media.range.clone(), media.head.length), (expected.clone(), all), "{range:?}");
        assert_eq!(media.body.length(), Some(expected.end - expected.start), "{range:?}");
        let expected = usize::try_from(expected.start).unwrap()..usize::try_from(expected.end).unwrap();
        assert!(media.body.read(bytes.len()).await.unwrap() == bytes.slice(expected), "{range:?} has other bytes");
    }
    put(store, "empty.bin", b"").await;
    let empty = crate::conformance::store::key("empty.bin");
    let past = [
        (&key, ByteRange::From(all)),
        (&key, ByteRange::From(u64::MAX)),
        (&key, ByteRange::Between(all, all + 1)),
        (&key, ByteRange::Between(7, 7)),
        (&key, ByteRange::Between(7, 3)),
        (&key, ByteRange::Last(0)),
        (&empty, ByteRange::From(0)),
        (&empty, ByteRange::Last(5)),
    ];
    for (key, range) in past {
        match store.get(key, Some(range)).await {
            Ok(media) => panic!("{range:?} of {key} has no bytes, but got {:?}", media.range),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Invalid, "{range:?}: {error}"),
        }
    }
}

/// ST9. Every chunk of the body is counted from when it is made until its last reference is gone.
pub async fn st9_a_big_body_passes_in_constant_memory(store: &dyn Store) {
    let key = key("jobs/vid_1/big.mp4");
    let pattern = noise(2 * MIB);
    let piece = {
        let pattern = pattern.clone();
        move |start: u64| {
            // Another offset for every piece, so that a piece in the wrong place is seen.
            let offset = usize::try_from((start / MIB as u64) * 4093 % MIB as u64).unwrap();
            let length = usize::try_from((BIG - start).min(MIB as u64)).unwrap();
            pattern.slice(offset..offset + length)
        }
    };
    let held = Arc::new(Held::default());
    let chunks = {
        let (piece, held) = (piece.clone(), Arc::clone(&held));
        stream::iter((0..BIG).step_by(MIB)).map(move |start| Ok(Counted::new(piece(start), Arc::clone(&held))))
    };
    assert_eq!(store.put(&key, Body::new(chunks, Some(BIG))).await.unwrap(), BIG);
    let (now, most) = (held.now.load(Ordering::SeqCst), held.most.load(Ordering::SeqCst));
    println!("st9: at most {most} bytes of {BIG} were held at once");
    assert!(most <= MAX_HELD, "{most} bytes were held at once");
    assert_eq!(now, 0, "bytes are held after the end");

    let mut body = store.get(&key, None).await.unwrap().body;
    let mut at = 0;
    while let Some(mut chunk) = body.try_next().await.unwrap() {
        assert!(chunk.len() <= MAX_HELD, "it is read in chunks of {} bytes", chunk.len());
        while !chunk.is_empty() {
            let start = at - at % MIB as u64;
            let expected = piece(start).split_off(usize::try_from(at - start).unwrap());
            let part = chunk.split_to(expected.len().min(chunk.len()));
            assert!(part == expected.slice(..part.len()), "other bytes after {at}");
            at += part.len() as u64;
        }
    }
    assert_eq!(at, BIG, "it is read short");
}

#[derive(Debug, Default)]
struct Held {
    now: AtomicUsize,
    most: AtomicUsize,
}

struct Counted {
    bytes: Bytes,
    held: Arc<Held>,
}

impl Counted {
    #[expect(clippy::new_ret_no_self, reason = "it lives inside of the bytes that it counts")]
    fn new(bytes: Bytes, held: Arc<Held>) -> Bytes {
        let now = held.now.fetch_add(bytes.len(), Ordering::SeqCst) + bytes.len();
        held.most.fetch_max(now, Ordering::SeqCst);
        Bytes::from_owner(Self { bytes, held })
    }
}
impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
impl Drop for Counted {
    fn drop(&mut self) {
        self.held.now.fetch_sub(self.bytes.len(), Ordering::SeqCst);
    }
}

/// ST10.
pub async fn st10_delete_by_prefix_takes_nothing_beside_it(store: &dyn Store) {
    let inside = ["jobs/vid_1/video.mp4", "jobs/vid_1/a.png", "jobs/vid_1/deep/er/b.png"];
    let beside = [
        "jobs/vid_1.mp4",
        "jobs/vid_10/a.png",
        "jobs/vid_1-a/a.png",
        "jobs/vid/a.png",
        "vid_1/a.png",
        "a/jobs/vid_1/a.png",
    ];
    let all: BTreeSet<&str> = inside.into_iter().chain(beside).collect();
    for name in &all {
        put(store, name, b"bytes").await;
    }
    assert_eq!(store.delete_prefix("jobs/vid_2").await.unwrap(), 0);
    assert_eq!(store.delete_prefix("jobs/vid_1").await.unwrap(), 3);
    for name in all {
        if inside.contains(&name) {
            assert_absent(store, &key(name), "it survived the deletion of its prefix").await;
        } else {
            assert_eq!(read(store, &key(name)).await, "bytes", "{name}");
        }
    }
    assert_eq!(store.delete_prefix("jobs/vid_1").await.unwrap(), 0);
    put(store, "jobs/vid_1/again.mp4", b"bytes").await;
    assert_eq!(store.delete_prefix("jobs").await.unwrap(), 5);
}

fn key(name: &str) -> MediaKey {
    MediaKey::new(name).unwrap()
}

async fn put(store: &dyn Store, name: &str, bytes: &[u8]) {
    store.put(&key(name), Body::from(Bytes::copy_from_slice(bytes))).await.unwrap();
}

async fn read(store: &dyn Store, key: &MediaKey) -> Bytes {
    store.get(key, None).await.unwrap().body.read(64 * MIB).await.unwrap()
}

async fn assert_absent(store: &dyn Store, key: &MediaKey, what: &str) {
    for error in [store.get(key, None).await.err(), store.head(key).await.err()] {
        let Some(error) = error else { panic!("{what}: {key}") };
        assert_eq!(error.kind(), ErrorKind::NotFound, "{key}: {error}");
    }
}

/// A body that yields what is sent to it; one chunk waits in between, so whoever can send the next
/// but one knows that the store took the first.
fn driven_body(length: Option<u64>) -> (mpsc::Sender<Result<Bytes>>, Body) {
    let (sender, mut receiver) = mpsc::channel(1);
    (sender, Body::new(stream::poll_fn(move |cx| receiver.poll_recv(cx)), length))
}

/// Bytes without a pattern, the same ones every time.
fn noise(length: usize) -> Bytes {
    static NOISE: LazyLock<Bytes> = LazyLock::new(|| xorshift64(12 * MIB));
    NOISE.slice(..length)
}

fn xorshift64(length: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

#[cfg(test)]
mod tests;
