//! Names to addresses, all of them judged.

use std::fmt::Debug;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use reqwest::dns::{Addrs, Name, Resolving};

use super::address::is_public;

/// Looks up names.
#[async_trait]
pub trait Resolve: Debug + Send + Sync + 'static {
    /// All addresses of `name`.
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// Asks the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

#[async_trait]
impl Resolve for SystemResolver {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        Ok(tokio::net::lookup_host((name, 0)).await?.map(|socket| socket.ip()).collect())
    }
}

/// Passes on what `inner` answers if all of it is public, else nothing. The client connects to
/// exactly these, and asks once for every call: a name cannot mean one thing when it is judged and
/// another when it is called.
#[derive(Debug)]
pub(super) struct Judged {
    pub(super) inner: Arc<dyn Resolve>,
    /// Set by a test of what comes after this.
    #[cfg(test)]
    pub(super) lets_all_pass: bool,
}

impl Judged {
    fn passes(&self, addresses: &[IpAddr]) -> bool {
        #[cfg(test)]
        if self.lets_all_pass {
            return true;
        }
        // One private answer among public ones is an attempt to be connected to by chance.
        !addresses.is_empty() && addresses.iter().copied().all(is_public)
    }
}

/// What the client is told instead of addresses.
#[derive(Debug)]
pub(super) struct Denied;

impl std::fmt::Display for Denied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an address is not public")
    }
}
impl std::error::Error for Denied {}

/// What `reqwest` asks.
#[derive(Clone, Debug)]
pub(super) struct ForClient(pub(super) Arc<Judged>);

impl reqwest::dns::Resolve for ForClient {
    fn resolve(&self, name: Name) -> Resolving {
        let judged = Arc::clone(&self.0);
        Box::pin(async move {
            let addresses = judged.inner.resolve(name.as_str()).await?;
            if !judged.passes(&addresses) {
                return Err(Denied.into());
            }
            // Port 0 stands for the one in the URL.
            let sockets = addresses.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(sockets) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::dns::Resolve as _;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Answers from a list, in turn.
    #[derive(Debug)]
    struct InTurn(Vec<Vec<&'static str>>, AtomicUsize);

    #[async_trait]
    impl Resolve for InTurn {
        async fn resolve(&self, _name: &str) -> io::Result<Vec<IpAddr>> {
            let turn = self.1.fetch_add(1, Ordering::SeqCst) % self.0.len();
            Ok(self.0[turn].iter().map(|a| a.parse().unwrap()).collect())
        }
    }

    #[tokio::test]
    async fn a_name_that_changes_its_mind_is_judged_every_time() {
        let inner = Arc::new(InTurn(
            vec![
                vec!["8.8.8.8", "2606:4700:4700::1111"],
                vec!["127.0.0.1"],
                vec!["8.8.8.8", "10.0.0.1"],
                vec!["2606:4700:4700::1111", "::ffff:169.254.169.254"],
                vec![],
            ],
            AtomicUsize::new(0),
        ));
        let resolver = ForClient(Arc::new(Judged { inner: Arc::clone(&inner) as _, lets_all_pass: false }));
        for turn in 0..100 {
            let answer = resolver.resolve("rebind.example".parse().unwrap()).await;
            if turn % 5 == 0 {
                let sockets: Vec<SocketAddr> = answer.unwrap_or_else(|e| panic!("{e}")).collect();
                assert_eq!(sockets, ["8.8.8.8:0".parse().unwrap(), "[2606:4700:4700::1111]:0".parse().unwrap()]);
            } else {
                assert!(answer.is_err(), "turn {turn} passed");
            }
        }
        assert_eq!(inner.1.load(Ordering::SeqCst), 100, "one question, one answer");
    }
}
