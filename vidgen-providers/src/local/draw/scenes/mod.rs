//! What pictures show, and which of them a prompt asks for.

mod land;
mod night;
mod pattern;
mod town;

use super::canvas::{Canvas, polygon};
use super::dice::Noise;
use super::palette::{Palette, Tone};
use super::{Dice, Words};

/// A kind of picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scene {
    Sea,
    Mountains,
    Space,
    City,
    Aurora,
    Desert,
    Cat,
    Meadow,
    Shapes,
    Flow,
}

impl Scene {
    /// The scene whose words come first in the prompt, else one by the dice.
    pub(super) fn choose(words: &Words, dice: &mut Dice) -> Self {
        // Words in the singular; one that ends in "ie" is a plural in "ies" without its "s".
        const CHOICES: [(Scene, &[&str]); 10] = [
            (
                Scene::Sea,
                &[
                    "sea",
                    "ocean",
                    "beach",
                    "wave",
                    "lighthouse",
                    "boat",
                    "ship",
                    "sail",
                    "sailing",
                    "coast",
                    "island",
                    "harbor",
                    "harbour",
                    "storm",
                    "whale",
                    "fish",
                    "surf",
                    "water",
                    "dolphin",
                ],
            ),
            (
                Scene::Mountains,
                &[
                    "mountain",
                    "forest",
                    "tree",
                    "lake",
                    "valley",
                    "hill",
                    "river",
                    "snow",
                    "peak",
                    "alps",
                    "fog",
                    "mist",
                    "wood",
                    "landscape",
                    "waterfall",
                    "bird",
                    "eagle",
                    "hike",
                    "volcano",
                    "bear",
                    "deer",
                ],
            ),
            (
                Scene::Space,
                &[
                    "space",
                    "galaxy",
                    "planet",
                    "star",
                    "nebula",
                    "cosmos",
                    "cosmic",
                    "universe",
                    "rocket",
                    "astronaut",
                    "alien",
                    "moon",
                    "mars",
                    "spaceship",
                    "satellite",
                    "comet",
                    "orbit",
                ],
            ),
            (
                Scene::City,
                &[
                    "city",
                    "citie",
                    "street",
                    "town",
                    "skyline",
                    "building",
                    "skyscraper",
                    "neon",
                    "cyberpunk",
                    "tokyo",
                    "york",
                    "london",
                    "paris",
                    "urban",
                    "office",
                    "robot",
                    "car",
                    "traffic",
                    "metropolis",
                ],
            ),
            (Scene::Aurora, &["aurora", "northern", "arctic", "winter", "ice", "polar", "iceland", "norway", "frozen"]),
            (Scene::Desert, &["desert", "sand", "dune", "pyramid", "camel", "sahara", "cactus", "egypt", "canyon"]),
            (Scene::Cat, &["cat", "kitten", "kitty", "pet", "animal", "fox", "wolf", "dog", "puppy", "tiger", "lion"]),
            (
                Scene::Meadow,
                &[
                    "meadow",
                    "flower",
                    "garden",
                    "field",
                    "spring",
                    "tulip",
                    "rose",
                    "butterfly",
                    "bee",
                    "farm",
                    "grass",
                    "park",
                    "sunflower",
                    "poppy",
                    "poppie",
                    "countryside",
                ],
            ),
            (
                Scene::Shapes,
                &[
                    "abstract",
                    "geometric",
                    "bauhaus",
                    "shape",
                    "logo",
                    "poster",
                    "pattern",
                    "minimal",
                    "modern",
                    "art",
                    "product",
                    "brand",
                    "business",
                    "data",
                    "chart",
                ],
            ),
            (
                Scene::Flow,
                &[
                    "music",
                    "dream",
                    "energy",
                    "wind",
                    "flow",
                    "sound",
                    "dance",
                    "ai",
                    "idea",
                    "magic",
                    "fire",
                    "smoke",
                    "liquid",
                    "mind",
                    "neural",
                    "code",
                    "psychedelic",
                    "song",
                ],
            ),
        ];
        const ANY: [Scene; 8] = [
            Scene::Sea,
            Scene::Mountains,
            Scene::Aurora,
            Scene::Shapes,
            Scene::Flow,
            Scene::Desert,
            Scene::Meadow,
            Scene::Space,
        ];
        let said = CHOICES.iter().filter_map(|(scene, list)| Some((words.first(list)?, *scene)));
        let other = dice.pick(&ANY).copied().unwrap_or(Scene::Sea);
        said.min_by_key(|(place, _)| *place).map_or(other, |(_, scene)| scene)
    }

    pub(super) fn paint(self, canvas: &mut Canvas, palette: &Palette, words: &Words, dice: &mut Dice) {
        match self {
            Self::Sea => land::sea(canvas, palette, words, dice),
            Self::Mountains => land::mountains(canvas, palette, words, dice),
            Self::Desert => land::desert(canvas, palette, words, dice),
            Self::Meadow => land::meadow(canvas, palette, dice),
            Self::Space => night::space(canvas, palette, words, dice),
            Self::Aurora => night::aurora(canvas, palette, dice),
            Self::City => town::city(canvas, palette, dice),
            Self::Cat => town::cat(canvas, palette, words, dice),
            Self::Shapes => pattern::shapes(canvas, palette, dice),
            Self::Flow => pattern::flow(canvas, palette, dice),
        }
    }
}

/// The whole sheet as sky, its last colour at `horizon`.
fn sky(canvas: &mut Canvas, palette: &Palette, horizon: f32) {
    let h = canvas.h;
    canvas.band(0.0, h, &[palette.sky[3].solid(), palette.sky[3].solid()]);
    canvas.band(0.0, horizon, &palette.sky.map(Tone::solid));
}

/// Sun or moon with its light around it.
fn sun(canvas: &mut Canvas, palette: &Palette, x: f32, y: f32, r: f32) {
    let reach = if palette.dark { 5.0 } else { 9.0 };
    canvas.glow(x, y, r * reach, palette.sun.mix(palette.sky[3], 0.3), 0.55);
    canvas.glow(x, y, r * 2.2, palette.sun, 0.5);
    canvas.disc(x, y, r, palette.sun.solid());
}

/// The moon, not quite full, with its seas.
fn moon(canvas: &mut Canvas, palette: &Palette, x: f32, y: f32, r: f32, dice: &mut Dice) {
    sun(canvas, palette, x, y, r);
    let sea = palette.sun.mix(palette.sky[2], 0.35);
    for _ in 0..9 {
        let (angle, away) = (dice.range(0.0, std::f32::consts::TAU), dice.unit().sqrt() * 0.7);
        let size = r * dice.range(0.06, 0.24).min(0.95 - away);
        canvas.puff(x + angle.cos() * away * r, y + angle.sin() * away * r, size, 0.9, sea, 0.4);
    }
}

fn stars(canvas: &mut Canvas, bottom: f32, count: usize, dice: &mut Dice) {
    let scale = (canvas.w * canvas.h / (canvas.u * canvas.u)).min(3.0);
    for _ in 0..(count as f32 * scale) as usize {
        let (x, y) = (dice.range(0.0, canvas.w), dice.range(0.0, bottom));
        // Many small ones and few large ones, fading towards the horizon.
        let size = dice.unit().powi(6);
        let fade = 1.0 - (y / bottom.max(1.0)).powi(3) * 0.8;
        let tone = Tone::WHITE
            .mix(*dice.pick(&[Tone::hex(0x9f_c5ff), Tone::hex(0xff_d9a8), Tone::WHITE]).unwrap_or(&Tone::WHITE), 0.6);
        let r = canvas.u * (0.0007 + 0.0022 * size);
        canvas.disc(x, y, r.max(0.45), tone.alpha((0.25 + 0.75 * dice.unit()) * fade));
        if size > 0.55 {
            canvas.glow(x, y, r * 9.0, tone, 0.5 * fade);
        }
    }
}

/// One cloud of many soft spots, flat below.
fn cloud(
    canvas: &mut Canvas,
    (x, y): (f32, f32),
    size: f32,
    (light, shade): (Tone, Tone),
    strength: f32,
    dice: &mut Dice,
) {
    for i in 0..26 {
        let place = dice.range(-1.0, 1.0);
        let high = (1.0 - place * place) * dice.range(0.0, 0.42);
        let r = size * dice.range(0.16, 0.42) * (1.15 - place.abs());
        let tone = shade.mix(light, if i < 9 { 0.15 } else { high * 2.0 + 0.25 });
        canvas.puff(x + place * size, y - high * size * 0.8, r, 0.62, tone, strength);
    }
}

fn clouds(canvas: &mut Canvas, palette: &Palette, top: f32, bottom: f32, count: usize, dice: &mut Dice) {
    for i in 0..count {
        let share = i as f32 / count.max(1) as f32;
        let y = top + (bottom - top) * share + dice.range(-0.03, 0.03) * canvas.u;
        // Clouds are smaller the nearer they are to the horizon.
        let size = canvas.u * dice.range(0.16, 0.34) * (1.1 - share * 0.7);
        let x = dice.range(-0.05, 1.05) * canvas.w;
        let light = palette.sky[3].mix(palette.sun, 0.6);
        let shade = palette.sky[1].mix(palette.sky[2], share);
        cloud(canvas, (x, y), size, (light, shade), 0.16, dice);
    }
}

/// The heights of a line of hills: `base` is their foot, `rise` how high they may be, `length`
/// how many of them stand side by side in one unit.
#[derive(Clone, Copy)]
struct Ridge {
    noise: Noise,
    base: f32,
    rise: f32,
    length: f32,
    rough: u32,
    /// Whether tops are pointed as those of mountains.
    sharp: bool,
}

impl Ridge {
    fn at(&self, x: f32, u: f32) -> f32 {
        let value = self.noise.line(x / u * self.length, self.rough);
        let value = if self.sharp { 1.0 - (value * 2.0 - 1.0).abs() * 1.5 } else { value };
        self.base - self.rise * value
    }

    fn points(self, canvas: &Canvas) -> impl Iterator<Item = (f32, f32)> {
        let (w, h, u) = (canvas.w, canvas.h, canvas.u);
        let steps = (w / 2.0).clamp(8.0, 2400.0);
        let line = (0..=steps as usize).map(move |i| {
            let x = w * i as f32 / steps.floor();
            (x, self.at(x, u))
        });
        [(-2.0, h + 2.0)].into_iter().chain(line).chain([(w + 2.0, h + 2.0)])
    }

    /// Fills the ridge, from its tops down to `foot`.
    fn paint(self, canvas: &mut Canvas, top: Tone, foot: Tone) {
        let path = polygon(self.points(canvas));
        let h = canvas.h;
        canvas.fade(path, (0.0, self.base - self.rise), (0.0, h), &[top.solid(), foot.solid()]);
    }
}

/// A fir tree that stands at (x, y).
fn fir(canvas: &mut Canvas, x: f32, y: f32, high: f32, tone: Tone, dice: &mut Dice) {
    let wide = high * dice.range(0.19, 0.25);
    let mut points = vec![(x, y - high)];
    let tiers = 7;
    let mut left = Vec::new();
    for tier in 1..=tiers {
        let share = tier as f32 / tiers as f32;
        let out = wide * share.powf(0.9) * dice.range(0.85, 1.1);
        let level = y - high * (1.0 - share * 0.94);
        points.push((x + out, level + high * 0.02));
        points.push((x + out * 0.52, level - high * 0.012));
        left.push((x - out * dice.range(0.9, 1.1), level + high * 0.02));
        left.push((x - out * 0.52, level - high * 0.012));
    }
    points.extend(left.into_iter().rev());
    canvas.fill(polygon(points), tone.solid());
    canvas.fill(super::canvas::rect(x - high * 0.015, y - high * 0.07, high * 0.03, high * 0.1), tone.solid());
}

fn birds(canvas: &mut Canvas, x: f32, y: f32, tone: Tone, dice: &mut Dice) {
    for _ in 0..dice.below(5) + 4 {
        let (x, y) = (x + dice.range(-0.16, 0.16) * canvas.u, y + dice.range(-0.06, 0.06) * canvas.u);
        let s = canvas.u * dice.range(0.007, 0.013);
        let lift = dice.range(0.3, 0.8);
        let wings = super::canvas::polyline([
            (x - s * 1.5, y - s * lift * 0.6),
            (x - s * 0.7, y - s * lift),
            (x, y),
            (x + s * 0.7, y - s * lift),
            (x + s * 1.5, y - s * lift * 0.6),
        ]);
        canvas.stroke(wings, canvas.u * 0.0026, tone.alpha(0.85));
    }
}
