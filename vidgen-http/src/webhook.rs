//! Signed webhooks, by Standard Webhooks 1.0
//! (github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md).

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::hmac;
use axum::http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use vidgen_core::clock::SystemClock;
use vidgen_core::net::{Answer, CallLimits, Guard};
use vidgen_core::{Clock, Delivery, Error, ErrorKind, EventId, Notifier, Result};

const ORIGIN: &str = "webhook";

/// What a receiver may ask for with `Retry-After`: less would hammer it, more would outlive the
/// delivery's own schedule.
const RETRY_AFTER: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

const AGENT: &str = concat!("vidgen/", env!("CARGO_PKG_VERSION"));

/// The second port that servers without rights on 443 commonly take.
const SECOND_PORT: u16 = 8443;

/// Whether a secret's end is padded is a matter of taste among those who issue them.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A [`Notifier`] that posts events to https endpoints and signs them.
///
/// Each call carries `webhook-id`, `webhook-timestamp` and `webhook-signature`, and `X-Signature`: the
/// hex HMAC-SHA256 of the body, for receivers that look at nothing else. Only a 2xx counts as
/// told, within 15 s and without redirects; after a 410 nothing is sent again. Endpoints are called
/// through [`Guard`], so none leads into the server's own network.
///
/// ```
/// # fn main() -> vidgen_core::Result<()> {
/// use vidgen_core::Notifier;
/// use vidgen_http::Webhooks;
///
/// let webhooks = Webhooks::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")?;
/// webhooks.accepts("https://example.com/hook")?;
/// assert!(webhooks.accepts("http://169.254.169.254/latest/meta-data").is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Webhooks {
    guard: Guard,
    keys: Arc<[Keys]>,
    limits: CallLimits,
    clock: Arc<dyn Clock>,
}

impl Webhooks {
    /// Signs with `secret`: the bytes of a `whsec_…` in base64, or any other text as it is.
    ///
    /// # Errors
    /// `Invalid` if the secret is empty or its base64 is broken.
    pub fn new(secret: impl Into<SecretString>) -> Result<Self> {
        Self::builder(secret).build()
    }

    /// The same, with more to say.
    pub fn builder(secret: impl Into<SecretString>) -> WebhooksBuilder {
        WebhooksBuilder {
            secrets: vec![secret.into()],
            allowed: Vec::new(),
            limits: CallLimits::WEBHOOK,
            clock: Arc::new(SystemClock::new()),
        }
    }

    /// How often an endpoint was reached at an address that should have been out of reach.
    #[must_use]
    pub fn ssrf_guard_breaches(&self) -> u64 {
        self.guard.ssrf_guard_breaches()
    }

    fn headers(&self, id: &EventId, body: &[u8], now: Timestamp) -> Result<HeaderMap> {
        let timestamp = now.as_second().to_string();
        let signatures: Vec<String> = self.keys.iter().map(|k| k.standard(id, &timestamp, body)).collect();
        // There is room for one here; receivers that rotate should read the other header.
        let plain = self.keys.first().map(|k| k.plain(body)).unwrap_or_default();
        let texts = [
            ("webhook-id", id.to_string()),
            ("webhook-timestamp", timestamp),
            ("webhook-signature", signatures.join(" ")),
            ("x-signature", plain),
        ];
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        for (name, text) in texts {
            let value = HeaderValue::try_from(text)
                .map_err(|e| Error::invalid_field("id", "should be printable ASCII").with_source(e))?;
            headers.insert(HeaderName::from_static(name), value);
        }
        Ok(headers)
    }

    fn verdict(&self, answer: &Answer) -> Result<()> {
        match answer.status {
            200..=299 => Ok(()),
            410 => Err(Error::new(ErrorKind::NotFound, ORIGIN, "the receiver answered 410: it wants no more")),
            // A 400, 401 or 404 may be a deploy gone wrong, and mended before the last attempt.
            status => {
                let error = Error::new(ErrorKind::Unavailable, ORIGIN, format!("the receiver answered {status}"));
                Err(match answer.retry_after(self.clock.now()) {
                    Some(wait) => error.with_retry_after(wait.clamp(*RETRY_AFTER.start(), *RETRY_AFTER.end())),
                    None => error,
                })
            }
        }
    }
}

#[async_trait]
impl Notifier for Webhooks {
    fn accepts(&self, endpoint: &str) -> Result<()> {
        self.guard.check(endpoint).map(drop)
    }

    async fn notify(&self, delivery: &Delivery) -> Result<()> {
        let url = self.guard.check(&delivery.endpoint)?;
        let body = Bytes::copy_from_slice(delivery.body.as_bytes());
        let headers = self.headers(&delivery.id, &body, self.clock.now())?;
        let answer = self.guard.post(&url, headers, body, self.limits).await?;
        self.verdict(&answer)
    }
}

impl fmt::Debug for Webhooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhooks").field("guard", &self.guard).field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

/// Puts [`Webhooks`] together.
#[derive(Clone, Debug)]
pub struct WebhooksBuilder {
    secrets: Vec<SecretString>,
    allowed: Vec<SocketAddr>,
    limits: CallLimits,
    clock: Arc<dyn Clock>,
}

impl WebhooksBuilder {
    /// Signs with the secret of before, too, so that receivers can change it in their own time.
    #[must_use]
    pub fn with_old_secret(mut self, secret: impl Into<SecretString>) -> Self {
        self.secrets.push(secret.into());
        self
    }

    /// Accepts endpoints at this one socket, whatever its address, over http, too. For development.
    #[must_use]
    pub fn with_allowed(mut self, socket: SocketAddr) -> Self {
        self.allowed.push(socket);
        self
    }

    /// Gives a receiver less time than the 15 s of the standard.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.limits = CallLimits::WEBHOOK.with_total(timeout.min(CallLimits::WEBHOOK.total));
        self
    }

    /// Takes the time from `clock`.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Builds it.
    ///
    /// # Errors
    /// `Invalid` if a secret is empty or its base64 is broken; `Internal` if there is no TLS.
    pub fn build(self) -> Result<Webhooks> {
        let keys = self.secrets.iter().map(Keys::new).collect::<Result<Vec<_>>>()?;
        let guard = Guard::builder().with_port(SECOND_PORT);
        let guard = self.allowed.into_iter().fold(guard, vidgen_core::net::GuardBuilder::with_allowed).build()?;
        Ok(Webhooks { guard, keys: keys.into(), limits: self.limits, clock: self.clock })
    }
}

/// What one secret signs with.
struct Keys {
    standard: hmac::Key,
    /// A receiver of `X-Signature` knows its secret as a text and does not decode it.
    plain: hmac::Key,
}

impl Keys {
    fn new(secret: &SecretString) -> Result<Self> {
        let text = secret.expose_secret();
        let bytes = match text.strip_prefix("whsec_") {
            // The cause would quote the secret.
            Some(encoded) => {
                BASE64.decode(encoded).map_err(|_| Error::invalid_field("secret", "should be base64 after whsec_"))?
            }
            None => text.as_bytes().to_vec(),
        };
        if bytes.is_empty() {
            return Err(Error::invalid_field("secret", "should not be empty"));
        }
        let key = |bytes: &[u8]| hmac::Key::new(hmac::HMAC_SHA256, bytes);
        Ok(Self { standard: key(&bytes), plain: key(text.as_bytes()) })
    }

    fn standard(&self, id: &EventId, timestamp: &str, body: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&self.standard);
        for part in [id.as_str().as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            context.update(part);
        }
        format!("v1,{}", BASE64.encode(context.sign()))
    }

    fn plain(&self, body: &[u8]) -> String {
        hex::encode(hmac::sign(&self.plain, body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
        headers.get(name).unwrap().to_str().unwrap()
    }

    fn signed(webhooks: &Webhooks, id: &str, body: &str) -> HeaderMap {
        let at = Timestamp::from_second(1_614_265_330).unwrap();
        webhooks.headers(&EventId::from_text(id), body.as_bytes(), at).unwrap()
    }

    /// The vector of the reference libraries (the test `sign` of each of them in
    /// github.com/standard-webhooks/standard-webhooks/tree/main/libraries).
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const BODY: &str = r#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    #[test]
    fn a_signature_is_that_of_the_reference_libraries() {
        let headers = signed(&Webhooks::new(SECRET).unwrap(), ID, BODY);
        assert_eq!(header(&headers, "webhook-id"), ID);
        assert_eq!(header(&headers, "webhook-timestamp"), "1614265330");
        assert_eq!(header(&headers, "webhook-signature"), SIGNATURE);
        assert_eq!(header(&headers, "content-type"), "application/json");
    }

    /// Computed by `openssl dgst -sha256 -hmac your-webhook-secret`, and the second one by Python's `hmac`.
    #[test]
    fn any_text_is_a_secret() {
        let body = r#"{"job_id":"vid_1","status":"completed"}"#;
        let webhooks = Webhooks::new("your-webhook-secret").unwrap();
        let headers = signed(&webhooks, "evt_00000000000000000000000000000001", body);
        assert_eq!(
            (header(&headers, "x-signature"), header(&headers, "webhook-signature")),
            (
                "714b52ec46328c16c101704f494f41b8fbdf734ea876ca6a6409a912ab648dfd",
                "v1,CjZEjnfzdbZYexqHYrSofDe7ZojN/84y7KWvRmeb03k="
            )
        );
    }

    #[test]
    fn a_rotation_signs_with_both_secrets() {
        let webhooks = Webhooks::builder("a new one").with_old_secret(SECRET).build().unwrap();
        let headers = signed(&webhooks, ID, BODY);
        let (new, old) = header(&headers, "webhook-signature").split_once(' ').unwrap();
        assert_eq!(old, SIGNATURE);
        assert_eq!(new, header(&signed(&Webhooks::new("a new one").unwrap(), ID, BODY), "webhook-signature"));
    }

    #[test]
    fn a_broken_secret_is_refused_and_not_told() {
        for bad in ["", "whsec_", "whsec_not base64!", "whsec_MfKQ9"] {
            let error = Webhooks::new(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{bad}");
            assert!(bad.len() < 7 || !format!("{error} {error:?}").contains(bad), "{error:?}");
        }
        assert!(Webhooks::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw=").is_err());
        let shown = format!("{:?} {:?}", Webhooks::builder(SECRET), Webhooks::new(SECRET).unwrap());
        assert!(!shown.contains("MfKQ"), "{shown}");
    }

    #[test]
    fn an_id_cannot_split_the_headers() {
        let webhooks = Webhooks::new(SECRET).unwrap();
        let id = EventId::from_text("evt_1\r\nx-evil: 1");
        assert!(webhooks.headers(&id, b"{}", Timestamp::UNIX_EPOCH).is_err());
    }
}
