//! Which models a provider has: their limits and prices, and which field of each carries what.
//!
//! Models of one provider differ in everything: the first frame is `image`, `image_url` or
//! `first_frame_image`; eight seconds are `8`, `"8"`, `"8s"` or 129 frames. A [`ModelEntry`] says it
//! for one model, and a [`ModelTable`] holds those of a provider. Each provider brings a table of
//! well-known ones; a host adds others, or corrects these, by the same text:
//!
//! ```
//! use vidgen_providers::models::ModelTable;
//!
//! let table = ModelTable::from_toml(r#"
//!     [[model]]
//!     id = "acme/clip-2"
//!     kind = "video"
//!     price = { per_second = "0.10" }
//!     typical = 60                        # seconds
//!     lengths = [5, 10]                   # or { from = 2, to = 10 }
//!     aspect_ratios = ["16:9", "9:16"]
//!     resolutions = ["720p"]
//!     max_text = 800
//!     fields = { prompt = "prompt", image = "start_image", aspect_ratio = "ratio", duration = "seconds" }
//!     defaults = { watermark = false }
//! "#)?;
//! assert_eq!(table.entries().len(), 1);
//! # Ok::<(), vidgen_core::Error>(())
//! ```
//!
//! # Prices
//! Few providers state them where a program can read them. Those of the tables are careful upper
//! estimates, as of 2026-11, and are what is held for a step; give your own contract's with
//! [`Route::with_price`](vidgen_core::Route::with_price), or with a table of your own.

mod body;
mod fields;
mod read;
mod shape;

use serde_json::{Map, Value};
use vidgen_core::{Error, ErrorKind, Model, ModelId, Price, Result, StepKind};

pub use fields::FieldMap;

/// One model of a provider, and how a request for it is written.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelEntry {
    model: Model,
    endpoint: String,
    fields: FieldMap,
    defaults: Map<String, Value>,
}

impl ModelEntry {
    /// Reads one entry: the lines below a `[[model]]` of a table.
    ///
    /// # Errors
    /// `Invalid`, naming the line and what is wrong with it.
    pub fn from_toml(text: &str) -> Result<Self> {
        read::entry(text)
    }

    /// Its limits and its price.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Its name at the provider.
    #[must_use]
    pub fn id(&self) -> &ModelId {
        &self.model.id
    }

    /// Which part of the API runs it, where a provider has several; its provider's docs say which.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Bills it otherwise.
    #[must_use]
    pub fn with_price(mut self, price: Price) -> Self {
        self.model.price = price;
        self
    }

    /// Whether a first frame has a place in its requests: else none need be uploaded.
    #[must_use]
    pub fn takes_image(&self) -> bool {
        self.fields.image.is_some()
    }

    /// The field of a first frame, for providers that send it as a part of a form.
    pub(crate) fn image_field(&self) -> Option<&str> {
        self.fields.image.as_ref()?.name.0.first().map(String::as_str)
    }
}

/// The models of a provider. The first of a kind is the default for that kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelTable(Vec<ModelEntry>);

impl ModelTable {
    /// Reads a table: `[[model]]` for each.
    ///
    /// # Errors
    /// `Invalid`, naming the line and what is wrong with it.
    pub fn from_toml(text: &str) -> Result<Self> {
        read::table(text)
    }

    /// The entries, in order.
    #[must_use]
    pub fn entries(&self) -> &[ModelEntry] {
        &self.0
    }

    /// The entry of that kind and name.
    #[must_use]
    pub fn entry(&self, kind: StepKind, id: &ModelId) -> Option<&ModelEntry> {
        self.0.iter().find(|entry| entry.model.kind == kind && entry.model.id == *id)
    }

    /// Adds an entry, or replaces the one of that kind and name.
    #[must_use]
    pub fn with(mut self, entry: ModelEntry) -> Self {
        let same = |e: &&mut ModelEntry| e.model.kind == entry.model.kind && e.model.id == entry.model.id;
        match self.0.iter_mut().find(same) {
            Some(old) => *old = entry,
            None => self.0.push(entry),
        }
        self
    }

    /// Adds the entries of another table, or replaces those of these kinds and names.
    #[must_use]
    pub fn with_all(self, other: Self) -> Self {
        other.0.into_iter().fold(self, Self::with)
    }

    /// The entry for a task, as a provider wants it before any call.
    ///
    /// # Errors
    /// `Unsupported` if there is none.
    pub(crate) fn wanted(&self, origin: &'static str, task: &vidgen_core::Task) -> Result<&ModelEntry> {
        let kind = task.spec.kind();
        let unknown =
            || Error::new(ErrorKind::Unsupported, origin, format!("model {} is unknown for {kind}", task.model));
        self.entry(kind, &task.model).ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests;
