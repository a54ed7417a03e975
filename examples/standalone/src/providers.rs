//! The providers that there are settings for: a key or an address makes one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use vidgen_core::{Provider, StepKind};
use vidgen_providers::cog::Cog;
use vidgen_providers::comfyui::{ComfyUi, Workflow};
use vidgen_providers::elevenlabs::ElevenLabs;
use vidgen_providers::fal::Fal;
use vidgen_providers::local::LocalProvider;
use vidgen_providers::models::ModelTable;
use vidgen_providers::openai::{Dialect, OpenAi};
use vidgen_providers::replicate::Replicate;
use vidgen_providers::runway::Runway;

use crate::pipelines::{self, Providers, Recipe};

#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Providers (a key or an address makes one)")]
pub(crate) struct ProviderSettings {
    /// Who makes the images: `provider` or `provider:model`, alternatives after commas; `none` for no image step.
    #[arg(long, env = "PIPELINE_IMAGE", default_value = "", hide_default_value = true, value_name = "ROUTES")]
    pipeline_image: String,
    /// Who makes the videos, e.g. `fal:fal-ai/fast-svd, replicate:wan-video/wan-2.2-i2v-fast`.
    #[arg(long, env = "PIPELINE_VIDEO", default_value = "", hide_default_value = true, value_name = "ROUTES")]
    pipeline_video: String,
    /// Who speaks the scripts.
    #[arg(long, env = "PIPELINE_SPEECH", default_value = "", hide_default_value = true, value_name = "ROUTES")]
    pipeline_speech: String,
    /// Who puts video and speech together; `none` leaves the video as its model made it.
    #[arg(long, env = "PIPELINE_COMPOSE", default_value = "", hide_default_value = true, value_name = "ROUTES")]
    pipeline_compose: String,
    /// Who takes the thumbnails.
    #[arg(long, env = "PIPELINE_THUMBNAIL", default_value = "", hide_default_value = true, value_name = "ROUTES")]
    pipeline_thumbnail: String,
    /// A TOML file of pipelines, instead of the variables above.
    #[arg(long, env = "PIPELINE_FILE", value_name = "FILE")]
    pipeline_file: Option<PathBuf>,
    /// A TOML file of models that vidgen does not know, or knows wrongly: tables named by provider.
    #[arg(long, env = "MODELS_FILE", value_name = "FILE")]
    models_file: Option<PathBuf>,

    /// The key of replicate.
    #[arg(long, env = "REPLICATE_API_TOKEN", hide_env_values = true, value_name = "KEY")]
    replicate_api_token: Option<SecretString>,
    /// Where replicate is, if not at its own address.
    #[arg(long, env = "REPLICATE_BASE_URL", value_name = "URL")]
    replicate_base_url: Option<String>,
    /// What replicate signs its callbacks with (`whsec_…`); several with commas while it is changed.
    #[arg(long, env = "REPLICATE_WEBHOOK_SECRET", hide_env_values = true, value_name = "SECRET,…")]
    replicate_webhook_secret: Option<SecretString>,
    /// The key of fal.
    #[arg(long, env = "FAL_KEY", hide_env_values = true, value_name = "KEY")]
    fal_key: Option<SecretString>,
    /// Where fal's queue is, if not at its own address.
    #[arg(long, env = "FAL_BASE_URL", value_name = "URL")]
    fal_base_url: Option<String>,
    /// The key of ElevenLabs.
    #[arg(long, env = "ELEVENLABS_API_KEY", hide_env_values = true, value_name = "KEY")]
    elevenlabs_api_key: Option<SecretString>,
    /// Where ElevenLabs is, if not at its own address.
    #[arg(long, env = "ELEVENLABS_BASE_URL", value_name = "URL")]
    elevenlabs_base_url: Option<String>,
    /// The key of OpenAI, or of a server that is shaped like it.
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true, value_name = "KEY")]
    openai_api_key: Option<SecretString>,
    /// Where a server that is shaped like OpenAI is; videos need one.
    #[arg(long, env = "OPENAI_BASE_URL", value_name = "URL")]
    openai_base_url: Option<String>,
    /// Who it is that speaks OpenAI's API: openai, vllm-omni, sglang or litellm.
    #[arg(long, env = "OPENAI_DIALECT", default_value = "openai", value_name = "NAME")]
    openai_dialect: String,
    /// The key of Runway.
    #[arg(long, env = "RUNWAY_API_KEY", hide_env_values = true, value_name = "KEY")]
    runway_api_key: Option<SecretString>,
    /// Where Runway is, if not at its own address.
    #[arg(long, env = "RUNWAY_BASE_URL", value_name = "URL")]
    runway_base_url: Option<String>,
    /// Where a ComfyUI is.
    #[arg(long, env = "COMFYUI_URL", value_name = "URL")]
    comfyui_url: Option<String>,
    /// The workflow (API format) by which ComfyUI makes images.
    #[arg(long, env = "COMFYUI_IMAGE_WORKFLOW", value_name = "FILE")]
    comfyui_image_workflow: Option<PathBuf>,
    /// The workflow (API format) by which ComfyUI makes videos.
    #[arg(long, env = "COMFYUI_VIDEO_WORKFLOW", value_name = "FILE")]
    comfyui_video_workflow: Option<PathBuf>,
    /// The frames per second of the videos that ComfyUI makes, for workflows that count frames.
    #[arg(long, env = "COMFYUI_VIDEO_FPS", value_name = "FPS")]
    comfyui_video_fps: Option<u32>,
    /// Where a cog container is. It has to reach this server at CALLBACK_URL.
    #[arg(long, env = "COG_URL", value_name = "URL")]
    pub(crate) cog_url: Option<String>,
    /// What the cog container makes: image, video or speech.
    #[arg(long, env = "COG_MAKES", default_value = "video", value_name = "STEP")]
    cog_makes: String,
    /// The token that the cog container sends with its callbacks (its WEBHOOK_AUTH_TOKEN).
    #[arg(long, env = "COG_CALLBACK_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    cog_callback_token: Option<SecretString>,
}

/// A file of models: `[[replicate]]`, `[[fal]]`, … each with the lines of a `[[model]]` of the
/// providers' own tables.
struct ModelFile(toml::Table);

impl ModelFile {
    fn read(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self(toml::Table::new())) };
        let text = std::fs::read_to_string(path).with_context(|| format!("MODELS_FILE {}", path.display()))?;
        let table: toml::Table = text.parse().with_context(|| format!("MODELS_FILE {}", path.display()))?;
        if let Some(unknown) = table.keys().find(|name| !NAMES.contains(&name.as_str())) {
            bail!("MODELS_FILE has {unknown:?}, which is not a provider: there are {}", NAMES.join(", "));
        }
        Ok(Self(table))
    }

    fn of(&self, provider: &str) -> anyhow::Result<ModelTable> {
        let Some(entries) = self.0.get(provider) else { return Ok(ModelTable::default()) };
        let mut table = toml::Table::new();
        table.insert("model".into(), entries.clone());
        ModelTable::from_toml(&table.to_string()).with_context(|| format!("MODELS_FILE, [[{provider}]]"))
    }
}

const NAMES: [&str; 7] = ["replicate", "fal", "elevenlabs", "openai", "runway", "comfyui", "cog"];

/// Sets a base URL where there is one, on any provider's builder.
macro_rules! at {
    ($builder:expr, $url:expr) => {
        match set_text(&$url) {
            Some(url) => $builder.with_base_url(url),
            None => $builder,
        }
    };
}

impl ProviderSettings {
    /// Every provider that there are settings for; the local one is always there.
    pub(crate) fn providers(&self) -> anyhow::Result<Providers> {
        let models = ModelFile::read(self.models_file.as_deref())?;
        let mut all = Providers::new();
        let mut add = |name: &str, provider: Arc<dyn Provider>| all.insert(name.to_owned(), provider);

        if let Some(key) = set(&self.replicate_api_token) {
            let mut builder = Replicate::builder(key).with_models(models.of("replicate")?);
            builder = at!(builder, self.replicate_base_url);
            for secret in set(&self.replicate_webhook_secret).iter().flat_map(|s| s.expose_secret().split(',')) {
                builder = builder.with_webhook_secret(secret.trim().to_owned());
            }
            add("replicate", Arc::new(builder.build().context("the settings of replicate cannot be used")?));
        }
        if let Some(key) = set(&self.fal_key) {
            let builder = at!(Fal::builder(key).with_models(models.of("fal")?), self.fal_base_url);
            add("fal", Arc::new(builder.build().context("the settings of fal cannot be used")?));
        }
        if let Some(key) = set(&self.elevenlabs_api_key) {
            let builder = ElevenLabs::builder(key).with_models(models.of("elevenlabs")?);
            let builder = at!(builder, self.elevenlabs_base_url);
            add("elevenlabs", Arc::new(builder.build().context("the settings of ElevenLabs cannot be used")?));
        }
        let openai = match (set(&self.openai_api_key), set_text(&self.openai_base_url)) {
            (Some(key), Some(url)) => Some(OpenAi::builder(key).with_base_url(url)),
            (Some(key), None) => Some(OpenAi::builder(key)),
            (None, Some(url)) => Some(OpenAi::server(url)),
            (None, None) => None,
        };
        if let Some(builder) = openai {
            let builder = builder.with_models(models.of("openai")?).with_dialect(self.dialect()?);
            add("openai", Arc::new(builder.build().context("the settings of OpenAI cannot be used")?));
        }
        if let Some(key) = set(&self.runway_api_key) {
            let builder = at!(Runway::builder(key).with_models(models.of("runway")?), self.runway_base_url);
            add("runway", Arc::new(builder.build().context("the settings of Runway cannot be used")?));
        }
        if let Some(url) = set_text(&self.comfyui_url) {
            add("comfyui", Arc::new(self.comfyui(&url)?));
        }
        if let Some(url) = set_text(&self.cog_url) {
            add("cog", Arc::new(self.cog(&url, models.of("cog")?)?));
        }
        let local = LocalProvider::new().context("the local provider cannot start")?;
        for missing in local.missing() {
            tracing::warn!("{missing}");
        }
        add("local", Arc::new(local));
        Ok(all)
    }

    fn dialect(&self) -> anyhow::Result<Dialect> {
        Ok(match self.openai_dialect.as_str() {
            "openai" => Dialect::OpenAi,
            "vllm-omni" => Dialect::VllmOmni,
            "sglang" => Dialect::SgLang,
            "litellm" => Dialect::LiteLlm,
            other => bail!("OPENAI_DIALECT is {other:?}, but must be openai, vllm-omni, sglang or litellm"),
        })
    }

    fn comfyui(&self, url: &str) -> anyhow::Result<ComfyUi> {
        let mut builder = ComfyUi::builder(url);
        let workflow = |path: &Path, name: &str, kind| {
            let text = std::fs::read_to_string(path).with_context(|| format!("{name} {}", path.display()))?;
            Ok::<_, anyhow::Error>(match kind {
                StepKind::Image => Workflow::image("image", text),
                _ => Workflow::video("video", text),
            })
        };
        let mut any = false;
        for (path, name, kind) in [
            (&self.comfyui_image_workflow, "COMFYUI_IMAGE_WORKFLOW", StepKind::Image),
            (&self.comfyui_video_workflow, "COMFYUI_VIDEO_WORKFLOW", StepKind::Video),
        ] {
            if let Some(path) = path {
                let workflow = workflow(path, name, kind)?;
                builder = builder.with_workflow(match self.comfyui_video_fps {
                    Some(fps) if kind == StepKind::Video => workflow.with_frame_rate(fps),
                    _ => workflow,
                });
                any = true;
            }
        }
        if !any {
            bail!("COMFYUI_URL is set, but neither COMFYUI_IMAGE_WORKFLOW nor COMFYUI_VIDEO_WORKFLOW is");
        }
        builder.build().context("the settings of ComfyUI cannot be used")
    }

    fn cog(&self, url: &str, models: ModelTable) -> anyhow::Result<Cog> {
        let mut builder = Cog::builder(url).with_models(models);
        if let Some(token) = set(&self.cog_callback_token) {
            builder = builder.with_callback_token(token);
        }
        let makes = match self.cog_makes.as_str() {
            "image" => StepKind::Image,
            "video" => StepKind::Video,
            "speech" => StepKind::Speech,
            other => bail!("COG_MAKES is {other:?}, but must be image, video or speech"),
        };
        builder.makes(makes).build().context("the settings of cog cannot be used")
    }

    /// The pipelines, as variables or a file name them.
    pub(crate) fn recipes(&self) -> anyhow::Result<Vec<Recipe>> {
        let Some(path) = &self.pipeline_file else {
            return Ok(vec![Recipe {
                name: "default".into(),
                image: pipelines::list(&self.pipeline_image),
                video: pipelines::list(&self.pipeline_video),
                speech: pipelines::list(&self.pipeline_speech),
                compose: pipelines::list(&self.pipeline_compose),
                thumbnail: pipelines::list(&self.pipeline_thumbnail),
            }]);
        };
        let named = || format!("PIPELINE_FILE {}", path.display());
        let variables = [
            &self.pipeline_image,
            &self.pipeline_video,
            &self.pipeline_speech,
            &self.pipeline_compose,
            &self.pipeline_thumbnail,
        ];
        if variables.iter().any(|routes| !routes.is_empty()) {
            bail!("PIPELINE_FILE is set, and so is a PIPELINE_ variable for one step: which one is meant?");
        }
        let text = std::fs::read_to_string(path).with_context(named)?;
        let recipes = pipelines::read(&text).with_context(named)?;
        if recipes.is_empty() {
            bail!("{} has no [[pipeline]]", named());
        }
        Ok(recipes)
    }
}

/// A variable that is set to nothing is as good as not set: compose files do that.
fn set(secret: &Option<SecretString>) -> Option<SecretString> {
    secret.clone().filter(|secret| !secret.expose_secret().trim().is_empty())
}

fn set_text(text: &Option<String>) -> Option<String> {
    text.clone().filter(|text| !text.trim().is_empty())
}
