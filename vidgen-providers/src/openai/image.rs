//! Images: the answer to the submit has them, as base64 or by a link.

use backon::{ExponentialBuilder, Retryable};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use vidgen_core::net::DownloadLimits;
use vidgen_core::{ErrorKind, Handle, Output, Result, Spool, SubmitOptions, Usage};

use super::{OpenAi, tagged, wire};
use crate::client::Call;

/// The pipeline takes pictures of 20 MiB (reliability S7): as base64, and what stands around it.
const MAX_ANSWER: usize = 28 * 1024 * 1024;
/// A link to what was paid for is tried so often again.
const FETCH_AGAIN: usize = 3;
/// Tokens of prompts cost at most this part of what tokens of pictures cost.
const INPUT_PART: u64 = 4;
/// No picture has more tokens; what says so counts something else.
const MOST_TOKENS: u64 = 1_000_000;

impl OpenAi {
    pub(super) async fn submit_image(&self, fields: Map<String, Value>, options: &SubmitOptions) -> Result<Handle> {
        let spool = self.client.spool(options)?;
        let is = |name: &str, usual: Value| fields.get(name).is_none_or(|value| *value == usual || value.is_null());
        if !is("n", json!(1)) || !is("stream", json!(false)) {
            return Err(self.unsupported("one image is made at a time, and its answer is no stream"));
        }
        let call = Call::post(["images", "generations"]).with_json(fields).with_max_answer(MAX_ANSWER);
        let made = self.client.submit::<wire::Images>(tagged(call, options)).await?.body;
        let first = made.data.into_iter().next();
        let output = match first.map(|image| (image.b64_json, image.url)) {
            Some((Some(text), _)) => {
                let bytes = STANDARD.decode(text.trim());
                let bytes = bytes.map_err(|_| self.client.lost("the image in the answer cannot be understood"))?;
                self.client.keep(spool, Bytes::from(bytes).into()).await?
            }
            Some((None, Some(url))) => self.fetch_image(&url, spool).await?,
            _ => return Err(self.client.lost("the answer has no image")),
        };
        let handle = Handle::spooled(self.id.clone(), &options.submission, &output);
        Ok(match made.usage.and_then(|tokens| units(&tokens)) {
            Some(units) => handle.with_spooled_usage(Usage::MilliUnits(units)),
            None => handle,
        })
    }

    /// Copies an image behind a link at once: the link is signed, so no handle may have it, and it ends
    /// within the hour.
    async fn fetch_image(&self, url: &str, spool: &Spool) -> Result<Output> {
        let fetch = || async {
            let body = self.client.open(url, DownloadLimits::IMAGE).await?;
            spool.keep(body).await
        };
        let again = ExponentialBuilder::default().with_max_times(FETCH_AGAIN).with_jitter();
        let fetched = fetch.retry(again).sleep(tokio::time::sleep).when(|e| e.kind() == ErrorKind::Unavailable).await;
        fetched.map_err(|e| self.client.lost("the image could not be fetched").with_source(e))
    }
}

/// Thousandths of a unit, which is a thousand tokens of pictures. A gateway that knows of none says 0,
/// and no picture has that.
fn units(tokens: &wire::Tokens) -> Option<u64> {
    let prompt = tokens.input_tokens.unwrap_or_default().div_ceil(INPUT_PART);
    let pictures = tokens.output_tokens.filter(|tokens| *tokens > 0)?;
    Some(pictures.saturating_add(prompt)).filter(|tokens| *tokens <= MOST_TOKENS)
}
