//! Webhooks: signed as Standard Webhooks has it, with a secret of the account's.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use vidgen_core::{Callback, ErrorKind, Result};

use super::{ORIGIN, Replicate, wire};
use crate::client::{Call, WebhookSecrets};

/// A forged webhook is no reason to ask for the secret more often than this.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// The secrets that webhooks are verified by: those of the host's, or the account's as it was asked.
pub(super) struct Secrets {
    given: WebhookSecrets,
    asked: Mutex<Option<(WebhookSecrets, Instant)>>,
}

impl Secrets {
    pub(super) fn new(given: WebhookSecrets) -> Self {
        Self { given, asked: Mutex::new(None) }
    }
}

impl Replicate {
    pub(super) async fn verify(&self, callback: &Callback) -> Result<()> {
        let secrets = &self.callbacks;
        if !secrets.given.is_empty() {
            return secrets.given.verify(ORIGIN, callback);
        }
        // What is not signed, or long ago, is not worth a question.
        WebhookSecrets::is_recent(ORIGIN, callback)?;
        let mut asked = secrets.asked.lock().await;
        let verdict = match &*asked {
            Some((known, at)) => {
                let verdict = known.verify(ORIGIN, callback);
                if verdict.is_ok() || at.elapsed() < ASK_AGAIN {
                    return verdict;
                }
                verdict
            }
            None => Ok(()),
        };
        // Nothing to verify by yet, or perhaps a secret that was replaced meanwhile.
        match self.account_secret().await {
            Ok(fresh) => {
                let verdict = fresh.verify(ORIGIN, callback);
                *asked = Some((fresh, Instant::now()));
                verdict
            }
            // It comes again: a webhook of a run that ended is repeated for about a minute.
            Err(error) => verdict.and(Err(error)),
        }
    }

    async fn account_secret(&self) -> Result<WebhookSecrets> {
        let secret: wire::Secret = self.client.ask(Call::get(["webhooks", "default", "secret"])).await?.body;
        WebhookSecrets::new(&[secret.key.into()])
            .map_err(|e| self.client.error(ErrorKind::Protocol, "the webhook secret is none").with_source(e))
    }
}
