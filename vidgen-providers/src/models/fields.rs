//! Which field of a model's request carries what, and in which form.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Which field of a model's request carries what. What is not named does not go out: a seed, a
/// rate or a negative prompt is then left out; everything else a model's limits have ruled out
/// before, when the job was planned.
///
/// A field is named by its path, `prompt` or `voice_setting.voice_id`. Where its form is not the
/// usual one, a table says so: `{ name = "duration", form = "text" }`. The forms are:
///
/// | field | forms |
/// |---|---|
/// | `prompt`, `negative_prompt`, `text`, `voice` | text |
/// | `image` | a URL; `form = "list"`: a list of one |
/// | `aspect_ratio` | `"16:9"`, or what `values = { "16:9" = "landscape" }` says |
/// | `resolution` | `"720p"`, or what `values` says; a model without it makes its own, for which the entry's `resolutions` are those that it is enough for |
/// | `size` | `{ width = "width", height = "height" }`: two numbers; `{ name = "size", form = "x" }`: `"1280x720"`; `":"` and `"*"` likewise; `form = "object"`: `{"width": 1280, "height": 720}`; each with `multiple_of = 8`, if need be |
/// | `duration` | `form = "number"`: 8; `"text"`: `"8"`; `"suffixed"`: `"8s"`; `"milliseconds"`: 8000; `"frames"` with `fps = 16` and `extra = 1`: 129 |
/// | `fps` | `form = "number"` or `"text"` |
/// | `seed` | the same, and below `below` (2³¹ unless it is said) |
/// | `marker` | our id of the submission, where the model takes fields that it does not know and nothing else can carry it; see the provider's docs |
/// | `audio` | whether there shall be sound: what the entry's `audio` says |
///
/// Whatever is always the same, such as an output format, is one of the entry's `defaults`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FieldMap {
    pub(super) prompt: Option<Word>,
    pub(super) negative_prompt: Option<Word>,
    pub(super) image: Option<Image>,
    pub(super) aspect_ratio: Option<Word>,
    pub(super) resolution: Option<Word>,
    pub(super) size: Option<Sides>,
    pub(super) duration: Option<Length>,
    pub(super) fps: Option<Number>,
    pub(super) seed: Option<Number>,
    pub(super) voice: Option<Word>,
    pub(super) text: Option<Word>,
    pub(super) audio: Option<Word>,
    pub(super) marker: Option<Word>,
}

/// Where a field stands: the names of the objects around it, and its own.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Path(pub(super) Vec<String>);

impl TryFrom<String> for Path {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let names: Vec<String> = text.split('.').map(str::to_owned).collect();
        if names.iter().any(String::is_empty) { Err(format!("{text:?} is no field's name")) } else { Ok(Self(names)) }
    }
}

/// A text, as it is or by a table of what stands for it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Word {
    pub(super) name: Path,
    pub(super) values: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Image {
    pub(super) name: Path,
    pub(super) form: ImageForm,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ImageForm {
    #[default]
    Url,
    List,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Number {
    pub(super) name: Path,
    pub(super) form: NumberForm,
    pub(super) below: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum NumberForm {
    #[default]
    Number,
    Text,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Length {
    pub(super) name: Path,
    pub(super) form: LengthForm,
    /// For frames.
    pub(super) fps: u32,
    /// For frames: one more than the length gives, for most models that count so.
    pub(super) extra: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LengthForm {
    #[default]
    Number,
    Text,
    Suffixed,
    Milliseconds,
    Frames,
}

/// Width and height: in one field, or in two.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "SidesTable")]
pub(super) struct Sides {
    pub(super) place: Place,
    pub(super) multiple_of: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Place {
    Two { width: Path, height: Path },
    Object(Path),
    Text(Path, char),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SidesTable {
    name: Option<Path>,
    form: Option<String>,
    width: Option<Path>,
    height: Option<Path>,
    multiple_of: Option<u32>,
}

impl TryFrom<SidesTable> for Sides {
    type Error = &'static str;
    fn try_from(table: SidesTable) -> Result<Self, Self::Error> {
        let place = match (table.name, table.width, table.height, table.form.as_deref()) {
            (None, Some(width), Some(height), None) => Place::Two { width, height },
            (Some(name), None, None, Some("object")) => Place::Object(name),
            (Some(name), None, None, Some("x")) => Place::Text(name, 'x'),
            (Some(name), None, None, Some(":")) => Place::Text(name, ':'),
            (Some(name), None, None, Some("*")) => Place::Text(name, '*'),
            _ => return Err("must have a `width` and a `height`, or a `name` and a `form` (object, x, : or *)"),
        };
        Ok(Self { place, multiple_of: table.multiple_of.unwrap_or(1).max(1) })
    }
}

/// What a name alone stands for, and what a table can say beside it.
trait Written: From<Path> {
    type Table: for<'de> Deserialize<'de> + Into<Self>;
}

macro_rules! written {
    ($type:ident, $table:ident { $($(#[$attribute:meta])* $field:ident: $kind:ty),+ $(,)? }) => {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct $table { name: Path, $($(#[$attribute])* #[serde(default)] $field: $kind),+ }

        impl From<$table> for $type {
            fn from(table: $table) -> Self {
                Self { name: table.name, $($field: table.$field),+ }
            }
        }
        impl From<Path> for $type {
            fn from(name: Path) -> Self {
                Self { name, $($field: Default::default()),+ }
            }
        }
        impl Written for $type {
            type Table = $table;
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(NameOrTable(PhantomData))
            }
        }
    };
}
written!(Word, WordTable { values: BTreeMap<String, Value> });
written!(Image, ImageTable { form: ImageForm });
written!(Number, NumberTable { form: NumberForm, below: Option<u64> });
written!(Length, LengthTable { form: LengthForm, fps: u32, extra: u32 });

/// By hand, since an untagged enum tells nobody what is wrong with a table.
struct NameOrTable<T>(PhantomData<T>);

impl<'de, T: Written> Visitor<'de> for NameOrTable<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name, or a table with its `name`")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<T, E> {
        Path::try_from(name.to_owned()).map(T::from).map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::Table::deserialize(MapAccessDeserializer::new(map)).map(Into::into)
    }
}
