//! Who it is that speaks the API, and what he does otherwise.

use serde::Deserialize;
use vidgen_core::Result;

use crate::models::ModelTable;

/// Who it is that speaks OpenAI's API: no two do it in the same way. In configuration: `openai`,
/// `vllm-omni`, `sglang`, `litellm`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub enum Dialect {
    /// OpenAI itself, and gateways that do as its official clients expect: videos are sent as forms,
    /// `seconds` is text, nothing can be stopped.
    #[default]
    #[serde(rename = "openai")]
    OpenAi,
    /// vLLM-Omni: takes videos as forms only, with fields of its own, in which what is nested is JSON.
    /// A job that is deleted while it runs stops.
    #[serde(rename = "vllm-omni")]
    VllmOmni,
    /// SGLang's diffusion server (as an older version of it has it): takes forms with a first frame only,
    /// so that what starts from text goes as JSON, where `seconds` is a number. Deleting stops nothing.
    #[serde(rename = "sglang")]
    SgLang,
    /// The proxy of LiteLLM: as OpenAI, but its ids are long and hold anything, and it deletes nothing.
    #[serde(rename = "litellm")]
    LiteLlm,
}

impl Dialect {
    /// The well-known models that are used where it is spoken, as they are built in.
    ///
    /// # Errors
    /// Never: a test reads them.
    pub fn known_models(self) -> Result<ModelTable> {
        ModelTable::from_toml(match self {
            Self::OpenAi | Self::LiteLlm => include_str!("../models/openai.toml"),
            Self::VllmOmni => include_str!("../models/openai-vllm.toml"),
            Self::SgLang => include_str!("../models/openai-sglang.toml"),
        })
    }

    /// Whether it is a server with the models that it was started with, in memory and on a local disk.
    pub(super) fn is_own_server(self) -> bool {
        matches!(self, Self::VllmOmni | Self::SgLang)
    }

    /// Whether DELETE stops what runs.
    pub(super) fn stops(self) -> bool {
        self == Self::VllmOmni
    }

    /// Whether a video has to be asked for in JSON.
    pub(super) fn wants_json(self, has_image: bool) -> bool {
        self == Self::SgLang && !has_image
    }

    /// Whether what is nested goes into a form as JSON; else as fields `name[inner]`.
    pub(super) fn nests_json(self) -> bool {
        self == Self::VllmOmni
    }
}
