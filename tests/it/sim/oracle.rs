//! What must be true when all is over, judged by the remotes' own ledgers.

use std::collections::BTreeMap;

use vidgen_core::memory::{MemoryQueue, MemoryStore, ScriptedProvider};
use vidgen_core::*;

/// Everything that is wrong with how these jobs ended.
pub(crate) async fn judge(
    queue: &MemoryQueue,
    store: &MemoryStore,
    remotes: &[ScriptedProvider],
    ids: &[JobId],
) -> Vec<String> {
    let mut wrong = vec![];
    let mut jobs = vec![];
    for id in ids {
        jobs.push(queue.get(&TenantId::single(), *id).await.unwrap());
    }
    for remote in remotes.iter().filter(|r| r.capabilities().resubmit != Resubmit::Free) {
        let mut times: BTreeMap<SubmissionId, usize> = BTreeMap::new();
        for submission in remote.accepted() {
            *times.entry(submission).or_default() += 1;
        }
        for (submission, count) in times {
            if count > 1 {
                wrong.push(format!("M1: {submission} was accepted {count} times by {}", remote.id()));
            }
            let job = jobs.iter().find(|job| submission.job() == Some(job.id));
            if !job.is_some_and(|job| accounts_for(job, &submission)) {
                wrong.push(format!("{submission} was accepted by {} and nothing accounts for it", remote.id()));
            }
        }
    }
    for job in &jobs {
        wrong.extend(judge_job(store, remotes, job).await);
    }
    let usage = queue.usage(&TenantId::single(), &UsageFilter::default()).await.unwrap();
    let sum = |of: fn(&Job) -> Usd| jobs.iter().map(of).sum::<Usd>();
    for (what, report, sum) in [
        ("cost", usage.cost, sum(|j| j.cost)),
        ("charge", usage.charged, sum(Job::charge)),
        ("hold", usage.held, sum(|j| j.held)),
        ("rows", usage.rows.iter().map(|r| r.cost).sum(), usage.cost),
    ] {
        if report != sum {
            wrong.push(format!("the {what} of the report is {report}, of the jobs {sum}"));
        }
    }
    wrong
}

/// Whether a job has the output or the cost of what a remote accepted, or doubts it and keeps the hold.
fn accounts_for(job: &Job, submission: &SubmissionId) -> bool {
    job.steps.iter().any(|step| {
        let noted = step.attempts.iter().any(|a| a.submission == *submission && a.accepted);
        let now = match &step.state {
            StepState::Done { media, .. } => bought_as(job, step.step, media) == Some(submission.clone()),
            StepState::InDoubt { submission: open } => open.id == *submission && job.held >= open.hold,
            _ => false,
        };
        noted || now
    })
}

/// The submission that a media key tells of: `…/video-2-7.mp4` was bought as the second one.
fn bought_as(job: &Job, step: StepKind, media: &MediaInfo) -> Option<SubmissionId> {
    let name = media.key.as_str().rsplit_once('/')?.1;
    let ordinal = name.strip_prefix(step.as_str())?.strip_prefix('-')?.split('-').next()?.parse().ok()?;
    Some(submission_id(job.id, step, ordinal))
}

async fn judge_job(store: &MemoryStore, remotes: &[ScriptedProvider], job: &Job) -> Vec<String> {
    let mut wrong = vec![];
    let mut say = |what: String| wrong.push(format!("{}: {what}", job.id));
    if !job.state.is_ended() {
        say(format!("is {:?} still", job.state));
    }
    if job.state == JobState::Completed {
        match &job.output {
            Some(output) if store.head(&output.video.key).await.is_ok() => {}
            _ => say("completed, and has no output".into()),
        }
    }
    // Those of a process's own have no books that outlive it.
    let accepted = |provider: &ProviderId, id: &SubmissionId| {
        remotes.iter().find(|r| r.id() == *provider).is_none_or(|r| r.accepted().contains(id))
    };
    let (mut cost, mut doubt) = (Usd::ZERO, Usd::ZERO);
    for step in &job.steps {
        cost += step.attempts.iter().map(|a| a.cost.amount).sum();
        for attempt in step.attempts.iter().filter(|a| a.accepted && a.kind != ErrorKind::OutcomeUnknown) {
            if !accepted(&attempt.provider, &attempt.submission) {
                say(format!("{} is charged for, and nobody accepted it", attempt.submission));
            }
        }
        match &step.state {
            StepState::Done { provider, media, cost: price, .. } => {
                cost += price.amount;
                if bought_as(job, step.step, media).is_none_or(|id| !accepted(provider, &id)) {
                    say(format!("{} was made by nobody", media.key));
                }
            }
            StepState::InDoubt { submission } => doubt += submission.hold,
            StepState::Intent { .. } | StepState::Accepted { .. } => {
                say(format!("ended with step {} open", step.step));
            }
            _ => {}
        }
    }
    if job.cost != cost {
        say(format!("cost {}, its steps {cost}", job.cost));
    }
    if job.held != doubt {
        say(format!("holds {}, {doubt} are in doubt", job.held));
    }
    wrong
}
