use vidgen_core::{ErrorKind, MediaType};

use super::kit::*;

#[tokio::test]
async fn speech_is_heard_whole_and_undistorted() {
    let text = "Ships pass the lighthouse at night. Nobody waves.";
    let (output, bytes) = made(&local(), &speech(text, None)).await;
    assert_eq!(output.media_type, Some(MediaType::Wav));
    assert!((2.0..8.0).contains(&seconds(&output)), "{}", seconds(&output));
    let (peak, mean) = loudness(&bytes, 0.0);
    assert!(peak < 0.0 && mean > -35.0, "{peak} {mean}");
    assert!(probe(&bytes, "stream=sample_rate").contains("sample_rate=22050"));
}

#[tokio::test]
async fn only_voices_of_this_machine_speak() {
    let local = local();
    let (_, english) = made(&local, &speech("one two three", Some("en-us"))).await;
    let (_, german) = made(&local, &speech("one two three", Some("de+f3"))).await;
    assert_ne!(english, german);
    for voice in ["", "Rachel", "xx", "../../etc/passwd", "-w", "en --stdout", "en\n"] {
        let error = submit(&local, &speech("hello", Some(voice))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{voice:?}");
        let said = &error.fields()[0].message;
        assert!(said.contains("it has en-us, en-gb, de, es, fr-fr and more"), "{said}");
    }
    assert_eq!(submit(&local, &speech(" \n", None)).await.unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn hostile_text_is_spoken_or_unsupported_and_never_obeyed() {
    let local = local();
    for text in
        ["-w /tmp/evil.wav --stdout", "<speak><audio src='file:///etc/passwd'/>hello</speak>", "[[h@'loU]] $(id)"]
    {
        made(&local, &speech(text, None)).await;
    }
    let failure = failed(&local, &speech("\u{200b}", None)).await;
    assert_eq!(failure.kind, ErrorKind::Unsupported, "{failure:?}");
}

#[tokio::test]
async fn the_voice_of_ffmpeg_speaks_where_there_is_no_other() {
    if !flite() {
        eprintln!("skipped: this ffmpeg has no flite");
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    // A directory whose name means something in a filter graph.
    let odd = scratch.path().join("it's [odd]; a=b:c, %d");
    let local = vidgen_providers::local::LocalProvider::builder().without_espeak().with_scratch(odd).build().unwrap();
    let (output, bytes) = made(&local, &speech("Hello, it's me: 100% [here]; \\ done.", Some("slt"))).await;
    assert!(seconds(&output) > 1.0);
    assert!(loudness(&bytes, 0.0).1 > -40.0);
    let error = submit(&local, &speech("hello", Some("de"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

fn flite() -> bool {
    let output = std::process::Command::new("ffmpeg").args(["-hide_banner", "-filters"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).contains(" flite ")
}
