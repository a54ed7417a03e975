//! The recipe: which steps a job has, and who may do each.

mod ending;
mod evidence;
mod fetch;
mod follow;
pub(crate) mod places;
pub mod plan;
mod progress;
pub mod route;
pub(crate) mod run;
pub mod step;
mod submit;
mod task;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::job::StepKind;
use crate::money::Price;
use crate::provider::{ImageUrls, Model, ModelId, Provider, ProviderId};

pub use plan::{Plan, PlannedRoute, PlannedStep};
pub use step::Timing;

/// How long a video is if nobody says otherwise.
const DEFAULT_DURATION: Duration = Duration::from_secs(4);

/// Which steps a job has, and who may do each: a named recipe, checked by
/// [`VidgenBuilder::build`](crate::VidgenBuilder::build).
///
/// ```
/// # use vidgen_core::{Pipeline, ProviderExt, memory::ScriptedProvider};
/// let studio = ScriptedProvider::new("studio");
/// let spare = ScriptedProvider::new("spare");
/// let pipeline = Pipeline::named("default")
///     .image(studio.clone())
///     .video(studio.clone().model("scripted/video")).or(spare)
///     .speech(studio.clone()).optional()
///     .compose(studio);
/// ```
#[derive(Clone, Debug)]
pub struct Pipeline {
    name: String,
    default_duration: Duration,
    steps: Vec<PipelineStep>,
    problem: Option<String>,
}

/// One step of a pipeline.
#[derive(Clone, Debug)]
pub(crate) struct PipelineStep {
    pub(crate) kind: StepKind,
    pub(crate) routes: Vec<Route>,
    pub(crate) optional: bool,
}

impl Pipeline {
    /// A pipeline without steps.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), default_duration: DEFAULT_DURATION, steps: Vec::new(), problem: None }
    }

    /// Makes an image of the prompt first.
    #[must_use]
    pub fn image(self, route: impl Into<Route>) -> Self {
        self.step(StepKind::Image, route.into())
    }

    /// Makes the video: from the image, or from the prompt alone.
    #[must_use]
    pub fn video(self, route: impl Into<Route>) -> Self {
        self.step(StepKind::Video, route.into())
    }

    /// Speaks the script, if the request has one.
    #[must_use]
    pub fn speech(self, route: impl Into<Route>) -> Self {
        self.step(StepKind::Speech, route.into())
    }

    /// Puts video and speech into one playable file; the same provider takes the thumbnail, if
    /// it can and [`Pipeline::thumbnail`] names no other.
    #[must_use]
    pub fn compose(self, route: impl Into<Route>) -> Self {
        self.step(StepKind::Compose, route.into())
    }

    /// Takes a picture out of the video.
    #[must_use]
    pub fn thumbnail(self, route: impl Into<Route>) -> Self {
        self.step(StepKind::Thumbnail, route.into())
    }

    /// Names who does the step before, if its first choice is out of order or cannot meet the request.
    #[must_use]
    pub fn or(mut self, route: impl Into<Route>) -> Self {
        match self.steps.last_mut() {
            Some(step) => step.routes.push(route.into()),
            None => self.problem = Some("`or` needs a step before it".into()),
        }
        self
    }

    /// Lets a job complete without the step before, with a note, if no provider can do it.
    #[must_use]
    pub fn optional(mut self) -> Self {
        match self.steps.last_mut().filter(|s| matches!(s.kind, StepKind::Speech | StepKind::Thumbnail)) {
            Some(step) => step.optional = true,
            None => self.problem = Some("only speech and thumbnail can be optional".into()),
        }
        self
    }

    /// Sets how long a video is if the request does not say.
    #[must_use]
    pub fn with_default_duration(mut self, duration: Duration) -> Self {
        self.default_duration = duration;
        self
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn step(mut self, kind: StepKind, route: Route) -> Self {
        if self.steps.iter().any(|s| s.kind == kind) {
            self.problem = Some(format!("step {kind} is named twice; `or` names an alternative"));
        }
        self.steps.push(PipelineStep { kind, routes: vec![route], optional: false });
        self
    }

    pub(crate) fn providers(&self) -> impl Iterator<Item = &Arc<dyn Provider>> {
        self.steps.iter().flat_map(|s| &s.routes).map(|r| &r.provider)
    }

    /// The same, with every image fetched by `images`.
    pub(crate) fn with_images_from(&self, images: &Arc<dyn ImageUrls>) -> Self {
        let mut pipeline = self.clone();
        pipeline.steps.retain(|step| step.kind != StepKind::Image);
        let routes = vec![Route::new(images.clone())];
        pipeline.steps.insert(0, PipelineStep { kind: StepKind::Image, routes, optional: false });
        pipeline
    }

    pub(crate) fn find(&self, kind: StepKind) -> Option<&PipelineStep> {
        self.steps.iter().find(|s| s.kind == kind)
    }

    pub(crate) fn default_duration(&self) -> Duration {
        self.default_duration
    }

    /// The route that a plan names, if this pipeline still has it.
    pub(crate) fn route(&self, kind: StepKind, provider: &ProviderId, model: &ModelId) -> Option<&Route> {
        self.find(kind)?
            .routes
            .iter()
            .find(|r| r.provider.id() == *provider && r.resolve(kind).is_ok_and(|m| m.id == *model))
    }

    /// Checks it, and adds the thumbnail step where compose implies one.
    pub(crate) fn checked(mut self) -> Result<Self> {
        let wrong = |message: String| Error::internal("pipeline", message);
        if let Some(problem) = self.problem.take() {
            return Err(wrong(format!("pipeline {:?}: {problem}", self.name)));
        }
        if self.find(StepKind::Video).is_none() {
            return Err(wrong(format!("pipeline {:?} has no video step", self.name)));
        }
        if self.find(StepKind::Speech).is_some() && self.find(StepKind::Compose).is_none() {
            return Err(wrong(format!("pipeline {:?} speaks, but has no compose step to put it in", self.name)));
        }
        if let (Some(compose), None) = (self.find(StepKind::Compose), self.find(StepKind::Thumbnail)) {
            let able = |r: &&Route| r.provider.capabilities().model(StepKind::Thumbnail, None).is_some();
            if let Some(route) = compose.routes.iter().find(able) {
                let route = Route::new(route.provider.clone());
                self.steps.push(PipelineStep { kind: StepKind::Thumbnail, routes: vec![route], optional: false });
            }
        }
        for step in &self.steps {
            for route in &step.routes {
                route.resolve(step.kind)?;
            }
        }
        self.steps.sort_by_key(|s| s.kind);
        Ok(self)
    }
}

/// For people: `default: image by replicate (black-forest-labs/flux-schnell), video by fal (…) or …`.
impl fmt::Display for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |kind, route: &Route| match route.resolve(kind) {
            Ok(model) => format!("{} ({})", route.provider.id(), model.id),
            Err(_) => route.provider.id().to_string(),
        };
        let step = |step: &PipelineStep| {
            let routes: Vec<String> = step.routes.iter().map(|route| name(step.kind, route)).collect();
            format!("{} by {}", step.kind, routes.join(" or "))
        };
        write!(f, "{}: {}", self.name, self.steps.iter().map(step).collect::<Vec<_>>().join(", "))
    }
}

/// One way to do a step: a provider and one of its models.
#[derive(Clone, Debug)]
pub struct Route {
    pub(crate) provider: Arc<dyn Provider>,
    model: Option<ModelId>,
    price: Option<Price>,
    typical: Option<Duration>,
    on_unknown: Option<OnUnknown>,
    pub(crate) extra: Map<String, Value>,
}

/// What becomes of a submission of which nobody can tell whether it was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnUnknown {
    /// It is left in doubt, its hold stays, and an operator decides. The usual, where money is paid.
    Park,
    /// It is bought again, which may cost twice. The usual, where nothing is paid.
    Resubmit,
}

impl Route {
    /// The provider's default model for the step.
    pub fn new(provider: Arc<dyn Provider>) -> Self {
        Self { provider, model: None, price: None, typical: None, on_unknown: None, extra: Map::new() }
    }

    /// Another model. One that the provider does not list needs a price, too.
    #[must_use]
    pub fn with_model(mut self, model: ModelId) -> Self {
        self.model = Some(model);
        self
    }

    /// How it is billed, instead of what the provider's table says.
    #[must_use]
    pub fn with_price(mut self, price: Price) -> Self {
        self.price = Some(price);
        self
    }

    /// How long it usually takes, whatever the length of the video, instead of what the provider's
    /// table says.
    #[must_use]
    pub fn with_typical(mut self, typical: Duration) -> Self {
        self.typical = Some(typical);
        self
    }

    /// What becomes of a submission of which nobody can tell whether it was accepted, instead of
    /// [`OnUnknown::Park`] for what is paid and [`OnUnknown::Resubmit`] for what is free.
    #[must_use]
    pub fn with_on_unknown(mut self, policy: OnUnknown) -> Self {
        self.on_unknown = Some(policy);
        self
    }

    /// What becomes of a submission of which nobody can tell whether it was accepted.
    pub(crate) fn on_unknown(&self, price: Price) -> OnUnknown {
        let usual = if price.is_free() { OnUnknown::Resubmit } else { OnUnknown::Park };
        self.on_unknown.unwrap_or(usual)
    }

    /// A field of the model that vidgen has no word for, passed through as it is.
    #[must_use]
    pub fn with_extra(mut self, field: impl Into<String>, value: impl Into<Value>) -> Self {
        self.extra.insert(field.into(), value.into());
        self
    }

    /// The model, its limits and its price.
    pub(crate) fn resolve(&self, kind: StepKind) -> Result<Model> {
        let capabilities = self.provider.capabilities();
        let mut model = match (capabilities.model(kind, self.model.as_ref()), &self.model, self.price) {
            (Some(known), ..) => known.clone(),
            (None, Some(name), Some(price)) => Model::new(name.as_str(), kind, price),
            (None, Some(name), None) => {
                return Err(Error::internal(
                    "pipeline",
                    format!(
                        "model {name:?} of provider {} is unknown for step {kind}: give it a price with `with_price`",
                        self.provider.id()
                    ),
                ));
            }
            (None, None, _) => {
                return Err(Error::internal(
                    "pipeline",
                    format!("provider {} has no model for step {kind}", self.provider.id()),
                ));
            }
        };
        if let Some(price) = self.price {
            model.price = price;
        }
        if let Some(typical) = self.typical {
            model.typical = typical;
            model.typical_per_second = Duration::ZERO;
        }
        Ok(model)
    }
}

impl<P: Provider> From<P> for Route {
    fn from(provider: P) -> Self {
        Self::new(Arc::new(provider))
    }
}
