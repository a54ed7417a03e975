//! What a provider sends to the URL that a submit gave it.

use std::fmt;

use bytes::Bytes;
use jiff::Timestamp;

/// A call to a callback URL, as it came in. Nothing of it is believed before
/// [`Provider::callback`](crate::Provider::callback) has verified it.
#[derive(Clone)]
#[non_exhaustive]
pub struct Callback {
    headers: Vec<(String, String)>,
    /// The body, byte for byte: signatures are over it.
    pub body: Bytes,
    /// When it came in, by this host's clock: signatures have an age.
    pub received_at: Timestamp,
}

impl Callback {
    /// A call with these headers and this body.
    pub fn new(
        headers: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>,
        body: impl Into<Bytes>,
        received_at: Timestamp,
    ) -> Self {
        let headers = headers.into_iter().map(|(name, value)| (name.into().to_ascii_lowercase(), value.into()));
        Self { headers: headers.collect(), body: body.into(), received_at }
    }

    /// The first header of that name, in whatever case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// Without headers and body: both hold what nobody may read in a log.
impl fmt::Debug for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callback").field("received_at", &self.received_at).finish_non_exhaustive()
    }
}
