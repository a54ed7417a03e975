//! Callbacks signed by the scheme of Standard Webhooks 1.0, as Replicate and OpenAI do.

use std::fmt;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret, SecretString};
use vidgen_core::{Callback, Error, ErrorKind, Result};

/// As the scheme recommends: enough for clocks that differ and for a queue at the sender's, and too
/// short for somebody who found an old one.
const TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

/// The secrets that callbacks may be signed with: two while one is being replaced by the other.
#[derive(Clone, Default)]
pub(crate) struct WebhookSecrets(Vec<hmac::Key>);

impl WebhookSecrets {
    /// Takes secrets as the provider shows them, `whsec_…`.
    ///
    /// # Errors
    /// `Invalid` if one is none.
    pub(crate) fn new(secrets: &[SecretString]) -> Result<Self> {
        let bad = || Error::invalid_field("webhook_secret", "must be whsec_ and base64");
        let key = |secret: &SecretString| {
            let text = secret.expose_secret().trim();
            let bytes = STANDARD.decode(text.strip_prefix("whsec_").unwrap_or(text)).map_err(|_| bad())?;
            // An empty key would make a signature that anybody can.
            if bytes.is_empty() { Err(bad()) } else { Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes)) }
        };
        Ok(Self(secrets.iter().map(key).collect::<Result<_>>()?))
    }

    /// Whether there are none, so that nothing can be verified.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it says to be signed, and that less than five minutes ago.
    ///
    /// # Errors
    /// `Unauthorized` if not.
    pub(crate) fn is_recent(origin: &'static str, callback: &Callback) -> Result<()> {
        let at = header(origin, callback, "webhook-timestamp")?;
        header(origin, callback, "webhook-signature")?;
        let sent = at.parse().ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
        let age = sent.map(|sent| callback.received_at.duration_since(sent).abs());
        if age.is_none_or(|age| age > TOLERANCE) {
            return Err(forged(origin, "is of another time"));
        }
        Ok(())
    }

    /// Verifies that one of them signed this body, less than five minutes ago.
    ///
    /// # Errors
    /// `Unauthorized` if not.
    pub(crate) fn verify(&self, origin: &'static str, callback: &Callback) -> Result<()> {
        Self::is_recent(origin, callback)?;
        let header = |name| header(origin, callback, name);
        let (id, at, signatures) = (header("webhook-id")?, header("webhook-timestamp")?, header("webhook-signature")?);
        let mut signed = format!("{id}.{at}.").into_bytes();
        signed.extend_from_slice(&callback.body);
        let signatures = signatures.split_ascii_whitespace().filter_map(|s| s.strip_prefix("v1,"));
        let genuine = signatures
            .filter_map(|signature| STANDARD.decode(signature).ok())
            .any(|signature| self.0.iter().any(|key| hmac::verify(key, &signed, &signature).is_ok()));
        if genuine { Ok(()) } else { Err(forged(origin, "has a wrong signature")) }
    }
}

fn forged(origin: &'static str, what: &str) -> Error {
    Error::new(ErrorKind::Unauthorized, origin, format!("the callback {what}"))
}

fn header<'a>(origin: &'static str, callback: &'a Callback, name: &str) -> Result<&'a str> {
    callback.header(name).ok_or_else(|| forged(origin, "is not signed"))
}

impl fmt::Debug for WebhookSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookSecrets(…)")
    }
}
