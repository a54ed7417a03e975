//! The voices of this machine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use vidgen_core::{Error, ErrorKind, Result};

use super::ORIGIN;
use super::ffmpeg::{Arguments, Ffmpeg};
use super::sandbox::{Invocation, Sandbox, ask, locate, words};
use super::scratch::RunDir;

/// Whom to call when a text is to be spoken.
#[derive(Clone, Debug)]
pub(super) enum Voice {
    /// `espeak-ng`: many languages, each in many variants.
    Espeak { program: PathBuf, languages: BTreeSet<String>, variants: BTreeSet<String> },
    /// The `flite` filter of ffmpeg: English.
    Flite,
}

const FLITE_VOICES: [&str; 5] = ["slt", "awb", "kal", "kal16", "rms"];

/// Languages that are named first to whoever asks for a voice that is not there.
const LIKELY: [&str; 5] = ["en-us", "en-gb", "de", "es", "fr-fr"];

impl Voice {
    /// Finds a voice, if there is one.
    pub(super) fn detect(espeak: Option<&Path>, ffmpeg: Option<&Ffmpeg>) -> Result<Option<Self>> {
        if let Some((program, voices)) = locate(espeak, "espeak-ng", &["--voices"])? {
            let mut languages = column(&voices, 1);
            let variants = ask(&program, &["--voices=variant"]).map(|list| variants(&list)).unwrap_or_default();
            if !languages.is_empty() {
                // Not in the list, but the name of its default.
                languages.insert("en".into());
                return Ok(Some(Self::Espeak { program, languages, variants }));
            }
        }
        Ok(Self::flite(ffmpeg))
    }

    /// The voice of ffmpeg, if it was built with one.
    pub(super) fn flite(ffmpeg: Option<&Ffmpeg>) -> Option<Self> {
        ffmpeg.filter(|f| f.flite).map(|_| Self::Flite)
    }

    /// Refuses the name of a voice that does not exist here. What passes is one plain word, so
    /// it can be neither an option nor a path.
    pub(super) fn check(&self, name: Option<&str>) -> Result<()> {
        let Some(name) = name else { return Ok(()) };
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'+' | b'_' | b'-');
        let known = match self {
            Self::Espeak { languages, variants, .. } => {
                let (language, variant) = name.split_once('+').map_or((name, None), |(l, v)| (l, Some(v)));
                languages.contains(language) && variant.is_none_or(|v| variants.contains(v))
            }
            Self::Flite => FLITE_VOICES.contains(&name),
        };
        if known && (1..=32).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('-') {
            Ok(())
        } else {
            Err(Error::invalid_field("voice", format!("is not a voice of this machine: {}", self.known())))
        }
    }

    /// Which voices there are: so few that they can be read, and how to see the others.
    fn known(&self) -> String {
        match self {
            Self::Espeak { languages, .. } => {
                let likely = LIKELY.into_iter().filter(|name| languages.contains(*name));
                let others = languages.iter().map(String::as_str).filter(|name| !LIKELY.contains(name));
                let few: Vec<&str> = likely.chain(others).take(LIKELY.len()).collect();
                format!("it has {} and more, see `espeak-ng --voices`", few.join(", "))
            }
            Self::Flite => format!("it has {}", FLITE_VOICES.join(", ")),
        }
    }

    /// Speaks the text in the file `text.txt` of `dir` into its file `speech.wav`.
    pub(super) async fn speak(
        &self,
        name: Option<&str>,
        dir: &RunDir,
        sandbox: &Sandbox,
        ffmpeg: Option<&Ffmpeg>,
    ) -> Result<()> {
        let wav = dir.file("speech.wav");
        match self {
            Self::Espeak { program, .. } => {
                let text = dir.file("text.txt");
                // `-b 1`: the text is UTF-8. `-z`: no pause at the end of the last sentence.
                let arguments = words([&"-b", &"1", &"-z", &"-v", &name.unwrap_or("en"), &"-f", &text, &"-w", &wav]);
                let call = Invocation { program, arguments, dir: dir.path(), wall: sandbox.limits.wall };
                sandbox.run(call, |_| {}).await?;
                Ok(())
            }
            Self::Flite => {
                let ffmpeg = ffmpeg.ok_or_else(|| Error::new(ErrorKind::Unsupported, ORIGIN, "ffmpeg is gone"))?;
                // The text file is named relative to the working directory, so nothing needs escaping.
                let graph = format!("flite=textfile=text.txt:voice={}", name.unwrap_or("slt"));
                let list = Arguments::new(["-f", "lavfi", "-i", &graph, "-c:a", "pcm_s16le"]).output("wav", &wav);
                ffmpeg.run(dir.path(), list, None).await
            }
        }
    }
}

fn column(table: &str, number: usize) -> BTreeSet<String> {
    table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(number)).map(str::to_owned).collect()
}

/// The file names in the list of variants, which are what may follow the `+`.
fn variants(table: &str) -> BTreeSet<String> {
    table.split_whitespace().filter_map(|word| word.strip_prefix("!v/")).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn espeak() -> Voice {
        let set = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        Voice::Espeak { program: "espeak-ng".into(), languages: set(&["en", "en-us", "de"]), variants: set(&["f3"]) }
    }

    #[test]
    fn only_known_voices_pass() {
        for fine in [None, Some("en"), Some("en-us"), Some("de+f3")] {
            assert!(espeak().check(fine).is_ok(), "{fine:?}");
        }
        for bad in ["", "Rachel", "fr", "en+zz", "-w", "../../x", "en us", "en\n", "EN", "+f3", &"e".repeat(33)] {
            assert_eq!(espeak().check(Some(bad)).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
        assert!(Voice::Flite.check(Some("slt")).is_ok() && Voice::Flite.check(Some("en")).is_err());
    }

    #[test]
    fn who_asks_for_an_unknown_voice_is_told_of_known_ones() {
        let said = |voice: Voice| voice.check(Some("Rachel")).unwrap_err().fields()[0].message.clone();
        let espeak = said(espeak());
        assert_eq!(espeak, "is not a voice of this machine: it has en-us, de, en and more, see `espeak-ng --voices`");
        assert_eq!(said(Voice::Flite), "is not a voice of this machine: it has slt, awb, kal, kal16, rms");
    }
}
