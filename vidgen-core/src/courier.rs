//! Takes due deliveries from the outbox to the notifier. A failing webhook never touches its job.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::future::FutureExt;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::error::{Error, ErrorKind};
use crate::notifier::{Delivery, Notifier};
use crate::queue::DeliveryOutcome;
use crate::worker::{POLL, Shift};

/// How long a stop waits for deliveries that are on their way.
const STOP_PATIENCE: Duration = Duration::from_secs(1);
/// When each attempt comes after the one before (reliability W4): ten attempts over three days.
const SCHEDULE: [Duration; 9] = [
    Duration::from_secs(5),
    Duration::from_secs(5 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(2 * 3600),
    Duration::from_secs(5 * 3600),
    Duration::from_secs(10 * 3600),
    Duration::from_secs(14 * 3600),
    Duration::from_secs(20 * 3600),
    Duration::from_secs(24 * 3600),
];
/// The wait before the outcome of a delivery is written again to a queue that is away.
const RECORD_AGAIN: Duration = Duration::from_secs(1);
/// No receiver makes us wait longer than this.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);
/// No receiver makes us come back sooner than this.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);

/// The wait after the `attempt`-th attempt failed, ±10 % by `jitter` (0 to 255); `None` after the last.
fn wait_after(attempt: u32, asked: Option<Duration>, jitter: u8) -> Option<Duration> {
    let usual = *SCHEDULE.get(usize::try_from(attempt.saturating_sub(1)).ok()?)?;
    if let Some(asked) = asked {
        return Some(asked.clamp(SHORTEST_WAIT, LONGEST_WAIT));
    }
    Some(usual * 9 / 10 + usual * u32::from(jitter) / (5 * 255))
}

/// What follows from an attempt.
fn outcome(delivery: &Delivery, answer: Result<(), Error>) -> DeliveryOutcome {
    let Err(error) = answer else { return DeliveryOutcome::Delivered };
    let reason = error.message().to_owned();
    let never =
        matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Refused | ErrorKind::NotFound | ErrorKind::Unauthorized);
    let [jitter, ..] = *uuid::Uuid::new_v4().as_bytes();
    match wait_after(delivery.attempt, error.retry_after(), jitter).filter(|_| !never) {
        Some(delay) => DeliveryOutcome::Retry { delay, reason },
        None => DeliveryOutcome::GivenUp { reason },
    }
}

/// Delivers until the worker stops; what is on its way then is handed back.
pub(crate) async fn run(shift: Arc<Shift>, at_once: usize, mut stopped: watch::Receiver<bool>) {
    let Some(notifier) = shift.inner.notifier.clone() else { return };
    let mut over = shift.over.subscribe();
    let mut on_their_way: JoinSet<()> = JoinSet::new();
    loop {
        if *stopped.borrow_and_update() || *over.borrow_and_update() {
            // What is not done soon is dropped, and due again when the lease ends: at least once.
            let done = async { while on_their_way.join_next().await.is_some() {} };
            tokio::select! {
                () = done => {}
                () = shift.inner.clock.sleep(STOP_PATIENCE) => {}
            }
            return;
        }
        while on_their_way.try_join_next().is_some() {}
        let free = at_once.saturating_sub(on_their_way.len());
        let mut wait = POLL;
        if free > 0 {
            match shift.inner.queue.claim_deliveries(shift.worker, free).await {
                Ok(batch) => {
                    wait = wait.min(batch.next_due.unwrap_or(wait));
                    for delivery in batch.deliveries {
                        on_their_way.spawn(deliver(shift.clone(), notifier.clone(), delivery));
                    }
                }
                Err(error) => tracing::warn!(%error, "claiming deliveries"),
            }
        }
        tokio::select! {
            () = shift.inner.queue.signalled() => {}
            () = shift.inner.clock.sleep(wait) => {}
            Some(_) = on_their_way.join_next(), if !on_their_way.is_empty() => {}
            _ = stopped.changed() => {}
            _ = over.changed() => {}
        }
    }
}

async fn deliver(shift: Arc<Shift>, notifier: Arc<dyn Notifier>, delivery: Delivery) {
    // One that panicked may not do so later; unrecorded, the delivery would be nobody's.
    let answer = AssertUnwindSafe(notifier.notify(&delivery)).catch_unwind().await;
    let answer = answer.unwrap_or_else(|_| Err(Error::internal("courier", "the notifier panicked")));
    let outcome = outcome(&delivery, answer);
    match &outcome {
        DeliveryOutcome::Delivered => tracing::info!(event = %delivery.id, job = %delivery.job, "delivered"),
        other => {
            tracing::warn!(event = %delivery.id, job = %delivery.job, attempt = delivery.attempt, ?other, "not delivered")
        }
    }
    // As long as it is not recorded it is this worker's: nobody else delivers it, and it takes one of
    // its endpoint's few places. Once the lease is over, it is delivered again: at least once.
    let mut over = shift.over.subscribe();
    while let Err(error) = shift.inner.queue.settle_delivery(&delivery, outcome.clone()).await {
        tracing::warn!(event = %delivery.id, %error, "recording a delivery");
        tokio::select! {
            () = shift.inner.clock.sleep(RECORD_AGAIN) => {}
            _ = over.wait_for(|over| *over) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_attempts_over_three_days_each_within_a_tenth() {
        for (n, usual) in SCHEDULE.iter().enumerate() {
            let attempt = u32::try_from(n).unwrap() + 1;
            assert_eq!(wait_after(attempt, None, 0), Some(*usual * 9 / 10));
            let late = wait_after(attempt, None, 255).unwrap();
            assert!(late >= *usual && late <= *usual * 11 / 10, "{late:?}");
        }
        assert_eq!(wait_after(10, None, 0), None);
    }

    #[test]
    fn a_receiver_may_ask_for_more_time_within_a_day() {
        assert_eq!(wait_after(1, Some(Duration::from_secs(60)), 0), Some(Duration::from_secs(60)));
        assert_eq!(wait_after(1, Some(Duration::ZERO), 0), Some(SHORTEST_WAIT));
        assert_eq!(wait_after(1, Some(Duration::MAX), 0), Some(LONGEST_WAIT));
    }
}
