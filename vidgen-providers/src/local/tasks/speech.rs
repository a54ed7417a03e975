//! Speech, by the voice of this machine.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use vidgen_core::{ContentInfo, Error, ErrorKind, MediaType, Result, SpeechTask};

use super::super::scratch::RunDir;
use super::{Made, ORIGIN, Workshop};

const NAME: &str = "speech.wav";

/// Shorter than any word: a text of signs and pictures only leaves this behind.
const SILENT: Duration = Duration::from_millis(50);

impl Workshop {
    pub(super) async fn speak(&self, task: &SpeechTask, dir: &RunDir) -> Result<Made> {
        let unwritten = |e| Error::new(ErrorKind::Unavailable, ORIGIN, "cannot write to scratch").with_source(e);
        // Two brackets would start a phoneme code of espeak; control characters are not text.
        let text: String =
            task.text.replace("[[", "[ [").chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        tokio::fs::write(dir.file("text.txt"), text).await.map_err(unwritten)?;
        self.voice()?.speak(task.voice.as_deref(), dir, &self.sandbox, self.ffmpeg.as_ref()).await?;
        let path = dir.file(NAME);
        let length = tokio::task::spawn_blocking(move || wav_length(&path)).await.ok().flatten().unwrap_or_default();
        if length < SILENT {
            let message = "this machine's voice can speak nothing of this text";
            return Err(Error::new(ErrorKind::Unsupported, ORIGIN, message));
        }
        let content = ContentInfo { width: None, height: None, duration: Some(length), audio: Some(true) };
        Ok(Made { name: NAME, media_type: MediaType::Wav, content })
    }
}

/// The length of a WAV file, by its own header, so that speech needs no ffprobe.
fn wav_length(path: &Path) -> Option<Duration> {
    let mut file = std::fs::File::open(path).ok()?;
    let whole = file.metadata().ok()?.len();
    let mut head = [0; 12];
    file.read_exact(&mut head).ok()?;
    (MediaType::sniff(&head) == Some(MediaType::Wav)).then_some(())?;
    let mut rate = 0;
    loop {
        let mut chunk = [0; 8];
        file.read_exact(&mut chunk).ok()?;
        let length = u64::from(u32::from_le_bytes(chunk.get(4..8)?.try_into().ok()?));
        match chunk.get(..4)? {
            b"fmt " => {
                let mut format = [0; 16];
                file.read_exact(&mut format).ok()?;
                rate = u32::from_le_bytes(format.get(8..12)?.try_into().ok()?);
                file.seek(SeekFrom::Current(i64::try_from(length).ok()? - 16)).ok()?;
            }
            b"data" if rate > 0 => {
                // A writer that cannot seek leaves a length that is too large.
                let there = length.min(whole.saturating_sub(file.stream_position().ok()?));
                return Some(Duration::from_secs_f64(there as f64 / f64::from(rate)));
            }
            _ => {
                file.seek(SeekFrom::Current(i64::try_from(length + length % 2).ok()?)).ok()?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_wav_is_in_its_header() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.wav");
        let mut wav = Vec::from(*b"RIFF\0\0\0\0WAVELIST\x03\0\0\0abc\0fmt \x10\0\0\0\x01\0\x01\0");
        wav.extend(8000_u32.to_le_bytes());
        wav.extend(16000_u32.to_le_bytes());
        wav.extend(*b"\x02\0\x10\0data\xff\xff\xff\xff");
        wav.extend([0; 8000]);
        std::fs::write(&path, &wav).unwrap();
        assert_eq!(wav_length(&path), Some(Duration::from_millis(500)));
        std::fs::write(&path, b"RIFF\0\0\0\0WAVE").unwrap();
        assert_eq!(wav_length(&path), None);
    }
}
