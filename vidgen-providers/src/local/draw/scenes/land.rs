//! Sea, mountains, desert and meadow.

use tiny_skia::PathBuilder;

use super::super::canvas::{Canvas, oval, polygon, polyline, rect};
use super::super::palette::{Palette, Tone};
use super::super::{Dice, Words};
use super::{Ridge, birds, cloud, clouds, fir, moon, sky, stars, sun};

pub(super) fn sea(canvas: &mut Canvas, palette: &Palette, words: &Words, dice: &mut Dice) {
    let (w, h, u) = (canvas.w, canvas.h, canvas.u);
    let storm = words.any(&["storm", "stormy", "thunder", "lightning", "tempest", "rain", "hurricane"]);
    let horizon = h * dice.range(0.50, 0.58);
    let side = if dice.chance(0.5) { 0.27 } else { 0.73 };
    sky(canvas, palette, horizon);
    let sun_x = w * (1.0 - side) + dice.range(-0.06, 0.06) * w;
    if palette.dark && !storm {
        stars(canvas, horizon, 150, dice);
    }
    if storm {
        for i in 0..34 {
            let (x, y) = (dice.range(-0.1, 1.1) * w, horizon * dice.range(-0.05, 0.5));
            let tone =
                (if i % 3 == 0 { palette.sky[1] } else { palette.sky[0] }).mix(palette.sky[2], dice.range(0.0, 0.55));
            canvas.puff(x, y, u * dice.range(0.16, 0.42), 0.5, tone, 0.55);
        }
        canvas.glow(sun_x, horizon, u * 0.7, palette.sky[3], 0.5);
        lightning(canvas, sun_x, horizon, palette, dice);
    } else {
        let r = u * dice.range(0.055, 0.085);
        let y = horizon - r * dice.range(0.3, 2.4);
        if palette.dark {
            moon(canvas, palette, sun_x, y, r, dice)
        } else {
            sun(canvas, palette, sun_x, y, r)
        }
        clouds(canvas, palette, h * 0.06, horizon - u * 0.07, 6, dice);
        birds(canvas, w * dice.range(0.3, 0.7), horizon * dice.range(0.3, 0.6), palette.near, dice);
    }

    let shallow = palette.sky[3].mix(palette.sky[1], 0.45).mix(palette.near, 0.12);
    let deep = palette.near.mix(palette.sky[0], 0.5);
    canvas.band(horizon, h, &[shallow.solid(), shallow.mix(deep, 0.55).solid(), deep.solid(), palette.near.solid()]);
    let sailing = words.any(&["boat", "ship", "sail", "sailing", "yacht", "fishing"]);
    let rocks =
        words.any(&["lighthouse", "coast", "rock", "cliff", "storm", "island"]) || (!sailing && dice.chance(0.35));
    let waves = if storm { 10 } else { 8 };
    for i in 0..waves {
        let near = (i as f32 + 1.0) / waves as f32;
        if rocks && i == 4 {
            lighthouse(canvas, palette, side * w, horizon, words, dice);
        }
        let base = horizon + (h - horizon) * (0.02 + near.powf(1.5) * 0.9);
        let swell = u * if storm { 0.05 + 0.10 * near } else { 0.008 + 0.035 * near };
        wave(canvas, base, swell, 9.0 - 6.5 * near, shallow.mix(deep, 0.25 + near * 0.75), palette, near, storm, dice);
    }
    if !storm {
        glitter(canvas, sun_x, horizon, palette, dice);
    }
    if sailing || (!rocks && dice.chance(0.6)) {
        boat(canvas, w * (side + dice.range(-0.05, 0.05)), horizon + (h - horizon) * 0.16, u * 0.17, palette);
    }
    if storm {
        rain(canvas, dice);
    }
}

#[expect(clippy::too_many_arguments, reason = "a wave is made of this much")]
fn wave(
    canvas: &mut Canvas,
    base: f32,
    swell: f32,
    length: f32,
    tone: Tone,
    palette: &Palette,
    near: f32,
    storm: bool,
    dice: &mut Dice,
) {
    let ridge =
        Ridge { noise: dice.noise(), base, rise: swell, length, rough: if storm { 2 } else { 3 }, sharp: storm };
    // Light falls through the crest, and little of it reaches the trough.
    let light = tone.mix(palette.sky[3], if storm { 0.34 } else { 0.20 });
    let path = polygon(ridge.points(canvas));
    let (top, foot) = (base - swell, base + swell * 1.2 + canvas.u * 0.02);
    canvas.fade(path, (0.0, top), (0.0, foot), &[light.solid(), tone.solid(), tone.darker(0.3).solid()]);
    let crest: Vec<_> = ridge.points(canvas).filter(|(_, y)| *y < canvas.h).collect();
    let u = canvas.u;
    let foam = palette.sky[3].lighter(if storm { 0.35 } else { 0.15 });
    // Foam lies on the crests only, and frays where it ends.
    for piece in crest.windows(4).step_by(3) {
        let high = piece.iter().map(|(_, y)| (base - y) / swell.max(1.0)).fold(1.0, f32::min);
        if high > 0.58 && dice.chance(0.85) {
            let width = u * (0.0016 + 0.0060 * near) * (high - 0.3) * dice.range(0.6, 1.3);
            canvas.stroke(
                polyline(piece.iter().copied()),
                width,
                foam.alpha((high - 0.5) * if storm { 1.5 } else { 0.8 }),
            );
        }
    }
}

/// The light of the sun on water: dashes that widen towards us.
fn glitter(canvas: &mut Canvas, x: f32, horizon: f32, palette: &Palette, dice: &mut Dice) {
    let (h, u) = (canvas.h, canvas.u);
    for _ in 0..240 {
        let depth = dice.unit().powf(1.4);
        let y = horizon + (h - horizon) * depth * 0.8 + 1.0;
        let spread = u * (0.03 + 0.22 * depth);
        let x = x + (dice.unit() + dice.unit() - 1.0) * spread;
        let long = u * (0.008 + 0.05 * depth) * dice.range(0.4, 1.2);
        let path = oval(x, y, long, (u * (0.0011 + 0.003 * depth)).max(0.5));
        canvas.light(path, palette.sun.alpha(0.5 * (1.0 - depth * 0.7) * dice.unit()));
    }
}

fn lightning(canvas: &mut Canvas, x: f32, horizon: f32, palette: &Palette, dice: &mut Dice) {
    let u = canvas.u;
    let mut bolts = vec![(x + dice.range(-0.1, 0.1) * u, horizon * 0.22, horizon * 0.98, 1.0_f32)];
    let mut drawn = 0;
    while let Some((mut x, mut y, end, weight)) = bolts.pop() {
        let mut points = vec![(x, y)];
        while y < end {
            x += dice.range(-0.03, 0.03) * u;
            y += dice.range(0.012, 0.035) * u;
            points.push((x, y));
            drawn += 1;
            if weight > 0.5 && drawn < 60 && dice.chance(0.16) {
                bolts.push((x, y, y + dice.range(0.06, 0.2) * u, weight * 0.45));
            }
        }
        canvas.stroke_light(polyline(points.iter().copied()), u * 0.014 * weight, palette.accent.alpha(0.16));
        canvas.stroke_light(polyline(points.iter().copied()), u * 0.0045 * weight, Tone::WHITE.alpha(0.95));
    }
    canvas.glow(x, horizon * 0.3, u * 0.55, palette.sky[3].lighter(0.3), 0.55);
}

fn rain(canvas: &mut Canvas, dice: &mut Dice) {
    let (w, h, u) = (canvas.w, canvas.h, canvas.u);
    for _ in 0..(330.0 * (w * h / (u * u)).min(3.0)) as usize {
        let (x, y, long) = (dice.range(-0.1, 1.0) * w, dice.range(-0.05, 1.0) * h, u * dice.range(0.03, 0.08));
        let drop = polyline([(x, y), (x + long * 0.28, y + long)]);
        canvas.stroke(drop, u * 0.0014, Tone::WHITE.alpha(dice.range(0.05, 0.2)));
    }
}

fn lighthouse(canvas: &mut Canvas, palette: &Palette, x: f32, horizon: f32, words: &Words, dice: &mut Dice) {
    let (w, h, u) = (canvas.w, canvas.h, canvas.u);
    let rock = palette.near.mix(palette.far, 0.22);
    let foot = horizon + (h - horizon) * 0.12;
    // A rock in pieces, lit from above.
    for (i, shade) in [0.0, 0.18, 0.34].into_iter().enumerate() {
        let (wide, high) = (u * (0.27 - 0.05 * i as f32), u * (0.115 - 0.03 * i as f32));
        let count = 11;
        let noise = dice.noise();
        let top = (0..=count).map(|k| {
            let t = k as f32 / count as f32;
            let bump = (1.0 - (t * 2.0 - 1.0).powi(2)).sqrt() * (0.7 + 0.5 * noise.line(t * 5.0, 2));
            (x - wide + 2.0 * wide * t, foot + u * 0.06 - high * bump)
        });
        let path = polygon(top);
        canvas.fill(path, rock.mix(Tone::BLACK, shade * 1.6).solid());
    }
    if !words.any(&["lighthouse", "storm", "coast", "harbor", "harbour"]) && dice.chance(0.4) {
        return;
    }
    let base = foot - u * 0.045;
    let high = u * 0.40;
    let half = |t: f32| u * (0.036 - 0.013 * t);
    let top = base - high;
    let lamp = top - u * 0.022;
    // The beams lie behind the tower.
    let turn = dice.range(-0.12, 0.12);
    for direction in [-1.0, 1.0] {
        let reach = w.max(h) * 1.1;
        let end = (x + direction * reach, lamp + turn * direction * reach);
        let spread = reach * 0.085;
        let path = polygon([(x, lamp), (end.0, end.1 - spread), (end.0, end.1 + spread)]);
        let glow = palette.accent.mix(palette.sun, 0.5);
        canvas.fade_light(
            path,
            (x, lamp),
            end,
            &[glow.alpha(0.75), glow.alpha(0.22), glow.alpha(0.04), glow.alpha(0.0)],
        );
    }
    let body = Tone::hex(0xf1_ece2).mix(palette.sky[1], 0.18);
    let stripe = Tone::hex(0xb8_3227).mix(palette.sky[0], 0.2);
    for i in 0..5 {
        let (t0, t1) = (i as f32 / 5.0, (i + 1) as f32 / 5.0);
        let (y0, y1) = (base - high * t0, base - high * t1);
        let quad = |shrink: f32| {
            polygon([(x - half(t0), y0), (x + half(t0) * shrink, y0), (x + half(t1) * shrink, y1), (x - half(t1), y1)])
        };
        let tone = if i % 2 == 0 { body } else { stripe };
        canvas.fill(quad(1.0), tone.darker(0.38).solid());
        canvas.fade(
            quad(0.45),
            (x - half(0.0), 0.0),
            (x + half(0.0) * 0.5, 0.0),
            &[tone.solid(), tone.darker(0.3).solid()],
        );
    }
    let iron = palette.near.lighter(0.06);
    for share in [0.25, 0.62] {
        canvas.fill(oval(x, base - high * share, u * 0.006, u * 0.011), iron.solid());
    }
    canvas.fill(rect(x - u * 0.034, top - u * 0.004, u * 0.068, u * 0.010), iron.solid());
    canvas.fill(rect(x - u * 0.017, top - u * 0.042, u * 0.034, u * 0.040), palette.accent.lighter(0.5).solid());
    for k in [-1.0, 0.0, 1.0] {
        canvas.fill(rect(x + k * u * 0.0155 - u * 0.0012, top - u * 0.042, u * 0.0024, u * 0.04), iron.solid());
    }
    canvas.fill(
        polygon([(x - u * 0.024, top - u * 0.042), (x + u * 0.024, top - u * 0.042), (x, top - u * 0.074)]),
        iron.solid(),
    );
    canvas.glow(x, lamp, u * 0.17, palette.accent.lighter(0.4), 0.9);
}

fn boat(canvas: &mut Canvas, x: f32, y: f32, size: f32, palette: &Palette) {
    let hull = palette.near.mix(palette.accent, 0.12);
    let mut path = PathBuilder::new();
    path.move_to(x - size * 0.42, y - size * 0.10);
    path.quad_to(x - size * 0.30, y + size * 0.08, x, y + size * 0.08);
    path.quad_to(x + size * 0.34, y + size * 0.08, x + size * 0.5, y - size * 0.13);
    path.close();
    let sail = palette.sun.mix(palette.sky[3], 0.3);
    canvas.fill(
        polygon([
            (x - size * 0.03, y - size * 0.14),
            (x - size * 0.03, y - size * 1.1),
            (x - size * 0.4, y - size * 0.16),
        ]),
        sail.darker(0.12).solid(),
    );
    let mut jib = PathBuilder::new();
    jib.move_to(x + size * 0.02, y - size * 0.15);
    jib.line_to(x + size * 0.02, y - size * 1.02);
    jib.quad_to(x + size * 0.36, y - size * 0.55, x + size * 0.42, y - size * 0.17);
    jib.close();
    canvas.fill(jib.finish(), sail.solid());
    canvas.fill(rect(x - size * 0.02, y - size * 1.14, size * 0.025, size * 1.1), hull.solid());
    canvas.fill(path.finish(), hull.solid());
    for i in 0..7 {
        let depth = i as f32 / 7.0;
        canvas.fill(
            oval(x, y + size * (0.10 + depth * 0.55), size * (0.42 - depth * 0.3), size * 0.012),
            hull.alpha(0.4 - depth * 0.35),
        );
    }
}

pub(super) fn mountains(canvas: &mut Canvas, palette: &Palette, words: &Words, dice: &mut Dice) {
    let (w, h, u) = (canvas.w, canvas.h, canvas.u);
    let forest = words.any(&["forest", "tree", "wood", "bear", "deer", "hike"]) || dice.chance(0.5);
    let lake = words.any(&["lake", "river", "water", "reflection", "waterfall"]) || dice.chance(0.35);
    let snow = words.any(&["snow", "winter", "alps", "peak"]) || dice.chance(0.4);
    let horizon = h * if lake { 0.66 } else { 0.78 };
    sky(canvas, palette, horizon * 0.95);
    if palette.dark {
        stars(canvas, horizon, 170, dice);
    }
    let (x, y, r) = (w * dice.range(0.25, 0.75), horizon * dice.range(0.28, 0.5), u * dice.range(0.05, 0.085));
    if palette.dark {
        moon(canvas, palette, x, y, r, dice)
    } else {
        sun(canvas, palette, x, y, r)
    }
    clouds(canvas, palette, horizon * 0.12, horizon * 0.5, 4, dice);
    birds(canvas, w * dice.range(0.2, 0.8), horizon * dice.range(0.25, 0.45), palette.near.mix(palette.far, 0.3), dice);
    let layers = 6;
    for i in 0..layers {
        let near = i as f32 / (layers - 1) as f32;
        let ridge = Ridge {
            noise: dice.noise(),
            base: horizon * (0.70 + 0.31 * near) + u * 0.02,
            rise: u * (0.34 - 0.24 * near) * dice.range(0.85, 1.15),
            length: 1.1 + 1.6 * near,
            rough: 6,
            sharp: i < 3,
        };
        let tone = palette.far.mix(palette.sky[3], 0.35 * (1.0 - near)).mix(palette.near, near.powf(1.1) * 0.92);
        ridge.paint(canvas, tone, tone.mix(palette.sky[3], 0.30 * (1.0 - near)));
        if snow && i < 3 {
            snowcap(canvas, ridge, palette, near);
        }
        if forest && i >= 3 {
            let count = (w / u * (80.0 - 12.0 * i as f32)) as usize;
            for _ in 0..count {
                let x = dice.range(-0.02, 1.02) * w;
                let high = u * (0.022 + 0.022 * (i - 2) as f32) * dice.range(0.6, 1.2);
                fir(canvas, x, ridge.at(x, u) + high * 0.1, high, tone.darker(0.1 + 0.08 * dice.unit()), dice);
            }
        }
        if i < layers - 1 {
            let haze = palette.sky[3].mix(palette.sun, 0.2);
            let foot = ridge.base + u * 0.02;
            canvas.band(foot - u * 0.17, foot, &[haze.alpha(0.0), haze.alpha(0.30 * (1.0 - near * 0.7))]);
        }
    }
    if lake {
        canvas.reflect(horizon, palette.near.mix(palette.sky[1], 0.5), dice);
        canvas.glow(x, horizon + u * 0.04, u * 0.3, palette.sun, 0.16);
    }
    if forest {
        // Trees at our feet frame the view.
        for side in [-1.0, 1.0] {
            for _ in 0..9 {
                let x = w * 0.5 + side * w * dice.range(0.36, 0.56);
                let high = u * dice.range(0.24, 0.5);
                fir(canvas, x, h + u * 0.05, high, palette.near.darker(dice.range(0.2, 0.5)), dice);
            }
        }
    }
}

fn snowcap(canvas: &mut Canvas, ridge: Ridge, palette: &Palette, near: f32) {
    let (w, u) = (canvas.w, canvas.u);
    let limit = ridge.base - ridge.rise * 0.55;
    let white = Tone::WHITE.mix(palette.sky[2], 0.25 + 0.2 * (1.0 - near));
    let step = (u * 0.0014).max(1.0).round();
    let edge = ridge.noise;
    let mut x = 0.0;
    while x < w {
        let top = ridge.at(x, u);
        // Snow hangs down in tongues, and lies greyer on the side away from the light.
        let reach = limit + (edge.line(x / u * 34.0, 4) - 0.5) * u * 0.16;
        if top < reach {
            let slope = (ridge.at(x + u * 0.02, u) - ridge.at(x - u * 0.005, u)) / (u * 0.025);
            let tone = white.mix(palette.far, (0.18 + slope * 0.6).clamp(0.0, 0.5));
            let colors = [tone.alpha(0.92), tone.alpha(0.85), tone.alpha(0.25)];
            canvas.fade(rect(x, top, step + 0.4, reach - top), (x, top), (x, reach), &colors);
        }
        x += step;
    }
}

pub(super) fn desert(canvas: &mut Canvas, palette: &Palette, words: &Words, dice: &mut Dice) {
    let (w, h, u) = (canvas.w, canvas.h, canvas.u);
    let horizon = h * 0.56;
    sky(canvas, palette, horizon * 1.1);
    if palette.dark {
        stars(canvas, horizon, 180, dice);
    }
    let (x, r) = (w * dice.range(0.3, 0.7), u * dice.range(0.13, 0.19));
    sun(canvas, palette, x, horizon - r * dice.range(0.5, 1.1), r);
    for _ in 0..5 {
        let (x, y) = (dice.range(0.0, 1.0) * w, horizon * dice.range(0.2, 0.75));
        canvas.fill(oval(x, y, u * dice.range(0.2, 0.5), u * 0.004), palette.sky[3].alpha(0.35));
    }
    if words.any(&["pyramid", "egypt", "giza"]) || dice.chance(0.3) {
        for (at, size) in [(0.30, 0.30), (0.52, 0.20), (0.70, 0.36)] {
            let (x, size, foot) = (w * at, u * size, horizon + u * 0.04);
            let tone = palette.far.mix(palette.sky[3], 0.3);
            canvas.fill(polygon([(x - size, foot), (x, foot - size * 0.95), (x + size * 0.28, foot)]), tone.solid());
            canvas.fill(
                polygon([(x + size * 0.28, foot), (x, foot - size * 0.95), (x + size, foot)]),
                tone.darker(0.4).solid(),
            );
        }
    }
    let sand = palette.sky[2].mix(palette.sun, 0.25).mix(palette.far, 0.3);
    for i in 0..6 {
        let near = i as f32 / 5.0;
        let ridge = Ridge {
            noise: dice.noise(),
            base: horizon + (h - horizon) * (0.10 + near * 0.78),
            rise: u * (0.10 + 0.16 * near),
            length: 1.9 - near,
            rough: 2,
            sharp: true,
        };
        let lit = sand.mix(palette.near, near * 0.55);
        ridge.paint(canvas, lit, lit.mix(palette.near, 0.55));
        // The lee side of a dune lies in shade: from its crest down a slanting line.
        let crest: Vec<_> = ridge.points(canvas).filter(|(_, y)| *y < h).step_by(3).collect();
        for pair in crest.windows(2) {
            if let [(x0, y0), (x1, y1)] = pair
                && y1 > y0
            {
                let steep = ((y1 - y0) / (x1 - x0).max(0.1)).min(1.0);
                let long = u * 0.5 * steep;
                let path = polygon([
                    (*x0, *y0),
                    (*x1 + 0.6, *y1),
                    (*x1 + 0.6 - long * 0.4, *y1 + long),
                    (*x0 - long * 0.4, *y0 + long),
                ]);
                canvas.fade(
                    path,
                    (*x0, *y0),
                    (*x0, *y0 + long),
                    &[palette.near.alpha(0.55 * steep.sqrt()), palette.near.alpha(0.0)],
                );
            }
        }
    }
    birds(canvas, w * dice.range(0.2, 0.8), horizon * 0.35, palette.near, dice);
}

pub(super) fn meadow(canvas: &mut Canvas, palette: &Palette, dice: &mut Dice) {
    let (w, h, u) = (canvas.w, canvas.h, canvas.u);
    let horizon = h * 0.52;
    sky(canvas, palette, horizon);
    sun(canvas, palette, w * dice.range(0.2, 0.8), horizon * dice.range(0.3, 0.6), u * 0.06);
    for _ in 0..4 {
        let (x, y) = (dice.range(0.0, 1.0) * w, horizon * dice.range(0.15, 0.6));
        cloud(canvas, (x, y), u * dice.range(0.12, 0.25), (Tone::WHITE, palette.sky[2]), 0.2, dice);
    }
    let grass = Tone::hex(0x4f_9a5b).mix(palette.near, 0.2).mix(palette.sky[2], 0.12);
    for i in 0..6 {
        let near = i as f32 / 5.0;
        let ridge = Ridge {
            noise: dice.noise(),
            base: horizon + (h - horizon) * (0.06 + near * 0.62),
            rise: u * (0.12 + 0.03 * near),
            length: 1.2,
            rough: 2,
            sharp: false,
        };
        let tone = grass.mix(palette.sky[3], 0.5 * (1.0 - near)).mix(palette.near, near * 0.45);
        ridge.paint(canvas, tone.lighter(0.12), tone.mix(palette.near, 0.4));
        for _ in 0..(w / u * 26.0) as usize {
            let x = dice.range(0.0, 1.0) * w;
            let y = ridge.at(x, u) - u * 0.002;
            let r = u * (0.006 + 0.006 * near) * dice.range(0.5, 1.5);
            if i < 3 {
                canvas.puff(x, y, r * 1.7, 0.9, tone.darker(0.35), 0.8);
            }
        }
    }
    let petals = [
        palette.accent,
        palette.sun,
        Tone::hex(0xd9_4f8a),
        Tone::hex(0xf4_c542),
        Tone::hex(0x8a_6fd1),
        Tone::hex(0xf2_f2f2),
    ];
    let count = (w / u * 150.0) as usize;
    for i in 0..count {
        // From far to near, so that nearer flowers cover those behind them.
        let near = (i as f32 / count as f32).powf(0.8);
        let x = dice.range(-0.02, 1.02) * w;
        let foot = horizon + (h - horizon) * (0.34 + near * 0.85);
        let r = u * (0.003 + 0.025 * near * near) * dice.range(0.7, 1.25);
        let high = r * dice.range(4.0, 8.0);
        let lean = r * dice.range(-1.5, 1.5);
        let stem = palette.near.mix(grass, 0.5 * dice.unit());
        canvas.stroke(
            polyline([(x, foot), (x + lean * 0.4, foot - high * 0.5), (x + lean, foot - high)]),
            r * 0.22,
            stem.solid(),
        );
        let tone = dice.pick(&petals).copied().unwrap_or(palette.accent).mix(palette.sky[3], 0.25 * (1.0 - near));
        flower(canvas, x + lean, foot - high, r, tone, near, dice);
    }
}

fn flower(canvas: &mut Canvas, x: f32, y: f32, r: f32, tone: Tone, near: f32, dice: &mut Dice) {
    if near < 0.35 {
        canvas.disc(x, y, r, tone.solid());
        return;
    }
    let (count, turn) = (5 + dice.below(4), dice.unit());
    for k in 0..count {
        let angle = (k as f32 + turn) / count as f32 * std::f32::consts::TAU;
        let shade = tone.mix(Tone::BLACK, 0.12 * (angle.sin() * 0.5 + 0.5));
        canvas.disc(x + angle.cos() * r * 0.62, y + angle.sin() * r * 0.5, r * 0.46, shade.solid());
    }
    canvas.disc(x, y, r * 0.36, Tone::hex(0x5b_3a16).mix(Tone::hex(0xf6_c945), 0.6).solid());
}
