//! Webhooks: signed with Ed25519, by keys that fal publishes for all its customers. So a signature
//! says that fal sent it, and no more; that it is about a run of ours, our own signature in the URL
//! says.

use std::time::Duration;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Mutex;
use tokio::time::Instant;
use vidgen_core::{Callback, Error, ErrorKind, Result};

use super::{ORIGIN, wire};
use crate::client::{Call, Client};

/// As fal's documentation has it, in both directions.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(300);
/// Keys are to be read anew at least this often.
const KEY_LIFE: Duration = Duration::from_hours(24);
/// A forged webhook, or keys that cannot be had, are no reason to ask for them more often than this.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// fal waits 15 s for its first try to be taken; with its repetitions the question fits in there.
const ASK_WITHIN: Duration = Duration::from_secs(4);

/// The keys that webhooks are verified by.
pub(super) struct Keys {
    /// Without our key: theirs are for everybody.
    client: Client,
    cache: Mutex<Cache>,
}

impl Keys {
    /// Keys that are published at the base URL of this client.
    pub(super) fn new(client: Client) -> Self {
        Self { client, cache: Mutex::default() }
    }

    /// Verifies that one of them signed this, less than five minutes ago.
    ///
    /// # Errors
    /// `Unauthorized` if not; `Unavailable` if the keys cannot be had: it comes again.
    pub(super) async fn verify(&self, callback: &Callback) -> Result<()> {
        // What is not signed, or long ago, is not worth a question.
        let signed = Signed::of(callback)?;
        let mut cache = self.cache.lock().await;
        match cache.judge(&signed, Instant::now()) {
            Judged::Genuine => Ok(()),
            Judged::Forged => Err(forged("has a wrong signature")),
            Judged::NoKeys => Err(no_keys()),
            Judged::Ask => {
                cache.asked(Instant::now());
                let keys = self.published().await.map_err(|e| no_keys().with_source(e))?;
                cache.learn(keys, Instant::now());
                if cache.fit(&signed) { Ok(()) } else { Err(forged("has a wrong signature")) }
            }
        }
    }

    async fn published(&self) -> Result<Vec<Key>> {
        let call = Call::get(Vec::<String>::new()).with_timeout(ASK_WITHIN);
        let jwks: wire::Jwks = self.client.ask(call).await?.body;
        let keys: Vec<Key> = jwks.keys.iter().filter_map(key).collect();
        if keys.is_empty() {
            return Err(Error::new(ErrorKind::Protocol, ORIGIN, "there is no Ed25519 key among those published"));
        }
        Ok(keys)
    }
}

type Key = UnparsedPublicKey<Vec<u8>>;

fn key(jwk: &wire::Jwk) -> Option<Key> {
    let bytes = URL_SAFE_NO_PAD.decode(&jwk.x).ok()?;
    (jwk.kty == "OKP" && jwk.crv == "Ed25519" && bytes.len() == 32).then(|| UnparsedPublicKey::new(&ED25519, bytes))
}

#[derive(Default)]
struct Cache {
    keys: Vec<Key>,
    learned: Option<Instant>,
    asked: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum Judged {
    Genuine,
    Forged,
    /// None to judge by, and it was asked just now.
    NoKeys,
    Ask,
}

impl Cache {
    fn judge(&self, signed: &Signed, now: Instant) -> Judged {
        let since = |at: Instant| now.saturating_duration_since(at);
        let fresh = self.learned.is_some_and(|at| since(at) < KEY_LIFE);
        if fresh && self.fit(signed) {
            return Judged::Genuine;
        }
        match self.asked {
            Some(at) if since(at) < ASK_AGAIN && fresh => Judged::Forged,
            Some(at) if since(at) < ASK_AGAIN => Judged::NoKeys,
            // The first one, or perhaps a key that is new.
            _ => Judged::Ask,
        }
    }

    fn fit(&self, signed: &Signed) -> bool {
        // No header names the key.
        self.keys.iter().any(|key| key.verify(&signed.message, &signed.signature).is_ok())
    }

    fn asked(&mut self, now: Instant) {
        self.asked = Some(now);
    }

    fn learn(&mut self, keys: Vec<Key>, now: Instant) {
        self.keys = keys;
        self.learned = Some(now);
    }
}

/// A webhook that says to be signed, and that not long ago.
struct Signed {
    message: Vec<u8>,
    signature: Vec<u8>,
}

impl Signed {
    fn of(callback: &Callback) -> Result<Self> {
        let header = |name| callback.header(name).ok_or_else(|| forged("is not signed"));
        let id = header("x-fal-webhook-request-id")?;
        let user = header("x-fal-webhook-user-id")?;
        let at = header("x-fal-webhook-timestamp")?;
        let signature = hex::decode(header("x-fal-webhook-signature")?).map_err(|_| forged("is not signed"))?;
        let sent = at.parse().ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
        let age = sent.map(|sent| callback.received_at.duration_since(sent).abs());
        if age.is_none_or(|age| age > TOLERANCE) {
            return Err(forged("is of another time"));
        }
        let hash = hex::encode(digest::digest(&digest::SHA256, &callback.body));
        Ok(Self { message: [id, user, at, &hash].join("\n").into_bytes(), signature })
    }
}

fn forged(what: &str) -> Error {
    Error::new(ErrorKind::Unauthorized, ORIGIN, format!("the callback {what}"))
}

fn no_keys() -> Error {
    Error::new(ErrorKind::Unavailable, ORIGIN, "the keys that callbacks are verified by cannot be had")
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};

    use super::*;

    fn pair(seed: u8) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
    }

    fn public(seed: u8) -> Key {
        UnparsedPublicKey::new(&ED25519, pair(seed).public_key().as_ref().to_vec())
    }

    fn signed(seed: u8) -> Signed {
        let message = b"1\n2\n3\n4".to_vec();
        Signed { signature: pair(seed).sign(&message).as_ref().to_vec(), message }
    }

    #[test]
    fn keys_are_asked_for_at_most_once_a_minute_and_at_least_once_a_day() {
        let mut cache = Cache::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(cache.judge(&signed(1), at(0)), Judged::Ask);
        cache.asked(at(0));
        // It failed: nobody can be believed, and nobody is asked again so soon.
        assert_eq!(cache.judge(&signed(1), at(59)), Judged::NoKeys);
        assert_eq!(cache.judge(&signed(1), at(60)), Judged::Ask);
        cache.asked(at(60));
        cache.learn(vec![public(9), public(1)], at(60));
        assert_eq!(cache.judge(&signed(1), at(61)), Judged::Genuine);
        assert_eq!(cache.judge(&signed(2), at(119)), Judged::Forged);
        // By now it may be a key that came after those.
        assert_eq!(cache.judge(&signed(2), at(120)), Judged::Ask);
        let day = 24 * 3600;
        assert_eq!(cache.judge(&signed(1), at(60 + day - 1)), Judged::Genuine);
        assert_eq!(cache.judge(&signed(1), at(60 + day)), Judged::Ask);
        cache.asked(at(60 + day));
        assert_eq!(cache.judge(&signed(1), at(61 + day)), Judged::NoKeys, "old keys are believed");
    }

    #[test]
    fn only_ed25519_keys_are_taken() {
        let jwk = |kty: &str, crv: &str, bytes: &[u8]| {
            let x = URL_SAFE_NO_PAD.encode(bytes);
            key(&wire::Jwk { kty: kty.into(), crv: crv.into(), x }).is_some()
        };
        assert!(jwk("OKP", "Ed25519", &[1; 32]));
        assert!(!jwk("OKP", "X25519", &[1; 32]) && !jwk("EC", "P-256", &[1; 32]) && !jwk("OKP", "Ed25519", &[1; 31]));
    }
}
