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

#[cfg(test)]
mod tests {
    use super::*;

    // The example of the Standard Webhooks specification and its libraries.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const BODY: &str = "{\"test\": 2432232314}";
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    const SENT: i64 = 1_614_265_330;

    fn callback(signature: &str, body: &str, age: i64) -> Callback {
        let headers = [
            ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
            ("Webhook-Timestamp", "1614265330"),
            ("webhook-signature", signature),
        ];
        Callback::new(headers, body.to_owned(), Timestamp::from_second(SENT + age).unwrap())
    }

    fn verify(secrets: &[&str], callback: &Callback) -> bool {
        let secrets: Vec<SecretString> = secrets.iter().map(|secret| (*secret).into()).collect();
        WebhookSecrets::new(&secrets).unwrap().verify("acme", callback).is_ok()
    }

    #[test]
    fn the_specifications_example_is_genuine() {
        assert!(verify(&[SECRET], &callback(SIGNATURE, BODY, 0)));
        assert!(verify(&[SECRET], &callback(SIGNATURE, BODY, 300)));
        assert!(verify(&[SECRET], &callback(SIGNATURE, BODY, -300)));
        assert!(verify(&["whsec_b3RoZXI=", SECRET], &callback(&format!("v1a,x v1,AAAA {SIGNATURE}"), BODY, 9)));
    }

    #[test]
    fn anything_else_is_forged() {
        for age in [301, -301, 86_400] {
            assert!(!verify(&[SECRET], &callback(SIGNATURE, BODY, age)), "{age}");
        }
        assert!(!verify(&[SECRET], &callback(SIGNATURE, "{\"test\": 2432232315}", 0)));
        assert!(!verify(&["whsec_b3RoZXI="], &callback(SIGNATURE, BODY, 0)));
        assert!(!verify(&[], &callback(SIGNATURE, BODY, 0)));
        for signature in
            ["", "v1,", "v1", "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=", &SIGNATURE.replace("v1", "v2")]
        {
            assert!(!verify(&[SECRET], &callback(signature, BODY, 0)), "{signature}");
        }
        for lacks in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
            let headers = ["webhook-id", "webhook-timestamp", "webhook-signature"].into_iter().filter(|h| *h != lacks);
            let whole = callback(SIGNATURE, BODY, 0);
            let headers: Vec<_> = headers.map(|h| (h, whole.header(h).unwrap().to_owned())).collect();
            assert!(!verify(&[SECRET], &Callback::new(headers, BODY, whole.received_at)), "{lacks}");
        }
    }

    #[test]
    fn a_secret_that_is_none_is_refused() {
        for bad in ["", "whsec_", "whsec_!"] {
            assert!(WebhookSecrets::new(&[bad.into()]).is_err(), "{bad}");
        }
    }
}
