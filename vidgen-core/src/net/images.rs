//! Images that requests name by URL, fetched by the worker into the host's store.

use async_trait::async_trait;

use super::{DownloadLimits, Guard};
use crate::error::{Error, ErrorKind, Result};
use crate::job::StepKind;
use crate::media::Body;
use crate::money::Price;
use crate::provider::{
    Callback, Capabilities, Handle, ImageUrls, Lookup, Model, Output, Provider, ProviderId, Resubmit, Snapshot, Spool,
    Submission, SubmitOptions, Task,
};

const ID: &str = "url";

/// Fetches the images that requests name by `image_url`: public ones alone, at most 20 MiB of PNG,
/// JPEG or WebP, in 30 s. Give it to
/// [`VidgenBuilder::image_urls`](crate::VidgenBuilder::image_urls).
///
/// To the pipeline it is a provider: its one task makes the image step's output, costs nothing and
/// may be repeated.
#[derive(Clone, Debug)]
pub struct UrlImages {
    guard: Guard,
}

impl UrlImages {
    /// Fetches through `guard`.
    #[must_use]
    pub fn new(guard: Guard) -> Self {
        Self { guard }
    }
}

fn error(kind: ErrorKind, message: &'static str) -> Error {
    Error::new(kind, ID, message)
}

impl ImageUrls for UrlImages {
    fn accepts(&self, url: &str) -> Result<()> {
        self.guard.check(url).map(|_| ())
    }
}

#[async_trait]
impl Provider for UrlImages {
    fn id(&self) -> ProviderId {
        ProviderId::new(ID)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(vec![Model::new("url/image", StepKind::Image, Price::Free)])
            .with_resubmit(Resubmit::Free)
            .with_spools()
            .with_submit_timeout(DownloadLimits::IMAGE.total)
    }

    async fn submit(&self, task: &Task, options: &SubmitOptions) -> Result<Handle> {
        let url = task.extra.get("url").and_then(|url| url.as_str());
        let url = url.ok_or_else(|| error(ErrorKind::Internal, "the task names no URL"))?;
        let spool = options.spool.as_ref().ok_or_else(|| error(ErrorKind::Internal, "the task has no spool"))?;
        // It was public when the job was created; the rules may have changed since.
        let url = self.guard.check(url)?;
        let body = match self.guard.get(&url, DownloadLimits::IMAGE).await.and_then(super::Download::expect_image) {
            Ok(body) => body,
            // The user's fault, and no other route's to mend.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Media) => {
                let message = "image_url leads to no PNG, JPEG or WebP image of at most 20 MiB";
                return Err(error(ErrorKind::Invalid, message).with_source(e));
            }
            Err(e) => return Err(e),
        };
        let output = spool.keep(body).await.map_err(|e| match e.kind() {
            ErrorKind::Media => error(ErrorKind::Invalid, "image_url leads to a file that is too long").with_source(e),
            _ => e,
        })?;
        Ok(Handle::spooled(self.id(), &options.submission, &output))
    }

    async fn poll(&self, handle: &Handle) -> Result<Snapshot> {
        handle.spooled_end().ok_or_else(|| error(ErrorKind::NotFound, "no such image"))
    }

    async fn open(&self, _: &Output) -> Result<Body> {
        Err(error(ErrorKind::NotFound, "no such image"))
    }

    async fn cancel(&self, _: &Handle) -> Result<()> {
        Err(error(ErrorKind::Unsupported, "cannot cancel"))
    }

    async fn find(&self, _: &Submission) -> Result<Lookup> {
        Err(error(ErrorKind::Unsupported, "cannot look up"))
    }

    async fn callback(&self, _: &Callback, _: &Spool) -> Result<Handle> {
        Err(error(ErrorKind::Unsupported, "does not call back"))
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::memory::{MemoryQueue, MemoryStore, ScriptedProvider};
    use crate::{CreateOptions, Job, JobRequest, JobState, Pipeline, StepState, TenantId, Vidgen};

    /// Answers every request with `answer`.
    async fn server(answer: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut asked = [0; 1024];
                let _ = socket.read(&mut asked).await;
                let _ = socket.write_all(answer).await;
            }
        });
        address
    }

    fn vidgen(studio: &ScriptedProvider, allowed: SocketAddr) -> Vidgen {
        let guard = Guard::builder().with_allowed(allowed).build().unwrap();
        Vidgen::builder()
            .queue(MemoryQueue::new())
            .store(MemoryStore::new())
            .image_urls(UrlImages::new(guard))
            .pipeline(Pipeline::named("default").image(studio.clone()).video(studio.clone()))
            .build()
            .unwrap()
    }

    async fn made(vidgen: &Vidgen, url: &str) -> Job {
        let tenant = TenantId::single();
        let request = JobRequest::new("a cat").with_image_url(url);
        let mut job = vidgen.create(&tenant, request, CreateOptions::default()).await.unwrap().job;
        let worker = vidgen.worker().spawn();
        while !job.state.is_ended() {
            job = vidgen.watch(&tenant, job.id, job.version, Duration::from_secs(60)).await.unwrap();
        }
        worker.shutdown().await;
        job
    }

    #[tokio::test]
    async fn an_image_by_url_is_fetched_once_and_no_image_is_bought() {
        let address = server(b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n\x89PNG\r\n\x1a\n....").await;
        let studio = ScriptedProvider::new("studio");
        let vidgen = vidgen(&studio, address);
        let job = made(&vidgen, &format!("http://{address}/cat.png?signature=secret")).await;
        assert_eq!(job.state, JobState::Completed, "{:?}", job.failure);
        assert_eq!(studio.accepted().len(), 1, "the video alone");
        let StepState::Done { media, provider, .. } = &job.step(StepKind::Image).unwrap().state else { panic!() };
        assert_eq!((provider.as_str(), media.length), ("url", 12));
        assert!(!format!("{job:?}").contains("secret"));
    }

    #[tokio::test]
    async fn what_is_no_image_fails_the_job_and_names_the_field() {
        let address = server(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>").await;
        let studio = ScriptedProvider::new("studio");
        let job = made(&vidgen(&studio, address), &format!("http://{address}/cat.png")).await;
        let failure = job.failure.unwrap();
        assert_eq!((failure.code.as_str(), studio.accepted().len()), ("invalid_request", 0));
        assert!(failure.message.contains("image_url"), "{}", failure.message);
    }

    #[tokio::test]
    async fn a_host_that_is_down_is_no_fault_of_everybody_elses_images() {
        let address = server(b"HTTP/1.1 503 Down\r\ncontent-length: 0\r\n\r\n").await;
        let vidgen = vidgen(&ScriptedProvider::new("studio"), address);
        let tenant = TenantId::single();
        let worker = vidgen.worker().spawn();
        for _ in 0..6 {
            let request = JobRequest::new("a cat").with_image_url(format!("http://{address}/cat.png"));
            let mut job = vidgen.create(&tenant, request, CreateOptions::default()).await.unwrap().job;
            while job.step(StepKind::Image).is_none_or(|step| step.attempts.is_empty()) {
                job = vidgen.watch(&tenant, job.id, job.version, Duration::from_secs(60)).await.unwrap();
            }
            let route = &job.plan.step(StepKind::Image).unwrap().routes[0];
            let pause = vidgen.inner.breakers.pause(route, &tenant, vidgen.clock().monotonic());
            assert_eq!(pause.wait, Duration::ZERO, "another tenant's host may be up");
        }
        worker.shutdown().await;
    }

    #[tokio::test]
    async fn a_private_url_is_refused_when_the_job_is_created() {
        let studio = ScriptedProvider::new("studio");
        let vidgen = vidgen(&studio, "127.0.0.1:1".parse().unwrap());
        for bad in ["http://127.0.0.1:2/", "https://169.254.169.254/", "https://localhost/", "ftp://x.example/", "x"] {
            let bad = vidgen.problems(&JobRequest::new("a cat").with_image_url(bad));
            assert_eq!(bad.iter().map(|b| b.field.as_str()).collect::<Vec<_>>(), ["image_url"]);
        }
    }
}
