//! Where providers call back: URLs that name a submission and carry our own signature.

use std::fmt;

use aws_lc_rs::{constant_time, hmac};
use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::error::{Error, ErrorKind, Result};
use crate::media::Body;
use crate::provider::{Callback, ProviderId, Spool, SubmissionId};
use crate::queue::Witness;
use crate::vidgen::Vidgen;

/// Callback URLs of a host: `{base}/callbacks/{provider}?submission=…&signature=…`, where `base` is
/// where the host's router is mounted and providers can reach it.
///
/// The signature is over provider and submission, so that whoever has not been given the URL
/// cannot speak for it, also where the provider itself signs nothing.
#[derive(Clone)]
pub struct Callbacks {
    base: Url,
    key: hmac::Key,
}

impl Callbacks {
    /// Callbacks come to `base`, e.g. `https://video.example/api`; `secret` signs their URLs, and
    /// has to be the same in every process of the host.
    ///
    /// # Errors
    /// `Invalid` if `base` is no http or https URL, has a query, or the secret has fewer than 16 bytes.
    pub fn new(base: &str, secret: &SecretString) -> Result<Self> {
        let url = Url::parse(base).map_err(|_| Error::invalid_field("base", "must be a URL"))?;
        if !matches!(url.scheme(), "http" | "https") || url.query().is_some() || url.fragment().is_some() {
            return Err(Error::invalid_field("base", "must be an http or https URL without a query"));
        }
        if secret.expose_secret().len() < 16 {
            return Err(Error::invalid_field("secret", "must have at least 16 bytes"));
        }
        Ok(Self { base: url, key: hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret().as_bytes()) })
    }

    /// Where `provider` calls back about `submission`.
    #[must_use]
    pub fn url(&self, provider: &ProviderId, submission: &SubmissionId) -> Url {
        let mut url = self.at(provider, None);
        url.query_pairs_mut()
            .append_pair("submission", submission.as_str())
            .append_pair("signature", &self.sign(provider, submission.as_str()));
        url
    }

    /// Where `provider` uploads its outputs to, if it is one that does (cog): the name of a file
    /// follows. Whoever has this URL can put files into the host's store, so it is a secret.
    #[must_use]
    pub fn files_url(&self, provider: &ProviderId) -> Url {
        self.at(provider, Some(&self.files_token(provider)))
    }

    fn at(&self, provider: &ProviderId, files: Option<&str>) -> Url {
        let mut url = self.base.clone();
        // An http URL always has a path.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["callbacks", provider.as_str()]);
            if let Some(token) = files {
                path.extend(["files", token, ""]);
            }
        }
        url
    }

    fn sign(&self, provider: &ProviderId, submission: &str) -> String {
        hex::encode(hmac::sign(&self.key, format!("callback\n{provider}\n{submission}").as_bytes()))
    }

    fn files_token(&self, provider: &ProviderId) -> String {
        hex::encode(hmac::sign(&self.key, format!("files\n{provider}").as_bytes()))
    }
}

impl fmt::Debug for Callbacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callbacks").finish_non_exhaustive()
    }
}

fn same(one: &str, other: &str) -> bool {
    constant_time::verify_slices_are_equal(one.as_bytes(), other.as_bytes()).is_ok()
}

fn forged() -> Error {
    Error::new(ErrorKind::Unauthorized, "callbacks", "the signature of the callback is wrong")
}

impl Vidgen {
    /// Takes a provider's callback: verified twice (our own signature in its URL, then the
    /// provider's), kept as a witness, and the job woken. What it says of the run is not believed;
    /// the job's worker asks the provider itself.
    ///
    /// # Errors
    /// `Unauthorized` if a signature is wrong or too old; `NotFound` if no pipeline has such a
    /// provider; `Unsupported` if callbacks are not configured, or the provider makes none;
    /// `Protocol` if it is not understood.
    pub async fn callback(
        &self,
        provider: &ProviderId,
        submission: &str,
        signature: &str,
        callback: Callback,
    ) -> Result<()> {
        self.check_callback(provider, submission, signature)?;
        let submission = SubmissionId::from_remote(submission);
        let spool = Spool::new(self.inner.store.clone(), &submission)?;
        let Some(job) = submission.job() else { return Err(forged()) };
        let client = self.provider(provider)?;
        let handle = client.callback(&callback, &spool).await?;
        tracing::debug!(%job, %provider, "a provider called back");
        self.inner.queue.witness(Witness { job, submission, handle }).await
    }

    /// Whether a callback URL is one that this host gave: a host asks this before it reads a body.
    ///
    /// # Errors
    /// `Unauthorized` if its signature is wrong; `Unsupported` if callbacks are not configured.
    pub fn check_callback(&self, provider: &ProviderId, submission: &str, signature: &str) -> Result<()> {
        if same(&self.callbacks()?.sign(provider, submission), signature) { Ok(()) } else { Err(forged()) }
    }

    /// Keeps a file that a provider uploads; answers the URL that it may name the file by.
    ///
    /// # Errors
    /// `Unauthorized` if the token is wrong; `Invalid` if the submission is not one of ours; what
    /// the store raises.
    pub async fn upload(
        &self,
        provider: &ProviderId,
        token: &str,
        submission: &str,
        name: &str,
        body: Body,
    ) -> Result<Url> {
        let callbacks = self.callbacks()?;
        if !same(&callbacks.files_token(provider), token) {
            return Err(forged());
        }
        let spool = Spool::new(self.inner.store.clone(), &SubmissionId::from_remote(submission))?;
        spool.put(name, body).await?;
        let mut url = callbacks.files_url(provider);
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push(name);
        }
        Ok(url)
    }

    fn callbacks(&self) -> Result<&Callbacks> {
        let none = || Error::new(ErrorKind::Unsupported, "callbacks", "callbacks are not configured here");
        self.inner.callbacks.as_ref().ok_or_else(none)
    }
}

/// The name that the last part of a file's URL stands for, as [`Vidgen::upload`] was told it.
#[must_use]
pub fn uploaded_name(url: &Url) -> Option<String> {
    let last = url.path_segments()?.next_back().filter(|name| !name.is_empty())?;
    percent_decode_str(last).decode_utf8().ok().map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{JobId, StepKind, submission_id};

    fn callbacks() -> Callbacks {
        Callbacks::new("https://video.example/api/", &"0123456789abcdef".to_owned().into()).unwrap()
    }

    #[test]
    fn a_url_names_provider_and_submission_and_is_signed_for_both() {
        let id = submission_id(JobId::new(), StepKind::Video, 1);
        let url = callbacks().url(&"acme".into(), &id);
        assert!(
            url.as_str().starts_with(&format!("https://video.example/api/callbacks/acme?submission={id}&signature="))
        );
        assert_ne!(callbacks().url(&"other".into(), &id).query(), url.query());
        assert!(callbacks().files_url(&"cog".into()).as_str().ends_with('/'));
    }

    #[test]
    fn a_bad_base_or_a_short_secret_is_refused() {
        let good = "0123456789abcdef".to_owned().into();
        for bad in ["ftp://x.example", "x", "https://x.example/?a=b"] {
            assert!(Callbacks::new(bad, &good).is_err(), "{bad}");
        }
        assert!(Callbacks::new("https://x.example", &"short".to_owned().into()).is_err());
    }

    #[test]
    fn a_files_name_survives_its_url() {
        for name in ["tmp1.png", "a b+c&d=e%2f.mp4", "ü.webm"] {
            let mut url = callbacks().files_url(&"cog".into());
            url.path_segments_mut().unwrap().pop_if_empty().push(name);
            assert_eq!(uploaded_name(&url).as_deref(), Some(name));
        }
    }
}
