//! The end of a run that its handle carries, where nobody can be asked for it again.

use std::fmt;

use serde_json::{Map, Value};

use crate::provider::{Handle, Snapshot};

/// Where in a handle's detail the end stands. Queues read it, too (rule Q19 of
/// [`Queue`](crate::Queue)).
const END: &str = "end";

impl Handle {
    /// The handle with the end of its run, for providers that tell of it once and cannot be asked
    /// ([`Capabilities::only_callback`](crate::Capabilities::only_callback)). A run that goes on
    /// has none, and leaves the handle as it is.
    ///
    /// The outputs go with it, links and all: such a handle is not to be logged as JSON.
    #[must_use]
    pub fn with_end(mut self, end: &Snapshot) -> Self {
        let Some(end) = serde_json::to_value(end).ok().filter(|_| end.state.is_end()) else { return self };
        if !self.detail.is_object() {
            self.detail = Value::Object(Map::new());
        }
        if let Some(detail) = self.detail.as_object_mut() {
            detail.insert(END.to_owned(), end);
        }
        self
    }

    /// The end that [`Handle::with_end`] put there.
    #[must_use]
    pub fn end(&self) -> Option<Snapshot> {
        serde_json::from_value(self.detail.get(END)?.clone()).ok()
    }

    /// Whether there is one.
    #[must_use]
    pub fn has_end(&self) -> bool {
        self.detail.get(END).is_some_and(|end| !end.is_null())
    }
}

/// Without the end, whose outputs may be signed links.
impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut detail = self.detail.clone();
        if let Some(end) = detail.get_mut(END) {
            *end = Value::String("…".to_owned());
        }
        f.debug_struct("Handle")
            .field("provider", &self.provider)
            .field("remote_id", &self.remote_id)
            .field("detail", &detail)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::error::ErrorKind;
    use crate::money::Usage;
    use crate::provider::{Output, RunFailure, RunState};

    #[test]
    fn an_end_survives_json_and_is_not_printed() {
        let usage = Usage::Compute(Duration::from_millis(1500));
        let end = Snapshot::succeeded(vec![Output::new("https://x.example/a.mp4?signed")]).with_usage(usage);
        let handle = Handle::new("acme".into(), "run-1").with_detail(json!({ "region": "eu" })).with_end(&end);
        let said = format!("{handle:?}");
        assert!(said.contains("eu") && !said.contains("signed"), "{said}");
        let back: Handle = serde_json::from_str(&serde_json::to_string(&handle).unwrap()).unwrap();
        assert!(back == handle && back.has_end());
        let seen = back.end().unwrap();
        assert_eq!(seen.usage, Some(usage));
        assert!(matches!(seen.state, RunState::Succeeded(outputs) if outputs[0].locator.ends_with("?signed")));
    }

    #[test]
    fn what_goes_on_has_no_end() {
        let handle = Handle::new("acme".into(), "run-1");
        assert_eq!(handle.clone().with_end(&Snapshot::running(Some(0.5))), handle);
        assert!(!handle.has_end() && handle.end().is_none());
        let failed = Snapshot::failed(RunFailure::new(ErrorKind::Unavailable, "no memory").with_bill());
        let end = handle.with_end(&failed).end().unwrap();
        assert!(matches!(end.state, RunState::Failed(failure) if failure.billed && failure.reason == "no memory"));
    }
}
