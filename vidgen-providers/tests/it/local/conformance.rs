//! The local provider, held to the rules of every provider.
//!
//! Its remote is this process: a fresh client is another provider beside the one that has the run.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use vidgen_core::conformance::provider::{Call, Fixture, Impossible, Scene, Stage};
use vidgen_core::memory::MemoryStore;
use vidgen_core::*;
use vidgen_providers::local::{LocalProvider, ToolLimits};

use super::kit::{image, made, size, video};

const PROMPT: &str = "a prompt that is nobody else's business";

/// An input that a run opens, which is how it is seen to have begun.
#[derive(Debug)]
struct Door {
    store: MemoryStore,
    opened: Arc<AtomicUsize>,
    /// Whether whoever opens it waits for ever.
    stuck: bool,
}

#[async_trait]
impl Store for Door {
    async fn put(&self, key: &MediaKey, body: Body) -> Result<u64> {
        self.store.put(key, body).await
    }
    async fn get(&self, key: &MediaKey, range: Option<ByteRange>) -> Result<Media> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        if self.stuck {
            std::future::pending::<()>().await;
        }
        self.store.get(key, range).await
    }
    async fn head(&self, key: &MediaKey) -> Result<MediaHead> {
        self.store.head(key).await
    }
    async fn link(&self, key: &MediaKey, life: Duration) -> Result<Option<url::Url>> {
        self.store.link(key, life).await
    }
    async fn delete(&self, key: &MediaKey) -> Result<()> {
        self.store.delete(key).await
    }
    async fn delete_prefix(&self, prefix: &str) -> Result<u64> {
        self.store.delete_prefix(prefix).await
    }
}

/// A client whose outputs meet with an accident as soon as they are made.
#[derive(Debug)]
struct Unlucky {
    local: LocalProvider,
    scratch: PathBuf,
    accident: fn(&Path),
}

#[async_trait]
impl Provider for Unlucky {
    fn id(&self) -> ProviderId {
        self.local.id()
    }
    fn capabilities(&self) -> Capabilities {
        self.local.capabilities()
    }
    async fn submit(&self, task: &Task, options: &SubmitOptions) -> Result<Handle> {
        self.local.submit(task, options).await
    }
    async fn poll(&self, handle: &Handle) -> Result<Snapshot> {
        let snapshot = self.local.poll(handle).await?;
        if matches!(snapshot.state, RunState::Succeeded(_)) {
            let inside = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
            let runs = inside(&self.scratch).flat_map(|provider| inside(&provider));
            let outputs: Vec<_> = runs.map(|run| run.join("image.png")).filter(|file| file.exists()).collect();
            outputs.iter().for_each(|output| (self.accident)(output));
        }
        Ok(snapshot)
    }
    async fn open(&self, output: &Output) -> Result<Body> {
        self.local.open(output).await
    }
    async fn cancel(&self, handle: &Handle) -> Result<()> {
        self.local.cancel(handle).await
    }
    async fn find(&self, submission: &Submission) -> Result<Lookup> {
        self.local.find(submission).await
    }

    async fn callback(&self, _: &Callback, _: &Spool) -> Result<Handle> {
        Err(Error::new(ErrorKind::Unsupported, "unlucky", "does not call back"))
    }
}

struct Local;

/// A picture that takes some milliseconds.
fn picture() -> Task {
    image(PROMPT, size(64, 48), 1)
}

/// A video of `bytes` through a door, and how often that was opened.
fn through_a_door(bytes: impl Into<bytes::Bytes>, stuck: bool) -> (Task, Arc<AtomicUsize>) {
    let (bytes, key) = (bytes.into(), MediaKey::new("a.png").unwrap());
    let content = ContentInfo::default();
    let info = MediaInfo { key: key.clone(), media_type: key.media_type(), length: bytes.len() as u64, content };
    let door = Door { store: MemoryStore::new(), opened: Arc::default(), stuck };
    door.put(&key, Body::from(bytes)).now_or_never().unwrap().unwrap();
    let opened = Arc::clone(&door.opened);
    (video(MediaInput::new(info, Arc::new(door)), size(64, 64), 1.0), opened)
}

#[async_trait]
impl Fixture for Local {
    async fn stage(&self, scene: Scene) -> Result<Stage, Impossible> {
        let mut limits = ToolLimits::default();
        let mut accident: Option<fn(&Path)> = None;
        let (task, begun) = match scene {
            Scene::Accepts | Scene::Succeeds | Scene::CancelLate | Scene::UnknownHandle => (picture(), Arc::default()),
            Scene::Running | Scene::CancelOk => through_a_door(&b"never read"[..], true),
            Scene::Refuses => through_a_door(&b"<html>"[..], false),
            Scene::Fails => {
                limits.wall = Duration::from_millis(1);
                through_a_door(super::kit::ffmpeg("-f lavfi -i testsrc=s=64x64 -frames:v 1", "a.png"), false)
            }
            Scene::OutputExpired => {
                accident = Some(|output| drop(std::fs::remove_file(output)));
                (picture(), Arc::default())
            }
            Scene::TruncatedOutput => {
                accident = Some(|output| {
                    let bytes = std::fs::read(output).unwrap();
                    std::fs::write(output, &bytes[..bytes.len() / 2]).unwrap();
                });
                (picture(), Arc::default())
            }
            Scene::OversizedOutput => {
                accident = Some(|output| std::fs::write(output, std::fs::read(output).unwrap().repeat(2)).unwrap());
                (picture(), Arc::default())
            }
            other => return Err(impossible(other)),
        };
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().to_owned();
        // One after the other, so that of two runs the first has ended when the second has.
        let builder = LocalProvider::builder().with_scratch(&root).with_limits(limits).with_concurrency(1);
        let drawn = match scene {
            // What is drawn follows from the prompt, the seed and the size, whoever draws it.
            Scene::Succeeds => Some(made(&builder.clone().build().unwrap(), &task).await.1),
            _ => None,
        };
        // The process stays, so what is fresh is the client alone: those before it are kept.
        let before: Arc<Mutex<Vec<LocalProvider>>> = Arc::default();
        let client = move || {
            let local = builder.clone().build().unwrap();
            before.lock().unwrap().push(local.clone());
            Unlucky { local, scratch: root.clone(), accident: accident.unwrap_or(|_| {}) }
        };
        let calls = move || vec![Call::submit("a run opened its input"); begun.load(Ordering::SeqCst)];
        let stage = Stage::new(task, client, calls)
            .with_secrets([PROMPT])
            .with_handle(Handle::new(ProviderId::new("local"), "run_0123456789abcdef"))
            .with_guard(scratch);
        Ok(match drawn {
            Some(drawn) => stage.with_output(drawn),
            None => stage,
        })
    }
}

fn impossible(scene: Scene) -> Impossible {
    Impossible::because(match scene {
        Scene::StatesCost => "nothing costs anything here",
        Scene::RateLimits | Scene::RateLimitsLooks => "who comes too often waits for a turn, and is not sent away",
        Scene::BadKey => "there is no key",
        Scene::Unreachable | Scene::ResetsAfterAccepting | Scene::Hangs => "the way to it is a function call",
        Scene::Garbled | Scene::GarblesAcceptance | Scene::FailsAfterAccepting => "the answer is a value, not bytes",
        Scene::UnknownState => "the states are its own",
        Scene::StalledOutput => "an output is a file that was finished",
        _ => "nobody has said yet how to set this up here",
    })
}

vidgen_core::provider_conformance!(
    local,
    Local,
    except: [("p12", "nothing goes out: a run is a task of this process, and a lost one is run again for free")]
);
