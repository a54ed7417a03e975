//! The text of a table → its entries. Errors of serde's name the line; what only an entry as a
//! whole can have wrong is said while it is read, so that they do, too.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};
use vidgen_core::{AspectRatio, Error, Lengths, Model, Price, Resolution, Result, StepKind, Usd};

use super::fields::LengthForm;
use super::{FieldMap, ModelEntry, ModelTable};

/// A micro-dollar has six decimals.
const DECIMALS: usize = 6;

pub(super) fn table(text: &str) -> Result<ModelTable> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Table {
        #[serde(default)]
        model: Vec<ModelEntry>,
    }
    let table: Table = toml::from_str(text).map_err(unreadable)?;
    let folded = ModelTable::default().with_all(ModelTable(table.model.clone()));
    // Two entries of one name and kind: the one above would never be used.
    if folded.0.len() != table.model.len() {
        let twice = table.model.iter().enumerate().find_map(|(n, one)| {
            let same = |other: &ModelEntry| other.model.id == one.model.id && other.model.kind == one.model.kind;
            table.model.iter().take(n).any(same).then(|| one.model.id.to_string())
        });
        return Err(Error::invalid_field("models", format!("model {} stands there twice", twice.unwrap_or_default())));
    }
    Ok(folded)
}

pub(super) fn entry(text: &str) -> Result<ModelEntry> {
    toml::from_str(text).map_err(unreadable)
}

/// The text is the operator's own and no secret: the error shows the place.
fn unreadable(error: toml::de::Error) -> Error {
    let text = error.to_string();
    // "TOML parse error at line 3, column 9", the line itself, and what is wrong with it.
    let place = text.lines().next().and_then(|line| line.split_once(" at ")).map_or("somewhere", |(_, place)| place);
    Error::invalid_field("models", format!("{place}: {}", error.message().trim()))
        .with_quote(&format!("{place}: {}", error.message()))
}

/// A `[[model]]` as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    id: String,
    kind: Kind,
    price: Cost,
    #[serde(default)]
    endpoint: String,
    #[serde(default)]
    typical: Option<Amount>,
    #[serde(default)]
    typical_per_second: Option<Amount>,
    #[serde(default)]
    lengths: Option<Choice>,
    #[serde(default)]
    aspect_ratios: Vec<AspectRatio>,
    #[serde(default)]
    resolutions: Vec<Resolution>,
    #[serde(default)]
    max_side: Option<u32>,
    #[serde(default)]
    max_text: Option<usize>,
    #[serde(default)]
    needs_image: bool,
    #[serde(default)]
    audio: bool,
    #[serde(default)]
    fields: FieldMap,
    #[serde(default)]
    defaults: Map<String, Value>,
}

/// What providers of files make; the rest is done at home.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Image,
    Video,
    Speech,
}

/// How a run is billed.
#[derive(Deserialize)]
#[serde(try_from = "Billed")]
struct Cost(Price);

/// Amounts are decimal dollars, and text, since binary fractions are none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Billed {
    #[serde(default)]
    free: bool,
    per_run: Option<Dollars>,
    per_second: Option<Dollars>,
    per_character: Option<Dollars>,
    per_compute_second: Option<Dollars>,
    per_unit: Option<Dollars>,
    /// Seconds of computing, or units.
    at_most: Option<Amount>,
    /// Units, for each second of a video.
    units_per_second: Option<Amount>,
}

impl TryFrom<Billed> for Cost {
    type Error = &'static str;
    fn try_from(billed: Billed) -> Result<Self, Self::Error> {
        let fixed = [
            billed.free.then_some(Price::Free),
            billed.per_run.map(|d| Price::PerRun(d.0)),
            billed.per_second.map(|d| Price::PerSecond(d.0)),
            billed.per_character.map(|d| Price::PerCharacter(d.0)),
        ];
        let milli = |units: Amount| u64::try_from(units.0.as_millis()).map_err(|_| "these are too many units");
        let metered = match (billed.per_compute_second, billed.per_unit, billed.at_most, billed.units_per_second) {
            (None, None, None, None) => None,
            (Some(d), None, Some(at_most), None) => Some(Price::PerComputeSecond { rate: d.0, at_most: at_most.0 }),
            (None, Some(d), Some(units), None) => Some(Price::PerUnit { rate: d.0, at_most_milli: milli(units)? }),
            (None, Some(d), None, Some(units)) => {
                Some(Price::PerUnitSecond { rate: d.0, milli_per_second: milli(units)? })
            }
            _ => {
                return Err(
                    "per_compute_second needs an at_most; per_unit an at_most or units_per_second; no other does",
                );
            }
        };
        let mut all = fixed.into_iter().chain([metered]).flatten();
        match (all.next(), all.next()) {
            (Some(price), None) => Ok(Self(price)),
            _ => Err("must be one of free, per_run, per_second, per_character, per_compute_second and per_unit"),
        }
    }
}

/// `"0.003"`, exactly.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Dollars(Usd);

impl TryFrom<String> for Dollars {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        const BAD: &str = "must be dollars such as \"0.003\", with at most six decimals";
        let (whole, fraction) = text.split_once('.').unwrap_or((&text, "0"));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > DECIMALS {
            return Err(BAD);
        }
        let micros = format!("{whole}{fraction:0<DECIMALS$}").parse().map_err(|_| BAD)?;
        Ok(Self(Usd::from_micros(micros)))
    }
}

/// So many seconds, or units, as a time with its thousandths.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "f64")]
struct Amount(Duration);

impl TryFrom<f64> for Amount {
    type Error = &'static str;
    fn try_from(amount: f64) -> Result<Self, Self::Error> {
        // To the millisecond, since 5.4 is no binary fraction.
        let milli = (amount * 1000.0).round() / 1000.0;
        let amount = Duration::try_from_secs_f64(milli).map_err(|_| "must be a number that is not negative")?;
        Ok(Self(Duration::from_millis(u64::try_from(amount.as_millis()).unwrap_or(u64::MAX))))
    }
}

/// `[5, 10]`, or `{ from = 2, to = 10 }`, in seconds.
#[derive(Deserialize)]
#[serde(untagged, expecting = "must be a list of seconds such as [5, 10], or { from = 2, to = 10 }")]
enum Choice {
    OneOf(Vec<Amount>),
    Between { from: Amount, to: Amount },
}

impl<'de> Deserialize<'de> for ModelEntry {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Written::deserialize(deserializer)?.try_into().map_err(serde::de::Error::custom)
    }
}

impl TryFrom<Written> for ModelEntry {
    type Error = String;
    fn try_from(written: Written) -> Result<Self, String> {
        let bad = |what: &str| Err(format!("model {:?} {what}", written.id));
        let fields = &written.fields;
        if written.id.trim().is_empty() {
            return bad("needs a name");
        }
        let kind = match written.kind {
            Kind::Image => StepKind::Image,
            Kind::Video => StepKind::Video,
            Kind::Speech => StepKind::Speech,
        };
        let lengths = match written.lengths {
            None => Lengths::Any,
            Some(Choice::Between { from, to }) if from.0 <= to.0 => Lengths::Between(from.0, to.0),
            Some(Choice::OneOf(choices)) if !choices.is_empty() => {
                let mut choices: Vec<Duration> = choices.iter().map(|c| c.0).collect();
                choices.sort_unstable();
                Lengths::OneOf(choices)
            }
            Some(_) => return bad("has no length that a video could have"),
        };
        if kind == StepKind::Speech && fields.text.is_none() {
            return bad("speaks, but no field carries the text");
        }
        if written.needs_image && fields.image.is_none() {
            return bad("needs an image, but no field carries it");
        }
        // What is promised has to be asked for, or the user gets something else than he ordered.
        let fixed = matches!(&lengths, Lengths::OneOf(choices) if choices.len() == 1);
        if kind == StepKind::Video && fields.duration.is_none() && !fixed {
            return bad("has several lengths, but no field carries the length");
        }
        if fields.duration.as_ref().is_some_and(|length| length.form == LengthForm::Frames && length.fps == 0) {
            return bad("counts frames, but at no rate");
        }
        if written.aspect_ratios.len() > 1 && fields.aspect_ratio.is_none() && fields.size.is_none() {
            return bad("has several aspect ratios, but no field carries one");
        }
        if let Some(missing) = fields.missing(&written.aspect_ratios, &written.resolutions) {
            return bad(&format!("has {missing}, but no value for it"));
        }
        let mut model = Model::new(written.id, kind, written.price.0)
            .with_lengths(lengths)
            .with_aspect_ratios(written.aspect_ratios)
            .with_resolutions(written.resolutions);
        if let Some(typical) = written.typical {
            model = model.with_typical(typical.0);
        }
        if let Some(extra) = written.typical_per_second {
            model = model.with_typical_per_second(extra.0);
        }
        model.max_side = written.max_side;
        model.max_text = written.max_text;
        model.needs_image = written.needs_image;
        model.no_image = kind == StepKind::Video && written.fields.image.is_none();
        model.audio = written.audio;
        Ok(Self { model, endpoint: written.endpoint, fields: written.fields, defaults: written.defaults })
    }
}
