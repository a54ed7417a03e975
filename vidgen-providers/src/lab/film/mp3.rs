//! Silence in MP3 (ISO 11172-3, 13818-3), written out: frames whose side information says that they
//! hold nothing.

use std::time::Duration;

use bytes::Bytes;

/// Kilobits per second by their index in a header, for 44.1 kHz and for half of that.
const RATES: [u32; 15] = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320];
const LOW_RATES: [u32; 15] = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160];

/// As long a silence, one channel, behind a tag that says `made_with`; `None` for a rate that there is
/// no header for.
pub fn mp3(duration: Duration, sample_rate: u32, kilobits: u32, made_with: &str) -> Option<Bytes> {
    // Version and sample rate, samples of a frame, and what of a frame's length is before its rate.
    let (version, frequency, samples, rates) = match sample_rate {
        44_100 => (0xFB, 0, 1152, RATES),
        22_050 => (0xF3, 0, 576, LOW_RATES),
        24_000 => (0xF3, 1, 576, LOW_RATES),
        _ => return None,
    };
    let rate = u8::try_from(rates.iter().position(|rate| *rate == kilobits).filter(|at| *at > 0)?).ok()?;
    let length = usize::try_from(samples / 8 * kilobits * 1000 / sample_rate).ok()?;
    let mut frame = vec![0xFF, version, rate << 4 | frequency << 2, 0xC4];
    frame.resize(length, 0);
    let frames = (duration.as_secs_f64() * f64::from(sample_rate) / f64::from(samples)).ceil().max(1.0) as usize;
    let mut bytes = tag(made_with)?;
    bytes.extend(frame.repeat(frames));
    Some(bytes.into())
}

/// ID3v2.3 with one text: what it was made with.
fn tag(made_with: &str) -> Option<Vec<u8>> {
    // So short that a length needs no more than seven bits.
    let text = u8::try_from(made_with.len() + 1).ok().filter(|length| *length < 100)?;
    let mut tag = b"ID3\x03\0\0\0\0\0".to_vec();
    tag.push(text + 10);
    tag.extend(b"TSSE\0\0\0");
    tag.extend([text, 0, 0, 0]);
    tag.extend(made_with.bytes());
    Some(tag)
}

#[cfg(test)]
mod tests {
    use vidgen_core::MediaType;

    use super::*;

    #[test]
    fn frames_are_as_many_and_as_long_as_the_time_takes() {
        for (sample_rate, kilobits, frames, length) in
            [(44_100, 128, 77, 417), (44_100, 32, 77, 104), (22_050, 32, 77, 104), (24_000, 48, 84, 144)]
        {
            let bytes = mp3(Duration::from_secs(2), sample_rate, kilobits, "lab").unwrap();
            assert_eq!(bytes.len(), 10 + 10 + 4 + frames * length, "{sample_rate} {kilobits}");
            assert_eq!(MediaType::sniff(&bytes), Some(MediaType::Mp3));
        }
        for (sample_rate, kilobits) in [(44_100, 0), (44_100, 100), (48_000, 128)] {
            assert_eq!(mp3(Duration::from_secs(2), sample_rate, kilobits, "lab"), None);
        }
    }
}
