//! How far a job is, for people. Pure.

use crate::job::{StepKind, StepRecord, StepState};
use crate::pipeline::Plan;

/// What is reached when a job begins.
const BEGUN: f32 = 10.0;

/// What each step adds; the tutorial's marks: 10 image, 25 video, 60 compose, 90 thumbnail.
fn weight(step: StepKind) -> f32 {
    match step {
        StepKind::Image => 15.0,
        StepKind::Video => 35.0,
        StepKind::Compose => 30.0,
        StepKind::Thumbnail => 9.0,
        // It runs beside the others and is waited for by compose.
        StepKind::Speech => 0.0,
    }
}

/// 10 to 99, from the steps that are done and the fractions of those that run. Steps that the
/// plan leaves out count as done.
pub(crate) fn progress(plan: &Plan, records: &[StepRecord], live: impl Fn(StepKind) -> f32) -> u8 {
    let sum: f32 = StepKind::ALL
        .into_iter()
        .map(|step| {
            let record = records.iter().find(|r| r.step == step);
            let fraction = match record.map(|r| &r.state) {
                Some(StepState::Done { .. } | StepState::Skipped { .. }) => 1.0,
                Some(StepState::Accepted { .. }) => live(step).clamp(0.0, 1.0),
                _ if plan.step(step).is_none() => 1.0,
                _ => 0.0,
            };
            weight(step) * fraction
        })
        .sum();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=99")]
    let whole = (BEGUN + sum).clamp(0.0, 99.0) as u8;
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::plan::plan;
    use crate::{JobRequest, Pipeline, memory::ScriptedProvider};

    #[test]
    fn progress_passes_the_tutorials_marks() {
        let studio = ScriptedProvider::new("studio");
        let pipeline = Pipeline::named("p").image(studio.clone()).video(studio.clone()).compose(studio);
        let plan = plan(&JobRequest::new("a cat"), &pipeline.checked().unwrap(), None).unwrap();
        let mut records = Vec::new();
        let mut marks = vec![progress(&plan, &records, |_| 0.0)];
        for step in &plan.steps {
            let state = StepState::Skipped { reason: String::new() };
            records.push(StepRecord { state, ..StepRecord::begun(step.step) });
            marks.push(progress(&plan, &records, |_| 0.0));
        }
        assert_eq!(marks, [10, 25, 60, 90, 99]);
    }
}
