//! Where the bytes go that a provider hands over once and never again.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest;
use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};
use crate::job::JobId;
use crate::media::{Body, MediaKey};
use crate::money::Usage;
use crate::provider::{Handle, Output, ProviderId, Snapshot, SubmissionId};
use crate::store::Store;
use crate::vidgen::media_prefix;

/// The name of the output of a provider that answers a submit with the bytes themselves: no hash,
/// so that no file of a remote's has it, whatever it is named.
const ANSWER: &str = "answer";
/// Where the detail of a handle has the media key of an output that lies here.
const SPOOLED: &str = "spooled";
/// Where it has what the run used.
const USAGE: &str = "usage";

/// A place in the host's store for what one submission makes, for providers that hand their bytes
/// over once: as the answer to the submit, or to an upload sink. What lies there survives this
/// process; the pipeline copies it from there as it copies other outputs, and removes it then.
#[derive(Clone)]
pub struct Spool {
    store: Arc<dyn Store>,
    submission: SubmissionId,
    stem: String,
}

impl Spool {
    /// The spool of `submission` in `store`.
    ///
    /// # Errors
    /// `Invalid` if the id is not one of ours.
    pub fn new(store: Arc<dyn Store>, submission: &SubmissionId) -> Result<Self> {
        let (job, slot) = submission.parts().ok_or_else(|| Error::invalid_field("submission", "is not one of ours"))?;
        let stem = format!("{}/spool-{slot}", media_prefix(job));
        Ok(Self { store, submission: submission.clone(), stem })
    }

    /// Whose it is.
    #[must_use]
    pub fn submission(&self) -> &SubmissionId {
        &self.submission
    }

    /// Keeps the answer to the submit: complete, or not at all. An error means that the bytes are
    /// lost, or never came: the outcome is then unknown.
    ///
    /// # Errors
    /// What the body or the store raises.
    pub async fn keep(&self, body: Body) -> Result<Output> {
        self.write(self.at(ANSWER)?, body).await
    }

    /// The answer that an earlier process kept, if it did.
    ///
    /// # Errors
    /// What the store raises.
    pub async fn kept(&self) -> Result<Option<Output>> {
        self.look(self.at(ANSWER)?).await
    }

    /// The output that the provider names `name`, if it was kept.
    ///
    /// # Errors
    /// What the store raises.
    pub async fn find(&self, name: &str) -> Result<Option<Output>> {
        self.look(self.output(name)?).await
    }

    async fn look(&self, output: Output) -> Result<Option<Output>> {
        let Some(key) = output.spooled() else { return Ok(None) };
        match self.store.head(key).await {
            Ok(_) => Ok(Some(output)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Keeps an output that the provider names `name`: complete, or not at all.
    ///
    /// # Errors
    /// What the body or the store raises.
    pub async fn put(&self, name: &str, body: Body) -> Result<Output> {
        self.write(self.output(name)?, body).await
    }

    async fn write(&self, output: Output, body: Body) -> Result<Output> {
        if let Some(key) = output.spooled() {
            self.store.put(key, body).await?;
        }
        Ok(output)
    }

    /// The output that the provider names `name`, wherever it was kept. No I/O.
    ///
    /// # Errors
    /// Never, for a name of any form: it is hashed.
    pub fn output(&self, name: &str) -> Result<Output> {
        let digest = digest::digest(&digest::SHA256, name.as_bytes());
        let short: String = hex::encode(digest.as_ref()).chars().take(16).collect();
        self.at(&short)
    }

    fn at(&self, word: &str) -> Result<Output> {
        Ok(Output::in_spool(MediaKey::new(format!("{}-{word}.bin", self.stem))?))
    }

    /// Streams an output that lies here.
    ///
    /// # Errors
    /// `NotFound` if it does not.
    pub async fn open(&self, output: &Output) -> Result<Body> {
        let key = self.mine(output).ok_or_else(|| Error::new(ErrorKind::NotFound, "spool", "no such output"))?;
        Ok(self.store.get(key, None).await?.body)
    }

    /// Removes an output that was copied.
    ///
    /// # Errors
    /// What the store raises.
    pub async fn remove(&self, output: &Output) -> Result<()> {
        match self.mine(output) {
            Some(key) => self.store.delete(key).await,
            None => Ok(()),
        }
    }

    /// Where an output lies, if that is in this spool: a remote may name what it likes.
    fn mine<'a>(&self, output: &'a Output) -> Option<&'a MediaKey> {
        let rest = |key: &&MediaKey| key.as_str().strip_prefix(&self.stem).is_some_and(|rest| rest.starts_with('-'));
        output.spooled().filter(rest)
    }
}

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spool").field("stem", &self.stem).finish_non_exhaustive()
    }
}

impl Handle {
    /// The handle of a run whose output was the answer to its submit, and lies in the spool.
    #[must_use]
    pub fn spooled(provider: ProviderId, submission: &SubmissionId, output: &Output) -> Self {
        Self::new(provider, submission.as_str()).with_detail(serde_json::json!({ SPOOLED: output.spooled }))
    }

    /// Adds what the run used, by the same answer: nobody can be asked later.
    #[must_use]
    pub fn with_spooled_usage(mut self, usage: Usage) -> Self {
        if let (Some(detail), Ok(usage)) = (self.detail.as_object_mut(), serde_json::to_value(usage)) {
            detail.insert(USAGE.to_owned(), usage);
        }
        self
    }

    /// The end of a run whose output lies in the spool, as its handle has it.
    #[must_use]
    pub fn spooled_end(&self) -> Option<Snapshot> {
        let key = self.detail.get(SPOOLED)?.as_str()?;
        let end = Snapshot::succeeded(vec![Output::in_spool(MediaKey::new(key).ok()?)]);
        let usage = self.detail.get(USAGE).and_then(|usage| Usage::deserialize(usage).ok());
        Some(match usage {
            Some(usage) => end.with_usage(usage),
            None => end,
        })
    }
}

impl SubmissionId {
    /// The job, and the rest of the id as it may stand in a media key: `video-1`.
    fn parts(&self) -> Option<(JobId, String)> {
        let rest = self.as_str().strip_prefix("sub_")?;
        let (rest, ordinal) = rest.rsplit_once('_')?;
        let (job, step) = rest.rsplit_once('_')?;
        let ordinal: u32 = ordinal.parse().ok()?;
        let word = step.bytes().all(|b| b.is_ascii_lowercase()) && !step.is_empty();
        Some((format!("vid_{job}").parse().ok()?, format!("{step}-{ordinal}"))).filter(|_| word)
    }

    /// The job that a submission is for, if the id is one of ours.
    #[must_use]
    pub fn job(&self) -> Option<JobId> {
        self.parts().map(|(job, _)| job)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::job::{StepKind, submission_id};
    use crate::memory::MemoryStore;
    use crate::provider::RunState;

    #[tokio::test]
    async fn what_was_kept_is_found_by_the_next_process_and_by_nobody_else() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let (job, other) = (JobId::new(), JobId::new());
        let spool = |job, n| Spool::new(store.clone(), &submission_id(job, StepKind::Speech, n)).unwrap();
        assert_eq!(spool(job, 1).kept().await.unwrap().map(|o| o.spooled().cloned()), None);
        let output = spool(job, 1).keep(Bytes::from_static(b"paid").into()).await.unwrap();
        let found = spool(job, 1).kept().await.unwrap().unwrap();
        assert_eq!(found.spooled(), output.spooled());
        let bytes = spool(job, 1).open(&found).await.unwrap().read(10).await.unwrap();
        assert_eq!(bytes, Bytes::from_static(b"paid"));
        for foreign in [spool(job, 2), spool(job, 11), spool(other, 1)] {
            assert!(foreign.kept().await.unwrap().is_none());
            assert_eq!(foreign.open(&found).await.unwrap_err().kind(), ErrorKind::NotFound);
        }
        let eleventh = spool(job, 11).keep(Bytes::from_static(b"paid, too").into()).await.unwrap();
        assert!(spool(job, 1).open(&eleventh).await.is_err(), "its name begins like the first one's");
        spool(job, 1).remove(&eleventh).await.unwrap();
        assert!(spool(job, 11).kept().await.unwrap().is_some());
        spool(job, 1).remove(&found).await.unwrap();
        assert!(spool(job, 1).kept().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_handle_of_what_was_spooled_carries_its_end_and_what_was_used() {
        let id = submission_id(JobId::new(), StepKind::Speech, 1);
        let spool = Spool::new(Arc::new(MemoryStore::new()), &id).unwrap();
        let output = spool.keep(Bytes::from_static(b"paid").into()).await.unwrap();
        let handle = Handle::spooled("acme".into(), &id, &output);
        assert_eq!(handle.spooled_end().unwrap().usage, None);
        // Another process has nothing but its JSON.
        let json = serde_json::to_string(&handle.with_spooled_usage(Usage::Characters(27))).unwrap();
        let end = serde_json::from_str::<Handle>(&json).unwrap().spooled_end().unwrap();
        assert_eq!(end.usage, Some(Usage::Characters(27)));
        assert!(matches!(&end.state, RunState::Succeeded(all) if all[0].spooled() == output.spooled()));
        let other = Handle::new("acme".into(), "run").with_spooled_usage(Usage::Characters(27));
        assert!(other.spooled_end().is_none() && other.detail.is_null());
    }

    #[tokio::test]
    async fn a_file_is_not_taken_for_the_answer_whatever_its_remote_names_it() {
        let id = submission_id(JobId::new(), StepKind::Speech, 1);
        let spool = Spool::new(Arc::new(MemoryStore::new()), &id).unwrap();
        spool.put("answer", Bytes::from_static(b"uploaded").into()).await.unwrap();
        assert!(spool.kept().await.unwrap().is_none(), "nobody answered the submit");
        let answer = spool.keep(Bytes::from_static(b"paid").into()).await.unwrap();
        spool.put("answer", Bytes::from_static(b"uploaded").into()).await.unwrap();
        assert_eq!(spool.open(&answer).await.unwrap().read(10).await.unwrap(), "paid");
    }

    #[test]
    fn an_id_that_is_not_ours_has_no_spool() {
        let job = JobId::new();
        assert_eq!(submission_id(job, StepKind::Video, 3).job(), Some(job));
        for bad in ["", "sub_x_video_1", "sub_../../etc_video_1", &format!("{job}")] {
            assert_eq!(SubmissionId::from_remote(bad).job(), None, "{bad}");
        }
        let hex = job.to_string().replace("vid_", "");
        for (step, ours) in [("video_1", true), ("vi/deo_1", false), ("_1", false), ("video_x", false)] {
            assert_eq!(SubmissionId::from_remote(format!("sub_{hex}_{step}")).job().is_some(), ours, "{step}");
        }
    }
}
