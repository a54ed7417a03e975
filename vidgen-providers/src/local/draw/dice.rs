//! Chance that can be repeated, and noise made of it.

/// A source of chance that gives the same on every machine (SplitMix64).
#[derive(Clone, Debug)]
pub(in super::super) struct Dice(u64);

impl Dice {
    /// Dice that follow from texts and a seed.
    pub(in super::super) fn of(texts: &[&str], seed: Option<u64>) -> Self {
        // FNV-1a; a byte that is in no text keeps "ab","c" from "a","bc".
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        let bytes = texts.iter().flat_map(|text| text.bytes().chain([0xff]));
        for byte in bytes.chain(seed.unwrap_or_default().to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Self(hash)
    }

    pub(in super::super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// From 0 up to, not including, 1.
    pub(in super::super) fn unit(&mut self) -> f32 {
        unit(self.next())
    }

    pub(in super::super) fn range(&mut self, from: f32, to: f32) -> f32 {
        from + (to - from) * self.unit()
    }

    pub(in super::super) fn chance(&mut self, probability: f32) -> bool {
        self.unit() < probability
    }

    /// From 0 up to, not including, `count`.
    pub(in super::super) fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap_or(0) % count.max(1)
    }

    pub(in super::super) fn pick<'a, T>(&mut self, list: &'a [T]) -> Option<&'a T> {
        list.get(self.below(list.len()))
    }

    /// Noise that follows from the next number.
    pub(in super::super) fn noise(&mut self) -> Noise {
        Noise(self.next())
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn unit(bits: u64) -> f32 {
    (bits >> 40) as f32 / 16_777_216.0
}

/// Smooth noise over a line or a plane, 0 to 1.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Noise(u64);

impl Noise {
    fn lattice(self, x: i32, y: i32) -> f32 {
        let x = u64::from(x.cast_unsigned());
        let y = u64::from(y.cast_unsigned());
        unit(mix(self.0 ^ x.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ y.wrapping_mul(0xc2b2_ae3d_27d4_eb4f)))
    }

    /// One octave.
    pub(in super::super) fn at(self, x: f32, y: f32) -> f32 {
        let (column, row) = (x.floor(), y.floor());
        let smooth = |t: f32| t * t * (3.0 - 2.0 * t);
        let (tx, ty) = (smooth(x - column), smooth(y - row));
        let (column, row) = (column as i32, row as i32);
        let blend = |a: f32, b: f32, t: f32| a + (b - a) * t;
        let (right, below) = (column.wrapping_add(1), row.wrapping_add(1));
        let top = blend(self.lattice(column, row), self.lattice(right, row), tx);
        let bottom = blend(self.lattice(column, below), self.lattice(right, below), tx);
        blend(top, bottom, ty)
    }

    /// Octaves on octaves, as in clouds and mountains.
    pub(in super::super) fn fractal(self, x: f32, y: f32, octaves: u32) -> f32 {
        let (mut sum, mut share, mut scale, mut whole) = (0.0, 1.0, 1.0, 0.0);
        for octave in 0..octaves {
            let shift = octave as f32 * 17.3;
            sum += share * self.at(x * scale + shift, y * scale + shift);
            whole += share;
            share *= 0.5;
            scale *= 2.0;
        }
        if whole > 0.0 { sum / whole } else { 0.0 }
    }

    /// A line of it.
    pub(in super::super) fn line(self, x: f32, octaves: u32) -> f32 {
        self.fractal(x, 0.5, octaves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_is_the_same_everywhere() {
        let mut dice = Dice::of(&["a"], Some(1));
        assert_eq!(dice.next(), Dice::of(&["a"], Some(1)).next());
        assert_ne!(Dice::of(&["ab", "c"], None).next(), Dice::of(&["a", "bc"], None).next());
        assert!((0..1000).all(|_| (0.0..1.0).contains(&dice.unit()) && dice.below(3) < 3));
        let noise = dice.noise();
        assert!((-500..500).all(|x| (0.0..=1.0).contains(&noise.fractal(x as f32 * 0.37, -3.1, 5))));
    }
}
