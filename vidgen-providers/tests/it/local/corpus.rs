//! Files of people who mean harm, or whose download broke off.

use std::io::Write;

use bytes::Bytes;
use vidgen_core::ErrorKind;

use super::kit::*;

fn good_video() -> Bytes {
    ffmpeg("-f lavfi -i testsrc=s=320x180:d=2:r=24 -pix_fmt yuv420p", "v.mp4")
}

/// A PNG that says it is `side` pixels wide and high.
fn png(side: u32) -> Vec<u8> {
    let chunk = |kind: &[u8], data: &[u8]| {
        let mut out = u32::try_from(data.len()).unwrap().to_be_bytes().to_vec();
        let body = [kind, data].concat();
        out.extend(&body);
        let crc = body.iter().fold(!0_u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 })
        });
        out.extend((!crc).to_be_bytes());
        out
    };
    let side = side.to_be_bytes();
    let head = [&side[..], &side, &[8, 0, 0, 0, 0]].concat();
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    file.extend(chunk(b"IHDR", &head));
    file.extend(chunk(b"IDAT", b"\x78\x9c\x03\x00\x00\x00\x00\x01"));
    file.extend(chunk(b"IEND", b""));
    file
}

#[tokio::test]
async fn what_is_no_video_is_refused_whatever_it_is_called() {
    let local = local();
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret.txt");
    std::fs::write(&secret, "the secret").unwrap();
    let secret = secret.display();
    let mut avi = b"RIFF\x00\x01\x00\x00AVI LIST".to_vec();
    write!(avi, "GAB2\0#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10.0,\nfile://{secret}\n").unwrap();
    let corpus: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("short", b"x".to_vec()),
        ("html", b"<!doctype html><html><body>404</body></html>".to_vec()),
        ("playlist", format!("#EXTM3U\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n").into_bytes()),
        ("ffconcat", format!("ffconcat version 1.0\nfile '{secret}'\n").into_bytes()),
        ("avi", avi),
        ("svg", format!("<svg xmlns:xlink='x'><image xlink:href='file://{secret}'/></svg>").into_bytes()),
        ("zeros", vec![0; 5000]),
        ("picture", png(16)),
        // The right first bytes and nothing right after them.
        ("only a head", b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41".to_vec()),
        (
            "head and playlist",
            [b"\0\0\0\x10ftypisom\0\0\x02\0".to_vec(), format!("#EXTM3U\nfile://{secret}\n").into_bytes()].concat(),
        ),
        ("webm of rubbish", [b"\x1a\x45\xdf\xa3".to_vec(), vec![0x42; 3000]].concat()),
        ("truncated", good_video()[..2000].to_vec()),
    ];
    for (name, bytes) in corpus {
        let media = || input("jobs/vid-1/video.mp4", bytes.clone());
        for task in [compose(media(), None, size(64, 64), 1.0), thumbnail(media(), 0.0, 64)] {
            let failure = failed(&local, &task).await;
            assert_eq!(failure.kind, ErrorKind::Invalid, "{name}: {failure:?}");
            assert!(failure.reason.starts_with("the video "), "{name}: {failure:?}");
            assert!(!failure.reason.contains("secret"), "{name}: {failure:?}");
        }
    }
}

#[tokio::test]
async fn what_is_no_picture_is_refused_before_it_is_decoded() {
    let local = local();
    let jpeg = ffmpeg("-f lavfi -i testsrc=s=300x200 -frames:v 1", "a.jpg");
    let wide = ffmpeg("-f lavfi -i color=s=8200x16 -frames:v 1", "a.png");
    for (name, bytes) in [
        ("empty", Bytes::new()),
        ("html", Bytes::from_static(b"<html>")),
        ("video", good_video()),
        ("svg", Bytes::from_static(b"<?xml version='1.0'?><svg><image href='file:///etc/passwd'/></svg>")),
        ("huge", png(60_000).into()),
        ("over 40 megapixels", png(7_000).into()),
        ("over 8192 on a side", wide),
        ("no data", png(100).into()),
        ("half a head", jpeg.slice(..20)),
    ] {
        let failure = failed(&local, &video(input("a.png", bytes), size(64, 64), 0.5)).await;
        assert_eq!(failure.kind, ErrorKind::Invalid, "{name}: {failure:?}");
        assert!(failure.reason.starts_with("the image "), "{name}: {failure:?}");
    }
    // Half a photo is still a photo, as in any browser.
    made(&local, &video(input("a.jpg", jpeg.slice(..jpeg.len() / 2)), size(64, 64), 0.5)).await;
}

#[tokio::test]
async fn speech_must_have_sound() {
    let local = local();
    for (name, bytes) in [
        ("html", Bytes::from_static(b"<html>")),
        ("mute", good_video()),
        ("wav", Bytes::from_static(b"RIFF\0\0\0\0WAVE")),
    ] {
        let task = compose(input("v.mp4", good_video()), Some(input("s.wav", bytes)), size(64, 64), 1.0);
        let failure = failed(&local, &task).await;
        assert!(failure.kind == ErrorKind::Invalid && failure.reason.starts_with("the speech "), "{name}: {failure:?}");
    }
}

#[tokio::test]
async fn what_is_too_long_is_refused_while_it_streams() {
    let local = local();
    let mut large = png(16);
    large.resize((20 << 20) + 1, 0);
    let image = input("a.png", large);
    let error = submit(&local, &video(image.clone(), size(64, 64), 1.0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    // The length that the record says may be wrong; the bytes are counted all the same.
    let mut liar = image;
    liar.info.length = 10;
    let failure = failed(&local, &video(liar, size(64, 64), 1.0)).await;
    assert!(failure.reason.contains("longer than 20 MiB"), "{failure:?}");
}

#[tokio::test]
async fn a_video_outside_the_limits_is_refused() {
    let local = local();
    for (arguments, problem) in [
        ("-f lavfi -i color=s=4200x64:d=0.2:r=10 -pix_fmt yuv420p", "4096 pixels"),
        ("-f lavfi -i color=s=64x64:d=0.2:r=200 -pix_fmt yuv420p", "120 frames"),
        ("-f lavfi -i color=s=16x16:d=700:r=1 -pix_fmt yuv420p", "10 minutes"),
    ] {
        let video = input("v.mp4", ffmpeg(arguments, "v.mp4"));
        let failure = failed(&local, &thumbnail(video, 0.0, 64)).await;
        assert!(failure.kind == ErrorKind::Invalid && failure.reason.contains(problem), "{failure:?}");
    }
}
