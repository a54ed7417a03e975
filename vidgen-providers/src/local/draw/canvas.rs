//! A sheet of pixels and what can be put on it.

use tiny_skia::{
    BlendMode, Color, FillRule, GradientStop, LinearGradient, Mask, Paint, Path, PathBuilder, Pixmap, Point,
    RadialGradient, Rect, Shader, SpreadMode, Stroke, Transform,
};

use super::palette::Tone;
use super::{Dice, Words};

/// A sheet of pixels. Lengths are in pixels; `u` is the short side, the unit of whatever should
/// look the same in every format.
#[derive(Debug)]
pub(super) struct Canvas {
    pixmap: Pixmap,
    pub(super) w: f32,
    pub(super) h: f32,
    pub(super) u: f32,
}

impl Canvas {
    pub(super) fn new(width: u32, height: u32) -> Option<Self> {
        let pixmap = Pixmap::new(width, height)?;
        let (w, h) = (width as f32, height as f32);
        Some(Self { pixmap, w, h, u: w.min(h) })
    }

    /// The sheet as a PNG file. Packed fast: the grain would gain little from more effort.
    pub(super) fn into_png(self) -> Result<Vec<u8>, png::EncodingError> {
        let pixels =
            self.pixmap.data().chunks_exact(4).flat_map(|pixel| pixel.iter().take(3)).copied().collect::<Vec<_>>();
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, self.pixmap.width(), self.pixmap.height());
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_compression(png::Compression::Fast);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&pixels)?;
        writer.finish()?;
        Ok(file)
    }

    /// The bytes of the pixels, four each, row by row.
    pub(super) fn rows(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let stride = self.pixmap.width() as usize * 4;
        self.pixmap.data_mut().chunks_exact_mut(stride.max(4))
    }

    fn paint(&mut self, path: Option<&Path>, shader: Option<Shader<'_>>, blend: BlendMode) {
        let (Some(path), Some(shader)) = (path, shader) else { return };
        let paint = Paint { shader, blend_mode: blend, anti_alias: true, ..Paint::default() };
        self.pixmap.fill_path(path, &paint, FillRule::Winding, Transform::identity(), None);
    }

    /// Fills a path with one colour.
    pub(super) fn fill(&mut self, path: Option<Path>, color: Color) {
        self.paint(path.as_ref(), Some(Shader::SolidColor(color)), BlendMode::SourceOver);
    }

    /// Fills a path with light: it brightens what is under it.
    pub(super) fn light(&mut self, path: Option<Path>, color: Color) {
        self.paint(path.as_ref(), Some(Shader::SolidColor(color)), BlendMode::Screen);
    }

    /// Fills a path with colours that run evenly from one point to another.
    pub(super) fn fade(&mut self, path: Option<Path>, from: (f32, f32), to: (f32, f32), colors: &[Color]) {
        self.paint(path.as_ref(), linear(from, to, colors), BlendMode::SourceOver);
    }

    /// As [`Self::fade`], of light.
    pub(super) fn fade_light(&mut self, path: Option<Path>, from: (f32, f32), to: (f32, f32), colors: &[Color]) {
        self.paint(path.as_ref(), linear(from, to, colors), BlendMode::Screen);
    }

    /// Fills the sheet between two heights with colours that run from top to bottom.
    pub(super) fn band(&mut self, top: f32, bottom: f32, colors: &[Color]) {
        let path = rect(0.0, top, self.w, bottom - top);
        self.fade(path, (0.0, top), (0.0, bottom), colors);
    }

    pub(super) fn disc(&mut self, x: f32, y: f32, r: f32, color: Color) {
        self.fill(PathBuilder::from_circle(x, y, r), color);
    }

    /// A soft spot of light.
    pub(super) fn glow(&mut self, x: f32, y: f32, r: f32, tone: Tone, strength: f32) {
        let colors = [tone.alpha(strength), tone.alpha(strength * 0.36), tone.alpha(strength * 0.1), tone.alpha(0.0)];
        let shader = radial((x, y), r, &colors);
        self.paint(PathBuilder::from_circle(x, y, r).as_ref(), shader, BlendMode::Screen);
    }

    /// A soft spot of colour, wider than high: the stuff of clouds.
    pub(super) fn puff(&mut self, x: f32, y: f32, r: f32, flat: f32, tone: Tone, strength: f32) {
        let colors = [tone.alpha(strength), tone.alpha(strength * 0.7), tone.alpha(strength * 0.2), tone.alpha(0.0)];
        let (Some(path), Some(shader)) = (PathBuilder::from_circle(0.0, 0.0, r), radial((0.0, 0.0), r, &colors)) else {
            return;
        };
        let paint = Paint { shader, anti_alias: true, ..Paint::default() };
        let place = Transform::from_scale(1.0, flat).post_translate(x, y);
        self.pixmap.fill_path(&path, &paint, FillRule::Winding, place, None);
    }

    pub(super) fn stroke(&mut self, path: Option<Path>, width: f32, color: Color) {
        self.stroke_with(path, width, color, BlendMode::SourceOver);
    }

    /// A stroke of light.
    pub(super) fn stroke_light(&mut self, path: Option<Path>, width: f32, color: Color) {
        self.stroke_with(path, width, color, BlendMode::Screen);
    }

    fn stroke_with(&mut self, path: Option<Path>, width: f32, color: Color, blend: BlendMode) {
        let Some(path) = path else { return };
        let paint =
            Paint { shader: Shader::SolidColor(color), blend_mode: blend, anti_alias: true, ..Paint::default() };
        let stroke = Stroke {
            width: width.max(0.1),
            line_cap: tiny_skia::LineCap::Round,
            line_join: tiny_skia::LineJoin::Round,
            ..Stroke::default()
        };
        self.pixmap.stroke_path(&path, &paint, &stroke, Transform::identity(), None);
    }

    /// Adds light pixel by pixel: `light` gets a place, 0 to 1 in both directions times the
    /// proportions (so noise is round), and answers a colour and its strength. It is asked once
    /// for each block of 3 by 3 pixels, and what it says is smoothed between them.
    pub(super) fn shine(&mut self, top: f32, bottom: f32, light: impl Fn(f32, f32) -> (Tone, f32)) {
        const STEP: usize = 3;
        let (w, h, u) = (self.w as usize, self.h as usize, self.u);
        let (columns, lines) = (w / STEP + 2, h / STEP + 2);
        let mut grid = Vec::with_capacity(columns * lines);
        for line in 0..lines {
            for column in 0..columns {
                let (x, y) = ((column * STEP) as f32, (line * STEP) as f32);
                let (tone, strength) = if y >= top && y <= bottom { light(x / u, y / u) } else { (Tone::BLACK, 0.0) };
                grid.push(tone.parts().map(|part| part * strength.clamp(0.0, 1.0)));
            }
        }
        let at = |column: usize, line: usize| grid.get(line * columns + column).copied().unwrap_or_default();
        for (y, row) in self.rows().enumerate() {
            let (line, ty) = (y / STEP, (y % STEP) as f32 / STEP as f32);
            for (x, pixel) in row.chunks_exact_mut(4).enumerate() {
                let (column, tx) = (x / STEP, (x % STEP) as f32 / STEP as f32);
                let corners = [at(column, line), at(column + 1, line), at(column, line + 1), at(column + 1, line + 1)];
                let [a, b, c, d] = corners;
                for (i, value) in pixel.iter_mut().take(3).enumerate() {
                    let part = |corner: [f32; 3]| corner.get(i).copied().unwrap_or(0.0);
                    let upper = part(a) + (part(b) - part(a)) * tx;
                    let lower = part(c) + (part(d) - part(c)) * tx;
                    let light = upper + (lower - upper) * ty;
                    let old = f32::from(*value) / 255.0;
                    *value = ((1.0 - (1.0 - old) * (1.0 - light)) * 255.0).round() as u8;
                }
            }
        }
    }

    /// Turns everything below `shore` into water: the picture above it upside down, rippled.
    pub(super) fn reflect(&mut self, shore: f32, water: Tone, dice: &mut Dice) {
        let noise = dice.noise();
        let stride = self.pixmap.width() as usize * 4;
        let (width, u) = (self.pixmap.width() as usize, self.u);
        let shore = (shore.max(1.0) as usize).min(self.pixmap.height() as usize);
        let (above, below) = self.pixmap.data_mut().split_at_mut(shore * stride);
        let deep = water.parts();
        for (depth, row) in below.chunks_exact_mut(stride).enumerate() {
            let d = depth as f32 / u;
            // Ripples are longer and stronger the nearer they are.
            let ripple = noise.at(d * 60.0 / (0.25 + d * 2.0), 3.0) - 0.5;
            let mirror = shore.saturating_sub(1 + depth + ((ripple * d * 0.10 * u).abs() as usize));
            let source = above.chunks_exact(stride).nth(mirror).unwrap_or_default();
            let shift = ripple * (0.004 + d * 0.05) * u;
            let share = 0.30 + (d * 0.9).min(0.45);
            for (x, pixel) in row.chunks_exact_mut(4).enumerate() {
                let from = ((x as f32 + shift).max(0.0) as usize).min(width.saturating_sub(1));
                let seen = source.get(from * 4..from * 4 + 4).unwrap_or(&[0, 0, 0, 255]);
                for ((value, seen), deep) in pixel.iter_mut().zip(seen).zip(deep) {
                    *value =
                        (f32::from(*seen) * (1.0 - share) + deep * 255.0 * share + ripple * 10.0 * (1.0 - d).max(0.0))
                            .clamp(0.0, 255.0) as u8;
                }
                if let Some(alpha) = pixel.get_mut(3) {
                    *alpha = 255;
                }
            }
        }
    }

    /// Darkens the corners, and adds the grain that keeps gradients from banding in a video.
    pub(super) fn finish(&mut self, words: &Words, dice: &mut Dice) {
        let (w, h) = (self.w, self.h);
        let grain = if words.any(&["vintage", "film", "noir", "retro", "grain", "sepia"]) { 9.0 } else { 2.4 };
        let grey = words.any(&["noir", "monochrome", "grayscale", "greyscale"]);
        let mut grains = dice.clone();
        for (y, row) in self.rows().enumerate() {
            let dy = y as f32 / h - 0.5;
            for (x, pixel) in row.chunks_exact_mut(4).enumerate() {
                let dx = x as f32 / w - 0.5;
                let shade = 1.0 - 0.55 * (dx * dx + dy * dy - 0.12).max(0.0);
                let speck = (grains.unit() - 0.5) * grain;
                if let [r, g, b, a] = pixel {
                    if grey {
                        let light = 0.3 * f32::from(*r) + 0.59 * f32::from(*g) + 0.11 * f32::from(*b);
                        (*r, *g, *b) = (light as u8, light as u8, light as u8);
                    }
                    for value in [r, g, b] {
                        *value = (f32::from(*value) * shade + speck).round().clamp(0.0, 255.0) as u8;
                    }
                    *a = 255;
                }
            }
        }
    }

    /// Covers the pixels by `coverage` (0 to 1) of `tone` at one place.
    pub(super) fn blot(&mut self, x: i32, y: i32, tone: Tone, coverage: f32) {
        let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else { return };
        if x >= self.pixmap.width() || y >= self.pixmap.height() {
            return;
        }
        let start = (y as usize * self.pixmap.width() as usize + x as usize) * 4;
        for (value, part) in self.pixmap.data_mut().iter_mut().skip(start).take(3).zip(tone.parts()) {
            let old = f32::from(*value);
            *value = (old + (part * 255.0 - old) * coverage.clamp(0.0, 1.0)).round() as u8;
        }
    }

    /// A mask of `path`, to draw inside it.
    pub(super) fn mask(&self, path: &Path) -> Option<Mask> {
        let mut mask = Mask::new(self.pixmap.width(), self.pixmap.height())?;
        mask.fill_path(path, FillRule::Winding, true, Transform::identity());
        Some(mask)
    }

    /// Fills a path with one colour, inside a mask.
    pub(super) fn fill_inside(&mut self, path: Option<Path>, color: Color, mask: Option<&Mask>) {
        let Some(path) = path else { return };
        let paint = Paint { shader: Shader::SolidColor(color), anti_alias: true, ..Paint::default() };
        self.pixmap.fill_path(&path, &paint, FillRule::Winding, Transform::identity(), mask);
    }
}

fn stops(colors: &[Color]) -> Vec<GradientStop> {
    let last = colors.len().saturating_sub(1).max(1) as f32;
    colors.iter().enumerate().map(|(i, color)| GradientStop::new(i as f32 / last, *color)).collect()
}

fn linear(from: (f32, f32), to: (f32, f32), colors: &[Color]) -> Option<Shader<'static>> {
    LinearGradient::new(
        Point::from_xy(from.0, from.1),
        Point::from_xy(to.0, to.1),
        stops(colors),
        SpreadMode::Pad,
        Transform::identity(),
    )
}

fn radial(center: (f32, f32), r: f32, colors: &[Color]) -> Option<Shader<'static>> {
    let center = Point::from_xy(center.0, center.1);
    RadialGradient::new(center, 0.0, center, r, stops(colors), SpreadMode::Pad, Transform::identity())
}

pub(super) fn rect(x: f32, y: f32, w: f32, h: f32) -> Option<Path> {
    Some(PathBuilder::from_rect(Rect::from_xywh(x, y, w.max(0.01), h.max(0.01))?))
}

pub(super) fn oval(x: f32, y: f32, rx: f32, ry: f32) -> Option<Path> {
    PathBuilder::from_oval(Rect::from_xywh(x - rx, y - ry, (rx * 2.0).max(0.01), (ry * 2.0).max(0.01))?)
}

/// A closed path through points.
pub(super) fn polygon(points: impl IntoIterator<Item = (f32, f32)>) -> Option<Path> {
    let mut path = lines(points);
    path.close();
    path.finish()
}

/// An open path through points.
pub(super) fn polyline(points: impl IntoIterator<Item = (f32, f32)>) -> Option<Path> {
    lines(points).finish()
}

fn lines(points: impl IntoIterator<Item = (f32, f32)>) -> PathBuilder {
    let mut path = PathBuilder::new();
    for (i, (x, y)) in points.into_iter().enumerate() {
        if i == 0 { path.move_to(x, y) } else { path.line_to(x, y) }
    }
    path
}
