//! Links to media that the router serves: anybody who has one may fetch, until it expires.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::Url;
use vidgen_core::clock::{SystemClock, later};
use vidgen_core::{Clock, Error, MediaKey, MediaLinks, Result, TenantId};

/// The longest life of a link, as with S3.
const MAX_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// A shorter secret could be guessed.
const MIN_SECRET: usize = 16;

/// Makes and checks signed links: HMAC-SHA256 over the method, the tenant, the key, the moment of
/// expiry and the id of the secret. Cheap to clone.
///
/// ```
/// use vidgen_http::SignedLinks;
///
/// let links = SignedLinks::new("https://video.example/api", "a secret of 16 or more bytes")?
///     .with_old_secret("the one that was in use before")?;
/// # Ok::<_, vidgen_core::Error>(())
/// ```
#[derive(Clone)]
pub struct SignedLinks {
    /// Where the router is mounted, ending in a slash.
    base: Url,
    /// The first one signs, all of them verify.
    secrets: Vec<Secret>,
    clock: Arc<dyn Clock>,
}

#[derive(Clone)]
struct Secret {
    id: String,
    key: hmac::Key,
}

/// The query of a link.
#[derive(Debug, Deserialize)]
pub(crate) struct LinkQuery {
    tenant: String,
    exp: i64,
    kid: String,
    sig: String,
}

/// Why a link does not open anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It was not made by us.
    Invalid,
    /// It was, but its time is over.
    Expired,
}

impl SignedLinks {
    /// Signs with `secret` (at least 16 bytes) links below `public_url`: where users reach the
    /// router, e.g. `https://video.example/api`.
    ///
    /// # Errors
    /// `Internal` if the URL is not an http one or the secret is too short.
    pub fn new(public_url: &str, secret: impl Into<SecretString>) -> Result<Self> {
        let wrong = || Error::internal("links", format!("public URL {public_url:?} is not an http or https URL"));
        let mut base = Url::parse(public_url).map_err(|e| wrong().with_source(e))?;
        if !matches!(base.scheme(), "http" | "https") || base.query().is_some() || base.fragment().is_some() {
            return Err(wrong());
        }
        base.set_path(&format!("{}/", base.path().trim_end_matches('/')));
        Ok(Self { base, secrets: vec![Secret::new(&secret.into())?], clock: Arc::new(SystemClock::new()) })
    }

    /// Still honours links that were signed with another secret.
    ///
    /// # Errors
    /// `Internal` if the secret is too short.
    pub fn with_old_secret(mut self, secret: impl Into<SecretString>) -> Result<Self> {
        self.secrets.push(Secret::new(&secret.into())?);
        Ok(self)
    }

    /// Sets the clock; the machine's own if not set.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Whether the link opens `key`, and for how much longer.
    pub(crate) fn verify(&self, key: &MediaKey, query: &LinkQuery) -> Result<Duration, Refusal> {
        let tenant: TenantId = query.tenant.parse().map_err(|_| Refusal::Invalid)?;
        let secret = self.secrets.iter().find(|s| s.id == query.kid).ok_or(Refusal::Invalid)?;
        let signature = hex::decode(&query.sig).map_err(|_| Refusal::Invalid)?;
        // In constant time, by aws-lc.
        hmac::verify(&secret.key, signed(&tenant, key, query.exp, &secret.id).as_bytes(), &signature)
            .map_err(|_| Refusal::Invalid)?;
        let left = query.exp.saturating_sub(self.clock.now().as_second());
        match u64::try_from(left) {
            Ok(left) if left > 0 => Ok(Duration::from_secs(left)),
            _ => Err(Refusal::Expired),
        }
    }
}

impl MediaLinks for SignedLinks {
    fn link(&self, tenant: &TenantId, key: &MediaKey, expires_at: Timestamp) -> Url {
        let exp = expires_at.min(later(self.clock.now(), MAX_LIFE)).as_second();
        let mut url = self.base.clone();
        // A media key has no character that a path would have to escape.
        url.set_path(&format!("{}media/{key}", self.base.path()));
        if let Some(secret) = self.secrets.first() {
            let signature = hmac::sign(&secret.key, signed(tenant, key, exp, &secret.id).as_bytes());
            url.query_pairs_mut()
                .append_pair("tenant", tenant.as_str())
                .append_pair("exp", &exp.to_string())
                .append_pair("kid", &secret.id)
                .append_pair("sig", &hex::encode(signature));
        }
        url
    }
}

impl Secret {
    fn new(secret: &SecretString) -> Result<Self> {
        let bytes = secret.expose_secret().as_bytes();
        if bytes.len() < MIN_SECRET {
            return Err(Error::internal("links", format!("the link secret must have at least {MIN_SECRET} bytes")));
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, bytes);
        // Follows from the secret, so that rotation needs no names; tells nothing of it.
        let id: String = hex::encode(hmac::sign(&key, b"vidgen link key id")).chars().take(8).collect();
        Ok(Self { id, key })
    }
}

/// What is signed. No part can hold a line break, so no two links have the same text. `GET`
/// stands for `HEAD`, too.
fn signed(tenant: &TenantId, key: &MediaKey, exp: i64, kid: &str) -> String {
    format!("v1\nGET\n{tenant}\n{key}\n{exp}\n{kid}")
}

impl fmt::Debug for SignedLinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<&str> = self.secrets.iter().map(|s| s.id.as_str()).collect();
        f.debug_struct("SignedLinks").field("base", &self.base.as_str()).field("secrets", &ids).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use vidgen_core::clock::ManualClock;

    use super::*;

    const OLD: &str = "an old secret, long enough";
    const NEW: &str = "a new secret, long enough";

    fn links(secret: &str, clock: &ManualClock) -> SignedLinks {
        SignedLinks::new("https://x.example/api/", secret).unwrap().with_clock(clock.clone())
    }

    fn query(url: &Url) -> LinkQuery {
        let get = |name: &str| url.query_pairs().find(|(n, _)| n == name).unwrap().1.into_owned();
        LinkQuery { tenant: get("tenant"), exp: get("exp").parse().unwrap(), kid: get("kid"), sig: get("sig") }
    }

    fn setup() -> (ManualClock, TenantId, MediaKey) {
        let clock = ManualClock::starting_at(Timestamp::from_second(1_000_000).unwrap());
        (clock, TenantId::new("ada+1@example").unwrap(), MediaKey::new("jobs/vid_1/video.mp4").unwrap())
    }

    #[test]
    fn a_link_opens_its_media_until_it_expires() {
        let (clock, tenant, key) = setup();
        let links = links(NEW, &clock);
        let url = links.link(&tenant, &key, later(clock.now(), Duration::from_secs(60)));
        assert!(url.as_str().starts_with("https://x.example/api/media/jobs/vid_1/video.mp4?tenant=ada%2B1%40example"));
        assert_eq!(links.verify(&key, &query(&url)), Ok(Duration::from_secs(60)));
        clock.advance(Duration::from_secs(60));
        assert_eq!(links.verify(&key, &query(&url)), Err(Refusal::Expired));
    }

    #[test]
    fn whatever_is_changed_the_link_opens_nothing() {
        let (clock, tenant, key) = setup();
        let links = links(NEW, &clock);
        let url = links.link(&tenant, &key, later(clock.now(), Duration::from_secs(60)));
        let other = MediaKey::new("jobs/vid_2/video.mp4").unwrap();
        assert_eq!(links.verify(&other, &query(&url)), Err(Refusal::Invalid));
        let changes: [fn(&mut LinkQuery); 6] = [
            |q| q.tenant = "bob".into(),
            |q| q.tenant = "ada\n".into(),
            |q| q.exp += 1,
            |q| q.kid = "00000000".into(),
            |q| q.sig = "00".repeat(32),
            |q| q.sig.truncate(62),
        ];
        for change in changes {
            let mut query = query(&url);
            change(&mut query);
            assert_eq!(links.verify(&key, &query), Err(Refusal::Invalid), "{query:?}");
        }
    }

    #[test]
    fn after_a_rotation_old_links_work_and_new_ones_have_the_new_secret() {
        let (clock, tenant, key) = setup();
        let expiry = later(clock.now(), Duration::from_secs(60));
        let before = links(OLD, &clock).link(&tenant, &key, expiry);
        let rotated = links(NEW, &clock).with_old_secret(OLD).unwrap();
        assert!(rotated.verify(&key, &query(&before)).is_ok());
        let after = rotated.link(&tenant, &key, expiry);
        assert!(links(NEW, &clock).verify(&key, &query(&after)).is_ok());
        assert_eq!(links(OLD, &clock).verify(&key, &query(&after)), Err(Refusal::Invalid));
    }

    #[test]
    fn no_link_lives_longer_than_a_week() {
        let (clock, tenant, key) = setup();
        let links = links(NEW, &clock);
        let url = links.link(&tenant, &key, Timestamp::MAX);
        assert_eq!(links.verify(&key, &query(&url)), Ok(MAX_LIFE));
    }

    #[test]
    fn bad_settings_are_refused_and_secrets_are_not_printed() {
        assert!(SignedLinks::new("https://x.example", "short").is_err());
        for url in ["", "x.example", "ftp://x.example", "https://x.example/?a=b"] {
            assert!(SignedLinks::new(url, NEW).is_err(), "{url}");
        }
        assert!(!format!("{:?}", SignedLinks::new("https://x.example", NEW).unwrap()).contains("secret, long"));
    }
}
