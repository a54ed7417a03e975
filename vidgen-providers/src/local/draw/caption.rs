//! The prompt, legible in the picture.

use ab_glyph::{Font, FontRef, Glyph, PxScale, ScaleFont, point};

use super::canvas::Canvas;
use super::palette::Tone;

/// How wide the text may be, of the picture; what is beside it may be lost when a video zooms.
const WIDTH: f32 = 0.76;

/// How high the text may be, of the picture.
const HEIGHT: f32 = 0.30;

/// Where the text ends, of the picture.
const FOOT: f32 = 0.885;

/// Writes `text` at the foot of the picture, as large as fits. The font is compiled in, so a
/// machine without fonts writes as well as another; what it has no glyph for is left out.
pub(super) fn write(canvas: &mut Canvas, text: &str) {
    let Ok(font) = FontRef::try_from_slice(dejavu::sans_condensed::bold()) else { return };
    let text = readable(&font, text);
    if text.is_empty() || canvas.u < 64.0 {
        return;
    }
    let sizes = [0.062, 0.054, 0.047, 0.041, 0.036, 0.031].map(|share| canvas.u * share);
    let room = canvas.w * WIDTH;
    let mut lines = Vec::new();
    let mut size = canvas.u * 0.031;
    for candidate in sizes {
        size = candidate;
        lines = wrap(&font, &text, size, room);
        let high = lines.len() as f32 * size * 1.25;
        // A few large lines look better than many, so a long text is set smaller at once.
        if high <= canvas.h * HEIGHT && lines.len() <= 4 {
            break;
        }
    }
    let most = ((canvas.h * HEIGHT / (size * 1.25)) as usize).max(1);
    if lines.len() > most {
        lines.truncate(most);
        if let Some(last) = lines.last_mut() {
            while !last.is_empty() && width(&font, &format!("{last}…"), size) > room {
                last.pop();
            }
            last.truncate(last.trim_end().len());
            last.push('…');
        }
    }
    let high = lines.len() as f32 * size * 1.25;
    let top = canvas.h * FOOT - high;
    shade(canvas, top - size * 1.6);
    for (i, line) in lines.iter().enumerate() {
        let x = (canvas.w - width(&font, line, size)) / 2.0;
        let y = top + (i as f32 + 0.95) * size * 1.25;
        let off = (size * 0.05).max(1.0);
        put(canvas, &font, line, size, (x + off, y + off), Tone::BLACK, 0.55);
        put(canvas, &font, line, size, (x, y), Tone::WHITE, 1.0);
    }
}

/// Darkens the foot of the picture towards its edge, so that white is legible on any ground.
fn shade(canvas: &mut Canvas, top: f32) {
    let top = top.max(0.0);
    let h = canvas.h;
    let full = Tone::hex(0x05_070d);
    canvas.band(top, h, &[full.alpha(0.0), full.alpha(0.42), full.alpha(0.6), full.alpha(0.72)]);
}

/// The text with single spaces and without what the font cannot show.
fn readable(font: &FontRef<'_>, text: &str) -> String {
    let known: String = text
        .chars()
        .take(1000)
        .map(|c| if c.is_whitespace() || c.is_control() { ' ' } else { c })
        .filter(|c| *c == ' ' || font.glyph_id(*c).0 != 0)
        .collect();
    known.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn width(font: &FontRef<'_>, text: &str, size: f32) -> f32 {
    layout(font, text, size, (0.0, 0.0)).1
}

fn layout(font: &FontRef<'_>, text: &str, size: f32, (mut x, y): (f32, f32)) -> (Vec<Glyph>, f32) {
    let scale = PxScale::from(size * 1.16);
    let scaled = font.as_scaled(scale);
    let start = x;
    let mut last = None;
    let mut glyphs = Vec::new();
    for c in text.chars() {
        let id = font.glyph_id(c);
        if let Some(last) = last {
            x += scaled.kern(last, id);
        }
        glyphs.push(id.with_scale_and_position(scale, point(x, y)));
        x += scaled.h_advance(id);
        last = Some(id);
    }
    (glyphs, x - start)
}

/// Breaks a text into lines; a word that is too long for a line is broken too.
fn wrap(font: &FontRef<'_>, text: &str, size: f32, room: f32) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        let longer = if line.is_empty() { word.to_owned() } else { format!("{line} {word}") };
        if width(font, &longer, size) <= room {
            line = longer;
            continue;
        }
        if !line.is_empty() {
            lines.push(std::mem::take(&mut line));
        }
        for c in word.chars() {
            line.push(c);
            if width(font, &line, size) > room && line.chars().count() > 1 {
                line.pop();
                lines.push(std::mem::take(&mut line));
                line.push(c);
            }
        }
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

fn put(canvas: &mut Canvas, font: &FontRef<'_>, text: &str, size: f32, at: (f32, f32), tone: Tone, alpha: f32) {
    for glyph in layout(font, text, size, at).0 {
        let Some(outline) = font.outline_glyph(glyph) else { continue };
        let bounds = outline.px_bounds();
        outline.draw(|x, y, coverage| {
            let (x, y) = (bounds.min.x as i32 + x as i32, bounds.min.y as i32 + y as i32);
            canvas.blot(x, y, tone, coverage * alpha);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_font_knows_europe_and_leaves_out_the_rest() {
        let font = FontRef::try_from_slice(dejavu::sans_condensed::bold()).unwrap();
        assert_eq!(readable(&font, "Füße\tпривет \n Ελλάδα 日本🎬!"), "Füße привет Ελλάδα !");
    }

    #[test]
    fn lines_are_never_wider_than_the_room() {
        let font = FontRef::try_from_slice(dejavu::sans_condensed::bold()).unwrap();
        let text = format!("a short one and {} and the rest", "x".repeat(300));
        let lines = wrap(&font, &text, 20.0, 200.0);
        assert!(lines.iter().all(|line| width(&font, line, 20.0) <= 200.0));
        assert_eq!(lines.concat().replace(' ', ""), text.replace(' ', ""));
    }
}
