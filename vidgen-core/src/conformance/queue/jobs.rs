//! Q13 and Q15: records of steps, and whose jobs they are.

use super::bench::{Bench, refused, seconds};
use crate::conformance::sample::{self, tenant};
use crate::{
    Checkpoint, DeliveryFilter, ErrorKind, Fenced, JobEnd, JobFilter, JobState, Limits, StepKind, StepRecord, Usd,
    Verdict,
};

async fn try_write(bench: &Bench, claim: crate::Claim, record: StepRecord) -> Result<Fenced, ErrorKind> {
    let checkpoint = Checkpoint { claim, record, costs: vec![sample::cost(StepKind::Image, 9)], progress: 50 };
    bench.queue.checkpoint(checkpoint).await.map(|ack| ack.fenced).map_err(|error| error.kind())
}

/// A record goes on by one; an older one, one that skips, or another of the same revision is a
/// conflict that writes nothing.
pub async fn q13_a_step_never_goes_back(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    let (claim, job) = (claimed.claim, claimed.claim.job);
    assert_eq!(try_write(&bench, claim, sample::intent(job, StepKind::Image, 2)).await, Err(ErrorKind::Conflict));
    bench.write(claim, sample::intent(job, StepKind::Image, 1), vec![]).await;
    bench.write(claim, sample::accepted(job, StepKind::Image, 2), vec![]).await;
    let before = bench.get(&claimed.job).await;
    let broken = [
        sample::intent(job, StepKind::Image, 1),
        sample::intent(job, StepKind::Image, 2),
        sample::done(StepKind::Image, 4),
        sample::done(StepKind::Video, 2),
    ];
    for record in broken {
        assert_eq!(try_write(&bench, claim, record).await, Err(ErrorKind::Conflict));
    }
    assert_eq!(bench.get(&claimed.job).await, before);
    assert_eq!(bench.usage(&claimed.job.tenant).await.cost, Usd::ZERO);
    bench.write(claim, sample::done(StepKind::Image, 3), vec![]).await;
    assert_eq!(try_write(&bench, claim, sample::intent(job, StepKind::Image, 4)).await, Err(ErrorKind::Conflict));
}

/// Records stand in the order of the plan, and every claim finds them.
pub async fn q13_records_stand_in_the_order_of_the_plan(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    for step in [StepKind::Video, StepKind::Image] {
        bench.write(claimed.claim, sample::done(step, 1), vec![]).await;
    }
    let steps = vec![sample::done(StepKind::Image, 1), sample::done(StepKind::Video, 1)];
    assert_eq!(bench.get(&claimed.job).await.steps, steps);
    bench.release(claimed.claim, seconds(0), false).await;
    assert_eq!(bench.claim_one(claimed.claim.worker).await.job.steps, steps);
    assert_eq!(bench.list(&claimed.job.tenant).await[0].steps, steps);
}

/// Progress never falls, and is 100 only when the job is completed.
pub async fn q13_progress_never_falls(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    let mut claim = claimed.claim;
    let report = async |claim, revision, progress| {
        let record =
            sample::record(StepKind::Image, revision, crate::StepState::Waiting { not_before: super::start() });
        bench.queue.checkpoint(Checkpoint { claim, record, costs: vec![], progress }).await.unwrap();
        bench.get(&claimed.job).await.progress
    };
    assert_eq!(report(claim, 1, 40).await, 40);
    assert_eq!(report(claim, 2, 10).await, 40);
    bench.release(claim, seconds(0), true).await;
    claim = bench.claim_one(claim.worker).await.claim;
    assert_eq!(report(claim, 3, 5).await, 40);
    assert_eq!(report(claim, 4, 255).await, 99);
    bench.fail(claim).await;
    assert_eq!(bench.get(&claimed.job).await.progress, 99);
    bench.queue.retry(&claimed.job.tenant, claim.job, sample::HOLD, &Limits::default()).await.unwrap();
    claim = bench.claim_one(claim.worker).await.claim;
    bench.complete(claim).await;
    assert_eq!(bench.get(&claimed.job).await.progress, 100);
}

/// The version rises by one with each change that a user can see, and with nothing else.
pub async fn q13_the_version_counts_visible_changes(bench: Bench) {
    let owner = tenant("ann");
    let job = bench.job(&owner).await;
    assert_eq!(job.version, 1);
    let worker = bench.worker().await;
    let claim = bench.claim_one(worker).await.claim;
    let version = async || bench.get(&job).await.version;
    assert_eq!(version().await, 2, "claimed");
    bench.write(claim, sample::done(StepKind::Image, 1), vec![]).await;
    bench.write(claim, sample::done(StepKind::Image, 1), vec![]).await;
    assert_eq!(version().await, 3, "one checkpoint");
    bench.queue.wake(job.id).await.unwrap();
    bench.beat(worker, &[claim]).await;
    assert_eq!(version().await, 3, "nothing to see");
    bench.release(claim, seconds(5), false).await;
    assert_eq!(version().await, 4, "released");
    bench.clock.advance(seconds(5));
    let claim = bench.claim_one(worker).await.claim;
    bench.queue.cancel(&owner, job.id, None).await.unwrap();
    bench.queue.cancel(&owner, job.id, None).await.unwrap();
    assert_eq!(version().await, 6, "claimed, and its end asked for");
    bench.settle(claim, JobEnd::Canceled).await;
    bench.settle(claim, JobEnd::Canceled).await;
    assert_eq!(version().await, 7, "canceled");
}

/// Another tenant's job is not there, whatever is asked of it.
pub async fn q15_another_tenants_job_is_not_found(bench: Bench) {
    let (owner, thief) = (tenant("ann"), tenant("thief"));
    let claimed = bench.running(&owner).await;
    let event = sample::event("https://ann.example/hook");
    let failed = JobEnd::Failed(sample::failure());
    bench.write(claimed.claim, sample::in_doubt(claimed.claim.job, StepKind::Image, 1), vec![]).await;
    bench.settle_with(claimed.claim, failed, sample::IMAGE_PRICE, vec![event.clone()]).await;
    let job = bench.get(&claimed.job).await;
    let (queue, id) = (&bench.queue, job.id);
    let answers = [
        refused(queue.get(&thief, id).await),
        refused(queue.cancel(&thief, id, None).await),
        refused(queue.retry(&thief, id, Usd::ZERO, &Limits::default()).await),
        refused(queue.resolve(&thief, id, Verdict::Bought).await),
        refused(queue.delete(&thief, id).await),
        refused(queue.watch(&thief, id, 0, seconds(1)).await),
        refused(queue.redeliver(&thief, &event.id).await),
    ];
    assert_eq!(answers, [ErrorKind::NotFound; 7]);
    let nobody = crate::JobId::new();
    let unknown = queue.get(&owner, nobody).await.unwrap_err();
    let foreign = queue.get(&thief, id).await.unwrap_err();
    assert_eq!(unknown.to_string(), foreign.to_string(), "the two are not told apart");
    assert!(bench.list(&thief).await.is_empty() && bench.deliveries(&thief).await.is_empty());
    let filter = DeliveryFilter { job: Some(id), limit: 10 };
    assert!(queue.deliveries(&thief, &filter).await.unwrap().items.is_empty());
    assert_eq!(bench.usage(&thief).await, crate::UsageReport::default());
    assert_eq!(bench.get(&job).await, job);
}

/// A list has the tenant's own jobs, newest first, page by page without gap or repeat.
pub async fn q15_a_list_is_the_tenants_own_newest_first(bench: Bench) {
    let owner = tenant("ann");
    let mut ids = bench.jobs(&owner, 25).await;
    bench.jobs(&tenant("bob"), 3).await;
    ids.reverse();
    let mut seen = Vec::new();
    let mut filter = JobFilter { limit: 10, ..JobFilter::default() };
    loop {
        let page = bench.queue.list(&owner, &filter).await.unwrap();
        filter.before = page.items.last().map(|job| job.id);
        seen.extend(page.items.iter().map(|job| job.id));
        // A job created meanwhile is before all pages.
        bench.job(&owner).await;
        if !page.more {
            break;
        }
        assert_eq!(page.items.len(), 10);
    }
    assert_eq!(seen, ids);

    let claimed = bench.claim(bench.worker().await, 3).await;
    let mut running: Vec<_> = claimed.iter().map(|c| c.claim.job).filter(|id| ids.contains(id)).collect();
    running.sort_unstable();
    running.reverse();
    let filter = JobFilter { state: Some(JobState::Processing), limit: 100, ..JobFilter::default() };
    let page = bench.queue.list(&owner, &filter).await.unwrap();
    assert_eq!(page.items.iter().map(|job| job.id).collect::<Vec<_>>(), running);
    assert!(!page.more);
    for limit in [0, 1] {
        let page = bench.queue.list(&owner, &JobFilter { limit, ..JobFilter::default() }).await.unwrap();
        assert_eq!((page.items.len(), page.more), (1, true), "a page has at least one");
    }
}
