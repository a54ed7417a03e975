//! Speech: the answer to the submit is the sound.

use bytes::Bytes;
use futures::{StreamExt, stream};
use serde_json::{Map, Value, json};
use vidgen_core::{Body, Handle, Result, SubmitOptions};

use super::{OpenAi, tagged};
use crate::client::{Answer, Call};

/// The pipeline takes so much speech (reliability S7).
const MAX_SPEECH: u64 = 200 * 1024 * 1024;
/// What the pipeline can tell by its first bytes. It would throw away `aac`, `flac` and `pcm`, which
/// has no first bytes of its own, after they were paid for.
const FORMATS: [&str; 3] = ["mp3", "opus", "wav"];

impl OpenAi {
    pub(super) async fn submit_speech(
        &self,
        mut fields: Map<String, Value>,
        options: &SubmitOptions,
    ) -> Result<Handle> {
        let spool = self.client.spool(options)?;
        let says = |name: &str| fields.get(name).filter(|value| !value.is_null());
        if says("response_format").is_some_and(|format| !FORMATS.iter().any(|known| format == known)) {
            return Err(self.unsupported(format!("speech has to be one of {}", FORMATS.join(", "))));
        }
        if says("stream_format").is_some_and(|format| format != "audio") {
            return Err(self.unsupported("the answer has to be the sound itself"));
        }
        // A voice of one's own is named by an object.
        if let Some(id) = says("voice").and_then(Value::as_str).filter(|voice| voice.starts_with("voice_")) {
            let voice = json!({ "id": id });
            fields.insert("voice".to_owned(), voice);
        }
        let call = Call::post(["audio", "speech"]).with_json(fields);
        let answer = self.client.submit_for_bytes(tagged(call, options)).await?;
        let body = self.sound(answer).await?;
        let output = self.client.keep(spool, body).await?;
        Ok(Handle::spooled(self.id.clone(), &options.submission, &output))
    }

    /// The bytes of an answer that is a sound, up to what the pipeline takes.
    async fn sound(&self, answer: Answer<Body>) -> Result<Body> {
        if !answer.header("content-type").is_none_or(is_sound) {
            return Err(self.client.lost("the answer is no sound"));
        }
        let mut body = answer.body;
        let length = body.length();
        let first = match body.next().await {
            Some(chunk) => chunk?,
            None => return Err(self.client.lost("the answer is empty")),
        };
        let client = self.client.clone();
        let mut left = MAX_SPEECH;
        let counted = stream::once(async { Ok(first) }).chain(body).map(move |chunk: Result<Bytes>| {
            let chunk = chunk?;
            let rest = left.checked_sub(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
            left = rest.ok_or_else(|| client.lost("the answer is too long"))?;
            Ok(chunk)
        });
        Ok(Body::new(counted, length))
    }
}

/// As it is said; unknown bytes are told by the pipeline.
fn is_sound(content_type: &str) -> bool {
    let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    media_type.starts_with("audio/")
        || matches!(media_type.as_str(), "" | "application/octet-stream" | "binary/octet-stream")
}
