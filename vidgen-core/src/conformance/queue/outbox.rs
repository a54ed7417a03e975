//! Q17: events and their way to an endpoint.

use std::collections::HashSet;

use super::bench::{Bench, refused, seconds};
use crate::clock::later;
use crate::conformance::sample::{self, tenant};
use crate::{
    Delivery, DeliveryBatch, DeliveryFilter, DeliveryOutcome, DeliveryState, ErrorKind, EventId, Fenced, JobEnd,
    NewEvent, TenantId, Usd, WorkerId,
};

const HOOK: &str = "https://ann.example/hook";

fn later_please(delay: u64) -> DeliveryOutcome {
    DeliveryOutcome::Retry { delay: seconds(delay), reason: "answered 503".into() }
}

fn given_up() -> DeliveryOutcome {
    DeliveryOutcome::GivenUp { reason: "answered 410".into() }
}

/// Ends a job with these events.
async fn tell(bench: &Bench, owner: &TenantId, events: Vec<NewEvent>) -> crate::Job {
    let claimed = bench.running(owner).await;
    let end = JobEnd::Completed(sample::output());
    assert_eq!(bench.settle_with(claimed.claim, end, Usd::ZERO, events).await, Fenced::Applied);
    bench.queue.deregister(claimed.claim.worker).await.unwrap();
    claimed.job
}

async fn take(bench: &Bench, worker: WorkerId, max: usize) -> DeliveryBatch {
    bench.queue.claim_deliveries(worker, max).await.expect("claim deliveries")
}

async fn take_one(bench: &Bench, worker: WorkerId) -> Delivery {
    let mut batch = take(bench, worker, 2).await;
    assert_eq!(batch.deliveries.len(), 1, "exactly one delivery was due");
    batch.deliveries.remove(0)
}

async fn settle(bench: &Bench, delivery: &Delivery, outcome: DeliveryOutcome) -> Fenced {
    bench.queue.settle_delivery(delivery, outcome).await.expect("settle delivery")
}

/// An event arrives as it was written, is delivered, and is then done with.
pub async fn q17_an_event_is_delivered_as_it_was_written(bench: Bench) {
    let owner = tenant("ann");
    let event = sample::event(HOOK);
    let job = tell(&bench, &owner, vec![event.clone()]).await;
    let courier = bench.worker().await;
    let delivery = take_one(&bench, courier).await;
    assert_eq!((&delivery.id, &delivery.kind, &delivery.body), (&event.id, &event.kind, &event.body));
    assert_eq!((delivery.job, &delivery.tenant, delivery.endpoint.as_str()), (job.id, &owner, HOOK));
    assert_eq!((delivery.attempt, delivery.worker), (1, courier));
    assert!(take(&bench, courier, 10).await.deliveries.is_empty(), "it is on its way");
    assert_eq!(settle(&bench, &delivery, DeliveryOutcome::Delivered).await, Fenced::Applied);
    let record = bench.deliveries(&owner).await.remove(0);
    assert_eq!((record.state, record.attempts, record.next_at), (DeliveryState::Delivered, 1, None));
    assert_eq!(bench.queue.stats().await.unwrap().deliveries, 0);
    bench.clock.advance(seconds(20));
    assert!(take(&bench, courier, 10).await.deliveries.is_empty());
}

/// The id makes an event: the same one inserted twice is one event.
pub async fn q17_an_event_is_inserted_once_by_its_id(bench: Bench) {
    let owner = tenant("ann");
    let event = sample::event(HOOK);
    tell(&bench, &owner, vec![event.clone(), event.clone(), sample::event(HOOK)]).await;
    tell(&bench, &owner, vec![event]).await;
    assert_eq!(bench.deliveries(&owner).await.len(), 2);
    assert_eq!(bench.queue.stats().await.unwrap().deliveries, 2);
}

/// A delivery that failed is due again when it said, with its attempts counted and the reason kept.
pub async fn q17_a_failed_delivery_is_due_again_later(bench: Bench) {
    let owner = tenant("ann");
    tell(&bench, &owner, vec![sample::event(HOOK)]).await;
    let courier = bench.worker().await;
    for attempt in 1..=3 {
        let delivery = take_one(&bench, courier).await;
        assert_eq!(delivery.attempt, attempt);
        let now = bench.queue.claim(courier, 0).await.unwrap().now;
        assert_eq!(settle(&bench, &delivery, later_please(15)).await, Fenced::Applied);
        let record = bench.deliveries(&owner).await.remove(0);
        assert_eq!((record.state, record.attempts), (DeliveryState::Pending, attempt));
        assert_eq!((record.reason.as_deref(), record.next_at), (Some("answered 503"), Some(later(now, seconds(15)))));
        let batch = take(&bench, courier, 1).await;
        assert!(batch.deliveries.is_empty());
        assert_eq!(batch.next_due, Some(seconds(15)));
        bench.clock.advance(seconds(15));
        bench.beat(courier, &[]).await;
    }
}

/// One that was not attempted is due at once, as the same attempt.
pub async fn q17_a_returned_delivery_counts_no_attempt(bench: Bench) {
    tell(&bench, &tenant("ann"), vec![sample::event(HOOK)]).await;
    let courier = bench.worker().await;
    let first = take_one(&bench, courier).await;
    assert_eq!(settle(&bench, &first, DeliveryOutcome::Returned).await, Fenced::Applied);
    let second = take_one(&bench, courier).await;
    assert_eq!((second.attempt, &second.id), (1, &first.id));
    assert!(second.epoch > first.epoch);
}

/// A delivery that was given up is not due again, and says why.
pub async fn q17_a_given_up_delivery_stays_so(bench: Bench) {
    let owner = tenant("ann");
    tell(&bench, &owner, vec![sample::event(HOOK)]).await;
    let courier = bench.worker().await;
    let delivery = take_one(&bench, courier).await;
    assert_eq!(settle(&bench, &delivery, given_up()).await, Fenced::Applied);
    let record = bench.deliveries(&owner).await.remove(0);
    assert_eq!((record.state, record.reason.as_deref()), (DeliveryState::GivenUp, Some("answered 410")));
    assert_eq!(bench.queue.stats().await.unwrap().deliveries, 0);
    assert!(take(&bench, courier, 1).await.deliveries.is_empty());
}

/// A settle that is repeated is `Already`; one of an earlier claim is `Stale`.
pub async fn q17_a_delivery_is_fenced_like_a_claim(bench: Bench) {
    let owner = tenant("ann");
    tell(&bench, &owner, vec![sample::event(HOOK)]).await;
    let courier = bench.worker().await;
    let first = take_one(&bench, courier).await;
    for expected in [Fenced::Applied, Fenced::Already, Fenced::Already] {
        assert_eq!(settle(&bench, &first, later_please(0)).await, expected);
    }
    assert_eq!(bench.deliveries(&owner).await[0].attempts, 1);
    let second = take_one(&bench, courier).await;
    assert_eq!(settle(&bench, &first, DeliveryOutcome::Delivered).await, Fenced::Stale);
    let mut foreign = second.clone();
    foreign.worker = bench.worker().await;
    assert_eq!(settle(&bench, &foreign, DeliveryOutcome::Delivered).await, Fenced::Stale);
    let mut unknown = second.clone();
    unknown.id = EventId::new();
    assert_eq!(settle(&bench, &unknown, DeliveryOutcome::Delivered).await, Fenced::Stale);
    assert_eq!(settle(&bench, &second, DeliveryOutcome::Delivered).await, Fenced::Applied);
    assert_eq!(settle(&bench, &second, DeliveryOutcome::Delivered).await, Fenced::Already);
}

/// Couriers that race take each delivery once.
pub async fn q17_a_delivery_is_claimed_once(bench: Bench) {
    let events = (0..100).map(|n| sample::event(&format!("https://{n}.example/hook"))).collect();
    tell(&bench, &tenant("ann"), events).await;
    let couriers: Vec<_> = (0..8)
        .map(|n| {
            let queue = if n % 2 == 0 { bench.queue.clone() } else { bench.second.clone() };
            tokio::spawn(async move {
                let courier = queue.register("courier").await.unwrap();
                let mut mine = Vec::new();
                loop {
                    let batch = queue.claim_deliveries(courier, 7).await.unwrap();
                    if batch.deliveries.is_empty() {
                        return mine;
                    }
                    mine.extend(batch.deliveries.into_iter().map(|delivery| delivery.id));
                }
            })
        })
        .collect();
    let mut taken = Vec::new();
    for courier in couriers {
        taken.extend(courier.await.unwrap());
    }
    assert_eq!((taken.len(), taken.iter().collect::<HashSet<_>>().len()), (100, 100));
}

/// At most four are on their way to one endpoint; a hung one delays no other.
pub async fn q17_an_endpoint_has_few_deliveries_at_once(bench: Bench) {
    let owner = tenant("ann");
    let mut events: Vec<_> = (0..10).map(|_| sample::event(HOOK)).collect();
    events.push(sample::event("https://bob.example/hook"));
    tell(&bench, &owner, events).await;
    let (courier, other) = (bench.worker().await, bench.worker().await);
    let first = take(&bench, courier, 100).await.deliveries;
    let to_hook = |deliveries: &[Delivery]| deliveries.iter().filter(|d| d.endpoint == HOOK).count();
    assert_eq!((first.len(), to_hook(&first)), (crate::MAX_PER_ENDPOINT + 1, crate::MAX_PER_ENDPOINT));
    assert!(take(&bench, other, 100).await.deliveries.is_empty(), "the cap is the endpoint's, not the courier's");
    let ended = first.iter().filter(|d| d.endpoint == HOOK).zip([DeliveryOutcome::Delivered, given_up()]);
    for (delivery, outcome) in ended {
        settle(&bench, delivery, outcome).await;
    }
    assert_eq!(take(&bench, other, 100).await.deliveries.len(), 2);
}

/// However many wait for a hung endpoint, one for another endpoint is found behind them.
pub async fn q17_a_hung_endpoint_delays_no_other(bench: Bench) {
    let owner = tenant("ann");
    for _ in 0..2 {
        tell(&bench, &owner, (0..crate::MAX_BATCH / 2 + 50).map(|_| sample::event(HOOK)).collect()).await;
    }
    let courier = bench.worker().await;
    assert_eq!(take(&bench, courier, 10).await.deliveries.len(), crate::MAX_PER_ENDPOINT);
    bench.clock.advance(seconds(1));
    tell(&bench, &owner, vec![sample::event("https://bob.example/hook")]).await;
    assert_eq!(take_one(&bench, courier).await.endpoint, "https://bob.example/hook");
}

/// A dead courier's deliveries are due again; it may have delivered them, so nothing is counted.
pub async fn q17_a_dead_couriers_deliveries_are_rescued(bench: Bench) {
    let owner = tenant("ann");
    tell(&bench, &owner, (0..4).map(|_| sample::event(HOOK)).collect()).await;
    let dead = bench.worker().await;
    let lost = take(&bench, dead, 10).await.deliveries;
    assert_eq!(lost.len(), 4);
    assert_eq!(bench.all_workers_die().await, 4);
    assert_eq!(settle(&bench, &lost[0], DeliveryOutcome::Delivered).await, Fenced::Stale);
    let leaving = bench.worker().await;
    let again = take(&bench, leaving, 10).await.deliveries;
    assert_eq!(again.len(), 4, "the endpoint's slots are free, too");
    assert!(again.iter().all(|delivery| delivery.attempt == 1));
    bench.queue.deregister(leaving).await.unwrap();
    assert_eq!(take(&bench, bench.worker().await, 10).await.deliveries.len(), 4);
}

/// An event that was delivered or given up can be told again, from its first attempt.
pub async fn q17_an_event_can_be_told_again(bench: Bench) {
    let owner = tenant("ann");
    let event = sample::event(HOOK);
    tell(&bench, &owner, vec![event.clone()]).await;
    let courier = bench.worker().await;
    for outcome in [DeliveryOutcome::Delivered, given_up(), later_please(3600)] {
        let delivery = take_one(&bench, courier).await;
        assert_eq!(delivery.attempt, 1);
        assert_eq!(delivery.body, event.body);
        settle(&bench, &delivery, outcome).await;
        bench.queue.redeliver(&owner, &event.id).await.unwrap();
        let record = bench.deliveries(&owner).await.remove(0);
        assert_eq!((record.state, record.attempts), (DeliveryState::Pending, 0));
        assert_eq!(bench.queue.stats().await.unwrap().deliveries, 1);
    }
    let on_its_way = take_one(&bench, courier).await;
    bench.queue.redeliver(&owner, &event.id).await.unwrap();
    assert!(take(&bench, courier, 1).await.deliveries.is_empty(), "not twice at once");
    assert_eq!(settle(&bench, &on_its_way, DeliveryOutcome::Delivered).await, Fenced::Applied);
    assert_eq!(refused(bench.queue.redeliver(&owner, &EventId::new()).await), ErrorKind::NotFound);
}

/// The delivery log is newest first, and one job's if asked.
pub async fn q17_the_log_is_newest_first(bench: Bench) {
    let owner = tenant("ann");
    let mut told = Vec::new();
    let mut last = None;
    for _ in 0..5 {
        let event = sample::event(HOOK);
        told.insert(0, event.id.clone());
        last = Some(tell(&bench, &owner, vec![event]).await.id);
        bench.clock.advance(seconds(1));
    }
    let ids: Vec<_> = bench.deliveries(&owner).await.into_iter().map(|record| record.id).collect();
    assert_eq!(ids, told);
    let page = bench.queue.deliveries(&owner, &DeliveryFilter { job: None, limit: 2 }).await.unwrap();
    assert_eq!((page.items.len(), page.more, &page.items[0].id), (2, true, &told[0]));
    let page = bench.queue.deliveries(&owner, &DeliveryFilter { job: last, limit: 2 }).await.unwrap();
    assert_eq!((page.items.len(), page.more, &page.items[0].id), (1, false, &told[0]));
}

/// An event of a job whose record was deleted is delivered all the same.
pub async fn q17_an_event_outlives_its_job(bench: Bench) {
    let owner = tenant("ann");
    let job = tell(&bench, &owner, vec![sample::event(HOOK)]).await;
    bench.queue.delete(&owner, job.id).await.unwrap();
    let courier = bench.worker().await;
    let delivery = take_one(&bench, courier).await;
    assert_eq!(settle(&bench, &delivery, later_please(0)).await, Fenced::Applied);
    let delivery = take_one(&bench, courier).await;
    assert_eq!((delivery.attempt, delivery.job), (2, job.id));
    assert_eq!(settle(&bench, &delivery, DeliveryOutcome::Delivered).await, Fenced::Applied);
    assert_eq!(bench.queue.stats().await.unwrap().deliveries, 0);
}
