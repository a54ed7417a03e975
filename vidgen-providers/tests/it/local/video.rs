use bytes::Bytes;
use vidgen_core::{ErrorKind, TaskSpec};

use super::kit::*;

fn photo(source: &str, name: &str) -> Bytes {
    ffmpeg(&format!("-f lavfi -i {source} -frames:v 1"), name)
}

#[tokio::test]
async fn a_video_is_exactly_as_asked_for_and_moves_without_a_jump() {
    let local = local();
    let photo = photo("mandelbrot=s=900x700", "a.png");
    let mut task = video(input("a.png", photo), size(640, 360), 2.0);
    let (output, bytes) = made(&local, &task).await;
    assert_eq!((output.content.width, output.content.height), (Some(640), Some(360)));
    assert!((seconds(&output) - 2.0).abs() < 0.05);
    assert_eq!(output.content.audio, Some(false));
    let said = probe(&bytes, "stream=codec_name,pix_fmt,width,height,r_frame_rate,nb_read_frames:format_tags");
    for line in
        ["codec_name=h264", "pix_fmt=yuv420p", "width=640", "height=360", "r_frame_rate=24/1", "nb_read_frames=48"]
    {
        assert!(said.contains(line), "{line} in {said}");
    }
    assert!(!said.contains("encoder"), "{said}");
    // The index comes first, so that a browser can start before it has all.
    let place = |name: &[u8]| bytes.windows(4).position(|w| w == name).unwrap();
    assert!(place(b"moov") < place(b"mdat"));

    let frames = frames(&bytes, "24");
    let steps: Vec<f64> = frames.windows(2).map(|pair| difference(&pair[0], &pair[1])).collect();
    assert!(difference(&frames[0], frames.last().unwrap()) > 1.0, "it moves");
    let mean = steps.iter().sum::<f64>() / steps.len() as f64;
    assert!(steps.iter().all(|step| *step < mean * 5.0 + 0.5), "no jump: {steps:?}");

    let TaskSpec::Video(spec) = &mut task.spec else { unreachable!() };
    spec.fps = Some(30);
    let (_, bytes) = made(&local, &task).await;
    assert!(probe(&bytes, "stream=r_frame_rate,nb_read_frames").contains("nb_read_frames=60"));
}

#[tokio::test]
async fn any_picture_that_people_bring_becomes_a_video() {
    let local = local();
    let alpha = "color=red@0.3:s=301x203,format=rgba";
    for (source, name) in [
        ("testsrc=s=301x203", "odd.png"),
        ("testsrc=s=301x203", "odd.jpg"),
        ("testsrc=s=301x203", "odd.webp"),
        ("testsrc=s=64x64,scale=1:1", "pixel.png"),
        ("testsrc=s=64x64,scale=2:1", "pixel.jpg"),
        ("testsrc=s=3000x20", "strip.png"),
        ("testsrc=s=20x3000", "tower.jpg"),
        ("testsrc=s=300x200,format=gray", "grey.png"),
        ("testsrc=s=300x200,format=gray16", "deep.png"),
        ("testsrc=s=300x200,format=gray", "grey.jpg"),
        ("testsrc=s=300x200,format=monob", "bits.png"),
        ("testsrc=s=300x200,format=pal8", "palette.png"),
        ("testsrc=s=300x200,format=rgba64be", "deep-alpha.png"),
        (alpha, "alpha.png"),
        (alpha, "alpha.webp"),
        ("testsrc=s=5000x4000", "large.jpg"),
    ] {
        let bytes = photo(source, name);
        let (output, bytes) = made(&local, &video(input(name, bytes), size(192, 108), 0.5)).await;
        assert_eq!((output.content.width, output.content.height), (Some(192), Some(108)), "{name}");
        assert!(
            probe(&bytes, "stream=pix_fmt,nb_read_frames").contains("pix_fmt=yuv420p\nnb_read_frames=12"),
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_photo_is_turned_upright() {
    // Left half black, right half white, and a note that it lies on its side.
    let jpeg = photo("color=black:s=200x100,drawbox=x=100:y=0:w=100:h=100:c=white:t=fill", "a.jpg");
    let exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let mut turned = jpeg[..2].to_vec();
    turned.extend([0xff, 0xe1]);
    turned.extend(u16::try_from(exif.len() + 2).unwrap().to_be_bytes());
    turned.extend(exif);
    turned.extend(&jpeg[2..]);
    let (_, bytes) = made(&local(), &video(input("a.jpg", turned), size(90, 180), 0.5)).await;
    let frames = frames(&bytes, "24");
    let (top, bottom) = frames[0].split_at(32 * 9);
    let mean = |part: &[u8]| part.iter().map(|v| u32::from(*v)).sum::<u32>() / part.len() as u32;
    assert!(mean(top) < 40 && mean(bottom) > 200, "{} {}", mean(top), mean(bottom));
}

#[tokio::test]
async fn a_video_needs_an_image_and_sane_numbers() {
    let local = local();
    let image = input("a.png", photo("testsrc=s=64x64", "a.png"));
    for (width, height, length, field) in [(63, 64, 1.0, "size"), (64, 64, 0.0, "duration"), (64, 64, 61.0, "duration")]
    {
        let error = submit(&local, &video(image.clone(), size(width, height), length)).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Invalid && error.fields()[0].field == field, "{error}");
    }
    let mut task = video(image, size(64, 64), 1.0);
    let TaskSpec::Video(spec) = &mut task.spec else { unreachable!() };
    spec.image = None;
    assert_eq!(submit(&local, &task).await.unwrap_err().fields()[0].field, "image");
}
