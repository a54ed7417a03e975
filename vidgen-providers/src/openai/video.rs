//! Videos: jobs that are accepted, looked at and fetched by their id.

use std::time::Duration;

use serde_json::{Map, Value, json};
use vidgen_core::net::DownloadLimits;
use vidgen_core::{Body, ErrorKind, Handle, MediaInput, Output, Result, RunFailure, RunState, Snapshot, SubmitOptions};

use super::{OpenAi, refusals, tagged, wire};
use crate::client::{Answer, Call, Part, data_url, image_bytes, quotable};
use crate::models::ModelEntry;

/// As many characters may a data URL have.
const MAX_DATA_URL: usize = 20_971_520;
/// A remote that wants to be asked less often has a fault.
const SLOWEST_POLL: Duration = Duration::from_mins(5);

impl OpenAi {
    pub(super) async fn submit_video(
        &self,
        entry: &ModelEntry,
        mut fields: Map<String, Value>,
        image: Option<&MediaInput>,
        options: &SubmitOptions,
    ) -> Result<Handle> {
        let field = entry.image_field();
        let image = match field.zip(image) {
            Some((field, image)) => {
                let bytes = self.client.in_time(image_bytes(image)).await?;
                Some((field, image.info.media_type, bytes))
            }
            None => None,
        };
        let call = Call::post(["videos"]);
        let call = if self.json || self.dialect.wants_json(image.is_some()) {
            if let Some((field, media_type, bytes)) = image {
                let url = data_url(media_type.mime(), &bytes);
                if url.len() > MAX_DATA_URL {
                    return Err(self.unsupported("the image is too long to go out in JSON"));
                }
                fields.insert(field.to_owned(), json!({ "image_url": url }));
            }
            call.with_json(fields)
        } else {
            let mut parts = Vec::new();
            for (name, value) in &fields {
                flatten(name.clone(), value, self.dialect.nests_json(), &mut parts);
            }
            if let Some((field, media_type, bytes)) = image {
                let name = format!("image.{}", media_type.extension());
                parts.push(Part::file(field.to_owned(), name, media_type.mime(), bytes));
            }
            call.with_form(parts)
        };
        let video = self.client.submit::<wire::Video>(tagged(call, options)).await?.body;
        let id = video.id().ok_or_else(|| self.client.lost("the answer names no video"))?;
        Ok(Handle::new(self.id.clone(), id))
    }

    pub(super) async fn look(&self, id: &str) -> Result<Snapshot> {
        match self.client.ask(Call::get(["videos", id])).await {
            Ok(answer) => self.snapshot(id, &answer),
            // It forgets what it stops.
            Err(e) if e.kind() == ErrorKind::NotFound && self.has_stopped(id) => Ok(Snapshot::canceled()),
            Err(e) => Err(e),
        }
    }

    fn snapshot(&self, id: &str, answer: &Answer<wire::Video>) -> Result<Snapshot> {
        let video = &answer.body;
        let unclear = || self.client.error(ErrorKind::Protocol, "the answer says no status");
        let status = video.status.as_deref().ok_or_else(unclear)?.to_ascii_lowercase();
        Ok(match status.as_str() {
            "completed" | "succeeded" | "success" => Snapshot::succeeded(vec![Output::new(id)]),
            // There is no state for it in the API.
            "failed" | "error" if refusals::code(&video.error).is_some_and(is_canceled) => Snapshot::canceled(),
            "failed" | "error" => Snapshot::failed(failure(video)),
            "expired" => Snapshot::failed(RunFailure::new(ErrorKind::Unavailable, "the run expired")),
            status if is_canceled(status) => Snapshot::canceled(),
            _ => {
                let done = video.progress.filter(|percent| percent.is_finite());
                let snapshot = Snapshot::running(done.map(|percent| (percent / 100.0).clamp(0.0, 1.0) as f32));
                let after = answer.header("openai-poll-after-ms").and_then(|ms| ms.trim().parse().ok());
                match after.map(Duration::from_millis) {
                    Some(after) => snapshot.with_poll_after(after.min(SLOWEST_POLL)),
                    None => snapshot,
                }
            }
        })
    }

    pub(super) async fn open_video(&self, id: &str) -> Result<Body> {
        let call = Call::get(["videos", id, "content"]);
        let error = match self.client.open_call(call, DownloadLimits::VIDEO).await {
            // 400, 409 and 422 say what each server likes by them: the job itself tells which.
            Err(error) if error.kind() == ErrorKind::Protocol => error,
            opened => return opened,
        };
        let (kind, what) = match self.look(id).await?.state {
            RunState::Running => (ErrorKind::Unavailable, "the video is not ready"),
            RunState::Succeeded(_) => return Err(error),
            _ => (ErrorKind::NotFound, "there is no video: its run has failed"),
        };
        Err(self.client.error(kind, what).with_source(error))
    }

    /// Stops a job. Deleting one that has ended would remove what it made, so it is looked at first;
    /// one that ends in between is lost to him who did not want it any more.
    pub(super) async fn stop(&self, id: &str) -> Result<()> {
        if !matches!(self.look(id).await?.state, RunState::Running) {
            return Err(self.client.error(ErrorKind::TooLate, "the run has already ended"));
        }
        match self.client.ask_any(Call::delete(["videos", id])).await? {
            Ok(_) => {}
            // A moment ago it was there: an answer to this very call was lost.
            Err(refusal) if refusal.status == 404 => {}
            // It was told to stop, and takes longer than the server waits.
            Err(refusal) if refusal.status == 409 => return Ok(()),
            Err(refusal) => {
                let message = format!("the remote answered {}", refusal.status);
                return Err(self.client.error(ErrorKind::Unavailable, message));
            }
        }
        self.remember_stopped(id);
        Ok(())
    }
}

/// A field as the official clients write it into a form.
fn flatten(name: String, value: &Value, nests_json: bool, parts: &mut Vec<Part>) {
    match value {
        Value::Null => {}
        Value::String(text) => parts.push(Part::text(name, text)),
        Value::Array(items) if !nests_json => {
            items.iter().for_each(|item| flatten(format!("{name}[]"), item, nests_json, parts));
        }
        Value::Object(map) if !nests_json => {
            map.iter().for_each(|(inner, value)| flatten(format!("{name}[{inner}]"), value, nests_json, parts));
        }
        other => parts.push(Part::text(name, other.to_string())),
    }
}

fn is_canceled(word: &str) -> bool {
    matches!(word, "cancelled" | "canceled")
}

fn failure(video: &wire::Video) -> RunFailure {
    let error = &video.error;
    let reason = refusals::message(error).unwrap_or_default();
    let kind = refusals::meaning(error).unwrap_or(ErrorKind::Unavailable);
    let reason = quotable(reason, video.prompt.as_deref());
    RunFailure::new(kind, reason.as_deref().unwrap_or("the video could not be made"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_why_but_not_what_was_asked() {
        let failed = |error: Value| {
            let video = json!({ "id": "v", "status": "failed", "prompt": "a red fox jumps", "error": error });
            failure(&serde_json::from_value(video).unwrap())
        };
        let cases = [
            (json!({ "code": "moderation_blocked", "message": "Blocked." }), ErrorKind::Refused, "Blocked."),
            (
                json!({ "code": "OutOfMemoryError", "message": "CUDA out of memory" }),
                ErrorKind::Unavailable,
                "CUDA out of memory",
            ),
            (json!({ "code": 500, "message": "oops" }), ErrorKind::Unavailable, "oops"),
            (json!("worker died"), ErrorKind::Unavailable, "worker died"),
            (json!({ "message": "bad prompt: a red fox jumps" }), ErrorKind::Unavailable, "bad prompt: …"),
            (Value::Null, ErrorKind::Unavailable, "the video could not be made"),
        ];
        for (error, kind, reason) in cases {
            let failure = failed(error.clone());
            assert_eq!((failure.kind, failure.reason.as_str(), failure.billed), (kind, reason, false), "{error}");
        }
    }
}
