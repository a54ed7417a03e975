//! Money: micro-dollars, prices, holds and the ledger.
//!
//! Two things are kept apart. A **cost** is what a provider bills the operator. A **charge** is
//! what the tenant pays: the costs of a job that completed or that the tenant canceled, nothing
//! for a job that failed.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Neg, Sub, SubAssign};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::job::{JobId, StepId};
use crate::provider::{ModelId, ProviderId, TaskSpec};
use crate::tenant::TenantId;

/// An amount in millionths of a US dollar. Arithmetic saturates rather than wraps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Usd(i64);

impl Usd {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// From millionths of a dollar.
    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// From hundredths of a dollar.
    #[must_use]
    pub const fn from_cents(cents: i64) -> Self {
        Self(cents.saturating_mul(10_000))
    }

    /// From whole dollars.
    #[must_use]
    pub const fn from_dollars(dollars: i64) -> Self {
        Self(dollars.saturating_mul(1_000_000))
    }

    /// In millionths of a dollar.
    #[must_use]
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// As a decimal number of dollars for JSON (`0.65`); exact up to 9 billion dollars.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "micro-dollars below 2^53 are exact before the division")]
    pub fn dollars(self) -> f64 {
        self.0 as f64 / 1_000_000.0
    }

    /// This amount `count` times.
    #[must_use]
    pub const fn times(self, count: i64) -> Self {
        Self(self.0.saturating_mul(count))
    }

    /// This amount for a thousand thousandths, for so many of them, rounded up to the next micro-dollar.
    #[must_use]
    pub fn per_thousandths(self, count: u64) -> Self {
        let micros = i128::from(self.0).saturating_mul(i128::from(count));
        Self(i64::try_from(micros.saturating_add(999) / 1000).unwrap_or(i64::MAX))
    }

    /// This amount per second, for `duration`, rounded up to the next micro-dollar.
    #[must_use]
    pub fn per_second(self, duration: Duration) -> Self {
        let micros = i128::from(self.0).saturating_mul(i128::try_from(duration.as_millis()).unwrap_or(i128::MAX));
        Self(i64::try_from(micros.saturating_add(999) / 1000).unwrap_or(i64::MAX))
    }
}

impl Add for Usd {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}
impl Sub for Usd {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}
impl Neg for Usd {
    type Output = Self;
    fn neg(self) -> Self {
        Self(self.0.saturating_neg())
    }
}
impl AddAssign for Usd {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}
impl SubAssign for Usd {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}
impl Sum for Usd {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Add::add)
    }
}

/// `$1.25`, or with as many decimals as it takes.
impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let micros = self.0.unsigned_abs();
        let fraction = format!("{:06}", micros % 1_000_000);
        let short = fraction.trim_end_matches('0');
        write!(f, "{sign}${}.{short:0<2}", micros / 1_000_000)
    }
}

/// How a model is billed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Price {
    /// Costs nothing: it runs on the operator's own machine.
    Free,
    /// One amount for each accepted submission.
    PerRun(Usd),
    /// For each second of the video or speech that was asked for.
    PerSecond(Usd),
    /// For each character of the script.
    PerCharacter(Usd),
    /// For each second that the provider's machine computes, which is known only afterwards.
    PerComputeSecond {
        /// For a second.
        rate: Usd,
        /// The longest that a run is expected to take: what is held for it.
        at_most: Duration,
    },
    /// For each unit of the provider's own, such as a megapixel or a credit, which it counts itself.
    PerUnit {
        /// For a unit.
        rate: Usd,
        /// How many thousandths of a unit a run is expected to take at most: what is held for it.
        at_most_milli: u64,
    },
    /// The same, where each second of the video that was asked for takes so many units: what is held
    /// grows with its length.
    PerUnitSecond {
        /// For a unit.
        rate: Usd,
        /// How many thousandths of a unit a second is expected to take at most.
        milli_per_second: u64,
    },
}

/// What a run used, by the provider's count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Usage {
    /// So long its machine computed.
    Compute(Duration),
    /// So long is what it made.
    Output(Duration),
    /// So many characters it spoke.
    Characters(u64),
    /// So many thousandths of its own units.
    MilliUnits(u64),
}

impl Price {
    /// What `task` costs by this price. For [`Price::PerSecond`] speech, whose length is not
    /// known beforehand, 10 characters a second are assumed, which is slow speech.
    #[must_use]
    pub fn of(self, task: &TaskSpec) -> Usd {
        match self {
            Self::Free => Usd::ZERO,
            Self::PerRun(amount) => amount,
            Self::PerSecond(amount) => amount.per_second(task.duration()),
            Self::PerCharacter(amount) => amount.times(i64::try_from(task.text().chars().count()).unwrap_or(i64::MAX)),
            Self::PerUnitSecond { rate, milli_per_second } => {
                rate.per_thousandths(milli_per_second).per_second(task.duration())
            }
            Self::PerComputeSecond { .. } | Self::PerUnit { .. } => self.flat(),
        }
    }

    /// What a run costs, or may cost at most, whatever its task; nothing where that depends on the task.
    #[must_use]
    pub fn flat(self) -> Usd {
        match self {
            Self::PerRun(amount) => amount,
            Self::PerComputeSecond { rate, at_most } => rate.per_second(at_most),
            Self::PerUnit { rate, at_most_milli } => rate.per_thousandths(at_most_milli),
            Self::Free | Self::PerSecond(_) | Self::PerCharacter(_) | Self::PerUnitSecond { .. } => Usd::ZERO,
        }
    }

    /// What `usage` costs by this price; `None` if it is not counted in that.
    #[must_use]
    pub fn of_usage(self, usage: Usage) -> Option<Usd> {
        match (self, usage) {
            (Self::PerComputeSecond { rate, .. }, Usage::Compute(time)) => Some(rate.per_second(time)),
            (Self::PerSecond(rate), Usage::Output(time)) => Some(rate.per_second(time)),
            (Self::PerCharacter(rate), Usage::Characters(count)) => {
                Some(rate.times(i64::try_from(count).unwrap_or(i64::MAX)))
            }
            (Self::PerUnit { rate, .. } | Self::PerUnitSecond { rate, .. }, Usage::MilliUnits(units)) => {
                Some(rate.per_thousandths(units))
            }
            _ => None,
        }
    }

    /// Whether a submission costs nothing.
    #[must_use]
    pub fn is_free(self) -> bool {
        matches!(self, Self::Free)
    }
}

/// What a request would cost and take, without running it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quote {
    /// The most it can cost: what would be held.
    pub hold: Usd,
    /// What it costs if every step's first choice works at once.
    pub expected: Usd,
    /// How long it usually takes.
    pub estimated: Duration,
    /// The same, step by step.
    pub steps: Vec<StepQuote>,
}

/// One step of a [`Quote`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepQuote {
    /// Which step.
    pub step: StepId,
    /// The first choice's provider.
    pub provider: ProviderId,
    /// The first choice's model.
    pub model: ModelId,
    /// The most it can cost.
    pub hold: Usd,
    /// What the first choice costs.
    pub expected: Usd,
    /// How long the first choice usually takes.
    pub estimated: Duration,
}

/// Where a cost comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CostBasis {
    /// The provider stated it.
    Stated,
    /// Computed from the price table and what the provider says was used.
    Metered,
    /// Computed from the price table alone, since the provider states neither.
    Table,
}

/// What one submission cost the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// How much.
    pub amount: Usd,
    /// Who says so.
    pub basis: CostBasis,
}

impl Cost {
    /// No cost, by the price table.
    pub const FREE: Self = Self { amount: Usd::ZERO, basis: CostBasis::Table };
}

/// A cost to record with a checkpoint: one for each submission that was billed.
///
/// Its key is `(job, step, ordinal)`; writing it twice records it once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CostEntry {
    /// Which step bought it.
    pub step: StepId,
    /// Which purchase of that step.
    pub ordinal: u32,
    /// From whom.
    pub provider: ProviderId,
    /// Which model.
    pub model: ModelId,
    /// How much, and who says so.
    pub cost: Cost,
}

/// One row of the append-only ledger. The sum of a job's rows is what its tenant pays for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerRow {
    /// Who pays.
    pub tenant: TenantId,
    /// For which job.
    pub job: JobId,
    /// What kind of row.
    pub entry: LedgerEntry,
    /// How much; negative for a waiver.
    pub amount: Usd,
    /// When it was written, by the store's clock.
    pub at: Timestamp,
}

/// What a [`LedgerRow`] is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LedgerEntry {
    /// A provider billed this.
    Cost(CostEntry),
    /// The job failed, so its costs are the operator's; or a retry took it up again, so they
    /// are not. Written when a job ends, so that the sum is what the tenant pays.
    Adjustment,
}

/// Which part of the ledger to add up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsageFilter {
    /// From this moment (inclusive).
    pub from: Option<Timestamp>,
    /// To this moment (exclusive).
    pub to: Option<Timestamp>,
}

/// What a tenant used, added up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageReport {
    /// What the providers billed for this tenant's jobs.
    pub cost: Usd,
    /// What the tenant pays: the sum of all ledger rows, exactly.
    pub charged: Usd,
    /// What is reserved for live jobs and for jobs whose outcome is unknown, now.
    pub held: Usd,
    /// Costs by UTC day, step, provider and model, ascending.
    pub rows: Vec<UsageRow>,
}

/// One line of a [`UsageReport`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRow {
    /// UTC day, `2026-01-31`.
    pub day: String,
    /// Which step, e.g. `video`.
    pub step: String,
    /// From whom.
    pub provider: ProviderId,
    /// Which model.
    pub model: ModelId,
    /// How many submissions were billed.
    pub count: u64,
    /// What they cost.
    pub cost: Usd,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::{Size, VideoTask};

    #[test]
    fn amounts_print_with_at_least_two_decimals() {
        assert_eq!(Usd::from_cents(125).to_string(), "$1.25");
        assert_eq!(Usd::from_dollars(3).to_string(), "$3.00");
        assert_eq!(Usd::from_micros(-650).to_string(), "-$0.00065");
    }

    #[test]
    fn a_price_per_second_rounds_up() {
        let price = Usd::from_micros(1);
        assert_eq!(price.per_second(Duration::from_millis(1)), Usd::from_micros(1));
        assert_eq!(Usd::from_cents(10).per_second(Duration::from_millis(1500)), Usd::from_cents(15));
    }

    #[test]
    fn units_of_a_second_are_held_by_the_length_and_billed_by_their_count() {
        let price = Price::PerUnitSecond { rate: Usd::from_cents(1), milli_per_second: 12_500 };
        let video = VideoTask {
            prompt: String::new(),
            negative_prompt: None,
            style: None,
            image: None,
            size: Size { width: 16, height: 16 },
            duration: Duration::from_secs(4),
            fps: None,
            seed: None,
        };
        assert_eq!(price.of(&TaskSpec::Video(video)), Usd::from_cents(50));
        assert_eq!(price.of_usage(Usage::MilliUnits(48_000)), Some(Usd::from_cents(48)));
        assert_eq!((price.flat(), price.of_usage(Usage::Characters(1))), (Usd::ZERO, None));
    }

    #[test]
    fn amounts_saturate() {
        assert_eq!(Usd::from_micros(i64::MAX) + Usd::from_micros(1), Usd::from_micros(i64::MAX));
        assert_eq!(Usd::from_micros(i64::MAX).per_second(Duration::MAX), Usd::from_micros(i64::MAX));
    }
}
