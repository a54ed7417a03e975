//! Calling back.

use std::time::Duration;

use reqwest::Client;
use vidgen_core::{Callback, SubmissionId};

use super::ledger::Delivery;
use super::remote::Signed;
use super::run::Run;
use super::world::World;

/// A receiver on the same machine that takes longer than this takes for ever.
const TIMEOUT: Duration = Duration::from_secs(5);

#[expect(clippy::disallowed_methods, reason = "it calls the test's own receiver on the loopback, and nothing else")]
pub(super) fn client() -> reqwest::Result<Client> {
    // As the remotes do: no redirects. And no proxy between two sockets of one machine.
    Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).timeout(TIMEOUT).build()
}

impl World {
    /// Calls back about a run that ended, once for all; later, if callbacks are held.
    pub(super) fn call_back(&self, id: &str) {
        let run = {
            let mut state = self.lock();
            let hold = state.hold;
            let Some(run) = state.runs.iter_mut().rfind(|run| run.id == id) else { return };
            if hold || run.called || run.callback.is_none() {
                return;
            }
            run.called = true;
            run.clone()
        };
        let world = self.clone();
        self.spawn(async move { world.deliver(&run).await });
    }

    /// Calls back about all that ended meanwhile.
    pub(super) fn hold(&self, hold: bool) {
        let waiting: Vec<_> = {
            let mut state = self.lock();
            state.hold = hold;
            state.runs.iter().filter(|run| run.ended() && !run.called).map(|run| run.id.clone()).collect()
        };
        if !hold {
            waiting.iter().for_each(|id| self.call_back(id));
        }
    }

    async fn deliver(&self, run: &Run) {
        self.0.remote.before_callback(self.clone(), run.clone()).await;
        let retries = self.0.remote.retries();
        let mut pause = retries.pause;
        for attempt in 1..=retries.tries {
            let status = self.send(run).await;
            if attempt == retries.tries || status.is_some_and(|status| !(retries.on)(status)) {
                return;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    /// Calls back once; answers the receiver's status.
    pub(super) async fn send(&self, run: &Run) -> Option<u16> {
        let url = run.callback.clone()?;
        // As it is now.
        let signed = self.0.remote.callback(self, &self.peek(&run.id)?)?;
        let status = self.post(url, signed).await;
        self.lock().deliveries.push(Delivery { remote_id: run.id.clone(), status });
        status
    }

    /// Posts to a receiver on this machine; answers its status.
    pub(super) async fn post(&self, url: url::Url, signed: Signed) -> Option<u16> {
        let mut request = self.0.http.post(local(url)?).body(signed.body);
        for (name, value) in signed.headers {
            request = request.header(name, value);
        }
        request.send().await.ok().map(|response| response.status().as_u16())
    }

    /// What is sent about a submission whose run ended, without sending it.
    pub(super) fn callback_of(&self, submission: &SubmissionId) -> Option<Callback> {
        let run = {
            let state = self.lock();
            state.runs.iter().rfind(|run| run.submission.as_ref() == Some(submission)).cloned()?
        };
        run.callback.as_ref()?;
        let run = self.peek(&run.id)?;
        let Signed { headers, body } = self.0.remote.callback(self, &run).filter(|_| run.ended())?;
        Some(Callback::new(headers, body, self.now()))
    }
}

/// Tests name receivers that do not exist, and nobody else's is to be called.
fn local(url: url::Url) -> Option<url::Url> {
    let here = url.host().is_some_and(|host| match host {
        url::Host::Ipv4(ip) => ip.is_loopback(),
        url::Host::Ipv6(ip) => ip.is_loopback(),
        url::Host::Domain(name) => name == "localhost",
    });
    here.then_some(url)
}
