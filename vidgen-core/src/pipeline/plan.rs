//! Request × pipeline → steps and quote. Pure: no clock, no network, no queue.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, FieldError, Result};
use crate::job::{StepId, StepKind};
use crate::media::MediaInfo;
use crate::money::{Price, Quote, StepQuote, Usd};
use crate::pipeline::Pipeline;
use crate::provider::{ImageTask, ModelId, ProviderId, Size, SpeechTask, TaskSpec, VideoTask, Wish};
use crate::request::JobRequest;

/// How a job is made: fixed when the job is created, so that a change of the host's pipeline
/// changes no job that was already priced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The pipeline's name.
    pub pipeline: String,
    /// How long the video shall be.
    pub duration: Duration,
    /// How large.
    pub size: Size,
    /// The image to start from, if the request brought one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<MediaInfo>,
    /// The steps, each after those it needs.
    pub steps: Vec<PlannedStep>,
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// Which.
    pub step: StepId,
    /// What must be done before it.
    pub needs: Vec<StepId>,
    /// Who may do it, first choice first; each meets the request's hard limits.
    pub routes: Vec<PlannedRoute>,
    /// Whether the job may complete without it.
    pub optional: bool,
}

/// One way to do a planned step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedRoute {
    /// By whom.
    pub provider: ProviderId,
    /// With which model.
    pub model: ModelId,
    /// How it is billed.
    pub price: Price,
    /// What it costs by that price.
    pub expected: Usd,
    /// How long it usually takes for a video of this length.
    pub typical: Duration,
    /// How long a video is bought of it, if not as long as the plan says: a request that leaves
    /// the length open gets the one nearest to the usual that the model can make.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Duration>,
}

impl Plan {
    /// What is reserved: the dearest route of every step.
    #[must_use]
    pub fn hold(&self) -> Usd {
        self.steps.iter().map(PlannedStep::hold).sum()
    }

    /// One step.
    #[must_use]
    pub fn step(&self, id: StepId) -> Option<&PlannedStep> {
        self.steps.iter().find(|s| s.step == id)
    }

    /// How long the first choices take one after the other, as far as they wait for each other.
    #[must_use]
    pub fn estimated(&self) -> Duration {
        let mut ends: Vec<(StepId, Duration)> = Vec::new();
        for step in &self.steps {
            let ready = |need: &StepId| ends.iter().find(|(id, _)| id == need).map_or(Duration::ZERO, |(_, end)| *end);
            let start = step.needs.iter().map(ready).max().unwrap_or_default();
            let typical = step.routes.first().map_or(Duration::ZERO, |r| r.typical);
            ends.push((step.step, start.saturating_add(typical)));
        }
        ends.into_iter().map(|(_, end)| end).max().unwrap_or_default()
    }

    /// The plan's price and time.
    #[must_use]
    pub fn quote(&self) -> Quote {
        let steps: Vec<StepQuote> = self
            .steps
            .iter()
            .filter_map(|step| {
                let first = step.routes.first()?;
                Some(StepQuote {
                    step: step.step,
                    provider: first.provider.clone(),
                    model: first.model.clone(),
                    hold: step.hold(),
                    expected: first.expected,
                    estimated: first.typical,
                })
            })
            .collect();
        Quote {
            hold: self.hold(),
            expected: steps.iter().map(|s| s.expected).sum(),
            estimated: self.estimated(),
            steps,
        }
    }

    /// The step whose output is the job's video.
    #[must_use]
    pub fn final_video(&self) -> StepId {
        self.step(StepKind::Compose).map_or(StepKind::Video, |s| s.step)
    }
}

impl PlannedStep {
    /// The most that one accepted submission of it can cost.
    #[must_use]
    pub fn hold(&self) -> Usd {
        self.routes.iter().map(|r| r.expected).max().unwrap_or_default()
    }
}

/// Plans a valid request; `image` is what is known of the image it brings.
///
/// # Errors
/// `Invalid`, naming the fields that no route of the pipeline can meet.
pub fn plan(request: &JobRequest, pipeline: &Pipeline, image: Option<MediaInfo>) -> Result<Plan> {
    let duration = request.duration.unwrap_or_else(|| pipeline.default_duration());
    let size = request.size();
    let has_image = image.is_some() || pipeline.find(StepKind::Image).is_some();
    let mut steps: Vec<PlannedStep> = Vec::new();
    let mut bad: Vec<FieldError> = Vec::new();

    for kind in StepKind::ALL {
        let wanted = match kind {
            StepKind::Image => image.is_none(),
            StepKind::Speech => request.spoken().is_some(),
            StepKind::Video | StepKind::Compose | StepKind::Thumbnail => true,
        };
        if !wanted {
            continue;
        }
        let Some(step) = pipeline.find(kind) else {
            if kind == StepKind::Speech {
                bad.push(FieldError::new("script", format!("pipeline {:?} cannot speak", pipeline.name())));
            }
            continue;
        };
        let wish = Wish {
            aspect_ratio: request.aspect_ratio,
            resolution: request.resolution,
            size,
            duration: request.duration,
            has_image,
            brought_image: image.is_some() || request.image_url.is_some(),
            text: match kind {
                StepKind::Speech => ("script", request.spoken().unwrap_or_default()),
                _ => ("prompt", &request.prompt),
            },
        };
        let mut routes = Vec::new();
        let mut unmet = Vec::new();
        for route in &step.routes {
            let model = route.resolve(kind)?;
            if let Some(problem) = model.unmet(&wish) {
                unmet.push(problem);
                continue;
            }
            let bought = if kind == StepKind::Video { model.lengths.nearest(duration) } else { duration };
            let spec = priced_task(kind, request, size, bought);
            routes.push(PlannedRoute {
                provider: route.provider.id(),
                model: model.id.clone(),
                price: model.price,
                expected: spec.as_ref().map_or_else(|| model.price.flat(), |spec| model.price.of(spec)),
                typical: model.typical_for(bought),
                duration: (bought != duration).then_some(bought),
            });
        }
        if routes.is_empty() {
            bad.extend(unmet.into_iter().take(1));
        }
        let planned = |kind: StepKind| steps.iter().any(|s: &PlannedStep| s.step == kind);
        let needs: Vec<StepId> = match kind {
            StepKind::Image | StepKind::Speech => vec![],
            StepKind::Video => vec![StepKind::Image],
            StepKind::Compose => vec![StepKind::Video, StepKind::Speech],
            StepKind::Thumbnail if planned(StepKind::Compose) => vec![StepKind::Compose],
            StepKind::Thumbnail => vec![StepKind::Video],
        };
        let needs = needs.into_iter().filter(|need| planned(*need)).collect();
        steps.push(PlannedStep { step: kind, needs, routes, optional: step.optional });
    }
    if !bad.is_empty() {
        return Err(Error::invalid(bad));
    }
    Ok(Plan { pipeline: pipeline.name().into(), duration, size, image, steps })
}

/// The part of the task that a price depends on; compose and thumbnail have flat prices.
fn priced_task(kind: StepKind, request: &JobRequest, size: Size, duration: Duration) -> Option<TaskSpec> {
    match kind {
        StepKind::Image => Some(TaskSpec::Image(ImageTask {
            prompt: String::new(),
            negative_prompt: None,
            style: None,
            size,
            seed: None,
        })),
        StepKind::Video => Some(TaskSpec::Video(VideoTask {
            prompt: String::new(),
            negative_prompt: None,
            style: None,
            image: None,
            size,
            duration,
            fps: request.fps,
            seed: None,
        })),
        StepKind::Speech => {
            Some(TaskSpec::Speech(SpeechTask { text: request.spoken().unwrap_or_default().into(), voice: None }))
        }
        StepKind::Compose | StepKind::Thumbnail => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::media::{ContentInfo, MediaKey, MediaType};
    use crate::memory::ScriptedProvider;
    use crate::pipeline::Route;
    use crate::provider::Model;

    fn model(kind: StepKind, cents: i64, seconds: u64) -> Model {
        Model::new(format!("m/{kind}"), kind, Price::PerRun(Usd::from_cents(cents)))
            .with_typical(Duration::from_secs(seconds))
    }

    fn provider(name: &str, models: Vec<Model>) -> ScriptedProvider {
        ScriptedProvider::new(name).with_models(models)
    }

    fn studio() -> ScriptedProvider {
        let seconds = [10, 60, 20, 5, 1];
        let models = StepKind::ALL.into_iter().zip(seconds).map(|(kind, s)| model(kind, 10, s)).collect();
        provider("studio", models)
    }

    fn planned(request: &JobRequest, pipeline: Pipeline) -> Result<Plan> {
        plan(request, &pipeline.checked().unwrap(), None)
    }

    fn everything() -> Pipeline {
        Pipeline::named("p").image(studio()).video(studio()).speech(studio()).compose(studio())
    }

    fn bad_fields(result: Result<Plan>) -> Vec<String> {
        result.unwrap_err().fields().iter().map(|f| f.field.clone()).collect()
    }

    #[test]
    fn steps_come_after_what_they_need_and_compose_brings_the_thumbnail() {
        let plan = planned(&JobRequest::new("a cat").with_script("meow"), everything()).unwrap();
        let steps: Vec<_> = plan.steps.iter().map(|s| (s.step, s.needs.clone())).collect();
        use StepKind::{Compose, Image, Speech, Thumbnail, Video};
        assert_eq!(
            steps,
            [
                (Image, vec![]),
                (Video, vec![Image]),
                (Speech, vec![]),
                (Compose, vec![Video, Speech]),
                (Thumbnail, vec![Compose]),
            ]
        );
        assert_eq!(plan.final_video(), Compose);
        // Speech does not wait for the video: 10 + 60 + 5 + 1.
        assert_eq!(plan.estimated(), Duration::from_secs(76));
    }

    #[test]
    fn a_longer_video_takes_longer() {
        let slow = |kind, s, millis| model(kind, 1, s).with_typical_per_second(Duration::from_millis(millis));
        let studio = provider("p", vec![slow(StepKind::Video, 2, 1500), slow(StepKind::Compose, 1, 100)]);
        let asked = |seconds: f64, pipeline: Pipeline| {
            let request = JobRequest::new("a cat").with_duration(Duration::from_secs_f64(seconds));
            planned(&request, pipeline).unwrap().quote()
        };
        let both = || Pipeline::named("p").video(studio.clone()).compose(studio.clone());
        assert_eq!(asked(2.5, both()).estimated, Duration::from_millis(2000 + 3750 + 1000 + 250));
        let long = asked(50.0, both());
        assert_eq!(long.estimated, Duration::from_secs(2 + 75 + 1 + 5));
        assert_eq!(long.steps[0].estimated, Duration::from_secs(77));
        // What the host says of a route is all of it.
        let told = Route::new(Arc::new(studio.clone())).with_typical(Duration::from_secs(7));
        assert_eq!(asked(50.0, Pipeline::named("p").video(told)).estimated, Duration::from_secs(7));
    }

    #[test]
    fn a_time_past_all_bounds_is_no_panic() {
        let never = model(StepKind::Video, 1, u64::MAX).with_typical_per_second(Duration::MAX);
        let pipeline = Pipeline::named("p").video(provider("p", vec![never.clone()])).compose(studio());
        assert_eq!(planned(&JobRequest::new("a cat"), pipeline).unwrap().estimated(), Duration::MAX);
        assert_eq!(never.with_typical(Duration::ZERO).typical_for(Duration::MAX), Duration::MAX);
    }

    #[test]
    fn without_a_script_nothing_is_spoken_or_paid_for_it() {
        let plan = planned(&JobRequest::new("a cat").with_script("  "), everything()).unwrap();
        assert!(plan.step(StepKind::Speech).is_none());
        assert_eq!(plan.hold(), Usd::from_cents(40));
    }

    #[test]
    fn a_script_that_nobody_can_speak_is_refused_by_name() {
        let silent = Pipeline::named("p").video(studio());
        assert_eq!(bad_fields(planned(&JobRequest::new("a cat").with_script("meow"), silent)), ["script"]);
    }

    #[test]
    fn text_to_video_is_one_step() {
        let plan = planned(&JobRequest::new("a cat"), Pipeline::named("p").video(studio())).unwrap();
        assert_eq!(plan.steps.len(), 1);
        assert_eq!((plan.steps[0].needs.len(), plan.final_video()), (0, StepKind::Video));
    }

    #[test]
    fn an_image_that_was_brought_is_not_made() {
        let image = MediaInfo {
            key: MediaKey::new("uploads/cat.png").unwrap(),
            media_type: MediaType::Png,
            length: 1,
            content: ContentInfo::default(),
        };
        let plan = plan(&JobRequest::new("a cat"), &everything().checked().unwrap(), Some(image.clone())).unwrap();
        assert!(plan.step(StepKind::Image).is_none());
        assert_eq!(plan.image, Some(image));
    }

    #[test]
    fn only_routes_that_meet_the_request_are_planned_and_the_dearest_is_held() {
        let short = provider("short", vec![model(StepKind::Video, 5, 9).with_max_duration(Duration::from_secs(5))]);
        let dear = provider("dear", vec![model(StepKind::Video, 90, 9)]);
        let pipeline = || Pipeline::named("p").video(short.clone()).or(dear.clone());
        let both = planned(&JobRequest::new("a cat"), pipeline()).unwrap();
        assert_eq!((both.steps[0].routes.len(), both.hold()), (2, Usd::from_cents(90)));
        assert_eq!(both.quote().expected, Usd::from_cents(5), "the first choice");
        let long = JobRequest::new("a cat").with_duration(Duration::from_secs(8));
        let one = planned(&long, pipeline()).unwrap();
        assert_eq!(one.steps[0].routes[0].provider.as_str(), "dear");
    }

    #[test]
    fn a_request_that_no_route_can_meet_is_refused_by_the_field_that_is_too_much() {
        let limited = |model: Model| Pipeline::named("p").video(provider("p", vec![model]));
        let long = JobRequest::new("a cat").with_duration(Duration::from_secs(8));
        let video = || model(StepKind::Video, 5, 9);
        let five = video().with_max_duration(Duration::from_secs(5));
        assert_eq!(bad_fields(planned(&long, limited(five))), ["duration_seconds"]);
        assert_eq!(bad_fields(planned(&long, limited(video().with_max_side(1000)))), ["resolution"]);
        assert_eq!(bad_fields(planned(&long, limited(video().with_needed_image()))), ["image"]);
    }

    #[test]
    fn speech_is_priced_by_its_characters_and_video_by_its_seconds() {
        let prices = vec![
            Model::new("v", StepKind::Video, Price::PerSecond(Usd::from_cents(10))),
            Model::new("s", StepKind::Speech, Price::PerCharacter(Usd::from_micros(300))),
            Model::new("c", StepKind::Compose, Price::Free),
        ];
        let paid = provider("p", prices);
        let pipeline = Pipeline::named("p").video(paid.clone()).speech(paid.clone()).compose(paid);
        let request = JobRequest::new("a cat").with_script("miau").with_duration(Duration::from_secs(6));
        assert_eq!(planned(&request, pipeline).unwrap().hold(), Usd::from_cents(60) + Usd::from_micros(1200));
    }

    #[test]
    fn a_plan_survives_json() {
        let plan = planned(&JobRequest::new("a cat").with_script("meow"), everything()).unwrap();
        let json = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
    }
}
