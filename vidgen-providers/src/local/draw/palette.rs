//! Colours that go together.

use tiny_skia::Color;

use super::scenes::Scene;
use super::{Dice, Words};

/// A colour without transparency.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tone {
    r: f32,
    g: f32,
    b: f32,
}

impl Tone {
    pub(super) const WHITE: Self = Self::hex(0xff_ffff);
    pub(super) const BLACK: Self = Self::hex(0);

    pub(super) const fn hex(rgb: u32) -> Self {
        Self {
            r: ((rgb >> 16) & 255) as f32 / 255.0,
            g: ((rgb >> 8) & 255) as f32 / 255.0,
            b: (rgb & 255) as f32 / 255.0,
        }
    }

    /// This colour with `share` of `other` in it.
    pub(super) fn mix(self, other: Self, share: f32) -> Self {
        let blend = |a: f32, b: f32| a + (b - a) * share.clamp(0.0, 1.0);
        Self { r: blend(self.r, other.r), g: blend(self.g, other.g), b: blend(self.b, other.b) }
    }

    pub(super) fn darker(self, share: f32) -> Self {
        self.mix(Self::BLACK, share)
    }

    pub(super) fn lighter(self, share: f32) -> Self {
        self.mix(Self::WHITE, share)
    }

    /// As a colour that covers by `alpha`.
    pub(super) fn alpha(self, alpha: f32) -> Color {
        let part = |v: f32| if v.is_finite() { v.clamp(0.0, 1.0) } else { 0.0 };
        Color::from_rgba(part(self.r), part(self.g), part(self.b), part(alpha)).unwrap_or(Color::BLACK)
    }

    pub(super) fn solid(self) -> Color {
        self.alpha(1.0)
    }

    pub(super) fn parts(self) -> [f32; 3] {
        [self.r, self.g, self.b]
    }
}

/// The colours of one picture.
#[derive(Clone, Copy, Debug)]
pub(super) struct Palette {
    /// From the top of the sky to the horizon.
    pub(super) sky: [Tone; 4],
    /// Sun or moon.
    pub(super) sun: Tone,
    /// Land in the distance.
    pub(super) far: Tone,
    /// Land at our feet.
    pub(super) near: Tone,
    /// What catches the eye.
    pub(super) accent: Tone,
    /// Whether it is night.
    pub(super) dark: bool,
}

const fn palette(sky: [u32; 4], sun: u32, far: u32, near: u32, accent: u32, dark: bool) -> Palette {
    let [a, b, c, d] = sky;
    Palette {
        sky: [Tone::hex(a), Tone::hex(b), Tone::hex(c), Tone::hex(d)],
        sun: Tone::hex(sun),
        far: Tone::hex(far),
        near: Tone::hex(near),
        accent: Tone::hex(accent),
        dark,
    }
}

const DAWN: Palette =
    palette([0x2b_2d5b, 0x8a_4f7d, 0xf2_936b, 0xff_dca8], 0xff_f3d0, 0xa8_7392, 0x1d_1a36, 0xff_7a59, false);
const DAY: Palette =
    palette([0x1f_6fb5, 0x63_aee0, 0xb4_deee, 0xf6_f1dc], 0xff_fdf2, 0x93_b9c9, 0x17_4441, 0xe7_6f51, false);
const DUSK: Palette =
    palette([0x0f_1b3d, 0x3d_2b6e, 0xb8_4570, 0xff_a267], 0xff_d894, 0x7a_4d86, 0x0d_0b1f, 0xff_c15e, false);
const NIGHT: Palette =
    palette([0x04_0716, 0x0b_1a3a, 0x1a_3a66, 0x40_7092], 0xf5_f1e2, 0x2a_4c6e, 0x04_0a14, 0xff_d166, true);
const STORM: Palette =
    palette([0x0d_131b, 0x24_313c, 0x48_5b66, 0x9a_aaa8], 0xe3_ebe6, 0x4d_5f68, 0x0a_1016, 0xf8_d866, true);
const MINT: Palette =
    palette([0x0e_4a4c, 0x2d_8a7d, 0x94_d6b9, 0xf8_f5d8], 0xff_fbe0, 0x6f_b3a2, 0x0c_2b2e, 0xf2_6b5e, false);
const EMBER: Palette =
    palette([0x1a_0b12, 0x5c_1a1f, 0xc8_432b, 0xff_b84d], 0xff_e3a1, 0x8c_3a30, 0x14_0708, 0xff_d23f, false);
const PASTEL: Palette =
    palette([0x8f_b8e6, 0xc9_bdea, 0xf9_cbd3, 0xff_f1de], 0xff_ffff, 0xb5_b0d8, 0x4a_4e84, 0xf2_8482, false);
const NEON: Palette =
    palette([0x0a_0220, 0x27_0a5a, 0x86_1cab, 0xff_4d9d], 0xff_e066, 0x4b_1c8a, 0x06_0118, 0x22_e0ff, true);
const NOIR: Palette =
    palette([0x0c_0c0d, 0x30_3033, 0x85_8588, 0xe8_e8e6], 0xff_ffff, 0x6a_6a6e, 0x09_090a, 0xff_ffff, true);
const SEPIA: Palette =
    palette([0x4a_3524, 0x8a_6844, 0xc9_a877, 0xf3_e3c3], 0xff_f6df, 0x9c_7d58, 0x2a_1c12, 0xa8_4a2a, false);

impl Palette {
    /// The palette that the words name, else one that suits the scene.
    pub(super) fn choose(words: &Words, scene: Scene, dice: &mut Dice) -> Self {
        let named = [
            (&["noir", "monochrome", "grayscale", "greyscale", "charcoal", "ink"][..], NOIR),
            (&["neon", "cyberpunk", "synthwave", "vaporwave", "futuristic"][..], NEON),
            (&["vintage", "retro", "sepia", "antique", "western"][..], SEPIA),
            (&["pastel", "watercolour", "watercolor", "soft", "kawaii", "dreamy"][..], PASTEL),
            (&["storm", "stormy", "thunder", "rain", "rainy", "lightning", "tempest"][..], STORM),
            (&["fire", "volcano", "lava", "flame", "dragon", "hell"][..], EMBER),
            (&["sunrise", "dawn", "morning"][..], DAWN),
            (&["sunset", "dusk", "evening", "twilight"][..], DUSK),
            (&["night", "midnight", "moon", "moonlight", "moonlit", "dark"][..], NIGHT),
            (&["spring", "mint", "jungle", "tropical"][..], MINT),
            (&["day", "noon", "sunny", "summer", "blue"][..], DAY),
        ];
        let fitting: &[Self] = match scene {
            Scene::Sea => &[DAWN, DUSK, DAY, MINT, NIGHT],
            Scene::Mountains => &[DAWN, DUSK, DAY, MINT, PASTEL, EMBER],
            Scene::Space => &[NIGHT, NEON, EMBER],
            Scene::City => &[DUSK, NIGHT, NEON, DAWN],
            Scene::Aurora => &[NIGHT],
            Scene::Desert => &[EMBER, DAWN, DUSK, SEPIA],
            Scene::Cat => &[NIGHT, DUSK, EMBER, PASTEL],
            Scene::Meadow => &[DAY, DAWN, PASTEL, MINT],
            Scene::Shapes => &[DAWN, DAY, EMBER, MINT, PASTEL, SEPIA, DUSK],
            Scene::Flow => &[NEON, DUSK, MINT, EMBER, NIGHT],
        };
        let named = named.iter().find(|(list, _)| words.any(list)).map(|(_, palette)| *palette);
        // The dice roll either way, so that a word of colour does not change the composition.
        let fitting = dice.pick(fitting).copied().unwrap_or(DUSK);
        match named {
            // A pale sky would hide stars.
            Some(palette) if matches!(scene, Scene::Space | Scene::Aurora) && !palette.dark => fitting,
            Some(palette) => palette,
            None => fitting,
        }
    }
}
