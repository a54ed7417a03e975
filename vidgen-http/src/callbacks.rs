//! `/callbacks/{provider}`: what providers send of their own accord.
//!
//! These routes ask nobody who they are: the URL carries a signature of ours, and the provider's
//! own comes in the headers. A call that is forged, repeated or late changes nothing.

use axum::body::{Body, to_bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, TryStreamExt};
use serde::Deserialize;
use vidgen_core::{Callback, Error, ErrorKind, ProviderId};

use crate::error::Problem;
use crate::options::Api;

/// A callback repeats its run's input and output, which may hold small images as text.
const MAX_CALLBACK: usize = 4 * 1024 * 1024;
/// As large as any output may be (reliability S7).
const MAX_FILE: u64 = 2 * 1024 * 1024 * 1024;
/// By which header cog says whose output it uploads (facts: cog 0.23, files out).
const SUBMISSION: &str = "x-prediction-id";

/// What the URL that we gave the provider carries.
#[derive(Deserialize)]
pub(crate) struct Signed {
    #[serde(default)]
    submission: String,
    #[serde(default)]
    signature: String,
}

/// Takes a provider's callback.
pub(crate) async fn callback(
    State(api): State<Api>,
    Path(provider): Path<String>,
    signed: Result<Query<Signed>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Problem> {
    let provider = ProviderId::new(provider);
    let Query(Signed { submission, signature }) = signed.map_err(|_| Problem::unauthorized())?;
    // Before anything is read: who was not given the URL sends us no megabytes.
    api.vidgen.check_callback(&provider, &submission, &signature).map_err(refused)?;
    let body = to_bytes(body, MAX_CALLBACK).await.map_err(|_| {
        // Where nothing else is heard of a run, this one is lost: its operator must be told why.
        tracing::warn!(%provider, %submission, "a callback broke off, or is too long: files belong in an upload");
        Problem::of_status(StatusCode::PAYLOAD_TOO_LARGE)
    })?;
    let readable = headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    let callback = Callback::new(readable, body, api.vidgen.clock().now());
    api.vidgen.callback(&provider, &submission, &signature, callback).await.map_err(refused)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes an output that a provider uploads, and names the place that it then tells of.
pub(crate) async fn upload(
    State(api): State<Api>,
    Path((provider, token, name)): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let provider = ProviderId::new(provider);
    let submission = headers.get(SUBMISSION).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let length = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > MAX_FILE) {
        return Err(Problem::of_status(StatusCode::PAYLOAD_TOO_LARGE));
    }
    let mut left = MAX_FILE;
    let counted = body.into_data_stream().map_err(broken).map(move |chunk| {
        let chunk = chunk?;
        let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        left =
            left.checked_sub(length).ok_or_else(|| Error::new(ErrorKind::Media, "upload", "the file is too long"))?;
        Ok(chunk)
    });
    let body = vidgen_core::Body::new(counted, length);
    let url = api.vidgen.upload(&provider, &token, submission, &name, body).await.map_err(refused)?;
    let location = HeaderValue::from_str(url.as_str()).map_err(|_| Problem::internal())?;
    Ok((StatusCode::CREATED, [(header::LOCATION, location)]).into_response())
}

fn broken(error: axum::Error) -> Error {
    Error::new(ErrorKind::Media, "upload", "the file broke off").with_source(error)
}

/// One answer to whoever is not known: nothing of what is configured here is told.
fn refused(error: Error) -> Problem {
    match error.kind() {
        ErrorKind::Unauthorized => Problem::unauthorized(),
        ErrorKind::NotFound | ErrorKind::Unsupported => Problem::not_found(),
        ErrorKind::Protocol | ErrorKind::Media => {
            tracing::warn!(%error, "a provider's call is not understood");
            Problem::of_status(StatusCode::BAD_REQUEST)
        }
        _ => error.into(),
    }
}
