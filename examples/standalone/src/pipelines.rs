//! Which pipelines the settings mean: who makes which step, and who if they cannot.
//!
//! One pipeline comes from variables: `PIPELINE_VIDEO="fal:fal-ai/fast-svd, replicate:…"` names the
//! first choice and its alternatives, `none` leaves a step out, and a step that is not named is
//! done by whoever there is a key for, else on this machine. Several come from a TOML file:
//!
//! ```toml
//! [[pipeline]]
//! name = "default"
//! image = ["replicate:black-forest-labs/flux-schnell"]
//! video = ["fal:fal-ai/wan/v2.7/image-to-video", "replicate:wan-video/wan-2.2-i2v-fast"]
//! speech = ["elevenlabs"]
//!
//! [[pipeline]]
//! name = "text"
//! video = ["fal:fal-ai/veo3/fast"]
//! compose = []
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, bail};
use serde::Deserialize;
use vidgen_core::{ModelId, Pipeline, Provider, Route, StepKind};

/// The providers that there are settings for, by name.
pub(crate) type Providers = BTreeMap<String, Arc<dyn Provider>>;

/// Who is asked first for a step that the settings do not name. Only those there is a key for are.
const USUAL: [(StepKind, &[&str]); 5] = [
    (StepKind::Image, &["replicate", "fal", "openai", "comfyui", "cog", "local"]),
    (StepKind::Video, &["fal", "replicate", "runway", "openai", "comfyui", "cog", "local"]),
    (StepKind::Speech, &["elevenlabs", "fal", "replicate", "openai", "local"]),
    (StepKind::Compose, &["local"]),
    (StepKind::Thumbnail, &["local"]),
];

/// One pipeline as it is written: for each step its routes, `provider` or `provider:model`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recipe {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) image: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) video: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) speech: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) compose: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) thumbnail: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    pipeline: Vec<Recipe>,
}

/// The recipes in a TOML file.
pub(crate) fn read(text: &str) -> anyhow::Result<Vec<Recipe>> {
    let file: File = toml::from_str(text)?;
    Ok(file.pipeline)
}

/// A variable's list: routes with commas between them; `none` is an empty one; nothing is no list.
pub(crate) fn list(text: &str) -> Option<Vec<String>> {
    let routes: Vec<String> = text.split(',').map(str::trim).filter(|r| !r.is_empty()).map(str::to_owned).collect();
    match routes.as_slice() {
        [] => None,
        [none] if none == "none" => Some(vec![]),
        _ => Some(routes),
    }
}

impl Recipe {
    fn step(&self, kind: StepKind) -> Option<&[String]> {
        let routes = match kind {
            StepKind::Image => &self.image,
            StepKind::Video => &self.video,
            StepKind::Speech => &self.speech,
            StepKind::Compose => &self.compose,
            StepKind::Thumbnail => &self.thumbnail,
        };
        routes.as_deref()
    }

    /// The pipeline that it means.
    pub(crate) fn pipeline(&self, providers: &Providers) -> anyhow::Result<Pipeline> {
        let mut pipeline = Pipeline::named(&self.name);
        let composes = self.step(StepKind::Compose).is_none_or(|routes| !routes.is_empty());
        // Whoever names a video step and no image step may mean text to video: a model that needs
        // an image gets one made.
        for kind in StepKind::ALL {
            let routes = match self.step(kind) {
                Some(routes) => {
                    named(routes, kind, providers).with_context(|| format!("pipeline {:?}, step {kind}", self.name))?
                }
                None if kind == StepKind::Image && !self.wants_image(providers) => continue,
                // Without a compose step, nobody would hear it.
                None if kind == StepKind::Speech && !composes => continue,
                None => usual(kind, providers),
            };
            let optional = kind == StepKind::Speech && self.step(kind).is_none();
            let mut routes = routes.into_iter();
            let Some(first) = routes.next() else { continue };
            pipeline = match kind {
                StepKind::Image => pipeline.image(first),
                StepKind::Video => pipeline.video(first),
                StepKind::Speech => pipeline.speech(first),
                StepKind::Compose => pipeline.compose(first),
                StepKind::Thumbnail => pipeline.thumbnail(first),
            };
            pipeline = routes.fold(pipeline, Pipeline::or);
            if optional {
                pipeline = pipeline.optional();
            }
        }
        Ok(pipeline)
    }

    /// Whether the first choice for the video needs an image, or takes one as well as not.
    fn wants_image(&self, providers: &Providers) -> bool {
        let Some(first) = self.step(StepKind::Video).and_then(<[String]>::first) else { return true };
        let (provider, model) = split(first);
        let model = model.map(ModelId::new);
        let capabilities = providers.get(provider).map(|p| p.capabilities());
        let known = capabilities.as_ref().and_then(|c| c.model(StepKind::Video, model.as_ref()));
        known.is_none_or(|model| model.needs_image)
    }
}

fn split(route: &str) -> (&str, Option<&str>) {
    route.split_once(':').map_or((route, None), |(provider, model)| (provider, Some(model)))
}

fn named(routes: &[String], kind: StepKind, providers: &Providers) -> anyhow::Result<Vec<Route>> {
    routes
        .iter()
        .map(|text| {
            let (name, model) = split(text);
            let Some(provider) = providers.get(name) else {
                let known: Vec<&str> = providers.keys().map(String::as_str).collect();
                bail!("{name:?} is not a provider that there is a key or address for; there are: {}", known.join(", "));
            };
            let capabilities = provider.capabilities();
            let model = model.map(ModelId::new);
            if capabilities.model(kind, model.as_ref()).is_none() {
                let names: Vec<&str> =
                    capabilities.models.iter().filter(|m| m.kind == kind).map(|m| m.id.as_str()).collect();
                bail!(
                    "{text:?} is not known; {name} has for it: {}. Describe others in MODELS_FILE",
                    if names.is_empty() { "nothing".into() } else { names.join(", ") }
                );
            }
            let route = Route::new(provider.clone());
            Ok(model.into_iter().fold(route, Route::with_model))
        })
        .collect()
}

/// The usual first choice for a step. Alternatives have to be named: they may be dearer.
fn usual(kind: StepKind, providers: &Providers) -> Vec<Route> {
    let order = USUAL.iter().find(|(k, _)| *k == kind).map_or(&[][..], |(_, order)| order);
    let able = |name: &&str| providers.get(*name).filter(|p| p.capabilities().model(kind, None).is_some());
    order.iter().find_map(able).map(|provider| Route::new(provider.clone())).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use vidgen_core::memory::ScriptedProvider;
    use vidgen_core::{Model, Price, Usd};

    use super::*;

    fn providers() -> Providers {
        let cents = |n| Price::PerRun(Usd::from_cents(n));
        let video = |id: &str| Model::new(id, StepKind::Video, cents(5));
        let fal = ScriptedProvider::new("fal").with_models(vec![video("svd").with_needed_image(), video("veo")]);
        let all: [(&str, ScriptedProvider); 2] = [("fal", fal), ("local", ScriptedProvider::new("local"))];
        all.into_iter().map(|(name, p)| (name.to_owned(), Arc::new(p) as Arc<dyn Provider>)).collect()
    }

    fn said(recipe: &Recipe) -> String {
        recipe.pipeline(&providers()).unwrap().to_string()
    }

    fn recipe(video: &str) -> Recipe {
        Recipe { name: "default".into(), video: list(video), ..Recipe::default() }
    }

    #[test]
    fn a_list_has_commas_and_none_is_empty() {
        assert_eq!(list(""), None);
        assert_eq!(list("none"), Some(vec![]));
        assert_eq!(list(" a:b , c "), Some(vec!["a:b".into(), "c".into()]));
    }

    #[test]
    fn what_is_not_named_is_done_by_whoever_can() {
        let usual = said(&Recipe { name: "default".into(), ..Recipe::default() });
        assert_eq!(
            usual,
            "default: image by local (scripted/image), video by fal (svd), speech by local (scripted/speech), \
             compose by local (scripted/compose), thumbnail by local (scripted/thumbnail)"
        );
    }

    #[test]
    fn a_model_that_needs_an_image_gets_one_and_text_to_video_does_not() {
        assert!(said(&recipe("fal:svd")).contains("image by"));
        assert!(!said(&recipe("fal:veo")).contains("image by"));
    }

    #[test]
    fn an_unknown_provider_or_model_is_named_with_what_there_is() {
        let refused = |text: &str| format!("{:#}", recipe(text).pipeline(&providers()).unwrap_err());
        assert!(refused("acme:x").contains("there are: fal, local"), "{}", refused("acme:x"));
        assert!(refused("fal:x").contains("svd, veo"), "{}", refused("fal:x"));
    }

    #[test]
    fn a_file_names_several() {
        let text =
            "[[pipeline]]\nname = \"a\"\nvideo = [\"fal:svd\", \"local\"]\n[[pipeline]]\nname = \"b\"\ncompose = []";
        let recipes = read(text).unwrap();
        assert_eq!(recipes.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert!(!said(&recipes[1]).contains("compose by") && !said(&recipes[1]).contains("speech by"));
        assert!(read("[[pipeline]]\nname = \"a\"\nvidoe = []").is_err());
    }
}
