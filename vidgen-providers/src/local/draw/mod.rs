//! Draws a picture from the words of a prompt: the same words, seed, style and size give the
//! same picture.

mod canvas;
mod caption;
mod dice;
mod palette;
mod scenes;

use vidgen_core::{Error, Result};

use super::ORIGIN;
use canvas::Canvas;
use palette::Palette;

pub(super) use dice::Dice;

/// What a picture is to be.
#[derive(Clone, Debug, Default)]
pub(super) struct Wish {
    pub(super) prompt: String,
    /// What it shall not show.
    pub(super) avoided: String,
    pub(super) style: String,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) seed: Option<u64>,
}

/// The words of a wish, in lower case, without those that are to be avoided.
#[derive(Clone, Debug)]
struct Words(Vec<String>);

impl Words {
    fn of(wish: &Wish) -> Self {
        let split = |text: &str| -> Vec<String> {
            text.to_lowercase()
                .split(|c: char| !c.is_alphanumeric())
                .filter(|w| !w.is_empty())
                .map(str::to_owned)
                .collect()
        };
        let avoided = split(&wish.avoided);
        let mut words = split(&wish.prompt);
        words.extend(split(&wish.style));
        words.retain(|word| !avoided.contains(word));
        Self(words)
    }

    /// Whether one of `list` is said, in singular or plural.
    fn any(&self, list: &[&str]) -> bool {
        self.0.iter().any(|word| {
            list.iter().any(|l| word == l || word.strip_suffix('s') == Some(l) || word.strip_suffix("es") == Some(l))
        })
    }

    /// Where the first of `list` is said.
    fn first(&self, list: &[&str]) -> Option<usize> {
        self.0.iter().position(|word| {
            list.iter().any(|l| word == l || word.strip_suffix('s') == Some(l) || word.strip_suffix("es") == Some(l))
        })
    }
}

/// Draws the picture as a PNG file.
pub(super) fn png(wish: &Wish) -> Result<Vec<u8>> {
    let canvas = draw(wish).ok_or_else(|| Error::internal(ORIGIN, "a picture of this size cannot be drawn"))?;
    canvas.into_png().map_err(|e| Error::internal(ORIGIN, "a picture cannot be packed").with_source(e))
}

fn draw(wish: &Wish) -> Option<Canvas> {
    let words = Words::of(wish);
    let mut dice = Dice::of(&[&wish.prompt, &wish.style], wish.seed);
    let mut canvas = Canvas::new(wish.width, wish.height)?;
    let scene = scenes::Scene::choose(&words, &mut dice);
    let palette = Palette::choose(&words, scene, &mut dice);
    scene.paint(&mut canvas, &palette, &words, &mut dice);
    canvas.finish(&words, &mut dice);
    caption::write(&mut canvas, &wish.prompt);
    Some(canvas)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(prompt: &str, seed: u64) -> Wish {
        Wish { prompt: prompt.into(), width: 192, height: 108, seed: Some(seed), ..Wish::default() }
    }

    #[test]
    fn the_same_wish_is_the_same_picture_and_another_is_not() {
        let one = png(&wish("a lighthouse in a storm", 1)).unwrap();
        assert_eq!(one, png(&wish("a lighthouse in a storm", 1)).unwrap());
        assert_ne!(one, png(&wish("a lighthouse in a storm", 2)).unwrap());
        assert_ne!(one, png(&wish("a city", 1)).unwrap());
        let styled = Wish { style: "noir".into(), ..wish("a lighthouse in a storm", 1) };
        assert_ne!(one, png(&styled).unwrap());
    }

    #[test]
    fn every_scene_takes_every_size_and_any_text() {
        let texts = [
            "storm at sea",
            "space",
            "city at night",
            "forest",
            "cat",
            "desert",
            "flowers",
            "aurora",
            "music",
            "bauhaus",
            "日本語のプロンプト 🎬🔥",
            "שלום עולם",
            "'\"\\%{pts}:;[x]\n\r\t\u{202e}\0",
            "",
        ];
        for (width, height) in [(16, 16), (320, 180), (180, 320), (200, 16)] {
            for text in texts {
                let wish = Wish { prompt: text.into(), width, height, seed: None, ..Wish::default() };
                assert!(png(&wish).is_ok(), "{text:?} {width}x{height}");
            }
        }
        let long = Wish { prompt: "word ".repeat(2000), width: 320, height: 180, ..Wish::default() };
        assert!(png(&long).is_ok());
    }

    #[test]
    fn words_are_found_and_avoided() {
        let mut wish = wish("Storms, over CITIES and lighthouses", 1);
        assert!(Words::of(&wish).any(&["lighthouse"]) && Words::of(&wish).any(&["storm"]));
        wish.avoided = "storms".into();
        assert!(!Words::of(&wish).any(&["storm"]));
    }
}
