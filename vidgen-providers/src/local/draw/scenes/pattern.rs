//! Pictures of nothing but shapes and lines.

use tiny_skia::PathBuilder;

use super::super::Dice;
use super::super::canvas::{Canvas, polygon, polyline, rect};
use super::super::palette::{Palette, Tone};

/// A poster of tiles: quarter circles, rings, triangles, stripes.
pub(super) fn shapes(canvas: &mut Canvas, palette: &Palette, dice: &mut Dice) {
    let (w, h, u) = (canvas.w, canvas.h, canvas.u);
    let paper = palette.sky[3].lighter(0.45);
    canvas.band(0.0, h, &[paper.solid(), paper.darker(0.05).solid()]);
    let tones = [palette.sky[0], palette.sky[1], palette.sky[2], palette.accent, palette.near, palette.sky[3]];
    let size = u / (4 + dice.below(2)) as f32;
    let (columns, rows) = ((w / size).ceil() as usize, (h / size).ceil() as usize);
    // A large shape now and then breaks the grid.
    for row in 0..rows {
        for column in 0..columns {
            let (x, y) = (column as f32 * size, row as f32 * size);
            tile(canvas, x, y, size, &tones, dice);
        }
    }
    {
        let (column, row) = (dice.below(columns.saturating_sub(1).max(1)), dice.below(rows.saturating_sub(2).max(1)));
        let (x, y, r) = ((column as f32 + 1.0) * size, (row as f32 + 1.0) * size, size);
        canvas.fill(rect(x - r, y - r, r * 2.0, r * 2.0), paper.solid());
        for (share, tone) in [(1.0, tones[0]), (0.74, paper), (0.5, palette.accent), (0.22, tones[0])] {
            canvas.disc(x, y, r * share, tone.solid());
        }
    }
}

fn tile(canvas: &mut Canvas, x: f32, y: f32, s: f32, tones: &[Tone], dice: &mut Dice) {
    let mut tone = || dice.pick(tones).copied().unwrap_or(Tone::BLACK);
    let (ground, figure) = (tone(), tone());
    // The half pixel keeps seams from showing.
    let square = rect(x, y, s + 0.5, s + 0.5);
    let empty = dice.chance(0.22);
    if !empty {
        canvas.fill(square, ground.solid());
    }
    let figure = if figure == ground { figure.mix(Tone::WHITE, 0.5) } else { figure };
    let corners = [(x, y, 0.0), (x + s, y, 1.0), (x + s, y + s, 2.0), (x, y + s, 3.0)];
    let (cx, cy, turn) = dice.pick(&corners).copied().unwrap_or((x, y, 0.0));
    match dice.below(9) {
        0 | 1 => {
            canvas.fill(quarter(cx, cy, s, turn), figure.solid());
            if dice.chance(0.5) {
                canvas.fill(quarter(cx, cy, s * 0.6, turn), ground.mix(Tone::WHITE, 0.25).solid());
            }
        }
        2 => canvas.disc(x + s / 2.0, y + s / 2.0, s * 0.38, figure.solid()),
        3 => {
            canvas.disc(x + s / 2.0, y + s / 2.0, s * 0.44, figure.solid());
            canvas.disc(x + s / 2.0, y + s / 2.0, s * 0.26, ground.solid());
        }
        4 => {
            let [a, b, c] = match turn as u8 {
                0 => [(x, y), (x + s, y), (x, y + s)],
                1 => [(x, y), (x + s, y), (x + s, y + s)],
                2 => [(x + s, y), (x + s, y + s), (x, y + s)],
                _ => [(x, y), (x + s, y + s), (x, y + s)],
            };
            canvas.fill(polygon([a, b, c]), figure.solid());
        }
        5 => {
            for i in 0..4 {
                let at = s * (i as f32 * 2.0 + 0.5) / 8.0;
                let stripe = if turn < 2.0 { rect(x + at, y, s / 8.0, s) } else { rect(x, y + at, s, s / 8.0) };
                canvas.fill(stripe, figure.solid());
            }
        }
        6 => {
            for i in 0..16 {
                let (column, row) = ((i % 4) as f32, (i / 4) as f32);
                canvas.disc(x + s * (column + 0.5) / 4.0, y + s * (row + 0.5) / 4.0, s * 0.055, figure.solid());
            }
        }
        7 => {
            for k in [0.0, 0.5] {
                let points = (0..=24).map(|i| {
                    let angle = std::f32::consts::PI * i as f32 / 24.0;
                    (x + s / 2.0 + angle.cos() * s / 2.0, y + s * (k + 0.5) - angle.sin() * s / 2.0)
                });
                canvas.fill(polygon(points), figure.mix(ground, k * 0.5).solid());
            }
        }
        _ => {}
    }
}

/// A quarter of a disc whose corner is at (x, y); `turn` counts quarter turns clockwise.
fn quarter(x: f32, y: f32, r: f32, turn: f32) -> Option<tiny_skia::Path> {
    let arc = (0..=20).map(move |i| {
        let angle = std::f32::consts::FRAC_PI_2 * (turn + i as f32 / 20.0);
        (x + angle.cos() * r, y + angle.sin() * r)
    });
    polygon([(x, y)].into_iter().chain(arc))
}

/// Threads that follow a field of noise, as smoke and sound might.
pub(super) fn flow(canvas: &mut Canvas, palette: &Palette, dice: &mut Dice) {
    let (w, h, u) = (canvas.w, canvas.h, canvas.u);
    let deep = palette.sky[0].darker(0.45);
    canvas.fade(
        rect(0.0, 0.0, w, h),
        (0.0, 0.0),
        (w, h),
        &[deep.solid(), palette.sky[0].mix(palette.sky[1], 0.5).solid(), deep.darker(0.3).solid()],
    );
    for _ in 0..5 {
        let tone = dice.pick(&palette.sky).copied().unwrap_or(palette.accent);
        canvas.glow(dice.range(0.1, 0.9) * w, dice.range(0.1, 0.9) * h, u * dice.range(0.35, 0.7), tone, 0.28);
    }
    let (field, shade) = (dice.noise(), dice.noise());
    let lean = dice.range(0.0, std::f32::consts::TAU);
    let tones = [palette.sky[2], palette.sky[3], palette.accent, palette.sun, palette.sky[2].mix(palette.accent, 0.5)];
    let count = (900.0 * (w * h / (u * u)).min(2.5)) as usize;
    for i in 0..count {
        let (mut x, mut y) = (dice.range(-0.1, 1.1) * w, dice.range(-0.1, 1.1) * h);
        let mood = shade.fractal(x / u * 1.3, y / u * 1.3, 2);
        let tone = tones
            .get(((mood * 1.6 - 0.3).clamp(0.0, 0.99) * tones.len() as f32) as usize)
            .copied()
            .unwrap_or(palette.sun);
        let mut path = PathBuilder::new();
        path.move_to(x, y);
        for _ in 0..46 {
            let angle = lean + (field.fractal(x / u * 0.95, y / u * 0.95, 3) - 0.5) * 9.0;
            x += angle.cos() * u * 0.009;
            y += angle.sin() * u * 0.009;
            path.line_to(x, y);
        }
        let bold = dice.unit().powi(4);
        let near = i as f32 / count as f32;
        canvas.stroke_light(path.finish(), u * (0.0009 + 0.0050 * bold), tone.alpha(0.10 + 0.36 * near * (0.4 + bold)));
        if bold > 0.9 {
            canvas.glow(x, y, u * 0.02, tone.lighter(0.4), 0.7);
        }
    }
    // One bright thread leads the eye through.
    let noise = dice.noise();
    let thread: Vec<_> = (0..=120)
        .map(|i| {
            let t = i as f32 / 120.0;
            (w * (t * 1.1 - 0.05), h * (0.44 + (noise.line(t * 2.6, 3) - 0.5) * 0.7))
        })
        .collect();
    for (width, alpha) in [(0.05, 0.05), (0.02, 0.12), (0.006, 0.45), (0.002, 0.9)] {
        canvas.stroke_light(polyline(thread.iter().copied()), u * width, palette.accent.lighter(0.5).alpha(alpha));
    }
}
