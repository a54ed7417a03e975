//! The places for live runs under a credential that has only so many.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

/// So many runs may be live at once, and those that are live anyway count: a run that an earlier
/// process submitted takes its place whether there is room or not, and nothing new is submitted
/// before there is.
#[derive(Debug)]
pub(crate) struct Places {
    free: Semaphore,
    /// How many more are live than there are places for.
    excess: Mutex<usize>,
}

/// A live run's place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Arc<Places>);

impl Places {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { free: Semaphore::new(limit), excess: Mutex::default() })
    }

    /// Waits for a place; first come, first served.
    pub(crate) async fn take(self: Arc<Self>) -> Place {
        // An error means that it was closed, which nobody does.
        if let Ok(permit) = self.free.acquire().await {
            permit.forget();
        }
        Place(self)
    }

    /// A place for a run that is live already.
    pub(crate) fn count(self: Arc<Self>) -> Place {
        {
            let mut excess = self.excess();
            match self.free.try_acquire() {
                Ok(permit) => permit.forget(),
                Err(_) => *excess += 1,
            }
        }
        Place(self)
    }

    fn excess(&self) -> MutexGuard<'_, usize> {
        self.excess.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut excess = self.0.excess();
        match excess.checked_sub(1) {
            Some(less) => *excess = less,
            None => self.0.free.add_permits(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn who_is_live_anyway_counts_and_nobody_starts_before_there_is_room() {
        let places = Places::new(2);
        let (a, b) = (places.clone().count(), places.clone().take().now_or_never().unwrap());
        let c = places.clone().count();
        let mut next = Box::pin(places.clone().take());
        let mut after = Box::pin(places.clone().take());
        drop(a);
        assert!(next.as_mut().now_or_never().is_none(), "two are live still");
        drop(b);
        assert!(after.as_mut().now_or_never().is_none(), "first come, first served");
        let d = next.as_mut().now_or_never().unwrap();
        drop((c, d));
        drop(after.as_mut().now_or_never().unwrap());
        assert_eq!(places.free.available_permits(), 2);
    }
}
