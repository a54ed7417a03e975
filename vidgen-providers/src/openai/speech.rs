//! Speech: the answer to the submit is the sound.

use serde_json::{Map, Value, json};
use vidgen_core::{Handle, Result, SubmitOptions};

use super::{OpenAi, tagged};
use crate::client::{Call, may_be_sound};

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
        if !may_be_sound(answer.header("content-type")) {
            return Err(self.client.lost("the answer is no sound"));
        }
        let output = self.client.keep(spool, answer.body).await?;
        Ok(Handle::spooled(self.id.clone(), &options.submission, &output))
    }
}
