//! Q19: what callbacks told.

use super::bench::{Bench, seconds};
use crate::conformance::sample::{self, tenant};
use crate::job::submission_id;
use crate::{Handle, JobId, Snapshot, StepKind, Witness};

fn witness(job: JobId, ordinal: u32, run: &str) -> Witness {
    let handle = Handle::new(sample::provider(), run).with_detail(serde_json::json!({"said": run}));
    Witness { job, submission: submission_id(job, StepKind::Image, ordinal), handle }
}

/// A witness is there for whoever looks next, and makes a waiting job ready; a running one's worker
/// is told.
pub async fn q19_a_witness_is_kept_and_wakes_its_job(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    let (worker, job) = (claimed.claim.worker, claimed.claim.job);
    bench.write(claimed.claim, sample::intent(job, StepKind::Image, 1), vec![]).await;
    let told = witness(job, 1, "run-1");
    bench.second.witness(told.clone()).await.unwrap();
    assert_eq!(bench.beat(worker, &[claimed.claim]).await.wakes, [job]);
    let seen = bench.get(&claimed.job).await;
    assert_eq!(seen.witness(&told.submission), Some(&told.handle));
    bench.release(claimed.claim, seconds(3600), false).await;
    assert!(bench.claim(worker, 1).await.is_empty());
    bench.queue.witness(witness(job, 2, "run-2")).await.unwrap();
    let again = bench.claim_one(worker).await;
    assert_eq!(again.job.witnesses.len(), 2, "whoever claims it is told");
}

/// A second word about a submission replaces the first one, and no other submission's.
pub async fn q19_the_last_witness_of_a_submission_counts(bench: Bench) {
    let job = bench.job(&tenant("ann")).await;
    let other = bench.job(&tenant("ann")).await;
    for told in [witness(job.id, 1, "run-1"), witness(job.id, 2, "run-2"), witness(other.id, 1, "run-3")] {
        bench.queue.witness(told).await.unwrap();
    }
    let last = witness(job.id, 1, "run-1, again");
    bench.second.witness(last.clone()).await.unwrap();
    let seen = bench.get(&job).await;
    assert_eq!(seen.witnesses.len(), 2);
    assert_eq!(seen.witness(&last.submission), Some(&last.handle));
    assert_eq!(bench.get(&other).await.witnesses, [witness(other.id, 1, "run-3")]);
}

/// Callbacks overtake one another: one that tells of an end is not replaced by an earlier one that
/// comes later, nor by another end.
pub async fn q19_a_witness_of_an_end_stays(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    let (worker, job) = (claimed.claim.worker, claimed.claim.job);
    let (early, other) = (witness(job, 1, "begun"), witness(job, 2, "begun"));
    let ended = |told: &Witness, end| Witness { handle: told.handle.clone().with_end(&end), ..told.clone() };
    let end = ended(&early, Snapshot::succeeded(vec![]));
    for told in [&early, &end, &early, &ended(&early, Snapshot::canceled()), &other] {
        bench.queue.witness(told.clone()).await.unwrap();
    }
    let seen = bench.get(&claimed.job).await;
    assert_eq!(seen.witness(&early.submission), Some(&end.handle));
    assert_eq!(seen.witness(&other.submission), Some(&other.handle), "and no other submission's is held up");
    bench.beat(worker, &[claimed.claim]).await;
    bench.second.witness(early).await.unwrap();
    assert_eq!(bench.beat(worker, &[claimed.claim]).await.wakes, [job], "woken all the same");
}

/// It touches neither state nor version nor money, also of a job that ended; and one of a job that
/// is not there is forgotten.
pub async fn q19_a_late_witness_changes_nothing_else(bench: Bench) {
    let claimed = bench.running(&tenant("ann")).await;
    bench.complete(claimed.claim).await;
    let mut ended = bench.get(&claimed.job).await;
    let told = witness(ended.id, 1, "run-1");
    bench.queue.witness(told.clone()).await.unwrap();
    ended.hear(told);
    assert_eq!(bench.get(&claimed.job).await, ended);
    bench.queue.witness(witness(JobId::new(), 1, "nobody's")).await.unwrap();
}
