//! Space and northern lights.

use tiny_skia::PathBuilder;

use super::super::canvas::{Canvas, oval, polygon, polyline, rect};
use super::super::palette::{Palette, Tone};
use super::super::{Dice, Words};
use super::{Ridge, fir, stars};

pub(super) fn space(canvas: &mut Canvas, palette: &Palette, words: &Words, dice: &mut Dice) {
    let (w, h, u) = (canvas.w, canvas.h, canvas.u);
    let deep = palette.sky[0].darker(0.55);
    canvas.band(0.0, h, &[deep.solid(), palette.sky[0].mix(palette.sky[1], 0.4).darker(0.3).solid(), deep.solid()]);
    let (cloud, fold, dust) = (dice.noise(), dice.noise(), dice.noise());
    let (from, turn) = (dice.range(-0.2, 0.2), dice.range(-0.6, 0.6));
    let (warm, cold) = (palette.sky[3].mix(palette.accent, 0.3), palette.sky[2].mix(Tone::hex(0x4a_7bff), 0.35));
    let middle = (w / u / 2.0, h / u / 2.0);
    canvas.shine(0.0, h, |x, y| {
        let (dx, dy) = (x - middle.0, y - middle.1);
        // A band of gas across the picture, folded by noise of noise.
        let across = (dy - from - dx * turn).abs();
        let bend = fold.fractal(x * 1.7, y * 1.7, 4);
        let gas = cloud.fractal(x * 2.4 + bend * 2.2, y * 2.4 - bend * 1.7, 6);
        let thick = (1.0 - across * (1.5 - bend)).clamp(0.0, 1.0);
        let lane = (dust.fractal(x * 3.2 + bend, y * 3.2, 5) - 0.42).max(0.0) * 3.0;
        let strength = ((gas - 0.36).max(0.0) * 2.6 * thick * (1.0 - lane * 0.55)).clamp(0.0, 1.0);
        (cold.mix(warm, (strength * 1.3 + bend - 0.5).clamp(0.0, 1.0)), strength.powf(1.25))
    });
    stars(canvas, h * 1.6, 420, dice);
    for _ in 0..4 {
        let (x, y, long) = (dice.range(0.0, w), dice.range(0.0, h), u * dice.range(0.02, 0.05));
        for (dx, dy) in [(1.0, 0.0), (0.0, 1.0)] {
            let ray = polyline([(x - dx * long, y - dy * long), (x + dx * long, y + dy * long)]);
            canvas.stroke_light(ray, u * 0.0014, Tone::WHITE.alpha(0.55));
        }
        canvas.glow(x, y, long * 1.2, Tone::WHITE, 0.8);
    }
    let side = if dice.chance(0.5) { 0.30 } else { 0.70 };
    let r = u * dice.range(0.19, 0.27);
    planet(canvas, w * side, h * dice.range(0.34, 0.46), r, palette, dice);
    if words.any(&["rocket", "spaceship", "astronaut", "launch", "satellite", "ship"]) {
        rocket(canvas, w * (1.0 - side), h * 0.42, u * 0.24, palette);
    } else {
        let small = Palette { sky: [palette.sky[1], palette.near, palette.far, palette.accent], ..*palette };
        planet(canvas, w * (1.0 - side) + u * 0.12, h * dice.range(0.2, 0.3), r * 0.24, &small, dice);
    }
}

fn planet(canvas: &mut Canvas, x: f32, y: f32, r: f32, palette: &Palette, dice: &mut Dice) {
    let ring = r > canvas.u * 0.1 && dice.chance(0.65);
    let tilt = dice.range(-0.35, 0.35);
    let glow = palette.sky[3].mix(palette.accent, 0.4);
    canvas.glow(x, y, r * 1.5, glow, 0.45);
    if ring {
        rings(canvas, (x, y), r, tilt, palette, false);
    }
    let Some(ball) = PathBuilder::from_circle(x, y, r) else { return };
    let mask = canvas.mask(&ball);
    let base = palette.sky[2].mix(palette.sky[3], 0.3);
    canvas.fill(Some(ball.clone()), base.solid());
    let noise = dice.noise();
    let bands = 16;
    for i in 0..bands {
        let t = i as f32 / bands as f32 * 2.0 - 1.0;
        let tone =
            palette.sky[1].mix(palette.sky[3], noise.line(i as f32 * 0.8, 2)).mix(palette.accent, 0.18 * dice.unit());
        let points: Vec<_> = (0..=24)
            .map(|k| {
                let s = k as f32 / 12.0 - 1.0;
                let wobble = (noise.fractal(s * 2.0 + t * 3.0, t * 4.0, 3) - 0.5) * 0.12;
                (x + s * r * 1.1, y + (t + wobble + s * tilt * 0.5 - 0.18 * (1.0 - s * s)) * r)
            })
            .collect();
        let lower = points.iter().rev().map(|(px, py)| (*px, py + r * dice.range(0.05, 0.16)));
        canvas.fill_inside(polygon(points.iter().copied().chain(lower)), tone.alpha(0.55), mask.as_ref());
    }
    // Night on the side away from the light.
    for (shift, size, alpha) in [(0.42, 1.22, 0.34), (0.55, 1.16, 0.34), (0.70, 1.12, 0.40)] {
        let light = (x - r * shift, y - r * shift * 0.7);
        let night = palette.sky[0].darker(0.75).alpha(alpha);
        canvas.fill_inside(crescent(light, r * size, (x, y), r), night, mask.as_ref());
    }
    canvas.stroke_light(PathBuilder::from_circle(x, y, r), r * 0.02, glow.alpha(0.35));
    if ring {
        rings(canvas, (x, y), r, tilt, palette, true);
    }
}

/// What of the disc at `center` lies outside the circle of light: a crescent, as a polygon.
fn crescent(light: (f32, f32), reach: f32, center: (f32, f32), r: f32) -> Option<tiny_skia::Path> {
    let away = ((center.0 - light.0).powi(2) + (center.1 - light.1).powi(2)).sqrt().max(0.01);
    let direction = ((center.1 - light.1) / away).atan2((center.0 - light.0) / away);
    // Where the circles cross, seen from the light and from the disc.
    let cosine = |a: f32, b: f32, c: f32| ((a * a + b * b - c * c) / (2.0 * a * b)).clamp(-1.0, 1.0);
    let inner = cosine(away, reach, r * 1.03).acos();
    let outer = std::f32::consts::PI - cosine(away, r * 1.03, reach).acos();
    let arc = |(x, y): (f32, f32), r: f32, half: f32, back: bool| {
        (0..=40).map(move |i| {
            let t = i as f32 / 20.0 - 1.0;
            let angle = direction + half * if back { -t } else { t };
            (x + angle.cos() * r, y + angle.sin() * r)
        })
    };
    polygon(arc(light, reach, inner, false).chain(arc(center, r * 1.03, outer, true)))
}

fn rings(canvas: &mut Canvas, (x, y): (f32, f32), r: f32, tilt: f32, palette: &Palette, front: bool) {
    for (size, width, alpha) in [(1.45, 0.055, 0.75), (1.62, 0.10, 0.5), (1.85, 0.06, 0.6), (2.02, 0.02, 0.4)] {
        let from = if front { 0.0 } else { std::f32::consts::PI };
        let points = (0..=60).map(|i| {
            let angle = from + std::f32::consts::PI * i as f32 / 60.0;
            let (px, py) = (angle.cos() * r * size, angle.sin() * r * size * 0.26);
            (x + px * tilt.cos() - py * tilt.sin(), y + px * tilt.sin() + py * tilt.cos())
        });
        let tone = palette.sky[3].mix(palette.sun, 0.4).mix(palette.sky[1], size - 1.4);
        canvas.stroke(polyline(points), r * width, tone.alpha(alpha));
    }
}

fn rocket(canvas: &mut Canvas, x: f32, y: f32, size: f32, palette: &Palette) {
    let s = size;
    canvas.glow(x, y + s * 0.75, s * 0.9, Tone::hex(0xff_9a3d), 0.8);
    for (wide, long, tone) in [(0.13, 0.75, 0xff_7a2d), (0.085, 0.55, 0xff_c14d), (0.045, 0.36, 0xff_f6d8)] {
        let mut flame = PathBuilder::new();
        flame.move_to(x - s * wide, y + s * 0.44);
        flame.quad_to(x - s * wide * 0.9, y + s * (0.44 + long * 0.5), x, y + s * (0.44 + long));
        flame.quad_to(x + s * wide * 0.9, y + s * (0.44 + long * 0.5), x + s * wide, y + s * 0.44);
        canvas.light(flame.finish(), Tone::hex(tone).alpha(0.9));
    }
    let red = palette.accent.mix(Tone::hex(0xd8_3a2f), 0.6);
    for side in [-1.0, 1.0] {
        let fin = polygon([
            (x + side * s * 0.12, y + s * 0.12),
            (x + side * s * 0.27, y + s * 0.50),
            (x + side * s * 0.09, y + s * 0.43),
        ]);
        canvas.fill(fin, red.darker(0.2).solid());
    }
    let mut body = PathBuilder::new();
    body.move_to(x, y - s * 0.62);
    body.cubic_to(x + s * 0.22, y - s * 0.3, x + s * 0.17, y + s * 0.2, x + s * 0.11, y + s * 0.44);
    body.line_to(x - s * 0.11, y + s * 0.44);
    body.cubic_to(x - s * 0.17, y + s * 0.2, x - s * 0.22, y - s * 0.3, x, y - s * 0.62);
    let white = Tone::hex(0xf2_f0ea);
    canvas.fade(
        body.finish(),
        (x - s * 0.15, y),
        (x + s * 0.17, y),
        &[white.solid(), white.solid(), white.darker(0.5).solid()],
    );
    let mut nose = PathBuilder::new();
    nose.move_to(x, y - s * 0.62);
    nose.quad_to(x + s * 0.09, y - s * 0.48, x + s * 0.118, y - s * 0.34);
    nose.line_to(x - s * 0.118, y - s * 0.34);
    nose.quad_to(x - s * 0.09, y - s * 0.48, x, y - s * 0.62);
    canvas.fade(nose.finish(), (x - s * 0.1, y), (x + s * 0.12, y), &[red.solid(), red.darker(0.45).solid()]);
    canvas.disc(x, y - s * 0.12, s * 0.07, red.darker(0.3).solid());
    canvas.disc(x, y - s * 0.12, s * 0.052, Tone::hex(0x8f_d3ff).solid());
    canvas.fill(rect(x - s * 0.11, y + s * 0.34, s * 0.22, s * 0.03), red.solid());
}

pub(super) fn aurora(canvas: &mut Canvas, palette: &Palette, dice: &mut Dice) {
    let (w, h, u) = (canvas.w, canvas.h, canvas.u);
    let horizon = h * 0.70;
    let night = [Tone::hex(0x03_0614), Tone::hex(0x06_1230), Tone::hex(0x0d_2a4a), Tone::hex(0x1d_4d5e)];
    canvas.band(0.0, horizon, &night.map(Tone::solid));
    canvas.band(horizon, h, &[night[3].solid(), night[1].solid()]);
    stars(canvas, horizon, 330, dice);
    let (curve, rays, drift) = (dice.noise(), dice.noise(), dice.noise());
    let (green, violet) = (Tone::hex(0x4d_ffb0), Tone::hex(0xa4_5cff).mix(palette.accent, 0.1));
    let (ground, tall) = (horizon / u, horizon / u);
    canvas.shine(0.0, horizon, |x, y| {
        let mut light = [0.0_f32; 3];
        for curtain in 0..3 {
            let k = curtain as f32;
            // Each curtain hangs from a winding line and fades upwards, faster where it folds.
            let foot = ground * (0.42 + 0.17 * k) + (curve.fractal(x * 0.9 + k * 7.1, k * 3.7, 3) - 0.5) * tall * 0.75;
            let above = foot - y;
            let ray = 0.35 + 0.65 * rays.at(x * 17.0 + k * 31.0 + drift.at(x * 2.0, k) * 6.0, y * 0.35);
            let reach = tall * (0.16 + 0.26 * rays.at(x * 3.0 + k * 11.0, 1.0));
            let strength = if above < 0.0 {
                (1.0 + above / (tall * 0.022)).clamp(0.0, 1.0)
            } else {
                (-above / reach.max(0.01)).exp()
            } * ray
                * (0.85 - 0.17 * k);
            let parts = green.mix(violet, (above / (reach * 1.7).max(0.01)).clamp(0.0, 1.0)).parts();
            for (sum, part) in light.iter_mut().zip(parts) {
                *sum += part * strength * 0.85;
            }
        }
        let peak = light.iter().copied().fold(0.001, f32::max);
        let [r, g, b] = light.map(|part| (part / peak * 255.0).clamp(0.0, 255.0) as u32);
        (Tone::hex((r << 16) | (g << 8) | b), peak.min(0.92))
    });
    for i in 0..3 {
        let near = i as f32 / 2.0;
        let ridge = Ridge {
            noise: dice.noise(),
            base: horizon + u * 0.01,
            rise: u * (0.20 - 0.075 * i as f32),
            length: 1.3 + near,
            rough: 5,
            sharp: i < 2,
        };
        let tone = Tone::hex(0x24_4a63).mix(Tone::hex(0x07_1420), near * 0.9);
        ridge.paint(canvas, tone, tone.darker(0.35));
        if i == 2 {
            for _ in 0..(w / u * 70.0) as usize {
                let x = dice.range(-0.02, 1.02) * w;
                let high = u * dice.range(0.03, 0.10);
                fir(canvas, x, ridge.at(x, u) + high * 0.15, high, Tone::hex(0x04_0c14), dice);
            }
        }
    }
    canvas.reflect(horizon, Tone::hex(0x04_101c), dice);
    for _ in 0..6 {
        let (x, y) = (dice.range(0.0, w), horizon + (h - horizon) * dice.range(0.1, 0.9));
        canvas.light(oval(x, y, u * dice.range(0.1, 0.3), u * 0.002), green.alpha(0.10));
    }
}
