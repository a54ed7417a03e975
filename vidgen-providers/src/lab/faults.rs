//! Faults by chance, the same in each run, and outages.

use super::ledger::{Class, Seen};

/// How often what goes wrong, by chance: which call it hits follows from the seed and from which
/// call of its class it is, so that a run repeats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// Another seed, other calls.
    pub seed: u64,
    /// For submits.
    pub submits: Rates,
    /// For reads, cancels and uploads.
    pub reads: Rates,
    /// For downloads of outputs; what is after the effect cuts them short.
    pub outputs: Rates,
}

/// How often each fault hits, from 0 to 1. Their sum should not exceed 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// The connection is closed, and the call had no effect.
    pub drop_before: f64,
    /// A gateway's 503, and the call had no effect.
    pub unavailable_before: f64,
    /// The call has its effect; then the connection is reset.
    pub reset_after: f64,
    /// The call has its effect; then a gateway's 502.
    pub bad_gateway_after: f64,
    /// The call has its effect; then an answer that nobody can understand.
    pub garbled_after: f64,
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    DropBefore,
    UnavailableBefore,
    ResetAfter,
    BadGatewayAfter,
    GarbledAfter,
}

/// A remote that is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outage {
    /// Nobody listens: connections are refused, and those that were there are gone.
    Refuses,
    /// A gateway answers 503 to everything.
    Unavailable,
    /// Calls are taken, and never answered.
    Hangs,
    /// Calls are taken, and their connections closed.
    Drops,
}

impl Rates {
    /// The same rate of every fault; five times `rate` of all calls are hit.
    #[must_use]
    pub fn all(rate: f64) -> Self {
        Self {
            drop_before: rate,
            unavailable_before: rate,
            reset_after: rate,
            bad_gateway_after: rate,
            garbled_after: rate,
        }
    }

    fn pick(&self, mut chance: f64) -> Option<Fault> {
        let faults = [
            (self.drop_before, Fault::DropBefore),
            (self.unavailable_before, Fault::UnavailableBefore),
            (self.reset_after, Fault::ResetAfter),
            (self.bad_gateway_after, Fault::BadGatewayAfter),
            (self.garbled_after, Fault::GarbledAfter),
        ];
        for (rate, fault) in faults {
            if chance < rate {
                return Some(fault);
            }
            chance -= rate;
        }
        None
    }
}

impl Faults {
    pub(super) fn hits(&self, seen: &Seen) -> Option<Fault> {
        let (salt, rates) = match seen.class {
            Class::Submit => (1, &self.submits),
            Class::Output => (2, &self.outputs),
            Class::Read => (3, &self.reads),
            Class::Cancel => (4, &self.reads),
            Class::Upload => (5, &self.reads),
            Class::Listen => (6, &self.reads),
        };
        rates.pick(chance(self.seed, salt, seen.of_class))
    }
}

/// A number from 0 to 1 that follows from its arguments (splitmix64).
fn chance(seed: u64, salt: u64, number: u64) -> f64 {
    let mut z = seed ^ salt.wrapping_mul(0xA076_1D64_78BD_642F);
    for add in [number, 1] {
        z = z.wrapping_add(add.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
    }
    // 53 bits, as an f64 has them.
    (z >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chances_repeat_and_are_spread() {
        let all: Vec<f64> = (1..=10_000).map(|n| chance(7, 1, n)).collect();
        assert_eq!(all, (1..=10_000).map(|n| chance(7, 1, n)).collect::<Vec<_>>());
        assert!(all.iter().all(|c| (0.0..1.0).contains(c)));
        let mean = all.iter().sum::<f64>() / 10_000.0;
        assert!((0.48..0.52).contains(&mean), "{mean}");
        let same = all.iter().zip(1..).filter(|(c, n)| **c == chance(8, 1, *n)).count();
        assert_eq!(same, 0);
        let rates = Rates::all(0.1);
        let hit = all.iter().filter(|c| rates.pick(**c).is_some()).count();
        assert!((4_800..5_200).contains(&hit), "{hit}");
    }
}
