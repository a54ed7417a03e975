//! A city at its lights, and a cat before the moon.

use tiny_skia::PathBuilder;

use super::super::canvas::{Canvas, oval, polygon, polyline, rect};
use super::super::palette::{Palette, Tone};
use super::super::{Dice, Words};
use super::{Ridge, clouds, moon, sky, stars, sun};

pub(super) fn city(canvas: &mut Canvas, palette: &Palette, dice: &mut Dice) {
    let (w, h, u) = (canvas.w, canvas.h, canvas.u);
    let shore = h * 0.72;
    sky(canvas, palette, shore);
    if palette.dark {
        stars(canvas, shore * 0.8, 140, dice);
    }
    let (x, y, r) = (w * dice.range(0.25, 0.75), shore * dice.range(0.3, 0.52), u * dice.range(0.08, 0.13));
    if palette.dark {
        moon(canvas, palette, x, y, r, dice)
    } else {
        sun(canvas, palette, x, y, r)
    }
    clouds(canvas, palette, shore * 0.1, shore * 0.6, 4, dice);
    for layer in 0..3 {
        let near = layer as f32 / 2.0;
        let tone = palette.far.mix(palette.sky[2], 0.25).mix(palette.near, 0.12 + near * 0.85);
        let mut x = -u * 0.05;
        while x < w {
            let wide = u * dice.range(0.045, 0.10) * (1.0 + 0.25 * near);
            // The centre of town is higher than its edges.
            let middle = 1.0 - ((x / w - 0.5).abs() * 1.3).powi(2);
            let tall = shore * (0.34 - 0.06 * near) + u * 0.10;
            let high = tall * dice.range(0.35, 1.25) * middle.max(0.3);
            tower(canvas, x, shore, wide, high, tone, near, palette, dice);
            x += wide * dice.range(0.82, 1.12);
        }
        let haze = palette.sky[3].mix(palette.sky[2], 0.4);
        canvas.band(shore - u * 0.20, shore, &[haze.alpha(0.0), haze.alpha(0.34 * (1.0 - near))]);
    }
    canvas.band(shore - u * 0.02, shore, &[palette.accent.alpha(0.0), palette.accent.alpha(0.35)]);
    canvas.reflect(shore, palette.near.mix(palette.sky[0], 0.4), dice);
    for _ in 0..60 {
        let depth = dice.unit();
        let y = shore + (h - shore) * depth;
        let path = oval(dice.range(0.0, w), y, u * (0.01 + 0.05 * depth), (u * 0.0016).max(0.5));
        canvas.light(path, palette.accent.mix(palette.sun, dice.unit()).alpha(0.10));
    }
}

#[expect(clippy::too_many_arguments, reason = "a house is made of this much")]
fn tower(
    canvas: &mut Canvas,
    x: f32,
    foot: f32,
    wide: f32,
    high: f32,
    tone: Tone,
    near: f32,
    palette: &Palette,
    dice: &mut Dice,
) {
    let u = canvas.u;
    let top = foot - high;
    canvas.fade(
        rect(x, top, wide, high),
        (x, top),
        (x + wide, top),
        &[tone.lighter(0.05).solid(), tone.darker(0.2).solid()],
    );
    match dice.below(6) {
        0 => canvas
            .fill(polygon([(x, top + 1.0), (x + wide * 0.5, top - wide * 0.55), (x + wide, top + 1.0)]), tone.solid()),
        1 => canvas.fill(polygon([(x, top + 1.0), (x, top - wide * 0.5), (x + wide, top + 1.0)]), tone.solid()),
        2 => {
            canvas.fill(rect(x + wide * 0.2, top - high * 0.08, wide * 0.6, high * 0.09), tone.solid());
            canvas.fill(rect(x + wide * 0.36, top - high * 0.14, wide * 0.28, high * 0.07), tone.solid());
            spire(canvas, x + wide * 0.5, top - high * 0.13, high * 0.16, tone, palette, near);
        }
        3 => spire(canvas, x + wide * dice.range(0.3, 0.7), top, high * dice.range(0.08, 0.18), tone, palette, near),
        4 => canvas.fill(oval(x + wide * 0.5, top, wide * 0.5, wide * 0.3), tone.solid()),
        _ => canvas.fill(rect(x + wide * 0.12, top - u * 0.012, wide * 0.3, u * 0.014), tone.solid()),
    }
    if near < 0.2 {
        return;
    }
    let (columns, step) = ((wide / (u * 0.0125)).floor().max(2.0), u * 0.017);
    let gap = wide / columns;
    let warm = palette.accent.mix(palette.sun, 0.5);
    let cold = palette.sky[3].mix(Tone::hex(0xbf_e6ff), 0.5);
    let busy = dice.range(0.12, 0.55);
    let mut y = top + step * 0.7;
    while y < foot - step {
        let lit_floor = dice.chance(0.07);
        for column in 0..columns as usize {
            if dice.chance(if lit_floor { 0.9 } else { busy }) {
                let light = if dice.chance(0.75) { warm } else { cold };
                let alpha = dice.range(0.25, 0.95) * (0.35 + 0.6 * near);
                let place = rect(x + gap * (column as f32 + 0.25), y, gap * 0.5, step * 0.48);
                canvas.fill(place, light.alpha(alpha));
            }
        }
        y += step;
    }
}

fn spire(canvas: &mut Canvas, x: f32, foot: f32, high: f32, tone: Tone, palette: &Palette, near: f32) {
    let u = canvas.u;
    canvas.fill(polygon([(x - u * 0.004, foot + 1.0), (x, foot - high), (x + u * 0.004, foot + 1.0)]), tone.solid());
    if near > 0.4 {
        canvas.glow(x, foot - high, u * 0.018, palette.accent.mix(Tone::hex(0xff_4040), 0.6), 0.9);
    }
}

pub(super) fn cat(canvas: &mut Canvas, palette: &Palette, words: &Words, dice: &mut Dice) {
    let (w, h, u) = (canvas.w, canvas.h, canvas.u);
    sky(canvas, palette, h * 0.8);
    if palette.dark {
        stars(canvas, h * 0.75, 240, dice);
    }
    let (x, y, r) = (w * 0.5, h * 0.40, u * 0.33);
    moon(canvas, palette, x, y, r, dice);
    for _ in 0..3 {
        let size = u * dice.range(0.12, 0.24);
        let cloud_y = y + dice.range(-0.25, 0.3) * u;
        let cloud_x = dice.range(0.1, 0.9) * w;
        super::cloud(canvas, (cloud_x, cloud_y), size, (palette.sky[3], palette.sky[2]), 0.10, dice);
    }
    let hills = Ridge { noise: dice.noise(), base: h * 0.80, rise: u * 0.12, length: 1.4, rough: 3, sharp: false };
    hills.paint(canvas, palette.far.mix(palette.near, 0.55), palette.near);
    let ground = h * 0.73;
    roof(canvas, ground, palette, dice);
    let pointed = words.any(&["fox", "wolf", "dog", "puppy"]);
    sitting(canvas, x + dice.range(-0.06, 0.06) * u, ground + u * 0.01, u * 0.36, palette, pointed, dice.chance(0.5));
}

/// A ridge of a roof with its tiles and a chimney: what cats sit on.
fn roof(canvas: &mut Canvas, top: f32, palette: &Palette, dice: &mut Dice) {
    let (w, h, u) = (canvas.w, canvas.h, canvas.u);
    let tone = palette.near.mix(palette.far, 0.15);
    let side = if dice.chance(0.5) { 0.16 } else { 0.80 };
    canvas.fill(rect(w * side, top - u * 0.16, u * 0.09, u * 0.2), tone.darker(0.2).solid());
    canvas.fill(rect(w * side - u * 0.012, top - u * 0.175, u * 0.114, u * 0.03), tone.darker(0.35).solid());
    for i in 0..6 {
        let (x, y) = (w * side + u * (0.045 + 0.014 * i as f32), top - u * (0.19 + 0.035 * i as f32));
        canvas.puff(x, y, u * (0.016 + 0.009 * i as f32), 0.9, palette.sky[3], 0.16);
    }
    canvas.band(top, h, &[tone.solid(), tone.darker(0.6).solid()]);
    let (wide, high) = (u * 0.062, u * 0.042);
    let mut y = top + high * 0.2;
    let mut row = 0;
    while y < h {
        let shift = if row % 2 == 0 { 0.0 } else { wide * 0.5 };
        let mut x = -wide + shift;
        while x < w + wide {
            let curve = (0..=8).map(|k| {
                let t = k as f32 / 8.0;
                (x + wide * t, y + high * (t * std::f32::consts::PI).sin() * 0.55)
            });
            let light = palette.sky[2].mix(palette.sun, 0.3).alpha(dice.range(0.06, 0.22));
            canvas.stroke(polyline(curve), u * 0.003, light);
            x += wide;
        }
        y += high;
        row += 1;
    }
    canvas.band(top - u * 0.002, top + u * 0.006, &[palette.sun.alpha(0.35), palette.sun.alpha(0.0)]);
}

/// A cat (or, with a long nose, a fox) that sits and looks at us. `s` is how high it is.
fn sitting(canvas: &mut Canvas, x: f32, foot: f32, s: f32, palette: &Palette, pointed: bool, left: bool) {
    let fur = palette.near.darker(0.35);
    let rim = palette.sun.alpha(0.30);
    let side = if left { -1.0 } else { 1.0 };
    let at = |dx: f32, dy: f32| (x + side * dx * s, foot - dy * s);
    let mut tail = PathBuilder::new();
    let ((x0, y0), (x1, y1), (x2, y2), (x3, y3)) = (at(0.20, 0.06), at(0.62, -0.04), at(0.66, 0.34), at(0.46, 0.42));
    tail.move_to(x0, y0);
    tail.cubic_to(x1, y1, x2, y2, x3, y3);
    canvas.stroke(tail.finish(), s * if pointed { 0.13 } else { 0.075 }, fur.solid());
    let start = at(-0.22, 0.0);
    let mut outline = PathBuilder::new();
    outline.move_to(start.0, start.1);
    for [a, b, c] in [
        [(-0.30, 0.20), (-0.22, 0.46), (-0.13, 0.60)],
        [(-0.08, 0.68), (0.08, 0.68), (0.13, 0.60)],
        [(0.26, 0.44), (0.38, 0.18), (0.28, 0.0)],
    ] {
        let (a, b, c) = (at(a.0, a.1), at(b.0, b.1), at(c.0, c.1));
        outline.cubic_to(a.0, a.1, b.0, b.1, c.0, c.1);
    }
    outline.close();
    if let Some(path) = outline.finish() {
        canvas.stroke(Some(path.clone()), s * 0.018, rim);
        canvas.fill(Some(path), fur.solid());
    }
    let ears = |k: f32| {
        let tip = if pointed { 1.06 } else { 1.0 };
        let points = [at(k * 0.05, 0.86), at(k * 0.17, tip), at(k * 0.20, 0.76)];
        let inner = [at(k * 0.09, 0.85), at(k * 0.16, tip - 0.05), at(k * 0.175, 0.80)];
        (polygon(points), polygon(inner))
    };
    let (hx, hy) = at(0.0, 0.74);
    for k in [-1.0, 1.0] {
        let (ear, inner) = ears(k);
        if let Some(path) = ear {
            canvas.stroke(Some(path.clone()), s * 0.018, rim);
            canvas.fill(Some(path), fur.solid());
        }
        canvas.fill(inner, fur.mix(palette.accent, 0.22).solid());
    }
    canvas.stroke(oval(hx, hy, s * 0.205, s * 0.165), s * 0.018, rim);
    canvas.fill(oval(hx, hy, s * 0.205, s * 0.165), fur.solid());
    if pointed {
        canvas.fill(polygon([at(-0.10, 0.70), at(0.10, 0.70), at(0.0, 0.54)]), fur.lighter(0.06).solid());
    }
    for k in [-1.0, 1.0] {
        let (ex, ey) = at(k * 0.085, 0.755);
        canvas.glow(ex, ey, s * 0.09, palette.accent, 0.4);
        canvas.fill(oval(ex, ey, s * 0.040, s * 0.032), palette.accent.lighter(0.25).solid());
        canvas.fill(oval(ex, ey, s * 0.010, s * 0.029), fur.solid());
        for dy in [-0.012, 0.014, 0.04] {
            let whisker = [at(k * 0.06, 0.68 + dy * 0.4), at(k * 0.27, 0.68 + dy * 1.6)];
            canvas.stroke(polyline(whisker), s * 0.004, palette.sun.alpha(0.35));
        }
    }
    let (nx, ny) = at(0.0, if pointed { 0.56 } else { 0.695 });
    canvas.fill(
        polygon([(nx - s * 0.018, ny - s * 0.012), (nx + s * 0.018, ny - s * 0.012), (nx, ny + s * 0.012)]),
        palette.accent.mix(fur, 0.4).solid(),
    );
    // Front paws.
    for k in [-1.0, 1.0] {
        let (px, py) = at(k * 0.085, 0.02);
        canvas.fill(oval(px, py, s * 0.075, s * 0.035), fur.lighter(0.05).solid());
    }
    let chest = polyline([at(0.0, 0.36), at(0.0, 0.03)]);
    canvas.stroke(chest, s * 0.006, palette.sun.alpha(0.10));
}
