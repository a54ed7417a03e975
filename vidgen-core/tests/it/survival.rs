//! What must be neither bought twice nor lost when providers, queues and clocks misbehave at the
//! worst moment.

use std::time::Duration;

use vidgen_core::memory::{Scene, ScriptedProvider};
use vidgen_core::*;

use crate::pipeline::world;

fn bought(provider: &ScriptedProvider, step: StepKind) -> usize {
    provider.accepted().iter().filter(|s| s.as_str().contains(step.as_str())).count()
}

#[tokio::test(start_paused = true)]
async fn a_refused_resend_says_nothing_of_the_submission_whose_answer_was_lost() {
    for kind in [ErrorKind::NotSent, ErrorKind::Unauthorized] {
        let keyed = ScriptedProvider::new("keyed").without_find();
        let keyed = keyed.with_resubmit(Resubmit::Keyed(Duration::from_secs(3600)));
        let spare = ScriptedProvider::new("spare");
        keyed.then(StepKind::Video, Scene::LosesAnswer);
        for _ in 0..5 {
            keyed.then(StepKind::Video, Scene::Rejects(kind));
        }
        let world = world(
            Pipeline::named("default")
                .video(keyed.clone())
                .or(spare.clone())
                .compose(spare.clone())
                .speech(spare.clone()),
        );
        let id = world.create().await;
        let job = world.finish(id).await;
        assert_eq!(job.state, JobState::Completed, "{kind:?}: {:?}", job.failure);
        assert_eq!((bought(&keyed, StepKind::Video), bought(&spare, StepKind::Video)), (1, 0), "{kind:?}");
    }
}
