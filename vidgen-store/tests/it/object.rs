//! Media stores: the rules, and what they leave behind.

use std::sync::Arc;

use bytes::Bytes;
use object_store::memory::InMemory;
use vidgen_core::{Body, MediaKey, Store};
use vidgen_store::ObjectStore;

vidgen_core::store_conformance!(
    memory,
    async { ObjectStore::memory() },
    except: [("st9", "what is put into memory is held in memory")]
);

#[cfg(feature = "fs")]
vidgen_core::store_conformance!(disk, async {
    let dir = tempfile::tempdir().unwrap();
    (ObjectStore::local(dir.path()).unwrap(), dir)
});

#[tokio::test]
async fn a_bucket_is_told_the_content_type() {
    use object_store::{Attribute, ObjectStoreExt as _, path::Path};

    let bucket = Arc::new(InMemory::new());
    let store = ObjectStore::new(Arc::clone(&bucket) as Arc<dyn object_store::ObjectStore>);
    for (name, length) in [("jobs/small.mp4", 5), ("jobs/big.mp4", 20 << 20)] {
        store.put(&key(name), Body::from(Bytes::from(vec![7; length]))).await.unwrap();
        let stored = bucket.get(&Path::from(name)).await.unwrap();
        assert_eq!(stored.attributes.get(&Attribute::ContentType).unwrap().as_ref(), "video/mp4", "{name}");
    }
}

fn key(name: &str) -> MediaKey {
    MediaKey::new(name).unwrap()
}

#[cfg(feature = "fs")]
mod on_disk {
    use super::*;
    use std::path::Path;

    use futures::stream;
    use tokio::sync::mpsc;
    use vidgen_core::{Error, ErrorKind};

    /// Every file under `dir`, relative to it.
    fn files(dir: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut dirs = vec![dir.to_owned()];
        while let Some(next) = dirs.pop() {
            for entry in std::fs::read_dir(next).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    dirs.push(entry.path());
                } else {
                    found.push(entry.path().strip_prefix(dir).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        found.sort();
        found
    }

    #[tokio::test]
    async fn no_part_of_a_file_is_in_its_place_before_all_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = ObjectStore::local(dir.path()).unwrap();
        let (sender, mut receiver) = mpsc::channel::<vidgen_core::Result<Bytes>>(1);
        let body = Body::new(stream::poll_fn(move |cx| receiver.poll_recv(cx)), None);
        let key = key("jobs/vid_1/video.mp4");
        let drive = async {
            for _ in 0..40 {
                sender.send(Ok(Bytes::from(vec![7; 1 << 20]))).await.unwrap();
                assert!(files(dir.path()).iter().all(|f| f.starts_with(".staging/")), "{:?}", files(dir.path()));
            }
            drop(sender);
        };
        let (put, ()) = futures::join!(store.put(&key, body), drive);
        assert_eq!(put.unwrap(), 40 << 20);
        assert_eq!(files(dir.path()), ["jobs/vid_1/video.mp4"]);
    }

    #[tokio::test]
    async fn an_upload_that_fails_leaves_no_file_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let store = ObjectStore::local(dir.path()).unwrap();
        for size in [10, 20 << 20] {
            let broken = Error::new(ErrorKind::Unavailable, "test", "the stream broke");
            let body = Body::new(stream::iter([Ok(Bytes::from(vec![7; size])), Err(broken)]), None);
            store.put(&key("jobs/vid_1/video.mp4"), body).await.unwrap_err();
            assert_eq!(files(dir.path()), [""; 0]);
        }
    }

    #[test]
    fn an_upload_that_is_dropped_leaves_no_file_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = ObjectStore::local(dir.path()).unwrap();
            let (sender, mut receiver) = mpsc::channel::<vidgen_core::Result<Bytes>>(1);
            let body = Body::new(stream::poll_fn(move |cx| receiver.poll_recv(cx)), None);
            let key = key("jobs/vid_1/video.mp4");
            tokio::select! {
                _ = store.put(&key, body) => unreachable!("the body has no end"),
                () = async {
                    for _ in 0..20 {
                        sender.send(Ok(Bytes::from(vec![7; 1 << 20]))).await.unwrap();
                    }
                } => {}
            }
            assert_eq!(files(dir.path()).len(), 1, "it was under way");
            // The clean-up runs behind the drop; the end of the runtime waits for it no longer.
            for _ in 0..1000 {
                if files(dir.path()).is_empty() {
                    break;
                }
                tokio::task::spawn_blocking(|| {}).await.unwrap();
            }
        });
        assert_eq!(files(dir.path()), [""; 0]);
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn no_link_leads_out_of_the_directory() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(outside.path().join("deep")).unwrap();
        std::fs::write(outside.path().join("secret.mp4"), b"secret").unwrap();
        std::fs::write(outside.path().join("deep/secret.mp4"), b"secret").unwrap();
        let store = ObjectStore::local(dir.path()).unwrap();
        std::fs::create_dir_all(dir.path().join("jobs/vid_1")).unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("out")).unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("jobs/vid_1/out")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret.mp4"), dir.path().join("jobs/vid_1/a.mp4")).unwrap();

        for name in ["out/secret.mp4", "out/deep/secret.mp4", "jobs/vid_1/out/secret.mp4", "jobs/vid_1/a.mp4"] {
            let key = key(name);
            assert!(store.get(&key, None).await.is_err(), "{name}");
            assert!(store.head(&key).await.is_err(), "{name}");
            assert!(store.put(&key, Body::from(Bytes::from_static(b"new"))).await.is_err(), "{name}");
            assert!(store.delete(&key).await.is_err(), "{name}");
        }
        assert!(store.delete_prefix("out").await.is_err());
        assert!(store.delete_prefix("out/deep").await.is_err());
        // Two links, and not what is behind them.
        assert_eq!(store.delete_prefix("jobs/vid_1").await.unwrap(), 2);
        assert_eq!(files(outside.path()), ["deep/secret.mp4", "secret.mp4"]);
        assert_eq!(std::fs::read(outside.path().join("secret.mp4")).unwrap(), b"secret");
    }

    #[tokio::test]
    async fn media_survive_the_process_that_stored_them() {
        let dir = tempfile::tempdir().unwrap();
        let key = key("jobs/vid_1/video.mp4");
        ObjectStore::local(dir.path()).unwrap().put(&key, Body::from(Bytes::from_static(b"video"))).await.unwrap();
        let again = ObjectStore::local(dir.path().join(".")).unwrap();
        assert_eq!(again.get(&key, None).await.unwrap().body.read(9).await.unwrap(), "video");
    }

    /// The child fills a disk of a megabyte, which exists in its own mount namespace only.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_full_disk_is_a_fault_that_passes() {
        const MOUNT: &str = "mount -t tmpfs -o size=1m tmpfs \"$VIDGEN_TEST_SMALL_DISK\"";
        let Some(dir) = std::env::var_os("VIDGEN_TEST_SMALL_DISK") else {
            let dir = tempfile::tempdir().unwrap();
            let shell = |script: String| {
                std::process::Command::new("unshare")
                    .args(["-rm", "sh", "-c", &script])
                    .arg(std::env::current_exe().unwrap())
                    .env("VIDGEN_TEST_SMALL_DISK", dir.path())
                    .output()
            };
            if !shell(MOUNT.into()).is_ok_and(|o| o.status.success()) {
                assert!(std::env::var_os("VIDGEN_REQUIRE_SERVICES").is_none(), "no mount namespace to be had");
                println!("skipped: no mount namespace to be had");
                return;
            }
            let name = "object::on_disk::a_full_disk_is_a_fault_that_passes";
            let output = shell(format!("{MOUNT} && exec \"$0\" --exact {name} --nocapture")).unwrap();
            let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.contains("1 passed"), "{said}");
            return;
        };
        let store = ObjectStore::local(&dir).unwrap();
        let key = key("jobs/vid_1/video.mp4");
        let error = store.put(&key, Body::from(Bytes::from(vec![7; 20 << 20]))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        assert_eq!(files(Path::new(&dir)), [""; 0]);
        store.put(&key, Body::from(Bytes::from(vec![7; 1000]))).await.unwrap();
        store.delete_prefix("jobs").await.unwrap();
    }
}
